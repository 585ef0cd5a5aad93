"""The whole method on the tiny model: every artefact, once; kills; the same seed twice."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import yaml

from paft import finished, materials, pipeline
from paft.config import PolicyConfig, dump_yaml, load_mapping, load_run_config
from paft.errors import ConfigError, DataError, PaftError, StoreError, TemplateError
from paft.store import CellStore
from paft.watch import LineWatcher
from tests import tiny


def run(config: Path, out: Path, *overrides: str) -> dict:
    return pipeline.run(load_run_config(config, overrides), out, LineWatcher(quiet=True))


def figures(results: dict) -> dict:
    """Everything that must not depend on when and where a run was made."""
    arms = {
        name: {"fingerprint": arm["fingerprint"], "scores": arm["scores"], "loss": (arm["train"] or {}).get("loss")}
        for name, arm in results["arms"].items()
    }
    return {"arms": arms, "comparisons": results["comparisons"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path, dict]:
    folder = tmp_path_factory.mktemp("world")
    config = tiny.write_config(folder)
    return config, folder / "out", run(config, folder / "out")


def test_a_run_leaves_all_it_promises(world):
    _, out, results = world
    settings, cells = (
        ("config.yaml", "environment.json", "prompts.yaml"),
        ("cells.sqlite", "scores.parquet", "exhibit.json"),
    )
    for name in (*settings, *cells, "results.json"):
        assert (out / name).stat().st_size > 0, name
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")
    assert (out / "report.md").exists()
    assert (out / "paft" / "adapter" / "adapter_model.safetensors").exists()
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == json.loads(json.dumps(results))
    table = pyarrow.parquet.read_table(out / "scores.parquet").to_pydict()
    assert len(table["arm"]) == 3 * 3 * 8
    for arm in ("base", "single", "paft"):
        for scorer in ("likelihood", "generation"):
            mine = [s for a, s in zip(table["arm"], table[f"{scorer}_score"], strict=True) if a == arm]
            mean = results["arms"][arm]["scores"][scorer]["estimates"]["mean"]["value"]
            assert sum(mine) / len(mine) == pytest.approx(mean)  # every printed figure can be computed from the cells
    for arm, tables in finished.load_tables(out).items():
        for scorer, matrix in tables.items():
            told = results["arms"][arm]["scores"][scorer]
            assert matrix.accuracy_K.tolist() == told["accuracy_K"]
            assert matrix.tokens_KN.mean(1).tolist() == pytest.approx(told["tokens_K"])
            assert matrix.ended_KN.mean(1).tolist() == told["ended_K"]


def test_trained_arms_saw_equal_rows_and_updates_and_the_promised_prompts(world):
    _, _, results = world
    single, paft = (results["arms"][name]["train"] for name in ("single", "paft"))
    assert (single["updates"], single["examples"]) == (paft["updates"], paft["examples"]) == (12, 24)
    assert single["distinct_prompts"] == 1
    assert paft["distinct_prompts"] > 2


@pytest.mark.parametrize("kind", ["top_accuracy", "zopo"])
def test_the_one_prompt_is_found_on_held_out_examples_and_train_prompts(world, tmp_path, kind):
    config, _, _ = world
    found = (
        f"arms={{found: {{train: {{schedule: {{kind: fixed, search: {{kind: {kind}, prompts: 4, examples: 6}}}}}}}}}}"
    )
    results = run(config, tmp_path, found)
    m = materials.prepare(load_run_config(config, [found]))
    told = results["arms"]["found"]["train"]["search"]
    pool = [template.id for template in m.prompts.train]
    assert (len(told["accuracy"]), told["cells"]) == (4, 24)
    assert set(told["accuracy"]) <= set(pool)
    best = max(told["accuracy"].values())
    assert told["prompt"] == next(each for each in pool if told["accuracy"].get(each) == best)
    steps = [json.loads(line) for line in (tmp_path / "found" / "steps.jsonl").read_text().splitlines()]
    assert {prompt for row in steps for prompt in row["prompts"]} == {told["prompt"]}
    with sqlite3.connect(tmp_path / "found" / "search.sqlite") as store:
        assert store.execute("select count(*) from cells").fetchone() == (24,)
    again = run(config, tmp_path, found)
    assert figures(again) == figures(results)


def test_a_second_run_computes_nothing_and_gives_the_same_results(world):
    config, out, results = world
    before = {path: path.stat().st_mtime_ns for path in (out / "paft" / "adapter").iterdir()}
    again = run(config, out)
    assert figures(again) == figures(results)
    assert all(arm["cells_asked"] == 0 for arm in again["arms"].values())
    assert {path: path.stat().st_mtime_ns for path in (out / "paft" / "adapter").iterdir()} == before


def test_more_examples_pay_only_for_the_new_cells(world, tmp_path):
    config, _, _ = world
    few = run(config, tmp_path, "evaluate.examples=5", "arms={base: {}}")
    more = run(config, tmp_path, "evaluate.examples=8", "arms={base: {}}")
    assert few["arms"]["base"]["cells_asked"] == 3 * 5
    assert more["arms"]["base"]["cells_asked"] == 3 * 3


def test_runs_may_share_their_answers(world, tmp_path):
    config, _, _ = world
    shared = f"evaluate.cells={tmp_path / 'shared.sqlite'}"
    first = run(config, tmp_path / "first", shared, "arms={base: {}}")
    second = run(config, tmp_path / "second", shared, "arms={base: {}}")
    assert [each["arms"]["base"]["cells_asked"] for each in (first, second)] == [24, 0]
    assert figures(first) == figures(second)
    assert not (tmp_path / "second" / "cells.sqlite").exists()


def test_answers_that_ended_by_themselves_are_read_back(world, tmp_path):
    _, out, _ = world
    table = pyarrow.parquet.read_table(out / "scores.parquet")
    stops = ["eos" if n % 3 else "limit" for n in range(table.num_rows)]
    table = table.set_column(table.schema.get_field_index("stop"), "stop", pyarrow.array(stops))
    pyarrow.parquet.write_table(table, tmp_path / "scores.parquet")
    read = finished.load_tables(tmp_path)
    assert sum(tables["generation"].ended_KN.sum() for tables in read.values()) == stops.count("eos")


def test_cells_that_changed_between_two_models_are_listed(world, tmp_path):
    _, out, _ = world
    tables = finished.load_tables(out)
    a, b = tables["paft"]["likelihood"], tables["base"]["likelihood"]
    cells = finished.changed_cells([f"{out}:paft", f"{out}:base"], "likelihood")
    assert len(cells) == int((a.values_KN != b.values_KN).sum()) > 0
    rows = pyarrow.parquet.read_table(out / "scores.parquet").to_pylist()
    for cell in cells:
        for side, arm in (("a", "paft"), ("b", "base")):
            (row,) = (
                r for r in rows if (r["arm"], r["prompt"], r["example"]) == (arm, cell["prompt"], cell["example"])
            )
            assert cell[f"{side}_score"] == row["likelihood_score"]
            assert cell[f"{side}_answer"] == row["likelihood_answer"]
            assert cell[f"{side}_completion"] == row["completion"]
    assert finished.changed_cells([f"{out}:base", f"{out}:paft"], "likelihood")[0]["a"] == f"{out}:base"
    with pytest.raises(DataError, match="3 models; changed cells are those of two"):
        finished.changed_cells([str(out)])


def test_a_set_for_scoring_alone_scores_and_does_not_train(world, tmp_path):
    config, out, _ = world
    values = load_mapping(out / "prompts.yaml")
    file = tmp_path / "test_only.yaml"
    file.write_text(dump_yaml({"task": values["task"], "test": values["test"]}))
    scored = run(config, tmp_path / "scored", f"prompts={file}", "arms={base: {}}")
    assert scored["prompts"]["train"] == 0
    assert "no train prompts" in (tmp_path / "scored" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ConfigError, match="0 train and 0 dev prompts; to train takes both"):
        run(config, tmp_path / "trained", f"prompts={file}")


def test_a_budget_buys_a_part_and_the_rest_is_paid_for_later(world, tmp_path):
    config, _, _ = world
    part = run(
        config, tmp_path, "evaluate.budget.kind=balanced", "evaluate.budget.cells=15", "arms={base: {}, single: {}}"
    )
    for arm in part["arms"].values():
        assert arm["budget"]["cells"] == 15
        assert arm["budget"]["of"] == 24
        estimates = arm["scores"]["likelihood"]["estimates"]
        assert {"mean", "table_mean", "table_worst", "prompt_sd", "table_share>=0.5"} <= set(estimates)
        assert "worst" not in estimates
    assert part["arms"]["base"]["cells_asked"] == 15
    assert part["comparisons"][0]["worst"] is None
    assert "15 of 24 cells were bought" in (tmp_path / "report.html").read_text(encoding="utf-8")
    table = pyarrow.parquet.read_table(tmp_path / "scores.parquet").to_pydict()
    assert len(table["arm"]) == 2 * 15
    (pair,) = finished.compare_runs([str(tmp_path)], "likelihood")
    told = next(c for c in part["comparisons"] if c["scorer"] == "likelihood")
    assert (pair.a, pair.b) == (told["a"], told["b"])
    assert pair.comparison.mean.to_dict() == told["mean"]
    whole = run(config, tmp_path, "arms={base: {}, single: {}}")
    assert [arm["cells_asked"] for arm in whole["arms"].values()] == [
        9,
        0,
    ]  # one model twice: the second finds all in the store


def test_prompts_of_other_splits_are_asked_the_same_examples(world, tmp_path):
    config, _, plain = world
    results = run(
        config, tmp_path, "evaluate.also=[train]", "evaluate.reference=1", "evaluate.stop=settled", "arms={base: {}}"
    )
    told, arm = results["prompts"]["others"]["train"], results["arms"]["base"]
    assert told["prompts"] == 3
    assert -1 < told["mmd2"] < 1
    assert 0 < told["p"] <= 1
    for scorer, scores in arm["scores"].items():
        other = arm["others"]["train"][scorer]
        mean, mine = (each["estimates"]["mean"]["value"] for each in (other, scores))
        assert mean == pytest.approx(sum(other["accuracy_K"]) / 3)
        assert other["gap"]["value"] == pytest.approx(mean - mine)
        assert "against prompt" in scores["estimates"]["flips"]["method"]
        assert scores["accuracy_K"] == plain["arms"]["base"]["scores"][scorer]["accuracy_K"]  # settled or not
    unread = arm["scores"]["generation"]["estimates"]["invalid"]["value"]
    assert (arm["mismatch"]["value"] is None) == (unread == 1)
    assert len(arm["seconds_K"]) == 3
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (
        "Mean accuracy, prompts of training",
        "Distance of the wordings, prompts of training to scored",
        "Answers other than under the reference prompt",
        "squared MMD",
        "was settled",
    ):
        assert text in page
    with pytest.raises(ConfigError, match="position below 3 or the id"):
        run(config, tmp_path, "evaluate.reference=nobody", "arms={base: {}}")
    with pytest.raises(ConfigError, match="has 0 prompts in 'adversarial'"):
        run(config, tmp_path, "evaluate.also=[adversarial]", "arms={base: {}}")


@pytest.mark.parametrize("kind", ["adaptive", "racing"])
def test_budgets_that_look_end_in_a_report(world, tmp_path, kind, capsys):
    config, _, _ = world
    results = run(config, tmp_path, f"evaluate.budget.kind={kind}", "evaluate.budget.cells=20", "arms={base: {}}")
    assert results["arms"]["base"]["budget"]["cells"] <= 20
    assert results["arms"]["base"]["budget"]["missed"]
    assert "not reached" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_same_seed_gives_the_same_figures_in_another_directory(world, tmp_path):
    config, _, results = world
    assert figures(run(config, tmp_path)) == figures(results)
    assert figures(run(config, tmp_path / "other", "seed=1")) != figures(results)


def test_an_adapter_is_trained_on_quantised_weights(world, tmp_path):
    config, _, plain = world
    results = run(config, tmp_path, "quantization={load_in_4bit: true}")
    losses = [row["loss"] for row in results["arms"]["paft"]["train"]["loss"]]
    assert losses[-1] < losses[0]
    assert results["arms"]["base"]["fingerprint"] != plain["arms"]["base"]["fingerprint"]
    with pytest.raises(ConfigError, match="quantised weights cannot be trained"):
        run(config, tmp_path, "quantization={load_in_4bit: true}", "train.lora=null")


def test_arms_over_training_seeds(world, tmp_path):
    config, out, results = world
    run(config, tmp_path / "b", "seed=1")
    rows = finished.compare_seeds([str(out), str(tmp_path / "b")], "likelihood")
    assert [(row.a, row.b) for row in rows] == [
        ("base", None), ("single", None), ("paft", None), ("single", "base"), ("paft", "base"), ("paft", "single"),
    ]  # fmt: skip
    base, *_, last = rows
    told = results["arms"]["base"]["scores"]["likelihood"]["estimates"]["mean"]["value"]
    assert base.over.mean.value == pytest.approx(told)
    assert base.over.seed_sd.value == 0  # not trained
    assert last.over.mean.value == pytest.approx(rows[2].over.mean.value - rows[1].over.mean.value)
    page = tmp_path / "both.html"
    command = [sys.executable, "-m", "paft", "report", str(out), str(tmp_path / "b"), "-o", str(page)]
    assert subprocess.run(command, timeout=120).returncode == 0
    assert f"{tmp_path / 'b'}:paft" in page.read_text(encoding="utf-8")
    assert "Between runs, free answers" in page.with_suffix(".md").read_text(encoding="utf-8")
    told = tmp_path / "b" / "results.json"
    plain = told.read_text(encoding="utf-8")

    def settings(**changes: Any) -> None:
        result = json.loads(plain)
        for place, value in changes.items():
            *path, last = place.split("__")
            functools.reduce(lambda held, part: held[part], path, result)[last] = value
        told.write_text(json.dumps(result), encoding="utf-8")

    free = {"model": "/elsewhere/model", "name": "b", "task": "t.yaml", "prompts": "p.yaml", "attention": "eager"}
    machine = {"evaluate__cells": "c.sqlite", "evaluate__batch_tokens": 64, "evaluate__budget__kind": "full"}
    settings(**{f"config__{key}": value for key, value in {**free, **machine}.items()})
    result = json.loads(told.read_text(encoding="utf-8"))
    result["arms"]["paft"]["train"]["settings"].update(micro_batch_size=1, dataloader_workers=1)
    told.write_text(json.dumps(result), encoding="utf-8")
    assert finished.compare_seeds([str(out), str(tmp_path / "b")], "likelihood") == rows
    for key in ("style", "model", "evaluate__normalization", "data__held_out"):
        settings(**{f"config__{key}": {"style": "raw", "model": "another", "data__held_out": 0.3}.get(key, "byte")})
        with pytest.raises(DataError, match=f"in more than the seed: {key.replace('__', '.')}; give runs"):
            finished.compare_seeds([str(out), str(tmp_path / "b")], "likelihood")
    settings(arms__paft__train__settings__learning_rate=1.0, arms__single__train__settings__schedule={"kind": "static"})
    said = "more than the seed: arms.single.train.schedule, arms.paft.train.learning_rate; give"
    with pytest.raises(DataError, match=said):
        finished.compare_seeds([str(out), str(tmp_path / "b")])
    told.write_text(plain, encoding="utf-8")
    with pytest.raises(DataError, match="has the training seed of"):
        finished.compare_seeds([str(out), str(out)])
    with pytest.raises(DataError, match="one run"):
        finished.compare_seeds([str(out)])


def test_fully_trained_weights_come_back_as_the_same_model(world, tmp_path):
    config, _, _ = world
    overrides = ["train.lora=null", "train.epochs=1", "train.learning_rate=1e-3", "arms={base: {}, paft: {train: {}}}"]
    first = run(config, tmp_path, *overrides)
    again = run(config, tmp_path, *overrides)
    assert figures(again) == figures(first)
    assert again["arms"]["paft"]["cells_asked"] == 0
    assert first["arms"]["paft"]["fingerprint"] != first["arms"]["base"]["fingerprint"]


def test_a_grid_too_small_for_intervals_is_refused_before_any_work(world, tmp_path):
    config, _, _ = world
    with pytest.raises(ConfigError, match="1 test prompts x 8 examples"):
        run(config, tmp_path, "evaluate.prompts=1")
    assert not (tmp_path / "cells.sqlite").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["arms={p: {train: {schedule: {kind: curriculum, order: [99]}}}}"],
            "prompt 99 is not among the train prompts 0 to 4",
        ),
        (["arms={p: {train: {schedule: {kind: mixture, prompt: zz}}}}"], "'zz' is not the id of a train prompt"),
        (["evaluate.budget={kind: balanced, cells: 2}"], "evaluate.budget.cells 2: fewer than the 3 prompts"),
        (["train.lr_scheduler=cosin"], r"train\.lr_scheduler = 'cosin', did you mean 'cosine'\?"),
        (["train.lora={rank: 8}"], "unexpected keyword argument 'rank'"),
    ],
)
def test_what_cannot_be_scored_or_trained_is_refused_before_anything_is_written(world, tmp_path, overrides, said):
    config, _, _ = world
    with pytest.raises(ConfigError, match=said):
        run(config, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_modules_that_the_model_has_not_are_refused_before_any_arm_is_scored(world, tmp_path):
    config, _, _ = world
    with pytest.raises(
        ConfigError, match=r"target_modules \['q_prj'\]: the model has no such module, did you mean 'q_proj'"
    ):
        run(config, tmp_path, "train.lora.target_modules=[q_prj]")
    assert not (tmp_path / "config.yaml").exists()


def test_the_size_of_a_pass_is_part_of_a_training_where_prompts_are_kept_for_passes(world, tmp_path):
    config, _, _ = world
    settings = "train.schedule={kind: paft, batches_per_prompt: 1}", "arms={p: {train: {}}}"
    pipeline.run(
        load_run_config(config, [*settings, "train.micro_batch_size=2"]),
        tmp_path,
        LineWatcher(quiet=True),
        stages=["train"],
    )
    with pytest.raises(StoreError, match=r"other settings \(changed: micro_batch_size\)"):
        run(config, tmp_path, *settings, "train.micro_batch_size=4")


def test_other_settings_in_a_used_directory_are_refused_by_name(world, tmp_path):
    config, _, _ = world
    run(config, tmp_path, "train.epochs=1")
    with pytest.raises(StoreError, match=r"other settings \(changed: epochs\); choose another --out"):
        run(config, tmp_path, "train.epochs=2")


@pytest.mark.parametrize("changed", ["train", "validation"])
def test_corrected_examples_are_another_training(tmp_path, changed):
    config = tiny.write_config(tmp_path, arms={"paft": {"train": {"keep": "best", "epochs": 1}}})
    pipeline.run(load_run_config(config), tmp_path / "out", LineWatcher(quiet=True), stages=["train"])
    file = tmp_path / "data" / f"{changed}.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    other = {"red": "blue", "blue": "red"}
    file.write_text("".join(json.dumps({**row, "label": other[row["label"]]}) + "\n" for row in rows))
    with pytest.raises(StoreError, match=r"other settings \(changed: seed, data, prompts or model\)"):
        pipeline.run(load_run_config(config), tmp_path / "out", LineWatcher(quiet=True), stages=["train"])


def test_train_and_held_out_examples_never_overlap_the_scored_ones(tmp_path):
    config = tiny.write_config(tmp_path)
    whole = materials.prepare(load_run_config(config))
    scored = (tmp_path / "data" / "test.jsonl").read_text().splitlines(keepends=True)
    for name, rows in (("train", scored[:1]), ("validation", scored[:3])):
        with (tmp_path / "data" / f"{name}.jsonl").open("a") as file:
            file.writelines(rows)
    said: list[str] = []
    m = materials.prepare(load_run_config(config), said.append)
    assert [e.fields for e in m.train] == [e.fields for e in whole.train]
    assert [e.fields for e in m.dev] == [e.fields for e in whole.dev]
    for told in ("1 train examples also occur", "3 held-out examples also occur"):
        assert any(told in line for line in said)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_prompt_that_cannot_ask_every_example_is_refused_before_a_model_is_touched(tmp_path, split):
    config = tiny.write_config(tmp_path)
    task = load_mapping(tmp_path / "data" / "task.yaml")
    del task["choices"]
    (tmp_path / "data" / "task.yaml").write_text(dump_yaml(task | {"choices_from": "offered"}))
    for name in ("train", "validation", "test"):
        file = tmp_path / "data" / f"{name}.jsonl"
        rows = [json.loads(line) | {"offered": ["red", "blue"]} for line in file.read_text().splitlines()]
        if name == split:
            rows[-1]["offered"].append("green")
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = {
        "train": ["Name its colour:", "Is it"],
        "dev": ["What hue has this thing?", "Pick!"],
        "test": ["I see a", "Tell the shade of"],
    }
    prompts = {s: [{"text": f"{each} {{text}} {{A}} {{B}}", "answer": "letters"} for each in words[s]] for s in words}
    (tmp_path / "prompts.yaml").write_text(dump_yaml({"task": "colours", **prompts}))
    with pytest.raises(TemplateError, match=r"shows 2 options one by one, example .* has 3"):
        materials.prepare(load_run_config(config, [f"prompts={tmp_path / 'prompts.yaml'}"]))


def test_the_scored_split_may_not_select(tmp_path):
    with pytest.raises(ConfigError, match="may not also train or select"):
        load_run_config(tiny.write_config(tmp_path), ["evaluate.split=validation"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kill_at_a_random_instant_changes_nothing(world, tmp_path, seed):
    config, _, results = world
    command = [sys.executable, "-m", "paft", "run", str(config), "--out", str(tmp_path)]
    child = subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    until = time.monotonic() + 60
    marks = ["cells.sqlite", "single/steps.jsonl", "paft/steps.jsonl"]
    while not (tmp_path / marks[seed - 1]).exists() and time.monotonic() < until and child.poll() is None:
        time.sleep(0.01)
    time.sleep(random.Random(seed).random())
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert sqlite3.connect(tmp_path / "cells.sqlite").execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert figures(run(config, tmp_path)) == figures(results)


def test_a_full_disk_is_one_line_and_loses_nothing(world, tmp_path):
    config, _, results = world
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (24_000, 24_000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "sys.argv = ['paft', 'run', sys.argv[1], '--out', sys.argv[2]]; from paft.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(config), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("paft: ")
    assert "free some space" in last
    assert "Traceback" not in done.stderr
    assert figures(run(config, tmp_path)) == figures(results)


def test_grpo_on_numbers_and_sft_side_by_side(tmp_path, monkeypatch):
    folder = tmp_path / "sums"
    folder.mkdir()
    rows = [{"q": f"{a} and {b}", "sum": a + b} for a in range(6) for b in range(6)]
    for name, part in (("train", rows[:24]), ("test", rows[24:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    spec = {
        "name": "sums",
        "kind": "number",
        "fields": ["q"],
        "answer": "sum",
        "files": files,
        "prompts": "prompts.yaml",
    }
    (folder / "task.yaml").write_text(dump_yaml(spec), encoding="utf-8")
    forms = ["number", {"wrap": "#### {answer}", "of": "number"}]
    texts = {
        "train": ["{q}: total?", "add up {q}, write #### first"],
        "dev": ["how much is the sum of {q}", "sum up please, #### before it: {q}"],
        "test": ["{q}, taken together, gives", "hash marks (####), then what {q} make"],
    }
    prompts = {
        split: [{"text": text, "answer": form} for text, form in zip(some, forms, strict=True)]
        for split, some in texts.items()
    }
    (folder / "prompts.yaml").write_text(dump_yaml({"task": "sums", "version": 2, **prompts}), encoding="utf-8")
    config = folder / "run.yaml"
    lora = {"r": 2, "target_modules": "all-linear"}
    grpo = {"method": "grpo", "epochs": 1, "batch_size": 4, "num_generations": 3, "max_new_tokens": 4, "lora": lora}
    values = {
        "task": str(folder / "task.yaml"),
        "model": str(tiny.saved_model(tmp_path / "model")),
        "train": {"epochs": 1, "batch_size": 4, "lora": lora},
        "arms": {"base": {}, "sft": {"train": {}}, "grpo": {"train": grpo}},
        "evaluate": {"split": "test", "scorers": ["generation"]},
    }
    config.write_text(dump_yaml(values), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"open answers.*set evaluate.scorers=\[generation\]"):
        run(config, tmp_path / "no", "evaluate.scorers=[generation,likelihood]")
    with pytest.raises(ConfigError, match="rewards: 'corect'"):
        run(config, tmp_path / "no", "arms.grpo.train.rewards={corect: 1}")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "trl", None)
        with pytest.raises(ConfigError, match=r'pip install "paft\[rl\]"'):
            run(config, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    results = run(config, tmp_path / "out")
    assert list(results["arms"]) == ["base", "sft", "grpo"]
    told = results["arms"]["grpo"]["train"]
    assert (told["updates"], told["completions"], len(told["reward"])) == (5, 60, 5)
    assert told["dev"][-1]["step"] == 5
    assert results["arms"]["sft"]["train"]["dev"][-1]["accuracy_K"]
    alone = run(config, tmp_path / "alone", "arms={base: {}}")
    assert alone["arms"]["base"]["fingerprint"] == results["arms"]["base"]["fingerprint"]
    again = run(config, tmp_path / "out")
    assert figures(again) == figures(results)
    assert all(arm["cells_asked"] == 0 for arm in again["arms"].values())
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Reward" in html


def test_a_task_whose_train_rows_are_all_scored_is_refused(tmp_path):
    config = tiny.write_config(tmp_path)
    file = tmp_path / "data" / "task.yaml"
    told = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**told, "files": dict.fromkeys(told["files"], told["files"]["test"])}))
    with pytest.raises(DataError, match="every held-out example is scored or held out too"):
        run(config, tmp_path / "out")


def test_what_an_arm_lacks_is_said_before_anything_is_written(world, tmp_path, monkeypatch):
    config, _, _ = world
    monkeypatch.delenv("PAFT_NO_KEY", raising=False)
    server = "{base_url: 'http://127.0.0.1:9/v1', model: m, tokenizer: t, key_env: PAFT_NO_KEY}"
    for arm, said in (
        ("{adapter: nowhere}", "adapter nowhere: no adapter_config.json"),
        ("{recorded: nowhere.jsonl}", "nowhere.jsonl: no such file"),
        (f"{{server: {server}}}", "environment variable PAFT_NO_KEY is empty"),
    ):
        with pytest.raises(PaftError, match=said):
            run(config, tmp_path / "out", f"arms={{base: {{}}, paft: {{train: {{}}}}, x: {arm}}}")
        assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_loaded_leaves_no_cells(world, tmp_path):
    settings = tmp_path / "config.yaml"
    lost = {**load_mapping(world[0]), "model": str(tmp_path / "nowhere"), "arms": {"base": {}}}
    settings.write_text(dump_yaml(lost), encoding="utf-8")
    policy = PolicyConfig.model_validate({"criteria": [{"measure": "mean", "at_least": 0.5}]})
    out, watch = tmp_path / "out", LineWatcher(quiet=True)
    for verb in (
        lambda: run(settings, out),
        lambda: pipeline.gate(settings, policy, watch, out=out),
        lambda: pipeline.score_shard(load_run_config(settings), out, watch, 1, 2),
    ):
        with pytest.raises(PaftError, match="nowhere"):
            verb()
        assert not list(out.glob("*.sqlite"))


def test_arms_that_all_name_a_model_need_none_of_the_run(world, tmp_path):
    config, _, results = world
    place = load_mapping(config)["model"]
    named = run(config, tmp_path / "named", "model=null", f"arms={{a: {{model: {place}}}, b: {{model: {place}}}}}")
    for arm in named["arms"].values():
        told, own = arm["scores"], results["arms"]["base"]["scores"]
        assert (arm["fingerprint"], told["likelihood"]["accuracy_K"]) == (
            results["arms"]["base"]["fingerprint"],
            own["likelihood"]["accuracy_K"],
        )
    assert place in (tmp_path / "named" / "report.md").read_text(encoding="utf-8")


def test_a_file_of_cells_below_no_home_is_one_line(world, tmp_path):
    config, _, _ = world
    with pytest.raises(ConfigError, match=r"evaluate\.cells ~nosuchuser/c\.sqlite: no such user"):
        run(config, tmp_path, "arms={base: {}}", "evaluate.cells=~nosuchuser/c.sqlite")


def test_damaged_files_that_are_written_anew_stop_no_run(world, tmp_path):
    config, out, results = world
    again = shutil.copytree(out, tmp_path / "again")
    (again / "config.yaml").write_bytes(b"\xff\xfe")
    with (again / "paft" / "steps.jsonl").open("a") as file:
        file.write("5\n")
    assert figures(run(config, again)) == figures(results)
    assert load_run_config(again / "config.yaml") == load_run_config(config)


def test_cells_and_results_of_different_runs_are_not_judged(world, tmp_path):
    _, out, _ = world
    mixed = shutil.copytree(out, tmp_path / "mixed")
    told = json.loads((mixed / "results.json").read_text(encoding="utf-8"))
    demand = PolicyConfig(criteria=[{"measure": "tokens", "at_most": 9}], scorer="generation")
    for arms in (
        {name: arm for name, arm in told["arms"].items() if name != "paft"},
        {name: {**arm, "fingerprint": "another"} for name, arm in told["arms"].items()},
    ):
        (mixed / "results.json").write_text(json.dumps({**told, "arms": arms}), encoding="utf-8")
        with pytest.raises(DataError, match="the last was not finished; run it again"):
            pipeline.gate(mixed, demand, LineWatcher(quiet=True))


def test_a_refused_run_leaves_what_the_finished_one_kept(world, tmp_path):
    config, _, _ = world
    run(config, tmp_path, "train.epochs=1", "evaluate.examples=4")
    kept = {name: (tmp_path / name).read_bytes() for name in ("config.yaml", "prompts.yaml", "environment.json")}
    for change in ("train.epochs=2", "seed=1"):  # told by the settings, and by what they rest on alone
        with pytest.raises(StoreError, match="other settings"):
            run(config, tmp_path, "train.epochs=1", change)
        assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    with pytest.raises(PaftError, match="nowhere"):  # a model that cannot be loaded
        run(config, tmp_path, "train.epochs=1", f"model={tmp_path / 'nowhere'}")
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    shutil.rmtree(tmp_path / "single")  # the later arm is looked at before the first is trained anew
    with pytest.raises(StoreError, match="other settings"):
        run(config, tmp_path, "train.epochs=1", "seed=1")
    assert {name: (tmp_path / name).read_bytes() for name in kept} == kept
    assert not (tmp_path / "single").exists()


def test_models_are_compared_by_a_scorer_that_all_have(world, tmp_path):
    config, out, _ = world
    only = {}
    for scorer in ("likelihood", "generation"):
        only[scorer] = tmp_path / f"12:30 {scorer}"  # a colon in the name
        run(
            config,
            only[scorer],
            f"evaluate.scorers=[{scorer}]",
            "arms={base: {}}",
            f"evaluate.cells={out / 'cells.sqlite'}",
        )
    (pair,) = finished.compare_runs([f"{only['likelihood']}:base", f"{out}:base"])
    assert (pair.comparison.mean.value, pair.p) == (0, 1)
    with pytest.raises(ConfigError, match=r"no scorer in common: .* by likelihood; .* by generation"):
        finished.compare_runs([f"{only['likelihood']}", f"{only['generation']}:base"])
    assert finished.changed_cells([f"{only['likelihood']}:base", f"{out}:base"]) == []


def test_a_gate_that_buys_compares_with_no_other_right_answers(world, tmp_path):
    config, out, _ = world
    demand = PolicyConfig(criteria=[{"measure": "drop", "against": str(tmp_path), "at_most": 1.0}], scorer="likelihood")
    table = pyarrow.parquet.read_table(out / "scores.parquet")
    shutil.copy(out / "results.json", tmp_path)
    pyarrow.parquet.write_table(table, tmp_path / "scores.parquet")
    pipeline.gate(config, demand, LineWatcher(quiet=True), arm="base", out=tmp_path / "gate")
    others = pyarrow.array([9] * table.num_rows)
    table = table.set_column(table.schema.get_field_index("gold"), "gold", others)
    pyarrow.parquet.write_table(table, tmp_path / "scores.parquet")
    with pytest.raises(DataError, match="8 of 8 examples with the same id have another right answer"):
        pipeline.gate(config, demand, LineWatcher(quiet=True), arm="base", out=tmp_path / "gate")


def test_a_shard_asks_nothing_that_the_run_holds(world, tmp_path):
    config, _, _ = world
    run(config, tmp_path, "arms={base: {}}", "evaluate.examples=4")
    settings = load_run_config(config, ["arms={base: {}}"])
    asked = [pipeline.score_shard(settings, tmp_path, LineWatcher(quiet=True), number, 2) for number in (1, 2)]
    with CellStore(asked[0]) as first, CellStore(asked[1]) as second, CellStore(tmp_path / "cells.sqlite") as whole:
        assert len(whole) < len(first) < len(second)  # the second knows those of the first
    assert run(config, tmp_path, "arms={base: {}}")["arms"]["base"]["cells_asked"] == 0


def test_settings_of_a_chat_template_reach_training_and_scoring(world, tmp_path):
    config, _, _ = world
    model = Path(load_run_config(config).model)
    file = model / "chat_template.jinja"
    before = file.read_text()
    try:
        file.write_text(before + "{% if enable_thinking is defined and not enable_thinking %}red{% endif %}")
        few = ["arms={base: {}, paft: {train: {}}}", "train.epochs=1", "evaluate.scorers=[likelihood]"]
        plain, settled = (
            run(config, tmp_path / name, *few, *more)
            for name, more in (("plain", []), ("settled", ["chat_template_kwargs.enable_thinking=false"]))
        )
    finally:
        file.write_text(before)
    for arm in ("base", "paft"):
        assert plain["arms"][arm]["fingerprint"] != settled["arms"][arm]["fingerprint"]
    tokens = [
        sum(row["prompt_tokens"] for row in pyarrow.parquet.read_table(tmp_path / name / "scores.parquet").to_pylist())
        for name in ("plain", "settled")
    ]
    assert tokens[1] > tokens[0]
    assert plain["arms"]["paft"]["train"]["tokens"] < settled["arms"]["paft"]["train"]["tokens"]
