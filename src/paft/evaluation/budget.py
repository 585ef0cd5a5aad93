"""Which cells are bought: all of them, a balanced part, as many as an asked-for width takes, or those that decide a race."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from paft.config import CellBudgetConfig
from paft.evaluation.few import mean_of_few
from paft.evaluation.matrix import ALONE, INVALID, ScoreMatrix
from paft.evaluation.mixture import PromptMixture
from paft.evaluation.racing import FIRST, End, race
from paft.evaluation.sampling import BalancedOrder
from paft.evaluation.stats import Estimate, mean_estimate

SEED = 20240527
"""Of the order of cells: one for all models, so that they are compared on the same cells and prefixes are shared."""
Ask = Callable[[Sequence[tuple[int, int]]], Mapping[str, np.ndarray]]
"""Scores cells (prompt, example); returns the table of each scorer so far, values_KN with NaN where not asked."""


@dataclass(frozen=True, eq=False)
class Spent:
    """What a budget came to.

    sampled_KN: cells whose choice did not depend on what other cells of their kind showed; all estimates but those of a race
    rest on them. level: of the intervals at this look, when several share one error. looks: how often intervals were compared
    with their targets. extremes: table_worst and table_best of a race, by scorer. missed: targets that were not reached.
    """

    kind: str
    sampled_KN: np.ndarray
    cells: int
    level: float
    looks: int = 0
    planned: int | None = None
    extremes: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    missed: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Every cell was bought."""
        return self.cells == self.sampled_KN.size

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the results file."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("sampled_KN", "extremes")}
        sampled = int(self.sampled_KN.any(0).sum())
        return plain | {"of": self.sampled_KN.size, "sampled_examples": sampled, "missed": list(self.missed)}


def spend(
    budget: CellBudgetConfig,
    shape: tuple[int, int],
    scorers: Sequence[str],
    ask: Ask,
    level: float,
    say: Callable[[str], None] = lambda _: None,
    groups_N: Sequence[object] | None = None,
) -> Spent:
    """Buy cells of a K x N grid through `ask` as the budget says. `say` hears the plan and what came of it.

    groups_N: as clusters_N of `stats.mean_estimate`, by which `mean` of the whole table is judged.
    """
    return _Purse(budget, shape, scorers, ask, level, say, groups_N).spend()


