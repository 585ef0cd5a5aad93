"""Plans, lists of calls of tools, judged as T-Eval's own grader judges them: by how alike the calls are, and by their order."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from paft.tasks.embeddings import Embed, cosines, judge, whole
from paft.tasks.texts import UNREADABLE, literal

NAME, ARGUMENTS, ALIKE = 0.75, 0.25, 0.8
"""Weights of the likeness of two names and of two arguments, and what their sum must exceed for calls to be matched."""
LAST = "FinishAction"
"""Name of a last call that only ends a plan, and is not counted."""
IN_ORDER = 1e-9
"""Of matchings that are equally good, the one nearest to the best in order is taken: by so much, far below what rounding leaves apart."""


class Call(NamedTuple):
    """One step of a plan: a tool, and its arguments as text."""

    name: str
    arguments: str


def read_list(text: str) -> tuple[Call, ...] | None:
    """The calls of a JSON list of {"id", "name", "args"}, by their ids; a list as Python writes it is read too.

    What stands between the first opening bracket and the last closing one is the list, after a first "```json" where there is one.
    None when that is no such list, or an empty one.
    """
    _, fence, fenced = text.partition("```json")
    text = fenced if fence else text
    text = text[max(0, text.find("[")) : text.rfind("]") + 1]
    try:
        found = literal(text)
    except UNREADABLE:
        return None
    if not isinstance(found, list) or not found:
        return None
    try:
        calls = [(int(each["id"]), Call(_text(each["name"]), _text(each["args"]))) for each in found]
    except UNREADABLE:
        return None
    return tuple(call for _, call in sorted(calls, key=lambda numbered: numbered[0]))


def _text(value: object) -> str:
    return whole(str(value))


def read_steps(text: str, names: Sequence[str]) -> tuple[Call, ...] | None:
    """The calls of steps, a line each: the first tool that is named, with what stands in braces after it. None when no line names one.

    T-Eval's grader takes the whole sentence for the arguments, and so seldom matches a right call without any.
    """
    found = []
    for line in text.splitlines():
        places = [(place, -len(name), name) for name in names if (place := line.find(name)) >= 0]
        if places:
            place, length, name = min(places)
            rest = line[place - length :]
            arguments = rest[max(0, rest.find("{")) : rest.rfind("}") + 1] or "{}"
            with contextlib.suppress(*UNREADABLE):
                arguments = str(literal(arguments))
            found.append(Call(name, _text(arguments)))
    return tuple(found) or None


def write_steps(calls: Sequence[Call]) -> str:
    """A plan as numbered steps, a line each."""
    return "\n".join(f"{n}. Use {call.name} with {call.arguments}" for n, call in enumerate(calls, 1))


def likeness(plan: tuple[Call, ...], gold: tuple[Call, ...]) -> float:
    """F1 of the calls that are matched, in order, with those of the right plan. 0 for a plan without a call.

    Calls are matched one to one so that the likenesses above ALIKE add up to most; the longest part of a plan whose matches stand in
    the right order counts. One call counts at least, matched or not: so has it T-Eval's grader. Raises ConfigError when no embedding
    model was named.
    """
    return _likeness(judge("plans"), plan, gold)


@lru_cache(maxsize=65536)
def _likeness(embed: Embed, plan: tuple[Call, ...], gold: tuple[Call, ...]) -> float:
    plan, gold = (calls[:-1] if calls and calls[-1].name == LAST else calls for calls in (plan, gold))
    if not plan or not gold:
        return 0.0
    names_PG, arguments_PG = (cosines(embed, [c[part] for c in plan], [c[part] for c in gold]) for part in (0, 1))
    # rounded, so that the same texts are as alike wherever they stand
    weight_PG = np.round(NAME * names_PG + ARGUMENTS * arguments_PG, 6)
    weight_PG[weight_PG <= ALIKE] = 0
    rows, columns = linear_sum_assignment(weight_PG + IN_ORDER * _aligned(weight_PG), maximize=True)
    rising: list[int] = []
    for row, column in zip(rows, columns, strict=True):
        if weight_PG[row, column]:
            place = bisect_left(rising, column)
            rising[place : place + 1] = [column]
    return 2 * max(1, len(rising)) / (len(plan) + len(gold))


def _aligned(weight_PG: np.ndarray) -> np.ndarray:
    """Which pairs are in the matching with the largest sum of all that keep the order of both plans."""
    sum_PG = np.zeros(np.add(weight_PG.shape, 1))
    for (i, j), weight in np.ndenumerate(weight_PG):
        sum_PG[i + 1, j + 1] = max(sum_PG[i, j + 1], sum_PG[i + 1, j], sum_PG[i, j] + weight)
    found_PG = np.zeros(weight_PG.shape, dtype=bool)
    i, j = weight_PG.shape
    while i and j:
        if sum_PG[i, j] == sum_PG[i - 1, j]:
            i -= 1
        elif sum_PG[i, j] == sum_PG[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            found_PG[i, j] = True
    return found_PG
