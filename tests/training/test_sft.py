"""Training: the cells the schedule promises, golden losses, resume after a kill, memory that runs out."""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from paft import pipeline
from paft.config import AdaptiveSchedule, FixedSchedule, PaftSchedule, SFTConfig, load_run_config
from paft.errors import ConfigError, RenderError, ResourceError, ShapeError, StoreError
from paft.grid import Cell, Grid
from paft.lm.hf import MADE_ON, HFModel
from paft.lm.passes import kernel_mask
from paft.lm.ranks import Ranks
from paft.prompts import PromptSet, Template
from paft.store import ArmDir, read_jsonl
from paft.tasks import Example, load_task
from paft.tasks.answers import ChoiceText, Labels, Number, Wrapped
from paft.training import data, setup, sft
from paft.training.data import CellDataset, Row, ScheduleSampler, longest_cell, pad
from paft.training.objectives import IGNORED, token_nll
from paft.training.packing import answer_logits, cheaper_packed, in_one_line, pack, width_of
from paft.training.schedule import make_schedule
from paft.training.setup import check_on_dev
from paft.training.sft import _by_row, _Collator, train_sft
from paft.training.weights import cluster_weights
from paft.watch import LineWatcher
from tests import tiny

CONFIG = SFTConfig(
    schedule=PaftSchedule(steps_per_prompt=1),
    epochs=2,
    batch_size=4,
    learning_rate=1e-2,
    lora={"r": 4, "target_modules": "all-linear"},
    save_every=3,
)


def grid(folder: Path, rows: int = 22) -> Grid:
    task = load_task(tiny.write_task(folder, rows))
    return Grid(PromptSet.load(tiny.write_prompts(folder)).train, task.split("train").examples)


def train(folder: Path, config: SFTConfig = CONFIG, seed: int = 0, rows: int = 22, model=None) -> list[dict]:
    arm = ArmDir(folder / "arm")
    arm.root.mkdir(parents=True, exist_ok=True)
    train_sft(model or tiny.hf_model(), grid(folder / "data", rows), config, arm, seed=seed)
    return read_jsonl(arm.steps)


def seen(rows: list[dict]) -> list[tuple]:
    return [(row["step"], row["epoch"], tuple(row["prompts"]), tuple(row["examples"])) for row in rows]


def promised(folder: Path, config: SFTConfig = CONFIG, seed: int = 0, rows: int = 22) -> list[tuple]:
    """What the schedule says, written out: one entry per update."""
    g = grid(folder, rows)
    schedule = make_schedule(config.schedule, g, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    updates = []
    for epoch in range(config.epochs):
        cells = list(schedule.cells(epoch))
        for at in range(0, len(cells), config.batch_size):
            batch = cells[at : at + config.batch_size]
            prompts = tuple(sorted({g.templates[cell.prompt].id for cell in batch}))
            updates.append((len(updates) + 1, epoch, prompts, tuple(g.examples[cell.example].id for cell in batch)))
    return updates


def test_training_sees_exactly_the_cells_of_the_schedule(tmp_path):
    rows = train(tmp_path)
    assert seen(rows) == promised(tmp_path / "data")
    assert len(rows) == 12  # 22 examples in updates of 4: six per epoch, the last one of 2
    assert [len(row["examples"]) for row in rows[:6]] == [4, 4, 4, 4, 4, 2]
    first, second = ({e for row in rows if row["epoch"] == epoch for e in row["examples"]} for epoch in (0, 1))
    assert first == second
    assert len(first) == 22
    assert seen(rows)[0][3] != seen(rows)[6][3]  # epochs are shuffled anew


def test_each_example_meets_as_many_prompts_as_the_schedule_promises(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 4})
    rows = train(tmp_path, config)
    met: dict[str, set] = {}
    for row in rows:
        for example in row["examples"]:
            met.setdefault(example, set()).update(row["prompts"])
    told: dict[str, set] = {}
    for _, _, prompts, examples in promised(tmp_path / "data", config):
        for example in examples:
            told.setdefault(example, set()).update(prompts)
    assert met == told
    assert max(len(prompts) for prompts in met.values()) > 2
    fixed = train(tmp_path / "fixed", config.model_copy(update={"schedule": FixedSchedule(prompt=1)}))
    assert {prompt for row in fixed for prompt in row["prompts"]} == {grid(tmp_path / "d2").templates[1].id}


def test_the_log_tells_loss_and_hits_of_each_prompt_of_an_update(tmp_path):
    config = CONFIG.model_copy(update={"schedule": PaftSchedule(examples_per_prompt=1), "epochs": 8})
    rows = train(tmp_path, config)
    assert seen(rows) == promised(tmp_path / "data", config)
    assert max(len(row["by_prompt"]) for row in rows) > 1
    for row in rows:
        told = row["by_prompt"]
        assert list(told) == row["prompts"]
        assert sum(each["examples"] for each in told.values()) == len(row["examples"])
        low, high = min(each["loss"] for each in told.values()), max(each["loss"] for each in told.values())
        assert low - 1e-6 <= row["loss"] <= high + 1e-6  # their mean by answer tokens


