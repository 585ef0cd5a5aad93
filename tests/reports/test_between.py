"""The report shows cell by cell what the last arms of several runs have right, from the files of finished runs."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from paft import finished, pipeline
from paft.config import dump_yaml, load_run_config
from paft.errors import DataError
from paft.evaluation.budget import Spent
from paft.evaluation.comparisons import holm
from paft.evaluation.evaluate import Evaluation, score_matrix
from paft.grid import Grid
from paft.lm.types import Answered, Completion
from paft.prompts import Template
from paft.reports import exhibit_of
from paft.reports.exhibit import CHARACTERS, COLUMNS, ROWS, TEXTS, Shared, exhibit_between
from paft.reports.tables import P_MEANS
from paft.reports.wording import p_value
from paft.results import write_cells
from paft.store import RunDir
from paft.tasks import Example
from paft.tasks.answers import Labels
from paft.watch import LineWatcher
from tests import tiny
from tests.reports.test_cells import arm, told
from tests.reports.test_report import HOSTILE, Tags
from tests.test_cli import call, refused

EARLIER = ["RRWW", "RWRW", "UWWR"]
LATER = ["RWRWR", "RRWWR", "RWWRR", "RRRRR"]
"""Of one prompt and one example more."""


def leave(folder: Path, done: dict[str, Evaluation], name: str = "") -> Path:
    """The files of a finished run with these arms."""
    folder.mkdir()
    result = told(done)
    result["config"]["name"] = name or folder.name
    write_cells(RunDir(folder), done)
    for file, value in ("results.json", result), ("exhibit.json", exhibit_of(done)):
        (folder / file).write_text(json.dumps(value), encoding="utf-8")
    return folder


def change(run: Path, file: str, edit: Any) -> None:
    value = json.loads((run / file).read_text(encoding="utf-8"))
    edit(value)
    (run / file).write_text(json.dumps(value), encoding="utf-8")


def between(*runs: Path) -> dict[str, Any]:
    return exhibit_between(
        finished.last_arms([*map(finished.load_cells, runs)]),
        [copy.deepcopy(finished.load_exhibit(run)) or {} for run in runs],
        [finished.load_results(run) for run in runs],
    )


def section(page: str) -> str:
    """The part of the page that stands between the runs, cell by cell."""
    return page[page.index('<section id="between-cells">') : page.index("</main>")]


def reported(folder: Path, *runs: Path) -> str:
    done = call("report", *map(str, runs), "-o", str(folder / "all.html"))
    assert done.returncode == 0, done.stderr
    return (folder / "all.html").read_text(encoding="utf-8")


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs that share three prompts and four examples; the first has an arm before the one that counts."""
    earlier = leave(tmp_path / "earlier", {"before": arm(["WWWW"] * 3), "a": arm(EARLIER)})
    return earlier, leave(tmp_path / "later", {"b": arm(LATER)})


