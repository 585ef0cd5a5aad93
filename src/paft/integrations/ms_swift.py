"""ms-swift 4.6: the cells of a training in schedule order as turns, and settings that make it read them in order.

A user's turn holds the text as the model's own template writes it, so its template is `dummy`, which adds nothing but the end mark.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paft.config import RunConfig, SFTConfig, dump_yaml
from paft.grid import Grid
from paft.integrations.export import (
    Exported,
    adapter_settings,
    check_rows,
    precision,
    quantised_bits,
    rows_in_pieces,
    rows_only,
    trainer_arguments,
)
from paft.lm.render import Renderer
from paft.store import new_folder, write_text

DATA, SETTINGS = "rows.jsonl", "sft.yaml"


def export_ms_swift(
    grid: Grid,
    renderer: Renderer,
    config: RunConfig,
    arm: str,
    out: Path,
    *,
    say: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write a folder for `swift sft`: rows of all epochs, and the arm's settings under its names.

    Raises ConfigError for what cannot be told by rows, and for settings that it has no name for.
    """
    train = rows_only(config, arm, "ms-swift")
    settings = _settings(config, train, arm, out.resolve())
    plan = check_rows(grid, train)
    with new_folder(out) as folder:
        with (folder / DATA).open("w", encoding="utf-8") as file:
            for row in rows_in_pieces(grid, renderer, train, config.seed, plan, "ms-swift", say):
                said = row["completion"].removesuffix(renderer.eos_text)  # which it adds itself
                turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": said}]
                file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        write_text(folder / SETTINGS, _COMMENT.format(batch=train.batch_size) + dump_yaml(settings))
    return plan


_COMMENT = """# Made by paft. Rows are in schedule order: keep both shuffles off and num_train_epochs as it is (all epochs are in the rows).
# An update is {batch} rows: per_device_train_batch_size x gradient_accumulation_steps x processes. A model that ms-swift does not know
# by its name wants model_type.
"""
_LORA = {
    "r": "lora_rank",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "target_modules",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}


def _settings(config: RunConfig, train: SFTConfig, arm: str, out: Path) -> dict[str, Any]:
    found = {
        "model": config.model,
        "attn_impl": config.attention,
        **_adapter(config, train),
        "torch_dtype": precision(config),
        "bf16": False,  # where nothing is said, passes are in mixed precision, of float32 weights in float16
        "fp16": False,
        "adam_beta2": 0.999,  # its own is 0.95
        "dataset": str(out / DATA),
        "template": "dummy",
        "split_dataset_ratio": 0,
        "dataset_shuffle": False,
        "train_dataloader_shuffle": False,
        "packing": False,
        "load_from_cache_file": False,
        "max_length": train.max_length,
        **trainer_arguments(config, train, out / arm),
        "warmup_ratio": train.warmup_ratio,
        **train.arguments,
    }
    return {key: value for key, value in found.items() if value is not None}  # it would read None as a word


def _adapter(config: RunConfig, train: SFTConfig) -> dict[str, Any]:
    bits = quantised_bits(config, "ms-swift")
    if train.lora is None:
        return {"tuner_type": "full"}
    # what transformers takes where nothing is said
    plain = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
    quantised = {"quant_method": "bnb", "quant_bits": bits, **plain} if bits else {}
    return {"tuner_type": "lora", **adapter_settings(train, _LORA, "ms-swift"), **quantised}
