"""Estimates with intervals over prompts and examples: crossed two-way analysis of a complete K x N table.

The prompts and the examples are both samples: of ways to ask, and of things to ask. The standard error that treats the
K x N cells as independent is several times too small and is never printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats as distributions
from scipy.special import expit, logit

from paft.errors import ShapeError
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix

DRAWS = 2000
"""Draws of the accuracies of the prompts, where an interval has no closed form."""
SEED = 20250218
"""Of these draws; fixed, so that a table has one interval."""


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
    return Decomposition(
        k,
        n,
        float(g),
        float(n * ((a_K - g) ** 2).sum() / (k - 1)),
        float(k * ((b_N - g) ** 2).sum() / (n - 1)),
        float((residual_KN**2).sum() / ((k - 1) * (n - 1))),
    )


def mean_estimate(
    values_KN: np.ndarray, level: float = 0.95, name: str = "mean", bounds: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """Mean over new prompts and new examples, t interval with Satterthwaite's degrees of freedom.

    SE^2 = (max(MS_p, MS_e) + max(MS_i, MS_e) - MS_e) / (KN). bounds: the interval is cut to the possible values. When
    every cell is at the same bound, the interval is the exact binomial one for N equal outcomes (new examples only).
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    ms_p, ms_i, ms_e = max(d.ms_prompt, d.ms_residual), max(d.ms_item, d.ms_residual), d.ms_residual
    v = ms_p + ms_i - ms_e
    if v > 0:
        freedom = v**2 / (ms_p**2 / (k - 1) + ms_i**2 / (n - 1) + ms_e**2 / ((k - 1) * (n - 1)))
        half = float(distributions.t.ppf(0.5 + level / 2, freedom)) * math.sqrt(v / (k * n))
    else:
        half = (bounds[1] - bounds[0]) * _alike(n, level) if d.mean in bounds else 0.0
    low, high = max(bounds[0], d.mean - half), min(bounds[1], d.mean + half)
    return Estimate(name, d.mean, low, high, level, "two-way t, new prompts and new examples", k, n)


def _alike(n: int, level: float) -> float:
    """How large a rate may be that was 0 in n examples: upper Clopper-Pearson bound, about 3.7 / n at level 0.95."""
    return float(1 - (0.5 - level / 2) ** (1 / n))


def prompt_sd(values_KN: np.ndarray, level: float = 0.95) -> Estimate:
    """Standard deviation of accuracy over new prompts, free of item noise: sqrt(max(0, s2_prompt)), F interval.

    A model that answers every prompt alike has 0 here, whereas the plain sd of its accuracies is about
    sqrt(noise / examples), which grows as the test set shrinks. The F interval takes accuracies to be normal over
    prompts; `_prompt_freedom` widens it where they are not.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    low2, high2 = _s2_prompt_interval(values_KN, level)
    high2 = min(high2, max(0.25, d.s2_prompt))  # accuracies cannot vary by more
    root = [math.sqrt(max(0.0, x)) for x in (d.s2_prompt, low2, high2)]
    return Estimate(
        "prompt_sd", root[0], root[1], root[2], level, "debiased: variance component, F interval, new prompts", k, n
    )


def _s2_prompt_interval(values_KN: np.ndarray, level: float) -> tuple[float, float]:
    """F interval of the variance component of prompts, not clipped: (F / F_quantile - 1) MS_e / N."""
    d = decompose(values_KN)
    freedom = _prompt_freedom(values_KN), (d.prompts - 1) * (d.examples - 1)
    low, high = (
        (d.ms_prompt / distributions.f.ppf([0.5 + level / 2, 0.5 - level / 2], *freedom) - d.ms_residual) / d.examples
    ).tolist()
    return low, high


def _prompt_freedom(values_KN: np.ndarray) -> float:
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
    return float(np.clip(2 / (by_prompts + max(0.0, by_examples - both)), 1, k - 1))


def raw_sd(values_KN: np.ndarray) -> float:
    """Plain standard deviation (n-1) of the observed accuracies, item noise included: what papers print."""
    d = decompose(values_KN)
    return math.sqrt(d.ms_prompt / d.examples)


def spread_corrected(values_KN: np.ndarray) -> np.ndarray:
    """Accuracies per prompt, drawn towards their mean to the spread of the true ones: g + sqrt(shrinkage)(a_k - g)."""
    d = decompose(values_KN)
    return d.mean + math.sqrt(d.shrinkage) * (values_KN.mean(1) - d.mean)


def _binomial_bounds(values_KN: np.ndarray, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """One-sided Clopper-Pearson lower and upper bounds of each prompt's accuracy, each at level alpha.

    Fractional scores of ties are summed, and the sum rounded down (lower) or up (upper).
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
    low_K, _ = _binomial_bounds(values_KN, alpha / 2)
    _, high_K = _binomial_bounds(values_KN, alpha / (2 * len(values_KN)))
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
    anew; for fewer than 30 prompts the quantile of the normal distribution that they come from.
    Resampling the table itself would count item noise twice, once in the table and once in the resample.
    """
    d = decompose(values_KN)
    k, n = d.prompts, d.examples
    value = float(np.quantile(spread_corrected(values_KN), q))
    if d.ms_prompt == d.ms_item == 0:  # all cells equal: every quantile is the mean
        mean = mean_estimate(values_KN, level)
        low, high = mean.low, mean.high
    else:
        generator = np.random.default_rng(SEED)
        accuracy_RK, centre_R1, sd_R1 = plausible_accuracies(values_KN, generator)
        if k < 30:  # a handful of prompts does not reach far into the tail: trust the normal shape
            quantile_R = expit(centre_R1 + distributions.norm.ppf(q) * sd_R1)[:, 0]
        else:
            chosen_RK = generator.integers(k, size=accuracy_RK.shape)
            quantile_R = np.quantile(np.take_along_axis(accuracy_RK, chosen_RK, 1), q, axis=1)
        shift_R = math.sqrt(max(0.0, d.ms_item - d.ms_residual) / (k * n)) * generator.standard_normal(DRAWS)
        low, high = _percentiles(np.clip(quantile_R + shift_R, 0, 1), level, value)
    shape = "normal logits" if k < 30 else "plausible accuracies"
    method = f"spread-corrected quantile; {shape}, new prompts and new examples"
    return Estimate(name or f"p{round(100 * q)}", value, low, high, level, method, k, n)


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
    freedom = _prompt_freedom(values_KN)
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
    hits = int((values_KN.sum(1) >= math.ceil(bar * n - 1e-9)).sum())
    interval = distributions.binomtest(hits, k).proportion_ci(level, "exact")
    return Estimate(
        f"share>={bar:g}",
        hits / k,
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
    prompts and new examples, jackknife over each, variances added (a little wide; for two prompts, new examples only).
    Raises ShapeError as `decompose` does.
    """
    k, n = matrix.answers_KN.shape
    if min(k, n) < 2 or (matrix.answers_KN == UNSCORED).any():
        raise ShapeError(f"answers of shape {(k, n)}; expected at least 2 prompts x 2 examples, all scored")
    per_item_N = _pair_agreement(matrix.answers_KN)
    value = float(per_item_N.mean())
    variance = float(per_item_N.var(ddof=1)) / n
    if k > 2:
        left_out_K = np.array([_pair_agreement(np.delete(matrix.answers_KN, row, 0)).mean() for row in range(k)])
        variance += (k - 1) * float(left_out_K.var())
    half = float(distributions.norm.ppf(0.5 + level / 2)) * math.sqrt(variance) if variance > 0 else _alike(n, level)
    return Estimate(
        "consistency",
        value,
        max(0.0, value - half),
        min(1.0, value + half),
        level,
        "pairs of prompts; jackknife, new prompts and new examples",
        k,
        n,
    )


