"""Which example meets which prompt, when. Pure functions of (seed, epoch, position): no state, no torch.

Two independent streams are keyed by the seed: the order of the examples and the draw of the prompts. Neither depends on
workers, ranks, resume points or how often an index is asked for, and changing one leaves the other alone.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from paft.config import (
    AdaptiveSchedule,
    BalancedSchedule,
    CurriculumSchedule,
    FixedSchedule,
    MixtureSchedule,
    PaftSchedule,
    ScheduleConfig,
    StaticSchedule,
)
from paft.errors import ConfigError
from paft.grid import Cell, Grid
from paft.prompts import Template
from paft.prompts.structure import clusters, partners

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


SMALL = 4096
"""Longest permutation that is laid out whole; longer ones are computed place by place."""
_ROUNDS = 8


def permuted(place: int, count: int, *keys: int) -> int:
    """The element at a place of a permutation of range(count) keyed by integers, in constant time and memory.

    Up to SMALL this is `permutation`. Beyond, a Feistel network over a rectangle of just over `count` places, walked until the
    result is one of them (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002); on few places it would be less even.
    """
    if count <= SMALL:
        return int(permutation(count, *keys)[place])
    high = math.isqrt(count - 1) + 1
    low = -(-count // high)
    key = mix(*keys)
    while True:
        a, b = divmod(place, low)
        for number in range(0, _ROUNDS, 2):
            a = (a + mix(key, number, b)) % high
            b = (b + mix(key, number + 1, a)) % low
        place = a * low + b
        if place < count:
            return place


_ORDER, _PROMPT, SUBSET, _TWIN, _GROUP = 1, 2, 3, 4, 5  # streams


@dataclass(frozen=True, kw_only=True)
class Blocks(ABC):
    """A run of `epochs` over N examples, each epoch in an order of its own, cut into blocks of `block_size` examples that share
    a prompt; the blocks start anew with every epoch. What a schedule adds is `prompt_of`.

    Any cell is found in constant time and memory, and the order of the examples is the same under every schedule of a seed.
    """

    num_examples: int
    num_prompts: int
    block_size: int
    epochs: int
    seed: int

    @abstractmethod
    def prompt_of(self, epoch: int, block: int) -> int:
        """The prompt of a block of an epoch."""

    @property
    def blocks_per_epoch(self) -> int:
        """The last one of an epoch may be shorter than the others."""
        return -(-self.num_examples // self.block_size)

    def cell(self, epoch: int, position: int) -> Cell:
        """The example at this place of the epoch's order, with its prompt. Raises IndexError outside the run."""
        if not (0 <= epoch < self.epochs and 0 <= position < self.num_examples):
            raise IndexError(f"epoch {epoch}, position {position}: outside {self.epochs} epochs of {self.num_examples}")
        example = permuted(position, self.num_examples, self.seed, _ORDER, epoch)
        return Cell(epoch, self.prompt_of(epoch, position // self.block_size), example)

    def cells(self, epoch: int) -> Iterator[Cell]:
        """All cells of an epoch in order."""
        return (self.cell(epoch, position) for position in range(self.num_examples))


@dataclass(frozen=True, kw_only=True)
class FixedPrompt(Blocks):
    """Every example meets one prompt: ordinary fine-tuning, the baseline."""

    prompt: int

    def prompt_of(self, epoch: int, block: int) -> int:
        """Always the same."""
        return self.prompt


@dataclass(frozen=True, kw_only=True)
class StaticPrompts(Blocks):
    """Every example keeps a prompt of its own in all epochs; no two prompts differ by more than one in how many examples they have.
    Blocks of one example.
    """

    def prompt_of(self, epoch: int, block: int) -> int:
        """A keyed place of the example, dealt out to the prompts in turn."""
        example = permuted(block, self.num_examples, self.seed, _ORDER, epoch)
        return permuted(example, self.num_examples, self.seed, _PROMPT, 0) % self.num_prompts


@dataclass(frozen=True, kw_only=True)
class PaftPrompts(Blocks):
    """Algorithm 1 of PAFT (arXiv 2502.12859): a prompt drawn uniformly with replacement for each block."""

    def prompt_of(self, epoch: int, block: int) -> int:
        """A keyed draw."""
        return draw(self.num_prompts, self.seed, _PROMPT, epoch, block)


@dataclass(frozen=True, kw_only=True)
class BalancedPrompts(Blocks):
    """Prompts drawn without replacement: at any time of the run no two differ by more than one in how many blocks they had."""

    def prompt_of(self, epoch: int, block: int) -> int:
        """The run's blocks in order, cut into passes over all prompts, each pass in an order of its own."""
        number, place = divmod(epoch * self.blocks_per_epoch + block, self.num_prompts)
        return permuted(place, self.num_prompts, self.seed, _PROMPT, number)


@dataclass(frozen=True, kw_only=True)
class BalancedExamples(Blocks):
    """Every example meets a new prompt in every epoch until it has met all; in an epoch no two prompts differ by more than one in
    how many examples they had. Blocks of one example.
    """

    def prompt_of(self, epoch: int, block: int) -> int:
        """A place on the circle of prompts for each example, turned from epoch to epoch."""
        example = permuted(block, self.num_examples, self.seed, _ORDER, epoch)
        place = permuted(example, self.num_examples, self.seed, _PROMPT, 0)
        turn, step = divmod(epoch, self.num_prompts)
        step = permuted(step, self.num_prompts, self.seed, _PROMPT, 1, turn)
        return permuted((place + step) % self.num_prompts, self.num_prompts, self.seed, _PROMPT, 2)


@dataclass(frozen=True, kw_only=True)
class MixturePrompts(Blocks):
    """One prompt, the canonical one, for a share of the blocks, spread evenly; the others drawn uniformly with replacement.

    At any time of an epoch the canonical prompt has had its share of the blocks to within one.
    """

    prompt: int
    share: float

    def prompt_of(self, epoch: int, block: int) -> int:
        """The canonical prompt where block x share passes a whole number, from a keyed start."""
        start = mix(self.seed, _PROMPT, epoch) / 2**64
        if math.floor((block + 1) * self.share + start) > math.floor(block * self.share + start):
            return self.prompt
        other = draw(self.num_prompts - 1, self.seed, _PROMPT, epoch, block)
        return other + (other >= self.prompt)


@dataclass(frozen=True, kw_only=True)
class CurriculumPrompts(Blocks):
    """Prompts come in by and by: a share of them from the start, all of them from a share of the run on, evenly between; drawn
    uniformly with replacement from those that are in.
    """

    order: tuple[int, ...]
    start: float
    until: float

    def prompt_of(self, epoch: int, block: int) -> int:
        """A keyed draw from the first ones of the order."""
        gone = (epoch * self.blocks_per_epoch + block) / (self.epochs * self.blocks_per_epoch)
        share = 1.0 if gone >= self.until else self.start + (1 - self.start) * gone / self.until
        most = max(1, math.ceil(share * self.num_prompts - 1e-9))
        return self.order[draw(most, self.seed, _PROMPT, epoch, block)]


@dataclass(frozen=True, kw_only=True)
class AdaptivePrompts(Blocks):
    """Clusters of prompts drawn by weights that follow their losses; a prompt of the cluster uniformly.

    The run is cut into rounds of `round_blocks` blocks. The weights of a round rest on the losses up to the end of the round
    before the last, so that what is drawn does not depend on how far data workers read ahead; rounds 0 and 1 are uniform over
    prompts. `weights_RC` is the only state of a schedule: a list that grows by a row for each round that is known, which a
    checkpoint keeps.
    """

    cluster_K: tuple[int, ...]
    round_blocks: int
    weights_RC: list[tuple[float, ...]] = field(default_factory=list, hash=False)

    def prompt_of(self, epoch: int, block: int) -> int:
        """A cluster by weight, then a prompt of it. Raises IndexError for a round whose weights are not known yet."""
        number = (epoch * self.blocks_per_epoch + block) // self.round_blocks
        if number < 2:
            return draw(self.num_prompts, self.seed, _PROMPT, epoch, block)
        if number - 2 >= len(self.weights_RC):
            raise IndexError(
                f"round {number} of the adaptive schedule rests on losses of round {number - 2}, not known yet"
            )
        up_to_C = list(itertools.accumulate(self.weights_RC[number - 2]))
        cluster = bisect_right(up_to_C, mix(self.seed, _PROMPT, epoch, block, 0) / 2**64 * up_to_C[-1])
        members = [prompt for prompt, its in enumerate(self.cluster_K) if its == cluster]
        return members[draw(len(members), self.seed, _PROMPT, epoch, block, 1)]


@dataclass(frozen=True)
class Twins:
    """A second prompt for every cell of a schedule: of those that want the answer written the same way, drawn uniformly.

    It is kept for `hold` examples, so that the examples of an update share both prompts where they share the first. A prompt
    that has no partner is its own twin.
    """

    schedule: Blocks
    partners_K: tuple[tuple[int, ...], ...]
    hold: int

    def twin(self, epoch: int, position: int) -> Cell:
        """The same example under the second prompt."""
        cell = self.schedule.cell(epoch, position)
        others = self.partners_K[cell.prompt]
        if not others:
            return cell
        return cell._replace(prompt=others[draw(len(others), self.schedule.seed, _TWIN, epoch, position // self.hold)])


def make_twins(schedule: Blocks, templates: Sequence[Template], *, batch_size: int) -> Twins:
    """Twins for a schedule. Raises ConfigError where no two prompts want the answer written the same way."""
    found = partners(templates)
    if not any(found):
        raise ConfigError(
            f"objective.consistency: no two of the {len(found)} train prompts want the answer written the same way, so there "
            "is nothing to compare; add prompts or leave it out"
        )
    return Twins(schedule, found, min(schedule.block_size, batch_size))


@dataclass(frozen=True)
class Groups:
    """The cells whose answers are compared with each other: `size` times a cell of the schedule, or its example under several prompts.

    across: the schedule's prompt and others, drawn without replacement, take turns; as many as the group is large, or all.
    """

    schedule: Blocks
    size: int
    across: bool

    def cells(self, epoch: int, position: int) -> list[Cell]:
        """The members of a group, in order."""
        first = self.schedule.cell(epoch, position)
        if not self.across:
            return [first] * self.size
        count = self.schedule.num_prompts
        order = (permuted(place, count, self.schedule.seed, _GROUP, epoch, position) for place in range(count))
        others = itertools.islice((prompt for prompt in order if prompt != first.prompt), self.size - 1)
        chosen = [first.prompt, *others]
        return [first._replace(prompt=chosen[member % len(chosen)]) for member in range(self.size)]


def make_groups(schedule: Blocks, size: int, *, across: bool) -> Groups:
    """Groups of a schedule. Raises ConfigError for groups across prompts where there is one."""
    if across and schedule.num_prompts < 2:
        raise ConfigError("train.group example needs at least 2 train prompts; add prompts or use group: prompt")
    return Groups(schedule, size, across)


def make_schedule(
    config: ScheduleConfig, grid: Grid, *, batch_size: int, epochs: int, seed: int, micro: int = 1
) -> Blocks:
    """The schedule that a configuration describes, over the templates and examples of a grid.

    batch_size: examples per optimizer update, over all ranks and accumulation steps; micro: per forward pass.
    """
    num_prompts, num_examples = grid.shape
    run: dict[str, Any] = {"num_examples": num_examples, "num_prompts": num_prompts, "epochs": epochs, "seed": seed}
    if isinstance(config, FixedSchedule):
        return FixedPrompt(**run, block_size=num_examples, prompt=_prompt(config.prompt, grid))
    if isinstance(config, StaticSchedule):
        return StaticPrompts(**run, block_size=1)
    size, unit = config.hold
    run["block_size"] = size * {"steps": batch_size, "batches": micro, "examples": 1}[unit]
    match config:
        case PaftSchedule():
            return PaftPrompts(**run)
        case BalancedSchedule():
            return BalancedExamples(**run) if run["block_size"] == 1 else BalancedPrompts(**run)
        case MixtureSchedule(prompt=wanted, share=share):
            if num_prompts < 2:
                raise ConfigError("schedule: a mixture needs at least 2 train prompts; choose kind: fixed")
            return MixturePrompts(**run, prompt=_prompt(wanted, grid), share=share)
        case CurriculumSchedule(start=start, until=until):
            return CurriculumPrompts(**run, order=_order(config, grid), start=start, until=until)
        case AdaptiveSchedule(by=by, every=every):
            rounds = -(-every * batch_size // run["block_size"])
            return AdaptivePrompts(**run, cluster_K=clusters(grid.templates, by)[1], round_blocks=rounds)


def _prompt(wanted: int | str, grid: Grid) -> int:
    """Position of a prompt that is named by position or by id. Raises ConfigError."""
    ids = [template.id for template in grid.templates]
    if str(wanted) in ids:  # also an id of digits alone, which YAML reads as a number
        return ids.index(str(wanted))
    if isinstance(wanted, str):
        raise ConfigError(
            f"schedule: prompt {wanted!r} is not the id of a train prompt; `paft prompts show` lists them"
        )
    if not 0 <= wanted < len(ids):
        raise ConfigError(f"schedule: prompt {wanted} is not among the train prompts 0 to {len(ids) - 1}")
    return wanted


def _order(config: CurriculumSchedule, grid: Grid) -> tuple[int, ...]:
    """Positions of the prompts in the order in which they come in: those that are named, then the others in the set's order."""
    first = [_prompt(wanted, grid) for wanted in config.order]
    if len(set(first)) < len(first):
        raise ConfigError("schedule: order names a prompt twice; name each once")
    return (*first, *(k for k in range(len(grid.templates)) if k not in set(first)))


def updates_per_epoch(num_examples: int, batch_size: int) -> int:
    """Optimizer updates per epoch; the last one may hold fewer examples than the others."""
    return -(-num_examples // batch_size)


def subset(count: int, size: int | None, seed: int) -> list[int]:
    """Indices of a keyed random subset in the original order; all of them when size is None or not smaller."""
    if size is None or size >= count:
        return list(range(count))
    return sorted(int(i) for i in permutation(count, seed, SUBSET)[:size])
