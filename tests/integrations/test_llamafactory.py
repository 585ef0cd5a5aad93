"""A folder for LLaMA-Factory: rows in schedule order, with the tokens that paft trains on, and settings under its names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft.config import RunConfig, load_run_config
from paft.errors import ConfigError, DataError
from paft.grid import Grid
from paft.integrations.export import Exported
from paft.integrations.llamafactory import export_llamafactory
from paft.lm.render import Renderer
from tests import tiny
from tests.integrations.test_export import updates_of
from tests.training.test_sft import CONFIG, grid, promised


def run_config(**train: Any) -> RunConfig:
    settings = {**CONFIG.model_dump(), **train}
    return load_run_config(None, [], {"task": "piqa", "model": "my/model", "arms": {"paft": {"train": settings}}})


def export(folder: Path, config: RunConfig, chat: bool = True, says: list[str] | None = None) -> Exported:
    renderer = tiny.hf_model(chat=chat).renderer
    return export_llamafactory(
        grid(folder, 24), renderer, config, "paft", folder / "out", say=(says if says is not None else []).append
    )


@pytest.mark.parametrize("chat", [True, False])
def test_rows_are_the_cells_of_the_schedule_with_the_tokens_of_training(tmp_path, chat):
    says: list[str] = []
    done = export(tmp_path, run_config(), chat, says)
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (done.rows, says) == (48, [])
    assert updates_of(rows) == promised(tmp_path, rows=24)
    renderer, g = tiny.hf_model(chat=chat).renderer, grid(tmp_path, 24)
    templates, examples = ({each.id: each for each in its} for its in (g.templates, g.examples))
    for row in rows:  # as its empty template reads them
        template, example = templates[row["prompt_id"]], examples[row["example_id"]]
        ids, start = renderer.training_ids(template.render(example), template.target(example))
        assert renderer.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"] == ids[:start]
        assert renderer.tokenizer(row["completion"], add_special_tokens=False)["input_ids"] == ids[start:]
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())["paft"]
    assert (info["file_name"], info["columns"]) == ("rows.jsonl", {"prompt": "prompt", "response": "completion"})


def test_a_begin_mark_is_written_where_the_tokenizer_puts_one(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny.tokenizer(chat=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)]
    )
    renderer = Renderer(tokenizer)
    assert renderer.ids(["a"])[0][0] == 0
    export_llamafactory(grid(tmp_path, 24), renderer, run_config(), "paft", tmp_path / "out")
    lines = (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line)["prompt"].startswith("<|start|>") for line in lines)


def test_settings_have_the_names_of_llamafactory(tmp_path):
    config = run_config(
        micro_batch_size=2,
        lora={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
        arguments={"gradient_checkpointing": True},
    )
    export(tmp_path, config)
    told = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))
    train = config.training_of("paft")
    assert told["disable_shuffling"] is True
    assert told["num_train_epochs"] == 1
    assert (told["template"], told["packing"]) == ("empty", False)
    assert (told["per_device_train_batch_size"], told["gradient_accumulation_steps"]) == (2, train.batch_size // 2)
    assert (told["lora_rank"], told["lora_alpha"], told["lora_target"]) == (4, 8, "q_proj,v_proj")
    assert (told["use_dora"], told["gradient_checkpointing"]) == (True, True)
    assert told["learning_rate"] == train.learning_rate
    assert told["dataset_dir"] == str((tmp_path / "out").resolve())


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"lora": {"r": 4, "target_modules": "all-linear", "layers_to_transform": [0]}}, "lora.layers_to_transform"),
        (
            {"lora": {"r": 4, "target_modules": ".*q_proj|.*v_proj"}},
            "a pattern has no name in LLaMA-Factory's settings",
        ),
        ({"micro_batch_size": 3}, "does not divide"),
        ({"schedule": {"kind": "adaptive"}}, "adaptive"),
        ({"keep": "best", "eval_every": 2}, "checks on dev prompts"),
        ({"objective": {"consistency": {}}}, "objective"),
    ],
)
def test_what_rows_and_settings_cannot_tell_is_refused(tmp_path, train, said):
    with pytest.raises(ConfigError, match=said):
        export(tmp_path, run_config(**train))
    assert not (tmp_path / "out").exists()


def test_quantised_weights_have_a_name_or_are_refused(tmp_path):
    config = run_config().model_copy(update={"quantization": {"load_in_4bit": True}})
    export(tmp_path, config)
    told = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text())
    assert (told["quantization_bit"], told["quantization_type"], told["double_quantization"]) == (4, "fp4", False)
    with pytest.raises(ConfigError, match="load_in_4bit"):
        export(tmp_path / "b", config.model_copy(update={"quantization": {"bnb_4bit_quant_type": "nf4"}}))


@pytest.mark.parametrize(
    ("attention", "told"), [(None, None), ("sdpa", "sdpa"), ("eager", "disabled"), ("flash_attention_2", "fa2")]
)
def test_the_kernel_of_attention_is_told(tmp_path, attention, told):
    export(tmp_path, run_config().model_copy(update={"attention": attention}))
    settings = yaml.safe_load((tmp_path / "out" / "sft.yaml").read_text(encoding="utf-8"))
    assert settings.get("flash_attn") == told


def test_a_kernel_that_it_has_no_name_for_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="attention flex_attention: LLaMA-Factory has a name for sdpa, eager"):
        export(tmp_path, run_config().model_copy(update={"attention": "flex_attention"}))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "refused"), [("{{idx}}", True), ("{{content}} {idx} {{ idx }}", False)])
def test_a_text_that_its_formatter_would_fill_is_refused(tmp_path, text, refused):
    found = grid(tmp_path, 24)
    example = replace(found.examples[3], fields=dict.fromkeys(found.examples[3].fields, text))
    found = Grid(found.templates, [*found.examples[:3], example, *found.examples[4:]])
    given = found, tiny.hf_model().renderer, run_config(), "paft", tmp_path / "out"
    if not refused:
        export_llamafactory(*given)
        return
    with pytest.raises(
        DataError, match=rf"example {example.id}: holds \{{\{{idx\}}\}}, for which LLaMA-Factory writes"
    ):
        export_llamafactory(*given)
    assert not (tmp_path / "out").exists()
