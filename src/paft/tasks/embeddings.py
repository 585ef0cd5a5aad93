"""How alike texts are, as a sentence embedding model says. It is named first (`judge_by`), and whatever it scored carries its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paft.errors import ConfigError

Embed = Callable[[Sequence[str]], np.ndarray]
"""Unit vectors of texts, one a row."""

_judge: tuple[Embed, str] | None = None


def judge_by(embed: Embed | None, identity: str = "") -> None:
    """Judge answers by this embedding model, from now on, in this process; None: by none. identity: what tells it from others."""
    global _judge
    _judge = (embed, identity) if embed is not None else None


def judged_by() -> str:
    """Identity of the embedding model that judges answers; empty for none."""
    return _judge[1] if _judge else ""


def judge(answers: str) -> Embed:
    """The embedding model that judges. Raises ConfigError when none was named. answers: what it is needed for."""
    if _judge is None:
        raise ConfigError(
            f"answers to this task are {answers}, which a sentence embedding model judges: name one with paft.tasks.embeddings.judge_by "
            "(runs do, evaluate.embeddings; docs/tasks.md)"
        )
    return _judge[0]


def cosines(embed: Embed, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
    """Of every text with every other one, shape (len(a), len(b)), negative ones as 0."""
    found: np.ndarray = np.maximum(np.asarray(embed(a), float) @ np.asarray(embed(b), float).T, 0)
    return found


def whole(text: str) -> str:
    """A text that a tokenizer can read: half a surrogate pair is none."""
    return text.encode("utf-8", "replace").decode()
