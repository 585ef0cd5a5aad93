"""Fine-tuning on questions that show images: the schedule's cells, the loss of the answer alone, and every image seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from paft.cli import app, main
from paft.config import ConsistencyConfig, ObjectiveConfig, PaftSchedule, SFTConfig, dump_yaml, load_run_config
from paft.errors import ConfigError, RenderError
from paft.grid import Cell, Grid
from paft.integrations.export import check_rows
from paft.integrations.rows import TokenRows
from paft.lm.hf import load_model
from paft.materials import prepare
from paft.prompts import Template
from paft.store import ArmDir, read_jsonl
from paft.tasks import Example
from paft.tasks.answers import Expression
from paft.tasks.images import image_at
from paft.training.data import CellDataset, pad_shown
from paft.training.packing import answer_logits
from paft.training.schedule import make_schedule
from paft.training.sft import train_sft
from tests import tiny

KINDS = ("idefics3", "qwen2_5_vl")
CONFIG = SFTConfig(
    schedule=PaftSchedule(steps_per_prompt=1),
    epochs=2,
    batch_size=4,
    learning_rate=1e-2,
    lora={"r": 4, "target_modules": ["q_proj", "v_proj"]},
    save_every=3,
)


def grid(folder: Path, rows: int = 10) -> Grid:
    """Pictures of several sizes under prompts of several lengths; the answer is in the picture alone."""
    texts = ("{problem} =", "find it : {problem}", "read the park and the mat , then write a number\n{problem}\n")
    examples = []
    for n in range(rows):
        image = image_at(tiny.picture(folder / f"{n}.png", n, (24 + 8 * (n % 3), 16)))
        examples.append(Example(f"e{n}", {"problem": "the length"}, (str(10 + n),), 0, is_open=True, images=(image,)))
    return Grid([Template(text, Expression()) for text in texts], examples)


def train(folder: Path, config: SFTConfig = CONFIG, kind: str = "idefics3", **given):
    arm = ArmDir(folder / "arm")
    arm.root.mkdir(parents=True, exist_ok=True)
    tuned = train_sft(tiny.vision_model(kind), grid(folder / "pictures"), config, arm, seed=0, **given)
    return tuned, read_jsonl(arm.steps)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_the_answer_after_its_own_picture(tmp_path, kind):
    """The slow twin: the processor on each text alone."""
    model, cells = tiny.vision_model(kind), grid(tmp_path)
    dataset = CellDataset(cells, model.renderer, 10_000)
    rows = [dataset[cells.flat(Cell(0, k, i))] for k, i in ((0, 0), (1, 4), (2, 2))]
    with torch.no_grad():
        logits_MV, targets_M, rows_M = answer_logits(model.model, pad_shown(rows, model.renderer))
    nll_M = torch.nn.functional.cross_entropy(logits_MV, targets_M, reduction="none")
    for number, (row, (k, i)) in enumerate(zip(rows, ((0, 0), (1, 4), (2, 2)), strict=True)):
        cell = Cell(0, k, i)
        prompt = model.renderer.prompt_text(cells.chat(cell))
        whole = model.processor(
            text=[prompt + cells.target(cell) + model.renderer.eos_text],
            images=[[cells.examples[i].images[0].pixels()]],
            add_special_tokens=False,
            return_tensors="pt",
        )
        ids = whole["input_ids"][0]
        assert ids.tolist() == row.ids
        assert targets_M[rows_M == number].tolist() == row.ids[row.start :]
        with torch.no_grad():
            logits_TV = model.model(**whole).logits[0]
        wanted = torch.nn.functional.cross_entropy(logits_TV[row.start - 1 : -1], ids[row.start :], reduction="none")
        assert torch.allclose(nll_M[rows_M == number], wanted, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_training_sees_the_cells_of_the_schedule_and_learns_from_the_pictures(tmp_path, kind):
    config = CONFIG.model_copy(update={"epochs": 12})
    tuned, rows = train(tmp_path, config, kind)
    cells = grid(tmp_path / "pictures")
    schedule = make_schedule(config.schedule, cells, batch_size=4, epochs=12, seed=0)
    promised = [cells.examples[cell.example].id for epoch in range(12) for cell in schedule.cells(epoch)]
    assert [name for row in rows for name in row["examples"]] == promised
    before, after = (sum(row["loss"] for row in part) for part in (rows[:6], rows[-6:]))
    assert after < 0.9 * before
    # texts are alike, so what tells the answers apart came through the encoder
    questions = [cells.question(Cell(0, 0, i)) for i in range(4)]
    assert len({answer.logp_C for answer in tuned.answer(questions)}) == 4


def test_the_size_of_a_pass_changes_no_loss(tmp_path):
    found = []
    for micro in (1, 2, 4):
        _, rows = train(tmp_path / str(micro), CONFIG.model_copy(update={"micro_batch_size": micro}))
        found.append([row["loss"] for row in rows])
    assert found[0] == pytest.approx(found[1], abs=2e-4)
    assert found[0] == pytest.approx(found[2], abs=2e-4)


def test_a_training_goes_on_from_its_checkpoint(tmp_path):
    _, whole = train(tmp_path / "whole")

    class StopError(Exception):
        pass

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise StopError

    with pytest.raises(StopError):
        train(tmp_path / "cut", tick=stop)
    _, rest = train(tmp_path / "cut")
    assert [row["examples"] for row in rest] == [row["examples"] for row in whole]
    assert [row["loss"] for row in rest] == pytest.approx([row["loss"] for row in whole], abs=1e-4)


def test_two_prompts_of_an_example_are_compared_over_its_picture(tmp_path):
    config = CONFIG.model_copy(update={"epochs": 1, "objective": ObjectiveConfig(consistency=ConsistencyConfig())})
    _, rows = train(tmp_path, config)
    assert len(rows) == 3
    assert all(row["divergence"] > 0 for row in rows)


def test_all_weights_are_saved_with_the_processor(tmp_path):
    tuned, _ = train(tmp_path, CONFIG.model_copy(update={"lora": None, "epochs": 1}))
    question = grid(tmp_path / "pictures").question(Cell(0, 0, 0))
    loaded = load_model(str(tmp_path / "arm" / "model"), images=True)
    assert loaded.answer([question])[0].logp_C == pytest.approx(tuned.answer([question])[0].logp_C, abs=1e-3)


def test_a_cell_too_long_with_its_image_is_refused_before_training(tmp_path):
    with pytest.raises(RenderError, match=r"has \d+ tokens; train.max_length is 30"):
        train(tmp_path, CONFIG.model_copy(update={"max_length": 30}))


def test_rows_for_other_trainers_are_refused(tmp_path):
    cells = grid(tmp_path)
    with pytest.raises(ConfigError, match="shows images, which rows of text would leave out"):
        check_rows(cells, CONFIG)
    with pytest.raises(ConfigError, match="show images, which these collators would leave out"):
        TokenRows(CellDataset(cells, tiny.vision_model().renderer, 1000))[0]


def write_run(folder: Path, **changes: object) -> Path:
    """A run over pictures: untrained and tuned, with its own task file and prompts."""
    data = folder / "data"
    data.mkdir(parents=True)
    files = {}
    for split, (start, count) in {"train": (0, 12), "validation": (100, 4), "test": (200, 4)}.items():
        lines = []
        for n in range(start, start + count):
            tiny.picture(data / "drawings" / f"{n}.png", n)
            lines.append(json.dumps({"problem": "Find x.", "answer": str(n % 7), "drawing": f"drawings/{n}.png"}))
        (data / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        files[split] = f"{split}.jsonl"
    task = {
        "name": "drawings",
        "fields": ["problem"],
        "kind": "expression",
        "answer": "answer",
        "image": "drawing",
        "files": files,
    }
    (data / "task.yaml").write_text(dump_yaml(task))
    texts = {
        "train": ("{problem} =", "look , then say : {problem}", "the number for this\n{problem}"),
        "dev": ("what comes out of {problem} ?", "{problem} (write digits)"),
        "test": ("solve {problem} now", "My friend asks: {problem} result", "drawing above -> {problem}"),
    }
    prompts = {"task": "drawings"} | {
        split: [{"text": text, "answer": "expression"} for text in of] for split, of in texts.items()
    }
    (folder / "prompts.yaml").write_text(dump_yaml(prompts))
    config = {
        "name": "drawings",
        "task": str(data / "task.yaml"),
        "prompts": str(folder / "prompts.yaml"),
        "model": str(tiny.saved_vision_model(folder / "model")),
        "data": {"dev_split": "validation"},
        "train": {
            "epochs": 1,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "lora": {"r": 4, "target_modules": ["q_proj", "v_proj"]},
            "eval_every": 2,
            "dev_prompts": 2,
            "dev_examples": 2,
        },
        "arms": {"base": {}, "paft": {"train": {"schedule": {"kind": "paft", "steps_per_prompt": 1}}}},
        "evaluate": {"split": "test", "scorers": ["generation"], "max_new_tokens": 4, "thresholds": [0.5]},
        **changes,
    }
    (folder / "config.yaml").write_text(dump_yaml(config))
    return folder / "config.yaml"


def test_a_whole_run_and_the_same_again_for_nothing(tmp_path):
    config = write_run(tmp_path)
    done = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["arms"]) == {"base", "paft"}
    assert results["task"]["images"] is True
    before = (tmp_path / "run" / "cells.sqlite").stat().st_size
    again = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path / "run")])
    assert again.exit_code == 0, again.output
    assert "trained already" in again.output
    assert (tmp_path / "run" / "cells.sqlite").stat().st_size == before
    merged = CliRunner().invoke(
        app, ["export", "model", f"{tmp_path / 'run'}:paft", "-o", str(tmp_path / "whole"), "--merge"]
    )
    assert merged.exit_code == 0, merged.output
    load_model(str(tmp_path / "whole"), images=True)
    # a picture that changed is another training
    tiny.picture(tmp_path / "data" / "drawings" / "3.png", 55)
    changed = CliRunner().invoke(app, ["run", str(config), "--out", str(tmp_path / "run")])
    assert changed.exit_code != 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": {"base": {"server": {"base_url": "http://localhost:9/v1"}}}},
            "arms.base.server: the task shows images",
        ),
        ({"arms": {"rl": {"train": {"method": "grpo"}}}}, "arms.rl: train.method grpo with images is not provided for"),
    ],
)
def test_what_would_leave_images_out_is_refused_before_a_model_is_touched(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        prepare(load_run_config(write_run(tmp_path, **changes), []))


def test_a_model_of_text_is_refused_in_a_line_with_exit_code_2(tmp_path, capsys, monkeypatch):
    config = write_run(tmp_path)
    text = tiny.saved_model(tmp_path / "text")
    monkeypatch.setattr("sys.argv", ["paft", "run", str(config), f"model={text}", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "reads text only" in line]
    assert len(said) == 1
    assert "and the task shows images; give one that reads images" in said[0]


@pytest.mark.parametrize("form", ["cells", "dataset"])
def test_exports_of_text_are_refused(tmp_path, form):
    config = write_run(tmp_path)
    if form == "cells":
        task, prompts = str(tmp_path / "data" / "task.yaml"), str(tmp_path / "prompts.yaml")
        asked = ["export", "cells", "--task", task, "--prompts", prompts, "-o", str(tmp_path / "out")]
        asked += ["evaluate.split=test", "evaluate.scorers=[generation]", "evaluate.max_new_tokens=8"]
    else:
        asked = ["export", "dataset", str(config), "--out", str(tmp_path / "rows.jsonl"), "--as", "messages"]
    done = CliRunner().invoke(app, asked)
    assert isinstance(done.exception, ConfigError) or done.exit_code == 2
    assert "shows images" in f"{done.exception} {done.output}"
