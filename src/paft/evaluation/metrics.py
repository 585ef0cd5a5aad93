"""Descriptive measures of a table of prompts by examples, without intervals: what was seen, not what it says of more.

values_KN: scores in [0, 1] of K prompts and N examples, NaN where a cell was not scored. answers_KN: index of the choice
given, INVALID for an unparsable answer, UNSCORED for a cell that was not asked. Incomplete tables are fine where a
measure is of single examples: an example scored under too few prompts is left out and counted.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import entropy, norm

from paft.errors import ConfigError, ShapeError
from paft.evaluation.matrix import INVALID, UNSCORED

Unparsable = Literal["disagree", "agree", "drop"]
"""What an unparsable answer is beside another: at odds with everything; one more label; not counted, nor its pairs."""


@dataclass(frozen=True, eq=False)
class PerExample:
    """A measure of every example. values_N: NaN where too few prompts were scored. prompts_N: how many were."""

    values_N: np.ndarray
    prompts_N: np.ndarray

    @property
    def value(self) -> float:
        """Mean over examples; NaN when all were skipped."""
        kept_N = ~np.isnan(self.values_N)
        return float(self.values_N[kept_N].mean()) if kept_N.any() else math.nan

    @property
    def pooled(self) -> float:
        """Mean over all pairs of prompts, so that an example counts by its pairs; NaN when all were skipped."""
        kept_N = ~np.isnan(self.values_N)
        pairs_N = (self.prompts_N * (self.prompts_N - 1))[kept_N]
        return float((self.values_N[kept_N] * pairs_N).sum() / pairs_N.sum()) if pairs_N.any() else math.nan

    @property
    def skipped(self) -> int:
        """Number of examples scored under too few prompts."""
        return int(np.isnan(self.values_N).sum())


# Over prompts


def spread(accuracy_K: np.ndarray) -> float:
    """Highest minus lowest accuracy. Grows with the number of prompts: print that beside it.

    >>> round(spread(np.array([.5, .6, .9])), 6)
    0.4
    """
    return float(np.max(accuracy_K) - np.min(accuracy_K))


def cvar(accuracy_K: np.ndarray, alpha: float = 0.1) -> float:
    """Conditional value at risk: mean of the ceil(alpha K) lowest accuracies (Rockafellar and Uryasev 2000).

    >>> round(cvar(np.array([.9, .5, .8, .6, .7]), 0.4), 6)
    0.55
    """
    return float(lowest_mean(np.asarray(accuracy_K), alpha))


def lowest_mean(accuracy_RK: np.ndarray, alpha: float) -> np.ndarray:
    """`cvar` of each row."""
    if not 0 < alpha <= 1:
        raise ConfigError(f"alpha is {alpha:g}; expected a share of the prompts, above 0 and at most 1")
    count = math.ceil(alpha * accuracy_RK.shape[-1] - 1e-9)
    return np.partition(accuracy_RK, count - 1)[..., :count].mean(-1)


def share_reaching(values_KN: np.ndarray, bar: float, strict: bool = False) -> float:
    """Share of prompts whose accuracy reaches `bar`, or exceeds it (`strict`); decided in sums of scores.

    >>> share_reaching(np.array([[1, 1, 1, 1, 1, 1, 1, 0, 0, 0.0]]), 0.7)
    1.0
    """
    scored_K = (~np.isnan(values_KN)).sum(1)
    if not scored_K.all():
        raise ShapeError(f"prompt {int(np.argmin(scored_K))} has no score; expected one or more of each, leave it out")
    right_K, needed_K = np.nansum(values_KN, axis=1), bar * scored_K
    reached_K = right_K > needed_K + 1e-9 if strict else right_K >= needed_K - 1e-9
    return float(reached_K.mean())


def sat(accuracy_K: np.ndarray) -> float:
    """Saturation: 1 minus the distance of the best prompt from the mean (Mizrahi et al. 2024)."""
    return float(1 - (np.max(accuracy_K) - np.mean(accuracy_K)))


def cps(accuracy_K: np.ndarray) -> float:
    """Combined performance score: saturation times the best accuracy (Mizrahi et al. 2024).

    >>> round(cps(np.array([.5, .6, .7, .8, .9])), 6)
    0.72
    """
    return sat(accuracy_K) * float(np.max(accuracy_K))


def pdr(clean: float, perturbed: float) -> float:
    """Performance drop rate 1 - perturbed / clean; NaN when the clean prompt is never right (PromptBench).

    >>> round(pdr(0.8, 0.6), 6)
    0.25
    """
    return 1 - perturbed / clean if clean else math.nan


def con(values_KN: np.ndarray, clean: int = 0) -> float:
    """Mean accuracy over the prompts other than `clean`."""
    return float(np.nanmean(np.delete(values_KN, clean, 0), axis=1).mean())


def con_given_clean(values_KN: np.ndarray, clean: int = 0) -> float:
    """`con` over the examples that the clean prompt gets right; NaN when there is none."""
    right_N = values_KN[clean] == 1
    return con(values_KN[:, right_N], clean) if right_N.any() else math.nan


def n_star(
    accuracy_K: np.ndarray,
    eps: float = 0.01,
    delta: float = 0.1,
    statistic: Literal["mean", "variance"] = "mean",
    draws: int = 5000,
    seed: int = 0,
) -> int:
    """Smallest number n of prompts whose mean (or variance) is within eps of that of all K, in 1 - delta/2 of subsets.

    Subsets are drawn without replacement, all of those of one or two (ReliableEval, 2505.22169). What K prompts say is
    taken for the truth, so this is at most K and optimistic; `n_star_normal` is not bound to K.
    """
    accuracy_K = np.asarray(accuracy_K, dtype=float)
    drawn_RK = np.random.default_rng(seed).permuted(np.tile(accuracy_K, (draws, 1)), axis=1)
    for n in range(1 if statistic == "mean" else 2, len(accuracy_K)):
        subset_Rn = drawn_RK[:, :n] if n > 2 else np.array(list(itertools.combinations(accuracy_K, n)))
        if statistic == "mean":
            error_R = subset_Rn.mean(1) - accuracy_K.mean()
        else:
            error_R = subset_Rn.var(1, ddof=1) - accuracy_K.var(ddof=1)
        if np.quantile(np.abs(error_R), 1 - delta / 2) < eps:
            return n
    return len(accuracy_K)


def n_star_normal(sd: float, eps: float = 0.01, delta: float = 0.1, num_prompts: int | None = None) -> float:
    """How many prompts bring the mean within eps at confidence 1 - delta, accuracies being normal: x = (z sd / eps)^2.

    num_prompts: size of the finite set that is meant, x / (1 + x / K); None means all prompts there could be. sd: free
    of item noise if the prompts are the question (`prompt_sd`).

    >>> round(n_star_normal(0.05, num_prompts=100), 2)
    40.35
    """
    x = (float(norm.ppf(1 - delta / 2)) * sd / eps) ** 2
    return x if num_prompts is None else x / (1 + x / num_prompts)


# Within examples


def pss(values_KN: np.ndarray) -> PerExample:
    """Prompt sensitivity: mean |difference| of the scores of two prompts; examples scored twice or more.

    For right and wrong it is 2 k (m - k) / (m (m - 1)) with k of m prompts right: without bias whatever m is, though its
    maximum falls with m (12 prompts: 6/11), which is why m belongs beside it.

    >>> pss(np.array([[1, 1.0], [0, 1], [0, 1]])).values_N.round(6).tolist()
    [0.666667, 0.0]
    """
    m_N = (~np.isnan(values_KN)).sum(0)
    return PerExample(_per_pair(np.nansum(distances(values_KN), axis=0), m_N), m_N)


def distances(values_KN: np.ndarray) -> np.ndarray:
    """Sum over all other prompts of the |difference| of score to them, per cell; NaN where not scored."""
    order_KN = np.argsort(values_KN, axis=0, kind="stable")  # NaN last
    sorted_KN = np.take_along_axis(values_KN, order_KN, 0)
    m_N = (~np.isnan(values_KN)).sum(0)
    rank_K1 = np.arange(1, len(values_KN) + 1)[:, None]
    sum_KN = sorted_KN * (2 * rank_K1 - m_N) - 2 * np.nancumsum(sorted_KN, axis=0) + np.nansum(sorted_KN, axis=0)
    found_KN = np.empty(values_KN.shape)
    np.put_along_axis(found_KN, order_KN, sum_KN, 0)
    return found_KN


def consistency_rate(answers_KN: np.ndarray, unparsable: Unparsable = "disagree") -> PerExample:
    """Chance that two prompts get the same answer, self-pairs not counted; examples scored twice or more.

    `pooled` is the micro form. unparsable: see `Unparsable`.

    >>> consistency_rate(np.array([[0, 0], [0, INVALID], [2, INVALID]])).values_N.round(6).tolist()
    [0.333333, 0.0]
    """
    counted_KN = answers_KN != UNSCORED
    if unparsable == "drop":
        counted_KN &= answers_KN != INVALID
    m_N = counted_KN.sum(0)
    return PerExample(_per_pair(matches(answers_KN, unparsable == "agree").sum(0), m_N), m_N)


def matches(answers_KN: np.ndarray, invalid_matches: bool = False) -> np.ndarray:
    """How many other prompts give the same answer, per cell. invalid_matches: unparsable is one more label."""
    found_KN = np.zeros(answers_KN.shape)
    for label in range(INVALID if invalid_matches else 0, int(answers_KN.max(initial=INVALID)) + 1):
        same_KN = answers_KN == label
        found_KN += same_KN * (same_KN.sum(0) - 1)
    return found_KN


def _per_pair(totals_N: np.ndarray, m_N: np.ndarray) -> np.ndarray:
    """Totals over ordered pairs of m prompts as means; NaN for fewer than 2."""
    pairs_N = m_N * (m_N - 1)
    return np.divide(totals_N, pairs_N, out=np.full(len(m_N), np.nan), where=pairs_N > 0)


@dataclass(frozen=True)
class Kappa:
    """Fleiss' kappa: agreement observed, and expected if answers did not depend on the example."""

    observed: float
    expected: float
    skipped: int

    @property
    def value(self) -> float:
        """(observed - expected) / (1 - expected); NaN when all answers are one label."""
        return (self.observed - self.expected) / (1 - self.expected) if self.expected < 1 else math.nan


