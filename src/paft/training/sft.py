"""Supervised fine-tuning with changing prompts: a transformers.Trainer that takes its order from a schedule.

What is ours: the sampler, the loss on the answer only with the head applied there only, the log that says which cells
each update saw, checkpoints that are whole or ignored. The loop, the optimizer and the scheduler are the Trainer's.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import math
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from paft.config import SFTConfig
from paft.errors import ConfigError, ResourceError
from paft.grid import Cell, Grid
from paft.lm.hf import HFModel, lora_config
from paft.lm.passes import is_out_of_memory
from paft.store import ArmDir, append_jsonl, read_jsonl, write_text
from paft.training.data import CellDataset, Row, ScheduleSampler, cheaper_packed, pack, pad
from paft.training.objectives import IGNORED, completion_nll
from paft.training.schedule import make_schedule, updates_per_epoch

Tick = Callable[[int, int, str], None]
"""Progress: (updates done, updates in all, what to show beside it)."""


@dataclass(frozen=True)
class TrainReport:
    """What a training did. Times in seconds; tokens counted without padding."""

    updates: int
    examples: int
    distinct_prompts: int
    micro_batch_size: int
    tokens: int
    answer_tokens: int
    seconds: float


def train_sft(
    model: HFModel,
    grid: Grid,
    config: SFTConfig,
    out: ArmDir,
    *,
    seed: int,
    dev: Grid | None = None,
    tick: Tick = lambda done, total, note: None,
    say: Callable[[str], None] = lambda _: None,
) -> HFModel:
    """The model fine-tuned on the cells of the grid in schedule order; its adapter, logs and checkpoints lie in `out`.

    dev: prompts and held-out examples for the checks while training; never the test prompts.
    Goes on from the last whole checkpoint in `out` when there is one: the remaining cells and losses are those of an
    uninterrupted run. When memory runs out the micro-batch is halved (the update stays what it was), which is said.
    """
    dataset = CellDataset(grid, model.renderer, config.max_length)
    longest = dataset.check_lengths()
    say(f"longest cell: {longest} tokens (limit {config.max_length})")
    world = _world_size()
    if config.batch_size % world:
        raise ConfigError(
            f"train.batch_size {config.batch_size} is not a multiple of the {world} processes; the update is shared evenly"
        )
    micro = config.micro_batch_size or config.batch_size // world
    if config.batch_size % (micro * world):
        raise ConfigError(
            f"train.micro_batch_size {micro} x {world} processes does not divide train.batch_size {config.batch_size}; "
            "choose a divisor, so that an update holds exactly batch_size examples"
        )
    while True:
        try:
            return _train(model, dataset, config, out, seed=seed, micro=micro, world=world, dev=dev, tick=tick, say=say)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if micro == 1:
                raise ResourceError(
                    f"out of memory with one example of up to {longest} tokens at a time; use a smaller model, "
                    "a lower train.max_length or dtype: bfloat16"
                ) from None
            if config.lora is None and out.last_checkpoint() is None and read_jsonl(out.steps):
                raise ResourceError(
                    f"out of memory after some updates of all weights, before the first checkpoint; run again with "
                    f"train.micro_batch_size={micro // 2}"
                ) from None
            error.__traceback__ = None
        micro = next(
            size for size in range(micro - 1, 0, -1) if config.batch_size % (size * world) == 0 and size <= micro // 2
        )
        say(f"out of memory; going on with {micro} examples at a time ({config.batch_size} per update as before)")
        model = model.without_adapter() if config.lora is not None and hasattr(model.model, "unload") else model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train(
    model: HFModel,
    dataset: CellDataset,
    config: SFTConfig,
    out: ArmDir,
    *,
    seed: int,
    micro: int,
    world: int,
    dev: Grid | None,
    tick: Tick,
    say: Callable[[str], None],
) -> HFModel:
    grid = dataset.grid
    schedule = make_schedule(
        config.schedule,
        grid,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        micro=config.micro_batch_size or config.batch_size,
    )
    per_epoch = updates_per_epoch(grid.shape[1], config.batch_size)
    resume = out.last_checkpoint()
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    for log in (out.steps, out.dev):
        write_text(log, "".join(json.dumps(row) + "\n" for row in read_jsonl(log) if row["step"] <= done))

    tuned = _with_lora(model, config.lora, seed) if config.lora is not None else model.model.requires_grad_(True)
    learner = model.wrapping(tuned)
    on_cpu = model.device.type == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = TrainingArguments(
            output_dir=str(out.checkpoints),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=config.batch_size // (micro * world),
            num_train_epochs=config.epochs,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_scheduler,
            warmup_steps=config.warmup_ratio,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            optim="adamw_torch",
            seed=seed,
            data_seed=seed,
            use_cpu=on_cpu,
            dataloader_num_workers=config.dataloader_workers,
            dataloader_pin_memory=not on_cpu,
            save_strategy="steps",
            save_steps=config.save_every,
            save_total_limit=2,
            logging_strategy="steps" if config.report_to else "no",
            logging_steps=10,
            report_to=config.report_to or "none",
            eval_strategy="no",
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are used by `accelerate launch`, never by DataParallel
    sampler = ScheduleSampler(grid, schedule)
    packing = config.packing and micro > 1 and _packs_exactly(learner, dataset, sampler, micro, say)
    trainer = _Trainer(
        model=tuned,
        args=arguments,
        train_dataset=dataset,
        data_collator=_Collator(model.renderer.eos_id, learner.hidden_size if packing else None),
        callbacks=[EpochSetter(sampler, per_epoch), _WholeCheckpoints()],
    )
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.order = sampler
    log = _StepLog(
        trainer, grid, learner, dev, config, out, tick, per_epoch * config.epochs, log_main=arguments.process_index == 0
    )
    trainer.add_callback(log)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Could not find a config file")
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    tuned.eval()
    for parameter in tuned.parameters():
        parameter.grad = None
    if arguments.process_index == 0:
        if config.lora is None:
            out.save_model(tuned, model.tokenizer)
        else:
            tuned.peft_config["default"].base_model_name_or_path = model.name  # not the cache directory of this machine
            touched = str(config.lora.get("target_modules")) + str(config.lora.get("trainable_token_indices"))
            embeds = "embed" in touched or "lm_head" in touched
            # "auto" would ask the hub whether the vocabulary grew; here it never does
            out.save_model(tuned, save_embedding_layers="auto" if embeds else False)
        rows = read_jsonl(out.steps)
        report = TrainReport(
            updates=per_epoch * config.epochs,
            examples=grid.shape[1],
            distinct_prompts=len({prompt for row in rows for prompt in row["prompts"]}),
            micro_batch_size=micro,
            tokens=sum(row["tokens"] for row in rows),
            answer_tokens=sum(row["answer_tokens"] for row in rows),
            seconds=seconds + sum(row.get("seconds", 0.0) for row in rows if row["step"] <= done),
        )
        out.finish_training(report.__dict__)
        shutil.rmtree(out.checkpoints, ignore_errors=True)
    return learner


def _with_lora(model: HFModel, settings: dict[str, Any], seed: int) -> Any:
    from peft import get_peft_model

    torch.manual_seed(seed)  # the adapter's random half is part of the run
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(model.model, lora_config(settings))
    except ValueError as error:
        raise ConfigError(f"train.lora {settings!r}: {str(error).splitlines()[0][:200]}") from None


def _world_size() -> int:
    import os

    return int(os.environ.get("WORLD_SIZE", "1"))


class _Trainer(Trainer):
    """The Trainer with our order and our loss."""

    order: ScheduleSampler

    def __init__(self, **given: Any):
        super().__init__(**given)
        self.seen_cells: list[int] = []
        self.seen_loss = 0.0
        self.seen_tokens = 0
        self.seen_answer_tokens = 0

    def _get_train_sampler(self, train_dataset: Any = None) -> ScheduleSampler:
        return self.order

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean over the update's answer tokens of their negative log-likelihood, in nats; logits only where needed."""
        targets_BT = inputs["shift_labels"]
        logits_BLV, places_L = answer_logits(model, inputs)
        count = num_items_in_batch if num_items_in_batch is not None else (targets_BT != IGNORED).sum()
        loss = completion_nll(logits_BLV, targets_BT[:, places_L]) / count
        self.seen_cells += inputs["cells"].tolist()
        self.seen_loss += float(loss.detach())
        self.seen_tokens += inputs["tokens"]
        self.seen_answer_tokens += int((targets_BT != IGNORED).sum())
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks, the count is of all ranks
        return loss


