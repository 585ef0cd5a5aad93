"""Estimates from a few cells of the table: an item-response model fills in the rest (PromptEval, arXiv 2405.17202).

logit P(right) = centre + theta_prompt + beta_example, theta ~ N(0, t^2), beta ~ N(0, u^2). PromptEval fits both nearly
unpenalised. Here an example's effect, which a few visits hardly show, is integrated out over a grid (marginal maximum
likelihood: Bock and Aitkin, Psychometrika 46, 1981), and t and u are weighed by their evidence, so that prompts that hardly
differ are not made to. Intervals are of draws of the whole table: parameters from their posterior, cells that were not bought
from the model. The mean over the table is not left to the model: a balanced sample of cells knows it without bias.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats as distributions
from scipy.linalg import cho_factor, cho_solve, cholesky, solve_triangular
from scipy.special import expit, log_softmax, logsumexp

from paft.errors import ShapeError
from paft.evaluation.few import mean_of_few, worst_of_few
from paft.evaluation.stats import Estimate

SD_PROMPT = (0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.9, 1.3, 1.9, 2.8)
SD_EXAMPLE = (0.3, 0.7, 1.2, 1.8, 2.6, 3.8, 5.5)
"""Values of t and u that are weighed, in logits. Their evidence is only looked for around its maximum."""
NODES = np.linspace(-4, 4, 25)
"""Of an example's effect, in units of u."""
DRAWS = 500
NEWTON = 40
"""Steps at most; five are usual."""


@dataclass(frozen=True)
class Mode:
    """The fit at one (t, u): centre and prompts' effects, their curvature, and the Laplace evidence up to a constant."""

    sd_prompt: float
    sd_example: float
    effect_K1: np.ndarray
    """The centre, then theta of each prompt."""
    curvature: np.ndarray
    evidence: float


