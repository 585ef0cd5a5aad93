"""The run directory and the cell store: the only room that knows file names.

RUN/
  config.yaml        every setting, as used
  environment.json   versions, machine
  prompts.yaml       the prompt set, as used
  cells.sqlite       every answer a model gave, once (CellStore)
  <arm>/adapter/     the trained weights (or model/ when all weights were trained)
  <arm>/steps.jsonl  one line per update: prompts, examples, loss
  <arm>/dev.jsonl    checks on dev prompts
  <arm>/train.json   settings and fingerprint of the training, what it did
  results.json       every estimate; scores.parquet: every cell; exhibit.json: the cells that the report shows
  report.html, report.md
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paft.errors import ConfigError, PaftError, StoreError, disk_fault, few
from paft.lm.types import Answered, Completion


class OtherTrainingError(StoreError):
    """A directory that holds a training of other settings, data or model."""


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn whatever a library raises on a full or read-only disk into a StoreError of one line."""
    try:
        yield
    except PaftError:
        raise
    except Exception as error:
        match disk_fault(error):
            case None:
                raise
            case "the disk is full":
                advice = "free some space and run the same command again, finished work is kept"
            case _:
                advice = "choose another directory with --out"
        raise StoreError(f"{where}: {disk_fault(error)}; {advice}") from None


def require_new(out: Path) -> Path:
    """The place of a directory that is to be made. Raises ConfigError when something is there already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: exists; give a new or empty directory")
    if out.resolve() == Path.cwd():
        raise ConfigError(f"{out}: is the directory that this runs in; name a new one")
    return out


def require_new_file(out: Path) -> Path:
    """The place of a file that is to be made. Raises ConfigError when something is there already."""
    if out.exists():
        raise ConfigError(f"{out}: exists; name a new file with --out, or move it away")
    return out


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A scratch directory that becomes `out` at the end, whole or not at all; of an empty one that is there, such as a mounted disk, the
    content. Raises ConfigError when something is there already."""
    require_new(out)
    name = f".{out.name}-{os.getpid()}"
    scratch = out / name if out.exists() else out.with_name(name)
    with disk_errors(out):
        try:
            scratch.mkdir(parents=True)
            yield scratch
            if scratch.parent != out:
                os.replace(scratch, out)
                return
            for each in list(scratch.iterdir()):
                os.replace(each, out / each.name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with _whole(path) as scratch, scratch.open("wb") as file:  # closed before it is renamed
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_rows(rows: Iterator[dict[str, Any]], path: Path) -> None:
    """Rows into a .parquet or .jsonl file, whole or not at all; few in memory at any time."""
    with _whole(path) as scratch:
        if path.suffix == ".parquet":
            _write_parquet(rows, scratch)
        else:
            with scratch.open("w", encoding="utf-8") as file:
                file.writelines(_json(row) + "\n" for row in rows)


ROWS_TOGETHER = 1024


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    writer = None
    try:
        while batch := list(itertools.islice(rows, ROWS_TOGETHER)):
            table = pyarrow.Table.from_pylist(batch, schema=writer.schema if writer else None)
            writer = writer or pyarrow.parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is None:
            pyarrow.parquet.write_table(pyarrow.table({}), path)  # no rows, and a file that can be read all the same
    finally:
        if writer is not None:
            writer.close()


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A scratch file that becomes `path` at the end, or is gone."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(descriptor)
        scratch = Path(name)
        try:
            yield scratch
            os.chmod(scratch, 0o644)
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON whole or not at all."""
    write_text(path, _json(value, indent) + "\n")


def _json(value: Any, indent: int | None = None) -> str:
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can escape and UTF-8 cannot hold
        return json.dumps(value, indent=indent)
    return text


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line; readers ignore a line that a kill has cut, and the next one starts after it."""
    with disk_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
        after_cut = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if after_cut else b"") + _json(row).encode() + b"\n")


