"""One prompt out of many, by scores: what is chosen, within the budget, and that a local search beats chance where nearness tells something."""

from __future__ import annotations

import numpy as np
import pytest

from paft.prompts.search import choose, features_of, top_accuracy, zopo
from tests import tiny


class Scores:
    """A landscape, and who was asked how often."""

    def __init__(self, value_K: np.ndarray):
        self.value_K, self.asked = value_K, []  # type: ignore[var-annotated]

    def __call__(self, prompts):
        self.asked += list(prompts)
        return [float(self.value_K[k]) for k in prompts]


def test_top_accuracy_scores_as_many_as_it_may_and_takes_the_best():
    score = Scores(np.arange(30) / 30)
    found = top_accuracy(30, score, 12, seed=3)
    assert len(score.asked) == len(set(score.asked)) == 12
    assert choose(found) == max(score.asked)
    assert top_accuracy(30, Scores(score.value_K), 12, seed=3) == found
    assert top_accuracy(30, Scores(score.value_K), 12, seed=4) != found
    assert set(top_accuracy(5, Scores(score.value_K), 12, seed=0)) == set(range(5))


def test_of_equals_the_first_is_chosen():
    assert choose({7: 0.5, 2: 0.5, 9: 0.4}) == 2


@pytest.mark.parametrize("budget", [2, 5, 12, 40])
def test_zopo_keeps_to_its_budget_and_asks_each_prompt_once(budget):
    features_KD = np.random.default_rng(0).normal(size=(30, 3))
    score = Scores(np.random.default_rng(1).uniform(size=30))
    found = zopo(features_KD, score, budget, seed=0)
    assert len(score.asked) == len(set(score.asked)) == len(found) == min(budget, 30)


def test_zopo_climbs_a_smooth_landscape_faster_than_chance():
    """The rank of what is found among 200 prompts with 20 scores: chance finds one of the best 10 on average."""
    ranks = {"zopo": [], "chance": []}
    for seed in range(20):
        features_KD = np.random.default_rng(seed).normal(size=(200, 4))
        peak_D = np.random.default_rng(1000 + seed).normal(size=4)
        value_K = np.exp(-((features_KD - peak_D) ** 2).sum(1) / 8)
        order = np.argsort(np.argsort(-value_K))
        ranks["zopo"].append(order[choose(zopo(features_KD, Scores(value_K), 20, seed))])
        ranks["chance"].append(order[choose(top_accuracy(200, Scores(value_K), 20, seed))])
    assert np.mean(ranks["zopo"]) < 0.5 * np.mean(ranks["chance"])


def test_a_flat_landscape_and_twins_are_no_trouble():
    assert len(zopo(np.zeros((6, 2)), Scores(np.full(6, 0.5)), 6, seed=0)) == 6


def test_features_of_prompts_have_their_similarities(tmp_path):
    from paft.prompts import PromptSet
    from paft.prompts.similarity import similarity_matrix

    prompts = PromptSet.load(str(tiny.write_prompts(tmp_path))).train
    features_KD = features_of(prompts, dimensions=99)
    assert features_KD @ features_KD.T == pytest.approx(similarity_matrix(prompts, prompts), abs=1e-6)
    assert features_of(prompts, dimensions=2).shape == (5, 2)
