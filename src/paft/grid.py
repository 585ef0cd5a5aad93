"""The one idea: rows are prompts, columns are examples, a cell is one question. Rendered late, in one place.

A flat index names epoch, prompt and example, so that a sampler can carry the whole draw and a dataset item is a pure
function of its index.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paft.errors import ShapeError
from paft.lm.types import Chat, Question
from paft.prompts.template import Template
from paft.tasks.limits import answer_limits
from paft.tasks.types import Example


class Cell(NamedTuple):
    """A place in the grid, and the epoch in which training visits it (0 outside training)."""

    epoch: int
    prompt: int
    example: int


@dataclass(frozen=True)
class Grid:
    """K templates by N examples."""

    templates: Sequence[Template]
    examples: Sequence[Example]
    population: Sequence[Example] = ()
    """What the examples are a part of, so that what is told from all of them (how long an answer may be) does not depend on the
    part; empty: they are all there are."""

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        return len(self.templates), len(self.examples)

    def flat(self, cell: Cell) -> int:
        """Index that names the cell: (epoch * K + prompt) * N + example. Raises ShapeError outside the grid.

        >>> Grid(["p", "q"], ["x", "y", "z"]).flat(Cell(epoch=1, prompt=0, example=2))
        8
        """
        k, n = self.shape
        if not (cell.epoch >= 0 and 0 <= cell.prompt < k and 0 <= cell.example < n):
            raise ShapeError(f"cell {tuple(cell)} lies outside a grid of {k} prompts x {n} examples")
        return (cell.epoch * k + cell.prompt) * n + cell.example

    def cell(self, index: int) -> Cell:
        """The cell that a flat index names. Raises ShapeError for an index that names none."""
        k, n = self.shape
        if index < 0 or not k * n:
            raise ShapeError(f"index {index} names no cell of a grid of {k} prompts x {n} examples")
        row, example = divmod(index, n)
        epoch, prompt = divmod(row, k)
        return Cell(epoch, prompt, example)

    def chat(self, cell: Cell) -> Chat:
        """The turns that ask this cell."""
        return self.templates[cell.prompt].render(self.examples[cell.example])

    def target(self, cell: Cell) -> str:
        """The right answer as this cell's prompt wants it written."""
        return self.templates[cell.prompt].target(self.examples[cell.example])

    def question(self, cell: Cell) -> Question:
        """The cell as it is put to a model, with the answers its prompt allows in choice order."""
        template, example = self.templates[cell.prompt], self.examples[cell.example]
        return Question(template.render(example), template.answer.surfaces(example))

    def answer_limits(self, count_tokens: Callable[[str], int]) -> list[int]:
        """Token limit of a free answer under each prompt, length K (`paft.tasks.limits`): the same for all models with one tokenizer, and
        for any part of the population."""
        limits = answer_limits([each.answer for each in self.templates], self.population or self.examples, count_tokens)
        return [limits[each.answer] for each in self.templates]
