"""A training of LLaMA-Factory 0.9.5, its settings and its dataset, as a task and a run of paft.

What it trains on is rendered text; what paft needs is what varies from row to row, what is said around it, and the answers. The first two
are told apart by what all rows share.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paft.config import BuildConfig, RunConfig, dump_yaml, load_mapping, validate
from paft.errors import ConfigError, DataError, few, nearest
from paft.integrations.harness import write_lines
from paft.store import new_folder, write_text
from paft.tasks.answers import number_in
from paft.tasks.load import read_table
from paft.training.schedule import subset

MOST_CHOICES = 26
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
    """Write task.yaml with its rows (80 / 10 / 10 %), run.yaml with the training, and build.yaml for the prompts it still lacks.

    Up to MOST_CHOICES different answers are choices, numbers are numbers, others free texts, scored by F1 of their words. Raises ConfigError
    and DataError for a stage, formatting or dataset that no task can be made of.
    """
    told = load_mapping(settings)
    if told.get("stage", "sft") != "sft":
        raise ConfigError(f"{settings}: stage {told['stage']!r}; expected sft, whose rows have an answer each")
    name, file, columns = _dataset(told, settings)
    shown, answers = _rows(file, columns)
    kind, choices = _kind(answers, file)
    prompts, texts = _apart(shown)
    order = subset(len(texts), len(texts), SPLIT)
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
    with new_folder(out) as folder:
        for split, its in parts.items():
            write_lines(folder / f"{split}.jsonl", its)
        write_text(folder / "task.yaml", dump_yaml(task))
        write_text(folder / "run.yaml", dump_yaml(run))
        write_text(folder / "build.yaml", dump_yaml(build))
    return Imported(len(rows), kind, tuple(prompts), left_out)


def _dataset(told: Mapping[str, Any], settings: Path) -> tuple[str, Path, Mapping[str, str]]:
    """Name, file and columns of the one dataset that the settings name."""
    named = str(told.get("dataset", "")).split(",")
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
    if not isinstance(entry, dict) or "file_name" not in entry:
        raise ConfigError(f"dataset {named[0]!r} is not a file here; save it as one and name it by file_name")
    if entry.get("formatting", "alpaca") != "alpaca":
        raise ConfigError(
            f"dataset {named[0]!r}: formatting {entry['formatting']!r}; only alpaca rows (instruction, input, output) can be read"
        )
    usual = {"prompt": "instruction", "query": "input", "response": "output"}
    return named[0], folder / entry["file_name"], entry.get("columns") or usual


def _rows(file: Path, columns: Mapping[str, str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Instruction and input of each row, and its answer. Raises DataError for a row that lacks one, or has what no task has."""
    shown, answers = [], []
    for number, row in enumerate(read_table(file), 1):
        try:
            instruction, answer = str(row[columns["prompt"]] or ""), str(row[columns["response"]] or "").strip()
        except KeyError as error:
            raise DataError(f"{file} row {number}: column {error} is missing; columns: {few(row, 9)}") from None
        if not answer:
            raise DataError(f"{file} row {number}: {columns['response']} is empty; expected an answer to judge by")
        more = [column for role in ("system", "history") if row.get(column := columns.get(role, role))]
        if more:
            raise DataError(
                f"{file} row {number}: has a {more[0]}; only an instruction, an input and an output are understood, so put it into "
                "the instruction or take it out"
            )
        shown.append((instruction, str(row.get(columns.get("query", ""), "") or "")))
        answers.append(answer)
    return shown, answers


def _kind(answers: Sequence[str], file: Path) -> tuple[str, tuple[str, ...]]:
    distinct = sorted(set(answers))
    if not distinct:
        raise DataError(f"{file}: holds no rows")
    if 2 <= len(distinct) <= MOST_CHOICES:
        return "choice", tuple(distinct)
    if all(number_in(answer) is not None for answer in distinct):
        return "number", ()
    if len(distinct) == 1:
        raise DataError(f"{file}: every row has the answer {distinct[0][:40]!r}; expected two different ones at least")
    return "text", ()


def _apart(shown: Sequence[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Templates, and the text that each row puts into one of them."""
    if all(query.strip() for _, query in shown):
        prompts = list(dict.fromkeys(instruction for instruction, _ in shown))
        return [f"{_escaped(instruction)}\n{{text}}" for instruction in prompts], [query for _, query in shown]
    texts = [f"{instruction}\n{query}" if query else instruction for instruction, query in shown]
    before = _shared(texts)
    after = _shared([text[len(before) :][::-1] for text in texts])[::-1]
    inside = [text[len(before) : len(text) - len(after)] for text in texts]
    if not all(each.strip() for each in inside):
        raise DataError("two rows differ in nothing but what another one adds; no field can be told from its prompt")
    return [f"{_escaped(before)}{{text}}{_escaped(after)}"], inside


def _shared(texts: Sequence[str]) -> str:
    """What all texts begin with, without a last piece of a word that they share by chance."""
    first, last = min(texts), max(texts)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return re.sub(r"\w+$", "", first[:length])


def _escaped(text: str) -> str:
    return re.sub(r"\{([A-Za-z_]\w*)\}", r"{{\1}}", text)


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
    *(
        "stage",
        "do_train",
        "dataset",
        "dataset_dir",
        "template",
        "output_dir",
        "overwrite_cache",
        "overwrite_output_dir",
        "logging_steps",
    ),
    *(
        "preprocessing_num_workers",
        "plot_loss",
        "disable_shuffling",
        "packing",
        "max_samples",
        "trust_remote_code",
        "report_to",
    ),
}
"""Settings that paft does in another way, or that change no result."""


def _number(told: Mapping[str, Any], key: str, usual: float) -> float:
    value = told.get(key, usual)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key} {value!r}: expected a number") from None


def _run(told: Mapping[str, Any], name: str, out: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    left = {key for key in told if key not in _SILENT}
    train: dict[str, Any] = {ours: told.get(theirs, usual) for theirs, (ours, usual) in _SAME.items()}
    train["epochs"] = max(1, round(_number(told, "num_train_epochs", 3.0)))
    micro = round(_number(told, "per_device_train_batch_size", 8))
    steps = round(_number(told, "gradient_accumulation_steps", 1))
    train |= {"batch_size": micro * steps, "micro_batch_size": micro}
    if told.get("finetuning_type", "lora") == "lora":
        rank, target = round(_number(told, "lora_rank", 8)), str(told.get("lora_target", "all"))
        train["lora"] = {
            "r": rank,
            "lora_alpha": told.get("lora_alpha") or 2 * rank,
            "lora_dropout": _number(told, "lora_dropout", 0.0),
            "target_modules": "all-linear" if target == "all" else target.split(","),
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
        "dtype": "bfloat16" if told.get("bf16") or told.get("pure_bf16") else "float16" if told.get("fp16") else "auto",
        "data": {"train_examples": told.get("max_samples"), "dev_split": "validation"},
        "train": train,
        "evaluate": {"split": "test"},
    }
    if bits := told.get("quantization_bit"):
        if bits not in (4, 8):
            raise ConfigError(f"quantization_bit {bits!r}: expected 4 or 8")
        run["quantization"] = {f"load_in_{bits}bit": True}
    validate(RunConfig, run, "run.yaml")
    used = {
        *_SAME,
        "num_train_epochs",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "finetuning_type",
        "seed",
        "bf16",
        "fp16",
    }
    used |= {
        "pure_bf16",
        "model_name_or_path",
        "quantization_bit",
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_target",
        "use_dora",
        "use_rslora",
    }
    return run, tuple(sorted(left - used))
