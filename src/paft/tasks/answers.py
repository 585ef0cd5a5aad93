"""How an answer is written and recognised. The writer and the parser of a format agree by test."""

from __future__ import annotations

import ast
import bisect
import itertools
import json
import re
import string
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from typing import Any, Literal

from paft.errors import TemplateError
from paft.tasks.calls import FunctionCall, agreement, keep, read_json, read_python, write_python
from paft.tasks.embeddings import judged_by
from paft.tasks.expressions import AS_ANSWER, boxed, compare, last_said, plain
from paft.tasks.options import NEXT, codes_in, first_line_decides, folded, named_alone, named_in, without_emphasis
from paft.tasks.plans import Call, likeness, read_list, read_steps, write_steps
from paft.tasks.sandbox import passes
from paft.tasks.texts import (
    AS_WRITTEN,
    JSON,
    after_thought,
    first_line,
    is_one_line,
    normalized,
    objects,
    readings,
    text_worth,
)
from paft.tasks.types import Example

LETTERS = tuple(string.ascii_uppercase)

Status = Literal["valid", "invalid", "ambiguous"]


@dataclass(frozen=True)
class Parsed:
    """What a completion says. `choice` is an index into the example's choices, None unless the status is "valid".

    Of an example with an open answer: 0 is the right one, OTHER any other. score: what an answer that may be partly right is worth,
    in [0, 1]; None for one that is right or not.
    """

    status: Status
    choice: int | None
    score: float | None = None

    def worth(self, example: Example) -> float:
        """Its score, 1 for the right choice and 0 for everything else where it has none."""
        return float(self.choice == example.answer) if self.score is None else self.score


OTHER = 1


@dataclass(frozen=True)
class Labels:
    """The answer is a label: a letter, a number or a word standing for each choice, in choice order.

    labels None means the capital letters A, B, C ..., as many as the example has choices.
    """

    labels: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        labels = self.labels
        if labels is None:
            return
        if len(labels) < 2 or any(not isinstance(label, str) or not label.strip() for label in labels):
            raise TemplateError(
                f"labels {list(labels)!r}: expected two or more non-empty texts (quote yes/no/numbers in YAML)"
            )
        if len({folded(label) for label in labels}) < len(labels):
            raise TemplateError(f"labels {list(labels)!r}: two labels differ only in case or spacing, or not at all")

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The text that stands for each choice, length C. Raises TemplateError when the counts differ."""
        count = len(example.choices)
        if self.labels is None:
            if count > len(LETTERS):
                raise TemplateError(
                    f"example {example.id!r} has {count} choices; letters serve at most {len(LETTERS)}; use `answer: text`"
                )
            return LETTERS[:count]
        if len(self.labels) != count:
            raise TemplateError(
                f"labels {list(self.labels)!r} name {len(self.labels)} choices, example {example.id!r} has {count}; "
                "use `answer: letters` for examples with a varying number of choices"
            )
        return self.labels

    def parse(self, completion: str, example: Example) -> Parsed:
        """The choice whose label the completion gives; every label is read by the same rule.

        A first line that says nothing but a label decides. Else word labels count wherever they stand as whole words and are not denied ("not a very"),
        and codes (a set in which some label has fewer than two letters: A, ii, 10, P1), which are also articles, pronouns
        and numbers, count only where they are given: as the answer ("the answer is", "Answer:", "la respuesta es", a \\boxed{}) or,
        where none is given so, at the start of a line, after a weaker cue such as "option" or a colon, or as a whole sentence; closed by
        punctuation, the end, "is" or "because". Where the model goes on to ask itself the next question, what it said before. No label: invalid.
        Different ones: ambiguous.
        """
        surfaces = self.surfaces(example)
        completion = _as_said(completion, surfaces)
        alone = named_alone(completion, surfaces)
        if alone or any(sum(c.isalpha() for c in surface) < 2 for surface in surfaces):
            return _one(alone or codes_in(completion, surfaces))
        return _one(named_in(completion, surfaces))

    def parse_given(self, line: str, example: Example) -> Parsed:
        """The same of a line that is the answer, whatever it begins with: "B (the second)" gives B."""
        parsed = self.parse(line, example)
        return self.parse(f"Answer: {line}", example) if parsed.status == "invalid" else parsed

    def settled(self, completion: str, example: Example) -> bool:
        """Whether no text that follows can change what `parse` says: a first line that decides has ended."""
        return first_line_decides(completion, self.surfaces(example))


@dataclass(frozen=True)
class ChoiceText:
    """The answer is the text of the chosen option itself; for examples with an open answer, a free text."""

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The text that stands for each choice, length C: the choices themselves."""
        return example.choices

    def parse(self, completion: str, example: Example) -> Parsed:
        """The choice that the completion repeats; of a free text, what it is worth.

        A first line that says nothing but a choice decides, or as many lines as the choice has. Else a choice counts wherever it stands as
        whole words, not inside a longer choice and not denied ("not a very"). Case, spacing and punctuation are ignored as far as the choices
        stay different without them. Where the model goes on to ask itself the next question, what it said before. No choice: invalid.
        Different ones: ambiguous.

        A free text is the first line that says anything, without a lead such as "The answer is"; or all that is said, where an accepted
        text has several lines or texts are scored by similarity (`paft.tasks.texts`). Nothing said: invalid.
        """
        if example.is_open:
            accepted = _accepted(example)
            return _worth_of(readings(completion, accepted, example.score), accepted, example)
        said = _as_said(completion, example.choices)
        return _one(named_alone(said, example.choices) or named_in(said, example.choices))

    def settled(self, completion: str, example: Example) -> bool:
        """Whether no text that follows can change what `parse` says: a first line that decides has ended."""
        if example.is_open:
            return is_one_line(_accepted(example), example.score) and first_line(completion)[1]
        return first_line_decides(completion, example.choices)


