"""What writers are asked: meta-prompts in two strategies over axes, and how their replies are read.

zero-shot asks for variety and shows nothing; few-shot shows prompts that exist and asks for others as good (PAFT, section
3.1, names the two; its texts are not published, these are ours). Each request also turns a few axes along which real
prompts differ, drawn by the request's own number, so that a build is a pure function of its settings and the replies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paft.errors import TemplateError
from paft.lm.types import Chat, Message
from paft.prompts.template import Fault, Template, template_from, template_to
from paft.tasks.answers import LETTERS
from paft.tasks.types import Example, Task

META = "1"
"""Version of the texts below; part of every prompt's origin."""

AXES: dict[str, tuple[str, ...]] = {
    "who asks": (
        "an exam paper", "an application's backend", "a chat message from a teenager", "a crowd-work guideline", "a teacher in class",
        "an office e-mail", "a form to fill in", "a quiz show", "a lab protocol", "a lawyer", "a non-native speaker",
        "somebody in a hurry", "a customer of a help desk", "a game", "a developer testing an API", "a careful researcher",
    ),
    "length": ("under 12 words", "one or two sentences", "a short paragraph", "a long, careful briefing of 100 to 200 words"),
    "place of the instruction": ("before the data", "after the data", "around the data", "between the fields", "only in the system text", "no instruction, only layout and a cue"),
    "layout": ("plain prose", "labelled lines", "Markdown headings", "XML-like paired tags", "a JSON record", "a table", "a bare list", "everything on one line"),
    "answer cue": ("none", "a word and a colon", "an arrow", "an unfinished sentence", "a question", "an opening key such as in a form"),
    "answer form": ("the letter", "a number", "the text of the option itself", "own code words for the options", "inside a JSON object", "inside paired tags", "inside \\boxed{}", "after a fixed phrase"),
    "register": ("formal", "casual", "terse", "polite", "strict, with a warning", "playful", "technical", "warm"),
    "options": ("one per line", "in running text", "in a block with letters", "in a block with numbers", "separated by slashes", "each in its own tag"),
    "system text": ("none", "none", "none", "a short rule on the form of the answer", "a role", "the whole instruction"),
    "language of the instruction": ("English",) * 12 + ("German", "French", "Spanish", "Chinese", "Portuguese", "Japanese"),
    "care": ("faultless",) * 9 + ("one or two natural typing errors", "all lower case, little punctuation"),
}  # fmt: skip
"""How prompts of real people differ. The paper varies none of them on purpose."""


TURNED = 5
"""Axes that one request turns."""


@dataclass(frozen=True)
class Request:
    """One question to one writer. `key` is a hash of all that is sent: a reply is kept under it and never paid for twice."""

    writer: str
    model: str
    strategy: str
    number: int
    wanted: int
    chat: Chat
    axes: Mapping[str, str]
    attempt: int = 0

    @property
    def key(self) -> str:
        """Sixteen hex digits."""
        parts = [self.writer, self.model, self.number, self.attempt, [[m.role, m.text] for m in self.chat]]
        return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def seed(self) -> int:
        """Seed sent along; servers that know it give the same reply to the same request."""
        return int(self.key[:7], 16)


def make_request(
    task: Task,
    about: str,
    examples: Sequence[Example],
    shown: Sequence[Template],
    *,
    writer: str,
    model: str,
    strategy: str,
    number: int,
    wanted: int,
    seed: int,
    own_axes: Mapping[str, Sequence[str]] | None = None,
    rows: Sequence[Example] = (),
) -> Request:
    """The request of that number: a pure function of its arguments. shown: templates that few-shot requests draw from. rows: see
    `rules_of`.

    own_axes: more axes, or other values for those of AXES; an axis without values is left out.
    """
    draw = random.Random(f"{seed} {writer} {strategy} {number}")
    values = {axis: each for axis, each in {**AXES, **(own_axes or {})}.items() if each}
    turned = sorted(draw.sample(sorted(values), min(TURNED, len(values))))
    axes = {axis: draw.choice(values[axis]) for axis in turned}
    item = draw.choice(list(examples))
    picked = draw.sample(list(shown), min(3, len(shown))) if strategy == "few-shot" else []
    system = (
        "You write prompts for testing language models. Your prompts are read by programs: you answer with a JSON array "
        "and nothing else."
    )
    text = "\n\n".join(_parts(task, about, item, axes, picked, wanted, rows))
    return Request(writer, model, strategy, number, wanted, (Message("system", system), Message("user", text)), axes)


