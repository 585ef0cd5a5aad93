"""Cells as the rows that other trainers and their collators read."""

from __future__ import annotations

from typing import Any

import torch

from paft.errors import ConfigError
from paft.training.data import CellDataset, Row
from paft.training.objectives import IGNORED


def token_row(row: Row) -> dict[str, list[int]]:
    """input_ids, and labels that carry a loss on the answer and its end mark only. Raises ConfigError for a row that shows images."""
    if row.images:
        raise ConfigError("the rows show images, which these collators would leave out; train with paft")
    start = len(row.ids) if row.silent else row.start
    return {"input_ids": row.ids, "labels": [IGNORED] * start + row.ids[start:]}


class TokenRows(torch.utils.data.Dataset[dict[str, Any]]):
    """A `CellDataset` in the form that transformers' DataCollatorForSeq2Seq pads."""

    def __init__(self, cells: CellDataset):
        self.cells = cells

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return token_row(self.cells[index])
