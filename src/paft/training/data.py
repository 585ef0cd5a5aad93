"""From flat cell indices to tensors. Item i is a pure function of i: rendering happens here and nowhere else."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from paft.errors import RenderError
from paft.grid import Cell, Grid
from paft.lm.render import Renderer, shown_in
from paft.tasks.images import Image
from paft.training.objectives import IGNORED
from paft.training.schedule import Schedule, Twins, updates_per_epoch

if TYPE_CHECKING:
    from paft.lm.vision import VisionRenderer


@dataclass(frozen=True)
class Row:
    """A cell in token ids: prompt, answer and end mark; loss from `start` on. A silent row carries no loss. images: those that the ids
    have places for."""

    index: int
    ids: list[int]
    start: int
    silent: bool = False
    images: tuple[Image, ...] = ()


class CellDataset(torch.utils.data.Dataset[Row]):
    """All cells of all epochs, addressed by flat index; ~index is the cell as a silent row. `len` is the number of examples: one
    epoch of the sampler. limit: tokens that the model reads.
    """

    def __init__(self, grid: Grid, renderer: Renderer, max_length: int, limit: int = 1 << 30):
        self.grid, self.renderer, self.max_length, self.limit = grid, renderer, max_length, limit

    def __len__(self) -> int:
        return self.grid.shape[1]

    def __getitem__(self, index: int) -> Row:
        if index < 0:
            return replace(self[~index], silent=True)
        cell = self.grid.cell(index)
        chat = self.grid.chat(cell)
        ids, start = self.renderer.training_ids(chat, self.grid.target(cell))
        if len(ids) > min(self.max_length, self.limit):
            allowed = f"train.max_length is {self.max_length}; raise it or"
            if self.limit < len(ids):
                allowed = f"the model reads at most {self.limit}; use a larger one or"
            raise RenderError(
                f"prompt {self.grid.templates[cell.prompt].id} with example {self.grid.examples[cell.example].id!r} has "
                f"{len(ids)} tokens; {allowed} leave the example out (paft never cuts an answer or a field)"
            )
        return Row(index, ids, start, images=shown_in(chat))

    def check_lengths(self) -> int:
        """Tokens of the longest cell, answer included, as `longest_cell` finds it.

        Raises RenderError before training starts when a cell is too long, instead of hours later.
        """
        return longest_cell(self.grid, lambda cell: len(self[self.grid.flat(cell)].ids))[1]


EXACT, LONGEST = 4096, 8


def longest_cell(grid: Grid, length: Callable[[Cell], int]) -> tuple[Cell, int]:
    """The longest cell of a grid in any epoch, and its length.

    Of up to EXACT cells every one is measured. Of more, all prompts with some examples and all examples under the wordiest prompt take
    turns until nothing longer is found: about N + 12 K lengths. The examples are the LONGEST ones under that prompt and those with the
    longest field or answer of each name, for prompts that show it twice or ask for it in full.
    """
    num_prompts, num_examples = grid.shape

    @functools.cache
    def measured(k: int, i: int) -> int:
        return length(Cell(0, k, i))

    def longest(prompts: Iterable[int], examples: Iterable[int]) -> tuple[int, int]:
        return max(itertools.product(prompts, examples), key=lambda cell: measured(*cell))

    every_k, every_i = range(num_prompts), range(num_examples)
    if num_prompts * num_examples <= EXACT:
        k, i = longest(every_k, every_i)
    else:
        texts: dict[str, dict[int, int]] = {}
        for i, example in enumerate(grid.examples):
            parts = {**example.fields, "": example.choices[example.answer], "*": "".join(example.choices)}
            for name, text in parts.items():
                texts.setdefault(name, {})[i] = len(text)
        ends = {max(held, key=held.__getitem__) for held in texts.values()}
        (k, i), before = longest(every_k, ends), -1
        while measured(k, i) > before:
            before = measured(k, i)
            k, i = longest(every_k, [*ends, *heapq.nlargest(LONGEST, every_i, key=functools.partial(measured, k))])
    return Cell(0, k, i), measured(k, i)


class ScheduleSampler(torch.utils.data.Sampler[int]):
    """Yields the flat indices of one epoch in schedule order. The index carries epoch and prompt; workers hold no state.

    twins: a cell is followed by the same example under its second prompt. Several processes take turns by `multiple` examples (a forward pass of each); where the epoch does not fill the last turn,
    silent rows do (~index), so that every process makes as many passes and no example counts twice.
    `set_epoch` is called by the training loop (on some paths twice, on some never: see `order.EpochSetter`).
    """

    def __init__(self, grid: Grid, schedule: Schedule, multiple: int = 1, twins: Twins | None = None):
        self.grid, self.schedule, self.multiple, self.twins, self.epoch = grid, schedule, multiple, twins, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration yields; past the last one it stays there (loops ask once too often)."""
        self.epoch = min(epoch, self.schedule.epochs - 1)

    @property
    def per_example(self) -> int:
        """Rows that an example gives."""
        return 1 if self.twins is None else 2

    def updates(self, batch_size: int) -> int:
        """Of so many examples, in an epoch."""
        return updates_per_epoch(self.grid.shape[1], batch_size)

    def __len__(self) -> int:
        return -(-self.grid.shape[1] * self.per_example // self.multiple) * self.multiple

    def __iter__(self) -> Iterator[int]:
        index = 0
        epoch = self.epoch
        for position, cell in enumerate(self.schedule.cells(epoch)):
            index = self.grid.flat(cell)
            yield index
            if self.twins is not None:
                yield self.grid.flat(self.twins.twin(epoch, position))
        yield from itertools.repeat(~index, len(self) - self.grid.shape[1] * self.per_example)


def pad(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """One row each, padded on the left: input_ids_BT, attention_mask_BT, position_ids_BT, and what `with_targets` adds.

    targets_BT: the answer token to be predicted *from* a position, IGNORED elsewhere (no further shift).
    """
    width = max(len(row.ids) for row in rows)
    pads = [width - len(row.ids) for row in rows]
    mask_BT = torch.tensor([[0] * pad + [1] * len(row.ids) for pad, row in zip(pads, rows, strict=True)])
    return {
        "input_ids": torch.tensor([[pad_id] * pad + row.ids for pad, row in zip(pads, rows, strict=True)]),
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0),
        **with_targets(
            [[IGNORED] * pad + targets_of(row) for pad, row in zip(pads, rows, strict=True)],
            [[number] * width for number in range(len(rows))],
        ),
    }


def pad_shown(rows: Sequence[Row], renderer: VisionRenderer) -> dict[str, Any]:
    """As `pad`, of rows that show images, which are under `shown` as the model takes them; it makes positions itself."""
    batch = pad(rows, renderer.eos_id)
    fed = renderer.fed([row.ids for row in rows], [row.images for row in rows], "left")
    return {name: value for name, value in batch.items() if name not in ("position_ids", *fed)} | {
        "input_ids": fed.pop("input_ids"),
        "attention_mask": fed.pop("attention_mask"),
        "shown": fed,
    }


def by_length(rows: Sequence[Row], per_example: int) -> list[int]:
    """Places of the rows, the longest first and silent ones last; the rows of an example stay beside each other."""
    firsts = range(0, len(rows), per_example)
    length = {at: max(len(row.ids) for row in rows[at : at + per_example]) for at in firsts}
    return [
        at + more for at in sorted(firsts, key=lambda at: (rows[at].silent, -length[at])) for more in range(per_example)
    ]


def pairs(rows: Sequence[Row]) -> torch.Tensor:
    """pairs_P2: which two of a batch's answer tokens (in the order of its rows) are one token under two prompts.

    Rows 2j and 2j + 1 are twins. Answers that were cut into different tokens, and a prompt that is its own twin, give no pair.
    """
    ends = list(itertools.accumulate(len(row.ids) - row.start for row in rows))
    found: list[tuple[int, int]] = []
    for j in range(0, len(rows), 2):
        a, b = rows[j], rows[j + 1]
        if a.index != b.index and a.ids[a.start :] == b.ids[b.start :]:
            count = len(a.ids) - a.start
            found += zip(range(ends[j] - count, ends[j]), range(ends[j + 1] - count, ends[j + 1]), strict=True)
    return torch.tensor(found, dtype=torch.long).view(-1, 2)


def targets_of(row: Row) -> list[int]:
    """What is to be predicted from each token of a row: IGNORED but from before the first answer token on."""
    if row.silent:
        return [IGNORED] * len(row.ids)
    return [IGNORED] * (row.start - 1) + row.ids[row.start :] + [IGNORED]


def with_targets(targets: list[list[int]], rows: list[list[int]]) -> dict[str, Any]:
    """Targets, in the shape in which the Trainer counts them, and rows_BT: of which row, counted from 0, a place is (meant where there is a target)."""
    # the Trainer counts the answer tokens of an update in `shift_labels`, and looks there only when there are `labels`
    targets_BT = torch.tensor(targets)
    return {"labels": targets_BT, "shift_labels": targets_BT, "rows": torch.tensor(rows)}
