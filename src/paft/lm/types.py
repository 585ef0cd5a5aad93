"""The nouns between a prompt and a model: messages in, scores and completions out, and the one seam, `LM`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Role = Literal["system", "user"]


@dataclass(frozen=True)
class Message:
    """One turn before the answer."""

    role: Role
    text: str


Chat = tuple[Message, ...]
"""The turns that ask for an answer, at least one of them by the user."""


@dataclass(frozen=True)
class Question:
    """What is asked of a model: the turns, and the answers it may choose from (empty: nothing to score)."""

    chat: Chat
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A free answer. `stop` tells why it ended: the model ended it, or the limit did."""

    text: str
    tokens: int
    stop: Literal["eos", "limit"]


@dataclass(frozen=True)
class Answered:
    """What the model made of one question.

    logp_C: sum of token log-probabilities of each choice after the prompt, the end mark not counted, in nats.
    tokens_C, bytes_C: length of each choice. seam: the choice's first token also holds the end of the prompt.
    prompt_tokens: length of the rendered prompt. completion: None when not asked for.
    """

    logp_C: tuple[float, ...]
    tokens_C: tuple[int, ...]
    bytes_C: tuple[int, ...]
    prompt_tokens: int
    seam: bool
    completion: Completion | None


class LM(Protocol):
    """Who answers. Scoring and generating share one method because they share the pass over the prompt."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same question could be answered differently: weights, adapter, precision, rendering."""

    def count_tokens(self, text: str) -> int:
        """Length of a text by itself, in tokens of this model."""

    def key(self, question: Question) -> str:
        """Identity of a question as this model reads it: a hash of the rendered token ids of prompt and choices."""

    def answer(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int = 0,
        batch_tokens: int = 4096,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """Answers in the order of the questions; free text up to max_new_tokens (0: none), by greedy decoding.

        done is called with (index, answer) as soon as each is known, in any order.
        """
