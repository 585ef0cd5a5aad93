"""The method top to bottom: load, train each arm, score every arm over unseen prompts, compare, report.

Each stage leaves its artefact in the run directory and is skipped when that artefact exists with the same fingerprint,
so a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from paft import evaluation
from paft.config import (
    FixedSchedule,
    GRPOConfig,
    Holding,
    PolicyConfig,
    RunConfig,
    SearchConfig,
    ServerConfig,
    SFTConfig,
    dump_yaml,
    load_run_config,
)
from paft.errors import ConfigError, DataError, few, nearest
from paft.evaluation.budget import planned_cells
from paft.evaluation.comparisons import Pairwise, Seeded, gap, over_seeds, pairwise, scorer_mismatch
from paft.evaluation.evaluate import Asker, Evaluation, Scorer, cell_table, reference_row
from paft.evaluation.few import compare_few
from paft.evaluation.gate import Verdict, hunt, judge
from paft.evaluation.matrix import UNSCORED, ScoreMatrix
from paft.evaluation.recorded import load_recorded
from paft.evaluation.stats import Comparison, compare
from paft.grid import Cell, Grid
from paft.lm.energy import EnergyMeter
from paft.lm.ranks import Ranks, launched
from paft.lm.types import LM
from paft.prompts import PromptSet, PromptSplit, Template
from paft.prompts.measures import mmd_test
from paft.prompts.search import choose, features_of, top_accuracy, zopo
from paft.prompts.similarity import similarity_matrix
from paft.reports import exhibit_of, write_report
from paft.store import ArmDir, CellStore, RunDir, disk_errors, read_jsonl, write_json, write_text
from paft.tasks import Example, Split, Task, load_task
from paft.tasks.sandbox import allow_code
from paft.tasks.types import content_id
from paft.training.rewards import find_reward, require_trl
from paft.training.schedule import make_groups, make_schedule, make_twins, subset, updates_per_epoch
from paft.training.weights import worst_case

# streams of the keyed subsets, apart from the seed that training uses
TEST_SUBSET, DEV_SUBSET, GATE_ORDER, OTHER_SUBSET = 101, 102, 103, 104

if TYPE_CHECKING:
    from paft.lm.hf import HFModel
    from paft.lm.server import ServerLM

PASSES_TRAIN, PASSES_SCORE, PASSES_WRITE = 3.3, 0.9, 2.0
"""Forward passes over a cell's tokens that training and scoring cost; only the time left depends on them."""


@dataclass(frozen=True)
class Stage:
    """A part of a run, with its share of the work (any unit)."""

    name: str
    work: float


class Watcher(Protocol):
    """Who is told what happens: a terminal, a notebook, nobody."""

    def plan(self, stages: Sequence[Stage]) -> None:
        """All stages, before the first starts."""

    def stage(self, name: str) -> AbstractContextManager[Any]:
        """Entered while a stage runs; yields a callable (done, total, note)."""

    def say(self, text: str) -> None:
        """A line worth reading."""


@dataclass(frozen=True)
class Materials:
    """What a run works on: task, prompts, and the examples of each purpose."""

    task: Task
    prompts: PromptSet
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    rejected: tuple[str, ...]
    origins: tuple[str, ...]
    grid: Grid
    """What is scored."""
    others: Mapping[PromptSplit, Grid]
    """Prompts of other splits on the same examples."""


