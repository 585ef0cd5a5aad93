"""Answers that were given elsewhere, read from a file: another harness asked, paft judges.

One JSON object a line: `prompt` and `example` (their ids), `logp` (log-likelihood of each choice in nats, in choice order) and, or,
`completion` with `tokens` (its length) and `ended` (whether the model ended it, not the limit).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from paft.errors import DataError
from paft.grid import Cell, Grid
from paft.lm.types import Answered, Completion, Question
from paft.tasks.load import read_table


class _Parts(NamedTuple):
    logp_C: tuple[float, ...]
    completion: Completion | None


@dataclass(frozen=True)
class RecordedLM:
    """A model of which only answers are known. Asked anything else it raises DataError."""

    file: Path
    scored: Mapping[str, tuple[float, ...]]
    """Log-likelihoods by the text that was asked and the choices as the prompt writes them."""
    said: Mapping[str, Completion]
    """Free answers by the text that was asked: two cells of one text have one answer."""
    fingerprint: str
    tokens_read: int = 0

    def count_tokens(self, text: str) -> int:
        """Words: the model's tokenizer is not known. Only the longest answer that would be allowed depends on it."""
        return len(text.split())

    def keys(self, question: Question) -> tuple[str, str]:
        """Hashes of the question's text, and of that without its choices."""
        return _key(question), _key(Question(question.chat))

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """What is on record. Raises DataError when it lacks a part that is asked for."""
        return [self._answer(index, question, done) for index, question in enumerate(questions)]

    def _answer(self, index: int, question: Question, done: Callable[[int, Answered], None] | None) -> Answered:
        scored, free = self.keys(question)
        logp_C = self.scored.get(scored, ()) if question.choices else ()
        completion = self.said.get(free) if question.max_new_tokens else None
        start = " ".join(question.chat[-1].text.split())[:60]
        if len(logp_C) != len(question.choices):
            raise DataError(
                f"{self.file}: no log-likelihoods on record for {start!r}; set evaluate.scorers=[generation], or leave its prompt or "
                "example out"
            )
        if question.max_new_tokens and completion is None:
            raise DataError(
                f"{self.file}: no free answer on record to {start!r}; set evaluate.scorers=[likelihood], or leave its prompt or "
                "example out"
            )
        sizes = tuple(len(choice.encode()) for choice in question.choices)
        found = Answered(logp_C, (0,) * len(logp_C), sizes, 0, False, completion)
        if done:
            done(index, found)
        return found


def _key(question: Question) -> str:
    parts = [[[turn.role, turn.text] for turn in question.chat], question.choices]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def by_cell(rows: Iterable[tuple[str, Any]], asked: Container[tuple[str, str]]) -> dict[tuple[str, str], _Parts]:
    """Answers by prompt and example, of rows each with where it stands. Raises DataError for one that is none, and for a second answer to a
    cell that was asked."""
    found: dict[tuple[str, str], _Parts] = {}
    for where, row in rows:
        prompt, example, parts = _read(row, where)
        before = found.get((prompt, example), _Parts((), None))
        if (prompt, example) in asked and any(a and b and a != b for a, b in zip(before, parts, strict=True)):
            raise DataError(
                f"{where}: a second, different answer to prompt {prompt} and example {example!r}; give one, of one seed, epoch or run"
            )
        found[prompt, example] = _Parts(parts.logp_C or before.logp_C, parts.completion or before.completion)
    return found


def load_recorded(file: Path, grids: Sequence[Grid]) -> RecordedLM:
    """The answers of a file to the cells of some grids; answers to other cells are not read.

    Raises DataError for a file that cannot be read, and for a line that lacks something or is no answer.
    """
    if not file.is_file():
        raise DataError(f"{file}: no such file; expected recorded answers (.jsonl, docs/harnesses.md)")
    cells = {(template.id, asked.id) for grid in grids for template in grid.templates for asked in grid.examples}
    rows = by_cell(((f"{file} line {number}", row) for number, row in enumerate(read_table(file), 1)), cells)
    scored: dict[str, tuple[float, ...]] = {}
    said: dict[str, Completion] = {}
    for grid in grids:
        for k, template in enumerate(grid.templates):
            for i, asked in enumerate(grid.examples):
                held = rows.get((template.id, asked.id), _Parts((), None))
                question = grid.question(Cell(0, k, i))
                if held.logp_C and len(held.logp_C) != len(question.choices):
                    raise DataError(
                        f"{file}: {len(held.logp_C)} log-likelihoods for prompt {template.id} and example {asked.id!r}, which has "
                        f"{len(question.choices)} choices"
                    )
                if held.logp_C:
                    scored[_key(question)] = held.logp_C
                if held.completion is not None:
                    said[_key(Question(question.chat))] = held.completion
    if not (scored or said):
        raise DataError(
            f"{file}: none of its {len(rows)} answers belongs to these prompts and examples; give the task, prompt set and split "
            "that were asked"
        )
    told = [sorted(scored.items()), sorted((key, each.text, each.tokens, each.stop) for key, each in said.items())]
    return RecordedLM(file, scored, said, hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16])


def _read(row: Any, where: str) -> tuple[str, str, _Parts]:
    try:
        prompt, example = str(row["prompt"]), str(row["example"])
        logp_C = tuple(float(value) for value in row.get("logp") or ())
        completion = _completion(row) if row.get("completion") is not None else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: {type(error).__name__} {error}; expected prompt, example, and logp or completion with tokens and ended"
        ) from None
    if not all(value < math.inf for value in logp_C) or (not logp_C and completion is None):
        raise DataError(f"{where}: neither log-likelihoods nor a free answer, or one that is no number")
    return prompt, example, _Parts(logp_C, completion)


def _completion(row: Mapping[str, Any]) -> Completion:
    text, tokens, ended = row["completion"], row["tokens"], row["ended"]
    if not isinstance(text, str):
        raise TypeError(f"completion is {json.dumps(text)[:60]}, no text")
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise TypeError(f"tokens is {json.dumps(tokens)[:60]}, no length")
    if not isinstance(ended, bool):
        raise TypeError(f"ended is {json.dumps(ended)[:60]}, neither true nor false")
    return Completion(text, tokens, "eos" if ended else "limit")