def fleiss_kappa(answers_KN: np.ndarray) -> Kappa:
    """Agreement of prompts on answers beyond chance (Fleiss 1971); unparsable is a label of its own.

    With cells missing, the agreement on an example is that of the prompts scored; fewer than two skip it.

    >>> round(fleiss_kappa(np.array([[0, 0], [0, 1], [1, 1]])).value, 6)
    -0.333333
    """
    agreement = consistency_rate(answers_KN, "agree")
    kept_KN = answers_KN[:, agreement.prompts_N >= 2]
    if not kept_KN.size:
        return Kappa(math.nan, math.nan, agreement.skipped)
    _, counts = np.unique(kept_KN[kept_KN != UNSCORED], return_counts=True)
    return Kappa(agreement.value, float(((counts / counts.sum()) ** 2).sum()), agreement.skipped)


def sensitivity_entropy(
    answers_KN: np.ndarray, num_choices: int | np.ndarray, miller_madow: bool = False
) -> PerExample:
    """Entropy of the answers to an example, as a share of the largest: log of the choices and unparsable.

    num_choices: of all examples, or of each (N). Needs no right answers. It is low by about
    (distinct answers - 1) / (2 prompts), which miller_madow adds. Examples scored once or never are skipped.

    >>> sensitivity_entropy(np.array([[0], [0], [2]]), 3).values_N.round(6).tolist()
    [0.459148]
    """
    labels = range(INVALID, int(answers_KN.max(initial=INVALID)) + 1)
    counts_CN = np.array([(answers_KN == label).sum(0) for label in labels])
    m_N = counts_CN.sum(0)
    with np.errstate(invalid="ignore"):
        entropy_N = np.where(m_N >= 2, entropy(counts_CN), np.nan)
    if miller_madow:
        entropy_N += ((counts_CN > 0).sum(0) - 1) / (2 * np.maximum(m_N, 1))
    return PerExample(entropy_N / np.log(np.asarray(num_choices) + 1), m_N)


