"""The report says what the results hold, says it neutrally, and lets nothing of a user's text out of its place."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paft.config import RunConfig
from paft.errors import DataError
from paft.evaluation.budget import Spent
from paft.evaluation.evaluate import Evaluation
from paft.evaluation.matrix import INVALID, ScoreMatrix
from paft.grid import Grid
from paft.prompts import Template
from paft.reports import markdown_table, write_report
from paft.reports.checks import check
from paft.reports.plots import RADIUS, axis, loss_curve, strip, swarm
from paft.reports.tables import comparison_rows, cost_rows, difference_rows, estimate_rows
from paft.reports.wording import cautions, clean, first_words, headline, noise_note, number, p_value, signed, verdicts
from paft.results import comparisons
from paft.tasks import Example
from paft.tasks.answers import AGREEMENT, SHARED_WORDS, Labels

HOSTILE = "</title></svg><script>alert(\"x\")</script><img src=http://evil.example/x.png onerror=alert(1)> & 'quoted'"


def matrix(accuracy_K: list[float], examples: int, seed: int, invalid: float = 0.0) -> ScoreMatrix:
    """A table whose prompts are right on about the given shares of the examples."""
    generator = np.random.default_rng(seed)
    shape = (len(accuracy_K), examples)
    right_KN = generator.random(shape) < np.array(accuracy_K)[:, None]
    answers_KN = np.where(right_KN, 0, np.where(generator.random(shape) < invalid, INVALID, 1))
    ids = tuple(f"p{k}" for k in range(shape[0])), tuple(f"e{i}" for i in range(examples))
    tokens_KN = generator.integers(1, 5, shape)
    return ScoreMatrix(*ids, right_KN.astype(float), answers_KN, tokens_KN, answers_KN != INVALID)


def make(
    arms: dict[str, float],
    *,
    prompts: int = 12,
    examples: int = 30,
    scorers: tuple[str, ...] = ("likelihood", "generation"),
    thresholds: tuple[float, ...] = (0.5, 0.8),
    texts: list[str] | None = None,
    name: str = "toy",
) -> dict[str, Any]:
    """What a run would leave in results.json; each arm's mean accuracy is given, arms named "base..." are not trained."""
    config = RunConfig(name=name, task="toy-task", model="some/model", arms={arm: {"title": arm} for arm in arms})
    spread = np.linspace(-0.12, 0.12, prompts)
    grid = Grid(
        [Template(f"{k} {{sentence}}", Labels(("no", "yes"))) for k in range(prompts)],
        [Example(f"e{i}", {"sentence": str(i)}, ("no", "yes"), 0) for i in range(examples)],
    )
    done = {
        arm: Evaluation(
            grid,
            f"print-{arm}",
            # one seed for all arms: the same examples are easy for each
            {
                scorer: matrix(
                    list(np.clip(mean + spread, 0, 1)), examples, seed=7, invalid=0.2 * (scorer == "generation")
                )
                for scorer in scorers
            },
            (),
            0.95,
            thresholds,
            Spent("full", np.ones((prompts, examples), dtype=bool), prompts * examples, 0.95),
            prompts * examples,
            reference=0,
        )
        for arm, mean in arms.items()
    }
    train = {
        "updates": 4,
        "examples": 32,
        "distinct_prompts": 3,
        "micro_batch_size": 8,
        "tokens": 1234,
        "answer_tokens": 64,
        "seconds": 61.0,
        "settings": config.train.model_dump(),
        "loss": [{"step": i, "loss": 2.0 / i, "prompts": ["p0"]} for i in range(1, 5)],
        "dev": [{"step": 4, "mean": 0.5, "sd": 0.1, "accuracy_K": [0.4, 0.6], "prompts": ["d0", "d1"]}],
    }
    texts = texts or [f"Wording number {k}: {{sentence}}" for k in range(prompts)]
    shown = [
        {"id": f"p{k}", "system": "Be brief." if k == 1 else None, "text": text, "answers": ["no", "yes"]}
        for k, text in enumerate(texts)
    ]
    return {
        "paft": "0.0",
        "made": "2026-01-02T03:04:05Z",
        "config": config.model_dump(),
        "environment": {"python": "3.11", "gpu": None},
        "task": {
            "name": "toy-task",
            "origins": ["nowhere"],
            "rows_not_readable": 2,
            "train_examples": 32,
            "dev_examples": 4,
            "test_examples": examples,
            "split": "validation",
        },
        "prompts": {
            "set": "toy",
            "fingerprint": "f00d",
            "train": 3,
            "dev": 2,
            "similarity_to_train": 0.25,
            "test": shown,
            "single": {"id": "t0", "system": None, "text": "The only one: {sentence}", "answers": ["no", "yes"]},
        },
        "arms": {
            arm: {
                "title": arm,
                "fingerprint": d.fingerprint,
                "train": None if arm.startswith("base") else train,
                "scores": {s: d.summary(s) for s in scorers},
                "score_seconds": 1.0,
                "cells_asked": d.asked,
                "seams": 0,
                "budget": done[arm].spent.to_dict(),
            }
            for arm, d in done.items()
        },
        "comparisons": comparisons(done),
    }


