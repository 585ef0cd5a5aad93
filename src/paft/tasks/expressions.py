"""Mathematical expressions: which text is one, and whether two have the same value, which a process that can be ended finds out."""

from __future__ import annotations

import bisect
import contextlib
import importlib.util
import json
import queue
import re
import subprocess
import sys
import threading
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Literal

from paft.errors import ConfigError, ResourceError
from paft.tasks.algebra import SECONDS

LONGEST, DEEPEST = 200, 6
"""Characters and nested brackets of an expression; what has more is none."""
START = 120.0
"""Seconds until the process must be ready."""

_SIGNS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\cdot ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ",
    "**": "^",
    "*": r"\cdot ",
    "\u00f7": "/",
    "\u2044": "/",
    "\u03c0": r"\pi ",
    "\u00b0": r"^\circ ",
    "\u00b2": "^2 ",
    "\u00b3": "^3 ",
    "\u00bd": r"\frac{1}{2}",
    "\u00bc": r"\frac{1}{4}",
    "\u00be": r"\frac{3}{4}",
    "\u221a": r"\sqrt ",
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\times": r"\cdot",
    r"\degree": r"^\circ",
    r"\deg": r"^\circ",
    r"\div": "/",
    "{,}": ",",
    r"\left": "",
    r"\right": "",
    r"\displaystyle": "",
    r"\,": " ",
    r"\;": " ",
    r"\!": "",
    r"\ ": " ",
    "~": " ",
}
_SIGN = re.compile("|".join(re.escape(sign) + (r"(?![a-z])" if sign[-1].isalpha() else "") for sign in _SIGNS))
_UNIT = (
    r"(?:(?:square|sq|cubic)\.?\s*)?(?:degrees?|deg|units?|centimet(?:er|re)s?|millimet(?:er|re)s?|kilomet(?:er|re)s?|met(?:er|re)s?|inch(?:es)?"
    r"|feet|foot|yards?|miles?|cm|mm|km|ft|yd|mi|in|m)\b\.?"
)
_UNITS = re.compile(
    rf"\s*(?:\\(?:text|mathrm|textrm|mbox)\s*\{{\s*(?:{_UNIT}|squared?)*\s*\}}|(?<![A-Za-z\\]){_UNIT})(?:\s*(?:\^\s*\{{?[23]\}}?|squared))?\s*$",
    re.IGNORECASE,
)
_DEGREES = re.compile(r"\s*(?:\^\s*(?:\\circ(?![a-z])|o|\{\s*(?:\\circ|o)\s*\})|\\?%)\s*$")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)")
_ANGLE = re.compile(r"\\(sin|cos|tan)\s*[({]?\s*(\d+(?:\.\d+)?)\s*\^\s*\{?\s*\\circ\s*\}?\s*[)}]?")
_LISTED = re.compile(r"\b(?:or|and)\b|[,;]")
_ROUNDED = re.compile(r"\\approx(?![a-z])|\u2248")
_MARKS = re.compile(r"^(?:\\\(|\\\[|[\s$*`\"'\u201c\u2018])+|(?:\\\)|\\\]|[\s$*`\"'\u201d\u2019,;!]|\.(?!\d))+$")
_COMMAND = r"\\(?:frac|sqrt|pi|cdot|circ|sin|cos|tan|%)(?![a-z])|\\%"
_TOKEN = re.compile(rf"{_COMMAND}|\d+(?:,\d{{3}})+(?!\d)|\d+|[.+\-/^(){{}}\[\]:%\s]|(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_TOWER = re.compile(r"\^\s*\{?[^{}]*\^(?!\s*\{?\s*\\circ)|\^\s*\{?\s*-?\d{3}|\d{40}")
_LOOSE = re.compile(r"^(?:[/^:,)]|\.(?!\d))|[-+/^:,(]$")
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")

Verdict = Literal["same", "other", "none"]


def plain(text: str) -> str:
    """An expression in LaTeX without what stands around it: marks, a name and an equals sign, a unit, a sign of degrees."""
    text = _MARKS.sub("", text[: 4 * LONGEST]) if len(text) <= 4 * LONGEST else ""
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], text)
    text = re.sub(r"(?<![A-Za-z\\])(sqrt|pi|sin|cos|tan)(?![A-Za-z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d+(?:\.\d+)?)", r"\\sqrt{\1}", text)
    text = next((part for part in _ROUNDED.split(text) if part.strip()), "")
    name, _, value = text.rpartition("=")
    text = text if _LISTED.search(name) else value
    text = _ANGLE.sub(r"\\\1(\2\\cdot\\frac{\\pi}{180})", text)  # math-verify takes radians whatever stands there
    before = None
    while before != text:
        before, text = text, _MARKS.sub("", _DEGREES.sub("", _UNITS.sub("", text)))
    if mixed := _MIXED.fullmatch(text):
        text = rf"{mixed[1]}\frac{{{mixed[2]}}}{{{mixed[3]}}}"
    return " ".join(_closed(text).split())


def _closed(text: str) -> str:
    """A text without brackets at its ends that match nothing; a brace that is open at its start was cut."""
    for opens, closes in ("()", "[]", "{}"):
        while text.endswith(closes) and text.count(closes) > text.count(opens):
            text = text[:-1].rstrip()
        while opens != "{" and text.startswith(opens) and text.count(opens) > text.count(closes):
            text = text[1:].lstrip()
    return text


def is_expression(text: str) -> bool:
    """Whether a text in the form of `plain` says nothing but an expression: numbers, signs, roots, fractions, single letters; with a
    number or pi in it, and none of which a comparison could take for ever."""
    if not 0 < len(text) <= LONGEST or not (re.search(r"\d", text) or r"\pi" in text):
        return False
    if _TOWER.search(text) or _LOOSE.search(text):
        return False
    depth = deepest = 0
    for sign in text:
        depth += (sign in "{([") - (sign in "})]")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= DEEPEST and not _TOKEN.sub("", text)


READ = 20_000
"""Characters at the end of an answer in which an expression is looked for."""
_BOX = "\\boxed{"
_FENCES = re.compile(r"\\[()\[\]]|(?<![\w)}\]])\*\*|\*\*(?![\w({\\])|[`_\"']")
_BESIDE = re.compile(
    rf"(?<=[\d)}}])[\s$,]*+\(?\s*+(?:or\s+)?(?:about|approximately|approx\.?|roughly|\\approx|\u2248)\s*\$?-?[\d.,]*\d\)?"
    rf"|(?<=[\d)}}\s])(?<![A-Za-z\\]){_UNIT}(?:\s*\^\s*\{{?[23]\}}?)?",
    re.IGNORECASE,
)
"""What stands beside an expression and is none of its own: the same rounded, a unit."""
_RUN = re.compile(rf"(?:{_COMMAND}|(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])|[\d.,+\-/^(){{}}\[\]:% ])+")
_GIVEN = re.compile(
    r"(?<!#)#{3,}+|\b(?:answer|result|total|sum|solution)\b(?:\s++(?:is|was|equals|of|to|the|problem|question))*+(?:\s*+[:=])?|\bequals\b|=",
    re.IGNORECASE,
)
AS_ANSWER = re.compile(r"#|answer|result|solution", re.IGNORECASE)
"""Beginnings of cues that call what follows the answer."""


def boxed(text: str) -> str | None:
    """What the last box holds whose brackets match; None without one."""
    text = text[-READ:]
    closed: dict[int, int] = {}
    opened: list[int] = []
    for at, sign in enumerate(text):
        if sign == "{":
            opened.append(at)
        elif sign == "}" and opened:
            closed[opened.pop()] = at
    for start in reversed([match.end() for match in re.finditer(re.escape(_BOX), text)]):
        if start - 1 in closed:
            return text[start : closed[start - 1]]
    return None


def last_said(text: str, *, as_answer: bool = False) -> str | None:
    """The last expression in prose that is given as an answer, or without one the last; None where there is none.

    as_answer: none but one that is called the answer, which an equation on the way is not.
    """
    text = _FENCES.sub("$", re.sub(r"[^\S\n]+", " ", text[-READ:]))
    text = _BESIDE.sub("$", text)
    text = re.sub(
        r"\^\s*\{?\s*\\circ\s*\}?|\\(?:text|mathrm)\s*\{[^{}]*\}", "$", _SIGN.sub(lambda match: _SIGNS[match[0]], text)
    )
    runs = [(match.start(), found) for match in _RUN.finditer(text) if (found := _trimmed(match[0])) is not None]
    if not runs:
        return None
    cues = [cue for cue in _GIVEN.finditer(text) if not as_answer or AS_ANSWER.match(cue[0])]
    given = [found for cue in cues if (found := _right_after(runs, cue.end(), text)) is not None]
    return given[-1] if given else None if as_answer else runs[-1][1]


def _right_after(runs: list[tuple[int, str]], place: int, text: str) -> str | None:
    """The first run behind a place on its line, with nothing but white space and marks between."""
    for start, found in runs[bisect.bisect_left(runs, (place - 1, "")) :]:
        return found if not text[place:start].strip(" $:*\n") else None
    return None


def _trimmed(run: str) -> str | None:
    """The expression in a run of signs, without words of one letter around it; None where there is none."""
    if len(run) > 2 * LONGEST:
        return None
    run = re.sub(r"^(?:\s*[A-Za-z]\s+)+|(?:\s+[A-Za-z]\s*)+$", "", f"{run} ")
    for each in (run.strip(" ,:"), run.strip(" .,:()[]")):
        if is_expression(found := plain(each)):
            return found
    return None


def compare(gold: str, said: str) -> Verdict:
    """Whether `said` has the value of `gold`, both in the form of `plain`; none where it is no expression. The same pair is compared once.

    Raises ConfigError where math-verify is not installed.
    """
    if said and "".join(gold.split()) == "".join(said.split()):
        return "same"
    if not is_expression(said):
        return "none"
    numbers = [_DECIMAL.fullmatch(text.replace(",", "")) for text in (gold, said)]
    if numbers[0] and numbers[1]:  # most answers; math-verify compares six places too
        return "same" if round(Fraction(numbers[0][0]), 6) == round(Fraction(numbers[1][0]), 6) else "other"
    return _compared(gold, said)


def require_math_verify() -> None:
    """Raises ConfigError where expressions cannot be compared."""
    if importlib.util.find_spec("math_verify") is None:
        raise ConfigError(
            'answers to this task are expressions, and comparing them takes math-verify; pip install "paft[vision]"'
        )


@lru_cache(maxsize=65536)
def _compared(gold: str, said: str) -> Verdict:
    require_math_verify()
    return _JUDGE.ask(gold, said)


class _Judge:
    """The process that compares, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[str] | None = None
        self._heard: queue.Queue[str] = queue.Queue()

    def ask(self, gold: str, said: str) -> Verdict:
        """Its verdict; none for what it did not come to an end with."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._start()
            assert self._child is not None
            assert self._child.stdin is not None
            try:
                self._child.stdin.write(json.dumps({"gold": gold, "said": said}) + "\n")
                self._child.stdin.flush()
                answer = self._heard.get(timeout=20 * SECONDS)
            except (OSError, queue.Empty):
                answer = ""
            if answer in ("same", "other", "none"):
                return answer  # type: ignore[return-value]
            self._end()
            return "none"

    def _start(self) -> None:
        child = subprocess.Popen(
            # -P: the folder of the script holds modules named like those of the standard library
            [sys.executable, "-P", str(Path(__file__).with_name("algebra.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        heard: queue.Queue[str] = queue.Queue()

        def listen() -> None:
            assert child.stdout is not None
            with contextlib.suppress(OSError, ValueError):
                for line in child.stdout:
                    heard.put(line.strip())
            heard.put("")

        threading.Thread(target=listen, daemon=True).start()
        self._child, self._heard = child, heard
        try:
            ready = heard.get(timeout=START)
        except queue.Empty:
            ready = ""
        if ready != "ready":
            self._end()
            raise ResourceError(
                "the process that compares expressions did not start; does `python -c 'import math_verify'` work?"
            )

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._child = None


_JUDGE = _Judge()