def prepare(config: RunConfig, say: Any = lambda _: None, *, judges: bool = True) -> Materials:
    """Load and check everything that can be wrong before a model is touched. judges: answers are to be judged, here and now."""
    task = load_task(config.task, config.source, say)
    name = config.prompts or task.prompts
    if name is None:
        raise ConfigError(
            f"task {task.name!r} has no shipped prompt set; give one: prompts: FILE.yaml (docs/prompts.md)"
        )
    prompts = PromptSet.load(name)
    prompts.check(task)
    if task.num_choices == 1 and "likelihood" in config.evaluate.scorers:
        raise ConfigError(
            f"task {task.name!r} has open answers, and restricted choice needs choices; set evaluate.scorers=[generation]"
        )
    if getattr(task, "open_kind", "") == "code":
        if judges and not config.evaluate.run_code:
            raise ConfigError(
                f"task {task.name!r}: judging an answer means running the code that the model wrote; set evaluate.run_code=true (it runs "
                "confined: no files, network, processes; docs/tasks.md)"
            )
        if judges:
            allow_code()
    trains = any(arm.train is not None for arm in config.arms.values())
    splits: dict[str, Split] = {config.evaluate.split: task.split(config.evaluate.split)}
    test = _take(splits[config.evaluate.split].examples, config.evaluate.examples, TEST_SUBSET)
    asked = prompts.split(config.evaluate.prompt_split)[: config.evaluate.prompts]
    if len(asked) < 2 or len(test) < 2:
        raise ConfigError(
            f"evaluate: {len(asked)} test prompts x {len(test)} examples; intervals over prompts and examples need at least 2 x 2"
        )
    grid = Grid(asked, test)
    reference_row(config.evaluate.reference, grid)
    if (most := config.evaluate.budget.cells) is not None and most < len(asked):
        raise ConfigError(
            f"evaluate.budget.cells {most}: fewer than the {len(asked)} prompts; each needs a cell, and some more for an interval"
        )
    others: dict[PromptSplit, Grid] = {}
    for split in config.evaluate.also:
        if len(beside := prompts.split(split)) < 2:
            raise ConfigError(
                f"evaluate.also: the prompt set has {len(beside)} prompts in {split!r}; intervals need at least 2"
            )
        others[split] = Grid(_take(beside, min(len(beside), len(asked)), OTHER_SUBSET), test)
    train: tuple[Example, ...] = ()
    dev: tuple[Example, ...] = ()
    if trains:
        splits[config.data.train_split] = task.split(config.data.train_split)
        train = _take(splits[config.data.train_split].examples, config.data.train_examples, config.seed)
        if config.data.dev_split:
            splits[config.data.dev_split] = task.split(config.data.dev_split)
            dev = splits[config.data.dev_split].examples
        else:
            kept = max(1, round(len(train) * config.data.held_out))
            held = set(subset(len(train), kept, DEV_SUBSET))
            dev = tuple(e for i, e in enumerate(train) if i in held)
            train = tuple(e for i, e in enumerate(train) if i not in held)
        if not train:
            raise DataError(f"task {task.name!r}: no example left to train on after holding out {len(dev)}")
        scored = {content_id(e.fields, e.choices) for e in (*test, *dev)}
        clean = tuple(e for e in train if content_id(e.fields, e.choices) not in scored)
        if len(clean) < len(train):
            say(
                f"{len(train) - len(clean)} train examples also occur among the scored or held-out ones; left out of training"
            )
            train = clean
        for (
            name
        ) in config.arms:  # a prompt that a schedule names and the set lacks is found out before anything is written
            if (settings := config.training_of(name)) is not None:
                taught = train_grid(prompts, train, settings, config.seed)
                schedule = make_schedule(
                    settings.schedule,
                    taught,
                    batch_size=settings.batch_size,
                    epochs=settings.epochs,
                    seed=config.seed,
                )
                if isinstance(settings, GRPOConfig):
                    require_trl()
                if settings.arguments:
                    _check_arguments(settings)
                if isinstance(settings, GRPOConfig):
                    for reward in settings.rewards:
                        find_reward(reward)
                    make_groups(schedule, settings.num_generations, across=settings.group == "example")
                    continue
                if settings.objective.consistency is not None:
                    make_twins(schedule, taught.templates, batch_size=settings.batch_size)
                if settings.objective.worst is not None:
                    worst_case(settings.objective.worst, taught.templates)
    rejected = tuple(f"{r.row}: {r.reason}" for split in splits.values() for r in split.rejected)
    for line in rejected[:5]:
        say(f"row not readable, left out: {line}")
    if len(rejected) > 5:
        say(f"... and {len(rejected) - 5} more rows not readable")
    origins = tuple(dict.fromkeys(split.origin for split in splits.values()))
    return Materials(task, prompts, train, dev, test, rejected, origins, grid, others)


def train_grid(prompts: PromptSet, examples: Sequence[Example], settings: SFTConfig | GRPOConfig, seed: int) -> Grid:
    """What an arm is trained on: its train prompts, all or a subset that the seed fixes, and the train examples."""
    return Grid(_take(prompts.train, settings.prompts, seed), examples)


def _check_arguments(settings: SFTConfig | GRPOConfig) -> None:
    import torch

    on_cpu = not torch.cuda.is_available()
    if isinstance(settings, GRPOConfig):
        from paft.training.grpo import check_arguments as check_grpo

        check_grpo(settings, on_cpu=on_cpu)
    else:
        from paft.training.sft import check_arguments

        check_arguments(settings, on_cpu=on_cpu)


Item = TypeVar("Item")


def _take(items: Sequence[Item], size: int | None, seed: int) -> tuple[Item, ...]:
    return tuple(items[i] for i in subset(len(items), size, seed))


def run(
    config: RunConfig, out: Path, watch: Watcher, *, stages: Iterable[str] = ("train", "score", "report")
) -> dict[str, Any]:
    """The whole run; returns what results.json holds. `stages` limits it to some of train, score, report.

    In a launch of several processes they share each update of a training, and the scoring; the first alone writes.
    """
    wanted = set(stages)
    with launched() as ranks:
        materials = prepare(config, watch.say)
        folder = RunDir(out)
        if ranks.rank > 0:
            return _run_arms(config, materials, folder, watch, wanted, ranks)
        with folder.locked():
            _keep_settings(config, materials, folder)
            watch.plan(_plan(config, materials, folder, wanted))
            results = _run_arms(config, materials, folder, watch, wanted, ranks)
            if "score" in wanted:
                write_json(folder.results, results)
            if "report" in wanted and "score" in wanted:
                shown = [load_exhibit(folder.root)]
                write_report([results], html=folder.report_html, markdown=folder.report_md, exhibits=shown)
                watch.say(f"report: {folder.report_html}")
    return results


