"""Free answers of a small real model to tasks whose graders graders.py runs: to 200 items of each, under two prompts.

    python benchmarks/records.py --out records --rows race=high.test.jsonl.gz gsm8k=test.jsonl.gz humaneval=humaneval.jsonl.gz \\
        plan=plan_json.json.gz review=review_str.json.gz
    HF_HUB_OFFLINE=1 HF_HUB_CACHE=records/hub python benchmarks/graders.py --peers peers --runs records/piqa records/plan

Rows that are given are handed to paft as a cache of the hub; those of HellaSwag, PIQA and WinoGrande are of the data wheel. Where letters or numbers
are asked for, every item is asked under both prompts, else half of them under each (HumanEval has 164: some under both). `stories` are of our own (stories.yaml), in the
languages of XStoryCloze. `review` and `plan` are T-Eval's own tasks; the rows of its other parts are not public in any place that was reached; `instruct`, `retrieve` and `understand` ask for a call, a tool's name and arguments out of the public plans, `reason` for
the thought that the public reviews keep. `geometry` asks in words what Geometry3K shows in drawings; `texts` are SciQ's questions without options.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml
from graders import rows_of

from paft.tasks import load_task
from paft.tasks.table import TASKS

HERE = Path(__file__).resolve().parent
ITEMS = 200
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What is asked: prompts (text, answer), the limit of an answer in tokens, of a task of one's own its description and rows, else its name."""

    prompts: list[tuple[str, Any]]
    limit: int
    task: Row | str
    rows: list[Row] = field(default_factory=list)
    split: str = "test"
    all_cells: bool = False


def letters(task: str, item: str) -> Callable[[Any], Asked]:
    """A task of the data wheel, or of the hub, by letters."""
    asked = [(f"{item}\n\n{{choices}}\n\n{end}", "letters") for end in ("Reply with one letter.", "Answer:")]
    split = "test" if task.startswith("race") else "validation"
    return lambda _: Asked(asked, 12, task, split=split, all_cells=True)


def stories(_: Any) -> Asked:
    def found() -> Iterator[Row]:
        for language, told in yaml.safe_load((HERE / "stories.yaml").read_text(encoding="utf-8")).items():
            for n, name in enumerate(told["names"]):
                for k, (story, right, wrong) in enumerate(told["stories"]):
                    endings = [right, wrong] if (n + k) % 2 else [wrong, right]
                    yield {"language": language, "story": story.format(n=name), "endings": endings, "right": right}

    task = {"fields": ["story"], "choices_from": "endings", "answer": "right"}
    prompts = letters("", "{story}\n\nWhich ending fits?")(None).prompts
    return Asked(prompts, 12, task, list(found()), all_cells=True)


def gsm8k(_: Any) -> Asked:
    marked = {"wrap": "#### {answer}", "of": "number"}
    asked = "{question}\n\nWork it out step by step"
    return Asked([(asked + ". End with a line like this: #### 42", marked), (asked + ", then tell the number.", "number")], 200, "gsm8k", all_cells=True)


def humaneval(_: Any) -> Asked:
    asked = [("Complete this function.\n\n{prompt}", "code"), ("Write this function in Python, whole, in a block of code:\n\n{prompt}", "code")]
    return Asked(asked, 256, "humaneval")


def review(_: Row) -> Asked:
    item = "Goal: {goal}\nTool: {tool}\nArguments: {arguments}\nResponse: {response}\n\nWhat came of it?\n{choices}\n\n"
    wrapped = {"wrap": "Answer: {answer}", "of": "letters"}
    return Asked([(item + "Reply like this: Answer: C", wrapped), (item + 'Reply with "Answer: " and one letter.', wrapped)], 16, "teval-review")


SHOWN = "Tell Ann by mail how warm it is in Oslo.", (
    '[{"id": 0, "name": "Weather.at", "args": {"place": "Oslo"}}, {"id": 1, "name": "Mail.send", "args": {"to": "Ann", "subject": "Oslo"}}]'
)
"""A request and its plan, as an example to the model."""


def plan(_: Row) -> Asked:
    request, calls = SHOWN
    one = f"A plan is a JSON list of calls. Request: {request}\nPlan: {calls}\n\nTools:\n{{tools}}\n\nRequest: {{request}}\nPlan:"
    other = f"Tools:\n{{tools}}\n\nRequest: {{request}}\n\nWrite a plan like this one, a JSON list of calls:\n{calls}"
    return Asked([(one, "plan"), (other, "plan")], 160, "teval-plan")


def calls_of(rows: Row) -> Iterator[tuple[str, str, Row, Row]]:
    """Of every plan its request, and every tool's name, description and arguments as called."""
    for row in rows.values():
        (fields, _, _) = TASKS["teval-plan"].hub.convert(row)
        tools = dict(ast.literal_eval(str(fields["tools"])))
        for step in row["ground_truth"]:
            if step["name"] in tools and isinstance(step["args"], dict):
                yield str(fields["request"]), step["name"], tools[step["name"]], step["args"]


