"""The paper's experiments, each by name at a chosen scale: runs of the pipeline, and their figures laid beside the paper's.

What is run is written in reproduce.yaml. Runs are kept by task and seed, so that an experiment that was killed goes on, and
experiments that look at the same models share them.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from paft.batprompt import batprompt
from paft.config import ArmConfig, BatpromptConfig, RunConfig, load_run_config
from paft.errors import ConfigError, PaftError, few, nearest
from paft.evaluation.remedies import batch_calibrated, ensemble
from paft.evaluation.stats import compare
from paft.finished import compare_seeds, load_results, load_tables
from paft.materials import check_scorers, prompts_for
from paft.pipeline import run
from paft.prompts import PromptSet
from paft.store import write_json, write_text
from paft.tasks import load_task
from paft.tasks.answers import Labels

EPOCH_SHARE = 0.9
"""Of the train examples, after a tenth is held out."""


@dataclass(frozen=True)
class Plan:
    """Runs of an experiment: settings by (column of its table, seed), and where each is kept. A column is a task, or a task and a model."""

    experiment: str
    scale: str
    about: str
    arms: Mapping[str, str]
    """Titles."""
    runs: Mapping[tuple[str, int], tuple[RunConfig, Path]]
    needs_gib: float
    flops: float
    """Multiplications and additions, about: for every weight of the model 6 a trained token and 2 a scored one."""
    hours: float
    """At the speed of a machine that the scale is meant for."""
    search: BatpromptConfig | None = None
    """How each run finds the prompt of its BATprompt arm, before anything is trained."""
    scales_own: bool = True
    """Whether the models are the scale's, for which needs_gib, flops and hours are told."""

    @property
    def tasks(self) -> list[str]:
        """In order, each once."""
        return list(dict.fromkeys(task for task, _ in self.runs))

    @property
    def models(self) -> list[str]:
        """In order, each once."""
        return list(dict.fromkeys(str(config.model) for config, _ in self.runs.values()))

    @property
    def seeds(self) -> list[int]:
        """In order, each once."""
        return list(dict.fromkeys(seed for _, seed in self.runs))


def _told() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((resources.files("paft") / "reproduce.yaml").read_text("utf-8"))
    return found


def experiments() -> dict[str, str]:
    """Names, and what each is about."""
    return {name: each["about"] for name, each in _told()["experiments"].items()}


def scales() -> list[str]:
    """Names, smallest first."""
    return list(_told()["scales"])


