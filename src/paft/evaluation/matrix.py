"""The K x N table of scores: prompts by examples. Unbought is unknown, unparsable is wrong and counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paft.errors import ShapeError

INVALID = -1
"""Answer index of a completion that names no choice, or several."""
UNSCORED = -2
"""Answer index of a cell that was not scored."""
ALONE = ", those of one group (passage) as if they were independent"
"""What a method says of examples when it is not groups of them that are drawn."""


def groups_of(example_ids: Sequence[str], groups: Sequence[str]) -> tuple[str, ...] | None:
    """A group for each example, its own where none is named; None where no two share one, or all do."""
    found = tuple(group or f"alone {name}" for name, group in zip(example_ids, groups, strict=True))
    return found if 1 < len(set(found)) < len(found) else None


@dataclass(frozen=True, eq=False)
class ScoreMatrix:
    """Scores of one model by one scorer.

    values_KN: score in [0, 1], NaN where the cell was not scored. answers_KN: index of the choice given, INVALID for an
    unparsable answer (its value is 0), UNSCORED where it was not asked. tokens_KN: tokens generated (0 for restricted
    choice).
    ended_KN: whether the model ended its answer by itself. groups_N: what each example belongs to, where several stand on one thing
    (a passage); None where each stands alone. judge: the embedding model, or other rule, that scored answers by likeness; empty where none did.
    gold_N: index of the right choice of each example, where it is known.
    """

    prompt_ids: tuple[str, ...]
    example_ids: tuple[str, ...]
    values_KN: np.ndarray
    answers_KN: np.ndarray
    tokens_KN: np.ndarray
    ended_KN: np.ndarray
    groups_N: tuple[str, ...] | None = None
    judge: str = ""
    gold_N: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        shape = (len(self.prompt_ids), len(self.example_ids))
        for name in ("values_KN", "answers_KN", "tokens_KN", "ended_KN"):
            if getattr(self, name).shape != shape:
                raise ShapeError(f"{name} has shape {getattr(self, name).shape}; expected {shape} (prompts, examples)")

    @property
    def observed_KN(self) -> np.ndarray:
        """Which cells were scored."""
        return ~np.isnan(self.values_KN)

    @property
    def accuracy_K(self) -> np.ndarray:
        """Accuracy per prompt, in [0, 1], over its scored examples."""
        return np.nanmean(self.values_KN, axis=1)

    @property
    def invalid_K(self) -> np.ndarray:
        """Share of unparsable answers per prompt."""
        return (self.answers_KN == INVALID).sum(1) / np.maximum(1, self.observed_KN.sum(1))

    def on(self, prompt_ids: Sequence[str], example_ids: Sequence[str]) -> ScoreMatrix:
        """The part of these prompts and examples, in their order. Raises KeyError for one that the table lacks."""
        rows, columns = ({each: n for n, each in enumerate(ids)} for ids in (self.prompt_ids, self.example_ids))
        places_N = [columns[each] for each in example_ids]
        at = np.ix_([rows[each] for each in prompt_ids], places_N)
        groups_N = self.groups_N and groups_of(example_ids, [self.groups_N[n] for n in places_N])
        values = (self.values_KN[at], self.answers_KN[at], self.tokens_KN[at], self.ended_KN[at])
        gold_N = self.gold_N and tuple(self.gold_N[n] for n in places_N)
        return ScoreMatrix(tuple(prompt_ids), tuple(example_ids), *values, groups_N, self.judge, gold_N)


def tie_order(example_id: str, count: int, seed: int) -> list[int]:
    """Order in which tied choices of an example win: keyed by (seed, example), the same for all prompts and models."""
    import hashlib

    return sorted(range(count), key=lambda c: hashlib.sha256(f"{seed} {example_id} {c}".encode()).digest())


def restricted_choice(
    scores_C: Sequence[float], gold: int, example_id: str, seed: int = 0, tolerance: float = 1e-6
) -> tuple[int, float]:
    """(choice, score) of an argmax over choice scores. Choices within `tolerance` of the best are tied: a right one
    among t tied ones scores 1/t, and the choice reported is the first in `tie_order`.

    >>> restricted_choice([-1.0, -2.0], gold=0, example_id="x")
    (0, 1.0)
    """
    best = max(scores_C)
    tied = [c for c, score in enumerate(scores_C) if score == best or best - score <= tolerance]  # -inf too
    chosen = next(c for c in tie_order(example_id, len(scores_C), seed) if c in tied) if len(tied) > 1 else tied[0]
    return chosen, (1.0 / len(tied) if gold in tied else 0.0)
