"""A transformers.Trainer that takes its order from a schedule."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback

from paft.errors import ConfigError


class EpochSetter(TrainerCallback):
    """Tells the sampler its epoch from the number of updates done, by integer division.

    With transformers 5.23 and accelerate 1.15 a resume inside an epoch on two or more processes never does: the loader
    nests one level too deep and epoch 0's order would be replayed in silence.
    """

    def __init__(self, sampler: Any, per_epoch: int):
        self.sampler, self.per_epoch = sampler, per_epoch

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Set the epoch."""
        self.sampler.set_epoch(state.global_step // self.per_epoch)


class _SameUpdates(TrainerCallback):
    """Refuses a training whose updates, or turns of its processes, are not those that the sampler was made for."""

    def __init__(self, trainer: Any, sampler: Any, batch_size: int):
        self.trainer, self.sampler, self.batch_size = trainer, sampler, batch_size

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Compare, before a row is read."""
        steps, per_example = args.gradient_accumulation_steps, self.sampler.per_example
        rows = self.trainer.get_total_train_batch_size(args)
        turn = rows // steps  # what all processes read in one pass
        if rows != self.batch_size * per_example:
            raise ConfigError(
                f"follow(batch_size={self.batch_size}) expects updates of {self.batch_size * per_example} rows ({per_example} an example); "
                f"the arguments make them {rows} ({turn} on all devices x gradient_accumulation_steps {steps}); change either"
            )
        if turn > args.train_batch_size and len(self.sampler) % turn:
            raise ConfigError(
                f"the processes read {turn} rows a turn, which do not divide the {len(self.sampler)} of an epoch, so that some would be "
                f"read twice; give ScheduleSampler(..., multiple={turn})"
            )


class InScheduleOrder:
    """Put before a Trainer: `class MyTrainer(InScheduleOrder, Trainer)`, then `follow` a sampler before `train`.

    The dataset is addressed by what the sampler yields: `CellDataset`, or `paft.integrations.TokenRows` for the collators of others.
    """

    order: Any

    def follow(self, sampler: Any, batch_size: int, rows: torch.utils.data.Dataset[Any] | None = None) -> None:
        """sampler: a `ScheduleSampler`, or for groups of GRPO a `grpo.GroupSampler`. batch_size: examples (groups) per optimizer update,
        over all processes and accumulation steps, as the schedule was made for. rows: what is read, for trainers that take no such dataset
        when they are made, as TRL's.

        `train` raises ConfigError where the trainer's own arguments make updates of another size.
        """
        self.order = sampler
        if rows is not None:
            self.train_dataset = rows
        self.add_callback(_SameUpdates(self, sampler, batch_size))  # type: ignore[attr-defined]
        self.add_callback(EpochSetter(sampler, sampler.updates(batch_size)))  # type: ignore[attr-defined]

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order
