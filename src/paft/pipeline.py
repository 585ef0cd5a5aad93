"""The method top to bottom: load, train each arm, score every arm over unseen prompts, compare, report.

Each stage leaves its artefact in the run directory and is skipped when that artefact exists with the same fingerprint,
so a killed run goes on where it was.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paft import evaluation
from paft.arms import check_arms, learners
from paft.config import FixedSchedule, GRPOConfig, PolicyConfig, RunConfig, dump_yaml, load_run_config
from paft.errors import ConfigError, few
from paft.evaluation.budget import planned_cells
from paft.evaluation.evaluate import Asker, Evaluation
from paft.evaluation.gate import Verdict, hunt, judge
from paft.evaluation.matrix import ScoreMatrix
from paft.finished import aligned, arm_of, load_exhibit, load_results, load_tables, run_and_arm, table_of
from paft.grid import Cell, Grid
from paft.lm.energy import EnergyMeter
from paft.lm.ranks import Ranks, launched
from paft.lm.types import LM
from paft.materials import GATE_ORDER, Materials, prepare
from paft.prompts import Template
from paft.reports import exhibit_of, write_report
from paft.results import arm_result, environment, whole, write_cells
from paft.store import CellStore, OtherTrainingError, RunDir, write_bytes, write_json, write_text
from paft.tasks import Example
from paft.training.schedule import permutation, updates_per_epoch
from paft.watch import Stage, Watcher

PASSES_TRAIN, PASSES_SCORE, PASSES_WRITE = 3.3, 0.9, 2.0
"""Forward passes over a cell's tokens that training and scoring cost; only the time left depends on them."""


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
        check_arms(config, folder)
        if ranks.rank > 0:
            return _run_arms(config, materials, folder, watch, wanted, ranks)
        with folder.locked():
            files = (folder.config, folder.prompts, folder.environment)
            kept = {file: file.read_bytes() for file in files if file.exists()}
            watch.plan(_plan(config, materials, folder, wanted))
            try:
                results = _run_arms(config, materials, folder, watch, wanted, ranks)
            except OtherTrainingError:  # known only when a search has chosen: what lies there stays as it was
                for file, content in kept.items():
                    write_bytes(file, content)
                raise
            if "score" in wanted:
                write_json(folder.results, results)
            if "report" in wanted and "score" in wanted:
                shown = [load_exhibit(folder.root)]
                write_report([results], html=folder.report_html, markdown=folder.report_md, exhibits=shown)
                watch.say(f"report: {folder.report_html}")
    return results


def _run_arms(
    config: RunConfig, m: Materials, folder: RunDir, watch: Watcher, wanted: set[str], ranks: Ranks
) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    evaluations: dict[str, Evaluation] = {}
    store: CellStore | None = None
    with ExitStack() as held:

        def begin() -> None:
            nonlocal store
            if ranks.rank > 0:
                return
            store = held.enter_context(_cells(config, folder))
            for shard in folder.shards:
                if taken := store.absorb(shard):
                    watch.say(f"{shard}: {taken:,} answers taken over")
            _keep_settings(config, m, folder)

        for name, learner in learners(config, m, folder, watch, list(config.arms), ranks, begin):
            if "score" in wanted:
                evaluations[name], cost = _score_arm(name, learner, config, m.grid, store, watch, ranks)
                others: dict[str, Evaluation] = {}
                for split, grid in m.others.items():
                    with watch.stage(f"score {name}, {split} prompts") as tick:
                        plain = config.evaluate.model_copy(update={"reference": None})
                        others[split] = evaluation.evaluate(learner, grid, plain, store, tick, watch.say, ranks)
                arms[name] = arm_result(config, name, folder.arm(name), evaluations[name], others) | cost
    if "score" in wanted and ranks.rank == 0:
        write_cells(folder, evaluations)
        write_json(folder.exhibit, exhibit_of(evaluations), indent=None)
    return whole(config, m, evaluations, arms)


def _cells(config: RunConfig, folder: RunDir) -> CellStore:
    return CellStore(_cells_file(config, folder))


def _cells_file(config: RunConfig, folder: RunDir) -> Path:
    if config.evaluate.cells is None:
        return folder.cells
    try:
        return Path(config.evaluate.cells).expanduser()
    except RuntimeError:
        raise ConfigError(f"evaluate.cells {config.evaluate.cells}: no such user; give the path of a file") from None


def _score_arm(
    name: str, learner: LM, config: RunConfig, grid: Grid, store: CellStore | None, watch: Watcher, ranks: Ranks
) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and what it took here: seconds, and joules where the machine counts them and the model is in it."""
    with watch.stage(f"score {name}") as tick:
        started = time.perf_counter()
        first_here = os.environ.get("LOCAL_RANK", "0") == "0"
        meter = EnergyMeter(_gpu(), packages=first_here) if config.arms[name].loaded else None

        def heard(done: int, total: int, note: str) -> None:
            if meter is not None:
                meter.poll()
            tick(done, total, note)

        found = evaluation.evaluate(learner, grid, config.evaluate, store, heard, watch.say, ranks)
        taken = time.perf_counter() - started
    told = [joules for joules in ranks.gather(meter.joules if meter is not None else None) if joules is not None]
    return found, {"score_seconds": taken, "joules": sum(told) if told else None}


def _gpu() -> str | None:
    """UUID of the NVIDIA GPU in use."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or torch.version.cuda is None:
        return None
    return str(
        torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()).uuid
    )


def _keep_settings(config: RunConfig, m: Materials, folder: RunDir) -> None:
    write_text(folder.config, dump_yaml(config.model_dump()))
    write_text(folder.prompts, m.prompts.to_yaml())
    write_json(folder.environment, environment())


