from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import ConfigError, DataError
from paft.prompts import Template
from paft.tasks import load_task
from paft.tasks.answers import Labels, Number
from paft.tasks.load import FileTask, TaskFile, _answer_index, read_table

FIXED = {
    "name": "mine",
    "fields": ["text"],
    "choices": ["bad", "good"],
    "answer": "label",
    "files": {"train": "rows.jsonl"},
}
OWN = {"name": "mine", "fields": ["q"], "choices_from": "options", "answer": "label", "files": {"train": "rows.jsonl"}}
ROWS = [
    {"text": "one {text}", "label": "good"},
    {"text": 'zwei, "2"\n', "label": "bad"},
    {"text": "三", "label": "good"},
]


def task(
    folder: Path, spec: dict[str, Any], content: bytes | str | list[dict[str, Any]], name: str = "rows.jsonl"
) -> FileTask:
    if isinstance(content, list):
        content = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    described = folder / "task.json"
    described.write_text(json.dumps({**spec, "files": {"train": name}}))
    found = load_task(described)
    assert isinstance(found, FileTask)
    return found


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    import csv
    import io

    path = folder / name
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if kind in ("csv", "tsv"):
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    else:
        text = json.dumps(rows) if kind == "json" else "\n\n".join(json.dumps(row) for row in rows) + "\n"
    data = ("\ufeff" + text).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet", "r.jsonl.gz", "r.csv.gz", "R.CSV", "r.v2.jsonl"]
)
def test_every_kind_of_file_gives_the_same_examples(name: str, tmp_path: Path) -> None:
    write(tmp_path, name.lower() if name != "R.CSV" else "r.csv", ROWS)
    if name == "R.CSV":
        (tmp_path / "r.csv").rename(tmp_path / name)
    found = FileTask(tmp_path / "t.yaml", TaskFile.model_validate({**FIXED, "files": {"train": name}})).split("train")
    assert [(dict(e.fields), e.choices, e.answer) for e in found.examples] == [
        ({"text": row["text"]}, ("bad", "good"), ["bad", "good"].index(row["label"])) for row in ROWS
    ]
    assert found.rejected == ()
    assert len({example.id for example in found.examples}) == 3


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("r.jsonl", b'{"text": "\xff", "label": "good"}', "byte 10 is not UTF-8; save the file as UTF-8"),
        ("r.jsonl", '{"text": "a", "label": "good"}\n{"text": ', r"r.jsonl line 2: not JSON \(.* at column 10\)"),
        ("r.jsonl", '{"text": "a", "label": "good"}\n[1]', "line 2: expected a JSON object, got list"),
        ("r.jsonl", "[" * 100_000, "line 1: cannot be read"),
        ("r.jsonl", '{"a": ' + "9" * 5000 + "}", "line 1: cannot be read"),
        ("r.json", '{"text": "a"}', "expected a JSON list of objects"),
        ("r.jsonl", "", "split 'train' is empty"),
        (
            "r.jsonl",
            '{"txet": "a", "label": "good"}',
            r"r.jsonl row 1: column 'text' is missing, did you mean 'txet'\?; columns: txet, label",
        ),
        ("r.jsonl", '{"text": null, "label": "good"}', "column 'text' is empty"),
        ("r.jsonl", '{"text": NaN, "label": "good"}', "column 'text' is empty"),
        (
            "r.csv",
            "text,label\n,good\n",
            "r.csv row 1: column 'text' is empty; where it may be, name it in optional_fields",
        ),
        ("r.jsonl", '{"text": " \\n", "label": "good"}', "column 'text' is empty"),
        ("r.jsonl", '{"text": ["a"], "label": "good"}', r"column 'text' holds list .* expected text or a number"),
        ("r.jsonl", '{"text": {"a": 1}, "label": "good"}', "column 'text' holds dict"),
        ("r.jsonl", '{"text": "\\ud800", "label": "good"}', "column 'text' holds half a surrogate pair"),
        (
            "r.jsonl",
            '{"text": "a", "label": "bad", "label": "good"}',
            r"r\.jsonl line 1: key 'label' is given twice; the first",
        ),
        (
            "r.json",
            '[{"text": "a", "label": "good", "x": {"y": 1, "y": 2}}]',
            r"r\.json: key 'y' is given twice; the first",
        ),
        ("r.jsonl", '{"text": "a", "label": "goood"}', "answer 'goood' is not among the choices 'bad', 'good'"),
        (
            "r.jsonl",
            '{"text": "a", "label": "good"}\n{"text": "b", "label": 2}\n{"text": "c"}',
            r"row 2: answer 2 is not .*and 1 more bad rows",
        ),
        ("r.csv", "text,label\na,good,more\n", "row 1: more cells than the header has columns"),
        ("r.csv", "text,label\na,good\nb\n", "row 2: fewer cells than the header has columns"),
        ("r.csv", "text,label,text\na,good,b\n", "the header names column 'text' twice"),
        ("r.csv", 'text,label\n"a"b,good\n', "r.csv line 2: "),
        ("r.csv", "", "split 'train' is empty"),
        ("r.csv", "text,label\n", "split 'train' is empty"),
        ("r.parquet", b"PAR1", "not a readable Parquet file"),
        ("r.jsonl.gz", b"no gzip", "cannot be read"),
        ("r.jsonl.gz", gzip.compress(b"x" * 5000)[:-12], "cannot be read"),
        ("r.jsonl.gz", gzip.compress(b"abc" * 500)[:10] + b"\xff" * 30, "cannot be read"),
        ("r.xlsx", b"", "unknown kind '.xlsx'; expected .jsonl"),
        ("rows", b"", "unknown kind ''"),
    ],
    ids=range(31),
)
def test_a_bad_file_is_an_error_of_one_line(name: str, content: bytes | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        task(tmp_path, FIXED, content, name).split("train")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_time_that_python_has_not_is_an_error_of_one_line(tmp_path: Path) -> None:
    times = pyarrow.array([2**60], pyarrow.timestamp("ms"))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"], "label": ["good"], "at": times}), tmp_path / "r.parquet")
    found = task(tmp_path, {**FIXED, "on_bad_row": "skip"}, (tmp_path / "r.parquet").read_bytes(), "r.parquet")
    with pytest.raises(
        DataError, match=r"r\.parquet: holds a value that cannot be read \(.*\); write times outside the years"
    ):
        found.split("train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"q": "a", "options": "x|y", "label": 0}, r"column 'options' holds 'x\|y'; expected a list of choices"),
        ({"q": "a", "options": ["x"], "label": 0}, "1 choices; expected at least 2"),
        ({"q": "a", "options": ["x", ["y"]], "label": 0}, "holds list"),
        ({"q": "a", "options": ["x", None], "label": 0}, "column 'options' holds NoneType 'None'; expected text"),
        ({"q": "a", "options": ["x", float("nan")], "label": 0}, "column 'options' holds float 'nan'; expected text"),
        ({"q": "a", "options": ["x", "y", " "], "label": 0}, "a choice is empty; leave it out"),
        ({"q": "a", "options": ["x", "x"], "label": 0}, "the right choice 'x' occurs twice"),
        ({"q": "a", "options": ["x", "x"], "label": "x"}, "names a choice that occurs twice"),
        ({"q": "a", "label": 0}, "column 'options' is missing"),
    ],
    ids=range(9),
)
def test_choices_of_a_row_are_checked(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        task(tmp_path, OWN, [row]).split("train")


def test_choices_come_from_columns_or_from_one_list(tmp_path: Path) -> None:
    listed = task(
        tmp_path, OWN, [{"q": "a", "options": ["x", "y", "z"], "label": "z"}, {"q": "b", "options": [1, 2], "label": 2}]
    )
    assert [(e.choices, e.answer) for e in listed.split("train").examples] == [(("x", "y", "z"), 2), (("1", "2"), 1)]
    assert listed.num_choices == 3
    assert listed.choices is None
    columns = task(
        tmp_path, {**OWN, "choices_from": ["one", "two"]}, [{"q": "a", "one": "x", "two": "y", "label": "B"}]
    )
    assert [(e.choices, e.answer) for e in columns.split("train").examples] == [(("x", "y"), 1)]
    assert columns.num_choices == 2


@pytest.mark.parametrize(
    ("value", "choices", "index"),
    [
        ("good", ("bad", "good"), 1), (" good ", ("bad", "good"), 1), ("good", ("bad", " good"), 1), ("A", ("x", "y"), 0), ("b", ("x", "y"), 1),
        ("0", ("x", "y"), 0), (1, ("x", "y"), 1), ("1", ("1", "2"), 0), (2, ("1", "2"), 1), ("1", ("2", "1"), 1), ("0", ("1", "2"), 0),
        ("B", ("B", "A"), 0), ("a", ("b", "a"), 1), ("-1", ("-1", "1"), 0), ("12", tuple(map(chr, range(65, 85))), 12), ("K", tuple("0123456789ab"), 10),
    ],
)  # fmt: skip
def test_an_answer_is_a_text_else_a_letter_else_an_index(value: object, choices: tuple[str, ...], index: int) -> None:
    assert _answer_index(value, choices) == index


@pytest.mark.parametrize(
    "value", ["-1", -1, 2, "2", "C", "²", "１", "ı", "", "GOOD", "1.0", 1.5, True, "9" * 5000, ["x"], "AB", "ß"]
)
def test_anything_else_is_no_answer(value: object) -> None:
    with pytest.raises(DataError, match="is not among the choices 'x', 'y'"):
        _answer_index(value, ("x", "y"))


def test_an_index_beside_numbers_that_a_row_offers_is_an_index_and_what_may_be_either_is_refused():
    numbers = ("8", "2", "24", "120")
    assert _answer_index(2, numbers, list(numbers)) == 2  # as MMLU writes it
    assert _answer_index(24, (numbers), [8, 2, 24, 120]) == 2
    assert _answer_index("8", numbers, list(numbers)) == 0
    with pytest.raises(DataError, match="a number beside choices that are texts is an index from 0, and there are 3"):
        _answer_index(3, ("1", "2", "3"), ["1", "2", "3"])
    assert _answer_index("B", numbers, list(numbers)) == 1
    many = [str(n) for n in range(40, 0, -1)]
    for value, offered in (("2", list(numbers)), (2, [8, 2, 24, 120]), ("A", ["B", "A"]), ("5", many)):
        with pytest.raises(
            DataError, match=r"is the text of choice \d+ and the letter or index of choice \d, counted from 0"
        ):
            _answer_index(value, tuple(map(str, offered)), offered)
    assert _answer_index("2", ("1", "2", "3")) == 1  # fixed choices: a rating is a rating


def test_a_number_in_json_is_a_number_however_small(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"q": "how small?", "a": 0.00001}\n{"q": "how large?", "a": 1e20}\n')
    spec = {"name": "n", "kind": "number", "fields": ["q"], "answer": "a", "files": {"test": "d.jsonl"}}
    (tmp_path / "t.yaml").write_text(json.dumps(spec))
    assert [e.choices for e in load_task(tmp_path / "t.yaml").split("test").examples] == [
        ("0.00001",),
        ("100000000000000000000",),
    ]


@given(st.text() | st.integers() | st.floats())
def test_an_answer_is_an_index_or_an_error(value: object) -> None:
    with contextlib.suppress(DataError):
        assert _answer_index(value, ("x", "y")) in (0, 1)


def test_ids_come_from_the_column_or_the_content_and_are_unique(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="duplicate ids 'a'; every row needs an id of its own"):
        task(tmp_path, {**FIXED, "id": "key"}, [{**ROWS[0], "key": "a"}, {**ROWS[1], "key": "a"}]).split("train")
    keyed = task(tmp_path, {**FIXED, "id": "key"}, [{**ROWS[0], "key": 7}, {**ROWS[1], "key": "b"}]).split("train")
    assert [example.id for example in keyed.examples] == ["7", "b"]
    repeated = task(tmp_path, FIXED, [ROWS[0], ROWS[1], ROWS[0]]).split("train").examples
    assert repeated[2].id == repeated[0].id + "-2"
    turned = task(tmp_path, FIXED, [ROWS[1], ROWS[0]]).split("train").examples
    assert {example.id for example in turned} == {example.id for example in repeated[:2]}


def test_skipping_counts_and_names_every_row_left_out(tmp_path: Path) -> None:
    rows = [ROWS[0], {"text": "a", "label": "?"}, ROWS[1], {"label": "good"}]
    found = task(tmp_path, {**FIXED, "on_bad_row": "skip"}, rows).split("train")
    assert len(found.examples) == 2
    assert [rejected.row for rejected in found.rejected] == ["rows.jsonl row 2", "rows.jsonl row 4"]
    assert "not among" in found.rejected[0].reason
    with pytest.raises(DataError, match="empty"):
        task(tmp_path, {**FIXED, "on_bad_row": "skip"}, [{"text": "a", "label": "?"}]).split("train")


def test_examples_that_stand_on_one_thing_are_told_by_a_column(tmp_path: Path) -> None:
    rows = [{**row, "page": page} for row, page in zip(ROWS, ["p1", "x" * 200, "p1"], strict=False)]
    found = task(tmp_path, {**FIXED, "group_by": "page"}, rows).split("train").examples
    assert found[0].group == found[2].group == "p1" != found[1].group
    assert len(found[1].group) < 64
    assert [example.group for example in task(tmp_path, FIXED, rows).split("train").examples] == [""] * len(rows)
    with pytest.raises(DataError, match="column 'pag' is missing, did you mean 'page'"):
        task(tmp_path, {**FIXED, "group_by": "pag"}, rows).split("train")


def test_optional_fields_may_be_absent(tmp_path: Path) -> None:
    spec = {**FIXED, "optional_fields": ["hint"]}
    found = task(tmp_path, spec, [ROWS[0], {**ROWS[1], "hint": 5}, {**ROWS[2], "hint": None}]).split("train")
    assert [example.fields.get("hint") for example in found.examples] == [None, "5", None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": None}, "give exactly one of 'choices'"),
        ({"choices_from": "x"}, "give exactly one of 'choices'"),
        ({"fields": ["my text"]}, "field 'my text' cannot be a slot"),
        ({"fields": ["text", "choices"]}, "field 'choices' cannot be a slot"),
        ({"fields": ["A"]}, "field 'A' cannot be a slot"),
        ({"fields": ["text"], "optional_fields": ["text"]}, "field 'text' is named twice"),
        ({"fields": []}, "fields"),
        ({"anwser": "x"}, "unknown key 'anwser', did you mean 'answer'"),
        ({"choices": [False, True]}, "choices.0 = 'False'"),
        ({"on_bad_row": "ignore"}, "on_bad_row = 'ignore'"),
    ],
    ids=range(10),
)
def test_a_wrong_description_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    spec = {**FIXED, **change}
    path = tmp_path / "task.json"
    path.write_text(json.dumps({key: value for key, value in spec.items() if value is not None}))
    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load_task(path)
    assert str(caught.value).startswith(str(path))


