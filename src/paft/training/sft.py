"""Supervised fine-tuning with changing prompts: a transformers.Trainer that takes its order from a schedule.

What is ours: the sampler, the loss on the answer only with the head applied there only, the log that says which cells
each update saw, checkpoints that are whole or ignored. The loop, the optimizer and the scheduler are the Trainer's.
"""

from __future__ import annotations

import gc
import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from paft.config import AdaptiveSchedule, ConsistencyConfig, Holding, SFTConfig
from paft.errors import ConfigError, ResourceError, ShapeError
from paft.grid import Grid
from paft.lm.hf import HFModel, without_chatter
from paft.lm.passes import is_out_of_memory
from paft.lm.ranks import Ranks
from paft.lm.render import Renderer
from paft.store import ArmDir, append_jsonl, read_jsonl, write_text
from paft.training.data import CellDataset, Row, ScheduleSampler, by_length, pad, pad_shown, pairs
from paft.training.objectives import divergence, token_nll
from paft.training.order import InScheduleOrder
from paft.training.packing import (
    answer_logits,
    cheaper_packed,
    cost,
    in_one_line,
    pack,
    packs_exactly,
    padded_cost,
    width_of,
)
from paft.training.schedule import AdaptivePrompts, make_schedule, make_twins, updates_per_epoch
from paft.training.setup import (
    Keeper,
    WholeCheckpoints,
    check_on_dev,
    checkpoint_dir,
    dev_figures,
    in_own_precision,
    mark_of,
    own_runs,
    prompt_figures,
    rewind,
    set_up_logs,
    tell_trackers,
    trainer_arguments,
    with_lora,
)
from paft.training.weights import ClusterWeights, cluster_weights, running, worst_case

Tick = Callable[[int, int, str], None]
"""Progress: (updates done, updates in all, what to show beside it)."""


