"""SQuAD's grader (v1.1) and T-Eval's of instructions and thoughts, written anew: where verdicts here are the same, and the ways in which they differ.

docs/tasks.md counts these ways on outputs that the originals graded.
"""

from __future__ import annotations

import ast
import json
import re
import string
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from paft.tasks.answers import ChoiceText, ToolCall, Wrapped
from paft.tasks.calls import FunctionCall, write_json, write_python
from paft.tasks.embeddings import judge_by
from paft.tasks.types import Example
from tests import tiny

GOLDS = (("Denver Broncos",), ("the 1990s", "1990s"), ("New York City", "NYC"), ("U.S. Navy",), ("co-operation",), ("$5.2 million",), ("a copper statue of Christ", "statue"))  # fmt: skip
WRONG = "twelve green bottles"


def squad(said: str, golds: tuple[str, ...]) -> tuple[float, float]:
    """Exact match and F1, best over the right texts."""

    def words(text: str) -> list[str]:
        kept = "".join(each for each in text.lower() if each not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", kept).split()

    def f1(a: list[str], b: list[str]) -> float:
        shared = (Counter(a) & Counter(b)).total()
        return 2 * shared / (len(a) + len(b)) if shared else 0

    return max(float(words(said) == words(gold)) for gold in golds), max(f1(words(said), words(gold)) for gold in golds)


def ours(said: str, golds: tuple[str, ...]) -> tuple[float, float]:
    first, *more = golds
    both = [Example("e", {}, (first,), 0, True, accepted=tuple(more), score=score) for score in ("exact", "f1")]
    exact, f1 = (ChoiceText().parse(said, each).worth(each) for each in both)
    return exact, f1


SAME = ("{x}", "{x}.", '"{x}"', "**{x}**", "the {x}", "  {x}  ", "{x}\n", "```\n{x}\n```", "{x} of the old days", "in {x}", "{x} {x}", "It was {x}, I think.", "{w}", "", " \n", "...", "the")  # fmt: skip
BETTER = ("The answer is {x}.", "Answer: {x}", "**Answer:** {x}", "Sure! Here it is:\n\n{x}", "{x}\n\nIt says so further down.", "```text\n{x}\n```", "<think>Maybe {w}?</think>\n{x}")  # fmt: skip
WORSE = ("{w}\n{x}", "<think>Maybe {x}", "{w}\nQuestion: what is {x}?")


@pytest.mark.parametrize("golds", GOLDS)
def test_free_texts_beside_squads_grader(golds):
    for form in SAME:
        said = form.format(x=golds[0], w=WRONG)
        assert ours(said, golds) == pytest.approx(squad(said, golds)), said
    for form in BETTER:  # the whole prediction counts there, what stands around the answer too
        said = form.format(x=golds[0], w=WRONG)
        assert (ours(said, golds), squad(said, golds)[0]) == ((1, 1), 0), said
    for form in WORSE:  # one line answers here
        said = form.format(x=golds[-1], w=WRONG)
        assert ours(said, golds) == (0, 0), said
        assert 0 < squad(said, golds)[1] < 1, said


def test_an_accent_is_one_sign_or_two():
    assert (ours("Cafe\u0301", ("Caf\u00e9",)), squad("Cafe\u0301", ("Caf\u00e9",))) == ((1, 1), (0, 0))


def test_a_text_of_articles_is_something_here_and_nothing_there():
    for said, here in (
        ("A", (1, 1)),
        ("a.", (1, 1)),
        ("the", (0, 0)),
        ("", (0, 0)),
        ("...", (0, 0)),
        ("the A", (0, pytest.approx(2 / 3))),
    ):
        assert ours(said, ("A",)) == here
        assert squad(said, ("A",)) == (1, 0)


def instruct(said: str, name: str, arguments: dict[str, Any]) -> tuple[bool, float]:
    """Whether an answer has the form, and what it is worth: a JSON object {"goal", "name", "args"}, nothing around it but one ```json block."""
    if "```json" in said:
        said = said[said.find("```json") + 7 :].strip("`")
    for read in (ast.literal_eval, json.loads, lambda text: json.loads(text.replace("'", '"'))):
        try:
            told = read(said)
        except Exception:
            continue
        break
    else:
        return False, 0
    try:
        _, found, given = told["goal"], told["name"], told["args"]
    except (KeyError, TypeError, IndexError):
        return False, 0
    given = given if isinstance(given, dict) else {}
    right = (found == name) + sum(given.get(key, "") == value for key, value in arguments.items())
    return True, right / (1 + len(arguments))


CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Stay.find", {"place": "Berlin"}),
    ("Mail.send", {"to": "Ann", "subject": 'hi "you"', "cc": ["Bob", "Cy"]}),
    ("Flights.find", {"from": "SFO", "price": 199.5, "direct": True}),
    ("List.sort", {}),
    ("Shop.find", {"thing": "it's a lamp", "most": 3, "note": ""}),
)
Write = Callable[[str, dict[str, Any]], str]


def told(name: object, arguments: object, **more: object) -> str:
    return json.dumps({"goal": "why", "name": name, "args": arguments, **more})


