from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import AssetError, RenderError, StoreError, disk_fault
from paft.lm.types import Answered, Completion
from paft.store import (
    ArmDir,
    CellKey,
    CellStore,
    RunDir,
    append_jsonl,
    disk_errors,
    new_folder,
    read_jsonl,
    write_json,
    write_rows,
    write_text,
)


def answer(text: str | None = "x", n: int = 2) -> Answered:
    return Answered(
        tuple(-float(i) for i in range(n)),
        (1,) * n,
        (1,) * n,
        7,
        False,
        None if text is None else Completion(text, 3, "eos"),
    )


def key(number: int) -> CellKey:
    return CellKey("model", f"q{number}", 8)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@given(st.text(), st.lists(st.floats(allow_nan=False), max_size=3))
def test_any_answer_comes_back_as_it_was(text: str, logp: list[float]) -> None:
    import tempfile

    made = Answered(tuple(logp), (1,) * len(logp), (2,) * len(logp), 0, True, Completion(text, 0, "limit"))
    with tempfile.TemporaryDirectory() as folder:
        with CellStore(Path(folder) / "cells.sqlite") as store:
            store.put(key(0), made)
        with CellStore(Path(folder) / "cells.sqlite") as store:
            assert store.get([key(0), key(1)]) == [made, None]


def test_half_a_character_and_nul_survive(tmp_path: Path) -> None:
    with CellStore(tmp_path / "cells.sqlite") as store:
        made = [answer(text) for text in ("\ud800", "a\x00b", "\udfff🙂", "", "שלום")] + [answer(None, 0)]
        for number, each in enumerate(made):
            store.put(key(number), each)
        store.flush()
        assert store.get([key(number) for number in range(6)]) == made
        assert len(store) == 6


def test_a_cell_is_found_under_its_own_key_only_and_the_first_answer_stays(tmp_path: Path) -> None:
    with CellStore(tmp_path / "new" / "cells.sqlite") as store:
        store.put(key(0), answer("first"))
        store.flush()
        store.put(key(0), answer("second"))
        store.flush()
        others = [CellKey("other", "q0", 8), CellKey("model", "q1", 8), CellKey("model", "q0", 9)]
        assert store.get([key(0), *others]) == [answer("first"), None, None, None]


WRITER = """
import sys, time
from pathlib import Path
from paft.lm.types import Answered, Completion
from paft.store import CellKey, CellStore
path, name, count = sys.argv[1:]
with CellStore(Path(path)) as store:
    for n in range(int(count)):
        store.put(CellKey(name, f"q{n}", 8), Answered((-1.0,), (1,), (1,), n, False, Completion("x" * 200, 1, "eos")))
        if n % 50 == 49:
            store.flush()
            print(n + 1, flush=True)
"""


def test_a_killed_writer_loses_at_most_the_pending_batch(tmp_path: Path) -> None:
    path = tmp_path / "cells.sqlite"
    writer = python(WRITER, path, "a", 10**9)
    assert writer.stdout
    for _ in range(5):
        reported = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.communicate()[0].split()
    reported = int(rest[-1]) if rest and rest[-1].isdigit() and int(rest[-1]) % 50 == 0 else reported
    with CellStore(path) as store:
        assert len(store) >= reported
        found = store.get([CellKey("a", f"q{n}", 8) for n in range(len(store))])
        assert [each.prompt_tokens for each in found if each] == list(range(len(store)))


@pytest.mark.parametrize(("share", "seen"), [(1e9, [1, 2, 3, 4]), (0.0, [1, 1, 1, 1])])
def test_an_answer_is_written_as_it_comes_unless_writing_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, seen: list[int]
) -> None:
    monkeypatch.setattr(CellStore, "SHARE", share)
    with CellStore(tmp_path / "cells.sqlite") as store, CellStore(tmp_path / "cells.sqlite") as reader:
        found = []
        for number in range(4):
            store.put(key(number), answer())
            found.append(len(reader))
        assert found == seen
        store.flush()
        assert len(reader) == 4


def test_processes_that_open_and_write_one_store_together_all_get_through(tmp_path: Path) -> None:
    path = tmp_path / "cells.sqlite"
    writers = [python(WRITER, path, name, 400) for name in "ab"]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    with CellStore(path) as store:
        assert len(store) == 800


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells.sqlite"
    path.write_bytes(b"no database at all" * 1_000)
    with pytest.raises(StoreError, match=r"not a sound cell store \(file is not a database\); delete it"):
        CellStore(path)


def damaged(path: Path) -> None:
    with CellStore(path) as store:
        for number in range(2_000):
            store.put(key(number), answer("x" * 100))
    content = bytearray(path.read_bytes())
    content[8_192:] = os.urandom(len(content) - 8_192)
    path.write_bytes(content)


def test_a_damaged_page_is_a_store_error_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cells.sqlite"
    damaged(path)
    with pytest.raises(StoreError, match="not a sound cell store"):
        with CellStore(path) as store:
            store.get([key(number) for number in range(2_000)])


