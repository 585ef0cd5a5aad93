"""Kills, two writers at once, locks: the table comes out as if nothing had happened."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from paft.errors import StoreError
from paft.lm.types import Answered
from paft.store import CellKey, CellStore

DRIVER = '''
"""Two writers fill one store from both ends of the grid; at every instant one or both are killed, and started again."""
import os, pickle, random, signal, sqlite3, sys, time
from pathlib import Path
import torch
from paft.config import EvalConfig
from paft.evaluation.evaluate import Asker
from paft.grid import Grid
from paft.prompts import PromptSet
from paft.store import CellStore
from paft.tasks import load_task
from tests import tiny

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
model = tiny.hf_model()  # nothing is computed in this process: forks with computing threads would hang
task = load_task(str(tiny.write_task(folder / "data", rows=60)), None, print)
prompts = PromptSet.load(str(tiny.write_prompts(folder)))
grid = Grid((*prompts.test, *prompts.train), task.split("train").examples[:60])
config = EvalConfig(batch_tokens=256)
cells = [(k, i) for i in range(grid.shape[1]) for k in range(grid.shape[0])]
CellStore.SHARE = 0.2

def child(store, backwards, out=None):
    pid = os.fork()
    if pid:
        return pid
    try:
        with CellStore(store) as held:
            asker = Asker(model, grid, config, held)
            order = cells[::-1] if backwards else cells
            for start in range(0, len(order), 16):
                asker.ask(order[start : start + 16])
            if out is not None:
                tables = {s: (asker.matrix(s).values_KN, asker.matrix(s).answers_KN) for s in config.scorers}
                logp = [[a.logp_C for a in row] for row in asker.answers_KN]
                out.write_bytes(pickle.dumps((tables, logp, asker.asked)))
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)

def finish(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a writer failed"

def keys(store):
    with sqlite3.connect(store) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'cells'").fetchone():
            return set()  # killed before the table was there
        return set(db.execute("SELECT model, question, max_new_tokens, answer FROM cells"))

start = time.monotonic()
finish(child(folder / "clean.sqlite", False, folder / "clean"))
whole = time.monotonic() - start
dice, done, before, rounds = random.Random(0), 0, set(), 0
store = folder / "killed.sqlite"
while done < kills:
    rounds += 1
    writers = [child(store, False), child(store, True)]
    alive = set(writers)
    for _ in range(dice.choice([1, 2])):
        time.sleep(dice.random() * whole / 8)
        victim = dice.choice(sorted(alive))
        os.kill(victim, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
        alive.discard(victim)
        assert code in (0, -9), code
        done += code == -9
    for pid in alive:
        if dice.random() < 0.5:
            os.kill(pid, signal.SIGKILL)
            done += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -9
        else:
            finish(pid)
    if store.exists():
        now = keys(store)
        assert before <= now, "cells were lost"
        before = now
    if len(before) == 2 * len(cells):  # both parts of every cell are there: begin again
        for file in folder.glob("killed.sqlite*"):
            file.unlink()
        before = set()
finish(child(store, False, folder / "last"))
(clean, clean_logp, asked), (last, last_logp, _) = (pickle.loads((folder / n).read_bytes()) for n in ("clean", "last"))
assert asked == len(cells)
for scorer in clean:
    assert all((a == b).all() for a, b in zip(clean[scorer], last[scorer])), "another table"
worst = max(abs(x - y) for a, b in zip(clean_logp, last_logp) for c, d in zip(a, b) for x, y in zip(c, d))
assert worst < 1e-4, worst
print(f"{done} kills in {rounds} rounds, one writer alone {whole:.2f} s, {len(cells)} cells, largest difference {worst:.1e}")
'''


def killed(tmp_path: Path, kills: int) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", DRIVER, str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked")
def test_kills_with_two_writers_lose_nothing(tmp_path: Path) -> None:
    assert "kills in" in killed(tmp_path, 8)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="writers are forked")
def test_fifty_kills_with_two_writers_lose_nothing(tmp_path: Path) -> None:
    print(killed(tmp_path, 50))


def test_a_locked_store_is_one_clear_error_and_opens_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CellStore, "WAIT", 0.2)
    file, key = tmp_path / "cells.sqlite", CellKey("model", "question", 0)
    answer = Answered((-1.0, -2.0), (1, 1), (1, 1), 5, False, None, 0.1)
    with CellStore(file) as store:
        other = sqlite3.connect(file, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"another process is writing it .* wait for it and run again"):
            store.put(key, answer)
        other.execute("ROLLBACK")
        other.close()
    with CellStore(file) as store:  # what could not be written then was written on closing
        assert store.get([key]) == [answer]
