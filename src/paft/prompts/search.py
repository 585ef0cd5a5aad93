"""Which one prompt to train on: the paper's single-prompt baselines, each with a stated budget of prompts that it may score.

Scores are accuracies of the untrained model on examples that are held out of training; nobody looks at a test prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paft.prompts.similarity import similarity_matrix
from paft.prompts.template import Template

Score = Callable[[Sequence[int]], Sequence[float]]
"""Accuracies of some prompts of the pool, by position."""


def top_accuracy(size: int, score: Score, budget: int, seed: int) -> dict[int, float]:
    """Scores of `budget` prompts of a pool of `size`, drawn at random (the paper's TopAccuracy, which does not say how many it scored).

    The best of them is the choice.
    """
    drawn = np.random.default_rng([seed, 301]).permutation(size)[:budget].tolist()
    return dict(zip(drawn, score(drawn), strict=True))


def zopo(features_KD: np.ndarray, score: Score, budget: int, seed: int, first: int = 5) -> dict[int, float]:
    """Scores of the prompts that a local search over their features visits (after ZOPO, arXiv 2403.02993).

    From the best of `first` random prompts it goes along the gradient of a Gaussian process that is fitted to all scores so far, to the
    nearest prompt that is not scored yet; where that is no better, the nearest neighbour of the best one is scored before the next step. The
    kernel is squared exponential with the median distance for a length, where ZOPO has a neural tangent kernel.
    """
    size = len(features_KD)
    distance_KK = np.linalg.norm(features_KD[:, None] - features_KD[None], axis=-1)
    length = float(np.median(distance_KK[distance_KK > 0])) if (distance_KK > 0).any() else 1.0
    drawn = np.random.default_rng([seed, 302]).permutation(size)[: min(first, budget)].tolist()
    found: dict[int, float] = dict(zip(drawn, score(drawn), strict=True))
    best, stuck = max(found, key=lambda k: found[k]), False
    while len(found) < min(budget, size):
        rest = [k for k in range(size) if k not in found]
        if stuck:
            to_K = distance_KK[best]
        else:
            gradient_D = _gradient(features_KD, found, best, length)
            step = np.linalg.norm(gradient_D)
            nearest = min(distance_KK[best, k] for k in rest)
            target_D = features_KD[best] + (gradient_D / step * max(nearest, 0.25 * length) if step > 0 else 0.0)
            to_K = np.linalg.norm(features_KD - target_D, axis=1)
        tried = min(rest, key=lambda k: to_K[k])
        found[tried] = float(score([tried])[0])
        stuck = found[tried] <= found[best] and not stuck
        if found[tried] > found[best]:
            best = tried
    return found


def _gradient(
    features_KD: np.ndarray, found: dict[int, float], at: int, length: float, noise: float = 0.05
) -> np.ndarray:
    """Gradient of the posterior mean at a prompt; scores have noise of about `noise` (some dozens of examples)."""
    seen_MD, scores_M = features_KD[list(found)], np.array(list(found.values()))
    centred_M = scores_M - scores_M.mean()
    scale = max(float(centred_M.std()), 1e-3)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * length**2))

    weights_M = np.linalg.solve(kernel(seen_MD, seen_MD) + (noise / scale) ** 2 * np.eye(len(found)), centred_M)
    here_D = features_KD[at]
    found_M = kernel(here_D[None], seen_MD)[0] * weights_M
    return np.asarray(-(found_M[:, None] * (here_D - seen_MD)).sum(0) / length**2)


def features_of(templates: Sequence[Template], dimensions: int = 16) -> np.ndarray:
    """Features of prompts, shape (K, D): the leading directions of their 5-gram similarities."""
    values, vectors = np.linalg.eigh(similarity_matrix(templates, templates))
    kept = np.argsort(values)[::-1][:dimensions]
    return np.asarray(vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0)))


def choose(found: dict[int, float]) -> int:
    """The prompt with the best score, the first in the pool among equals."""
    return min(found, key=lambda k: (-found[k], k))
