"""A folder for `trl sft`: TRL's own command, unpatched, trains as paft does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from typing import Any

import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner

from paft.cli import app
from paft.config import RunConfig, load_run_config
from paft.errors import ConfigError
from paft.integrations.trl import export_trl
from tests import tiny
from tests.integrations.test_export import updates_of
from tests.training.test_sft import CONFIG, grid, promised, train


def run_config(model: str = "my/model", quantization: Any = None, **settings: Any) -> RunConfig:
    arms = {"paft": {"train": {**CONFIG.model_dump(), **settings}}}
    return load_run_config(
        None,
        [],
        {"task": "piqa", "model": model, "dtype": "float32", "quantization": quantization, "arms": arms},
    )


def test_trl_sft_has_the_losses_of_paft(tmp_path):
    """Every update of two epochs, of all weights: its adapters start at random by no seed."""
    pytest.importorskip("trl")
    whole = {"lora": None, "learning_rate": 1e-3}
    ours = [row["loss"] for row in train(tmp_path / "ours", CONFIG.model_copy(update=whole), rows=24)]
    model, out = tiny.saved_model(tmp_path / "model"), tmp_path / "out"
    config = run_config(str(model), **whole)
    done = export_trl(grid(tmp_path / "data", 24), tiny.hf_model().renderer, config, "paft", out)
    rows = pyarrow.parquet.read_table(out / "rows" / "train.parquet").to_pylist()
    assert (done.rows, updates_of(rows)) == (48, promised(tmp_path / "order", rows=24))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trl.scripts.sft", "--config", str(out / "sft.yaml")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = [ast.literal_eval(found) for found in re.findall(r"\{'loss'.*?\}", ran.stdout)]
    assert [float(each["loss"]) for each in told] == pytest.approx(ours, rel=2e-3)  # it prints four digits
    assert (out / "paft" / "model.safetensors").exists()


def test_settings_are_told_in_its_words(tmp_path):
    lora = {"r": 4, "use_dora": True, "target_modules": "all-linear"}
    config = run_config(quantization={"load_in_4bit": True}, micro_batch_size=2, lora=lora)
    export_trl(grid(tmp_path, 24), tiny.hf_model().renderer, config, "paft", tmp_path / "out")
    told = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (2, CONFIG.batch_size // 2)
    assert (told["lora_r"], told["use_dora"], told["load_in_4bit"]) == (4, True, True)
    assert (told["lora_alpha"], told["lora_dropout"], told["bnb_4bit_quant_type"]) == (
        8,
        0.0,
        "fp4",
    )  # peft's, transformers'
    assert (told["bf16"], told["fp16"]) == (False, False)
    whole = run_config(lora=None)
    export_trl(grid(tmp_path, 24), tiny.hf_model().renderer, whole, "paft", tmp_path / "whole")
    assert "use_peft" not in yaml.safe_load((tmp_path / "whole" / "sft.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora": {"layers_pattern": "h"}}, "train.lora.layers_pattern: has no name"),
        ({"lora": {"r": 4}}, "target_modules is not given"),
        ({"keep": "best", "eval_every": 2}, "need checks on dev prompts, which TRL has not"),
        ({"micro_batch_size": 3}, "does not divide batch_size"),
        ({"method": "grpo"}, "TRL reads rows of supervised fine-tuning"),
        ({"schedule": {"kind": "adaptive"}}, "draws that follow the losses"),
        ({"schedule": {"kind": "fixed", "search": {}}}, "name the one that a run found"),
        ({"quantization": {"bnb_4bit_compute_dtype": "float32"}}, "quantization.bnb_4bit_compute_dtype: has no name"),
    ],
)
def test_what_it_cannot_be_told_is_refused_before_anything_is_written(tmp_path, settings, said):
    given = {"method": "grpo"} if "method" in settings else settings
    config = (
        load_run_config(None, [], {"task": "piqa", "model": "m", "arms": {"paft": {"train": given}}})
        if "method" in settings
        else run_config(**settings)
    )
    with pytest.raises(ConfigError, match=said):
        export_trl(grid(tmp_path, 24), tiny.hf_model().renderer, config, "paft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path):
    config = tiny.write_config(tmp_path)
    found = CliRunner().invoke(app, ["export", "trl", str(config), "-o", str(tmp_path / "out")])
    assert found.exit_code == 0, found.output
    assert f"trl sft --config {tmp_path / 'out' / 'sft.yaml'}" in found.output.replace("\n", "")
