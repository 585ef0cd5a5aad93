"""One call of a tool: how it is read, written, and judged beside the right one, as T-Eval's own grader of instructions judges it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from paft.tasks.texts import LONGEST, UNREADABLE, literal, objects

MOST = 64
"""Places in a text where a Python call may begin that are looked at."""


class FunctionCall(NamedTuple):
    """A tool by name, and its arguments by theirs."""

    name: str
    arguments: Mapping[str, Any]


def agreement(call: FunctionCall, gold: FunctionCall) -> float:
    """Of the right name and the right arguments the part that the call has, in [0, 1]. Arguments beside the right ones are not looked at.

    Values are compared by Python's ==, and one that is not there is an empty text: so does T-Eval's grader.

    >>> agreement(FunctionCall("find", {"n": 1.0, "q": "x"}), FunctionCall("find", {"n": 1, "q": "y"}))
    0.6666666666666666
    """
    right = [_same(call.arguments.get(name, ""), value) for name, value in gold.arguments.items()]
    return (sum(right) + (call.name == gold.name)) / (1 + len(right))


def _same(value: object, gold: object) -> bool:
    try:
        return bool(value == gold)
    except RecursionError:
        return False


def read_json(text: str) -> list[FunctionCall]:
    """The different calls that stand in a text as objects {"name", "args"}, as JSON or as Python writes them; outermost objects only, and two
    calls at most.

    `args` that are no object are none.
    """
    found: list[FunctionCall] = []
    for values in objects(text, python=True):
        if isinstance(values.get("name"), str) and "args" in values:
            arguments = values["args"] if isinstance(values["args"], dict) else {}
            keep(found, FunctionCall(values["name"].strip(), arguments))
            if len(found) > 1:
                break
    return found


def keep(found: list[FunctionCall], call: FunctionCall) -> None:
    """Add a call that is not among those found."""
    if not any(_same(call, each) for each in found):
        found.append(call)


_NAME = r"[^\W\d][\w.-]*"
_HEAD = re.compile(rf"(?<![\w.\\-])({_NAME})\(")
_KEYWORD = re.compile(r"\s*([^\W\d]\w*)\s*=(?!=)(.*)", re.DOTALL)


def read_python(text: str) -> list[FunctionCall]:
    """The different calls that stand in a text as `tool.name(key='value', n=3)`. Values are literals of Python or JSON; nothing is evaluated.

    Outermost calls only: one whose values are no literals is none, and what stands in it is not read. A value without a key is not looked
    at. A call without arguments counts where no other stands.
    """
    found: list[FunctionCall] = []
    at = 0
    for _ in range(MOST):
        if (head := _HEAD.search(text, at)) is None:
            break
        pieces, at = _pieces(text, head.end())
        arguments = None if pieces is None else _arguments(pieces)
        if arguments is not None:
            keep(found, FunctionCall(head[1], arguments))
    return [call for call in found if call.arguments] or found


def _pieces(text: str, start: int) -> tuple[list[str] | None, int]:
    """What stands between commas up to the bracket that closes the call, and where that is; None when nothing closes it."""
    pieces: list[str] = []
    depth, begin, quote, at = 0, start, "", start
    while at < min(len(text), start + LONGEST):
        sign = text[at]
        if quote:
            if sign == "\\":
                at += 1
            elif text.startswith(quote, at):
                at += len(quote) - 1
                quote = ""
        elif sign in "'\"":
            quote = 3 * sign if text.startswith(3 * sign, at) else sign
            at += len(quote) - 1
        elif sign in "([{":
            depth += 1
        elif sign in ")]}" and depth:
            depth -= 1
        elif sign == ")":
            return [*pieces, text[begin:at]], at + 1
        elif sign == "," and not depth:
            pieces.append(text[begin:at])
            begin = at + 1
        at += 1
    return None, start


def _arguments(pieces: list[str]) -> dict[str, Any] | None:
    """Values by their keys; None when a piece is no literal or a key stands twice."""
    found: dict[str, Any] = {}
    for piece in pieces:
        keyword = _KEYWORD.fullmatch(piece)
        if not piece.strip():
            continue
        try:
            value = literal((keyword[2] if keyword else piece).strip())
        except UNREADABLE:
            return None
        if keyword and keyword[1] in found:
            return None
        if keyword:
            found[keyword[1]] = value
    return found


def write_json(call: FunctionCall) -> str:
    """A call as a JSON object. Raises ValueError for one that does not read as itself, such as one with NaN."""
    try:
        text = json.dumps({"name": call.name, "args": call.arguments}, ensure_ascii=False, allow_nan=False)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if read_json(text) != [call]:
        raise ValueError("does not read as itself")
    return text


def write_python(call: FunctionCall) -> str:
    """A call as Python writes it. Raises ValueError for one that has a name that is none there."""
    for name, form in ((call.name, _NAME), *((each, r"[^\W\d]\w*") for each in call.arguments)):
        if not re.fullmatch(form, name):
            raise ValueError(f"{name!r} is no name in a Python call")
    text = f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
    if read_python(text) != [call]:
        raise ValueError("does not read as itself")
    return text
