"""The cells that training consumes are those of the definition, whatever workers, passes, ranks and interruptions; 100 kills."""

from __future__ import annotations

import multiprocessing
import random
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from paft.config import (
    AdaptiveSchedule,
    BalancedSchedule,
    CurriculumSchedule,
    FixedSchedule,
    MixtureSchedule,
    PaftSchedule,
    SFTConfig,
    StaticSchedule,
)
from paft.errors import ConfigError
from paft.grid import Grid
from paft.store import ArmDir, read_jsonl
from paft.training.data import ScheduleSampler
from paft.training.order import EpochSetter, _SameUpdates
from paft.training.schedule import make_schedule, make_twins, updates_per_epoch
from paft.training.sft import train_sft
from tests import tiny
from tests.integrations.test_trainer import MyTrainer, trainer_of
from tests.test_ranks import launch
from tests.training.test_sft import grid as colours

KINDS = [
    FixedSchedule(prompt=0),
    PaftSchedule(steps_per_prompt=1),
    PaftSchedule(steps_per_prompt=3),
    PaftSchedule(examples_per_prompt=1),
    PaftSchedule(batches_per_prompt=2),
    BalancedSchedule(),
    BalancedSchedule(steps_per_prompt=2),
    StaticSchedule(),
    MixtureSchedule(share=0.4, steps_per_prompt=1),
    CurriculumSchedule(start=0.2, until=0.8, examples_per_prompt=2),
]


FOLDER = Path(tempfile.mkdtemp())


class Indices(torch.utils.data.Dataset):
    """Item i is i, for any i, as a dataset of cells is addressed."""

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        return index


def consumed(sampler: ScheduleSampler, micro: int, ranks: int, skipped: int, workers: int = 0) -> list[int]:
    """What the ranks of a launch read of an epoch after `skipped` passes, turn by turn, as accelerate deals it out."""
    parts = []
    for rank in range(ranks):
        loader = torch.utils.data.DataLoader(
            Indices(len(sampler)), batch_size=micro, sampler=sampler, num_workers=workers, collate_fn=list
        )
        dealt = prepare_data_loader(loader, num_processes=ranks, process_index=rank, put_on_device=False)
        dealt = skip_first_batches(dealt, skipped) if skipped else dealt
        epoch = sampler.epoch
        if hasattr(dealt, "set_epoch"):
            dealt.set_epoch(epoch)  # as the Trainer does; past a skip it does not reach the sampler, hence EpochSetter
        sampler.set_epoch(epoch)
        parts.append(list(dealt))
    return [index for turn in zip(*parts, strict=True) for batch in turn for index in batch]


@settings(max_examples=200)
@given(st.data())
def test_cells_are_those_of_the_definition(data: st.DataObject) -> None:
    number = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    seed, examples, prompts, epochs = number(0, 2**40), number(1, 40), number(2, 6), number(1, 3)
    ranks, micro, accumulation = data.draw(st.sampled_from([1, 2, 4])), number(1, 4), number(1, 3)
    batch, kind, paired = ranks * micro * accumulation, data.draw(st.sampled_from(KINDS)), data.draw(st.booleans())
    templates = colours(FOLDER).templates
    grid = Grid((list(templates) * 2)[:prompts], [object()] * examples)  # type: ignore[list-item]
    schedule = make_schedule(kind, grid, batch_size=batch, epochs=epochs, seed=seed, micro=micro)
    twins = None
    if paired and prompts > len(templates):  # then some prompts want the answer written alike
        twins = make_twins(schedule, grid.templates, batch_size=batch)
    rows = micro * (2 if twins else 1)
    sampler = ScheduleSampler(grid, schedule, rows * ranks if ranks > 1 else 1, twins)
    epoch = number(0, epochs - 1)
    sampler.set_epoch(epoch)
    stop = number(0, updates_per_epoch(examples, batch) - 1)  # updates that were done before a resume
    found = [index for index in consumed(sampler, rows, ranks, stop * accumulation) if index >= 0]
    expected = []
    for position in range(stop * batch, examples):
        expected.append(grid.flat(schedule.cell(epoch, position)))
        if twins:
            expected.append(grid.flat(twins.twin(epoch, position)))
    assert found == expected


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_change_nothing(ranks: int) -> None:
    grid = Grid(colours(FOLDER).templates, [object()] * 21)  # type: ignore[list-item]
    schedule = make_schedule(PaftSchedule(examples_per_prompt=1), grid, batch_size=6, epochs=2, seed=5)
    sampler = ScheduleSampler(grid, schedule, 3 * ranks if ranks > 1 else 1)
    sampler.set_epoch(1)
    assert consumed(sampler, 3, ranks, 2, workers=2) == consumed(sampler, 3, ranks, 2)


