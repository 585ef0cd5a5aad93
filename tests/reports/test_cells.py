"""The report shows which prompts and examples break, and the text of single cells, from real runs of a tiny model."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paft import finished, pipeline
from paft.config import EvalConfig, load_run_config
from paft.errors import DataError
from paft.evaluation import evaluate
from paft.evaluation.budget import Spent
from paft.evaluation.evaluate import Evaluation, score_matrix
from paft.grid import Cell, Grid
from paft.lm.types import Answered, Completion
from paft.prompts import PromptSet, Template
from paft.reports import exhibit_of, write_report
from paft.reports.cells import cells_view
from paft.reports.exhibit import CHARACTERS, COLUMNS, LONGEST, ROWS, TEXTS
from paft.reports.wording import clean
from paft.tasks import Example, load_task
from paft.tasks.answers import OTHER, Labels, Number
from paft.watch import LineWatcher
from tests import tiny
from tests.reports.test_report import HOSTILE, Tags, make

RED_BLUE = Labels(("red", "blue"))


def arm(rights: list[str], examples: int = 0, gold: int = 0, words: int = 1) -> Evaluation:
    """An arm with one letter per cell, prompt by prompt: R right, W wrong, U unreadable, T tied, "." not bought.

    The choices of both scorers agree but where the free answer cannot be read.
    """
    fields = [{"text": f"item {i} " + "word " * (words - 1)} for i in range(len(rights[0]))]
    items = [Example(f"e{i}", text, ("red", "blue"), gold) for i, text in enumerate(fields)]
    templates = [Template(f"Wording {k}: {{text}}", answer=RED_BLUE) for k in range(len(rights))]
    grid = Grid(templates, items)

    def answered(letter: str) -> Answered | None:
        if letter == ".":
            return None
        logp = {"R": (-1.0, -2.0), "W": (-2.0, -1.0), "U": (-2.0, -1.0), "T": (-1.0, -1.0)}[letter]
        said = {"R": "red", "W": "blue", "U": "hm", "T": "red"}[letter]
        return Answered(logp, (1, 1), (3, 4), 9, False, Completion(said, 2, "limit" if letter == "U" else "eos"))

    rows = tuple(tuple(answered(letter) for letter in row) for row in rights)
    bought_KN = np.array([[letter != "." for letter in row] for row in rights])
    scores: Any = {scorer: score_matrix(grid, rows, scorer) for scorer in ("likelihood", "generation")}
    spent = Spent("full" if bought_KN.all() else "balanced", bought_KN, int(bought_KN.sum()), 0.95)
    return Evaluation(grid, f"print {rights}", scores, rows, 0.95, (0.5,), spent, int(bought_KN.sum()))


def table(exhibit: dict[str, Any], name: str, scorer: str = "generation") -> dict[str, Any]:
    (found,) = (each for each in exhibit["tables"] if (each["arm"], each["scorer"]) == (name, scorer))
    return found


def test_a_table_is_drawn_letter_by_letter_and_ordered_by_accuracy() -> None:
    exhibit = exhibit_of({"a": arm(["RRRW", "WWRU", "RRRR"])})
    free = table(exhibit, "a")
    assert free["cells"] == "RRRW" + "WWRU" + "RRRR"
    assert free["rows"] == [1, 0, 2]  # one, three and four right
    assert free["columns"] == [3, 0, 1, 2]
    assert table(exhibit, "a", "likelihood")["cells"] == "RRRW" + "WWRW" + "RRRR"
    assert free["counts"] == {"R": 8, "T": 0, "W": 3, "U": 1, ".": 0}


def test_ties_and_holes_have_letters_of_their_own() -> None:
    exhibit = exhibit_of({"a": arm(["RT.", "W.R"])})
    assert table(exhibit, "a", "likelihood")["cells"] == "RT.W.R"
    assert table(exhibit, "a", "likelihood")["counts"] == {"R": 2, "T": 1, "W": 1, "U": 0, ".": 2}


def test_examples_that_break_are_told_from_those_that_are_lost() -> None:
    free = table(exhibit_of({"a": arm(["RWRR", "RUWR", "RWWR", "RWRW"])}), "a")
    assert free["breaks"] == {"count": 2, "listed": [[2, 2, 4], [3, 3, 4]]}  # the most evenly split first
    assert free["lost"] == {"count": 1, "listed": [[1, 0, 4]]}
    assert (free["all_right"], free["judged"]) == (1, 4)


def test_an_example_asked_once_neither_breaks_nor_is_lost() -> None:
    free = table(exhibit_of({"a": arm(["W.R", ".WR"])}), "a")
    assert (free["breaks"]["count"], free["lost"]["count"], free["all_right"], free["judged"]) == (0, 0, 1, 1)


def test_a_prompt_tells_what_it_loses_against_the_best_and_the_median() -> None:
    free = table(exhibit_of({"a": arm(["RRRRRW", "WWWWWR", "RRRWW."])}), "a")
    assert (free["best"], free["median"]) == (0, 2)
    assert [row["best"] for row in free["prompts"]] == [[0, 0], [5, 1], [2, 0]]  # only cells that both bought
    assert [row["median"] for row in free["prompts"]] == [[0, 2], [3, 0], [0, 0]]


def test_a_prompt_tells_how_long_its_free_answers_are_and_how_many_end(tmp_path: Path) -> None:
    done = {"a": arm(["RRUW", "RRRR", "U..."])}
    exhibit = exhibit_of(done)
    assert [row["written"] for row in table(exhibit, "a")["prompts"]] == [[2.0, 0.75], [2.0, 1.0], [2.0, 0.0]]
    assert all(row["written"] is None for row in table(exhibit, "a", "likelihood")["prompts"])
    text = Tags(page_of(told(done), exhibit, tmp_path)).text
    assert re.search(r"Tokens an answer\s*Ended by itself, %", text)
    assert re.search(r"2\.0\s*75\.0", text)


def test_differences_count_what_only_one_arm_gets_right() -> None:
    exhibit = exhibit_of({"a": arm(["RRWW", "RR.W"]), "b": arm(["RWRW", "RRR."])})
    (free,) = (each for each in exhibit["differences"] if each["scorer"] == "generation")
    assert (free["a"], free["b"]) == ("b", "a")
    assert free["counts"] == [1, 1, 3, 1]  # only b, only a, both, neither
    assert len(exhibit_of({name: arm(["RW", "RR"]) for name in "abc"})["differences"]) == 2 * 2


def test_cells_with_text_are_those_of_lists_and_of_every_kind_evenly_over_prompts() -> None:
    generator = np.random.default_rng(0)
    rows = ["".join(generator.choice(list("RWU"), 60, p=[0.4, 0.3, 0.3])) for _ in range(12)]
    other = ["".join(generator.choice(list("RWU"), 60, p=[0.9, 0.1, 0.0])) for _ in range(12)]
    exhibit = exhibit_of({"a": arm(rows), "b": arm(other)})
    texts = exhibit["texts"]
    assert len(texts) == TEXTS
    assert len({(text["prompt"], text["example"]) for text in texts}) == TEXTS
    for reason in ("unreadable", "differs", "wrong"):
        per_prompt = [sum(t["prompt"] == k and t["why"] == reason for t in texts) for k in range(12)]
        assert max(per_prompt) - min(per_prompt) <= 1, reason
    for text in texts:
        first, second = (text["arms"][name]["scores"]["generation"] for name in "ab")
        if text["why"] == "differs":
            assert first[1] != second[1] or text["arms"]["a"]["scores"]["likelihood"][1] != second[1]
        if text["why"] == "unreadable":
            assert -1 in (first[0], second[0])
    for each in exhibit["tables"]:
        for i, *_ in each["breaks"]["listed"]:
            verdicts = {t["arms"][each["arm"]]["scores"][each["scorer"]][1] for t in texts if t["example"] == i}
            assert verdicts == {0.0, 1.0}


def test_a_cell_is_told_as_it_was_asked_and_answered() -> None:
    done = arm(["RU", "WR"])
    (text,) = (t for t in exhibit_of({"a": done})["texts"] if (t["prompt"], t["example"]) == (0, 1))
    assert text["messages"] == [["user", done.grid.chat(Cell(0, 0, 1))[0].text, 0, ""]]
    assert (text["target"], text["gold"], text["choices"]) == ("red", 0, [[0, "red", "red"], [1, "blue", "blue"]])
    assert text["arms"]["a"]["said"] == ["hm", 0, 2, "limit"]
    assert text["arms"]["a"]["logp"] == [-2.0, -1.0]
    assert text["arms"]["a"]["scores"] == {"likelihood": [1, 0.0], "generation": [-1, 0.0]}


def test_a_cell_says_why_its_answer_stopped() -> None:
    done = arm(["RU", "WR"])
    exhibit = exhibit_of({"a": done})
    exhibit["texts"][0]["arms"]["a"]["said"][3] = "settled"
    notes = [answer.note for text in cells_view(exhibit, told({"a": done})).texts for answer in text.answers if answer]
    assert notes[0] == "2 tokens, stopped once its reading was settled"
    assert {*notes[1:]} == {"2 tokens, ended by the model", "2 tokens, cut off at the limit"}


def test_many_cells_and_long_texts_stay_bounded() -> None:
    generator = np.random.default_rng(0)
    shape = ROWS + 20, COLUMNS + 100
    rows = ["".join(generator.choice(list("RW"), shape[1])) for _ in range(shape[0])]
    exhibit = exhibit_of({"a": arm(rows, words=1000)})
    assert [len(exhibit["drawn"][axis]) for axis in ("prompts", "examples")] == [ROWS, COLUMNS]
    for each in exhibit["tables"]:
        assert len(each["cells"]) == ROWS * COLUMNS
        assert sum(each["counts"].values()) == shape[0] * shape[1]
    shown = [text["messages"][0] for text in exhibit["texts"]]
    assert 50 < len(shown) <= TEXTS
    assert sum(len(head) + len(tail) for _, head, _, tail in shown) <= CHARACTERS
    assert all(len(head) + len(tail) == LONGEST["message"] and left_out > 2000 for _, head, left_out, tail in shown)
    assert {text["why"] for text in exhibit["texts"]} == {"breaks", "wrong"}  # none is lost, unreadable or other arms'
    assert len(json.dumps(exhibit)) < 1_000_000


@pytest.mark.parametrize("arms", [1, 3])
def test_a_real_run_keeps_its_exhibit_and_shows_it(tmp_path: Path, arms: int) -> None:
    names = ["base", "again", "third"][:arms]
    config = tiny.write_config(tmp_path, arms={name: {} for name in names})
    out = tmp_path / "out"
    results = pipeline.run(load_run_config(config), out, LineWatcher(quiet=True), stages=("score", "report"))
    exhibit = finished.load_exhibit(out)
    assert exhibit is not None
    assert exhibit == finished.load_exhibit(out / "results.json")
    first = (out / "exhibit.json").read_bytes()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which prompts and examples break" in page
    assert page.count("<canvas") == 2 * arms + 2 * (arms - 1)
    assert page.count("<article") == len(exhibit["texts"]) > 0
    for text in exhibit["texts"]:
        assert text["arms"]["base"]["said"][0] is not None
    for each in exhibit["tables"]:
        accuracy_K = results["arms"][each["arm"]]["scores"][each["scorer"]]["accuracy_K"]
        assert [accuracy_K[k] for k in each["rows"]] == sorted(accuracy_K)
        ties = each["counts"]["T"]
        assert each["counts"]["R"] + ties / 2 == pytest.approx(sum(accuracy_K) * 8)
    pipeline.run(load_run_config(config), tmp_path / "other", LineWatcher(quiet=True), stages=("score",))
    assert (tmp_path / "other" / "exhibit.json").read_bytes() == first  # no times, no order of the machine


def test_a_run_with_holes_shows_them(tmp_path: Path) -> None:
    config = tiny.write_config(tmp_path, arms={"base": {}, "again": {}})
    overrides = ["evaluate.budget.kind=balanced", "evaluate.budget.cells=15"]
    pipeline.run(load_run_config(config, overrides), tmp_path / "out", LineWatcher(quiet=True))
    exhibit = finished.load_exhibit(tmp_path / "out")
    assert exhibit is not None
    assert all(each["counts"]["."] == 9 for each in exhibit["tables"])
    assert all(all(text["arms"].values()) for text in exhibit["texts"])  # both arms bought the same cells
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "9 not bought" in page
    assert "not bought by both" in page


def told(evaluations: dict[str, Evaluation]) -> dict[str, Any]:
    """What a run with these arms would leave in results.json."""
    first = next(iter(evaluations.values()))
    result = make({"base": 0.5})
    held = result["arms"]["base"]
    result["task"]["test_examples"] = len(first.grid.examples)
    result["prompts"]["test"] = [
        {"id": t.id, "system": t.system, "text": t.text, "answers": ["red", "blue"]} for t in first.grid.templates
    ]
    result["arms"] = {
        name: {
            **held,
            "title": name,
            "fingerprint": done.fingerprint,
            "scores": {scorer: done.summary(scorer) for scorer in done.scores},
            "budget": done.spent.to_dict(),
        }
        for name, done in evaluations.items()
    }
    return result


def page_of(result: dict[str, Any], exhibit: dict[str, Any] | None, folder: Path) -> str:
    write_report([result], html=folder / "report.html", markdown=None, exhibits=[exhibit])
    return (folder / "report.html").read_text(encoding="utf-8")


def test_what_lies_between_right_and_wrong_is_tied_or_partly_right() -> None:
    """A free answer that is worth a part, as plans are, has the letter of a tie and words of its own."""
    done = arm(["RTW", "WRT"])
    ties = done.scores["likelihood"]
    done.scores["generation"] = replace(done.scores["generation"], values_KN=ties.values_KN)
    views = {view.scorer: view for view in cells_view(exhibit_of({"a": done}), told({"a": done})).maps}
    assert views["generation"].cells == views["likelihood"].cells == "RTWWRT"
    assert ("tied", "partly right") in views["generation"].legend
    assert ("tied", "right among tied choices") in views["likelihood"].legend
    assert views["generation"].summary.endswith(
        "1 right under some and wrong under others, 0 right under none, 2 partly right under some."
    )
    assert views["likelihood"].summary.endswith("0 right under none, 2 tied under some.")


@pytest.mark.parametrize("arms", [1, 2, 3])
def test_two_by_two_is_enough(arms: int, tmp_path: Path) -> None:
    done = {name: arm(["RW", "RR"]) for name in "abc"[:arms]}
    text = Tags(page_of(told(done), exhibit_of(done), tmp_path)).text
    assert "1 right under some and wrong under others, 0 right under none" in text
    assert "one that is right and one that is wrong, as far as there are and room allows" in text
    assert ("against a" in text) == (arms > 1)


@pytest.mark.parametrize("scorer", ["likelihood", "generation"])
def test_one_scorer_shows_what_it_has(scorer: Any, tmp_path: Path) -> None:
    task = load_task(str(tiny.write_task(tmp_path / "data")))
    grid = Grid(PromptSet.load(str(tiny.write_prompts(tmp_path))).test, task.split("test").examples[:4])
    done = {"tiny": evaluate(tiny.hf_model(), grid, EvalConfig(scorers=[scorer]))}
    page = page_of(told(done), exhibit_of(done), tmp_path)
    assert ('<th scope="row">Free answer</th>' in page) == (scorer == "generation")
    assert ("log p, nats" in page) == (scorer == "likelihood")


def test_a_cell_that_one_arm_did_not_buy_says_so(tmp_path: Path) -> None:
    done = {"a": arm(["R.WR", "WRRW", "RRWW"]), "b": arm(["RRW.", "W.RW", "RWRW"])}
    exhibit = exhibit_of(done)
    text = Tags(page_of(told(done), exhibit, tmp_path)).text
    assert "not bought" in text[text.index("cells that are spelled out") :]
    (free,) = (each for each in exhibit["differences"] if each["scorer"] == "generation")
    assert sum(free["counts"]) == 9  # three of twelve are known of one arm only


def test_an_exhibit_of_other_scores_is_left_out(tmp_path: Path) -> None:
    done = {"a": arm(["RW", "RR"])}
    exhibit = exhibit_of(done)
    assert "<canvas" in page_of(told(done), exhibit, tmp_path)
    assert "<canvas" not in page_of(told(done), None, tmp_path)
    for other in (told({"a": arm(["RR", "RR"])}), exhibit), (told(done), {**exhibit, "version": 0}):
        page = page_of(*other, tmp_path)
        assert "<canvas" not in page
        assert "are of other scores" in page


def test_a_damaged_exhibit_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "exhibit.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="delete it") as caught:
        finished.load_exhibit(tmp_path)
    assert "\n" not in str(caught.value)
    done = {"a": arm(["RW", "RR"])}
    exhibit = exhibit_of(done)
    del exhibit["tables"][0]["rows"]
    with pytest.raises(DataError, match="'rows' is missing"):
        page_of(told(done), exhibit, tmp_path)


def test_hostile_texts_of_cells_stay_text(tmp_path: Path) -> None:
    nasty = HOSTILE + " nul \0 half \ud800 \u202eturned"
    items = [Example(nasty + str(i), {"text": nasty}, (nasty, "blue"), 0) for i in range(2)]
    grid = Grid([Template(f"{word} {{text}}", system=HOSTILE, answer=RED_BLUE) for word in ("Say", "Tell")], items)
    said = Completion(nasty, 3, "limit")
    rows = ((Answered((-1.0, float("-inf")), (1, 1), (3, 4), 9, False, said),) * 2,) * 2
    scores: Any = {scorer: score_matrix(grid, rows, scorer) for scorer in ("likelihood", "generation")}
    spent = Spent("full", np.ones((2, 2), dtype=bool), 4, 0.95)
    done = {"a": Evaluation(grid, "print", scores, rows, 0.95, (), spent, 4)}
    exhibit = json.loads(json.dumps(exhibit_of(done)))
    result = told(done)
    result["arms"]["a"]["title"] = nasty
    page = page_of(result, exhibit, tmp_path)
    found = Tags(page)
    assert not found.open
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [
        tag for tag, attributes in found.tags if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert "nul \u2400 half \ufffd" in found.text
    assert page.count("<article") == 4
    assert '<div class="said" dir="auto">' in page


def test_a_run_and_its_page_agree_with_the_grid(tmp_path: Path) -> None:
    task = load_task(str(tiny.write_task(tmp_path / "data")))
    prompts = PromptSet.load(str(tiny.write_prompts(tmp_path)))
    grid = Grid(prompts.test, task.split("test").examples)
    done = evaluate(tiny.hf_model(), grid, EvalConfig())
    exhibit = exhibit_of({"tiny": done})
    view = cells_view(exhibit, told({"tiny": done}))
    assert len(view.prompts) == 3
    assert len(view.examples) == 8
    for text, shown in zip(exhibit["texts"], view.texts, strict=True):
        cell = Cell(0, text["prompt"], text["example"])
        assert [(m.role, m.text) for m in grid.chat(cell)] == [(role, head) for role, head, _, _ in shown.messages]
        assert shown.target == grid.target(cell)
        (answer,) = shown.answers
        assert answer is not None
        assert answer.said == clean(done.answers_KN[cell.prompt][cell.example].completion.text)  # type: ignore[union-attr]


def test_a_wrong_number_is_another_answer(tmp_path: Path) -> None:
    items = [Example(f"e{i}", {"text": f"sum {i}"}, (str(i),), 0, is_open=True) for i in range(3)]
    grid = Grid([Template(f"Wording {k}: {{text}}", answer=Number()) for k in range(2)], items)
    said = [["0", "7", "none"], ["0", "1", "9"]]
    rows = tuple(
        tuple(Answered((), (), (), 9, False, Completion(text, 2, "eos")) for text in of_prompt) for of_prompt in said
    )
    scores: Any = {"generation": score_matrix(grid, rows, "generation")}
    assert scores["generation"].answers_KN.tolist() == [[0, OTHER, -1], [0, 0, OTHER]]
    spent = Spent("full", np.ones((2, 3), dtype=bool), 6, 0.95)
    done = Evaluation(grid, "print", scores, rows, 0.95, (0.5,), spent, 6)
    html = page_of(told({"a": done}), exhibit_of({"a": done}), tmp_path)
    assert "wrong: another answer" in html
    assert "right: 1" in html
