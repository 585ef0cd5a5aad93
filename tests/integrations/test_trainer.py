"""transformers.Trainer with the order of a schedule: the cells and losses of paft's own training, also after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from paft.integrations import InScheduleOrder, TokenRows
from paft.training.data import CellDataset, ScheduleSampler
from paft.training.schedule import make_schedule
from tests import tiny
from tests.training.test_sft import CONFIG, grid, train


class MyTrainer(InScheduleOrder, Trainer):
    """What a user writes."""


class StopAt(TrainerCallback):
    """Ends the training after an update, as a user's interrupt would."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def trainer_of(folder: Path, micro: int) -> MyTrainer:
    g, lm = grid(folder / "data"), tiny.hf_model()
    schedule = make_schedule(CONFIG.schedule, g, batch_size=4, epochs=2, seed=0)
    torch.manual_seed(0)
    trainer = MyTrainer(
        model=get_peft_model(lm.model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")),
        args=TrainingArguments(
            output_dir=str(folder / "trainer"),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=4 // micro,
            num_train_epochs=2,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            use_cpu=True,
            logging_steps=1,
            save_steps=4,
            report_to="none",
            remove_unused_columns=False,
            disable_tqdm=True,
            seed=0,
        ),
        train_dataset=TokenRows(CellDataset(g, lm.renderer, 1024)),
        data_collator=DataCollatorForSeq2Seq(lm.tokenizer, padding=True),
    )
    trainer.follow(ScheduleSampler(g, schedule), batch_size=4)
    return trainer


def losses_of(trainer: MyTrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("micro", [4, 2])
def test_a_plain_trainer_in_schedule_order_has_the_losses_of_paft(tmp_path, micro):
    ours = [row["loss"] for row in train(tmp_path / "ours")]
    trainer = trainer_of(tmp_path / "whole", micro)
    trainer.train()
    assert losses_of(trainer) == pytest.approx(ours, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_resume_in_the_second_epoch_goes_on_in_its_order(tmp_path):
    ours = [row["loss"] for row in train(tmp_path / "ours")]
    first = trainer_of(tmp_path, 4)
    first.add_callback(StopAt(8))
    first.train()
    again = trainer_of(tmp_path, 4)
    again.train(resume_from_checkpoint=True)
    assert losses_of(again) == pytest.approx(ours, abs=1e-4)
