"""The time left that a watcher tells, on a clock of the test's own."""

from __future__ import annotations

import pytest

from paft.watch import LineWatcher, Stage


def told(capsys: pytest.CaptureFixture[str], ticks: list[tuple[int, int]], seconds_each: float) -> str:
    """The last line of progress of a stage that is followed by nothing."""
    clock = [0.0]
    watch = LineWatcher(every_s=0.0, now=lambda: clock[0])
    watch.plan([Stage("score", 7.0)])
    with watch.stage("score") as tick:
        for done, total in ticks:
            tick(done, total, "")
            clock[0] += seconds_each
    return capsys.readouterr().err.splitlines()[-2]


def test_time_left_goes_by_the_work_done(capsys):
    assert told(capsys, [(n, 100) for n in range(51)], 10.0).endswith("score: 50/100    (about 8 min left)")


def test_a_stage_that_grows_has_as_much_left_as_its_new_cells_take(capsys):
    ticks = [*((n, 100) for n in range(101)), *((n, 500) for n in range(100, 201))]
    assert told(capsys, ticks, 10.0).endswith("score: 200/500    (about 50 min left)")


def test_no_time_left_is_told_from_a_first_cell_that_took_long(capsys):
    assert told(capsys, [(0, 1280), (1, 1280), (2, 1280)], 10.0).endswith("score: 2/1280    (time left: measuring)")
    assert told(capsys, [(n, 1280) for n in range(8)], 10.0).endswith("min left)")  # a minute has passed


def test_the_time_of_a_batch_is_not_taken_for_that_of_its_first_cell(capsys):
    clock = [0.0]
    watch = LineWatcher(every_s=15.0, now=lambda: clock[0])
    watch.plan([Stage("score", 1.0)])
    with watch.stage("score") as tick:
        tick(0, 72, "")
        for batch in range(3):
            clock[0] += 70.0
            for cell in range(8):
                tick(8 * batch + cell + 1, 72, "")
    told = capsys.readouterr().err.splitlines()[1:-1]
    assert [line.partition("(")[2] for line in told] == [
        "time left: measuring)",
        "about 9 min left)",
        "about 8 min left)",
    ]