def plan(
    experiment: str,
    scale: str,
    out: Path,
    overrides: Sequence[str] = (),
    tasks: Sequence[str] = (),
    seeds: Sequence[int] = (),
    search: BatpromptConfig | None = None,
) -> Plan:
    """What an experiment runs. overrides: settings of every run (model=..., train.epochs=1). search: what finds the prompt of an arm more.

    Raises ConfigError for names that there are not, DataError for tasks.
    """
    told = _told()
    for given, known, what in ((experiment, told["experiments"], "experiment"), (scale, told["scales"], "--scale")):
        if given not in known:
            raise ConfigError(f"{what} {given!r}: unknown{nearest(given, known)}; there are {', '.join(known)}")
    asked, size = told["experiments"][experiment], told["scales"][scale]
    runs: dict[tuple[str, int], tuple[RunConfig, Path]] = {}
    flops = 0.0
    kept = asked["runs"]
    if search is not None:
        if kept != "methods":
            rows = [name for name, each in told["experiments"].items() if each["runs"] == "methods"]
            raise ConfigError(f"--batprompt: {experiment} compares no methods; it is for {', '.join(rows)}")
        kept = f"{kept}-batprompt"  # other prompts, other runs
        asked = {
            **asked,
            "arms": {**dict(list(asked["arms"].items())[:-1]), **_BATPROMPT, **dict(list(asked["arms"].items())[-1:])},
        }
    arms = {name: _with_budget(arm, size["search"]) for name, arm in asked["arms"].items()}
    models = size["models"] if asked["runs"] == "models" else {size["settings"]["model"]: size["weights"]}
    for (model, weights), task, seed in itertools.product(
        models.items(), tasks or size["tasks"], seeds or size["seeds"]
    ):
        settings = {**_merged(size["settings"], asked.get("settings", {})), "model": model}
        base = {"name": f"{experiment}-{Path(task).stem}", "task": task, "seed": seed, **settings, "arms": arms}
        config = load_run_config(None, overrides, base)
        _check(config, experiment, model, task, seed, asked["arms"])
        last = list(asked["arms"])[-1]  # what the others are compared with, also those that an override adds
        ordered = {**{n: a for n, a in config.arms.items() if n != last}, last: config.arms[last]}
        config = config.model_copy(update={"arms": {n: _titled(config, n, arm) for n, arm in ordered.items()}})
        column, place = task, [kept, scale]
        if asked["runs"] == "models":
            short = str(config.model).rstrip("/").rpartition("/")[2]
            column, place = f"{task}, {short}", [*place, short]
        folder = out.joinpath(*place, Path(task).stem, f"seed{seed}")
        if (column, seed) in runs:
            raise ConfigError(f"--task {task} with --seed {seed}: asked for twice; name each once")
        if any(kept == folder for _, kept in runs.values()):
            raise ConfigError(f"--task {task}: another task (or model) of that name is asked for too; rename one")
        runs[column, seed] = config, folder
        flops += float(weights) * _cost(config, told["rows"].get(task), told["tokens"].get(task, 200))
    titles = {name: arm.title or name for name, arm in config.arms.items()}
    hours = flops / float(size["speed"]) / 3600
    own = all(config.model in models for config, _ in runs.values())
    return Plan(experiment, scale, asked["about"], titles, runs, size.get("needs_gib", 0.0), flops, hours, search, own)


def _titled(config: RunConfig, name: str, arm: ArmConfig) -> ArmConfig:
    """The arm with K, T and the number of prompts in its title as its settings, overrides included, have them."""
    train, title = config.training_of(name), arm.title
    if train is None or title is None:
        return arm
    for sign, value in (
        ("{K}", getattr(train.schedule, "steps_per_prompt", "")),
        ("{T}", f"{train.epochs:g}"),
        ("{P}", train.prompts),
    ):
        title = title.replace(sign, str(value))
    return arm.model_copy(update={"title": title})


_BATPROMPT = {"batprompt": {"title": "BATprompt", "train": {"schedule": {"kind": "fixed", "prompt": 0}}}}
"""Its prompt is known when a run begins."""


def _check(config: RunConfig, experiment: str, model: str, task: str, seed: int, arms: Mapping[str, Any]) -> None:
    """Raise ConfigError or DataError for a task that cannot be run so, and for overrides under which a table would say what it does not show."""
    if lost := [name for name in arms if name not in config.arms]:
        raise ConfigError(f"arms: {experiment} needs {few(lost)}; add one of yours as arms.NAME={{...}}")
    if config.task != task or config.seed != seed:
        raise ConfigError(
            f"task={config.task} seed={config.seed}: chosen by --task and --seed, which name the columns and runs"
        )
    if config.evaluate.budget.kind != "full" or config.evaluate.prompt_split != "test":
        raise ConfigError(
            "evaluate.budget, evaluate.prompt_split: the tables are over every cell of test prompts; leave both out"
        )
    if experiment == "models" and config.model != model:
        raise ConfigError(f"model={config.model}: models are those of the scale; for one of yours take table1")
    if experiment == "min-con" and "adversarial" not in config.evaluate.also:
        raise ConfigError("evaluate.also: min-con needs the adversarial prompts; leave it out")
    if experiment == "inference" and config.evaluate.scorers != ["generation"]:
        raise ConfigError("evaluate.scorers: inference is about free answers; leave it out")
    if config.evaluate.level != 0.95:
        raise ConfigError(
            f"evaluate.level={config.evaluate.level:g}: the tables say 95 % of every interval; leave it out"
        )
    known = load_task(task, config.source)
    check_scorers(config, known, judges=False)
    most = max((train.prompts or 0 for name in config.arms if (train := config.training_of(name))), default=0)
    if most and most > (held := len(prompts_for(config, known).train)):
        raise ConfigError(
            f"{experiment}: a row trains on {most} prompts, and the set of task {Path(config.task).stem} has {held} train prompts; "
            "take another --task, or name a larger set (prompts=FILE)"
        )
    last = list(arms)[-1]
    if late := [name for name, arm in config.arms.items() if arm.start == last]:
        raise ConfigError(f"arms.{late[0]}.start {last}: {last} comes last, as what the others are compared with")


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: {**under[key], **over[key]} for key in under.keys() & over.keys() if isinstance(over[key], dict)}
    return {**under, **over, **both}


