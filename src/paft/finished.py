"""Finished runs: their results and cells read back, and models of several runs compared on the cells that all of them hold."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paft.config import DataConfig, GRPOConfig, SFTConfig, validate
from paft.errors import ConfigError, DataError, few, nearest
from paft.evaluation.comparisons import Pairwise, Seeded, over_seeds, pairwise
from paft.evaluation.evaluate import Scorer
from paft.evaluation.matrix import UNSCORED, ScoreMatrix, groups_of
from paft.lm.types import Answered, Completion
from paft.reports.exhibit import Shared
from paft.store import RunDir

SCORERS: tuple[Scorer, ...] = ("generation", "likelihood")
"""In the order in which they are shown."""


def load_results(path: Path) -> dict[str, Any]:
    """results.json of a run directory, or of the file itself. Raises DataError when it is not one."""
    file = path / "results.json" if path.is_dir() else path
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); give a finished run directory") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON ({error.msg}, line {error.lineno})") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not the results of a run; give its directory, or its results.json") from None
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


NEEDED, LATER = (
    ("arm", "prompt", "example", "completion_tokens", "stop"),
    ("group", "sampled", "judge", "gold", "fingerprint"),
)
"""Columns of scores.parquet that tables are made of beside the scores; the later ones are missing in old runs."""
ANSWERS = ("gold", "logp", "completion")
"""Columns with what the models answered."""


@dataclass(frozen=True, eq=False)
class RunCells:
    """All cells of a finished run, read once. name: the run as it was named."""

    name: str
    rows: Any
    """pyarrow.Table, a row for every cell of every arm."""

    @property
    def arms(self) -> list[str]:
        """Names of the arms, in their order."""
        return list(dict.fromkeys(self.rows["arm"].to_pylist()))

    def tables(self, *, sampled_only: bool = True) -> dict[str, dict[str, ScoreMatrix]]:
        """Tables of all arms by scorer, NaN where a budget did not buy, or only for what other cells showed."""
        return {arm: _tables(self.of(arm), sampled_only) for arm in self.arms}

    def of(self, arm: str) -> Any:
        """The cells of one arm."""
        import pyarrow.compute

        return self.rows.filter(pyarrow.compute.equal(self.rows["arm"], arm)).combine_chunks()


@dataclass(frozen=True, eq=False)
class Answers(Mapping[tuple[str, str], Answered]):
    """Answers by ids of prompt and example, as far as scores.parquet tells them; each is made when it is looked at."""

    rows: Any
    places: Mapping[tuple[str, str], int]

    def __getitem__(self, cell: tuple[str, str]) -> Answered:
        (row,) = self.rows.slice(self.places[cell], 1).to_pylist()
        said = row["completion"]
        completion = None if said is None else Completion(said, row["completion_tokens"], row["stop"])
        return Answered(tuple(-math.inf if x is None else x for x in row["logp"]), (), (), 0, False, completion)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def cells_file(run: Path) -> Path:
    """Where the cells of the run whose directory or results.json this is are kept."""
    return RunDir(run.parent if run.is_file() else run).scores


def load_cells(run: Path, *, answers: bool = True) -> RunCells:
    """All cells of the run whose directory or results.json this is. Raises DataError when there are none that can be read.

    answers: what the models said and how they scored choices is wanted too, not only what that was worth.
    """
    import pyarrow.parquet

    file = cells_file(run)
    if not file.exists():
        raise DataError(f"{file}: not there; give the directory of a finished run")
    try:
        with pyarrow.parquet.ParquetFile(file) as held:
            names = held.schema_arrow.names
            needed = {*NEEDED, *(ANSWERS if answers else ())}
            wanted = [name for name in names if name in {*needed, *LATER} or name.endswith(("_score", "_answer"))]
            lacking = needed - {*names}
            if lacking:
                raise DataError(f"{file}: not the cells of a run, columns {few(sorted(lacking))} are missing")
            rows = held.read(columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        why = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise DataError(
            f"{file}: damaged ({why}); score the run again, cells that its store holds cost nothing"
        ) from None
    _check_whole(file, rows)
    return RunCells(str(run), rows)


def _check_whole(file: Path, rows: Any) -> None:
    """Cells are written before results.json: a run stopped between has these of another time."""
    results = file.parent / "results.json"
    told = load_results(file.parent)["arms"] if results.exists() else {}
    held = (
        dict(zip(rows["arm"].to_pylist(), rows["fingerprint"].to_pylist(), strict=True))
        if "fingerprint" in rows.schema.names
        else {}
    )
    if told and held and held != {name: arm.get("fingerprint") for name, arm in told.items()}:
        raise DataError(
            f"{file.parent}: scores.parquet and results.json are of different runs, the last was not finished; run it again"
        )


def load_tables(run: Path) -> dict[str, dict[str, ScoreMatrix]]:
    """`RunCells.tables` of a finished run. Raises DataError when the directory holds none."""
    return load_cells(run, answers=False).tables()


def _tables(rows: Any, sampled_only: bool) -> dict[str, ScoreMatrix]:
    """Tables of one arm by scorer."""
    import pyarrow
    import pyarrow.compute

    names = rows.schema.names
    if sampled_only and "sampled" in names:
        rows = rows.filter(rows["sampled"]).combine_chunks()

    def places(column: str) -> tuple[list[str], np.ndarray]:
        """Different values in their order, and the place of each row's among them."""
        found = rows[column].combine_chunks().dictionary_encode()
        return found.dictionary.to_pylist(), found.indices.to_numpy()

    (prompts, k), (examples, i) = places("prompt"), places("example")

    def column(name: str, kind: Any, empty: Any) -> np.ndarray:
        return np.asarray(pyarrow.compute.fill_null(rows[name].cast(kind), empty).to_numpy())

    def table(values: np.ndarray, empty: Any) -> np.ndarray:
        whole = np.full((len(prompts), len(examples)), empty, dtype=values.dtype)
        whole[k, i] = values
        return whole

    group = dict(zip(rows["example"].to_pylist(), rows["group"].to_pylist(), strict=True)) if "group" in names else {}
    gold = dict(zip(rows["example"].to_pylist(), rows["gold"].to_pylist(), strict=True)) if "gold" in names else {}
    gold_N = tuple(gold[each] for each in examples) if gold and None not in gold.values() else None
    groups_N = groups_of(examples, [group.get(each, "") for each in examples])
    ended = column("stop", pyarrow.string(), "") == "eos"
    none = np.zeros(len(k), dtype=np.int64)
    written = {
        "generation": (column("completion_tokens", pyarrow.int64(), 0), ended),
        "likelihood": (none, np.ones(len(k), dtype=bool)),
    }
    judge = (rows["judge"][0].as_py() or "") if "judge" in names and len(rows) else ""
    return {
        scorer: ScoreMatrix(
            tuple(prompts),
            tuple(examples),
            table(column(f"{scorer}_score", pyarrow.float64(), np.nan), np.nan),
            table(column(f"{scorer}_answer", pyarrow.int64(), UNSCORED), UNSCORED),
            table(tokens, 0),
            table(ends, True),
            groups_N,
            judge if scorer == "generation" else "",
            gold_N,
        )
        for scorer, (tokens, ends) in written.items()
        if f"{scorer}_score" in names
    }