def score_shard(config: RunConfig, out: Path, watch: Watcher, number: int, of: int) -> Path:
    """Score every `of`-th example under all prompts, from the `number`-th (1 to `of`), into a file of its own in the run
    directory; a later `run` there takes over what such files hold. Nothing is trained. Returns the file."""
    if not 1 <= number <= of:
        raise ConfigError(f"shard {number}/{of}: expected a number from 1 to {of}, as in 1/{of}")
    if config.evaluate.budget.kind in ("adaptive", "racing"):
        raise ConfigError(
            f"budget {config.evaluate.budget.kind} with a shard: what to buy next depends on all cells; choose full or balanced"
        )
    m = prepare(config, watch.say)
    wanted = planned_cells(config.evaluate.budget, m.grid.shape)
    cells = [cell for cell in wanted if cell[1] % of == number - 1]
    folder = RunDir(out)
    _only_trained(config, folder)
    watch.plan([Stage("load model", 0.02), *(Stage(f"score {name}", 1.0) for name in config.arms)])
    with folder.shard(number, of) as file, CellStore(file) as store:
        for name, learner in _learners(config, m, folder, watch, list(config.arms)):
            with watch.stage(f"score {name}") as tick:
                asker = Asker(learner, m.grid, config.evaluate, store, tick)
                asker.total = len(cells)
                asker.ask(cells)
    return file


def _only_trained(config: RunConfig, folder: RunDir) -> None:
    """A shard trains nothing."""
    todo = [name for name in config.arms if config.training_of(name) is not None and not folder.arm(name).trained]
    if todo:
        raise ConfigError(
            f"{few(todo)}: not trained in {folder.root}, and a shard is for scoring; train first (paft train) into that directory"
        )


def _run_arms(
    config: RunConfig, m: Materials, folder: RunDir, watch: Watcher, wanted: set[str], ranks: Ranks
) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    evaluations: dict[str, Evaluation] = {}
    with CellStore(folder.cells) if ranks.rank == 0 else nullcontext() as store:
        if store is not None:
            for shard in folder.shards:
                if taken := store.absorb(shard):
                    watch.say(f"{shard}: {taken:,} answers taken over")
        for name, learner in _learners(config, m, folder, watch, list(config.arms), ranks):
            if "score" in wanted:
                evaluations[name], cost = _score_arm(name, learner, config, m.grid, store, watch, ranks)
                others: dict[str, Evaluation] = {}
                for split, grid in m.others.items():
                    with watch.stage(f"score {name}, {split} prompts") as tick:
                        plain = config.evaluate.model_copy(update={"reference": None})
                        others[split] = evaluation.evaluate(learner, grid, plain, store, tick, watch.say, ranks)
                arms[name] = _arm_result(config, name, folder.arm(name), evaluations[name], others) | cost
    if "score" in wanted and ranks.rank == 0:
        _write_cells(folder, evaluations)
        write_json(folder.exhibit, exhibit_of(evaluations), indent=None)
    return {
        "paft": metadata.version("paft"),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.model_dump(),
        "environment": environment(),
        "task": {
            "name": m.task.name,
            "open": m.task.num_choices == 1,
            "origins": list(m.origins),
            "rows_not_readable": len(m.rejected),
            "train_examples": len(m.train),
            "dev_examples": len(m.dev),
            "test_examples": len(m.test),
            "split": config.evaluate.split,
        },
        "prompts": {
            "set": m.prompts.task,
            "fingerprint": m.prompts.fingerprint,
            "train": len(m.prompts.train),
            "dev": len(m.prompts.dev),
            "similarity_to_train": m.prompts.similarity("train", "test"),
            "test": [_shown(template, m.test[0]) for template in m.grid.templates],
            "others": {split: _other_prompts(grid, m) for split, grid in m.others.items()},
            "single": _single_prompt(config, m),
        },
        "arms": arms,
        "comparisons": _comparisons(evaluations),
    }


def _score_arm(
    name: str, learner: LM, config: RunConfig, grid: Grid, store: CellStore | None, watch: Watcher, ranks: Ranks
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and what it took here: seconds, and joules where the machine counts them and the model is in it."""
    with watch.stage(f"score {name}") as tick:
        started = time.perf_counter()
        meter = EnergyMeter(_gpu()) if config.arms[name].loaded else None

        def heard(done: int, total: int, note: str) -> None:
            if meter is not None:
                meter.poll()
            tick(done, total, note)

        found = evaluation.evaluate(learner, grid, config.evaluate, store, heard, watch.say, ranks)
        taken = time.perf_counter() - started
    return found, {"score_seconds": taken, "joules": meter.joules if meter is not None else None}


def _gpu() -> str | None:
    """UUID of the NVIDIA GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    return str(
        torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()).uuid
    )


