"""The nouns of a task: Example, Split, Task."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

from paft.errors import DataError, few
from paft.tasks.images import Image

TextScore = Literal["exact", "f1", "similarity"]
"""How a free text is scored: alike but for case, punctuation, articles and white space; F1 of the words; cosine of sentence embeddings."""


@dataclass(frozen=True)
class Example:
    """One item of a task: named text fields, its choices, and the index of the right one.

    images: what every prompt shows before its words. is_open: nothing is offered to choose from; the only choice is the right answer.
    group: what it stands on together with others, such as the passage of several questions; "" for one that stands alone.
    accepted, score: where the answer is a free text, those that are right beside the choice, and how others are scored.
    """

    id: str
    fields: Mapping[str, str]
    choices: tuple[str, ...]
    answer: int
    is_open: bool = False
    group: str = ""
    images: tuple[Image, ...] = ()
    accepted: tuple[str, ...] = ()
    score: TextScore = "exact"

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", MappingProxyType(dict(self.fields)))
        if self.is_open and len(self.choices) != 1:
            raise DataError(f"example {self.id!r}: {len(self.choices)} right answers; expected one")
        if not self.is_open and len(self.choices) < 2:
            raise DataError(f"example {self.id!r}: {len(self.choices)} choices; expected at least 2")
        if not 0 <= self.answer < len(self.choices):
            raise DataError(f"example {self.id!r}: answer index {self.answer} is not among {len(self.choices)} choices")
        if len(set(self.choices)) < len(self.choices) and self.choices.count(self.choices[self.answer]) > 1:
            raise DataError(f"example {self.id!r}: the right choice {self.choices[self.answer]!r} occurs twice")

    @property
    def content(self) -> list[object]:
        """All that asking it and judging an answer to it depends on, as JSON can write it."""
        shown = [image.digest for image in self.images]
        return [self.id, dict(self.fields), self.choices, self.answer, self.is_open, shown, self.accepted, self.score]

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        # a mapping proxy does not pickle; dataloader workers need it to
        told = (self.is_open, self.group, self.images, self.accepted, self.score)
        return (Example, (self.id, dict(self.fields), self.choices, self.answer, *told))


@dataclass(frozen=True)
class Rejected:
    """A row that could not be read, and why. Never dropped without one of these."""

    row: str
    reason: str


@dataclass(frozen=True)
class Split:
    """Examples of one split in file order, the rows that could not be read, and where all of it came from."""

    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    origin: str


class Task(Protocol):
    """What is asked. Any object with these attributes serves; nothing to register, nothing to subclass."""

    @property
    def name(self) -> str:
        """Short name, as in tables and file names."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of text fields that every template must show exactly once."""

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Names of text fields that a template may show, at most once."""

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The fixed choices of a labelling task; None when every example brings its own."""

    @property
    def num_choices(self) -> int:
        """The usual number of choices of an example; 1 when answers are open (numbers, texts)."""

    @property
    def prompts(self) -> str | None:
        """Name of the shipped prompt set, if there is one."""

    def split(self, name: str) -> Split:
        """The examples of a split: "train", "validation" or "test". Raises DataError for an unknown one."""


def content_id(fields: Mapping[str, str], choices: Sequence[str], images: Sequence[Image] = ()) -> str:
    """Id of an example made from what is asked, so that every source of the same row gives the same id."""
    shown = [[image.digest for image in images]] if images else []
    text = json.dumps([sorted(fields.items()), list(choices), *shown], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def unique_ids(ids: Sequence[str]) -> list[str]:
    """Ids with repeats marked "-2", "-3" ... in order of occurrence (datasets contain literal duplicates)."""
    seen: dict[str, int] = {}
    unique = []
    for each in ids:
        seen[each] = seen.get(each, 0) + 1
        unique.append(each if seen[each] == 1 else f"{each}-{seen[each]}")
    return unique


def require_unique_ids(examples: Sequence[Example], where: str) -> None:
    """Raise DataError when two examples share an id."""
    seen: set[str] = set()
    twice = [example.id for example in examples if example.id in seen or seen.add(example.id)]  # type: ignore[func-returns-value]
    if twice:
        raise DataError(f"{where}: duplicate ids {few(map(repr, twice))}; every row needs an id of its own")