def run_and_arm(named: str) -> tuple[str, str]:
    """RUN:ARM in its parts, or RUN and nothing; a directory may have a colon in its name."""
    folder, _, arm = named.rpartition(":")
    return (named, "") if not folder or Path(named).exists() else (folder, arm)


def arm_of(names: Sequence[str], wanted: str | None) -> str:
    """The arm that is wanted, the last when none is. Raises ConfigError when the run lacks it."""
    if wanted is not None and wanted not in names:
        raise ConfigError(f"arm {wanted!r}: unknown{nearest(wanted, names)}; the run has {few(names)}")
    return wanted or names[-1]


def table_of(tables: Mapping[str, ScoreMatrix], scorer: str | None, where: str) -> ScoreMatrix:
    """The table of a scorer, the first when none is named. Raises ConfigError when there is none."""
    if scorer is not None and scorer not in tables:
        raise ConfigError(f"{where}: no scorer {scorer!r}; it was scored by {few(tables)}")
    return tables[scorer or next(iter(tables))]


def aligned(other: ScoreMatrix, matrix: ScoreMatrix, where: str) -> np.ndarray:
    """Scores of one table on the prompts and examples of another, in their order. DataError when some are missing, another embedding
    model scored, or other answers were right."""
    rows, columns = set(other.prompt_ids), set(other.example_ids)
    lacking = (
        [each for each in matrix.prompt_ids if each not in rows],
        [each for each in matrix.example_ids if each not in columns],
    )
    if any(lacking):
        raise DataError(
            f"{where}: lacks {len(lacking[0])} of {len(matrix.prompt_ids)} prompts and {len(lacking[1])} of "
            f"{len(matrix.example_ids)} examples; score it on the same ones"
        )
    _check_judge(other, matrix, where)
    _check_gold(other, matrix, where, matrix.example_ids)
    return other.on(matrix.prompt_ids, matrix.example_ids).values_KN


