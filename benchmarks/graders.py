"""Which option an answer names, or what a call is worth: the graders of OpenCompass and T-Eval, untouched, beside paft's parsers.

    sh benchmarks/peers.sh opencompass peers/opencompass
    python benchmarks/graders.py --peers peers --runs runs/piqa runs/race       # first_option_postprocess, the reading of its choice tasks
    python benchmarks/graders.py --peers peers --review review_str_v2.json      # T-Eval's grader of reviews
    python benchmarks/graders.py --peers peers --retrieve --instruct            # T-Eval's graders of both, on tools of our own making

Of a run, the free answers of its first arm are judged, under prompts that ask for a capital letter. To them come made ones (FORMS), each around
the right and a wrong option of every example. Ends with a table of how the two readings differ, and which forms differ how.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet

from paft.config import load_run_config
from paft.materials import prepare
from paft.tasks.answers import LETTERS, AnswerFormat, ChoiceText, Labels, ToolCall, Wrapped
from paft.tasks.calls import FunctionCall, write_json
from paft.tasks.types import Example

FORMS = (
    "{x}", "{x}.", "({x})", "{x})", "**{x}**", "\"{x}\"", "{x}\n", "{x}: {t}", "{x}. {t}", "{x}\n\n{t}", "{x} because it fits.", "{x} is correct.", "Sure! {x}",
    "{l}", "{t}", "{x} {x} {x}", "{x}, not {y}.", "{x} or {y}", "{x}\n{y}", "Not {y} but {x}.", "Option {x}", "Option {x} is right.", "I would choose {x}.",
    "It must be {x}.", "The answer is {x}.", "The answer is ({x}).", "The answer is: {x}", "The answer is {l}.", "The correct answer is {x}.",
    "The correct answer is: **{x}**", "The correct option is {x}.", "A good question. The answer is {x}.", "I think so. {x}", "{y} is wrong. The answer is {x}.",
    "Let me think. The best choice is {x}.", "The correct answer is $\\boxed{{{x}}}$.", "<think>Is it {y}?</think>\n{x}", "答案是{x}",
    "Both {x} and {y}", "None of them.", "I cannot tell.", "",
)  # fmt: skip
"""{x}: a letter or name, {y}: another, {l}: in lower case, {t}: the text of its choice."""

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

JUDGE = """
import json, sys
from opencompass.datasets.teval.evaluators import InstructEvaluator, ReasonRetrieveUnderstandEvaluator, ReviewEvaluator
from opencompass.utils.text_postprocessors import first_option_postprocess

class Retrieve(ReasonRetrieveUnderstandEvaluator):
    def __init__(self):  # names are compared without its embedding model
        self.default_prompt_type, self.eval_type = "str", "retrieve"

def retrieved(text, name):
    row = {"prediction": text, "ground_truth": {"name": name}}
    judge = Retrieve()
    return judge._post_process([judge._process_response(row)[0]])["name"]

def reviewed(text, _):
    row = {"template": "", "prediction": text, "ground_truth": {"answer": ""}, "meta_data": {"response_format": "str"}}
    return ReviewEvaluator("")._process_response(row).pred or ""

def instructed(text, gold):
    template = {"thought": "goal", "action": "name", "args": "args"}
    row = {"template": template, "prediction": text, "ground_truth": gold, "meta_data": {"response_format": "json"}}
    judge = InstructEvaluator("")
    told = judge._evaluate(judge._process_response(row))
    return [told["json_format_metric"], told["json_args_em_metric"]]

judge = {"instruct": instructed, "letters": first_option_postprocess, "review": reviewed, "retrieve": retrieved}[sys.argv[1]]
for line in sys.stdin:
    print(json.dumps(judge(*json.loads(line))))