def _with_budget(arm: Mapping[str, Any], budget: Mapping[str, int]) -> dict[str, Any]:
    schedule = arm.get("train", {}).get("schedule", {})
    if "search" not in schedule:
        return dict(arm)
    return {**arm, "train": {**arm["train"], "schedule": {**schedule, "search": {**schedule["search"], **budget}}}}


def _cost(config: RunConfig, rows: int | None, tokens: int) -> float:
    scored = (config.evaluate.prompts or 50) * (config.evaluate.examples or rows or 2000) * len(config.evaluate.scorers)
    found = 0.0
    for arm in config.arms:
        found += 2.0 * scored * tokens
        if (train := config.training_of(arm)) is not None:
            found += 6.0 * (config.data.train_examples or 20_000) * EPOCH_SHARE * train.epochs * tokens
    return found


def describe(planned: Plan) -> str:
    """The plan in words, with what it takes."""
    config, _ = next(iter(planned.runs.values()))
    train = next((t for arm in config.arms if (t := config.training_of(arm)) is not None), None)
    tasks = {each.task for each, _ in planned.runs.values()}
    lines = [
        f"{planned.experiment} ({planned.about}), scale {planned.scale}: {len(planned.arms)} arms x {len(tasks)} tasks x "
        f"{len(planned.seeds)} seeds" + (f" x {len(planned.models)} models" if len(planned.models) > 1 else ""),
        f"  model {', '.join(planned.models)}, {config.data.train_examples or 'all'} rows"
        + (f", {train.epochs} epochs, updates of {train.batch_size}" if train else ""),
        f"  {config.evaluate.prompts or 'all'} unseen prompts x {config.evaluate.examples or 'all'} examples, "
        f"{' and '.join(config.evaluate.scorers)}",
        *(
            [
                f"  BATprompt: {planned.search.writer.name} is asked {planned.search.rounds} x {planned.search.examples + 1} times at most, for every task and seed"
            ]
            if planned.search
            else []
        ),
        f"  about {planned.flops:.0e} operations, {planned.hours:,.1f} hours of a machine of that scale"
        + ("" if planned.scales_own else ", with the scale's own model"),
    ]
    return "\n".join(lines)


def too_small(planned: Plan) -> str | None:
    """Why this machine should not try; None when it may. Of how much memory a model that is not the scale's own wants, nothing is known."""
    if not planned.needs_gib:
        return None
    import torch

    held = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else 0.0
    if held >= planned.needs_gib or (held and not planned.scales_own):
        return None
    return f"scale {planned.scale} wants a GPU with {planned.needs_gib:.0f} GiB, and here is {f'one with {held:.0f}' if held else 'none'}"


