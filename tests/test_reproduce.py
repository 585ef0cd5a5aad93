"""The paper's experiments by name: what is run, and a table that follows from the cells."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from paft import pipeline, reproduce
from paft.cli import app
from paft.errors import ConfigError, DataError
from paft.finished import load_results, load_tables
from paft.watch import LineWatcher
from tests import tiny
from tests.chat_server import ChatServer
from tests.test_batprompt import answer


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
    assert list(results["arms"]) == list(planned.arms) == ["base", "user", "top_accuracy", "zopo", "static", "paft"]
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
    assert planned.arms["k8"] == f"K=8, T={runs[0]['config']['train']['epochs']:g}"
    assert planned.arms["k1t6"] == "K=1, T=6"
    trained, asked = runs[0]["task"]["train_examples"], len(runs[0]["prompts"]["test"])
    assert f"; {trained} train rows, {asked} unseen prompts x {runs[0]['task']['test_examples']} examples; " in text
    assert len({folder for _, folder in planned.runs.values()}) == 2
    figures["arms"]["k8"]["dev_prompts"] = ["another"]  # kept from a run under an older prompt set
    assert ": none, its arms were checked on different dev prompts" in reproduce._choice(planned, told["figures"])


def test_training_prompts_are_as_many_as_named(world, tmp_path):
    folder, overrides = world
    task = [str(folder / "data" / "task.yaml")]
    with pytest.raises(
        ConfigError, match=r"a row trains on 400 prompts, and the set of task task has \d train prompts"
    ):
        reproduce.plan("prompts", "smoke", tmp_path, overrides, task, [0])
    fewer = [f"arms.n{n}.train.prompts=2" for n in (5, 10, 25, 50, 100, 200, 400)]
    planned = reproduce.plan("prompts", "smoke", tmp_path, [*overrides, *fewer], task, [0])
    assert planned.arms["n1"] == "1 prompt"
    assert planned.arms["n400"] == "2 prompts"
    ((config, out),) = planned.runs.values()
    few = config.model_copy(update={"arms": {name: config.arms[name] for name in ("n1", "n2")}})
    results = pipeline.run(few, out, LineWatcher(quiet=True))
    assert [results["arms"][arm]["train"]["distinct_prompts"] for arm in ("n1", "n2")] == [1, 2]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task=hellaswag", "chosen by --task and --seed"),
        ("seed=5", "chosen by --task and --seed"),
        ("arms={base: {}}", "table1 needs"),
        ("evaluate.budget.kind=adaptive", "over every cell of test prompts"),
        ("evaluate.prompt_split=adversarial", "over every cell of test prompts"),
        ("arms.more={start: paft, train: {}}", "paft comes last"),
        ("evaluate.level=0.8", "95 % of every interval"),
    ],
)
def test_what_would_make_a_table_say_what_it_does_not_show_is_refused(override, said):
    with pytest.raises(ConfigError, match=said):
        reproduce.plan("table1", "smoke", Path("x"), [override])


@pytest.mark.parametrize(
    ("experiment", "override", "said"),
    [
        ("min-con", "evaluate.also=[]", "needs the adversarial prompts"),
        ("inference", "evaluate.scorers=[likelihood,generation]", "about free answers"),
        ("models", "model=my/model", "those of the scale"),
    ],
)
def test_an_experiment_keeps_what_it_is_about(experiment, override, said):
    with pytest.raises(ConfigError, match=said):
        reproduce.plan(experiment, "smoke", Path("x"), [override])


def test_two_tasks_of_one_name_are_refused(world, tmp_path):
    described = (world[0] / "data" / "task.yaml").read_text()
    tasks = [tmp_path / folder / "my.yaml" for folder in "ab"]
    for file in tasks:
        file.parent.mkdir()
        file.write_text(described)
    with pytest.raises(ConfigError, match="rename one"):
        reproduce.plan("table1", "smoke", Path("x"), [], [*map(str, tasks)])


@pytest.mark.parametrize("experiment", list(reproduce.experiments()))
def test_a_plan_is_of_a_task_that_there_is(experiment):
    with pytest.raises(DataError, match="task 'nope': unknown"):
        reproduce.plan(experiment, "smoke", Path("x"), [], ["nope"])


def test_a_plan_of_open_answers_is_not_of_restricted_choice():
    with pytest.raises(ConfigError, match=r"'gsm8k' has open answers.*set evaluate\.scorers=\[generation\]"):
        reproduce.plan("table1", "smoke", Path("x"), [], ["gsm8k"])
    free = ["evaluate.scorers=[generation]", "data.train_examples=null"]
    assert ", all rows, " in reproduce.describe(reproduce.plan("table1", "smoke", Path("x"), free, ["gsm8k"]))


def test_a_seed_that_is_named_twice_is_refused_by_its_name():
    with pytest.raises(ConfigError, match="--seed 1: asked for twice"):
        reproduce.plan("table1", "smoke", Path("x"), [], ["piqa"], [1, 1])


def test_arms_that_train_nothing_are_a_plan_too():
    planned = reproduce.plan("models", "smoke", Path("x"), ["arms.user.train=null", "arms.paft.train=null"])
    assert "3 arms" in reproduce.describe(planned)


def test_one_process_of_several_makes_the_table(world, tmp_path, monkeypatch):
    folder, overrides = world
    planned = reproduce.plan("kt", "smoke", tmp_path, overrides, [str(folder / "data" / "task.yaml")], [0])
    ran = []
    monkeypatch.setattr(reproduce, "run", lambda config, folder, watch: ran.append(folder))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert reproduce.reproduce(planned, tmp_path, quiet, lambda _: None) == ""
    assert len(ran) == 1


def test_an_arm_that_is_added_has_its_row_and_its_difference(world, tmp_path):
    """A prompt found elsewhere (`paft prompts batprompt`), beside the paper's figures for it."""
    folder, overrides = world
    added = "arms.batprompt={title: BATprompt, train: {schedule: {kind: fixed, prompt: 3}}}"
    planned = reproduce.plan(
        "table1", "smoke", tmp_path, [*overrides, added], [str(folder / "data" / "task.yaml")], [0]
    )
    assert list(planned.arms)[-2:] == ["batprompt", "paft"]
    text = reproduce.reproduce(planned, tmp_path, quiet, lambda _: None)
    assert "| BATprompt | " in text
    assert "BATprompt " in text.split(f"{planned.arms['paft']} minus ")[1]


