"""The rows of the page's tables, and the Markdown table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

from paft.evaluation.comparisons import Pairwise
from paft.reports.checks import check, complete
from paft.reports.wording import (
    MISSING,
    NBSP,
    SCORERS,
    bar_title,
    bars,
    bought_in_part,
    cautions,
    clean,
    headline,
    interval,
    level,
    levels,
    main_scorer,
    number,
    p_value,
    pick,
    provenance,
    scorers,
    signed,
    thousands,
    verdicts,
    worth_by,
)

WHERE_FROM = "Where the differences come from"
P_MEANS = (
    "p: two-sided, that the mean difference is 0 over new prompts and new examples; in brackets the same kept for all pairs of the table "
    "together (Holm). Intervals are each for one pair."
)

OTHERS = {"train": "prompts of training", "dev": "dev prompts", "adversarial": "perturbed prompts (Con)"}
"""What a reader sees for the splits that were asked beside the scored one."""


@dataclass(frozen=True)
class Figure:
    """A cell of a table: the number, its interval (empty where there is none) and how the interval was made."""

    value: str
    bounds: str = ""
    method: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    title: str
    unit: str
    figures: tuple[Figure, ...]
    minor: bool = False


def estimate_rows(
    arms: Sequence[Mapping[str, Any]], scorer: str, wordings: Mapping[str, Mapping[str, Any]]
) -> list[Row]:
    """Every estimate of one scorer, a row each, an arm per column. wordings: how far those of other splits lie from the scored ones
    (`prompts.others` of the results), which stands beside the gap that it bounds."""
    scores = [arm["scores"][scorer] for arm in arms]

    def estimated(title: str, key: str, unit: str = "%", minor: bool = False) -> Row:
        return Row(title, unit, tuple(figure_of(s["estimates"].get(key)) for s in scores), minor)

    def average(title: str, key: str, unit: str, write: Callable[[float], str]) -> Row:
        return Row(title, unit, tuple(Figure(write(sum(s[key]) / len(s[key]))) for s in scores), minor=True)

    here = "exactly these prompts and examples"
    rows = [
        estimated("Mean accuracy", "mean"),
        estimated(f"Mean accuracy, {here}", "table_mean"),
        estimated("SD over prompts, item noise removed", "prompt_sd", "points"),
        Row(
            "Raw SD, item noise included",
            "points",
            tuple(Figure(MISSING if s["raw_sd"] is None else number(s["raw_sd"])) for s in scores),
            minor=True,
        ),
        estimated(f"Raw SD, {here}", "table_sd", "points", minor=True),
        estimated("Worst prompt", "worst"),
        estimated(f"Worst prompt, {here}", "table_worst"),
        estimated("Tenth percentile, P10", "p10"),
        estimated(f"Tenth percentile, P10, {here}", "table_p10"),
        estimated("Mean of the worst tenth, CVaR", "cvar10", minor=True),
        estimated("Median prompt", "median"),
        estimated(f"Median prompt, {here}", "table_median"),
        estimated("Best prompt", "best"),
        estimated(f"Best prompt, {here}", "table_best"),
        *(
            estimated(f"Share of prompts at {bar_title(key)}{more}", f"{table}{key}", "%")
            for key in _shares(scores)
            for table, more in (("", ""), ("table_", f", {here}"))
        ),
        estimated("Consistency: same answer to two prompts", "consistency"),
        estimated("Agreement beyond chance, Fleiss kappa (100 is full)", "kappa", "", minor=True),
        estimated("Sensitivity: right under one of two prompts only, PSS", "pss", minor=True),
        estimated("Right under all of 5 random prompts, W@5", "W@5", minor=True),
        estimated("Right under every prompt", "instance_worst", minor=True),
        estimated("Answers other than under the reference prompt", "flips", minor=True),
    ]
    for split in dict.fromkeys(split for arm in arms for split in arm.get("others", {})):
        under = [arm.get("others", {}).get(split, {}).get(scorer) for arm in arms]
        means = tuple(figure_of(each and each["estimates"]["mean"]) for each in under)
        gaps = tuple(figure_of(each and each["gap"], difference=True) for each in under)
        rows += [
            Row(f"Mean accuracy, {OTHERS[split]}", "%", means),
            Row(f"The same less that of the scored ones, {OTHERS[split]}", "points", gaps, minor=True),
        ]
        if split in wordings:
            apart = Figure(f"{wordings[split]['mmd2']:.4f}", f"p {wordings[split]['p']:.2g}")
            title = f"Distance of the wordings, {OTHERS[split]} to scored"
            rows.append(Row(title, "squared MMD", (apart,) * len(arms), minor=True))
    if scorer == "generation":
        rows += [
            estimated("Answers that cannot be read", "invalid"),
            average("Tokens per answer", "tokens_K", "", lambda value: f"{value:.1f}"),
            average("Answers ended by the model itself", "ended_K", "%", number),
            Row(
                "Readable answers at odds with restricted choice",
                "%",
                tuple(figure_of(arm.get("mismatch")) for arm in arms),
                minor=True,
            ),
        ]
    return [row for row in rows if any(figure.value != MISSING for figure in row.figures)]


def difference_rows(arms: Sequence[Mapping[str, Any]], scorer: str) -> list[Row]:
    """Where the differences between the cells of one scorer come from, an arm per column; empty where no table was bought whole."""
    found = [arm["scores"][scorer].get("differences") for arm in arms]

    def row(title: str, unit: str, *path: str, minor: bool = False) -> Row:
        values = [reduce(lambda held, key: held and held[key], path, each) for each in found]
        return Row(title, unit, tuple(Figure(MISSING if v is None else number(v)) for v in values), minor)

    def tested(
        title: str, unit: str, key: str, write: Callable[[Mapping[str, Any]], Figure], minor: bool = False
    ) -> Row:
        figures = (Figure(MISSING) if each is None else write(each["components"][key]) for each in found)
        return Row(title, unit, tuple(figures), minor)

    half = "Worst prompt, picked on one half, scored on the other: errs high"
    rows = [
        row("Variance of a cell: from the prompt", "%", "components", "shares", "prompt"),
        row("Variance of a cell: from the example", "%", "components", "shares", "item"),
        row("Variance of a cell: from both together, and noise", "%", "components", "shares", "residual"),
        tested("Are all prompts equally good? p of Cochran's test", "", "equality", _equality),
        row("Raw SD that item noise alone would show", "points", "components", "noise_floor"),
        tested(
            "Variance over prompts, item noise removed, not cut at 0", "points\u00b2", "s2_prompt", _squared, minor=True
        ),
        row("Worst prompt as observed: errs low", "%", "worst", "raw"),
        row(half, "%", "worst", "split_half"),
        row("Entropy of the answers to an example (100: all as often)", "%", "entropy", minor=True),
        row("Right under the reference prompt, wrong under another", "%", "flips", "right_to_wrong"),
        row("Wrong under the reference prompt, right under another", "%", "flips", "wrong_to_right"),
        row("Wrong under both, in two ways", "%", "flips", "wrong_to_wrong", minor=True),
    ]
    return [row for row in rows if any(figure.value != MISSING for figure in row.figures)]


def _equality(test: Mapping[str, Any]) -> Figure:
    return Figure(p_value(test["p"]), f"Q {test['q']:.1f}, {test['freedom']} df")


def _squared(s2: Mapping[str, Any]) -> Figure:
    value, low, high = (number(100 * s2[key]) for key in ("value", "low", "high"))
    return Figure(value, f"{low} to {high}", s2["method"])


def figure_of(estimate: Mapping[str, Any] | None, difference: bool = False) -> Figure:
    """An estimate as it is printed, or a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return Figure(MISSING)
    value = (signed if difference else number)(estimate["value"])
    return Figure(value, interval(estimate, difference), estimate["method"])


