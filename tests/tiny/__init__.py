"""A tiny world made in code: tokenizer, models of fixed initialisation, a task and prompts whose answers a reader can redo."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

from paft.config import dump_yaml
from paft.lm.hf import HFModel
from paft.tasks.answers import AnswerFormat, answer_format_from

CORPUS = [
    "the cat sat on the mat and the dog ran to the park",
    "is it good or bad ? answer with one word : good bad red blue yes no",
    "Question : {x} Answer : A B C D (A) (B) 1 2 negative positive",
    "read this sentence , then decide . choose the right option and write its letter",
]

CHAT = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges; every text survives a round trip."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(CORPUS, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|start|>"
    )
    wrapped.chat_template = CHAT if chat else None
    return wrapped


def network(kind: str = "llama", seed: int = 0) -> Any:
    """A random decoder of a few thousand weights, float32, fixed by the seed."""
    common: dict[str, Any] = {"vocab_size": 420, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
    llama = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    extra: dict[str, dict[str, Any]] = {
        "llama": llama,
        "qwen2": llama,
        "mistral": {**llama, "sliding_window": 24},
        "gemma3_text": {
            **llama,
            "head_dim": 8,
            "sliding_window": 20,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "mamba": {
            "hidden_size": 32,
            "state_size": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "use_mambapy": False,
        },
        "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},  # positions by distance in the mask, not by ids
        "gpt_neox": {**llama, "num_key_value_heads": 4},
        "gpt_neo": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 64,  # a window that the settings of the other kinds do not name
            "max_position_embeddings": 1024,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024},
    }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **common, **extra[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # larger weights than usual, so that answers differ from prompt to prompt
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name and "wte" not in name:
                weight.mul_(6.0)
    model.generation_config.eos_token_id = 1
    return model.eval().requires_grad_(False)


def hf_model(kind: str = "llama", chat: bool = True, seed: int = 0) -> HFModel:
    """A ready model of the tiny world."""
    return HFModel(network(kind, seed), tokenizer(chat), identity=f"tiny-{kind}-{seed}", name="tiny")


def saved_model(folder: Path) -> Path:
    """The tiny model as a directory that `load_model` reads."""
    network().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


WORDS = ["cat", "dog", "park", "mat", "word", "letter", "sentence", "option"]


def write_task(folder: Path, rows: int = 24) -> Path:
    """A task file with three splits: is the colour named in the text red or blue."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, (start, count) in {"train": (0, rows), "validation": (1000, 10), "test": (2000, 8)}.items():
        lines = []
        for i in range(start, start + count):
            colour = "red" if i % 2 else "blue"
            text = f"{WORDS[i % 8]} {i} {colour} {' '.join(WORDS[: i % 5])}".strip()
            lines.append(json.dumps({"id": f"e{i}", "text": text, "label": colour}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        files[split] = f"{split}.jsonl"
    task = {
        "name": "colours",
        "fields": ["text"],
        "choices": ["red", "blue"],
        "answer": "label",
        "id": "id",
        "files": files,
    }
    (folder / "task.yaml").write_text(dump_yaml(task), encoding="utf-8")
    return folder / "task.yaml"


def write_prompts(folder: Path) -> Path:
    """A prompt set for the colours: words, letters and option texts as answers."""
    words = {"labels": ["red", "blue"]}
    sets = {
        "task": "colours",
        "train": [
            {"text": "{text}\nred or blue?", "answer": words},
            {"text": "Which colour is in this: {text}. A) red B) blue. Letter:", "answer": "letters"},
            {"text": "decide the tint now\n{text}\n=>", "answer": "text"},
            {
                "text": "Colour name please!\n\n{choices}\n\n{text}",
                "options": "({label}) {text}",
                "answer": {"labels": ["1", "2"]},
            },
            {"text": "Look for paint. {text}", "system": "Say red or blue, nothing else.", "answer": words},
        ],
        "dev": [
            {"text": "What hue do you find in <line>{text}</line>", "answer": words},
            {
                "text": "Pick one of {choices} after reading {text}",
                "options": "{text}",
                "joiner": " / ",
                "answer": "text",
            },
        ],
        "test": [
            {"text": "My friend wrote: {text}\nthe shade they meant was", "answer": words},
            {"text": "1. red\n2. blue\nNumber that fits [{text}]?", "answer": {"labels": ["1", "2"]}},
            {"text": "{text} -> ?", "system": "You map texts to shades (red/blue).", "answer": "text"},
        ],
    }
    path = folder / "prompts.yaml"
    path.write_text(dump_yaml(sets), encoding="utf-8")
    return path


def write_config(folder: Path, **changes: Any) -> Path:
    """A run over the tiny world: base, one prompt, changing prompts."""
    config = {
        "name": "tiny",
        "task": str(write_task(folder / "data")),
        "prompts": str(write_prompts(folder)),
        "model": str(saved_model(folder / "model")),
        "data": {"dev_split": "validation"},
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "lora": {"r": 4, "target_modules": "all-linear"},
            "save_every": 2,
            "eval_every": 6,
            "dev_prompts": 2,
            "dev_examples": 4,
        },
        "arms": {
            "base": {},
            "single": {"train": {"schedule": {"kind": "fixed"}}},
            "paft": {"title": "PAFT", "train": {"schedule": {"kind": "paft", "steps_per_prompt": 1}}},
        },
        "evaluate": {"split": "test", "thresholds": [0.5]},
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    return path


def answer_of(kind: int) -> AnswerFormat:
    """One of four ways to write an answer, for tests that need prompts and no task."""
    given = ({"labels": ["red", "blue"]}, "letters", "text", {"labels": ["1", "2"]})[kind]
    return answer_format_from(given)


def embed_by_text(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors that are the same for the same text, and nearly at right angles for different ones."""
    seeds = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts]
    vectors = np.stack([np.random.default_rng(seed).standard_normal(4096) for seed in seeds])
    found: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


VISION_CHAT = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\n' }}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ MARK }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)


def processor(kind: str = "idefics3") -> Any:
    """What makes tensors of texts and images: idefics3 cuts an image into tiles, qwen2_5_vl into as many patches as it is large."""
    words = tokenizer(chat=False)
    if kind == "idefics3":
        from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
        from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

        words.add_special_tokens(
            {"additional_special_tokens": ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]}
        )
        words.add_tokens(["<global-img>", *(f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7))])
        pictures = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
        template = VISION_CHAT.replace("MARK", "'<image>'")
        return Idefics3Processor(pictures, words, image_seq_len=4, chat_template=template)
    from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    words.add_special_tokens(
        {"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]}
    )
    pictures = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)

    class Still(Qwen2_5_VLProcessor):  # videos take torchvision
        def check_argument_for_proper_class(self, name: str, given: Any) -> None:
            pass

    template = VISION_CHAT.replace("MARK", "'<|vision_start|><|image_pad|><|vision_end|>'")
    return Still(pictures, words, chat_template=template)


def vision_network(kind: str, door: Any, seed: int = 0) -> Any:
    """A random vision-language model of a few thousand weights, float32, fixed by the seed."""
    words = door.tokenizer
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "eos_token_id": 1,
        "bos_token_id": 0,
        "pad_token_id": 1,
    }
    given: dict[str, Any]
    if kind == "idefics3":
        sight = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        given = {
            "vision_config": {**sight, "image_size": 16, "patch_size": 4},
            "text_config": {"model_type": "llama", **text},
            "image_token_id": words.convert_tokens_to_ids("<image>"),
            "scale_factor": 2,
            "pad_token_id": 1,
        }
    else:
        sight = {"hidden_size": 16, "intermediate_size": 24, "depth": 1, "num_heads": 2, "out_hidden_size": 32}
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        given = {
            "vision_config": {**sight, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [0]},
            "text_config": {**text, "rope_parameters": rope},
            **{f"{name}_token_id": words.convert_tokens_to_ids(f"<|{name}_pad|>") for name in ("image", "video")},
            **{
                f"vision_{name}_token_id": words.convert_tokens_to_ids(f"<|vision_{name}|>")
                for name in ("start", "end")
            },
        }
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **given, tie_word_embeddings=False)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(6.0)
    model.generation_config.eos_token_id = 1
    return model.eval().requires_grad_(False)


def vision_model(kind: str = "idefics3", seed: int = 0) -> Any:
    """A ready model of the tiny world that reads images."""
    from paft.lm.vision import VisionModel

    door = processor(kind)
    network = vision_network(kind, door, seed)
    return VisionModel(network, door.tokenizer, identity=f"tiny-{kind}-{seed}", name="tiny", processor=door)


def saved_vision_model(folder: Path) -> Path:
    """The same as a directory that `load_model` reads."""
    door = processor()
    vision_network("idefics3", door).save_pretrained(folder)
    door.save_pretrained(folder)
    return folder


def picture(path: Path, seed: int, size: tuple[int, int] = (24, 16)) -> Path:
    """A file with a drawing that the seed fixes."""
    from PIL import Image as Pictures
    from PIL import ImageDraw

    drawn = Pictures.new("RGB", size, "white")
    for n in range(4):
        corner = [(seed * 7 + n * 5) % size[0], (seed * 3 + n * 4) % size[1]]
        ImageDraw.Draw(drawn).rectangle([*corner, corner[0] + 6, corner[1] + 5], fill=((seed * 50) % 256, n * 60, 99))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)
    return path