SAME_CALLS: tuple[Write, ...] = (
    told,
    lambda n, a: json.dumps({"goal": "g", "name": n, "args": a}, indent=2),
    lambda n, a: repr({"goal": "g", "name": n, "args": a}),
    lambda n, a: f"\n{told(n, a)}\n",
    lambda n, a: f"Sure.\n```json\n{told(n, a)}\n```",
    lambda n, a: told("Other.tool", a),
    lambda n, a: told(n.lower(), a),
    lambda n, a: told(n, dict.fromkeys(a, "x")),
    lambda n, a: told(n, dict(list(a.items())[1:])),
    lambda n, a: told(n, {}),
    lambda n, a: told(n, {**a, "more": 1}),
    lambda n, a: told(n, {key: str(value) for key, value in a.items()}),
    lambda n, a: told(n, {key: float(value) if type(value) is int else value for key, value in a.items()}),
    lambda n, a: told(n, json.dumps(a)),
    lambda n, a: told(n, list(a)),
    lambda n, a: told(n, None),
    lambda n, a: json.dumps({"goal": "g", "name": n}),
    lambda n, a: json.dumps({"goal": "g", "args": a}),
    lambda n, a: told(n, a)[:-3],
    lambda n, a: told(n, a)[:-1] + ",}",
    lambda n, a: told(n, a).replace('"', "'"),
    lambda n, a: f"{told(n, a)}\n{told('Other.tool', {})}",
    lambda n, a: json.dumps({"goal": "g", "call": {"name": n, "args": a}}),
    lambda n, a: f"goal: g\n\nname: {n}\n\nargs: {json.dumps(a)}",
    lambda n, a: f"I would call {n}.",
    lambda n, a: "",
)
UNREAD_THERE: tuple[Write, ...] = (
    lambda n, a: f"```\n{told(n, a)}\n```",
    lambda n, a: f"```json\n{told(n, a)}\n```\nDone.",
    lambda n, a: f"Here is the call: {told(n, a)}",
    lambda n, a: f"{told(n, a)}\nThis calls it.",
    lambda n, a: json.dumps({"name": n, "args": a}),
    lambda n, a: f"{told(n, a)}\n{told(n, a)}",
    lambda n, a: f"[{told(n, a)}]",
    lambda n, a: f"<think>hm</think>{told(n, a)}",
)


def judged(answer: Any, said: str, name: str, arguments: dict[str, Any]) -> tuple[bool, float]:
    example = Example("e", {}, (write_json(FunctionCall(name, arguments)),), 0, True)
    parsed = answer.parse(said, example)
    return parsed.status == "valid", parsed.worth(example)


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_calls_beside_the_grader_of_instructions(name, arguments):
    for write in SAME_CALLS:
        said = write(name, arguments)
        assert judged(ToolCall(), said, name, arguments) == pytest.approx(instruct(said, name, arguments)), said
    for write in UNREAD_THERE:  # looked past here
        said = write(name, arguments)
        assert (judged(ToolCall(), said, name, arguments), instruct(said, name, arguments)) == (
            (True, 1),
            (False, 0),
        ), said
    part = len(arguments) / (1 + len(arguments))
    for odd, here in (
        (f"{name} ", (True, 1)),
        (7, (False, 0)),
    ):  # space around a name is not looked at, and a name is a text
        said = told(odd, arguments)
        assert (judged(ToolCall(), said, name, arguments), instruct(said, name, arguments)) == (
            here,
            (True, pytest.approx(part)),
        )
    for changed in (arguments, {**arguments, "x": 1}, {key: [value] for key, value in arguments.items()}, {}):
        said = write_python(FunctionCall(name, changed))
        assert judged(ToolCall("python"), said, name, arguments)[1] == pytest.approx(
            instruct(told(name, changed), name, arguments)[1]
        )


@pytest.fixture
def by_text():
    judge_by(tiny.embed_by_text, "by text")
    yield
    judge_by(None)


@pytest.mark.usefixtures("by_text")
def test_texts_by_similarity_beside_the_grader_of_thoughts():
    """There the cosine of the whole output with the right thought; of JSON, of what stands under its key, "" where nothing does."""
    gold = "I look for a lamp first."
    example = Example("e", {}, (gold,), 0, True, score="similarity")

    def cosine(text: str) -> float:
        a, b = tiny.embed_by_text([text, gold])
        return max(0.0, float(a @ b))

    plain, keyed = ChoiceText(), Wrapped('{"thought": "{answer}"}', ChoiceText())
    for said in (gold, "Nothing.", f"Thought: {gold}", f"{gold}\n\nThen I sort.", f"```\n{gold}\n```"):
        assert plain.parse(said, example).worth(example) == pytest.approx(cosine(said), abs=1e-6)
        for around in ("{}", "So: {}", "```json\n{}\n```", "{} ok"):
            said_inside = around.format(json.dumps({"thought": said, "name": "n"}))
            assert keyed.parse(said_inside, example).worth(example) == pytest.approx(cosine(said), abs=1e-6)
    # nothing said is nothing, not the likeness of an empty text; thinking aloud is not the answer; JSON is read as JSON
    assert [
        plain.parse(said, example).worth(example) for said in ("", " \n", f"<think>{gold}", f"<think>x</think>{gold}")
    ] == [0, 0, 0, 1]
    assert [keyed.parse(said, example).worth(example) for said in ('{"thought": ""}', '{"x": 1}', '{"thought": null}', repr({"thought": gold}))] == [0] * 4  # fmt: skip
    assert np.isclose(cosine(gold), 1)
