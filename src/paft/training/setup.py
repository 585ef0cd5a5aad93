"""What the trainings have in common: arguments of the Trainer, adapter, checkpoints that are whole or ignored, checks on dev prompts."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import math
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from transformers import TrainerCallback, get_scheduler
from transformers.integrations import (
    INTEGRATION_TO_CALLBACK,
    TensorBoardCallback,
    get_available_reporting_integrations,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import SchedulerType

from paft.config import HOW, GRPOConfig, Holding, TrainingConfig
from paft.errors import ConfigError, ResourceError, nearest
from paft.grid import Cell, Grid
from paft.lm.hf import MADE_ON, HFModel, lora_config, undone_on_error, weights_beneath, without_chatter
from paft.lm.passes import is_out_of_memory
from paft.lm.ranks import Ranks
from paft.lm.types import Question
from paft.store import ArmDir, read_jsonl, write_json, write_text
from paft.tasks.answers import scored_by

_ORDER = (
    "accelerator_config",
    "dataloader_drop_last",
    "dataloader_in_order",
    "dataloader_prefetch_factor",
    "ignore_data_skip",
    "length_column_name",
)
_NOT_USED = (
    "do_train",
    "do_eval",
    "do_predict",
    "eval_steps",
    "eval_delay",
    "eval_on_start",
    "per_device_eval_batch_size",
)


def trainer_arguments(
    kind: Any,
    config: TrainingConfig,
    out: ArmDir,
    *,
    seed: int,
    on_cpu: bool,
    how: Mapping[str, str] = {},
    defaults: Mapping[str, Any] = {},
    **more: Any,
) -> Any:
    """Arguments of a kind (TrainingArguments or a subclass): what the settings say, what the method sets (`more`), and config.arguments.

    defaults: what the method sets unless config.arguments says otherwise. how: the method's own additions to HOW. Raises ConfigError
    for an argument that is paft's, that does not exist, or whose value the trainer refuses.
    """
    ours = {
        "output_dir": str(out.checkpoints),
        "num_train_epochs": config.epochs,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_ratio,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "seed": seed,
        "data_seed": seed,
        "use_cpu": on_cpu,
        "dataloader_num_workers": config.dataloader_workers,
        "save_strategy": "steps",
        "save_steps": config.save_every,
        "save_total_limit": 2,
        "report_to": config.report_to or "none",
        "run_name": f"{out.root.resolve().parent.name}-{out.root.name}",
        "eval_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        **more,
    }
    may_change = {
        "optim": "adamw_torch",
        "dataloader_pin_memory": not on_cpu,
        "logging_strategy": "steps" if config.report_to else "no",
        "logging_steps": 10,
        **defaults,
    }
    reasons = {
        **dict.fromkeys(ours, "is set by paft (most such have a key under train)"),
        **dict.fromkeys(_ORDER, "the order of rows is the schedule's"),
        **dict.fromkeys(_NOT_USED, "checks are made on dev prompts (train.eval_every)"),
        **HOW,
        **how,
    }
    known = set(inspect.signature(kind).parameters)
    for key in config.arguments:
        if key in reasons:
            raise ConfigError(f"train.arguments.{key}: {reasons[key]}; leave it out")
        if key not in known:
            raise ConfigError(
                f"train.arguments.{key}: {kind.__name__} has no such setting{nearest(key, known - set(reasons))}"
            )
    kinds = [each.value for each in SchedulerType]
    if (schedule := config.lr_scheduler) not in kinds:
        raise ConfigError(
            f"train.lr_scheduler = {schedule!r}{nearest(schedule, kinds)}; expected one of {', '.join(kinds)}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = kind(**{**may_change, **config.arguments}, **ours)
            if named := arguments.lr_scheduler_kwargs:  # else found out after the models before it are trained
                idle = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
                get_scheduler(arguments.lr_scheduler_type, idle, 1, 2, scheduler_specific_kwargs=named)
            noise = arguments.neftune_noise_alpha
            if noise is not None and (isinstance(noise, bool) or not isinstance(noise, int | float)):
                raise TypeError(f"neftune_noise_alpha = {noise!r}; expected a number")
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(f"train.arguments {config.arguments}: {str(error).splitlines()[0][:250]}") from None
    _check_trackers(arguments.report_to)
    _check_sharding(arguments, config)
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are used by `accelerate launch`, never by DataParallel
    return arguments


_LISTED_OTHERWISE = ("azure_ml", "comet_ml", "flyte", "kubeflow")
"""Trackers that transformers does not list, or not always, where they are installed."""


def _check_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that does not exist or is not installed, which the Trainer finds out when it is made."""
    here = get_available_reporting_integrations() if names else []
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = sorted(INTEGRATION_TO_CALLBACK)
            raise ConfigError(f"train.report_to {name!r}{nearest(name, known)}; trackers: {', '.join(known)}")
        if name not in (*here, *_LISTED_OTHERWISE):
            raise ConfigError(
                f"train.report_to {name!r}: is not installed here (installed: {', '.join(here) or 'none'}); install it, or leave it out"
            )


