"""Several tables at once: every pair of models, seen against unseen prompts, several training seeds.

Two models are compared by `paft.evaluation.stats.compare`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions

from paft.errors import ShapeError
from paft.evaluation.few import compare_few, sampled
from paft.evaluation.matrix import ScoreMatrix
from paft.evaluation.stats import Comparison, Estimate, compare, jackknifed, mean_estimate, prompt_sd
from paft.evaluation.variance import decompose, mean_interval, satterthwaite, squared_error


@dataclass(frozen=True)
class Pairwise:
    """One pair of several models, with the two-sided p value of the difference of means, and that after Holm."""

    a: str
    b: str
    comparison: Comparison
    p: float
    p_holm: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"a": self.a, "b": self.b, **self.comparison.to_dict(), "p": self.p, "p_holm": self.p_holm}


def pairwise(
    tables: Mapping[str, np.ndarray],
    level: float = 0.95,
    clusters_N: Sequence[object] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
) -> list[Pairwise]:
    """Every model against every one before it, or only these pairs (a, b), on the same prompts and examples.

    p: two-way t test of the paired differences (new prompts, new examples), as the interval of `compare`. p_holm: the
    same, kept for all pairs together (`holm`); intervals are each at `level`, for one pair.
    clusters_N: see `stats.mean_estimate`. Tables with holes (NaN) are compared on the cells that both hold (`compare_few`), without
    clusters. Raises ShapeError when tables do not match.
    """
    if pairs is None:
        pairs = [(later, earlier) for earlier, later in itertools.combinations(tables, 2)]
    comparisons = [
        compare_few(tables[a], tables[b], level)
        if np.isnan(tables[a] + tables[b]).any()
        else compare(tables[a], tables[b], level, clusters_N)
        for a, b in pairs
    ]
    p_values = [mean_p(tables[a] - tables[b], clusters_N) for a, b in pairs]
    return [
        Pairwise(a, b, comparison, p, adjusted)
        for (a, b), comparison, p, adjusted in zip(pairs, comparisons, p_values, holm(p_values), strict=True)
    ]


def mean_p(difference_KN: np.ndarray, clusters_N: Sequence[object] | None = None) -> float:
    """Two-sided p value that the mean over new prompts and new examples is 0; of differences that are the same throughout the one that
    belongs to the interval of `mean_estimate`, 1 for those of 0."""
    if np.isnan(difference_KN).any():
        difference_KN = difference_KN[~np.isnan(difference_KN).all(1)]  # as `compare_few` counts prompts
        clusters_N = None  # as there, too: of all examples, not of those seen
        squared, freedom = sampled(difference_KN).error_anew
    else:
        squared, freedom = squared_error(difference_KN, "both", clusters_N)
    mean = abs(float(np.nanmean(difference_KN)))
    if squared == 0 or np.ptp(difference_KN[~np.isnan(difference_KN)]) < 1e-9:
        units = len(set(clusters_N)) if clusters_N is not None else int((~np.isnan(difference_KN)).any(0).sum())
        return float(min(1.0, 2 * (1 + mean) ** -units))
    return 1.0 if math.isnan(squared) else float(2 * distributions.t.sf(mean / math.sqrt(squared), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """P values adjusted so that any false rejection at all has at most the chance of the bar.

    Holm, Scandinavian Journal of Statistics 6, 1979.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(np.sort(p_values) * np.arange(len(p_values), 0, -1))
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1, stepped)
    return adjusted.tolist()


def gap(
    seen_KN: np.ndarray, unseen_KN: np.ndarray, level: float = 0.95, clusters_N: Sequence[object] | None = None
) -> Estimate:
    """Mean over one set of prompts (those of training, say) minus mean over another, on the same examples: t interval, prompts of
    both sets and examples drawn anew.

    Squared error: var(contrast of an example) / N + var(accuracies of each set) / K of that set, less the residual that
    both count, and not below either part. clusters_N: as in `stats.mean_estimate`. Raises ShapeError when the examples do not match.
    """
    if seen_KN.shape[1:] != unseen_KN.shape[1:]:
        raise ShapeError(
            f"tables of shapes {seen_KN.shape} and {unseen_KN.shape}; expected the same examples, score both on them"
        )
    tables = seen_KN, unseen_KN
    found = [decompose(table_KN) for table_KN in tables]
    n = seen_KN.shape[1]
    freedoms = [d.prompts - 1 for d in found]
    contrast_1N = (seen_KN.mean(0) - unseen_KN.mean(0))[None]
    item, item_freedom = squared_error(np.repeat(contrast_1N, 2, axis=0), "examples", clusters_N)
    prompts = [d.ms_prompt / n / d.prompts for d in found]
    ms_residual = sum(d.ms_residual * f for d, f in zip(found, freedoms, strict=True)) / sum(freedoms)
    residual = ms_residual / n * sum(1 / d.prompts for d in found)
    squared = max(item + sum(prompts) - residual, item, sum(prompts))
    parts = (item, item_freedom), *zip(prompts, freedoms, strict=True), (residual, sum(freedoms) * (n - 1))
    value = found[0].mean - found[1].mean
    half = float(distributions.t.ppf(0.5 + level / 2, satterthwaite(squared, parts))) * math.sqrt(squared)
    if squared == 0:
        half = mean_estimate(contrast_1N.repeat(2, axis=0), level, bounds=(-1, 1), clusters_N=clusters_N).high - value
    method = (
        f"two-way t, {found[0].prompts} prompts against {found[1].prompts}, new prompts of both sets and new examples"
    )
    low, high = max(-1.0, value - half), min(1.0, value + half)
    return Estimate("gap", value, low, high, level, method, found[0].prompts + found[1].prompts, n)


