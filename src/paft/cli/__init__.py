"""The command line: verbs, thin. Exit codes: 0 done, 1 a gate says NO-GO or a build is short of prompts, 2 the input is wrong, 3 undecided, 70 a bug in paft, 130 interrupted."""

from __future__ import annotations

import contextlib
import errno
import logging
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from importlib import metadata
from typing import Annotated

import typer

from paft.cli.exports import export_app
from paft.cli.imports import import_app
from paft.cli.machine import machine_app
from paft.cli.prompts import prompts_app
from paft.cli.runs import runs_app
from paft.cli.scoring import scoring_app
from paft.errors import PaftError

app = typer.Typer(
    name="paft",
    help="Prompt-Agnostic Fine-Tuning: keep a model's accuracy when the prompt is worded differently, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for top_level in (runs_app, scoring_app, machine_app):
    app.add_typer(top_level)
app.add_typer(prompts_app, name="prompts")
app.add_typer(export_app, name="export")
app.add_typer(import_app, name="import")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"paft {metadata.version('paft')}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors raised on purpose become one line and exit code 2; `--debug` shows where they came from."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells users of nothing that they could do about it
    try:
        with _insistent_interrupts():
            code = app(arguments, standalone_mode=False)
        if code == 130:  # typer's word for a keyboard interrupt
            raise KeyboardInterrupt
        if isinstance(code, int) and code:
            sys.exit(code)
    except PaftError as error:
        if debug:
            raise
        _fail(str(error))
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command again to go on from here", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if debug:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(
            f"{error.filename or 'disk'}: {'the disk is full; free some space and run again' if full else error.strerror or error}"
        )
    except Exception as error:
        if debug:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":  # typer brings a click of its own
            print(error, file=sys.stderr)
            sys.exit(2)
        usage = _usage(error)
        if usage is not None:
            _fail(usage)
        traceback.print_exc()
        _fail(
            "this is a bug in paft, or a model or library it met for the first time; please report the lines above", 70
        )


@contextlib.contextmanager
def _insistent_interrupts(seconds: float = 2.0) -> Iterator[None]:
    """Ctrl-C is raised again until somebody lets it through: Python drops what is raised while an object is finalised, and a
    long training does that all the time."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage(error: Exception) -> str | None:
    """One line for a wrong command line, None for anything else."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "paft"
    return f"{' '.join(format_message().split())} (see {shlex.quote(where).strip(chr(39))} --help)"


def _fail(text: str, code: int = 2) -> None:
    print(f"paft: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)