def _check_gold(other: ScoreMatrix, matrix: ScoreMatrix, where: str, examples: Sequence[str]) -> None:
    if other.gold_N is None or matrix.gold_N is None:
        return
    a, b = (
        dict(zip(ids, gold_N, strict=True))
        for ids, gold_N in ((other.example_ids, other.gold_N), (matrix.example_ids, matrix.gold_N))
    )
    if changed := [each for each in examples if a[each] != b[each]]:
        raise DataError(
            f"{where}: {len(changed)} of {len(examples)} examples with the same id have another right answer: {few(changed, 1)}; "
            "score both on the same rows"
        )


def _check_judge(other: ScoreMatrix, matrix: ScoreMatrix, where: str) -> None:
    if other.judge != matrix.judge:
        raise DataError(
            f"{where}: answers scored by embedding model or rule {other.judge or 'none'}, the others by {matrix.judge or 'none'}; score both "
            "with one evaluate.embeddings, and texts by one `score`"
        )


def compare_runs(runs: Sequence[str], scorer: str | None = None) -> list[Pairwise]:
    """Every pair of the models that are named RUN (all arms) or RUN:ARM, on the cells that all of them share.

    Raises DataError when they share fewer than 2 prompts and 2 examples, or there are fewer than two models.
    """
    tables = _named(runs, scorer)
    return pairwise(_on_shared_cells(tables), clusters_N=_shared_groups(tables))


def _named(runs: Sequence[str], scorer: str | None) -> dict[str, ScoreMatrix]:
    tables: dict[str, Mapping[str, ScoreMatrix]] = {}
    named: dict[tuple[Path, str], str] = {}
    for each in runs:
        folder, arm = run_and_arm(each)
        held = load_tables(Path(folder))
        for name in [arm_of(list(held), arm)] if arm else held:
            title = f"{folder}:{name}" if len(runs) > 1 else name
            before = named.setdefault((Path(folder).resolve(), name), each)
            if before != each or title in tables:
                raise DataError(f"{before} and {each} both name the arm {name!r} of one run; name another run or arm")
            tables[title] = held[name]
    if len(tables) < 2:
        raise DataError(f"{' '.join(runs)}: one model only; name another run or arm to compare it with")
    return _by_one_scorer(tables, scorer)


def _by_one_scorer(tables: Mapping[str, Mapping[str, ScoreMatrix]], scorer: str | None) -> dict[str, ScoreMatrix]:
    """Tables by the scorer that is named, or the first of SCORERS that all have. Raises ConfigError when one lacks it."""
    common = [each for each in SCORERS if all(each in by for by in tables.values())]
    if scorer is None and not common:
        told = "; ".join(f"{title} by {few(by)}" for title, by in tables.items())
        raise ConfigError(f"no scorer in common: {told}; score them by the same one")
    return {title: table_of(by, scorer or common[0], title) for title, by in tables.items()}


