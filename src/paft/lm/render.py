"""The one door between text and token ids, for training and for evaluation alike.

A chat model gets its own chat template; a base model gets the text. The answer follows directly in the first case and
after one space in the second. Text is tokenised as a whole, never joined from pieces.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from paft.errors import ConfigError, RenderError, nearest
from paft.lm.types import Chat, Question
from paft.tasks.images import Image

Style = Literal["chat", "raw"]


def check_style(style: str) -> None:
    """Raises ConfigError for a way to render that does not exist, which would be taken for another."""
    if style not in (known := ("auto", "chat", "raw")):
        raise ConfigError(f"style {style!r}{nearest(str(style), known)}; expected auto, chat or raw")


def common_prefix(first: list[int], second: list[int]) -> int:
    """Number of leading token ids that two lists share."""
    length = min(len(first), len(second))
    for position in range(length):
        if first[position] != second[position]:
            return position
    return length


def shared_prefix(contexts: Sequence[list[int]]) -> int:
    """Number of token ids that all contexts share at their start, leaving each at least one of its own."""
    return min(common_prefix(min(contexts), max(contexts)), min(map(len, contexts)) - 1)


@dataclass(frozen=True)
class Rendered:
    """A question in token ids: the prompt, and the prompt with each choice as one text.

    starts_C: where each choice starts: the end of the longest common prefix with the prompt alone. Where the seam falls
    inside a token, that token belongs to the choice. images: what the ids have places for, in order.
    """

    prompt: list[int]
    pairs_C: tuple[list[int], ...]
    starts_C: tuple[int, ...]
    images: tuple[Image, ...] = ()

    @property
    def keys(self) -> tuple[str, str]:
        """Hashes of the ids of the prompt and of each choice after it, and of those of the prompt alone, with the images."""
        shown = [image.digest for image in self.images]
        return _hash([self.prompt, *self.pairs_C], shown), _hash([self.prompt], shown)

    def check_length(self, free: int, limit: int) -> None:
        """Raises RenderError when the model, which reads `limit` tokens, cannot read a pair, or the prompt with `free` more."""
        longest = max(map(len, self.pairs_C), default=0)
        if max(longest, len(self.prompt) + free) > limit:
            start = min(self.starts_C, default=len(self.prompt))
            raise RenderError(
                f"question of {len(self.prompt)} tokens (answer up to {max(0, longest - start)}, {free} free): the model "
                f"reads at most {limit}; shorten the prompt or leave such examples out"
            )
        if not self.prompt or 0 in self.starts_C:
            raise RenderError("a prompt that renders to no text at all cannot be answered; give the template some text")


def _hash(ids: list[list[int]], shown: list[str]) -> str:
    return hashlib.sha256(json.dumps([ids, shown] if shown else ids).encode()).hexdigest()[:24]


def raw_text(chat: Chat) -> str:
    """The turns as a model without a chat template reads them: a space at the end belongs to the answer."""
    return "\n\n".join(message.text for message in chat).rstrip(" ")


def shown_in(chat: Chat) -> tuple[Image, ...]:
    """The images of all turns, in order."""
    return tuple(image for message in chat for image in message.images)


def settle_template(words: Any, settings: Mapping[str, Any]) -> None:
    """Write settings of a chat template, such as {"enable_thinking": False}, into the template of a tokenizer or processor: they hold
    wherever it goes, and it is known by them. Raises ConfigError for one that it does not read."""
    template = getattr(words, "chat_template", None)
    for name in settings:
        if not isinstance(template, str) or not re.search(rf"\b{re.escape(name)}\b", template):
            raise ConfigError(
                f"chat_template_kwargs.{name}: the model's chat template reads nothing of that name; leave it out"
            )
    if settings:
        told = (
            f"{{% set {name} = {'none' if value is None else json.dumps(value)} %}}" for name, value in settings.items()
        )
        # what is empty keeps a line break at the template's beginning
        words.chat_template = "".join(told) + "{{ '' }}" + str(template)


class _OneDay(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> _OneDay:
        return cls(2024, 7, 26, tzinfo=tz)


@contextlib.contextmanager
def on_one_day() -> Iterator[None]:
    """Chat templates that write the date write one day, always the same: or a run would train, score and resume on other prompts tomorrow."""
    from transformers.utils import chat_template_utils

    own = chat_template_utils.datetime  # templates are rendered with nothing of ours that could be called
    chat_template_utils.datetime = _OneDay
    try:
        yield
    finally:
        chat_template_utils.datetime = own


class Renderer:
    """Turns chats into token ids for one tokenizer."""

    reads_images = False

    def __init__(self, tokenizer: Any, style: Literal["auto", "chat", "raw"] = "auto"):
        check_style(style)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if style == "chat" and not has_template:
            raise ConfigError("style 'chat': this model's tokenizer has no chat template; use style: raw")
        self.tokenizer = tokenizer
        self.style: Style = "chat" if style == "chat" or (style == "auto" and has_template) else "raw"
        decoder = tokenizer.added_tokens_decoder
        # a method in mistral-common's tokenizers, and none that answers
        added = [str(token) for token in decoder.values() if token.special] if isinstance(decoder, Mapping) else []
        self._control = [token for token in dict.fromkeys([*tokenizer.all_special_tokens, *added]) if token]
        if tokenizer.eos_token_id is None:
            raise ConfigError(
                "this model's tokenizer has no end-of-sequence token; paft trains models to end their answers"
            )
        self.eos_id: int = tokenizer.eos_token_id

    @property
    def eos_text(self) -> str:
        """The end-of-sequence token as text."""
        return str(self.tokenizer.convert_ids_to_tokens(self.eos_id))

    def prompt_text(self, chat: Chat) -> str:
        """The text up to where the answer starts. Raises RenderError when a turn holds a control token of the model, or an image that
        it cannot read."""
        if shown_in(chat) and not self.reads_images:
            raise RenderError(
                "the question shows an image and this model reads text only; give one that reads images, such as "
                "Qwen/Qwen2.5-VL-7B-Instruct"
            )
        for message in chat:
            for token in self._control:
                if token in message.text:
                    raise RenderError(
                        f"{message.role} text holds the model's control token {token!r}, which would be read as structure; "
                        "remove it from the field or the template"
                    )
        if self.style == "raw":
            return raw_text(chat)
        try:
            text = self._in_turns(chat)
        except Exception as error:  # jinja errors raised by the template itself, such as "System role not supported"
            raise RenderError(
                f"the model's chat template refuses this prompt ({error}); use style: raw or drop `system`"
            ) from None
        assert isinstance(text, str)
        return text

    def _in_turns(self, chat: Chat) -> Any:
        """The chat in the model's own template."""
        turns = [{"role": message.role, "content": message.text} for message in chat]
        with on_one_day():
            return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def answer_text(self, prompt: str, answer: str) -> str:
        """Prompt and answer as one text. Raw text gets one space between them unless the prompt ends in white space."""
        space = " " if self.style == "raw" and prompt and not prompt[-1].isspace() else ""
        return prompt + space + answer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts. A raw text starts with the model's begin token where its tokenizer adds one."""
        found: list[list[int]] = self.tokenizer(
            list(texts), add_special_tokens=self.style == "raw", return_attention_mask=False, verbose=False
        )["input_ids"]
        if self.style == "raw":  # tokenizers that close every text would end it before the answer
            found = [ids[:-1] if ids and ids[-1] == self.eos_id else ids for ids in found]
        return found

    def render(self, question: Question) -> Rendered:
        """A question in token ids."""
        prompt = self.prompt_text(question.chat)
        whole = [self.answer_text(prompt, choice) for choice in question.choices]
        ids, *pairs = self.ids([prompt, *whole])
        return Rendered(ids, tuple(pairs), tuple(common_prefix(ids, pair) for pair in pairs))

    def prompt_ids(self, chat: Chat) -> list[int]:
        """Token ids of the prompt."""
        return self.render(Question(chat)).prompt

    def pair_ids(self, chat: Chat, answer: str) -> tuple[list[int], int]:
        """Token ids of prompt and answer as one text (no end mark), and where the answer starts."""
        rendered = self.render(Question(chat, (answer,)))
        return rendered.pairs_C[0], rendered.starts_C[0]

    def training_ids(self, chat: Chat, answer: str) -> tuple[list[int], int]:
        """`pair_ids` with the end-of-sequence token appended: what the model is trained to write."""
        ids, start = self.pair_ids(chat, answer)
        return [*ids, self.eos_id], start
