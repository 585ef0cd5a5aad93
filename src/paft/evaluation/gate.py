"""Gates: may this model be released? Three answers, wrong with a stated chance at most (`errors: each`: of every demand).

All demands but the one on prompt_sd are about the prompts of the set and new examples of the task. They are decided by
bounds: GO when the bound on the safe side reaches the bar, NO-GO when the other bound misses it, else INCONCLUSIVE. Looked
at once, a finished table gives exact binomial and t bounds; where cells are bought until the verdict is clear, the bounds
are confidence sequences, which hold at every look.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from paft.config import CriterionConfig, PolicyConfig
from paft.errors import ConfigError, ShapeError
from paft.evaluation.matrix import ALONE, INVALID, ScoreMatrix
from paft.evaluation.sequences import betting_bounds, proportion_bounds
from paft.evaluation.stats import binomial_bounds, mean_estimate, prompt_sd

Outcome = Literal["pass", "fail", "undecided"]
Word = Literal["GO", "NO-GO", "INCONCLUSIVE"]
EXIT_CODES: Mapping[Word, int] = {"GO": 0, "NO-GO": 1, "INCONCLUSIVE": 3}


@dataclass(frozen=True)
class Checked:
    """One demand and what became of it. low, high: the bounds that decided, or would have; None: unbounded."""

    title: str
    tier: Literal["critical", "advisory"]
    outcome: Outcome
    value: float
    low: float | None
    high: float | None
    bar: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """GO when every critical demand is met, NO-GO when one surely is not, else INCONCLUSIVE; the reason names it."""

    word: Word
    reason: str
    criteria: tuple[Checked, ...]
    prompts: int
    examples: int
    alpha: float
    errors: Literal["all", "each"]
    """Of what alpha bounds the chance: of a wrong verdict, or of a wrong outcome of each demand."""
    looks: int

    @property
    def exit_code(self) -> int:
        """0 GO, 1 NO-GO, 3 INCONCLUSIVE."""
        return EXIT_CODES[self.word]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "exit_code": self.exit_code}


def judge(
    matrix: ScoreMatrix,
    policy: PolicyConfig,
    against: Mapping[str, np.ndarray] | None = None,
    *,
    look: int | None = None,
    last: bool = True,
    answer_limit: int = 0,
) -> Verdict:
    """The verdict on a complete table (prompts x examples).

    against: for every `against` of the policy the baseline's values_KN on the same cells. look: how often the table
    has been judged as it grows, this time included; None: this once, with all its cells. last: it will grow no more. answer_limit: most tokens of an answer, on which
    the demand on tokens rests; the longest that was seen where it is 0. Raises ShapeError for a table with holes, ConfigError for a demand that
    the table cannot answer.
    """
    if not matrix.observed_KN.all():
        raise ShapeError(
            f"{int((~matrix.observed_KN).sum())} cells are not scored; a gate judges complete tables: "
            "score the run with evaluate.budget.kind=full, or give its settings file, and the gate buys what it needs"
        )
    critical = sum(criterion.tier == "critical" for criterion in policy.criteria)
    alpha = policy.alpha / critical if policy.errors == "all" else policy.alpha
    evidence = _Evidence(matrix, look is not None, last, answer_limit)
    checked = tuple(_check(criterion, evidence, alpha, against or {}) for criterion in policy.criteria)
    deciding = [each for each in checked if each.tier == "critical"]
    failed, open_ = ([each for each in deciding if each.outcome == kind] for kind in ("fail", "undecided"))
    word: Word = "NO-GO" if failed else "INCONCLUSIVE" if open_ else "GO"
    reason = "; ".join(f"{each.title}: {_said(each)}" for each in failed or open_) or "every critical demand is met"
    num_prompts, num_examples = matrix.values_KN.shape
    return Verdict(word, reason, checked, num_prompts, num_examples, policy.alpha, policy.errors, look or 1)


def _said(each: Checked) -> str:
    bounds = " to ".join("?" if bound is None else f"{bound:.3g}" for bound in (each.low, each.high))
    return f"{each.value:.3g}, surely within {bounds}"


def looks(policy: PolicyConfig, examples: int) -> Iterator[int]:
    """Numbers of examples at which a growing table is judged: first, then `growth` times as many, at last all.

    >>> list(looks(PolicyConfig(criteria=[CriterionConfig(measure="mean", at_least=0.5)]), 100))
    [20, 30, 45, 68, 100]
    """
    size = policy.first
    while size < examples:
        yield size
        size = max(size + 1, math.ceil(min(size * policy.growth, examples)))
    yield examples


@dataclass(frozen=True)
class _Evidence:
    """A table, and bounds on what it says about new examples: exact for one look, sequences for many."""

    matrix: ScoreMatrix
    growing: bool
    last: bool
    answer_limit: int

    @property
    def alone(self) -> str:
        """What is to be said of a bound that takes the examples to be independent."""
        return ALONE if self.matrix.groups_N is not None else ""

    def each_prompt(self, alpha_low: float, alpha_high: float) -> tuple[np.ndarray, np.ndarray]:
        """One-sided lower and upper bounds of each prompt's accuracy, each at its own level."""
        values_KN = self.matrix.values_KN
        if not self.growing:
            return binomial_bounds(values_KN, alpha_low)[0], binomial_bounds(values_KN, alpha_high)[1]
        total_K, count = values_KN.sum(1), values_KN.shape[1]
        return proportion_bounds(total_K, count, alpha_low)[0], proportion_bounds(total_K, count, alpha_high)[1]

    def mean(self, values_KN: np.ndarray, alpha: float, least: float, most: float) -> tuple[float, float]:
        """One-sided bounds, each at level alpha, of the mean over these prompts on new examples; in one look on new groups of them."""
        if not self.growing:
            found = mean_estimate(
                values_KN, 1 - 2 * alpha, bounds=(least, most), over="examples", clusters_N=self.matrix.groups_N
            )
            return found.low, found.high
        low, high = betting_bounds((values_KN.mean(0) - least) / (most - least), alpha)
        return least + low * (most - least), least + high * (most - least)