def _learners(
    config: RunConfig,
    m: Materials,
    folder: RunDir,
    watch: Watcher,
    names: Sequence[str],
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Generator[tuple[str, LM]]:
    """The models of some arms, one after the other: each is only good until the next is asked for."""
    model: HFModel | None = None
    identity = ""
    with watch.stage("load model"):
        if any(config.arms[name].loaded for name in names):
            model = _load(config, config.model, watch.say)
            identity = model.fingerprint
    for name in names:
        arm, settings = config.arms[name], config.training_of(name)
        if arm.server is not None:
            served = _served(config, arm.server, watch)
            try:
                yield name, served
            finally:
                served.close()
            continue
        if arm.recorded is not None:
            yield name, load_recorded(Path(arm.recorded), [m.grid, *m.others.values()])
            continue
        assert model is not None
        learner = _load(config, arm.model, watch.say) if arm.model is not None else model
        if settings is not None:
            learner = _train_arm(name, settings, config, m, model, identity, folder.arm(name), watch, ranks)
        if arm.adapter is not None:
            learner = learner.with_adapter(Path(arm.adapter))
        yield name, learner
        # the run's model again: an adapter comes off, fully trained weights are loaded anew
        if arm.model is None and (arm.adapter is not None or (settings is not None and settings.lora is not None)):
            model = learner.without_adapter()
        elif settings is not None:
            del learner, model
            model = _load(config, config.model, watch.say)


def untrained(config: RunConfig, say: Callable[[str], None] = lambda _: None) -> HFModel:
    """The model that a run starts from. Raises ConfigError where its settings name none."""
    if config.model is None:
        raise ConfigError("model is missing: the settings of the run name none that is loaded here")
    return _load(config, config.model, say)


def _load(config: RunConfig, name: str | None, say: Callable[[str], None]) -> HFModel:
    from paft.lm.hf import load_model  # torch starts here, not with `paft --help`

    assert name is not None, "the settings name a model for every arm that is not served"
    return load_model(
        name,
        source=config.source,
        dtype=config.dtype,
        style=config.style,
        quantization=config.quantization,
        attention=config.attention,
        say=say,
    )


def _served(config: RunConfig, server: ServerConfig, watch: Watcher) -> ServerLM:
    from paft.lm.server import open_server

    return open_server(server, source=config.source, style=config.style, say=watch.say)


def _train_arm(
    name: str,
    settings: SFTConfig | GRPOConfig,
    config: RunConfig,
    m: Materials,
    model: Any,
    identity: str,
    out: ArmDir,
    watch: Watcher,
    ranks: Ranks,
) -> Any:
    from paft.lm.hf import load_model

    train: Any
    if isinstance(settings, GRPOConfig):
        from paft.training.grpo import train_grpo as train
    else:
        from paft.training.sft import train_sft as train
    out.root.mkdir(parents=True, exist_ok=True)
    # settings that cannot change the result stay out of what makes two trainings the same
    free = {
        "packing",
        "dataloader_workers",
        "report_to",
        "save_every",
        "eval_every",
        "dev_prompts",
        "dev_examples",
    }
    if isinstance(settings, SFTConfig):
        free.add("method")  # of trainings before there was another
        if not (isinstance(settings.schedule, Holding) and settings.schedule.batches_per_prompt):
            free.add("micro_batch_size")  # else it says how long a prompt is kept
    if settings.keep == "last" and settings.patience is None:
        free |= {"keep", "patience"}
    else:
        free -= {"eval_every", "dev_prompts", "dev_examples"}  # the checks decide
    if not settings.arguments:
        free.add("arguments")
    if settings.prompts is None:
        free.add("prompts")
    grid = train_grid(m.prompts, m.train, settings, config.seed)
    if isinstance(settings.schedule, FixedSchedule) and settings.schedule.search is not None:
        with watch.stage(f"search {name}") as tick:
            found = ranks.share(
                _find_prompt(settings.schedule.search, config, grid.templates, m, model, out, tick, watch)
                if ranks.rank == 0
                else None
            )
        settings = settings.model_copy(update={"schedule": FixedSchedule(prompt=found)})
    what = settings.model_dump(exclude=free)
    what["schedule"].pop("search", None)
    parts = [what, config.seed, identity, [t.id for t in grid.templates], [e.id for e in m.train]]
    start = out.beside(before) if (before := config.arms[name].start) is not None else None
    if start is not None:
        parts.append(start.fingerprint)
    fingerprint = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    with watch.stage(f"train {name}") as tick:
        if ranks.share(out.begin_training(what, fingerprint) if ranks.rank == 0 else None):
            dev = Grid(m.prompts.dev[: settings.dev_prompts], _take(m.dev, settings.dev_examples, DEV_SUBSET))
            with disk_errors(out.root):
                tuned = train(
                    model,
                    grid,
                    settings,
                    out,
                    seed=config.seed,
                    dev=dev,
                    start=start.adapter if start is not None else None,
                    tick=tick,
                    say=watch.say,
                    ranks=ranks,
                )
            if settings.lora is not None:
                # what several processes have trained may be sharded over them
                return tuned if ranks.size == 1 else _load(config, config.model, watch.say).with_adapter(out.adapter)
        else:
            watch.say(f"{name}: trained already, taking {out.adapter if settings.lora is not None else out.model}")
            if settings.lora is not None:
                return model.with_adapter(out.adapter)
        # all weights were trained: taken from disk now and after a resume, so that both are the same model to the store
        return load_model(str(out.model), dtype=config.dtype, style=config.style, attention=config.attention)


def _find_prompt(
    search: SearchConfig,
    config: RunConfig,
    pool: Sequence[Template],
    m: Materials,
    model: LM,
    out: ArmDir,
    tick: Any,
    watch: Watcher,
) -> str:
    """Id of the train prompt that the search ends at, on held-out examples; the untrained model answers by choice where there is one."""
    examples = _take(m.dev, search.examples, DEV_SUBSET)
    budget = min(search.prompts, len(pool))
    grid = Grid(pool, examples)
    scorer: Scorer = "generation" if m.task.num_choices == 1 else "likelihood"
    settings = config.evaluate.model_copy(update={"scorers": [scorer], "reference": None})
    with CellStore(out.searched) as store:
        asker = Asker(model, grid, settings, store, tick)
        asker.total = budget * len(examples)

        def score(prompts: Sequence[int]) -> list[float]:
            asker.ask([(k, i) for k in prompts for i in range(len(examples))])
            values_KN = asker.matrix(scorer).values_KN
            return [float(values_KN[k].mean()) for k in prompts]

        if search.kind == "zopo":
            found = zopo(features_of(pool), score, budget, config.seed)
        else:
            found = top_accuracy(len(pool), score, budget, config.seed)
    chosen = pool[choose(found)].id
    told = {"prompt": chosen, "scorer": scorer, "examples": len(examples), "cells": len(found) * len(examples)}
    write_json(out.search, {**told, "accuracy": {pool[k].id: score for k, score in found.items()}})
    watch.say(
        f"{search.kind}: prompt {chosen}, {max(found.values()):.3f} on {len(examples)} held-out examples, best of {len(found)}"
    )
    return chosen


def _other_prompts(grid: Grid, m: Materials) -> dict[str, Any]:
    """How many prompts of another split were asked, and how far their wordings lie from the scored ones (the discrepancy in the
    paper's bound): squared MMD with its permutation p-value, by 5-grams."""
    pooled = [*grid.templates, *m.grid.templates]
    found, p = mmd_test(similarity_matrix(pooled, pooled), grid.shape[0])
    return {"prompts": grid.shape[0], "mmd2": round(found, 5), "p": round(p, 3)}


def _other_result(other: Evaluation, done: Evaluation) -> dict[str, Any]:
    """An arm under the prompts of another split, and how far that lies from the scored ones on the same examples."""
    return {
        scorer: {
            "accuracy_K": matrix.accuracy_K.tolist(),
            "estimates": {name: each.to_dict() for name, each in other.estimates(scorer).items()},
            "gap": gap(matrix.values_KN, done.scores[scorer].values_KN, done.level).to_dict(),
        }
        for scorer, matrix in other.scores.items()
    }


def _arm_result(
    config: RunConfig, name: str, out: ArmDir, done: Evaluation, others: Mapping[str, Evaluation]
) -> dict[str, Any]:
    arm, settings, train = config.arms[name], config.training_of(name), None
    if settings is not None:
        report = json.loads(out.train.read_text(encoding="utf-8"))["report"]
        steps = read_jsonl(out.steps)
        train = {
            **report,
            "settings": settings.model_dump(),
            "loss": [{"step": row["step"], "loss": row["loss"], "prompts": row["prompts"]} for row in steps],
            "reward": [row["reward"] for row in steps if "reward" in row],
            "dev": read_jsonl(out.dev),
            "search": json.loads(out.search.read_text(encoding="utf-8")) if out.search.exists() else None,
        }
    return {
        "title": arm.title or name,
        "fingerprint": done.fingerprint,
        "train": train,
        "scores": {scorer: done.summary(scorer) for scorer in done.scores},
        "mismatch": None
        if len(done.scores) < 2
        else scorer_mismatch(done.scores["likelihood"], done.scores["generation"], done.level).to_dict(),
        "others": {split: _other_result(other, done) for split, other in others.items()},
        "seconds_K": done.seconds_K,
        "cells_asked": done.asked,
        "tokens_read": done.tokens_read,
        "tokens_alone": done.tokens_alone,
        "seams": sum(answered.seam for row in done.answers_KN for answered in row if answered is not None),
        "budget": done.spent.to_dict(),
    }


def gate(
    target: Path, policy: PolicyConfig, watch: Watcher, *, arm: str | None = None, out: Path | None = None
) -> Verdict:
    """The verdict of a policy on one arm (default: the last) of a finished run directory, or of the settings file of a run.

    A finished run is judged on its cells. With settings, cells are bought until the verdict is clear, and kept in the run
    directory, so that nothing is paid for twice.
    """
    if target.is_dir():
        tables = load_tables(target)
        name = _arm_of(list(tables), arm)
        scorer: str = policy.scorer or next(iter(tables[name]))
        matrix = _table_of(tables[name], scorer, f"{target}:{name}")
        return judge(matrix, policy, _baselines(policy, matrix, scorer))
    config = load_run_config(target)
    name = _arm_of(list(config.arms), arm)
    scorer = policy.scorer or ("generation" if "generation" in config.evaluate.scorers else "likelihood")
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"scorers": [scorer]})})
    m = prepare(config, watch.say)
    num_prompts, num_examples = m.grid.shape
    watch.plan([Stage("load model", 0.1), Stage(f"judge {name}", 1.0)])
    with (
        RunDir(out or Path("runs") / config.name).locked() as folder,
        CellStore(folder.cells) as store,
        closing(_learners(config, m, folder, watch, [name])) as learners,
    ):
        _, learner = next(learners)
        with watch.stage(f"judge {name}") as tick:
            asker = Asker(learner, m.grid, config.evaluate, store, tick)
            order = subset(num_examples, num_examples, GATE_ORDER)
            bought: list[int] = []

            def ask(examples: Sequence[int]) -> ScoreMatrix:
                asker.ask((k, i) for i in examples for k in range(num_prompts))
                bought.extend(examples)
                return asker.matrix(scorer, bought)

            known = _baselines(policy, asker.matrix(scorer, order), scorer)
            return hunt(policy, num_examples, ask, order, known, asker.longest)


