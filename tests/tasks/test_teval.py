"""T-Eval's review, plan and instruct parts: rows in the layout of its repository, and its own way to judge, written anew."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from paft.tasks import load_task
from paft.tasks.answers import answer_format_from
from paft.tasks.table import TASKS
from paft.tasks.types import Example
from tests.tasks.test_hub import load

OUTCOMES = ("Fine", "Broken inside", "Wrong input", "Beside the point", "Cannot be done")


def row(n: int, answer: str = "B") -> dict[str, Any]:
    system = "Judge the call.\n\n" + "\n".join(
        f"{x}: {t} -- so it was." for x, t in zip("ABCDE", OUTCOMES, strict=True)
    )
    item = f"Goal: find {n}\nName: Search.find\nArgs: {{'n': {n}}}\nResponse: line one\nName: not this\n"
    chat = [{"role": "system", "content": system + "\n\nAnswer: [one]\n"}, {"role": "user", "content": item}]
    return {"template": "", "meta_data": {}, "ground_truth": {"answer": answer, "thought": ""}, "origin_prompt": chat}


def cached(root: Path, name: str) -> Path:
    """Where a file of T-Eval's repository lies in the hub's cache below `root`."""
    home, revision = root / "datasets--lovesnowbest--T-Eval", "c0ffee" * 6 + "c0ff"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(revision)
    file = home / "snapshots" / revision / "data" / name
    file.parent.mkdir(parents=True)
    return file


def test_rows_are_read_from_the_file_of_the_repository(tmp_path):
    file = cached(tmp_path, "review_str_v2.json")
    cut = row(3)
    cut["origin_prompt"][1]["content"] = "Goal: nothing else"
    rows = {"a": row(1, "C"), "b": row(2, "A"), "c": cut, **{str(n): row(n) for n in range(10, 460)}}
    for n in range(10, 160):  # three calls for each of 50 goals
        item = rows[str(n)]["origin_prompt"][1]
        item["content"] = item["content"].replace(f"find {n}", f"find {10 + n % 50}")
    file.write_text(json.dumps(rows), encoding="utf-8")
    whole, train, dev, test, lost = load(
        tmp_path,
        *(f"teval-review{part} hub" for part in (" test", "-cut train", "-cut validation", "-cut test", " train")),
    )
    assert whole["rows"][0][1:] == [
        {"goal": "find 1", "tool": "Search.find", "arguments": "{'n': 1}", "response": "line one\nName: not this"},
        [f"{text} -- so it was." for text in OUTCOMES],
        2,
    ]
    assert [len(part["rows"]) for part in (whole, train, dev, test)] == [452, 240, 40, 160]
    for what in (lambda each: each[0], lambda each: each[1]["goal"]):  # no row is on two sides, nor a goal
        sides = [{what(each) for each in part["rows"]} for part in (train, dev, test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
    goals = [[each[1]["goal"] for each in part["rows"]] for part in (train, dev, test)]
    assert all(len(set(part)) < len(part) for part in (goals[0], goals[2]))
    assert whole["rejected"] == [["test[2]", "ValueError: the item is not Goal, Name, Args, Response"]]
    assert "no labelled split 'train'" in lost["error"]
    for damaged in ("{", "[1, 2]"):
        file.write_text(damaged, encoding="utf-8")
        (found,) = load(tmp_path, "teval-review test hub")
        assert (found["kind"], "no readable data/review_str_v2.json" in found["error"]) == ("AssetError", True)


def plan_row(n: int, **changes: Any) -> dict[str, Any]:
    tools = [
        ["Shop.find", {"name": "Shop.find", "description": "Finds: [a], 'b'."}],
        ["List.sort", {"name": "List.sort"}],
    ]
    steps = [
        {"id": 1, "prev": [0], "name": "List.sort", "args": {}},
        {"id": 0, "prev": [], "name": "Shop.find", "args": {"thing": f"lamp {n}", "cheap": True}},
        {"id": 2, "prev": [1], "name": "FinishAction", "args": {}},
    ]
    chat = [
        {"role": "system", "content": f"These can be called:\n{tools}\nWrite a plan.\n[[no\nlist]]"},
        {"role": "user", "content": f" Find lamp {n}. "},
    ]
    meta = {"prompt_type": "json", "API_list": ["Shop.find", "List.sort"]}
    return {"meta": meta, "ground_truth": steps, "origin_prompt": chat, **changes}


def test_plans_are_read_from_the_file_of_the_repository(tmp_path):
    file = cached(tmp_path, "plan_json_v2.json")
    unoffered = [{"id": 0, "name": "Mail.send", "args": {}}]
    wrong = {
        "x": plan_row(2, ground_truth=unoffered),
        "y": plan_row(3, ground_truth=[]),
        "z": plan_row(4, origin_prompt=[{"role": "user", "content": "Find it."}]),
    }
    rows = {"a": plan_row(1), **wrong, **{str(n): plan_row(n) for n in range(10, 510)}}
    file.write_text(json.dumps(rows), encoding="utf-8")
    whole, train, test = load(tmp_path, "teval-plan test hub", "teval-plan-cut train hub", "teval-plan-cut test hub")
    _, fields, choices, answer = whole["rows"][0]
    assert (fields["request"], fields["names"], answer) == ("Find lamp 1.", "Shop.find\nList.sort", 0)
    assert fields["tools"].startswith("[['Shop.find', {'name': 'Shop.find'")
    assert choices == [
        '[{"id": 0, "name": "Shop.find", "args": {"thing": "lamp 1", "cheap": true}}, {"id": 1, "name": "List.sort", "args": {}}]'
    ]
    assert [reason for _, reason in whole["rejected"]] == [
        *["ValueError: the right plan is empty, or calls what is not offered"] * 2,
        "ValueError: no list of tools in the system text",
    ]
    assert (len(whole["rows"]), len(train["rows"]), len(test["rows"])) == (501, 260, 180)


API = "{'name': 'Stay.find', 'description': 'Finds: [rooms].\\n', 'required_parameters': [{'name': 'place', 'type': 'STRING'}]}"


def instruct_row(n: int, response_format: str = "json", **changes: Any) -> dict[str, Any]:
    layout = {
        "json": '{"goal": "why", "name": "api", "args": "its args"}',
        "string": "goal: why\n\nname: api\n\nargs: its args",
    }
    system = f"You have access to the following API:\n{API}\nPlease generate the response in the following format:\n{layout[response_format]}\n"
    chat = [
        {"role": "system", "content": system},
        {
            "role": "user",
            "content": f" Call the function Stay.find with the parameter as follows: 'place' is 'Berlin {n}'. ",
        },
    ]
    call = {"action": "Stay.find", "args": {"place": f"Berlin {n}", "most": n}}
    meta = {"response_format": response_format}
    return {"template": {}, "meta_data": meta, "ground_truth": call, "origin_prompt": chat, **changes}


def test_instructions_are_read_from_the_file_of_the_repository_and_asked_once(tmp_path):
    file = cached(tmp_path, "instruct_v2.json")
    chat = instruct_row(2)["origin_prompt"]
    wrong = {
        "v": instruct_row(2, origin_prompt=[{"role": "system", "content": "You have these APIs: a, b."}, chat[1]]),
        "w": instruct_row(3, origin_prompt=chat[:1]),
        "x": instruct_row(4, ground_truth={"action": "Stay.find", "args": "{}"}),
        "y": instruct_row(5, ground_truth={"name": "Stay.find", "args": {}}),
        "z": instruct_row(1, ground_truth={"action": "Stay.find", "args": {}}),
    }
    both = {f"{n} {kind}": instruct_row(n, kind) for kind in ("string", "json") for n in range(10, 680)}
    for n in range(10, 340):  # requests of two APIs
        system, user = instruct_row(n)["origin_prompt"]
        other = {**system, "content": system["content"].replace("Stay", "Rest")}
        both[f"{n} other"] = instruct_row(n, origin_prompt=[other, user])
    file.write_text(json.dumps({"a": instruct_row(1), **wrong, **both}), encoding="utf-8")
    whole, train, dev, test = load(
        tmp_path, "teval-instruct test hub", "teval-instruct-cut train hub", "teval-instruct-cut validation hub", "teval-instruct-cut test hub"
    )  # fmt: skip
    _, fields, choices, answer = whole["rows"][0]
    assert fields == {
        "request": "Call the function Stay.find with the parameter as follows: 'place' is 'Berlin 1'.",
        "tools": API,
    }
    assert (choices, answer) == (['{"name": "Stay.find", "args": {"place": "Berlin 1", "most": 1}}'], 0)
    assert [reason for _, reason in whole["rejected"]] == [
        "ValueError: not a system text with an API and a format, and a request",
        "ValueError: not enough values to unpack (expected 2, got 1)",
        "ValueError: no request, or no call with action and args",
        "KeyError: 'action'",
        "ValueError: asked before, with another right answer",
    ]
    assert [len(part["rows"]) for part in (whole, train, dev, test)] == [1001, 400, 60, 200]
    asked = [{row[1]["request"] for row in part["rows"]} for part in (train, dev, test)]
    assert len(set.union(*asked)) == sum(map(len, asked))


def original(completion: str) -> str | None:
    """What stands after the first colon, or the whole; its first character, if it is one of five."""
    said = completion[completion.find(":") + 1 :].strip()
    return said[0] if said and said[0] in "ABCDE" else None


SAME = ("Answer: {x}", "Answer: {x}.", "Answer: {x}: {text}", "Answer: {x}. {text}", "Answer: {x} because it did so", "Answer:{x}", "Answer:\n{x}", "Answer: {x}\n\nThe tool replied.", "", "Answer:", "I cannot say.", "The answer is {x}", "answer")  # fmt: skip
THEIRS = ("{x}", "Answer: {x} and {y}", "Answer: {x}\nAnswer: {y}", "Answer: {x}bsolutely not")
"""The first letter counts there, whatever follows it and whether or not it was asked for: also that of a word, and of two answers."""
OURS = (
    "**Answer:** {x}",
    "Answer: **{x}**",
    "Answer: ({x})",
    "Answer: [{x}]",
    "answer: {z}",
    "Goal: done\nAnswer: {x}",
)
"""Marked, bracketed, in lower case, or after another line with a colon an answer is still the answer here."""


@pytest.mark.parametrize("seed", [0, 1])
def test_where_verdicts_differ_from_the_original_graders(seed):
    """2,100 answers: alike where the form is kept; apart in the two ways that docs/tasks.md names, and in no other."""
    form, rng = answer_format_from({"wrap": "Answer: {answer}", "of": "letters"}), random.Random(seed)
    for _ in range(50):
        gold = rng.randrange(5)
        example = Example("e", {}, OUTCOMES, gold)
        for kind, forms in (("same", SAME), ("theirs", THEIRS), ("ours", OURS)):
            for text in forms:
                x = rng.randrange(5)
                y = rng.choice([each for each in range(5) if each != x])
                said = text.format(x="ABCDE"[x], y="ABCDE"[y], z="abcde"[x], text=OUTCOMES[x])
                found, wanted = form.parse(said, example).choice, original(said)
                ours = "ABCDE"[found] if found is not None and found >= 0 else None
                if kind == "same":
                    assert ours == wanted, said
                else:
                    assert (ours, wanted) == ((None, "ABCDE"[x]) if kind == "theirs" else ("ABCDE"[x], None)), said


ROWS = Path(__file__).parents[3] / "shared" / "data" / "teval.review_str_v1.json.gz"


@pytest.mark.skipif(not ROWS.exists(), reason="T-Eval's rows are not here")
def test_all_public_rows_can_be_read():
    with gzip.open(ROWS, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    parts = [TASKS["teval-review"].hub.convert(each) for each in rows.values()]
    assert len(parts) == 487
    assert {len(choices) for _, choices, _ in parts} == {5}
    assert all(fields["goal"] and fields["tool"] for fields, _, _ in parts)
    assert ["ABCDE"[answer] for _, _, answer in parts] == [each["ground_truth"]["answer"] for each in rows.values()]


def test_the_other_parts_become_tasks_as_the_documents_show(tmp_path, monkeypatch):
    """Their rows are made here as their grader reads them: `ground_truth` with thought, name and args, an object or its JSON."""
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    section = page[page.index("## Reason, retrieve, understand") :]
    code, described = section.split("```python\n")[1].split("```")[0], section.split("```yaml\n")[1].split("```")[0]
    gold = {"thought": "First I look.", "name": "Shop.find", "args": {"thing": "a lamp"}}
    turns = [{"role": "system", "content": "Call Shop.find or List.sort."}, {"role": "user", "content": "A lamp?"}]
    (tmp_path / "T-Eval" / "data").mkdir(parents=True)
    for part in ("reason", "retrieve", "understand"):
        rows = {
            "a": {"origin_prompt": turns, "ground_truth": gold},
            "b": {"origin_prompt": turns, "ground_truth": json.dumps(gold)},
        }
        (tmp_path / "T-Eval" / "data" / f"{part}_str_v2.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "tasks.md", "exec"), {})
    spec = yaml.safe_load(described)
    retrieve = {key: value for key, value in spec.items() if key not in ("kind", "score")} | {"choices_from": "names"}
    for name, changes in (
        ("reason", spec),
        ("understand", {**spec, "answer": "args"}),
        ("retrieve", {**retrieve, "answer": "name"}),
    ):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({**changes, "files": {"test": f"{name}.jsonl"}}))
    found = {
        part: load_task(tmp_path / f"{part}.yaml").split("test").examples
        for part in ("reason", "understand", "retrieve")
    }
    assert [(e.choices[0], e.score) for e in found["reason"]] == [("First I look.", "similarity")] * 2
    assert found["understand"][0].choices == ("{'thing': 'a lamp'}",)
    assert (found["retrieve"][0].choices, found["retrieve"][0].answer) == (
        ("FinishAction", "List.sort", "Shop.find"),
        2,
    )
