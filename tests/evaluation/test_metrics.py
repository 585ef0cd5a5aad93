"""Descriptive measures: worked examples, identities on drawn tables, and what is left out of incomplete ones."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from paft.errors import ConfigError, ShapeError
from paft.evaluation import metrics
from paft.evaluation.matrix import INVALID, UNSCORED

A = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]], dtype=float)
FIVE = np.array([0.7, 0.5, 0.9, 0.6, 0.8])
shapes = st.tuples(st.integers(2, 8), st.integers(2, 8))
binary = arrays(float, shapes, elements=st.sampled_from([0.0, 1.0]))
graded = arrays(float, shapes, elements=st.sampled_from([0.0, 0.25, 0.5, 1.0]))
incomplete = arrays(float, shapes, elements=st.sampled_from([0.0, 0.5, 1.0, math.nan]))
answered = arrays(int, shapes, elements=st.sampled_from([INVALID, 0, 1, 2]))
partly_answered = arrays(int, shapes, elements=st.sampled_from([UNSCORED, INVALID, 0, 1, 2]))


def column(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


# Worked examples


def test_measures_of_five_accuracies():
    assert metrics.spread(FIVE) == pytest.approx(0.4)
    assert (metrics.cvar(FIVE, 0.2), metrics.cvar(FIVE, 0.4)) == pytest.approx((0.5, 0.55))
    assert metrics.cvar(np.arange(100.0), 0.07) == 3  # seven of a hundred, in spite of 0.07 * 100 > 7 in binary
    assert metrics.cvar(FIVE, 1) == pytest.approx(0.7)
    assert (metrics.sat(FIVE), metrics.cps(FIVE)) == pytest.approx((0.8, 0.72))
    assert metrics.pdr(0.8, 0.6) == pytest.approx(0.25)
    assert math.isnan(metrics.pdr(0, 0.1))


def test_a_bar_is_reached_in_counts():
    table = np.array([[1] * round(10 * a) + [0] * (10 - round(10 * a)) for a in FIVE], dtype=float)
    assert metrics.share_reaching(table, 0.7) == pytest.approx(0.6)
    assert metrics.share_reaching(table, 0.7, strict=True) == pytest.approx(0.4)
    assert metrics.share_reaching((np.arange(100) < 7)[None].astype(float), 0.07) == 1
    table[2, :] = [1, 1, 1, 1, 1, 1, 1, 0, 0, np.nan]  # 7 of 9
    assert metrics.share_reaching(table, 7 / 9) == pytest.approx(0.4)
    assert metrics.share_reaching(table, 0.78) == pytest.approx(0.2)


@pytest.mark.parametrize(("right", "expected"), [
    (0, 0), (1, 0.166667), (2, 0.303030), (3, 0.409091), (4, 0.484848), (5, 0.530303), (6, 0.545455), (12, 0),
])  # fmt: skip
def test_prompt_sensitivity_of_twelve_prompts(right, expected):
    for count in (right, 12 - right):
        assert metrics.pss(column(*[1.0] * count, *[0.0] * (12 - count))).value == pytest.approx(expected, abs=1e-6)


def test_consistency_by_each_rule():
    one, broken = column(0, 0, 2), column(0, INVALID, INVALID)
    assert metrics.consistency_rate(one).value == pytest.approx(1 / 3)
    assert metrics.consistency_rate(broken).value == 0
    assert metrics.consistency_rate(broken, "agree").value == pytest.approx(1 / 3)
    dropped = metrics.consistency_rate(broken, "drop")
    assert (math.isnan(dropped.value), dropped.skipped, dropped.prompts_N.tolist()) == (True, 1, [1])
    mixed = np.array([[0, 0], [0, INVALID], [2, 0]])
    assert metrics.consistency_rate(mixed, "drop").values_N == pytest.approx([1 / 3, 1])
    assert metrics.consistency_rate(mixed, "drop").pooled == pytest.approx((2 + 2) / (6 + 2))


def test_fleiss_kappa_of_the_classical_table():
    counts_NC = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    answers_KN = np.array([np.repeat([INVALID, 0, 1, 2, 3], counts) for counts in counts_NC]).T
    found = metrics.fleiss_kappa(answers_KN)
    assert (found.observed, found.expected, found.value) == pytest.approx((0.378022, 0.212755, 0.209931), abs=1e-6)
    assert math.isnan(metrics.fleiss_kappa(np.ones((3, 4), dtype=int)).value)
    assert math.isnan(metrics.fleiss_kappa(np.full((3, 4), UNSCORED)).value)


def test_entropy_of_answers():
    one = column(0, 0, 2)
    assert metrics.sensitivity_entropy(one, 3).value == pytest.approx(0.459148, abs=1e-6)
    assert metrics.sensitivity_entropy(one, 4).value == pytest.approx(0.395488, abs=1e-6)
    corrected = metrics.sensitivity_entropy(one, 3, miller_madow=True).value
    assert corrected == pytest.approx((0.636514 + 1 / 6) / math.log(4), abs=1e-6)
    both = metrics.sensitivity_entropy(np.hstack([one, one]), np.array([3, 4]))
    assert both.values_N == pytest.approx([0.459148, 0.395488], abs=1e-6)


def test_miller_madow_takes_most_of_the_bias_off():
    answers_KN = np.random.default_rng(0).integers(0, 3, (12, 4000))
    truth = math.log(3) / math.log(4)
    plain = truth - metrics.sensitivity_entropy(answers_KN, 3).value
    assert plain == pytest.approx(2 / 24 / math.log(4), rel=0.15)
    assert abs(truth - metrics.sensitivity_entropy(answers_KN, 3, miller_madow=True).value) < 0.15 * plain


def test_flips_and_their_kinds():
    answers_KN = np.array([[0, 0, 1, 1, INVALID, 0], [1, 0, 0, 2, INVALID, UNSCORED]])
    found = metrics.flips(answers_KN, np.zeros(6, dtype=int))
    assert found.right_to_wrong == pytest.approx([1 / 5])
    assert found.wrong_to_right == pytest.approx([1 / 5])
    assert found.wrong_to_wrong == pytest.approx([1 / 5])
    assert found.total == pytest.approx([3 / 5])
    assert np.isnan(metrics.flips(np.array([[0], [UNSCORED]]), np.array([0])).total).all()


def test_worst_and_best_of_a_worked_table():
    assert (metrics.instance_worst(A).value, metrics.instance_best(A).value) == (0.5, 1)
    assert metrics.worst_of(A, 2).value == pytest.approx(0.583333, abs=1e-6)
    assert metrics.worst_of(column(*[1.0] * 9, *[0.0] * 3), 3).value == pytest.approx(84 / 220)
    # 0 .5 1: the lowest of the three pairs is 0, 0, .5
    assert metrics.worst_of(column(0.5, 0, 1), 2).value == pytest.approx(0.5 / 3)
    assert metrics.best_of(column(0.5, 0, 1), 2).value == pytest.approx(2.5 / 3)


def test_accuracy_beside_a_clean_prompt():
    assert metrics.con(A, clean=1) == pytest.approx(0.875)
    assert metrics.con_given_clean(A, clean=0) == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(metrics.con_given_clean(1 - A, clean=2))


def test_how_many_prompts():
    assert metrics.n_star_normal(0.05, num_prompts=100) == pytest.approx(40.35, abs=0.01)
    assert metrics.n_star_normal(0.05) == pytest.approx(67.65, abs=0.02)
    assert metrics.n_star(np.full(8, 0.7)) == 1
    assert metrics.n_star(np.array([0.2, 0.8, 0.2, 0.8]), eps=0.01) == 4
    # pairs of 0, 1, 2, 3: the mean is off by at most 1; single ones by 1.5
    assert metrics.n_star(np.arange(4.0), eps=1.4) == 2
    assert metrics.n_star(np.arange(4.0), eps=1.6) == 1
    assert metrics.n_star(np.full(8, 0.7), statistic="variance") == 2
    normal = np.random.default_rng(3).normal(0.7, 0.05, 100)
    assert metrics.n_star(normal) == pytest.approx(metrics.n_star_normal(normal.std(), num_prompts=100), abs=12)
    # variance 1/3; of pairs 0 or 1/2, of threes 1/3
    assert metrics.n_star(np.array([0.0, 0, 1, 1]), eps=0.1, delta=1, statistic="variance") == 3


# Identities


@given(binary)
def test_identities_of_right_and_wrong(table):
    k = len(table)
    accuracy_K = table.mean(1)
    worst, best = metrics.instance_worst(table).value, metrics.instance_best(table).value
    ordered = [worst, accuracy_K.min(), accuracy_K.mean(), accuracy_K.max(), best]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(ordered))
    assert accuracy_K.min() <= metrics.cvar(accuracy_K, 0.3) + 1e-12
    assert metrics.cvar(accuracy_K, 0.3) <= accuracy_K.mean() + 1e-12
    right = table.astype(int)
    agreement = metrics.consistency_rate(right)
    assert metrics.pss(table).values_N == pytest.approx(1 - agreement.values_N)
    assert metrics.pss(table).values_N == pytest.approx(2 * table.var(0, ddof=1))
    assert agreement.pooled == pytest.approx(agreement.value)
    for size in range(1, k + 1):
        expected_N = [math.comb(int(c), size) / math.comb(k, size) for c in table.sum(0)]
        assert metrics.worst_of(table, size).values_N == pytest.approx(expected_N, abs=1e-12)
    assert metrics.worst_of(table, 1).value == pytest.approx(table.mean())
    assert metrics.best_of(table, 1).value == pytest.approx(table.mean())
    assert metrics.worst_of(table, k).value == pytest.approx(worst)
    assert metrics.best_of(table, k).value == pytest.approx(best)
    for bar in np.unique(accuracy_K):
        assert (metrics.share_reaching(table, bar, strict=True) == 0) == (bar == accuracy_K.max())
        assert metrics.share_reaching(table, bar) >= (1 + (bar < accuracy_K.max())) / k - 1e-12
    assert metrics.con(table) == pytest.approx((k * table.mean() - accuracy_K[0]) / (k - 1))


@given(answered, st.integers(0, 7))
def test_identities_of_answers(answers, reference):
    k, n = answers.shape
    reference %= k
    gold_N = np.arange(n) % 3
    right = (answers == gold_N).astype(float)
    found = metrics.flips(answers, gold_N, reference)
    gained_K = np.delete(right.mean(1), reference) - right[reference].mean()
    assert found.wrong_to_right - found.right_to_wrong == pytest.approx(gained_K)
    assert found.total == pytest.approx((np.delete(answers, reference, 0) != answers[reference]).mean(1))
    disagree, agree = (metrics.consistency_rate(answers, rule) for rule in ("disagree", "agree"))
    assert (metrics.pss(right).values_N <= 1 - agree.values_N + 1e-12).all()
    assert (disagree.values_N <= agree.values_N).all()
    with_self_pairs = (2 + (k - 1) * agree.value) / (k + 1)  # over pairs k <= l
    same_KKN = answers[:, None] == answers[None]
    assert with_self_pairs == pytest.approx(same_KKN[np.triu_indices(k)].mean())
    kappa = metrics.fleiss_kappa(answers)
    assert kappa.observed == pytest.approx(agree.value)
    for rate in (disagree, agree, metrics.sensitivity_entropy(answers, 3)):
        assert (rate.values_N >= 0).all()
        assert (rate.values_N <= 1 + 1e-12).all()


@given(graded)
def test_scores_between_right_and_wrong_against_all_subsets(table):
    k, _ = table.shape
    for size in range(1, min(k, 4) + 1):
        subsets = [table[list(chosen)].min(0) for chosen in itertools.combinations(range(k), size)]
        assert metrics.worst_of(table, size).values_N == pytest.approx(np.mean(subsets, axis=0))
    pairs = [abs(table[a] - table[b]) for a, b in itertools.combinations(range(k), 2)]
    assert metrics.pss(table).values_N == pytest.approx(np.mean(pairs, axis=0))


@given(incomplete)
def test_incomplete_tables_are_the_columns_without_their_gaps(table):
    for name, measure, least in (
        ("pss", metrics.pss, 2),
        ("instance_worst", metrics.instance_worst, 2),
        ("worst_of", lambda t: metrics.worst_of(t, min(2, len(t))), 2),
    ):
        found = measure(table)
        alone = [metrics_of(measure, table[~np.isnan(table[:, i]), i], least) for i in range(table.shape[1])]
        assert found.values_N == pytest.approx(alone, nan_ok=True), name
        assert found.skipped == np.isnan(alone).sum()


@given(partly_answered)
def test_incomplete_answers_are_the_columns_without_their_gaps(answers):
    for name, measure in (
        ("consistency", metrics.consistency_rate),
        ("agree", lambda x: metrics.consistency_rate(x, "agree")),
        ("entropy", lambda x: metrics.sensitivity_entropy(x, 3)),
    ):
        alone = [metrics_of(measure, answers[answers[:, i] != UNSCORED, i], 2) for i in range(answers.shape[1])]
        assert measure(answers).values_N == pytest.approx(alone, nan_ok=True), name
    assert metrics.fleiss_kappa(answers).skipped == ((answers != UNSCORED).sum(0) < 2).sum()


def metrics_of(measure, values, least: int) -> float:
    return measure(values[:, None]).value if len(values) >= least else math.nan


@given(graded, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_order_does_not_matter(table, random):
    rows, columns = list(range(len(table))), list(range(table.shape[1]))
    random.shuffle(rows)
    random.shuffle(columns)
    mixed = table[rows][:, columns]
    for measure in (metrics.pss, metrics.instance_worst, metrics.instance_best, lambda t: metrics.worst_of(t, 2)):
        assert measure(table).value == pytest.approx(measure(mixed).value)
    for measure in (metrics.spread, metrics.cvar, metrics.sat, metrics.cps):
        assert measure(table.mean(1)) == pytest.approx(measure(mixed.mean(1)))


# Refusals


def test_what_is_out_of_range_is_refused():
    for alpha in (0, 1.5):
        with pytest.raises(ConfigError, match="above 0 and at most 1"):
            metrics.cvar(FIVE, alpha)
    for size in (0, 4):
        with pytest.raises(ShapeError, match="expected from 1 to 3"):
            metrics.worst_of(A, size)
    unknown = A.copy()
    unknown[1] = np.nan
    with pytest.raises(ShapeError, match="prompt 1 has no score"):
        metrics.share_reaching(unknown, 0.5)
