"""How varied the prompts of a set are, and how far apart its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from paft.prompts.similarity import Embed, cosines, similarity_matrix
from paft.prompts.structure import STRUCTURE, structure, structure_counts
from paft.prompts.template import Template

PERMUTATIONS = 999


def separation(splits: Mapping[str, Sequence[Template]], embed: Embed | None = None) -> dict[str, Any]:
    """How far apart the splits of a set are, and how varied each is, as plain values; needs "train" and "test".

    Under "wording" (Jaccard of 5-grams) and, with embed, "meaning" (cosine of sentence embeddings):
    nearest: of every test prompt the most similar train prompt: maximum, median, counts in ten bins from 0 to 1, share of test
    prompts at or above .5, .6, .7 and .8. vendi, novelsum: see there, per split. mmd2, p: squared maximum mean discrepancy
    between train and test and its permutation p-value; the kernel is Jaccard, or Gaussian with the median distance.
    structure: how often each value of each feature occurs. unseen_structure: share of test prompts whose placement, cue and
    answer form do not occur together in train.
    """
    facts: dict[str, Any] = {"wording": _view(splits, similarity_matrix, lambda alike: alike)}
    if embed is not None:
        facts["meaning"] = _view(splits, lambda a, b: cosines(a, b, embed), _gaussian)
    facts["structure"] = structure_counts(splits)
    seen, new = ({_joint(template) for template in splits[name]} for name in ("train", "test"))
    of_test = [_joint(template) for template in splits["test"]]
    facts["unseen_structure"] = round(sum(each in new - seen for each in of_test) / len(of_test), 3)
    return facts


def _view(splits: Mapping[str, Sequence[Template]], similarity: Any, kernel: Any) -> dict[str, Any]:
    names = [name for name in splits if splits[name]]
    everything = [template for name in names for template in splits[name]]
    alike = np.clip(similarity(everything, everything), 0.0, 1.0)
    places = dict(
        zip(names, np.split(np.arange(len(everything)), np.cumsum([len(splits[n]) for n in names])[:-1]), strict=True)
    )
    nearest = alike[np.ix_(places["test"], places["train"])].max(1)
    within = {name: alike[np.ix_(at, at)] for name, at in places.items() if len(at) > 1}
    facts: dict[str, Any] = {
        "nearest": {
            "max": round(float(nearest.max()), 3),
            "median": round(float(np.median(nearest)), 3),
            "bins": np.histogram(nearest, bins=10, range=(0, 1))[0].tolist(),
            "share": {str(bar): round(float((nearest >= bar).mean()), 3) for bar in (0.5, 0.6, 0.7, 0.8)},
        },
        "vendi": {name: round(vendi(matrix), 1) for name, matrix in within.items()},
        "novelsum": {name: round(novelsum(1 - matrix), 3) for name, matrix in within.items()},
    }
    if {"train", "test"} <= within.keys():
        both = np.concatenate([places["train"], places["test"]])
        found, p = mmd_test(kernel(alike[np.ix_(both, both)]), len(places["train"]))
        facts |= {"mmd2": round(found, 5), "p": round(p, 3)}
    return facts


def vendi(kernel: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K / n: the effective number of different prompts, between 1 (all the same) and
    n (nothing in common) (Friedman & Dieng 2023)."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def novelsum(distance: np.ndarray, neighbours: int = 10) -> float:
    """Density-weighted sum of distances (NovelSum, Yang et al. 2025), shape (n, n) in; 0 when all prompts are the same.

    Distances from prompt i, itself first, weigh 1 / rank, and count more where the prompts lie close: row i is multiplied by
    (mean distance to its `neighbours` nearest + 1e-9)^-1/2.
    """
    n = len(distance)
    ordered = np.sort(np.where(np.eye(n, dtype=bool), 0.0, np.maximum(distance, 0.0)), axis=1)
    density = (ordered[:, 1 : 1 + neighbours].mean(1) + 1e-9) ** -0.5
    weights = 1 / np.arange(1, n + 1)
    return float((density * (ordered @ weights)).mean() / weights.sum())


def mmd2(kernel: np.ndarray, first: int) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy between the first rows of a pooled kernel and the others.

    About 0 (and at times below) for two draws of one distribution (Gretton et al. 2012, eq. 3).
    """
    return float(_mmd2s(kernel, np.arange(len(kernel))[None] < first)[0])


def mmd_test(kernel: np.ndarray, first: int, permutations: int = PERMUTATIONS, seed: int = 0) -> tuple[float, float]:
    """`mmd2` and the share of random relabellings that reach it, itself included."""
    observed = mmd2(kernel, first)
    draw = np.random.default_rng(seed)
    marks = draw.permuted(np.broadcast_to(np.arange(len(kernel)) < first, (permutations, len(kernel))), axis=1)
    return observed, float((1 + (_mmd2s(kernel, marks) >= observed - 1e-12).sum()) / (1 + permutations))


def _mmd2s(kernel: np.ndarray, marks_RN: np.ndarray) -> np.ndarray:
    """Of every row of marks, the estimate between what it marks and what it does not."""
    plain = kernel - np.diag(np.diag(kernel))
    one = marks_RN.astype(float)
    other = 1 - one
    m, n = one.sum(1), other.sum(1)
    into = one @ plain
    within_one, across = (into * one).sum(1), (into * other).sum(1)
    within_other = plain.sum() - within_one - 2 * across
    return np.asarray(within_one / (m * (m - 1)) + within_other / (n * (n - 1)) - 2 * across / (m * n))


def _gaussian(cosine: np.ndarray) -> np.ndarray:
    """Gaussian kernel of unit vectors with the median of their distances as its width."""
    squared = np.maximum(2 - 2 * cosine, 0.0)
    width = np.median(squared[np.triu_indices(len(squared), 1)]) if len(squared) > 1 else 1.0
    return np.asarray(np.exp(-squared / (2 * max(float(width), 1e-12))))


def _joint(template: Template) -> tuple[str, ...]:
    found = structure(template)
    return tuple(found[feature] for feature in STRUCTURE[:3])
