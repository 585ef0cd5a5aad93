"""What trackers are told, by their own files; trackers that need an environment of their own run under `-m peer`:

pip install --target DIR wandb mlflow-skinny
PAFT_TRACKERS=DIR pytest -m peer tests/training/test_trackers.py
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from paft import pipeline
from paft.config import BalancedSchedule, SFTConfig, load_run_config
from paft.errors import ConfigError
from paft.grid import Grid
from paft.store import ArmDir, read_jsonl
from paft.training.sft import train_sft
from paft.watch import LineWatcher
from tests import tiny
from tests.training import test_grpo
from tests.training.test_objectives import BOTH
from tests.training.test_sft import CONFIG, grid

BOARD = {"report_to": ["tensorboard"], "eval_every": 4, "arguments": {"logging_steps": 3}}


def events(folder: Path) -> list[Event]:
    """All events of TensorBoard's files in a folder: records of length, checksum, bytes, checksum."""
    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """Every scalar by name and step."""
    told: dict[str, dict[int, float]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                told.setdefault(value.tag, {})[event.step] = value.simple_value
    return told


def tuned(folder: Path, config: SFTConfig) -> ArmDir:
    arm = ArmDir(folder)
    arm.root.mkdir(parents=True, exist_ok=True)
    whole = grid(folder / "data", 30)
    dev = Grid(whole.templates[:2], whole.examples[22:])
    train_sft(tiny.hf_model(), Grid(whole.templates, whole.examples[:22]), config, arm, seed=0, dev=dev)
    return arm


def assert_curves(told: dict[str, dict[int, float]], name: str, rows: list[dict], key: str) -> None:
    expected: dict[str, dict[int, float]] = {}
    for row in rows:
        for prompt, its in row["by_prompt"].items():
            expected.setdefault(f"train/{name}_by_prompt/{prompt}", {})[row["step"]] = its[key]
    assert expected
    for tag, curve in expected.items():
        assert told[tag] == pytest.approx(curve, abs=1e-6)


def assert_checks(told: dict[str, dict[int, float]], checks: list[dict]) -> None:
    assert told["train/dev/mean"] == pytest.approx({row["step"]: row["mean"] for row in checks})
    assert told["train/dev/sd"] == pytest.approx({row["step"]: row["sd"] for row in checks})
    for place, prompt in enumerate(checks[0]["prompts"]):
        curve = {row["step"]: row["accuracy_K"][place] for row in checks}
        assert told[f"train/dev_by_prompt/{prompt}"] == pytest.approx(curve)


def test_trackers_are_told_what_the_logs_of_a_training_hold_and_their_files_stay(tmp_path):
    config = CONFIG.model_copy(update={**BOARD, "objective": BOTH, "schedule": BalancedSchedule()})
    arm = tuned(tmp_path / "run" / "arm", config)
    assert not arm.checkpoints.exists()
    told, rows = curves(arm.root / "tensorboard"), read_jsonl(arm.steps)
    assert len(rows) == 12
    assert_curves(told, "loss", rows, "loss")
    assert_curves(told, "right", rows, "right")
    assert_checks(told, read_jsonl(arm.dev))
    assert told["train/divergence"] == pytest.approx({row["step"]: row["divergence"] for row in rows}, abs=1e-6)
    for name in rows[0]["weights"]:
        curve = {row["step"]: row["weights"][name] for row in rows}
        assert any(each == pytest.approx(curve, abs=1e-6) for tag, each in told.items() if "/weight_by_cluster/" in tag)
    assert list(told["train/loss"]) == [3, 6, 9, 12]  # the Trainer's own line, when it is due


def test_the_trainers_own_log_is_as_without_trackers(tmp_path):
    """The history that a checkpoint holds has nothing of ours, and losses are the same."""
    quiet = CONFIG.model_copy(update={"epochs": 1, "arguments": {"logging_steps": 2, "logging_strategy": "steps"}})
    histories = []
    for name, trackers in (("with", ["tensorboard"]), ("without", [])):
        kept: list[list[dict]] = []
        arm = ArmDir(tmp_path / name)
        arm.root.mkdir()

        def tick(done: int, total: int, note: str, arm: ArmDir = arm, kept: list = kept) -> None:
            for state in arm.checkpoints.glob("checkpoint-3/trainer_state.json"):
                kept.append(json.loads(state.read_text())["log_history"])

        settings = quiet.model_copy(update={"report_to": trackers})
        train_sft(tiny.hf_model(), grid(tmp_path / f"{name}-data"), settings, arm, seed=0, tick=tick)
        histories.append(kept[-1])
    assert histories[0] == histories[1]
    assert [sorted(row) for row in histories[0]] == [["epoch", "grad_norm", "learning_rate", "loss", "step"]]


def test_trackers_are_told_what_the_logs_of_a_training_by_rewards_hold(tmp_path):
    config = test_grpo.CONFIG.model_copy(update=BOARD)
    arm = test_grpo.train(tmp_path / "run" / "arm", config, dev=test_grpo.sums(5))
    told, rows = curves(arm.root / "tensorboard"), read_jsonl(arm.steps)
    assert_curves(told, "reward", rows, "reward")
    assert_curves(told, "invalid", rows, "invalid")
    assert_checks(told, read_jsonl(arm.dev))
    for name in ("invalid", "flat_groups"):
        assert told[f"train/{name}"] == pytest.approx({row["step"]: row[name] for row in rows})
    for part in ("letters", "format"):
        curve = {row["step"]: row["parts"][part] for row in rows}
        assert told[f"train/reward_by_part/{part}"] == pytest.approx(curve, abs=1e-6)
    # trl's own means, over all updates since its line before
    means = {step: sum(row["reward"] for row in rows[step - 3 : step]) / 3 for step in (3, 6)}
    assert {step: told["train/reward"][step] for step in means} == pytest.approx(means, abs=1e-5)


def test_each_arm_is_a_run_of_its_own(tmp_path, monkeypatch):
    config = load_run_config(
        tiny.write_config(tmp_path), ["train.report_to=[tensorboard]", "arms={a: {train: {}}, b: {train: {}}}"]
    )
    pipeline.run(config, tmp_path / "here", LineWatcher(quiet=True), stages=["train"])
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    pipeline.run(config, tmp_path / "there", LineWatcher(quiet=True), stages=["train"])
    for run, folder in (("here", tmp_path / "here/{}/tensorboard"), ("there", tmp_path / "board/there-{}")):
        for arm in "ab":
            written = events(Path(str(folder).format(arm)))
            (settings,) = (v for e in written for v in e.summary.value if v.tag == "args/text_summary")
            assert f'"run_name": "{run}-{arm}"' in settings.tensor.string_val[0].decode()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "'tensorbord', did you mean 'tensorboard'"),
        ("dvclive", "'dvclive': is not installed here .*install it, or leave it out"),
    ],
)
@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_tracker_that_is_not_there_is_refused_before_anything_is_done(tmp_path, name, message, method):
    config = load_run_config(
        tiny.write_config(tmp_path), [f"arms={{a: {{train: {{method: {method}, report_to: [{name}]}}}}}}"]
    )
    with pytest.raises(ConfigError, match=rf"train\.report_to {message}") as error:
        pipeline.run(config, tmp_path / "run", LineWatcher(quiet=True))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


