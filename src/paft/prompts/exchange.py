"""Prompts that people have already: in text files, tables, Jinja and YAML templates, and in the strings of their code.

Reading gives templates and, by name, what could not become one. Placeholders of any spelling turn into slots; text stays as it
is. Nothing is executed: Jinja is only taken where it is a plain substitution, Python is only parsed.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft.errors import PromptSetError, TemplateError, few
from paft.prompts.sets import ALL_SPLITS, PromptSet
from paft.prompts.template import Fault, Template, template_from, template_to

READS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".j2", ".jinja", ".jinja2", ".yaml", ".yml", ".py")
WRITES = (".jsonl", ".csv", ".tsv")

_JINJA = re.compile(r"\{\{-?\s*([A-Za-z_]\w*)\s*-?\}\}")
_JINJA_CODE = re.compile(r"\{%|\{#|\{\{-?\s*+(?![A-Za-z_]\w*\s*-?\}\})")
_DOLLAR = re.compile(r"\$\{([A-Za-z_]\w*)\}|%\(([A-Za-z_]\w*)\)s")
_SLOT = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class Found:
    """Templates with where they stood in `origin`, and places that hold none, each with its fault."""

    templates: tuple[Template, ...]
    faulty: tuple[tuple[str, Fault], ...]


def read_prompts(
    paths: Sequence[Path],
    *,
    answer: object = "letters",
    rename: Mapping[str, str] | None = None,
    slots: Sequence[str] = (),
) -> Found:
    """Templates from files, and from all files below directories, whose ending is one of READS.

    answer: the answer format of prompts that come without one. rename: their slot names -> the task's. slots: required
    fields; of a code file only strings that hold one of them (or a name that `rename` maps to it) are prompts.
    """
    for path in paths:
        if not path.exists():
            raise PromptSetError(
                f"{path}: there is no such file or directory; give the prompts' files, or a directory of them"
            )
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    wanted = [file for file in files if file.suffix.lower() in READS and file.is_file()]
    if not wanted:
        raise PromptSetError(f"{few(map(str, paths))}: nothing to read; expected files ending in {', '.join(READS)}")
    names = dict(rename or {})
    templates, faulty = [], []
    for file in wanted:
        for place, entry in _entries(file, {*slots, *(old for old, new in names.items() if new in slots)}):
            where = f"{file}, {place}"
            try:
                made = {"answer": answer, **entry}
                if "id" not in entry:  # else it is ours, where {{name}} is a literal {name}
                    for key in ("text", "system") if entry.get("system") else ("text",):
                        made[key] = _slotted(entry.get(key), names)
                templates.append(template_from({**made, "origin": {"source": where}}, where))
            except TemplateError as error:
                faulty.append((where, Fault("malformed", str(error))))
    return Found(tuple(templates), tuple(faulty))


def prompts_table(prompts: PromptSet, kind: str) -> str:
    """All templates of a set as a table with their splits; kind: an ending of WRITES. `read_prompts` reads it back."""
    rows = [{"split": split, **template_to(t)} for split in ALL_SPLITS for t in prompts.split(split)]
    if kind not in WRITES:
        raise PromptSetError(f"cannot write {kind or 'a file without ending'}; expected {', '.join(WRITES)}")
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    out = io.StringIO()
    columns = ["split", "id", "system", "text", "answer", "options", "joiner"]
    table = csv.DictWriter(out, columns, extrasaction="ignore", delimiter="\t" if kind == ".tsv" else ",")
    table.writeheader()
    for row in rows:
        plain = row["answer"] if isinstance(row["answer"], str) else json.dumps(row["answer"], ensure_ascii=False)
        table.writerow({**row, "answer": plain})
    return out.getvalue()


def _slotted(text: object, names: Mapping[str, str]) -> str:
    """Placeholders as slots: {{ name }}, ${name}, %(name)s and {name} become {name}, renamed."""
    if not isinstance(text, str):
        raise TemplateError(f"text is {text!r}; expected a text")
    if code := _JINJA_CODE.search(text):
        raise TemplateError(
            f"Jinja code at {text[code.start() : code.start() + 30]!r}; only plain {{{{ name }}}} can be a slot"
        )
    text = _JINJA.sub(lambda match: f"{{{match[1]}}}", text)
    text = _DOLLAR.sub(lambda match: f"{{{match[1] or match[2]}}}", text)
    return _SLOT.sub(lambda match: f"{{{names.get(match[1], match[1])}}}", text)


def _entries(file: Path, slots: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mappings with at least a text, and where they stand."""
    kind = file.suffix.lower()
    try:
        text = ""
        if kind != ".xlsx":
            with file.open(encoding="utf-8-sig", newline="" if kind in (".csv", ".tsv") else None) as opened:
                text = opened.read()
    except (OSError, UnicodeDecodeError) as error:
        raise PromptSetError(f"{file}: cannot be read ({error}); save it as UTF-8") from None
    try:
        match kind:
            case ".xlsx":
                yield from _rows(_sheet(file))
            case ".txt" | ".md":
                blocks = re.split(r"(?m)^-{3,}\s*$", text) if re.search(r"(?m)^-{3,}\s*$", text) else text.splitlines()
                yield from (
                    (f"prompt {n}", {"text": each.strip("\n")}) for n, each in enumerate(blocks, 1) if each.strip()
                )
            case ".csv" | ".tsv":
                yield from _rows(
                    list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ","))
                )
            case ".jsonl":
                yield from _rows([json.loads(line) for line in text.split("\n") if line.strip()])
            case ".json":
                yield from _trees(json.loads(text))
            case ".yaml" | ".yml":
                yield from _trees(yaml.load(text, Loader=_AnyTag))
            case ".py":
                yield from _strings(text, slots)
            case _:
                yield "template", {"text": text.split("|||")[0].strip("\n")}
    except (
        ValueError,
        KeyError,
        OSError,
        RecursionError,
        yaml.YAMLError,
        SyntaxError,
        csv.Error,
        zipfile.BadZipFile,
    ) as error:
        raise PromptSetError(f"{file}: not readable as {kind} ({(str(error) or 'nested').splitlines()[0]})") from None