def _pair_agreement(answers_KN: np.ndarray) -> np.ndarray:
    k = answers_KN.shape[0]
    agreeing_N = np.zeros(answers_KN.shape[1])
    for choice in range(int(answers_KN.max(initial=0)) + 1):
        count_N = (answers_KN == choice).sum(0)
        agreeing_N += count_N * (count_N - 1)
    return agreeing_N / (k * (k - 1))


@dataclass(frozen=True)
class Comparison:
    """Model A against model B on the same prompts and examples. Differences are A - B, in accuracy.

    ahead: share of prompts on which A is strictly better. ratio of variances is not printed: both may be near zero.
    """

    mean: Estimate
    prompt_sd: Estimate
    worst: Estimate
    ahead: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        parts = {"mean": self.mean, "prompt_sd": self.prompt_sd, "worst": self.worst}
        return {**{name: estimate.to_dict() for name, estimate in parts.items()}, "ahead": self.ahead}


def compare(a_KN: np.ndarray, b_KN: np.ndarray, level: float = 0.95) -> Comparison:
    """Paired differences of two complete tables over the same prompts (rows) and examples (columns).

    mean: two-way t interval of the differences; new prompts, new examples.
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

    sd_a, sd_b = prompt_sd(a_KN, level), prompt_sd(b_KN, level)
    sd = sd_a.value - sd_b.value
    sd_low = sd - math.hypot(sd_a.value - sd_a.low, sd_b.high - sd_b.value)
    sd_high = sd + math.hypot(sd_a.high - sd_a.value, sd_b.value - sd_b.low)

    generator = np.random.default_rng(SEED)
    worst_a_R, worst_b_R = (plausible_accuracies(table_KN, generator)[0].min(1) for table_KN in (a_KN, b_KN))
    item_sd = math.sqrt(max(0.0, difference.ms_item - difference.ms_residual) / (k * n))
    worst_R = np.clip(worst_a_R - worst_b_R + item_sd * generator.standard_normal(DRAWS), -1, 1)
    worst = float(spread_corrected(a_KN).min() - spread_corrected(b_KN).min())
    low, high = _percentiles(worst_R, level, worst)
    return Comparison(
        mean_estimate(a_KN - b_KN, level, "mean difference", (-1.0, 1.0)),
        Estimate(
            "prompt_sd difference", sd, sd_low, sd_high, level, "debiased; MOVER of F intervals, new prompts", k, n
        ),
        Estimate(
            "worst difference", worst, low, high, level, "spread-corrected; plausible accuracies, these prompts", k, n
        ),
        float((a_KN.mean(1) > b_KN.mean(1) + 1e-9).mean()),
    )


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


def all_estimates(matrix: ScoreMatrix, level: float, thresholds: list[float]) -> dict[str, Estimate]:
    """Every estimate of the report for one table, by name."""
    values = matrix.values_KN
    found = [
        mean_estimate(values, level),
        prompt_sd(values, level),
        worst_prompt(values, level),
        quantile_over_prompts(values, 0.1, level),
        quantile_over_prompts(values, 0.5, level, "median"),
        best_prompt(values, level),
        *(share_above(values, bar, level) for bar in thresholds),
        consistency(matrix, level),
        mean_estimate((matrix.answers_KN == INVALID).astype(float), level, "invalid"),
    ]
    return {estimate.name: estimate for estimate in found}
