"""A folder for `axolotl train`: tokens of the schedule's cells, and settings under its names."""

from __future__ import annotations

import math

import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner

from paft.cli import app
from paft.errors import ConfigError
from paft.integrations.axolotl import export_axolotl
from paft.integrations.export import rows_in_order
from tests import tiny
from tests.integrations.test_trl import run_config
from tests.training.test_sft import CONFIG, grid


def written(tmp_path, dtype="float32", **settings):
    config = run_config(**settings).model_copy(update={"dtype": dtype})
    export_axolotl(grid(tmp_path, 24), tiny.hf_model().renderer, config, "paft", tmp_path / "out")
    return yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))


def test_rows_are_the_tokens_of_the_schedule_in_a_form_that_it_takes_as_they_are(tmp_path):
    told, config = written(tmp_path), run_config()
    (data,) = told["datasets"]
    rows = pyarrow.parquet.read_table(data["path"]).to_pylist()
    train = config.training_of("paft")
    promised = rows_in_order(grid(tmp_path / "g", 24), tiny.hf_model().renderer, train, config.seed, "tokens", 24)
    for row, expected in zip(rows, promised, strict=True):
        assert (row["input_ids"], row["labels"]) == (expected["input_ids"], expected["labels"])
        assert row["attention_mask"] == [1] * len(row["input_ids"])
    assert (data["ds_type"], data["type"]) == ("parquet", None)
    in_order = ("curriculum_sampling", "shuffle_merged_datasets", "shuffle_before_merging_datasets", "sample_packing")
    assert [told[name] for name in in_order] == [True, False, False, False]


def test_settings_are_told_in_its_words(tmp_path):
    lora = {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}
    told = written(tmp_path, micro_batch_size=2, lora=lora, report_to=["wandb"], warmup_ratio=0.1)
    assert (told["micro_batch_size"], told["gradient_accumulation_steps"]) == (2, CONFIG.batch_size // 2)
    assert (told["adapter"], told["lora_r"], told["lora_alpha"], told["peft_use_rslora"]) == ("lora", 4, 8, True)
    assert (told["use_wandb"], told["num_epochs"], told["float32"]) == (True, 1, True)
    assert told["warmup_steps"] == math.ceil(0.1 * 48 / CONFIG.batch_size)  # as transformers rounds
    assert not any(told[f"lora_{name}_kernel"] for name in ("mlp", "qkv", "o", "embedding"))


def test_all_weights_and_quantised_ones(tmp_path):
    assert "adapter" not in written(tmp_path / "a", lora=None)
    lora = {"r": 4, "target_modules": "all-linear", "layers_to_transform": 1}
    told = written(tmp_path / "b", "bfloat16", quantization={"load_in_8bit": True}, lora=lora)
    assert (told["adapter"], told["load_in_8bit"], told["bfloat16"]) == ("lora", True, True)
    assert (told["lora_target_modules"], told["peft_layers_to_transform"]) == ("all-linear", [1])
    asked = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
    told = written(tmp_path / "c", quantization=asked, lora=lora)
    assert (told["adapter"], told["load_in_4bit"]) == ("qlora", True)
    as_transformers = {"bnb_4bit_quant_type": "fp4", "bnb_4bit_quant_storage": "uint8"}
    assert told["bnb_config_kwargs"] == {"bnb_4bit_use_double_quant": True, **as_transformers}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora": {"r": 4, "target_modules": "all-linear", "bias": "all"}}, "bias: has no name"),
        ({"lora": {"r": 4}}, "target_modules is not given"),
        ({"quantization": {"load_in_3bit": True}}, "axolotl is told"),
        ({"quantization": {"load_in_8bit": True, "bnb_4bit_quant_type": "nf4"}}, "axolotl is told"),
        ({"quantization": {"load_in_4bit": False}}, "axolotl is told"),
        ({"quantization": {"load_in_8bit": True}}, "takes float16 for the rest"),
        ({"lora": {"target_modules": "all-linear", "init_lora_weights": False}}, "axolotl leaves it out"),
        ({"lora": None, "dtype": "float16"}, "mixes float16 with float32"),
        ({"arguments": {"optim": "adafactor"}}, "optim: is transformers' name"),
        ({"report_to": ["comet_ml"]}, "comet_ml: axolotl knows"),
        ({"keep": "best", "eval_every": 2}, "which axolotl has not"),
    ],
)
def test_what_it_cannot_be_told_is_refused_before_anything_is_written(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        written(tmp_path, **settings)
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path):
    found = CliRunner().invoke(
        app, ["export", "axolotl", str(tiny.write_config(tmp_path)), "-o", str(tmp_path / "out")]
    )
    assert found.exit_code == 0, found.output
    assert f"axolotl train {tmp_path / 'out' / 'sft.yaml'}" in found.output.replace("\n", "")