THREE = {"base": 0.4, "one": 0.55, "many": 0.8}


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    """A run of three arms, the last of them the best; stored and read again as a file would be."""
    return json.loads(json.dumps(make(THREE)))


def page_of(results: list[dict[str, Any]], folder: Path) -> str:
    write_report(results, html=folder / "report.html", markdown=None)
    assert not list(folder.glob("*.md"))
    return (folder / "report.html").read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every tag with its attributes, the visible text, and what stands inside script and style."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


def test_page_is_well_formed_and_loads_nothing(three: dict[str, Any], tmp_path: Path) -> None:
    page = page_of([three], tmp_path)
    found = Tags(page)
    assert not found.open
    for tag, attributes in found.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base", "form", "use", "image")
        for name in ("src", "href", "srcset", "action", "xlink:href", "style", "background"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "url(" not in page
    assert "@import" not in page
    assert "http://" not in page
    assert "https://" not in page
    policy = next(
        a["content"] for t, a in found.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_policy_admits_exactly_the_script_on_the_page(three: dict[str, Any], tmp_path: Path) -> None:
    import base64
    import hashlib

    page = page_of([three], tmp_path)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    texts = [
        HOSTILE,
        "nul \0 bell \a half \ud800 end",
        "\u202e\u05d0\u05d1\u05d2 {sentence}",
        "long " * 40_000,
        "{{ 7*7 }}{% raw %}",
        *"abcdefg",
    ]
    result = make(THREE, texts=texts)
    result["arms"]["many"]["title"] = HOSTILE
    result["prompts"]["test"][3]["system"] = HOSTILE
    result["prompts"]["test"][4]["answers"] = [HOSTILE, "\0"]
    result["task"]["origins"] = [HOSTILE]
    result["config"]["model"] = HOSTILE
    result["environment"]["python"] = HOSTILE
    write_report([result], html=tmp_path / "report.html", markdown=tmp_path / "report.md")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    found = Tags(page)
    assert not found.open
    assert [tag for tag, _ in found.tags].count("script") == 1
    assert not [
        tag for tag, attributes in found.tags if tag == "img" or any(name.startswith("on") for name in attributes)
    ]
    assert '<script>alert("x")</script>' in found.text
    assert "nul \u2400 bell \u2407 half \ufffd end" in found.text
    assert "{{ 7*7 }}{% raw %}" in found.text
    assert "the first 4,000 of 200,000 characters" in found.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", page)
    table = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "<script" not in table
    assert "<img" not in table


def test_right_to_left_text_is_kept_apart(tmp_path: Path) -> None:
    page = page_of([make(THREE, texts=["\u05e9\u05dc\u05d5\u05dd {sentence}"] + ["x"] * 11)], tmp_path)
    assert re.search(r'<div class="text" dir="auto">\u05e9', page)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"before": 0.5, "after": 0.8}, "after is ahead of before"),
        ({"before": 0.8, "after": 0.5}, "after is behind before"),
        ({"before": 0.7, "after": 0.7}, "No clear difference on average between after and before"),
    ],
)
def test_wording_follows_the_interval(arms: dict[str, float], said: str) -> None:
    result = make(arms)
    mean, spread, _ = verdicts(result, "generation")
    assert said in mean
    assert "wording" in spread
    assert said in markdown_table([result]).replace("\\", "")