def _as_said(completion: str, surfaces: Sequence[str]) -> str:
    """Without thoughts, and where no surface holds an underscore without those of Markdown."""
    said = after_thought(completion)
    return said if any("_" in surface for surface in surfaces) else without_emphasis(said)


def _accepted(example: Example) -> tuple[str, ...]:
    return (*example.choices, *example.accepted)


def _worth_of(said: Sequence[str], accepted: Sequence[str], example: Example) -> Parsed:
    """The best of some readings of one free text, which are none where nothing is said."""
    if not said:
        return Parsed("invalid", None)
    score = max(text_worth(each, accepted, example.score) for each in said)
    return Parsed("valid", 0 if score == 1 else OTHER, None if example.score == "exact" else score)


SHARED_WORDS, AGREEMENT = "words (F1)", "calls (T-Eval)"
"""What scores in parts rest on, by name, where it is no embedding model."""


def scored_by(answer: AnswerFormat, example: Example) -> str:
    """What scores that are not one right answer or none rest on, where they do: an embedding model by its identity, shared words, or how calls agree."""
    inner = without_wrap(answer)
    if isinstance(inner, ToolCall):
        return AGREEMENT
    if isinstance(inner, Plan) or (isinstance(inner, ChoiceText) and example.score == "similarity"):
        return judged_by()
    return SHARED_WORDS if isinstance(inner, ChoiceText) and example.score == "f1" else ""


def varies(answer: AnswerFormat, example: Example) -> bool:
    """Whether an answer may be right, or nearly, and longer than the one that is known: a free text, a call."""
    inner = without_wrap(answer)
    return isinstance(inner, ToolCall) or (isinstance(inner, ChoiceText) and example.is_open)


def written(answer: AnswerFormat, example: Example) -> Iterator[tuple[str, Example, int]]:
    """Every answer that the format allows to an example, with an example whose choice it is and the place of the choice."""
    each = (example, *(replace(example, choices=(text,), accepted=()) for text in example.accepted))
    for one in each:
        yield from ((surface, one, c) for c, surface in enumerate(answer.surfaces(one)))


