"""How a prompt is put together, whatever it says: where the instruction stands, how it ends, how the answer is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from paft.prompts.template import Template
from paft.tasks.answers import ChoiceText, Code, Expression, Labels, Number, Plan, ToolCall, Wrapped

STRUCTURE = ("placement", "cue", "format", "layout", "system")
"""The features of `structure`."""

_WORD = re.compile(r"[^\W\d_]+")
_SLOT = re.compile(r"\{[A-Za-z_]\w*\}", re.ASCII)
_ENDS_IN_SLOT = re.compile(_SLOT.pattern + r"$", re.ASCII)
_LABEL = re.compile(r"(?m)^[ \t]*(?:\S+[ \t]+)?\S*[:=>)\]\"'|-]\s*\Z")
_INSTRUCTS = 3
"""Words that make a piece of text more than a label."""


def structure(template: Template) -> dict[str, str]:
    """Value of every feature of STRUCTURE. Words are letters in a row; writing without spaces counts its signs by fours."""
    return {
        "placement": placement(template),
        "cue": cue(template),
        "format": answer_form(template),
        "layout": _layout(template),
        "system": "some" if (template.system or "").strip() else "none",
    }


def placement(template: Template) -> str:
    """Where the instruction stands: before, after, around or between the fields, in the system text, or nowhere.

    A label of one or two words right before a field ("Goal:") is no instruction.
    """
    counts = [_count(_LABEL.sub("", part)) for part in _SLOT.split(template.text)[:-1]]
    before, between = counts[0] if counts else 0, max(counts[1:], default=0)
    after = _count(_SLOT.split(template.text)[-1])
    places = [
        name for name, count in (("before", before), ("between", between), ("after", after)) if count >= _INSTRUCTS
    ]
    if not places:
        return "system" if _count(_SLOT.sub("", template.system or "")) >= _INSTRUCTS else "none"
    return "around" if {"before", "after"} <= set(places) else places[0] if len(places) == 1 else "between"


def cue(template: Template) -> str:
    """How the text ends: with a field, a colon, an arrow, a question, a sentence, an opening sign, or unfinished words."""
    end = template.text.rstrip()
    if _ENDS_IN_SLOT.search(end):
        return "field"
    for name, pattern in (
        ("question", r"[?\uff1f]['\"\u201d)*_]*$"),
        ("colon", r"[:\uff1a][*_]*$"),
        ("arrow", r"(?:->|=>|>>|\u2192|\u21d2|>>>)$"),
        ("opening", r"[<\[({\"'`=_]$|<\w+>$|\\boxed$"),
        ("sentence", r"[.!\u3002\uff01]['\"\u201d)*_]*$|</\w+>$|[}\])]$"),
    ):
        if re.search(pattern, end):
            return name
    return "unfinished"


def answer_form(template: Template) -> str:
    """How the answer is written: its wrap, the option's text, or labels of a kind."""
    match template.inner_answer:
        case Labels(labels):
            inner = f"labels {labels}"
        case ChoiceText():
            inner = "text"
        case Number():
            inner = "number"
        case Expression():
            inner = "expression"
        case Code():
            inner = "code"
        case Plan(form):
            inner = f"plan as {form}"
        case ToolCall(form):
            inner = f"call as {form}"
    return f"{template.answer.wrap} of {inner}" if isinstance(template.answer, Wrapped) else inner


def _layout(template: Template) -> str:
    text = template.text
    for name, pattern in (
        ("tags", r"</\w+>"),
        ("markdown", r"(?m)^#{1,4} |^\||\*\*|^```"),
        ("code", r"[\"']\w+[\"']\s*:\s|(?m:^\w+\(|^\{\s*$|^\s*(?:def|class|select|print|return|>>>)\b)"),
        ("labels", r"(?m)^[^\n:]{1,30}:\s*(?:\{|$)"),
    ):
        if re.search(pattern, text, re.IGNORECASE):
            return name
    return "lines" if "\n" in text.strip() else "one line"


def _count(text: str) -> int:
    return sum(1 if part.isascii() or len(part) < 8 else len(part) // 4 for part in _WORD.findall(text))


def structure_counts(splits: Mapping[str, Sequence[Template]]) -> dict[str, dict[str, dict[str, int]]]:
    """How often each value of each feature occurs: feature -> value -> split -> templates."""
    table: dict[str, dict[str, dict[str, int]]] = {feature: {} for feature in STRUCTURE if feature != "format"}
    for split, templates in splits.items():
        found = [structure(template) for template in templates]
        for feature, values in table.items():
            for value, count in Counter(each[feature] for each in found).most_common():
                values.setdefault(value, dict.fromkeys(splits, 0))[split] = count
    return table


def clusters(templates: Sequence[Template], by: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """(names_C, cluster_K) of prompts that share a feature of how they are put together; by "prompt": each for itself."""
    values = [template.id if by == "prompt" else structure(template)[by] for template in templates]
    names = sorted(set(values))
    return tuple(names), tuple(names.index(value) for value in values)


def partners(templates: Sequence[Template]) -> tuple[tuple[int, ...], ...]:
    """For each prompt the others that want the answer written the same way: the same tokens can be compared between them."""
    return tuple(
        tuple(other for other, its in enumerate(templates) if other != k and its.answer == template.answer)
        for k, template in enumerate(templates)
    )