def _check_sharding(arguments: Any, config: TrainingConfig) -> None:
    """Raises ConfigError where a launch or `arguments` spread one model's weights over processes in a way that was not provided for:
    one process would answer the dev prompts while the others do not take part, and what is saved would be a part."""
    deepspeed = arguments.deepspeed_plugin
    fsdp = arguments.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")
    if isinstance(config, GRPOConfig) and (fsdp or deepspeed is not None):
        raise ConfigError(
            f"train.method grpo under {'DeepSpeed' if deepspeed is not None else 'FSDP'} is not provided for; launch it without (DDP: "
            "accelerate launch --multi_gpu, or torchrun)"
        )
    if deepspeed is not None and deepspeed.zero_stage == 3:
        raise ConfigError(
            "DeepSpeed ZeRO stage 3 is not provided for; use stage 1 or 2, DDP, or FSDP2 (accelerate launch --use_fsdp --fsdp_version 2)"
        )


BOARD = "tensorboard"
"""Folder of TensorBoard's files in an arm's directory."""


def set_up_logs(trainer: Any, out: ArmDir) -> None:
    """No lines and bars of the Trainer's own; TensorBoard's files beside the other logs, not among checkpoints, which are deleted."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            given = callback.logging_dir  # TENSORBOARD_LOGGING_DIR, one for all arms
            callback.logging_dir = os.path.join(given, trainer.args.run_name) if given else str(out.root / BOARD)


def tell_trackers(trainer: Any, figures: Mapping[str, Any]) -> None:
    """Hand figures of the update that just ended to the trackers of `train.report_to`; those in a mapping as NAME/KEY.

    Not by `trainer.log`: its history, the means that it takes and when its next line is due stay as they are.
    """
    if not trainer.args.report_to:
        return
    flat: dict[str, float | None] = {}
    for name, value in figures.items():
        flat |= {f"{name}/{key}": each for key, each in value.items()} if isinstance(value, Mapping) else {name: value}
    logs = {name: value for name, value in flat.items() if value is not None}
    trainer.callback_handler.call_event("on_log", trainer.args, trainer.state, trainer.control, logs=logs)


def prompt_figures(row: Mapping[str, Any], *names: str) -> dict[str, dict[str, float]]:
    """Figures of a line of steps.jsonl under NAME_by_prompt, by prompt."""
    return {f"{name}_by_prompt": {prompt: told[name] for prompt, told in row["by_prompt"].items()} for name in names}


def dev_figures(found: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What `check_on_dev` found, for trackers."""
    return {
        "dev": {"mean": found["mean"], "sd": found["sd"]},
        "dev_by_prompt": dict(zip(found["prompts"], found["accuracy_K"], strict=True)),
    }


@contextlib.contextmanager
def own_runs(trainer: Any) -> Iterator[None]:
    """A run that W&B or MLflow opens within ends with it, so that the next training of this process gets one of its own.

    One that was open before is the caller's, and stays.
    """
    before, failed = _open_runs(), True
    try:
        yield
        failed = False
    finally:
        now = _open_runs()
        if now.get("wandb") != before.get("wandb"):
            sys.modules["wandb"].finish(exit_code=int(failed))
        if now.get("mlflow") != before.get("mlflow"):
            sys.modules["mlflow"].end_run("FAILED" if failed else "FINISHED")
        for callback in trainer.callback_handler.callbacks:
            if hasattr(callback, "_auto_end_run"):
                callback._auto_end_run = False  # else MLflow's ends whatever run is open when it is collected


def _open_runs() -> dict[str, str]:
    """Ids of the runs that are open, by tracker."""
    found = {}
    if (run := getattr(sys.modules.get("wandb"), "run", None)) is not None:
        found["wandb"] = run.id
    if (active := getattr(sys.modules.get("mlflow"), "active_run", None)) is not None and (run := active()) is not None:
        found["mlflow"] = run.info.run_id
    return found