def test_the_last_arms_are_counted_over_the_shared_cells(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = between(*two)
    first, second = (each for each in found["tables"] if each["scorer"] == "generation")
    assert (first["cells"], second["cells"]) == ("RRWWRWRWUWWR", "RWRWRRWWRWWR")
    assert (first["counts"]["R"], first["counts"]["U"], second["counts"]["R"]) == (5, 1, 6)
    assert first["breaks"] == {"count": 4, "listed": [[0, 2, 3], [1, 1, 3], [2, 1, 3], [3, 1, 3]]}
    (free,) = (each for each in found["differences"] if each["scorer"] == "generation")
    assert (free["a"], free["b"]) == ("1", "0")
    assert free["counts"] == [3, 2, 3, 4]  # only the later run right, only the earlier, both, neither
    assert found["unlike"] == {"prompts": [], "examples": [], "cells": []}
    text = Tags(section(reported(tmp_path, *two))).text
    assert "only later: b right: 3" in text
    assert "only earlier: a right: 2" in text
    assert "both right: 3" in text
    assert "neither: 4" in text
    assert "Drawn are 3 of 3 shared prompts and 4 of 4 shared examples" in text
    assert "before" not in text


def test_a_cell_stands_with_the_prompt_and_the_answers_of_both_runs(two: tuple[Path, Path], tmp_path: Path) -> None:
    found = between(*two)
    (text,) = (each for each in found["texts"] if (each["prompt"], each["example"]) == (2, 0))
    assert text["messages"] == [["user", "Wording 2: item 0 ", 0, ""]]
    assert text["why"] == "differs"
    assert text["arms"]["0"]["said"] == ["hm", 0, 2, "limit"]
    assert text["arms"]["1"]["said"] == ["red", 0, 2, "eos"]
    assert (text["arms"]["0"]["logp"], text["arms"]["1"]["logp"]) == ([-2.0, -1.0], [-1.0, -2.0])
    assert (text["arms"]["0"]["scores"]["generation"], text["arms"]["1"]["scores"]["generation"]) == ([-1, 0], [0, 1])
    shown = next(each for each in section(reported(tmp_path, *two)).split("<article") if 'data-key="2-0"' in each[:40])
    said = re.findall(r'<div class="said" dir="auto">(.*?)</div><i>(.*?)</i>', shown)
    assert said == [("hm", "2 tokens, cut off at the limit"), ("red", "2 tokens, ended by the model")]
    assert "unreadable: no choice, or several" in shown


def test_real_runs_agree_with_their_cells(tmp_path: Path) -> None:
    config = tiny.write_config(tmp_path, arms={"base": {}})
    other = tmp_path / "other-model"
    tiny.network(seed=1).save_pretrained(other)
    tiny.tokenizer().save_pretrained(other)
    runs = tmp_path / "one", tmp_path / "two"
    for run, changes in zip(runs, ([], [f"model={other}", "evaluate.prompts=2", "evaluate.examples=6"]), strict=True):
        pipeline.run(load_run_config(config, changes), run, LineWatcher(quiet=True), stages=("score",))
    rows = [
        {(row["prompt"], row["example"]): row for row in pyarrow.parquet.read_table(run / "scores.parquet").to_pylist()}
        for run in runs
    ]
    cells = [cell for cell in rows[1] if cell in rows[0]]
    assert len(cells) == 2 * 6
    found = between(*runs)
    for each in found["differences"]:
        right = Counter(tuple(side[cell][f"{each['scorer']}_score"] == 1 for side in rows) for cell in cells)
        assert each["counts"] == [right[False, True], right[True, False], right[True, True], right[False, False]]
    ids = {each["example"]: each["id"] for each in found["examples"]}
    assert found["texts"]
    for text in found["texts"]:
        cell = found["of"]["prompts"][text["prompt"]], ids[text["example"]]
        assert [text["arms"][n]["said"][0] for n in "01"] == [side[cell]["completion"] for side in rows]
        assert [text["arms"][n]["logp"] for n in "01"] == [
            [round(x, 4) for x in side[cell]["logp"]] for side in rows
        ]  # two choices, both kept
    page = reported(tmp_path, *runs)
    tags = Tags(page)
    ids_on_page = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert ids_on_page == ["run-1", "run-2", "between", "between-cells"]
    assert 'data-start="1-0"' in section(page)
    assert section(page).count("<article") == len(found["texts"])
    assert "tiny: base (run 1)" in tags.text  # both are called so
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in page


def test_hostile_texts_stay_text(tmp_path: Path) -> None:
    nasty = HOSTILE + " nul \0 \u202eturned"
    items = [Example(f"{i} {nasty}", {"text": nasty}, (nasty, "blue"), 0) for i in range(2)]
    answer = Labels(("red", "blue"))
    grid = Grid([Template(f"{word} {{text}}", system=HOSTILE, answer=answer) for word in ("Say", "Tell")], items)
    rows = ((Answered((-1.0, float("-inf")), (1, 1), (3, 4), 9, False, Completion(nasty, 3, "limit")),) * 2,) * 2
    scores: Any = {scorer: score_matrix(grid, rows, scorer) for scorer in ("likelihood", "generation")}
    spent = Spent("full", np.ones((2, 2), dtype=bool), 4, 0.95)
    done = {"a": Evaluation(grid, "print", scores, rows, 0.95, (), spent, 4)}
    runs = leave(tmp_path / "one", done, nasty), leave(tmp_path / "two", done, nasty)
    for run in runs:
        change(run, "results.json", lambda result: result["arms"]["a"].update(title=nasty))
    change(runs[1], "exhibit.json", lambda exhibit: exhibit["texts"][0]["messages"][0].__setitem__(1, "else"))
    page = reported(tmp_path, *runs)
    found = Tags(page)
    assert not found.open
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [
        tag for tag, attributes in found.tags if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert section(page).count("<article") == 3
    assert "Under one id the runs asked different things" in found.text
    assert "\0" not in page
    assert "nul \u2400" in Tags(section(page)).text


def test_without_the_cells_of_a_run_the_part_says_so(two: tuple[Path, Path], tmp_path: Path) -> None:
    (two[0] / "exhibit.json").unlink()
    part = section(reported(tmp_path, *two))
    assert "<canvas" not in part
    assert "Left out: the section of earlier says why" in part


def test_the_cells_of_a_run_are_read_once(
    two: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(real: Any) -> Any:
        def read(source: Any, *args: Any, **how: Any) -> Any:
            opened.append(str(source))
            return real(source, *args, **how)

        return read

    for name in ("ParquetFile", "read_table", "read_schema"):
        monkeypatch.setattr(pyarrow.parquet, name, counted(getattr(pyarrow.parquet, name)))
    assert "shared examples" in reported(tmp_path, *two)
    assert opened == [str(run / "scores.parquet") for run in two]


def test_a_run_named_twice_is_one_run(two: tuple[Path, Path], tmp_path: Path) -> None:
    page = reported(tmp_path, two[0], two[0] / "results.json")
    assert page == reported(tmp_path, two[0])
    assert '<section id="between' not in page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("-o", "all.md"), "--out all.md: expected a name that ends in .html"),  # where the table goes
        (("-o", "all"), "--out all: expected a name that ends in .html"),
        ((), "scores.parquet: not the results of a run; give its directory"),
    ],
)
def test_what_a_report_cannot_be_made_of_or_written_to(two: tuple[Path, Path], given: Any, said: str) -> None:
    run = two[0] if given else two[0] / "scores.parquet"
    assert said in refused(call("report", str(run), *given))


