"""Accuracies over prompts from a few cells: what must be kept exactly, and what must hold at its level."""

from __future__ import annotations

import numpy as np
import pytest

from paft.errors import ShapeError
from paft.evaluation.mixture import PromptMixture
from tests.evaluation.test_few import logistic_table, part_of


def test_a_complete_table_comes_out_as_it_went_in() -> None:
    table_KN = logistic_table(np.random.default_rng(0), (12, 80), 0.5)
    model = PromptMixture(table_KN)
    assert np.allclose(model.accuracy_RK, table_KN.mean(1))
    assert np.allclose(model.accuracy_K, table_KN.mean(1))
    found = model.estimates(thresholds=[0.6])
    accuracy_K = table_KN.mean(1)
    exact = {
        "table_mean": accuracy_K.mean(),
        "table_sd": accuracy_K.std(ddof=1),
        "table_p10": np.quantile(accuracy_K, 0.1),
        "table_median": np.median(accuracy_K),
        "table_worst": accuracy_K.min(),
        "table_share>=0.6": (accuracy_K >= 0.6).mean(),
    }
    for name, value in exact.items():
        assert (found[name].low, found[name].value, found[name].high) == pytest.approx((value,) * 3), name


def test_prompts_that_do_not_differ_are_not_made_to() -> None:
    parts = [part_of(logistic_table(np.random.default_rng(seed), (30, 300), 0.0), 1200, seed) for seed in range(8)]
    models = [PromptMixture(part_KN) for part_KN in parts]
    assert np.median([model.shrinkage for model in models]) < 0.3
    ours, seen = (
        np.mean(each)
        for each in zip(
            *((m.accuracy_K.std(), np.nanmean(p, axis=1).std()) for m, p in zip(models, parts, strict=True)),
            strict=True,
        )
    )
    assert ours < 0.5 * seen


def test_less_than_half_the_error_of_the_unpenalised_fit() -> None:
    """STATISTICS 13.5: two cells per example, prompts that differ little; error of the sorted accuracies."""
    from scipy.optimize import minimize
    from scipy.special import expit

    ours, loose = [], []
    for seed in range(4):
        table_KN = logistic_table(np.random.default_rng(seed), (50, 400), 0.15)
        part_KN = part_of(table_KN, 800, seed)
        k, i = np.nonzero(~np.isnan(part_KN))
        y = part_KN[k, i]

        def height(x: np.ndarray, k: np.ndarray = k, i: np.ndarray = i, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            eta = x[:50][k] + x[50:][i]
            miss = expit(eta) - y
            slope = np.r_[np.bincount(k, miss, 50), np.bincount(i, miss, 400)] + x / 100
            return float((np.logaddexp(0, eta) - y * eta).sum() + x @ x / 200), slope

        x = minimize(height, np.zeros(450), jac=True, method="L-BFGS-B").x
        filled_KN = np.where(np.isnan(part_KN), expit(x[:50, None] + x[50:][None]), part_KN)
        truth_K = np.sort(table_KN.mean(1))
        loose.append(np.abs(np.sort(filled_KN.mean(1)) - truth_K).mean())
        ours.append(np.abs(np.sort(PromptMixture(part_KN).accuracy_K) - truth_K).mean())
    assert np.mean(ours) < 0.5 * np.mean(loose)


@pytest.mark.parametrize("t", [0.1, 0.5])
def test_intervals_cover_what_the_whole_table_would_have_shown(t: float) -> None:
    inside: dict[str, list[bool]] = {}
    for seed in range(60):
        table_KN = logistic_table(np.random.default_rng(seed), (20, 200), t)
        accuracy_K = table_KN.mean(1)
        found = PromptMixture(part_of(table_KN, 600, seed)).estimates()
        truth = {
            "table_mean": accuracy_K.mean(),
            "table_sd": accuracy_K.std(ddof=1),
            "table_p10": np.quantile(accuracy_K, 0.1),
            "table_median": np.median(accuracy_K),
            "table_worst": accuracy_K.min(),
        }
        for name, value in truth.items():
            inside.setdefault(name, []).append(found[name].low - 1e-12 <= value <= found[name].high + 1e-12)
    for name, each in inside.items():
        assert np.mean(each) >= 0.95 - 3 * (0.05 * 0.95 / 60) ** 0.5, (name, np.mean(each))


def test_all_cells_alike_are_not_modelled() -> None:
    model = PromptMixture(part_of(np.ones((5, 40)), 80, 1))
    found = model.estimates(thresholds=[0.9])
    assert found["table_mean"].value == found["table_p10"].value == 1.0
    assert found["table_mean"].low < 0.97
    assert found["table_sd"].value == 0.0
    assert found["table_share>=0.9"].high == 1.0
    assert model.accuracy_K.tolist() == [1.0] * 5
    assert model.shrinkage == 0.0


def test_scores_between_right_and_wrong_are_taken() -> None:
    generator = np.random.default_rng(4)
    part_KN = part_of(generator.beta(4, 2, (10, 100)), 400, 1)
    found = PromptMixture(part_KN).estimates()
    assert found["table_mean"].value == pytest.approx(np.nanmean(part_KN))
    assert all(np.isfinite([e.low, e.value, e.high]).all() for e in found.values())


def test_a_prompt_without_a_cell_is_refused() -> None:
    values_KN = np.full((3, 5), np.nan)
    values_KN[:2] = 1
    with pytest.raises(ShapeError, match="1 prompts without a cell"):
        PromptMixture(values_KN)
