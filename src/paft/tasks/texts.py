"""Free texts: which part of a completion is the answer, and what it is worth beside the texts that are accepted."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import string
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from paft.tasks.embeddings import cosines, judge, whole
from paft.tasks.types import TextScore

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """A text without case, ASCII punctuation, English articles and doubled white space: SQuAD's rule (arXiv 1606.05250, section 6.1).

    A text of which that leaves nothing keeps its articles ("The"), and if it has none its punctuation ("$").

    >>> normalized("The  U.S. Navy!"), normalized("A"), normalized("$")
    ('us navy', 'a', '$')
    """
    lower = unicodedata.normalize("NFC", text).lower()
    words = unicodedata.normalize("NFC", lower.translate(_NO_PUNCTUATION))  # a letter may now meet its accent
    return next((found for each in (_ARTICLE.sub(" ", words), words, lower) if (found := " ".join(each.split()))), "")


def token_f1(said: str, accepted: str) -> float:
    """F1 of the words that two texts share, both normalized; in [0, 1].

    >>> token_f1("in the old town", "the old town")
    0.8
    """
    a, b = normalized(said).split(), normalized(accepted).split()
    shared = (Counter(a) & Counter(b)).total()
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def text_worth(said: str, accepted: Sequence[str], score: TextScore) -> float:
    """What a text is worth beside the accepted one that is nearest, in [0, 1].

    similarity: cosine of sentence embeddings, negative ones as 0, to six places; raises ConfigError when no model was named.
    """
    match score:
        case "exact":
            return float(normalized(said) in map(normalized, accepted))
        case "f1":
            return max(token_f1(said, each) for each in accepted)
        case "similarity":
            embed = judge("texts scored by similarity")
            found = cosines(embed, [whole(said)], [whole(each) for each in accepted])
            return min(1.0, round(float(found.max()), 6))


def after_thought(completion: str) -> str:
    """What follows on what a model has thought aloud between <think> tags, where it begins so; nothing while it still thinks.

    Some chat templates open the thought themselves: a tag that closes one that nothing opened ends it too. Without that tag nothing tells such
    a thought from an answer.

    >>> after_thought("<think>Rome?</think> Paris"), after_thought("<think>Rome"), after_thought("Paris"), after_thought("Rome?</think> Paris")
    (' Paris', '', 'Paris', ' Paris')
    """
    thought, closed, rest = completion.partition("</think>")
    if _THINKS.match(completion) or (closed and "<think>" not in thought):
        return rest
    return completion


_THINKS = re.compile(r"\s*<think>")
_FENCE = re.compile(r"[`~]{3,}\s*\w*")
_LEAD = re.compile(
    r"[\W_]{0,20}(?:\w{1,20}[^\w\n]{1,4}){0,4}?(?:answer|solution|result)\b[\s*_]{0,4}(?:\b(?:is|was|would be)\b[\s:*_]{0,4}|[:=][\s*_]{0,4})+",
    re.IGNORECASE,
)
"""What some models say before an answer: "The answer is", "**Answer:**", "So my final answer is:"."""


def first_line(completion: str) -> tuple[str, bool]:
    """The line that answers, where one line does, and whether it has ended.

    It is the first that says anything; one that only leads to what follows (it ends in a colon, or says "The answer is"), and the marks of
    a fenced block, are passed over as long as another line follows.

    >>> first_line("Of course! Here it is:\\n\\n  Paris \\nIt lies"), first_line("Paris"), first_line("Note:")
    (('Paris', True), ('Paris', False), ('Note:', False))
    """
    led = ""
    for line in after_thought(completion).splitlines(keepends=True):
        text = line.strip()
        if not text or _FENCE.fullmatch(text):
            continue
        lead = _LEAD.match(text[:200])
        if text.endswith(":") or (lead and not text[lead.end() :].strip("*_ ")):
            led = led or text
            continue
        return text, line.splitlines() != [line]
    return led, False


def is_one_line(accepted: Sequence[str], score: TextScore) -> bool:
    """Whether a line answers: exact or f1, and no accepted text has several. Else all of a completion does."""
    return score != "similarity" and all(len(each.splitlines()) == 1 for each in accepted)


def readings(completion: str, accepted: Sequence[str], score: TextScore) -> list[str]:
    """What a completion may give as its answer: its line or all of it, and that without a lead such as "The answer is". Empty for none."""
    said = first_line(completion)[0] if is_one_line(accepted, score) else after_thought(completion).strip()
    if score == "similarity":
        return [said] if said else []
    lead = _LEAD.match(said[:200])
    rest = said[lead.end() :].strip() if lead else ""
    return [each for each in (said, rest) if each]


UNREADABLE = (ValueError, SyntaxError, TypeError, LookupError, OverflowError, MemoryError, RecursionError)
"""What reading a value may raise, whatever a model wrote."""


def literal(text: str) -> object:
    """A value as Python writes it, as JSON does, or as JSON in single quotes. Raises one of UNREADABLE."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that Python does not know
        with contextlib.suppress(*UNREADABLE):
            return ast.literal_eval(text)
    with contextlib.suppress(*UNREADABLE):
        return json.loads(text)
    return json.loads(text.replace("'", '"'))


JSON = json.JSONDecoder(strict=False)
AS_WRITTEN = json.JSONDecoder(strict=False, parse_float=str, parse_int=str, parse_constant=str)
"""Numbers stay the texts that they are: 19.50 is not 19.5."""


def objects(text: str, decoder: json.JSONDecoder = JSON, *, python: bool = False) -> Iterator[dict[str, Any]]:
    """Objects that stand in a text, outermost only; python: also as Python writes them, up to `LONGEST` characters. One that is no object but
    closed is passed over, 1000 times at most; one that is never closed, or nested too deep, ends the reading."""
    at = passed = 0
    begins, braces = (_DICT, _PYTHON_BRACES) if python else (_OBJECT, _BRACES)
    while passed < 1000 and (begin := begins.search(text, at)):
        try:
            value, at = decoder.raw_decode(text, begin.start())
        except RecursionError:
            return
        except ValueError:
            end = _closed(text, begin.start(), braces)
            if end is None:
                return
            at, inside, value = end, text[begin.start() : end], None
            passed += 1
            if python and len(inside) <= LONGEST:
                with contextlib.suppress(*UNREADABLE):
                    value = literal(inside)
        if isinstance(value, dict):
            yield value


LONGEST = 20_000
"""Characters of a value that is no JSON; a longer one is not read."""

_OBJECT, _DICT = re.compile(r"\{\s*[\"}]"), re.compile(r"\{\s*[\"'}]")
_QUOTED = r"\"(?:[^\"\\]|\\.)*+\""
_BRACES = re.compile(rf"{_QUOTED}|\\.|[{{}}]", re.DOTALL)
_PYTHON_BRACES = re.compile(rf"{_QUOTED}|{_QUOTED.replace(chr(34), chr(39))}|\\.|[{{}}]", re.DOTALL)


def _closed(text: str, begin: int, braces: re.Pattern[str]) -> int | None:
    """Where the brace that opens at `begin` is closed; braces in quotes do not count."""
    depth = 0
    for found in braces.finditer(text, begin):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0 and found[0] == "}":
            return found.end()
    return None
