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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

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