@dataclass(frozen=True)
class Number:
    """The answer is a number, compared by value: 1,234.0 is 1234, and 1/2 is 0.5. For examples with an open answer."""

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The right number as it is written. Raises TemplateError when the example's answer is none."""
        if not example.is_open or number_in(example.choices[0]) is None:
            raise TemplateError(
                f"example {example.id!r}: `answer: number` needs an open answer that is a number, got {list(example.choices)!r}"[
                    :200
                ]
            )
        return example.choices

    def parse(self, completion: str, example: Example) -> Parsed:
        """Whether the completion ends up at the right number.

        A first line that says nothing but a number decides. Else the last \\boxed{}; else the last number that is given as the answer
        ("answer is", "answer:", "####", "equals", "="); else the last number. Where the model goes on to ask itself the next question, what
        was given before it. No number: invalid.
        """
        said = without_emphasis(after_thought(completion))
        asks_on = NEXT.search(said)
        earlier = self._given(said[: asks_on.start()], as_answer=True) if asks_on else None
        found = self._first_line(said) or earlier or self._given(said) or self._any(said)
        return _one({self._judged(found, example)} if found else set())

    def settled(self, completion: str, example: Example) -> bool:
        """Whether no text that follows can change what `parse` says: a first line that decides has ended."""
        line = next((line for line in completion.splitlines(keepends=True) if line.strip()), "")
        return line.splitlines() != [line] and self._first_line(line) is not None

    def alone(self, text: str, example: Example) -> set[int]:
        """0 or OTHER when the text says nothing but a number."""
        found = _WHOLE_NUMBER.fullmatch(_in_plain_signs(text))
        return {self._judged(found[1], example)} if found else set()

    @staticmethod
    def _first_line(completion: str) -> str | None:
        first = next((line for line in completion.splitlines() if line.strip()), "")
        found = _WHOLE_NUMBER.fullmatch(_in_plain_signs(first))
        return found[1] if found else None

    @staticmethod
    def _given(completion: str, *, as_answer: bool = False) -> str | None:
        # of a box what its last equation says, before units and their powers
        if (inside := boxed(completion)) and (held := _NUMBER.search(_in_plain_signs(inside).rpartition("=")[2])):
            return held[0]
        cues = _GIVEN_NUMBER.finditer(_in_plain_signs(completion))
        given = [cue["number"] for cue in cues if not as_answer or AS_ANSWER.match(cue[0])]
        return given[-1] if given else None

    @staticmethod
    def _any(completion: str) -> str | None:
        said = [match[0] for match in _NUMBER.finditer(_in_plain_signs(completion))]
        return said[-1] if said else None

    @staticmethod
    def _judged(found: str, example: Example) -> int:
        return 0 if number_in(found) == number_in(example.choices[0]) else OTHER


