"""Prompts that people have already: in text files, tables, Jinja and YAML templates, and in the strings of their code.

Reading gives templates and, by name, what could not become one. Placeholders of any spelling turn into slots; text stays as it
is. Nothing is executed: Jinja is only taken where it is a plain substitution, Python is only parsed.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import re
import textwrap
import uuid
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from paft.config import OnceLoader, dump_yaml, keys_once
from paft.errors import PromptSetError, TemplateError, few
from paft.prompts.sets import ALL_SPLITS, PromptSet
from paft.prompts.template import Fault, Template, template_from, template_to
from paft.tasks.answers import LETTERS
from paft.tasks.types import Example, Task

READS = (".txt", ".md", ".jsonl", ".json", ".csv", ".tsv", ".xlsx", ".j2", ".jinja", ".jinja2", ".yaml", ".yml", ".py")
WRITES = (".jsonl", ".csv", ".tsv", ".xlsx")
FORMS = ("promptsource", "nemo", "jinja")

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
    fields; of a code file only strings that hold one of them (or a name that `rename` maps to it) are prompts. A file that cannot be
    read is an error where it was named, and one of the faults where a directory holds it.
    """
    for path in paths:
        if not path.exists():
            raise PromptSetError(
                f"{path}: there is no such file or directory; give the prompts' files, or a directory of them"
            )
    files = [(file, file is path) for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    wanted = [(file, named) for file, named in files if file.suffix.lower() in READS and file.is_file()]
    if not wanted:
        raise PromptSetError(f"{few(map(str, paths))}: nothing to read; expected files ending in {', '.join(READS)}")
    names = dict(rename or {})
    templates, faulty = [], []
    for file, named in wanted:
        try:
            for place, entry in _entries(file, {*slots, *(old for old, new in names.items() if new in slots)}):
                where = f"{as_text(file)}, {place}"
                try:
                    made = {"answer": answer, **entry}
                    if "id" not in entry:  # else it is ours, where {{name}} is a literal {name}
                        for key in ("text", "system") if entry.get("system") else ("text",):
                            made[key] = _slotted(entry.get(key), names)
                    templates.append(template_from({**made, "origin": {"source": where}}, where))
                except TemplateError as error:
                    faulty.append((where, Fault("malformed", str(error))))
        except PromptSetError as error:
            if named:
                raise
            faulty.append((as_text(file), Fault("malformed", str(error))))
    return Found(tuple(templates), tuple(faulty))


def as_text(path: Path) -> str:
    """A path that can be written down: bytes of its name that are no UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def prompts_files(prompts: PromptSet, form: str, task: Task | None = None) -> dict[str, str | bytes]:
    """Files of a set, by name. form: a table (one of WRITES), which `read_prompts` reads back, or one of FORMS.

    FORMS lay `{choices}` out for the task's number of options and name each prompt by split, position and id. They fill
    fields and options (A, B, ...; fixed choices are written out) by name, the target from `answer`, the index of the right one.
    nemo: NAME.yaml. jinja: NAME.j2, NAME.target.j2, and NAME.system.j2 where there is a system text. promptsource:
    templates.yaml; it has no system texts, which go above the text, and takes white space off both ends.

    Raises PromptSetError for an unknown form, or what a form cannot hold; TemplateError where a prompt cannot ask the task.
    """
    if form in WRITES:
        return {f"prompts{form}": _table(prompts, form)}
    if form not in FORMS:
        raise PromptSetError(
            f"cannot write {form or 'a file without ending'}; expected {', '.join(WRITES)}, or format {', '.join(FORMS)}"
        )
    if task is None:
        raise PromptSetError(f"format {form} lays options out; name the task they are of")
    prompts.check(task)
    example = _any_example(task, form)
    named = [
        (f"{split}-{number:03}-{template.id}", template)
        for split in ALL_SPLITS
        for number, template in enumerate(prompts.split(split))
    ]
    if form == "promptsource":
        entries = (_promptsource(name, template, example) for name, template in named)
        return {"templates.yaml": dump_yaml({"dataset": task.name}) + "templates:\n" + "".join(entries)}
    files: dict[str, str | bytes] = {}
    for name, template in named:
        turns: dict[str, str] = {turn.role: turn.text for turn in template.render(example)}
        if form == "nemo":
            filled = {role: _FORMAT_READS.sub(_format, text) for role, text in turns.items()}
            if filled.get("system") != turns.get("system"):  # in chats NeMo-Skills fills only `user`
                filled = {"user": "\n\n".join(filled.values())}
            files[f"{name}.yaml"] = dump_yaml(filled)
        else:
            files |= {f"{name}{'.system' * (role == 'system')}.j2": _jinja(text) for role, text in turns.items()}
            files[f"{name}.target.j2"] = _jinja_target(template.answer.surfaces(example))
    return files


def _table(prompts: PromptSet, kind: str) -> str | bytes:
    rows = [{"split": split, **template_to(t)} for split in ALL_SPLITS for t in prompts.split(split)]
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    columns = ["split", "id", "system", "text", "answer", "options", "joiner"]
    for row in rows:
        if not isinstance(row["answer"], str):
            row["answer"] = json.dumps(row["answer"], ensure_ascii=False)
        if row.get("joiner") == "":
            row["joiner"] = '""'
    if kind == ".xlsx":
        return _workbook(columns, rows)
    out = io.StringIO()
    table = csv.DictWriter(out, columns, extrasaction="ignore", delimiter="\t" if kind == ".tsv" else ",")
    table.writeheader()
    table.writerows(rows)
    return out.getvalue()


_NO_CELL = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


def _workbook(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bytes:
    try:
        import openpyxl
    except ImportError:
        raise PromptSetError("writing .xlsx needs openpyxl; pip install openpyxl, or write .csv") from None
    book = openpyxl.Workbook()
    book.active.append(columns)
    for line, row in enumerate(rows, 2):
        for position, column in enumerate(columns, 1):
            text = row.get(column, "")
            if barred := _NO_CELL.search(text):
                raise PromptSetError(f"template {row['id']}: {column} holds {barred[0]!a}, .xlsx cannot; write .jsonl")
            if len(text) > 32767:
                raise PromptSetError(f"template {row['id']}: {column} has {len(text)} characters, .xlsx holds 32767")
            if text:
                cell = book.active.cell(line, position, text)
                cell.data_type = "s"  # else what starts with = is a formula
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


# half surrogate pairs, which no template holds, enclose the name of a field; inside JSON the line break is escaped
_MARK = re.compile("\ud800(\\w+)(\n|\\\\n)\udfff")
_FORMAT_READS = re.compile(f"{_MARK.pattern}|[{{}}]")
_JINJA_READS = re.compile(f"{_MARK.pattern}|[{{}}]{{2,}}|\\{{(?=[%#\r\ud800]|\n?\\Z)|\r|\n\\Z")
_TAKEN = {"nemo": {"examples"}, "jinja": {"answer", "not", "self", "true", "false", "none", "True", "False", "None"}}
_TAKEN["promptsource"] = {"answer_choices", *_TAKEN["jinja"]}


def _any_example(task: Task, form: str) -> Example:
    """An example with a mark in the place of every field, and of every option that is not the same in all examples."""
    names = [*task.fields, *task.optional_fields]
    if taken := _TAKEN[form].intersection(names):
        raise PromptSetError(f"format {form}: it gives {few(sorted(taken))} a meaning of its own; rename that field")
    if task.num_choices == 1:
        raise PromptSetError(
            f"format {form}: task {task.name!r} has open answers; only tasks with choices can be exported"
        )
    if task.choices is None and task.num_choices > len(LETTERS):
        raise PromptSetError(f"format {form}: {task.num_choices} options; expected at most {len(LETTERS)}")
    marks = {name: f"\ud800{name}\n\udfff" for name in (*names, *LETTERS[: task.num_choices])}
    options = task.choices or tuple(marks[letter] for letter in LETTERS[: task.num_choices])
    return Example(f"any of {task.name}", {name: marks[name] for name in names}, options, 0)


def _format(read: re.Match[str]) -> str:
    return f"{{{read[1]}}}" if read[1] else 2 * read[0]


def _jinja(text: str) -> str:
    """Jinja that renders a marked text, under any of its settings for white space."""
    return _JINJA_READS.sub(lambda read: f"{{{{ {_field(*read.groups()) if read[1] else _quoted(read[0])} }}}}", text)


def _jinja_target(answers: Sequence[str]) -> str:
    """Jinja that renders the marked answer whose index is `answer`."""

    def joined(answer: str) -> str:
        at, parts = 0, []
        for mark in _MARK.finditer(answer):
            parts += [_quoted(answer[at : mark.start()]), _field(*mark.groups())]
            at = mark.end()
        return " ~ ".join(part for part in (*parts, _quoted(answer[at:])) if part != '""')

    return f"{{{{ [{', '.join(map(joined, answers))}][answer] }}}}"


def _field(name: str, line_break: str) -> str:
    escapes = "" if line_break == "\n" else '\\"\n\r\t\b\f'
    return name + "".join(f"|replace({_quoted(each)}, {_quoted(json.dumps(each)[1:-1])})" for each in escapes)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("}}", "}\\x7d")  # PromptSource rewrites every }}


def _promptsource(name: str, template: Template, example: Example) -> str:
    """An entry of templates.yaml."""
    bars = "3ed2dface8203c4c9dfb1a5dc58e41e0"  # what PromptSource turns into ||| after it has split prompt and target
    prompt = "\n\n".join(turn.text for turn in template.render(example)).replace("|||", bars)
    answers = [answer.replace("|||", bars) for answer in template.answer.surfaces(example)]
    key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"paft:{template.id}"))
    values = {
        "answer_choices": " ||| ".join(map(_jinja, answers)),
        "id": key,
        "jinja": f"{_jinja(prompt)}\n|||\n{_jinja_target(answers)}",
        "name": name,
        "reference": "",
    }
    shown = "choices" in template.slots or "A" in template.slots
    about = {"choices_in_prompt": shown, "languages": [], "metrics": ["Accuracy"], "original_task": True}
    entry = f"{dump_yaml(values)}metadata: !TemplateMetadata\n{textwrap.indent(dump_yaml(about), '  ')}"
    return f"  {key}: !Template\n{textwrap.indent(entry, '    ')}"


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
        raise PromptSetError(f"{as_text(file)}: cannot be read ({error}); save it as UTF-8") from None
    try:
        match kind:
            case ".xlsx":
                yield from _rows([*map(_cells, _sheet(file))])
            case ".txt" | ".md":
                blocks = re.split(r"(?m)^-{3,}\s*$", text) if re.search(r"(?m)^-{3,}\s*$", text) else text.splitlines()
                yield from (
                    (f"prompt {n}", {"text": each.strip("\n")}) for n, each in enumerate(blocks, 1) if each.strip()
                )
            case ".csv" | ".tsv":
                lines = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",")
                yield from _rows([*map(_cells, lines)])
            case ".jsonl":
                yield from _rows(
                    [_json(line, f"line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
                )
            case ".json":
                yield from _trees(_json(text, "JSON"))
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
        raise PromptSetError(
            f"{as_text(file)}: not readable as {kind} ({(str(error) or 'nested').splitlines()[0]})"
        ) from None


def _json(text: str, where: str) -> Any:
    return json.loads(text, object_pairs_hook=lambda pairs: keys_once(pairs, where))


_TEXT_KEYS = ("text", "prompt", "template", "user", "jinja", "instruction")


def _rows(rows: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(rows, 1):
        yield f"row {number}", _entry(row) if isinstance(row, dict) else {"text": row}


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without its empty cells, which say nothing; a joiner that is no text at all is written `""`."""
    return {key: "" if (key, cell) == ("joiner", '""') else cell for key, cell in row.items() if cell not in (None, "")}


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a template from a row of a table; a text under any of its usual names, JSON inside a cell read."""
    entry: dict[str, Any] = {"text": next((row[key] for key in _TEXT_KEYS if row.get(key)), None)}
    ours = isinstance(row.get("id"), str) and re.fullmatch(r"[0-9a-f]{8}", row["id"]) and "answer" in row
    for key in ("system", "options", "joiner", "answer", *(("id",) if ours else ())):
        if row.get(key) is not None and (row[key] != "" or (ours and key == "joiner")):
            entry[key] = row[key]
    if isinstance(entry.get("answer"), str) and entry["answer"].lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is no answer format: a fault of its row
            entry["answer"] = _json(entry["answer"], "answer")
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
        held = {match[1] for pattern in (_SLOT, _JINJA) for match in pattern.finditer(text)}
        held |= {match[1] or match[2] for match in _DOLLAR.finditer(text)}
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
    book = openpyxl.load_workbook(io.BytesIO(file.read_bytes()), read_only=True, data_only=True)
    rows = list(book.active.iter_rows(values_only=True))
    head = [str(name) for name in rows[0]] if rows else []
    return [dict(zip(head, row, strict=False)) for row in rows[1:] if any(cell is not None for cell in row)]


class _AnyTag(OnceLoader):
    """YAML, no key twice, whose own tags (PromptSource: !Template) are read as plain mappings."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_AnyTag.add_multi_constructor("!", _plain)
