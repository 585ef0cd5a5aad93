"""The flat loops of examples/ are the method: their losses are those of `paft train`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from paft.config import dump_yaml, load_mapping
from paft.store import read_jsonl
from paft.training.data import Row
from paft.training.rewards import find_reward
from tests import tiny
from tests.training import test_grpo
from tests.training.test_sft import CONFIG, grid, train

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_flat_loop_has_the_prompts_and_losses_of_paft(tmp_path):
    ours = train(tmp_path, CONFIG)
    loop, model = load("sft_loop"), tiny.hf_model()
    tuned = loop.with_adapter(model, CONFIG, seed=0)
    found = list(loop.train(tuned, model.renderer, grid(tmp_path / "again"), CONFIG, seed=0))
    assert [sorted(prompts) for prompts, _ in found] == [row["prompts"] for row in ours]
    assert [loss for _, loss in found] == pytest.approx([row["loss"] for row in ours], abs=1e-4)


def test_the_flat_loop_runs_as_a_command(tmp_path, monkeypatch, capsys):
    config, loop = tiny.write_config(tmp_path), load("sft_loop")
    monkeypatch.setattr("sys.argv", ["sft_loop", str(config), "--out", str(tmp_path / "adapter")])
    loop.main()
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert capsys.readouterr().out.splitlines()[0].startswith("update 1: prompt ")
    assert len((EXAMPLES / "sft_loop.py").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("change", [{}, {"group": "example", "kl": 0.0}])
def test_the_flat_grpo_loop_has_the_losses_of_paft_on_the_same_answers(tmp_path, monkeypatch, change):
    config = test_grpo.CONFIG.model_copy(update={"rewards": {"letters": 1.0, "format": 0.5}, **change})
    arm = test_grpo.train(tmp_path, config)
    ours, written = read_jsonl(arm.steps), iter(read_jsonl(arm.rollouts))
    loop, model, grid = load("grpo_loop"), tiny.hf_model(), test_grpo.sums()

    def recorded(tuned, model, grid, cells, config) -> list[Row]:
        rows = []
        for cell, each in zip(cells, next(written)["rollouts"], strict=True):
            assert (grid.templates[cell.prompt].id, grid.examples[cell.example].id) == (each["prompt"], each["example"])
            prompt = model.renderer.prompt_ids(grid.chat(cell))
            rows.append(Row(grid.flat(cell), prompt + each["ids"], len(prompt)))
        return rows

    monkeypatch.setattr(loop, "answer", recorded)  # sampling draws from a generator that trl uses for other things too
    tuned = loop.with_adapter(model, config, seed=0)
    rewards = {"letters": test_grpo.letters, "format": find_reward("format")}
    found = list(loop.train(tuned, model, grid, config, 0, rewards))
    assert [sorted(prompts) for prompts, _, _ in found] == [row["prompts"] for row in ours]
    assert [earned for _, earned, _ in found] == pytest.approx([row["reward"] for row in ours], abs=1e-5)
    assert [loss for _, _, loss in found] == pytest.approx([row["loss"] for row in ours], abs=1e-5)


def test_the_flat_grpo_loop_runs_as_a_command(tmp_path, monkeypatch, capsys):
    config, loop = tiny.write_config(tmp_path), load("grpo_loop")
    values = load_mapping(config)
    values["train"] = {"method": "grpo", "epochs": 1, "batch_size": 2, "num_generations": 3, "max_new_tokens": 4}
    values["arms"] = {"paft": {"train": {}}}
    config.write_text(dump_yaml(values), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["grpo_loop", str(config), "--out", str(tmp_path / "adapter")])
    loop.main()
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    assert capsys.readouterr().out.splitlines()[0].startswith("update 1: prompt ")
    assert len((EXAMPLES / "grpo_loop.py").read_text(encoding="utf-8").splitlines()) < 200