@dataclass(frozen=True, eq=False)
class Flips:
    """Shares of examples whose answer differs from that under the reference prompt, for each of the other prompts."""

    right_to_wrong: np.ndarray
    wrong_to_right: np.ndarray
    wrong_to_wrong: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """All flips, per prompt."""
        return self.right_to_wrong + self.wrong_to_right + self.wrong_to_wrong


def flips(answers_KN: np.ndarray, gold_N: np.ndarray, reference: int = 0) -> Flips:
    """Changes of the answer against one prompt, over the examples scored under both; NaN where there are none.

    gold_N: index of the right choice. Two unparsable answers are no change.

    >>> flips(np.array([[0, 0, 1, 1], [1, 0, 0, 2]]), np.array([0, 0, 0, 0])).total.tolist()
    [0.75]
    """
    others_KN, from_N = np.delete(answers_KN, reference, 0), answers_KN[reference]
    both_KN = (others_KN != UNSCORED) & (from_N != UNSCORED)
    changed_KN = both_KN & (others_KN != from_N)
    count_K = both_KN.sum(1)

    def share(chosen_KN: np.ndarray) -> np.ndarray:
        hits_K = (changed_KN & chosen_KN).sum(1)
        return np.divide(hits_K, count_K, out=np.full(len(count_K), np.nan), where=count_K > 0)

    was_N, is_KN = from_N == gold_N, others_KN == gold_N
    return Flips(share(was_N & ~is_KN), share(~was_N & is_KN), share(~was_N & ~is_KN))