def test_a_damaged_part_is_named_and_the_store_that_takes_it_over_is_not(tmp_path: Path) -> None:
    part = tmp_path / "cells-1-of-2.sqlite"
    damaged(part)
    with CellStore(tmp_path / "cells.sqlite") as store:
        with pytest.raises(StoreError, match=r"cells-1-of-2\.sqlite: not a sound cell store"):
            store.absorb(part)
        assert len(store) == 0


def test_an_answer_that_is_no_answer_is_a_store_error(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "cells.sqlite"
    with CellStore(path) as store:
        store.put(key(0), answer())
    with sqlite3.connect(path) as db:
        db.execute("UPDATE cells SET answer = '{}'")
    db.close()
    with CellStore(path) as store, pytest.raises(StoreError, match="not a sound cell store"):
        store.get([key(0)])


def test_a_place_that_cannot_hold_a_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="not writable"):
        CellStore(tmp_path / "file" / "cells.sqlite")
    with pytest.raises(StoreError, match="not writable"):
        CellStore(tmp_path / "folder")


LIMITED = """
import resource, signal, sys
from pathlib import Path
from paft.errors import StoreError
from paft.lm.types import Answered, Completion
from paft.store import CellKey, CellStore, append_jsonl, read_jsonl, write_text
root = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
(root / "kept.txt").write_text("before")
store = CellStore(root / "cells.sqlite")
store.put(CellKey("m", "first", 8), Answered((), (), (), 0, False, None))
store.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for what in (lambda: write_text(root / "kept.txt", "x" * 300_000), lambda: append_jsonl(root / "log.jsonl", {"x": "y" * 300_000})):
    try:
        what()
    except StoreError as error:
        print(error)
try:
    for n in range(2_000):
        store.put(CellKey("m", f"q{n}", 8), Answered((), (), (), 0, False, Completion("x" * 1000, 1, "eos")))
    store.flush()
except StoreError as error:
    print(error)
try:
    with store:
        raise RuntimeError("the first error is the one that counts")
except RuntimeError as error:
    print(error)
"""


def test_a_file_that_may_grow_no_further_is_a_store_error_and_what_was_written_stays(tmp_path: Path) -> None:
    done = python(LIMITED, tmp_path)
    out, errors = done.communicate(timeout=60)
    assert done.returncode == 0, errors
    text, log, cells, last = out.splitlines()
    assert "kept.txt: the disk is full; free some space and run the same command again" in text
    assert "log.jsonl: the disk is full" in log
    assert "cells.sqlite: the disk" in cells
    assert last == "the first error is the one that counts"
    assert (tmp_path / "kept.txt").read_text() == "before"
    assert not list(tmp_path.glob(".kept*"))
    assert read_jsonl(tmp_path / "log.jsonl") == []
    append_jsonl(tmp_path / "log.jsonl", {"after": 1})
    assert read_jsonl(tmp_path / "log.jsonl") == [{"after": 1}]
    with CellStore(tmp_path / "cells.sqlite") as store:
        assert len(store) >= 1
        store.put(key(1), answer())


def fill(store: CellStore) -> None:
    for number in range(2_000):
        store.put(key(number), answer("x" * 1_000))
    store.flush()


def test_a_full_disk_is_a_store_error(tmp_path: Path) -> None:
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "paft", tmp_path], capture_output=True).returncode
    ):
        pytest.skip("mounting a small disk needs rights that this process lacks; the file size limit above stands in")
    try:
        store = CellStore(tmp_path / "cells.sqlite")
        with pytest.raises(StoreError, match="the disk is full"):
            fill(store)
        with pytest.raises(StoreError, match="the disk is full"):
            write_text(tmp_path / "big.txt", "x" * 2**20)
        assert not (tmp_path / "big.txt").exists()
        store._db.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert [each.name for each in path.parent.iterdir()] == ["a.txt"]
    killed = python(
        "import sys; from pathlib import Path; from paft.store import write_text\nwhile 1: write_text(Path(sys.argv[1]), 'ab' * 500_000)",
        path,
    )
    while path.stat().st_size < 100:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert path.read_text() == "ab" * 500_000


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    write_rows(iter(()), tmp_path / "none.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "none.parquet").num_rows == 0


def test_json_holds_any_text(tmp_path: Path) -> None:
    for value in ({"a": "\ud800"}, {"ü": ["\x00", "🙂"]}):
        write_json(tmp_path / "v.json", value)
        assert json.loads((tmp_path / "v.json").read_text(encoding="utf-8")) == value
        append_jsonl(tmp_path / "v.jsonl", value)
    assert "ü" in (tmp_path / "v.json").read_text(encoding="utf-8")
    assert read_jsonl(tmp_path / "v.jsonl") == [{"a": "\ud800"}, {"ü": ["\x00", "🙂"]}]


def test_a_log_cut_at_any_byte_loses_its_last_line_only_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"n": 1})
    append_jsonl(path, {"n": 2, "text": "größe 🙂"})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        before = read_jsonl(path)
        assert before == ([{"n": 1}] if cut < len(whole) - 1 else read_jsonl(path))
        append_jsonl(path, {"n": 3})
        assert read_jsonl(path) == [*before, {"n": 3}]