def test_rows_are_told_apart_and_right_when_every_token_of_the_answer_was_the_likeliest():
    logits_MV = torch.tensor([[0.0, 1.0], [2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    targets_M, rows_M = torch.tensor([1, 0, 1, 1]), torch.tensor([0, 2, 2, 1])
    nll_M = token_nll(logits_MV, targets_M)
    apart_M = torch.tensor([0.5, 0.0, 0.25, 0.0])
    sums_R4 = _by_row(logits_MV, targets_M, rows_M, nll_M, apart_M, 3)
    assert sums_R4[:, 1:].tolist() == [[1, 1, 0.5], [1, 0, 0], [2, 2, 0.25]]
    assert sums_R4[:, 0].tolist() == pytest.approx([float(nll_M[0]), float(nll_M[3]), float(nll_M[1] + nll_M[2])])


def test_weights_of_clusters_follow_their_losses():
    clusters = 0, 0, 0, 1, 2  # mean over prompts (3 x 1 + 4 + 3) / 5 = 2
    assert cluster_weights(clusters, {0: 1.0, 1: 4.0, 2: 3.0}, 0.5, 2.0) == pytest.approx((0.3, 0.4, 0.3))
    assert cluster_weights(clusters, {0: 1.0, 1: 40.0, 2: 3.0}, 0.5, 2.0) == pytest.approx((0.3, 0.4, 0.1))
    assert cluster_weights(clusters, {1: 4.0}, 0.5, 2.0) == pytest.approx((0.6, 0.2, 0.2))


def test_an_adaptive_training_draws_what_its_losses_say(tmp_path):
    """The clusters' running losses, redone from the log, give the cells that were trained on."""
    settings = AdaptiveSchedule(by="prompt", every=3, steps_per_prompt=1, memory=0.5, floor=0.1, cap=5.0)
    config = CONFIG.model_copy(update={"schedule": settings, "epochs": 16, "learning_rate": 5e-2})
    rows = train(tmp_path, config)
    g = grid(tmp_path / "data")
    schedule = make_schedule(settings, g, batch_size=4, epochs=16, seed=0)
    cluster = {template.id: schedule.cluster_K[k] for k, template in enumerate(g.templates)}
    running: dict[int, float] = {}
    for number, row in enumerate(rows, 1):
        (prompt,) = row["prompts"]
        before = running.get(cluster[prompt])
        running[cluster[prompt]] = row["loss"] if before is None else 0.5 * before + 0.5 * row["loss"]
        if number % 3 == 0:
            schedule.weights_RC.append(cluster_weights(schedule.cluster_K, running, 0.1, 5.0))
    expected = [g.templates[schedule.prompt_of(epoch, block)].id for epoch in range(16) for block in range(6)]
    assert [row["prompts"][0] for row in rows] == expected
    plain = make_schedule(settings, g, batch_size=4, epochs=16, seed=0)
    plain.weights_RC.extend([cluster_weights(schedule.cluster_K, {}, 0.1, 5.0)] * 40)
    assert expected != [g.templates[plain.prompt_of(epoch, block)].id for epoch in range(16) for block in range(6)]


def test_two_runs_with_one_seed_agree_cell_by_cell_and_loss_by_loss(tmp_path):
    first, again, other = train(tmp_path / "a"), train(tmp_path / "b"), train(tmp_path / "c", seed=1)
    assert seen(first) == seen(again)
    assert [row["loss"] for row in first] == [row["loss"] for row in again]
    assert seen(first) != seen(other)


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_workers_and_accumulation_change_neither_cells_nor_losses(tmp_path, workers, persistent, micro):
    plain = train(tmp_path / "plain")
    arguments = {"dataloader_persistent_workers": True} if persistent else {}
    config = CONFIG.model_copy(
        update={"micro_batch_size": micro, "dataloader_workers": workers, "arguments": arguments}
    )
    rows = train(tmp_path / "other", config)
    assert seen(rows) == seen(plain)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in plain], abs=2e-4)


GOLDEN = Path(__file__).parent / "golden_sft.json"


def test_a_model_that_takes_no_count_of_tokens_is_trained_by_tokens_all_the_same(tmp_path):
    """Models that read images say accepts_loss_kwargs = False; an update of several passes would be their plain mean."""
    plain = train(tmp_path / "a", CONFIG.model_copy(update={"micro_batch_size": 1}), rows=16)
    model = tiny.hf_model()
    model.model.accepts_loss_kwargs = False
    other = train(tmp_path / "b", CONFIG.model_copy(update={"micro_batch_size": 1}), rows=16, model=model)
    assert [row["loss"] for row in other] == [row["loss"] for row in plain]


def reads_images_too() -> HFModel:
    """A model of texts and images, on texts."""
    words = tiny.tokenizer(chat=True)
    text = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "vocab_size": len(words), "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    whole = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4))
    whole.generation_config.eos_token_id = 1
    return HFModel(whole.eval().requires_grad_(False), words, identity="both")


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear"])
def test_lora_on_texts_stays_out_of_the_part_that_reads_images(tmp_path, targets):
    """Its layers have the same names; adapters there would never train, and keep several processes waiting for their gradients."""
    config = CONFIG.model_copy(update={"lora": {"r": 2, "target_modules": targets}, "epochs": 1})
    rows = train(tmp_path, config, rows=12, model=reads_images_too())
    assert len(rows) == 3
    adapter = load_file(tmp_path / "arm" / "adapter" / "adapter_model.safetensors")
    assert adapter
    assert all("language_model" in name for name in adapter)
    assert all(bool(weight.any()) for name, weight in adapter.items() if "lora_B" in name)  # all of them were trained


def test_mixed_precision_ends_with_the_training(tmp_path):
    """What is scored afterwards are the weights as a reloaded adapter has them."""
    config = CONFIG.model_copy(update={"arguments": {"bf16": True}})
    folder = ArmDir(tmp_path / "arm")
    folder.root.mkdir(parents=True)
    learner = train_sft(tiny.hf_model(), grid(tmp_path, 16), config, folder, seed=0)
    again = tiny.hf_model().with_adapter(folder.adapter)
    asked = [grid(tmp_path, 16).question(Cell(0, k, 0)) for k in range(2)]
    assert [a.logp_C for a in learner.answer(asked)] == [a.logp_C for a in again.answer(asked)]


def give_little_memory(model) -> list[tuple[int, bool]]:
    """Passes of a training with more than two rows run out of memory. Of each pass: its rows, and whether in mixed precision."""
    real, passes = model.model.forward, []

    def small(*args, **kwargs):
        if torch.is_grad_enabled():
            passes.append((rows := kwargs["input_ids"].shape[0], torch.is_autocast_enabled("cpu")))
            if rows > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    model.model.forward = small
    return passes


def test_mixed_precision_holds_for_a_training_that_begins_anew_and_ends_with_it(tmp_path):
    config = CONFIG.model_copy(update={"lora": None, "arguments": {"bf16": True}, "packing": False, "epochs": 1})
    model = tiny.hf_model()
    passes = give_little_memory(model)
    arm, g = ArmDir(tmp_path / "arm"), grid(tmp_path, 8)
    arm.root.mkdir()
    learner = train_sft(model, g, config, arm, seed=0)
    assert passes == [(4, True), *[(2, True)] * 4]
    again = tiny.hf_model()
    again.model.load_state_dict(learner.model.state_dict())
    asked = [g.question(Cell(0, k, 0)) for k in range(2)]
    assert [a.logp_C for a in learner.answer(asked)] == [a.logp_C for a in again.answer(asked)]


def test_golden_losses(tmp_path):
    """Eight updates on the tiny model in float32. The values change only when data order, rendering, loss or the
    optimizer's defaults change: `python -m tests.training.test_sft` writes them anew, with a reason in the commit."""
    assert losses(train(tmp_path, rows=16)) == pytest.approx(json.loads(GOLDEN.read_text()), abs=1e-5)


def test_the_loss_is_the_mean_over_answer_tokens_of_a_plain_forward(tmp_path):
    g = grid(tmp_path)
    lm = tiny.hf_model()
    data = CellDataset(g, lm.renderer, 1024)
    rows = [data[g.flat(Cell(0, k % 5, k))] for k in range(4)]
    batch = pad(rows, lm.renderer.eos_id)
    logits_MV, targets_M, rows_M = answer_logits(lm.model, batch)
    ours = token_nll(logits_MV, targets_M).sum()
    assert rows_M.tolist() == [n for n, row in enumerate(rows) for _ in row.ids[row.start :]]
    plain = 0.0
    for row in rows:
        logp_TV = lm.model(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        plain -= sum(float(logp_TV[t - 1, row.ids[t]]) for t in range(row.start, len(row.ids)))
    assert float(ours) == pytest.approx(plain, abs=1e-3)
    assert int((batch["shift_labels"] != IGNORED).sum()) == sum(len(row.ids) - row.start for row in rows)
    assert all(row.ids[-1] == lm.renderer.eos_id for row in rows)  # the model learns to end its answer


def ragged_rows(folder: Path, lm, count: int = 5) -> list:
    g = grid(folder)
    data = CellDataset(g, lm.renderer, 1024)
    return [data[g.flat(Cell(0, 2, i))] for i in range(count)]


def losses_and_gradients(lm, batch) -> tuple[float, dict]:
    model = copy.deepcopy(lm.model).requires_grad_(True)
    logits_MV, targets_M, _ = answer_logits(model, batch)
    loss = token_nll(logits_MV, targets_M).sum()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox", "gpt2"])
def test_packed_rows_give_the_loss_and_gradients_of_padded_rows(tmp_path, kind):
    lm = tiny.hf_model(kind)
    rows = ragged_rows(tmp_path, lm)
    assert len({len(row.ids) for row in rows}) > 1
    packed = pack(rows, in_one_line(rows))
    shared = sum(len(row.ids) for row in rows) - packed["input_ids"].shape[1]
    assert shared > 0
    assert shared % (len(rows) - 1) == 0
    slow, slow_grads = losses_and_gradients(lm, pad(rows, lm.renderer.eos_id))
    fast, fast_grads = losses_and_gradients(lm, packed)
    assert fast == pytest.approx(slow, abs=1e-4)
    assert slow_grads.keys() == fast_grads.keys()
    for name, grad in slow_grads.items():
        assert torch.allclose(grad, fast_grads[name], atol=1e-4 * float(grad.abs().max()) + 1e-6), name


def test_rows_that_share_nothing_are_packed_too(tmp_path):
    lm = tiny.hf_model(chat=False)
    rows = [replace(row, ids=[10 + n, *row.ids[1:]]) for n, row in enumerate(ragged_rows(tmp_path, lm))]
    packed = pack(rows, in_one_line(rows))
    assert packed["input_ids"].shape[1] == sum(len(row.ids) for row in rows)
    slow, _ = losses_and_gradients(lm, pad(rows, lm.renderer.eos_id))
    assert losses_and_gradients(lm, packed)[0] == pytest.approx(slow, abs=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_rows_of_several_prompts_share_what_each_two_have_in_common(tmp_path, kind):
    """Six cells under three prompts, in turns, one of them twice: a tree of two levels."""
    lm = tiny.hf_model(kind)
    g = grid(tmp_path)
    data = CellDataset(g, lm.renderer, 1024)
    rows = [data[g.flat(Cell(0, k, i))] for k, i in [(0, 0), (1, 0), (0, 1), (2, 2), (1, 1), (0, 0)]]
    packed = pack(rows, in_one_line(rows))
    ids = packed["input_ids"][0].tolist()
    begun = {tuple(row.ids[:end]) for row in rows for end in range(1, row.start)}
    assert len(ids) == len(begun) + sum(len(row.ids) - row.start + 1 for row in rows)
    for place, sees in enumerate(
        packed["attention_mask"][0, 0]
    ):  # each token sees a beginning of a row, and nothing else
        text = [ids[other] for other in sees.nonzero().flatten().tolist()]
        assert any(row.ids[: len(text)] == text for row in rows)
        assert packed["position_ids"][0, place] == len(text) - 1
    slow, slow_grads = losses_and_gradients(lm, pad(rows, lm.renderer.eos_id))
    fast, fast_grads = losses_and_gradients(lm, packed)
    assert fast == pytest.approx(slow, abs=1e-4)
    for name, grad in slow_grads.items():
        assert torch.allclose(grad, fast_grads[name], atol=1e-4 * float(grad.abs().max()) + 1e-6), name
    of_packed, of_padded = (answer_logits(lm.model, batch)[1:] for batch in (packed, pad(rows, lm.renderer.eos_id)))
    assert all(torch.equal(a, b) for a, b in zip(of_packed, of_padded, strict=True))  # the order of rows is kept


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, that this is slow
def test_flex_attention_reads_packed_rows_by_blocks(tmp_path, monkeypatch):
    """torch trains it on GPUs only; here its definition is computed, without kernels."""
    from torch.nn.attention import flex_attention
    from transformers.integrations import flex_attention as transformers_flex

    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    monkeypatch.setattr(
        transformers_flex, "WrappedFlexAttention", lambda training: lambda: flex_attention.flex_attention
    )
    lm = tiny.hf_model()
    rows = ragged_rows(tmp_path, lm, 12)
    packed = pack(rows, in_one_line(rows))
    slow, slow_grads = losses_and_gradients(lm, packed)
    lm.model.set_attn_implementation("flex_attention")
    mask = kernel_mask(packed["attention_mask"], lm.model)
    assert mask.sparsity() > 0  # blocks are left out
    fast, fast_grads = losses_and_gradients(lm, packed)
    assert fast == pytest.approx(slow, abs=1e-4)
    for name, grad in slow_grads.items():
        assert torch.allclose(grad, fast_grads[name], atol=1e-4 * float(grad.abs().max()) + 1e-6), name
    assert width_of(lm) == math.inf


def test_packing_is_chosen_by_its_cost():
    share = [Row(n, [1] * 50 + [n] * 10, 55) for n in range(4)]
    long = [Row(n, [n] * 4000, 3990) for n in range(8)]
    assert cheaper_packed(share, in_one_line(share), 576)
    assert not cheaper_packed(long, in_one_line(long), 576)  # attention over all pairs of 32,000 places


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt_neo"])
def test_training_with_and_without_packing_is_the_same_training(tmp_path, kind):
    plain = train(tmp_path / "padded", CONFIG.model_copy(update={"packing": False}), model=tiny.hf_model(kind))
    packed = train(tmp_path / "packed", CONFIG, model=tiny.hf_model(kind))
    assert seen(packed) == seen(plain)
    assert [row["loss"] for row in packed] == pytest.approx([row["loss"] for row in plain], abs=2e-4)
    assert [row["tokens"] for row in packed] == [row["tokens"] for row in plain]


def test_rows_of_like_length_are_padded_together_and_the_schedule_stays(tmp_path, monkeypatch):
    def places(name: str, **changed) -> tuple[list[dict], int]:
        fed = []
        watched = lambda model, batch: (fed.append(batch["input_ids"].numel()), answer_logits(model, batch))[1]  # noqa: E731
        monkeypatch.setattr(sft, "answer_logits", watched)
        return train(tmp_path / name, config.model_copy(update=changed)), sum(fed)

    mixed = PaftSchedule(examples_per_prompt=1)
    config = CONFIG.model_copy(update={"packing": False, "batch_size": 8, "schedule": mixed, "dataloader_workers": 2})
    whole, _ = places("whole")
    dealt, fewer = places("dealt", micro_batch_size=2)
    monkeypatch.setattr(sft, "by_length", lambda rows, per_example: list(range(len(rows))))
    in_turn, more = places("in turn", micro_batch_size=2)
    assert fewer < more
    assert seen(dealt) == seen(in_turn) == seen(whole) == promised(tmp_path / "promised", config)
    for other in (in_turn, whole):
        for a, b in zip(dealt, other, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], abs=2e-4)
            assert a["tokens"] == b["tokens"]
            assert {name: each["examples"] for name, each in a["by_prompt"].items()} == {
                name: each["examples"] for name, each in b["by_prompt"].items()
            }


@pytest.mark.parametrize("per_example", [1, 2])
@pytest.mark.parametrize("hidden_size", [None, 2.0])
def test_passes_are_dealt_anew_where_that_leaves_out_padding(per_example, hidden_size):
    lengths = [30, 30, 4, 6, 28, 28, 8, 6, 30, 30]
    rows = [Row(100 + n, [n] * length, length - 2) for n, length in enumerate(lengths)]
    rows += [replace(rows[-1], silent=True), replace(rows[-2], silent=True)]
    collate = _Collator(0, hidden_size, per_example, deals=True)
    came = [collate(rows[at : at + 4]) for at in (0, 4, 8)]
    dealt = collate.dealt(came)
    size = lambda passes: sum(batch["input_ids"].numel() for batch in passes)  # noqa: E731
    assert size(dealt) < size(came)
    assert sorted(place for batch in dealt for place in batch["places"]) == list(range(10))
    assert [batch["cells"] for batch in dealt] == [[100 + place for place in batch["places"]] for batch in dealt]
    assert [len(batch["held"]) for batch in dealt] == [4, 4, 4]
    assert sum(batch["tokens"] for batch in dealt) == sum(lengths)
    for batch in dealt:
        assert (
            all(b == a + 1 for a, b in zip(batch["places"][::2], batch["places"][1::2], strict=True))
            or per_example == 1
        )
    kept = replace(collate, deals=False).dealt(came)
    assert [batch["cells"] for batch in kept] == [[100 + n for n in range(a, min(a + 4, 10))] for a in (0, 4, 8)]
    even = [collate([Row(n, [n] * 9, 7) for n in range(at, at + 2)]) for at in (0, 2)]
    assert [batch["places"] for batch in collate.dealt(even)] == [[0, 1], [2, 3]]  # nothing to be had: as they came


def test_a_pass_that_counts_for_the_schedule_keeps_its_cells(tmp_path, monkeypatch):
    """Two passes of four under a prompt each; dealt by length they would mix the two."""
    fed: list[list[int]] = []
    real = sft._Trainer.compute_loss

    def watch(self, model, inputs, *given, **named):
        fed.append(inputs["cells"])
        return real(self, model, inputs, *given, **named)

    monkeypatch.setattr(sft._Trainer, "compute_loss", watch)
    schedule = PaftSchedule(batches_per_prompt=1)
    config = CONFIG.model_copy(update={"packing": False, "batch_size": 8, "micro_batch_size": 4, "schedule": schedule})
    rows = train(tmp_path, config)
    g = grid(tmp_path / "again")
    order = make_schedule(schedule, g, batch_size=8, epochs=2, seed=0, micro=4)
    cells = [[g.flat(cell) for cell in order.cells(epoch)] for epoch in (0, 1)]
    assert fed == [epoch[at : at + 4] for epoch in cells for at in range(0, 22, 4)]
    assert max(len(row["prompts"]) for row in rows) == 2


def test_processes_that_made_different_numbers_of_passes_are_noticed():
    passes = [([0], [7], torch.tensor([[1.0, 1.0, 1.0, 0.0]]))]
    trainer = SimpleNamespace(passes=passes, seen_tokens=3, args=SimpleNamespace(per_device_train_batch_size=1))
    ranks = SimpleNamespace(gather=lambda mine: [mine, ([], 0, 2)])
    with pytest.raises(ShapeError, match=r"processes made \[1, 2\] passes in one update"):
        sft._Trainer.take_update(trainer, ranks)


def test_a_model_that_ignores_the_mask_is_found_out_and_padded(tmp_path):
    model = tiny.hf_model()
    real = model.model.forward

    def blind(*args, **kwargs):
        if kwargs["attention_mask"].dim() == 4:
            kwargs["attention_mask"] = None
        return real(*args, **kwargs)

    # what a kernel that knows causal attention only would do
    model.model.forward = functools.wraps(real)(blind)
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir(parents=True)
    said: list[str] = []
    train_sft(model, grid(tmp_path / "data"), CONFIG, arm, seed=0, say=said.append)
    assert any("reads packed rows differently" in line for line in said)
    plain = train(tmp_path / "plain", CONFIG.model_copy(update={"packing": False}))
    assert [row["loss"] for row in read_jsonl(arm.steps)] == pytest.approx([row["loss"] for row in plain], abs=1e-5)


CHILD = """
import sys
from pathlib import Path
from tests.training import test_sft
test_sft.train(Path(sys.argv[1]), test_sft.CONFIG.model_copy(update={"epochs": 4}))
"""


@pytest.mark.parametrize("kill_after", [2, 5, 11])
def test_kill_and_resume_gives_the_cells_and_losses_of_an_uninterrupted_run(tmp_path, kill_after):
    config = CONFIG.model_copy(update={"epochs": 4})
    whole = train(tmp_path / "whole", config)
    folder = tmp_path / "killed"
    log = folder / "arm" / "steps.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 300
    while time.monotonic() < until and child.poll() is None and len(read_jsonl(log)) < kill_after:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = read_jsonl(log)
    assert len(before) >= kill_after, "the child did not get far enough"
    rows = train(folder, config)
    assert seen(rows) == seen(whole)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in whole], abs=1e-5)


