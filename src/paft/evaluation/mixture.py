"""How accuracies lie over prompts, from a few cells of the table: exact likelihoods of prompts, a mixture between them.

The cells of a prompt are a random sample of the examples (`BalancedOrder`), so that its score on them has the hypergeometric
likelihood of its accuracy on all, whatever makes examples hard and for whom. Between prompts the logits of these accuracies
come from a mixture of up to three normals, fitted by Gibbs sampling (Diebolt and Robert, JRSS B 56, 1994). An item-response
model with normal effects of prompts (PromptEval, arXiv 2405.17202) draws narrower intervals, which miss where prompts form
groups. The mean is not left to the mixture: a balanced sample knows it without bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import stats as distributions
from scipy.special import gammaln, logit, logsumexp

from paft.errors import ShapeError
from paft.evaluation.few import mean_of_few, sampled, worst_of_few
from paft.evaluation.stats import Estimate

COMPONENTS = 3
CONCENTRATION = (0.3, 2.0)
"""Of the Dirichlet prior of the components' weights, every other chain: few cells seldom tell one group of prompts from
several, so draws of both minds are kept rather than weighed by their evidence."""
CAUTION = 0.5
"""Share of the stated error that quantiles of the draws may take: the rest is for a shape that no mixture expects."""
CHAINS, BURN, KEEP = 100, 40, 8
REACH, STEPS = 4.5, 73
"""Of the grid on which a prompt's accuracy is looked for, in standard errors, and its points."""


@dataclass(frozen=True)
class Kernels:
    """Normals that a component can be, D of them, and what each prompt's cells say of them.

    accuracy_KQ, logit_KQ: the grid of each prompt, within what its cells leave possible. log_KQ: log likelihood and width of
    each grid point. centre_D, width_KD: of the normals on the logit scale; no narrower than a prompt's grid can show.
    log_KD: log likelihood of the prompt's cells under each normal.
    """

    accuracy_KQ: np.ndarray
    logit_KQ: np.ndarray
    log_KQ: np.ndarray
    centre_D: np.ndarray
    width_KD: np.ndarray
    log_KD: np.ndarray


