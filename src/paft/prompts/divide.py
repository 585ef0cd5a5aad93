"""From sound candidates to train, dev and test: what may not straddle a split, which of too many to take, how far apart."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from paft.prompts.similarity import gram_table, jaccard, near_pairs, similarity_matrix, static_form
from paft.prompts.template import Template
from paft.tasks.answers import ChoiceText, Wrapped

Unit = Literal["cluster", "random", "writer", "strategy", "format"]

CLUSTER = 0.3
"""Jaccard similarity of 5-grams from which two prompts belong to one cluster (single linkage)."""


def divide(
    templates: Sequence[Template],
    sizes: Mapping[str, int],
    *,
    by: Unit = "cluster",
    select: Literal["diverse", "uniform"] = "diverse",
    seed: int = 0,
) -> dict[str, tuple[Template, ...]]:
    """Templates per split, at most the sizes asked for; a group never lies in two splits.

    Groups go, in keyed random order, to the split that lacks most of what it should have; of a split with more candidates
    than its size those furthest from each other stay (greedy k-center, Gonzalez 1985), or a random choice.
    """
    pools: dict[str, list[int]] = {name: [] for name in sizes}
    total = sum(sizes.values())
    groups = _groups(templates, by)
    for group in sorted(groups, key=lambda members: (-len(members), _draw(seed, templates[members[0]].id))):
        share = len(templates) / total  # so that all splits have the same surplus to choose from
        name = max(pools, key=lambda split: (sizes[split] * max(share, 1.0) - len(pools[split])) / sizes[split])
        pools[name] += group
    chosen = {}
    for name, pool in pools.items():
        size = min(sizes[name], len(pool))
        ordered = sorted(pool, key=lambda place: _draw(seed, templates[place].id))
        taken = _furthest([templates[p] for p in ordered], size) if select == "diverse" else range(size)
        chosen[name] = tuple(templates[place] for place in sorted(ordered[each] for each in taken))
    return chosen


def separation(splits: Mapping[str, Sequence[Template]]) -> dict[str, Any]:
    """How far apart the splits of a set are, and how varied each is; similarity is Jaccard of 5-grams.

    nearest: of every test prompt the most similar train prompt: maximum, mean, counts in ten bins from 0 to 1. vendi: the
    effective number of different prompts (Friedman & Dieng 2023). mmd2: squared maximum mean discrepancy between train and
    test prompts, unbiased, so about 0 (and at times below) for two draws of one distribution (Gretton et al. 2012).
    """
    across = similarity_matrix(splits["test"], splits["train"])
    nearest = across.max(1)
    kernels = {name: similarity_matrix(splits[name], splits[name]) for name in splits if len(splits[name]) > 1}
    facts: dict[str, Any] = {
        "nearest": {
            "max": round(float(nearest.max()), 3),
            "mean": round(float(nearest.mean()), 3),
            "bins": np.histogram(nearest, bins=10, range=(0, 1))[0].tolist(),
        },
        "vendi": {name: round(vendi(kernel), 1) for name, kernel in kernels.items()},
    }
    if {"train", "test"} <= kernels.keys():
        facts["mmd2"] = round(mmd2(kernels["train"], kernels["test"], across), 5)
    return facts


def vendi(kernel: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of K / n; between 1 (all the same) and n (nothing in common)."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def mmd2(first: np.ndarray, second: np.ndarray, across: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy from the kernel within and across two samples."""

    def within(kernel: np.ndarray) -> float:
        n = len(kernel)
        return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))

    return within(first) + within(second) - 2 * float(across.mean())


def _groups(templates: Sequence[Template], by: Unit) -> list[list[int]]:
    if by == "cluster":
        return _clusters(templates)
    members: dict[str, list[int]] = defaultdict(list)
    for place, template in enumerate(templates):
        origin = template.origin
        key = {
            "random": str(place),
            "writer": str(origin.get("writer")),
            "strategy": f"{origin.get('writer')} {origin.get('strategy')}",
            "format": _form(template),
        }[by]
        members[key].append(place)
    return list(members.values())


def _form(template: Template) -> str:
    if isinstance(template.answer, Wrapped):
        return f"wrap {template.answer.wrap}"
    return "text" if isinstance(template.answer, ChoiceText) else f"labels {template.answer.labels}"


def _clusters(templates: Sequence[Template]) -> list[list[int]]:
    parent = list(range(len(templates)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    for a, b, _ in near_pairs(templates, CLUSTER):
        parent[root(b)] = root(a)
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(len(templates)):
        members[root(place)].append(place)
    return list(members.values())


def _furthest(templates: Sequence[Template], size: int) -> list[int]:
    if size >= len(templates):
        return list(range(len(templates)))
    table = gram_table([static_form(template) for template in templates])
    chosen = [0] if size else []
    nearest = np.zeros(len(templates))
    while len(chosen) < size:
        nearest = np.maximum(nearest, jaccard(table[chosen[-1]], table)[0])
        nearest[chosen[-1]] = 2.0
        chosen.append(int(nearest.argmin()))
    return chosen


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
