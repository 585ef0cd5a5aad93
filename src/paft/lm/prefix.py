"""Which tokens of many texts have to be computed, each shared beginning once, and in which passes. No torch here.

Texts that begin alike share what a causal model computes for the beginning. A `Row` packs such texts into one line of
tokens, a tree written depth first: every token sees its own text up to itself and nothing else. A beginning that is
shared by more than fits into a row becomes a `Head`: computed by itself, and kept while the rows after it are computed.
Beginnings are found on the token ids of whole texts, never by joining pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, eq=False)
class Row:
    """Some texts, packed: the tokens that follow the head that they share.

    ids_T, depth_T: token, and its position in its text, for each place of the row. texts: which texts. paths: for each
    of them the places of its tokens after the head, in order.
    """

    ids_T: np.ndarray
    depth_T: np.ndarray
    texts: tuple[int, ...]
    paths: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.ids_T)

    def sees_TT(self) -> np.ndarray:
        """True where a place (row) looks at a place (column): at its own text, up to itself.

        >>> root = plan([[5, 6, 7], [5, 6, 8]], latest=[0, 0], room=99, width=64)
        >>> root.rows[0].sees_TT().astype(int).tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
        """
        size = len(self)
        sees_TT = np.zeros((size, size), dtype=bool)
        known = 0
        for path in self.paths:
            own = int(np.searchsorted(path, known))  # places from here on are new with this text
            new = path[own:]
            sees_TT[new[:, None], path[None, :own]] = True
            sees_TT[new[:, None], new[None, :]] = np.tri(len(new), dtype=bool)
            known += len(new)
        return sees_TT


def forest(texts: Sequence[Sequence[int]], latest: Sequence[int]) -> Row:
    """All texts in one row, in the order given, what two of them share once.

    latest: for each text, how many of its tokens may be shared at most; the others have places of their own, in its turn.

    >>> forest([[5, 6, 7], [8, 9], [5, 6, 7]], latest=[2, 1, 2]).ids_T.tolist()
    [5, 6, 7, 8, 9, 7]
    """
    begins = [np.asarray(ids[:most]) for ids, most in zip(texts, latest, strict=True)]
    ids: list[int] = []
    depths: list[int] = []
    paths: list[np.ndarray] = []
    for number, text in enumerate(texts):
        shared = [_common(begins[number], other) for other in begins[:number]]
        kept = max(shared, default=0)
        beside = paths[shared.index(kept)][:kept] if kept else np.array([], dtype=np.int64)
        paths.append(np.concatenate([beside, np.arange(len(ids), len(ids) + len(text) - kept)]))
        ids += text[kept:]
        depths += range(kept, len(text))
    return Row(np.array(ids, dtype=np.int64), np.array(depths, dtype=np.int64), tuple(range(len(texts))), tuple(paths))


@dataclass(eq=False)
class Head:
    """A beginning that is computed by itself: its tokens after those of the head above it, and all that follows it.

    start: number of tokens before it. rows: what is computed right after it; heads: longer beginnings.
    """

    start: int
    ids: np.ndarray
    rows: list[Row] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)

    @property
    def end(self) -> int:
        """Number of tokens up to where its rows start."""
        return self.start + len(self.ids)

    @property
    def tokens(self) -> int:
        """Tokens to be computed, from here on."""
        return len(self.ids) + sum(map(len, self.rows)) + sum(head.tokens for head in self.heads)

    def texts(self) -> Iterator[int]:
        """All texts that begin with it."""
        for row in self.rows:
            yield from row.texts
        for head in self.heads:
            yield from head.texts()


def plan(texts: Sequence[Sequence[int]], latest: Sequence[int], room: int, width: int, overhead: int = 32) -> Head:
    """How to compute all texts (token ids, none empty, all different).

    latest: for each text, how many of its tokens a head may hold at most; what is read off the text must lie in a row.
    room: most tokens of a row that packs several texts. width: hidden size of the model; a token costs as much in linear
    layers as in attention to 6 * width others, which decides when packing pays. overhead: what a pass of its own costs,
    in tokens; a head must save twice that.
    """
    arrays = [np.asarray(ids, dtype=">u4") for ids in texts]
    # big-endian ids sort as bytes; a shorter text comes before those that it begins
    order = sorted(range(len(arrays)), key=lambda j: arrays[j].tobytes())
    arrays = [arrays[j] for j in order]
    common_J = np.array([0] + [_common(a, b) for a, b in itertools.pairwise(arrays)], dtype=np.int64)
    length_J = np.array([len(a) for a in arrays], dtype=np.int64)
    latest_J = np.array([latest[j] for j in order], dtype=np.int64)

    def size(low: int, high: int, depth: int) -> int:
        """Tokens of a tree below a depth that all its texts share."""
        return int(length_J[low:high].sum() - common_J[low + 1 : high].sum()) - depth

    root = Head(0, np.array([], dtype=np.int64))
    todo = [(0, len(arrays), root)] if arrays else []
    while todo:
        low, high, head = todo.pop()
        depth, tokens = head.end, size(low, high, head.end)
        branching = int(common_J[low + 1 : high].min()) if high - low > 1 else int(length_J[low])
        cuts = [low, *(low + 1 + np.flatnonzero(common_J[low + 1 : high] == branching)).tolist(), high]
        children = list(itertools.pairwise(cuts))
        shared = branching - depth
        if high - low == 1:
            head.rows.append(_row(arrays, common_J, order, low, high, depth))
        elif tokens <= room:
            apart = sum(size(a, b, depth) ** 2 for a, b in children) + 6 * width * (len(children) - 1) * shared
            if tokens**2 <= apart:
                head.rows.append(_row(arrays, common_J, order, low, high, depth))
            else:
                todo += [(a, b, head) for a, b in children]
        else:
            end = min(branching, int(latest_J[low:high].min()))
            if (len(children) - 1) * (end - depth) > 2 * overhead:
                longer = Head(depth, arrays[low][depth:end].astype(np.int64))
                head.heads.append(longer)
                todo.append((low, high, longer))
            else:
                todo += [(a, b, head) for a, b in children]
    return root


def _common(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differing = a[:size] != b[:size]
    return int(differing.argmax()) if differing.any() else size


def _row(
    arrays: Sequence[np.ndarray], common_J: np.ndarray, order: Sequence[int], low: int, high: int, depth: int
) -> Row:
    ids, depths, paths = [], [], []
    path, used = np.array([], dtype=np.int64), 0
    for j in range(low, high):
        kept = int(common_J[j]) - depth if j > low else 0
        new = arrays[j][depth + kept :]
        path = np.concatenate([path[:kept], np.arange(used, used + len(new))])
        ids.append(new)
        depths.append(np.arange(depth + kept, depth + kept + len(new)))
        paths.append(path)
        used += len(new)
    return Row(
        np.concatenate(ids).astype(np.int64),
        np.concatenate(depths),
        tuple(order[j] for j in range(low, high)),
        tuple(paths),
    )


def flat(texts: Sequence[Sequence[int]], which: Sequence[int], start: int = 0) -> list[Row]:
    """A row for each text by itself, from a position on: for models that do not share, and for want of memory."""
    rows = []
    for j in which:
        ids_T = np.asarray(texts[j][start:], dtype=np.int64)
        places_T = np.arange(len(ids_T))
        rows.append(Row(ids_T, start + places_T, (j,), (places_T,)))
    return rows


def take(queue: Sequence[Row], budget: int, padding: int) -> int:
    """How many rows of a queue, longest first, make the next pass: padded they hold at most `budget` tokens, of which
    about `padding` are padding; at least one."""
    widest, spare = len(queue[0]), 0
    for count, row in enumerate(queue):
        spare += widest - len(row)
        if count and (widest * (count + 1) > budget or spare > padding):
            return count
    return len(queue)
