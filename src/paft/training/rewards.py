"""What an answer earns under the prompt that was shown. A reward is any callable of (example, template, completion)."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from paft.errors import ConfigError, nearest
from paft.prompts import Template
from paft.tasks.types import Example


class Reward(Protocol):
    """A judge of one answer."""

    def __call__(self, example: Example, template: Template, completion: str) -> float | None:
        """What the answer earns; None where the judge has nothing to say."""


def correct(example: Example, template: Template, completion: str) -> float:
    """1 when the parser of the template's answer format reads the right answer; of a plan, text or call, what it is worth."""
    return template.answer.parse(completion, example).worth(example)


def well_formed(example: Example, template: Template, completion: str) -> float:
    """1 when the parser of the template's answer format reads one answer, right or wrong."""
    return float(template.answer.parse(completion, example).status == "valid")


BUILT_IN: Mapping[str, Reward] = {"correct": correct, "format": well_formed}


def require_trl() -> None:
    """Raises ConfigError where the library that computes GRPO is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError:
        raise ConfigError('train.method grpo needs trl, which is not installed; pip install "paft[rl]"') from None


def find_reward(name: str) -> Reward:
    """A built-in reward, or the callable that "module:function" names. Raises ConfigError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(
            f"train.rewards: {name!r}{nearest(name, BUILT_IN)}; built in: {', '.join(BUILT_IN)}; your own: module:function"
        )
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a module does when it is imported
        raise ConfigError(
            f"train.rewards: {name!r} cannot be imported ({type(error).__name__}: {error})"[:200]
        ) from None
    if not callable(found):
        raise ConfigError(f"train.rewards: {name!r} is {type(found).__name__}; expected a function")
    reward: Reward = found
    return reward