def instance_worst(values_KN: np.ndarray) -> PerExample:
    """Lowest score of each example over the prompts; falls as prompts are added (`worst_of` does not). Two or more."""
    return _extreme(values_KN, np.fmin)


def instance_best(values_KN: np.ndarray) -> PerExample:
    """Highest score of each example over the prompts; rises as prompts are added."""
    return _extreme(values_KN, np.fmax)


def _extreme(values_KN: np.ndarray, extreme: np.ufunc) -> PerExample:
    m_N = (~np.isnan(values_KN)).sum(0)
    return PerExample(np.where(m_N >= 2, extreme.reduce(values_KN, axis=0), np.nan), m_N)


def worst_of(values_KN: np.ndarray, size: int) -> PerExample:
    """W@m: expected lowest score of an example among `size` prompts drawn at random from those scored, without bias.

    For right and wrong this is C(k, size) / C(m, size), the chance that all are right when k of m are. size 1 is the
    accuracy, size m is `instance_worst`. Examples scored under fewer than `size` prompts are skipped.

    >>> worst_of(np.array([[1.0]] * 9 + [[0.0]] * 3), 3).values_N.round(6).tolist()
    [0.381818]
    """
    m_N = (~np.isnan(values_KN)).sum(0)
    lowest_N = (np.nan_to_num(np.sort(values_KN, axis=0)) * lowest_weights(m_N, len(values_KN), size)).sum(0)
    return PerExample(np.where(m_N >= size, lowest_N, np.nan), m_N)


def best_of(values_KN: np.ndarray, size: int) -> PerExample:
    """B@m: expected highest score of an example among `size` prompts drawn at random; the mirror of `worst_of`."""
    mirrored = worst_of(1 - values_KN, size)
    return PerExample(1 - mirrored.values_N, mirrored.prompts_N)


def lowest_weights(m_N: np.ndarray, num_prompts: int, size: int) -> np.ndarray:
    """Chance, per rank (rising) of m scores, to be the lowest of `size` drawn: C(m - rank, size - 1) / C(m, size)."""
    if not 1 <= size <= num_prompts:
        raise ShapeError(f"{size} prompts of {num_prompts}; expected from 1 to {num_prompts} to be drawn")
    left_KN = m_N - np.arange(num_prompts)[:, None]  # scores of this rank and above
    factor_KN = np.clip((left_KN - size + 1) / np.maximum(left_KN, 1), 0, 1)
    factor_KN[0] = size / np.maximum(m_N, size)
    return factor_KN.cumprod(0)
