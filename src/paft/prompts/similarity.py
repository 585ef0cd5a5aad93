"""How alike two templates are as texts, whatever fills their slots."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

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


def similarity_matrix(rows: Sequence[Template], columns: Sequence[Template]) -> np.ndarray:
    """Jaccard similarity of 5-grams of every pair, shape (rows, columns), in [0, 1]."""
    rows_g = [grams(text_form(_whole(template))) for template in rows]
    columns_g = [grams(text_form(_whole(template))) for template in columns]
    return np.array([[len(a & b) / len(a | b) for b in columns_g] for a in rows_g]).reshape(len(rows), len(columns))


def _whole(template: Template) -> str:
    return f"{template.system}\n{template.text}" if template.system else template.text
