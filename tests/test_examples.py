"""The flat loops of examples/ are the method: their losses are those of `paft train`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from tests import tiny
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
