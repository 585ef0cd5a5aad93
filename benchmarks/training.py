"""Fine-tuning on the same rows by TRL's SFTTrainer and by paft, in one run.

    pip install trl==1.16.0 && python benchmarks/training.py --model DIRECTORY --workload words

Both sides are whole processes with the same token ids in the same order, the same LoRA settings, optimizer, precision and number
of threads. Each side runs twice, with few and with many updates: the difference is the cost of an update, free of start-up.
Printed: CPU seconds (user + system) per update, tokens and peak memory, the largest difference of a loss; then what it costs to
change the prompt at every update, with prompts of one length.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from likelihood import Side, run

from paft.config import RunConfig
from paft.grid import Grid
from paft.lm.hf import load_renderer
from paft.materials import prepare
from paft.store import read_jsonl
from paft.training.data import CellDataset, ScheduleSampler
from paft.training.schedule import make_schedule

LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
WORDS = {"labels": ["negative", "positive"]}


@dataclass(frozen=True)
class Workload:
    """Prompts, all asking for the same answers, the task, and how they are put to the model."""

    title: str
    task: str
    style: str
    texts: list[str]
    answer: Any
    schedule: dict[str, Any]


WORKLOADS = {
    "words": Workload(
        "SST-2, instruction first, one prompt",
        "sst2-demo",
        "chat",
        [
            "Somebody wrote this about a film. Say whether the sentence is negative or positive, in one word.\n\n{sentence}"
        ],
        WORDS,
        {"kind": "fixed"},
    ),
    "letters": Workload(
        "PIQA letters, instruction first, one prompt",
        "piqa",
        "chat",
        ["Two ways are offered to reach a goal; one works. Answer with its letter.\n\nGoal: {goal}\n{choices}"],
        "letters",
        {"kind": "fixed"},
    ),
    "apart": Workload(
        "SST-2, sentence first, nothing shared",
        "sst2-demo",
        "raw",
        ["{sentence}\nIs what was said here negative or positive?"],
        WORDS,
        {"kind": "fixed"},
    ),
    "mixed": Workload(
        "SST-2, a prompt for every example",
        "sst2-demo",
        "chat",
        [
            "Somebody wrote this about a film. Say whether the sentence is negative or positive, in one word.\n\n{sentence}",
            "{sentence}\n\nWhich of the two fits what was just said: negative or positive?",
            "Sentiment (negative or positive) of the following remark:\n{sentence}",
            "Read the line and judge its tone.\nLine: {sentence}\nTone, either negative or positive:",
        ],
        WORDS,
        {"kind": "paft", "examples_per_prompt": 1},
    ),
    "texts": Workload(
        "HellaSwag, the ending as text, one prompt",
        "hellaswag",
        "chat",
        ["Somebody filmed a short scene. Go on with what happens next.\n\n{activity}: {context}"],
        "text",
        {"kind": "fixed"},
    ),
}
EQUAL = [f"Say in one word whether this {noun} is negative or positive.\n\n{{sentence}}"
         for noun in ("line", "text", "note", "remark", "piece")]  # fmt: skip
"""Wordings of equally many tokens (checked), so that nothing but the change differs."""


def main() -> None:
    options = arguments()
    if options.side:
        return peer(options)
    names = [*WORKLOADS, "changing"] if options.workload == "all" else [options.workload]
    found = [changing(options) if name == "changing" else measure(name, WORKLOADS[name], options) for name in names]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"machine": platform.platform(), "rows": found}, indent=1) + "\n", encoding="utf-8"
    )
    for row in found:
        print(
            " | ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    print(f"written: {options.out}")
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "changing", "all"], default="all")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model that both sides can load")
    parser.add_argument("--updates", type=int, nargs=2, default=[2, 22], help="of the short and the long run")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of each side, taken in turns; medians are reported")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "results" / "training")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(folder: Path, load: Workload, updates: int, options: argparse.Namespace) -> Path:
    """A configuration file of `updates` updates of one epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    prompt = lambda text: {"text": text, "answer": load.answer}  # noqa: E731
    slots = {"sst2-demo": "{sentence}", "piqa": "{goal}\n{choices}", "hellaswag": "{activity} {context}"}[load.task]
    sets = {
        "task": load.task,
        "train": [prompt(text) for text in load.texts],
        "dev": [prompt(f"Nobody is shown what stands here while tuning: {slots}")],
        "test": [prompt(f"{start} {slots}") for start in ("An unused wording, kept for the end.", "Never reached in this run:")],
    }
    (folder / "prompts.yaml").write_text(yaml.safe_dump(sets, sort_keys=False), encoding="utf-8")
    config = {
        "name": "training", "task": load.task, "prompts": str(folder / "prompts.yaml"), "model": str(options.model),
        "source": "wheel", "dtype": "float32", "style": load.style,
        "data": {"train_examples": updates * options.batch_size + 1, "held_out": 1e-6},
        "train": {
            "epochs": 1, "batch_size": options.batch_size, "learning_rate": 2e-4, "lora": LORA, "save_every": 10**6,
            "schedule": load.schedule, "lr_scheduler": "linear", "warmup_ratio": 0.1, "dev_examples": 1, "dev_prompts": 1,
        },
        "arms": {"tuned": {"train": {}}}, "evaluate": {"split": "validation", "examples": 2},
    }  # fmt: skip
    path = folder / f"run-{updates}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def rows_of(path: Path) -> tuple[CellDataset, list[int]]:
    """The cells of the run in order."""
    config = RunConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    training, materials = config.training_of("tuned"), prepare(config)
    assert training is not None
    grid = Grid(materials.prompts.train, materials.train)
    schedule = make_schedule(training.schedule, grid, batch_size=training.batch_size, epochs=1, seed=config.seed)
    renderer = load_renderer(config.model, source=config.source, style=config.style)
    return CellDataset(grid, renderer, training.max_length), list(ScheduleSampler(grid, schedule))


