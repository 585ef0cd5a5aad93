"""Who is told what a run does: a live display with the time left on a terminal, plain lines elsewhere, or nobody."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Tick = Callable[[int, int, str], None]


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


class Clock:
    """Time left of a run from the work done so far. Stages found finished in the store count for nothing."""

    def __init__(self, stages: Sequence[Stage]):
        self.work = {stage.name: stage.work for stage in stages}
        self.left = sum(self.work.values())
        self.spent_s = 0.0
        self.spent_work = 0.0

    def advance(self, seconds: float, work: float) -> None:
        """Count work that took some seconds."""
        self.spent_s += seconds
        self.spent_work += work

    def seconds_left(self, work_left: float) -> float | None:
        """Estimate, None while too little is done to tell: first cells of a model take seconds that later ones do not."""
        early = self.spent_s < 3 or (self.spent_s < 60 and self.spent_work < 0.01 * self.left)
        if self.spent_work <= 0 or early:
            return None
        return work_left * self.spent_s / self.spent_work


def spell(seconds: float | None) -> str:
    """A duration for people: "about 6 min left"."""
    if seconds is None:
        return "time left: measuring"
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s left"
    return f"about {round(seconds / 60)} min left"


class LineWatcher:
    """Plain lines on standard error: one per stage, one every `every_s` seconds, things worth telling."""

    def __init__(self, every_s: float = 15.0, quiet: bool = False, now: Callable[[], float] = time.monotonic):
        self.every_s, self.quiet, self.now = every_s, quiet, now
        self.clock = Clock([])
        self.todo: list[Stage] = []

    def plan(self, stages: Sequence[Stage]) -> None:
        """Remember what is to come."""
        self.clock, self.todo = Clock(stages), list(stages)

    def say(self, text: str) -> None:
        """Print a line."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def _later(self, name: str) -> float:
        names = [stage.name for stage in self.todo]
        after = names.index(name) + 1 if name in names else len(names)
        return sum(stage.work for stage in self.todo[after:])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Tick]:
        """A stage, with its progress."""
        started = last = since = self.now()
        work, later = self.clock.work.get(name, 0.0), self._later(name)
        counted, first_done, known = 0.0, -1, 0
        self.begin(name)

        def tick(done: int, total: int, note: str) -> None:
            nonlocal last, since, counted, first_done, work, known
            if known and total != known:  # a budget that buys more: a cell stays as much work as it was
                work *= total / known
            known = total
            if first_done < 0:
                first_done, since = done, self.now()  # what was there already took no time
                return
            now = self.now()
            share = done / max(1, total) * work
            new = max(0.0, share - max(counted, first_done / max(1, total) * work))
            left_work = work - max(counted, share) + later
            # by the pace before this tick: the first cell of a batch comes with the time of all of it
            left = spell(self.clock.seconds_left(left_work))
            self.clock.advance(now - since, new)
            counted, since = max(counted, share), now
            self.show(name, done, total, note, left, now - last >= self.every_s)
            if now - last >= self.every_s:
                last = now

        yield tick
        self.end(name, self.now() - started)  # not reached when the stage fails: it is not done then

    def begin(self, name: str) -> None:
        """A stage begins."""
        self.say(f"{name} ...")

    def show(self, name: str, done: int, total: int, note: str, left: str, due: bool) -> None:
        """Progress inside a stage; `due` when a line is to be printed."""
        if due:
            self.say(f"{name}: {done}/{total}  {note}  ({left})")

    def end(self, name: str, seconds: float) -> None:
        """A stage is over."""
        self.say(f"{name}: done in {seconds:.0f} s")


class LiveWatcher(LineWatcher):
    """The same as a live display: a bar per stage, and the time left of the whole run."""

    def __init__(self, console: Console):
        super().__init__()
        self.console = console
        self.progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[count]:>11}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.bars: dict[str, int] = {}

    def __enter__(self) -> LiveWatcher:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def plan(self, stages: Sequence[Stage]) -> None:
        """Show all stages at once, waiting."""
        super().plan(stages)
        for stage in stages:
            self.bars[stage.name] = self.progress.add_task(stage.name, start=False, total=1, count="", note="")

    def say(self, text: str) -> None:
        """Print above the bars."""
        self.console.print(text, style="dim", highlight=False, markup=False)

    def begin(self, name: str) -> None:
        """Start the bar."""
        if name not in self.bars:
            self.bars[name] = self.progress.add_task(name, start=False, total=1, count="", note="")
        self.progress.start_task(self.bars[name])  # type: ignore[arg-type]

    def show(self, name: str, done: int, total: int, note: str, left: str, due: bool) -> None:
        """Move the bar."""
        text = f"{note}  [cyan]{left}[/]" if note else f"[cyan]{left}[/]"
        self.progress.update(self.bars[name], completed=done / max(1, total), count=f"{done}/{total}", note=text)  # type: ignore[arg-type]

    def end(self, name: str, seconds: float) -> None:
        """Fill the bar."""
        self.progress.update(self.bars[name], completed=1, note="")  # type: ignore[arg-type]
