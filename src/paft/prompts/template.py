"""A template: text with {slots}, and how its answer is written.

A slot is replaced by the field's text exactly, in one pass: braces inside a field stay what they are, and nothing is ever
formatted or evaluated. `{{name}}` writes a literal `{name}`; any other brace is an ordinary character.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from paft.errors import TemplateError, few, nearest
from paft.lm.types import Chat, Message
from paft.tasks.answers import (
    LETTERS,
    AnswerFormat,
    Bare,
    ChoiceText,
    Code,
    Expression,
    Labels,
    Number,
    Plan,
    ToolCall,
    answer_format_from,
    answer_format_to,
    without_wrap,
)
from paft.tasks.types import Example, Task

SLOT = re.compile(r"\{\{(?P<literal>[A-Za-z_]\w*)\}\}|\{(?P<slot>[A-Za-z_]\w*)\}", re.ASCII)
OPTION_SLOT = re.compile(r"\{(label|text)\}")
_ESCAPE = re.compile(r"\\[nrt]")
# [UPPER CASE] or [insert ...] or <text>: a blank that somebody forgot to fill; paired tags <x>..</x> are layout
_BLANK = re.compile(r"\[(?:(?i:insert|your|the|put|add)\b[^\]\n]*|[A-Z][A-Z _]{2,})\]")
_TAG = re.compile(r"(?<!<)<([A-Za-z][\w -]*)>(?!>)")


@dataclass(frozen=True)
class Fault:
    """What is wrong with a template: a name to count by (see `auditing.FAULTS`) and a reason to read."""

    name: str
    reason: str


@dataclass(frozen=True)
class Template:
    """One way of asking. Two templates of equal content have the same id, wherever they are stored.

    options, joiner: how `{choices}` is laid out: one line per option, and what stands between lines.
    origin: who wrote it and how (free keys); not part of the content.
    """

    text: str
    answer: AnswerFormat
    system: str | None = None
    options: str = "{label}. {text}"
    joiner: str = "\n"
    origin: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def id(self) -> str:
        """Eight hex digits of a hash over everything that is rendered."""
        content = [self.text, answer_format_to(self.answer), self.system or None, self.options, self.joiner]
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots in system text and text, in order, repeats included."""
        return tuple(
            match["slot"] for part in (self.system or "", self.text) for match in SLOT.finditer(part) if match["slot"]
        )

    @property
    def static_text(self) -> str:
        """What the template says by itself: system text and text without slots."""
        return SLOT.sub("", f"{self.system or ''}\n{self.text}")

    @property
    def inner_answer(self) -> Bare:
        """The answer format without its wrap."""
        return without_wrap(self.answer)

    def check(self, task: Task) -> None:
        """Raise TemplateError, naming this template, unless it can ask every question of the task."""
        for fault in self.faults(task):
            start = " ".join(self.text.split())[:40]
            raise TemplateError(f"template {self.id} ({start!r}): {fault.reason}")

    def faults(self, task: Task) -> Iterator[Fault]:
        """What keeps this template from asking every question of the task; empty when it can."""
        is_open = task.num_choices == 1
        known = [*task.fields, *task.optional_fields, *([] if is_open else ["choices", *LETTERS[: task.num_choices]])]
        counts = {name: self.slots.count(name) for name in self.slots}
        for name in counts:
            if name not in known:
                hidden = " (it is the answer and may not be shown)" if name in ("answer", "label", "gold") else ""
                yield Fault(
                    "slot_unknown",
                    f"slot {{{name}}} is not a field of task {task.name!r}{nearest(name, known)}; fields: {few(known, 12)}"
                    f"{hidden or f'; write {{{{{name}}}}} for the text itself'}",
                )
        for name in task.fields:
            if name not in counts:
                like = (
                    re.search(rf"\{{*\s*\b{re.escape(name)}\b[^{{}}\n]*\}}*", self.text) if "{" in self.text else None
                )
                hint = (
                    f"; {like[0].strip()!r} is read as text, a slot is {{{name}}}"
                    if like and {*"{}"} & {*like[0]}
                    else ""
                )
                yield Fault(
                    "slot_missing",
                    f"slot {{{name}}} is missing; every prompt of task {task.name!r} shows {few(task.fields)}{hint}",
                )
        for name, count in counts.items():
            if count > 1:
                yield Fault("slot_repeated", f"slot {{{name}}} occurs {count} times; expected once")
        kind = getattr(task, "open_kind", "number") if is_open else ""  # a task of one's own need not say
        kinds = {Number: "number", Expression: "expression", Code: "code", Plan: "plan", ToolCall: "call"}
        told = kinds.get(type(self.inner_answer), "text" if is_open and self.inner_answer == ChoiceText() else "")
        if kind != told:
            named = {"plan": "plan or steps", "call": "call or python-call"}.get(kind, kind)
            wanted = f"answer: {named}, or a wrap of it" if is_open else "answer: letters, text or labels"
            what = f"open answers ({kind})" if is_open else f"{task.num_choices} choices"
            yield Fault("contract", f"task {task.name!r} has {what}; expected {wanted}")
        if not is_open:
            yield from self._option_faults(task, counts)
        static = self.static_text + self.options + self.joiner
        if escape := _ESCAPE.search(static):
            yield Fault("escape", f"holds a literal {escape[0]!r} (two characters); write a real line break or tab")
        if blank := _BLANK.search(static):
            yield Fault("blank", f"holds what looks like an unfilled blank {blank[0]!r}; fill it, or use a {{slot}}")
        for tag in _TAG.finditer(static):
            if f"</{tag[1].split()[0]}" not in static and not self.text.endswith(tag[0]):  # an open tag as cue is fine
                yield Fault(
                    "blank",
                    f"holds {tag[0]!r} without a closing tag: an unfilled blank? fill it, close it, or use a {{slot}}",
                )
        if not self.text.strip():
            yield Fault("empty", "has no text")

    def unable(self, examples: Iterable[Example]) -> Iterator[Fault]:
        """A fault where one of the examples (`of_each_kind`) cannot be asked: it has another number of options, or lacks an optional field."""
        for example in examples:
            try:
                self.render(example)
                self.answer.surfaces(example)
            except TemplateError as error:
                yield Fault("contract", str(error))
                return

    def _option_faults(self, task: Task, counts: Mapping[str, int]) -> Iterator[Fault]:
        letters = LETTERS[: task.num_choices]
        shown = [name for name in letters if name in counts]
        if shown and len(shown) < len(letters):
            absent = next(x for x in letters if x not in counts)
            yield Fault(
                "options_missing",
                f"shows option {{{shown[0]}}} but not {{{absent}}}; show all options, or {{choices}}",
            )
        if shown and "choices" in counts:
            yield Fault("slot_repeated", "shows the options twice, by {choices} and one by one; use one of the two")
        if task.choices is None and not shown and "choices" not in counts and isinstance(self.inner_answer, Labels):
            yield Fault(
                "options_missing", "asks for a label but shows no options; add {choices}, or use `answer: text`"
            )
        labels = self.inner_answer.labels if isinstance(self.inner_answer, Labels) else None
        if labels is not None and len(labels) != task.num_choices:
            yield Fault("contract", f"has {len(labels)} labels; task {task.name!r} has {task.num_choices} choices")
        if not OPTION_SLOT.search(self.options):
            yield Fault("options_missing", f"options {self.options!r} shows neither {{label}} nor {{text}}")

    def render(self, example: Example) -> Chat:
        """The turns that ask this example. Raises TemplateError when the example lacks a field."""
        values = dict(example.fields)
        if "choices" in self.slots:
            values["choices"] = self._choices(example)
        shown = [slot for slot in self.slots if slot in LETTERS and slot not in values]
        if shown and len(shown) != len(example.choices):
            raise TemplateError(
                f"template {self.id} shows {len(shown)} options one by one, example {example.id!r} has {len(example.choices)}; "
                "use {choices} for examples with a varying number of choices"
            )
        for letter, choice in zip(LETTERS, example.choices, strict=False):
            values.setdefault(letter, choice)

        def fill(match: re.Match[str]) -> str:
            if match["literal"]:
                return f"{{{match['literal']}}}"
            try:
                return values[match["slot"]]
            except KeyError:
                raise TemplateError(
                    f"template {self.id}: example {example.id!r} has no field {match['slot']!r}{nearest(match['slot'], values)}"
                ) from None

        turns = [Message("system", SLOT.sub(fill, self.system))] if self.system else []
        return (*turns, Message("user", SLOT.sub(fill, self.text), example.images))

    def target(self, example: Example) -> str:
        """The right answer as this template wants it written."""
        return self.answer.surfaces(example)[example.answer]

    def _choices(self, example: Example) -> str:
        labels = (self.inner_answer if isinstance(self.inner_answer, Labels) else Labels()).surfaces(example)

        def line(label: str, text: str) -> str:
            return OPTION_SLOT.sub(lambda match: label if match[1] == "label" else text, self.options)

        return self.joiner.join(line(label, text) for label, text in zip(labels, example.choices, strict=True))