def test_an_interval_that_touches_zero_is_no_clear_difference(three: dict[str, Any]) -> None:
    result = copy.deepcopy(three)
    comparison = next(
        c for c in result["comparisons"] if (c["a"], c["b"], c["scorer"]) == ("many", "one", "generation")
    )
    comparison["mean"] |= {"value": 0.3, "low": -0.001}
    comparison["prompt_sd"] |= {"low": -0.2, "high": 0.0}
    first, second, _ = verdicts(result, "generation")
    assert "No clear difference" in first
    assert "includes zero" in first
    assert "No clear difference" in second


def test_spread_is_judged_by_its_own_interval(three: dict[str, Any]) -> None:
    result = copy.deepcopy(three)
    comparison = next(
        c for c in result["comparisons"] if (c["a"], c["b"], c["scorer"]) == ("many", "one", "generation")
    )
    comparison["prompt_sd"] |= {"low": -0.2, "high": -0.1}
    assert "depends less on the wording" in verdicts(result, "generation")[1]
    comparison["prompt_sd"] |= {"low": 0.1, "high": 0.2}
    assert "depends more on the wording" in verdicts(result, "generation")[1]
    comparison["worst"] |= {"value": 0.15, "low": 0.1, "high": 0.2}
    assert "worst prompt" in verdicts(result, "generation")[2]
    assert "ahead of" in verdicts(result, "generation")[2]
    comparison["worst"] |= {"value": -0.15, "low": -0.2, "high": -0.1}
    assert "behind" in verdicts(result, "generation")[2]
    comparison["worst"] |= {"low": -0.2, "high": 0.1}
    assert "No clear difference" in verdicts(result, "generation")[2]


def test_headline_holds_the_figures_of_the_last_two_arms(three: dict[str, Any], tmp_path: Path) -> None:
    text = headline(three, "generation")
    for arm in ("many", "one"):
        estimates = three["arms"][arm]["scores"]["generation"]["estimates"]
        assert f"{100 * estimates['mean']['value']:.1f}\u00a0%" in text
        assert f"{100 * min(three['arms'][arm]['scores']['generation']['accuracy_K']):.1f}\u00a0%" in text
    assert "12 wordings" in text
    assert text in Tags(page_of([three], tmp_path)).text


@pytest.mark.parametrize(
    ("judge", "named"),
    [
        (SHARED_WORDS, "by F1 of words"),
        (AGREEMENT, "by how much of the right call they have (T-Eval's rule)"),
        ("0123abcd", "by the embedding model some/embedder"),
    ],
)
def test_scores_in_parts_are_called_worth_and_say_by_what(
    three: dict[str, Any], judge: str, named: str, tmp_path: Path
) -> None:
    result = copy.deepcopy(three)
    result["task"] |= {"open": True, "judge": judge}
    result["config"]["evaluate"]["embeddings"] = "some/embedder"
    page, table = Tags(page_of([result], tmp_path)).text, markdown_table([result])
    mean = result["arms"]["many"]["scores"]["generation"]["estimates"]["mean"]["value"]
    for text in page, table.replace("\\", ""):
        assert f"many gives answers worth {number(mean)}" in " ".join(text.split())
        assert named in text
        assert "right on average" not in text
        assert "choice, or several" not in text
    assert "right on average" in headline(result, "likelihood")


