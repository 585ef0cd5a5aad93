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


def s2_prompt_interval(values_KN: np.ndarray, level: float) -> tuple[float, float]:
    """F interval of the variance component of prompts, not clipped: (F / F_quantile - 1) MS_e / N."""
    d = decompose(values_KN)
    freedom = prompt_freedom(values_KN), (d.prompts - 1) * (d.examples - 1)
    low, high = (
        (d.ms_prompt / distributions.f.ppf([0.5 + level / 2, 0.5 - level / 2], *freedom) - d.ms_residual) / d.examples
    ).tolist()
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
    return float(np.clip(2 / (by_prompts + max(0.0, by_examples - both)), 1, k - 1))


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
