"""Budgets buy what they say, stop where they should, and their intervals hold although they look more than once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from pydantic import ValidationError

from paft.config import CellBudgetConfig
from paft.evaluation.budget import Spent, expected_accuracies, few_estimates, spend
from paft.evaluation.few import mean_of_few
from paft.evaluation.matrix import INVALID, ScoreMatrix
from tests.evaluation.test_few import logistic_table


class Shop:
    """Sells cells of known tables, each once."""

    def __init__(self, **tables: np.ndarray):
        self.tables = tables
        shape = next(iter(tables.values())).shape
        self.sold = {name: np.full(shape, np.nan) for name in tables}
        self.count, self.heard = 0, []

    def ask(self, cells: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        for k, i in cells:
            for name, table_KN in self.tables.items():
                assert np.isnan(self.sold[name][k, i]), "sold twice"
                self.sold[name][k, i] = table_KN[k, i]
        self.count += len(cells)
        return self.sold

    def spend(self, level: float = 0.95, **settings: object) -> Spent:
        shape = next(iter(self.tables.values())).shape
        budget = CellBudgetConfig(**settings)  # type: ignore[arg-type]
        spent = spend(budget, shape, list(self.tables), self.ask, level, self.heard.append)
        assert spent.cells == self.count == (~np.isnan(self.sold[next(iter(self.tables))])).sum()
        return spent


def matrix_of(values_KN: np.ndarray) -> ScoreMatrix:
    ids = tuple(f"p{k}" for k in range(len(values_KN))), tuple(f"e{i}" for i in range(values_KN.shape[1]))
    answers_KN = np.where(np.isnan(values_KN), -2, np.where(values_KN == 1, 0, INVALID))
    return ScoreMatrix(*ids, values_KN, answers_KN, np.zeros(values_KN.shape), np.ones(values_KN.shape, dtype=bool))


@pytest.fixture(scope="module")
def table_KN() -> np.ndarray:
    return logistic_table(np.random.default_rng(0), (30, 600), 0.3)


def test_full_buys_all_and_says_nothing(table_KN):
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="full")
    assert spent.whole
    assert spent.level == 0.95
    assert not shop.heard


def test_balanced_buys_four_cells_per_example_or_what_it_is_told(table_KN):
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="balanced")
    assert spent.cells == 2400
    assert spent.sampled_KN.sum(1).tolist() == [80] * 30
    assert shop.heard == ["plan: 2,400 of 18,000 cells (13.3%), balanced"]
    assert Shop(likelihood=table_KN).spend(kind="balanced", cells=777).cells == 777
    assert Shop(likelihood=table_KN).spend(kind="balanced", cells=10**6).whole


def test_adaptive_stops_when_the_interval_is_narrow_enough(table_KN):
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="adaptive", half_width={"table_mean": 0.012})
    found = few_estimates(matrix_of(shop.sold["likelihood"]), "likelihood", spent, [0.5])
    mean = found["table_mean"]
    assert mean.high - mean.low <= 0.024
    assert mean.low <= table_KN.mean() <= mean.high
    assert 1200 < spent.cells < 6000
    assert spent.planned is not None
    assert 0.95 < spent.level < 1
    assert spent.missed == ()
    assert "table_mean +-1.2 points" in shop.heard[1]
    wider = Shop(likelihood=table_KN).spend(kind="adaptive", half_width={"table_mean": 0.03})
    assert wider.cells < spent.cells


def test_adaptive_serves_several_estimates_and_all_scorers(table_KN):
    hard_KN = logistic_table(np.random.default_rng(1), table_KN.shape, 0.8, centre=0.0)
    shop = Shop(likelihood=table_KN, generation=hard_KN)
    targets = {"table_mean": 0.02, "table_p10": 0.04, "table_sd": 0.02}
    spent = shop.spend(kind="adaptive", half_width=targets)
    for scorer, sold_KN in shop.sold.items():
        found = few_estimates(matrix_of(sold_KN), scorer, spent, [])
        for name, width in targets.items():
            assert (found[name].high - found[name].low) / 2 <= width + 1e-9


def test_what_cannot_be_reached_is_said(table_KN):
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="adaptive", half_width={"table_mean": 0.001}, cells=3000)
    assert spent.cells == 3000
    assert spent.missed == ("table_mean",)
    assert shop.heard[-1] == "budget of 3,000 cells spent; not reached: table_mean"
    assert spent.to_dict()["missed"] == ["table_mean"]
    assert Shop(likelihood=table_KN).spend(kind="adaptive", half_width={"table_mean": 0.0001}).whole


def test_the_whole_table_may_be_too_little_for_the_mean_over_new_ones(table_KN):
    shop = Shop(likelihood=table_KN[:6, :200])
    spent = shop.spend(kind="adaptive", half_width={"mean": 0.01, "table_mean": 0.001})
    assert spent.whole
    assert spent.missed == ("mean",)
    assert shop.heard[-1] == "budget of 1,200 cells spent; not reached: mean"


def test_adaptive_takes_the_mean_beside_what_the_model_of_accuracies_tells(table_KN):
    shop = Shop(likelihood=table_KN[:8, :300])
    spent = shop.spend(kind="adaptive", half_width={"mean": 0.02, "table_sd": 0.01})
    assert spent.whole
    assert spent.missed == ("mean",)
    assert shop.heard[-2].startswith("plan: about 2,400 of 2,400 cells (100.0%)")


def test_racing_finds_both_ends_and_pays_once(table_KN):
    table_KN = table_KN.copy()
    table_KN[7] *= np.random.default_rng(0).random(600) < 0.4
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="racing", half_width={"table_worst": 0.03})
    assert spent.to_dict()["sampled_examples"] == 50  # the block, not all that the race bought
    assert spent.sampled_KN.sum() == 30 * 50
    assert spent.sampled_KN.any(0).sum() == 50
    worst = spent.extremes["likelihood"]["table_worst"]
    assert worst.high - worst.low <= 0.06
    assert worst.low <= table_KN[7].mean() <= worst.high
    assert spent.cells < 0.35 * table_KN.size
    found = few_estimates(matrix_of(shop.sold["likelihood"]), "likelihood", spent, [])
    assert found["table_worst"] is worst
    assert found["table_mean"].low <= table_KN.mean() <= found["table_mean"].high


@pytest.mark.parametrize("scorers", [("likelihood",), ("likelihood", "generation")])
def test_a_race_of_a_second_scorer_goes_on_with_the_cells_of_the_first(scorers):
    """Both are answered by the same cells: with two scorers that agree as much is known for as much as with one."""
    table_KN = logistic_table(np.random.default_rng(1), (20, 400), 0.6)
    shop = Shop(**dict.fromkeys(scorers, table_KN))
    spent = shop.spend(kind="racing", half_width={"table_worst": 0.02, "table_best": 0.02})
    assert spent.missed == ()
    assert spent.extremes[scorers[0]] == spent.extremes[scorers[-1]]
    assert not any("not reached" in line for line in shop.heard)


def test_a_race_says_how_many_cells_it_spent(table_KN):
    shop = Shop(likelihood=table_KN, generation=1 - table_KN)
    spent = shop.spend(kind="racing", cells=5000, half_width={"table_worst": 0.001})
    assert spent.missed == ("table_worst",)
    assert 1500 <= spent.cells < 5000
    assert shop.heard[-1] == f"{spent.cells:,} cells spent of a budget of 5,000; not reached: table_worst"
    assert set(spent.extremes) == {"likelihood", "generation"}


@pytest.mark.parametrize(("kind", "cells"), [("racing", 20), ("racing", 39), ("balanced", 20), ("adaptive", 20)])
def test_so_few_cells_that_nothing_tells_noise_give_figures_without_an_interval(kind, cells):
    shop = Shop(likelihood=(np.random.default_rng(0).random((20, 200)) < 0.7).astype(float))
    spent = shop.spend(kind=kind, cells=cells)
    assert bool(spent.missed) == (kind != "balanced")
    found = few_estimates(matrix_of(shop.sold["likelihood"]), "likelihood", spent, [0.5])
    assert found["mean"].to_dict()["low"] is found["table_mean"].to_dict()["high"] is None
    assert not any(np.isnan(each.value) for each in found.values())
    assert found["table_p10"].high - found["table_p10"].low > 0.3


def test_adaptive_with_a_race_shares_cells(table_KN):
    shop = Shop(likelihood=table_KN)
    spent = shop.spend(kind="adaptive", half_width={"table_mean": 0.02, "table_best": 0.05}, cells=9000)
    assert spent.cells <= 9000
    assert spent.sampled_KN.sum() < spent.cells
    assert set(spent.extremes["likelihood"]) == {"table_best"}
    alone = Shop(likelihood=table_KN).spend(kind="racing", half_width={"table_best": 0.05}, cells=9000)
    assert spent.cells < alone.cells + spent.sampled_KN.sum()


def test_expected_accuracies_are_nearer_to_the_truth_than_observed_ones(table_KN, monkeypatch):
    truth_K, expected, observed = table_KN.mean(1), [], []
    for seed in range(4):
        monkeypatch.setattr("paft.evaluation.budget.SEED", seed)
        shop = Shop(likelihood=table_KN)
        spent = shop.spend(kind="balanced", cells=6000)
        expected_K = expected_accuracies(matrix_of(shop.sold["likelihood"]), spent)
        expected.append(((expected_K - truth_K) ** 2).mean())
        observed.append(((np.nanmean(shop.sold["likelihood"], axis=1) - truth_K) ** 2).mean())
    assert sum(expected) < 0.9 * sum(observed)


def test_stopping_when_narrow_keeps_the_level():
    """Adaptive buying looks at the width of its own interval; over 400 tables the truth lies in it at its level or more."""
    inside = []
    for seed in range(400):
        table_KN = logistic_table(np.random.default_rng(seed), (20, 400), 0.3)
        shop = Shop(likelihood=table_KN)
        spent = shop.spend(kind="adaptive", half_width={"table_mean": 0.014})
        mean = mean_of_few(shop.sold["likelihood"], spent.level)
        inside.append(mean.low <= table_KN.mean() <= mean.high)
    assert np.mean(inside) >= 0.95 - 3 * (0.05 * 0.95 / 400) ** 0.5


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "full", "cells": 10}, "all are bought"),
        ({"kind": "balanced", "half_width": {"table_mean": 0.01}}, "only adaptive and racing"),
        ({"kind": "racing", "half_width": {"table_mean": 0.01}}, "choose kind: adaptive"),
        ({"kind": "adaptive", "half_width": {"table_mean": 0}}, "greater than 0"),
        ({"kind": "adaptive", "half_width": {"accuracy": 0.1}}, "table_mean"),
    ],
)
def test_contradictions_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        CellBudgetConfig(**settings)
