"""paft import: what other tools recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from paft.cli.common import Asked, CountedIn, Into, Json, NewFolder, Overrides, go, say
from paft.config import RunConfig
from paft.errors import few

import_app = typer.Typer(help="From other tools: answers that a harness recorded, judged here.", no_args_is_help=True)


@import_app.command("lm-eval")
def import_lm_eval(
    output: Annotated[Path, typer.Argument(help="What was given to lm_eval as --output_path (with --log_samples).")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers that lm-evaluation-harness recorded: the table, every statistic, the report; gates and comparisons work on it.

    Example: paft import lm-eval OUTPUT --asked piqa-lm-eval --out runs/piqa-lm-eval
    """
    from paft.integrations.lm_eval import import_lm_eval as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, asked, output, tokenizer))


@import_app.command("llamafactory")
def import_llamafactory(
    settings: Annotated[Path, typer.Argument(help="Settings of an SFT training (YAML) of LLaMA-Factory.")],
    out: NewFolder,
) -> None:
    """Make a task and a run of a LLaMA-Factory training: its rows, its hyper-parameters, the prompt that it uses.

    Example: paft import llamafactory my_sft.yaml -o my-task
    """
    from paft.integrations.llamafactory_import import PROMPTS
    from paft.integrations.llamafactory_import import import_llamafactory as read

    done = read(settings, out)
    several = ", taken as wordings of one task:" if len(done.prompts) > 1 else ":"
    typer.echo(
        f"{out}: {done.rows} rows of kind {done.kind}; {len(done.prompts)} prompt(s) found, all in {PROMPTS}{several}"
    )
    for prompt in done.prompts[:10]:
        typer.echo("  " + prompt.replace("\n", "\n  "))
    if len(done.prompts) > 1:
        more = f"and {len(done.prompts) - 10} more; " if len(done.prompts) > 10 else ""
        typer.echo(f"  {more}where they ask for different things, save the rows of each task as a dataset of its own")
    if done.left_out:
        typer.echo(f"  settings without a counterpart, left out: {few(done.left_out, 12)}")
    typer.echo("PAFT needs many prompts: name writers in build.yaml, then")
    typer.echo(f"  paft prompts build {out / 'build.yaml'} --out {out / 'prompts'} && paft run {out / 'run.yaml'}")
    typer.echo(
        f"or, with prompts that you have: paft prompts import {out / PROMPTS} MORE --task {out / 'task.yaml'} --out {out / 'prompts'}"
    )


@import_app.command("opencompass")
def import_opencompass(
    output: Annotated[Path, typer.Argument(help="Work directory of OpenCompass (-w).")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers that OpenCompass predicted: the table, every statistic, the report; gates and comparisons work on it.

    Example: paft import opencompass OUTPUT --asked piqa-opencompass --out runs/piqa-opencompass
    """
    from paft.integrations.opencompass import import_opencompass as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, asked, output, tokenizer))


@import_app.command("inspect")
def import_inspect(
    output: Annotated[Path, typer.Argument(help="Log of Inspect (.eval, .json), or a directory of them.")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers in logs of Inspect over `paft export cells`: the table, every statistic, the report.

    Example: paft import inspect logs --asked piqa-cells --out runs/piqa-inspect
    """
    from paft.integrations.cells import import_inspect as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, output, tokenizer))


@import_app.command("jsonl")
def import_jsonl(
    output: Annotated[Path, typer.Argument(help="File of JSON lines, or a directory of such files, one a model.")],
    asked: Asked,
    overrides: Overrides = None,
    key: Annotated[
        str | None,
        typer.Option(help="Key of what was said; default completion, generation, output, response, prediction."),
    ] = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge answers in lines of JSON (NeMo-Skills' generations, a script's own) to `paft export cells`.

    Example: paft import jsonl output.jsonl --asked piqa-cells --out runs/piqa-nemo
    """
    from paft.integrations.cells import import_lines as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, output, key, tokenizer))


def _judge(
    asked: Path, overrides: list[str] | None, out: Path | None, as_json: bool, read: Callable[[RunConfig], Any]
) -> None:
    """Answers of a harness to what was exported into a folder: a run that judges them."""
    from paft.integrations.harness import exported, record

    settings = exported(asked, overrides or [])
    folder = out or Path("runs") / settings.name
    go(record(settings, read(settings), folder, say), folder, False, as_json)