def scorer_mismatch(
    restricted: ScoreMatrix, free: ScoreMatrix, level: float = 0.95, sampled_KN: np.ndarray | None = None
) -> Estimate:
    """Share of the readable free answers that name another choice than restricted choice: near 0 after tuning on the answer form.

    NaN when no answer can be read. Interval: jackknife over prompts and over examples, new ones of both. sampled_KN: the cells to
    count, all unless given; those that a race bought for what others showed are none.
    """
    read_KN = (free.answers_KN >= 0) & (restricted.answers_KN >= 0)
    if sampled_KN is not None:
        read_KN &= sampled_KN
    differ_KN = read_KN & (free.answers_KN != restricted.answers_KN)
    read, differ = int(read_KN.sum()), int(differ_KN.sum())
    kept = np.ix_(read_KN.any(1), read_KN.any(0))  # what holds nothing to read tells nothing
    read_KN, differ_KN = read_KN[kept], differ_KN[kept]
    if not read:
        return jackknifed(
            "mismatch", math.nan, np.full(1, math.nan), np.full(1, math.nan), restricted.values_KN.shape, level
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        without_K, without_N = ((differ - differ_KN.sum(axis)) / (read - read_KN.sum(axis)) for axis in (1, 0))
    return jackknifed("mismatch", differ / read, without_K, without_N, read_KN.shape, level)


@dataclass(frozen=True)
class OverSeeds:
    """Several trainings of one model that differ by their seed. The spreads are of prompts and of seeds, each by itself.

    seed_sd: of the means of the seeds, whatever made them differ.
    """

    mean: Estimate
    prompt_sd: Estimate
    seed_sd: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "mean": self.mean.to_dict(),
            "prompt_sd": self.prompt_sd.to_dict(),
            "seed_sd": self.seed_sd.to_dict(),
        }


@dataclass(frozen=True)
class Seeded:
    """An arm over several trainings, or (b) the paired difference of two arms over them."""

    a: str
    b: str | None
    over: OverSeeds

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"a": self.a, "b": self.b, **self.over.to_dict()}


def over_seeds(
    tables: Sequence[np.ndarray],
    level: float = 0.95,
    bounds: tuple[float, float] = (0.0, 1.0),
    clusters_N: Sequence[object] | None = None,
) -> OverSeeds:
    """Mean over new prompts, new examples and new seeds, from a complete table of the same cells per seed; of paired differences
    with bounds (-1, 1).

    The table averaged over seeds is decomposed and var(mean of a seed) / S added, which counts noise of single cells
    twice: a little wide. seed_sd: chi-square interval; of means that coincide its upper end is that of the noise of cells, and of tables
    that do, as an arm without training has them, 0. clusters_N: as in `stats.mean_estimate`. Raises ShapeError for one seed or tables that do not match.
    """
    shapes = sorted({table.shape for table in tables})
    if len(tables) < 2 or len(shapes) > 1:
        raise ShapeError(f"{len(tables)} seeds of shapes {shapes}; expected 2 seeds or more, scored on the same cells")
    averaged_KN = np.mean(tables, axis=0)
    squared, freedom = squared_error(averaged_KN, "both", clusters_N)
    mean_S = np.array([table.mean() for table in tables])
    seeds, seed_variance = len(tables), float(mean_S.var(ddof=1))
    seed_variance = seed_variance if seed_variance > 1e-20 else 0.0  # rounding
    same = bool(np.ptp(tables, axis=0).max() < 1e-9)
    whom = f"{seeds} seeds that gave one table" if same else f"{seeds} new seeds"
    total = squared + seed_variance / seeds
    if total > 0:
        freedom = satterthwaite(total, [(squared, freedom), (seed_variance / seeds, seeds - 1)])
        value = float(mean_S.mean())
        low, high = mean_interval(value, total, freedom, level, bounds)
    else:
        alike = mean_estimate(averaged_KN, level, bounds=bounds, clusters_N=clusters_N)
        value, low, high = alike.value, alike.low, alike.high
    k, n = averaged_KN.shape
    sd = math.sqrt(seed_variance)
    # means that coincide may be as far apart as the noise of the cells has equal ones
    noise = 0.0 if same else float(np.var(tables, axis=0, ddof=1).mean()) / (k * n)
    varies = np.array([seed_variance, seed_variance or noise])
    ends = np.sqrt(varies * (seeds - 1) / distributions.chi2.ppf([0.5 + level / 2, 0.5 - level / 2], seeds - 1))
    return OverSeeds(
        Estimate(
            "mean",
            value,
            low,
            high,
            level,
            f"two-way {'t' if bounds[0] < 0 else 'score interval'}, new prompts, new examples, {whom}",
            k,
            n,
        ),
        prompt_sd(averaged_KN, level),
        Estimate(
            "seed_sd",
            sd,
            float(ends[0]),
            min(float(ends[1]), max((bounds[1] - bounds[0]) * math.sqrt(0.5), sd)),
            level,
            f"raw, chi-square interval, {whom}, these prompts and examples",
            k,
            n,
        ),
    )