@pytest.mark.parametrize("command", ["report", "compare", "gate", "against"])
@pytest.mark.parametrize("what", ["cut", "another"])
def test_cells_that_cannot_be_read_are_one_line_and_no_page(
    two: tuple[Path, Path], tmp_path: Path, command: str, what: str
) -> None:
    one, other = two
    file, page, policy = other / "scores.parquet", tmp_path / "all.html", tmp_path / "policy.yaml"
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"arm": ["a"], "text": ["b"]}), file)
    bar = {"measure": "mean", "at_least": 0.0}
    against = {"measure": "drop", "against": str(other), "at_most": 1.0}
    policy.write_text(dump_yaml({"criteria": [against if command == "against" else bar]}), encoding="utf-8")
    line = refused(
        {
            "report": lambda: call("report", str(one), str(other), "-o", str(page)),
            "compare": lambda: call("compare", str(one), str(other)),
            "gate": lambda: call("gate", str(other), "--policy", str(policy)),
            "against": lambda: call("gate", str(one), "--policy", str(policy)),
        }[command]()
    )
    assert str(file) in line
    assert ("damaged" if what == "cut" else "not the cells of a run") in line
    assert not page.exists()


def test_a_page_can_do_without_the_cells_of_a_run(two: tuple[Path, Path], tmp_path: Path) -> None:
    """results.json alone is enough to show a run, but not to compare it."""
    (two[1] / "scores.parquet").unlink()
    done = call("report", *map(str, two), "-o", str(tmp_path / "all.html"))
    assert done.returncode == 0
    assert "not compared between runs: not every run has a scores.parquet" in done.stderr
    assert "between-cells" not in (tmp_path / "all.html").read_text(encoding="utf-8")


def test_runs_that_share_too_little_have_no_such_part(tmp_path: Path) -> None:
    done = arm(["RW", "RR"])
    others = [replace(each, id=f"other {each.id}") for each in done.grid.examples]
    apart = replace(done, grid=Grid(done.grid.templates, others))
    runs = leave(tmp_path / "one", {"a": done}), leave(tmp_path / "other", {"a": apart})
    with pytest.raises(DataError, match="2 prompts and 0 examples in common"):
        finished.last_arms([*map(finished.load_cells, runs)])
    assert "between-cells" not in reported(tmp_path, *runs)
    assert '<section id="between' not in reported(tmp_path, runs[0], runs[0])  # one run, named twice


def test_runs_whose_budgets_share_no_cells_are_shown_without_comparing_them(tmp_path: Path) -> None:
    parts = ["R.W.", ".W.R"], [".R.W", "W.R."]
    runs = [leave(tmp_path / name, {"a": arm(part)}) for name, part in zip(("one", "other"), parts, strict=True)]
    done = call("report", *map(str, runs), "-o", str(tmp_path / "all.html"))
    assert done.returncode == 0
    assert (
        "not compared between runs: tables of shapes (2, 4) and (2, 4) share cells of fewer than 2 prompts"
        in " ".join(done.stderr.split())
    )
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert 'id="run-2"' in page
    assert '<section id="between' not in page


