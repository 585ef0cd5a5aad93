"""Estimates with intervals over prompts and examples: crossed two-way analysis of a complete K x N table.

The prompts and the examples are both samples: of ways to ask, and of things to ask. The standard error that treats the
K x N cells as independent is several times too small and is never printed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import stats as distributions
from scipy.special import expit

from paft.errors import ShapeError
from paft.evaluation import metrics
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix
from paft.evaluation.variance import (
    DRAWS,
    SEED,
    Cochran,
    Over,
    alike_rate,
    cochran_q,
    component_interval,
    decompose,
    mean_interval,
    pair_components,
    plausible_accuracies,
    s2_prompt_interval,
    satterthwaite,
    spread_corrected,
    squared_error,
)


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and how both were made. NaN bounds: no interval can be given."""

    name: str
    value: float
    low: float
    high: float
    level: float
    method: str
    prompts: int
    examples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN as None."""
        return {key: None if isinstance(v, float) and math.isnan(v) else v for key, v in asdict(self).items()}


def mean_estimate(
    values_KN: np.ndarray,
    level: float = 0.95,
    name: str = "mean",
    bounds: tuple[float, float] = (0.0, 1.0),
    *,
    over: Over = "both",
    clusters_N: Sequence[object] | None = None,
) -> Estimate:
    """Mean with its interval, by default over new prompts and new examples: see `squared_error` and `mean_interval`.

    clusters_N: what each example belongs to, when several stand on one passage; clusters are then drawn, not examples.
    bounds: the possible values. Below 0 they are those of a difference, whose interval is the t interval, cut to them. When
    every cell is the same, the interval is the exact binomial one for as many equal outcomes as there are examples (clusters;
    prompts, when only they are drawn), and another outcome as far away as the bounds allow.
    """
    squared, freedom = squared_error(values_KN, over, clusters_N)
    (k, n), value = values_KN.shape, float(values_KN.mean())
    if squared > 0:
        low, high = mean_interval(value, squared, freedom, level, bounds)
    else:
        units = k if over == "prompts" else n if clusters_N is None else len(set(clusters_N))
        half = max(value - bounds[0], bounds[1] - value) * alike_rate(units, level)
        low, high = max(bounds[0], value - half), min(bounds[1], value + half)
    shape = "t" if bounds[0] < 0 else "score interval"
    kind = f"two-way {shape}, new prompts and new examples"
    if over != "both":
        kind = f"{shape}, " + ("new examples, these prompts" if over == "examples" else "new prompts, these examples")
    if clusters_N is not None:
        kind += f" in {len(set(clusters_N))} clusters"
    return Estimate(name, value, low, high, level, kind, k, n)


MANY = 30
"""Prompts from which the table itself shows the shape of the lower tail; of fewer it has to be assumed."""


def _assumed(num_prompts: int) -> str:
    return ", taken to be normal" if num_prompts < MANY else ""


def prompt_sd(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Standard deviation of accuracy over new prompts, free of item noise: sqrt(max(0, s2_prompt)), F interval.

    A model that answers every prompt alike has 0 here, whereas the plain sd of its accuracies is about
    sqrt(noise / examples), which grows as the test set shrinks. The F interval takes accuracies to be normal over
    prompts; `prompt_freedom` widens it where they are not.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    low2, high2 = s2_prompt_interval(values_KN, level)
    high2 = min(high2, max(0.25, d.s2_prompt))  # accuracies cannot vary by more
    root = [math.sqrt(max(0.0, x)) for x in (d.s2_prompt, low2, high2)]
    method = f"debiased: variance component, F interval, new prompts{_assumed(k)}"
    return Estimate("prompt_sd", root[0], root[1], root[2], level, method, k, n)


def prompt_sd_of_pairs(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """`prompt_sd` of a table with cells missing, from the pairs of prompts that share examples (`pair_components`).

    The interval is that of `prompt_sd`, with the average number of shared examples; it is cautious, for it takes all
    pairs to share their noise. Needs scores missing at random: which cells were bought must not depend on what was found
    in others. Raises ShapeError when no prompts share 2 examples.
    """
    pairs = pair_components(values_KN)
    freedom = pairs.freedom, max(1.0, (len(values_KN) - 1) * (pairs.shared - 1))
    low2, high2 = component_interval(pairs.observed, pairs.noise, freedom, round(pairs.shared), level)
    high2 = min(high2, max(0.25, pairs.s2_prompt))
    value, low, high = (math.sqrt(max(0.0, x)) for x in (pairs.s2_prompt, low2, high2))
    method = (
        f"debiased: {pairs.pairs} pairs of prompts, {pairs.shared:.0f} shared examples each, F interval, new prompts"
    )
    return Estimate("prompt_sd", value, low, high, level, method, *values_KN.shape)


@dataclass(frozen=True)
class Components:
    """Where the variance of the scores comes from; print it for the whole picture.

    s2_prompt is not cut at 0, so that it may be averaged over tables. raw_sd^2 = s2_prompt + noise_floor^2. shares: of
    prompt, item and residual in the variance of a cell. equality: Cochran's test that all prompts are equally good.
    """

    s2_prompt: Estimate
    prompt_sd: Estimate
    raw_sd: float
    noise_floor: float
    s2_item: float
    s2_residual: float
    shares: dict[str, float]
    equality: Cochran

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        nested = {name: getattr(self, name).to_dict() for name in ("s2_prompt", "prompt_sd")}
        return {**asdict(self), **nested}

    def __str__(self) -> str:
        sd, s2 = self.prompt_sd, self.s2_prompt
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.shares.items())
        return (
            f"{sd.prompts} prompts x {sd.examples} examples\n"
            f"sd over prompts: {sd.value:.4f} [{sd.low:.4f}, {sd.high:.4f}]; raw {self.raw_sd:.4f}, "
            f"of item noise alone {self.noise_floor:.4f}\n"
            f"variance over prompts: {s2.value:.3g} [{s2.low:.3g}, {s2.high:.3g}]\n"
            f"variance of a cell: {shares}\n"
            f"all prompts equal: Q {self.equality.q:.2f}, {self.equality.freedom} df, p {self.equality.p:.3g}"
        )


def variance_components(values_KN: np.ndarray, level: float = 0.95) -> Components:
    """Variance decomposition of a complete table (Searle, Casella and McCulloch, ch. 4), with its F interval."""
    d = decompose(values_KN)
    low, high = s2_prompt_interval(values_KN, level)
    method = f"variance component, not cut at 0; F interval, new prompts{_assumed(d.prompts)}"
    return Components(
        Estimate("s2_prompt", d.s2_prompt, low, high, level, method, d.prompts, d.examples),
        prompt_sd(values_KN, level),
        raw_sd(values_KN),
        d.noise_floor,
        d.s2_item,
        d.s2_residual,
        d.shares,
        cochran_q(values_KN),
    )


def raw_sd(values_KN: np.ndarray) -> float:
    """Plain standard deviation (n-1) of the observed accuracies, item noise included: what papers print."""
    d = decompose(values_KN)
    return math.sqrt(d.ms_prompt / d.examples)


def binomial_bounds(values_KN: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """One-sided Clopper-Pearson lower and upper bounds of each prompt's accuracy, each at level alpha.

    Fractional scores, of ties and of answers partly right, are summed, and the sum rounded down (lower) or up (upper).
    """
    n = values_KN.shape[1]
    total_K = values_KN.sum(1)
    down_K, up_K = np.floor(total_K + 1e-9), np.ceil(total_K - 1e-9)
    with np.errstate(invalid="ignore"):
        low_K = np.where(down_K > 0, distributions.beta.ppf(alpha, down_K, n - down_K + 1), 0.0)
        high_K = np.where(up_K < n, distributions.beta.ppf(1 - alpha, up_K + 1, n - up_K), 1.0)
    return low_K, high_K


def worst_prompt(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Accuracy of the worst of these K prompts on new examples: spread-corrected minimum, exact interval.

    The raw minimum is biased low, the more so the smaller N: it is the minimum of noise as well. Interval: the smallest
    lower bound at alpha/2 (an error needs the one worst prompt) and the smallest upper bound at alpha/(2K) (any prompt
    may err). It holds for any K, N and shape, and is wide for that.
    """
    corrected_K = spread_corrected(values_KN)
    alpha = 1 - level
    low_K, _ = binomial_bounds(values_KN, alpha / 2)
    _, high_K = binomial_bounds(values_KN, alpha / (2 * len(values_KN)))
    value = float(np.clip(corrected_K.min(), low_K.min(), high_K.min()))
    return Estimate(
        "worst",
        value,
        float(low_K.min()),
        float(high_K.min()),
        level,
        "spread-corrected; exact bounds, these prompts, new examples",
        *values_KN.shape,
    )