def reproduce(planned: Plan, out: Path, watch: Callable[[str], Any], say: Callable[[str], None]) -> str:
    """Do all runs, write the table as Markdown and JSON into `out`; returns the Markdown.

    watch: makes the watcher of a run of that name, as a context. In a launch of several processes the first alone writes the table, and
    the others return nothing. Raises ConfigError for a search there, since one process asks the writer.
    """
    rank, size = (int(os.environ.get(name, default)) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1")))
    if planned.search is not None and size > 1:
        raise ConfigError("--batprompt: its writer is asked by one process; start it without a launcher")
    for (task, seed), (config, folder) in planned.runs.items():
        say(f"{planned.experiment}: {task}, seed {seed}, in {folder}")
        with watch(f"{task} seed {seed}") as watcher:
            if planned.search is not None:
                with watcher.stage("batprompt") as tick:
                    found = batprompt(planned.search, folder / "search", run=config, say=watcher.say, tick=tick)
                config = _trained_on(config, found.prompt.id, folder / "search" / "prompts.yaml")
            run(config, folder, watcher)
    if size > 1 and rank > 0:
        return ""
    figures = {task: _figures(planned, task) for task in planned.tasks}
    text = _markdown(planned, figures)
    name = f"{planned.experiment}-{planned.scale}"
    write_text(out / f"{name}.md", text)
    write_json(
        out / f"{name}.json",
        {"experiment": planned.experiment, "scale": planned.scale, "figures": figures, **_provenance(planned)},
    )
    return text


def _trained_on(config: RunConfig, prompt: str, prompts: Path) -> RunConfig:
    arm = config.arms["batprompt"]
    train = {**(arm.train or {}), "schedule": {"kind": "fixed", "prompt": prompt}}
    return config.model_copy(
        update={"prompts": str(prompts), "arms": {**config.arms, "batprompt": arm.model_copy(update={"train": train})}}
    )


def _figures(planned: Plan, task: str) -> dict[str, Any]:
    """Of one task: per arm its figures over the seeds, and paired differences of the last arm to every other."""
    folders = [folder for (each, _), (_, folder) in planned.runs.items() if each == task]
    results = [load_results(folder) for folder in folders]
    scorer = results[0]["config"]["evaluate"]["scorers"][0]
    arms = {arm: _of_arm([result["arms"][arm] for result in results], scorer) for arm in planned.arms}
    task_of, prompts = results[0]["task"], results[0]["prompts"]["test"]
    found = {
        "scorer": scorer,
        "seeds": len(folders),
        "sizes": {"train": task_of["train_examples"], "prompts": len(prompts), "examples": task_of["test_examples"]},
        "arms": arms,
        "differences": _differences(planned, folders, scorer),
    }
    as_summed = results[0]["config"]["evaluate"]["normalization"] == "sum"
    if planned.experiment == "table1" and scorer == "likelihood" and as_summed:
        found["remedies"] = _remedies(folders[0])
    return found


def _remedies(folder: Path) -> dict[str, Any]:
    """What remedies at inference time make of the untrained model (the same in every seed): batch calibration under each prompt whose
    answers are labels, and all prompts asked at once."""
    import pyarrow.parquet

    prompts = PromptSet.load(str(folder / "prompts.yaml"))
    templates = {template.id: template for template in prompts.test}
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in pyarrow.parquet.read_table(folder / "scores.parquet").to_pylist():
        if row["arm"] == "base":
            by_prompt.setdefault(row["prompt"], []).append(row)
    plain, calibrated, tables = [], [], []
    gold_N: list[int] = []
    for prompt, its in by_prompt.items():
        if len({len(row["logp"]) for row in its}) > 1 or any(None in row["logp"] for row in its):
            continue
        logp_NC, gold_N = np.array([row["logp"] for row in its]), [row["gold"] for row in its]
        tables.append(logp_NC)
        if isinstance(templates[prompt].inner_answer, Labels):
            plain.append(statistics.fmean(row["likelihood_score"] for row in its))
            calibrated.append(float(batch_calibrated(logp_NC, gold_N).mean()))
    found: dict[str, Any] = {}
    if len(calibrated) > 1:
        found["calibrated"] = {
            "prompts": len(calibrated),
            "plain": [statistics.fmean(plain), statistics.stdev(plain)],
            "mean": statistics.fmean(calibrated),
            "sd": statistics.stdev(calibrated),
        }
    if tables and len({table.shape for table in tables}) == 1:
        score_N = ensemble(np.stack(tables), gold_N)
        found["ensemble"] = {"prompts": len(tables), "mean": float(score_N.mean()), "examples": len(score_N)}
    return found


def _of_arm(told: Sequence[Mapping[str, Any]], scorer: str) -> dict[str, Any]:
    """Means over seeds. mean, raw_sd (n - 1), lowest over prompts; adversarial (Con); seconds and tokens of an answer; seconds of training."""
    scores = [each["scores"][scorer] for each in told]
    accuracy = [score["accuracy_K"] for score in scores]
    adversarial = [
        each["others"]["adversarial"][scorer]["accuracy_K"] for each in told if "adversarial" in each.get("others", {})
    ]
    trained = [each["train"] for each in told if each["train"]]
    dev = [check["mean"] for train in trained for check in train["dev"] if check["step"] == train["kept"]]

    def mean(values: Sequence[float]) -> float | None:
        return statistics.fmean(values) if values else None

    return {
        "mean": mean([statistics.fmean(each) for each in accuracy]),
        "sd": mean([statistics.stdev(each) for each in accuracy]),
        "lowest": mean([min(each) for each in accuracy]),
        "interval": [scores[0]["estimates"]["mean"][key] for key in ("low", "high")] if len(told) == 1 else None,
        "adversarial": mean([statistics.fmean(each) for each in adversarial]),
        "answer_seconds": mean([statistics.fmean(each["seconds_K"]) for each in told]),
        "answer_tokens": mean([statistics.fmean(score["tokens_K"]) for score in scores]),
        "train_seconds": mean([train["seconds"] for train in trained]),
        "dev": mean(dev),
        "dev_prompts": sorted({prompt for train in trained for check in train["dev"] for prompt in check["prompts"]}),
    }


def _differences(planned: Plan, folders: Sequence[Path], scorer: str) -> dict[str, Any]:
    """Mean difference of the last arm to each other one, paired on the same cells, with its 95 % interval."""
    names = list(planned.arms)
    last = names[-1]
    if len(folders) > 1:
        seeded = compare_seeds([str(folder) for folder in folders], scorer)
        over = {each.b: each.over.mean for each in seeded if each.a == last and each.b is not None}
    else:
        tables = load_tables(folders[0])
        over = {
            name: compare(
                tables[last][scorer].values_KN, tables[name][scorer].values_KN, clusters_N=tables[last][scorer].groups_N
            ).mean
            for name in names[:-1]
        }
    return {name: {"value": e.value, "low": e.low, "high": e.high} for name, e in over.items()}


def _markdown(planned: Plan, figures: Mapping[str, Any]) -> str:
    paper = _told()["paper"].get(planned.experiment, {})
    show = _SHOWN.get(planned.experiment, _accuracy)
    lines = [f"# {planned.experiment}, scale {planned.scale}: {planned.about}", ""]
    columns = [each for task in planned.tasks for each in (task, *(["paper"] if _has(paper, task) else []))]
    lines += ["| | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for arm, title in planned.arms.items():
        cells = []
        for task in planned.tasks:
            cells.append(show(figures[task]["arms"][arm]))
            if _has(paper, task):
                cells.append(str(paper.get(arm, {}).get(task, "–")))
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    lines += ["", _LEGEND.get(planned.experiment, _LEGEND["table1"]), ""]
    last = planned.arms[list(planned.arms)[-1]]
    if planned.experiment in ("table1", "models", "kt", "prompts"):
        for task in planned.tasks:
            told = [
                f"{planned.arms[arm]} {100 * d['value']:+.1f} ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
                for arm, d in figures[task]["differences"].items()
            ]
            lines.append(
                f"- {task}: {last} minus " + ", ".join(told) + " points, paired on the same cells, 95 % intervals"
            )
    for task in planned.tasks:
        if told_of := figures[task].get("remedies"):
            lines.append(f"- {task}: {_remedied(told_of)}")
    if planned.experiment == "kt":
        lines += ["", _choice(planned, figures)]
    lines += [
        "",
        f"{', '.join(planned.models)}; {_sizes(planned, figures)}; seeds {', '.join(map(str, planned.seeds))}; paft {metadata.version('paft')}, "
        f"{time.strftime('%Y-%m-%d', time.gmtime())}."
        + (
            " The paper's model has 8 billion weights, its prompts are others: its column is no target."
            if paper
            else ""
        ),
    ]
    if len(planned.seeds) < 3:
        lines.append(f"{len(planned.seeds)} training seed(s): differences of a few points may be luck.")
    return "\n".join(lines) + "\n"


def _sizes(planned: Plan, figures: Mapping[str, Any]) -> str:
    """What was trained on and asked, of every task where they differ."""
    told = {
        task: "{train} train rows, {prompts} unseen prompts x {examples} examples".format(**figures[task]["sizes"])
        for task in planned.tasks
    }
    if len(set(told.values())) == 1:
        return told[planned.tasks[0]]
    return "; ".join(f"{task}: {each}" for task, each in told.items())


def _remedied(told: Mapping[str, Any]) -> str:
    found = []
    if each := told.get("calibrated"):
        found.append(
            f"batch calibration, {each['prompts']} prompts that ask for labels, {100 * each['mean']:.2f} ± {100 * each['sd']:.2f} (without "
            f"{100 * each['plain'][0]:.2f} ± {100 * each['plain'][1]:.2f})"
        )
    if each := told.get("ensemble"):
        found.append(
            f"all {each['prompts']} prompts asked at once {100 * each['mean']:.2f} ({each['examples']} examples)"
        )
    return "the base model with remedies at inference time: " + "; ".join(found)


def _has(paper: Mapping[str, Any], task: str) -> bool:
    return any(task in row for row in paper.values())


def _accuracy(arm: Mapping[str, Any]) -> str:
    between = f" ({100 * arm['interval'][0]:.1f} to {100 * arm['interval'][1]:.1f})" if arm["interval"] else ""
    return f"{100 * arm['mean']:.2f} ± {100 * arm['sd']:.2f}{between}"


def _inference(arm: Mapping[str, Any]) -> str:
    return f"{1000 * arm['answer_seconds']:.0f} ms, {arm['answer_tokens']:.1f} tokens"


def _training(arm: Mapping[str, Any]) -> str:
    return "–" if arm["train_seconds"] is None else f"{arm['train_seconds']:.0f} s"


def _min_con(arm: Mapping[str, Any]) -> str:
    return f"{100 * arm['lowest']:.1f}, {100 * arm['adversarial']:.1f}"


_SHOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "inference": _inference,
    "training-time": _training,
    "min-con": _min_con,
}
_LEGEND = {
    "table1": "Percent: mean over unseen prompts ± sd of the prompts' accuracies (n - 1, item noise included, as in the paper); in brackets, of "
    "one seed, the 95 % interval of the mean over new prompts and examples.",
    "inference": "Time and generated tokens of an answer, the same limit and stop for all models. The paper's hours are over test set and prompts.",
    "training-time": "Wall clock of training, checks on dev prompts included.",
    "min-con": "Percent: lowest accuracy of an unseen prompt (Min), mean over adversarial prompts (Con). The paper gives no table.",
}


def _choice(planned: Plan, figures: Mapping[str, Any]) -> str:
    found = []
    for task in planned.tasks:
        arms = figures[task]["arms"]
        dev = {arm: told["dev"] for arm, told in arms.items() if told["dev"] is not None}
        if len({tuple(arms[arm]["dev_prompts"]) for arm in dev}) > 1:  # trained before the prompt set changed
            found.append(
                f"{task}: none, its arms were checked on different dev prompts; train them anew in another --out"
            )
        elif dev:
            best = max(dev, key=lambda arm: dev[arm])
            found.append(f"{task}: {planned.arms[best]} ({100 * dev[best]:.1f} % on dev prompts)")
    return "Chosen on dev prompts and held-out train examples, never on the table above: " + "; ".join(found) + "."


def _provenance(planned: Plan) -> dict[str, Any]:
    runs = {}
    for (task, seed), (_, folder) in planned.runs.items():
        try:
            told = load_results(folder)
        except PaftError:  # pragma: no cover  every run has just been made
            continue
        prints = {arm: each["fingerprint"] for arm, each in told["arms"].items()}
        runs[f"{task}/seed{seed}"] = {
            "run": str(folder),
            "made": told["made"],
            "fingerprints": prints,
            "environment": told["environment"],
        }
    return {"paft": metadata.version("paft"), "runs": json.loads(json.dumps(runs))}
