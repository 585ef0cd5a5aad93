"""Where the processor time of fine-tuning goes, by paft and by TRL's SFTTrainer, kind of operation by kind.

    pip install trl==1.16.0 && python benchmarks/where.py --model DIRECTORY --workload words

Both train in this process on the rows of `training.py` under torch's profiler, the first update left out; one thread. The profiler makes
everything slower, small operations most: shares are to be read, not seconds.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

import training
from paft import pipeline
from paft.config import load_run_config
from paft.watch import LineWatcher

HERE = Path(__file__).parent
KINDS: Mapping[str, tuple[str, ...]] = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "mkldnn", "aten::linear", "aten::matmul"),
    "attention": ("scaled_dot_product", "flash_attention", "aten::_efficient"),
    "optimizer and clipping": ("adam", "_foreach", "vector_norm"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::index", "aten::contiguous", "aten::gather"),
}
REST = "all other operations (elementwise, norms, loss)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(training.WORKLOADS), default="words")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--work", type=Path, default=HERE / "results" / "where")
    options = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(options.work, ignore_errors=True)
    path = training.settings(options.work, training.WORKLOADS[options.workload], options.updates, options)
    training.write_rows(path)
    options.side = path
    ours = lambda: pipeline.run(load_run_config(path), options.work / "paft", LineWatcher(quiet=True), stages=["train"])  # noqa: E731
    shares = {"TRL": of(lambda: training.peer(options), options.updates), "paft": of(ours, options.updates)}
    print("| | " + " | ".join(f"{side}, share" for side in shares) + " | " + " | ".join(f"{side}, s / update" for side in shares) + " |")
    print("| --- |" + " ---: |" * (2 * len(shares)))
    for kind in [*KINDS, REST]:
        times = [times[kind] for times in shares.values()]
        totals = [sum(times.values()) for times in shares.values()]
        cells = [f"{100 * time / total:.0f} %" for time, total in zip(times, totals, strict=True)]
        print(f"| {kind} | " + " | ".join(cells) + " | " + " | ".join(f"{time:.2f}" for time in times) + " |")


def of(train: Callable[[], object], updates: int) -> dict[str, float]:
    """Seconds per update by kind of operation, each operation's own time."""
    profiler, steps = profile(activities=[ProfilerActivity.CPU]), 0

    def count(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 1:
            profiler.start()
        elif steps == updates:
            profiler.stop()

    handle = register_optimizer_step_post_hook(count)
    try:
        train()
    finally:
        handle.remove()
    found = dict.fromkeys([*KINDS, REST], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, marks in KINDS.items() if any(mark in event.key.lower() for mark in marks)), REST)
        found[kind] += event.self_cpu_time_total / 1e6 / (updates - 1)
    return found


if __name__ == "__main__":
    main()