def best_prompt(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Accuracy of the best of these K prompts on new examples; the mirror image of `worst_prompt`."""
    mirrored = worst_prompt(1 - values_KN, level)
    return Estimate(
        "best", 1 - mirrored.value, 1 - mirrored.high, 1 - mirrored.low, level, mirrored.method, *values_KN.shape
    )


def quantile_over_prompts(values_KN: np.ndarray, q: float, level: float = 0.95, name: str | None = None) -> Estimate:
    """The q-quantile of accuracy over new prompts, on new examples: type 7, of spread-corrected accuracies.

    Interval: quantiles of plausible accuracies (see `plausible_accuracies`) of prompts drawn anew, examples drawn
    anew; for fewer than MANY prompts the quantile of the distribution that they are taken to come from, and above it up to
    the prompt that the quantile lies below whatever the shape (an order statistic), since one broken prompt pulls the normal
    curve down. Resampling the table itself would count item noise twice, once in the table and once in the resample.
    """
    corrected_K = np.sort(spread_corrected(values_KN))
    value = float(np.quantile(corrected_K, q))
    low, high = _over_new_prompts(
        values_KN, level, value, lambda accuracy_RK: np.quantile(accuracy_RK, q, axis=1), np.array([q])
    )
    above = int(distributions.binom.isf(0.5 - level / 2, len(corrected_K), q))
    if above < len(corrected_K) < MANY:
        high = max(high, float(corrected_K[above]))
    return Estimate(
        name or f"p{round(100 * q)}",
        value,
        low,
        high,
        level,
        f"spread-corrected quantile; {_shape(values_KN)}, new prompts and new examples",
        *values_KN.shape,
    )


def cvar_over_prompts(
    values_KN: np.ndarray, alpha: float = 0.1, level: float = 0.95, name: str | None = None
) -> Estimate:
    """Mean accuracy over the worst share alpha of new prompts, on new examples: `metrics.cvar` of spread-corrected ones.

    Steadier than the worst prompt, and does not fall as prompts are added. Interval as of `quantile_over_prompts`, wider
    for a tail of few prompts; below MANY prompts it rests on a smooth shape and does not foresee broken prompts of which none
    was tried (`untried_share`). With fewer than 1 / alpha prompts the value is the minimum, which stands for the tail but does
    not reach its mean.
    """
    value = metrics.cvar(spread_corrected(values_KN), alpha)
    low, high = _over_new_prompts(
        values_KN,
        level,
        value,
        lambda accuracy_RK: metrics.lowest_mean(accuracy_RK, alpha),
        alpha * (np.arange(50) + 0.5) / 50,
        tail=alpha,
    )
    return Estimate(
        name or f"cvar{round(100 * alpha)}",
        value,
        low,
        high,
        level,
        f"spread-corrected mean of the lowest; {_shape(values_KN)}, new prompts and new examples",
        *values_KN.shape,
    )


def _shape(values_KN: np.ndarray) -> str:
    return "tail assumed, normal to exponential logits" if len(values_KN) < MANY else "plausible accuracies"


def _over_new_prompts(
    values_KN: np.ndarray,
    level: float,
    value: float,
    reduce: Callable[[np.ndarray], np.ndarray],
    quantiles_Q: np.ndarray,
    tail: float | None = None,
) -> tuple[float, float]:
    """Interval of a feature of the distribution of accuracy over new prompts, on new examples.

    reduce: accuracies (draws x prompts) to the feature. quantiles_Q: whose mean, in a known distribution, is the feature.
    A handful of prompts does not reach far into the tail, and its shape is assumed: normal logits for the upper end; for the
    lower end, where they reach lower, those of a negative exponential of the same mean and sd.
    tail: share of prompts that the feature is the mean of. The tail of a resample lies inside that of the sample, and
    this one inside the population's by about as much: draws are moved back by both steps. Few prompts in the tail leave
    its own spread open: draws are widened by the ratio of t to normal quantiles.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    if d.ms_prompt == d.ms_item == 0:  # all cells equal: every feature is the mean
        mean = mean_estimate(values_KN, level)
        return mean.low, mean.high
    generator = np.random.default_rng(SEED)
    accuracy_RK, centre_R1, sd_R1 = plausible_accuracies(values_KN, generator)
    item_sd = math.sqrt(max(0.0, d.ms_item - d.ms_residual) / (k * n))
    if k < MANY:
        shift_R, normal_Q = item_sd * generator.standard_normal(DRAWS), distributions.norm.ppf(quantiles_Q)
        low_R, high_R = (
            expit(centre_R1 + shape_Q * sd_R1).mean(1) + shift_R
            for shape_Q in (np.minimum(normal_Q, 1 + np.log(quantiles_Q)), normal_Q)
        )
        low, _ = _percentiles(np.clip(low_R, 0, 1), level, value)
        _, high = _percentiles(np.clip(high_R, 0, 1), level, value)
        return low, high
    chosen_RK = generator.integers(k, size=accuracy_RK.shape)
    feature_R = reduce(np.take_along_axis(accuracy_RK, chosen_RK, 1))
    if tail is not None:
        centre, freedom = feature_R.mean(), max(1, math.ceil(tail * k - 1e-9) - 1)
        wider = distributions.t.ppf(0.5 + level / 2, freedom) / distributions.norm.ppf(0.5 + level / 2)
        feature_R = 2 * reduce(accuracy_RK).mean() - centre + wider * (feature_R - centre)
    return _percentiles(np.clip(feature_R + item_sd * generator.standard_normal(DRAWS), 0, 1), level, value)


def _percentiles(drawn_R: np.ndarray, level: float, value: float) -> tuple[float, float]:
    """Central interval of draws, stretched to hold the point estimate."""
    low, high = np.quantile(drawn_R, [0.5 - level / 2, 0.5 + level / 2])
    return min(float(low), value), max(float(high), value)


def share_above(values_KN: np.ndarray, bar: float, level: float = 0.95) -> Estimate:
    """Share of prompts whose accuracy on these examples reaches `bar` (the paper's "Top"; the bar itself counts).

    Decided in counts; exact binomial interval over new prompts.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    share = metrics.share_reaching(values_KN, bar)
    interval = distributions.binomtest(round(share * k), k).proportion_ci(level, "exact")
    return Estimate(
        f"share>={bar:g}",
        share,
        float(interval.low),
        float(interval.high),
        level,
        "exact binomial over new prompts, these examples",
        k,
        n,
    )


def consistency(matrix: ScoreMatrix, level: float = 0.95) -> Estimate:
    """Chance that two prompts get the same answer to one example, mean over examples.

    Self-pairs do not count, and an unparsable answer agrees with nothing, not even with another one. Interval: new
    prompts and new examples, see `jackknifed`. Raises ShapeError as `decompose` does.
    """
    return _of_pairs("consistency", metrics.matches(_answers(matrix)), level)


def prompt_sensitivity(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Mean |difference| of the scores of two prompts on one example (`metrics.pss`), with the interval of `consistency`."""
    decompose(values_KN)
    return _of_pairs("pss", metrics.distances(values_KN), level)


def kappa(matrix: ScoreMatrix, level: float = 0.95) -> Estimate:
    """Agreement of prompts beyond chance (`metrics.fleiss_kappa`), with the interval of `consistency`.

    NaN when all answers are one label; bounds are NaN when leaving one prompt or example out makes them so.
    """
    answers_KN = _answers(matrix)
    k, n = answers_KN.shape
    full = metrics.fleiss_kappa(answers_KN)
    labels = np.unique(answers_KN)
    counts_CK, counts_CN = (np.array([(answers_KN == c).sum(axis) for c in labels]) for axis in (1, 0))

    def beyond_chance(observed: np.ndarray, counts: np.ndarray) -> np.ndarray:
        left = counts.sum(1, keepdims=True) - counts
        expected = ((left / left.sum(0)) ** 2).sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)

    without_K, without_N = _pairs_without(metrics.matches(answers_KN, invalid_matches=True))
    by_prompt_K = beyond_chance(without_K, counts_CK) if without_K is not None else None
    scale = 1 / (1 - full.expected) if full.expected < 1 else math.nan
    return jackknifed("kappa", full.value, by_prompt_K, beyond_chance(without_N, counts_CN), (k, n), level, -1, scale)