def load_tables(run: Path) -> dict[str, dict[str, ScoreMatrix]]:
    """Tables of all arms of a finished run by scorer, NaN where a budget did not buy. Raises DataError when the directory holds none."""
    import pyarrow.parquet

    file = RunDir(run).scores
    try:
        rows = pyarrow.parquet.read_table(file).to_pydict()
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({str(error).splitlines()[0][:100]}); give a finished run directory"
        ) from None
    found: dict[str, dict[str, ScoreMatrix]] = {}
    sampled = rows.get("sampled", [True] * len(rows["arm"]))
    for arm in dict.fromkeys(rows["arm"]):
        at = [n for n, each in enumerate(rows["arm"]) if each == arm and sampled[n]]
        prompts, examples = (list(dict.fromkeys(rows[key][n] for n in at)) for key in ("prompt", "example"))
        shape = len(prompts), len(examples)
        k = np.array([prompts.index(rows["prompt"][n]) for n in at])
        place = {example: i for i, example in enumerate(examples)}
        i = np.array([place[rows["example"][n]] for n in at])

        def table(column: str, empty: Any, arm_rows: list[int] = at, k: Any = k, i: Any = i, shape: Any = shape) -> Any:
            values = np.full(shape, empty)
            values[k, i] = [empty if rows[column][n] is None else rows[column][n] for n in arm_rows]
            return values

        stops = table("stop", "").astype(str) == "eos"
        found[arm] = {
            scorer: ScoreMatrix(
                tuple(prompts),
                tuple(examples),
                table(f"{scorer}_score", np.nan),
                table(f"{scorer}_answer", UNSCORED),
                table("completion_tokens", 0),
                stops,
            )
            for scorer in ("generation", "likelihood")
            if f"{scorer}_score" in rows
        }
    return found


