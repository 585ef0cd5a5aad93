"""Where the variance of a table comes from: crossed two-way analysis of prompts by examples, and what rests on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as distributions
from scipy.special import expit, logit

from paft.errors import ConfigError, ShapeError

Over = Literal["both", "examples", "prompts"]
"""What is drawn anew: prompts and examples; examples, under these prompts; prompts, on these examples."""

DRAWS = 2000
"""Draws of the accuracies of the prompts, where an interval has no closed form."""
SEED = 20250218
"""Of these draws; fixed, so that a table has one interval."""


@dataclass(frozen=True)
class Decomposition:
    """Two-way analysis of variance of a K x N table with one value per cell (Searle, Casella, McCulloch, ch. 4).

    s2_*: unbiased variance components, which may be negative when the truth is near zero; s2_residual is the
    interaction of prompt and example together with noise.
    """

    prompts: int
    examples: int
    mean: float
    ms_prompt: float
    ms_item: float
    ms_residual: float

    @property
    def s2_prompt(self) -> float:
        """Variance of the true accuracies of prompts, free of item noise."""
        return (self.ms_prompt - self.ms_residual) / self.examples

    @property
    def s2_item(self) -> float:
        """Variance of the examples' difficulty."""
        return (self.ms_item - self.ms_residual) / self.prompts

    @property
    def s2_residual(self) -> float:
        """Interaction and noise."""
        return self.ms_residual

    @property
    def noise_floor(self) -> float:
        """Standard deviation over prompts that item noise alone would show: sqrt(MS_e / N)."""
        return math.sqrt(self.ms_residual / self.examples)

    @property
    def shares(self) -> dict[str, float]:
        """Share of prompt, item and residual in the variance of a cell, negative components as 0; all 0 in a table of one value."""
        parts = {"prompt": max(0.0, self.s2_prompt), "item": max(0.0, self.s2_item), "residual": self.s2_residual}
        total = sum(parts.values())
        return {name: part / total if total > 0 else 0.0 for name, part in parts.items()}

    @property
    def shrinkage(self) -> float:
        """Share of the spread of observed accuracies that is real: s2_prompt / (s2_prompt + noise), in [0, 1]."""
        real = max(0.0, self.s2_prompt)
        return real / (real + self.ms_residual / self.examples) if real > 0 else 0.0


def decompose(values_KN: np.ndarray) -> Decomposition:
    """Mean squares of a complete table. Raises ShapeError for fewer than 2 rows or columns, or missing cells."""
    if values_KN.ndim != 2 or min(values_KN.shape) < 2:
        raise ShapeError(f"table of shape {values_KN.shape}; expected at least 2 prompts x 2 examples")
    if np.isnan(values_KN).any():
        raise ShapeError(
            f"{int(np.isnan(values_KN).sum())} of {values_KN.size} cells are not scored; this analysis needs all"
        )
    k, n = values_KN.shape
    a_K, b_N, g = values_KN.mean(1), values_KN.mean(0), values_KN.mean()
    residual_KN = values_KN - a_K[:, None] - b_N[None] + g
    squares = (
        float(n * ((a_K - g) ** 2).sum() / (k - 1)),
        float(k * ((b_N - g) ** 2).sum() / (n - 1)),
        float((residual_KN**2).sum() / ((k - 1) * (n - 1))),
    )
    rounding = 1e-20 * max(1.0, float(np.abs(values_KN).max()) ** 2)
    return Decomposition(k, n, float(g), *(square if square > rounding else 0.0 for square in squares))


