"""Figures from a part of the cells: right on average, and covered at their level (STATISTICS: fixed set and population)."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import ShapeError
from paft.evaluation.comparisons import pairwise
from paft.evaluation.few import compare_few, drawn_bounds, mean_of_few, sampled, worst_of_few
from paft.evaluation.sampling import BalancedOrder
from paft.evaluation.stats import mean_estimate
from paft.evaluation.variance import decompose, squared_error
from paft.reports.tables import between
from paft.reports.verdict import pairs_table


def logistic_table(
    generator: np.random.Generator, shape: tuple[int, int], t: float, centre: float = 1.0, w: float = 0.5
) -> np.ndarray:
    from scipy.special import expit

    logit_KN = generator.normal(0, t, (shape[0], 1)) + generator.normal(centre, 1.5, (1, shape[1]))
    return (generator.random(shape) < expit(logit_KN + generator.normal(0, w, shape))).astype(float)


def part_of(values_KN: np.ndarray, cells: int, seed: int) -> np.ndarray:
    k, i = BalancedOrder(*values_KN.shape, seed).cells(0, cells)
    part_KN = np.full(values_KN.shape, np.nan)
    part_KN[k, i] = values_KN[k, i]
    return part_KN


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 7), (12, 18), (3, 3), (1, 5), (5, 1), (40, 32), (50, 1000)])
def test_every_prefix_of_the_order_is_balanced(shape: tuple[int, int]) -> None:
    order = BalancedOrder(*shape, seed=3)
    k, i = order.cells(0, len(order))
    assert len(set(zip(k.tolist(), i.tolist(), strict=True))) == len(k) == len(order) == math.prod(shape)
    cuts = range(len(order)) if len(order) < 1000 else range(1, len(order), 997)
    for stop in cuts:
        for chosen, size in ((k[:stop], shape[0]), (i[:stop], shape[1])):
            visits = np.bincount(chosen, minlength=size)
            assert visits.max() - visits.min() <= 1
    middle = order.cells(5, 9)
    assert [each.tolist() for each in middle] == [k[5:9].tolist(), i[5:9].tolist()]
    assert BalancedOrder(*shape, seed=3).cells(0, 9)[1].tolist() == i[:9].tolist()
    if len(order) > 100:
        assert BalancedOrder(*shape, seed=4).cells(0, 100)[1].tolist() != i[:100].tolist()


def test_a_prompt_meets_examples_evenly() -> None:
    """Cells of a prompt are a random sample of the examples: over seeds, every example comes up equally often."""
    seen_N = np.zeros(12)
    for seed in range(2000):
        k, i = BalancedOrder(4, 12, seed).cells(0, 16)
        seen_N[i[k == 1]] += 1
    expected = 2000 * 4 / 12
    assert ((seen_N - expected) ** 2 / expected).sum() < 40  # chi-square with 11 degrees of freedom: 1e-4 lies at 37


@pytest.mark.parametrize("shape", [(40, 32), (50, 300), (48, 36)])
def test_prompts_share_examples_as_often_as_chance_has_it(shape: tuple[int, int]) -> None:
    """Also where K and N have large divisors in common, which a walk down the diagonal shows: groups of prompts see the same."""
    k, i = BalancedOrder(*shape, seed=1).cells(0, 4 * shape[1])
    asked_KN = np.zeros(shape)
    asked_KN[k, i] = 1
    shared = (asked_KN @ asked_KN.T)[np.triu_indices(shape[0], 1)]
    per_prompt = 4 * shape[1] / shape[0]
    assert shared.mean() == pytest.approx(per_prompt**2 / shape[1], rel=0.25)
    assert shared.var() < 1.3 * shared.mean()


def test_a_complete_table_gives_what_the_complete_formulas_give() -> None:
    values_KN = logistic_table(np.random.default_rng(0), (12, 200), 0.6)
    exact = mean_of_few(values_KN)
    assert exact.value == exact.low == exact.high == values_KN.mean()
    assert "all 2400 cells" in exact.method
    components, found = decompose(values_KN), sampled(values_KN)
    assert found.s2_prompt == pytest.approx(components.s2_prompt)
    assert found.s2_residual == pytest.approx(components.s2_residual)
    assert found.squared_error == pytest.approx(0, abs=1e-12)
    assert found.error_anew[0] == pytest.approx(squared_error(values_KN)[0], rel=0.02)
    anew, two_way = mean_of_few(values_KN, over="both"), mean_estimate(values_KN)
    assert anew.value == two_way.value
    assert anew.name == "mean"


@pytest.mark.parametrize(("cells", "t"), [(200, 0.3), (500, 0.3), (900, 0.0), (900, 1.0), (2500, 0.3)])
def test_the_mean_is_unbiased_and_covered(cells: int, t: float) -> None:
    generator = np.random.default_rng(cells)
    table_KN = logistic_table(generator, (20, 200), t)
    truth = table_KN.mean()
    found = [mean_of_few(part_of(table_KN, cells, seed)) for seed in range(400)]
    error_R = np.array([each.value - truth for each in found])
    assert abs(error_R.mean()) < 4 * error_R.std() / 20
    inside = np.mean([each.low <= truth <= each.high for each in found])
    assert 0.92 <= inside <= (1.0 if cells == 200 else 0.985)  # one visit per example: cautious, and said so
    predicted = np.mean([sampled(part_of(table_KN, cells, seed)).squared_error for seed in range(50)])
    assert predicted >= 0.85 * error_R.var()
    if cells > 400:
        assert predicted == pytest.approx(error_R.var(), rel=0.25)


@pytest.mark.parametrize("visits", [2, 3, 4])
def test_the_mean_of_a_table_of_fewer_examples_than_prompts_is_covered(visits: int) -> None:
    """Three cells of a prompt: few pairs of prompts share examples, and their differences alone do not tell the residual."""
    inside = []
    for seed in range(300):
        table_KN = logistic_table(np.random.default_rng(seed), (40, 32), 0.3)
        found = mean_of_few(part_of(table_KN, visits * 32, seed))
        inside.append(found.low <= table_KN.mean() <= found.high)
    assert 0.925 <= np.mean(inside) <= 0.995


def test_the_mean_over_new_prompts_and_examples_is_covered() -> None:
    from scipy.special import expit

    generator = np.random.default_rng(5)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float((expit(1 + math.sqrt(1.5**2 + 0.5**2 + 0.4**2) * nodes) * weights).sum() / weights.sum())
    inside, naive = [], []
    for seed in range(400):
        part_KN = part_of(logistic_table(generator, (20, 200), 0.4), 800, seed)
        found = mean_of_few(part_KN, over="both")
        inside.append(found.low <= truth <= found.high)
        naive.append(abs(found.value - truth) < 1.96 * math.sqrt(found.value * (1 - found.value) / 800))
    assert 0.925 <= np.mean(inside) <= 0.99
    assert np.mean(naive) < 0.85


def test_examples_seen_once_each_leave_the_prompts_variance_known() -> None:
    """No two prompts share an example: what their means vary by beyond noise is theirs, as between groups of one-way tables."""
    from scipy.special import expit

    generator, t = np.random.default_rng(8), 0.4
    nodes = np.random.default_rng(0).normal(0, math.sqrt(t**2 + 1.5**2 + 0.5**2), 400_000)
    truth, inside, half, variance = float(expit(1 + nodes).mean()), 0, [], []
    for seed in range(200):
        part_KN = part_of(logistic_table(generator, (20, 1200), t), 1200, seed)
        found = mean_of_few(part_KN, 0.95, "both")
        inside += found.low <= truth <= found.high
        half.append((found.high - found.low) / 2)
        variance.append(sampled(part_KN).s2_prompt)
    assert 0.9 <= inside / 200 <= 0.985
    assert np.mean(half) < 0.05
    effects = expit(1 + generator.normal(0, t, (2000, 1)) + generator.normal(0, math.hypot(1.5, 0.5), 2000)).mean(1)
    assert np.mean(variance) == pytest.approx(effects.var(), rel=0.25)


def test_examples_seen_under_several_prompts_are_not_new_ones() -> None:
    """Hardly more cells than prompts, five to an example: what makes an example hard is drawn with it."""
    from scipy.special import expit

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = float((expit(1 + math.sqrt(1.5**2 + 0.5**2 + 0.3**2) * nodes) * weights).sum() / weights.sum())
    inside = []
    for seed in range(300):
        table_KN = logistic_table(np.random.default_rng(seed), (400, 100), 0.3)
        found = mean_of_few(part_of(table_KN, 480, seed), over="both")
        inside.append(found.low <= truth <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.985


@pytest.mark.parametrize("over", ["table", "both"])
def test_a_cell_of_each_prompt_gives_no_interval(over) -> None:
    table_KN = logistic_table(np.random.default_rng(0), (20, 200), 0.3)
    for part_KN in (part_of(table_KN, 20, 1), np.where(np.arange(200) == 0, table_KN, np.nan)):
        found = mean_of_few(part_KN, over=over)
        assert found.value == np.nanmean(part_KN)
        assert math.isnan(found.low)
        assert math.isnan(found.high)
    found = mean_of_few(part_of(table_KN, 60, 1), over=over)
    assert found.low < found.value < found.high


def test_all_cells_alike() -> None:
    part_KN = part_of(np.ones((5, 40)), 80, 1)
    found = mean_of_few(part_KN)
    assert found.value == found.high == 1.0
    assert found.low == pytest.approx(1 - (1 - 0.025 ** (1 / 40)) * (1 - 80 / 200))
    assert mean_of_few(part_KN, over="both").low == pytest.approx(0.025 ** (1 / 40))


def test_prompts_that_agree_wherever_they_were_seen_together_may_differ_elsewhere() -> None:
    """A cell in a hundred differs: in a third of the samples no example shows it, and the residual is 0."""
    inside = []
    for seed in range(300):
        generator = np.random.default_rng(seed)
        flipped_KN = generator.random((20, 50)) < 0.01
        table_KN = ((generator.random(50) < 0.7) ^ flipped_KN).astype(float)
        found = mean_of_few(part_of(table_KN, 100, seed))
        inside.append(found.low <= table_KN.mean() <= found.high)
    assert np.mean(inside) >= 0.93
    agreed_KN = np.tile(np.arange(60) % 3 > 0, (5, 1)).astype(float)
    found = mean_of_few(part_of(agreed_KN, 240, 1))
    assert found.high - found.value == pytest.approx((1 - 0.025 ** (1 / 60)) * (1 - 240 / 300))


@given(st.integers(1, 60), st.data())
def test_drawn_bounds_hold_what_was_drawn_and_close(population: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, population))
    total = data.draw(st.integers(0, count))
    low, high = drawn_bounds(total, count, population, 0.025)
    assert total / population - 1e-12 <= low <= high <= (population - (count - total)) / population + 1e-12
    wider = drawn_bounds(total, count, population, 0.001)
    assert wider[0] <= low
    assert high <= wider[1]
    assert drawn_bounds(total, population, population, 0.025)[0] == total / population if count == population else True


def test_drawn_bounds_err_at_most_at_their_level() -> None:
    generator = np.random.default_rng(2)
    for right, population, count in ((30, 40, 10), (95, 100, 60), (3, 50, 20)):
        totals = generator.hypergeometric(right, population - right, count, 4000)
        bounds = {int(total): drawn_bounds(float(total), count, population, 0.05) for total in set(totals.tolist())}
        above = np.mean([bounds[int(total)][0] > right / population for total in totals])
        below = np.mean([bounds[int(total)][1] < right / population for total in totals])
        assert max(above, below) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


def test_the_worst_prompt_lies_within_its_bounds() -> None:
    table_KN = logistic_table(np.random.default_rng(3), (20, 200), 0.3)
    found = [worst_of_few(part_of(table_KN, 800, seed)) for seed in range(200)]
    truth = table_KN.mean(1).min()
    assert np.mean([each.low <= truth <= each.high for each in found]) >= 0.95
    whole = worst_of_few(table_KN)
    assert whole.low == whole.high == whole.value == truth


def test_prompts_without_shared_cells_are_not_counted(recwarn: pytest.WarningsRecorder) -> None:
    """Ten prompts of which four have shared cells, 23 of them; a is right and b wrong in each."""
    a_KN, b_KN = np.full((10, 8), np.nan), np.full((10, 8), np.nan)
    a_KN[:4, :6], b_KN[:4, :6] = 1, 0
    b_KN[3, 5] = np.nan
    a_KN[4:7], b_KN[7:] = 1, 1  # by one of both
    (found,) = pairwise({"b": b_KN, "a": a_KN})
    assert (found.comparison.mean.prompts, found.comparison.ahead, found.comparison.cells) == (4, 1.0, 23)
    assert "4 of 4 prompts, 23 shared cells" in pairs_table([found])
    assert "| o 1/rün &lt;b>\\|:b | y |" in pairs_table([replace(found, a="o 1/rün <b>|:b", b="y")])
    assert "prompts x" not in pairs_table([found])
    row = between([found], "likelihood").rows[0]
    assert (row.ahead, row.ahead_count) == ("100", "4 of 4 prompts, 23 shared cells")
    assert not recwarn.list
    a_KN[1:4] = np.nan
    with pytest.raises(ShapeError, match="share cells of fewer than 2 prompts"):
        compare_few(a_KN, b_KN)


def test_p_of_a_part_of_the_cells_counts_the_examples_of_that_part() -> None:
    """Three shared cells, a right and b wrong in each, of 40 examples on 20 passages."""
    b_KN = np.full((3, 40), np.nan)
    b_KN[[0, 1, 2], [1, 4, 7]] = 0
    (found,) = pairwise({"b": b_KN, "a": b_KN + 1}, clusters_N=[n // 2 for n in range(40)])
    assert found.comparison.mean.low < 0
    assert found.p == pytest.approx(2 * 0.5**3)


def test_a_pair_without_an_interval_is_printed_without_brackets() -> None:
    b_KN = np.full((3, 12), np.nan)
    b_KN[[0, 1, 2], [1, 4, 7]] = 0, 0, 1
    a_KN = b_KN.copy()
    a_KN[0, 1] = 1
    (found,) = pairwise({"b": b_KN, "a": a_KN})
    assert "| +33.3 |" in pairs_table([found])
