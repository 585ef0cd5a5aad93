"""Rows of a training pass in one line of tokens, what they share computed once; and the head at the answers only."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from paft.lm.hf import HFModel
from paft.lm.passes import is_out_of_memory, kernel_mask
from paft.lm.prefix import Row as Line
from paft.lm.prefix import forest
from paft.training.data import Row, pad, targets_of, with_targets
from paft.training.objectives import IGNORED, token_nll


def in_one_line(rows: Sequence[Row]) -> Line:
    """All rows in one line of tokens, what two of them share once: a prompt, a system turn, the head of a template. Every row keeps the
    token that predicts its first answer token for itself."""
    return forest([row.ids for row in rows], [row.start - 1 for row in rows])


def pack(rows: Sequence[Row], line: Line) -> dict[str, Any]:
    """Tensors as in `pad`, of one row: the line of `in_one_line`. attention_mask_11TT is true where a token may look: at its own text
    up to itself."""
    targets, whose = [IGNORED] * len(line), [0] * len(line)
    for number, (row, path) in enumerate(zip(rows, line.paths, strict=True)):
        for place, target in zip(path.tolist()[row.start - 1 :], targets_of(row)[row.start - 1 :], strict=True):
            targets[place], whose[place] = target, number
    return {
        "input_ids": torch.from_numpy(line.ids_T)[None],
        "attention_mask": torch.from_numpy(line.sees_TT())[None, None],
        "position_ids": torch.from_numpy(line.depth_T)[None],
        **with_targets([targets], [whose]),
    }


def width_of(learner: HFModel) -> float:
    """The hidden size by which `cheaper_packed` weighs attention; without end where pairs that do not see each other cost nothing."""
    config = innermost(learner.model).config
    return math.inf if config._attn_implementation == "flex_attention" else float(config.get_text_config().hidden_size)


def cost(rows: int, width: int, hidden_size: float) -> float:
    """Operations of a pass over `rows` rows of `width` places, in those that a token's linear layers take.

    Linear layers cost about 24 hidden_size^2 a token, attention 4 hidden_size a pair of places of a row.
    """
    return rows * width * (1 + width / (6 * hidden_size))


def padded_cost(rows: Sequence[Row], hidden_size: float) -> float:
    """`cost` of the batch that `pad` makes of these."""
    return cost(len(rows), max(len(row.ids) for row in rows), hidden_size)


def cheaper_packed(rows: Sequence[Row], line: Line, hidden_size: float) -> bool:
    """Whether the line, which has all pairs of its places, takes fewer operations than padded rows."""
    return cost(1, len(line), hidden_size) < padded_cost(rows, hidden_size)


def answer_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits_MV, targets_M, rows_M) of a batch of `pad`, `pad_shown` or `pack` at the M places that predict an answer token."""
    aimed_BT = inputs["shift_labels"] != IGNORED
    places_L = aimed_BT.any(0).nonzero().squeeze(1)
    mask, inner = inputs["attention_mask"], innermost(model)
    if mask.dim() == 4:
        mask = kernel_mask(mask, inner)
    fed = {"input_ids": inputs["input_ids"], "attention_mask": mask, **inputs.get("shown", {})}
    if "position_ids" in inputs:
        fed["position_ids"] = inputs["position_ids"]
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        logits_BLV = model(**fed, use_cache=False, logits_to_keep=places_L).logits
    else:
        logits_BLV = model(**fed, use_cache=False).logits[:, places_L]
    aimed_BL = aimed_BT[:, places_L]
    logits_MV = logits_BLV[0] if len(logits_BLV) == 1 else logits_BLV[aimed_BL]
    return logits_MV, inputs["shift_labels"][:, places_L][aimed_BL], inputs["rows"][:, places_L][aimed_BL]


def innermost(model: Any) -> Any:
    """The model inside what a launch and an adapter wrap around it."""
    model = getattr(model, "module", model)  # DDP
    return model.get_base_model() if hasattr(model, "get_base_model") else model


PACKED_TOLERANCE = {torch.float32: 1e-3}
"""Nats per answer token by which packed and padded rows may differ; 0.25 in half precision."""


def packs_exactly(learner: HFModel, rows: Sequence[Row], say: Callable[[str], None]) -> bool:
    """Whether this model reads several rows in one line as it reads them padded, found out on these.

    Not all do: a window of attention counts places, some position schemes read the mask, some kernels ignore it.
    """
    if not learner.may_share or len(rows) < 2:
        return False
    sums = []
    learner.model.eval()
    try:
        with torch.no_grad():
            for batch in (pad(rows, learner.renderer.eos_id), pack(rows, in_one_line(rows))):
                on_device = {name: tensor.to(learner.device) for name, tensor in batch.items()}
                logits_MV, targets_M, _ = answer_logits(learner.model, on_device)
                # left padding and packing both keep the order of rows and tokens
                sums.append(token_nll(logits_MV, targets_M))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        say(f"this model does not take packed rows ({type(error).__name__}); padding instead")
        return False
    gap = float((sums[0] - sums[1]).abs().max())
    if gap <= PACKED_TOLERANCE.get(next(learner.model.parameters()).dtype, 0.25):
        return True
    say(f"this model reads packed rows differently ({gap:.2g} nats per token); padding instead")
    return False
