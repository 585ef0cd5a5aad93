"""How long a free answer may be."""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence

from paft.errors import TemplateError
from paft.tasks.answers import AnswerFormat, Code, Expression, Number, Plan, varies, without_wrap, written
from paft.tasks.types import Example

CODE_TOKENS, PLAN_TOKENS = 512, 1024
"""Limits of answers that are code or a plan: there are longer ways to write a function, and a plan, than the one that is known."""

VALUE_TOKENS = 16
"""Least limit of answers that are a number or an expression: "The answer is 12." must not end at its 1, which would be read."""


def answer_limits(
    answers: Iterable[AnswerFormat], population: Sequence[Example], count_tokens: Callable[[str], int]
) -> Mapping[AnswerFormat, int]:
    """Token limit of a free answer in each format: the longest answer that it allows to any example of the population, in tokens of a
    model, and 4 more; for numbers and expressions at least `VALUE_TOKENS`, for texts and calls twice the longest."""
    inner = {answer: without_wrap(answer) for answer in answers}
    longest: dict[AnswerFormat, list[tuple[Example, int]]] = {
        kind: _longest(kind, population) for kind in set(inner.values()) if not isinstance(kind, Code | Plan)
    }

    def limit(answer: AnswerFormat, kind: AnswerFormat) -> int:
        match kind:
            case Code():
                return CODE_TOKENS
            case Plan():
                return PLAN_TOKENS
        most = max((count_tokens(answer.surfaces(example)[c]) for example, c in longest[kind]), default=0)
        if isinstance(kind, Number | Expression):
            return max(most + 4, VALUE_TOKENS)
        return (2 * most if varies(kind, population[0]) else most) + 4

    return {answer: limit(answer, kind) for answer, kind in inner.items()}


def _longest(answer: AnswerFormat, population: Sequence[Example]) -> list[tuple[Example, int]]:
    """The 20 longest different answers, each as an example and the place of its choice: the longest in tokens is among the longest in
    characters. Of equals always the same ones. An example that the format does not serve has none; where it is asked,
    `Grid.question` says so."""
    found: dict[str, tuple[Example, int]] = {}
    for example in population:
        with contextlib.suppress(TemplateError):
            for surface, each, c in written(answer, example):
                found.setdefault(surface, (each, c))
    return [found[surface] for surface in heapq.nlargest(20, found, key=lambda surface: (len(surface), surface))]