@dataclass(frozen=True)
class TrainReport:
    """What a training did. Times in seconds; tokens counted without padding."""

    updates: int
    kept: int
    """The update whose weights these are."""
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
    out: ArmDir | Path | str,
    *,
    seed: int,
    dev: Grid | None = None,
    start: Path | str | None = None,
    tick: Tick = lambda done, total, note: None,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = Ranks(),  # noqa: B008 a frozen value
) -> HFModel:
    """The model fine-tuned on the cells of the grid in schedule order; its adapter, logs and checkpoints lie in `out`.

    dev: prompts and held-out examples for the checks while training; never the test prompts.
    start: an adapter to go on from, in place of a new one.
    Goes on from the last whole checkpoint in `out` when there is one: the remaining cells and losses are those of an
    uninterrupted run; StoreError where it is of another training. When memory runs out the micro-batch is halved (the update stays what it was), which is said.
    ranks: processes that share each update; cells, and losses but for rounding, are those of one process. Under FSDP the model
    that is returned is sharded: load what lies in `out` to go on with it.
    `model` shares its weights with what is returned and answers as it does, until `without_adapter` of that gives the base back;
    after an error the adapter is off again.
    """
    out, start = ArmDir.at(out), Path(start) if start is not None else None
    dataset = CellDataset(grid, model.renderer, config.max_length, model.limit)
    longest = dataset.check_lengths()
    say(f"longest cell: {longest} tokens (limit {min(config.max_length, model.limit)})")
    world, mark = ranks.size, mark_of(config, seed, model, grid, dev, start)
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
        learner = with_lora(model, config.lora, seed, start) if config.lora is not None else model
        try:
            return _train(
                learner,
                dataset,
                config,
                out,
                seed=seed,
                mark=mark,
                micro=micro,
                ranks=ranks,
                dev=dev,
                tick=tick,
                say=say,
            )
        except BaseException as error:
            if world == 1:  # launched processes end with the error, and their weights may be sharded
                in_own_precision(learner.model)
                learner.model.eval()
                if learner is not model:
                    learner.without_adapter()
            if not is_out_of_memory(error):
                raise
            if world > 1:
                raise ResourceError(
                    f"out of memory with {micro} examples at a time in each of {world} processes; set train.micro_batch_size lower"
                ) from None
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
        del learner
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _train(
    learner: HFModel,
    dataset: CellDataset,
    config: SFTConfig,
    out: ArmDir,
    *,
    seed: int,
    mark: dict[str, Any],
    micro: int,
    ranks: Ranks,
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
    objective = config.objective
    twins = make_twins(schedule, grid.templates, batch_size=config.batch_size) if objective.consistency else None
    if twins is not None and (alone := sum(not others for others in twins.partners_K)):
        say(
            f"{alone} of {len(grid.templates)} prompts have no other that wants the answer written the same way; not compared"
        )
    rows = micro * (1 if twins is None else 2)  # in a forward pass
    sampler = ScheduleSampler(grid, schedule, rows * ranks.size if ranks.size > 1 else 1, twins)
    worst = worst_case(objective.worst, grid.templates) if objective.worst else None
    per_epoch = updates_per_epoch(grid.shape[1], config.batch_size)
    if worst is not None and per_epoch * config.epochs < 5 * len(worst.names):
        say(
            f"objective.worst: {len(worst.names)} clusters of prompts in {per_epoch * config.epochs} updates; most are met too seldom for "
            "their weights to move; choose a coarser `by` or train longer"
        )
    resume = ranks.share(out.checkpoint_of(mark))
    done = int(resume.name.rpartition("-")[2]) if resume else 0
    before = rewind((out.steps, out.dev), done) if ranks.rank == 0 else 0.0

    tuned = learner.model
    steps = config.batch_size // (micro * ranks.size)
    arguments = _arguments(config, out, seed=seed, on_cpu=learner.device.type == "cpu", rows=rows, steps=steps)
    keeper = Keeper(tuned, learner, config, out, dev)
    packing = (
        config.packing
        and micro * sampler.per_example > 1
        and packs_exactly(learner, _longest_rows(dataset, sampler, micro * sampler.per_example), say)
    )
    passes_count = isinstance(config.schedule, Holding) and config.schedule.batches_per_prompt is not None
    trainer = _Trainer(
        model=tuned,
        args=arguments,
        train_dataset=dataset,
        data_collator=_Collator(
            learner.renderer.eos_id,
            width_of(learner) if packing else None,
            sampler.per_example,
            deals=not passes_count,  # a pass under one prompt stays one
            renderer=learner.renderer,
        ),
    )
    set_up_logs(trainer, out)
    if config.keep == "best" and trainer.is_fsdp_enabled:
        raise ConfigError("train.keep best with weights sharded by FSDP is not possible; use keep: last, or DDP")
    trainer.follow(sampler, config.batch_size)
    trainer.consistency, trainer.worst = objective.consistency, worst
    total = per_epoch * config.epochs
    trainer.add_callback(_StepLog(trainer, grid, learner, dev, keeper, tick, total, ranks))
    if isinstance(schedule, AdaptivePrompts):
        follow = _FollowLosses(trainer, schedule, config, ranks)
        follow.load(resume)
        trainer.add_callback(follow)
    if worst is not None:
        weigh = _FollowClusters(trainer, worst, ranks)
        weigh.load(resume)
        trainer.add_callback(weigh)
    trainer.add_callback(WholeCheckpoints(ranks, mark))  # after whatever else writes into a checkpoint
    if config.lora is None:
        tuned.requires_grad_(True)
    started = time.perf_counter()
    with without_chatter(), own_runs(trainer):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    seconds = time.perf_counter() - started
    keeper.settle()
    ranks.gather(None)  # the kept weights are read before they are dropped
    # where weights are sharded over the processes all of them take part in putting them together
    whole = trainer.accelerator.get_state_dict(trainer.model_wrapped) if trainer.is_fsdp_enabled else None
    if ranks.rank == 0:
        if config.lora is None and whole is not None:  # put together, a tied weight is there twice
            whole = {name: weight for name, weight in whole.items() if name not in tuned.all_tied_weights_keys}
        told = read_jsonl(out.steps)
        report = TrainReport(
            updates=len(told),
            kept=keeper.kept(len(told)),
            examples=grid.shape[1],
            distinct_prompts=len({prompt for row in told for prompt in row["prompts"]}),
            micro_batch_size=micro,
            tokens=sum(row["tokens"] for row in told),
            answer_tokens=sum(row["answer_tokens"] for row in told),
            seconds=before + seconds,
        )
        keeper.hand_over(report, whole)
    ranks.gather(None)  # nobody reads what is not written yet
    if not trainer.is_fsdp_enabled:
        in_own_precision(tuned)
    return learner


def _arguments(config: SFTConfig, out: ArmDir, *, seed: int, on_cpu: bool, rows: int, steps: int) -> TrainingArguments:
    return trainer_arguments(
        TrainingArguments,
        config,
        out,
        seed=seed,
        on_cpu=on_cpu,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=steps,
        ddp_find_unused_parameters=False,
        label_names=["labels"],
    )


def check_arguments(config: SFTConfig, *, on_cpu: bool) -> None:
    """Raises ConfigError for `config.arguments` that the Trainer would not take, before anything is computed."""
    _arguments(config, ArmDir(Path("unused")), seed=0, on_cpu=on_cpu, rows=1, steps=1)


def _longest_rows(dataset: CellDataset, sampler: ScheduleSampler, count: int) -> list[Row]:
    """The longest of the first updates, as many as a pass will hold: a window of attention shows only in a line that outgrows it."""
    first = [dataset[index] for index in itertools.islice(sampler, 8 * count)]
    return sorted(first, key=lambda row: -len(row.ids))[:count]


@dataclass(frozen=True)
class Seen:
    """A row that went through training: its cell, the negative log-likelihood of its answer in nats, the answer's tokens,
    whether the likeliest token was the right one at every place, and the divergence from its twin in nats (of the first of two)."""

    index: int
    nll: float
    answer_tokens: int
    right: bool
    divergence: float


class _Trainer(InScheduleOrder, Trainer):
    """The Trainer with our order and our loss."""

    consistency: ConsistencyConfig | None
    worst: ClusterWeights | None

    def __init__(self, **given: Any):
        super().__init__(**given)
        # models that say no, as many that read images do, would have their updates counted in passes, not in answer tokens
        self.model_accepts_loss_kwargs = True
        self.passes: list[tuple[list[int], list[int], torch.Tensor]] = []
        self.seen_tokens = 0
        self.update: list[Seen] = []

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """The passes of an update, its rows dealt to them by length where that leaves out padding."""
        passes = self.data_collator.dealt(list(itertools.islice(epoch_iterator, num_batches)))
        return super().get_batch_samples(iter(passes), num_batches, device)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean over the update's answer tokens of their negative log-likelihood, in nats; logits only where needed.

        Weighted by cluster under a worst-case objective; plus the mean divergence of twins under consistency.
        """
        logits_MV, targets_M, rows_M = answer_logits(model, inputs)
        nll_M = token_nll(logits_MV, targets_M)
        total, apart_M = nll_M.sum(), torch.zeros_like(nll_M)
        if self.worst is not None:
            weight_C, cluster_K = self.worst.weight_C, self.worst.cluster_K
            weight_R = nll_M.new_tensor([weight_C[cluster_K[self.order.grid.cell(i).prompt]] for i in inputs["cells"]])
            total = (nll_M * weight_R[rows_M]).sum()
        if self.consistency is not None:
            a_P, b_P = inputs["pairs"].unbind(1)
            apart_M = apart_M.index_add(0, a_P, divergence(logits_MV[a_P], logits_MV[b_P], self.consistency.divergence))
            total = total + 2 * self.consistency.weight * apart_M.sum()  # of two rows each
        self.seen_tokens += inputs["tokens"]
        sums_R4 = _by_row(logits_MV, targets_M, rows_M, nll_M, apart_M, len(inputs["cells"]))
        self.passes.append((inputs["places"], inputs["cells"], sums_R4))
        loss = total / (num_items_in_batch if num_items_in_batch is not None else len(nll_M))
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # gradients are averaged over ranks, the count is of all ranks
        return loss

    def take_update(self, ranks: Ranks) -> tuple[list[Seen], int]:
        """The rows of the update that just ended, of all ranks in the order of the schedule, and the tokens of all."""
        mine = [
            told for places, cells, sums_R4 in self.passes for told in zip(places, cells, sums_R4.tolist(), strict=True)
        ]
        found = ranks.gather((mine, self.seen_tokens, len(self.passes)))
        self.passes, self.seen_tokens = [], 0
        if len(made := {passes for *_, passes in found}) > 1:
            raise ShapeError(f"processes made {sorted(made)} passes in one update; expected equally many")
        size = self.args.per_device_train_batch_size  # processes take turns by so many rows
        in_turn = sorted(
            (place // size, rank, place, index, sums)
            for rank, (told, *_) in enumerate(found)
            for place, index, sums in told
        )
        rows = [
            Seen(index, nll, round(count), hits == count, apart) for *_, index, (nll, count, hits, apart) in in_turn
        ]
        return rows, sum(tokens for _, tokens, _ in found)


@torch.no_grad()
def _by_row(
    logits_MV: torch.Tensor,
    targets_M: torch.Tensor,
    rows_M: torch.Tensor,
    nll_M: torch.Tensor,
    apart_M: torch.Tensor,
    count: int,
) -> torch.Tensor:
    """sums_R4 of each row: negative log-likelihood, answer tokens, those that were the likeliest, divergence. On the device."""
    hits_M = logits_MV.argmax(-1) == targets_M
    values_M4 = torch.stack([nll_M.double(), torch.ones_like(nll_M).double(), hits_M.double(), apart_M.double()], 1)
    return torch.zeros(count, 4, dtype=values_M4.dtype, device=nll_M.device).index_add(0, rows_M, values_M4)


@dataclass(frozen=True)
class _Collator:
    """Rows to a batch: packed where that is cheaper, else padded. hidden_size None: always padded. per_example: rows that follow each
    other and stay together, two where an example comes with its twin. deals: whether rows may change to another pass of their update."""

    pad_id: int
    hidden_size: float | None
    per_example: int
    deals: bool
    renderer: Renderer | None = None
    """What makes tensors of images, for rows that show some."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        fed = _fed(rows)
        heard = [row for row in fed if not row.silent]
        batch = None
        if (
            self.hidden_size is not None
            and len(fed) > 1
            and cheaper_packed(fed, line := in_one_line(fed), self.hidden_size)
        ):
            batch = pack(fed, line)
        if fed[0].images:
            from paft.lm.vision import VisionRenderer  # costs text models a second of importing

            assert isinstance(self.renderer, VisionRenderer)
            batch = pad_shown(fed, self.renderer)
        batch = batch or pad(fed, self.pad_id)
        if self.per_example == 2:
            batch["pairs"] = pairs(heard)
        return batch | {
            "cells": [row.index for row in heard],
            "tokens": sum(len(row.ids) for row in heard),
            "held": rows,
        }

    def dealt(self, passes: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The passes of an update, in number and size as they come, with the places of their rows in it; its rows dealt to them by
        length where they then cost less."""
        width = self.hidden_size or math.inf
        sizes = [len(batch["held"]) for batch in passes]
        rows = [row for batch in passes for row in batch["held"]]
        places = _cut(range(len(rows)), sizes)
        if self.deals and len(passes) > 1:
            shapes = [batch["input_ids"].shape for batch in passes]
            sorted_ = _cut(by_length(rows, self.per_example), sizes)
            held = [[rows[place] for place in part] for part in sorted_]
            if sum(padded_cost(_fed(each), width) for each in held) < sum(cost(n, t, width) for n, t in shapes):
                passes, places = [self(each) for each in held], sorted_
        heard = [[place for place in part if not rows[place].silent] for part in places]
        return [batch | {"places": part} for batch, part in zip(passes, heard, strict=True)]


def _cut(places: Iterable[int], sizes: Sequence[int]) -> list[list[int]]:
    """Consecutive parts of these sizes."""
    rest = iter(places)
    return [list(itertools.islice(rest, size)) for size in sizes]


def _fed(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows that a pass computes: a process whose turn is all silent still makes its pass."""
    return [row for row in rows if not row.silent] or rows[:1]


class _StepLog(TrainerCallback):
    """One line per update: step, epoch, prompts, examples, loss, tokens; and the checks on dev prompts."""

    def __init__(
        self,
        trainer: _Trainer,
        grid: Grid,
        learner: HFModel,
        dev: Grid | None,
        keeper: Keeper,
        tick: Tick,
        total: int,
        ranks: Ranks,
    ):
        self.trainer, self.grid, self.learner, self.dev = trainer, grid, learner, dev
        self.keeper, self.tick, self.total, self.ranks = keeper, tick, total, ranks
        self.config, self.out = keeper.config, keeper.out
        self.limits_K = dev.answer_limits(learner.count_tokens) if dev is not None and dev.examples[0].is_open else None
        self.since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        seen, tokens = self.trainer.take_update(self.ranks)
        self.trainer.update = seen
        cells = [self.grid.cell(each.index) for each in seen]
        answer_tokens = sum(each.answer_tokens for each in seen)
        loss = sum(each.nll for each in seen) / answer_tokens
        sampler, worst = self.trainer.order, self.trainer.worst
        by_prompt: dict[str, list[Seen]] = {}
        for each, cell in zip(seen, cells, strict=True):
            by_prompt.setdefault(self.grid.templates[cell.prompt].id, []).append(each)
        now = time.perf_counter()
        row = {
            "step": step,
            "epoch": cells[0].epoch,
            "loss": round(loss, 6),
            "prompts": sorted(by_prompt),
            "examples": [self.grid.examples[cell.example].id for cell in cells[:: sampler.per_example]],
            "by_prompt": {prompt: _told(rows) for prompt, rows in sorted(by_prompt.items())},
            "tokens": tokens,
            "answer_tokens": answer_tokens,
            "seconds": round(now - self.since, 3),
        }
        if sampler.twins is not None:
            row["divergence"] = round(2 * sum(each.divergence for each in seen) / answer_tokens, 6)
        if worst is not None:
            row["weights"] = {name: round(weight, 6) for name, weight in zip(worst.names, worst.weight_C, strict=True)}
        if not math.isfinite(loss):
            raise ResourceError(f"update {step}: the loss is {loss}; lower train.learning_rate or use dtype: float32")
        first, every = self.ranks.rank == 0, self.config.eval_every
        if first:
            append_jsonl(self.out.steps, row)
            told = {"divergence": row.get("divergence"), "weight_by_cluster": row.get("weights", {})}
            tell_trackers(self.trainer, told | prompt_figures(row, "loss", "right"))
            self.tick(step, self.total, f"loss {loss:.2f}")
        if self.dev is not None and (step == self.total or (every and step % every == 0)):
            if first or self.trainer.is_fsdp_enabled:  # sharded weights answer when all processes ask
                found = check_on_dev(self.learner, self.dev, self.limits_K)
                self.trainer.model.train()
            if first:
                append_jsonl(self.out.dev, {"step": step, **found})
                tell_trackers(self.trainer, dev_figures(found))
            if self.ranks.share(self.keeper.enough(step) if first else None):
                control.should_training_stop = True
        self.since = time.perf_counter()


def _told(rows: Sequence[Seen]) -> dict[str, Any]:
    """Of the rows of a prompt: how many, mean loss in nats per answer token, share whose answer the model would have given."""
    loss = sum(row.nll for row in rows) / sum(row.answer_tokens for row in rows)
    return {"examples": len(rows), "loss": round(loss, 6), "right": sum(row.right for row in rows) / len(rows)}


class _FollowLosses(TrainerCallback):
    """Keeps the running loss of every cluster and tells an adaptive schedule the weights of each round that is over."""

    FILE = "schedule.json"

    def __init__(self, trainer: _Trainer, schedule: AdaptivePrompts, config: SFTConfig, ranks: Ranks):
        assert isinstance(config.schedule, AdaptiveSchedule)
        self.trainer, self.schedule, self.settings, self.ranks = trainer, schedule, config.schedule, ranks
        self.batch_size = config.batch_size
        self.loss_C: dict[int, float] = {}

    def load(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint."""
        if checkpoint is not None:
            held = json.loads((checkpoint / self.FILE).read_text(encoding="utf-8"))
            self.loss_C = {int(cluster): loss for cluster, loss in held["loss_C"].items()}
            self.schedule.weights_RC[:] = [tuple(row) for row in held["weights_RC"]]

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.ranks.rank == 0:
            held = {"loss_C": self.loss_C, "weights_RC": self.schedule.weights_RC}
            write_text(checkpoint_dir(args, state) / self.FILE, json.dumps(held))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        schedule = self.schedule
        for cluster, loss in _loss_by_cluster(self.trainer, schedule.cluster_K).items():
            self.loss_C[cluster] = running(self.loss_C.get(cluster), loss, self.settings.memory)
        per_epoch = updates_per_epoch(schedule.num_examples, self.batch_size)
        epoch, update = divmod(state.global_step, per_epoch)
        block = epoch * schedule.blocks_per_epoch + update * self.batch_size // schedule.block_size
        while len(schedule.weights_RC) < block // schedule.round_blocks:
            schedule.weights_RC.append(
                cluster_weights(schedule.cluster_K, self.loss_C, self.settings.floor, self.settings.cap)
            )


class _FollowClusters(TrainerCallback):
    """Tells a worst-case objective the losses of each update, and keeps what it has learned in the checkpoints."""

    FILE = "objective.json"

    def __init__(self, trainer: _Trainer, worst: ClusterWeights, ranks: Ranks):
        self.trainer, self.worst, self.ranks = trainer, worst, ranks

    def load(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint."""
        if checkpoint is not None:
            self.worst.load(json.loads((checkpoint / self.FILE).read_text(encoding="utf-8")))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.ranks.rank == 0:
            write_text(checkpoint_dir(args, state) / self.FILE, json.dumps(self.worst.state()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.worst.learn(_loss_by_cluster(self.trainer, self.worst.cluster_K))


def _loss_by_cluster(trainer: _Trainer, cluster_K: Sequence[int]) -> dict[int, float]:
    """Mean loss of the update that just ended, in nats per answer token, of each cluster that it held; in order."""
    sums: dict[int, list[float]] = {}
    for each in trainer.update:
        at = sums.setdefault(cluster_K[trainer.order.grid.cell(each.index).prompt], [0.0, 0.0])
        at[0] += each.nll
        at[1] += each.answer_tokens
    return {cluster: nll / tokens for cluster, (nll, tokens) in sorted(sums.items())}