class PromptEval:
    """The model of a table with holes (NaN), fitted.

    values_KN: scores in [0, 1]. Raises ShapeError when a prompt has no cell at all.
    """

    def __init__(self, values_KN: np.ndarray, seed: int = 0):
        seen_KN = ~np.isnan(values_KN)
        if values_KN.ndim != 2 or min(values_KN.shape) < 2 or not seen_KN.any(1).all():
            raise ShapeError(
                f"table of shape {values_KN.shape}, {int((~seen_KN.any(1)).sum())} prompts without a cell; expected 2 x 2 or "
                "more and a cell of every prompt"
            )
        self.values_KN, self.seen_KN, self.seed = values_KN, seen_KN.astype(float), seed
        self._y_KN = np.where(seen_KN, values_KN, 0.0)
        seen = values_KN[seen_KN]
        self.alike = bool(seen[0] in (0.0, 1.0) and (seen == seen[0]).all())
        """All cells right, or all wrong: there is nothing to fit."""
        self.modes: list[Mode] = []
        self.weights = np.zeros(0)
        if not self.alike:
            self.modes, self.weights = self._explore()

    @property
    def bought(self) -> float:
        """Share of the cells that were scored."""
        return float(self.seen_KN.mean())

    @property
    def best(self) -> Mode:
        """The fit of most evidence."""
        return self.modes[int(np.argmax(self.weights))]

    @property
    def shrinkage(self) -> float:
        """Share of the variance of a prompt's effect that the cells take away: 1 when they fix it, 0 when they say nothing."""
        if self.alike:
            return 0.0
        left_K = np.diag(np.linalg.inv(self.best.curvature))[1:]
        return float(np.clip(1 - left_K.mean() / self.best.sd_prompt**2, 0, 1))

    def _explore(self) -> tuple[list[Mode], np.ndarray]:
        """Fits around the maximum of the evidence: from the middle of the grid outwards, while it matters."""
        found: dict[tuple[int, int], Mode] = {}

        def at(place: tuple[int, int]) -> Mode:
            if place not in found:
                near = min(found, key=lambda p: abs(p[0] - place[0]) + abs(p[1] - place[1]), default=None)
                found[place] = self._fit(
                    SD_PROMPT[place[0]], SD_EXAMPLE[place[1]], self.seen_KN, found[near] if near else None
                )
            return found[place]

        def around(place: tuple[int, int]) -> Iterator[tuple[int, int]]:
            for a, b in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                if 0 <= place[0] + a < len(SD_PROMPT) and 0 <= place[1] + b < len(SD_EXAMPLE):
                    yield place[0] + a, place[1] + b

        top, todo, done = -math.inf, [(4, 3)], set()
        while todo:
            place = max(todo, key=lambda p: at(p).evidence)
            todo.remove(place)
            done.add(place)
            top = max(top, at(place).evidence)
            if at(place).evidence > top - 4:  # what lies beyond has hardly any weight
                todo += [p for p in around(place) if p not in done and p not in todo]
        modes = [mode for mode in found.values() if mode.evidence > top - 4]
        weight = np.exp([mode.evidence - top for mode in modes])
        return modes, weight / weight.sum()

    def _fit(self, t: float, u: float, seen_KN: np.ndarray, start: Mode | None = None) -> Mode:
        """Posterior mode of centre and theta by Newton steps, halved until they climb."""
        num_prompts = len(seen_KN)
        y_KN = self._y_KN * seen_KN
        weights_Q = _prior()
        penalty_K1 = np.concatenate([[0.0], np.full(num_prompts, 1 / t**2)])
        share = np.clip(y_KN.sum() / seen_KN.sum(), 0.02, 0.98)
        effect_K1 = start.effect_K1 if start else np.r_[math.log(share / (1 - share)), np.zeros(num_prompts)]

        def height(effect_K1: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
            eta_KQ = _eta(effect_K1, u)
            log_NQ = weights_Q + y_KN.T @ eta_KQ - seen_KN.T @ np.logaddexp(0, eta_KQ)
            fit = float(logsumexp(log_NQ, axis=1).sum()) - float(penalty_K1 @ effect_K1**2) / 2
            return fit, eta_KQ, log_NQ

        now, eta_KQ, log_NQ = height(effect_K1)
        for _ in range(NEWTON):
            chance_NQ, rate_KQ = np.exp(log_softmax(log_NQ, axis=1)), expit(eta_KQ)
            visits_KQ = seen_KN @ chance_NQ
            slope_K = y_KN.sum(1) - (rate_KQ * visits_KQ).sum(1)
            slope_K1 = np.r_[slope_K.sum(), slope_K] - penalty_K1 * effect_K1
            # Louis (1982): expected curvature less the variance of the slope over what is not known, the examples' effects
            expected_KN = rate_KQ @ chance_NQ.T * seen_KN
            inner_KK = np.diag((rate_KQ * (1 - rate_KQ) * visits_KQ).sum(1)) + expected_KN @ expected_KN.T
            for q, rate_K in enumerate(rate_KQ.T):
                inner_KK -= ((seen_KN * chance_NQ[:, q]) @ seen_KN.T) * np.outer(rate_K, rate_K)
            curvature = np.empty((num_prompts + 1, num_prompts + 1))
            curvature[1:, 1:] = inner_KK
            curvature[0, 1:] = curvature[1:, 0] = inner_KK.sum(0)
            curvature[0, 0] = inner_KK.sum()
            curvature += np.diag(penalty_K1)
            move_K1 = self._solve(curvature, slope_K1)
            step, before = 1.0, now
            while step > 1e-6:
                tried_K1 = effect_K1 + step * move_K1
                now, eta_KQ, log_NQ = height(tried_K1)
                if now >= before - 1e-9:
                    break
                step /= 2
            effect_K1 = tried_K1
            if now - before < 1e-4 and np.abs(move_K1).max() < 0.01:
                break
        _, volume = np.linalg.slogdet(curvature)
        return Mode(t, u, effect_K1, curvature, now - num_prompts * math.log(t) - float(volume) / 2)

    @staticmethod
    def _solve(curvature: np.ndarray, slope: np.ndarray) -> np.ndarray:
        ridge = 0.0
        while True:
            try:
                return cho_solve(cho_factor(curvature + ridge * np.eye(len(slope))), slope)
            except np.linalg.LinAlgError:  # away from the mode the likelihood may curve upwards
                ridge = max(10 * ridge, 1e-3 * float(np.diag(curvature).max()))

    def draws(self, count: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
        """Accuracies of the whole table as it may be, accuracy_RK, and of each draw the noise that its rows hold,
        noise_R: the variance of an accuracy due to the examples' own chance (MS_e / N).

        Cells that were bought count as they are.
        """
        generator = np.random.default_rng([self.seed, 20240527])
        num_prompts, num_examples = self.values_KN.shape
        known_K, open_KN = self._y_KN.sum(1), 1 - self.seen_KN
        left_K = open_KN.sum(1)
        accuracy_RK, noise_R = np.empty((count, num_prompts)), np.empty(count)
        node_N = np.empty(num_examples, dtype=int)
        done = 0
        for mode, many in zip(self.modes, generator.multinomial(count, self.weights), strict=True):
            factor = cholesky(mode.curvature, lower=True) if many else None
            for _ in range(many):
                moved_K1 = solve_triangular(factor, generator.standard_normal(num_prompts + 1), lower=True, trans="T")
                eta_KQ = _eta(mode.effect_K1 + moved_K1, mode.sd_example)
                log_NQ = _prior() + self._y_KN.T @ eta_KQ - self.seen_KN.T @ np.logaddexp(0, eta_KQ)
                node_N = (log_NQ + generator.gumbel(size=log_NQ.shape)).argmax(1)
                picked_NQ = np.eye(len(NODES))[node_N]
                rate_KQ = expit(eta_KQ)
                noise_KQ = rate_KQ * (1 - rate_KQ)
                open_KQ = open_KN @ picked_NQ
                noise_R[done] = (noise_KQ @ picked_NQ.sum(0)).mean() / num_examples**2
                spread_K = np.sqrt((noise_KQ * open_KQ).sum(1)) * generator.standard_normal(num_prompts)
                added_K = np.clip((rate_KQ * open_KQ).sum(1) + spread_K, 0, left_K)
                accuracy_RK[done] = (known_K + added_K) / num_examples
                done += 1
        return accuracy_RK, noise_R

    @property
    def accuracy_K(self) -> np.ndarray:
        """Expected accuracy of each prompt over all examples; their mean is that of the cells seen."""
        value = mean_of_few(self.values_KN).value
        if self.alike:
            return np.full(len(self.values_KN), value)
        accuracy_K = self.draws()[0].mean(0)
        return np.clip(accuracy_K + value - accuracy_K.mean(), 0, 1)

    def better_than_constant(self) -> float:
        """Log loss of a tenth of the cells, held out, under a constant rate minus that under the model, nats per cell.

        Not above 0: the model has nothing to say about these cells.
        """
        held_KN = self.seen_KN * (np.random.default_rng([self.seed, 7]).random(self.seen_KN.shape) < 0.1)
        if self.alike or not held_KN.any() or (held_KN == self.seen_KN).all():
            return 0.0
        kept_KN = self.seen_KN - held_KN
        mode = self._fit(self.best.sd_prompt, self.best.sd_example, kept_KN, self.best)
        eta_KQ = _eta(mode.effect_K1, mode.sd_example)
        kept_y_KN = self._y_KN * kept_KN
        chance_NQ = np.exp(log_softmax(_prior() + kept_y_KN.T @ eta_KQ - kept_KN.T @ np.logaddexp(0, eta_KQ), axis=1))
        y = self._y_KN[held_KN > 0]

        def loss(rate: np.ndarray | float) -> float:
            return -float((y * np.log(rate) + (1 - y) * np.log1p(-rate)).mean())

        constant = np.clip(kept_y_KN.sum() / kept_KN.sum(), 1e-3, 1 - 1e-3)
        return loss(constant) - loss(np.clip(expit(eta_KQ) @ chance_NQ.T, 1e-9, 1 - 1e-9)[held_KN > 0])

    def estimates(self, level: float = 0.95, thresholds: Sequence[float] = ()) -> dict[str, Estimate]:
        """Of the table as it would be with every cell bought, by name: table_mean, table_sd, prompt_sd, table_p10,
        table_median, table_worst; and for each threshold table_share>=..., the share of prompts that reach it.

        prompt_sd is that of new prompts, free of item noise; all others are about these prompts on these examples. The mean
        and the worst prompt are not the model's, which cannot vouch for either: `mean_of_few`, `worst_of_few`.
        """
        mean, worst = mean_of_few(self.values_KN, level), worst_of_few(self.values_KN, level)
        if self.alike:
            return self._alike(level, mean, worst, thresholds)
        shape = self.values_KN.shape
        about = f"item-response model, normal effects of prompts, {self.bought:.1%} of the cells"
        accuracy_RK, noise_R = self.draws()
        generator = np.random.default_rng([self.seed, 11])
        error = (mean.high - mean.low) / 2 / distributions.norm.ppf(0.5 + level / 2)
        centre_R = mean.value + error * generator.standard_normal(len(accuracy_RK))
        accuracy_RK = np.clip(accuracy_RK + (centre_R - accuracy_RK.mean(1))[:, None], 0, 1)
        variance_R = accuracy_RK.var(1, ddof=1)
        chance_R = (shape[0] - 1) / generator.chisquare(shape[0] - 1, len(variance_R))

        def found(name: str, drawn_R: np.ndarray, whom: str = "these prompts, these examples") -> Estimate:
            low, high = np.quantile(drawn_R, [0.5 - level / 2, 0.5 + level / 2])
            return Estimate(name, float(drawn_R.mean()), float(low), float(high), level, f"{about}, {whom}", *shape)

        sd = found("prompt_sd", np.sqrt(np.maximum(0.0, variance_R * chance_R - noise_R)), "new prompts")
        spread = math.sqrt(max(0.0, float((variance_R - noise_R).mean())))
        sd = Estimate(sd.name, spread, min(sd.low, spread), max(sd.high, spread), level, sd.method, *shape)
        value = float(np.clip(accuracy_RK.min(1).mean(), worst.low, worst.high))
        return {
            each.name: each
            for each in (
                mean,
                found("table_sd", np.sqrt(variance_R)),
                sd,
                found("table_p10", np.quantile(accuracy_RK, 0.1, axis=1)),
                found("table_median", np.quantile(accuracy_RK, 0.5, axis=1)),
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


def _eta(effect_K1: np.ndarray, u: float) -> np.ndarray:
    """Logits of each prompt on an example at each node."""
    return (effect_K1[0] + effect_K1[1:])[:, None] + u * NODES


def _prior() -> np.ndarray:
    """Log chance of each node."""
    return log_softmax(-(NODES**2) / 2)
