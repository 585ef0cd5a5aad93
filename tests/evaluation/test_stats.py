"""Closed forms against worked examples, identities, and intervals against drawn tables with a known truth."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit
from scipy.stats import binom, norm
from scipy.stats import t as student

from paft.errors import ShapeError
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix
from paft.evaluation.stats import (
    Estimate,
    _pair_agreement,
    _s2_prompt_interval,
    all_estimates,
    best_prompt,
    compare,
    consistency,
    decompose,
    lags,
    mean_estimate,
    prompt_sd,
    quantile_over_prompts,
    raw_sd,
    share_above,
    spread_corrected,
    worst_prompt,
)

A = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=float)
B = np.array([[1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 0, 1]], dtype=float)
shapes = st.tuples(st.integers(2, 12), st.integers(2, 12))
tables = arrays(float, shapes, elements=st.sampled_from([0.0, 0.5, 1.0]))


def matrix(answers_KN, values_KN=None) -> ScoreMatrix:
    answers_KN = np.asarray(answers_KN)
    values_KN = (answers_KN == 0).astype(float) if values_KN is None else values_KN
    k, n = answers_KN.shape
    names = tuple(map(str, range(k))), tuple(map(str, range(n)))
    return ScoreMatrix(*names, values_KN, answers_KN, np.zeros((k, n), dtype=int), np.ones((k, n), dtype=bool))


def rows_with(accuracy_K, examples: int) -> np.ndarray:
    """A table whose rows have these accuracies, right answers spread so that rows do not share their easy examples."""
    generator = np.random.default_rng(0)
    ordered = [[float(i < round(a * examples)) for i in range(examples)] for a in accuracy_K]
    return np.array([generator.permutation(row) for row in ordered])


# Worked examples


def test_decomposition_of_a_worked_table():
    d = decompose(A)
    assert (d.mean, d.ms_prompt, d.ms_item, d.ms_residual) == pytest.approx((0.75, 0.25, 0.305556, 0.138889), abs=1e-6)
    assert (d.s2_prompt, d.s2_item, d.s2_residual) == pytest.approx((0.027778, 0.055556, 0.138889), abs=1e-6)
    assert d.shrinkage == pytest.approx(4 / 9)
    total = 2 * d.ms_prompt + 3 * d.ms_item + 6 * d.ms_residual
    assert total == pytest.approx(((A - A.mean()) ** 2).sum()) == pytest.approx(12 * 0.75 * 0.25)


def test_mean_interval_of_a_worked_table():
    estimate = mean_estimate(A, bounds=(-9, 9))
    assert estimate.value == 0.75
    assert estimate.high - 0.75 == pytest.approx(0.186339 * student.ppf(0.975, 2.647), rel=1e-4)
    assert estimate.low + estimate.high == pytest.approx(1.5)
    cut = mean_estimate(A)
    assert (cut.low, cut.high) == (pytest.approx(estimate.low), 1.0)


def test_prompt_sd_of_a_worked_table():
    assert raw_sd(A) == pytest.approx(0.25)
    estimate = prompt_sd(A)
    assert estimate.value == pytest.approx(1 / 6)
    low, high = _s2_prompt_interval(A, 0.95)
    assert low < 0
    assert high == pytest.approx(2.42349, abs=1e-5)
    assert (estimate.low, estimate.high) == (0.0, 0.5)  # no accuracies in [0, 1] vary by more


def test_spread_correction_of_a_worked_table():
    assert spread_corrected(A) == pytest.approx([0.75, 0.583333, 0.916667], abs=1e-6)
    assert worst_prompt(A).value == pytest.approx(0.583333, abs=1e-6)
    assert best_prompt(A).value == pytest.approx(0.916667, abs=1e-6)
    assert quantile_over_prompts(A, 0.1).value == pytest.approx(0.583333 + 0.2 * (0.75 - 0.583333), abs=1e-6)


def test_paired_difference_of_worked_tables():
    d = decompose(A - B)
    assert (d.ms_prompt, d.ms_item, d.ms_residual) == pytest.approx((1 / 12, 1 / 9, 7 / 36))
    mean = compare(A, B).mean  # both floors act: SE^2 = MS_e / 12, degrees of freedom 1 / (1/2 + 1/3 + 1/6) = 1
    assert mean.value == pytest.approx(1 / 6)
    wide = mean_estimate(A - B, bounds=(-99, 99))
    assert wide.high - wide.value == pytest.approx(0.127294 * 12.706205, rel=1e-5)
    assert compare(A, B).ahead == pytest.approx(2 / 3)


def test_quantile_and_top_of_five_accuracies():
    table = rows_with([0.5, 0.6, 0.7, 0.8, 0.9], 10)
    assert np.quantile(table.mean(1), 0.1) == pytest.approx(0.54)
    k = decompose(table).shrinkage
    assert quantile_over_prompts(table, 0.1).value == pytest.approx(0.7 + math.sqrt(k) * (0.54 - 0.7))
    assert raw_sd(table) == pytest.approx(0.158114, abs=1e-6)
    assert share_above(table, 0.7).value == pytest.approx(0.6)  # the bar itself counts, in spite of 7 / 10 in binary
    assert share_above(table, 0.71).value == pytest.approx(0.4)
    assert (share_above(table, 0.95).value, share_above(table, 0.5).value) == (0, 1)


def test_consistency_counts_pairs_and_never_unparsable_ones():
    assert _pair_agreement(np.array([[0], [0], [2]])) == pytest.approx([1 / 3])
    assert _pair_agreement(np.array([[0], [INVALID], [INVALID]])) == pytest.approx([0])
    assert consistency(matrix([[0, 0], [0, INVALID], [2, INVALID]])).value == pytest.approx(1 / 6)
    assert consistency(matrix(np.full((3, 4), INVALID))).value == 0
    assert consistency(matrix(np.full((3, 4), 1))).value == 1


def test_exact_bounds_of_the_worst_prompt():
    table = rows_with([0.9, 0.6], 100)
    worst = worst_prompt(table)
    assert binom.sf(59, 100, worst.low) == pytest.approx(0.025)  # 60 or more of 100
    assert binom.cdf(60, 100, worst.high) == pytest.approx(0.0125)  # 60 or fewer, shared by two prompts


def test_nothing_wrong_in_n_examples_is_not_certainty():
    estimates = all_estimates(matrix(np.zeros((50, 100), dtype=int)), 0.95, [0.9])
    bound = 0.025 ** (1 / 100)
    for name in ("mean", "worst", "median", "p10", "consistency"):
        assert (estimates[name].value, estimates[name].high) == (1, 1)
        assert estimates[name].low == pytest.approx(bound)
    assert estimates["invalid"].high == pytest.approx(1 - bound)
    assert estimates["prompt_sd"].value == 0


# Identities


@given(tables, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_order_of_prompts_and_examples_does_not_matter(table, random):
    answers = np.where(table == 1, 0, np.where(table == 0.5, 1, INVALID))
    rows, columns = list(range(len(table))), list(range(table.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    mixed = matrix(answers[rows][:, columns], table[rows][:, columns])
    one, two = all_estimates(matrix(answers, table), 0.95, [0.5, 0.7]), all_estimates(mixed, 0.95, [0.5, 0.7])
    assert one.keys() == two.keys()
    for name in one:
        for end in ("value", "low", "high"):
            assert getattr(one[name], end) == pytest.approx(getattr(two[name], end), abs=1e-6), (name, end)


@given(tables)
@settings(deadline=None, max_examples=60)
def test_estimates_are_ordered_and_inside_their_intervals(table):
    d = decompose(table)
    total = (table.shape[0] - 1) * d.ms_prompt + (table.shape[1] - 1) * d.ms_item
    total += (table.shape[0] - 1) * (table.shape[1] - 1) * d.ms_residual
    assert total == pytest.approx(((table - table.mean()) ** 2).sum(), abs=1e-9)
    assert 0 <= d.shrinkage <= 1
    estimates = all_estimates(matrix(np.zeros(table.shape, dtype=int), table), 0.95, [0.5])
    for estimate in estimates.values():
        assert -1e-9 <= estimate.low <= estimate.value + 1e-9
        assert estimate.value - 1e-9 <= estimate.high <= 1 + 1e-9
    corrected = spread_corrected(table)
    assert corrected.mean() == pytest.approx(d.mean)
    assert corrected.std(ddof=1) == pytest.approx(prompt_sd(table).value, abs=1e-9)
    assert corrected.min() - 1e-9 <= estimates["p10"].value <= estimates["median"].value <= corrected.max() + 1e-9
    assert prompt_sd(table).value <= raw_sd(table) + 1e-9


@given(arrays(float, st.tuples(st.integers(2, 8), st.integers(2, 8)), elements=st.sampled_from([0.0, 1.0])))
@settings(deadline=None)
def test_pairwise_disagreement_is_twice_prompt_variance_and_residual(table):
    d = decompose(table)
    disagreement = 1 - consistency(matrix(1 - table.astype(int))).value
    assert disagreement == pytest.approx(2 * (d.s2_prompt + d.s2_residual))


@given(tables)
@settings(deadline=None, max_examples=40)
def test_best_mirrors_worst(table):
    worst, best = worst_prompt(1 - table), best_prompt(table)
    assert (best.low, best.value, best.high) == pytest.approx((1 - worst.high, 1 - worst.value, 1 - worst.low))


@given(st.integers(2, 400), st.integers(0, 400))
def test_a_share_of_n_reaches_itself(examples, right):
    right = min(right, examples)
    table = np.zeros((2, examples))
    table[:, :right] = 1
    assert share_above(table, right / examples).value == 1


@given(tables)
@settings(deadline=None, max_examples=30)
def test_comparison_is_antisymmetric_and_of_a_table_with_itself_is_zero(table):
    other = np.roll(table, 1, axis=0) * 0.5
    one, two = compare(table, other), compare(other, table)
    for name in ("mean", "prompt_sd"):
        forth, back = getattr(one, name), getattr(two, name)
        assert (forth.low, forth.value, forth.high) == pytest.approx((-back.high, -back.value, -back.low), abs=1e-9)
    assert one.worst.value == pytest.approx(-two.worst.value)
    same = compare(table, table)
    assert (same.mean.value, same.prompt_sd.value, same.worst.value, same.ahead) == (0, 0, 0, 0)
    assert same.worst.low <= 0 <= same.worst.high


def test_the_same_table_has_one_interval():
    table = rows_with(np.linspace(0.5, 0.9, 40), 60)
    assert quantile_over_prompts(table, 0.1) == quantile_over_prompts(table, 0.1)
    assert compare(table, 1 - table) == compare(table, 1 - table)


def test_plain_values():
    estimate = Estimate("x", 0.5, math.nan, math.nan, 0.95, "none", 2, 3)
    assert estimate.to_dict()["low"] is None
    assert set(compare(A, B).to_dict()) == {"mean", "prompt_sd", "worst", "ahead"}
    assert list(all_estimates(matrix(np.zeros((2, 3), dtype=int)), 0.95, [0.9])) == [
        "mean", "prompt_sd", "worst", "p10", "median", "best", "share>=0.9", "consistency", "invalid",
    ]  # fmt: skip


# Refusals


@pytest.mark.parametrize("function", [
    mean_estimate, prompt_sd, raw_sd, spread_corrected, worst_prompt, best_prompt,
    lambda t: quantile_over_prompts(t, 0.1), lambda t: share_above(t, 0.5), lambda t: compare(t, t),
])  # fmt: skip
def test_incomplete_and_too_small_tables_are_refused(function):
    unknown = A.copy()
    unknown[1, 2] = np.nan
    with pytest.raises(ShapeError, match="1 of 12 cells are not scored"):
        function(unknown)
    for small in (A[:1], A[:, :1], A[0]):
        with pytest.raises(ShapeError, match="expected at least 2 prompts x 2 examples"):
            function(small)


def test_tables_that_do_not_match_are_refused():
    with pytest.raises(ShapeError, match="not paired"):
        compare(A, B[:, :3])
    with pytest.raises(ShapeError, match="all scored"):
        consistency(matrix([[0, UNSCORED], [0, 1]]))
    with pytest.raises(ShapeError, match="at least 2 prompts"):
        consistency(matrix([[0, 1]]))


# Simulation: logistic crossed model, theta ~ N(0, t), items ~ N(m, 1.5), interaction ~ N(0, .5); truth by quadrature

NODES, WEIGHTS = hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def true_accuracy(theta, centre: float) -> np.ndarray:
    return (expit(np.asarray(theta)[..., None] + centre + math.hypot(1.5, 0.5) * NODES) * WEIGHTS).sum(-1)


class Model:
    """One model of the generator: its true values over new prompts and new examples, and tables drawn from it."""

    def __init__(self, t: float, centre: float) -> None:
        self.t, self.centre = t, centre
        accuracy = true_accuracy(t * NODES, centre)
        self.mean = float(WEIGHTS @ accuracy)
        self.sd = math.sqrt(WEIGHTS @ (accuracy - self.mean) ** 2)

    def quantile(self, q: float) -> float:
        return float(true_accuracy(self.t * norm.ppf(q), self.centre))

    def agreement(self) -> float:
        """Of two prompts on right or wrong."""
        right = (expit(self.centre + 1.5 * NODES[:, None] + math.hypot(self.t, 0.5) * NODES) * WEIGHTS).sum(1)
        return float(WEIGHTS @ (right**2 + (1 - right) ** 2))

    def table(self, theta_K, item_N, generator) -> tuple[np.ndarray, np.ndarray]:
        """(table, true accuracies of its prompts) for standard normal prompts and items."""
        noise_KN = generator.standard_normal((len(theta_K), len(item_N)))
        p_KN = expit(self.centre + self.t * theta_K[:, None] + 1.5 * item_N + 0.5 * noise_KN)
        return (generator.random(p_KN.shape) < p_KN).astype(float), true_accuracy(self.t * theta_K, self.centre)


def tables_of(model: Model, count: int, k: int, n: int, seed: int):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield model.table(generator.standard_normal(k), generator.standard_normal(n), generator)


def share_covered(found: list[tuple[Estimate, float]]) -> float:
    return float(np.mean([estimate.low <= truth <= estimate.high for estimate, truth in found]))


@pytest.mark.parametrize(("t", "centre"), [(0.05, 2.0), (0.35, 0.8), (1.0, 2.0)])
@pytest.mark.parametrize("n", [40, 200])
def test_intervals_cover(t, centre, n):
    model, found = Model(t, centre), {}
    p10, median, agreement = model.quantile(0.1), model.quantile(0.5), model.agreement()
    for table, true_K in tables_of(model, 150, 50, n, seed=int(100 * t) + n):
        for name, estimate, truth in (
            ("mean", mean_estimate(table), model.mean),
            ("prompt_sd", prompt_sd(table), model.sd),
            ("worst", worst_prompt(table), true_K.min()),
            ("best", best_prompt(table), true_K.max()),
            ("p10", quantile_over_prompts(table, 0.1), p10),
            ("median", quantile_over_prompts(table, 0.5), median),
            ("consistency", consistency(matrix(1 - table.astype(int))), agreement),
        ):
            found.setdefault(name, []).append((estimate, truth))
    for name, pairs in found.items():
        assert share_covered(pairs) >= 0.89, name
        if name not in ("worst", "best", "prompt_sd"):  # these three are cautious, near zero spread above all
            assert share_covered(pairs) < 1, name
    widths = {name: float(np.mean([e.high - e.low for e, _ in pairs])) for name, pairs in found.items()}
    assert widths["median"] < 1.4 * widths["mean"]
    assert widths["p10"] < 2.2 * widths["mean"]


def test_treating_cells_as_independent_does_not_cover():
    model = Model(0.35, 0.8)
    covered, plain = [], []
    for table, _ in tables_of(model, 300, 20, 200, seed=1):
        covered.append((mean_estimate(table), model.mean))
        half = 1.96 * table.std() / math.sqrt(table.size)
        plain.append(abs(table.mean() - model.mean) < half)
    assert 0.91 <= share_covered(covered) <= 0.985
    assert np.mean(plain) < 0.65


@pytest.mark.parametrize("t", [(0.05, 0.35), (0.35, 0.35), (0.05, 1.0), (1.0, 1.0)])
def test_intervals_of_differences_cover(t):
    generator = np.random.default_rng(int(100 * t[0] + 1000 * t[1]))
    a, b = Model(t[0], 2.0), Model(t[1], 0.8)
    found: dict[str, list[tuple[Estimate, float]]] = {"mean": [], "prompt_sd": [], "worst": []}
    for _ in range(150):
        theta_K, item_N, other_K, other_N = (generator.standard_normal(size) for size in (50, 100, 50, 100))
        a_KN, true_a_K = a.table(theta_K, item_N, generator)
        b_KN, true_b_K = b.table((theta_K + other_K) / math.sqrt(2), 0.8 * item_N + 0.6 * other_N, generator)
        result = compare(a_KN, b_KN)
        found["mean"].append((result.mean, a.mean - b.mean))
        found["prompt_sd"].append((result.prompt_sd, a.sd - b.sd))
        found["worst"].append((result.worst, true_a_K.min() - true_b_K.min()))
    for name, pairs in found.items():
        assert share_covered(pairs) >= 0.89, name
    error = np.std([e.value - truth for e, truth in found["worst"]])
    assert np.mean([e.high - e.low for e, _ in found["worst"]]) < 6 * error


def test_few_prompts_widen_the_interval_of_their_lower_tail():
    model = Model(0.5, 2.0)
    found = [(quantile_over_prompts(table, 0.1), model.quantile(0.1)) for table, _ in tables_of(model, 150, 5, 200, 3)]
    assert share_covered(found) >= 0.89


@pytest.mark.parametrize(("n", "t"), [(200, 0.05), (1000, 0.05), (1000, 0.15)])
def test_debiasing_removes_item_noise(n, t):
    """Mean of s2_prompt is the true variance; the raw variance and the one less the binomial term are not."""
    model = Model(t, 1.0)
    s2, raw, binomial, minima = [], [], [], []
    for table, true_K in tables_of(model, 150, 50, n, seed=n):
        d, accuracy_K = decompose(table), table.mean(1)
        s2.append(d.s2_prompt)
        raw.append(raw_sd(table) ** 2)
        binomial.append(raw[-1] - float((accuracy_K * (1 - accuracy_K)).mean()) / n)
        minima.append((accuracy_K.min(), true_K.min(), spread_corrected(table).min()))
    three_errors = 3 * np.std(s2) / math.sqrt(len(s2))
    assert abs(np.mean(s2) - model.sd**2) < three_errors
    assert np.mean(raw) > model.sd**2 + three_errors
    assert np.mean(binomial) < model.sd**2 - three_errors
    raw_min, true_min, corrected_min = np.mean(minima, axis=0)
    assert raw_min < true_min
    assert abs(corrected_min - true_min) < 0.005 < abs(raw_min - true_min) + 0.002


def test_no_spread_at_all_is_centred_on_zero():
    tables_KN = [table for table, _ in tables_of(Model(0.0, 0.8), 300, 20, 200, seed=5)]
    assert 0.4 < np.mean([decompose(table).s2_prompt < 0 for table in tables_KN]) < 0.65
    assert np.mean([prompt_sd(table).low > 0 for table in tables_KN]) < 0.06


def test_a_prompt_that_fails_is_found_and_merely_hard_ones_are_not() -> None:
    """80 prompts of true accuracy .6 to .9 on items of their own difficulty, and 8 that ask the inverse question."""
    draw = np.random.default_rng(4)
    false, missed = 0, 0
    for _ in range(20):
        ease_N = draw.normal(0, 1.0, 32)
        level_K = draw.uniform(0.4, 2.2, 88)
        right_KN = draw.random((88, 32)) < 1 / (1 + np.exp(-(level_K[:, None] + ease_N)))
        right_KN[80:] = ~right_KN[80:]
        found = [lag.gap < -max(0.2, 3 * lag.se) for lag in lags(right_KN.astype(float), ["a", "b"] * 44)]
        false, missed = false + sum(found[:80]), missed + 8 - sum(found[80:])
    assert false / (20 * 80) < 0.02
    assert missed / (20 * 8) < 0.25


def test_lags_by_hand() -> None:
    values_KN = np.array([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    # siblings of the fifth by accuracy: .25 .5 .75 1 1; the middle three are left
    lag = lags(values_KN, ["x"] * 6)[4]
    assert (lag.accuracy, lag.siblings) == (0.0, pytest.approx(0.75))
    difference_N = -np.array([1, 1, 2 / 3, 1 / 3])
    assert lag.se == pytest.approx(difference_N.std(ddof=1) / 2)
    assert lags(values_KN[:1], ["x"])[0].gap == 0.0
