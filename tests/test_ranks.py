"""Several processes, one result: launched ranks share the scoring, shards are merged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from paft import pipeline
from paft.config import load_run_config
from paft.errors import ConfigError
from paft.lm.ranks import Ranks, launched
from paft.store import ArmDir, read_jsonl
from paft.watch import LineWatcher
from tests import tiny

ARMS = "arms={base: {}}"
MAIN = "from paft.cli import main; main()"
SHARDED = """
import accelerate.state as state, torch.distributed.tensor as sharded
from transformers import Trainer
plain = state.PartialState.__init__
def init(self, *given, **named):
    plain(self, *given, **named)
    if self.distributed_type == state.DistributedType.MULTI_CPU:
        self.distributed_type = state.DistributedType.MULTI_GPU  # accelerate shards on GPUs alone
state.PartialState.__init__ = init
train = Trainer.train
def checked(self, *given, **named):
    found = train(self, *given, **named)
    assert any(isinstance(weight, sharded.DTensor) for weight in self.model.parameters()), "nothing is sharded"
    return found
Trainer.train = checked
from paft.cli import main
main()
"""
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_USE_CPU": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch --use_fsdp --fsdp_version 2` hands on."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("ranks")
    config = tiny.write_config(folder)
    return config, pipeline.run(load_run_config(config, [ARMS]), folder / "alone", LineWatcher(quiet=True))


def scores_of(results: dict) -> dict:
    return {name: arm["scores"] for name, arm in results["arms"].items()}


def start(size: int, arguments: list[str], script: str = MAIN, **environment: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *arguments]
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def launch(
    size: int, arguments: list[str], script: str = MAIN, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    done = []
    for child in start(size, arguments, script, **environment):
        out, err = child.communicate(timeout=300)
        done.append(subprocess.CompletedProcess(child.args, child.returncode, out, err))
    return done


@pytest.mark.parametrize("budget", ["full", "racing"])
def test_two_launched_processes_give_what_one_gives(world, tmp_path, budget):
    config, alone = world
    overrides = [ARMS, f"evaluate.budget.kind={budget}"]
    if budget != "full":
        alone = pipeline.run(load_run_config(config, overrides), tmp_path / "alone", LineWatcher(quiet=True))
    first, second = launch(2, ["run", str(config), "--out", str(tmp_path / "two"), *overrides])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    results = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert scores_of(results) == scores_of(json.loads(json.dumps(alone)))
    arm = results["arms"]["base"]
    assert arm["cells_asked"] == alone["arms"]["base"]["cells_asked"]
    assert arm["tokens_read"] > 0.8 * alone["arms"]["base"]["tokens_read"]
    assert "report:" in first.stdout
    assert second.stdout == ""
    again = pipeline.run(load_run_config(config, overrides), tmp_path / "two", LineWatcher(quiet=True))
    assert again["arms"]["base"]["cells_asked"] == 0  # the first process kept what the second computed


LOGGED = "step", "epoch", "prompts", "examples", "tokens", "answer_tokens"


def tuned_arm(schedule: str, objective: str = "{}", passes: str = "batch_size: 4") -> list[str]:
    """Settings of one arm: 21 examples in updates of 4, so that an epoch ends with an update of which one process has no part."""
    train = f"{{epochs: 4, {passes}, save_every: 4, eval_every: null, schedule: {schedule}, objective: {objective}}}"
    return [f"arms={{tuned: {{train: {train}}}}}", "data.train_examples=21"]


def steps_of(run: Path) -> list[dict]:
    return read_jsonl(run / "tuned" / "steps.jsonl")


def assert_same_training(found: list[dict], expected: list[dict]) -> None:
    assert [[row[key] for key in LOGGED] for row in found] == [[row[key] for key in LOGGED] for row in expected]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    assert [row.get("weights", {}) for row in found[-2:]] == [
        pytest.approx(row.get("weights", {}), abs=1e-5) for row in expected[-2:]
    ]


def kill_at(step: int, run: Path, running: list[subprocess.Popen[str]], total: int = 24) -> None:
    """Kill -9 all processes of a launch once an update of so many is logged."""
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline and running[0].poll() is None and len(steps_of(run)) < step:
        time.sleep(0.01)
    for each in running:
        each.kill()
        each.communicate()
    assert step <= len(steps_of(run)) < total, "killed too late to show anything"


@pytest.mark.parametrize(
    ("schedule", "objective", "passes", "updates"),
    [
        ("{kind: paft, steps_per_prompt: 1}", "{}", "batch_size: 4", [4, 4, 4, 4, 4, 1]),
        ("{kind: adaptive, by: prompt, every: 3, steps_per_prompt: 1}", "{}", "batch_size: 4", [4, 4, 4, 4, 4, 1]),
        (
            "{kind: paft, examples_per_prompt: 1}",
            "{consistency: {weight: 2}, worst: {by: prompt, step_size: 2}}",
            "batch_size: 8, micro_batch_size: 2, packing: false",  # two passes of two pairs, dealt by length
            [8, 8, 5],
        ),
    ],
)
def test_two_launched_processes_train_what_one_trains(tmp_path, schedule, objective, passes, updates):
    """Also when both are killed within an epoch and go on, as two or as one."""
    config, overrides = tiny.write_config(tmp_path), tuned_arm(schedule, objective, passes)
    alone = pipeline.run(load_run_config(config, overrides), tmp_path / "alone", LineWatcher(quiet=True))
    expected = steps_of(tmp_path / "alone")
    assert [len(row["examples"]) for row in expected] == updates * 4
    arguments = ["run", str(config), "--out", str(tmp_path / "two"), *overrides]
    kill_at(len(expected) * 5 // 12, tmp_path / "two", start(2, arguments), len(expected))
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    done = launch(2, arguments)
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_training(steps_of(tmp_path / "two"), expected)
    results = json.loads((tmp_path / "two" / "results.json").read_text(encoding="utf-8"))
    assert results["arms"]["tuned"]["scores"] == json.loads(json.dumps(alone["arms"]["tuned"]["scores"]))
    pipeline.run(load_run_config(config, overrides), tmp_path / "one", LineWatcher(quiet=True), stages=["train"])
    assert_same_training(steps_of(tmp_path / "one"), expected)


def test_four_processes_that_were_killed_go_on_as_two(tmp_path):
    """One global batch: 21 examples in updates of 4, so that an epoch ends with an update in which three of four have no part."""
    config, overrides = tiny.write_config(tmp_path), tuned_arm("{kind: paft, steps_per_prompt: 1}")
    pipeline.run(load_run_config(config, overrides), tmp_path / "alone", LineWatcher(quiet=True), stages=["train"])
    arguments = ["train", str(config), "--out", str(tmp_path / "four"), *overrides]
    kill_at(10, tmp_path / "four", start(4, arguments))
    shutil.copytree(tmp_path / "four", tmp_path / "two")
    for size, name in ((4, "four"), (2, "two")):
        done = launch(size, ["train", str(config), "--out", str(tmp_path / name), *overrides])
        assert [each.returncode for each in done] == [0] * size, "".join(each.stderr for each in done)
        assert_same_training(steps_of(tmp_path / name), steps_of(tmp_path / "alone"))


@pytest.mark.parametrize("lora", ["{r: 4, target_modules: all-linear}", pytest.param("null", marks=pytest.mark.slow)])
def test_weights_sharded_over_two_processes_are_trained_saved_and_resumed(tmp_path, lora):
    config = tiny.write_config(tmp_path)
    overrides = [*tuned_arm("{kind: paft, steps_per_prompt: 1}"), f"train.lora={lora}", "train.learning_rate=1e-3"]
    pipeline.run(load_run_config(config, overrides), tmp_path / "alone", LineWatcher(quiet=True), stages=["train"])
    arguments = ["run", str(config), "--out", str(tmp_path / "two"), *overrides]
    kill_at(10, tmp_path / "two", start(2, arguments, SHARDED, **FSDP2))
    for _ in range(3):
        done = launch(2, arguments, SHARDED, **FSDP2)
        # torch gathers sharded weights over gloo with a fault of memory, now and then; to the training that is one more kill
        if not {each.returncode for each in done} & {-signal.SIGABRT, -signal.SIGSEGV}:
            break
    assert [each.returncode for each in done] == [0, 0], done[0].stderr + done[1].stderr
    assert_same_training(steps_of(tmp_path / "two"), steps_of(tmp_path / "alone"))
    kind = "model" if lora == "null" else "adapter"
    (one, two) = (next((tmp_path / run / "tuned" / kind).glob("*.safetensors")) for run in ("alone", "two"))
    one, two = load_file(one), load_file(two)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=2e-4), name


def test_the_others_end_in_one_line_when_one_process_fails(world, tmp_path):
    config, _ = world
    with pipeline.RunDir(tmp_path / "two").locked():  # the first process cannot have the directory
        first, second = launch(2, ["run", str(config), "--out", str(tmp_path / "two"), ARMS])
    assert (first.returncode, second.returncode) == (2, 2)
    assert "another paft process is writing here" in first.stderr
    assert "another process of this launch ended" in second.stderr
    assert "Traceback" not in second.stderr


def test_shards_are_merged_and_nothing_is_asked_again(world, tmp_path):
    config, alone = world
    settings = load_run_config(config, [ARMS, "evaluate.also=[train]"])
    held = []
    for number in (1, 2, 3):  # each knows what those before it hold
        file = pipeline.score_shard(settings, tmp_path, LineWatcher(quiet=True), number, 3)
        assert file.name == f"cells-{number}-of-3.sqlite"
        held.append(cells_in(file))
    assert held == sorted(set(held))
    merged = pipeline.run(settings, tmp_path, LineWatcher(quiet=True))
    assert merged["arms"]["base"]["cells_asked"] == 0
    assert cells_in(tmp_path / "cells.sqlite") == held[-1], "other prompts belong to a shard too"
    assert scores_of(merged) == scores_of(alone)


def cells_in(file: Path) -> int:
    with contextlib.closing(sqlite3.connect(file)) as store:
        return int(store.execute("select count(*) from cells").fetchone()[0])


SHARD = """
import sys
from pathlib import Path
from paft import pipeline
from paft.config import load_run_config
from paft.watch import LineWatcher
print(pipeline.score_shard(load_run_config(Path(sys.argv[1]), sys.argv[3:]), Path(sys.argv[2]), LineWatcher(quiet=True), 2, 2))
"""


def test_a_missing_shard_is_computed(world, tmp_path):
    config, alone = world
    settings = load_run_config(config, [ARMS])
    for each in launch(2, [str(config), str(tmp_path), ARMS], SHARD):  # a shard may have processes of its own
        assert each.returncode == 0, each.stderr
    merged = pipeline.run(settings, tmp_path, LineWatcher(quiet=True))
    assert 0 < merged["arms"]["base"]["cells_asked"] < 3 * 8
    assert scores_of(merged) == scores_of(alone)


@pytest.mark.parametrize(
    ("number", "of", "overrides", "said"),
    [
        (0, 2, [ARMS], "shard 0/2: expected a number from 1 to 2"),
        (3, 2, [ARMS], "shard 3/2"),
        (1, 2, [ARMS, "evaluate.budget.kind=racing"], "choose full or balanced"),
        (1, 2, [], "single, paft: not trained in"),
    ],
)
def test_shards_that_cannot_be_are_refused(world, tmp_path, number, of, overrides, said):
    config, _ = world
    with pytest.raises(ConfigError, match=said):
        pipeline.score_shard(load_run_config(config, overrides), tmp_path, LineWatcher(quiet=True), number, of)


def test_alone_nothing_is_exchanged():
    with launched() as ranks:
        assert ranks == Ranks(0, 1)
        assert ranks.share("x") == "x"
        assert ranks.gather("x") == ["x"]


GRPO = """
import json, sys
from pathlib import Path
from paft.config import GRPOConfig
from paft.lm.ranks import launched
from paft.store import ArmDir
from paft.training.grpo import train_grpo
from tests import tiny
from tests.training.test_grpo import CONFIG, letters, sums
config = CONFIG.model_copy(update={"rewards": {"letters": 1.0, "format": 0.5}, "micro_batch_size": 3, **json.loads(sys.argv[2])})
with launched() as ranks:
    train_grpo(tiny.hf_model(), sums(), config, ArmDir(Path(sys.argv[1])), seed=0, rewards={"letters": letters}, ranks=ranks)