def _arm_of(names: Sequence[str], wanted: str | None) -> str:
    if wanted is not None and wanted not in names:
        raise ConfigError(f"arm {wanted!r}: unknown{nearest(wanted, names)}; the run has {few(names)}")
    return wanted or names[-1]


def _table_of(tables: Mapping[str, ScoreMatrix], scorer: str | None, where: str) -> ScoreMatrix:
    if scorer is not None and scorer not in tables:
        raise ConfigError(f"{where}: no scorer {scorer!r}; it was scored by {few(tables)}")
    return tables[scorer or next(iter(tables))]


def _baselines(policy: PolicyConfig, matrix: ScoreMatrix, scorer: str) -> dict[str, np.ndarray]:
    """Scores of the baselines that the policy names, on the cells of a table."""
    found = {}
    for name in {criterion.against for criterion in policy.criteria if criterion.against is not None}:
        folder, _, arm = name.partition(":")
        tables = load_tables(Path(folder))
        other = _table_of(tables[_arm_of(list(tables), arm or None)], scorer, name)
        found[name] = aligned(other, matrix, name)
    return found


def aligned(other: ScoreMatrix, matrix: ScoreMatrix, where: str) -> np.ndarray:
    """Scores of one table on the prompts and examples of another, in their order. DataError when some are missing."""
    rows, columns = ({each: n for n, each in enumerate(ids)} for ids in (other.prompt_ids, other.example_ids))
    lacking = (
        [each for each in matrix.prompt_ids if each not in rows],
        [each for each in matrix.example_ids if each not in columns],
    )
    if any(lacking):
        raise DataError(
            f"{where}: lacks {len(lacking[0])} of {len(matrix.prompt_ids)} prompts and {len(lacking[1])} of "
            f"{len(matrix.example_ids)} examples; score it on the same ones"
        )
    at = np.ix_([rows[each] for each in matrix.prompt_ids], [columns[each] for each in matrix.example_ids])
    values: np.ndarray = other.values_KN[at]
    return values