"""


@dataclass(frozen=True)
class Said:
    """One answer to one example, and how it was asked for; form: what it was made of."""

    text: str
    example: Example
    answer: AnswerFormat
    form: str = ""


def judged(python: Path, how: str, asked: Sequence[tuple[str, object]]) -> list[Any]:
    """What the grader says to each (text, options, right name or right call)."""
    sent = "".join(json.dumps(each) + "\n" for each in asked)
    settings = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([python, "-c", JUDGE, how], input=sent, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def recorded(run: Path) -> list[Said]:
    """The free answers of a run's first arm under prompts that ask for a capital letter."""
    grid = prepare(load_run_config(run / "config.yaml")).grid
    prompts = {each.id: each for each in grid.templates if each.inner_answer == Labels()}
    examples = {each.id: each for each in grid.examples}
    told = pyarrow.parquet.read_table(run / "scores.parquet").to_pylist()
    return [
        Said(each["completion"], examples[each["example"]], prompts[each["prompt"]].answer)
        for each in told
        if each["arm"] == told[0]["arm"] and each["prompt"] in prompts and each["completion"] is not None
    ]


def made(examples: Sequence[Example], answer: AnswerFormat, lead: str = "", *, names: bool = False) -> list[Said]:
    """Every form around the right option of every example, and around a wrong one."""
    found = []
    for example in examples:
        count = len(example.choices)
        for c in (example.answer, (example.answer + 1) % count):
            options = example.choices if names else LETTERS
            x, y = options[c], options[(c + 1) % count]
            told = {"x": x, "y": y, "l": x.lower(), "t": example.choices[c]}
            found += [Said(lead + form.format(**told), example, answer, lead + form) for form in FORMS]
    return found


def calls() -> list[tuple[Said, dict[str, Any]]]:
    """Calls of tools of our own making, right and changed in eight ways, in every layout; each with the right one."""
    found = []
    for n, name in enumerate(f"{tool}.{call}" for tool in TOOLS for call in CALLS):
        args = dict(list({"place": f"town {n}", "most": n, "near": n % 2 == 0, "price": n / 4, "kinds": ["a", {"b": None}], "note": ""}.items())[n % 3 :])
        example = Example(name, {}, (write_json(FunctionCall(name, args)),), 0, True)
        for way, (called, given) in {
            "right": (name, args), "another name": ("Other.tool", args), "lower case": (name.lower(), args), "all changed": (name, dict.fromkeys(args, "x")),
            "one left out": (name, dict(list(args.items())[1:])), "one more": (name, {**args, "more": 1}), "as texts": (name, {each: str(args[each]) for each in args}),
            "args as text": (name, json.dumps(args)), "no args": (name, None),
        }.items():  # fmt: skip
            told = {"goal": "why", "name": called, "args": given}
            j = json.dumps(told)
            signs = {"j": j, "p": repr(told), "cut": j[:-3], "other": json.dumps({**told, "name": "Third.tool"})}
            found += [(Said(layout.format(**signs), example, ToolCall(), f"{layout} ({way})"), {"action": name, "args": args}) for layout in LAYOUTS]
    return found


def reading(said: Said, *, names: bool = False) -> tuple[str, str]:
    """The option that paft reads, or nothing, and the status."""
    parsed = said.answer.parse(said.text, said.example)
    if parsed.choice is None:
        return "", parsed.status
    return (said.example.choices if names else LETTERS)[parsed.choice], "valid"


def verdict(option: str, right: str) -> str:
    return "none" if not option else "right" if option == right else "wrong"