def changed_cells(runs: Sequence[str], scorer: str | None = None) -> list[dict[str, Any]]:
    """The shared cells that are scored differently of two models (RUN:ARM, or the arms of one RUN), prompt by prompt: ids,
    both scores, both answers as indices of choices (-1: unreadable), and both free answers where there are any.

    Raises DataError unless two models are named.
    """
    tables = _named(runs, scorer)
    if len(tables) != 2:
        raise DataError(f"{' '.join(runs)}: {len(tables)} models; changed cells are those of two: name them as RUN:ARM")
    prompts, examples = _shared(tables)
    sides = []
    for side, (title, table) in zip("ab", tables.items(), strict=True):
        folder, _, arm = (title if len(runs) > 1 else f"{runs[0]}:{title}").rpartition(":")
        rows = load_cells(Path(folder)).of(arm)
        cells = zip(rows["prompt"].to_pylist(), rows["example"].to_pylist(), strict=True)
        sides.append(
            (side, title, table.on(prompts, examples), dict(zip(cells, rows["completion"].to_pylist(), strict=True)))
        )
    a_KN, b_KN = (table.values_KN for _, _, table, _ in sides)
    found = []
    for k, i in np.argwhere(~np.isnan(a_KN) & ~np.isnan(b_KN) & (a_KN != b_KN)).tolist():
        row: dict[str, Any] = {"prompt": prompts[k], "example": examples[i]}
        for side, title, table, said in sides:
            row |= {
                side: title,
                f"{side}_score": float(table.values_KN[k, i]),
                f"{side}_answer": int(table.answers_KN[k, i]),
                f"{side}_completion": said[prompts[k], examples[i]],
            }
        found.append(row)
    return found


def compare_across(runs: Sequence[RunCells]) -> dict[str, list[Pairwise]]:
    """By scorer, every pair of models of different runs, as `compare_runs`; scorers that a run lacks are left out.

    Raises DataError when the runs share fewer than 2 prompts and 2 examples.
    """
    held = {run.name: run.tables() for run in runs}
    found: dict[str, list[Pairwise]] = {}
    for scorer in SCORERS:
        named = {
            f"{run}:{arm}": by[scorer] for run, tables in held.items() for arm, by in tables.items() if scorer in by
        }
        if len({name.rpartition(":")[0] for name in named}) == len(held):
            # only these are one table, and one family of p values
            pairs = [
                (later, earlier)
                for earlier, later in itertools.combinations(named, 2)
                if later.rpartition(":")[0] != earlier.rpartition(":")[0]
            ]
            found[scorer] = pairwise(_on_shared_cells(named), clusters_N=_shared_groups(named), pairs=pairs)
    return found


def last_arms(runs: Sequence[RunCells]) -> list[Shared]:
    """The last arm of every run by the scorers that all of these have, none where they have none in common.

    Raises DataError when they share fewer than 2 prompts and 2 examples.
    """
    arms = [run.arms[-1] for run in runs]
    held = [run.of(arm) for run, arm in zip(runs, arms, strict=True)]
    tables = [_tables(rows, sampled_only=False) for rows in held]
    common: list[Scorer] = [each for each in SCORERS if all(each in by for by in tables)]
    if not common:
        return []
    named = {f"{run.name}:{arm}": by[common[0]] for run, arm, by in zip(runs, arms, tables, strict=True)}
    shared, found = _shared(named, one_gold=False), []  # the page leaves out what is unlike, and says so
    for rows, by in zip(held, tables, strict=True):
        prompts, examples = rows["prompt"].to_pylist(), rows["example"].to_pylist()
        answers = Answers(rows, {cell: place for place, cell in enumerate(zip(prompts, examples, strict=True))})
        gold = dict(zip(examples, rows["gold"].to_pylist(), strict=True))
        found.append(Shared({each: by[each].on(*shared) for each in common}, answers, gold))
    return found


