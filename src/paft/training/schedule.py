"""Which example meets which prompt, when. Pure functions of (seed, epoch, position): no state, no torch.

Two independent streams are keyed by the seed: the order of the examples and the draw of the prompts. Neither depends on
workers, ranks, resume points or how often an index is asked for, and changing one leaves the other alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from paft.config import FixedSchedule, PaftSchedule
from paft.errors import ConfigError
from paft.grid import Cell, Grid

_MASK = (1 << 64) - 1


class Schedule(Protocol):
    """The order in which training consumes cells. `position` counts examples within the epoch, 0 <= position < N."""

    @property
    def epochs(self) -> int:
        """How often each example is met."""

    def cell(self, epoch: int, position: int) -> Cell:
        """The cell at a place of the order."""

    def cells(self, epoch: int) -> Iterator[Cell]:
        """All cells of an epoch in order."""


def mix(*keys: int) -> int:
    """64 well-mixed bits from integers: a counter-based generator (SplitMix64 finaliser chained over the keys).

    Our own so that a draw stays the same whatever the version of numpy or torch.
    """
    state = 0x9E3779B97F4A7C15
    for key in keys:
        state = (state ^ (key & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def draw(count: int, *keys: int) -> int:
    """A uniform integer in [0, count) keyed by integers."""
    return (mix(*keys) * count) >> 64


@lru_cache(maxsize=8)
def permutation(count: int, *keys: int) -> np.ndarray:
    """A permutation of range(count) keyed by integers, int64 of shape (count,), read-only."""
    order = np.array(sorted(range(count), key=lambda index: (mix(*keys, index), index)), dtype=np.int64)
    order.setflags(write=False)
    return order


_ORDER, _PROMPT, SUBSET = 1, 2, 3  # streams


@dataclass(frozen=True)
class FixedPrompt:
    """Every example meets one prompt: ordinary fine-tuning, the baseline."""

    num_examples: int
    prompt: int
    epochs: int
    seed: int

    def cell(self, epoch: int, position: int) -> Cell:
        """The example at this place of the epoch's order, always with the same prompt."""
        return Cell(epoch, self.prompt, _example_at(self, epoch, position))

    def cells(self, epoch: int) -> Iterator[Cell]:
        """All cells of an epoch in order."""
        return (self.cell(epoch, position) for position in range(self.num_examples))


@dataclass(frozen=True)
class PaftPrompts:
    """Algorithm 1 of PAFT (arXiv 2502.12859): a prompt drawn uniformly with replacement for each block of
    `steps_per_prompt` optimizer updates; the blocks start anew with every epoch.

    batch_size: examples per optimizer update, over all ranks and accumulation steps; they share the prompt.
    """

    num_examples: int
    num_prompts: int
    batch_size: int
    steps_per_prompt: int
    epochs: int
    seed: int

    def cell(self, epoch: int, position: int) -> Cell:
        """The example at this place of the epoch's order, with the prompt of its block."""
        block = position // self.batch_size // self.steps_per_prompt
        return Cell(epoch, draw(self.num_prompts, self.seed, _PROMPT, epoch, block), _example_at(self, epoch, position))

    def cells(self, epoch: int) -> Iterator[Cell]:
        """All cells of an epoch in order."""
        return (self.cell(epoch, position) for position in range(self.num_examples))


def _example_at(schedule: FixedPrompt | PaftPrompts, epoch: int, position: int) -> int:
    if not (0 <= epoch < schedule.epochs and 0 <= position < schedule.num_examples):
        raise IndexError(
            f"epoch {epoch}, position {position}: outside {schedule.epochs} epochs of {schedule.num_examples}"
        )
    return int(permutation(schedule.num_examples, schedule.seed, _ORDER, epoch)[position])


def make_schedule(
    config: FixedSchedule | PaftSchedule, grid: Grid, *, batch_size: int, epochs: int, seed: int
) -> FixedPrompt | PaftPrompts:
    """The schedule that a configuration describes, over the templates and examples of a grid."""
    num_prompts, num_examples = grid.shape
    match config:
        case PaftSchedule(steps_per_prompt=steps):
            return PaftPrompts(num_examples, num_prompts, batch_size, steps, epochs, seed)
        case FixedSchedule(prompt=str(wanted)):
            ids = [template.id for template in grid.templates]
            if wanted not in ids:
                raise ConfigError(
                    f"schedule: prompt {wanted!r} is not the id of a train prompt; `paft prompts show` lists them"
                )
            return FixedPrompt(num_examples, ids.index(wanted), epochs, seed)
        case FixedSchedule(prompt=position):
            ids = [template.id for template in grid.templates]
            if str(position) in ids:  # an id of digits alone, which YAML reads as a number
                return FixedPrompt(num_examples, ids.index(str(position)), epochs, seed)
            if not 0 <= int(position) < num_prompts:
                raise ConfigError(f"schedule: prompt {position} is not among the train prompts 0 to {num_prompts - 1}")
            return FixedPrompt(num_examples, int(position), epochs, seed)


def updates_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer updates per epoch; the last one may hold fewer examples than the others."""
    return -(-num_examples // batch_size)


def subset(count: int, size: int | None, seed: int) -> list[int]:
    """Indices of a keyed random subset in the original order; all of them when size is None or not smaller."""
    if size is None or size >= count:
        return list(range(count))
    return sorted(int(i) for i in permutation(count, seed, SUBSET)[:size])