def write_rows(path: Path) -> list[int]:
    """The rows of a configuration beside it, as TRL reads them; returns their order."""
    data, order = rows_of(path)
    rows = [
        {"input_ids": row.ids, "labels": [-100] * row.start + row.ids[row.start :]}
        for row in map(data.__getitem__, order)
    ]
    path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
    return order


def measure(name: str, load: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one workload."""
    folder = options.work / name
    shutil.rmtree(folder, ignore_errors=True)
    paths = [settings(folder, load, updates, options) for updates in options.updates]
    for path in paths:
        order = write_rows(path)
    theirs, ours = [], []
    for _ in range(options.repeats):
        theirs.append([start(lambda path: [sys.executable, __file__, "--model", str(options.model), "--side", str(path),
                             "--batch-size", str(options.batch_size)], path, options) for path in paths])  # fmt: skip
        ours.append([start(paft, path, options) for path in paths])
    steps = read_jsonl(out_of(paths[1]) / "tuned" / "steps.jsonl")
    losses = json.loads(paths[1].with_suffix(".losses.json").read_text(encoding="utf-8"))
    cpu = median(map(per_update(options), theirs)), median(map(per_update(options), ours))
    return {
        "workload": load.title,
        "tokens per row": sum(row["tokens"] for row in steps) / len(order),
        "CPU s per update, TRL": cpu[0],
        "paft": cpu[1],
        "ratio": cpu[0] / cpu[1],
        "whole process, TRL": median(pair[1].cpu_seconds for pair in theirs),
        "whole process, paft": median(pair[1].cpu_seconds for pair in ours),
        "GiB, TRL": max(pair[1].peak_gib for pair in theirs),
        "GiB, paft": max(pair[1].peak_gib for pair in ours),
        "largest difference of a loss": max(abs(row["loss"] - loss) for row, loss in zip(steps, losses, strict=True)),
    }


def changing(options: argparse.Namespace) -> dict[str, Any]:
    """What it costs to change the prompt at every update: paft against itself."""
    folder = options.work / "changing"
    shutil.rmtree(folder, ignore_errors=True)
    costs: dict[str, list[float]] = {"fixed": [], "paft": []}
    tokens = {}
    for _ in range(options.repeats):
        for kind, cost in costs.items():
            schedule = {"kind": kind} if kind == "fixed" else {"kind": kind, "steps_per_prompt": 1}
            load = Workload("changing", "sst2-demo", "chat", EQUAL, WORDS, schedule)
            paths = [settings(folder / kind, load, updates, options) for updates in options.updates]
            cost.append(per_update(options)([start(paft, path, options) for path in paths]))
            tokens[kind] = sum(row["tokens"] for row in read_jsonl(out_of(paths[1]) / "tuned" / "steps.jsonl"))
    if tokens["fixed"] != tokens["paft"]:
        raise SystemExit(f"the wordings differ in tokens: {tokens}")
    fixed, paft_ = median(costs["fixed"]), median(costs["paft"])
    return {"workload": "prompt changed at every update", "fixed": fixed, "changing": paft_, "ratio": paft_ / fixed}


def per_update(options: argparse.Namespace) -> Callable[[list[Side]], float]:
    few, many = options.updates
    return lambda pair: (pair[1].cpu_seconds - pair[0].cpu_seconds) / (many - few)


def out_of(path: Path) -> Path:
    return path.with_suffix("")


def paft(path: Path) -> list[str]:
    shutil.rmtree(out_of(path), ignore_errors=True)
    return [sys.executable, "-m", "paft", "train", str(path), "--out", str(out_of(path))]


def start(command: Callable[[Path], list[str]], path: Path, options: argparse.Namespace) -> Side:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return run(command(path), environment, path.with_suffix(".log"))


def peer(options: argparse.Namespace) -> None:
    """The rows of a file through TRL's SFTTrainer: what suits a CPU best (no checkpointing of activations, no packing, which needs
    flash attention to keep examples apart)."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    path = options.side
    rows = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        args=SFTConfig(
            output_dir=str(path.with_suffix(".trl")), per_device_train_batch_size=options.batch_size, num_train_epochs=1,
            learning_rate=2e-4, lr_scheduler_type="linear", warmup_steps=0.1, weight_decay=0.0, max_grad_norm=1.0,
            optim="adamw_torch", use_cpu=True, bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
            report_to="none", train_sampling_strategy="sequential", disable_tqdm=True, dataloader_pin_memory=False,
            dataset_kwargs={"skip_prepare_dataset": True}, max_length=None, seed=0,
        ),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    path.with_suffix(".losses.json").write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