def test_paths_are_relative_to_the_description(tmp_path: Path) -> None:
    found = task(tmp_path, {**FIXED, "prompts": "p/mine.yaml"}, ROWS)
    assert found.prompts == str(tmp_path / "p/mine.yaml")
    assert task(tmp_path, {**FIXED, "prompts": "sst2"}, ROWS).prompts == "sst2"
    assert found.split("train").origin == str(tmp_path / "rows.jsonl")
    with pytest.raises(DataError, match="no split 'trian', did you mean 'train'"):
        found.split("trian")
    with pytest.raises(DataError, match=r"nowhere.csv: cannot be read \(No such file"):
        read_table(tmp_path / "nowhere.csv")


NUMBERS = {"name": "sums", "kind": "number", "fields": ["q"], "answer": "sum"}


def test_a_task_whose_answers_are_numbers(tmp_path):
    found = task(tmp_path, NUMBERS, [{"q": "1+1", "sum": 2}, {"q": "5/2", "sum": "2.5"}])
    first, second = found.split("train").examples
    assert (first.choices, first.answer, first.is_open, second.choices) == (("2",), 0, True, ("2.5",))
    assert (found.num_choices, found.choices) == (1, None)
    with pytest.raises(DataError, match="holds 'two'; expected a number"):
        task(tmp_path, NUMBERS, [{"q": "1+1", "sum": "two"}]).split("train")
    with pytest.raises(DataError, match="row 1: column 'sum' holds '1,5'; expected a number; a comma parts thousands"):
        task(tmp_path, NUMBERS, [{"q": "3/2", "sum": "1,5"}]).split("train")
    with pytest.raises(DataError, match="kind number has no choices"):
        task(tmp_path, {**NUMBERS, "choices": ["1", "2"]}, [{"q": "1+1", "sum": 2}])


@pytest.mark.parametrize("nothing", [None, float("nan")])
def test_nothing_is_no_accepted_text(nothing, tmp_path):
    with pytest.raises(DataError, match="column 'a' holds"):
        task(
            tmp_path, {"name": "t", "kind": "text", "fields": ["q"], "answer": "a"}, [{"q": "x", "a": ["y", nothing]}]
        ).split("train")


def test_prompts_for_numbers_and_prompts_for_choices_are_not_mixed_up(tmp_path):
    numbers = task(tmp_path, NUMBERS, [{"q": "1+1", "sum": 2}])
    choices = task(tmp_path, FIXED, ROWS, "choices.jsonl")
    good = Template("{q}", Number())
    assert list(good.faults(numbers)) == []
    assert [fault.name for fault in Template("{q}", Labels()).faults(numbers)] == ["contract"]
    assert [fault.name for fault in Template("{q} {choices}", Number()).faults(numbers)] == ["slot_unknown"]
    assert "contract" in [fault.name for fault in Template("{text}", Number()).faults(choices)]
    (asked,) = good.render(numbers.split("train").examples[0])
    assert asked.text == "1+1"
