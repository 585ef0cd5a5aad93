"""Objectives beyond PAFT: their formulas by hand, twins as promised, the same training under packing, a kill, two processes."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paft.config import BalancedSchedule, CVaRConfig, GroupDROConfig, ObjectiveConfig, PaftSchedule, SFTConfig
from paft.errors import ConfigError
from paft.grid import Grid
from paft.prompts import Template
from paft.store import ArmDir, read_jsonl
from paft.training.data import CellDataset, Row, ScheduleSampler, pairs
from paft.training.objectives import divergence
from paft.training.schedule import make_schedule, make_twins
from paft.training.sft import train_sft
from paft.training.weights import CVaR, GroupDRO, worst_case
from tests import tiny
from tests.training.test_sft import CONFIG, grid, promised, seen, train

BOTH = ObjectiveConfig.model_validate(
    {"consistency": {"weight": 2.0}, "worst": {"by": "prompt", "share": 0.5, "step_size": 1.0}}
)


def objective(**given_: object) -> SFTConfig:
    return CONFIG.model_copy(update={"objective": ObjectiveConfig.model_validate(given_)})


def test_divergences_by_hand():
    sure, torn = torch.tensor([[20.0, -20.0]]), torch.zeros(1, 2)
    # between (1, 0) and (1/2, 1/2): the middle is (3/4, 1/4)
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert float(divergence(sure, torn, "jsd")) == pytest.approx(expected, abs=1e-6)
    assert float(divergence(sure, -sure, "jsd")) == pytest.approx(math.log(2), abs=1e-6)
    a, b = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forth, back = 0.8 * math.log(1.6) + 0.2 * math.log(0.4), 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert float(divergence(a + 3, b, "kl")) == pytest.approx((forth + back) / 2, abs=1e-6)
    for kind in ("jsd", "kl"):
        left, right = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7, requires_grad=True)
        assert torch.allclose(divergence(left, right, kind), divergence(right, left, kind), atol=1e-6)
        assert float(divergence(left, left, kind).detach().abs().max()) < 1e-6
        divergence(left, right, kind).sum().backward()
        assert float(left.grad.abs().min()) > 0
        assert float(right.grad.abs().min()) > 0


def test_pairs_are_the_same_tokens_of_two_rows():
    rows = [
        Row(10, [1, 1, 1, 7, 8], 3),  # answer tokens 0 and 1 of the batch
        Row(20, [2, 7, 8], 1),  # 2 and 3
        Row(11, [1, 7, 8], 1),  # 4 and 5
        Row(21, [1, 7, 9], 1),  # 6 and 7, another answer: cut into other tokens
        Row(12, [3, 9], 1),  # 8
        Row(12, [3, 9], 1),  # 9, its own twin
    ]
    assert pairs(rows).tolist() == [[0, 2], [1, 3]]
    assert pairs([]).shape == (0, 2)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    hold=st.integers(1, 12),
    batch=st.integers(1, 8),
    kinds=st.lists(st.integers(0, 3), min_size=2, max_size=9),
)
def test_a_twin_is_the_same_example_with_its_answer_written_the_same_way(seed, rows, hold, batch, kinds):
    answers = [tiny.answer_of(kind) for kind in kinds]
    templates = [Template(f"wording {n} of {{text}}", answer) for n, answer in enumerate(answers)]
    g = Grid(templates, list(range(rows)))
    schedule = make_schedule(PaftSchedule(examples_per_prompt=hold), g, batch_size=batch, epochs=2, seed=seed)
    if len(set(kinds)) == len(kinds):
        with pytest.raises(ConfigError, match="no two of the"):
            make_twins(schedule, templates, batch_size=batch)
        return
    twins = make_twins(schedule, templates, batch_size=batch)
    for epoch in range(2):
        sampler = ScheduleSampler(g, schedule, 4, twins)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert len(indices) == len(sampler)
        assert len(indices) % 4 == 0
        assert all(index < 0 for index in indices[2 * rows :])
        cells = [g.cell(index) for index in indices[: 2 * rows]]
        assert cells[::2] == list(schedule.cells(epoch))
        for position, (cell, twin) in enumerate(zip(cells[::2], cells[1::2], strict=True)):
            assert (twin.epoch, twin.example) == (epoch, cell.example)
            assert kinds[twin.prompt] == kinds[cell.prompt]
            assert (twin.prompt == cell.prompt) == (kinds.count(kinds[cell.prompt]) == 1)
            start = position - position % min(hold, batch)
            if start // hold == position // hold:  # of one draw of the schedule
                assert twin.prompt == cells[2 * start + 1].prompt


def test_twins_are_drawn_uniformly():
    templates = [Template(f"wording {n} of {{text}}", tiny.answer_of(0)) for n in range(4)]
    g = Grid(templates, list(range(6000)))
    schedule = make_schedule(PaftSchedule(examples_per_prompt=1), g, batch_size=1, epochs=1, seed=0)
    twins = make_twins(schedule, templates, batch_size=1)
    counts = Counter((schedule.cell(0, at).prompt, twins.twin(0, at).prompt) for at in range(6000))
    assert len(counts) == 12
    assert all(400 < count < 600 for count in counts.values())  # 500 expected, sd 21


def test_group_dro_by_hand_and_towards_the_worst():
    learner = GroupDRO([0, 0, 0, 1], ["easy", "hard"], GroupDROConfig(step_size=0.5))
    assert learner.weight_C == pytest.approx((1, 1))
    learner.learn({1: 2.0})  # q_1 = 1/4 exp(0.5 x 2 / (2 x 1/4)) before it is scaled
    raw = 0.75, 0.25 * math.exp(2.0)
    expected = raw[0] / sum(raw) / 0.75, raw[1] / sum(raw) / 0.25
    assert learner.weight_C == pytest.approx(expected)
    assert 0.75 * learner.weight_C[0] + 0.25 * learner.weight_C[1] == pytest.approx(1)
    half = GroupDRO([0, 0, 0, 1], ["easy", "hard"], GroupDROConfig(step_size=0.5, share=0.5))
    half.load(json.loads(json.dumps(learner.state())))
    assert half.weight_C == pytest.approx([(1 + weight) / 2 for weight in expected])
    even = GroupDRO([0, 0, 0, 1], ["easy", "hard"], GroupDROConfig(step_size=0.01))
    for at in range(4000):  # drawn three times as often, with the same loss: the mixture stays where it was
        even.learn({int(at % 4 == 3): 1.0})
    assert even.weight_C == pytest.approx((1, 1), abs=0.05)


def test_cvar_by_hand():
    learner = CVaR([0, 0, 1, 1, 1, 2, 2, 2, 2, 2], ["a", "b", "c"], CVaRConfig(alpha=0.4, share=1.0, memory=0.5))
    learner.learn({0: 1.0, 1: 3.0})
    assert learner.weight_C == (1, 1, 1)  # one has no loss yet
    learner.learn({2: 2.0})
    # worst 3 of 10 are b's, one more tenth from c's five: 0.3 / (0.4 x 0.3), 0.1 / (0.4 x 0.5)
    assert learner.weight_C == pytest.approx((0, 2.5, 0.5))
    learner.learn({0: 9.0})  # 0.5 x 1 + 0.5 x 9
    assert learner.weight_C == pytest.approx((2.5, 0.2 / (0.4 * 0.3), 0))
    again = CVaR([0, 0, 1, 1, 1, 2, 2, 2, 2, 2], ["a", "b", "c"], CVaRConfig(alpha=0.4, share=1.0, memory=0.5))
    again.load(json.loads(json.dumps(learner.state())))
    assert again.weight_C == learner.weight_C


def test_both_rows_of_a_pair_are_trained_on_and_compared(tmp_path):
    """The first update's log, redone with plain forward passes."""
    config = objective(consistency={"weight": 0.5})
    rows = train(tmp_path, config)
    assert [row[3] for row in seen(rows)] == [row[3] for row in promised(tmp_path / "data", config)]
    g, lm = grid(tmp_path / "again"), tiny.hf_model()
    schedule = make_schedule(config.schedule, g, batch_size=4, epochs=2, seed=0)
    twins = make_twins(schedule, g.templates, batch_size=4)
    data = CellDataset(g, lm.renderer, 1024)
    update = next(n for n, row in enumerate(rows) if len(row["prompts"]) == 2)
    assert all(row["divergence"] == 0 for row in rows if len(row["prompts"]) == 1)
    assert rows[update]["divergence"] > 0
    config = config.model_copy(
        update={"learning_rate": 1e-12}
    )  # so that this update meets the model that it began with
    row = train(tmp_path / "still", config)[update]
    nll = apart = count = 0.0
    for at in range(4 * update, 4 * update + len(row["examples"])):
        two = []
        for cell in (schedule.cell(0, at), twins.twin(0, at)):
            each = data[g.flat(cell)]
            logp_TV = lm.model(torch.tensor([each.ids])).logits[0].log_softmax(-1)
            places = torch.arange(each.start - 1, len(each.ids) - 1)
            nll -= float(logp_TV[places, torch.tensor(each.ids[each.start :])].sum())
            count += len(places)
            two.append(logp_TV[places].exp())
        middle = (two[0] + two[1]) / 2
        apart += sum(float((p * (p / middle).log()).sum()) / 2 for p in two)
    assert row["loss"] == pytest.approx(nll / count, abs=1e-4)
    assert row["divergence"] == pytest.approx(2 * apart / count, abs=1e-5)


