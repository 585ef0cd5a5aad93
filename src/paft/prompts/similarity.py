"""How alike two templates are as texts, whatever fills their slots."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from paft.prompts.template import Template

NEAR_DUPLICATE = 0.5
"""Jaccard similarity of character 5-grams from which two templates count as the same prompt."""

_FIELD = "\u25a1"
_SLOT = re.compile(r"\{[A-Za-z_]\w*\}", re.ASCII)


def text_form(text: str) -> str:
    """Text as it is compared: NFKC, case folded, every slot one sign, punctuation gone, white space single."""
    text = unicodedata.normalize("NFKC", _SLOT.sub(_FIELD, text)).casefold()
    kept = "".join(c if c == _FIELD or not unicodedata.category(c).startswith("P") else " " for c in text)
    return " ".join(kept.split())


def grams(text: str, size: int = 5) -> frozenset[str]:
    """Character n-grams of a text; a shorter text is its only gram."""
    return frozenset(text[i : i + size] for i in range(max(1, len(text) - size + 1)))


def gram_table(texts: Sequence[str], known: dict[str, int] | None = None) -> Any:
    """Which text has which 5-grams: a sparse 0/1 matrix, shape (texts, grams). `known` numbers the grams and grows."""
    known = {} if known is None else known
    columns, starts = [], [0]
    for text in texts:
        columns += [known.setdefault(gram, len(known)) for gram in sorted(grams(text))]
        starts.append(len(columns))
    return csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=(len(texts), max(1, len(known))))


def jaccard(rows: Any, columns: Any) -> np.ndarray:
    """Jaccard similarity of every pair of two gram tables, shape (rows, columns), in [0, 1]."""
    wide = max(rows.shape[1], columns.shape[1])
    both = rows.copy(), columns.copy()
    for table in both:
        table.resize((table.shape[0], wide))
    common = (both[0] @ both[1].T).toarray()
    sizes = np.asarray(rows.sum(1)) + np.asarray(columns.sum(1)).T
    return np.asarray(common / (sizes - common))


def near_pairs(templates: Sequence[Template], least: float) -> list[tuple[int, int, float]]:
    """All pairs (i < j) of templates whose similarity is at least `least`, exact, without comparing all with all.

    Two sets with a Jaccard similarity of t share one of their rarest n - ceil(t n) + 1 members (prefix filter, Chaudhuri et
    al. 2006), so only pairs that do are computed.
    """
    table = gram_table([static_form(template) for template in templates])
    rank = np.argsort(np.argsort(np.asarray(table.sum(0)).ravel(), kind="stable"), kind="stable")
    sizes = np.diff(table.indptr)
    rare, starts = [], [0]
    for row in range(len(templates)):
        mine = np.sort(rank[table.indices[table.indptr[row] : table.indptr[row + 1]]])
        rare.append(mine[: len(mine) - int(np.ceil(least * len(mine))) + 1])
        starts.append(starts[-1] + len(rare[-1]))
    columns = np.concatenate(rare) if rare else np.zeros(0, int)
    prefix = csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=table.shape)
    pairs = []
    for begin in range(0, len(templates), 500):
        met = (prefix[begin : begin + 500] @ prefix.T).tocoo()
        i, j = met.row + begin, met.col
        keep = (i < j) & (np.minimum(sizes[i], sizes[j]) >= least * np.maximum(sizes[i], sizes[j]))
        i, j = i[keep], j[keep]
        common = np.asarray(table[i].multiply(table[j]).sum(1)).ravel() if len(i) else np.zeros(0)
        alike = common / (sizes[i] + sizes[j] - common)
        pairs += [(int(a), int(b), float(s)) for a, b, s in zip(i, j, alike, strict=True) if s >= least]
    return pairs


def similarity_matrix(rows: Sequence[Template], columns: Sequence[Template]) -> np.ndarray:
    """Jaccard similarity of 5-grams of every pair, shape (rows, columns), in [0, 1]."""
    known: dict[str, int] = {}
    return jaccard(
        gram_table([static_form(t) for t in rows], known), gram_table([static_form(t) for t in columns], known)
    )


def static_form(template: Template) -> str:
    """`text_form` of all that a template says by itself."""
    return text_form(f"{template.system}\n{template.text}" if template.system else template.text)