def planned_cells(budget: CellBudgetConfig, shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Cells (prompt, example) of a budget that does not depend on answers: full or balanced."""
    purse = _Purse(budget, shape, (), lambda _: {}, 0.95, lambda _: None)
    return purse.until(0, purse.limit)


class _Purse:
    def __init__(
        self,
        budget: CellBudgetConfig,
        shape: tuple[int, int],
        scorers: Sequence[str],
        ask: Ask,
        level: float,
        say: Callable[[str], None],
        groups_N: Sequence[object] | None = None,
    ):
        self.budget, self.shape, self.scorers, self.level, self.say = budget, shape, scorers, level, say
        self.groups_N = groups_N
        self.order = BalancedOrder(*shape, SEED)
        self.size = len(self.order)
        self.limit = min(self.size, budget.cells or (4 * shape[1] if budget.kind == "balanced" else self.size))
        self.bought_KN = np.zeros(shape, dtype=bool)
        self.tables: Mapping[str, np.ndarray] = {}
        self._ask = ask

    def new(self, cells: Sequence[tuple[int, int]]) -> int:
        return sum(not self.bought_KN[cell] for cell in cells)

    def ask(self, cells: Sequence[tuple[int, int]]) -> None:
        self.tables = self._ask([cell for cell in cells if not self.bought_KN[cell]])
        for cell in cells:
            self.bought_KN[cell] = True

    def spend(self) -> Spent:
        kind, cells = self.budget.kind, self.limit
        if kind == "full":
            self.ask(self.until(0, self.size))
            return self._spent(self.level)
        if kind == "balanced":
            self.say(f"plan: {cells:,} of {self.size:,} cells ({cells / self.size:.1%}), balanced")
            self.ask(self.until(0, cells))
            return self._spent(self.level)
        targets = self.budget.targets
        widths = {name: width for name, width in targets.items() if name not in ("table_worst", "table_best")}
        spent = self._narrow(widths) if widths else None
        ends: list[End] = [end for end in ("worst", "best") if f"table_{end}" in targets]
        if ends and (spent is None or not spent.whole):
            return self._race(ends, spent)
        assert spent is not None, "a budget without targets"
        return spent

    def until(self, start: int, stop: int) -> list[tuple[int, int]]:
        k, i = self.order.cells(start, stop)
        return list(zip(k.tolist(), i.tolist(), strict=True))

    def _narrow(self, widths: Mapping[str, float]) -> Spent:
        """Balanced cells until every interval is narrow enough.

        A first part tells how many cells it takes (Stein 1945), and looks are few: each takes four fifths of what is left of
        the interval's error, so that all of them together err at the stated level.
        """
        num_prompts, num_examples = self.shape
        done = min(self.limit, max(20 * num_prompts, min(2 * num_examples, 2000)))
        self.say(f"plan: {done:,} of {self.size:,} cells first, to tell how many it takes")
        self.ask(self.until(0, done))
        looks, planned, wanting = 0, None, list(widths)
        left = 1 - self.level
        while done < self.limit:
            alpha = 0.8 * left
            least = math.ceil(1.15 * done) if looks else done
            needed = min(self.size, max(self._needed(widths, 1 - alpha, done), least))
            planned = planned or needed
            self.say(
                f"plan: about {needed:,} of {self.size:,} cells ({needed / self.size:.1%}) for "
                + ", ".join(f"{name} +-{100 * width:g} points" for name, width in widths.items())
            )
            target = min(self.limit, needed)
            if target > done:
                self.ask(self.until(done, target))
                done = target
            left -= alpha
            looks += 1
            wanting = self._wanting(widths, 1 - alpha)
            if not wanting:
                return self._spent(1 - alpha, looks, planned)
        if done == self.size:  # of the table itself nothing is left to know; of new prompts and examples there is
            level, widths = self.level, {name: width for name, width in widths.items() if not name.startswith("table_")}
        else:
            level = 1 - left if looks else self.level
        missed = tuple(self._wanting(widths, level))
        if missed:
            self.say(f"budget of {self.limit:,} cells spent; not reached: {', '.join(missed)}")
        return self._spent(level, looks, planned, missed)

    def _estimates(self, widths: Mapping[str, float], level: float) -> list[dict[str, Estimate]]:
        """Of each scorer; the model is only asked when something needs it."""
        plain = set(widths) <= {"table_mean", "mean"}
        return [
            {"mean": self._mean(table_KN, level)}
            | ({"table_mean": mean_of_few(table_KN, level)} if plain else PromptMixture(table_KN).estimates(level))
            for table_KN in self.tables.values()
        ]

    def _mean(self, table_KN: np.ndarray, level: float) -> Estimate:
        if np.isnan(table_KN).any():
            return mean_of_few(table_KN, level, "both")
        return mean_estimate(table_KN, level, clusters_N=self.groups_N)

    def _wanting(self, widths: Mapping[str, float], level: float) -> list[str]:
        if not widths:
            return []
        found = self._estimates(widths, level)
        return [
            name
            for name, width in widths.items()
            if not all(
                (e[name].high - e[name].low) / 2 <= width + 1e-12 for e in found
            )  # also where there is no interval
        ]

    def _needed(self, widths: Mapping[str, float], level: float, done: int) -> int:
        """Cells at which all widths should be reached: they go with the root of 1/B - 1/(KN). A twentieth is added."""
        needed = done
        for estimates in self._estimates(widths, level):
            for name, width in widths.items():
                half = (estimates[name].high - estimates[name].low) / 2 * 1.05
                if half > width:
                    rest = (1 / done - 1 / self.size) * (width / half) ** 2
                    needed = max(needed, math.ceil(1 / (rest + 1 / self.size)))
        return needed

    def _race(self, ends: Sequence[End], before: Spent | None) -> Spent:
        """Races of each scorer on one random order of the examples; what earlier parts bought is not paid for again."""
        num_prompts, num_examples = self.shape
        order = np.random.default_rng([SEED, num_examples]).permutation(num_examples).tolist()
        block_KN = np.zeros(self.shape, dtype=bool)
        block_KN[:, order[: min(FIRST, self.limit // num_prompts)]] = True
        spent = before or Spent(self.budget.kind, block_KN, 0, self.level)
        names = [f"table_{end}" for end in ends]
        widths = {name: self.budget.targets[name] for name in names}
        tolerance = min(widths.values())
        self.say(
            f"plan: race for the {' and the '.join(ends)} prompt to +-{100 * tolerance:g} points, from {FIRST} examples "
            f"under each of {num_prompts} prompts; all who may still be it go on"
        )
        extremes: dict[str, dict[str, Estimate]] = {}
        for scorer in self.scorers:
            most = self.limit - int(self.bought_KN.sum())
            if self.new([(k, order[0]) for k in range(num_prompts)]) > most:
                break

            def ask(cells: Sequence[tuple[int, int]], scorer: str = scorer) -> np.ndarray:
                self.ask(cells)
                return self.tables[scorer]

            ran = race(
                num_prompts, order, ask, ends=ends, tolerance=tolerance, level=self.level, most=most, price=self.new
            )
            extremes[scorer] = {f"table_{each.end}": each.estimate(self.tables[scorer], self.level) for each in ran}
        wide = [
            name
            for name in names
            if any(
                name not in (found := extremes.get(s, {}))
                or found[name].high - found[name].low > 2 * widths[name] + 1e-12
                for s in self.scorers
            )
        ]
        count = int(self.bought_KN.sum())
        if wide:
            self.say(f"{count:,} cells spent of a budget of {self.limit:,}; not reached: {', '.join(wide)}")
        return replace(spent, cells=count, extremes=extremes, missed=(*spent.missed, *wide))

    def _spent(self, level: float, looks: int = 0, planned: int | None = None, missed: tuple[str, ...] = ()) -> Spent:
        count = int(self.bought_KN.sum())
        return Spent(self.budget.kind, self.bought_KN.copy(), count, level, looks, planned, missed=missed)


def few_estimates(matrix: ScoreMatrix, scorer: str, spent: Spent, thresholds: Sequence[float]) -> dict[str, Estimate]:
    """Estimates of a table that was not bought whole, by name; table_ ones are about exactly these prompts and examples."""
    values_KN = np.where(spent.sampled_KN, matrix.values_KN, np.nan)
    found = PromptMixture(values_KN).estimates(spent.level, thresholds)
    unread_KN = np.where(spent.sampled_KN, (matrix.answers_KN == INVALID).astype(float), np.nan)
    anew, unread = (mean_of_few(few_KN, spent.level, "both") for few_KN in (values_KN, unread_KN))
    alone = ALONE if matrix.groups_N is not None else ""
    return (
        {"mean": replace(anew, method=anew.method + alone)}
        | found
        | dict(spent.extremes.get(scorer, {}))
        | {"invalid": replace(unread, name="invalid", method=unread.method + alone)}
    )


def expected_accuracies(matrix: ScoreMatrix, spent: Spent) -> np.ndarray:
    """Accuracy of each prompt over all examples, accuracy_K, as far as the cells tell."""
    return PromptMixture(np.where(spent.sampled_KN, matrix.values_KN, np.nan)).accuracy_K