def compare(title: str, all_said: Sequence[Said], there: Sequence[str | float], *, names: bool = False, show: int) -> list[str]:
    """Lines of the table; of a grader that says 0 or 1, a name that is not the right one counts as none."""
    kinds: dict[tuple[str, str], list[Said]] = defaultdict(list)
    same = 0
    for said, other in zip(all_said, there, strict=True):
        right = said.example.choices[said.example.answer] if names else LETTERS[said.example.answer]
        here, status = reading(said, names=names)
        if (other == float(here == right)) if names else (here == other):
            same += 1
        else:
            ours = verdict(here, right) if here else status
            kinds[ours, ("wrong", "right")[int(other)] if names else verdict(str(other), right)].append(said)
    items = len({said.example.id for said in all_said})
    lines = [f"| {title} | {items} | {len(all_said)} | the same | the same | {same} |"]
    for (ours, theirs), some in sorted(kinds.items(), key=lambda each: -len(each[1])):
        lines.append(f"| {title} | {items} | {len(all_said)} | {ours} | {theirs} | {len(some)} |")
        forms = Counter(said.form for said in some if said.form)
        print(f"{title}: {ours} here, {theirs} there: {len(some)}")
        print(*(f"  {count} of {form!r}" for form, count in forms.most_common()), sep="\n")
        texts = list(dict.fromkeys(said.text for said in some if not said.form))
        print(*(f"  {text!r}" for text in texts[:: max(1, len(texts) // max(1, show))]), sep="\n", flush=True)
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--peers", type=Path, required=True, help="folder of environments made by peers.sh")
    asked.add_argument("--runs", nargs="*", type=Path, default=[])
    asked.add_argument("--review", type=Path, help="rows of T-Eval's part review")
    asked.add_argument("--retrieve", action="store_true")
    asked.add_argument("--instruct", action="store_true")
    asked.add_argument("--show", type=int, default=6, help="recorded answers printed of each kind of difference")
    got = asked.parse_args()
    python = got.peers.absolute() / "opencompass" / "bin" / "python"
    lines = []

    def by_letter(title: str, how: str, all_said: Sequence[Said]) -> None:
        options = ["".join(LETTERS[: len(said.example.choices)]) for said in all_said]
        there = judged(python, how, [(said.text, each) for said, each in zip(all_said, options, strict=True)])
        lines.extend(compare(title, all_said, there, show=got.show))

    for run in got.runs:
        said = recorded(run)
        by_letter(f"{run.name}, recorded", "letters", said)
        by_letter(f"{run.name}, made", "letters", made(list({each.example.id: each.example for each in said}.values()), Labels()))
    if got.review is not None:
        rows = json.loads(got.review.read_text(encoding="utf-8"))
        five = "one", "two", "three", "four", "five"
        reviews = [Example(key, {}, five, LETTERS.index(row["ground_truth"]["answer"])) for key, row in rows.items()]
        by_letter("T-Eval review, made", "review", made(reviews, Wrapped("Answer: {answer}", Labels()), "Answer: "))
    if got.retrieve:
        tools = [f"{tool}.{call}" for tool in TOOLS for call in CALLS] + ["FinishAction"]
        finds = [Example(tool, {}, tuple(tools[(c + 7 * n) % len(tools)] for n in range(5)), 0) for c, tool in enumerate(tools)]
        said = made(finds, ChoiceText(), names=True)
        there = judged(python, "retrieve", [(each.text, each.example.choices[each.example.answer]) for each in said])
        lines += compare("T-Eval retrieve, made", said, there, names=True, show=got.show)
    if got.instruct:
        same, differ, several = 0, Counter[tuple[str, str]](), calls()
        for (said, _), (form, worth) in zip(several, judged(python, "instruct", [(each.text, gold) for each, gold in several]), strict=True):
            parsed = said.answer.parse(said.text, said.example)
            if (parsed.status == "valid", round(parsed.worth(said.example), 9)) == (bool(form), round(worth, 9)):
                same += 1
            else:
                differ[f"{parsed.status} here, {'some form' if form else 'none'} there", said.form.rpartition(" (")[0]] += 1
        lines.append(f"| T-Eval instruct, made | {len({said.example.id for said, _ in several})} | {len(several)} | the same | the same | {same} |")
        print(*(f"T-Eval instruct: {how}: {count} of {form!r}" for (how, form), count in differ.most_common()), sep="\n")
    print("\n| answers | items | in all | paft reads | the other | |")
    print("| --- | ---: | ---: | --- | --- | ---: |")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