def test_a_run_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from paft.store import RunDir\nwith RunDir(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StoreError, match="another paft process is writing here; wait for it or choose another --out"):
        with RunDir(tmp_path / "run").locked():
            raise AssertionError
    other.kill()
    other.communicate()
    with RunDir(tmp_path / "run").locked() as run:  # the lock died with its process
        assert run.root == tmp_path / "run"


def test_a_run_directory_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root, message in (
        (tmp_path / "file", "is a file; give a directory with --out"),
        (tmp_path / "file" / "run", "not writable"),
    ):
        with pytest.raises(StoreError, match=message):
            with RunDir(root).locked():
                raise AssertionError


def test_training_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    arm = ArmDir(tmp_path / "paft")
    settings = {"epochs": 3, "learning_rate": 1e-4, "schedule": {"kind": "paft"}}
    assert arm.begin_training(settings, "f1") is True
    assert arm.begin_training(settings, "f1") is True
    with pytest.raises(
        StoreError, match=r"other settings \(changed: epochs, schedule\); choose another --out, or delete"
    ):
        arm.begin_training({**settings, "epochs": 4, "schedule": {"kind": "fixed"}}, "f2")
    with pytest.raises(StoreError, match=r"changed: seed, data, prompts or model"):
        arm.begin_training(settings, "f3")
    with pytest.raises(StoreError, match=r"changed: learning_rate"):
        arm.begin_training({"epochs": 3, "schedule": {"kind": "paft"}}, "f4")
    arm.finish_training({"steps": 9})
    assert arm.begin_training(settings, "f1") is False
    assert json.loads(arm.train.read_text())["report"] == {"steps": 9}
    for damaged in ("{", "[]", '{"fingerprint": 1}', "null", "\xff"):
        arm.train.write_bytes(damaged.encode("latin-1"))
        with pytest.raises(StoreError, match=r"damaged; delete .* to train anew"):
            arm.begin_training(settings, "f1")


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path: Path) -> None:
    arm = ArmDir(tmp_path)
    assert arm.last_checkpoint() is None
    for step, whole in ((9, True), (10, True), (11, False)):
        folder = arm.checkpoints / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if whole:
            (folder / arm.WHOLE).touch()
    assert arm.last_checkpoint() == arm.checkpoints / "checkpoint-10"


class Weights:
    """Something that saves itself, or dies in the attempt."""

    def __init__(self, text: str, error: Exception | None = None):
        self.text, self.error = text, error

    def save_pretrained(self, folder: Path) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "weights").write_text(self.text)
        if self.error:
            raise self.error


def test_weights_are_saved_whole_or_not_at_all(tmp_path: Path) -> None:
    arm = ArmDir(tmp_path)
    arm.save_model(Weights("one"))
    arm.save_model(Weights("two"))
    assert (arm.adapter / "weights").read_text() == "two"
    with pytest.raises(StoreError, match="the disk is full"):
        arm.save_model(
            Weights(
                "three", RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")
            )
        )
    assert (arm.adapter / "weights").read_text() == "two"


def test_only_what_means_the_disk_is_turned_into_a_disk_error(tmp_path: Path) -> None:
    assert disk_fault(OSError(28, "No space left on device")) == "the disk is full"
    assert disk_fault("ERROR: [Errno 28] No space left on device") == "the disk is full"
    assert disk_fault(PermissionError(13, "x")) == "not writable (Permission denied)"
    assert disk_fault(OSError(5, "Input/output error")) is None
    assert disk_fault(ValueError("nothing")) is None
    for error in (ValueError("x"), AssetError("y"), RenderError("the field says: disk is full")):
        with pytest.raises(type(error)), disk_errors(tmp_path):
            raise error


def test_an_export_fills_a_folder_that_is_there(tmp_path: Path) -> None:
    """Such as a mounted disk, which cannot be replaced; a failure leaves it as empty as it was."""
    out = tmp_path / "out"
    out.mkdir()
    place = out.stat().st_ino
    with contextlib.suppress(RuntimeError), new_folder(out) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(out.iterdir()) == []
    with new_folder(out) as folder:
        (folder / "a").write_text("x")
        (folder / "b").mkdir()
    assert sorted(each.name for each in out.iterdir()) == ["a", "b"]
    assert out.stat().st_ino == place


def test_a_file_system_without_locks_is_told_from_a_held_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without)
    with pytest.raises(StoreError, match=r"knows no locks \(No locks available\)"), RunDir(tmp_path / "run").locked():
        pass
