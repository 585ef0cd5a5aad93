"""How alike two templates are, in their words and in what they mean, whatever fills their slots."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

import numpy as np

from paft.prompts.template import Template
from paft.tasks.answers import LETTERS, Labels

NEAR_DUPLICATE = 0.5
"""Jaccard similarity of character 5-grams from which two templates count as the same prompt."""

REWORDED = 0.7
"""Share of words in common, in order, from which two templates count as the same prompt with some words changed."""
MEANING = 0.95
"""Cosine of sentence embeddings from which two templates count as the same prompt."""

Embed = Callable[[Sequence[str]], np.ndarray]
"""Texts -> unit vectors, shape (texts, dimensions): a sentence embedding model."""

BLOCK = 500
"""Rows compared with all others at a time."""

_FIELD = "\u25a1"
_SLOT = re.compile(r"\{[A-Za-z_]\w*\}", re.ASCII)
_OPTION = re.compile(r"\{([A-Z])\}")
_NUMBERS = tuple(map(str, range(1, 27)))
_TOKEN = re.compile(r"\w+|\S")
_ABOVE, _BELOW = "\ue000", "\ue001"


class _Blanked(dict[int, int | None]):
    """Punctuation and symbols (= | ~ < ` and emoji) to a blank, what has no width to nothing, for str.translate; every sign is looked up once."""

    def __missing__(self, code: int) -> int | None:
        category = unicodedata.category(chr(code))
        unseen = category == "Cf" or 0xFE00 <= code <= 0xFE0F  # selectors of a style, as emoji have
        self[code] = None if unseen else 32 if category[0] in "PS" else code
        return self[code]


_BLANKED = _Blanked({ord(_FIELD): ord(_FIELD)})


@lru_cache(maxsize=8192)
def text_form(text: str) -> str:
    """Text as it is compared: NFKC, case folded, every slot one sign, punctuation and symbols gone, white space single."""
    text = unicodedata.normalize("NFKC", _SLOT.sub(_FIELD, text)).casefold()
    return " ".join(text.translate(_BLANKED).split())


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
    return _table(columns, starts, len(known))


def _table(columns: Sequence[int], starts: Sequence[int], wide: int) -> Any:
    from scipy.sparse import csr_matrix  # half a second, which a command that compares nothing need not wait

    return csr_matrix((np.ones(len(columns), np.float32), columns, starts), shape=(len(starts) - 1, max(1, wide)))


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
    """All pairs (i < j) of templates whose similarity is at least `least`, exact, in blocks of bounded memory.

    Grams that many templates share are counted by dense products, the others by sparse ones: each where it is the faster.
    """
    table = gram_table([static_form(template) for template in templates])
    sizes = np.diff(table.indptr).astype(np.float32)
    usual = np.asarray(table.sum(0)).ravel() > max(50, len(templates) / 100)
    columns = table.tocsc()
    dense, rare = columns[:, usual].toarray(), columns[:, ~usual].tocsr()
    pairs = []
    for begin in range(0, len(templates), BLOCK):
        block = slice(begin, begin + BLOCK)
        common = dense[block] @ dense[begin:].T + rare[block] @ rare[begin:].T
        alike = np.asarray(common / (sizes[block, None] + sizes[None, begin:] - common))
        i, j = (alike >= least).nonzero()
        keep = i < j
        pairs += [(int(a) + begin, int(b) + begin, float(alike[a, b])) for a, b in zip(i[keep], j[keep], strict=True)]
    return pairs


def reworded_pairs(rows: Sequence[Template], columns: Sequence[Template]) -> list[tuple[int, int, float]]:
    """Pairs (row, column) that differ by a few changed words: at least REWORDED of their words and slots are the same in order,
    and more than half of what is neither a slot nor a single letter.

    Jaccard of 5-grams does not see this in short prompts, where one word is many grams. Word similarity is 2 M / T of difflib.
    """
    known: dict[tuple[str, int], int] = {}
    first, second = ([static_form(template).split() for template in side] for side in (rows, columns))
    tables = [_bags(side, known) for side in (first, second)]
    tables[0].resize((len(first), len(known)))
    pairs = []
    for begin in range(0, len(first), BLOCK):
        common = (tables[0][begin : begin + BLOCK] @ tables[1].T).toarray()
        sizes = np.array([len(words) for words in first[begin : begin + BLOCK]])[:, None] + np.array(
            [*map(len, second)]
        )
        for i, j in zip(*(2 * common >= REWORDED * sizes).nonzero(), strict=True):
            one, other = first[begin + int(i)], second[int(j)]
            alike = _in_order(one, other)
            if alike >= REWORDED and _in_order(*([w for w in words if len(w) > 1] for words in (one, other))) > 0.5:
                pairs.append((begin + int(i), int(j), alike))
    return pairs


def _bags(texts: Sequence[Sequence[str]], known: dict[tuple[str, int], int]) -> Any:
    """Words with repeats, as a sparse 0/1 table whose products count words in common."""
    columns, starts = [], [0]
    for words in texts:
        counts: Counter[str] = Counter()
        for word in words:
            columns.append(known.setdefault((word, counts[word]), len(known)))
            counts[word] += 1
        starts.append(len(columns))
    return _table(columns, starts, len(known))


def _in_order(one: Sequence[str], other: Sequence[str]) -> float:
    first, second = sorted((one, other), key=lambda words: (len(words), list(words)))
    return SequenceMatcher(None, first, second, autojunk=False).ratio() if first and second else 0.0


def similarity_matrix(rows: Sequence[Template], columns: Sequence[Template]) -> np.ndarray:
    """Jaccard similarity of 5-grams of every pair, shape (rows, columns), in [0, 1]."""
    known: dict[str, int] = {}
    return jaccard(
        gram_table([static_form(t) for t in rows], known), gram_table([static_form(t) for t in columns], known)
    )


def static_form(template: Template) -> str:
    """`text_form` of all that a template says by itself. Options shown one by one in a regular layout are one slot, as in {choices}."""
    inner = template.inner_answer
    own = inner.labels if isinstance(inner, Labels) and inner.labels else LETTERS
    return _form(f"{template.system}\n{template.text}" if template.system else template.text, own)


@lru_cache(maxsize=8192)
def _form(text: str, own: tuple[str, ...]) -> str:
    pieces = _OPTION.split(text)
    count, found = len(pieces) // 2, []
    if count > 1 and tuple(pieces[1::2]) == LETTERS[:count]:
        parts = [text_form(piece) for piece in pieces[::2]]
        each = [[text_form(label) for label in labels[:count]] for labels in (own, LETTERS, _NUMBERS)]
        found = [block for labels in each if len(labels) == count and (block := _as_one_block(parts, labels))]
    # the labels that explain most of what stands between the options
    return min(found)[1] if found else text_form(text.replace("{choices}", " {choices} "))


def _as_one_block(parts: Sequence[str], labels: Sequence[str]) -> tuple[int, str] | None:
    """Signs between options that the layout of one does not explain, and the form. None unless the same stands between any two, but for
    labels. parts: before, between and after the options.
    """
    around = zip(parts, ["", *labels], [*labels, ""], strict=True)
    before, *between, after = ([*_TOKEN.finditer(_marked(*each))] for each in around)
    start, end, *gaps = ([token[0] for token in each] for each in (before, after, *between))
    head = _alike(start[::-1], gaps[0][::-1])
    tail = _alike(end, gaps[0][: len(gaps[0]) - head])
    joiner = gaps[0][tail : len(gaps[0]) - head]
    # layout is marks, a label, and a word or two such as "Option"; of two options' one gap, which no other confirms, still less is a joiner
    if any(sum(token.isalnum() for token in some) > 2 for some in (start[-head:] if head else [], end[:tail], joiner)):
        return None
    if any(gap != gaps[0] for gap in gaps) or {_FIELD, _ABOVE, _BELOW} & {*joiner} or (len(labels) == 2 < len(joiner)):
        return None
    left = before[-head].start() if head else None
    right = after[tail - 1].end() if tail else 0
    form = f"{before[0].string[:left] if before else ''} {_FIELD} {after[0].string[right:] if after else ''}"
    return len(joiner), " ".join(form.replace(_BELOW, labels[0]).replace(_ABOVE, labels[-1]).split())


def _marked(text: str, above: str, below: str) -> str:
    """A text with signs for the labels of the options before and after it."""
    for label, sign in ((above, _ABOVE), (below, _BELOW)):
        text = re.sub(rf"(?<!\w){re.escape(label)}(?!\w)", sign, text) if label else text
    return text


def _alike(one: Sequence[str], other: Sequence[str]) -> int:
    """How many are the same, from the first on."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def masked(template: Template) -> str:
    """What is embedded: system text and text, every slot one dash."""
    text = f"{template.system}\n{template.text}" if template.system else template.text
    return " ".join(_SLOT.sub("-", text).split())


def cosines(rows: Sequence[Template], columns: Sequence[Template], embed: Embed) -> np.ndarray:
    """Cosine of the embeddings of every pair, shape (rows, columns), in [-1, 1]."""
    return np.asarray(embed([masked(t) for t in rows]) @ embed([masked(t) for t in columns]).T)


def cosine_pairs(templates: Sequence[Template], least: float, embed: Embed) -> list[tuple[int, int, float]]:
    """All pairs (i < j) of templates whose embeddings have a cosine of at least `least`."""
    pairs: list[tuple[int, int, float]] = []
    for begin in range(0, len(templates), BLOCK):
        alike = cosines(templates[begin : begin + BLOCK], templates, embed)
        i, j = (alike >= least).nonzero()
        keep = i + begin < j
        pairs += [(int(a) + begin, int(b), float(alike[a, b])) for a, b in zip(i[keep], j[keep], strict=True)]
    return pairs