@dataclass(frozen=True)
class Expression:
    """The answer is a mathematical expression in LaTeX or plain signs, compared by value: \\sqrt{75} is 5\\sqrt{3}, 30 is 30^\\circ.

    For examples with an open answer. Units, degrees and a name with an equals sign before it are not looked at. Decimals are right to six
    places. What math-verify cannot read, or not in seconds, is invalid.
    """

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The right expression as it is written. Raises TemplateError for an example with choices."""
        if not example.is_open:
            raise TemplateError(
                f"example {example.id!r}: `answer: expression` needs an open answer, got {list(example.choices)!r}"[
                    :200
                ]
            )
        return example.choices

    def parse(self, completion: str, example: Example) -> Parsed:
        """Whether the completion ends up at the right expression.

        A first line that says nothing but an expression (no equation) decides. Else the last \\boxed{}; else the last expression that is given as the
        answer ("answer is", "answer:", "####", "equals", "="); else the last one. Where the model goes on to ask itself the next question, what was
        given before it. No expression: invalid.
        """
        said = after_thought(completion)
        asks_on = NEXT.search(said)
        before = self._last(said[: asks_on.start()], example, as_answer=True) if asks_on else set()
        return _one(self._first(said, example) or before or self._last(said, example))

    def settled(self, completion: str, example: Example) -> bool:
        """Whether no text that follows can change what `parse` says: a first line that decides has ended."""
        line = next((line for line in completion.splitlines(keepends=True) if line.strip()), "")
        return line.splitlines() != [line] and bool(self._first(line, example))

    def alone(self, text: str, example: Example) -> set[int]:
        """0 or OTHER when the text says nothing but an expression."""
        verdict = compare(plain(example.choices[0]), plain(text))
        return set() if verdict == "none" else {0 if verdict == "same" else OTHER}

    def _first(self, completion: str, example: Example) -> set[int]:
        first = next((line for line in completion.splitlines() if line.strip()), "")
        return set() if "=" in first else self.alone(first, example)  # an equation may be a step on the way

    def _last(self, completion: str, example: Example, *, as_answer: bool = False) -> set[int]:
        inside = boxed(completion)
        said = last_said(completion, as_answer=as_answer) if inside is None else inside
        return self.alone(said, example) if said is not None else set()


@dataclass(frozen=True)
class Code:
    """The answer is a Python function, judged by the tests of the example (fields `test` and `entry_point`, which no prompt shows).

    What counts is whether they pass, as HumanEval's own grader has it; running them must be allowed (`paft.tasks.sandbox`).
    """

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """A right function. Raises TemplateError for an example without tests."""
        if not example.is_open or not {"prompt", "test", "entry_point"} <= example.fields.keys():
            raise TemplateError(f"example {example.id!r}: `answer: code` needs an open answer with tests")
        return example.choices

    def parse(self, completion: str, example: Example) -> Parsed:
        """Whether the code passes the tests. The first fenced block is the code, or the whole text; it is the function, or its body.

        A block ends at the first fence where it is Python, as docstrings may hold fences. A text that is neither: invalid.
        """
        return self.judged(self.program(after_thought(completion), example))

    @staticmethod
    def judged(program: str | None) -> Parsed:
        """Whether a program that `program` told runs to its end."""
        return Parsed("invalid", None) if program is None else Parsed("valid", 0 if passes(program) else OTHER)

    @classmethod
    def program(cls, completion: str, example: Example) -> str | None:
        """What is run; None for a text that is no answer."""
        fence = _FENCE.search(completion)
        if fence is None:
            return cls._program(completion, example)
        ends = [each.start() for each in itertools.islice(_FENCE_END.finditer(completion, fence.end()), _ENDS)]
        codes = (completion[fence.end() : end] for end in (*ends, len(completion)))
        return _first_python(cls._program(code, example) for code in codes)

    @staticmethod
    def _program(code: str, example: Example) -> str | None:
        name = re.escape(example.fields["entry_point"])
        whole = re.search(rf"^[ \t]*(?:async[ \t]+)?def[ \t]+{name}\b", code, re.MULTILINE)
        first = next((line for line in code.splitlines() if line.strip()), "")
        if not whole and not first[:1].isspace():
            return None
        head = example.fields["prompt"]
        # in a list or a quotation a whole function is indented
        return "\n".join(
            [
                f"{head}\n\n{textwrap.dedent(code)}" if whole else head + code,
                example.fields["test"],
                f"check({example.fields['entry_point']})",
            ]
        )

    def settled(self, completion: str, example: Example) -> bool:
        """Never: what follows may still belong to the function."""
        return False


@dataclass(frozen=True)
class Plan:
    """The answer is a plan, calls of tools in order: a JSON list, or steps, a line each. For examples with an open answer.

    It is worth what T-Eval's own grader gives it (`paft.tasks.plans.likeness`), for which an embedding model must be named.
    """

    form: Literal["list", "steps"] = "list"

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The right plan. Raises TemplateError for an example that is no plan."""
        gold = self._gold(example)
        return example.choices if self.form == "list" else (write_steps(gold),)

    def parse(self, completion: str, example: Example) -> Parsed:
        """How much of the right plan the completion has. It holds one list (`read_list`), or one step at least (`read_steps`): else invalid."""
        gold, completion = self._gold(example), after_thought(completion)
        plan = (
            read_list(completion)
            if self.form == "list"
            else read_steps(completion, example.fields["names"].split("\n"))
        )
        if plan is None:
            return Parsed("invalid", None)
        score = likeness(plan, gold)
        return Parsed("valid", 0 if score == 1 else OTHER, score)

    def settled(self, completion: str, example: Example) -> bool:
        """Never: more calls may follow."""
        return False

    @staticmethod
    def _gold(example: Example) -> tuple[Call, ...]:
        gold = read_list(example.choices[0]) if example.is_open and "names" in example.fields else None
        if gold is None:
            raise TemplateError(
                f"example {example.id!r}: `answer: plan` and `steps` need an open answer that is a JSON list of calls, and names of tools"
            )
        return gold