def worst_of(values_KN: np.ndarray, size: int, level: float = 0.95) -> Estimate:
    """Expected lowest score of an example among `size` random prompts (`metrics.worst_of`), interval of `consistency`.

    The chance, for right and wrong, to be right under all of them. It does not depend on the number of prompts tried.
    """
    decompose(values_KN)
    k, n = values_KN.shape
    per_item_N = metrics.worst_of(values_KN, size).values_N
    value = float(per_item_N.mean())
    without_K = None
    if k > size:
        order_KN = np.argsort(values_KN, axis=0, kind="stable")
        sorted_KN = np.take_along_axis(values_KN, order_KN, 0)
        weight_K1 = metrics.lowest_weights(np.array([k - 1]), k - 1, size)
        zero_1N = np.zeros((1, n))
        below_KN = np.concatenate([zero_1N, (weight_K1 * sorted_KN[:-1]).cumsum(0)])
        above_KN = np.concatenate([(weight_K1 * sorted_KN[1:])[::-1].cumsum(0)[::-1], zero_1N])
        without_KN = np.empty((k, n))
        np.put_along_axis(without_KN, order_KN, below_KN + above_KN, 0)
        without_K = without_KN.mean(1)
    return jackknifed(f"W@{size}", value, without_K, (per_item_N.sum() - per_item_N) / (n - 1), (k, n), level)


