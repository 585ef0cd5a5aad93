"""Tokenizers of GGUF files, where transformers' reading of them differs from the tokenizer that the model was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers.integrations.gguf.reader import read_gguf_metadata

from paft.assets import Say

DIGITS_FIRST = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Values of `tokenizer.ggml.pre` whose text is cut around every digit before GPT-2's rule cuts the rest."""

PLAIN = frozenset(
    {"gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "roberta-bpe"}
    | {"jina-es", "jina-de", "jina-v2-es", "jina-v2-de"}
)
"""Values whose text GPT-2's rule cuts alone, which is what transformers makes of every value that it does not know."""


def mend_tokenizer(tokenizer: Any, path: Path, say: Say) -> None:
    """Cut text as the file names it where transformers (5.20) takes GPT-2's rule instead, in place; say so where we cannot.

    With the wrong cut a text becomes other tokens than the ones the model learned from: SmolLM2 knows two line breaks before a
    digit as one token, and read two.
    """
    metadata, _ = read_gguf_metadata(str(path), ())
    kind = metadata.get("tokenizer.ggml.pre", "default")
    # a file that transformers knows has a cut of its own by now; one of sentencepiece has none to mend
    if metadata.get("tokenizer.ggml.model") != "gpt2" or not isinstance(
        tokenizer.backend_tokenizer.pre_tokenizer, pre_tokenizers.ByteLevel
    ):
        return
    if kind in DIGITS_FIRST:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif kind not in PLAIN:
        say(
            f"{path.name}: how it cuts text before tokens ({kind!r}) is not known here and GPT-2's rule is used; "
            "take the model's safetensors where exact tokens matter"
        )