_TEXT_KEYS = ("text", "prompt", "template", "user", "jinja", "instruction")


def _rows(rows: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _entry(row) if isinstance(row, dict) else {"text": row}


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a template from a row of a table; a text under any of its usual names, JSON inside a cell read."""
    entry: dict[str, Any] = {"text": next((row[key] for key in _TEXT_KEYS if row.get(key)), None)}
    ours = isinstance(row.get("id"), str) and re.fullmatch(r"[0-9a-f]{8}", row["id"]) and "answer" in row
    for key in ("system", "options", "joiner", "answer", *(("id",) if ours else ())):
        if row.get(key) not in (None, ""):
            entry[key] = row[key]
    if isinstance(entry.get("answer"), str) and entry["answer"].lstrip().startswith("{"):
        entry["answer"] = json.loads(entry["answer"])
    if isinstance(entry["text"], str) and "jinja" in row:
        entry["text"] = entry["text"].split("|||")[0].strip()  # PromptSource: what follows is the target
        entry.pop("answer", None)
    return entry


def _trees(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping that holds a text, at any depth: lists of prompts, our sets, NeMo-Skills and PromptSource files."""
    if isinstance(value, dict):
        if any(isinstance(value.get(key), str) for key in _TEXT_KEYS):
            yield path or "prompt", _entry(value)
        else:
            for key, inner in value.items():
                yield from _trees(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            if isinstance(inner, str):
                yield f"{path}[{number}]", {"text": inner}
            else:
                yield from _trees(inner, f"{path}[{number}]")


def _strings(code: str, slots: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Texts in Python code that hold one of the slots: plain strings, and f-strings whose names are plain."""
    tree = ast.parse(code)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) if isinstance(part, ast.Constant) else f"{{{_name(part)}}}" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        held = {match[1] for match in _SLOT.finditer(text)} | {match[1] for match in _JINJA.finditer(text)}
        if held & slots:
            yield f"line {node.lineno}", {"text": text}


def _name(part: ast.expr) -> str:
    value = part.value if isinstance(part, ast.FormattedValue) else None
    return value.id if isinstance(value, ast.Name) else value.attr if isinstance(value, ast.Attribute) else "expression"


def _sheet(file: Path) -> list[dict[str, Any]]:
    try:
        import openpyxl
    except ImportError:
        raise PromptSetError(
            f"{file}: reading .xlsx needs openpyxl; pip install openpyxl, or save the sheet as .csv"
        ) from None
    rows = list(openpyxl.load_workbook(file, read_only=True, data_only=True).active.iter_rows(values_only=True))
    head = [str(name) for name in rows[0]] if rows else []
    return [dict(zip(head, row, strict=False)) for row in rows[1:] if any(cell is not None for cell in row)]


class _AnyTag(yaml.SafeLoader):
    """YAML whose own tags (PromptSource: !Template) are read as plain mappings."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_AnyTag.add_multi_constructor("!", _plain)