def test_batprompt_is_one_command_with_a_writer(world, tmp_path):
    """Its search runs first, on the run's own held-out examples; all arms then train on the set that it leaves."""
    folder, overrides = world
    given = ["--task", str(folder / "data" / "task.yaml"), "--seed", "0", "--out", str(tmp_path / "out"), *overrides]
    search = tmp_path / "search.yaml"
    with ChatServer(reply=answer) as server:
        told = {"writer": {"name": "w", "model": "served", "base_url": server.url}, "examples": 4, "rounds": 1}
        search.write_text(json.dumps(told), encoding="utf-8")
        planned = CliRunner().invoke(app, ["reproduce", "table1", *given, "--batprompt", str(search), "--plan"])
        assert "w is asked 1 x 5 times at most" in planned.output
        assert not server.asked
        found = CliRunner().invoke(app, ["reproduce", "table1", *given, "--batprompt", str(search)])
        assert found.exit_code == 0, found.output
        asked = len(server.asked)
        assert 0 < asked <= 5
        again = CliRunner().invoke(app, ["reproduce", "table1", *given, "--batprompt", str(search)])
        assert (again.exit_code, len(server.asked)) == (0, asked)
        view = CliRunner().invoke(app, ["reproduce", "training-time", *given, "--batprompt", str(search)])
        assert view.exit_code == 0, view.output
        assert len(server.asked) == asked  # views of the same models share their search
        launched = {"WORLD_SIZE": "2", "RANK": "0"}
        told = CliRunner().invoke(app, ["reproduce", "table1", *given, "--batprompt", str(search)], env=launched)
        assert "asked by one process" in str(told.exception)
    assert "| BATprompt | " in (tmp_path / "out" / "table1-smoke.md").read_text(encoding="utf-8")
    (kept,) = (tmp_path / "out" / "methods-batprompt").rglob("search/search.json")
    prompt = json.loads(kept.read_text(encoding="utf-8"))["prompt"]
    rows = (kept.parent.parent / "batprompt" / "steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert {each for row in rows for each in json.loads(row)["prompts"]} == {prompt}


@pytest.mark.parametrize(
    ("experiment", "more", "said"),
    [
        ("kt", {}, "it is for table1, inference, training-time, min-con"),
        ("table1", {"run": "x.yaml"}, "leave `run` out"),
        ("table1", {"round": 2}, "round"),
    ],
)
def test_a_search_that_does_not_belong_is_refused(tmp_path, experiment, more, said):
    search = tmp_path / "search.yaml"
    search.write_text(json.dumps({"writer": {"name": "w", "model": "served"}, **more}), encoding="utf-8")
    found = CliRunner().invoke(app, ["reproduce", experiment, "--batprompt", str(search)])
    assert isinstance(found.exception, ConfigError)
    assert said in str(found.exception)


def test_other_models_have_columns_of_their_own(world, tmp_path, monkeypatch):
    folder, overrides = world
    other = folder / "other"
    if not other.exists():
        tiny.hf_model(seed=5).model.save_pretrained(other)
        tiny.tokenizer().save_pretrained(other)
    told = reproduce._told()
    told["scales"]["smoke"]["models"] = {str(folder / "model"): 1.0, str(other): 1.0}
    monkeypatch.setattr(reproduce, "_told", lambda: told)
    overrides = [each for each in overrides if not each.startswith("model=")]
    planned = reproduce.plan("models", "smoke", tmp_path, overrides, [str(folder / "data" / "task.yaml")], [0])
    assert [Path(task).name for task in planned.tasks] == ["task.yaml, model", "task.yaml, other"]
    assert "1 seeds x 2 models" in reproduce.describe(planned)
    text = reproduce.reproduce(planned, tmp_path, quiet, lambda _: None)
    base = next(line for line in text.splitlines() if line.startswith("| Base |")).split("|")
    assert base[2] != base[3]
    assert text.count("paired on the same cells") == 2


def test_min_and_con_ask_adversarial_prompts(world, tmp_path):
    folder, overrides = world
    told = yaml.safe_load((folder / "prompts.yaml").read_text(encoding="utf-8"))
    told["adversarial"] = [
        {"text": "wat hue do u fnd in <line>{text}</line>", "answer": {"labels": ["red", "blue"]}},
        {"text": "PICK 1 of {choices} aftr reading {text}", "options": "{text}", "joiner": " / ", "answer": "text"},
    ]
    file = tmp_path / "prompts.yaml"
    file.write_text(yaml.safe_dump(told), encoding="utf-8")
    planned, text = made((folder, [*overrides[1:], f"prompts={file}"]), tmp_path, "min-con")
    ((_, out),) = planned.runs.values()
    result = load_results(out)["arms"]["paft"]
    lowest = 100 * min(result["scores"]["likelihood"]["accuracy_K"])
    con = 100 * statistics.fmean(result["others"]["adversarial"]["likelihood"]["accuracy_K"])
    assert f"| {planned.arms['paft']} | {lowest:.1f}, {con:.1f} |" in text


def test_a_scale_that_is_too_large_is_told_as_a_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    found = CliRunner().invoke(app, ["reproduce", "table1", "--scale", "paper", "--out", str(tmp_path / "x")])
    assert "wants a GPU with 48 GiB, and here is none; this is the plan only" in " ".join(found.output.split())
    assert "6 arms x 5 tasks x 3 seeds" in found.output
    assert "own model" not in found.output
    of_ours = reproduce.plan("table1", "paper", tmp_path / "x", ["model=my/small"])
    assert "with the scale's own model" in reproduce.describe(of_ours)
    assert "here is none" in str(reproduce.too_small(of_ours))
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
