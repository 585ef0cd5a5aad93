"""Tokenizers of GGUF files cut text as the file says, with a file written by the gguf package."""

from pathlib import Path

import pytest
from gguf import GGUFWriter
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from paft.errors import AssetError
from paft.lm.hf import load_renderer


def write(path: Path, kind: str | None) -> None:
    """A byte-level vocabulary in which "\\n\\n" and "12" are tokens of their own."""
    letters = list(bytes_to_unicode().values())
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_tokenizer_model("gpt2")
    if kind is not None:
        writer.add_tokenizer_pre(kind)
    writer.add_token_list([*letters, "ĊĊ", "12", "<end>"])
    writer.add_token_types([1] * (len(letters) + 2) + [3])
    writer.add_token_merges(["Ċ Ċ", "1 2"])
    writer.add_eos_token_id(len(letters) + 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


DIGITS, ONE, THREES = ["ĊĊ", "1", "2", "a"], ["Ċ", "Ċ", "12", "a"], ["ĊĊ", "12", "a"]


@pytest.mark.parametrize(
    ("kind", "tokens", "said"),
    [
        ("smollm", DIGITS, False),
        ("starcoder", DIGITS, False),
        ("gpt-2", ONE, False),
        (None, ONE, False),
        ("llama-bpe", THREES, False),
        ("viking", ONE, True),
    ],
)
def test_text_is_cut_as_the_file_says(tmp_path: Path, kind: str | None, tokens: list[str], said: bool) -> None:
    write(tmp_path / "w.gguf", kind)
    lines: list[str] = []
    tokenizer = load_renderer(str(tmp_path / "w.gguf"), style="raw", say=lines.append).tokenizer
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n\n12a")["input_ids"]) == tokens
    assert [line.startswith(f"w.gguf: how it cuts text before tokens ({kind!r})") for line in lines] == [True] * said
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved.convert_ids_to_tokens(saved("\n\n12a")["input_ids"]) == tokens


@pytest.mark.parametrize("kept", [4, 30, 2000])
def test_a_file_that_was_cut_is_one_line(tmp_path: Path, kept: int) -> None:
    write(tmp_path / "w.gguf", "smollm")
    whole = (tmp_path / "w.gguf").read_bytes()
    (tmp_path / "w.gguf").write_bytes(whole[:kept])
    with pytest.raises(AssetError, match=r"w\.gguf.*: the file is damaged or was cut; fetch it again$"):
        load_renderer(str(tmp_path / "w.gguf"), style="raw")
