"""A training of LLaMA-Factory 0.9.5, its settings and its dataset, as a task and a run of paft.

What it trains on is rendered text; what paft needs is what varies from row to row, what is said around it, and the answers. The first two
are told apart by what all rows share.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config import BuildConfig, RunConfig, dump_yaml, load_mapping, validate
from paft.errors import ConfigError, DataError, few, nearest
from paft.integrations.harness import write_lines
from paft.prompts.template import template_from, template_to
from paft.store import new_folder, write_text
from paft.tasks.answers import number_in
from paft.tasks.load import as_text, read_table
from paft.training.schedule import permutation

PROMPTS = "prompts.jsonl"
MOST_CHOICES = 26
ROWS_EACH = 5
SPLIT = 401
"""Stream of the keyed cut of the rows."""


@dataclass(frozen=True)
class Imported:
    """What was made. left_out: settings of LLaMA-Factory that have no counterpart."""

    rows: int
    kind: str
    prompts: tuple[str, ...]
    left_out: tuple[str, ...]


def import_llamafactory(settings: Path, out: Path) -> Imported:
    """Write task.yaml with its rows (80 / 10 / 10 %), run.yaml with the training, PROMPTS with the prompts that were found, which
    `read_prompts` reads, and build.yaml for those it still lacks.

    Up to MOST_CHOICES different answers are choices if each is given twice on average, numbers are numbers, others free texts, scored by F1 of their words. Raises ConfigError
    and DataError for a stage, formatting or dataset that no task can be made of.
    """
    told = load_mapping(settings)
    if told.get("stage", "sft") != "sft":
        raise ConfigError(f"{settings}: stage {told['stage']!r}; expected sft, whose rows have an answer each")
    name, file, columns = _dataset(told, settings)
    shown, answers = _rows(file, columns, _whole(told, "max_samples", None))
    kind, choices = _kind(answers, file)
    prompts, texts = _apart(shown, answers)
    if len(prompts) > 1 and kind == "choice":
        _check_one_task(shown, answers, file)
    order = permutation(len(texts), SPLIT).tolist()
    rows = [
        {"id": f"r{n}", "text": text, "answer": answer}
        for n, (text, answer) in enumerate(zip(texts, answers, strict=True))
    ]
    cut = max(2, len(rows) // 10)
    held = set(order[: 2 * cut])
    if len(rows) < 20 or cut * 2 >= len(rows):
        raise DataError(f"{file}: {len(rows)} rows; expected 20 or more, a tenth of which is kept to test on")
    parts = {
        "train": [row for n, row in enumerate(rows) if n not in held],
        "validation": [rows[n] for n in order[:cut]],
        "test": [rows[n] for n in order[cut : 2 * cut]],
    }
    plain = re.sub(r"\W+", "-", name).strip("-").lower() or "task"
    task = {
        "name": plain,
        "fields": ["text"],
        **({"choices": list(choices)} if kind == "choice" else {"kind": kind}),
        **({"score": "f1"} if kind == "text" else {}),
        "answer": "answer",
        "id": "id",
        "files": {split: f"{split}.jsonl" for split in parts},
        "prompts": "prompts/prompts.yaml",
    }
    run, left_out = _run(told, plain, out)
    if kind != "choice":
        run["evaluate"]["scorers"] = ["generation"]
    build = {
        "task": str(out / "task.yaml"),
        "about": prompts[0],
        "writers": [{"name": "writer", "model": "MODEL", "base_url": "http://localhost:8000/v1"}],
    }
    validate(BuildConfig, build, "build.yaml")
    answer = "number" if kind == "number" else "text"
    found = [template_to(template_from({"text": text, "answer": answer}, "prompt")) for text in prompts]
    with new_folder(out) as folder:
        for split, its in parts.items():
            write_lines(folder / f"{split}.jsonl", its)
        write_lines(folder / PROMPTS, found)
        write_text(folder / "task.yaml", dump_yaml(task))
        write_text(folder / "run.yaml", dump_yaml(run))
        write_text(folder / "build.yaml", dump_yaml(build))
    return Imported(len(rows), kind, tuple(prompts), left_out)


def _dataset(told: Mapping[str, Any], settings: Path) -> tuple[str, Path, Mapping[str, str]]:
    """Name, file and columns of the one dataset that the settings name."""
    named = _names(told.get("dataset", ""))
    if len(named) != 1 or not named[0]:
        raise ConfigError(
            f"{settings}: dataset {told.get('dataset')!r}; expected one name, as rows of several are no one task"
        )
    given = Path(str(told.get("dataset_dir", "data")))
    folder = given if given.is_absolute() or given.exists() else settings.parent / given
    info = load_mapping(folder / "dataset_info.json")
    if named[0] not in info:
        raise ConfigError(f"{folder / 'dataset_info.json'}: no dataset {named[0]!r}{nearest(named[0], info)}")
    entry = info[named[0]]
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("file_name"), str)
        or any(entry.get(key) for key in _ELSEWHERE)
    ):
        raise ConfigError(f"dataset {named[0]!r} is not a file here; save it as one and name it by file_name alone")
    if entry.get("formatting", "alpaca") != "alpaca" or entry.get("ranking"):
        what = "ranking" if entry.get("ranking") else f"formatting {entry['formatting']!r}"
        raise ConfigError(f"dataset {named[0]!r}: {what}; only alpaca rows (instruction, input, output) can be read")
    if entry.get("split", "train") != "train" or entry.get("num_samples"):
        key = "num_samples" if entry.get("num_samples") else "split"
        raise ConfigError(
            f"dataset {named[0]!r}: {key} {entry[key]!r} takes a part of its rows; save those as a file of their own"
        )
    usual = {"prompt": "instruction", "query": "input", "response": "output"}
    columns = entry.get("columns") or usual
    if not isinstance(columns, dict) or "response" not in columns or not {"prompt", "query"} & columns.keys():
        raise ConfigError(f"dataset {named[0]!r}: columns {columns}; expected prompt, or query, and response")
    if wrong := [role for role, column in columns.items() if not isinstance(column, str | None)]:
        raise ConfigError(
            f"dataset {named[0]!r}: columns.{wrong[0]} {columns[wrong[0]]!r}; expected the name of a column"
        )
    return named[0], folder / entry["file_name"], columns


_ELSEWHERE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
"""Where LLaMA-Factory looks before it looks for a file."""
_UNREAD = ("system", "history", "images", "videos", "audios", "tools")
"""Columns that no task has; one that is not named in `columns` is not read by LLaMA-Factory either."""


def _names(value: object) -> list[str]:
    """A list of names, or names parted by commas."""
    return [str(each).strip() for each in (value if isinstance(value, list) else str(value).split(","))]


def _rows(file: Path, columns: Mapping[str, str], most: int | None) -> tuple[list[tuple[str, str]], list[str]]:
    """Instruction and input of each row, and its answer. Raises DataError for a row that lacks one, or has what no task has."""
    shown, answers = [], []
    for number, row in enumerate(itertools.islice(read_table(file), most), 1):
        try:
            query = columns["query"] if columns.get("query") in row else None
            instruction, query, answer = (
                _cell(row, each) for each in (columns.get("prompt"), query, columns["response"])
            )
        except KeyError as error:
            raise DataError(f"{file} row {number}: column {error} is missing; columns: {few(row, 9)}") from None
        except DataError as error:
            raise DataError(f"{file} row {number}: {error}") from None
        if not answer.strip():
            raise DataError(f"{file} row {number}: {columns['response']} is empty; expected an answer to judge by")
        if more := [column for role in _UNREAD if row.get(column := columns.get(role, ""))]:
            raise DataError(
                f"{file} row {number}: has {more[0]}; only an instruction, an input and an output are understood, so put it into "
                "the instruction or take it out"
            )
        shown.append((instruction, query))
        answers.append(answer.strip())
    return shown, answers


def _cell(row: Mapping[str, Any], column: str | None) -> str:
    value = row[column] if column else None
    return "" if value is None else as_text(value, str(column))


def _kind(answers: Sequence[str], file: Path) -> tuple[str, tuple[str, ...]]:
    distinct = sorted(set(answers))
    if not distinct:
        raise DataError(f"{file}: holds no rows")
    if 2 <= len(distinct) <= min(MOST_CHOICES, len(answers) // 2):
        return "choice", tuple(distinct)
    if all(number_in(answer) is not None for answer in distinct):
        return "number", ()
    if len(distinct) == 1:
        raise DataError(f"{file}: every row has the answer {distinct[0][:40]!r}; expected two different ones at least")
    return "text", ()


def _apart(shown: Sequence[tuple[str, str]], answers: Sequence[str]) -> tuple[list[str], list[str]]:
    """Templates, and the text that each row puts into one of them.

    Where every row has an input, instructions are prompts if each has ROWS_EACH rows on average, and no input is answered differently
    under two of them; else they belong to the text, as a question to its passage does.
    """
    prompts = list(dict.fromkeys(instruction for instruction, _ in shown))
    answered = {(query, answer) for (_, query), answer in zip(shown, answers, strict=True)}
    one_each = len(answered) == len({query for _, query in shown})
    if all(query.strip() for _, query in shown) and (
        len(prompts) == 1 or (one_each and len(prompts) * ROWS_EACH <= len(shown))
    ):
        return [f"{_escaped(each)}\n{{text}}" if each else "{text}" for each in prompts], [query for _, query in shown]
    texts = ["\n".join(each for each in pair if each) for pair in shown]
    before = _shared(texts)
    after = _shared([text[len(before) :][::-1] for text in texts])[::-1]
    inside = [text[len(before) : len(text) - len(after)] for text in texts]
    if not all(each.strip() for each in inside):
        raise DataError("two rows differ in nothing but what another one adds; no field can be told from its prompt")
    return [f"{_escaped(before)}{{text}}{_escaped(after)}"], inside


def _check_one_task(shown: Sequence[tuple[str, str]], answers: Sequence[str], file: Path) -> None:
    """Raises DataError where some instructions share neither choice nor input with others, each lot with choices of its own."""
    asked: dict[str, list[tuple[str, str]]] = {}
    for (instruction, query), answer in zip(shown, answers, strict=True):
        asked.setdefault(instruction, []).append((query, answer))
    lots: list[tuple[str, set[str], set[tuple[str, str]]]] = []
    for instruction, pairs in asked.items():
        theirs = {part for query, answer in pairs for part in (("input", query), ("answer", answer))}
        named, said = instruction, {answer for _, answer in pairs}
        for lot in [lot for lot in lots if lot[2] & theirs]:
            lots.remove(lot)
            named, said, theirs = lot[0], said | lot[1], theirs | lot[2]
        lots.append((named, said, theirs))
    tasks = [lot for lot in lots if len(lot[1]) > 1]  # a single answer may be one of another lot's task
    if len(tasks) > 1:
        (one, ours, _), (other, its, _) = tasks[:2]
        raise DataError(
            f"{file}: {one[:60]!r} is answered by {few(sorted(ours), 3)}, {other[:60]!r} by {few(sorted(its), 3)}; expected wordings of one "
            "task, so save the rows of each task as a dataset of its own"
        )


def _shared(texts: Sequence[str]) -> str:
    """What all texts begin with, without a last piece of a word that they share by chance."""
    first, last = min(texts), max(texts)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return re.sub(r"\w+$", "", first[:length])


def _escaped(text: str) -> str:
    return re.sub(r"\{([A-Za-z_]\w*)\}", r"{{\1}}", text, flags=re.ASCII)


_SAME: dict[str, tuple[str, Any]] = {
    "learning_rate": ("learning_rate", 5e-5),
    "lr_scheduler_type": ("lr_scheduler", "linear"),
    "warmup_ratio": ("warmup_ratio", 0.0),
    "weight_decay": ("weight_decay", 0.0),
    "max_grad_norm": ("max_grad_norm", 1.0),
    "cutoff_len": ("max_length", 2048),
    "save_steps": ("save_every", 500),
}
"""Names here, and what LLaMA-Factory takes where nothing is said."""
_SILENT = {
    "stage", "do_train", "dataset", "dataset_dir", "output_dir", "overwrite_cache", "overwrite_output_dir", "logging_steps",
    "logging_strategy", "preprocessing_num_workers", "plot_loss", "disable_shuffling", "max_samples", "trust_remote_code", "report_to",
}  # fmt: skip
"""Settings that paft does in another way, or that change no result."""
_USUAL: dict[str, Any] = {
    "mix_strategy": "concat", "ignore_pad_token_for_loss": True, "preprocessing_batch_size": 1000, "use_fast_tokenizer": True,
    "init_special_tokens": "noise_init", "model_revision": "main", "low_cpu_mem_usage": True, "flash_attn": "auto", "use_reentrant_gc": True,
    "use_kv_cache": True, "freeze_vision_tower": True, "freeze_multi_modal_projector": True, "max_steps": -1, "optim": "adamw_torch",
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "save_strategy": "steps", "per_device_eval_batch_size": 8,
    "dataloader_pin_memory": True, "remove_unused_columns": True, "ddp_timeout": 1800,
}  # fmt: skip
"""What LLaMA-Factory takes where nothing is said, of other settings than null, false or zero."""
_OFF = ("eval_strategy", "save_strategy")
"""Where `no`, which YAML reads as false, changes no result."""


def _number(told: Mapping[str, Any], key: str, usual: float) -> float:
    value = told.get(key, usual)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} {value!r}: expected a number") from None


def _whole(told: Mapping[str, Any], key: str, usual: int | None) -> Any:
    if told.get(key) is None:
        return usual
    value = _number(told, key, 0)
    if value < 1 or value != int(value):
        raise ConfigError(f"{key} {told[key]!r}: expected a whole number from 1")
    return int(value)


def _run(told: Mapping[str, Any], name: str, out: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    left = {
        key
        for key, value in told.items()
        if key not in _SILENT and value not in (None, _USUAL.get(key, False), *((False, "no") if key in _OFF else ()))
    }
    train: dict[str, Any] = {ours: told.get(theirs, usual) for theirs, (ours, usual) in _SAME.items()}
    train["epochs"] = _whole(told, "num_train_epochs", 3)
    micro = _whole(told, "per_device_train_batch_size", 8)
    steps = _whole(told, "gradient_accumulation_steps", 1)
    train |= {"batch_size": micro * steps, "micro_batch_size": micro}
    if told.get("finetuning_type", "lora") == "lora":
        rank, target = _whole(told, "lora_rank", 8), _names(told.get("lora_target", "all"))
        train["lora"] = {
            "r": rank,
            "lora_alpha": told.get("lora_alpha") or 2 * rank,
            "lora_dropout": _number(told, "lora_dropout", 0.0),
            "target_modules": "all-linear" if target == ["all"] else target,
            **{key: True for key in ("use_dora", "use_rslora") if told.get(key)},
        }
    elif told["finetuning_type"] == "full":
        train["lora"] = None
    else:
        raise ConfigError(f"finetuning_type {told['finetuning_type']!r}: expected lora or full")
    run: dict[str, Any] = {
        "name": name,
        "seed": round(_number(told, "seed", 42)),
        "task": str(out / "task.yaml"),
        "prompts": str(out / "prompts" / "prompts.yaml"),
        "model": told.get("model_name_or_path"),
        "dtype": _dtype(told),
        "data": {"dev_split": "validation"},
        "train": train,
        "evaluate": {"split": "test"},
    }
    if not told.get("enable_thinking", True):
        run["chat_template_kwargs"] = {"enable_thinking": False}
    mixed = [key for key in ("bf16", "fp16") if told.get(key)]
    if mixed and train["lora"] is None and not told.get("pure_bf16"):
        train["arguments"] = {
            mixed[0]: True
        }  # its weights stay float32 there, and passes are computed in half precision
    if bits := told.get("quantization_bit"):
        run["quantization"] = _quantization(told, bits)
    validate(RunConfig, run, "run.yaml")
    return run, tuple(sorted(left - _SAME.keys() - _USED))


_USED = {
    "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps", "finetuning_type", "seed", "bf16", "fp16", "pure_bf16",
    "model_name_or_path", "quantization_bit", "quantization_method", "quantization_type", "double_quantization", "lora_rank", "lora_alpha",
    "lora_dropout", "lora_target", "use_dora", "use_rslora", "enable_thinking",
}  # fmt: skip


def _dtype(told: Mapping[str, Any]) -> str:
    if told.get("pure_bf16"):
        return "bfloat16"
    if not told.get("bf16") and not told.get("fp16"):
        return "auto"
    if told.get("finetuning_type") == "full":
        return "float32"
    return "bfloat16" if told.get("bf16") else "float16"


def _quantization(told: Mapping[str, Any], bits: object) -> dict[str, Any]:
    if bits not in (4, 8) or told.get("quantization_method", "bnb") not in ("bnb", "bitsandbytes"):
        raise ConfigError(
            f"quantization_bit {bits!r} by {told.get('quantization_method', 'bnb')}: expected 4 or 8, by bnb"
        )
    if bits == 8:
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": told.get("quantization_type", "nf4"),
        "bnb_4bit_use_double_quant": told.get("double_quantization", True),
    }