def compare_seeds(runs: Sequence[str], scorer: str | None = None, level: float = 0.95) -> list[Seeded]:
    """The arms of runs that differ by their training seed, and every pair of them, over the seeds, on the cells that all share.

    Raises DataError for fewer than two runs, two of one seed, no arm in common, other settings that decide answers, or tables with holes.
    """
    seeds: dict[int, str] = {}
    results = {each: load_results(Path(each)) for each in runs}
    for each in runs:
        seed = results[each]["config"]["seed"]
        if seed in seeds:
            raise DataError(f"{each}: has the training seed of {seeds[seed]} ({seed}); give runs with different seeds")
        seeds[seed] = each
    if len(runs) < 2:
        raise DataError(f"{' '.join(runs)}: one run; expected two or more that differ by their seed")
    held = {each: load_tables(Path(each)) for each in runs}
    arms = [arm for arm in held[runs[0]] if all(arm in tables for tables in held.values())]
    if not arms:
        raise DataError(f"{' '.join(runs)}: no arm in common; they have {few(arm for t in held.values() for arm in t)}")
    named = _by_one_scorer({f"{each}:{arm}": tables[arm] for each, tables in held.items() for arm in arms}, scorer)
    by = scorer or next(each for each in SCORERS if all(each in held[run][arm] for run in runs for arm in arms))
    first, *others = ({k: v for arm in arms for k, v in _decisive(results[run], arm, by).items()} for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if changed := [key for key in first | other if first.get(key) != other.get(key)]:
            raise DataError(
                f"{run}: differs from {runs[0]} in more than the seed: {few(changed)}; give runs that are alike in these, or compare "
                "them without --seeds"
            )
    scores = _on_shared_cells(named)
    for title, values_KN in scores.items():
        if np.isnan(values_KN).any():
            raise DataError(f"{title}: cells were not bought; score it with evaluate.budget.kind=full")
    of = {arm: [scores[f"{each}:{arm}"] for each in runs] for arm in arms}
    groups_N = _shared_groups(named)
    found = [Seeded(arm, None, over_seeds(of[arm], level, clusters_N=groups_N)) for arm in arms]
    for earlier, later in itertools.combinations(arms, 2):
        differences = [a_KN - b_KN for a_KN, b_KN in zip(of[later], of[earlier], strict=True)]
        found.append(Seeded(later, earlier, over_seeds(differences, level, (-1.0, 1.0), groups_N)))
    return found


def _decisive(result: Mapping[str, Any], arm: str, scorer: str) -> dict[str, Any]:
    """What decides the answers of an arm beside the seed, by dotted names: not where files lie, nor how a machine is used, nor the one
    prompt that a search chose."""
    config, trained = result["config"], result["arms"][arm]["train"]
    origin = config["arms"][arm]
    if origin.get("recorded"):
        return {}
    names = ["style", "chat_template_kwargs", *(["dtype", "quantization"] if not origin.get("server") else [])]
    found = {name: config.get(name) or None for name in names}
    key = {"generation": "max_new_tokens", "likelihood": "normalization"}[scorer]
    found[f"evaluate.{key}"] = config["evaluate"].get(key)
    if trained is not None:
        given, where = trained["settings"], f"arms.{arm}.train"
        settings = validate(GRPOConfig if given.get("method") == "grpo" else SFTConfig, given, where).decisive()
        if settings["schedule"]["kind"] == "fixed":
            settings["schedule"] = {"kind": "fixed"}
        found["model"] = str(config["model"]).rstrip("/").rpartition("/")[2]
        found |= {
            f"data.{name}": each for name, each in validate(DataConfig, config["data"], "data").model_dump().items()
        }
        found |= {f"{where}.{name}": each for name, each in settings.items()}
        found[f"arms.{arm}.start"] = origin.get("start")
    return found


def _shared(tables: Mapping[str, ScoreMatrix], *, one_gold: bool = True) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the prompts and of the examples that all tables hold, in the order of the first. DataError when different embedding models
    scored them, or other answers were right (`one_gold`)."""
    for title, table in tables.items():
        _check_judge(table, next(iter(tables.values())), title)
    first, *others = tables.values()
    rows = set(first.prompt_ids).intersection(*(other.prompt_ids for other in others))
    columns = set(first.example_ids).intersection(*(other.example_ids for other in others))
    prompts = tuple(each for each in first.prompt_ids if each in rows)
    examples = tuple(each for each in first.example_ids if each in columns)
    if min(len(prompts), len(examples)) < 2:
        raise DataError(
            f"{' '.join(tables)}: {len(prompts)} prompts and {len(examples)} examples in common; a paired comparison needs 2 and 2"
        )
    for title, table in tables.items() if one_gold else ():
        _check_gold(table, first, title, examples)
    return prompts, examples


def _on_shared_cells(tables: Mapping[str, ScoreMatrix]) -> dict[str, np.ndarray]:
    """Scores of each table on the prompts and examples that all of them hold (`_shared`)."""
    shared = _shared(tables)
    return {title: table.on(*shared).values_KN for title, table in tables.items()}


def _shared_groups(tables: Mapping[str, ScoreMatrix]) -> tuple[str, ...] | None:
    """Groups of the examples that all tables hold, by the first that knows any (old runs do not)."""
    shared = _shared(tables)
    return next((groups_N for table in tables.values() if (groups_N := table.on(*shared).groups_N)), None)
