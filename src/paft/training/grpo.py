"""Reinforcement learning with changing prompts: trl's GRPOTrainer, whose groups are cells of a schedule.

What is ours: the sampler, token ids by the one renderer, rewards bound to the prompt that was shown, logs, checkpoints that are whole
or ignored. Generation, advantages, loss and optimizer are trl's.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from paft.config import GRPOConfig
from paft.errors import ConfigError, DataError, RenderError, ResourceError
from paft.grid import Cell, Grid
from paft.lm.hf import HFModel, undone_on_error, weights_beneath, without_chatter
from paft.lm.passes import is_out_of_memory, kernel_mask
from paft.lm.prefix import Row as Line
from paft.lm.ranks import Ranks
from paft.lm.render import Renderer
from paft.store import ArmDir, append_jsonl, read_jsonl
from paft.training.data import CellDataset, Row, longest_cell
from paft.training.order import InScheduleOrder
from paft.training.packing import cheaper_packed, in_one_line, innermost, pack, packs_exactly, width_of
from paft.training.rewards import Reward, find_reward, require_trl, well_formed
from paft.training.schedule import Groups, make_groups, make_schedule
from paft.training.setup import (
    Keeper,
    WholeCheckpoints,
    check_on_dev,
    dev_figures,
    in_own_precision,
    mark_of,
    new_lora,
    own_runs,
    prompt_figures,
    rewind,
    set_up_logs,
    tell_trackers,
    trainer_arguments,
    with_lora,
)

require_trl()
import datasets  # noqa: E402
import trl  # noqa: E402


@dataclass(frozen=True)
class GRPOReport:
    """What a training did. Times in seconds; tokens of prompts and answers without padding."""

    updates: int
    kept: int
    """The update whose weights these are."""
    examples: int
    distinct_prompts: int
    completions: int
    tokens: int
    answer_tokens: int
    seconds: float


@dataclass(frozen=True)
class Rollout:
    """One answer to one cell: token ids of the answer, its text, whether the model ended it, whether the parser of its prompt reads an
    answer in it, what it earned by each reward, and the weighted sum of those that had something to say."""

    index: int
    ids: tuple[int, ...]
    text: str
    ended: bool
    valid: bool
    parts: Mapping[str, float | None]
    reward: float


def train_grpo(
    model: HFModel,
    grid: Grid,
    config: GRPOConfig,
    out: ArmDir | Path | str,
    *,
    seed: int,
    dev: Grid | None = None,
    start: Path | str | None = None,
    rewards: Mapping[str, Reward] | None = None,
    tick: Callable[[int, int, str], None] = lambda done, total, note: None,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = Ranks(),  # noqa: B008 a frozen value
) -> HFModel:
    """The model tuned on rewards of its own answers to the cells of the grid in schedule order; adapter and logs lie in `out`.

    rewards: judges for the names in `config.rewards`, before the built-in ones. dev: prompts and held-out examples for the checks
    while training, never the test prompts; they are answered freely. start: an adapter to go on from, which is then also what
    `config.kl` holds the model to. Goes on from the last whole checkpoint in `out`: the cells are
    those of an uninterrupted run, and with transformers' generation on one process answers and losses are too; StoreError
    where it is of another training. Raises ConfigError for settings that cannot hold.
    `model` shares its weights with what is returned and answers as it does, until `without_adapter` of that gives the base back;
    after an error the adapter is off again.
    """
    out, start = ArmDir.at(out), Path(start) if start is not None else None
    judges = {name: (rewards or {}).get(name) or find_reward(name) for name in config.rewards}
    rows = PromptRows(grid, model.renderer)
    rows.check_lengths(config.max_new_tokens, min(config.max_length, model.limit))
    answers = config.batch_size * config.num_generations
    micro = config.micro_batch_size or answers // ranks.size
    if micro < 1 or answers % (micro * ranks.size):
        raise ConfigError(
            f"train: {config.batch_size} groups of {config.num_generations} are {answers} answers an update, which {ranks.size} "
            f"processes with micro_batch_size {micro} do not divide; choose a divisor"
        )
    schedule = make_schedule(config.schedule, grid, batch_size=config.batch_size, epochs=config.epochs, seed=seed)
    groups = make_groups(schedule, config.num_generations, across=config.group == "example")
    steps = answers // (micro * ranks.size)
    sampler = GroupSampler(grid, groups, config.batch_size, repeats=steps)
    if sampler.updates(config.batch_size) == 0:
        raise ConfigError(
            f"train.batch_size {config.batch_size}: more groups than the {grid.shape[1]} train examples; choose a smaller one"
        )
    if left := grid.shape[1] % config.batch_size:
        say(
            f"{left} of {grid.shape[1]} examples are left out of each epoch, others each time: an update takes {config.batch_size}"
        )
    arguments = _arguments(config, out, seed=seed, on_cpu=model.device.type == "cpu", micro=micro, steps=steps)
    if config.lora is None and config.kl:
        raise ConfigError(
            f"train.kl {config.kl} with lora: null needs a second, untouched model in memory; set kl: 0 or train an adapter"
        )
    if config.group == "example" and arguments.use_vllm and arguments.vllm_mode == "server":
        raise ConfigError(
            "train.group example with a vLLM server: it is asked one prompt per group and would drop the others in silence; "
            "set arguments.vllm_mode: colocate, or group: prompt"
        )
    done, mark = 0, mark_of(config, seed, model, grid, dev, start)
    if resume := ranks.share(out.checkpoint_of(mark)):
        done = int(resume.name.rpartition("-")[2])
    before = rewind((out.steps, out.dev, out.rollouts), done) if ranks.rank == 0 else 0.0
    if config.lora is None:
        model.model.requires_grad_(True)
    with without_chatter():
        fresh = new_lora(model, config.lora) if config.lora is not None and start is None else None
    beneath = {} if fresh is None else weights_beneath(model.model, fresh)
    with _AsBefore(model), without_chatter(), undone_on_error(model.model, beneath):
        try:
            begun = model if start is None else with_lora(model, config.lora or {}, seed, start)
            beneath |= begun.beneath
            trainer = _Trainer(
                model=begun.model,
                reward_funcs=[_earn],
                args=arguments,
                train_dataset=datasets.Dataset.from_dict({"prompt": [""]}),  # trl wants one of this kind; ours follows
                processing_class=model.tokenizer,
                peft_config=fresh,
            )
        except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
            raise ConfigError(f"train: {' '.join(str(error).split())[:250]}") from None
        tuned = trainer.model
        learner = model.wrapping(tuned, beneath)
        trainer.begin(rows, sampler, judges, config.rewards)
        if config.packing:
            cells = CellDataset(grid, model.renderer, max_length=1 << 30)
            given = [cells[index] for index in itertools.islice(sampler, micro)]
            # reference answers in place of the model's own, which are no longer than this
            first = [replace(row, ids=row.ids[: row.start + config.max_new_tokens]) for row in given]
            if packs_exactly(learner, first, say):
                trainer.packing, trainer.width = True, width_of(learner)
        set_up_logs(trainer, out)
        total = sampler.updates(config.batch_size) * config.epochs
        keeper = Keeper(tuned, model, config, out, dev)
        log = _RolloutLog(trainer, grid, learner, dev, keeper, config, tick, total, ranks)
        trainer.add_callback(log)
        trainer.add_callback(WholeCheckpoints(ranks, mark))
        started = time.perf_counter()
        try:
            with own_runs(trainer):
                trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except Exception as error:
            if isinstance(error, ValueError | NotImplementedError) and _raised_by(error).startswith("trl."):
                raise ConfigError(f"train.arguments {config.arguments}: {str(error).splitlines()[0][:200]}") from None
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"out of memory with {micro} answers at a time; set train.micro_batch_size to a divisor of {answers} below that"
            ) from None
        seconds = time.perf_counter() - started
    keeper.settle()
    in_own_precision(tuned)
    ranks.gather(None)  # the kept weights are read before they are dropped
    if "ref" in getattr(tuned, "peft_config", {}):  # the adapter that training went on from, kept by trl beside it
        tuned.delete_adapter("ref")
    if ranks.rank == 0:
        told = read_jsonl(out.steps)
        report = GRPOReport(
            updates=len(told),
            kept=keeper.kept(len(told)),
            examples=grid.shape[1],
            distinct_prompts=len({prompt for row in told for prompt in row["prompts"]}),
            completions=sum(row["completions"] for row in told),
            tokens=sum(row["tokens"] for row in told),
            answer_tokens=sum(row["answer_tokens"] for row in told),
            seconds=before + seconds,
        )
        keeper.hand_over(report)
    ranks.gather(None)  # nobody reads what is not written yet
    return learner


def _arguments(config: GRPOConfig, out: ArmDir, *, seed: int, on_cpu: bool, micro: int, steps: int) -> trl.GRPOConfig:
    return trainer_arguments(
        trl.GRPOConfig,
        config,
        out,
        seed=seed,
        on_cpu=on_cpu,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=steps,
        num_generations=config.num_generations,
        max_completion_length=config.max_new_tokens,
        temperature=config.temperature,
        beta=config.kl,
        shuffle_dataset=False,
        how=_HOW,
        # weights are loaded in the precision that is trained
        defaults={"bf16": False, "gradient_checkpointing": False},
    )


def check_arguments(config: GRPOConfig, *, on_cpu: bool) -> None:
    """Raises ConfigError for `config.arguments` that trl would not take, before anything is computed."""
    answers = config.batch_size * config.num_generations
    _arguments(config, ArmDir(Path("unused")), seed=0, on_cpu=on_cpu, micro=answers, steps=1)


_HOW = {
    "num_iterations": "an update uses new answers, so that K counts updates",
    "reward_weights": "give train.rewards",
    "steps_per_generation": "answers are written once an update",
    "generation_batch_size": "answers are written once an update",
    "chat_template_kwargs": "prompts are rendered by paft",
    "model_init_kwargs": "the model is loaded by paft",
    "trust_remote_code": "the model is loaded by paft",
}


def _raised_by(error: Exception) -> str:
    """The module whose line raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return str(trace.tb_frame.f_globals.get("__name__", "")) if trace is not None else ""


class PromptRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Cells as trl's rows: the rendered prompt and the flat index. Item i is a pure function of i."""

    def __init__(self, grid: Grid, renderer: Renderer):
        self.grid, self.renderer = grid, renderer

    def __len__(self) -> int:
        return self.grid.shape[1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"prompt": self.renderer.prompt_text(self.grid.chat(self.grid.cell(index))), "cell": index}

    def check_lengths(self, free: int, limit: int) -> None:
        """Raises RenderError when some prompt with `free` tokens of answer is longer than `limit`."""
        cell, length = longest_cell(self.grid, lambda cell: len(self.renderer.prompt_ids(self.grid.chat(cell))))
        if length + free > limit:
            raise RenderError(
                f"prompt {self.grid.templates[cell.prompt].id} with example {self.grid.examples[cell.example].id!r} and {free} tokens of "
                f"answer has {length + free} tokens; at most {limit} fit; raise train.max_length (up to what the model reads), or leave "
                "the example out"
            )


class GroupSampler(torch.utils.data.Sampler[int]):
    """Flat indices of an epoch as trl wants them: the answers of an update, group by group, as often as its passes.

    Groups are made by position in the schedule, never by comparing prompts. Examples that do not fill an update are left out.
    """

    def __init__(self, grid: Grid, groups: Groups, batch_size: int, repeats: int):
        self.grid, self.groups, self.batch_size, self.repeats, self.epoch = grid, groups, batch_size, repeats, 0

    def updates(self, batch_size: int) -> int:
        """Of so many groups, in an epoch."""
        return self.grid.shape[1] // batch_size

    @property
    def per_example(self) -> int:
        """Answers of a group."""
        return self.groups.size

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration yields; past the last one it stays there (loops ask once too often)."""
        self.epoch = min(epoch, self.groups.schedule.epochs - 1)

    def __len__(self) -> int:
        return self.updates(self.batch_size) * self.batch_size * self.groups.size * self.repeats

    def __iter__(self) -> Iterator[int]:
        epoch = self.epoch
        for update in range(self.updates(self.batch_size)):
            positions = range(update * self.batch_size, (update + 1) * self.batch_size)
            cells = [self.grid.flat(cell) for at in positions for cell in self.groups.cells(epoch, at)]
            for _ in range(self.repeats):
                yield from cells


def _earn(**_: Any) -> list[float]:
    raise NotImplementedError("rewards are computed in _Trainer._calculate_rewards")  # pragma: no cover


class _Trainer(InScheduleOrder, trl.GRPOTrainer):
    """trl's trainer with our order, our token ids and our rewards."""

    def begin(
        self, rows: PromptRows, sampler: GroupSampler, judges: Mapping[str, Reward], weights: Mapping[str, float]
    ) -> None:
        """What to train on."""
        self.follow(sampler, sampler.batch_size, rows)
        self.renderer, self.judges, self.weights = rows.renderer, judges, weights
        self.packing, self.width = False, 0.0
        self.rollouts: list[Rollout] = []
        self.prompt_tokens = 0
        self.losses: list[torch.Tensor] = []

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        ids = self.renderer.ids(prompts)
        self.prompt_tokens += sum(map(len, ids))
        return ids, None, {}

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: Any, completions: list[str], completion_ids_list: list[list[int]]
    ) -> torch.Tensor:
        grid = self.order.grid
        mine = []
        for row, text, ids in zip(inputs, completions, completion_ids_list, strict=True):
            cell = grid.cell(row["cell"])
            example, template = grid.examples[cell.example], grid.templates[cell.prompt]
            parts = {name: judge(example, template, text) for name, judge in self.judges.items()}
            told = [self.weights[name] * float(value) for name, value in parts.items() if value is not None]
            if not told or not all(map(math.isfinite, told)):
                raise DataError(f"example {example.id!r}: rewards {parts} of {text[:40]!r}; expected a finite number")
            valid = well_formed(example, template, text) == 1.0
            mine.append(Rollout(row["cell"], tuple(ids), text, ids[-1] in self.eos_token_ids, valid, parts, sum(told)))
        self.rollouts += mine
        earned = torch.tensor([[each.reward] for each in mine], dtype=torch.float32, device=self.accelerator.device)
        together: torch.Tensor = self.accelerator.gather(earned)
        return together

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """trl's figures (answers x places, zero where there is no token), the prompts that answers share computed once."""
        size = batch_size or len(input_ids)
        if self.packing and not compute_aux_loss and len(input_ids) > size:
            parts = [
                self._get_per_token_logps_and_entropies(
                    model, ids, mask, logits_to_keep, compute_entropy=compute_entropy, **more
                )
                for ids, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True)
            ]
            entropies = [entropy for _, entropy, _ in parts if entropy is not None]
            return torch.cat([logps for logps, _, _ in parts]), torch.cat(entropies) if entropies else None, None
        if self.packing and not compute_aux_loss and size > 1:
            heard_BT = attention_mask.bool()
            starts = heard_BT[:, :-logits_to_keep].sum(1).tolist()
            rows = [
                Row(n, ids[heard].tolist(), start)
                for n, (ids, heard, start) in enumerate(zip(input_ids, heard_BT, starts, strict=True))
            ]
            line = in_one_line(rows)
            if cheaper_packed(rows, line, self.width):
                return self._in_one_line(model, rows, line, logits_to_keep, compute_entropy)
        return super()._get_per_token_logps_and_entropies(
            model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, compute_aux_loss, **more
        )

    def _in_one_line(
        self, model: Any, rows: Sequence[Row], line: Line, width: int, compute_entropy: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        device = self.accelerator.device
        batch = {name: tensor.to(device) for name, tensor in pack(rows, line).items()}
        fed = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
        mask = kernel_mask(batch["attention_mask"], innermost(model))
        with self.accelerator.autocast():
            out = model(**fed, attention_mask=mask, shift_labels=batch["shift_labels"], fused_lm_head=True)
        # where the token before each place of an answer lies in the line; the line's end, whose value is 0, where there is none
        places_BM = torch.full((len(rows), width), len(line) - 1)
        for row, path, places_M in zip(rows, line.paths, places_BM, strict=True):
            places_M[: len(path) - row.start] = torch.from_numpy(path[row.start - 1 : -1])
        places_BM = places_BM.to(device)
        return out.log_probs[0][places_BM], out.entropy[0][places_BM] if compute_entropy else None, None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        self.losses.append(loss.detach())
        return loss

    def take_update(self, ranks: Ranks) -> tuple[list[Rollout], int, float, float | None]:
        """Answers of the update that just ended, of all ranks in the order of the schedule; prompt tokens; loss; divergence in nats."""
        kls = self._metrics["train"].get("kl", [])[-len(self.losses) :]
        kl = sum(kls) / len(kls) if kls else None
        found = ranks.gather((self.rollouts, self.prompt_tokens, float(sum(self.losses))))
        self.rollouts, self.prompt_tokens, self.losses = [], 0, []
        rollouts = [each for part, _, _ in found for each in part]
        return rollouts, sum(n for _, n, _ in found), sum(loss for _, _, loss in found) / len(found), kl


class _RolloutLog(TrainerCallback):
    """Per update: a line of figures, one of the answers; and the checks on dev prompts."""

    def __init__(
        self,
        trainer: _Trainer,
        grid: Grid,
        learner: HFModel,
        dev: Grid | None,
        keeper: Keeper,
        config: GRPOConfig,
        tick: Callable[[int, int, str], None],
        total: int,
        ranks: Ranks,
    ):
        self.trainer, self.grid, self.learner, self.dev = trainer, grid, learner, dev
        self.keeper, self.config, self.tick, self.total, self.ranks = keeper, config, tick, total, ranks
        self.out = keeper.out
        self.since = time.perf_counter()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step, size = state.global_step, self.config.num_generations
        rollouts, prompt_tokens, loss, kl = self.trainer.take_update(self.ranks)
        cells = [self.grid.cell(each.index) for each in rollouts]
        by_prompt: dict[str, list[Rollout]] = defaultdict(list)
        for each, cell in zip(rollouts, cells, strict=True):
            by_prompt[self.grid.templates[cell.prompt].id].append(each)
        answer_tokens = sum(len(each.ids) for each in rollouts)
        groups = [rollouts[at : at + size] for at in range(0, len(rollouts), size)]
        now = time.perf_counter()
        row = {
            "step": step,
            "epoch": cells[0].epoch,
            "loss": round(loss, 6),
            **_told(rollouts),
            # groups that teach nothing: all answers earn the same
            "flat_groups": sum(len({each.reward for each in group}) == 1 for group in groups) / len(groups),
            "kl": None if kl is None else round(kl, 6),
            "prompts": sorted(by_prompt),
            "examples": [self.grid.examples[cell.example].id for cell in cells[::size]],
            "by_prompt": {prompt: _told(its) for prompt, its in sorted(by_prompt.items())},
            "tokens": prompt_tokens + answer_tokens,
            "answer_tokens": answer_tokens,
            "seconds": round(now - self.since, 3),
        }
        if not math.isfinite(loss):
            raise ResourceError(f"update {step}: the loss is {loss}; lower train.learning_rate or use dtype: float32")
        first, every = self.ranks.rank == 0, self.config.eval_every
        if first:
            append_jsonl(self.out.rollouts, {"step": step, "rollouts": self._written(rollouts, cells)})
            append_jsonl(self.out.steps, row)
            told = {"invalid": row["invalid"], "flat_groups": row["flat_groups"], "reward_by_part": row["parts"]}
            tell_trackers(self.trainer, told | prompt_figures(row, "reward", "invalid"))
            self.tick(step, self.total, f"reward {row['reward']:.2f}")
        if self.dev is not None and (step == self.total or (every and step % every == 0)):
            if first:
                found = check_on_dev(self.learner, self.dev, [self.config.max_new_tokens] * len(self.dev.templates))
                self.trainer.model.train()
                append_jsonl(self.out.dev, {"step": step, **found})
                tell_trackers(self.trainer, dev_figures(found))
            if self.ranks.share(self.keeper.enough(step) if first else None):
                control.should_training_stop = True
        self.since = time.perf_counter()

    def _written(self, rollouts: Sequence[Rollout], cells: Sequence[Cell]) -> list[dict[str, Any]]:
        return [
            {
                "prompt": self.grid.templates[cell.prompt].id,
                "example": self.grid.examples[cell.example].id,
                "completion": each.text,
                "ids": list(each.ids),
                **each.parts,
                "reward": each.reward,
            }
            for each, cell in zip(rollouts, cells, strict=True)
        ]


def _told(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Of some answers: how many, mean reward, mean of each part, mean tokens, share that ended by itself, share that the parser of
    its prompt cannot read."""
    parts = {
        name: [value for each in rollouts if (value := each.parts[name]) is not None] for name in rollouts[0].parts
    }
    count = len(rollouts)
    return {
        "completions": count,
        "reward": round(sum(each.reward for each in rollouts) / count, 6),
        "parts": {name: round(sum(given) / len(given), 6) if given else None for name, given in parts.items()},
        "length": round(sum(len(each.ids) for each in rollouts) / count, 3),
        "ended": round(sum(each.ended for each in rollouts) / count, 6),
        "invalid": round(sum(not each.valid for each in rollouts) / count, 6),
    }


class _AsBefore:
    """Takes back what trl changes on a model and a tokenizer that other arms use as well."""

    def __init__(self, model: HFModel):
        self.model = model

    def __enter__(self) -> None:
        base, tokenizer = self.model.model, self.model.tokenizer
        self.forward = base.__dict__.get("forward")
        self.pads = tokenizer.pad_token, base.config.get_text_config().pad_token_id, base.generation_config.pad_token_id

    def __exit__(self, *_: object) -> None:
        base, tokenizer = self.model.model, self.model.tokenizer
        in_own_precision(base)  # where all weights were trained
        base.eval()
        if self.forward is None:
            base.__dict__.pop("forward", None)
        tokenizer.pad_token, base.config.get_text_config().pad_token_id, base.generation_config.pad_token_id = self.pads