def squared_error(
    values_KN: np.ndarray, over: Over = "both", clusters_N: Sequence[object] | None = None
) -> tuple[float, float]:
    """(squared standard error of the mean, its degrees of freedom) of a complete table.

    With V = MS / (KN): prompts alone V_prompt, examples alone V_item; both, max(V_prompt, V_residual) +
    max(V_item, V_residual) - V_residual with Satterthwaite's degrees of freedom. Clusters of examples replace V_item by
    the variance of their sums (Cameron, Gelbach and Miller 2011, with the factor C / (C - 1)).
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    prompt, item, residual = (ms / (k * n) for ms in (d.ms_prompt, d.ms_item, d.ms_residual))
    item_freedom = n - 1
    if clusters_N is not None:
        if over == "prompts":
            raise ConfigError("clusters of examples, but only prompts are drawn anew; choose over='both' or 'examples'")
        _, cluster_N = np.unique(np.asarray(clusters_N), return_inverse=True)
        if len(cluster_N) != n or not cluster_N.any():
            raise ShapeError(f"{len(cluster_N)} clusters for {n} examples; expected one per example, 2 or more in all")
        sum_C = np.bincount(cluster_N, values_KN.mean(0) - d.mean)
        item_freedom = len(sum_C) - 1
        item = len(sum_C) / item_freedom * float((sum_C**2).sum()) / n**2
        item = item if item > 1e-24 else 0.0  # rounding
    if over == "examples":
        return item, item_freedom
    if over == "prompts":
        return prompt, k - 1
    prompt, item = max(prompt, residual), max(item, residual)
    squared = prompt + item - residual
    parts = (prompt, k - 1), (item, item_freedom), (residual, (k - 1) * (n - 1))
    return squared, satterthwaite(squared, parts)


def satterthwaite(squared: float, parts: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a combination of variances from (variance, degrees of freedom) of each (Biometrics 1946)."""
    return squared**2 / sum(variance**2 / freedom for variance, freedom in parts) if squared > 0 else math.inf


def mean_interval(
    value: float, squared: float, freedom: float, level: float, bounds: tuple[float, float] = (0.0, 1.0)
) -> tuple[float, float]:
    """Interval of a mean within bounds, from its squared error (above 0) and the degrees of freedom of that.

    The score interval of a share (Wilson 1927) of as many independent outcomes as have this error (Dean and Pagano 2015):
    all m with |value - m| <= t sqrt(error at m), the error going with m (1 - m). In the middle it is the t interval; a rare
    outcome, on which t intervals err mostly on one side, has a longer arm there. For differences (bounds below 0), whose 0
    lies in the middle, it is the t interval, cut at the bounds.

    >>> low, high = mean_interval(0.9, 0.9 * 0.1 / 100, 1e9, 0.95)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    least, most = bounds
    reach = float(distributions.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(squared)
    spread = (value - least) * (most - value)
    if least < 0 or spread <= 0:
        return max(least, value - reach), min(most, value + reach)
    pull = reach**2 / spread
    centre = (value + pull * (least + most) / 2) / (1 + pull)
    half = math.sqrt(reach**2 + (pull * (most - least) / 2) ** 2) / (1 + pull)
    return max(least, centre - half), min(most, centre + half)


def alike_rate(n: int, level: float) -> float:
    """How large a rate may be that was 0 in n examples: upper Clopper-Pearson bound, about 3.7 / n at level 0.95."""
    return float(1 - (0.5 - level / 2) ** (1 / n))


def s2_prompt_interval(values_KN: np.ndarray, level: float) -> tuple[float, float]:
    """`component_interval` of the variance component of prompts: (F / F_quantile - 1) MS_e / N."""
    d = decompose(values_KN)
    freedom = prompt_freedom(values_KN), (d.prompts - 1) * (d.examples - 1)
    return component_interval(d.ms_prompt / d.examples, d.ms_residual / d.examples, freedom, d.examples, level)


def component_interval(
    observed: float, noise: float, freedom: tuple[float, float], examples: int, level: float
) -> tuple[float, float]:
    """F interval of a variance (observed, of the accuracies, less that of noise), not clipped below.

    The upper end stays above 0: no table shows that prompts are all alike. Where they agree better than noise lets equal ones
    it is that of a table with as much variance as noise, and where nothing varies the square of `alike_rate`.
    """
    quantiles = distributions.f.ppf([0.5 + level / 2, 0.5 - level / 2], *freedom)
    low, high = (observed / quantiles - noise).tolist()
    if high <= 1e-16:  # rounding
        high = min(0.25, noise / float(quantiles[1]) - noise if noise > 1e-16 else alike_rate(examples, level) ** 2)
    return low, high


def prompt_freedom(values_KN: np.ndarray) -> float:
    """Degrees of freedom of MS_p: 2 MS_p^2 / its variance by the jackknife over prompts and over examples, at most K-1.

    Accuracies near 1 have a long lower tail over prompts, and few examples are few chances for prompts to differ; both
    make MS_p vary more than the normal K-1 says. What prompts and examples both show is noise, counted once. For fewer
    than 10 prompts the jackknife is too rough and K-1 stands.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    if k < 10 or d.ms_prompt <= 0:
        return k - 1.0
    effect_KN = values_KN - values_KN.mean(0)
    total_K = effect_KN.sum(1)
    square_K = (total_K / n) ** 2
    without_K = (square_K.sum() - k / (k - 1) * square_K) / (k - 2)
    without_N = (((total_K[:, None] - effect_KN) / (n - 1)) ** 2).sum(0) / (k - 1)
    by_prompts, by_examples = ((len(x) - 1) * x.var() / (d.ms_prompt / n) ** 2 for x in (without_K, without_N))
    both = 2 / (k - 1) * (1 - d.shrinkage**2)
    varies = max(by_prompts + max(0.0, by_examples - both), 2 / (k - 1))
    return float(max(1.0, 2 / varies))


