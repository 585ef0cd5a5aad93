"""Figures of a table of which only some cells were scored, without a model: from the design of the sample alone.

Names that begin with table_ are about exactly these prompts and these examples, as if every cell had been scored.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats as distributions

from paft.errors import ShapeError
from paft.evaluation.stats import Comparison, Estimate, prompt_sd_of_pairs, sd_difference
from paft.evaluation.variance import alike_rate, mean_interval, satterthwaite, two_way_components


@dataclass(frozen=True)
class Sampled:
    """A balanced random part of the cells of a table: variance components, and how unevenly they were visited.

    uneven_prompts, uneven_items: sum of squared shares of the cells, sum (n_k / B)^2; 1/K and 1/N when even.
    """

    shape: tuple[int, int]
    count: int
    s2_prompt: float
    s2_item: float
    s2_residual: float
    uneven_prompts: float
    uneven_items: float
    freedom: float
    """Of s2_residual."""
    items: int
    """Examples that were seen."""
    mixed: bool
    """Whether s2_residual holds the examples' differences too."""

    @property
    def squared_error(self) -> float:
        """Of the mean of the cells, as that of the whole table: effects of prompts and examples cancel as far as they were
        visited equally often, the residual goes with 1/B - 1/(KN) (Cochran, Sampling Techniques, ch. 2)."""
        num_prompts, num_examples = self.shape
        return (
            self.s2_residual * (1 / self.count - 1 / (num_prompts * num_examples))
            + self.s2_item * (self.uneven_items - 1 / num_examples)
            + self.s2_prompt * (self.uneven_prompts - 1 / num_prompts)
        )

    @property
    def error_anew(self) -> tuple[float, float]:
        """(squared error, degrees of freedom) of the mean of the cells as that over new prompts and new examples; of a complete
        table it is `squared_error(values_KN, "both")`, components cut at 0."""
        prompt, item = self.s2_prompt * self.uneven_prompts, self.s2_item * self.uneven_items
        if self.mixed:
            item -= self.s2_item / self.count
        noise = self.s2_residual / self.count
        squared = prompt + item + noise
        # what is left of the residual has many degrees of freedom, and counts as known
        parts = (prompt + noise, self.shape[0] - 1), (item, self.items - 1)
        return squared, satterthwaite(squared, parts)


def sampled(values_KN: np.ndarray) -> Sampled:
    """Components by `two_way_components`, cut at 0.

    Where prompts share too few examples for that, the variance of the prompts is that of their means less the noise of these, and so
    is that of the examples, 0 where none was seen twice (one-way analyses); s2_residual holds the examples' differences too, and is
    NaN where nothing varies within a prompt.
    """
    seen_KN = ~np.isnan(values_KN)
    count, mixed = int(seen_KN.sum()), False
    try:
        found = two_way_components(values_KN)
        prompt, item, residual, freedom = found.s2_prompt, found.s2_item, found.s2_residual, found.freedom
    except ShapeError:
        (prompt, residual, freedom), (item, _, _) = _one_way(values_KN), _one_way(values_KN.T)
        mixed = True
    by_prompt, by_item = (float(((visits / count) ** 2).sum()) for visits in (seen_KN.sum(1), seen_KN.sum(0)))
    return Sampled(
        shape=values_KN.shape,
        count=count,
        s2_prompt=max(0.0, prompt),
        s2_item=max(0.0, item),
        s2_residual=residual,
        uneven_prompts=by_prompt,
        uneven_items=by_item,
        freedom=max(1, freedom),
        items=int(seen_KN.any(0).sum()),
        mixed=mixed,
    )


def _one_way(values_KN: np.ndarray) -> tuple[float, float, int]:
    """Variance between rows, within rows, and the degrees of freedom of the latter; 0 and NaN where nothing varies within."""
    values_KN = values_KN[~np.isnan(values_KN).all(1)]
    count_K = (~np.isnan(values_KN)).sum(1)
    mean_K1 = np.nanmean(values_KN, axis=1, keepdims=True)
    freedom, squares = int((count_K - 1).sum()), float(np.nansum((values_KN - mean_K1) ** 2))
    if squares < 1e-20 or len(mean_K1) < 2:
        return 0.0, squares / freedom if squares >= 1e-20 else math.nan, freedom
    within = squares / freedom
    return float(mean_K1.var(ddof=1)) - within * float((1 / count_K).mean()), within, freedom


