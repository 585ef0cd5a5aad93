"""The rows of the page's tables, and the Markdown table."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft.reports.checks import check, complete
from paft.reports.wording import (
    SCORERS,
    bar_title,
    bars,
    cautions,
    clean,
    headline,
    interval,
    main_scorer,
    number,
    provenance,
    scorers,
    signed,
    verdicts,
)


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


def estimate_rows(arms: Sequence[Mapping[str, Any]], scorer: str) -> list[Row]:
    """Every estimate of one scorer, a row each, an arm per column."""
    scores = [arm["scores"][scorer] for arm in arms]

    def estimated(title: str, key: str, unit: str = "%") -> Row:
        return Row(title, unit, tuple(_figure(s["estimates"][key]) for s in scores))

    def average(title: str, key: str, unit: str, write: Callable[[float], str]) -> Row:
        return Row(title, unit, tuple(Figure(write(sum(s[key]) / len(s[key]))) for s in scores), minor=True)

    rows = [
        estimated("Mean accuracy", "mean"),
        estimated("SD over prompts, item noise removed", "prompt_sd", "points"),
        Row(
            "Raw SD, item noise included",
            "points",
            tuple(Figure(number(s["raw_sd"])) for s in scores),
            minor=True,
        ),
        estimated("Worst prompt", "worst"),
        estimated("Tenth percentile, P10", "p10"),
        estimated("Median prompt", "median"),
        estimated("Best prompt", "best"),
        *(estimated(f"Share of prompts at {bar_title(key)}", key, "") for key in bars(scores[0]["estimates"])),
        estimated("Consistency: same answer to two prompts", "consistency"),
    ]
    if scorer == "generation":
        rows += [
            estimated("Answers that name no choice, or several", "invalid"),
            average("Tokens per answer", "tokens_K", "", lambda value: f"{value:.1f}"),
            average("Answers ended by the model itself", "ended_K", "%", number),
        ]
    return rows


def _figure(estimate: Mapping[str, Any]) -> Figure:
    return Figure(number(estimate["value"]), interval(estimate), estimate["method"])


@dataclass(frozen=True)
class Compared:
    """A line of the table of comparisons: differences a - b in points, and on how many prompts a is ahead."""

    a: str
    b: str
    scorer: str
    mean: Figure
    prompt_sd: Figure
    worst: Figure
    ahead: str
    ahead_count: str


def comparison_rows(result: Mapping[str, Any], scorer: str) -> list[Compared]:
    """Every pair of arms by one scorer, the last arm's pairs first."""
    rows = []
    for comparison in reversed(result["comparisons"]):
        if comparison["scorer"] == scorer:
            mean, sd, worst = (
                Figure(signed(part["value"]), interval(part, True), part["method"])
                for part in (comparison[key] for key in ("mean", "prompt_sd", "worst"))
            )
            k = comparison["mean"]["prompts"]
            count = f"{round(comparison['ahead'] * k)} of {k}"
            rows.append(
                Compared(
                    comparison["a"], comparison["b"], scorer, mean, sd, worst, number(comparison["ahead"], 0), count
                )
            )
    return rows


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
    }
    found: dict[str, list[str]] = {}
    for arm in result["arms"].values():
        for scores in arm["scores"].values():
            for key, estimate in scores["estimates"].items():
                title = "share that reaches a threshold" if key.startswith("share>=") else titles.get(key, key)
                found.setdefault(estimate["method"], []).append(title)
    for comparison in result["comparisons"]:
        for key in ("mean", "prompt_sd", "worst"):
            found.setdefault(comparison[key]["method"], []).append(f"difference of {titles[key]}")
    return [(", ".join(dict.fromkeys(figures)), method) for method, figures in found.items()]


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
    lines = [_plain(" ".join([headline(result, main), *verdicts(result, main)])), ""]
    for scorer in scorers(result):
        arms = list(result["arms"].values())
        shares = bars(arms[0]["scores"][scorer]["estimates"])
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
            cells = [_cell(arm["scores"][scorer]["estimates"][key]) for key in keys]
            lines.append("| " + " | ".join([_plain(arm["title"]), *cells]) + " |")
        lines.append("")
    level = next(iter(result["arms"].values()))["scores"][main]["estimates"]["mean"]["level"]
    lines.append(
        f"Percent, standard deviations in points with item noise removed; in brackets {100 * level:g} % intervals. "
        + " ".join(cautions(result))
    )
    lines += ["", _plain(provenance(result)), ""]
    return [line.replace("\u00a0", " ") for line in lines]


def _cell(estimate: Mapping[str, Any]) -> str:
    bounds = interval(estimate)
    return number(estimate["value"]) + (f" ({bounds})" if bounds else "")


def _plain(text: str) -> str:
    """Text that Markdown and HTML inside it leave as it is, on one line."""
    line = " ".join(clean(text).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", line)