def spread_corrected(values_KN: np.ndarray) -> np.ndarray:
    """Accuracies per prompt, drawn towards their mean to the spread of the true ones: g + sqrt(shrinkage)(a_k - g)."""
    d = decompose(values_KN)
    return d.mean + math.sqrt(d.shrinkage) * (values_KN.mean(1) - d.mean)


def plausible_accuracies(
    values_KN: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws of the true accuracies of these K prompts, given their table.

    Returns accuracy_RK (prompts in order of observed accuracy), and the centre_R1 and sd_R1 of their logits.

    Empirical Bayes with normal effects of prompts on the logit scale, where a long lower tail of accuracies is straight
    (Gelman et al., Bayesian Data Analysis, ch. 5): each draw takes a prompt variance from the sampling distribution of
    MS_p, draws the centre, then each accuracy between the observed one and the centre, by their precisions. Noise is
    MS_e / N on average, and goes with p(1-p). How hard the examples are, common to all prompts, is not drawn here.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    corrected_K = np.clip(np.sort(spread_corrected(values_KN)), 1 / n, 1 - 1 / n)
    slope_K = corrected_K * (1 - corrected_K)  # of accuracy in its logit
    accuracy_K = np.clip(np.sort(values_KN.mean(1)), 0.5 / n, 1 - 0.5 / n)
    observed_K = logit(corrected_K) + (accuracy_K - corrected_K) / slope_K
    noise_K = (d.ms_residual / slope_K.mean() if d.ms_residual > 0 else 1.0) / (n * slope_K)
    freedom = prompt_freedom(values_KN)
    real_R1 = (d.ms_prompt * freedom / generator.chisquare(freedom, (DRAWS, 1)) - d.ms_residual) / n
    real_R1 = np.clip(real_R1, 0, 0.25) / (slope_K**2).mean()  # accuracies cannot vary by more than 1/4
    weight_RK = 1 / (real_R1 + noise_K)
    sum_R1 = weight_RK.sum(1, keepdims=True)
    centre_R1 = (weight_RK * observed_K).sum(1, keepdims=True) / sum_R1
    centre_R1 += generator.standard_normal((DRAWS, 1)) / np.sqrt(sum_R1)
    keep_RK = real_R1 * weight_RK
    drawn_RK = (
        centre_R1
        + keep_RK * (observed_K - centre_R1)
        + np.sqrt(keep_RK * noise_K) * generator.standard_normal((DRAWS, k))
    )
    return expit(drawn_RK), centre_R1, np.sqrt(real_R1)


@dataclass(frozen=True)
class Cochran:
    """Test that all prompts have one accuracy: statistic, degrees of freedom, p value."""

    q: float
    freedom: int
    p: float


def cochran_q(values_KN: np.ndarray) -> Cochran:
    """Cochran's Q (Biometrika 37, 1950) of a complete table, chi-square with K - 1 degrees of freedom.

    Written as SS_p over the mean variance within examples, which for right and wrong is Cochran's formula and serves
    fractional scores too. Where prompts differ on no example, q is 0 and p 1.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    between = (k - 1) * d.ms_prompt
    within = (between + (k - 1) * (n - 1) * d.ms_residual) / (n * (k - 1))
    q = between / within if within > 0 else 0.0
    return Cochran(q, k - 1, float(distributions.chi2.sf(q, k - 1)))


@dataclass(frozen=True)
class PairComponents:
    """Variance components from pairs of prompts that share examples, for tables with cells missing.

    observed: variance of accuracies as seen, noise included; noise: its part that is item noise. pairs: how many share
    2 examples or more; shared: how many examples on average.
    """

    s2_prompt: float
    s2_residual: float
    noise: float
    pairs: int
    shared: float
    freedom: float

    @property
    def observed(self) -> float:
        """Real variance and noise together: half the mean squared difference of two prompts."""
        return self.s2_prompt + self.noise


def pair_components(values_KN: np.ndarray) -> PairComponents:
    """Half the weighted mean over prompt pairs of (difference^2 - its item noise), by n shared examples.

    On a complete table this is `decompose`, exactly. freedom: 2 observed^2 / its variance by the jackknife over
    prompts, at most K - 1; K - 1 for fewer than 10 prompts. Raises ShapeError when no two prompts share 2 examples.
    """
    if values_KN.ndim != 2:
        raise ShapeError(f"table of shape {values_KN.shape}; expected prompts x examples")
    scored_KN = (~np.isnan(values_KN)).astype(float)
    filled_KN = np.nan_to_num(values_KN)
    shared_KK = scored_KN @ scored_KN.T
    half_KK = filled_KN @ scored_KN.T
    squares_KK = (filled_KN**2) @ scored_KN.T
    shared_KK[shared_KK < 2] = 0
    np.fill_diagonal(shared_KK, 0)
    total = shared_KK.sum()
    if total == 0:
        raise ShapeError(
            f"table of shape {values_KN.shape}: no two prompts share 2 scored examples; score some examples under several"
        )
    n_KK = np.where(shared_KK > 0, shared_KK, np.nan)
    d_KK = (half_KK - half_KK.T) / n_KK
    v_KK = (squares_KK + squares_KK.T - 2 * filled_KN @ filled_KN.T - n_KK * d_KK**2) / (n_KK - 1)
    observed_K, noise = np.nansum(n_KK * d_KK**2, axis=1), float(np.nansum(v_KK) / total / 2)
    observed = float(observed_K.sum() / total / 2)
    pairs = int((shared_KK > 0).sum()) // 2
    freedom = _pair_freedom(observed_K, shared_KK.sum(1))
    return PairComponents(
        observed - noise, float(np.nansum(n_KK * v_KK) / total / 2), noise, pairs, float(total / pairs / 2), freedom
    )


def _pair_freedom(observed_K: np.ndarray, weight_K: np.ndarray) -> float:
    num_prompts = len(observed_K)
    if num_prompts < 10 or not observed_K.any():
        return num_prompts - 1.0
    left_K = weight_K.sum() - 2 * weight_K
    if left_K.min() <= 0:
        return 1.0
    without_K = (observed_K.sum() - 2 * observed_K) / left_K
    relative = (num_prompts - 1) * float(without_K.var()) / float(observed_K.sum() / weight_K.sum()) ** 2
    return float(np.clip(2 / relative, 1, num_prompts - 1)) if relative > 0 else num_prompts - 1.0


@dataclass(frozen=True)
class TwoWay:
    """Variance components of an additive table with cells missing; freedom: degrees of freedom of s2_residual."""

    s2_prompt: float
    s2_item: float
    s2_residual: float
    freedom: int


def two_way_components(values_KN: np.ndarray, least_freedom: int = 10) -> TwoWay:
    """Components by fitting constants, Henderson's method III (Searle, Casella, McCulloch, Variance Components, ch. 5.5).

    Sums of squares of prompts given examples, of examples given prompts, and of what neither explains, set equal to what they
    are expected to be: unbiased for cells missing at random, no shape of effects assumed, not cut at 0. On a complete table
    this is `decompose`. Raises ShapeError where prompts share too few examples to leave `least_freedom` degrees of freedom.
    """
    seen_KN = (~np.isnan(values_KN)).astype(float)
    seen_KN = seen_KN[np.ix_(seen_KN.any(1), seen_KN.any(0))]
    filled_KN = values_KN[np.ix_(~np.isnan(values_KN).all(1), ~np.isnan(values_KN).all(0))]
    filled_KN = np.nan_to_num(filled_KN - np.nanmean(values_KN))
    n_K, m_N = seen_KN.sum(1), seen_KN.sum(0)
    sum_K, sum_N = filled_KN.sum(1), filled_KN.sum(0)
    # the normal equations of the prompts with the examples' constants eliminated
    left_KK = np.diag(n_K) - (seen_KN / m_N) @ seen_KN.T
    right_K = sum_K - seen_KN @ (sum_N / m_N)
    weight_K, axis_KK = np.linalg.eigh(left_KK)
    kept_K = weight_K > 1e-9 * max(1.0, weight_K[-1])
    rank, count = int(kept_K.sum()), int(n_K.sum())
    freedom = count - len(m_N) - rank
    if freedom < least_freedom or not rank:
        raise ShapeError(
            f"{count} cells of {len(n_K)} prompts and {len(m_N)} examples leave {max(0, freedom)} degrees of freedom for what is "
            f"neither the prompt's nor the example's; at least {least_freedom} are needed"
        )
    prompts = float((((axis_KK.T @ right_K)[kept_K]) ** 2 / weight_K[kept_K]).sum())
    items = float((sum_N**2 / m_N).sum())
    residual = max(0.0, float((filled_KN**2).sum()) - items - prompts) / freedom
    items += prompts - float((sum_K**2 / n_K).sum())
    item_rank = len(m_N) + rank - len(n_K)
    return TwoWay(
        (prompts - rank * residual) / float(np.trace(left_KK)),
        (items - item_rank * residual) / max(1.0, count - len(n_K)),
        residual,
        freedom,
    )


@dataclass(frozen=True)
class WorstBracket:
    """Four readings of the accuracy of the worst of K prompts, in the order of their bias on new examples.

    raw: the lowest observed, biased low. corrected: of `spread_corrected`, nearly right. posterior_mean: of accuracies
    drawn to the mean by all their noise; high. split_half: of the prompt that is worst on one half of the examples, on
    the other half; high. The truth lies between raw and split_half, in expectation.
    """

    raw: float
    corrected: float
    posterior_mean: float
    split_half: float


def worst_bracket(values_KN: np.ndarray, splits: int = 100) -> WorstBracket:
    """The worst prompt read in four ways. split_half: both directions of `splits` fixed random halves.

    Each half is taken relative to its own mean, so that halves of unlike difficulty do not add noise. Needs 4 examples.
    """
    d = decompose(values_KN)
    if d.examples < 4:
        raise ShapeError(f"{d.examples} examples; expected 4 or more, to split into halves")
    accuracy_K = values_KN.mean(1)
    order_RN = np.random.default_rng(SEED).permuted(np.tile(np.arange(d.examples), (splits, 1)), axis=1)
    first_RN = order_RN < d.examples // 2
    halves = [half_RN @ values_KN.T / half_RN.sum(1, keepdims=True) for half_RN in (first_RN, ~first_RN)]
    one_RK, other_RK = (half_RK - half_RK.mean(1, keepdims=True) for half_RK in halves)
    picked = [
        np.take_along_axis(score_RK, pick_RK.argmin(1)[:, None], 1).mean()
        for pick_RK, score_RK in ((one_RK, other_RK), (other_RK, one_RK))
    ]
    lowest = float(accuracy_K.min())
    return WorstBracket(
        lowest,
        float(spread_corrected(values_KN).min()),
        d.mean + d.shrinkage * (lowest - d.mean),
        d.mean + float(np.mean(picked)),
    )


def untried_share(num_prompts: int, level: float = 0.95) -> float:
    """Largest share of prompts not tried that may be worse than the truly worst of these, drawn at random (Wilks 1941).

    >>> round(untried_share(50), 3), round(untried_share(10), 3)
    (0.058, 0.259)
    """
    return float(1 - (1 - level) ** (1 / num_prompts))