def answer_logits(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a batch of `pad` or `pack` at the places that any row predicts an answer token from, and those places."""
    places_L = (inputs["shift_labels"] != IGNORED).any(0).nonzero().squeeze(1)
    mask, inner = inputs["attention_mask"], _innermost(model)
    if mask.dim() == 4:  # additive: the one form that every attention implementation takes
        kind = next(parameter.dtype for parameter in inner.parameters() if parameter.is_floating_point())
        mask = torch.zeros_like(mask, dtype=kind).masked_fill_(~mask, torch.finfo(kind).min)
    fed = {"input_ids": inputs["input_ids"], "attention_mask": mask, "position_ids": inputs["position_ids"]}
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        return model(**fed, use_cache=False, logits_to_keep=places_L).logits, places_L
    return model(**fed, use_cache=False).logits[:, places_L], places_L


def _innermost(model: Any) -> Any:
    model = getattr(model, "module", model)  # DDP
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@dataclass(frozen=True)
class _Collator:
    """Rows to a batch: packed where that is cheaper, else padded. hidden_size None: always padded."""

    pad_id: int
    hidden_size: int | None

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        packed = self.hidden_size is not None and len(rows) > 1 and cheaper_packed(rows, self.hidden_size)
        return (pack(rows) if packed else pad(rows, self.pad_id)) | {"tokens": sum(len(row.ids) for row in rows)}


PACKED_TOLERANCE = {torch.float32: 1e-3}
"""Nats per answer token by which packed and padded rows may differ; 0.25 in half precision."""


def _packs_exactly(
    learner: HFModel, dataset: CellDataset, sampler: ScheduleSampler, micro: int, say: Callable[[str], None]
) -> bool:
    """Whether this model reads packed rows as it reads padded ones, found out on the first rows of the schedule.

    Not all do: a window of attention counts places, some position schemes read the mask, some kernels ignore it.
    """
    # the longest rows of the first updates, as many as a pass will hold: a window shows only in a row that outgrows it
    first = [dataset[index] for index in itertools.islice(sampler, 8 * micro)]
    rows = sorted(first, key=lambda row: -len(row.ids))[:micro]
    if not learner.may_share or len(rows) < 2:
        return False
    sums = []
    learner.model.eval()
    try:
        with torch.no_grad():
            for batch in (pad(rows, learner.renderer.eos_id), pack(rows)):
                on_device = {name: tensor.to(learner.device) for name, tensor in batch.items()}
                logits_BLV, places_L = answer_logits(learner.model, on_device)
                targets_BL = on_device["shift_labels"][:, places_L]
                logp_BLV = logits_BLV.float().log_softmax(-1)
                picked_BL = logp_BLV.gather(-1, targets_BL.clamp(min=0)[..., None]).squeeze(-1)
                # left padding and packing both keep the order of rows and tokens
                sums.append(picked_BL[targets_BL != IGNORED])
    except Exception as error:
        if is_out_of_memory(error):
            raise
        say(f"this model does not take packed rows ({type(error).__name__}); padding instead")
        return False
    gap = float((sums[0] - sums[1]).abs().max())
    if gap <= PACKED_TOLERANCE.get(next(learner.model.parameters()).dtype, 0.25):
        return True
    say(f"this model reads packed rows differently ({gap:.2g} nats per token); padding instead")
    return False


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


class _WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once all of it is written; a directory without the mark is never resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / ArmDir.WHOLE, "")


class _StepLog(TrainerCallback):
    """One line per update: step, epoch, prompts, examples, loss, tokens; and the checks on dev prompts."""

    def __init__(
        self,
        trainer: _Trainer,
        grid: Grid,
        learner: HFModel,
        dev: Grid | None,
        config: SFTConfig,
        out: ArmDir,
        tick: Tick,
        total: int,
        log_main: bool,
    ):
        self.trainer, self.grid, self.learner, self.dev = trainer, grid, learner, dev
        self.config, self.out, self.tick, self.total, self.log_main = config, out, tick, total, log_main
        self.since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer, step = self.trainer, state.global_step
        cells = [self.grid.cell(index) for index in trainer.seen_cells]
        loss = trainer.seen_loss
        now = time.perf_counter()
        row = {
            "step": step,
            "epoch": cells[0].epoch,
            "loss": round(loss, 6),
            "prompts": sorted({self.grid.templates[cell.prompt].id for cell in cells}),
            "examples": [self.grid.examples[cell.example].id for cell in cells],
            "tokens": trainer.seen_tokens,
            "answer_tokens": trainer.seen_answer_tokens,
            "seconds": round(now - self.since, 3),
        }
        trainer.seen_cells, trainer.seen_loss, trainer.seen_tokens, trainer.seen_answer_tokens = [], 0.0, 0, 0
        if not math.isfinite(loss):
            raise ResourceError(f"update {step}: the loss is {loss}; lower train.learning_rate or use dtype: float32")
        if self.log_main:
            append_jsonl(self.out.steps, row)
            self.tick(step, self.total, f"loss {loss:.2f}")
            every = self.config.eval_every
            if self.dev is not None and (step == self.total or (every and step % every == 0)):
                append_jsonl(self.out.dev, {"step": step, **check_on_dev(self.learner, self.dev)})
                self.trainer.model.train()
        self.since = time.perf_counter()


def check_on_dev(learner: HFModel, dev: Grid) -> dict[str, Any]:
    """Accuracy of restricted choice over dev prompts and held-out examples: mean, sd (n-1) over prompts, each prompt."""
    learner.model.eval()
    right: list[float] = []
    num_prompts, num_examples = dev.shape
    for k in range(num_prompts):
        questions = [dev.question(Cell(0, k, i)) for i in range(num_examples)]
        answers = learner.answer(questions)
        hits: Sequence[bool] = [
            max(range(len(a.logp_C)), key=a.logp_C.__getitem__) == dev.examples[i].answer for i, a in enumerate(answers)
        ]
        right.append(sum(hits) / num_examples)
    mean = sum(right) / num_prompts
    sd = math.sqrt(sum((x - mean) ** 2 for x in right) / (num_prompts - 1)) if num_prompts > 1 else 0.0
    return {"mean": mean, "sd": sd, "accuracy_K": right, "prompts": [t.id for t in dev.templates]}
