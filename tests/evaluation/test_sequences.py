"""Bounds that one may look at all the time: known values, and coverage when one stops at the worst moment."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as distributions

from paft.errors import ShapeError
from paft.evaluation.sequences import betting_bounds, exhausting_bounds, proportion_bounds


@pytest.mark.parametrize(
    ("total", "count", "low", "high"),
    [
        (10, 10, 0.583120, 1),
        (90, 100, 0.771729, 0.971158),
        (900, 1000, 0.861633, 0.931220),
        (0, 10, 0, 0.416880),
        (0, 0, 0, 1),
    ],
)
def test_known_values_of_the_binomial_mixture(total, count, low, high):
    bounds = proportion_bounds(np.array([float(total)]), count, 0.05)
    assert [float(b[0]) for b in bounds] == pytest.approx([low, high], abs=1e-6)


@pytest.mark.parametrize(
    ("total", "count", "population", "bounds"),
    [
        (10, 10, 20, (14, 20)),
        (7, 10, 10, (7, 7)),
        (90, 100, 1000, (778, 968)),
        (450, 500, 1000, (861, 929)),
        (810, 900, 1000, (886, 909)),
    ],
)
def test_known_values_without_replacement(total, count, population, bounds):
    assert exhausting_bounds(total, count, population, 0.05) == bounds


def test_known_values_of_betting():
    assert betting_bounds(np.ones(10), 0.05)[0] == pytest.approx(0.442102, abs=1e-6)
    assert betting_bounds(np.ones(10), 0.025)[0] == pytest.approx(0.397458, abs=1e-6)
    ninety = np.array([1.0] * 90 + [0.0] * 10)
    assert betting_bounds(ninety, 0.025) == pytest.approx((0.770067, 0.969757), abs=1e-6)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), max_size=40), st.sampled_from([0.01, 0.05, 0.2]))
def test_bounds_hold_the_mean_mirror_each_other_and_widen_with_certainty(scores, alpha):
    scores_N = np.array(scores)
    mean = scores_N.mean() if scores else 0.5
    for bounds, mirrored, wider in (
        (betting_bounds(scores_N, alpha), betting_bounds(1 - scores_N, alpha), betting_bounds(scores_N, alpha / 2)),
        *(
            tuple(
                tuple(float(b[0]) for b in proportion_bounds(np.array([total]), len(scores), level))
                for total, level in (
                    (scores_N.sum(), alpha),
                    (len(scores) - scores_N.sum(), alpha),
                    (scores_N.sum(), alpha / 2),
                )
            )
            for _ in range(1)
        ),
    ):
        low, high = bounds
        assert 0 <= low <= mean <= high <= 1
        assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
        assert wider[0] <= low + 1e-12
        assert wider[1] >= high - 1e-12


@pytest.mark.parametrize(("scores", "count"), [([-1.0], 3), ([4.0], 3)])
def test_sums_that_cannot_be_are_refused(scores, count):
    with pytest.raises(ShapeError, match="outside 0 and their count"):
        proportion_bounds(np.array(scores), count, 0.05)


def test_scores_that_cannot_be_are_refused():
    with pytest.raises(ShapeError, match="from 0 to 1"):
        betting_bounds(np.array([0.0, 1.5]), 0.05)
    with pytest.raises(ShapeError, match="3 right of 2 drawn"):
        exhausting_bounds(3, 2, 10, 0.05)


RUNS, LONGEST = 600, 2000


@pytest.mark.parametrize("mean", [0.5, 0.9, 0.97])
def test_the_truth_is_left_at_any_time_with_chance_alpha_at_most_and_by_a_fixed_interval_far_more_often(mean):
    total_RT = (np.random.default_rng(7).random((RUNS, LONGEST)) < mean).cumsum(1)
    looks = np.arange(10, LONGEST + 1, 5)
    left_R, left_fixed_R = np.zeros(RUNS, dtype=bool), np.zeros(RUNS, dtype=bool)
    for n in looks:
        total_R = total_RT[:, n - 1]
        low_R, high_R = proportion_bounds(total_R, n, 0.05)
        left_R |= (low_R > mean) | (high_R < mean)
        share_R = total_R / n
        half_R = distributions.norm.ppf(0.975) * np.sqrt(np.maximum(share_R * (1 - share_R), 1e-9) / n)
        left_fixed_R |= abs(share_R - mean) > half_R
    assert left_R.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / RUNS)
    assert left_fixed_R.mean() > 0.3


def test_paired_differences_are_left_with_chance_alpha_at_most_and_bounded_more_tightly_by_betting():
    generator = np.random.default_rng(8)
    runs, n, mean = 150, 1000, 0.01
    kind_RN = generator.random((runs, n))
    difference_RN = (kind_RN < 0.025).astype(float) - (kind_RN > 1 - 0.015)
    left, widths = 0, []
    for difference_N in difference_RN:
        scores_N = (difference_N + 1) / 2
        inside = True
        for look in range(50, n + 1, 95):
            low, high = betting_bounds(scores_N[:look], 0.025)
            inside &= 2 * low - 1 <= mean <= 2 * high - 1
        left += not inside
        widths.append(2 * (high - low))
    assert left / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    low, high = proportion_bounds(np.array([scores_N.sum()]), n, 0.05)
    assert np.mean(widths) < 0.06 < 2 * float(high[0] - low[0])


def test_drawing_without_replacement_leaves_the_exact_count_with_chance_alpha_at_most():
    generator, runs, population, right = np.random.default_rng(9), 300, 200, 170
    left = 0
    for _ in range(runs):
        total_N = generator.permutation([1] * right + [0] * (population - right)).cumsum()
        bounds = [exhausting_bounds(int(total_N[n - 1]), n, population, 0.05) for n in range(10, population + 1, 10)]
        left += any(not low <= right <= high for low, high in bounds)
        assert bounds[-1] == (right, right)
    assert left / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_bounds_of_each_prompt_hold_when_the_next_prompt_is_chosen_by_what_was_seen():
    generator, runs, mean_K = np.random.default_rng(10), 400, np.array([0.7, 0.75, 0.9, 0.5])
    total_RK, count_RK, inside_R = np.zeros((runs, 4)), np.zeros((runs, 4)), np.ones(runs, dtype=bool)
    for _ in range(120):
        low_RK, high_RK = proportion_bounds(total_RK, count_RK, 0.05 / 4)
        inside_R &= ((low_RK <= mean_K) & (mean_K <= high_RK)).all(1)
        next_R = np.where(generator.random(runs) < 0.5, low_RK.argmin(1), high_RK.argmin(1))
        total_RK[np.arange(runs), next_R] += generator.binomial(5, mean_K[next_R])
        count_RK[np.arange(runs), next_R] += 5
    assert 1 - inside_R.mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
