"""Vision-language models of transformers: questions that show images.

The plain path: nothing is shared between texts, every option is read in a pass of its own text, and an image goes through the encoder
once for every text that shows it. Images stand before the words of their turn, each where the model's chat template puts it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from paft.assets import ModelFiles
from paft.errors import ConfigError, RenderError
from paft.lm.hf import HFModel, loading
from paft.lm.passes import Engine, Layers, Work
from paft.lm.prefix import Row
from paft.lm.render import Rendered, Renderer, check_style, common_prefix, on_one_day, shown_in
from paft.lm.types import Chat, Completion, Question
from paft.tasks.images import Image

SEEN = 20_000
"""Images whose places in a text are kept in mind."""
_OF_TEXT = ("input_ids", "attention_mask")
_KINDS = ("mm_token_type_ids", "token_type_ids")
"""What kind each token is, where a processor tells it."""


def load_processor(name: str, files: ModelFiles) -> Any:
    """What turns the model's images and texts into tensors. Raises ConfigError for a model that reads text only."""
    if files.gguf_file:
        raise ConfigError(
            f"model {name!r}: its GGUF file holds no image encoder, and the task shows images; give it in safetensors"
        )
    with loading(name, files):
        kind = AutoConfig.from_pretrained(files.directory).model_type
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"model {name!r} ({kind}) reads text only, and the task shows images; give one that reads images, such as "
            "Qwen/Qwen2.5-VL-7B-Instruct"
        )
    with loading(name, files):
        return AutoProcessor.from_pretrained(files.directory)


class VisionRenderer(Renderer):
    """Turns chats that show images into token ids, and images into the tensors of a pass, for one processor."""

    reads_images = True

    def __init__(
        self, processor: Any, style: Literal["auto", "chat", "raw"] = "auto", dtype: torch.dtype = torch.float32
    ):
        check_style(style)
        if style == "raw" or not getattr(processor, "chat_template", None):
            raise ConfigError(
                "a question that shows images needs the model's chat template; give style: chat and a model that has one"
            )
        if getattr(processor, "image_token", None) is None:
            raise ConfigError(
                f"{type(processor).__name__}: names no token for an image; such models are not provided for"
            )
        super().__init__(processor.tokenizer, "raw")
        self.processor, self.style, self.dtype = processor, "chat", dtype
        self.mark: str = processor.image_token
        self.mark_id: int = self.tokenizer.convert_tokens_to_ids(self.mark)
        self._control = list(dict.fromkeys([*self._control, self.mark]))
        self._blocks: dict[Image, tuple[int, ...]] = {}
        self._agrees = False

    def _in_turns(self, chat: Chat) -> Any:
        turns = [
            {
                "role": message.role,
                "content": [*({"type": "image"} for _ in message.images), {"type": "text", "text": message.text}],
            }
            for message in chat
        ]
        with on_one_day():
            text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        if (count := text.count(self.mark)) != len(shown_in(chat)):
            raise RenderError(
                f"the model's chat template has places for {count} of {len(shown_in(chat))} images; give another model"
            )
        return text

    def render(self, question: Question) -> Rendered:
        """A question in token ids, with as many places for each image as the model wants."""
        images = shown_in(question.chat)
        if not images:
            raise RenderError(
                "the question shows no image, and this model was loaded to read some; load it without images"
            )
        prompt = self.prompt_text(question.chat)
        whole = [self.answer_text(prompt, choice) for choice in question.choices]
        for choice in question.choices:
            if self.mark in choice:
                raise RenderError(f"an answer holds the model's token for an image {self.mark!r}; remove it")
        ids, *pairs = (self._with_places(each, images) for each in self.ids([prompt, *whole]))
        if not self._agrees:
            self._check(prompt, images, ids)
        return Rendered(ids, tuple(pairs), tuple(common_prefix(ids, pair) for pair in pairs), images)

    def _with_places(self, ids: list[int], images: Sequence[Image]) -> list[int]:
        rest = iter(images)
        return [
            place for token in ids for place in (self._places_of(next(rest)) if token == self.mark_id else (token,))
        ]

    def _places_of(self, image: Image) -> tuple[int, ...]:
        """The tokens that stand for an image."""
        if image not in self._blocks:
            if len(self._blocks) >= SEEN:
                self._blocks.clear()
            (ids,) = self._processed([(image,)])["input_ids"].tolist()
            self._blocks[image] = tuple(ids)
        return self._blocks[image]

    def _check(self, text: str, images: Sequence[Image], ids: list[int]) -> None:
        """Whether the processor makes the same of a whole text, found out on the first question."""
        (whole,) = self._processed([images], text)["input_ids"].tolist()
        if whole != ids:
            raise RenderError(
                f"{type(self.processor).__name__}: places for images depend on the text around them; not provided for"
            )
        self._agrees = True

    def _processed(self, shown: Sequence[Sequence[Image]], text: str | None = None) -> Any:
        marks = [self.mark * len(images) for images in shown]
        pixels = [[image.pixels() for image in images] for images in shown]
        try:
            return self.processor(
                text=marks if text is None else [text],
                images=pixels,
                padding=True,
                add_special_tokens=False,
                return_tensors="pt",
            )
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            named = ", ".join(image.path or image.digest[:12] for images in shown for image in images)[:200]
            raise RenderError(
                f"image {named}: refused by the model's processor ({str(error).splitlines()[0][:120]})"
            ) from None

    def fed(
        self, texts: Sequence[Sequence[int]], shown: Sequence[Sequence[Image]], side: Literal["left", "right"]
    ) -> dict[str, Tensor]:
        """Texts in token ids, padded on one side, and their images, as the model takes them."""
        found = dict(self._processed(shown))
        width = max(map(len, texts))

        def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
            spare = [[pad] * (width - len(row)) for row in rows]
            return torch.tensor(
                [[*gap, *row] if side == "left" else [*row, *gap] for gap, row in zip(spare, rows, strict=True)]
            )

        given = {
            "input_ids": padded(texts, self.eos_id),
            "attention_mask": padded([[1] * len(text) for text in texts], 0),
        }
        for name in set(_KINDS) & found.keys():
            kinds = dict(zip(found["input_ids"].flatten().tolist(), found[name].flatten().tolist(), strict=True))
            given[name] = padded([[kinds.get(token, 0) for token in text] for text in texts], 0)
        pixels = {name: value for name, value in found.items() if name not in (*_OF_TEXT, *_KINDS)}
        return given | {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in pixels.items()
        }