def test_a_checkpoint_without_its_mark_is_not_resumed_from(tmp_path):
    arm = ArmDir(tmp_path)
    (arm.checkpoints / "checkpoint-9").mkdir(parents=True)
    whole = arm.checkpoints / "checkpoint-4"
    whole.mkdir()
    (whole / ArmDir.WHOLE).touch()
    assert arm.last_checkpoint() == whole


def test_checkpoints_of_another_training_are_not_gone_on_from(tmp_path):
    def stop(done, total, note):
        if done == 5:
            raise KeyboardInterrupt

    arm, model, config = ArmDir(tmp_path / "arm"), tiny.hf_model(), CONFIG.model_copy(update={"save_every": 2})
    arm.root.mkdir()
    with pytest.raises(KeyboardInterrupt):
        train_sft(model, grid(tmp_path / "data"), config, str(arm.root), seed=0, tick=stop)
    for changed, seed, rows, what in (
        ({"learning_rate": 3e-4}, 0, 22, r"changed: learning_rate\)"),
        ({}, 1, 22, "changed: seed, data"),
        ({}, 0, 21, "changed: seed, data"),
    ):
        with pytest.raises(StoreError, match=what):
            train(tmp_path, config.model_copy(update=changed), seed, rows, model)
    rows = train(tmp_path, config.model_copy(update={"save_every": 3, "packing": False}))
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert seen(rows) == seen(train(tmp_path / "whole", config))


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_update(tmp_path):
    plain = train(tmp_path / "plain")
    model = tiny.hf_model()
    give_little_memory(model)
    arm = ArmDir(tmp_path / "small" / "arm")
    arm.root.mkdir(parents=True)
    said: list[str] = []
    config = CONFIG.model_copy(update={"packing": False})  # so that the batch dimension is the number of examples
    train_sft(model, grid(tmp_path / "small" / "data"), config, arm, seed=0, say=said.append)
    rows = read_jsonl(arm.steps)
    assert any("going on with 2 examples at a time" in line for line in said)
    assert seen(rows) == seen(plain)
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in plain], abs=2e-4)


