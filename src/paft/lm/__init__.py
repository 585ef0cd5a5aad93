"""Who answers: rendering to tokens, transformers models, a deterministic fake. `paft.lm.hf` imports torch, this does not."""

from paft.lm.types import LM, Answered, Chat, Completion, Message, Question

__all__ = ["LM", "Answered", "Chat", "Completion", "Message", "Question"]