def test_an_open_answer_names_no_choice(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    assert "names no choice, or several, is wrong" in Tags(page_of([result], tmp_path)).text
    result["task"] |= {"open": True, "judge": None}
    text = Tags(page_of([result], tmp_path)).text
    assert "a parser reads it; no answer, or several, is wrong" in text
    assert "choice, or several" not in text


def test_cautions_name_what_intervals_leave_out(three: dict[str, Any], tmp_path: Path) -> None:
    text = Tags(page_of([three], tmp_path)).text
    assert "One training seed" in text
    assert "30 examples, fewer than 300" in text
    assert "12 prompts cannot rule out that up to 22.1\u00a0% of new wordings are worse" in text  # 1 - .05^(1/12)
    assert "item noise" in text


def test_a_race_over_many_examples_rests_its_mean_on_few(three: dict[str, Any]) -> None:
    result = copy.deepcopy(three)
    for name, arm in result["arms"].items():
        arm["budget"]["sampled_examples"] = 50 if name == "many" else 1000
        for scores in arm["scores"].values():
            scores["estimates"]["mean"]["examples"] = 1000
    assert any("Approximate: 50 sampled examples, fewer than 300;" in each for each in cautions(result))


def test_arms_under_which_all_prompts_fare_alike_are_not_said_to_differ(three: dict[str, Any]) -> None:
    assert "would not be zero" in noise_note(three, "generation")
    result = copy.deepcopy(three)
    result["arms"]["many"]["scores"]["generation"]["raw_sd"] = 0.0
    assert "would not be zero" not in noise_note(result, "generation")
    assert "it is 0.0 points as observed" in noise_note(result, "generation")


def test_a_system_text_that_is_cut_says_so(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    result["prompts"]["test"][1]["system"] = "y" * 5000
    text = Tags(page_of([result], tmp_path)).text
    assert "the first 4,000 of 5,000 characters of the system text; prompts.yaml holds all" in text
    assert "characters of the prompt" not in text


def test_a_dot_keeps_its_figure_whatever_the_title_of_its_arm(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    result["arms"]["many"]["title"] = "tuned \u00b7 many"
    page = page_of([result], tmp_path)
    dots = [attributes for _, attributes in Tags(page).tags if attributes.get("class") == "dot"]
    accuracy = result["arms"]["many"]["scores"]["generation"]["accuracy_K"][0]
    said = next(dot["data-said"] for dot in dots if (dot["data-said"] or "").startswith("tuned"))
    assert (said or "").startswith(f"tuned \u00b7 many: {number(accuracy)}\u00a0%")
    assert dots[0]["data-words"] == "p0 \u00b7 Wording number 0: {sentence}"
    assert "split(" not in page[page.index("<script>") : page.index("var unfolded")]


def test_untrained_arms_alone_have_no_training_section(tmp_path: Path) -> None:
    result = make({"base": 0.5, "base2": 0.6})
    result["prompts"]["single"] = None
    text = Tags(page_of([result], tmp_path)).text
    assert "training seed" not in text
    assert "Loss per update" not in text
    assert "baseline was tuned on" not in text


def test_all_prompts_stand_in_order_of_the_last_arm(three: dict[str, Any], tmp_path: Path) -> None:
    page = page_of([three], tmp_path)
    listed = page[page.index("All 12 prompts") :]
    ids = re.findall(r"<code>(p\d+)</code>", listed)
    accuracy_K = three["arms"]["many"]["scores"]["generation"]["accuracy_K"]
    assert sorted(ids) == sorted(f"p{k}" for k in range(12))
    assert [accuracy_K[int(i[1:])] for i in ids] == sorted(accuracy_K)


def test_markdown_holds_every_figure_of_both_scorers(three: dict[str, Any]) -> None:
    table = markdown_table([three])
    for arm in three["arms"].values():
        for scorer, scores in arm["scores"].items():
            keys = ["mean", "prompt_sd", "worst", "p10", "share>=0.5", "share>=0.8"] + ["invalid"] * (
                scorer == "generation"
            )
            for key in keys:
                e = scores["estimates"][key]
                assert f"{100 * e['value']:.1f} ({100 * e['low']:.1f} to {100 * e['high']:.1f})" in table, (scorer, key)
    assert "f00d" in table
    assert table.index("Free answers") < table.index("Restricted choice")
    for block in re.findall(r"(?:^\|.*\n)+", table, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_several_runs_share_a_page(three: dict[str, Any], tmp_path: Path) -> None:
    other = make({"base": 0.4, "solo": 0.6}, name="second")
    write_report([three, other], html=tmp_path / "all.html", markdown=tmp_path / "all.md")
    page = (tmp_path / "all.html").read_text(encoding="utf-8")
    ids = [attributes["id"] for _, attributes in Tags(page).tags if "id" in attributes]
    assert ids == ["run-1", "run-2"]
    assert 'href="#run-2"' in page
    table = (tmp_path / "all.md").read_text(encoding="utf-8")
    assert "second" in table
    assert "toy: " in table


@pytest.mark.parametrize("scorer", ["likelihood", "generation"])
def test_one_arm_one_scorer_no_thresholds(scorer: str, tmp_path: Path) -> None:
    result = make({"only": 0.7}, scorers=(scorer,), thresholds=())
    text = Tags(page_of([result], tmp_path)).text
    assert "Paired comparisons" not in text
    assert "Share of prompts at" not in text
    assert ("Tokens per answer" in text) == (scorer == "generation")
    assert verdicts(result, scorer) == []
    assert markdown_table([result]).count("| only |") == 3  # tables of figures, of differences and of costs


def test_cost_tells_spent_from_avoided(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    result["arms"]["one"] |= {"cells_asked": 100, "tokens_read": 4000, "tokens_alone": 50_000, "score_seconds": 71.25}
    result["arms"]["one"] |= {"seconds_K": [0.5, 0.3], "joules": 1234.0}
    rows = dict(cost_rows(result))
    assert rows["one"] == ("360 of 360", "100", "260", "4,000", "46,000 (92.0 %)", "71.2", "0.4", "12.3")
    assert rows["base"][3:5] == ("\u2013", "\u2013")  # a run from before tokens were counted
    assert "46,000 (92.0 %)" in Tags(page_of([result], tmp_path)).text
    assert "| one | 360 of 360 | 100 | 260 | 4,000 | 46,000 (92.0 %) | 71.2 | 0.4 | 12.3 |" in markdown_table([result])


def test_where_differences_come_from_is_told_in_rows_a_reader_can_check(three: dict[str, Any], tmp_path: Path) -> None:
    page, table = Tags(page_of([three], tmp_path)).text, markdown_table([three])
    assert page.count("Where the differences come from") == 1
    for scorer in ("generation", "likelihood"):
        rows = {row.title: row for row in difference_rows(list(three["arms"].values()), scorer)}
        assert len(rows) == 12
        shares = [rows[title].figures for title in rows if title.startswith("Variance of a cell")]
        for arm in range(3):
            assert sum(float(figures[arm].value) for figures in shares) == pytest.approx(100, abs=0.2)
        told = three["arms"]["many"]["scores"][scorer]["differences"]
        floor, s2 = told["components"]["noise_floor"], told["components"]["s2_prompt"]
        assert rows["Raw SD that item noise alone would show"].figures[2].value == number(floor)
        squared = rows["Variance over prompts, item noise removed, not cut at 0"].figures[2]
        assert (squared.value, squared.bounds) == (
            number(100 * s2["value"]),
            f"{number(100 * s2['low'])} to {number(100 * s2['high'])}",
        )
        test = rows["Are all prompts equally good? p of Cochran's test"].figures[2]
        assert test.value == p_value(told["components"]["equality"]["p"])
        assert test.bounds == f"Q {told['components']['equality']['q']:.1f}, 11 df"
        low, high = (rows[title].figures[2].value for title in rows if title.startswith("Worst prompt"))
        assert (low, high) == (number(told["worst"]["raw"]), number(told["worst"]["split_half"]))
        for row in rows.values():
            for figure in row.figures:
                assert row.minor or figure.value in table, row.title
                assert figure.value in page, row.title


def test_a_run_from_before_differences_and_p_values_has_a_page_without_them(
    three: dict[str, Any], tmp_path: Path
) -> None:
    result = copy.deepcopy(three)
    for arm in result["arms"].values():
        for scores in arm["scores"].values():
            del scores["differences"]
    for comparison in result["comparisons"]:
        del comparison["p"], comparison["p_holm"]
    text = Tags(page_of([result], tmp_path)).text
    assert "Where the differences come from" not in text
    assert "Paired comparisons" in text
    assert "Where the differences" not in markdown_table([result])


def test_comparisons_print_p_values_kept_for_all_pairs(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    free = [each for each in result["comparisons"] if each["scorer"] == "generation"]
    for each, p, adjusted in zip(free, (0.02, 0.3, 1e-7), (0.04, 0.3, 3e-7), strict=True):
        each |= {"p": p, "p_holm": adjusted}
    first, second, third = comparison_rows(result, "generation")
    assert [(row.p.value, row.p.bounds) for row in (first, second, third)] == [
        ("< 0.0001", "< 0.0001"),
        ("0.3", "0.3"),
        ("0.02", "0.04"),
    ]
    page, table = page_of([result], tmp_path), markdown_table([result])
    assert "0.02 <i>(0.04)</i>" in page
    assert "&lt; 0.0001 <i>(&lt; 0.0001)</i>" in page
    assert "kept for all pairs" in page
    assert "| Paired differences, free answers | Mean | p (Holm) |" in table
    line = next(line for line in table.splitlines() if line.startswith("| one \u2212 base |"))
    mean = free[0]["mean"]
    assert f"| {signed(mean['value'])} ({signed(mean['low'])} to {signed(mean['high'])}) | 0.02 (0.04) |" in line


def test_of_several_runs_the_first_table_holds_mean_and_worst_prompt(three: dict[str, Any], tmp_path: Path) -> None:
    """Also where a part of the cells was bought, whose rows are others."""
    part = copy.deepcopy(make({"base": 0.4, "solo": 0.6}, name="second"))
    for arm in part["arms"].values():
        for scores in arm["scores"].values():
            estimates = scores["estimates"]
            scores |= {"raw_sd": None, "differences": None}
            scores["estimates"] = {"mean": estimates["mean"], "prompt_sd": estimates["prompt_sd"]} | {
                f"table_{key}": estimates[key] for key in ("mean", "worst", "p10", "median")
            }
    page = page_of([three, part], tmp_path)
    nav = page[page.index("<nav") : page.index("</nav>")]
    for result, arm, key in ((three, "many", "worst"), (part, "solo", "table_worst")):
        found = result["arms"][arm]["scores"]["generation"]["estimates"]
        for estimate in (found["mean"], found[key]):
            shown = (
                f"<td>{number(estimate['value'])} <i>({number(estimate['low'])} to {number(estimate['high'])})</i></td>"
            )
            assert shown in nav


@pytest.mark.parametrize("bought", [["one"], ["many"], ["base", "one", "many"]])
def test_what_is_said_of_bought_cells_is_said_of_the_arms_they_are_of(
    three: dict[str, Any], bought: list[str], tmp_path: Path
) -> None:
    result = copy.deepcopy(three)
    for name in bought:
        for scores in result["arms"][name]["scores"].values():
            estimates = scores["estimates"]
            scores |= {"raw_sd": None, "differences": None}
            scores["estimates"] = {"mean": estimates["mean"], "prompt_sd": estimates["prompt_sd"]} | {
                f"table_{key}": estimates[key] for key in ("worst", "p10", "median", "share>=0.5", "share>=0.8")
            }
    result["comparisons"] = []
    page, table = Tags(page_of([result], tmp_path)).text, markdown_table([result])
    of = "" if len(bought) == 3 else f" of {bought[0]}"
    assert f"as far as the cells that were bought{of} tell it" in page
    for text in page, table:
        assert f"A part of the cells{of} was bought" in text
    assert ("are estimates for new examples" in page) == bool(of)
    assert ("Of the other arms: worst" in page) == bool(of)
    heading = next(line for line in table.splitlines() if line.startswith("| Free answers"))
    assert heading.count("Prompts \u2265 50 %") == 1
    rows = [row.title for row in estimate_rows(list(result["arms"].values()), "generation", {})]
    assert len({*rows}) == len(rows)
    share = "Share of prompts at \u2265\u00a050\u00a0%"
    assert f"{share}, exactly these prompts and examples" in rows
    assert (share in rows) == bool(of)


def test_two_prompts_are_enough(tmp_path: Path) -> None:
    text = Tags(page_of([make(THREE, prompts=2, examples=5)], tmp_path)).text
    assert "2 prompts, fewer than 10" in text
    assert "Worst 1" in text


def test_an_estimate_without_interval_has_none_on_the_page(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    for arm in result["arms"].values():
        for scores in arm["scores"].values():
            for estimate in scores["estimates"].values():
                estimate |= {"low": None, "high": None}
    for comparison in result["comparisons"]:
        for key in ("mean", "prompt_sd", "worst"):
            comparison[key] |= {"low": None, "high": None}
    text = Tags(page_of([result], tmp_path)).text
    assert "no interval can be given" in text
    assert "None" not in headline(result, "generation")
    assert "None" not in markdown_table([result])


def spoil(result: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The result with one value changed."""
    found: Any = copy.deepcopy(result)
    whole, parts = found, path.split("/")
    for part in parts[:-1]:
        found = found[int(part) if isinstance(found, list) else part]
    found[int(parts[-1]) if isinstance(found, list) else parts[-1]] = value
    return whole  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("estimates/mean/value", 0.78, "mean is 0.78"),
        ("estimates/mean/low", 0.99, "mean.low"),
        ("estimates/worst/value", 0.95, "worst"),
        ("estimates/median/value", 0.0, "median"),
        ("estimates/invalid/value", 0.9, "invalid"),
        ("estimates/share>=0.8/value", 0.01, "share>=0.8"),
        ("estimates/prompt_sd/value", 0.9, "prompt_sd"),
        ("raw_sd", 0.5, "raw_sd"),
        ("differences/components/noise_floor", 0.5, "raw_sd"),
        ("differences/components/shares/item", 1.5, "the sum of the shares of variance"),
        ("differences/worst/raw", 0.1, "the worst prompt as observed"),
        ("differences/flips/wrong_to_right", 0.9, "flips"),
        ("accuracy_K/0", 1.5, "accuracy_K"),
        ("accuracy_K/0", float("nan"), "accuracy_K"),
        ("accuracy_K/0", None, "accuracy_K"),
        ("accuracy_K", [0.5], "accuracy_K has 1 values"),
    ],
)
def test_a_contradiction_is_refused_and_named(
    three: dict[str, Any], path: str, value: Any, named: str, tmp_path: Path
) -> None:
    result = spoil(three, f"arms/many/scores/generation/{path}", value)
    with pytest.raises(DataError) as caught:
        write_report([result], html=tmp_path / "report.html", markdown=tmp_path / "report.md")
    message = str(caught.value)
    assert named in message
    assert "'many'" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("path", "value"),
    [("mean/value", 0.9), ("prompt_sd/value", 0.9), ("ahead", 0.123), ("worst/low", 2.0), ("p_holm", 0.777)],
)
def test_a_comparison_must_follow_from_its_arms(three: dict[str, Any], path: str, value: float) -> None:
    with pytest.raises(DataError, match=path.partition("/")[0]):
        check(spoil(three, f"comparisons/0/{path}", value))


def test_a_missing_key_and_no_arm_are_said_in_one_line(three: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'prompts' is missing"):
        page_of([{key: value for key, value in three.items() if key != "prompts"}], tmp_path)
    with pytest.raises(DataError, match="'made' is missing"):
        markdown_table([{key: value for key, value in three.items() if key != "made"}])
    with pytest.raises(DataError, match="no arm was scored"):
        page_of([{**three, "arms": {}}], tmp_path)
    with pytest.raises(DataError, match="no results"):
        page_of([], tmp_path)


def test_figures_are_written_one_way() -> None:
    assert number(-0.00001) == "0.0"
    assert signed(-0.0321) == "\u22123.2"
    assert signed(0.0321) == "+3.2"
    assert (p_value(0.5), p_value(0.00012), p_value(0.00001), p_value(0)) == ("0.5", "0.00012", "< 0.0001", "< 0.0001")
    assert clean("a\r\nb\x7f\x85\tc") == "a\nb\u2421\ufffd\tc"
    assert first_words("one\n two " + "three " * 50).startswith("one two three")
    assert len(first_words("x" * 10_000)) < 80


@pytest.mark.parametrize("seed", range(5))
def test_dots_of_a_swarm_do_not_overlap(seed: int) -> None:
    generator = np.random.default_rng(seed)
    places = (generator.integers(0, 41, 120) / 40 * 400).tolist()
    offsets = swarm(places, 2 * RADIUS)
    for i in range(len(places)):
        for j in range(i):
            assert (places[i] - places[j]) ** 2 + (offsets[i] - offsets[j]) ** 2 >= (2 * RADIUS) ** 2 - 1e-3
    assert offsets == swarm(places, 2 * RADIUS)


@pytest.mark.parametrize("accuracy_K", [[0.0, 0.0], [1.0] * 400, [0.5, 0.5001], [0.3]])
def test_a_strip_keeps_its_dots_inside(accuracy_K: list[float]) -> None:
    mean = {"value": sum(accuracy_K) / len(accuracy_K), "low": None, "high": None}
    drawn = strip(accuracy_K, mean)
    assert all(0 <= dot.x <= 100 and RADIUS <= dot.y <= drawn.band_y - RADIUS for dot in drawn.dots)
    assert drawn.lowest.x == 100 * min(accuracy_K)
    assert 0 < drawn.label_y < drawn.height <= 160


def test_long_and_broken_losses_are_drawn() -> None:
    curve = loss_curve([float("nan"), None, *np.linspace(3, 1, 7000)], axis(3).top)
    assert curve is not None
    assert curve.updates == 7002
    assert len(curve.raw.split()) <= 500
    assert "nan" not in curve.raw + curve.smooth
    assert loss_curve([None], 1.0) is None
    assert axis(0).top == 1.0


def test_negative_rewards_are_drawn_below_zero() -> None:
    both = axis(0.9, -2.0)
    assert (both.top, both.bottom) == (1.0, -2.0)
    assert both.ticks == (
        (100.0, "\u22122"),
        (pytest.approx(200 / 3), "\u22121"),
        (pytest.approx(100 / 3), "0"),
        (0.0, "1"),
    )
    below = axis(-1.0, -3.0)
    assert (below.top, below.bottom) == (0.0, -3.0)
    curve = loss_curve([-3.0, -1.5, 0.0], below.top, below.bottom)
    assert curve is not None
    assert [point.split(",")[1] for point in curve.raw.split()] == ["1000.0", "500.0", "0.0"]


def test_the_axis_of_a_training_reaches_its_lowest_reward(three: dict[str, Any], tmp_path: Path) -> None:
    result = copy.deepcopy(three)
    for reward, arm in ([-1.0, -3.0, -0.5, -2.0], "one"), ([-2.0, -1.0, -1.0, -0.5], "many"):
        result["arms"][arm]["train"] |= {"reward": reward, "completions": 8}
    page = page_of([result], tmp_path)
    assert page.count('text-anchor="end">\u22123</text>') == 2
    first = re.search(r'<polyline class="raw" points="([^"]*)"', page[page.index("Reward of one") :])
    assert first is not None
    assert len({point.split(",")[1] for point in first[1].split()}) == 4