def compare_runs(runs: Sequence[str], scorer: str | None = None) -> list[Pairwise]:
    """Every pair of the models that are named RUN (all arms) or RUN:ARM, on the cells that all of them share.

    Raises DataError when they share fewer than 2 prompts and 2 examples, or there are fewer than two models.
    """
    tables: dict[str, ScoreMatrix] = {}
    for each in runs:
        folder, _, arm = each.partition(":")
        held = load_tables(Path(folder))
        for name in [_arm_of(list(held), arm)] if arm else held:
            title = f"{folder}:{name}" if len(runs) > 1 else name
            tables[title] = _table_of(held[name], scorer, f"{folder}:{name}")
    if len(tables) < 2:
        raise DataError(f"{' '.join(runs)}: one model only; name another run or arm to compare it with")
    return pairwise(_on_shared_cells(tables))


def compare_across(runs: Sequence[Path]) -> dict[str, list[Pairwise]]:
    """By scorer, every pair of models of different runs, as `compare_runs`; scorers that a run lacks are left out.

    Raises DataError when the runs share fewer than 2 prompts and 2 examples.
    """
    held = {str(run): load_tables(run) for run in runs}
    found: dict[str, list[Pairwise]] = {}
    for scorer in ("generation", "likelihood"):
        named = {
            f"{run}:{arm}": by[scorer] for run, tables in held.items() for arm, by in tables.items() if scorer in by
        }
        if len({name.rpartition(":")[0] for name in named}) == len(held):
            pairs = pairwise(_on_shared_cells(named))
            found[scorer] = [pair for pair in pairs if pair.a.rpartition(":")[0] != pair.b.rpartition(":")[0]]
    return found


def _on_shared_cells(tables: Mapping[str, ScoreMatrix]) -> dict[str, np.ndarray]:
    """Scores of each table on the prompts and examples that all of them hold."""
    first, *others = tables.values()
    prompts, examples = (
        tuple(each for each in getattr(first, ids) if all(each in getattr(other, ids) for other in others))
        for ids in ("prompt_ids", "example_ids")
    )
    if min(len(prompts), len(examples)) < 2:
        raise DataError(
            f"{' '.join(tables)}: {len(prompts)} prompts and {len(examples)} examples in common; a paired comparison needs 2 and 2"
        )
    shared = ScoreMatrix(prompts, examples, *(np.zeros((len(prompts), len(examples))) for _ in range(4)))
    return {title: aligned(table, shared, title) for title, table in tables.items()}


def compare_seeds(runs: Sequence[str], scorer: str | None = None, level: float = 0.95) -> list[Seeded]:
    """The arms of runs that differ by their training seed, and every pair of them, over the seeds, on the cells that all share.

    Raises DataError for fewer than two runs, two of one seed, no arm in common, or tables with holes.
    """
    seeds: dict[int, str] = {}
    for each in runs:
        seed = load_results(Path(each))["config"]["seed"]
        if seed in seeds:
            raise DataError(f"{each}: has the training seed of {seeds[seed]} ({seed}); give runs with different seeds")
        seeds[seed] = each
    if len(runs) < 2:
        raise DataError(f"{' '.join(runs)}: one run; expected two or more that differ by their seed")
    held = {each: load_tables(Path(each)) for each in runs}
    arms = [arm for arm in held[runs[0]] if all(arm in tables for tables in held.values())]
    if not arms:
        raise DataError(f"{' '.join(runs)}: no arm in common; they have {few(arm for t in held.values() for arm in t)}")
    named = {
        f"{each}:{arm}": _table_of(tables[arm], scorer, f"{each}:{arm}")
        for each, tables in held.items()
        for arm in arms
    }
    scores = _on_shared_cells(named)
    for title, values_KN in scores.items():
        if np.isnan(values_KN).any():
            raise DataError(f"{title}: cells were not bought; score it with evaluate.budget.kind=full")
    of = {arm: [scores[f"{each}:{arm}"] for each in runs] for arm in arms}
    found = [Seeded(arm, None, over_seeds(of[arm], level)) for arm in arms]
    for earlier, later in itertools.combinations(arms, 2):
        differences = [a_KN - b_KN for a_KN, b_KN in zip(of[later], of[earlier], strict=True)]
        found.append(Seeded(later, earlier, over_seeds(differences, level, (-1.0, 1.0))))
    return found