IN_PLACE = [
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ("llama", {"target_modules": ["q_proj", "gate_proj"], "modules_to_save": ["mlp"]}),
    ("qwen2", {"target_modules": ["q_proj"], "bias": "lora_only"}),
    ("qwen2", {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}),
]
"""Settings of LoRA that train weights of the model itself, or take something out of them."""


@pytest.mark.parametrize(("kind", "lora"), IN_PLACE)
def test_the_model_is_as_before_whatever_an_adapter_trained(tmp_path, kind, lora):
    config = CONFIG.model_copy(update={"lora": {"r": 4, **lora}, "save_every": 50})
    model, arm, g = tiny.hf_model(kind), ArmDir(tmp_path / "arm"), grid(tmp_path, 8)
    arm.root.mkdir()
    asked = [g.question(Cell(0, k, i)) for k in range(3) for i in range(2)]
    fingerprint, before = model.fingerprint, [answer.logp_C for answer in model.answer(asked)]
    tuned = train_sft(model, g, config, arm, seed=0)
    assert [answer.logp_C for answer in tuned.answer(asked)] != before
    for _ in range(2):
        base = tuned.without_adapter()
        assert [answer.logp_C for answer in base.answer(asked)] == before
        assert base.fingerprint == fingerprint
        tuned = base.with_adapter(arm.adapter)
        assert [answer.logp_C for answer in tuned.answer(asked)] != before


