"""Cells as lines for any tool, and answers back from lines and from logs of Inspect: the table is the one that paft fills itself."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from paft.config import load_run_config
from paft.grid import Cell
from paft.integrations.cells import export_cells, import_lines
from paft.lm.types import Message, Question
from paft.materials import prepare
from tests import tiny
from tests.integrations.test_harness import LIMIT, export, nasty, paft, scores, world  # noqa: F401


def answered(asked: Path, style: str) -> list[dict[str, Any]]:
    """Every line with what a model says to it, as a tool that only passes texts would have it."""
    model = tiny.hf_model(chat=style == "chat")
    rows = [json.loads(line) for line in (asked / "cells.jsonl").read_text("utf-8").split("\n") if line]
    for row in rows:
        turns = [{"role": "user", "content": row["input"]}] if isinstance(row["input"], str) else row["input"]
        chat = tuple(Message(turn["role"], turn["content"]) for turn in turns)
        (found,) = model.answer([Question(chat, (), row["max_tokens"])])
        row["said"] = found.completion
    return rows


def as_inspect(rows: list[dict[str, Any]], out: Path, zipped: bool) -> None:
    samples = [
        {
            "id": row["id"],
            "epoch": 1,
            "metadata": {} if n % 2 else {"prompt": row["prompt"], "example": row["example"]},
            "output": {
                "choices": [
                    {
                        "message": {
                            "content": [
                                {"type": "reasoning", "reasoning": "hm"},
                                {"type": "text", "text": row["said"].text},
                            ]
                            if n % 3
                            else row["said"].text
                        },
                        "stop_reason": "stop" if row["said"].stop == "eos" else "max_tokens",
                    }
                ],
                "usage": {"output_tokens": row["said"].tokens},
            },
        }
        for n, row in enumerate(rows)
    ]
    header = {"version": 2, "eval": {"model": "hf/tiny"}}
    if not zipped:
        out.write_text(json.dumps({**header, "samples": samples}), encoding="utf-8")
        return
    with zipfile.ZipFile(out, "w") as log:
        log.writestr("header.json", json.dumps(header))
        log.writestr("_journal/start.json", "{}")
        for sample in samples:
            log.writestr(f"samples/{sample['id'].replace('/', '_')}_epoch_1.json", json.dumps(sample))


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_answers_to_the_lines_fill_the_table_that_paft_fills(world, tmp_path, style):  # noqa: F811
    folder, alone = world
    asked = tmp_path / "asked"
    said = export("cells", folder, asked, f"style={style}")
    rows = answered(asked, style)
    assert f"{len(rows)} lines" in said
    assert len(rows) == 3 * 8
    assert all(row["max_tokens"] == LIMIT and row["target"] in row["choices"] for row in rows)
    wanted = alone[style]["arms"]["base"]["scores"]["generation"]
    lines = tmp_path / "nemo.jsonl"
    lines.write_text(
        "".join(
            json.dumps(
                {"id": row["id"], "generation": row["said"].text, "num_generated_tokens": row["said"].tokens, "finish_reason": "stop" if row["said"].stop == "eos" else "length"}
            )
            + "\n"
            for row in rows
        ),
        encoding="utf-8",
    )  # fmt: skip
    paft("import", "jsonl", lines, "--asked", asked, "--out", tmp_path / "lines")
    (tmp_path / "logs").mkdir()
    as_inspect(rows, tmp_path / "logs" / "one.eval", zipped=True)
    paft("import", "inspect", tmp_path / "logs", "--asked", asked, "--out", tmp_path / "zip")
    as_inspect(rows, tmp_path / "one.json", zipped=False)
    paft("import", "inspect", tmp_path / "one.json", "--asked", asked, "--out", tmp_path / "json")
    for run in ("lines", "zip", "json"):
        told = json.loads((tmp_path / run / "results.json").read_text("utf-8"))
        ((name, arm),) = told["arms"].items()
        assert arm["title"] == ("nemo" if run == "lines" else "hf/tiny"), name
        assert arm["scores"]["generation"]["accuracy_K"] == wanted["accuracy_K"]
        assert arm["scores"]["generation"]["tokens_K"] == wanted["tokens_K"]
        assert arm["scores"]["generation"]["estimates"] == wanted["estimates"]


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_lines_ask_what_paft_asks(tmp_path, style):
    """Of raw text without a space at the end, which belongs to the answer."""
    config = load_run_config(None, [*nasty(tmp_path / "data"), f"style={style}"])
    export_cells(config, tmp_path / "asked")
    lines = [json.loads(line) for line in (tmp_path / "asked" / "cells.jsonl").read_text("utf-8").split("\n") if line]
    grid = prepare(config).grid
    chats = [grid.chat(Cell(0, k, i)) for k in range(grid.shape[0]) for i in range(grid.shape[1])]
    assert any(chat[-1].text.endswith(" ") for chat in chats)
    turns = [[{"role": turn.role, "content": turn.text} for turn in chat] for chat in chats]
    wanted = [tiny.hf_model(chat=False).renderer.prompt_text(chat) for chat in chats] if style == "raw" else turns
    assert [line["input"] for line in lines] == wanted


def test_half_a_sign_that_a_limit_left_is_marked_as_such(world, tmp_path):  # noqa: F811
    folder, _ = world
    asked = tmp_path / "asked"
    export("cells", folder, asked, "style=raw")
    lines = tmp_path / "cut.jsonl"
    given = [
        {"id": row["id"], "generation": "red \U0001f600 \ud83d", "num_generated_tokens": 2, "finish_reason": "length"}
        for row in answered(asked, "raw")
    ]
    lines.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    paft("import", "jsonl", lines, "--asked", asked, "--out", tmp_path / "run")
    table = pyarrow.parquet.read_table(tmp_path / "run" / "scores.parquet").to_pylist()
    assert {row["completion"] for row in table} == {"red \U0001f600 \ufffd"}


def test_several_epochs_are_not_one(world, tmp_path):  # noqa: F811
    folder, _ = world
    asked = tmp_path / "asked"
    export("cells", folder, asked, "style=raw")
    rows = answered(asked, "raw")
    as_inspect(rows, tmp_path / "one.json", zipped=False)
    told = json.loads((tmp_path / "one.json").read_text("utf-8"))
    again = json.loads(json.dumps(told["samples"][0]))
    again["epoch"] = 2
    again["output"]["choices"][0]["message"]["content"] = "something else"
    (tmp_path / "one.json").write_text(json.dumps({**told, "samples": [*told["samples"], again]}), encoding="utf-8")
    found = paft("import", "inspect", tmp_path / "one.json", "--asked", asked, "--out", tmp_path / "run", code=1)
    assert "a second, different answer" in found
    assert not (tmp_path / "run").exists()


def test_a_log_that_failed_is_completed_by_that_of_its_retry(world, tmp_path):  # noqa: F811
    folder, _ = world
    asked = tmp_path / "asked"
    export("cells", folder, asked, "style=raw")
    (tmp_path / "logs").mkdir()
    as_inspect(answered(asked, "raw"), tmp_path / "logs" / "b.json", zipped=False)
    told = json.loads((tmp_path / "logs" / "b.json").read_text("utf-8"))
    for sample in told["samples"][5:]:
        sample["output"] = {"choices": []}
    (tmp_path / "logs" / "a.json").write_text(json.dumps(told), encoding="utf-8")
    (tmp_path / "logs" / "c.json").write_text(json.dumps({"eval": told["eval"]}), encoding="utf-8")
    given = ["import", "inspect", tmp_path / "logs", "--asked", asked, "--out"]
    paft(*given, tmp_path / "run")
    (tmp_path / "logs" / "b.json").unlink()
    assert f"a.json: sample {told['samples'][5]['id']} has no answer" in paft(*given, tmp_path / "two", code=1)


def test_what_else_lies_in_the_directory_of_logs_is_no_log(world, tmp_path):  # noqa: F811
    """`inspect eval-set` writes eval-set.json there, `inspect view bundle` logs.json."""
    folder, _ = world
    asked, logs = tmp_path / "asked", tmp_path / "logs"
    export("cells", folder, asked, "style=raw")
    logs.mkdir()
    for name, told in (("eval-set", {"eval_set_id": "x"}), ("logs", {"a.json": {}}), ("mine", {"a": 1}), ("list", [1])):
        (logs / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
    given = ["--asked", asked, "--out", tmp_path / "run"]
    assert "logs: no log of Inspect (.eval or .json) in it" in paft("import", "inspect", logs, *given, code=1)
    assert "mine.json: not a log of Inspect" in paft("import", "inspect", logs / "mine.json", *given, code=1)
    as_inspect(answered(asked, "raw"), logs / "a.json", zipped=False)
    paft("import", "inspect", logs, *given)
    assert list(scores(tmp_path / "run")) == ["hf_tiny"]
    (logs / "b.json").write_text('{"eval": ', encoding="utf-8")
    assert "b.json: not a log of Inspect" in paft("import", "inspect", logs, *given, code=1)


def test_a_line_that_says_no_length_is_counted_and_log_likelihoods_are_taken(world, tmp_path):  # noqa: F811
    folder, alone = world
    asked = tmp_path / "asked"
    export("cells", folder, asked, "style=raw")
    rows = answered(asked, "raw")
    lines = tmp_path / "mine.jsonl"
    given = [{"prompt": r["prompt"], "example": r["example"], "text": r["said"].text, "logp": [-1, -2]} for r in rows]
    lines.write_text("\n".join(map(json.dumps, given)), encoding="utf-8")
    told = ["--key", "text", "--tokenizer", folder / "model", "--out", tmp_path / "run"]
    paft("import", "jsonl", lines, "--asked", asked, *told)
    arm = json.loads((tmp_path / "run" / "results.json").read_text("utf-8"))["arms"]["mine"]
    wanted = alone["raw"]["arms"]["base"]["scores"]["generation"]
    assert arm["scores"]["generation"]["accuracy_K"] == wanted["accuracy_K"]
    assert set(arm["scores"]) == {"likelihood", "generation"}


def test_examples_that_were_not_exported_are_named_as_such(world, tmp_path):  # noqa: F811
    export("cells", world[0], tmp_path / "asked", "style=raw", "evaluate.examples=4")
    given = ["import", "jsonl", tmp_path / "a.jsonl", "--asked", tmp_path / "asked", "evaluate.examples=6"]
    assert "was not exported; leave evaluate.examples" in paft(*given, code=1)


@pytest.mark.parametrize("key", ["text", "label"])
def test_answers_are_not_judged_by_rows_that_changed_since(tmp_path, key):
    tiny.write_config(tmp_path)
    export("cells", tmp_path, tmp_path / "asked", "style=raw")
    cells = [json.loads(line) for line in (tmp_path / "asked" / "cells.jsonl").read_text("utf-8").splitlines()]
    said = [{"id": row["id"], "generation": "red", "tokens": 2, "ended": True} for row in cells]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, said)), encoding="utf-8")
    given = ["import", "jsonl", tmp_path / "a.jsonl", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    file = tmp_path / "data" / "test.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    rows[1][key] = next(row[key] for row in rows if row[key] != rows[1][key])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert f"example {rows[1]['id']!r} of" in paft(*given, code=1)
    for broken in ('{"a": ', "[3]"):
        (tmp_path / "asked" / "examples.json").write_text(broken, encoding="utf-8")
        assert "examples.json: cannot be read" in " ".join(paft(*given, code=1).split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: "),
        ("[1]", "line 1: "),
        ('{"generation": "x"}', "line 1: neither prompt and example nor the id"),
        ('{"id": "p/e"}', "line 1: no completion or generation"),
        ('{"id": "p/e", "generation": "x", "tokens": "many", "ended": true}', "line 1: "),
        ('{"id": "p/e", "generation": "x", "tokens": Infinity, "ended": true}', "line 1: "),
        ('{"id": "p/e", "generation": ' + "[" * 100_000, "line 1: "),
        ('\ufeff{"id": "p/e", "generation": "x", "tokens": 3, "ended": true}', "none of its 1 answers belongs"),
        ('{"id": "p/e", "generation": ["42"], "tokens": 2, "ended": true}', 'generation is ["42"], no text'),
        ('{"id": "p/e", "response": true, "tokens": 2, "ended": true}', "response is true, no text"),
        ('{"id": "p/e", "generation": "B", "tokens": 2, "ended": "false"}', 'ended is "false", neither true nor false'),
        ('{"id": "p/e", "generation": "x", "tokens": 3, "ended": true}', "none of its 1 answers belongs"),
    ],
)
def test_lines_that_are_no_answers_are_named(world, tmp_path, line, said):  # noqa: F811
    folder, _ = world
    export("cells", folder, tmp_path / "asked", "style=raw")
    (tmp_path / "a.jsonl").write_text(line, encoding="utf-8")
    found = paft(
        "import", "jsonl", tmp_path / "a.jsonl", "--asked", tmp_path / "asked", "--out", tmp_path / "run", code=1
    )
    assert said in found


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"completion": None, "generation": "B"}, "B"),
        ({"completion": None, "generation": None}, ""),
        ({"generation": 42}, "42"),
        ({"generation": 0.5}, "0.5"),
    ],
)
def test_what_was_said_is_the_first_text(world, tmp_path, said, text):  # noqa: F811
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"id": "p/e", **said, "tokens": 2, "ended": True}), encoding="utf-8")
    (row,) = import_lines(load_run_config(world[0] / "config.yaml"), file)["a"]
    assert row == {"prompt": "p", "example": "e", "completion": text, "tokens": 2, "ended": True}


@pytest.mark.parametrize(
    ("said", "ended"),
    [("stop", True), ("STOP", True), ("end_turn", True), ("length", False), ("MAX_TOKENS", False), ("max_length", False), ("max_output_tokens", False)],
)  # fmt: skip
def test_an_answer_that_a_limit_cut_has_not_ended_whatever_it_is_called(world, tmp_path, said, ended):  # noqa: F811
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"id": "p/e", "generation": "x", "tokens": 2, "finish_reason": said}), encoding="utf-8")
    (row,) = import_lines(load_run_config(world[0] / "config.yaml"), file)["a"]
    assert row["ended"] is ended


def test_logs_that_are_none_are_named(world, tmp_path):  # noqa: F811
    folder, _ = world
    export("cells", folder, tmp_path / "asked", "style=raw")
    given = ["--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    (tmp_path / "logs").mkdir()
    assert "no log of Inspect" in paft("import", "inspect", tmp_path / "logs", *given, code=1)
    for name, content in (("a.eval", b"PK not"), ("a.json", b"{}"), ("a.json", b"[" * 100_000), ("a.json", b"\xff"), ("a.json", b'{"eval": {"model": "m"}, "samples": [{"id": "x"}]}'), ("a.json", b'{"eval": {"model": "m"}, "samples": [{"id": "p/e", "output": {"choices": []}}]}')):  # fmt: skip
        (tmp_path / name).write_bytes(content)
        assert name in paft("import", "inspect", tmp_path / name, *given, code=1)
    assert not (tmp_path / "run").exists()


def test_an_import_writes_over_nothing_but_itself(world, tmp_path, monkeypatch):  # noqa: F811
    folder, _ = world
    monkeypatch.chdir(tmp_path)
    asked = tmp_path / "asked"
    export("cells", folder, asked, "style=raw")
    lines = [
        {"id": row["id"], "generation": row["target"], "num_generated_tokens": 2, "finish_reason": "stop"}
        for row in map(json.loads, (asked / "cells.jsonl").read_text("utf-8").splitlines())
    ]
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for _ in range(2):
        paft("import", "jsonl", "a.jsonl", "--asked", asked)
    run = Path("runs") / "import-cells-colours"
    before = (run / "results.json").read_bytes()
    assert "a, which this import would take away" in paft("import", "jsonl", "b.jsonl", "--asked", asked, code=1)
    trained = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    trained["arms"]["a"] = {"title": "a", "train": {}}
    config = tmp_path / "mine" / "config.yaml"
    config.parent.mkdir()
    for told, said in ((trained, "a, which this import"), ({**trained, "task": "piqa"}, "holds a run of task piqa")):
        config.write_text(yaml.safe_dump(told), encoding="utf-8")
        assert said in paft("import", "jsonl", "a.jsonl", "--asked", asked, "--out", "mine", code=1)
    assert [each.name for each in config.parent.iterdir()] == ["config.yaml"]
    assert (run / "results.json").read_bytes() == before
    assert not (run / "recorded" / "b.jsonl").exists()


def test_another_model_of_the_same_file_name_or_another_export_is_not_written_over(world, tmp_path):  # noqa: F811
    """NeMo-Skills calls every file output.jsonl."""
    cells = {"asked": "", "fewer": "evaluate.prompts=2"}
    for name, settings in cells.items():
        export("cells", world[0], tmp_path / name, "style=raw", *filter(None, [settings]))
    lines = [json.loads(line) for line in (tmp_path / "asked" / "cells.jsonl").read_text("utf-8").splitlines()]
    said = [{"id": row["id"], "generation": f"{row['target']} \ud83d", "tokens": 2, "ended": True} for row in lines]

    def again(rows: list[dict[str, Any]], asked: str = "asked", code: int = 0) -> str:
        (tmp_path / "output.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        given = [tmp_path / "output.jsonl", "--asked", tmp_path / asked, "--out", tmp_path / "run"]
        return paft("import", "jsonl", *given, code=code)

    assert "no free answer on record" in again([{**said[0], "generation": "unfinished"}], code=1)
    again(said)
    again([*said, {**said[0], "id": "another/cell"}])
    kept = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    other = [{**said[0], "generation": "something else"}, *said[1:]]
    assert "run: holds other answers of output, which this import would take" in again(other, code=1)
    assert "another export, with other evaluate.prompts; give" in again(said, "fewer", code=1)
    prompts = tmp_path / "asked" / "prompts.yaml"
    told = yaml.safe_load(prompts.read_text("utf-8"))
    prompts.write_text(yaml.safe_dump({**told, "dev": told["dev"][:1]}), encoding="utf-8")
    assert "another export, with other prompts; give" in again(said, code=1)
    assert kept == {file: file.read_bytes() for file in kept}
