"""Reinforcement fine-tuning on the same prompts by TRL's GRPOTrainer and by paft, in one run.

    pip install trl==1.16.0 && python benchmarks/grpo.py --model DIRECTORY

Both sides are whole processes with the same prompts in the same order, the same reward, LoRA settings, optimizer, precision and number
of threads; answers are written by transformers on both. Each side runs twice, with few and with many updates: the difference is the
cost of an update, free of start-up. Printed: CPU seconds (user + system) per update, peak memory, the largest difference of a loss.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from likelihood import Side, run

from paft.store import read_jsonl
from training import LORA, per_update

TEXTS = {
    "piqa": "Two ways are offered to reach a goal; one works. Answer with its letter.\n\nGoal: {goal}\n{choices}",
    "hellaswag": "Somebody filmed a short scene. Say with a letter what happens next.\n\n{activity}: {context}\n{choices}",
}
HERE = Path(__file__).parent


def letters(completion: str) -> float:
    """The reward of both sides: the share of letters in an answer. An untrained model earns it unequally, so that losses are not 0."""
    return sum(each.isalpha() for each in completion) / max(1, len(completion))


def reward(example: Any, template: Any, completion: str) -> float:
    """The same in paft's shape."""
    return letters(completion)


def main() -> None:
    options = arguments()
    if options.side:
        return peer(options)
    found = [measure(task, options) for task in ([options.task] if options.task else TEXTS)]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": platform.platform(), "rows": found}
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for row in found:
        print(" | ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()))
    print(f"written: {options.out}")
    return None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TEXTS, help="default: each")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model that both sides can load")
    parser.add_argument("--updates", type=int, nargs=2, default=[1, 5], help="of the short and the long run")
    parser.add_argument("--groups", type=int, default=2, help="per update")
    parser.add_argument("--answers", type=int, default=8, help="per group")
    parser.add_argument("--tokens", type=int, default=8, help="of an answer, at most")
    parser.add_argument("--kl", type=float, default=0.04)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1, help="of each side, taken in turns; medians are reported")
    parser.add_argument("--work", type=Path, default=HERE / "results" / "grpo")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "grpo.json")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def settings(folder: Path, task: str, updates: int, options: argparse.Namespace) -> Path:
    """A configuration file of `updates` updates of one epoch."""
    text = TEXTS[task]
    slots = text.partition("\n\n")[2]
    prompts = {
        "task": task,
        "train": [{"text": text, "answer": "letters"}],
        "dev": [{"text": f"Nobody is shown what stands here while tuning: {slots}", "answer": "letters"}],
        "test": [{"text": f"{start} {slots}", "answer": "letters"} for start in ("An unused wording, kept for the end.", "Not reached here:")],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.yaml").write_text(yaml.safe_dump(prompts, sort_keys=False), encoding="utf-8")
    config = {
        "name": "grpo", "task": task, "prompts": str(folder / "prompts.yaml"), "model": str(options.model),
        "source": "wheel", "dtype": "float32",
        "data": {"train_examples": updates * options.groups + 1, "held_out": 1e-6},
        "train": {
            "method": "grpo", "epochs": 1, "batch_size": options.groups, "num_generations": options.answers,
            "max_new_tokens": options.tokens, "kl": options.kl, "rewards": {"grpo:reward": 1.0}, "learning_rate": 2e-4,
            "lr_scheduler": "constant", "warmup_ratio": 0.0, "lora": LORA, "save_every": 10**6,
            "schedule": {"kind": "fixed"}, "dev_examples": 1, "dev_prompts": 1,
        },
        "arms": {"tuned": {"train": {}}}, "evaluate": {"split": "validation", "examples": 2, "scorers": ["generation"]},
    }  # fmt: skip
    path = folder / f"run-{updates}.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def measure(task: str, options: argparse.Namespace) -> dict[str, Any]:
    """Both sides on one task."""
    folder = options.work / task
    shutil.rmtree(folder, ignore_errors=True)
    paths = [settings(folder, task, updates, options) for updates in options.updates]
    for path in paths:
        rows = str(path.with_suffix(".jsonl"))
        start([sys.executable, "-m", "paft", "export", "dataset", str(path), "--arm", "tuned", "--as", "text", "-o", rows], path, options)  # fmt: skip
    theirs, ours = [], []
    same = [f"--{name}={getattr(options, name)}" for name in ("model", "groups", "answers", "tokens", "kl")]
    for _ in range(options.repeats):
        theirs.append([start([sys.executable, __file__, "--side", str(path), *same], path, options) for path in paths])
        ours.append([start(paft(path), path, options) for path in paths])
    steps = read_jsonl(paths[1].with_suffix("") / "tuned" / "steps.jsonl")
    losses = json.loads(paths[1].with_suffix(".losses.json").read_text(encoding="utf-8"))
    cpu = median(map(per_update(options), theirs)), median(map(per_update(options), ours))
    answers = sum(row["completions"] for row in steps)
    return {
        "task": task,
        "prompt tokens": sum(row["tokens"] - row["answer_tokens"] for row in steps) / answers,
        "answer tokens": sum(row["answer_tokens"] for row in steps) / answers,
        "CPU s per update, TRL": cpu[0],
        "paft": cpu[1],
        "ratio": cpu[0] / cpu[1],
        "GiB, TRL": max(pair[1].peak_gib for pair in theirs),
        "GiB, paft": max(pair[1].peak_gib for pair in ours),
        "largest difference of a loss": max(abs(row["loss"] - loss) for row, loss in zip(steps, losses, strict=True)),
    }


def paft(path: Path) -> list[str]:
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return [sys.executable, "-m", "paft", "train", str(path), "--out", str(path.with_suffix(""))]


def start(command: list[str], path: Path, options: argparse.Namespace) -> Side:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]),
    }
    return run(command, environment, path.with_suffix(".log"))


def peer(options: argparse.Namespace) -> None:
    """The rows of a file through TRL's GRPOTrainer."""
    import transformers
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    path = options.side
    transformers.set_seed(0)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype="float32"),
        processing_class=AutoTokenizer.from_pretrained(options.model),
        reward_funcs=lambda completions, **_: list(map(letters, completions)),
        train_dataset=Dataset.from_list(read_jsonl(path.with_suffix(".jsonl"))),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        args=GRPOConfig(
            output_dir=str(path.with_suffix(".trl")), per_device_train_batch_size=options.groups * options.answers,
            num_generations=options.answers, max_completion_length=options.tokens, beta=options.kl, num_train_epochs=1,
            learning_rate=2e-4, lr_scheduler_type="constant", weight_decay=0.0, max_grad_norm=1.0, optim="adamw_torch",
            use_cpu=True, bf16=False, gradient_checkpointing=False, shuffle_dataset=False, logging_steps=1, save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=0,
        ),
    )  # fmt: skip
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    path.with_suffix(".losses.json").write_text(json.dumps(losses), encoding="utf-8")


if __name__ == "__main__":
    main()