def test_consistency_draws_predictions_together(tmp_path):
    last = {}
    for weight in (1e-6, 300.0):
        config = objective(consistency={"weight": weight}).model_copy(update={"epochs": 6})
        rows = [row["divergence"] for row in train(tmp_path / str(weight), config) if row["divergence"] > 0]
        last[weight] = sum(rows[-5:])
    assert last[300.0] < 0.4 * last[1e-6]


def test_weights_follow_the_losses_of_the_updates_before(tmp_path):
    config = objective(worst={"by": "prompt", "step_size": 2.0})
    rows = train(tmp_path, config)
    g = grid(tmp_path / "again")
    learner = worst_case(config.objective.worst, g.templates)
    place = {name: n for n, name in enumerate(learner.names)}
    for row in rows:
        assert row["weights"] == pytest.approx(dict(zip(learner.names, learner.weight_C, strict=True)), abs=1e-4)
        learner.learn({place[prompt]: told["loss"] for prompt, told in row["by_prompt"].items()})
    assert max(rows[-1]["weights"].values()) > 1.2
    plain = train(tmp_path / "plain")
    assert seen(rows) == seen(plain)
    assert rows[0]["loss"] == plain[0]["loss"]
    assert [row["loss"] for row in rows] != [row["loss"] for row in plain]