def _comparisons(evaluations: dict[str, Evaluation]) -> list[dict[str, Any]]:
    """Every later arm against every earlier one, by each scorer, on the same cells."""
    names = list(evaluations)
    found = []
    for later in range(len(names)):
        for earlier in range(later):
            a, b = evaluations[names[later]], evaluations[names[earlier]]
            for scorer in a.scores:
                difference = _difference(a, b, scorer)
                found.append({"a": names[later], "b": names[earlier], "scorer": scorer, **difference.to_dict()})
    return found


def _difference(a: Evaluation, b: Evaluation, scorer: Scorer) -> Comparison:
    """On all cells, or on those that both budgets chose without looking at answers."""
    a_KN, b_KN = a.scores[scorer].values_KN, b.scores[scorer].values_KN
    if a.spent.whole and b.spent.whole:
        return compare(a_KN, b_KN, a.level)
    both_KN = a.spent.sampled_KN & b.spent.sampled_KN
    a_KN, b_KN = (np.where(both_KN, values_KN, np.nan) for values_KN in (a_KN, b_KN))
    return compare_few(a_KN, b_KN, max(a.spent.level, b.spent.level))


def _single_prompt(config: RunConfig, m: Materials) -> dict[str, Any] | None:
    """The prompt of the first arm that trains on one, so that the report can show it."""
    for name in config.arms:
        settings = config.training_of(name)
        if settings is not None and settings.schedule.kind == "fixed":
            wanted = settings.schedule.prompt
            if settings.schedule.search is not None:
                continue
            for position, template in enumerate(train_grid(m.prompts, (), settings, config.seed).templates):
                if wanted in (position, template.id):
                    return _shown(template, m.test[0])
    return None


def _shown(template: Template, example: Example) -> dict[str, Any]:
    surfaces = template.answer.surfaces(example)
    return {"id": template.id, "system": template.system, "text": template.text, "answers": list(surfaces)}


def _keep_settings(config: RunConfig, m: Materials, folder: RunDir) -> None:
    write_text(folder.config, dump_yaml(config.model_dump()))
    write_text(folder.prompts, m.prompts.to_yaml())
    write_json(folder.environment, environment())


def _write_cells(folder: RunDir, evaluations: dict[str, Evaluation]) -> None:
    import pyarrow
    import pyarrow.parquet

    tables = [pyarrow.table(cell_table(name, done)) for name, done in evaluations.items()]
    scratch = folder.scores.with_suffix(".tmp")
    with disk_errors(folder.scores):
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables, promote_options="default"), scratch)
        os.replace(scratch, folder.scores)


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a figure."""
    names = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy")
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    found |= {name: metadata.version(name) for name in names}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found


def _plan(config: RunConfig, m: Materials, folder: RunDir, wanted: set[str]) -> list[Stage]:
    """The stages with their work in characters to be read, weighted by passes."""

    def length(templates: Sequence[Template], examples: Sequence[Example]) -> float:
        cells = [Cell(0, k, i) for k in range(len(templates)) for i in range(min(3, len(examples)))]
        grid = Grid(templates, examples)
        # 100 characters stand for what a chat template adds
        return 100 + sum(len(turn.text) for cell in cells for turn in grid.chat(cell)) / len(cells)

    score = math.prod(m.grid.shape) * length(m.grid.templates, m.test) * PASSES_SCORE
    stages = [Stage("load model", 0.02 * score)]
    for name in config.arms:
        settings = config.training_of(name)
        if settings is not None:
            if isinstance(settings.schedule, FixedSchedule) and (search := settings.schedule.search) is not None:
                cells = min(search.prompts, len(m.prompts.train)) * min(search.examples, len(m.dev))
                stages.append(Stage(f"search {name}", cells * length(m.prompts.train, m.dev) * PASSES_SCORE))
            rows = updates_per_epoch(len(m.train), settings.batch_size) * settings.batch_size * settings.epochs
            if isinstance(settings, GRPOConfig):
                rows *= round(settings.num_generations * PASSES_WRITE)
            stages.append(Stage(f"train {name}", rows * length(m.prompts.train, m.train) * PASSES_TRAIN))
        if "score" in wanted:
            stages.append(Stage(f"score {name}", score))
            for split, grid in m.others.items():
                stages.append(Stage(f"score {name}, {split} prompts", score * grid.shape[0] / m.grid.shape[0]))
    return stages


def load_results(path: Path) -> dict[str, Any]:
    """results.json of a run directory, or of the file itself. Raises DataError when it is not one."""
    file = path / "results.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give a finished run directory") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON ({error.msg}, line {error.lineno})") from None
    if not isinstance(value, dict) or "arms" not in value:
        raise DataError(f"{file}: not the results of a run")
    return value


def load_exhibit(path: Path) -> dict[str, Any] | None:
    """The cells to show of the run whose directory or results.json this is; None for a run that was scored before there were any."""
    file = RunDir(path if path.is_dir() else path.parent).exhibit
    if not file.exists():
        return None
    try:
        found: dict[str, Any] = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); delete it to do without, or score the run again") from None
    return found


__all__ = ["LM", "Materials", "Stage", "Watcher", "environment", "load_exhibit", "load_results", "prepare", "run"]