def _shares(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys, without "table_", of the shares of prompts that reach a threshold, of any arm."""
    return list(dict.fromkeys(key for each in scores for key in bars(each["estimates"])))


@dataclass(frozen=True)
class Compared:
    """A line of the table of comparisons: differences a - b in points, the p value of the mean (in brackets that after Holm), and on
    how many prompts a is ahead."""

    a: str
    b: str
    scorer: str
    mean: Figure
    p: Figure
    prompt_sd: Figure
    worst: Figure
    ahead: str
    ahead_count: str


def comparison_rows(result: Mapping[str, Any], scorer: str) -> list[Compared]:
    """Every pair of arms by one scorer, the last arm's pairs first."""
    return _compared([each for each in reversed(result["comparisons"]) if each["scorer"] == scorer], scorer)


def in_part(comparisons: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some of these rest on a part of the cells. Results of an earlier day do not count them."""
    return any(
        "cells" in each and each["cells"] < each["mean"]["prompts"] * each["mean"]["examples"] for each in comparisons
    )


def ahead_count(comparison: Mapping[str, Any], part: bool) -> str:
    """On how many of the prompts that count the first is ahead; of a part of the cells also how many both hold."""
    k = comparison["mean"]["prompts"]
    cells = f", {thousands(comparison['cells'])} shared cells" if part else ""
    return f"{round(comparison['ahead'] * k)} of {k} prompts{cells}"


def _compared(comparisons: Sequence[Mapping[str, Any]], scorer: str) -> list[Compared]:
    part = in_part(comparisons)
    return [_one_compared(each, scorer, part) for each in comparisons]


def _one_compared(comparison: Mapping[str, Any], scorer: str, part: bool) -> Compared:
    mean, sd, worst = (figure_of(comparison[key], True) for key in ("mean", "prompt_sd", "worst"))
    p = Figure(p_value(comparison["p"]), p_value(comparison["p_holm"])) if "p" in comparison else Figure(MISSING)
    names = clean(comparison["a"]), clean(comparison["b"])
    return Compared(*names, scorer, mean, p, sd, worst, number(comparison["ahead"], 0), ahead_count(comparison, part))


@dataclass(frozen=True)
class Between:
    """Models of several runs, pair by pair, by one scorer, on the cells that all of them share. on: which these are."""

    title: str
    level: str
    on: str
    rows: Sequence[Compared]


def between(pairs: Sequence[Pairwise], scorer: str) -> Between:
    """The view of pairs whose names are RUN:ARM."""
    told = [pair.to_dict() for pair in pairs]
    return Between(SCORERS.get(scorer, scorer), level(told[0]["mean"]), compared_on(told), _compared(told, scorer))


def compared_on(comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The cells on which pairs were compared: of whole tables the same for all."""
    if in_part(comparisons):
        return "the cells that both models of a pair were scored on"
    mean = comparisons[0]["mean"]
    return f"{mean['prompts']} prompts x {mean['examples']} examples that all models were scored on"


def methods(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How each interval was made: (figures, method), figures of one method together."""
    titles = {
        "mean": "mean",
        "prompt_sd": "standard deviation",
        "worst": "worst",
        "best": "best",
        "p10": "tenth percentile",
        "median": "median",
        "consistency": "consistency",
        "invalid": "unreadable answers",
        "cvar10": "CVaR",
        "pss": "sensitivity",
        "instance_worst": "right under every prompt",
    }
    found: dict[str, list[str]] = {}
    for arm in result["arms"].values():
        for scores in arm["scores"].values():
            for key, estimate in scores["estimates"].items():
                plain = key.removeprefix("table_")
                title = "share that reaches a threshold" if plain.startswith("share>=") else titles.get(plain, plain)
                found.setdefault(estimate["method"], []).append(title)
    for comparison in result["comparisons"]:
        for key in (key for key in ("mean", "prompt_sd", "worst") if comparison[key]):
            found.setdefault(comparison[key]["method"], []).append(f"difference of {titles[key]}")
    return [(", ".join(dict.fromkeys(figures)), method) for method, figures in found.items()]


COST_COLUMNS = (
    "Cells",
    "Computed now",
    "From the store",
    "Tokens computed",
    "Tokens avoided",
    "Seconds",
    "Seconds per cell",
    "Joules per cell",
)
"""What `cost_rows` lists of an arm."""


def cost_rows(result: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...]]]:
    """What scoring took and what it did not, an arm per line: (title, one text per column of COST_COLUMNS).

    Tokens avoided are those that a pass of its own for every option and every free answer would have read besides, by the
    cells computed now; joules are theirs as well. Seconds per cell are of all cells, whenever they were computed.
    """
    rows: list[tuple[str, tuple[str, ...]]] = []
    for arm in result["arms"].values():
        budget, asked = arm["budget"], arm["cells_asked"]
        read, alone = arm.get("tokens_read", 0), arm.get("tokens_alone", 0)
        tokens = (
            (thousands(read), f"{thousands(alone - read)} ({number(1 - read / alone)} %)")
            if read
            else (MISSING, MISSING)  # answers that were recorded elsewhere, or all in the store
        )
        bought = f"{thousands(budget['cells'])} of {thousands(budget['of'])}"
        counts = bought, thousands(asked), thousands(budget["cells"] - asked)
        each, joules = arm.get("seconds_K"), arm.get("joules")
        rest = (
            f"{arm['score_seconds']:,.1f}",
            f"{sum(each) / len(each):.3g}" if each else MISSING,
            f"{joules / asked:.3g}" if joules is not None and asked else MISSING,
        )
        rows.append((clean(arm["title"]), (*counts, *tokens, *rest)))
    return rows


def markdown_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Arms by main estimates, one table per run and scorer, with the sentence above and one line of provenance below.

    Raises DataError when a result contradicts itself.
    """
    lines = []
    for result in results:
        with complete(result):
            lines += _markdown(result)
    return "\n".join(lines)


def _markdown(result: Mapping[str, Any]) -> list[str]:
    check(result)
    main = main_scorer(result)
    judged = _plain(worth_by(result, "generation"))
    part, of = bought_in_part(result, main)
    bought = _plain(
        f"A part of the cells{of} was bought: worst, P10 and shares of prompts are then about exactly these prompts and examples."
    )
    lines = [_plain(" ".join([headline(result, main), *verdicts(result, main)])), ""]
    for scorer in scorers(result):
        arms = list(result["arms"].values())
        shares = _shares([arm["scores"][scorer] for arm in arms])
        free = scorer == "generation"
        columns = [
            "Mean",
            "SD over prompts",
            "Worst",
            "P10",
            *(f"Prompts {bar_title(key)}" for key in shares),
            *(["Invalid"] if free else []),
        ]
        keys = ["mean", "prompt_sd", "worst", "p10", *shares, *(["invalid"] if free else [])]
        lines.append("| " + " | ".join([SCORERS.get(scorer, _plain(scorer)).capitalize(), *columns]) + " |")
        lines.append("|" + " --- |" + " ---: |" * len(columns))
        for arm in arms:
            cells = [_cell(pick(arm["scores"][scorer]["estimates"], key)) for key in keys]
            lines.append("| " + " | ".join([_plain(arm["title"]), *cells]) + " |")
        lines.append("")
        lines += _differences(result, scorer)
        lines += _comparisons(result, scorer)
    lines.append(
        f"Percent, standard deviations in points with item noise removed; in brackets {levels(result, main).replace(NBSP, ' ')} intervals. "
        + " ".join(
            [
                *([bought] if part else []),
                *([f"Free answers are scored by {judged}; accuracies are means of these scores."] if judged else []),
                *([f"Paired differences: first minus second. {P_MEANS}"] if result["comparisons"] else []),
                *cautions(result),
            ]
        )
    )
    lines += [
        "",
        "| Cost of scoring | " + " | ".join(COST_COLUMNS) + " |",
        "|" + " --- |" + " ---: |" * len(COST_COLUMNS),
    ]
    lines += ["| " + " | ".join([_plain(title), *values]) + " |" for title, values in cost_rows(result)]
    lines += ["", _plain(provenance(result)), ""]
    return [line.replace("\u00a0", " ") for line in lines]


def _differences(result: Mapping[str, Any], scorer: str) -> list[str]:
    arms = list(result["arms"].values())
    rows = [row for row in difference_rows(arms, scorer) if not row.minor]
    if not rows:
        return []
    titles = [_plain(arm["title"]) for arm in arms]
    lines = [f"| {WHERE_FROM}, {SCORERS.get(scorer, _plain(scorer))} | " + " | ".join(titles) + " |"]
    lines.append("|" + " --- |" + " ---: |" * len(arms))
    for row in rows:
        title = row.title + (f", {row.unit}" if row.unit else "")
        lines.append("| " + " | ".join([title, *map(_told, row.figures)]) + " |")
    return [*lines, ""]


def _comparisons(result: Mapping[str, Any], scorer: str) -> list[str]:
    rows = comparison_rows(result, scorer)
    if not rows:
        return []
    titles = {clean(name): _plain(arm["title"]) for name, arm in result["arms"].items()}
    columns = ["Mean", "p (Holm)", "SD over prompts", "Worst", "First ahead on"]
    lines = [f"| Paired differences, {SCORERS.get(scorer, _plain(scorer))} | " + " | ".join(columns) + " |"]
    lines.append("|" + " --- |" + " ---: |" * len(columns))
    for row in rows:
        figures = map(_told, (row.mean, row.p, row.prompt_sd, row.worst))
        cells = [f"{titles[row.a]} \u2212 {titles[row.b]}", *figures, row.ahead_count]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _told(figure: Figure) -> str:
    return figure.value + (f" ({figure.bounds})" if figure.bounds else "")


def _cell(estimate: Mapping[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return MISSING
    bounds = interval(estimate)
    return number(estimate["value"]) + (f" ({bounds})" if bounds else "")


def _plain(text: str) -> str:
    """Text that Markdown and HTML inside it leave as it is, on one line."""
    line = " ".join(clean(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", line)
