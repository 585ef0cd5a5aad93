"""Racing for the worst and the best prompt: cells go to prompts that may still be it (Maron and Moore 1994)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from paft.errors import ShapeError
from paft.evaluation.sequences import exhausting_bounds
from paft.evaluation.stats import Estimate

End = Literal["worst", "best"]
FIRST, GROWTH = 50, 1.4
"""Examples under every prompt before anyone can drop out, and by how much a look's examples outnumber the last one's."""


@dataclass
class Race:
    """The race for one end. low_K, high_K: bounds of each prompt's accuracy on exactly these examples, at every look.

    For the worst prompt: an error of the least lower bound needs one of that prompt's own, at level alpha / 2; an error of
    the least upper bound may come from any of K, each at alpha / (2K). For the best prompt the sides are exchanged.
    """

    end: End
    num_prompts: int
    examples: int
    alpha: float
    low_K: np.ndarray = field(init=False)
    high_K: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.low_K, self.high_K = np.zeros(self.num_prompts), np.ones(self.num_prompts)

    def see(self, k: int, total: float, count: int) -> None:
        """A prompt's score on the first `count` examples; fractions are rounded outwards."""
        shared = self.alpha / (2 * self.num_prompts)
        low_alpha, high_alpha = (self.alpha / 2, shared) if self.end == "worst" else (shared, self.alpha / 2)
        least, _ = exhausting_bounds(math.floor(total + 1e-9), count, self.examples, low_alpha)
        _, most = exhausting_bounds(math.ceil(total - 1e-9), count, self.examples, high_alpha)
        low, high = least / self.examples, most / self.examples
        if max(low, self.low_K[k]) <= min(
            high, self.high_K[k]
        ):  # else one of the looks was the rare wrong one: trust more cells
            low, high = max(low, self.low_K[k]), min(high, self.high_K[k])
        self.low_K[k], self.high_K[k] = low, high

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the accuracy of the worst (best) prompt."""
        extreme = np.min if self.end == "worst" else np.max
        return float(extreme(self.low_K)), float(extreme(self.high_K))

    @property
    def possible_K(self) -> np.ndarray:
        """Prompts that may still be it."""
        low, high = self.bounds
        mask_K: np.ndarray = self.low_K <= high + 1e-12 if self.end == "worst" else self.high_K >= low - 1e-12
        return mask_K

    def estimate(self, values_KN: np.ndarray, level: float) -> Estimate:
        """table_worst or table_best. values_KN: scores, NaN where not asked."""
        low, high = self.bounds
        seen_K = np.nanmean(values_KN[self.possible_K], axis=1)
        value = float(np.clip(seen_K.min() if self.end == "worst" else seen_K.max(), low, high))
        left = int(self.possible_K.sum())
        method = f"racing, confidence sequences, these prompts, these examples; {left} of {self.num_prompts} left in the race"
        return Estimate(f"table_{self.end}", value, low, high, level, method, self.num_prompts, self.examples)


def race(
    num_prompts: int,
    order: Sequence[int],
    ask: Callable[[Sequence[tuple[int, int]]], np.ndarray],
    *,
    ends: Sequence[End] = ("worst", "best"),
    tolerance: float,
    level: float = 0.95,
    most: int | None = None,
    price: Callable[[Sequence[tuple[int, int]]], int] = len,
) -> list[Race]:
    """Buy cells until the accuracy of the worst and of the best prompt is known to +-tolerance, or the next look would take
    their price above `most`. Each end holds at `level`, however often was looked.

    order: the examples in a random order made before anything was seen; who drops out stops at a place in it. ask: scores
    cells (prompt, example) and returns the table so far, scores 0 to 1, NaN where not asked. price: how many of some cells are new.
    """
    num_examples = len(order)
    size = min(FIRST, num_examples)
    while most is not None and size and price([(k, i) for i in order[:size] for k in range(num_prompts)]) > most:
        size -= 1
    if not size:
        raise ShapeError(f"{most} cells for a race of {num_prompts} prompts; expected one each, better {FIRST}")
    races = [Race(end, num_prompts, num_examples, 1 - level) for end in ends]
    running, done, spent = list(range(num_prompts)), 0, 0
    while running:
        cells = [(k, i) for i in order[done:size] for k in running]
        spent += price(cells)
        if most is not None and spent > most:
            break
        values_KN = ask(cells)
        seen = list(order[:size])
        for k in running:
            for each in races:
                each.see(k, float(values_KN[k, seen].sum()), size)
        open_K = np.zeros(num_prompts, dtype=bool)
        for each in races:
            low, high = each.bounds
            if high - low > 2 * tolerance + 1e-12:
                open_K |= each.possible_K
        running = [k for k in running if open_K[k]] if size < num_examples else []
        done, size = size, min(num_examples, max(size + 1, math.ceil(size * GROWTH)))
    return races
