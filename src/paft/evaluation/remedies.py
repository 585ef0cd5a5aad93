"""What can be done about wording at inference time, without training: the two remedies that training has to beat.

Both work on log-likelihoods that are there already, so they cost nothing more to look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax, logsumexp

from paft.errors import ShapeError
from paft.evaluation.matrix import restricted_choice


def batch_calibrated(logp_NC: np.ndarray, gold_N: Sequence[int]) -> np.ndarray:
    """Scores of the examples under one prompt, shape (N,), after batch calibration (arXiv 2309.17249).

    logp_NC: log-likelihoods of C choices that mean the same in every example (labels, letters). From each the log of that choice's mean
    probability over the examples is taken, so that a prompt's leaning to one label counts no more. No label is looked at.
    """
    given_NC = log_softmax(_table(logp_NC), axis=1)
    prior_C = logsumexp(given_NC, axis=0) - np.log(len(given_NC))
    return _scores(given_NC - prior_C, gold_N)


def ensemble(logp_KNC: np.ndarray, gold_N: Sequence[int]) -> np.ndarray:
    """Scores of the examples, shape (N,), when all K prompts are asked and the mean of their probabilities decides.

    Costs K times what one prompt costs. Under each prompt the choices' probabilities sum to one.
    """
    if logp_KNC.ndim != 3:
        raise ShapeError(f"log-likelihoods of shape {logp_KNC.shape}; expected prompts x examples x choices")
    mean_NC = logsumexp(log_softmax(logp_KNC, axis=2), axis=0)
    return _scores(mean_NC, gold_N)


def _scores(given_NC: np.ndarray, gold_N: Sequence[int]) -> np.ndarray:
    """1 or 0, or a share of a tie, as everywhere else."""
    each = zip(given_NC.tolist(), gold_N, strict=True)
    return np.array([restricted_choice(given_C, int(gold), str(n))[1] for n, (given_C, gold) in enumerate(each)])


def _table(logp_NC: np.ndarray) -> np.ndarray:
    if logp_NC.ndim != 2 or len(logp_NC) < 2:
        raise ShapeError(f"log-likelihoods of shape {logp_NC.shape}; expected two or more examples x choices")
    return logp_NC