def test_p_values_between_runs_are_kept_for_the_pairs_that_the_table_shows(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)

    def run(name: str, *arms: str) -> Path:
        rows = {each: ["".join(generator.choice(list("RW"), 20)) for _ in range(6)] for each in arms}
        return leave(tmp_path / name, {each: arm(found) for each, found in rows.items()})

    runs = run("one", "a", "b"), run("other", "c", "d")
    for pairs in finished.compare_across([*map(finished.load_cells, runs)]).values():
        assert len(pairs) == 4  # of six
        assert [pair.p_holm for pair in pairs] == pytest.approx(holm([pair.p for pair in pairs]))
    html = reported(tmp_path, *runs)
    table = (tmp_path / "all.md").read_text(encoding="utf-8")
    told = f"{p_value(pairs[0].p)} ({p_value(pairs[0].p_holm)}) |"
    assert told in table[table.index("Between runs, restricted choice") :]
    assert f"{p_value(pairs[0].p)} <i>({p_value(pairs[0].p_holm)})</i>" in html
    assert f"{P_MEANS}\n" in table[table.index("Between runs") :]


def test_changed_cells_are_those_scored_differently_be_it_in_part(tmp_path: Path) -> None:
    runs = leave(tmp_path / "one", {"a": arm(["TRW", "WTR"])}), leave(tmp_path / "other", {"a": arm(["RRT", "TWR"])})
    file = tmp_path / "changed.jsonl"
    done = call("compare", *map(str, runs), "--scorer", "likelihood", "--changed", str(file))
    assert "4 cells scored differently; a scores higher in 1 of them, b in 3" in " ".join(done.stderr.split())
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(row["a_score"], row["b_score"]) for row in rows] == [(0.5, 1.0), (0.0, 0.5), (0.0, 0.5), (0.5, 0.0)]


def test_without_a_scorer_in_common_there_is_nothing_to_show(tmp_path: Path) -> None:
    done = arm(["RW", "RR"])
    one, other = ({"a": replace(done, scores={each: done.scores[each]})} for each in done.scores)
    runs = leave(tmp_path / "one", one), leave(tmp_path / "other", other)
    assert finished.last_arms([*map(finished.load_cells, runs)]) == []


def test_texts_that_differ_under_one_id_are_told_and_left_out(two: tuple[Path, Path], tmp_path: Path) -> None:
    first = finished.load_results(two[0])["prompts"]["test"][0]["id"]
    change(two[1], "results.json", lambda result: result["prompts"]["test"][0].update(text="Other words: {text}"))
    found = between(*two)
    assert found["unlike"] == {"prompts": [first], "examples": [], "cells": []}
    assert [each["cells"] for each in found["tables"] if each["scorer"] == "generation"] == ["RWRWUWWR", "RRWWRWWR"]
    change(two[1], "exhibit.json", lambda exhibit: exhibit["examples"][3]["fields"].update(text="another item"))
    assert between(*two)["unlike"] == {"prompts": [first], "examples": ["e3"], "cells": []}

    def reword(exhibit: dict[str, Any]) -> None:
        for text in exhibit["texts"]:
            text["messages"][0][1] = "Another wording"

    change(two[1], "exhibit.json", reword)
    found = between(*two)
    spelled = [
        {(each["prompt"] - 1, each["example"]) for each in (finished.load_exhibit(run) or {})["texts"]} for run in two
    ]
    by_both = sorted((k, i) for k, i in spelled[0] & spelled[1] if k >= 0 and i < 3)
    ids = found["of"]["prompts"]
    assert by_both
    assert found["unlike"]["cells"] == sorted((ids[k], f"e{i}") for k, i in by_both)
    assert not {(each["prompt"], each["example"]) for each in found["texts"]} & {*by_both}
    told_so = Tags(section(reported(tmp_path, *two))).text
    assert f"asked different things: prompts {first}; examples e3; cells {ids[by_both[0][0]]} on " in told_so


def test_another_right_answer_or_number_of_choices_is_not_the_same_cell(tmp_path: Path) -> None:
    runs = leave(tmp_path / "usual", {"a": arm(EARLIER)}), leave(tmp_path / "turned", {"a": arm(EARLIER, gold=1)})
    usual, turned = finished.last_arms([*map(finished.load_cells, runs)])
    exhibit = finished.load_exhibit(runs[0]) or {}
    results = [finished.load_results(run) for run in runs]
    more = replace(
        usual, answers={cell: replace(each, logp_C=(*each.logp_C, -9.0)) for cell, each in usual.answers.items()}
    )
    for other, same in (usual, True), (turned, False), (more, False):
        nothing_told = {**exhibit, "examples": [], "texts": []}
        found = exhibit_between([usual, other], [exhibit, nothing_told], results)
        assert len(found["unlike"]["cells"]) == (0 if same else len(exhibit["texts"]))
        assert bool(found["texts"]) == same