@dataclass(frozen=True)
class ToolCall:
    """The answer is one call of a tool: a JSON object {"name", "args"}, or `tool.name(key='value')`. For examples with an open answer.

    It is worth what T-Eval's own grader of instructions gives it (`paft.tasks.calls.agreement`).
    """

    form: Literal["json", "python"] = "json"

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The right call. Raises TemplateError for an example that is none, or that this form cannot write."""
        gold = _gold_call(example)
        if self.form == "json":
            return example.choices
        try:
            return (write_python(gold),)
        except ValueError as error:
            raise TemplateError(
                f"example {example.id!r}: the right call cannot be written as `answer: python-call` ({error}); use `answer: call`"
            ) from None

    def parse(self, completion: str, example: Example) -> Parsed:
        """How much of the right call the completion has; what stands around a call is not read. No call: invalid. Different ones: ambiguous."""
        return self.among([after_thought(completion)], example)

    def among(self, texts: Iterable[str], example: Example) -> Parsed:
        """The same of a call that may stand in any of some texts."""
        gold, found = _gold_call(example), list[FunctionCall]()
        for text in texts:
            for call in read_json(text) if self.form == "json" else read_python(text):
                keep(found, call)
            if len(found) > 1:
                break
        if len(found) != 1:
            return Parsed("ambiguous" if found else "invalid", None)
        score = agreement(found[0], gold)
        return Parsed("valid", 0 if score == 1 else OTHER, score)

    def settled(self, completion: str, example: Example) -> bool:
        """Never: another call may follow."""
        return False


def _gold_call(example: Example) -> FunctionCall:
    gold = read_json(example.choices[0]) if example.is_open else []
    if len(gold) != 1:
        raise TemplateError(
            f"example {example.id!r}: `answer: call` and `python-call` need an open answer that is one call, an object {{name, args}}"
        )
    return gold[0]


_FENCE, _FENCE_END = re.compile(r"```[^\n`]*\n"), re.compile(r"(?<!#)(?<!# )```")
_ENDS = 20
"""Places at which a block of code may end that are tried."""


def _first_python(programs: Iterable[str | None]) -> str | None:
    """The first of some programs that Python can read; the first of all where there is none."""
    found = list(programs)
    if len(found) == 1:
        return found[0]
    return next((each for each in found if each is not None and _is_python(each)), found[0])


def _is_python(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


# signs belong to a number unless they stand between two: 5-3 holds 5 and 3
_DIGITS = (
    r"(?<![\w.])(?:(?<![\w)\]])[-+\u2212\u2013])?[$\u00a3\u20ac\u00a5]?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)?"
    r"(?:(?<=[0-9])(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,3}(?!\w)|/[0-9]+)?|\.[0-9]+)"
)
_NUMBER = re.compile(_DIGITS, re.IGNORECASE)
_MARKUP = r"[\s*_`$\u00a3\u20ac\u00a5\\(){}\[\]\"'\u201c\u201d\u2018\u2019]*+"
_WHOLE_NUMBER = re.compile(rf"{_MARKUP}({_DIGITS}){_MARKUP}%?{_MARKUP}[.;!]?{_MARKUP}", re.IGNORECASE)
_GIVEN_NUMBER = re.compile(
    r"(?:(?<!#)#{3,}+|\b(?:answer|result|total|sum|solution)\b"
    r"(?:\s++(?:is|was|equals|of|to|the|problem|question|about|approximately|roughly|around))*+(?:\s*+[:=])?|\bequals\b|=)"
    rf"{_MARKUP}(?P<number>{_DIGITS})",
    re.IGNORECASE,
)
_WHOLE = r"(?:(?<![\w.,/])(?P<whole>[1-9][0-9]{0,2}(?:,[0-9]{3}){1,5}|[0-9]{1,9}) ?)?"
_FRACTION = re.compile(
    rf"{_WHOLE}(?:\\[dt]?frac\s*(?:\{{\s*(?P<above>-?[0-9]+)\s*\}}|(?P<digit>[0-9]))\s*(?:\{{\s*(?P<below>[0-9]+)\s*\}}|(?P<under>[0-9]))"
    r"|(?P<sign>[\u00bc-\u00be\u2150-\u215e]))"
)
_PARTED = re.compile(r"(?<=[0-9])(?:\{,\}|(?:\\!)?,\\!|\\,)(?=[0-9]{3}(?![0-9]))")
_RAISED = "\u2070\u00b9\u00b2\u00b3\u2074-\u2079"
_POWER = re.compile(rf"(?<![\w.,/])([0-9]{{1,6}}(?:\.[0-9]{{1,6}})?)(\u207b?[{_RAISED}]{{1,2}})(?![{_RAISED}])")
_SMALL = re.compile(rf"\u207b?[{_RAISED}\u2080-\u2089]+")
_LONGEST_NUMBER = 200


def _in_plain_signs(text: str) -> str:
    """NFKC, but of the same value: 1{,}234 is 1,234; a half is 1/2, two and a half 5/2, ten squared 100, and no small digit joins a number."""
    text = _FRACTION.sub(_fraction, _PARTED.sub(",", text).replace("\u2044", "/"))
    return unicodedata.normalize("NFKC", _SMALL.sub(" ", _POWER.sub(_power, text)))


def _fraction(found: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", found["sign"] or "").partition("\u2044")
    above, below = above or found["above"] or found["digit"], below or found["below"] or found["under"]
    if found["whole"] and not above.startswith("-") and len(above) + len(below) < _LONGEST_NUMBER:
        return f"{int(found['whole'].replace(',', '')) * int(below) + int(above)}/{below}"
    beside = found["whole"] or found.string[max(0, found.start() - 1) : found.start()].isdigit()
    return f"{found['whole'] or ''}{' ' if beside else ''}{above}/{below}"


def _power(found: re.Match[str]) -> str:
    base, exponent = Fraction(found[1]), int(unicodedata.normalize("NFKC", found[2]).replace("\u2212", "-"))
    return str(base**exponent) if base or exponent >= 0 else found[0]


def number_in(text: str) -> Fraction | None:
    """The value of a text that is a number: commas part thousands, three digits each, and nothing else; a sign of a currency before or after
    it and a percent sign are ignored."""
    plain = re.sub("[\u2212\u2013]", "-", _in_plain_signs(text).strip())
    plain = re.sub(
        r"^([-+]?)[$\u00a3\u20ac\u00a5]\s*|\s*[$\u00a3\u20ac\u00a5]$", r"\1", plain.removesuffix("%").strip()
    ).removeprefix("+")
    number = r"-?(?:(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,3}|/[0-9]+)?|\.[0-9]+)"
    if len(plain) > _LONGEST_NUMBER or not re.fullmatch(number, plain, re.IGNORECASE):
        return None
    above, _, below = plain.replace(",", "").partition("/")
    if below and not int(below):
        return None
    return Fraction(above) / int(below or "1")


PLACE = "{answer}"
"""Where the answer stands inside a wrap."""


@dataclass(frozen=True)
class Wrapped:
    """The answer stands inside fixed text: a JSON object, a LaTeX box, a tag. `wrap` holds `{answer}` once.

    Without text after it the answer ends with its line, or with a full stop. Inside a wrap that is a JSON object the answer is escaped as a JSON string is.
    """

    wrap: str
    of: Bare = Labels()

    def __post_init__(self) -> None:
        before, place, after = self.wrap.partition(PLACE)
        if not place or PLACE in after or not before.strip():
            raise TemplateError(
                f"answer wrap {self.wrap!r}: expected text before one {PLACE}, such as <answer>{PLACE}</answer>"
            )
        if isinstance(self.of, Code | Plan) and not after.strip():
            raise TemplateError(
                f"answer wrap {self.wrap!r}: code and plans have many lines; expected text after {PLACE} too, which ends it"
            )
        if self._json and _json_values(self.wrap) is None:
            raise TemplateError(
                f'answer wrap {self.wrap!r}: opens like JSON and is none; write {{"answer": "{PLACE}"}}'
            )

    @property
    def _json(self) -> bool:
        return self.wrap.lstrip().startswith("{")

    def surfaces(self, example: Example) -> tuple[str, ...]:
        """The wrapped text of each choice, length C."""
        inner = self.of.surfaces(example)
        if self._json:
            inner = tuple(json.dumps(text, ensure_ascii=False)[1:-1] for text in inner)
        return tuple(self.wrap.replace(PLACE, text) for text in inner)

    def parse(self, completion: str, example: Example) -> Parsed:
        """The choice inside the wrap; what is said around it is not read. No wrap: invalid. Different ones: ambiguous.

        White space around and inside the fixed text may vary; JSON is read as JSON, whatever its other keys. The
        content must be the answer alone, but for a label without text after it, which is read in its line as it is without a wrap. A free text ends where the text after it stands first; without text after it, as it does without
        a wrap. Where the model goes on to ask itself the next question, what it said before.
        """
        said = after_thought(completion)
        asks_on = None if self._has_lines(example) else NEXT.search(said)
        before = self._read(said[: asks_on.start()], example) if asks_on else None
        return before if before and before.status == "valid" else self._read(said, example)

    def _has_lines(self, example: Example) -> bool:
        """Whether an answer may itself hold a line that begins like a question."""
        if isinstance(self.of, Code | Plan | ToolCall):
            return True
        texts = _accepted(example) if example.is_open else self.of.surfaces(example)
        ended = self._json or bool(self.wrap.partition(PLACE)[2].strip())
        free = isinstance(self.of, ChoiceText) and example.is_open
        return any(map(NEXT.search, texts)) or (free and not ended and not is_one_line(texts, example.score))

    def _read(self, completion: str, example: Example) -> Parsed:
        if isinstance(self.of, ChoiceText) and example.is_open:
            return self._free_text(completion, example)
        surfaces = self.of.surfaces(example)

        @cache
        def only(text: str) -> set[int]:
            return (
                self.of.alone(text, example)
                if isinstance(self.of, Number | Expression)
                else named_alone(text, surfaces)
            )

        if self._json:
            key = next(key for key, value in (_json_values(self.wrap) or {}).items() if value == PLACE)
            values = isinstance(self.of, Code | Plan | ToolCall)
            said = [_text_of(each[key]) for each in objects(completion, JSON if values else AS_WRITTEN) if key in each]
            if isinstance(self.of, ToolCall):
                return self.of.among(said, example)
            if isinstance(self.of, Code | Plan):
                return self.of.parse(said[0], example) if said else Parsed("invalid", None)
        elif isinstance(self.of, Code | Plan | ToolCall):
            opens, closes = (_places(part, completion) for part in self.wrap.split(PLACE))
            begin, ends = (opens or [(0, 0)])[0][1], [b for b, _ in closes if opens and opens[0][1] <= b][::-1]
            # what reaches furthest, as code may hold what closes it; but not as far as another wrap
            tried = [*ends[:_ENDS], *ends[_ENDS:][-1:]] if isinstance(self.of, Code) else ends[:1]
            inside = (completion[begin:end].strip("\n") for end in tried)
            if isinstance(self.of, Code) and len(tried) > 1:
                program = _first_python(self.of.program(each, example) for each in inside)
                return self.of.judged(program)
            return self.of.parse(next(inside), example) if tried else Parsed("invalid", None)
        elif isinstance(self.of, Labels) and not self.wrap.partition(PLACE)[2].strip():
            begins = [a for _, a in _places(self.wrap.partition(PLACE)[0], completion)][:_MOST]
            lines = [_next_line(completion[a : a + _LINE]) for a in begins]
            read = [self.of.parse_given(line, example) for line in lines]
            if any(each.status == "ambiguous" for each in read):
                return Parsed("ambiguous", None)
            return _one({each.choice for each in read if each.choice is not None})
        else:
            # a choice may hold the closing text itself, such as a quote: of an opening, what reaches furthest counts
            opens, closes = (_places(part, completion) for part in self.wrap.split(PLACE))
            longest = 2 * max(map(len, surfaces)) + 40
            found = set()
            ends = [b for b, _ in closes]
            for _, a in opens[:_MOST]:
                near = ends[bisect.bisect_left(ends, a) : bisect.bisect_right(ends, a + longest)]
                texts = (" ".join(completion[a:b].split()) for b in reversed(near))
                found |= next((hit for text in texts if (hit := only(text))), set())
            return _one(found)
        return _one(set().union(*(only(" ".join(text.split())) for text in said)))

    def _free_text(self, completion: str, example: Example) -> Parsed:
        """What the text inside the wrap is worth. Wraps around texts that differ once normalized: ambiguous."""
        accepted = _accepted(example)
        if self._json:
            key = next(key for key, value in (_json_values(self.wrap) or {}).items() if value == PLACE)
            held = (each[key] for each in objects(completion, AS_WRITTEN) if each.get(key) is not None)
            inside: Iterable[str] = map(_text_of, held)
        elif self.wrap.partition(PLACE)[2].strip():
            inside = self._between(completion, accepted)
        else:
            opens = re.compile(_loose(self.wrap.partition(PLACE)[0]), re.IGNORECASE).finditer(completion)
            # lines reach to the end; and a line must answer within some characters, but for the last wrap
            most = _MOST if is_one_line(accepted, example.score) else 1
            begins = [each.end() for each in itertools.islice(opens, most)]
            ends = [begin + _HEAD for begin in begins[:-1]] + [len(completion)]
            parts = (completion[begin:end] for begin, end in zip(begins, ends, strict=False))
            inside = (said[0] for part in parts if (said := readings(part, accepted, example.score)))
        found: dict[str, str] = {}
        for text in itertools.islice(inside, _MOST):
            if text.strip():
                found.setdefault(normalized(text), text.strip())
            if len(found) > 1:
                return Parsed("ambiguous", None)
        return _worth_of(list(found.values()), accepted, example)

    def _between(self, completion: str, accepted: Sequence[str]) -> Iterator[str]:
        """What stands between the fixed texts: an accepted text to its end, even if it holds what closes the wrap, else up to what closes it."""
        opens, closes = (re.compile(_loose(part), re.IGNORECASE) for part in self.wrap.split(PLACE))
        at = 0
        while opening := opens.search(completion, at):
            begin = _SPACE.match(completion, opening.end()).end()  # type: ignore[union-attr]  # matches nothing at least
            for text in accepted:
                if completion.startswith(text, begin):
                    space = _SPACE.match(completion, begin + len(text))
                    if space and (closed := closes.match(completion, space.end())):
                        yield text
                        at = closed.end()
                        break
            else:
                if (closing := closes.search(completion, opening.end())) is None:
                    return
                yield completion[opening.end() : closing.start()]
                at = closing.end()

    def settled(self, completion: str, example: Example) -> bool:
        """Never: a second wrap may follow, with another answer."""
        return False


def _json_values(text: str) -> dict[str, Any] | None:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and (PLACE not in text or PLACE in values.values()) else None


_SPACE = re.compile(r"\s*")
_MOST, _HEAD, _LINE = 1000, 4096, 400
"""Times that a wrap is looked into; characters after one that is not the last, and after one around a label."""


def _next_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")


def _text_of(value: object) -> str:
    """A value as an answer: a text as it is, anything else as JSON writes it, nothing where it cannot."""
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return ""


def _places(part: str, text: str) -> list[tuple[int, int]]:
    """Start and end of every place where a part stands, overlaps included; case and white space may differ.

    An empty part stands at every end of a line.
    """
    if not part.strip():
        return [match.span() for match in re.finditer(r"$", text, re.MULTILINE)]
    return [match.span(1) for match in re.finditer(f"(?=({_loose(part)}))", text, re.IGNORECASE)]


def _loose(part: str) -> str:
    return r"\s*".join(re.escape(word) for word in re.findall(r"\w+|[^\w\s]", part))


Bare = Labels | ChoiceText | Number | Expression | Code | Plan | ToolCall
AnswerFormat = Bare | Wrapped


def without_wrap(answer: AnswerFormat) -> Bare:
    """The format of what a wrap holds; a format that is no wrap is itself."""
    return answer.of if isinstance(answer, Wrapped) else answer


def answer_format_from(value: object) -> AnswerFormat:
    """The format written in a prompt file: "letters", "text", "number", "expression", "code", "plan", "steps", "call", "python-call",
    {"labels": [...]}, or {"wrap": text, "of": one of these}."""
    match value:
        case {"wrap": str(wrap), **rest} if rest.keys() <= {"of"}:
            inner = answer_format_from(rest.get("of", "letters"))
            if isinstance(inner, Wrapped):
                raise TemplateError(
                    f"answer {value!r}: a wrap inside a wrap; expected letters, text, number, expression, code, plan, steps, call, "
                    "python-call or labels in `of`"
                )
            return Wrapped(wrap, inner)
        case "letters":
            return Labels()
        case "text":
            return ChoiceText()
        case "number":
            return Number()
        case "expression":
            return Expression()
        case "code":
            return Code()
        case "plan":
            return Plan()
        case "steps":
            return Plan("steps")
        case "call":
            return ToolCall()
        case "python-call":
            return ToolCall("python")
        case {"labels": [*labels]} if len(value) == 1:  # type: ignore[arg-type]
            return Labels(tuple(labels))
    raise TemplateError(
        f"answer {value!r}: expected 'letters', 'text', 'number', 'expression', 'code', 'plan', 'steps', 'call', 'python-call', "
        "{labels: [one, per, choice]} or {wrap: ..., of: letters}"
    )


def answer_format_to(answer: AnswerFormat) -> str | Mapping[str, Any]:
    """The inverse of `answer_format_from`."""
    match answer:
        case Wrapped(wrap, of):
            return {"wrap": wrap, "of": answer_format_to(of)}
        case ChoiceText():
            return "text"
        case Number():
            return "number"
        case Expression():
            return "expression"
        case Code():
            return "code"
        case Plan(form):
            return "plan" if form == "list" else "steps"
        case ToolCall(form):
            return "call" if form == "json" else "python-call"
        case Labels(None):
            return "letters"
        case Labels(labels):
            return {"labels": list(labels or ())}


def _one(found: set[int]) -> Parsed:
    if len(found) == 1:
        return Parsed("valid", next(iter(found)))
    return Parsed("ambiguous" if found else "invalid", None)
