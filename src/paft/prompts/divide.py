"""From sound candidates to train, dev and test: what may not straddle a split, and which of too many to take."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from paft.prompts.similarity import (
    Embed,
    cosine_pairs,
    gram_table,
    jaccard,
    masked,
    near_pairs,
    reworded_pairs,
    static_form,
)
from paft.prompts.structure import STRUCTURE, answer_form, cue, placement, structure
from paft.prompts.template import Template

Unit = Literal["cluster", "random", "writer", "strategy", "format", "placement", "cue"]

CLUSTER = 0.3
"""Jaccard similarity of 5-grams from which two prompts belong to one cluster (single linkage), beside those that are reworded."""
CLUSTER_MEANING = 0.85
"""Cosine of sentence embeddings from which they do."""


def divide(
    templates: Sequence[Template],
    sizes: Mapping[str, int],
    *,
    by: Unit = "cluster",
    select: Literal["diverse", "uniform"] = "diverse",
    seed: int = 0,
    embed: Embed | None = None,
) -> dict[str, tuple[Template, ...]]:
    """Templates per split, at most the sizes asked for; a group never lies in two splits.

    Groups go, in keyed random order, to the split that lacks most of what it should have; of a split with more candidates
    than its size those furthest from each other stay (greedy k-center, Gonzalez 1985), or a random choice. Far means unlike in
    words (in meaning, with embed) and, by the same weight, in structure.
    """
    pools: dict[str, list[int]] = {name: [] for name in sizes}
    total = sum(sizes.values())
    groups = _groups(templates, by, embed)
    for group in sorted(groups, key=lambda members: (-len(members), _draw(seed, templates[members[0]].id))):
        share = len(templates) / total  # so that all splits have the same surplus to choose from
        name = max(pools, key=lambda split: (sizes[split] * max(share, 1.0) - len(pools[split])) / sizes[split])
        pools[name] += group
    chosen = {}
    for name, pool in pools.items():
        size = min(sizes[name], len(pool))
        ordered = sorted(pool, key=lambda place: _draw(seed, templates[place].id))
        taken = _furthest([templates[p] for p in ordered], size, embed) if select == "diverse" else range(size)
        chosen[name] = tuple(templates[place] for place in sorted(ordered[each] for each in taken))
    return chosen


def _groups(templates: Sequence[Template], by: Unit, embed: Embed | None) -> list[list[int]]:
    if by == "cluster":
        return _clusters(templates, embed)
    members: dict[str, list[int]] = defaultdict(list)
    for place, template in enumerate(templates):
        origin = template.origin
        match by:
            case "random":
                key = str(place)
            case "writer":
                key = str(origin.get("writer"))
            case "strategy":
                key = f"{origin.get('writer')} {origin.get('strategy')}"
            case "format":
                key = answer_form(template)
            case "placement":
                key = placement(template)
            case "cue":
                key = cue(template)
        members[key].append(place)
    return list(members.values())


def _clusters(templates: Sequence[Template], embed: Embed | None) -> list[list[int]]:
    parent = list(range(len(templates)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    pairs = near_pairs(templates, CLUSTER) + reworded_pairs(templates, templates)
    pairs += cosine_pairs(templates, CLUSTER_MEANING, embed) if embed else []
    for a, b, _ in pairs:
        parent[root(b)] = root(a)
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(len(templates)):
        members[root(place)].append(place)
    return list(members.values())


def _furthest(templates: Sequence[Template], size: int, embed: Embed | None) -> list[int]:
    if size >= len(templates):
        return list(range(len(templates)))
    found = [structure(template) for template in templates]
    table = np.array([[each[feature] for feature in STRUCTURE] for each in found])
    vectors = embed([masked(template) for template in templates]) if embed else None
    grams = gram_table([static_form(template) for template in templates])
    chosen = [0] if size else []
    nearest = np.zeros(len(templates))
    while len(chosen) < size:
        last = chosen[-1]
        alike = jaccard(grams[last], grams)[0] if vectors is None else vectors @ vectors[last]
        nearest = np.maximum(nearest, alike + (table == table[last]).mean(1))
        nearest[last] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen


def _draw(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()
