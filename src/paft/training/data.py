"""From flat cell indices to padded tensors. Item i is a pure function of i: rendering happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from paft.errors import RenderError
from paft.grid import Cell, Grid
from paft.lm.render import Renderer
from paft.training.objectives import IGNORED
from paft.training.schedule import Schedule


@dataclass(frozen=True)
class Row:
    """A cell in token ids: prompt, answer and end mark; loss from `start` on."""

    index: int
    ids: list[int]
    start: int


class CellDataset(torch.utils.data.Dataset[Row]):
    """All cells of all epochs, addressed by flat index. `len` is the number of examples: one epoch of the sampler."""

    def __init__(self, grid: Grid, renderer: Renderer, max_length: int):
        self.grid, self.renderer, self.max_length = grid, renderer, max_length

    def __len__(self) -> int:
        return self.grid.shape[1]

    def __getitem__(self, index: int) -> Row:
        cell = self.grid.cell(index)
        ids, start = self.renderer.training_ids(self.grid.chat(cell), self.grid.target(cell))
        if len(ids) > self.max_length:
            raise RenderError(
                f"prompt {self.grid.templates[cell.prompt].id} with example {self.grid.examples[cell.example].id!r} has "
                f"{len(ids)} tokens; train.max_length is {self.max_length}; raise it or leave the example out "
                "(paft never cuts an answer or a field)"
            )
        return Row(index, ids, start)

    def check_lengths(self) -> int:
        """Tokens of the longest cell, found by rendering every example with the wordiest template.

        Raises RenderError before training starts when a cell is too long, instead of hours later.
        """
        num_prompts, num_examples = self.grid.shape
        first = [len(self.renderer.prompt_ids(self.grid.chat(Cell(0, k, 0)))) for k in range(num_prompts)]
        wordiest = max(range(num_prompts), key=first.__getitem__)
        return max(len(self[self.grid.flat(Cell(0, wordiest, i))].ids) for i in range(num_examples))


class ScheduleSampler(torch.utils.data.Sampler[int]):
    """Yields the flat indices of one epoch in schedule order. The index carries epoch and prompt; workers hold no state.

    `set_epoch` is called by the training loop (on some paths twice, on some never: see `sft.EpochSetter`).
    """

    def __init__(self, grid: Grid, schedule: Schedule):
        self.grid, self.schedule, self.epoch = grid, schedule, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration yields; past the last one it stays there (loops ask once too often)."""
        self.epoch = min(epoch, self.schedule.epochs - 1)

    def __len__(self) -> int:
        return self.grid.shape[1]

    def __iter__(self) -> Iterator[int]:
        return (self.grid.flat(cell) for cell in self.schedule.cells(self.epoch))


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Left-padded batch: input_ids_BT, attention_mask_BT, position_ids_BT, labels_BT, and the cell index of each row.

    Answers end at the right edge, so that the head is needed for the last columns only.
    """
    width = max(len(row.ids) for row in rows)
    pads = [width - len(row.ids) for row in rows]
    mask_BT = torch.tensor([[0] * pad + [1] * len(row.ids) for pad, row in zip(pads, rows, strict=True)])
    return {
        "input_ids": torch.tensor([[pad_id] * pad + row.ids for pad, row in zip(pads, rows, strict=True)]),
        "attention_mask": mask_BT,
        "position_ids": (mask_BT.cumsum(1) - 1).clamp(min=0),
        "labels": torch.tensor(
            [[IGNORED] * (pad + row.start) + row.ids[row.start :] for pad, row in zip(pads, rows, strict=True)]
        ),
        "cells": torch.tensor([row.index for row in rows]),
    }