def _check(criterion: CriterionConfig, evidence: _Evidence, alpha: float, against: Mapping[str, np.ndarray]) -> Checked:
    values_KN, bar = evidence.matrix.values_KN, criterion.bar
    k = len(values_KN)
    shape = "confidence sequence" if evidence.growing else "t" if criterion.measure == "drop" else "score interval"
    groups_N = evidence.matrix.groups_N
    drawn = f" in {len(set(groups_N))} groups" if groups_N is not None and not evidence.growing else ""
    means = f"{shape}, these prompts, new examples{drawn or evidence.alone}"
    match criterion.measure:
        case "mean":
            title, value = f"mean at least {bar:g}", float(values_KN.mean())
            low, high = evidence.mean(values_KN, alpha, 0.0, 1.0)
            method = means
        case "worst" | "lowest" | "p10" | "share":
            return _enough_prompts(criterion, evidence, alpha)
        case "drop":
            assert criterion.against is not None
            if criterion.against not in against:
                raise ConfigError(f"drop against {criterion.against!r}: no such finished run was given")
            fall_KN = against[criterion.against] - values_KN
            title, value = f"drop against {criterion.against} at most {bar:g}", float(fall_KN.mean())
            low, high = evidence.mean(fall_KN, alpha, -1.0, 1.0)
            method = f"paired, {means}"
        case "invalid":
            unread_KN = (evidence.matrix.answers_KN == INVALID).astype(float)
            title, value = f"unreadable answers at most {bar:g}", float(unread_KN.mean())
            low, high = evidence.mean(unread_KN, alpha, 0.0, 1.0)
            method = means
        case "tokens":
            tokens_KN = evidence.matrix.tokens_KN.astype(float)
            most = float(max(evidence.answer_limit, tokens_KN.max(), 1))
            title, value = f"tokens per answer at most {bar:g}", float(tokens_KN.mean())
            low, high = evidence.mean(tokens_KN, alpha, 0.0, most)
            method = means
        case "prompt_sd":
            found = prompt_sd(values_KN, 1 - 2 * alpha)
            title, value = f"sd over prompts at most {bar:g}", found.value
            # an F interval holds for one look, the last: before it nothing is said
            low, high = (found.low, found.high) if evidence.last else (0.0, 0.5)
            method = "debiased, F interval, new prompts with normal accuracies" + (
                evidence.alone if evidence.last else "; judged when all cells are bought"
            )
    below = criterion.at_most is not None
    outcome: Outcome = "undecided"
    if (high <= bar) if below else (low >= bar):
        outcome = "pass"
    elif (low > bar) if below else (high < bar):
        outcome = "fail"
    return Checked(title, criterion.tier, outcome, value, low, high, bar, f"{method}; {k} prompts")


