"""Answers that are expressions: by value, from whatever a model writes around them, and never for ever."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paft.errors import ConfigError, TemplateError
from paft.tasks import Example, answer_format_from, expressions
from paft.tasks.answers import OTHER, Expression, answer_format_to
from paft.tasks.expressions import compare, is_expression, plain

RECORDED = yaml.safe_load((Path(__file__).parent / "expressions.yaml").read_text(encoding="utf-8"))
ANSWER = Expression()


def example(gold: str) -> Example:
    return Example("e", {}, (gold,), 0, is_open=True)


def verdict(gold: str, said: str) -> str:
    found = ANSWER.parse(said, example(gold))
    return "invalid" if found.choice is None else ("right" if found.choice == 0 else "wrong")


def test_recorded_outputs_and_where_the_original_grader_differs() -> None:
    for row in RECORDED:
        assert verdict(row["gold"], row["said"]) == row["here"], row
    told = Counter((row["here"] == "right", row["recipe"] == "right") for row in RECORDED)
    assert (len(RECORDED), told[True, True], told[True, False], told[False, True]) == (208, 91, 73, 2)
    boxed = [row for row in RECORDED if "\\boxed{" in row["said"] and "\n" not in row["said"]]
    assert sum(row["here"] == "right" != row["recipe"] for row in boxed) == 41


@pytest.mark.parametrize(
    ("gold", "said", "wanted"),
    [
        ("18", "The answer is 18.\n\nQuestion: how far?\nAnswer: 5", "right"),
        ("18", "So \\boxed{18}.\n\nProblem: how far?\nThat is \\boxed{5}.", "right"),
        ("7", "I take 2 steps.\nProblem: 3 and 4.\nAnswer: 7", "right"),
        (r"5 \sqrt { 3 }", r"$5\sqrt{3}$", "right"),
        (r"5 \sqrt { 3 }", "5√3", "right"),
        (r"5 \sqrt { 3 }", "5*sqrt(3)", "right"),
        (r"5 \sqrt { 3 }", "sqrt(75) cm", "right"),
        (r"5 \sqrt { 3 }", "5\\sqrt{3", "invalid"),
        (r"32 ^ { \circ }", "32", "right"),
        ("32", "32°.", "right"),
        ("0.5", r"\frac12", "right"),
        ("0.5", ".5", "right"),
        ("50%", "50", "right"),
        ("8.2", "8.20", "right"),
        ("8.2", "8.3", "wrong"),
        ("-3", "\u22123", "right"),
        ("-3", "3", "wrong"),
        ("12", "x = 5\nso AB = 12", "right"),
        ("12", "5\n12", "wrong"),
        ("12", "12\n5", "right"),
        ("12", r"\boxed{12} and not \boxed{13", "right"),
        ("12", r"\boxed{5} then \boxed{12}", "right"),
        ("12", "The legs are 5 and 13. Answer: 12 units, by Pythagoras in 2 steps.", "right"),
        ("12", "no figure is shown", "invalid"),
        ("12", "", "invalid"),
        (r"\frac { 1 } { 2 }", r"\sin 30^{\circ}", "right"),
        ("3", "three", "invalid"),
        ("x", "x", "right"),
        ("x", "the answer is x", "invalid"),
        ("cm", "", "invalid"),
    ],
)
def test_hand_written_pairs(gold: str, said: str, wanted: str) -> None:
    assert verdict(gold, said) == wanted


@pytest.mark.parametrize(
    "wrap", [r"\boxed{{answer}}", "<answer>{answer}</answer>", "Answer: {answer}", "#### {answer}"]
)
@pytest.mark.parametrize("gold", ["32", r"5 \sqrt { 3 }", r"\frac { 8 } { 3 }", "18 + 6 \\sqrt { 3 }"])
def test_wrapped_expressions_are_read_by_value_and_alone(wrap: str, gold: str) -> None:
    answer = answer_format_from({"wrap": wrap, "of": "expression"})
    assert answer_format_from(answer_format_to(answer)) == answer
    (surface,) = answer.surfaces(example(gold))
    assert answer.parse(f"Some steps: 3 + 4 = 7.\n{surface}", example(gold)).choice == 0
    assert answer.parse(wrap.replace("{answer}", f"x = {plain(gold)}"), example(gold)).choice == 0
    assert answer.parse(wrap.replace("{answer}", "41"), example(gold)).choice == OTHER
    assert answer.parse(gold, example(gold)).status == "invalid"
    assert answer.parse(wrap.replace("{answer}", "no idea"), example(gold)).status == "invalid"
    twice = "\n".join(wrap.replace("{answer}", each) for each in (gold, "41"))
    assert answer.parse(twice, example(gold)).status == "ambiguous"


def test_a_first_line_that_decides_is_settled_and_nothing_later_changes_it() -> None:
    assert not ANSWER.settled("12", example("12"))
    assert ANSWER.settled("12\n", example("12"))
    assert ANSWER.settled(r"$\sqrt{144}$" + "\n", example("12"))
    for later in ("", "\\boxed{5}", "The answer is 5."):
        assert ANSWER.parse("12\n" + later, example("12")).choice == 0
    for open_ in ("x = 12\n", "Let us see.\n", "\n\n"):
        assert not ANSWER.settled(open_, example("12"))


HOSTILE = {
    "a tower": "9^{9^{9^{9}}}",
    "a tower in brackets": "((9^{99})^{99})^{99}",
    "a large power": "2^{99999999}",
    "digits": "1" * 5000,
    "brackets": "(" * 5000 + "1" + ")" * 5000,
    "open brackets": "(" * 100_000,
    "braces": "{" * 40 + "2" + "}" * 40,
    "fractions": r"\frac{1}{" * 40 + "2" + "}" * 40,
    "roots": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 18)),
    "a root of roots": r"\sqrt{2+" * 6 + "1" + "}" * 6,
    "boxes": r"\boxed{1+1}" * 5000,
    "an open box": r"\boxed{" * 5000,
    "spaces": "the answer is" + " " * 100_000 + "5",
    "equals": "=" * 50_000,
    "words": "answer is the answer to the answer " * 5000,
    "runs": "1 a " * 20_000,
    "dollars": "$" * 50_000,
    "a program": "__import__('os').system('echo')",
    "nothing": "\x00\ud800",
    "commands": "\\" * 20_000,
    "unknown": r"\def\x{\x\x}\x",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_text_is_not_right_and_does_not_hang(kind: str) -> None:
    compare("5", r"\sqrt{26}")  # the process is there
    started = time.process_time()
    wrap = answer_format_from({"wrap": r"\boxed{{answer}}", "of": "expression"})
    for said in (HOSTILE[kind], f"\\boxed{{{HOSTILE[kind]}}}"):
        assert ANSWER.parse(said, example("12345")).choice in (None, OTHER)
        assert wrap.parse(said, example("12345")).choice in (None, OTHER)
    assert time.process_time() - started < 20


def test_a_comparison_that_takes_too_long_ends_and_the_next_is_made() -> None:
    judge = expressions._Judge()
    assert judge.ask("1", r"\sqrt{4}") == "other"
    first = judge._child
    assert first is not None
    assert judge.ask("1", "9^{9^{9^{9}}}") == "none"
    assert judge.ask(r"\sqrt{4}", "2") == "same"
    assert judge._child is not first
    judge._child.kill()
    assert judge.ask("2", r"\sqrt{4}") in ("none", "same")
    assert judge.ask("2", r"\sqrt{4}") == "same"
    judge._end()


def test_without_math_verify_the_message_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setattr(expressions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'takes math-verify; pip install "paft\[vision\]"'):
        compare("1", r"\sqrt{17}+3")
    assert compare("5 + x", "5+x") == "same"


def test_an_example_with_choices_is_refused() -> None:
    with pytest.raises(TemplateError, match="`answer: expression` needs an open answer"):
        ANSWER.surfaces(Example("e", {}, ("1", "2"), 0))


@settings(max_examples=200)
@given(st.text(st.sampled_from("0123456789+-*/^(){}[]\\ xπ√°.,=$%\n") | st.characters(), max_size=60))
def test_any_text_has_a_plain_form_that_is_its_own(text: str) -> None:
    found = plain(text)
    if is_expression(found):
        assert len(found) <= expressions.LONGEST
        assert is_expression(plain(found))
