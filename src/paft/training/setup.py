"""What the trainings have in common: arguments of the Trainer, adapter, checkpoints that are whole or ignored, checks on dev prompts."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from paft.config import TrainingConfig
from paft.errors import ConfigError
from paft.grid import Cell, Grid
from paft.lm.hf import HFModel, lora_config, without_chatter
from paft.lm.ranks import Ranks
from paft.lm.types import Question
from paft.store import ArmDir, read_jsonl, write_text


def trainer_arguments(kind: Any, config: TrainingConfig, out: ArmDir, *, seed: int, on_cpu: bool, **more: Any) -> Any:
    """Arguments of a kind (TrainingArguments or a subclass) for these settings; `more` is what the method adds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = kind(
            output_dir=str(out.checkpoints),
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
            disable_tqdm=True,
            **more,
        )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several GPUs are used by `accelerate launch`, never by DataParallel
    return arguments


def silence(trainer: Any) -> None:
    """No lines and bars of the Trainer's own."""
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def with_lora(model: HFModel, settings: dict[str, Any], seed: int, start: Path | None = None) -> Any:
    """The model with an adapter to train: the one that lies in `start`, or a new one whose random half is drawn by the seed."""
    from peft import PeftModel, get_peft_model

    if start is not None:
        return PeftModel.from_pretrained(model.model, start, is_trainable=True)
    torch.manual_seed(seed)  # the adapter's random half is part of the run
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return get_peft_model(model.model, lora_config(settings))
    except ValueError as error:
        raise ConfigError(f"train.lora {settings!r}: {str(error).splitlines()[0][:200]}") from None


def save_tuned(
    tuned: Any, model: HFModel, config: TrainingConfig, out: ArmDir, state_dict: dict[str, Any] | None = None
) -> None:
    """Save the adapter, or the model where all weights were trained; state_dict: its weights, where they are not in it."""
    if config.lora is None:
        out.save_model(tuned, model.tokenizer, state_dict=state_dict)
        return
    tuned.peft_config["default"].base_model_name_or_path = model.name  # not the cache directory of this machine
    touched = str(config.lora.get("target_modules")) + str(config.lora.get("trainable_token_indices"))
    embeds = "embed" in touched or "lm_head" in touched
    # "auto" would ask the hub whether the vocabulary grew; here it never does
    saved = {"save_embedding_layers": "auto" if embeds else False, "selected_adapters": ["default"]}
    out.save_model(tuned, **saved, state_dict=state_dict)


def rewind(logs: Iterable[Path], step: int) -> None:
    """Drop what was logged after an update that training goes on from."""
    for log in logs:
        write_text(log, "".join(json.dumps(row) + "\n" for row in read_jsonl(log) if row["step"] <= step))


class WholeCheckpoints(TrainerCallback):
    """Marks a checkpoint as whole once all of it is written; a directory without the mark is never resumed from."""

    def __init__(self, ranks: Ranks):
        self.ranks = ranks

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Called after each checkpoint."""
        self.ranks.gather(None)  # every process has written its part
        if self.ranks.rank == 0:
            write_text(checkpoint_dir(args, state) / ArmDir.WHOLE, "")


class OnDev:
    """What the checks on dev prompts decide: which weights are kept, and when to stop.

    All of it follows from the log of checks, so that a killed training that goes on decides alike.
    """

    def __init__(self, tuned: Any, model: HFModel, config: TrainingConfig, out: ArmDir):
        self.tuned, self.model, self.config, self.out = tuned, model, config, out

    @property
    def best_step(self) -> int | None:
        """The update with the highest mean accuracy so far, the earliest of equals."""
        checks = read_jsonl(self.out.dev)
        return max(checks, key=lambda row: (row["mean"], -row["step"]))["step"] if checks else None

    def enough(self, step: int) -> bool:
        """To be asked after each check that was logged: keeps the weights of a new best, and says whether to stop."""
        best = self.best_step
        if self.config.keep == "best" and best == step:
            self.out.best.root.mkdir(exist_ok=True)
            save_tuned(self.tuned, self.model, self.config, self.out.best)
        since = sum(row["step"] > (best or 0) for row in read_jsonl(self.out.dev))
        return self.config.patience is not None and since >= self.config.patience

    def take_best(self) -> None:
        """Put the weights of the best check in place of the last ones."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        best = self.out.best
        if self.config.lora is not None:
            set_peft_model_state_dict(self.tuned, load_file(best.adapter / "adapter_model.safetensors"))
        else:
            with without_chatter():
                kept = type(self.tuned).from_pretrained(best.model, dtype=self.tuned.dtype)
            self.tuned.load_state_dict(kept.state_dict())

    def forget(self) -> None:
        """Drop what was kept while training."""
        shutil.rmtree(self.out.best.root, ignore_errors=True)


def checkpoint_dir(args: Any, state: Any) -> Path:
    """Where the checkpoint of the update that just ended lies."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def free_limit(model: HFModel, grid: Grid) -> int:
    """Token limit of a free answer: the longest right answer of the grid and 4 more."""
    num_prompts, num_examples = grid.shape
    targets = {grid.target(Cell(0, k, i)) for k in range(num_prompts) for i in range(num_examples)}
    return max(model.count_tokens(target) for target in sorted(targets, key=len)[-20:]) + 4


def check_on_dev(learner: HFModel, dev: Grid, max_new_tokens: int | None = None) -> dict[str, Any]:
    """Accuracy over dev prompts and held-out examples: mean, sd (n-1) over prompts, each prompt.

    By restricted choice, or by free answers of at most max_new_tokens tokens.
    """
    learner.model.eval()
    right: list[float] = []
    num_prompts, num_examples = dev.shape
    for k in range(num_prompts):
        cells = [Cell(0, k, i) for i in range(num_examples)]
        hits: Sequence[bool]
        if max_new_tokens is None:
            answers = learner.answer([dev.question(cell) for cell in cells])
            hits = [
                max(range(len(a.logp_C)), key=a.logp_C.__getitem__) == dev.examples[i].answer
                for i, a in enumerate(answers)
            ]
        else:
            answers = learner.answer([Question(dev.chat(cell), (), max_new_tokens) for cell in cells])
            said = [a.completion.text if a.completion else "" for a in answers]
            parse = dev.templates[k].answer.parse
            hits = [parse(text, e).choice == e.answer for text, e in zip(said, dev.examples, strict=True)]
        right.append(sum(hits) / num_examples)
    mean = sum(right) / num_prompts
    sd = math.sqrt(sum((x - mean) ** 2 for x in right) / (num_prompts - 1)) if num_prompts > 1 else 0.0
    return {"mean": mean, "sd": sd, "accuracy_K": right, "prompts": [t.id for t in dev.templates]}