def kernels(total_K: np.ndarray, count_K: np.ndarray, num_examples: int) -> Kernels:
    """From the scores of `count_K` cells of each prompt. Scores between 0 and 1 count as parts of a right answer."""
    missed_K, open_K = count_K - total_K, num_examples - count_K
    rough_K = (total_K + 0.5) / (count_K + 1)
    error_K = np.sqrt(open_K / num_examples / ((count_K + 1) * rough_K * (1 - rough_K)))
    grid_KQ = logit(rough_K)[:, None] + error_K[:, None] * np.linspace(-REACH, REACH, STEPS)
    right_KQ = (num_examples + 1) / (1 + np.exp(-grid_KQ)) - 0.5
    right_KQ = np.clip(right_KQ, total_K[:, None], (num_examples - missed_K)[:, None])
    wrong_KQ = num_examples - right_KQ
    logit_KQ = np.log((right_KQ + 0.5) / (wrong_KQ + 0.5))
    log_KQ = np.log(np.gradient(logit_KQ, axis=1) + 1e-12)
    for part_KQ, seen_K in ((right_KQ, total_K), (wrong_KQ, missed_K)):
        log_KQ += gammaln(part_KQ + 1) - gammaln(np.maximum(0, part_KQ - seen_K[:, None]) + 1)

    typical = max(float(np.median(error_K)), 0.01)
    middle_K = logit_KQ[:, STEPS // 2]
    low, high = middle_K.min() - typical / 2, middle_K.max() + typical / 2
    centres = np.linspace(low, high, int(np.clip((high - low) / (typical / 5), 10, 100)))
    centre_D, width_D = (each.ravel() for each in np.meshgrid(centres, np.geomspace(typical / 10, 3, 8)))
    width_KD = np.hypot(width_D, 1.4 * REACH / (STEPS - 1) * error_K[:, None])
    log_KD = np.empty(width_KD.shape)
    for k, (at_Q, log_Q, width_D) in enumerate(zip(logit_KQ, log_KQ, width_KD, strict=True)):
        log_KD[k] = logsumexp(log_Q[:, None] - ((at_Q[:, None] - centre_D) / width_D) ** 2 / 2, axis=0) - np.log(
            width_D
        )
    log_KD -= log_KD.max(1, keepdims=True)
    return Kernels(right_KQ / num_examples, logit_KQ, log_KQ, centre_D, width_KD, log_KD)


class PromptMixture:
    """The accuracies of the prompts of a table with holes (NaN), as they may be.

    values_KN: scores in [0, 1]. Raises ShapeError when a prompt has no cell at all.
    """

    def __init__(self, values_KN: np.ndarray, seed: int = 0):
        seen_KN = ~np.isnan(values_KN)
        if values_KN.ndim != 2 or min(values_KN.shape) < 2 or not seen_KN.any(1).all():
            raise ShapeError(
                f"table of shape {values_KN.shape}, {int((~seen_KN.any(1)).sum())} prompts without a cell; expected 2 x 2 or "
                "more and a cell of every prompt"
            )
        self.values_KN, self.seen_KN, self.seed = values_KN, seen_KN, seed
        seen = values_KN[seen_KN]
        self.alike = bool(seen[0] in (0.0, 1.0) and (seen == seen[0]).all())
        """All cells right, or all wrong: there is nothing to fit."""

    @property
    def bought(self) -> float:
        """Share of the cells that were scored."""
        return float(self.seen_KN.mean())

    @cached_property
    def accuracy_RK(self) -> np.ndarray:
        """Draws of the accuracies over all examples. Each chain starts from one group of prompts, or from thirds by accuracy."""
        generator = np.random.default_rng([self.seed, 20240527])
        total_K, count_K = np.nansum(self.values_KN, axis=1), self.seen_KN.sum(1)
        at = kernels(total_K, count_K, self.values_KN.shape[1])
        prompt_K, rank_K = np.arange(len(total_K)), np.argsort(np.argsort(total_K / count_K))
        prior_R = np.resize(CONCENTRATION, CHAINS)
        group_RK = np.where(generator.random((CHAINS, 1)) < 0.5, 0, rank_K * COMPONENTS // len(rank_K))
        kept = []
        for sweep in range(1, BURN + 2 * KEEP + 1):
            member_RJK = (group_RK[:, None] == np.arange(COMPONENTS)[:, None]).astype(float)
            log_RJD = member_RJK @ at.log_KD
            kernel_RJ = _picked(log_RJD, 2, generator)
            weight_RJ = generator.gamma(prior_R[:, None] + member_RJK.sum(2)) + 1e-300
            log_RJK = np.log(weight_RJ)[:, :, None] + at.log_KD.T[kernel_RJ]
            group_RK = _picked(log_RJK, 1, generator)
            if sweep > BURN and sweep % 2:
                kernel_RK = np.take_along_axis(kernel_RJ, group_RK, 1)
                apart_RKQ = at.logit_KQ - at.centre_D[kernel_RK][:, :, None]
                log_RKQ = at.log_KQ - (apart_RKQ / at.width_KD[prompt_K, kernel_RK][:, :, None]) ** 2 / 2
                place_RK = _picked(log_RKQ, 2, generator)
                kept.append(at.accuracy_KQ[prompt_K, place_RK])
        return np.concatenate(kept)

    @property
    def shrinkage(self) -> float:
        """Share of the variance over prompts that the cells take away: 1 when they fix each prompt, 0 when they say nothing."""
        if self.alike or not (variance := self.accuracy_RK.var()):
            return 0.0
        return float(np.clip(1 - self.accuracy_RK.var(0).mean() / variance, 0, 1))

    @property
    def accuracy_K(self) -> np.ndarray:
        """Expected accuracy of each prompt over all examples; their mean is that of the cells seen."""
        value = mean_of_few(self.values_KN).value
        if self.alike:
            return np.full(len(self.values_KN), value)
        accuracy_K = self.accuracy_RK.mean(0)
        return np.clip(accuracy_K + value - accuracy_K.mean(), 0, 1)

    def estimates(self, level: float = 0.95, thresholds: Sequence[float] = ()) -> dict[str, Estimate]:
        """Of the table as it would be with every cell bought, by name: table_mean, table_sd, prompt_sd, table_p10,
        table_median, table_worst; and for each threshold table_share>=..., the share of prompts that reach it.

        prompt_sd is that of new prompts, free of item noise; all others are about these prompts on these examples. The mean
        and the worst prompt are not the mixture's, which cannot vouch for either: `mean_of_few`, `worst_of_few`.
        """
        mean, worst = mean_of_few(self.values_KN, level), worst_of_few(self.values_KN, level)
        if self.alike:
            return self._alike(level, mean, worst, thresholds)
        shape = self.values_KN.shape
        about = f"mixture of normals over prompts, {self.bought:.1%} of the cells"
        generator = np.random.default_rng([self.seed, 11])
        wide = 1.0 if math.isnan(mean.high) else mean.high - mean.low
        error = wide / 2 / distributions.norm.ppf(0.5 + level / 2)
        centre_R = mean.value + error * generator.standard_normal(len(self.accuracy_RK))
        accuracy_RK = np.clip(self.accuracy_RK + (centre_R - self.accuracy_RK.mean(1))[:, None], 0, 1)
        variance_R = accuracy_RK.var(1, ddof=1)
        chance_R = (shape[0] - 1) / generator.chisquare(shape[0] - 1, len(variance_R))
        noise = float(np.nan_to_num(sampled(self.values_KN).s2_residual)) / shape[1]
        tail = CAUTION * (1 - level) / 2
        step = 0.5 / shape[1] * float(not self.seen_KN.all())  # draws are continuous, accuracies go by 1 / N

        def found(
            name: str, drawn_R: np.ndarray, slack: float = 0.0, whom: str = "these prompts, these examples"
        ) -> Estimate:
            low, high = np.quantile(drawn_R, [tail, 1 - tail])
            value = float(drawn_R.mean())  # of draws that are nearly all alike it may lie beyond their quantiles
            low, high = max(0.0, min(float(low) - slack, value)), min(1.0, max(float(high) + slack, value))
            return Estimate(name, value, low, high, level, f"{about}, {whom}", *shape)

        sd = found("prompt_sd", np.sqrt(np.maximum(0.0, variance_R * chance_R - noise)), whom="new prompts")
        spread = math.sqrt(max(0.0, float(variance_R.mean()) - noise))
        sd = Estimate(sd.name, spread, min(sd.low, spread), max(sd.high, spread), level, sd.method, *shape)
        value = float(np.clip(accuracy_RK.min(1).mean(), worst.low, worst.high))
        return {
            each.name: each
            for each in (
                mean,
                found("table_sd", np.sqrt(variance_R)),
                sd,
                found("table_p10", np.quantile(accuracy_RK, 0.1, axis=1), step),
                found("table_median", np.quantile(accuracy_RK, 0.5, axis=1), step),
                *(found(f"table_share>={bar:g}", (accuracy_RK >= bar - 1e-12).mean(1)) for bar in thresholds),
                Estimate(worst.name, value, worst.low, worst.high, level, worst.method, *shape),
            )
        }

    def _alike(self, level: float, mean: Estimate, worst: Estimate, thresholds: Sequence[float]) -> dict[str, Estimate]:
        """All cells alike: figures as they are, as far from the truth as their mean can be."""
        slack = mean.high - mean.low
        near = (mean.low, mean.high, level, mean.method, *self.values_KN.shape)
        spread = (0.0, slack, level, mean.method, *self.values_KN.shape)
        found = [mean, *(Estimate(name, mean.value, *near) for name in ("table_p10", "table_median")), worst]
        found += [Estimate(name, 0.0, *spread) for name in ("table_sd", "prompt_sd")]
        for bar in thresholds:
            share, low, high = (float(at >= bar) for at in (mean.value, mean.low, mean.high))
            name = f"table_share>={bar:g}"
            found.append(Estimate(name, share, low, high, level, mean.method, *self.values_KN.shape))
        return {each.name: each for each in found}


def _picked(log_chance: np.ndarray, axis: int, generator: np.random.Generator) -> np.ndarray:
    """One place along the axis by its chance: the first to come of waiting times with these rates."""
    rate = np.exp(log_chance - log_chance.max(axis, keepdims=True))
    picked: np.ndarray = (rate / generator.standard_exponential(rate.shape)).argmax(axis)
    return picked