class VisionEngine(Engine):
    """Passes over texts that show images: each a row of its own, padded; an image is encoded with every text that shows it."""

    def __init__(self, model: Any, renderer: VisionRenderer, end_ids: set[int], say: Any):
        super().__init__(model, renderer.tokenizer, end_ids, say)
        self.renderer, self._shares = renderer, False

    @property
    def plain_attention(self) -> bool:
        """Texts are never put into one row."""
        return False

    def _forward(
        self, rows: Sequence[Row], layers: Layers, start: int, wanted: Sequence[int], keep: bool = False
    ) -> tuple[Tensor, Layers]:
        works = [self._works[row.texts[0]] for row in rows]
        fed = self._on_device(works, "right")
        self.tokens_read += fed["input_ids"].numel()
        with self._head_at(torch.tensor(list(wanted), device=self.device)):
            logits = self.model(**fed, use_cache=False).logits
        if logits.shape[:2] != (1, len(wanted)):  # a model whose head does not go through its output embeddings
            logits = logits.flatten(0, 1)[list(wanted)][None]
        return logits[0], []

    def _alongside(self, queue: Sequence[Work]) -> list[Work]:
        room = max(1, self._budget // len(queue[0].ids))
        return [work for work in queue if work.limit == queue[0].limit][:room]

    def _fed(self, batch: Sequence[Work]) -> dict[str, Any]:
        return self._on_device(batch, "left")

    def _on_device(self, works: Sequence[Work], side: Literal["left", "right"]) -> dict[str, Tensor]:
        fed = self.renderer.fed([work.ids for work in works], [work.images for work in works], side)
        return {name: value.to(self.device) for name, value in fed.items()}


@dataclass
class VisionModel(HFModel):
    """A vision-language model that answers questions which show images."""

    processor: Any = None

    def _door(self) -> VisionRenderer:
        return VisionRenderer(self.processor, self.style, next(self.model.parameters()).dtype)

    def _passes(self) -> VisionEngine:
        assert isinstance(self.renderer, VisionRenderer)
        return VisionEngine(self.model, self.renderer, self.end_ids, lambda text: self.say(text))

    @property
    def fingerprint(self) -> str:
        """Hash of what a text model's covers, of the chat template of the processor, and of how it makes tensors of images."""
        told = json.dumps(self.processor.image_processor.to_dict(), sort_keys=True, default=str)
        parts = f"{super().fingerprint} {self.processor.chat_template} {type(self.processor.image_processor).__name__} {told}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def saved_with(self) -> Any:
        """The processor."""
        return self.processor

    def sample(self, chat: Chat, *, max_new_tokens: int, temperature: float, seed: int) -> tuple[Completion, int]:
        """Not provided for: raises ConfigError."""
        raise ConfigError("sampling from a model that reads images is not provided for; it answers by greedy decoding")