def of_each_kind(examples: Iterable[Example]) -> list[Example]:
    """One example of each kind that a prompt might be unable to ask: by its fields, its number of options, and whether Python can write its call."""
    return [*{(frozenset(each.fields), len(each.choices), _in_python(each)): each for each in examples}.values()]


def _in_python(example: Example) -> bool:
    try:
        return bool(example.is_open and ToolCall("python").surfaces(example))
    except TemplateError:
        return False


def template_from(entry: Mapping[str, Any], where: str) -> Template:
    """A template from a mapping of a prompt file. Raises TemplateError that names the place."""
    known = {"text", "answer", "system", "options", "joiner", "origin", "id"}
    for key in entry:
        if key not in known:
            raise TemplateError(
                f"{where}: unknown key {key!r}{nearest(str(key), known)}; known: {few(sorted(known), 9)}"
            )
    for key in ("text", "answer"):
        if key not in entry:
            raise TemplateError(f"{where}: key {key!r} is missing")
    for key in ("text", "system", "options", "joiner"):
        optional = key != "text" and entry.get(key) is None
        if not optional and not isinstance(entry[key], str):
            raise TemplateError(f"{where}: {key} is {entry[key]!r}; expected text (quote it)")
    for key in ("text", "answer", "system", "options", "joiner"):
        if any(
            "\ud800" <= character <= "\udfff"
            for character in json.dumps(entry.get(key), ensure_ascii=False, default=str)
        ):
            raise TemplateError(f"{where}: {key} holds half a surrogate pair, which is no text")
    try:
        answer = answer_format_from(entry["answer"])
    except TemplateError as error:
        raise TemplateError(f"{where}: {error}") from None
    given = {key: entry[key] for key in ("options", "joiner") if entry.get(key) is not None}
    if entry.get("origin") is not None:
        given["origin"] = _origin(entry["origin"], where)
    if entry.get("system"):
        given["system"] = entry["system"]
    template = Template(entry["text"], answer, **given)
    if "id" in entry and str(entry["id"]) != template.id:
        raise TemplateError(
            f"{where}: stored id {entry['id']!r} is not that of its content ({template.id}); remove the id after editing"
        )
    return template


def _origin(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TemplateError(f"{where}: origin is {value!r}; expected a mapping, such as {{writer: Anna}}")
    return {
        str(key): told if isinstance(told, str | int | float | list | dict) else str(told)
        for key, told in value.items()
    }


def template_to(template: Template) -> dict[str, Any]:
    """The mapping that `template_from` reads, defaults left out, id included."""
    entry: dict[str, Any] = {"id": template.id}
    if template.system:
        entry["system"] = template.system
    entry |= {"text": template.text, "answer": answer_format_to(template.answer)}
    if template.options != "{label}. {text}":
        entry["options"] = template.options
    if template.joiner != "\n":
        entry["joiner"] = template.joiner
    if template.origin:
        entry["origin"] = dict(template.origin)
    return entry