def told(tool: Row) -> str:
    """A tool in a few lines."""
    told = [f"{tool['name']}: {tool['description']}"]
    told += [f"- {each['name']} ({each['type']}): {each['description']}" for each in tool["required_parameters"] + tool["optional_parameters"]]
    return "\n".join(told)


def once(found: Iterator[Row]) -> list[Row]:
    """Rows that differ, a seeded choice of them."""
    different = list({json.dumps(row, sort_keys=True): row for row in found}.values())
    return random.Random(0).sample(different, ITEMS)


def instruct(rows: Row) -> Asked:
    def found() -> Iterator[Row]:
        for _, name, tool, args in calls_of(rows):
            if args:
                wanted = " and ".join(f"{key} {value}" for key, value in args.items())
                yield {"tools": told(tool), "request": f"Call {name} with {wanted}.", "call": {"name": name, "args": args}}

    shown = 'Call Mail.send with to Ann and subject Oslo.\n{"goal": "send a mail", "name": "Mail.send", "args": {"to": "Ann", "subject": "Oslo"}}'
    one = f"Write calls as JSON.\n\n{shown}\n\n{{tools}}\n\n{{request}}"
    other = f"{{tools}}\n\nThis is how a call is written:\n{shown}\n\nNow write this one. {{request}}"
    task = {"kind": "call", "fields": ["tools", "request"], "answer": "call"}
    return Asked([(one, "call"), (other, "call")], 80, task, once(found()))


def retrieve(rows: Row) -> Asked:
    def found() -> Iterator[Row]:
        for row in rows.values():
            fields, _, _ = TASKS["teval-plan"].hub.convert(row)
            names = row["meta"]["API_list"]
            if len(names) > 1:
                yield {"request": fields["request"], "names": names, "name": row["ground_truth"][0]["name"]}

    task = {"fields": ["request"], "choices_from": "names", "answer": "name"}
    asked = "Request: {request}\n\nTools:\n{choices}\n\nWhich tool is called first?"
    return Asked([(asked + end, "text") for end in (" Reply with its name only.", "\nName:")], 24, task, once(found()))


def understand(rows: Row) -> Asked:
    def found() -> Iterator[Row]:
        for request, _, tool, args in calls_of(rows):
            if args:
                yield {"request": request, "tools": told(tool), "args": str(args)}

    task = {"kind": "text", "score": "similarity", "fields": ["request", "tools"], "answer": "args"}
    asked = "Request: {request}\n\nTool:\n{tools}\n\nWrite the arguments of the call"
    return Asked([(asked + end, "text") for end in (" as {'key': 'value'}.", ", a Python dict:")], 48, task, once(found()))


def reason(rows: Row) -> Asked:
    def found() -> Iterator[Row]:
        for row in rows.values():
            fields, _, _ = TASKS["teval-review"].hub.convert(row)
            thought = row["ground_truth"]["thought"].strip()
            if thought:
                yield {**fields, "response": str(fields["response"])[:400], "thought": thought}

    task = {"kind": "text", "score": "similarity", "fields": ["goal", "tool", "arguments", "response"], "answer": "thought"}
    item = "Goal: {goal}\nTool: {tool}\nArguments: {arguments}\nResponse: {response}\n\n"
    keyed = {"wrap": '{"thought": "{answer}"}', "of": "text"}
    return Asked(
        [(item + "What do you think of the response? One or two sentences.", "text"), (item + 'Reply with JSON, such as {"thought": "It worked."}', keyed)],
        48, task, once(found()),
    )  # fmt: skip


def root(square: int) -> str:
    """Of a whole number, in LaTeX and as far out of the root as it goes."""
    out = max(n for n in range(1, math.isqrt(square) + 1) if square % (n * n) == 0)
    inner = square // (out * out)
    return str(out) if inner == 1 else f"{'' if out == 1 else out}\\sqrt{{{inner}}}"


