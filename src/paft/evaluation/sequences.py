"""Confidence sequences: bounds that hold at every look, so that one may stop whenever one likes.

What they ask for: the order of the examples is random and was drawn before any outcome, and which example comes next does
not depend on what was seen. Which prompt comes next may.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import betaln, gammaln

from paft.errors import ShapeError

WAGERS = 0.5 ** np.arange(1, 9)
"""Shares of its capital that a bettor stakes, all at once: the small ones pay where outcomes vary little."""
STEPS = 60
"""Halvings of an interval: below the resolution of a float."""


def proportion_bounds(total_K: np.ndarray, count: np.ndarray | int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds, low_K and high_K, of the mean of scores in [0, 1] after `count` of them with these sums.

    All means m with log B(1 + S, 1 + n - S) - S log m - (n - S) log(1 - m) < log(1 / alpha): the chance that the truth is
    ever left is at most alpha, both sides together (mixture of binomial likelihoods: Robbins 1970; for scores that are not
    0 or 1 by convexity). Raises ShapeError for sums outside [0, count].

    >>> low, high = proportion_bounds(np.array([90.0]), 100, 0.05)
    >>> round(float(low[0]), 6), round(float(high[0]), 6)
    (0.771729, 0.971158)
    """
    total_K = np.asarray(total_K, dtype=float)
    count_K = np.broadcast_to(np.asarray(count, dtype=float), total_K.shape)
    if (total_K < -1e-9).any() or (total_K > count_K + 1e-9).any():
        raise ShapeError("sums of scores lie outside 0 and their count; scores must be from 0 to 1")
    total_K = np.clip(total_K, 0, count_K)
    missed_K = count_K - total_K
    evidence_K = betaln(1 + total_K, 1 + missed_K)
    bar = math.log(1 / alpha)

    def against(m_K: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            likelihood_K = np.where(total_K > 0, total_K * np.log(m_K), 0) + np.where(
                missed_K > 0, missed_K * np.log1p(-m_K), 0
            )
        return evidence_K - likelihood_K

    best_K = np.where(count_K > 0, total_K / np.maximum(count_K, 1), 0.5)
    low_K = _edge(against, np.zeros_like(best_K), best_K, bar)
    high_K = _edge(against, np.ones_like(best_K), best_K, bar)
    return np.where(total_K > 0, low_K, 0.0), np.where(missed_K > 0, high_K, 1.0)


def _edge(against: object, outside_K: np.ndarray, inside_K: np.ndarray, bar: float) -> np.ndarray:
    """Where evidence against a mean reaches the bar, between a place outside the interval and one inside."""
    assert callable(against)
    for _ in range(STEPS):
        middle_K = (outside_K + inside_K) / 2
        out_K = against(middle_K) >= bar
        outside_K, inside_K = np.where(out_K, middle_K, outside_K), np.where(out_K, inside_K, middle_K)
    return outside_K  # the wider side


def exhausting_bounds(total: int, count: int, population: int, alpha: float) -> tuple[int, int]:
    """Least and most right answers among exactly these `population` examples, after `count` of them drawn without
    replacement in random order gave `total`.

    All J with C(N, n) / ((n + 1) C(J, S) C(N - J, n - S)) < 1 / alpha (Waudby-Smith and Ramdas 2020): exact at n = N.

    >>> exhausting_bounds(10, 10, 20, 0.05), exhausting_bounds(7, 10, 10, 0.05)
    ((14, 20), (7, 7))
    """
    if not 0 <= total <= count <= population:
        raise ShapeError(
            f"{total} right of {count} drawn from {population}: expected 0 <= total <= count <= population"
        )
    right_J = np.arange(total, population - (count - total) + 1)

    def log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
        return gammaln(np.asarray(n) + 1.0) - gammaln(k + 1.0) - gammaln(np.asarray(n) - k + 1.0)

    evidence_J = log_choose(population, count) - math.log(count + 1)
    evidence_J = evidence_J - log_choose(right_J, total) - log_choose(population - right_J, count - total)
    kept = right_J[evidence_J < math.log(1 / alpha)]
    return int(kept[0]), int(kept[-1])


def betting_bounds(scores_N: np.ndarray, alpha: float) -> tuple[float, float]:
    """One-sided bounds, each at level alpha, of the mean of scores in [0, 1] seen so far; at most 2 alpha for both.

    The capital of one who bets that the mean is larger than m, mean over stakes of prod(1 + stake (X / m - 1)), is a
    martingale if it is m and exceeds 1 / alpha with chance alpha at most (Waudby-Smith and Ramdas 2024, section 4). Narrow
    where scores vary little, such as paired differences. Raises ShapeError for scores outside [0, 1].

    >>> round(betting_bounds(np.ones(10), 0.05)[0], 6)
    0.442102
    """
    scores_N = np.asarray(scores_N, dtype=float)
    if scores_N.ndim != 1 or (scores_N < -1e-9).any() or (scores_N > 1 + 1e-9).any():
        raise ShapeError(f"scores of shape {scores_N.shape}: expected one row of values from 0 to 1")
    scores_N = np.clip(scores_N, 0, 1)
    return _betting_low(scores_N, alpha), 1 - _betting_low(1 - scores_N, alpha)


def _betting_low(scores_N: np.ndarray, alpha: float) -> float:
    if not len(scores_N) or scores_N.max() == 0:
        return 0.0
    values_U, times_U = np.unique(scores_N, return_counts=True)
    low, high, bar = 0.0, 1.0, math.log(1 / alpha)
    for _ in range(STEPS):
        m = (low + high) / 2
        # few values occur in scores: the product over examples is a power of each
        capital_W = (times_U * np.log1p(WAGERS[:, None] * (values_U / m - 1))).sum(1)
        peak = capital_W.max()
        grown = peak + math.log(np.exp(capital_W - peak).mean())
        low, high = (m, high) if grown >= bar else (low, m)
    return low
