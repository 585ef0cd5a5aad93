"""The nouns between a prompt and a model: messages in, scores and completions out, and the one seam, `LM`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from paft.tasks.images import Image

Role = Literal["system", "user"]
Stop = Literal["eos", "limit", "settled"]


@dataclass(frozen=True)
class Message:
    """One turn before the answer. images: what it shows, before its text."""

    role: Role
    text: str
    images: tuple[Image, ...] = ()


Chat = tuple[Message, ...]
"""The turns that ask for an answer, at least one of them by the user."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model: the turns, the answers it may choose from (none: nothing to score), and how many tokens it
    may answer freely (0: it is not asked to).

    settled: whether a free answer that began with this text need not go on; None lets every answer end by itself.
    """

    chat: Chat
    choices: tuple[str, ...] = ()
    max_new_tokens: int = 0
    settled: Callable[[str], bool] | None = field(default=None, compare=False, repr=False)


def whole_signs(text: str) -> str:
    """A text whose halves of surrogate pairs, which no file can hold and a limit on tokens may leave of a sign, are U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass(frozen=True)
class Completion:
    """A free answer. `stop` tells why it ended: the model ended it, the limit did, or it was settled (`Question.settled`)."""

    text: str
    tokens: int
    stop: Stop

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", whole_signs(self.text))


@dataclass(frozen=True)
class Answered:
    """What the model made of one question.

    logp_C: sum of token log-probabilities of each choice after the prompt, the end mark not counted, in nats.
    tokens_C, bytes_C: length of each choice. seam: the choice's first token also holds the end of the prompt.
    prompt_tokens: length of the rendered prompt. completion: None when not asked for. seconds: this question's share of the
    time of the passes that answered it; not part of what the answer is.
    """

    logp_C: tuple[float, ...]
    tokens_C: tuple[int, ...]
    bytes_C: tuple[int, ...]
    prompt_tokens: int
    seam: bool
    completion: Completion | None
    seconds: float = field(default=0.0, compare=False)

    def __or__(self, other: Answered) -> Answered:
        """Scores of one and free answer of the other, where the two parts of a question were answered apart."""
        scored, free = (self, other) if self.logp_C else (other, self)
        seconds = self.seconds + other.seconds
        return replace(scored, completion=free.completion or scored.completion, seconds=seconds)


class LM(Protocol):
    """Who answers. Scoring and generating share one method because they share the pass over the prompt."""

    @property
    def tokens_read(self) -> int:
        """Tokens computed so far, padding included."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same question could be answered differently: weights, adapter, precision, rendering."""

    def count_tokens(self, text: str) -> int:
        """Length of a text by itself, in tokens of this model."""

    def keys(self, question: Question) -> tuple[str, str]:
        """Identities of the two parts of a question as this model reads them: hashes of the rendered token ids of prompt
        and choices (what is scored), and of the prompt alone (what is continued freely)."""

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """Answers in the order of the questions, free text by greedy decoding.

        batch_tokens: tokens per forward pass; None chooses for this machine. done is called with (index, answer) as soon as
        something is known, in any order: a question's scores and its free answer apart, or both in one.
        """