def ratio(a: int, b: int) -> str:
    shared = math.gcd(a, b)
    return str(a // b) if a % b == 0 else f"\\frac{{{a // shared}}}{{{b // shared}}}"


def geometry(_: Row) -> Asked:
    rng = random.Random(0)
    found: dict[str, str] = {}
    while len(found) < ITEMS:
        a, b, c = (rng.randrange(2, 20) for _ in range(3))
        kinds = [
            (f"The legs of a right triangle are {a} and {b} long. How long is its hypotenuse?", root(a * a + b * b)),
            (f"A right triangle has a hypotenuse of {a + b} and a leg of {a}. How long is the other leg?", root(b * b + 2 * a * b)),
            (f"What is the area of a circle with a radius of {a}?", f"{a * a}\\pi"),
            (f"What is the circumference of a circle with a diameter of {a}?", f"{a}\\pi"),
            (f"How long is the diagonal of a square with a side of {a}?", root(2 * a * a)),
            (f"Two angles of a triangle have {3 * a} and {4 * b} degrees. How many has the third?", str(180 - 3 * a - 4 * b)),
            (f"The parallel sides of a trapezoid are {a} and {b} long, its height is {c}. What is its area?", ratio((a + b) * c, 2)),
            (f"The diagonals of a rhombus are {a} and {b} long. What is its area?", ratio(a * b, 2)),
            (f"Two triangles are similar. Sides of {a} and {b} in the first match {c} and x in the second. What is x?", ratio(b * c, a)),
            (f"How many degrees has each interior angle of a regular polygon with {a + 1} sides?", ratio(180 * (a - 1), a + 1)),
            (f"What is the volume of a cylinder with a radius of {a} and a height of {b}?", f"{a * a * b}\\pi"),
        ]
        question, gold = kinds[len(found) % len(kinds)]
        found[question] = gold
    boxed = {"wrap": "\\boxed{{answer}}", "of": "expression"}
    asked = [("{problem} Put the answer into \\boxed{}.", boxed), ("{problem} Reply with the answer only.", "expression")]
    return Asked(asked, 96, {"kind": "expression", "fields": ["problem"], "answer": "gold"}, [{"problem": q, "gold": gold} for q, gold in found.items()])


def texts(_: Row) -> Asked:
    rows = ({**each.fields, "gold": each.choices[each.answer]} for each in load_task("sciq").split("validation").examples if each.fields["support"])
    task = {"kind": "text", "score": "f1", "fields": ["question", "support"], "answer": "gold"}
    asked = "{support}\n\n{question}\n"
    return Asked([(asked + "Answer in a few words.", "text"), (asked + "Answer:", "text")], 16, task, once(rows))


ASKED: dict[str, tuple[str, Callable[[Any], Asked]]] = {
    "hellaswag": ("", letters("hellaswag", "{activity}: {context}\n\nWhich ending fits?")), "piqa": ("", letters("piqa", "{goal}")),
    "winogrande": ("", letters("winogrande", "{sentence}\n\nWho or what is _?")),
    "race": ("race", letters("race-high", "{article}\n\n{question}")), "stories": ("", stories),
    "gsm8k": ("gsm8k", gsm8k), "humaneval": ("humaneval", humaneval),
    "review": ("review", review), "plan": ("plan", plan), "instruct": ("plan", instruct), "retrieve": ("plan", retrieve),
    "understand": ("plan", understand), "reason": ("review", reason), "geometry": ("", geometry), "texts": ("", texts),
}  # fmt: skip
"""Which public rows each needs."""


def cached(hub: Path, asked: Asked, rows: Any) -> None:
    """The rows of a built-in task, as the hub's client keeps them."""
    source = TASKS[str(asked.task)].hub
    home = hub / f"datasets--{source.repo.replace('/', '--')}"
    snapshot, split = "0" * 40, source.splits[asked.split]
    whole = split.endswith(".json")
    target = home / "snapshots" / snapshot / (split if whole else f"{source.config}/{split}/0000.parquet")
    target.parent.mkdir(parents=True, exist_ok=True)
    if whole:
        target.write_text(json.dumps(rows), encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    ref = home / "refs" / source.revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(snapshot)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("names", nargs="*", default=list(ASKED), metavar="NAME", help=", ".join(ASKED))
    asked.add_argument("--rows", nargs="*", default=[], metavar="PART=FILE", help="race, gsm8k, humaneval, plan, review: public rows, JSON (lines), gzip too")
    asked.add_argument("--out", type=Path, required=True)
    got = asked.parse_args()
    rows = {part: rows_of(Path(path)) for part, _, path in (each.partition("=") for each in got.rows)}
    out = got.out.absolute()
    for name in got.names:
        part, make = ASKED.get(name) or asked.error(f"{name}: expected {', '.join(ASKED)}")
        if part and part not in rows:
            asked.error(f"{name} needs --rows {part}=FILE")
        found, folder = make(rows.get(part, {})), out / "tasks" / name
        folder.mkdir(parents=True, exist_ok=True)
        task = found.task
        if isinstance(task, dict):
            data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
            (folder / "rows.jsonl").write_text(data, encoding="utf-8")
            description = {"name": name, **task, "files": {"test": "rows.jsonl"}, "prompts": "prompts.yaml"}
            task = str(folder / "task.yaml")
            Path(task).write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
        elif part:
            cached(out / "hub", found, rows[part])
        prompts = {"task": task, "test": [{"text": text, "answer": answer} for text, answer in found.prompts]}
        (folder / "prompts.yaml").write_text(yaml.safe_dump(prompts, sort_keys=False), encoding="utf-8")
        run = {
            "name": name, "task": task, "prompts": str(folder / "prompts.yaml"), "model": MODEL, "dtype": "float32", "arms": {"base": {}},
            "evaluate": {
                "split": found.split, "scorers": ["generation"], "max_new_tokens": found.limit,
                "examples": len(found.rows) or (164 if name == "humaneval" else ITEMS), "run_code": name == "humaneval",
                "budget": {"kind": "full"} if found.all_cells else {"kind": "balanced", "cells": ITEMS},
                "embeddings": "sentence-transformers/all-MiniLM-L6-v2",
            },
        }  # fmt: skip
        (folder / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False), encoding="utf-8")
        settings = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(out / "hub")}
        done = subprocess.run([sys.executable, "-m", "paft", "run", folder / "run.yaml", "--out", out / name], env=os.environ | settings)
        if done.returncode:
            sys.exit(done.returncode)


if __name__ == "__main__":
    main()
