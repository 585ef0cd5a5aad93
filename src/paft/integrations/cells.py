"""Every cell as a line of JSON that any tool can ask, and the answers that come back: as lines, or as a log of Inspect.

An answer keeps the ids of its prompt and example, or the id of its line, which is both.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paft.config import RunConfig
from paft.errors import DataError, PaftError
from paft.grid import Cell, Grid
from paft.integrations.harness import Recorded, Tokens, new_export, with_limit, write_lines
from paft.lm.render import raw_text
from paft.materials import prepare
from paft.tasks.answers import written

LINES = "cells.jsonl"
SAID = ("completion", "generation", "output", "response", "prediction")
"""Keys under which tools write what a model said."""
CUT = ("length", "max_tokens", "max_length", "max_output_tokens", "model_length")
"""What tools say of an answer that a limit cut, in whatever case."""
LENGTH = ("tokens", "num_generated_tokens", "completion_tokens", "output_tokens")


def export_cells(config: RunConfig, out: Path, say: Any = lambda _: None) -> int:
    """Write a folder with `cells.jsonl`; returns its lines.

    A line has `id` (PROMPT/EXAMPLE), `prompt`, `example`, `input` (turns, or with style=raw one text), `choices` as the prompt wants them
    written, `target` (the right one), of free texts `accepted` (all that are right), and `max_tokens`.
    """
    materials = prepare(config, say, judges=False)
    config = with_limit(config, materials)
    with new_export(config, materials, out) as folder:
        write_lines(folder / LINES, _lines(materials.grid, config))
    return materials.grid.shape[0] * materials.grid.shape[1]


def _lines(grid: Grid, config: RunConfig) -> Iterator[dict[str, Any]]:
    for k, template in enumerate(grid.templates):
        for i, example in enumerate(grid.examples):
            cell = Cell(0, k, i)
            chat = grid.chat(cell)
            turns = [{"role": turn.role, "content": turn.text} for turn in chat]
            yield {
                "id": f"{template.id}/{example.id}",
                "prompt": template.id,
                "example": example.id,
                "input": raw_text(chat) if config.style == "raw" else turns,
                "choices": [] if example.is_open else list(template.answer.surfaces(example)),
                "target": grid.target(cell),
                "max_tokens": config.evaluate.max_new_tokens,
            } | ({"accepted": [text for text, *_ in written(template.answer, example)]} if example.accepted else {})


def import_lines(config: RunConfig, place: Path, key: str | None = None, tokenizer: str | None = None) -> Recorded:
    """Answers in a file of JSON lines or a directory of them, a model each, named by its file. key: where a line has what was said; default the first of SAID that is not null.

    `tokens` (or num_generated_tokens ...) is its length and `ended` (or finish_reason) whether the model ended it; where a line says neither,
    the tokenizer counts. Lines with `logp` have log-likelihoods of the choices. Raises DataError for a line that is no answer.
    """
    tokens = Tokens(config, tokenizer or config.model)
    found: Recorded = {}
    files = sorted(place.rglob("*.jsonl")) if place.is_dir() else [place]
    stems = Counter(file.stem for file in files)
    for file in files:
        title = file.stem if stems[file.stem] == 1 else str(file.relative_to(place).with_suffix(""))
        rows = []
        for number, line in enumerate(_text(file).split("\n"), 1):
            if not line.strip():
                continue
            try:
                rows.append(_row(json.loads(line), key, tokens))
            except PaftError:
                raise
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
                raise DataError(
                    f"{file} line {number}: {error}; expected an answer with its prompt and example"
                ) from None
        found[title] = rows
    return found


def import_inspect(config: RunConfig, place: Path, tokenizer: str | None = None) -> Recorded:
    """Answers in a log of Inspect (.eval or .json), or a directory of them, by model, a sample for every line of `cells.jsonl`.

    Raises DataError for a log that cannot be read, or whose samples are other ones.
    """
    tokens = Tokens(config, tokenizer or config.model)
    files = [
        file
        for file in (sorted(place.rglob("*")) if place.is_dir() else [place])
        if file.suffix in (".eval", ".json") and file.name not in ("logs.json", "eval-set.json")
    ]
    found: Recorded = {}
    lacking: dict[tuple[str, str, str], Path] = {}
    for file in files:
        try:
            if (log := _log(file, among=place.is_dir())) is None:
                continue
            model, samples = log
            rows = [_sample(sample, tokens) for sample in samples if sample["output"]["choices"]]
            unanswered = [_ids(sample) for sample in samples if not sample["output"]["choices"]]
        except PaftError:
            raise
        except NotImplementedError:
            raise DataError(
                f"{file}: packed in a way that this Python cannot read (zstd); write JSON: inspect log convert {file} --to json "
                "--output-dir DIRECTORY, or inspect eval --log-format json"
            ) from None
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            OverflowError,
            RecursionError,
        ) as error:
            raise DataError(f"{file}: not a log of Inspect over {LINES} ({type(error).__name__} {error})") from None
        found.setdefault(model, []).extend(rows)
        lacking |= {(model, cell["prompt"], cell["example"]): file for cell in unanswered}
    for model, rows in found.items():
        for row in rows:
            lacking.pop((model, row["prompt"], row["example"]), None)  # another log answers it, such as that of a retry
    for (_, prompt, example), file in lacking.items():
        raise DataError(f"{file}: sample {prompt}/{example} has no answer; let Inspect finish: inspect eval-retry")
    if not found:
        raise DataError(f"{place}: no log of Inspect (.eval or .json) in it; give the --log-dir of the run")
    return found


def _log(file: Path, among: bool) -> tuple[str, list[dict[str, Any]]] | None:
    """Model and samples of a log; among others nothing of what is none, such as settings that lie there."""
    if file.suffix == ".json":
        told = json.loads(_text(file))
        if among and not (isinstance(told, dict) and "eval" in told):
            return None
        return _model(told["eval"]), list(told.get("samples") or [])
    with zipfile.ZipFile(file) as log:
        if "header.json" not in log.namelist():
            raise ValueError("it is not finished; inspect eval-retry goes on with it")
        header = json.loads(log.read("header.json"))
        names = sorted(name for name in log.namelist() if name.startswith("samples/") and name.endswith(".json"))
        return _model(header["eval"]), [json.loads(log.read(name)) for name in names]


def _model(told: Mapping[str, Any]) -> str:
    """Name of the model, with the path of a local one, which all have one name."""
    path = (told.get("model_args") or {}).get("model_path")
    return f"{told['model']} {Path(str(path)).name}" if path else str(told["model"])


def _sample(sample: Mapping[str, Any], tokens: Tokens) -> dict[str, Any]:
    reply = sample["output"]["choices"][0]
    content = reply["message"]["content"]
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content if part.get("type") == "text")
    row = _ids(sample)
    used = (sample["output"].get("usage") or {}).get("output_tokens")
    if used is None:
        return row | tokens.completion(content)
    return row | {"completion": content, "tokens": int(used), "ended": _ended(reply.get("stop_reason"))}


def _row(told: Mapping[str, Any], key: str | None, tokens: Tokens) -> dict[str, Any]:
    row: dict[str, Any] = dict(_ids(told))
    keys = [name for name in ([key] if key else SAID) if name in told]
    if "logp" in told:
        row["logp"] = [float(value) for value in told["logp"]]
    if not keys:
        if "logp" not in row:
            raise ValueError(f"no {key or ' or '.join(SAID)} in it")
        return row
    said = next((name for name in keys if told[name] is not None), keys[0])
    text = "" if told[said] is None else told[said]
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = json.dumps(text)
    if not isinstance(text, str):
        raise TypeError(f"{said} is {json.dumps(text)[:60]}, no text (--key names another key)")
    length = next((told[name] for name in LENGTH if told.get(name) is not None), None)
    ended = told.get("ended")
    if not isinstance(ended, bool | None):
        raise TypeError(f"ended is {json.dumps(ended)[:60]}, neither true nor false")
    if ended is None:
        ended = told.get("finish_reason")
    if length is None or ended is None:
        return row | tokens.completion(text)
    return row | {"completion": text, "tokens": int(length), "ended": _ended(ended)}


def _ended(said: object) -> bool:
    return said is not False and str(said).lower() not in CUT


def _ids(told: Mapping[str, Any]) -> dict[str, str]:
    """Of prompt and example, wherever a tool has carried them."""
    for place in (told, told.get("metadata") or {}):
        if isinstance(place.get("prompt"), str) and isinstance(place.get("example"), str):
            return {"prompt": place["prompt"], "example": place["example"]}
    prompt, slash, example = str(told.get("id", "")).partition("/")
    if not slash:
        raise ValueError("neither prompt and example nor the id of its line in it")
    return {"prompt": prompt, "example": example}


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({type(error).__name__})") from None
