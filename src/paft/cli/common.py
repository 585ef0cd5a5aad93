"""What the commands have in common: options, who is told of progress, how a run is shown."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown

from paft.config import RunConfig, dump_yaml
from paft.store import require_new

Out = Annotated[Path, typer.Option("--out", "-o", help="Run directory; an interrupted run goes on from what it holds.")]
Embeddings = Annotated[
    str | None,
    typer.Option(help="Sentence embedding model, for what words do not show: sentence-transformers/all-MiniLM-L6-v2"),
]
SettingsFile = Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")]
NewFolder = Annotated[Path, typer.Option("--out", "-o", help="New directory.", callback=require_new)]
ArmOf = Annotated[str, typer.Option(help="Arm whose training is written.")]
Into = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/import-<harness>-<task>.")]
Asked = Annotated[Path, typer.Option(help="The directory that `paft export` made for it.")]
CountedIn = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Tokenizer to count free answers in; default that of the model on record."),
]
PromptsOf = Annotated[str | None, typer.Option(help="Prompt set: a shipped one or a file; default the task's.")]
TaskOf = Annotated[str, typer.Option(help="Task: a built-in name (`paft tasks`) or a file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change: key=value, dotted, for instance train.epochs=1")
]

err = Console(stderr=True)


def packaged(name: str) -> Path:
    """A settings file that ships."""
    return Path(str(resources.files("paft") / "configs" / name))


def say(text: str) -> None:
    """A line on standard error."""
    err.print(text, style="dim", highlight=False, markup=False)


@contextlib.contextmanager
def watcher() -> Iterator[Any]:
    """A live display on a terminal, lines elsewhere, silence in all launched processes but one."""
    from paft.watch import LineWatcher, LiveWatcher

    if follows():
        yield LineWatcher(quiet=True)
    elif err.is_terminal and not os.environ.get("CI"):
        with LiveWatcher(err) as watch:
            yield watch
    else:
        yield LineWatcher()


def follows() -> bool:
    """Whether this is one of several launched processes, but not the one that speaks."""
    return int(os.environ.get("RANK", "0")) > 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1


def go(config: RunConfig, out: Path, show_config: bool, as_json: bool) -> None:
    """A whole run, and its table."""
    if show_config:
        typer.echo(dump_yaml(config.model_dump()), nl=False)
        return
    from paft import pipeline
    from paft.reports import markdown_table

    with watcher() as watch:
        results = pipeline.run(config, out, watch)
    if follows():
        return
    if as_json:
        typer.echo(json.dumps(results))
        return
    text, screen = markdown_table([results]), Console()
    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        typer.echo(text)
    typer.echo(f"report: {out / 'report.html'}")