print(*(task.joinpath("comm").read_text() for task in Path("/proc/self/task").glob("*")))
"""


@pytest.mark.parametrize("group", ["prompt", "example"])
def test_two_processes_share_the_groups_of_an_update(tmp_path, group):
    """12 answers an update, six in each process: the middle group lies in both, and is judged as one."""
    from tests.training import test_grpo

    config = test_grpo.CONFIG.model_copy(update={"group": group})
    alone = test_grpo.train(tmp_path / "one", config)
    (tmp_path / "two").mkdir()
    for done in launch(2, [str(tmp_path / "two"), json.dumps({"group": group})], GRPO, ACCELERATE_USE_CPU="true"):
        assert done.returncode == 0, done.stderr
        assert "gloo" not in done.stdout, "a thread that outlives the interpreter aborts the process, now and then"
    both = ArmDir(tmp_path / "two")
    cells = [
        [(each["prompt"], each["example"]) for row in read_jsonl(arm.rollouts) for each in row["rollouts"]]
        for arm in (alone, both)
    ]
    assert cells[0] == cells[1]
    losses = [row["loss"] for row in read_jsonl(both.steps)]
    assert losses == pytest.approx(
        test_grpo.replay(both, config), abs=1e-5
    )  # of its own answers: each draws by a seed of its own
    assert json.loads(both.train.read_text())["report"]["completions"] == 72