def mean_of_few(
    values_KN: np.ndarray,
    level: float = 0.95,
    over: Literal["table", "both"] = "table",
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Mean from a balanced random part of the cells (`BalancedOrder`): `table_mean` over exactly these prompts and examples,
    or `mean` over new ones of both.

    When all cells are alike, the interval is the exact one for as many outcomes as examples were seen; where prompts agree on all
    examples that several of them saw, that of the table is not narrower than the one for as many outcomes as these. NaN bounds
    where nothing varies within a prompt, as with one cell each: nothing tells noise.
    """
    seen_KN, (num_prompts, num_examples) = ~np.isnan(values_KN), values_KN.shape
    found = sampled(values_KN)
    value, whole = float(values_KN[seen_KN].mean()), found.count == values_KN.size
    if over == "table":
        name, whom = "table_mean", "these prompts, these examples"
        squared, freedom = found.squared_error, found.freedom
        unseen = 1 - found.count / values_KN.size
    else:
        name, whom, unseen = "mean", "new prompts and new examples", 1.0
        squared, freedom = found.error_anew
    alike = bool(np.ptp(values_KN[seen_KN]) < 1e-9)
    if alike or not unseen:
        low = high = value
    elif math.isnan(squared):
        low = high = math.nan
    else:
        low, high = mean_interval(value, max(0.0, squared), freedom, level, bounds)
    if alike or (over == "table" and found.s2_residual < 1e-12):  # rounding
        shown = int((seen_KN.sum(0) > (0 if alike else 1)).sum())
        half = (bounds[1] - bounds[0]) * alike_rate(shown, level) * unseen
        low, high = min(low, max(bounds[0], value - half)), max(high, min(bounds[1], value + half))
    method = f"all {found.count} cells" if whole else f"{found.count} of {values_KN.size} cells, balanced"
    return Estimate(name, value, low, high, level, f"{method}; {whom}", num_prompts, num_examples)


def compare_few(a_KN: np.ndarray, b_KN: np.ndarray, level: float = 0.95) -> Comparison:
    """`compare` on the cells that both tables hold, a balanced random part of all, and on the prompts that have some.

    The difference of the worst prompts is not given: a part of the cells does not tell which they are. Raises ShapeError where fewer
    than 2 prompts have shared cells.
    """
    shared_KN = ~np.isnan(a_KN + b_KN) if a_KN.shape == b_KN.shape else np.zeros((0, 0), dtype=bool)
    counted_K = shared_KN.any(1)
    if counted_K.sum() < 2:
        raise ShapeError(
            f"tables of shapes {a_KN.shape} and {b_KN.shape} share cells of fewer than 2 prompts; score both on the same"
        )
    a_KN, b_KN = (np.where(shared_KN, values_KN, np.nan)[counted_K] for values_KN in (a_KN, b_KN))
    difference_KN = a_KN - b_KN
    mean = replace(mean_of_few(difference_KN, level, "both", (-1.0, 1.0)), name="mean difference")
    try:
        sd = sd_difference(prompt_sd_of_pairs(a_KN, level), prompt_sd_of_pairs(b_KN, level))
    except ShapeError:
        sd = None
    ahead_K = np.nansum(difference_KN, axis=1) > 1e-9
    return Comparison(mean, sd, None, float(ahead_K.mean()), int(shared_KN.sum()))


def drawn_bounds(total: float, count: int, population: int, alpha: float) -> tuple[float, float]:
    """One-sided bounds, each at level alpha, of the accuracy on exactly these `population` examples, of which `count`, drawn
    at random without replacement, scored `total`: exact (hypergeometric); fractions are rounded outwards.

    >>> drawn_bounds(10, 10, 20, 0.025), drawn_bounds(7, 10, 10, 0.025)
    ((0.8, 1.0), (0.7, 0.7))
    """
    down, up = math.floor(total + 1e-9), math.ceil(total - 1e-9)
    if count == population:
        return total / population, total / population
    rights = range(population + 1)
    least = bisect_right(rights, alpha, key=lambda j: distributions.hypergeom.sf(down - 1, population, j, count))
    beyond = bisect_left(rights, -alpha, key=lambda j: -distributions.hypergeom.cdf(up, population, j, count))
    return least / population, (beyond - 1) / population


def worst_of_few(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Accuracy of the worst of these prompts on these examples, from a random sample of the cells of each prompt.

    The smallest lower bound at alpha / 2 (an error needs the one worst prompt) and the smallest upper bound at alpha / (2K).
    It asks nothing of the shape of the table. Value: the least observed accuracy, which errs low.
    """
    seen_KN, (num_prompts, num_examples) = ~np.isnan(values_KN), values_KN.shape
    total_K, count_K = np.where(seen_KN, values_KN, 0).sum(1), seen_KN.sum(1)
    alpha = (1 - level) / 2
    pairs = list(zip(total_K.tolist(), count_K.tolist(), strict=True))
    low = min(drawn_bounds(*pair, num_examples, alpha)[0] for pair in pairs)
    high = min(drawn_bounds(*pair, num_examples, alpha / num_prompts)[1] for pair in pairs)
    value = float(np.clip((total_K / count_K).min(), low, high))
    method = "exact bounds from the cells bought, these prompts, these examples"
    return Estimate("table_worst", value, low, high, level, method, num_prompts, num_examples)