def with_lora(model: HFModel, settings: dict[str, Any], seed: int, start: Path | None = None) -> HFModel:
    """The model with an adapter to train: the one that lies in `start`, or a new one whose random half is drawn by the seed."""
    from peft import get_peft_model

    try:
        if start is not None:
            return model.with_adapter(start, trainable=True)
        torch.manual_seed(seed)  # the adapter's random half is part of the run
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = new_lora(model, settings)
            beneath = weights_beneath(model.model, config)
            with undone_on_error(model.model, beneath):
                return model.wrapping(get_peft_model(model.model, config), beneath)
    except (ValueError, TypeError, AttributeError, KeyError, NotImplementedError) as error:
        raise ConfigError(f"train.lora {settings!r}: {' '.join(str(error).split())[:200]}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ResourceError(
            f"train.lora {settings!r}: out of memory while the adapter is put on the model; use a smaller r, other init_lora_weights, "
            "a smaller model or dtype: bfloat16"
        ) from None


def in_own_precision(tuned: Any) -> None:
    """Takes off what mixed precision put on: it is for training, scores are those of the weights."""
    if (plain := tuned.__dict__.pop("_original_forward", None)) is not None:  # accelerate's name for it
        tuned.forward = plain
    tuned.__dict__.pop("_is_accelerate_prepared", None)  # else the next training of this model goes without


def new_lora(model: HFModel, settings: dict[str, Any]) -> Any:
    """peft.LoraConfig of a new adapter; of a model that could read images or sounds too, on texts: kept out of those parts, where nothing
    would train it."""
    config = model.model.config
    if model.renderer.reads_images or "exclude_modules" in settings or config.get_text_config() is config:
        return lora_config(settings)
    decoder = model.model.get_decoder()
    prefix = next((name for name, module in model.model.named_modules() if module is decoder), "")
    kept_out = {"exclude_modules": rf"(?!{re.escape(prefix)}\.|lm_head).+"} if prefix else {}
    return lora_config({**settings, **kept_out})


def save_tuned(
    tuned: Any, model: HFModel, config: TrainingConfig, out: ArmDir, state_dict: dict[str, Any] | None = None
) -> None:
    """Save the adapter, or the model where all weights were trained; state_dict: its weights, where they are not in it."""
    if config.lora is None:
        out.save_model(tuned, model.saved_with, state_dict=state_dict)
        return
    tuned.peft_config["default"].base_model_name_or_path = model.name  # not the cache directory of this machine
    touched = str(config.lora.get("target_modules")) + str(config.lora.get("trainable_token_indices"))
    embeds = "embed" in touched or "lm_head" in touched
    # "auto" would ask the hub whether the vocabulary grew; here it never does
    saved = {"save_embedding_layers": "auto" if embeds else False, "selected_adapters": ["default"]}
    made_on = {"origin": model.origin, "identity": model.identity, **model.rendering}
    out.save_model(tuned, beside={MADE_ON: made_on}, **saved, state_dict=state_dict)


def rewind(logs: Iterable[Path], step: int) -> float:
    """Drop what was logged after an update that training goes on from. Returns the seconds that what stays has taken."""
    seconds = 0.0
    for log in logs:
        kept = [row for row in read_jsonl(log) if row["step"] <= step]
        write_text(log, "".join(json.dumps(row) + "\n" for row in kept))
        seconds += sum(row.get("seconds", 0.0) for row in kept)
    return seconds


def rests_on(
    settings: TrainingConfig, seed: int, identity: str, grid: Grid, dev: Grid | None, start: str | None
) -> str:
    """Fingerprint of a training: settings, seed, model, prompts, and what the examples say, those of the checks too where checks decide.
    start: that of an adapter to go on from."""
    checks = settings.keep == "best" or settings.patience is not None
    parts: list[Any] = [settings.decisive(), seed, identity]
    for each in (grid, dev) if checks and dev is not None else (grid,):
        parts += [[t.id for t in each.templates], [e.content for e in each.examples]]
        if isinstance(settings, GRPOConfig) or each is dev:
            kinds = {e.score: e for e in each.examples}.values()
            parts.append(sorted({scored_by(t.answer, e) for t in each.templates for e in kinds}))
    if start is not None:
        parts.append(start)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_plain).encode()).hexdigest()[:16]


def mark_of(
    settings: TrainingConfig, seed: int, model: HFModel, grid: Grid, dev: Grid | None, start: Path | None
) -> dict[str, Any]:
    """What a training leaves in its checkpoints, so that no other goes on from them."""
    if not (isinstance(settings.schedule, Holding) and settings.schedule.batches_per_prompt):
        settings = settings.model_copy(update={"micro_batch_size": None})  # another number of processes may go on
    files = sorted(start.glob("adapter_*")) if start is not None else []
    content = " ".join(hashlib.sha256(file.read_bytes()).hexdigest() for file in files) or None
    plain = json.loads(json.dumps(settings.decisive(), default=_plain))
    return {"settings": plain, "fingerprint": rests_on(settings, seed, model.base, grid, dev, content)}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once all of it is written, with what it is of; a directory without the mark is never resumed from."""

    def __init__(self, ranks: Ranks, mark: Mapping[str, Any]):
        self.ranks, self.mark = ranks, mark

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each checkpoint."""
        self.ranks.gather(None)  # every process has written its part
        if self.ranks.rank == 0:
            write_json(checkpoint_dir(args, state) / ArmDir.WHOLE, self.mark)