PEER = """
import os, sys
sys.path.append(os.environ["PAFT_TRACKERS"])  # after paft's own
from pathlib import Path
import mlflow, pytest, wandb
from paft.errors import ResourceError
from tests.training.test_sft import CONFIG
from tests.training.test_trackers import tuned

folder = Path(sys.argv[1])
config = CONFIG.model_copy(update={"report_to": ["wandb", "mlflow"], "epochs": 1, "eval_every": 4})
for arm in "ab":
    tuned(folder / "run" / arm, config)
    assert wandb.run is None and mlflow.active_run() is None
with pytest.raises(ResourceError):
    tuned(folder / "run" / "c", config.model_copy(update={"learning_rate": 1e30}))
assert wandb.run is None and mlflow.active_run() is None
runs = {run.info.run_name: run for run in mlflow.search_runs(search_all_experiments=True, output_format="list")}
assert {name: run.info.status for name, run in runs.items()} == {"run-a": "FINISHED", "run-b": "FINISHED", "run-c": "FAILED"}
for name in ("run-a", "run-b"):
    metrics = runs[name].data.metrics
    assert "dev/mean" in metrics and any(key.startswith("loss_by_prompt/") for key in metrics), metrics
    seen = mlflow.MlflowClient().get_metric_history(runs[name].info.run_id, "dev/mean")
    assert [each.step for each in seen] == [4, 6]
assert len(list(folder.glob("wandb/offline-run-*"))) == 3
with mlflow.start_run(run_name="caller") as mine:
    tuned(folder / "run" / "d", config)
    assert mlflow.active_run().info.run_id == mine.info.run_id
"""


@pytest.mark.peer
def test_wandb_and_mlflow_have_a_run_for_each_arm(tmp_path):
    if "PAFT_TRACKERS" not in os.environ:
        pytest.skip("PAFT_TRACKERS names a folder with wandb and mlflow")
    settings = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "OMP_NUM_THREADS": "1"}
    settings |= {"MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(), "MLFLOW_ALLOW_FILE_STORE": "true"}
    done = subprocess.run(
        [sys.executable, "-c", PEER, str(tmp_path)], env={**os.environ, **settings}, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