def _enough_prompts(criterion: CriterionConfig, evidence: _Evidence, alpha: float) -> Checked:
    """At least r of the K prompts have an accuracy of tau or more.

    Pass when r prompts have a lower bound of tau at level alpha / (K - r + 1): were fewer than r good, one of the K - r + 1
    worst would have to err. Fail when K - r + 1 prompts have an upper bound below tau at level alpha / r. The worst prompt's
    pass (r = K) so needs no correction for the number of prompts, its fail the full one.
    """
    accuracy_K = evidence.matrix.accuracy_K
    k = len(accuracy_K)
    tau = criterion.bar
    match criterion.measure:
        case "worst":
            needed, title = k, f"worst prompt at least {tau:g}"
        case "lowest":
            assert criterion.rank is not None
            if criterion.rank > k:
                raise ConfigError(
                    f"lowest with rank {criterion.rank}: the table has {k} prompts; give a rank up to that"
                )
            needed, title = k - criterion.rank + 1, f"{criterion.rank}-th worst prompt at least {tau:g}"
        case "p10":
            needed, title = math.ceil(0.9 * k - 1e-9), f"nine tenths of the prompts at least {tau:g}"
        case _:
            assert criterion.of is not None
            needed, tau = math.ceil(criterion.bar * k - 1e-9), criterion.of
            title = f"share of prompts with {tau:g} or more at least {criterion.bar:g}"
            if needed == 0:
                raise ConfigError("share at_least 0 demands nothing; give a share above 0")
    low_K, high_K = evidence.each_prompt(alpha / (k - needed + 1), alpha / needed)
    good, bad = int((low_K >= tau - 1e-12).sum()), int((high_K < tau).sum())
    outcome: Outcome = "pass" if good >= needed else "fail" if bad >= k - needed + 1 else "undecided"
    kind = "confidence sequences" if evidence.growing else "exact binomial bounds"
    method = f"{kind}, these prompts, new examples{evidence.alone}; needs {needed} of {k} prompts"
    if criterion.measure == "share":
        value = float((accuracy_K >= tau - 1e-12).mean())
        return Checked(title, criterion.tier, outcome, value, good / k, 1 - bad / k, criterion.bar, method)
    place = k - needed  # of the prompt in question, from below
    low, high = float(np.sort(low_K)[place]), float(np.sort(high_K)[place])
    return Checked(title, criterion.tier, outcome, float(np.sort(accuracy_K)[place]), low, high, tau, method)


def hunt(
    policy: PolicyConfig,
    examples: int,
    ask: Callable[[Sequence[int]], ScoreMatrix],
    order: Sequence[int],
    against: Mapping[str, np.ndarray] | None = None,
    answer_limit: int = 0,
) -> Verdict:
    """Buy examples under every prompt until the verdict is clear or none is left.

    ask: scores columns (indices of examples) and returns the table of all columns asked so far, in that order. order: the
    examples in a random order made before anything was seen, on which the sequences rest. against: baselines as in `judge`,
    columns in the order of `order`.
    """
    done, known = 0, dict(against or {})
    if holes := next((name for name, values_KN in known.items() if np.isnan(values_KN).any()), None):
        raise ShapeError(
            f"drop against {holes!r}: some of its cells are not scored; score it with evaluate.budget.kind=full"
        )
    for number, size in enumerate(looks(policy, examples), 1):
        matrix = ask(order[done:size])
        done = size
        bought = {name: values_KN[:, :size] for name, values_KN in known.items()}
        verdict = judge(matrix, policy, bought, look=number, last=size == examples, answer_limit=answer_limit)
        if verdict.word != "INCONCLUSIVE":
            break
    return verdict