class Keeper:
    """Which weights a training leaves: the last ones, or those of the best check on dev prompts; and whether to stop early.

    All of it follows from the log of checks, so that a killed training that goes on decides alike.
    """

    def __init__(self, tuned: Any, model: HFModel, config: TrainingConfig, out: ArmDir, dev: Grid | None):
        if config.keep == "best" and dev is None:
            raise ConfigError("train.keep best needs dev prompts and examples; give dev")
        self.tuned, self.model, self.config, self.out = tuned, model, config, out

    @property
    def best_step(self) -> int | None:
        """The update with the highest mean accuracy so far, the earliest of equals."""
        checks = read_jsonl(self.out.dev)
        return max(checks, key=lambda row: (row["mean"], -row["step"]))["step"] if checks else None

    def kept(self, updates: int) -> int:
        """The update whose weights are left, of all that were made."""
        return (self.best_step if self.config.keep == "best" else None) or updates

    def enough(self, step: int) -> bool:
        """To be asked after each check that was logged: keeps the weights of a new best, and says whether to stop."""
        best = self.best_step
        if self.config.keep == "best" and best == step:
            self.out.best.root.mkdir(exist_ok=True)
            save_tuned(self.tuned, self.model, self.config, self.out.best)
        since = sum(row["step"] > (best or 0) for row in read_jsonl(self.out.dev))
        return self.config.patience is not None and since >= self.config.patience

    def settle(self) -> None:
        """After the last update: the weights that are kept, ready to answer."""
        self.tuned.eval()
        for parameter in self.tuned.parameters():
            parameter.grad = None
        if self.config.keep == "best" and self.best_step is not None:
            self._take_best()

    def _take_best(self) -> None:
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        best = self.out.best
        if self.config.lora is not None:
            set_peft_model_state_dict(self.tuned, load_file(best.adapter / "adapter_model.safetensors"))
        else:
            with without_chatter():
                kept = type(self.tuned).from_pretrained(best.model, dtype=self.tuned.dtype)
            self.tuned.load_state_dict(kept.state_dict())

    def hand_over(self, report: Any, state_dict: dict[str, Any] | None = None) -> None:
        """Save weights and report (a dataclass), and drop what was kept while training. state_dict: as in `save_tuned`."""
        save_tuned(self.tuned, self.model, self.config, self.out, state_dict)
        self.out.finish_training(report.__dict__)
        for left in (self.out.checkpoints, self.out.best.root):
            shutil.rmtree(left, ignore_errors=True)


def checkpoint_dir(args: Any, state: Any) -> Path:
    """Where the checkpoint of the update that just ended lies."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def check_on_dev(learner: HFModel, dev: Grid, limits_K: Sequence[int] | None = None) -> dict[str, Any]:
    """Accuracy over dev prompts and held-out examples: mean, sd (n-1) over prompts, each prompt; and the seconds that it took.

    By restricted choice, or by free answers of at most limits_K tokens under each prompt.
    """
    started = time.perf_counter()
    learner.model.eval()
    right: list[float] = []
    num_prompts, num_examples = dev.shape
    for k in range(num_prompts):
        cells = [Cell(0, k, i) for i in range(num_examples)]
        hits: Sequence[float]
        if limits_K is None:
            answers = learner.answer([dev.question(cell) for cell in cells])
            tied = [[c for c, logp in enumerate(a.logp_C) if max(a.logp_C) - logp <= 1e-6] for a in answers]
            hits = [(e.answer in best) / max(1, len(best)) for best, e in zip(tied, dev.examples, strict=True)]
        else:
            answers = learner.answer([Question(dev.chat(cell), (), limits_K[k]) for cell in cells])
            said = [a.completion.text if a.completion else "" for a in answers]
            parse = dev.templates[k].answer.parse
            hits = [parse(text, e).worth(e) for text, e in zip(said, dev.examples, strict=True)]
        right.append(sum(hits) / num_examples)
    mean = sum(right) / num_prompts
    sd = math.sqrt(sum((x - mean) ** 2 for x in right) / (num_prompts - 1)) if num_prompts > 1 else 0.0
    seconds = round(time.perf_counter() - started, 3)
    return {"mean": mean, "sd": sd, "accuracy_K": right, "prompts": [t.id for t in dev.templates], "seconds": seconds}