def instance_worst(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Share of new examples that are right under every one of these K prompts; exact binomial interval.

    Not above the accuracy of the worst prompt, which may err on other examples than the rest. Fractional scores of ties
    are summed as in `worst_prompt`.
    """
    decompose(values_KN)
    per_item_N = metrics.instance_worst(values_KN).values_N
    low_1, high_1 = binomial_bounds(per_item_N[None], 0.5 - level / 2)
    return Estimate(
        "instance_worst",
        float(per_item_N.mean()),
        float(low_1[0]),
        float(high_1[0]),
        level,
        "exact binomial over new examples, these prompts",
        *values_KN.shape,
    )


def flip_rate(matrix: ScoreMatrix, reference: int = 0, level: float = 0.95) -> Estimate:
    """Chance that a new prompt gets another answer to a new example than the reference prompt (row) got.

    `metrics.flips` splits it by right and wrong. Needs 3 prompts or more, the reference among them.
    """
    answers_KN = _answers(matrix)
    changed_KN = (np.delete(answers_KN, reference, 0) != answers_KN[reference]).astype(float)
    found = mean_estimate(changed_KN, level, "flips")
    return replace(found, method=f"{found.method}; against prompt {matrix.prompt_ids[reference]}")


def _answers(matrix: ScoreMatrix) -> np.ndarray:
    k, n = matrix.answers_KN.shape
    if min(k, n) < 2 or (matrix.answers_KN == UNSCORED).any():
        raise ShapeError(f"answers of shape {(k, n)}; expected at least 2 prompts x 2 examples, all scored")
    return matrix.answers_KN


def _of_pairs(name: str, totals_KN: np.ndarray, level: float) -> Estimate:
    """Mean over examples and pairs of prompts, from the sum over all other prompts in each cell."""
    k, n = totals_KN.shape
    return jackknifed(name, float(totals_KN.sum()) / (k * (k - 1) * n), *_pairs_without(totals_KN), (k, n), level)


def _pairs_without(totals_KN: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """The mean of `_of_pairs` without each prompt (None where two are all there are) and without each example."""
    k, n = totals_KN.shape
    sum_K, sum_N = totals_KN.sum(1), totals_KN.sum(0)
    without_K = (sum_K.sum() - 2 * sum_K) / ((k - 1) * (k - 2) * n) if k > 2 else None
    return without_K, (sum_N.sum() - sum_N) / (k * (k - 1) * (n - 1))


def jackknifed(
    name: str,
    value: float,
    without_K: np.ndarray | None,
    without_N: np.ndarray,
    shape: tuple[int, int],
    level: float,
    least: float = 0.0,
    scale: float = 1.0,
) -> Estimate:
    """A t interval for new prompts and new examples from the values without each prompt and without each example.

    It is centred on the value freed of its bias by the jackknife, which is none for means over pairs, and holds the value.

    The variances of both are added, which counts what they share twice: a little wide. Where prompts cannot be left out
    (None) it is of new examples only. When nothing varies, it is that of N examples alike, times scale. Where leaving one out leaves
    nothing to tell the value from (NaN), there is none: NaN.
    """
    k, n = shape
    parts, centre = [], value
    for without in (without_N, without_K):
        if without is not None:
            freedom = len(without) - 1
            parts.append((freedom * float(without.var()), freedom))
            centre += freedom * (value - float(without.mean()))
    variance = sum(part for part, _ in parts)
    if math.isnan(variance):
        half = math.nan
    elif variance < 1e-24:  # rounding
        half = scale * alike_rate(n, level)
    else:
        half = float(distributions.t.ppf(0.5 + level / 2, satterthwaite(variance, parts))) * math.sqrt(variance)
    low, high = np.clip([np.minimum(value, centre - half), np.maximum(value, centre + half)], least, 1).tolist()
    method = (
        "jackknife, new examples, these prompts" if without_K is None else "jackknife, new prompts and new examples"
    )
    return Estimate(name, value, low, high, level, method, k, n)


@dataclass(frozen=True)
class Comparison:
    """Model A against model B on the same prompts and examples. Differences are A - B, in accuracy.

    ahead: share of prompts on which A is strictly better. ratio of variances is not printed: both may be near zero.
    prompt_sd and worst are None where a part of the cells cannot tell. cells: how many both hold; prompts without any are not counted.
    """

    mean: Estimate
    prompt_sd: Estimate | None
    worst: Estimate | None
    ahead: float
    cells: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        parts = {"mean": self.mean, "prompt_sd": self.prompt_sd, "worst": self.worst}
        told = {name: part.to_dict() if part else None for name, part in parts.items()}
        return {**told, "ahead": self.ahead, "cells": self.cells}


def compare(
    a_KN: np.ndarray, b_KN: np.ndarray, level: float = 0.95, clusters_N: Sequence[object] | None = None
) -> Comparison:
    """Paired differences of two complete tables over the same prompts (rows) and examples (columns).

    mean: two-way t interval of the differences; new prompts, new examples (new clusters of them, see `mean_estimate`).
    prompt_sd: the two F intervals combined, (A - B) -+ root of the sum of squared distances to the bounds in question
    (MOVER: Zou and Donner, Statistics in Medicine 27, 2008); new prompts, new examples.
    worst: from `plausible_accuracies` of A and of B; these prompts, new examples.
    The last two treat the errors of A and B as independent, apart from the examples' difficulty: models that err alike
    get too wide an interval, not too narrow a one. Raises ShapeError when the tables do not match.
    """
    if a_KN.shape != b_KN.shape:
        raise ShapeError(f"tables of shapes {a_KN.shape} and {b_KN.shape} are not paired; score both on the same cells")
    difference = decompose(a_KN - b_KN)
    k, n = difference.prompts, difference.examples

    generator = np.random.default_rng(SEED)
    worst_a_R, worst_b_R = (plausible_accuracies(table_KN, generator)[0].min(1) for table_KN in (a_KN, b_KN))
    item_sd = math.sqrt(max(0.0, difference.ms_item - difference.ms_residual) / (k * n))
    worst_R = np.clip(worst_a_R - worst_b_R + item_sd * generator.standard_normal(DRAWS), -1, 1)
    worst = float(spread_corrected(a_KN).min() - spread_corrected(b_KN).min())
    low, high = _percentiles(worst_R, level, worst)
    return Comparison(
        mean_estimate(a_KN - b_KN, level, "mean difference", (-1.0, 1.0), clusters_N=clusters_N),
        sd_difference(prompt_sd(a_KN, level), prompt_sd(b_KN, level)),
        Estimate(
            "worst difference", worst, low, high, level, "spread-corrected; plausible accuracies, these prompts", k, n
        ),
        float((a_KN.mean(1) > b_KN.mean(1) + 1e-9).mean()),
        k * n,
    )


def sd_difference(a: Estimate, b: Estimate) -> Estimate:
    """Difference of two standard deviations over prompts, from their F intervals."""
    sd = a.value - b.value
    low = sd - math.hypot(a.value - a.low, b.high - b.value)
    high = sd + math.hypot(a.high - a.value, b.value - b.low)
    method = "debiased; MOVER of F intervals, new prompts"
    return Estimate("prompt_sd difference", sd, low, high, a.level, method, a.prompts, a.examples)


@dataclass(frozen=True)
class Lag:
    """How far a prompt's accuracy lies from that of its siblings: difference on the same items, and its standard error."""

    accuracy: float
    siblings: float
    se: float

    @property
    def gap(self) -> float:
        """Accuracy minus that of the siblings."""
        return self.accuracy - self.siblings


def lags(values_KN: np.ndarray, families_K: Sequence[str]) -> list[Lag]:
    """Of every prompt, its accuracy against the middle half (by accuracy) of the other prompts of its family; of all others where
    the family has fewer than five.

    The middle half stands for the median, which a few broken siblings do not move, and is paired item by item, so that items
    which are hard under every prompt do not count.
    """
    accuracy_K, families = values_KN.mean(1), np.asarray(families_K)
    found = []
    for k in range(len(values_KN)):
        others = np.flatnonzero((families == families[k]) & (np.arange(len(families)) != k))
        if len(others) < 5:
            others = np.flatnonzero(np.arange(len(families)) != k)
        ordered = others[np.argsort(accuracy_K[others], kind="stable")]
        middle = ordered[len(ordered) // 4 : max(len(ordered) - len(ordered) // 4, len(ordered) // 4 + 1)]
        if not len(middle):
            found.append(Lag(float(accuracy_K[k]), float(accuracy_K[k]), 0.0))
            continue
        difference_N = values_KN[k] - values_KN[middle].mean(0)
        se = float(difference_N.std(ddof=1) / np.sqrt(len(difference_N)))
        found.append(Lag(float(accuracy_K[k]), float(values_KN[middle].mean()), se))
    return found


def prompt_sd_value(values_KN: np.ndarray) -> float:
    """Debiased standard deviation over prompts, without its interval."""
    return math.sqrt(max(0.0, decompose(values_KN).s2_prompt))


def all_estimates(
    matrix: ScoreMatrix, level: float, thresholds: list[float], reference: int | None = None
) -> dict[str, Estimate]:
    """Every estimate of the report for one table, by name. reference: the prompt (row) against which flips are counted."""
    values = matrix.values_KN
    found = [
        mean_estimate(values, level, clusters_N=matrix.groups_N),
        prompt_sd(values, level),
        worst_prompt(values, level),
        quantile_over_prompts(values, 0.1, level),
        quantile_over_prompts(values, 0.5, level, "median"),
        cvar_over_prompts(values, 0.1, level),
        best_prompt(values, level),
        *(share_above(values, bar, level) for bar in thresholds),
        consistency(matrix, level),
        kappa(matrix, level),
        prompt_sensitivity(values, level),
        instance_worst(values, level),
        *([worst_of(values, 5, level)] if len(values) > 5 else []),  # of 5 it is instance_worst
        *([flip_rate(matrix, reference, level)] if reference is not None and len(values) > 2 else []),
        mean_estimate((matrix.answers_KN == INVALID).astype(float), level, "invalid", clusters_N=matrix.groups_N),
    ]
    return {estimate.name: estimate for estimate in found}