def test_a_model_that_carries_what_was_trained_on_it_says_so(tmp_path):
    model, arm = tiny.hf_model(), ArmDir(tmp_path / "arm")
    before = model.fingerprint
    arm.root.mkdir()
    tuned = train_sft(model, grid(tmp_path, 8), CONFIG.model_copy(update={"epochs": 1}), arm, seed=0)
    with pytest.raises(ConfigError, match=r"model 'tiny': carries an adapter .* use the model that the training"):
        _ = model.fingerprint
    assert tuned.without_adapter().fingerprint == before == model.fingerprint


def interrupted(done: int, total: int, note: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("change", "error"), [({"schedule": FixedSchedule(prompt="nope")}, ConfigError), ({}, KeyboardInterrupt)]
)
@pytest.mark.parametrize(("kind", "lora"), [IN_PLACE[2], IN_PLACE[4], ("gpt2", {"target_modules": ["c_attn"]})])
def test_the_model_is_as_before_after_an_error(tmp_path, kind, lora, change, error):
    config = CONFIG.model_copy(update={"lora": {"r": 4, **lora}, "arguments": {"bf16": True}, **change})
    model, arm, g = tiny.hf_model(kind), ArmDir(tmp_path / "arm"), grid(tmp_path, 8)
    arm.root.mkdir()
    asked = [g.question(Cell(0, k, 0)) for k in range(2)]
    fingerprint, before = model.fingerprint, [answer.logp_C for answer in model.answer(asked)]
    with pytest.raises(error):
        train_sft(model, g, config, arm, seed=0, tick=interrupted)
    assert (model.fingerprint, [answer.logp_C for answer in model.answer(asked)]) == (fingerprint, before)


