"""Answers that are calls of tools: how they are read and written, what they are worth, and that nothing in them is evaluated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft import pipeline
from paft.config import load_run_config
from paft.errors import DataError, TemplateError
from paft.grid import Grid
from paft.materials import prepare
from paft.prompts.auditing import faults_of
from paft.prompts.strategies import rules_of
from paft.prompts.template import Template
from paft.tasks.answers import AGREEMENT, OTHER, Number, Parsed, ToolCall, Wrapped, answer_format_from, answer_format_to
from paft.tasks.calls import FunctionCall, agreement, read_json, read_python, write_json, write_python
from paft.tasks.types import Example
from paft.training.rewards import correct, well_formed
from paft.watch import LineWatcher
from tests import tiny
from tests.tasks.test_texts import described, world

CALL = FunctionCall("Weather.at", {"place": "Oslo", "days": 2})
AS_JSON = '{"name": "Weather.at", "args": {"place": "Oslo", "days": 2}}'
AS_PYTHON = "Weather.at(place='Oslo', days=2)"
OTHER_CALL = FunctionCall("Mail.send", {"to": "Ann"})


def example(call: FunctionCall = CALL) -> Example:
    return Example("e", {"request": "r", "tools": "t"}, (write_json(call),), 0, is_open=True)


@pytest.mark.parametrize(
    ("name", "arguments", "worth"),
    [
        ("Weather.at", {"place": "Oslo", "days": 2}, 1), ("Weather.at", {"place": "Oslo", "days": 2, "unit": "C"}, 1), ("Weather.at", {"days": 2.0, "place": "Oslo"}, 1),
        ("Weather.at", {"place": "Oslo", "days": "2"}, 2 / 3), ("Weather.at", {"place": "oslo", "days": 2}, 2 / 3), ("Weather.at", {"place": "Oslo"}, 2 / 3),
        ("weather.at", {"place": "Oslo", "days": 2}, 2 / 3), ("Weather.at", {}, 1 / 3), ("Mail.send", {"to": "Ann"}, 0), ("Mail.send", {"days": 2}, 1 / 3),
        ("Weather.at", {"place": ["Oslo"], "days": {"n": 2}}, 1 / 3),
    ],
)  # fmt: skip
def test_what_a_call_is_worth(name, arguments, worth):
    assert agreement(FunctionCall(name, arguments), CALL) == pytest.approx(worth)


def test_what_is_odd_in_the_original_rule_is_kept():
    one = FunctionCall("f", {"n": 1, "note": ""})
    assert agreement(FunctionCall("f", {"n": True}), one) == 1  # True == 1, and what is not there is an empty text
    assert agreement(FunctionCall("f", {"x": 1}), FunctionCall("f", {})) == 1


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (AS_JSON, [CALL]), (f"Of course.\n```json\n{AS_JSON}\n```\nThat is all.", [CALL]), (f"{AS_JSON} {AS_JSON}", [CALL]),
        ('{"args": {"days": 2, "place": "Oslo"}, "thought": "x", "name": " Weather.at "}', [CALL]), (repr(json.loads(AS_JSON)), [CALL]),
        ("{'name': 'f', 'args': {'now': true}}", [FunctionCall("f", {"now": True})]), ('{"name": "f", "args": "x"}', [FunctionCall("f", {})]),
        ('{"name": "f", "args": null}', [FunctionCall("f", {})]), ('{"name": "f",\n "args": {}}', [FunctionCall("f", {})]),
        (f'{AS_JSON}\n{{"name": "Mail.send", "args": {{"to": "Ann"}}}}', [CALL, OTHER_CALL]), ('Set {x}: {"name": "f", "args": {}}', [FunctionCall("f", {})]),
        ('{"name": "f", "arguments": {}}', []), ('{"name": 3, "args": {}}', []), ('{"call": {"name": "f", "args": {}}}', []), (AS_JSON[:-2], []), ('{"call": {"name": "f", "args": {}}', []), ("{'call': {'name': 'f', 'args': {}}\n```", []),
        ('{"name": "g", "args": {"inner": {"name": "f", "args": {}}},}', [FunctionCall("g", {"inner": {"name": "f", "args": {}}})]),
        ("Set {x}, it's so: {'name': 'f', 'args': {}}", [FunctionCall("f", {})]), ("{'name': 'f', 'args': {}} " * 2, [FunctionCall("f", {})]),
        (f"{AS_JSON} or {{'name': 'f', 'args': {{}}}}", [CALL, FunctionCall("f", {})]), (f'{{"a" b}} {AS_JSON}', [CALL]),
        (f"{AS_JSON} or {{'name': 'f', 'args': {{}}}} or {{'name': 'g', 'args': {{}}}}", [CALL, FunctionCall("f", {})]),
        (f"[{AS_JSON}]", [CALL]), ("", []), ("I cannot.", []), ("{}", []), ("{0.__class__}", []), ('{"name": "f", "args": ' * 3000, []),
        ('{"name": "\ud800", "args": {}}', [FunctionCall("\ud800", {})]), ('{"name": "f", "args": {"n": 1e999}}', [FunctionCall("f", {"n": float("inf")})]),
    ],
)  # fmt: skip
def test_how_an_object_is_read(text, calls):
    assert read_json(text) == calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (AS_PYTHON, [CALL]), (f"I would write:\n```python\n{AS_PYTHON}\n```", [CALL]), ('Weather.at(\n    days = 2,\n    place = "Oslo",\n)', [CALL]),
        ("`f()`", [FunctionCall("f", {})]), ("To search, f() is used: f(q='x')", [FunctionCall("f", {"q": "x"})]), ("f(1, q='x')", [FunctionCall("f", {"q": "x"})]),
        ("f(q=\"a, b) 'c'\", l=[1, {'a': (2,)}], n=-3.5, t=true, u=None)", [FunctionCall("f", {"q": "a, b) 'c'", "l": [1, {"a": (2,)}], "n": -3.5, "t": True, "u": None})]),
        (r"f(q='it\'s', r='''x'y''')", [FunctionCall("f", {"q": "it's", "r": "x'y"})]), ("f(from='Oslo', class=1)", [FunctionCall("f", {"from": "Oslo", "class": 1})]),
        ("get-weather(days=2)", [FunctionCall("get-weather", {"days": 2})]), ("result = f(n=1)", [FunctionCall("f", {"n": 1})]),
        ("f(n=1)\nf(n=1.0)", [FunctionCall("f", {"n": 1})]), ("f(n=1) g(n=1)", [FunctionCall("f", {"n": 1}), FunctionCall("g", {"n": 1})]),
        (r"f\_x(n=1)", []), ("f(n=open('x'))", []), ("f(n=x)", []), ("f(query)", []), ("f(n=1, n=2)", []), ("f(**{'n': 1})", []), ("f(n=1", []), ("f(n='1)", []), ("f(n=[1)", []),
        ("f(n=1+)", []), ("f(n==1)", []), ("f(n=__import__('os').system('x'))", []), ("f (n=1)", []), ("", []), ("none", []), ("{0.__class__}", []), ("2f(n=1)", []),
        ("f(n=" + "[" * 5000, []), ("f(n=" + "[" * 5000 + "]" * 5000 + ")", []), ("f(" * 100_000, []), ("f(n='" + "x" * 30_000 + "')", []), ("a" * 10**6, []),
        ("f(n=" + "9" * 5000 + ")", []), ("(" * 10**6, []), ("f('" * 10**5, []), ("f(q='\ud800')", [FunctionCall("f", {"q": "\ud800"})]),
    ],
)  # fmt: skip
def test_how_a_python_call_is_read(text, calls):
    assert read_python(text) == calls


HOSTILE = ('{"name": "f", "args": ' * 10**5, "{" * 10**6, '{"' * 10**5, "{'name': " * 10**5, "f(n=" * 10**5, "x." * 10**6, AS_JSON[:-1] * 10**4, "\ud800(" * 10**5,
           AS_PYTHON[:-1] * 10**4, "{0.__class__}(" * 10**4, "'" * 10**6, '"name"' * 10**5, '{"a"}' * 10**5, "{'a'x}" * 10**5, '{"a":' * 900 + "[" + "1," * 32_000, '{"\\"' * 10**5)  # fmt: skip


@pytest.mark.parametrize("at", range(len(HOSTILE)))
def test_hostile_texts_are_no_call_and_come_to_an_end(at):
    for form in ("json", "python"):
        for answer in (
            ToolCall(form),
            Wrapped("<call>{answer}</call>", ToolCall(form)),
            Wrapped('{"call": "{answer}"}', ToolCall(form)),
        ):
            for said in (HOSTILE[at], f"<call>{HOSTILE[at]}</call>"):
                assert answer.parse(said, example()).status != "valid"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
CALLS = st.builds(
    FunctionCall,
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}(\.[A-Za-z_]{1,5})?", fullmatch=True),
    st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True), VALUES, max_size=3),
)
WRAPS = (None, "<call>{answer}</call>", "BEGIN\n{answer}\nEND", '{"call": "{answer}"}', "Call: {answer}")


@given(CALLS, st.sampled_from(["json", "python"]), st.sampled_from(WRAPS))
def test_every_right_call_as_a_prompt_wants_it_written_is_fully_right(call, form, wrap):
    answer = Wrapped(wrap, ToolCall(form)) if wrap else ToolCall(form)
    one = example(call)
    (surface,) = answer.surfaces(one)
    assert answer.parse(surface, one) == Parsed("valid", 0, 1.0)
    assert not answer.settled(surface, one)
    assert answer_format_from(answer_format_to(answer)) == answer


@pytest.mark.parametrize("form", ["json", "python"])
def test_what_stands_around_a_call_is_looked_past(form):
    said = {"json": AS_JSON, "python": AS_PYTHON}[form]
    other = {"json": write_json, "python": write_python}[form](OTHER_CALL)
    plain, wrapped = ToolCall(form), Wrapped("<call>{answer}</call>", ToolCall(form))
    for text in (f"Of course. {said} There.", f"<think>{other}</think>\n{said}", f"```\n{said}\n```"):
        assert plain.parse(text, example()) == Parsed("valid", 0, 1.0)
    assert wrapped.parse(f"Not {other} but <call>\n```\n{said}\n```\n</call>", example()) == Parsed("valid", 0, 1.0)
    assert wrapped.parse(said, example()) == Parsed("invalid", None)
    assert plain.parse(f"{said}\n{other}", example()) == Parsed("ambiguous", None)
    assert plain.parse("I would call it.", example()) == Parsed("invalid", None)
    template = Template("{request} {tools}", plain)
    assert correct(example(), template, said.replace("Oslo", "Rome")) == pytest.approx(2 / 3)
    assert plain.parse(said.replace("Oslo", "Rome"), example()).choice == OTHER
    assert (well_formed(example(), template, other), correct(example(), template, other)) == (1, 0)


def test_a_call_inside_json_may_be_an_object():
    keyed = Wrapped('{"call": "{answer}"}', ToolCall())
    assert keyed.parse(f'{{"call": {AS_JSON}}}', example()) == Parsed("valid", 0, 1.0)


@pytest.mark.parametrize("form", ["json", "python"])
def test_different_calls_inside_json_are_ambiguous(form):
    write = {"json": write_json, "python": write_python}[form]
    one, other = (json.dumps({"call": write(call)}) for call in (CALL, OTHER_CALL))
    keyed = Wrapped('{"call": "{answer}"}', ToolCall(form))
    assert keyed.parse(f"{one} or {other}", example()) == Parsed("ambiguous", None)
    assert keyed.parse(f"{one}, I say, {one}", example()) == Parsed("valid", 0, 1.0)


def test_a_call_that_python_cannot_write_is_named():
    odd = example(FunctionCall("f", {"start-date": "x"}))
    assert ToolCall().surfaces(odd) == ('{"name": "f", "args": {"start-date": "x"}}',)
    with pytest.raises(
        TemplateError, match=r"cannot be written as `answer: python-call` \('start-date' is no name in a Python call\)"
    ):
        ToolCall("python").surfaces(odd)
    with pytest.raises(TemplateError, match="'two words' is no name"):
        ToolCall("python").surfaces(example(FunctionCall("two words", {})))
    for wrong in (Example("e", {"q": "a"}, ("x", "y"), 0), Example("e", {"q": "a"}, ("42",), 0, is_open=True)):
        with pytest.raises(TemplateError, match="need an open answer that is one call"):
            ToolCall().surfaces(wrong)


@pytest.mark.parametrize(
    "written",
    [
        {"name": "Weather.at", "arguments": {"place": "Oslo", "days": 2}}, {"name": "Weather.at", "parameters": {"place": "Oslo", "days": 2}},
        {"name": "Weather.at", "arguments": '{"place": "Oslo", "days": 2}'}, json.dumps({"name": "Weather.at", "arguments": '{"place": "Oslo", "days": 2}'}),
        {"id": "call_1", "type": "function", "function": {"name": "Weather.at", "arguments": '{"place": "Oslo", "days": 2}'}},
    ],
)  # fmt: skip
def test_calls_as_chat_apis_write_them(tmp_path, written):
    (one,) = described(tmp_path, [{"q": "?", "a": written}], kind="call").split("train").examples
    assert one.choices == (AS_JSON,)


def test_a_task_whose_answers_are_calls(tmp_path):
    rows = [
        {"q": "will it rain?", "a": json.loads(AS_JSON)},
        {"q": "and now?", "a": '{"args": {"n": null}, "name": " f "}'},
    ]
    found = described(tmp_path, rows, kind="call")
    first, second = found.split("train").examples
    assert (first.choices, second.choices, found.open_kind) == (
        (AS_JSON,),
        ('{"name": "f", "args": {"n": null}}',),
        "call",
    )
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist([{**row, "a": json.dumps(row["a"])} for row in rows[:1]]), tmp_path / "rows.parquet"
    )
    assert described(tmp_path, rows, kind="call", files={"train": "rows.parquet"}).split("train").examples[0] == first


DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("Weather.at", "holds 'Weather.at'; expected one call"), ('{"name": "f"}', "expected one call"), ({"name": "f", "args": [1]}, "expected one call"),
        ({"name": " ", "args": {}}, "expected one call"), ([{"name": "f", "args": {}}], "expected one call"), (7, "expected one call"),
        ({"name": "f", "args": {}, "id": 0}, "expected one call"), ({"name": "f", "arguments": "{x"}, "expected one call"), ({"function": "f"}, "expected one call"),
        ({"function": {"name": "f"}}, "expected one call"), ({"name": {}, "x": 1}, "expected one call"), ({"name": '{"a": 1}', "x": 1}, "expected one call"), ({"name": "f", "args": {"n": None}}, "an argument of 'f' is null; Parquet has nulls"),
        ('{"name": "f", "args": {"n": NaN}}', "expected one call"), ('{"name": "f", "args": {"n": "\\ud800"}}', "half a surrogate pair"),
        ('{"name": "f", "args": ' + '{"a":' * 3000, "expected one call"),
    ],
)  # fmt: skip
def test_rows_without_a_call_are_bad_rows(tmp_path, answer, said):
    with pytest.raises(DataError, match=said):
        described(tmp_path, [{"q": "?", "a": answer}], kind="call").split("train")


def test_a_call_with_values_too_deep_is_refused(tmp_path):
    deep = "[" * 5000 + "]" * 5000
    with pytest.raises(DataError, match="expected one call"):
        described(tmp_path, [{"q": "?", "a": f'{{"name": "f", "args": {{"n": {deep}}}}}'}], kind="call").split("train")


def test_a_call_with_deep_values_is_read(tmp_path):
    (one,) = (
        described(tmp_path, [{"q": "?", "a": {"name": "f", "args": {"n": DEEP}}}], kind="call").split("train").examples
    )
    assert ToolCall().parse(one.choices[0], one) == Parsed("valid", 0, 1.0)


def test_prompts_for_calls(tmp_path):
    found = described(tmp_path, [{"q": "?", "a": AS_JSON}], kind="call")
    for answer in (ToolCall(), ToolCall("python"), Wrapped("Call: {answer}", ToolCall("python"))):
        assert list(Template("{q}", answer).faults(found)) == []
    (fault,) = Template("{q}", Number()).faults(found)
    assert fault.reason.endswith("has open answers (call); expected answer: call or python-call, or a wrap of it")
    assert list(faults_of(Template("{q} Answer in JSON.", ToolCall()), found)) == []
    assert [fault.name for fault in faults_of(Template("{q} Answer in JSON.", ToolCall("python")), found)] == [
        "contract"
    ]
    assert '"python-call"' in "\n".join(rules_of(found))


def test_a_call_may_be_twice_as_long_as_the_longest():
    model = tiny.hf_model()
    templates = [Template("{request} {tools}", ToolCall()), Template("{tools} {request}", ToolCall("python"))]
    limits = Grid(templates, [example(), example(FunctionCall("f", {}))]).answer_limits(model.count_tokens)
    assert limits == [2 * model.count_tokens(text) + 4 for text in (AS_JSON, AS_PYTHON)]


def test_a_run_on_calls_trains_and_scores(tmp_path):
    forms: list[Any] = ["call", {"wrap": "<call>{answer}</call>", "of": "python-call"}]
    texts = {"train": ["{q}: json?", "in tags: {q}"], "dev": ["an object for {q}, please", "tags around {q} as code"], "test": ["{q} becomes", "the call that {q} wants, in tags"]}  # fmt: skip
    prompts = {
        split: [{"text": t, "answer": form} for t, form in zip(some, forms, strict=True)]
        for split, some in texts.items()
    }
    rows = [{"q": f"thing {n}", "a": {"name": "Shop.find", "args": {"n": n % 5}}} for n in range(36)]
    config = world(tmp_path, "call", rows, prompts)
    results = pipeline.run(load_run_config(config), tmp_path / "out", LineWatcher(quiet=True))
    assert len(results["arms"]["grpo"]["train"]["reward"]) == 5
    assert len(results["arms"]["sft"]["train"]["dev"][-1]["accuracy_K"]) == 2
    # answers that are known: all right under one prompt, under the other right by name alone
    grid = prepare(load_run_config(config)).grid
    wrong = replace(grid.examples[0], choices=(write_json(FunctionCall("Shop.find", {"n": 99})),))
    with open(tmp_path / "said.jsonl", "w", encoding="utf-8") as out:
        for k, template in enumerate(grid.templates):
            for example in grid.examples:
                said = {"completion": template.target(example if k else wrong), "tokens": 9, "ended": True}
                out.write(json.dumps({"prompt": template.id, "example": example.id, **said}) + "\n")
    known = load_run_config(config, [f"arms={{known: {{recorded: {json.dumps(str(tmp_path / 'said.jsonl'))}}}}}"])
    results = pipeline.run(known, tmp_path / "known", LineWatcher(quiet=True))
    assert results["arms"]["known"]["scores"]["generation"]["accuracy_K"] == [0.5, 1]
    assert results["task"]["judge"] == AGREEMENT