def test_cells_whose_right_answers_differ_are_not_paired(tmp_path: Path) -> None:
    runs = leave(tmp_path / "usual", {"a": arm(EARLIER)}), leave(tmp_path / "turned", {"a": arm(EARLIER, gold=1)})
    policy, changed = tmp_path / "policy.yaml", tmp_path / "changed.jsonl"
    policy.write_text(f"criteria: [{{measure: drop, against: '{runs[1]}', at_most: 1}}]\n", encoding="utf-8")
    paired, gated = ["compare", *map(str, runs)], ["gate", str(runs[0]), "--policy", str(policy)]
    said = "4 of 4 examples with the same id have another right answer: e0 and 3 more"
    for command in paired, [*paired, "--changed", str(changed)], gated:
        assert said in refused(call(*command))
    with pytest.raises(DataError, match=said):
        finished.changed_cells([*map(str, runs)])
    done = call("report", *map(str, runs), "-o", str(tmp_path / "all.html"))
    assert done.returncode == 0
    assert said in " ".join(done.stderr.split())
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert '<section id="between">' not in page
    assert "asked different things: examples e0, e1, e2, e3" in Tags(section(page)).text
    scores = RunDir(runs[1]).scores
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(scores).drop_columns(["gold"]), scores)  # nothing tells
    assert [call(*command).returncode for command in (paired, gated)] == [0, 0]


def test_where_too_little_remains_the_part_is_left_out(two: tuple[Path, Path], tmp_path: Path) -> None:
    for k in range(2):
        change(two[1], "results.json", lambda result, k=k: result["prompts"]["test"][k].update(system="Be brief."))
    part = Tags(section(reported(tmp_path, *two))).text
    assert "fewer than two prompts or two examples can be shown" in part
    assert "asked different things: prompts" in part


def test_holes_are_not_bought_and_a_race_shows_all_it_bought(tmp_path: Path) -> None:
    raced = arm(["RRWW", "RWRW"])
    sampled_KN = np.array([[True, True, False, True], [True] * 4])
    raced = replace(raced, spent=Spent("racing", sampled_KN, 8, 0.95))
    runs = leave(tmp_path / "raced", {"a": raced}), leave(tmp_path / "few", {"a": arm(["R.RR", "WW.R"])})
    found = between(*runs)
    assert [each["cells"] for each in found["tables"] if each["scorer"] == "generation"] == ["RRWWRWRW", "R.RRWW.R"]
    (free,) = (each for each in found["differences"] if each["scorer"] == "generation")
    assert free["counts"] == [3, 1, 1, 1]
    assert "not bought by both" in section(reported(tmp_path, *runs))


def test_many_cells_of_many_runs_stay_bounded() -> None:
    generator = np.random.default_rng(0)
    shape = ROWS + 5, COLUMNS + 40
    sides, exhibits = [], []
    for _ in range(3):
        done = arm(["".join(generator.choice(list("RW"), shape[1])) for _ in range(shape[0])], words=300)
        ids = [[each.id for each in axis] for axis in (done.grid.templates, done.grid.examples)]
        answers = zip(itertools.product(*ids), itertools.chain(*done.answers_KN), strict=True)
        sides.append(Shared(done.scores, {cell: each for cell, each in answers if each}, dict.fromkeys(ids[1], 0)))
        exhibits.append(exhibit_of({"a": done}))
    results = [{"prompts": {"test": [{"id": each, "system": None, "text": ""} for each in ids[0]]}}] * 3
    found = exhibit_between(sides, exhibits, results)
    assert len(found["tables"]) == 3 * 2
    assert len(found["differences"]) == 2 * 2
    assert [len(found["drawn"][axis]) for axis in ("prompts", "examples")] == [ROWS, COLUMNS]
    assert all(sum(each["counts"].values()) == shape[0] * shape[1] for each in found["tables"])
    assert 50 < len(found["texts"]) <= TEXTS
    assert sum(len(head) + len(tail) for text in found["texts"] for _, head, _, tail in text["messages"]) <= CHARACTERS
    assert {text["why"] for text in found["texts"]} == {"differs"}  # of the two thirds and more that are spelled out
    named = {each["example"] for each in found["examples"]}
    assert {i for each in found["tables"] for i, *_ in each["breaks"]["listed"]} <= named