@pytest.mark.parametrize(("kind", "lora"), [IN_PLACE[0], IN_PLACE[3]])
def test_out_of_memory_after_some_updates_begins_anew_with_the_same_weights(tmp_path, kind, lora):
    config = CONFIG.model_copy(update={"lora": {"r": 4, **lora}, "save_every": 50, "packing": False})
    plain = train(tmp_path / "plain", config.model_copy(update={"micro_batch_size": 2}), model=tiny.hf_model(kind))
    model, passes = tiny.hf_model(kind), []
    real = model.model.forward

    def small(*args, **kwargs):
        if kwargs["input_ids"].shape[0] > 2 and torch.is_grad_enabled():
            passes.append(1)
            if len(passes) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args, **kwargs)

    model.model.forward = small
    rows = train(tmp_path / "small", config, model=model)
    assert len(passes) == 4
    assert losses(rows) == losses(plain)


def test_out_of_memory_while_the_adapter_is_put_on_is_one_line_and_leaves_the_model(tmp_path, monkeypatch):
    """Nothing that a smaller micro-batch would mend; layers before the one that failed are wrapped, and less of their weights is left."""
    model, g, calls = tiny.hf_model(), grid(tmp_path, 8), []
    asked = [g.question(Cell(0, k, 0)) for k in range(2)]
    fingerprint, before = model.fingerprint, [answer.logp_C for answer in model.answer(asked)]
    real = LoraLayer.pissa_init

    def small(*given):
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    monkeypatch.setattr(LoraLayer, "pissa_init", small)
    lora = {"r": 4, "target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    with pytest.raises(
        ResourceError, match=r"train.lora .* out of memory while the adapter is put on .* use a smaller r"
    ) as error:
        train(tmp_path, CONFIG.model_copy(update={"lora": lora}), model=model)
    assert "\n" not in str(error.value)
    assert (model.fingerprint, [answer.logp_C for answer in model.answer(asked)]) == (fingerprint, before)


