"""Racing: the worst and the best prompt lie in their bounds however often one looks, and dropouts save cells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.special import expit

from paft.errors import ShapeError
from paft.evaluation.racing import Race, race


def raced(table_KN: np.ndarray, seed: int, **settings: object) -> tuple[list[Race], np.ndarray]:
    seen_KN = np.full(table_KN.shape, np.nan)

    def ask(cells: Sequence[tuple[int, int]]) -> np.ndarray:
        for k, i in cells:
            assert np.isnan(seen_KN[k, i]), "asked twice"
            seen_KN[k, i] = table_KN[k, i]
        return seen_KN

    order = np.random.default_rng(seed).permutation(table_KN.shape[1]).tolist()
    return race(len(table_KN), order, ask, **settings), seen_KN  # type: ignore[arg-type]


def table_of(accuracy_K: np.ndarray, num_examples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    centre_K = np.log(accuracy_K / (1 - accuracy_K)) * 1.3
    rate_KN = expit(centre_K[:, None] + generator.normal(0, 1.5, num_examples))
    return (generator.random(rate_KN.shape) < rate_KN).astype(float)


def test_a_clearly_bad_prompt_is_found_cheaply_and_known_well() -> None:
    accuracy_K = np.r_[np.full(29, 0.8), 0.3]
    (worst,), seen_KN = raced(table := table_of(accuracy_K, 1000, 0), 1, ends=["worst"], tolerance=0.02)
    assert np.flatnonzero(worst.possible_K).tolist() == [29]
    low, high = worst.bounds
    assert high - low <= 0.04
    assert low <= table[29].mean() <= high
    assert (~np.isnan(seen_KN)).mean() < 0.15
    found = worst.estimate(seen_KN, 0.95)
    assert found.name == "table_worst"
    assert "1 of 30 left" in found.method


def test_all_cells_make_both_ends_exact() -> None:
    table_KN = table_of(np.full(6, 0.7), 80, 3)
    (worst, best), seen_KN = raced(table_KN, 2, tolerance=0.0)
    assert worst.bounds == (table_KN.mean(1).min(),) * 2
    assert best.bounds == (table_KN.mean(1).max(),) * 2
    assert best.estimate(seen_KN, 0.95).value == table_KN.mean(1).max()


def test_no_more_cells_than_allowed() -> None:
    table_KN = table_of(np.full(10, 0.7), 500, 3)
    _, seen_KN = raced(table_KN, 2, tolerance=0.0, most=1200)
    assert (~np.isnan(seen_KN)).sum() <= 1200
    (worst, _), seen_KN = raced(table_KN, 2, tolerance=0.0, most=30)
    assert (~np.isnan(seen_KN)).sum() == 30
    assert worst.bounds[0] <= table_KN.mean(1).min() <= worst.bounds[1]
    with pytest.raises(ShapeError, match="9 cells for a race of 10 prompts"):
        raced(table_KN, 2, tolerance=0.0, most=9)


@pytest.mark.parametrize("spread", [0.0, 0.05])
def test_bounds_err_at_most_at_their_level(spread: float) -> None:
    """The truth is left at any look in at most 5 % of races; stopping at tolerance is one look of these."""
    missed = np.zeros(2)
    for seed in range(300):
        generator = np.random.default_rng(seed)
        table_KN = table_of(np.clip(0.8 + spread * generator.standard_normal(12), 0.1, 0.95), 150, seed)
        ends, _seen_KN = raced(table_KN, seed, tolerance=0.03)
        truths = table_KN.mean(1).min(), table_KN.mean(1).max()
        for n, (each, truth) in enumerate(zip(ends, truths, strict=True)):
            low, high = each.bounds
            missed[n] += not low - 1e-12 <= truth <= high + 1e-12
    assert (missed / 300 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)).all(), missed


def test_length_sorted_examples_break_it() -> None:
    """The order must not know the outcome: with the hard examples last, the bounds are wrong. Guards the test above."""
    wrong = 0
    for seed in range(40):
        table_KN = table_of(np.full(5, 0.7), 400, seed)
        table_KN = table_KN[:, np.argsort(-table_KN.mean(0))]
        seen_KN = np.full(table_KN.shape, np.nan)

        def ask(
            cells: Sequence[tuple[int, int]], seen_KN: np.ndarray = seen_KN, all_KN: np.ndarray = table_KN
        ) -> np.ndarray:
            for k, i in cells:
                seen_KN[k, i] = all_KN[k, i]
            return seen_KN

        (worst,) = race(5, range(400), ask, ends=["worst"], tolerance=0.05)
        wrong += not worst.bounds[0] <= table_KN.mean(1).min() <= worst.bounds[1]
    assert wrong > 20
