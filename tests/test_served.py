"""Served models in a run: beside local ones, killed and gone on with, gated, and every wrong combination in one line."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from paft import pipeline
from paft.config import PolicyConfig, load_run_config
from paft.errors import ConfigError, EndpointError
from paft.evaluation.gate import hunt
from paft.finished import load_tables
from paft.reports.wording import model_of
from paft.store import CellStore
from paft.watch import LineWatcher
from tests import tiny
from tests.model_server import ModelServer
from tests.test_cli import call, refused

QUIET = LineWatcher(quiet=True)


def served(folder: Path, server: ModelServer, **arms) -> Path:
    model = str(tiny.saved_model(folder / "model"))
    settings = {"base_url": server.url, "tokenizer": model}
    return tiny.write_config(folder, model=None, arms={"served": {"server": settings}, **arms})


def cells(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "cells.sqlite")) as store:
        return store.execute("SELECT count(*) FROM cells").fetchone()[0]


def test_a_served_and_a_local_model_in_one_run_get_the_same_table(tmp_path):
    with ModelServer() as server:
        config = load_run_config(served(tmp_path, server, local={"model": str(tmp_path / "model")}))
        config = config.model_copy(update={"model": str(tmp_path / "model")})
        results = pipeline.run(config, tmp_path / "out", QUIET)
        asked = len(server.asked)
        again = pipeline.run(config, tmp_path / "out", QUIET)
        assert [len(server.asked) - asked, again["arms"]["served"]["cells_asked"]] == [1, 0]  # the list of its models
    for scorer in ("likelihood", "generation"):
        here, there = (results["arms"][name]["scores"][scorer]["accuracy_K"] for name in ("local", "served"))
        assert here == there
    assert results["comparisons"][0]["mean"]["value"] == 0
    tables = load_tables(tmp_path / "out")
    assert (tables["local"]["generation"].tokens_KN == tables["served"]["generation"].tokens_KN).all()
    policy = PolicyConfig(scorer="likelihood", criteria=[{"measure": "invalid", "at_most": 0.1}])
    with pytest.raises(ConfigError, match="demand on invalid with scorer likelihood: it generates no answer"):
        pipeline.gate(tmp_path / "out", policy, QUIET)
    assert pipeline.gate(tmp_path / "out", policy.model_copy(update={"scorer": "generation"}), QUIET)


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(tmp_path):
    with ModelServer(delay=0.05) as server:
        config = served(tmp_path, server)
        command = [sys.executable, "-m", "paft", "run", str(config), "--out", str(tmp_path / "out")]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        until = time.monotonic() + 300
        while len(server.asked) < 40 and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130
        kept = cells(tmp_path / "out")
        assert 0 < kept < 48
        results = pipeline.run(load_run_config(config), tmp_path / "out", QUIET)
        assert cells(tmp_path / "out") == 48
        free = [body for body in server.asked if "messages" not in body and body.get("max_tokens", 1) > 1]
        assert len(free) <= 24 + 16  # those in flight when it was killed
    with ModelServer() as other:
        whole = pipeline.run(load_run_config(served(tmp_path, other)), tmp_path / "whole", QUIET)
    assert whole["arms"]["served"]["scores"] == results["arms"]["served"]["scores"]


def test_a_server_that_goes_away_leaves_what_it_gave(tmp_path, monkeypatch):
    monkeypatch.setattr("paft.lm.endpoint.TRIES", 1)
    with ModelServer() as server:
        config = load_run_config(served(tmp_path, server))
        answer = server.complete

        def tired(body):
            if len(server.asked) > 40:
                server.status = 503
            return answer(body)

        server.complete = tired
        with pytest.raises(EndpointError, match="run the same command again to go on"):
            pipeline.run(config, tmp_path / "out", QUIET)
        kept = cells(tmp_path / "out")
        assert kept > 0
        server.complete, server.status = answer, 0
        assert pipeline.run(config, tmp_path / "out", QUIET)["arms"]["served"]["cells_asked"] < 24


def test_a_served_model_is_gated_while_its_cells_are_bought(tmp_path):
    policy = PolicyConfig(criteria=[{"measure": "mean", "at_least": 0.0}])
    with ModelServer() as server:
        verdict = pipeline.gate(served(tmp_path, server), policy, QUIET, out=tmp_path / "gate")
        assert verdict.exit_code == 0
        with CellStore(tmp_path / "gate" / "cells.sqlite"):
            assert cells(tmp_path / "gate") > 0


def test_a_demand_on_what_restricted_choice_does_not_generate_is_refused_before_anything_is_bought(tmp_path):
    criteria = [{"measure": name, "at_most": 0.1} for name in ("tokens", "invalid")]
    policy = PolicyConfig(scorer="likelihood", criteria=criteria)
    with ModelServer() as server:
        with pytest.raises(ConfigError, match="demand on invalid and tokens with scorer likelihood") as found:
            pipeline.gate(served(tmp_path, server), policy, QUIET, out=tmp_path / "gate")
        assert "\n" not in str(found.value)
        assert not server.asked


def test_a_gate_buys_examples_in_a_random_order_and_in_the_same_one_again(tmp_path, monkeypatch):
    orders = []

    def hunted(policy, examples, ask, order, *rest):
        orders.append(list(order))
        return hunt(policy, examples, ask, order, *rest)

    monkeypatch.setattr(pipeline, "hunt", hunted)
    policy = PolicyConfig(criteria=[{"measure": "mean", "at_least": 0.0}], first=2)
    with ModelServer() as server:
        config = served(tmp_path, server)
        for _ in range(2):
            assert pipeline.gate(config, policy, QUIET, out=tmp_path / "gate").exit_code == 0
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0]) == list(range(len(orders[0])))


def test_eval_of_a_server_from_the_command_line(tmp_path):
    data = ["--task", str(tiny.write_task(tmp_path)), "--prompts", str(tiny.write_prompts(tmp_path))]
    settings = ["evaluate.split=test", "evaluate.thresholds=[0.5]", "data.dev_split=validation"]
    tokenizer = str(tiny.saved_model(tmp_path / "model"))
    with ModelServer() as server:
        common = ["eval", *data, "--server", server.url, *settings]
        done = call(*common, "--tokenizer", tokenizer, "--out", str(tmp_path / "a"))
        assert done.returncode == 0, done.stderr
        assert f"the one at {server.url}" in (tmp_path / "a" / "report.html").read_text()
        chat = call(*common, "evaluate.scorers=[generation]", "--model", "tiny", "--out", str(tmp_path / "b"))
        assert chat.returncode == 0, chat.stderr
        assert any("messages" in body for body in server.asked)
        assert "choices are scored on token ids" in refused(call(*common, "--out", str(tmp_path / "c")))
        assert "a server loads its adapters itself" in refused(call(*common, "--adapter", "x"))
    assert "belong to --server" in refused(call("eval", *data, "--model", "x", "--tokenizer", "y"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["arms.served.train={}"], "not both"),
        (["arms.served.adapter=x"], "named in server.model"),
        (["arms.served.server.tokenizer=null"], "choices are scored on token ids"),
        (
            ["arms.served.server.tokenizer=null", "evaluate.scorers=[generation]", "style=raw"],
            "the server renders as it likes",
        ),
        (["arms.served.server.tokeniser=x"], "did you mean 'tokenizer'"),
        (["arms.served.server.concurrency=0"], "greater than or equal to 1"),
        (["arms.base={}"], "key 'model' is missing"),
    ],
)
def test_a_wrong_combination_is_refused(changes, message):
    base = {"task": "piqa", "arms": {"served": {"server": {"base_url": "http://h/v1", "tokenizer": "t"}}}}
    with pytest.raises(ConfigError, match=message):
        load_run_config(None, changes, base)
    assert model_of(load_run_config(None, [], base).model_dump()) == "the one at http://h/v1"
