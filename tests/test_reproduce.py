"""The paper's experiments by name: what is run, and a table that follows from the cells."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paft import reproduce
from paft.cli import app
from paft.errors import ConfigError
from paft.pipeline import load_results, load_tables
from paft.watch import LineWatcher
from tests import tiny


@contextlib.contextmanager
def quiet(_: str):
    yield LineWatcher(quiet=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("reproduce")
    tiny.write_config(folder)
    return folder, [
        f"prompts={folder / 'prompts.yaml'}", f"model={folder / 'model'}", "source=auto", "data.train_examples=24", "data.dev_split=validation",
        "train.epochs=1", "train.dev_prompts=2", "train.dev_examples=4", "train.learning_rate=1e-2", "evaluate.split=test", "evaluate.prompts=3",
        "evaluate.examples=8",
    ]  # fmt: skip


def made(world, out: Path, experiment: str, *, seeds=(0,), only: tuple[str, ...] = ()) -> tuple[reproduce.Plan, str]:
    folder, overrides = world
    planned = reproduce.plan(experiment, "smoke", out, overrides, [str(folder / "data" / "task.yaml")], seeds)
    return planned, reproduce.reproduce(planned, out, quiet, lambda _: None)


def test_table1_has_the_figures_of_its_runs(world, tmp_path):
    planned, text = made(world, tmp_path, "table1")
    (_, folder), *_ = planned.runs.values()
    results, tables = load_results(folder), load_tables(folder)
    assert list(results["arms"]) == list(planned.arms) == ["base", "user", "top_accuracy", "zopo", "paft"]
    told = json.loads((tmp_path / "table1-smoke.json").read_text())
    (figures,) = told["figures"].values()
    for arm in planned.arms:
        accuracy_K = tables[arm]["likelihood"].values_KN.mean(1)
        assert figures["arms"][arm]["mean"] == pytest.approx(accuracy_K.mean())
        assert figures["arms"][arm]["sd"] == pytest.approx(accuracy_K.std(ddof=1))
        assert f"| {planned.arms[arm]} | {100 * accuracy_K.mean():.2f} ± {100 * accuracy_K.std(ddof=1):.2f}" in text
        if arm != "paft":
            other = tables["paft"]["likelihood"].values_KN - tables[arm]["likelihood"].values_KN
            assert figures["differences"][arm]["value"] == pytest.approx(other.mean())
    assert results["arms"]["top_accuracy"]["train"]["search"]["cells"] == 5 * 4
    assert "1 training seed(s): differences of a few points may be luck" in text
    assert figures["remedies"]["ensemble"]["prompts"] == 3
    assert figures["remedies"]["calibrated"]["prompts"] == 2  # the third asks for the option's text
    assert "the base model with remedies at inference time: batch calibration, 2 prompts" in text
    assert told["runs"]


def test_views_of_the_same_models_train_nothing_anew(world, tmp_path):
    made(world, tmp_path, "table1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter_model.safetensors")}
    for view, shown in (("training-time", " s |"), ("inference", " tokens |")):
        _, text = made(world, tmp_path, view)
        assert shown in text
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("adapter_model.safetensors")} == before


def test_k_is_chosen_on_dev_prompts(world, tmp_path):
    planned, text = made(world, tmp_path, "kt", seeds=(0, 1))
    told = json.loads((tmp_path / "kt-smoke.json").read_text())
    (figures,) = told["figures"].values()
    runs = [load_results(folder) for _, folder in planned.runs.values()]
    dev = {arm: statistics.fmean(r["arms"][arm]["train"]["dev"][-1]["mean"] for r in runs) for arm in planned.arms}
    assert {arm: each["dev"] for arm, each in figures["arms"].items()} == pytest.approx(dev)
    assert f"{planned.arms[max(dev, key=dev.get)]} ({100 * max(dev.values()):.1f} % on dev prompts)" in text
    assert "seeds 0, 1" in text
    assert len({folder for _, folder in planned.runs.values()}) == 2


def test_training_prompts_are_as_many_as_named(world, tmp_path):
    folder, overrides = world
    arms = "arms={n1: {train: {prompts: 1}}, n2: {train: {prompts: 2}}}"
    planned = reproduce.plan(
        "prompts", "smoke", tmp_path, [*overrides, arms], [str(folder / "data" / "task.yaml")], [0]
    )
    ((config, out),) = planned.runs.values()
    from paft import pipeline

    results = pipeline.run(config, out, LineWatcher(quiet=True))
    assert [results["arms"][arm]["train"]["distinct_prompts"] for arm in ("n1", "n2")] == [1, 2]


def test_min_and_con_ask_adversarial_prompts():
    planned = reproduce.plan("min-con", "smoke", Path("x"))
    ((config, _),) = planned.runs.values()
    assert config.evaluate.also == ["adversarial"]


def test_a_scale_that_is_too_large_is_told_as_a_plan(tmp_path):
    found = CliRunner().invoke(app, ["reproduce", "table1", "--scale", "paper", "--out", str(tmp_path / "x")])
    if "this is the plan only" in found.output:  # a machine with the GPU would do it
        assert "5 models x 5 tasks x 3 seeds" in found.output
        assert not (tmp_path / "x").exists()
    told = CliRunner().invoke(app, ["reproduce", "kt", "--scale", "small", "--plan"])
    assert "20000 rows, 3 epochs, updates of 8" in told.output


@pytest.mark.parametrize("names", [("tabel1", "smoke"), ("table1", "huge")])
def test_names_that_there_are_not(names):
    with pytest.raises(ConfigError, match="unknown"):
        reproduce.plan(*names, Path("x"))


def test_the_papers_figures_are_those_of_its_tables():
    """Means of the five columns as the paper prints them, to rounding."""
    told = reproduce._told()["paper"]
    printed = {"base": 61.24, "user": 81.86, "top_accuracy": 80.25, "zopo": 83.32, "paft": 87.46}
    for arm, average in printed.items():
        values = [float(each.partition(" ")[0]) for each in told["table1"][arm].values()]
        assert statistics.fmean(values) == pytest.approx(average, abs=0.011)
    printed = {"k1": 87.07, "k2": 86.87, "k4": 87.46, "k8": 87.22, "k1t6": 86.10}
    for arm, average in printed.items():
        values = [float(each.partition(" ")[0]) for each in told["kt"][arm].values()]
        assert statistics.fmean(values) == pytest.approx(average, abs=0.011)
