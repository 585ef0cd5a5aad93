"""Accuracies over prompts from a few cells: what must be kept exactly, and what must hold at its level."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import expit

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


def normal(sd: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda random, k: random.normal(0, sd, k)


def groups(share: float, apart: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    """A share of the prompts lies `apart` logits from the others."""
    return lambda random, k: random.normal(0, 0.15, k) + apart * (np.arange(k) < round(share * k))


SHAPES = {
    "alike": normal(0.05),
    "normal": normal(0.15),
    "normal, wide": normal(0.5),
    "a tenth below": groups(0.1, -2),
    "three tenths below": groups(0.3, -1.5),
    "a fifth far above": groups(0.2, 2.5),
    "heavy tails": lambda random, k: 0.25 * random.standard_t(3, k),
}


def covered(shape: str, size: tuple[int, int], visits: int, tables: int) -> dict[str, tuple[float, float]]:
    """By figure: share of intervals from `visits` cells per example that hold what the whole table shows; mean half-width."""
    inside: dict[str, list[bool]] = {}
    half: dict[str, list[float]] = {}
    for seed in range(tables):
        random = np.random.default_rng(seed)
        logit_KN = (
            SHAPES[shape](random, size[0])[:, None] + random.normal(0.5, 1.5, size[1]) + random.normal(0, 0.5, size)
        )
        table_KN = (random.random(size) < expit(logit_KN)).astype(float)
        accuracy_K = table_KN.mean(1)
        bar = round(float(accuracy_K.mean()), 2) - 0.05
        found = PromptMixture(part_of(table_KN, visits * size[1], seed)).estimates(thresholds=[bar])
        truth = {
            "table_mean": accuracy_K.mean(),
            "table_sd": accuracy_K.std(ddof=1),
            "table_p10": np.quantile(accuracy_K, 0.1),
            "table_median": np.median(accuracy_K),
            "table_worst": accuracy_K.min(),
            f"table_share>={bar:g}": (accuracy_K >= bar - 1e-12).mean(),
        }
        for name, value in truth.items():
            low, high = found[name].low, found[name].high
            inside.setdefault(name.split(">")[0], []).append(low - 1e-12 <= value <= high + 1e-12)
            half.setdefault(name.split(">")[0], []).append((high - low) / 2)
    return {name: (float(np.mean(each)), float(np.mean(half[name]))) for name, each in inside.items()}


@pytest.mark.parametrize("shape", ["normal", "a tenth below"])
def test_intervals_cover_what_the_whole_table_would_have_shown(shape: str) -> None:
    """Normal effects of prompts on the logit scale are one shape of many; where a tenth of prompts fails, they cover P10 in 43 %."""
    for name, (share, _) in covered(shape, (20, 200), 4, 30).items():
        assert share >= 0.95 - 3 * (0.05 * 0.95 / 30) ** 0.5, (name, share)


def test_intervals_are_worth_having() -> None:
    """Half-widths of 20 prompts at 4 of 20 cells per example, in points; a mean over 40 cells of one prompt has 15."""
    half = {name: 100 * width for name, (_, width) in covered("normal", (20, 200), 4, 5).items()}
    assert half["table_sd"] < 4.5
    assert half["table_median"] < 5.5
    assert half["table_p10"] < 8


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(20, 200), (50, 200), (50, 1000), (100, 200)])
@pytest.mark.parametrize("visits", [2, 4, 8])
def test_intervals_cover_at_every_size(shape: str, size: tuple[int, int], visits: int) -> None:
    for name, (share, _) in covered(shape, size, visits, 80).items():
        assert share >= 0.95 - 3.5 * (0.05 * 0.95 / 80) ** 0.5, (name, share)


def test_a_score_that_most_prompts_share_is_held() -> None:
    """More than half of the prompts never answer in the asked-for form: the median is 0, which no smooth shape gives exactly."""
    random = np.random.default_rng(0)
    rate_K = np.r_[np.zeros(22), random.uniform(0.02, 0.4, 18)]
    table_KN = (random.random((40, 32)) < rate_K[:, None]).astype(float)
    for seed in range(8):
        found = PromptMixture(part_of(table_KN, 4 * 32, seed)).estimates()
        assert found["table_median"].low == 0, seed


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