def read_jsonl(path: Path, *, anything: bool = False) -> list[dict[str, Any]]:
    """All whole lines that hold a mapping, or `anything`; a cut one is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
            if isinstance(row := json.loads(line), dict) or anything:
                rows.append(row)
    return rows


@contextlib.contextmanager
def _locked(root: Path, name: str = ".lock") -> Iterator[None]:
    with disk_errors(root):
        try:
            root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise StoreError(f"{root} is a file; give a directory with --out") from None
        except FileNotFoundError:  # a dangling link on the way
            raise StoreError(f"{root}: cannot be made; give another directory with --out") from None
        lock = (root / name).open("a+")
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                raise StoreError(
                    f"{root}: this file system knows no locks ({error.strerror}); choose a directory on a local disk"
                ) from None
            raise StoreError(
                f"{root}: another paft process is writing here; wait for it or choose another --out"
            ) from None
        yield


class RunDir:
    """A run's directory, locked while open: two processes never write one run."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def config(self) -> Path:
        """Settings."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.root / "environment.json"

    @property
    def prompts(self) -> Path:
        """Prompt set as used."""
        return self.root / "prompts.yaml"

    @property
    def cells(self) -> Path:
        """Cell store."""
        return self.root / "cells.sqlite"

    @property
    def results(self) -> Path:
        """Estimates."""
        return self.root / "results.json"

    @property
    def scores(self) -> Path:
        """All cells as a table."""
        return self.root / "scores.parquet"

    @property
    def exhibit(self) -> Path:
        """The cells that the report shows."""
        return self.root / "exhibit.json"

    @property
    def report_html(self) -> Path:
        """Report page."""
        return self.root / "report.html"

    @property
    def report_md(self) -> Path:
        """Report table."""
        return self.root / "report.md"

    def arm(self, name: str) -> ArmDir:
        """Directory of one model of the comparison."""
        return ArmDir(self.root / name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunDir]:
        """Hold the run; raises StoreError when another process does. The lock dies with its process."""
        with _locked(self.root):
            yield self

    @contextlib.contextmanager
    def shard(self, number: int, of: int) -> Iterator[Path]:
        """Hold one of several parts of the cell store, each written by a process of its own; yields its file."""
        name = f"cells-{number}-of-{of}.sqlite"
        with _locked(self.root, f".{name}.lock"):
            yield self.root / name

    @property
    def shards(self) -> list[Path]:
        """Parts of the cell store that other processes left here."""
        return sorted(self.root.glob("cells-*-of-*.sqlite"))


@dataclass(frozen=True)
class BuildDir:
    """Files of a prompt set under construction."""

    root: Path

    @property
    def settings(self) -> Path:
        """Settings of the build."""
        return self.root / "build.yaml"

    @property
    def replies(self) -> Path:
        """Every reply of every writer."""
        return self.root / "replies.jsonl"

    @property
    def rounds(self) -> Path:
        """Prompts asked for of every writer by every strategy, in each round after the first."""
        return self.root / "rounds.json"

    @property
    def audit(self) -> Path:
        """What was dropped, and why; how far apart the splits are."""
        return self.root / "audit.json"

    @property
    def review(self) -> Path:
        """What a person may decide, and has decided."""
        return self.root / "review.yaml"

    @property
    def cells(self) -> Path:
        """Answers of a solver that was loaded here."""
        return self.root / "cells.sqlite"

    @property
    def prompts(self) -> Path:
        """The prompt set."""
        return self.root / "prompts.yaml"

    @contextlib.contextmanager
    def locked(self) -> Iterator[BuildDir]:
        """Hold the build; raises StoreError when another process does."""
        with _locked(self.root):
            yield self


@dataclass(frozen=True)
class ArmDir:
    """Files of one model of the comparison."""

    root: Path
    WHOLE = "paft-whole"

    @classmethod
    def at(cls, place: ArmDir | Path | str) -> ArmDir:
        """The files in a directory."""
        return place if isinstance(place, ArmDir) else cls(Path(place))

    @property
    def steps(self) -> Path:
        """Log of updates."""
        return self.root / "steps.jsonl"

    @property
    def dev(self) -> Path:
        """Log of checks on dev prompts."""
        return self.root / "dev.jsonl"

    @property
    def rollouts(self) -> Path:
        """Answers of a training by rewards, one line per update."""
        return self.root / "rollouts.jsonl"

    @property
    def search(self) -> Path:
        """Which prompt was found to train on, and the scores of those that were tried."""
        return self.root / "search.json"

    @property
    def searched(self) -> Path:
        """Cells of that search."""
        return self.root / "search.sqlite"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints while training."""
        return self.root / "checkpoints"

    @property
    def adapter(self) -> Path:
        """Trained adapter."""
        return self.root / "adapter"

    @property
    def best(self) -> ArmDir:
        """Weights of the best check so far, while training."""
        return ArmDir(self.root / "best")

    @property
    def model(self) -> Path:
        """Trained model, when all weights were trained."""
        return self.root / "model"

    @property
    def train(self) -> Path:
        """Settings, fingerprint and outcome of the training."""
        return self.root / "train.json"

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written whole."""
        whole = [path.parent for path in self.checkpoints.glob(f"checkpoint-*/{self.WHOLE}")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)

    def checkpoint_of(self, mark: Mapping[str, Any]) -> Path | None:
        """The newest whole checkpoint, to go on from. Raises StoreError where it is marked as one of another training."""
        if (last := self.last_checkpoint()) is not None:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # of older days
                held = json.loads((last / self.WHOLE).read_text(encoding="utf-8"))
                if held["fingerprint"] != mark["fingerprint"]:
                    raise self._other(_changed(mark["settings"], held["settings"]))
        return last

    def check_training(self, settings: Mapping[str, Any], fingerprint: str | None = None) -> None:
        """Raises StoreError when the directory holds a training of other settings, as far as these and a fingerprint tell it."""
        try:
            held = json.loads(self.train.read_text(encoding="utf-8"))
            before, other = dict(held["settings"]), held["fingerprint"] != (fingerprint or held["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        changed = _changed(json.loads(json.dumps(settings)), before)
        if other or (before and changed):
            raise self._other(changed)

    def _other(self, changed: Sequence[str]) -> StoreError:
        return OtherTrainingError(
            f"{self.root} holds a training with other settings (changed: {few(changed) or 'seed, data, prompts or model'}); "
            "choose another --out, or delete that directory"
        )

    def begin_training(self, settings: Mapping[str, Any], fingerprint: str) -> bool:
        """Whether training is still to be done. Raises StoreError when the directory holds a training of other settings."""
        if self.train.exists():
            try:
                held = json.loads(self.train.read_text(encoding="utf-8"))
                same, before = held["fingerprint"] == fingerprint, dict(held["settings"])
            except (ValueError, KeyError, TypeError):
                raise StoreError(f"{self.train}: damaged; delete {self.root} to train anew") from None
            if not same:
                raise self._other(_changed(settings, before))
            return held.get("report") is None
        write_json(self.train, {"settings": dict(settings), "fingerprint": fingerprint, "report": None})
        return True

    def beside(self, name: str) -> ArmDir:
        """Another model of the same comparison."""
        return ArmDir(self.root.parent / name)

    @property
    def fingerprint(self) -> str:
        """What the training here rests on. Raises StoreError where there is none."""
        try:
            return str(json.loads(self.train.read_text(encoding="utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(f"{self.train}: no training is recorded there; train it first") from None

    @property
    def trained(self) -> bool:
        """Whether a training was completed here."""
        try:
            held: dict[str, Any] = json.loads(self.train.read_text(encoding="utf-8"))
            return held["report"] is not None
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def finish_training(self, report: Mapping[str, Any]) -> None:
        """Record that the training is complete."""
        held = (
            json.loads(self.train.read_text(encoding="utf-8"))
            if self.train.exists()
            else {"settings": {}, "fingerprint": ""}
        )
        write_json(self.train, {**held, "report": dict(report)})

    def save_model(
        self, model: Any, tokenizer: Any = None, beside: Mapping[str, object] | None = None, **how: Any
    ) -> None:
        """Save adapter or model with its own `save_pretrained`, whole or not at all under the final name. beside: more files, JSON."""
        final = self.adapter if tokenizer is None else self.model
        scratch = final.with_name(f".{final.name}-{os.getpid()}")
        with disk_errors(final):
            model.save_pretrained(scratch, **how)
            if tokenizer is not None:
                tokenizer.save_pretrained(scratch)
            for name, value in (beside or {}).items():
                write_json(scratch / name, value)
            if final.exists():
                import shutil

                shutil.rmtree(final)
            os.replace(scratch, final)


def _changed(settings: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return [key for key in {**settings, **before} if before.get(key) != settings.get(key)]


@dataclass(frozen=True)
class CellKey:
    """What makes two answers the same: the model as it is, the question as it reads it, and the limit of a free answer."""

    model: str
    question: str
    max_new_tokens: int


class CellStore:
    """Every answer, once. SQLite in WAL mode: a kill loses at most what was not committed, and never damages the rest."""

    SCORER = 3
    """Version of the scoring code: a change that alters answers raises it, and old cells are left alone."""
    WAIT = 30.0
    """Seconds to wait for another process that is writing."""
    SHARE = 0.01
    """Most of the time since the store was opened that goes into writing answers as they come; those beyond gather."""

    def __init__(self, path: Path):
        self.path = path
        with disk_errors(path), self._reading():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=self.WAIT, isolation_level=None)
            try:
                self._open()
            except BaseException:
                self._db.close()
                raise
        self._pending: list[tuple[CellKey, Answered]] = []
        self._opened, self._writing = time.monotonic(), 0.0

    def _open(self) -> None:
        until = time.monotonic() + self.WAIT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite itself waits for most locks, but not for another process that is switching to WAL
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS cells (model TEXT, question TEXT, max_new_tokens INT, scorer INT, answer TEXT,"
            " PRIMARY KEY (model, question, max_new_tokens, scorer)) WITHOUT ROWID"
        )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """SQLite's complaints as a StoreError that says what to do; a full disk is left to `disk_errors`."""
        try:
            yield
        except sqlite3.Error as error:
            if disk_fault(error):
                raise
            if "locked" in str(error):
                raise StoreError(
                    f"{self.path}: another process is writing it ({error}); wait for it and run again"
                ) from None
            if "readonly" in str(error) or "unable to open" in str(error):
                raise StoreError(f"{self.path}: not writable ({error}); choose another directory with --out") from None
            if isinstance(error, sqlite3.OperationalError) and "disk i/o" in str(error).lower():
                raise StoreError(
                    f"{self.path}: the disk does not write ({error}); free some space or choose another --out"
                ) from None
            raise StoreError(f"{self.path}: not a sound cell store ({error}); delete it to score anew") from None

    def __enter__(self) -> CellStore:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self.flush()
        except StoreError:
            if kind is None:
                raise
        finally:
            self._db.close()

    def get(self, keys: Sequence[CellKey]) -> list[Answered | None]:
        """The stored answers, None where there is none."""
        query = "SELECT answer FROM cells WHERE model=? AND question=? AND max_new_tokens=? AND scorer=?"
        with self._reading():
            found = [
                self._db.execute(query, (k.model, k.question, k.max_new_tokens, self.SCORER)).fetchone() for k in keys
            ]
        try:
            return [_answered(row[0]) if row else None for row in found]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self.path}: not a sound cell store ({error!r}); delete it to score anew") from None

    def put(self, key: CellKey, answer: Answered) -> None:
        """Keep an answer; written at once where writing has taken little of the time, else with a later one or by `flush`."""
        self._pending.append((key, answer))
        if self._writing <= self.SHARE * (time.monotonic() - self._opened):
            self.flush()

    def flush(self) -> None:
        """Write what is pending in one transaction."""
        if self._pending:
            started = time.monotonic()
            rows = [(k.model, k.question, k.max_new_tokens, self.SCORER, _json(asdict(a))) for k, a in self._pending]
            with disk_errors(self.path), self._reading():
                try:
                    self._db.execute("BEGIN IMMEDIATE")
                    self._db.executemany("INSERT OR IGNORE INTO cells VALUES (?,?,?,?,?)", rows)
                    self._db.execute("COMMIT")
                except sqlite3.Error:
                    with contextlib.suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")
                    raise
            self._pending = []
            self._writing += time.monotonic() - started

    def absorb(self, other: Path) -> int:
        """Take over all cells of another store; says how many were new. What is held already stays as it is."""
        before = len(self)
        with CellStore(other) as its, disk_errors(self.path):
            with its._reading():  # all of it first: a fault below is then of this store
                its._db.execute("SELECT total(length(answer)) FROM cells").fetchone()
            with self._reading():
                self._db.execute("ATTACH ? AS other", (str(other),))
                try:
                    self._db.execute("INSERT OR IGNORE INTO cells SELECT * FROM other.cells")
                finally:
                    self._db.execute("DETACH other")
        return len(self) - before

    def __len__(self) -> int:
        with self._reading():
            count: int = self._db.execute("SELECT count(*) FROM cells").fetchone()[0]
        return count


def _answered(text: str) -> Answered:
    value = json.loads(text)
    completion = value["completion"]
    return Answered(
        tuple(value["logp_C"]),
        tuple(value["tokens_C"]),
        tuple(value["bytes_C"]),
        value["prompt_tokens"],
        value["seam"],
        Completion(**completion) if completion else None,
        value["seconds"],
    )
