"""Does a results file agree with itself? Asked before anything of it is printed."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paft.errors import DataError
from paft.evaluation.comparisons import holm

CLOSE = 1e-6
"""Largest difference of two figures that should be one; far below what is printed, far above what JSON loses."""


@contextlib.contextmanager
def complete(result: Mapping[str, Any]) -> Iterator[None]:
    """Turn the KeyError of a results file that lacks something into a DataError that names it."""
    try:
        yield
    except KeyError as error:
        name = result.get("config", {}).get("name", "?")
        raise DataError(
            f"results {name!r}: {error.args[0]!r} is missing; made by another version of paft? score the run again"
        ) from None


def check(result: Mapping[str, Any]) -> None:
    """Raise DataError naming the figure when estimates do not follow from the per-prompt values beside them."""
    name = result["config"]["name"]
    if not result["arms"]:
        raise DataError(f"results {name!r}: no arm was scored; run the stage `score` first")
    num_prompts = len(result["prompts"]["test"])
    for arm, held in result["arms"].items():
        if not held["scores"]:
            raise DataError(f"results {name!r}, arm {arm!r}: no scorer; score the run again")
        for scorer, scores in held["scores"].items():
            _check_scores(f"results {name!r}, arm {arm!r}, {scorer}", scores, num_prompts)
    for comparison in result["comparisons"]:
        _check_comparison(
            f"results {name!r}, comparison {comparison['a']!r} - {comparison['b']!r}", comparison, result["arms"]
        )
    _check_p_values(f"results {name!r}, comparisons", [each for each in result["comparisons"] if "p" in each])


def _check_scores(where: str, scores: Mapping[str, Any], num_prompts: int) -> None:
    for key in ("accuracy_K", "invalid_K", "ended_K", "tokens_K"):
        values_K, most = scores[key], math.inf if key == "tokens_K" else 1.0
        if len(values_K) != num_prompts:
            raise DataError(
                f"{where}: {key} has {len(values_K)} values, the run lists {num_prompts} test prompts; score the run again"
            )
        for k, value in enumerate(values_K):
            if value is None or not 0.0 <= value <= most:
                raise DataError(
                    f"{where}: {key}[{k}] is {value!r}; expected a number from 0 to {most:g}; score the run again"
                )
    accuracy_K, estimates = scores["accuracy_K"], scores["estimates"]
    for key, estimate in estimates.items():
        _check_order(where, {f"{key}.low": estimate["low"], key: estimate["value"], f"{key}.high": estimate["high"]})
    mean = estimates["mean"]["value"]
    _check_order(
        where, {"lowest of accuracy_K": min(accuracy_K), "mean": mean, "highest of accuracy_K": max(accuracy_K)}
    )
    if scores["raw_sd"] is None:  # a part of the cells: accuracy_K comes from a model
        _check_order(where, {key: estimates[key]["value"] for key in ("table_p10", "table_median")})
        return
    _check_order(where, {key: estimates[key]["value"] for key in ("worst", "p10", "median", "best")})
    _check_equal(where, "mean", mean, sum(accuracy_K) / num_prompts, "the mean of accuracy_K")
    _check_equal(
        where, "invalid", estimates["invalid"]["value"], sum(scores["invalid_K"]) / num_prompts, "the mean of invalid_K"
    )
    _check_equal(where, "raw_sd", scores["raw_sd"], sample_sd(accuracy_K), "the sd of accuracy_K")
    if scores["raw_sd"] < estimates["prompt_sd"]["value"] - CLOSE:
        raise DataError(
            f"{where}: prompt_sd is {estimates['prompt_sd']['value']:.6f}, more than raw_sd {scores['raw_sd']:.6f} that still holds "
            "the item noise; the file contradicts itself, score the run again"
        )
    for key, estimate in estimates.items():
        if key.startswith("share>="):
            # the bar is decided in sums of scores, so one that rounding moves may fall on either side
            counts_K = [accuracy * estimate["examples"] for accuracy in accuracy_K]
            needed = float(key.removeprefix("share>=")) * estimate["examples"]
            surely, perhaps = (
                sum(count >= needed + slack for count in counts_K) / num_prompts for slack in (CLOSE, -CLOSE)
            )
            _check_order(
                where,
                {f"share of accuracy_K, {key}": surely, key: estimate["value"], f"highest such share, {key}": perhaps},
            )
    if differences := scores.get("differences"):
        _check_differences(where, differences, scores)


def _check_differences(where: str, differences: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    components, worst, flips = (differences[key] for key in ("components", "worst", "flips"))
    observed = max(0.0, components["s2_prompt"]["value"] + components["noise_floor"] ** 2)
    _check_equal(where, "raw_sd", scores["raw_sd"], math.sqrt(observed), "that of the components")
    if sum(components["shares"].values()):
        _check_equal(
            where, "the sum of the shares of variance", sum(components["shares"].values()), 1.0, "that of a whole"
        )
    if worst:
        _check_equal(
            where, "the worst prompt as observed", worst["raw"], min(scores["accuracy_K"]), "the lowest of accuracy_K"
        )
    if flips and (changed := scores["estimates"].get("flips")):
        _check_equal(where, "flips", changed["value"], sum(flips.values()), "the sum of its kinds")


def _check_p_values(where: str, comparisons: Sequence[Mapping[str, Any]]) -> None:
    for scorer in {each["scorer"] for each in comparisons}:
        family = [each for each in comparisons if each["scorer"] == scorer]
        for each, adjusted in zip(family, holm([each["p"] for each in family]), strict=True):
            _check_equal(f"{where}, {scorer}", "p_holm", each["p_holm"], adjusted, "Holm's of the p values")


def _check_comparison(where: str, comparison: Mapping[str, Any], arms: Mapping[str, Any]) -> None:
    scorer = comparison["scorer"]
    a, b = (arms[comparison[side]]["scores"][scorer] for side in ("a", "b"))
    where = f"{where}, {scorer}"
    for key in (key for key in ("mean", "prompt_sd", "worst") if comparison[key] is not None):
        _check_order(where, {f"{key}.low": comparison[key]["low"], f"{key}.high": comparison[key]["high"]})
    if a["raw_sd"] is None or b["raw_sd"] is None:
        return
    for key in ("mean", "prompt_sd"):
        difference = a["estimates"][key]["value"] - b["estimates"][key]["value"]
        _check_equal(where, key, comparison[key]["value"], difference, "the difference of both estimates")
    ahead = sum(x > y + 1e-9 for x, y in zip(a["accuracy_K"], b["accuracy_K"], strict=True)) / len(a["accuracy_K"])
    _check_equal(where, "ahead", comparison["ahead"], ahead, "the share of prompts in accuracy_K")


def _check_order(where: str, figures: Mapping[str, float | None]) -> None:
    """The figures rise in the given order; None (no bound) is passed over."""
    known = [(name, value) for name, value in figures.items() if value is not None]
    for (lower, low), (upper, high) in itertools.pairwise(known):
        if not low <= high + CLOSE:
            raise DataError(
                f"{where}: {lower} {low:.6f} is above {upper} {high:.6f}; the file contradicts itself, score the run again"
            )


def _check_equal(where: str, name: str, given: float, computed: float, how: str) -> None:
    if not abs(given - computed) <= CLOSE:
        raise DataError(
            f"{where}: {name} is {given:.6f}, {how} is {computed:.6f}; the file contradicts itself, score the run again"
        )


def sample_sd(values: Sequence[float]) -> float:
    """Standard deviation (n-1); 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((x - mean) ** 2 for x in values) / (len(values) - 1))
