"""A transformers.Trainer that takes its order from a schedule."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from paft.training.data import ScheduleSampler
from paft.training.schedule import updates_per_epoch


class EpochSetter(TrainerCallback):
    """Tells the sampler its epoch from the number of updates done, by integer division.

    With transformers 5.23 and accelerate 1.15 a resume inside an epoch on two or more processes never does: the loader
    nests one level too deep and epoch 0's order would be replayed in silence.
    """

    def __init__(self, sampler: ScheduleSampler, per_epoch: int):
        self.sampler, self.per_epoch = sampler, per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch."""
        self.sampler.set_epoch(state.global_step // self.per_epoch)


class InScheduleOrder:
    """Put before a Trainer: `class MyTrainer(InScheduleOrder, Trainer)`, then `follow` a sampler before `train`.

    The dataset is addressed by what the sampler yields: `CellDataset`, or `paft.integrations.TokenRows` for the collators of others.
    """

    order: ScheduleSampler

    def follow(self, sampler: ScheduleSampler, batch_size: int) -> None:
        """batch_size: examples per optimizer update, over all processes and accumulation steps, as the schedule was made for."""
        self.order = sampler
        self.add_callback(EpochSetter(sampler, updates_per_epoch(sampler.grid.shape[1], batch_size)))  # type: ignore[attr-defined]

    def _get_train_sampler(self, train_dataset: Any = None) -> ScheduleSampler:
        return self.order