def following(trainer: MyTrainer, sampler: ScheduleSampler, batch_size: int) -> MyTrainer:
    """A trainer that follows this sampler in place of its own."""
    for kind in (_SameUpdates, EpochSetter):
        trainer.remove_callback(kind)
    trainer.follow(sampler, batch_size)
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_trainer_whose_updates_are_not_those_of_the_schedule_is_refused(tmp_path: Path) -> None:
    plain = trainer_of(tmp_path, 2).order
    twins = make_twins(plain.schedule, plain.grid.templates, batch_size=2)
    for sampler, batch_size, rows in (
        (plain, 2, "2 rows (1 an example)"),
        (plain, 8, "8 rows (1 an example)"),
        (ScheduleSampler(plain.grid, plain.schedule, twins=twins), 4, "8 rows (2 an example)"),
    ):
        trainer = following(trainer_of(tmp_path, 2), sampler, batch_size)
        said = (
            f"expects updates of {rows}; the arguments make them 4 (2 on all devices x gradient_accumulation_steps 2)"
        )
        with pytest.raises(ConfigError, match=re.escape(said)) as error:
            trainer.train()
        assert "\n" not in str(error.value)
        assert trainer.state.global_step == 0


LAUNCHED = """
import sys
from pathlib import Path
from paft.errors import ConfigError
from paft.training.data import ScheduleSampler
from tests.integrations.test_trainer import MyTrainer, trainer_of
from tests.test_ranks import launch
from tests.training.test_order import following
trainer = trainer_of(Path(sys.argv[1]), 2)  # 2 x 2 in each of two processes; 22 examples
plain = trainer.order
for batch_size, multiple in ((4, 4), (8, 1)):
    try:
        following(trainer, ScheduleSampler(plain.grid, plain.schedule, multiple), batch_size).train()
    except ConfigError as error:
        print(error)
"""


def test_processes_that_would_read_rows_twice_are_refused(tmp_path: Path) -> None:
    for done in launch(2, [str(tmp_path)], LAUNCHED):
        assert done.returncode == 0, done.stderr
        assert "expects updates of 4 rows (1 an example); the arguments make them 8 (4 on all" in done.stdout
        assert "read 4 rows a turn, which do not divide the 22 of an epoch" in done.stdout
        assert "multiple=4" in done.stdout


def run_once(folder: str, config: dict[str, Any], rows: int, seed: int) -> None:
    """One training in this process, from where it stands."""
    torch.set_num_threads(1)
    arm = ArmDir(Path(folder) / "arm")
    arm.root.mkdir(parents=True, exist_ok=True)
    train_sft(tiny.hf_model(), colours(Path(folder) / "data", rows), SFTConfig(**config), arm, seed=seed)


@pytest.mark.slow
def test_a_hundred_kills_at_random_instants_change_neither_cells_nor_losses_nor_weights(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.test_order"])
    kills, world = 0, random.Random(20261127)
    kinds = [*KINDS, AdaptiveSchedule(by="prompt", every=9, steps_per_prompt=1)]
    while kills < 100:
        micro, accumulation = world.choice([1, 2, 4]), world.choice([1, 2])
        schedule = world.choice(kinds)
        weighed = [{"worst": {"by": "prompt"}}] if isinstance(schedule, PaftSchedule | BalancedSchedule) else []
        config = {
            "schedule": schedule.model_dump(),
            "objective": world.choice([{}, {}, {"consistency": {}}, *weighed]),
            "epochs": world.randint(2, 4),
            "batch_size": micro * accumulation,
            "micro_batch_size": micro,
            "dataloader_workers": (workers := world.choice([0, 0, 2])),
            "arguments": {"dataloader_persistent_workers": True} if workers and world.random() < 0.5 else {},
            "packing": world.random() < 0.5,
            "save_every": world.randint(1, 4),
            "learning_rate": 1e-2,
            "lora": {"r": 2, "target_modules": "all-linear"},
        }
        rows, seed, place = world.randint(13, 30), world.randrange(1000), tmp_path / str(kills)
        started = time.monotonic()
        run_once(str(place / "whole"), config, rows, seed)
        taken = time.monotonic() - started
        here = 0
        while True:
            child = context.Process(target=run_once, args=(str(place / "killed"), config, rows, seed))
            child.start()
            child.join(None if here == 6 else world.uniform(0.05, 1.2) * taken)
            if child.exitcode is not None:
                assert child.exitcode == 0
                break
            child.kill()
            child.join()
            kills, here = kills + 1, here + 1
        whole, killed = (ArmDir(place / name / "arm") for name in ("whole", "killed"))
        a, b = (read_jsonl(arm.steps) for arm in (whole, killed))
        for row in (*a, *b):
            row.pop("seconds")
        assert a == b, config
        a, b = (safetensors.torch.load_file(arm.adapter / "adapter_model.safetensors") for arm in (whole, killed))
        assert all(torch.equal(a[name], b[name]) for name in a), config
    print(f"{kills} kills")
