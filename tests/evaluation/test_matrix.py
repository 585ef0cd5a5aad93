"""Choice by argmax, ties, and the table itself."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import ShapeError
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix, restricted_choice, tie_order

scores = st.lists(st.floats(-50, 0).map(lambda x: round(x, 3)), min_size=2, max_size=6)


def matrix(values_KN, answers_KN) -> ScoreMatrix:
    values_KN, answers_KN = np.array(values_KN, dtype=float), np.array(answers_KN)
    k, n = values_KN.shape
    return ScoreMatrix(
        tuple(f"p{i}" for i in range(k)), tuple(f"e{i}" for i in range(n)), values_KN, answers_KN,
        np.zeros((k, n), dtype=int), np.ones((k, n), dtype=bool),
    )  # fmt: skip


def test_the_highest_score_is_chosen():
    assert restricted_choice([-3.0, -1.0, -2.0], gold=1, example_id="x") == (1, 1.0)
    assert restricted_choice([-3.0, -1.0, -2.0], gold=2, example_id="x") == (1, 0.0)


def test_a_right_choice_among_t_tied_ones_scores_one_over_t():
    assert restricted_choice([-1.0, -1.0, -9.0], gold=0, example_id="x")[1] == 0.5
    assert restricted_choice([-1.0, -1.0, -1.0], gold=2, example_id="x")[1] == pytest.approx(1 / 3)
    assert restricted_choice([-1.0, -1.0, -9.0], gold=2, example_id="x")[1] == 0.0


def test_ties_reach_as_far_as_the_tolerance_from_the_best():
    assert restricted_choice([-1.0, -1.0 - 9e-7], gold=1, example_id="x")[1] == 0.5
    assert restricted_choice([-1.0, -1.0 - 2e-6], gold=1, example_id="x")[1] == 0.0


@given(scores, st.text(max_size=8), st.integers(0, 9))
def test_scores_over_all_golds_add_up_to_one(scores_C, example_id, seed):
    outcomes = [restricted_choice(scores_C, gold, example_id, seed) for gold in range(len(scores_C))]
    assert sum(score for _, score in outcomes) == pytest.approx(1)
    assert len({choice for choice, _ in outcomes}) == 1  # the label does not know the gold answer
    assert outcomes[outcomes[0][0]][1] > 0


@given(st.text(max_size=8), st.integers(1, 8), st.integers(0, 99))
def test_tie_order_is_a_permutation_and_a_function_of_its_arguments(example_id, count, seed):
    order = tie_order(example_id, count, seed)
    assert sorted(order) == list(range(count))
    assert order == tie_order(example_id, count, seed)


def test_a_tie_takes_the_same_label_under_every_prompt_and_prefers_no_letter():
    first = [restricted_choice([0.0] * 4, 0, f"e{i}")[0] for i in range(4000)]
    assert first == [restricted_choice([-7.0] * 4, 0, f"e{i}")[0] for i in range(4000)]
    assert np.bincount(first, minlength=4) == pytest.approx(1000, abs=120)


def test_unparsable_is_wrong_and_counted_but_unscored_is_unknown():
    table = matrix([[1, 0, np.nan, 1], [1, 1, 1, 0]], [[0, INVALID, UNSCORED, 2], [0, 1, 2, INVALID]])
    assert table.accuracy_K == pytest.approx([2 / 3, 3 / 4])
    assert table.invalid_K == pytest.approx([1 / 3, 1 / 4])
    assert table.observed_KN.sum() == 7


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"answers_KN has shape \(1, 2\); expected \(2, 2\)"):
        matrix([[1, 0], [0, 1]], [[0, 1]])


def test_a_part_of_a_table_keeps_its_cells_and_groups():
    whole = replace(matrix([[1, 0, 1], [0, 0, 1]], [[0, 1, 0], [1, INVALID, 0]]), groups_N=("a", "a", "b"))
    part = whole.on(["p1", "p0"], ["e2", "e0", "e1"])
    assert part.values_KN.tolist() == [[1, 0, 0], [1, 1, 0]]
    assert part.answers_KN.tolist() == [[0, 1, INVALID], [0, 0, 1]]
    assert part.groups_N == ("b", "a", "a")
    assert whole.on(["p0"], ["e0", "e2"]).groups_N is None  # no two of these share one
    with pytest.raises(KeyError):
        whole.on(["p2"], ["e0"])
