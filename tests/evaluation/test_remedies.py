"""Remedies at inference time against definitions written out, and on models whose leaning is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from paft.errors import ShapeError
from paft.evaluation.remedies import batch_calibrated, ensemble


def test_batch_calibration_is_its_definition():
    logp_NC = np.log([[0.6, 0.4], [0.9, 0.1], [0.55, 0.45]])
    prior = [(0.6 + 0.9 + 0.55) / 3, (0.4 + 0.1 + 0.45) / 3]
    chosen = [max((0, 1), key=lambda c: math.exp(row[c]) / prior[c]) for row in logp_NC]
    assert chosen == [1, 0, 1]
    assert batch_calibrated(logp_NC, [1, 0, 0]).tolist() == [1.0, 1.0, 0.0]
    shifted = logp_NC + np.array([[3.0], [-2.0], [0.5]])  # likelihoods need not sum to one
    assert batch_calibrated(shifted, [1, 0, 0]).tolist() == [1.0, 1.0, 0.0]


def test_a_leaning_to_one_label_is_taken_off():
    rng = np.random.default_rng(0)
    gold_N = rng.integers(0, 3, 400)
    signal_NC = np.eye(3)[gold_N] * 2 + rng.normal(size=(400, 3))
    leaning_NC = signal_NC + np.array([4.0, 0.0, -4.0])
    plain = (leaning_NC.argmax(1) == gold_N).mean()
    fair = (signal_NC.argmax(1) == gold_N).mean()
    assert plain < 0.6 < fair
    assert (
        batch_calibrated(leaning_NC, gold_N).mean() > plain + 0.1
    )  # it goes by mean probabilities, and takes off most
    weakly_NC = signal_NC + np.array([1.0, 0.0, -1.0])
    assert batch_calibrated(weakly_NC, gold_N).mean() > fair - 0.06


def test_an_ensemble_is_the_mean_of_probabilities():
    logp_KNC = np.log([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.4, 0.6]], [[0.4, 0.6], [0.95, 0.05]]])
    mean = np.exp(logp_KNC).mean(0)
    assert ensemble(logp_KNC, [0, 0]).tolist() == (mean.argmax(1) == 0).astype(float).tolist() == [1.0, 1.0]
    assert ensemble(logp_KNC + np.array([5.0, 0.0, -5.0])[:, None, None], [0, 0]).tolist() == [1.0, 1.0]


def test_a_tie_is_worth_a_share_as_in_every_other_figure():
    even_NC = np.log([[0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    assert batch_calibrated(even_NC, [1, 0, 1]).tolist() == [0.5, 1.0, 1.0]
    assert ensemble(np.stack([even_NC, even_NC]), [1, 0, 0]).tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("call", [lambda: batch_calibrated(np.zeros(3), [0]), lambda: ensemble(np.zeros((3, 2)), [0])])
def test_other_shapes_are_refused(call):
    with pytest.raises(ShapeError):
        call()