def _optional(task: Task, rows: Sequence[Example]) -> list[str]:
    """Optional fields that all rows have."""
    return [name for name in task.optional_fields if all(name in row.fields for row in rows)]


def _any_number(rows: Sequence[Example]) -> bool:
    return len({len(row.choices) for row in rows}) > 1


def _choice_rules(task: Task, rows: Sequence[Example]) -> list[str]:
    letters = LETTERS[: task.num_choices]
    own = ", ".join(f'"{x}"' for x in ("p", "q", "r", "s", "t")[: task.num_choices])
    labels = "" if _any_number(rows) else f'{{"labels": [{own}]}} (own labels in the order of the options), '
    return [
        'With {choices}, "options" lays out one option ("{label}) {text}") and "joiner" stands between two.',
        f'"answer" says what the model has to write: "letters" ({", ".join(letters)}), "text" (the right option itself), '
        f"{labels}or one of these inside fixed text: "
        '{"wrap": "<answer>{answer}</answer>", "of": "letters"}.',
        "The words must ask for exactly that form, and for the bare answer: no explanation, no second answer.",
    ]


def rules_of(task: Task, rows: Sequence[Example] = ()) -> list[str]:
    """What a template of the task has to keep to, in words. rows: examples that it has to be able to ask, besides usual ones."""
    optional = _optional(task, rows)
    letters = LETTERS[: task.num_choices]
    fields = ", ".join(f"{{{name}}}" for name in task.fields)
    rules = [f"Each template shows each of these slots exactly once: {fields}."]
    if getattr(task, "shows_images", False):
        rules.append(
            "The model sees the picture of a question before these words; it has no slot, and the words may speak of it."
        )
    if optional:
        rules.append(f"It may also show, at most once: {', '.join(f'{{{name}}}' for name in optional)}.")
    if task.num_choices == 1:
        pass
    elif task.choices:
        rules.append(
            f"The possible answers are always, in this order: {', '.join(task.choices)}. They may be named in the words, or shown "
            "by the slot {choices}."
        )
    elif _any_number(rows):
        rules.append(
            f"The options, mostly {task.num_choices}, in some items more or fewer, are shown by the slot {{choices}}; the words name no "
            "number of them."
        )
    else:
        rules.append(
            f"The {task.num_choices} options are shown once each, by the slots {' '.join(f'{{{x}}}' for x in letters)}, or all by "
            "the slot {choices}."
        )
    if getattr(task, "open_kind", "") == "code":
        rules += [
            '"answer" says what the model has to write: "code" (the whole function, plain or in one fenced block), or the function inside '
            'fixed text: {"wrap": "<code>{answer}</code>", "of": "code"}.',
            "The words must ask for exactly that form, and for the whole function.",
        ]
    elif getattr(task, "open_kind", "") == "plan":
        rules += [
            '"answer" says what the model has to write: "plan" (a JSON list of {"id": 0, "name": ..., "args": {...}}, in the order of the calls), '
            '"steps" (numbered lines "1. Use NAME with {...}", a call each), or one of these inside fixed text: '
            '{"wrap": "<plan>{answer}</plan>", "of": "plan"}.',
            "The words must ask for exactly that form, and for the whole plan and nothing else.",
        ]
    elif getattr(task, "open_kind", "") == "call":
        rules += [
            '"answer" says what the model has to write: "call" (a JSON object {"name": ..., "args": {...}}), "python-call" (one call such as '
            "tool.name(key='value', n=3)), or one of these inside fixed text: "
            '{"wrap": "<call>{answer}</call>", "of": "call"}.',
            "The words must ask for exactly that form, with the keys name and args where it is JSON, and for one call and nothing else.",
        ]
    elif getattr(task, "open_kind", "") == "text" and task.num_choices == 1:
        rules += [
            '"answer" says what the model has to write: "text" (the bare answer), or that inside fixed text: '
            '{"wrap": "<answer>{answer}</answer>", "of": "text"}.',
            "The words must ask for exactly that form, and for the bare answer: nothing before it, nothing after it.",
        ]
    elif task.num_choices == 1:
        kind = getattr(task, "open_kind", "number")
        what = "a number, root or fraction in LaTeX or plain signs" if kind == "expression" else "the bare number"
        rules += [
            f'"answer" says what the model has to write: "{kind}" ({what}), or that inside fixed text: '
            f'{{"wrap": "<answer>{{answer}}</answer>", "of": "{kind}"}}.',
            "The words must ask for exactly that form; they may let the model reason before it, never after it.",
        ]
    else:
        rules += _choice_rules(task, rows)
    rules += [
        "The words never give an answer away and never ask for the wrong or worst option.",
        "No placeholders besides the slots; real line breaks; nothing that a person would have to fill in.",
    ]
    return rules