def test_a_cluster_without_weight_is_not_learned_from(tmp_path):
    """CVaR over the worst prompt alone: where all updates show other prompts nothing moves."""
    config = objective(worst={"kind": "cvar", "by": "prompt", "alpha": 0.01, "share": 1.0, "memory": 0.0})
    config = config.model_copy(update={"epochs": 6, "weight_decay": 0.0})
    rows = train(tmp_path, config)
    assert all(weight == 1 for weight in rows[0]["weights"].values())
    last = rows[-1]["weights"]
    assert sorted(last.values()) == pytest.approx([0, 0, 0, 0, 5])


@pytest.mark.parametrize(("workers", "micro", "packing"), [(0, 2, True), (2, 1, True), (0, 4, False)])
def test_workers_accumulation_and_packing_change_nothing(tmp_path, workers, micro, packing):
    config = CONFIG.model_copy(update={"objective": BOTH, "schedule": BalancedSchedule()})
    plain = train(tmp_path / "plain", config)
    other = {"micro_batch_size": micro, "dataloader_workers": workers, "packing": packing}
    rows = train(tmp_path / "other", config.model_copy(update=other))
    assert seen(rows) == seen(plain)
    for name in ("loss", "divergence"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in plain], abs=2e-4)
    assert rows[-1]["weights"] == pytest.approx(plain[-1]["weights"], abs=2e-4)


CHILD = """
import sys
from pathlib import Path
from tests.training import test_objectives as here
here.train(Path(sys.argv[1]), here.CONFIG.model_copy(update={"epochs": 4, "objective": here.BOTH}))
"""


def test_kill_and_resume_gives_the_training_of_an_uninterrupted_run(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 4, "objective": BOTH})
    whole = train(tmp_path / "whole", config)
    folder = tmp_path / "killed"
    log = folder / "arm" / "steps.jsonl"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 300
    while time.monotonic() < until and child.poll() is None and len(read_jsonl(log)) < 8:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert 8 <= len(read_jsonl(log)) < len(whole)
    rows = train(folder, config)
    assert seen(rows) == seen(whole)
    for name in ("loss", "divergence"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in whole], abs=1e-5)
    assert rows[-1]["weights"] == pytest.approx(whole[-1]["weights"], abs=1e-5)


GOLDEN = Path(__file__).parent / "golden_objectives.json"
OBJECTIVES = {
    "jsd": {"consistency": {"weight": 2.0}},
    "kl": {"consistency": {"weight": 2.0, "divergence": "kl"}},
    "group_dro": {"worst": {"by": "prompt", "step_size": 2.0}},
    "cvar": {"worst": {"kind": "cvar", "by": "prompt", "alpha": 0.4}},
    "jsd+group_dro": {"consistency": {"weight": 2.0}, "worst": {"by": "prompt", "step_size": 2.0}},
}


def losses(folder: Path, name: str) -> list[float]:
    return [row["loss"] for row in train(folder, objective(**OBJECTIVES[name]))]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_golden_losses(tmp_path, name):
    """Two epochs on the tiny model in float32; `python -m tests.training.test_objectives` writes the file anew."""
    assert losses(tmp_path, name) == pytest.approx(json.loads(GOLDEN.read_text())[name], abs=1e-5)


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(ValueError, match="drawn equally often"):
        SFTConfig.model_validate({"objective": {"worst": {}}, "schedule": {"kind": "fixed"}})
    g = grid(tmp_path)
    one = Grid(g.templates[:1], g.examples)
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir()
    with pytest.raises(ConfigError, match=r"all 1 train prompts are of one format"):
        train_sft(tiny.hf_model(), one, objective(worst={}), arm, seed=0)
    said: list[str] = []
    train_sft(tiny.hf_model(), g, objective(consistency={}), arm, seed=0, say=said.append)
    assert any(line.startswith("3 of 5 prompts have no other") for line in said)


@pytest.mark.parametrize(("epochs", "told"), [(1, True), (12, False)])
def test_clusters_that_are_met_too_seldom_are_said(tmp_path, epochs, told):
    said: list[str] = []
    config = objective(worst={"by": "prompt"}).model_copy(update={"epochs": epochs})
    arm = ArmDir(tmp_path / "arm")
    arm.root.mkdir()
    train_sft(tiny.hf_model(), grid(tmp_path), config, arm, seed=0, say=said.append)
    assert any("met too seldom" in line for line in said) is told


if __name__ == "__main__":
    import tempfile

    torch.set_num_threads(1)
    found = {name: losses(Path(tempfile.mkdtemp()), name) for name in OBJECTIVES}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
