"""A deterministic model for tests, documentation and dry runs: its answers are arithmetic that a reader can redo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from paft.lm.types import Answered, Completion, Question


def _unit(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64


@dataclass
class FakeLM:
    """Prefers the choice that `prefer` names (an index from the question), else one keyed by the text.

    `calls` counts the questions asked, so that a test can show that a stored cell is not asked again.
    """

    prefer: Callable[[Question], int] | None = None
    fingerprint: str = "fake"
    calls: int = field(default=0)
    tokens_read: int = 0

    def count_tokens(self, text: str) -> int:
        """Words."""
        return len(text.split())

    def keys(self, question: Question) -> tuple[str, str]:
        """Hashes of the question's text."""
        parts = (question.chat, question.choices), question.chat
        scored, free = (hashlib.sha256(repr(part).encode("utf-8", "surrogatepass")).hexdigest() for part in parts)
        return scored, free

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """Log-probability -1 for the preferred choice, -2 - c for the others; the free answer is the preferred choice."""
        answers = []
        for index, question in enumerate(questions):
            self.calls += 1
            self.tokens_read += sum(len(message.text.split()) for message in question.chat)
            text = "\n".join(message.text for message in question.chat)
            count = max(1, len(question.choices))
            best = self.prefer(question) if self.prefer else int(_unit(text) * count)
            logp = tuple(-1.0 if c == best else -2.0 - c for c in range(len(question.choices)))
            said = question.choices[best] if question.choices else ""
            completion = Completion(said, len(said.split()) or 1, "eos") if question.max_new_tokens else None
            tokens = tuple(max(1, len(choice.split())) for choice in question.choices)
            sizes = tuple(len(choice.encode("utf-8", "surrogatepass")) for choice in question.choices)
            answered = Answered(logp, tokens, sizes, len(text.split()), False, completion)
            answers.append(answered)
            if done:
                done(index, answered)
        return answers