def _parts(
    task: Task,
    about: str,
    item: Example,
    axes: Mapping[str, str],
    shown: Sequence[Template],
    wanted: int,
    rows: Sequence[Example],
) -> Iterator[str]:
    yield f"Write {wanted} different prompt templates that put the following task to a model.\n\nTask: {about}"
    yield "Rules:\n" + "\n".join(f"- {rule}" for rule in rules_of(task, rows))
    shown_fields = (*task.fields, *_optional(task, rows))  # an example of code also holds its tests
    offered = {} if task.choices or task.num_choices == 1 else {"options": list(item.choices)}
    yield "An item of the task, so that you know what fills the slots (do not copy it):\n" + json.dumps(
        {**{name: text for name, text in item.fields.items() if name in shown_fields}, **offered}, ensure_ascii=False
    )
    if shown:
        entries = [{k: v for k, v in template_to(t).items() if k not in ("id", "origin")} for t in shown]
        yield (
            "Prompts that are good; yours are as good and differ from them and from each other in more than words:\n"
            + json.dumps(entries, ensure_ascii=False, indent=1)
        )
    wishes = "\n".join(f"- {axis}: {value}" for axis, value in axes.items()) or "- no special wishes"
    yield f"For this batch, as far as it makes sense:\n{wishes}\nEverything else differs from one template to the next."
    yield (
        f'Answer with a JSON array of {wanted} objects with the keys "text" and "answer", and where needed "system", "options", '
        '"joiner".'
    )


def ask_again(request: Request, reply: str, fault: Fault) -> Request:
    """The same request once more, with the fault of the reply named."""
    extra = Message(
        "user",
        f"Your last answer could not be used: {fault.reason}. It began with: {reply.strip()[:200]!r}. "
        f"Answer again, with a JSON array of {request.wanted} objects and nothing else.",
    )
    base = request.chat[:2]
    merged = Message("user", f"{base[1].text}\n\n{extra.text}")
    return Request(
        request.writer, request.model, request.strategy, request.number, request.wanted,
        (base[0], merged), request.axes, request.attempt + 1,
    )  # fmt: skip


def read_reply(reply: str, origin: Mapping[str, Any]) -> tuple[list[Template], list[tuple[str, Fault]]]:
    """Templates of a reply, and the entries that are none, each with its fault. No entry at all is one fault, "unreadable"."""
    entries = list(_entries(reply))
    if not entries:
        return [], [(reply.strip()[:200], Fault("unreadable", "it holds no JSON object with the keys text and answer"))]
    templates, faulty = [], []
    for entry in entries:
        known = {
            key: entry[key] for key in ("text", "answer", "system", "options", "joiner") if entry.get(key) is not None
        }
        try:
            templates.append(template_from({**known, "origin": dict(origin)}, "entry"))
        except TemplateError as error:
            faulty.append((json.dumps(entry, ensure_ascii=False)[:200], Fault("malformed", str(error))))
    return templates, faulty


_DECODER = json.JSONDecoder(strict=False)
_MARK = re.compile(r"\{|</?think>", re.IGNORECASE)
_CLOSED = re.compile("</think>", re.IGNORECASE)


def _entries(reply: str) -> Iterator[dict[str, Any]]:
    """Objects with a text, wherever they stand: in an array, in another object, in a code fence, one per line."""
    for value in json_objects(reply):
        yield from _with_text(value)


def json_objects(reply: str) -> Iterator[Any]:
    """Every outermost JSON object of a reply. What a model thinks aloud, up to </think>, is left out, also where the tag was opened before the
    reply began; inside an object the tags are text.
    """
    found: list[Any] = []
    begin, end, at = len(reply) - len(reply.lstrip()), len(reply.rstrip()), 0
    last = max((each.start() for each in _CLOSED.finditer(reply)), default=-1)
    while mark := _MARK.search(reply, at):
        at = mark.end()
        match mark[0].casefold():
            case "{":
                with contextlib.suppress(ValueError, RecursionError):  # RecursionError: brackets nested by the hundred
                    value, at = _DECODER.raw_decode(reply, mark.start())
                    found.append(value)
            case "<think>" if closed := _CLOSED.search(reply, at) if at <= last else None:
                at = closed.end()
            case "<think>" if found or mark.start() == begin:
                break
            case "</think>" if at < end:  # else a tag too many behind the answer
                found.clear()
    yield from found


def _with_text(value: Any, depth: int = 3) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict) and "text" in value:
        yield value
    elif depth and isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _with_text(inner, depth - 1)