def score_shard(config: RunConfig, out: Path, watch: Watcher, number: int, of: int) -> Path:
    """Score every `of`-th example under all prompts, from the `number`-th (1 to `of`), into a file of its own in the run
    directory; a later `run` there takes over what such files hold. Nothing is trained. Returns the file."""
    if not 1 <= number <= of:
        raise ConfigError(f"shard {number}/{of}: expected a number from 1 to {of}, as in 1/{of}")
    if config.evaluate.budget.kind in ("adaptive", "racing"):
        raise ConfigError(
            f"budget {config.evaluate.budget.kind} with a shard: what to buy next depends on all cells; choose full or balanced"
        )
    with launched() as ranks:
        m = prepare(config, watch.say)
        folder = RunDir(out)
        _only_trained(config, folder)
        grids = {"": (m.grid, planned_cells(config.evaluate.budget, m.grid.shape))} | {
            f", {split} prompts": (grid, planned_cells(config.evaluate.budget, grid.shape))
            for split, grid in m.others.items()
        }
        watch.plan(
            [
                Stage("load model", 0.02),
                *(Stage(f"score {name}{which}", 1.0) for name in config.arms for which in grids),
            ]
        )
        store: CellStore | None = None
        with ExitStack() as held:
            file = held.enter_context(folder.shard(number, of)) if ranks.rank == 0 else folder.root

            def begin() -> None:
                nonlocal store
                if ranks.rank > 0:
                    return
                store = held.enter_context(CellStore(file))
                for known in {_cells_file(config, folder), *folder.shards} - {file}:  # nothing is asked twice
                    if known.exists():
                        store.absorb(known)

            for name, learner in learners(config, m, folder, watch, list(config.arms), ranks, begin):
                for which, (grid, wanted) in grids.items():
                    cells = [cell for cell in wanted if cell[1] % of == number - 1]
                    with watch.stage(f"score {name}{which}") as tick:
                        asker = Asker(learner, grid, config.evaluate, store, tick, ranks)
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


def gate(
    target: Path, policy: PolicyConfig, watch: Watcher, *, arm: str | None = None, out: Path | None = None
) -> Verdict:
    """The verdict of a policy on one arm (default: the last) of a finished run directory, or of the settings file of a run.

    A finished run is judged on its cells. With settings, cells are bought until the verdict is clear, and kept in the run
    directory, so that nothing is paid for twice.
    """
    if target.is_dir():
        tables = load_tables(target)
        name = arm_of(list(tables), arm)
        scorer: str = policy.scorer or next(iter(tables[name]))
        _check_demands(policy, scorer)
        matrix = table_of(tables[name], scorer, f"{target}:{name}")
        demanded = {criterion.measure for criterion in policy.criteria}
        limit = _answer_limit(target, name) if "tokens" in demanded else 0
        return judge(matrix, policy, _baselines(policy, matrix, scorer), answer_limit=limit)
    if not target.exists():
        raise ConfigError(f"{target}: no such run directory or settings file")
    config = load_run_config(target)
    name = arm_of(list(config.arms), arm)
    scorer = policy.scorer or ("generation" if "generation" in config.evaluate.scorers else "likelihood")
    _check_demands(policy, scorer)
    config = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"scorers": [scorer]})})
    m = prepare(config, watch.say)
    num_prompts, num_examples = m.grid.shape
    watch.plan([Stage("load model", 0.1), Stage(f"judge {name}", 1.0)])
    with (
        RunDir(out or Path("runs") / config.name).locked() as folder,
        closing(learners(config, m, folder, watch, [name])) as models,
    ):
        _, learner = next(models)  # a model that cannot be loaded leaves no cells
        with _cells(config, folder) as store, watch.stage(f"judge {name}") as tick:
            for shard in folder.shards:
                store.absorb(shard)
            asker = Asker(learner, m.grid, config.evaluate, store, tick)
            order = permutation(num_examples, GATE_ORDER).tolist()
            bought: list[int] = []

            def ask(examples: Sequence[int]) -> ScoreMatrix:
                asker.ask((k, i) for i in examples for k in range(num_prompts))
                bought.extend(examples)
                return asker.matrix(scorer, bought)

            gold_N = tuple(m.grid.examples[i].answer for i in order)
            known = _baselines(policy, replace(asker.matrix(scorer, order), gold_N=gold_N), scorer)
            return hunt(policy, num_examples, ask, order, known, asker.longest)


def _check_demands(policy: PolicyConfig, scorer: str) -> None:
    """Restricted choice meets every demand on what is generated."""
    wanted = sorted({each.measure for each in policy.criteria} & {"invalid", "tokens"})
    if scorer == "likelihood" and wanted:
        raise ConfigError(
            f"demand on {' and '.join(wanted)} with scorer likelihood: it generates no answer; gate scorer: generation"
        )


def _answer_limit(run: Path, arm: str) -> int:
    """Most tokens of a free answer in a finished run, whatever was seen; 0 where an old run does not tell."""
    told = load_results(run)
    return int(told["arms"][arm].get("answer_limit") or told["config"]["evaluate"]["max_new_tokens"] or 0)


def _baselines(policy: PolicyConfig, matrix: ScoreMatrix, scorer: str) -> dict[str, np.ndarray]:
    """Scores of the baselines that the policy names, on the cells of a table."""
    found = {}
    for name in {criterion.against for criterion in policy.criteria if criterion.against is not None}:
        folder, arm = run_and_arm(name)
        tables = load_tables(Path(folder))
        other = table_of(tables[arm_of(list(tables), arm or None)], scorer, name)
        found[name] = aligned(other, matrix, name)
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
