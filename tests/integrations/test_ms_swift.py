"""A folder for `swift sft`: turns that its template `dummy` writes as paft trains on them, and settings under its names."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from paft.cli import app
from paft.errors import ConfigError
from paft.integrations.ms_swift import export_ms_swift
from tests import tiny
from tests.integrations.test_trl import run_config
from tests.training.test_sft import CONFIG, grid, promised


@pytest.mark.parametrize("chat", [True, False])
def test_turns_are_the_cells_of_the_schedule_with_the_tokens_of_training(tmp_path, chat):
    renderer, g, says = tiny.hf_model(chat=chat).renderer, grid(tmp_path, 24), []
    done = export_ms_swift(g, renderer, run_config(), "paft", tmp_path / "out", say=says.append)
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    assert (done.rows, len(rows), says) == (48, 48, [])
    templates, examples = ({each.id: each for each in its} for its in (g.templates, g.examples))
    cells = [
        (templates[prompt], examples[example])
        for _, _, prompts, its in promised(tmp_path, rows=24)
        for prompt, example in zip(prompts if len(prompts) > 1 else [*prompts] * len(its), its, strict=True)
    ]
    for (user, reply), (template, example) in zip(rows, cells, strict=True):  # as its template writes them
        ids, start = renderer.training_ids(template.render(example), template.target(example))
        pieces = [renderer.tokenizer(turn["content"], add_special_tokens=False)["input_ids"] for turn in (user, reply)]
        assert (user["role"], reply["role"]) == ("user", "assistant")
        assert pieces == [ids[:start], ids[start:-1]]
        assert ids[-1] == renderer.eos_id  # which it adds


def test_settings_are_told_in_its_words(tmp_path):
    lora = {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]}
    config = run_config(quantization={"load_in_4bit": True}, micro_batch_size=2, lora=lora)
    config = config.model_copy(update={"attention": "eager"})
    export_ms_swift(grid(tmp_path, 24), tiny.hf_model().renderer, config, "paft", tmp_path / "out")
    told = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (2, CONFIG.batch_size // 2)
    assert (told["lora_rank"], told["lora_alpha"], told["lora_dropout"], told["use_rslora"]) == (4, 8, 0.0, True)
    assert (told["quant_method"], told["quant_bits"], told["bnb_4bit_quant_type"]) == ("bnb", 4, "fp4")
    assert (told["bnb_4bit_use_double_quant"], told["bf16"], told["fp16"], told["adam_beta2"]) == (
        False,
        False,
        False,
        0.999,
    )
    assert (told["dataset_shuffle"], told["train_dataloader_shuffle"], told["num_train_epochs"]) == (False, False, 1)
    assert told["attn_impl"] == "eager"
    assert None not in told.values()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lora": {"r": 4, "target_modules": "all-linear", "layers_pattern": "h"}}, "layers_pattern: has no name"),
        ({"lora": {"r": 4}}, "target_modules is not given"),
        ({"quantization": {"load_in_3bit": True}}, "have a name in ms-swift's settings"),
        ({"keep": "best", "eval_every": 2}, "which ms-swift has not"),
    ],
)
def test_what_it_cannot_be_told_is_refused_before_anything_is_written(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        export_ms_swift(grid(tmp_path, 24), tiny.hf_model().renderer, run_config(**settings), "paft", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_from_the_command_line(tmp_path):
    found = CliRunner().invoke(
        app, ["export", "ms-swift", str(tiny.write_config(tmp_path)), "-o", str(tmp_path / "out")]
    )
    assert found.exit_code == 0, found.output
    assert f"swift sft {tmp_path / 'out' / 'sft.yaml'}" in found.output.replace("\n", "")
