"""transformers.Trainer with the order of a schedule: the cells and losses of paft's own training, also after a resume."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
import trl
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainerCallback, TrainingArguments

from paft.integrations import InScheduleOrder, TokenRows
from paft.training.data import CellDataset, ScheduleSampler
from paft.training.grpo import GroupSampler, PromptRows
from paft.training.schedule import make_groups, make_schedule
from tests import tiny
from tests.training.test_grpo import sums
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


class MySFT(InScheduleOrder, trl.SFTTrainer):
    """What a user of TRL writes."""


@pytest.mark.filterwarnings("ignore")
def test_trls_sft_trainer_in_schedule_order_has_the_losses_of_paft(tmp_path):
    ours = [row["loss"] for row in train(tmp_path / "ours")]
    g, lm = grid(tmp_path / "data"), tiny.hf_model()
    rows = TokenRows(CellDataset(g, lm.renderer, 1024))
    schedule = make_schedule(CONFIG.schedule, g, batch_size=4, epochs=2, seed=0)
    torch.manual_seed(0)
    trainer = MySFT(
        model=get_peft_model(lm.model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")),
        processing_class=lm.tokenizer,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "trl"),
            per_device_train_batch_size=4,
            num_train_epochs=2,
            learning_rate=1e-2,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=datasets.Dataset.from_list([rows[0]]),  # TRL wants one of this kind; the rows follow
    )
    trainer.follow(ScheduleSampler(g, schedule), batch_size=4, rows=rows)
    trainer.train()
    assert losses_of(trainer) == pytest.approx(ours, abs=1e-4)


class MyGRPO(InScheduleOrder, trl.GRPOTrainer):
    """The same for rewards."""


@pytest.mark.filterwarnings("ignore")
def test_trls_grpo_trainer_in_schedule_order_answers_the_groups_of_paft(tmp_path):
    g, lm = sums(), tiny.hf_model()
    groups = make_groups(make_schedule(CONFIG.schedule, g, batch_size=2, epochs=2, seed=0), 3, across=False)
    heard: list[int] = []

    def earn(completions, cell, **_):
        heard.extend(cell)
        return [float(len(text)) for text in completions]

    trainer = MyGRPO(
        model=lm.model.requires_grad_(True),
        processing_class=lm.tokenizer,
        reward_funcs=[earn],
        args=trl.GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=6,
            num_generations=3,
            num_train_epochs=2,
            max_completion_length=3,
            shuffle_dataset=False,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": [""]}),
    )
    trainer.follow(GroupSampler(g, groups, batch_size=2, repeats=1), batch_size=2, rows=PromptRows(g, lm.renderer))
    trainer.train()
    per_epoch = g.shape[1] // 2 * 2
    expected = [g.flat(cell) for epoch in range(2) for at in range(per_epoch) for cell in groups.cells(epoch, at)]
    assert heard == expected