def test_out_of_memory_on_one_example_is_one_line(tmp_path):
    model = tiny.hf_model()

    def never(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.forward = never
    with pytest.raises(ResourceError, match="out of memory with one example"):
        train(tmp_path, model=model)


def test_a_cell_that_is_too_long_is_refused_before_training(tmp_path):
    with pytest.raises(RenderError, match=r"tokens; train\.max_length is 16; raise it"):
        train(tmp_path, CONFIG.model_copy(update={"max_length": 16}))


def test_a_cell_that_the_model_does_not_read_is_refused_before_training(tmp_path):
    model = tiny.hf_model()
    model.limit = 16
    with pytest.raises(RenderError, match=r"has \d+ tokens; the model reads at most 16; use a larger one or leave"):
        train(tmp_path, model=model)


@pytest.mark.parametrize("exact", [data.EXACT, 0])
@pytest.mark.parametrize(
    ("second", "long"), [(Template("{x} or {x}", Labels()), 3), (Template("{x}", ChoiceText()), 7)]
)
def test_the_longest_cell_is_found_where_the_first_example_does_not_show_it(monkeypatch, exact, second, long):
    """A prompt that is short with most examples shows a field twice, or asks for a long answer."""
    monkeypatch.setattr(data, "EXACT", exact)
    choices = {7: ("no", "blue " * 400)}
    examples = [
        Example(f"e{i}", {"x": "red " * (160 if i == 3 else 1)}, choices.get(i, ("no", "yes")), 1) for i in range(9)
    ]
    g, renderer = Grid([Template("please " * 10 + "{x}", Labels()), second], examples), tiny.hf_model().renderer
    lengths = {
        cell: len(renderer.training_ids(g.chat(cell), g.target(cell))[0])
        for cell in (Cell(0, k, i) for k in (0, 1) for i in range(9))
    }
    most = max(lengths.values())
    assert lengths[Cell(0, 1, long)] == most > lengths[Cell(0, 0, long)]
    assert lengths[Cell(0, 0, 0)] > lengths[Cell(0, 1, 0)]
    assert CellDataset(g, renderer, most).check_lengths() == most
    with pytest.raises(RenderError, match=rf"prompt {second.id} with example 'e{long}' has {most} tokens"):
        CellDataset(g, renderer, most - 1).check_lengths()


def test_the_longest_of_many_cells_is_found_by_few_lengths():
    """Prompts with words of their own, that show some field twice or ask for the answer in full; no example is the longest in all."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        own_K = rng.lognormal(4, 0.5, 60)
        shown_KF, spelt_K = 1 + (rng.random((60, 3)) < 0.05), rng.random(60) < 0.3
        field_NF, answer_N = rng.lognormal(3, 0.7, (400, 3)).astype(int) + 1, rng.lognormal(2, 1, 400).astype(int) + 1
        length_KN = (own_K[:, None] + shown_KF @ field_NF.T + spelt_K[:, None] * answer_N).astype(int)
        examples = [
            Example(f"e{i}", dict(zip("abc", ("x" * n for n in fields), strict=True)), ("y" * answer, "n"), 0)
            for i, (fields, answer) in enumerate(zip(field_NF, answer_N, strict=True))
        ]
        asked: list[Cell] = []

        def length(cell: Cell, asked: list = asked, length_KN: np.ndarray = length_KN) -> int:
            asked.append(cell)
            return int(length_KN[cell.prompt, cell.example])

        _, found = longest_cell(Grid([Template(str(k), Labels()) for k in range(60)], examples), length)
        assert found == length_KN.max()
        assert len(asked) < 4 * (400 + 60) < length_KN.size


def test_weights_that_are_spread_over_processes_by_deepspeed_are_refused(tmp_path, monkeypatch):
    from accelerate.utils import DeepSpeedPlugin
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    for stage in (1, 2, 3):
        arguments.deepspeed_plugin = DeepSpeedPlugin(zero_stage=stage)
        if stage < 3:
            setup._check_sharding(arguments, CONFIG)
            continue
        with pytest.raises(
            ConfigError, match="ZeRO stage 3 is not provided for; use stage 1 or 2, DDP, or FSDP2"
        ) as error:
            setup._check_sharding(arguments, CONFIG)
        assert "\n" not in str(error.value)


def test_a_micro_batch_that_does_not_divide_the_update_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="choose a divisor"):
        train(tmp_path, CONFIG.model_copy(update={"micro_batch_size": 3}))


@pytest.mark.parametrize("settings", [{"r": 0}, {"rank": 4}, {"r": 4, "target_modules": ["nothing_here"]}])
def test_pefts_complaint_becomes_one_line(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"train\.lora"):
        train(tmp_path, CONFIG.model_copy(update={"lora": settings}))


def test_all_weights_can_be_trained(tmp_path):
    model = tiny.hf_model()
    before = model.fingerprint
    rows = train(tmp_path, CONFIG.model_copy(update={"lora": None, "learning_rate": 1e-3}), model=model)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert model.fingerprint != before
    assert (tmp_path / "arm" / "model" / "model.safetensors").exists()


def test_the_sampler_stays_on_the_last_epoch_when_asked_once_too_often(tmp_path):
    g = grid(tmp_path)
    sampler = ScheduleSampler(g, make_schedule(CONFIG.schedule, g, batch_size=4, epochs=2, seed=0))
    sampler.set_epoch(1)
    last = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) == last


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        GOLDEN.write_text(json.dumps([row["loss"] for row in train(Path(scratch), rows=16)]) + "\n")


STRONG = {"r": 8, "lora_alpha": 64, "target_modules": "all-linear"}
CHOOSING = CONFIG.model_copy(
    update={"epochs": 4, "eval_every": 2, "keep": "best", "save_every": 3, "learning_rate": 1e-2, "lora": STRONG}
)
CHOOSER = """
import sys
from pathlib import Path
from tests.training.test_sft import STOPPING, choose
choose(Path(sys.argv[1]), STOPPING)
"""
STOPPING = CHOOSING.model_copy(update={"patience": 2, "epochs": 8})


def choose(folder: Path, config: SFTConfig = CHOOSING):
    arm = ArmDir(folder / "arm")
    arm.root.mkdir(parents=True, exist_ok=True)
    whole = grid(folder / "data", 40)
    cells, dev = Grid(whole.templates, whole.examples[:22]), Grid(whole.templates[:2], whole.examples[22:])
    return train_sft(tiny.hf_model(), cells, config, arm, seed=0, dev=dev), arm, dev


@pytest.mark.parametrize("lora", [STRONG, None])
def test_the_weights_of_the_best_check_are_kept_and_the_earliest_of_equals(tmp_path, lora):
    config = CHOOSING.model_copy(update={"lora": lora})
    learner, arm, dev = choose(tmp_path, config)
    checks = read_jsonl(arm.dev)
    best = max(checks, key=lambda row: (row["mean"], -row["step"]))
    assert best["mean"] > min(row["mean"] for row in checks)
    report = json.loads(arm.train.read_text())["report"]
    assert report["kept"] == best["step"] != report["updates"]
    assert check_on_dev(learner, dev)["accuracy_K"] == best["accuracy_K"]
    assert not arm.best.root.exists()
    if lora is not None:
        told: list[str] = []
        again = replace(tiny.hf_model(), say=told.append).with_adapter(arm.adapter)
        assert again.fingerprint == learner.fingerprint
        assert not told
        other = replace(tiny.hf_model(seed=1), origin="hub:tiny", say=told.append).with_adapter(arm.adapter)
        assert other.fingerprint != again.fingerprint
        (line,) = told
        assert "was trained on memory, and is put on hub:tiny" in line
        assert check_on_dev(again, dev)["accuracy_K"] == best["accuracy_K"]
        chat = tiny.hf_model(chat=True).tokenizer
        raw = replace(tiny.hf_model(), style="raw", say=told.append)
        thinking = tiny.hf_model().tokenizer
        thinking.chat_template = "{% set enable_thinking = false %}" + thinking.chat_template
        for model, said in (
            (raw, "with style chat, and is asked with raw; style=chat asks it as"),
            (replace(raw, style="auto", tokenizer=thinking), "with another chat template"),
            (replace(raw, style="auto", tokenizer=chat), None),
        ):
            model.with_adapter(arm.adapter).without_adapter()
            assert (said is None) == (len(told) == 1)
            assert said is None or said in told.pop()
        held = json.loads((arm.adapter / MADE_ON).read_text())  # of older days
        (arm.adapter / MADE_ON).write_text(json.dumps({key: held[key] for key in ("origin", "identity")}))
        raw.with_adapter(arm.adapter)
        assert told == [line]
        for broken in (b'{"origin": "hub:tiny", "iden', b"[]", b"\xff\xfe"):  # what nobody can read says nothing
            (arm.adapter / MADE_ON).write_bytes(broken)
            assert replace(tiny.hf_model(seed=1), say=told.append).with_adapter(arm.adapter)
        assert told == [line]


def test_a_check_on_dev_allows_free_answers_as_many_tokens_as_an_evaluation(tmp_path, monkeypatch):
    sums = [Example(f"e{n}", {"a": str(n), "b": "4"}, (str(n + 4),), 0, is_open=True) for n in range(12)]
    asked = Template("{a} + {b} =", Number()), Template("{b}, {a}: add", Wrapped("<sum>{answer}</sum>", Number()))
    learner, dev, told = tiny.hf_model(), Grid(asked, sums[8:]), []
    answer = HFModel.answer

    def heard(self, questions, *more, **named):
        told.extend(question.max_new_tokens for question in questions)
        return answer(self, questions, *more, **named)

    monkeypatch.setattr(HFModel, "answer", heard)
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir()
    train_sft(learner, Grid(asked, sums[:8]), CONFIG, arm, seed=0, dev=dev)
    limits_K = dev.answer_limits(learner.count_tokens)
    assert told == [limit for limit in limits_K for _ in dev.examples]
    assert limits_K[0] == 16 > learner.count_tokens("15") + 4


def test_what_was_kept_is_dropped_when_every_process_has_read_it(tmp_path, monkeypatch):
    told: list[str] = []

    class Told(Ranks):
        def gather(self, value):
            told.append("all")
            return super().gather(value)

    for name in ("settle", "hand_over"):
        real = getattr(setup.Keeper, name)
        heard = functools.partial(lambda real, name, *given: (real(*given), told.append(name)), real, name)
        monkeypatch.setattr(setup.Keeper, name, lambda keeper, *given, heard=heard: heard(keeper, *given))
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir()
    config = CONFIG.model_copy(update={"epochs": 1})
    train_sft(tiny.hf_model(), grid(tmp_path, 8), config, arm, seed=0, ranks=Told())
    assert told[-4:] == ["settle", "all", "hand_over", "all"]


def test_training_stops_after_checks_without_a_new_best_also_after_a_kill(tmp_path):
    learner, arm, _ = choose(tmp_path / "whole", STOPPING)
    checks = read_jsonl(arm.dev)
    best = max(checks, key=lambda row: (row["mean"], -row["step"]))["step"]
    assert checks[-1]["step"] == best + 4
    steps = read_jsonl(arm.steps)
    assert len(steps) == checks[-1]["step"] < 48
    child = subprocess.Popen(
        [sys.executable, "-c", CHOOSER, str(tmp_path / "killed")], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    log, until = tmp_path / "killed" / "arm" / "steps.jsonl", time.monotonic() + 300
    while time.monotonic() < until and child.poll() is None and len(read_jsonl(log)) < best + 1:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    again, killed, _ = choose(tmp_path / "killed", STOPPING)
    assert seen(read_jsonl(killed.steps)) == seen(steps)
    rows = read_jsonl(killed.dev)
    assert [{**row, "seconds": 0} for row in rows] == [{**row, "seconds": 0} for row in checks]
    spent = sum(row["seconds"] for row in rows + read_jsonl(killed.steps))
    assert json.loads(killed.train.read_text())["report"]["seconds"] >= spent > 0
    assert again.fingerprint == learner.fingerprint


def test_what_a_training_goes_on_from_keeps_its_time_and_that_of_its_checks(tmp_path):
    steps, dev = tmp_path / "steps.jsonl", tmp_path / "dev.jsonl"
    steps.write_text("".join(json.dumps({"step": step, "seconds": 1.0}) + "\n" for step in (1, 2, 3)))
    dev.write_text(
        '{"step": 2, "seconds": 10.0}\n{"step": 3, "seconds": 10.0}\n{"step": 1}\n'
    )  # older checks kept no time
    assert setup.rewind((steps, dev), 2) == 12
    assert [len(read_jsonl(log)) for log in (steps, dev)] == [2, 2]


def test_choosing_needs_checks(tmp_path):
    from paft.config import validate

    for given in ({"keep": "best"}, {"patience": 1}):
        with pytest.raises(ConfigError, match="give eval_every"):
            validate(SFTConfig, given, "x")
    with pytest.raises(ConfigError, match="needs dev prompts"):
        train(tmp_path, CHOOSING)


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows]


def test_arguments_reach_the_trainer_as_they_are(tmp_path):
    def tuned(name: str, **arguments) -> list[float]:
        config = CONFIG.model_copy(update={"arguments": arguments, "epochs": 1})
        model = tiny.hf_model()
        seen_by.clear()
        return losses(train(tmp_path / name, config, model=model))

    seen_by: list[bool] = []

    def watch(module: torch.nn.Module, *_: object) -> None:
        seen_by.append(module.gradient_checkpointing and module.training)

    plain = tuned("plain")
    with torch.nn.modules.module.register_module_forward_hook(
        lambda module, *_: watch(module) if hasattr(module, "gradient_checkpointing") else None
    ):
        assert tuned("checkpointed", gradient_checkpointing=True) == pytest.approx(plain, abs=1e-6)
        assert any(seen_by)
        assert tuned("again") == plain
        assert not any(seen_by)
    half = tuned("half", bf16=True)
    assert half != plain
    assert half == pytest.approx(plain, abs=0.1)
    assert tuned("noisy", neftune_noise_alpha=5.0)[0] != plain[0]
    other = tuned("other", adam_beta2=0.5)
    assert other[0] == plain[0]
    assert other[-1] != plain[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 3}, r"train\.arguments\.max_steps: give train.epochs; leave it out"),
        ({"per_device_train_batch_size": 3}, "train.micro_batch_size"),
        ({"seed": 3}, "set by paft"),
        ({"dataloader_drop_last": True}, "order of rows is the schedule's"),
        ({"eval_steps": 3}, "dev prompts"),
        (
            {"gradient_checkpoint": True},
            r"TrainingArguments has no such setting, did you mean 'gradient_checkpointing'",
        ),
        ({"optim": "adamw_tensor"}, "train.arguments .*adamw_tensor"),
        ({"neftune_noise_alpha": "x"}, "neftune_noise_alpha = 'x'; expected a number"),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, "unexpected keyword argument 'cycles'"),
    ],
)
def test_arguments_that_are_not_the_users_to_set_are_refused_before_anything_is_done(tmp_path, arguments, message):
    config = CONFIG.model_copy(update={"arguments": arguments})
    with pytest.raises(ConfigError, match=message) as error:
        train(tmp_path, config)
    assert "\n" not in str(error.value)
    run = load_run_config(tiny.write_config(tmp_path), [f"train.arguments={json.dumps(arguments)}"])
    with pytest.raises(ConfigError, match=message):
        pipeline.run(run, tmp_path / "run", LineWatcher(quiet=True))
    assert not (tmp_path / "run").exists()
