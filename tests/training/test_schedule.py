from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paft.config import FixedSchedule, PaftSchedule
from paft.errors import ConfigError
from paft.grid import Cell, Grid
from paft.prompts import Template
from paft.tasks import Example, Labels
from paft.training.schedule import (
    FixedPrompt,
    PaftPrompts,
    draw,
    make_schedule,
    mix,
    permutation,
    subset,
    updates_per_epoch,
)

schedules = st.builds(
    PaftPrompts,
    num_examples=st.integers(1, 60),
    num_prompts=st.integers(1, 12),
    batch_size=st.integers(1, 9),
    steps_per_prompt=st.integers(1, 5),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 2**70),
)


def prompts_of(schedule: PaftPrompts | FixedPrompt, epoch: int) -> list[int]:
    return [cell.prompt for cell in schedule.cells(epoch)]


def order_of(schedule: PaftPrompts | FixedPrompt, epoch: int) -> list[int]:
    return [cell.example for cell in schedule.cells(epoch)]


@given(schedules)
def test_a_cell_is_a_pure_function_of_epoch_and_position(schedule: PaftPrompts) -> None:
    listed = {(e, p): cell for e in range(schedule.epochs) for p, cell in enumerate(schedule.cells(e))}
    places = list(listed)
    random.Random(0).shuffle(places)
    permutation.cache_clear()
    assert all(schedule.cell(*place) == listed[place] for place in places)
    assert all(0 <= cell.prompt < schedule.num_prompts and cell.epoch == e for (e, _), cell in listed.items())


@given(schedules)
def test_every_epoch_is_a_permutation(schedule: PaftPrompts) -> None:
    for epoch in range(schedule.epochs):
        assert sorted(order_of(schedule, epoch)) == list(range(schedule.num_examples))


@given(schedules)
def test_all_cells_of_a_block_of_updates_share_one_prompt_and_blocks_start_anew_with_the_epoch(
    schedule: PaftPrompts,
) -> None:
    block = schedule.batch_size * schedule.steps_per_prompt
    for epoch in range(schedule.epochs):
        prompts = prompts_of(schedule, epoch)
        for number, start in enumerate(range(0, schedule.num_examples, block)):
            expected = draw(schedule.num_prompts, schedule.seed, 2, epoch, number)
            assert set(prompts[start : start + block]) == {expected}


@pytest.mark.parametrize(
    ("n", "b", "k", "epochs"), [(18_000, 8, 4, 3), (17, 4, 2, 2), (16, 4, 1, 3), (5, 8, 4, 2), (33, 8, 3, 1)]
)
def test_draws_per_run_follow_the_formula(n: int, b: int, k: int, epochs: int) -> None:
    # with a prompt number that tells blocks apart: 2**40 prompts never repeat here
    schedule = PaftPrompts(n, 2**40, b, k, epochs, 0)
    drawn = [draw(2**40, 0, 2, epoch, p // b // k) for epoch in range(epochs) for p in range(0, n, b)]
    assert len(set(drawn)) == epochs * math.ceil(math.ceil(n / b) / k)
    assert [schedule.cell(0, p).prompt for p in range(0, min(n, 200), b)] == drawn[: len(range(0, min(n, 200), b))]
    if n == 18_000:
        assert len(set(drawn)) == 1_689


def test_the_order_and_the_draw_are_independent_streams() -> None:
    base = PaftPrompts(64, 10, 4, 2, 2, 7)
    for other in (PaftPrompts(64, 99, 4, 2, 2, 7), PaftPrompts(64, 10, 8, 5, 2, 7), PaftPrompts(64, 10, 4, 2, 9, 7)):
        assert order_of(other, 1) == order_of(base, 1)
    assert order_of(FixedPrompt(64, 3, 2, 7), 1) == order_of(base, 1)  # the arms differ in prompts alone
    longer = PaftPrompts(96, 10, 4, 2, 2, 7)
    assert prompts_of(longer, 1)[:64] == prompts_of(base, 1)


def test_epochs_and_seeds_differ() -> None:
    base = PaftPrompts(64, 10, 4, 1, 3, 7)
    orders = [tuple(order_of(base, epoch)) for epoch in range(3)] + [
        tuple(order_of(PaftPrompts(64, 10, 4, 1, 3, 8), 0))
    ]
    draws = [tuple(prompts_of(base, epoch)) for epoch in range(3)] + [
        tuple(prompts_of(PaftPrompts(64, 10, 4, 1, 3, 8), 0))
    ]
    assert len(set(orders)) == len(set(draws)) == 4


def test_one_example_meets_as_many_prompts_as_the_schedule_lists() -> None:
    schedule = PaftPrompts(40, 100, 4, 1, 10, 3)
    met: dict[int, set[int]] = {n: set() for n in range(40)}
    for epoch in range(10):
        for cell in schedule.cells(epoch):
            met[cell.example].add(cell.prompt)
    counts = [len(found) for found in met.values()]
    # 10 draws with replacement from 100: 100 * (1 - 0.99**10) = 9.56 distinct on average
    assert min(counts) >= 7
    assert np.mean(counts) == pytest.approx(9.56, abs=0.25)


def test_draws_are_uniform_for_every_seed() -> None:
    """Over seeds, the p-values of chi-square tests are uniform themselves: of single draws, and of neighbours."""
    for count in (7, 68):
        p_values = []
        for seed in range(60):
            drawn = Counter(draw(count, seed, 2, epoch, block) for epoch in range(4) for block in range(500))
            p_values.append(stats.chisquare([drawn[prompt] for prompt in range(count)]).pvalue)
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
    p_values = []
    for seed in range(60):
        pairs = Counter((draw(5, seed, 2, 0, block), draw(5, seed, 2, 0, block + 1)) for block in range(0, 1_000, 2))
        p_values.append(stats.chisquare([pairs[a, b] for a in range(5) for b in range(5)]).pvalue)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_permutations_are_uniform() -> None:
    places = np.zeros((8, 8))
    for seed in range(4_000):
        places[np.arange(8), permutation(8, seed, 1)] += 1
    assert stats.chisquare(places.ravel(), ddof=14).pvalue > 0.01


def test_the_draw_never_changes_silently() -> None:
    """Stored runs and resumed trainings rest on these values."""
    assert mix(0) == MIX[0]
    assert mix(1, 2, 3) == MIX[1]
    assert mix(2**64 + 5) == mix(5)
    assert permutation(8, 0, 1, 0).tolist() == ORDER
    schedule = PaftPrompts(20, 50, 2, 2, 2, 0)
    assert [tuple(cell) for cell in schedule.cells(1)][:6] == CELLS
    assert subset(20, 5, 0) == SUBSET


MIX = [7960286522194355700, 5246500226706903259]
ORDER = [3, 7, 2, 5, 4, 6, 0, 1]
CELLS = [(1, 42, 11), (1, 42, 3), (1, 42, 19), (1, 42, 9), (1, 19, 7), (1, 19, 16)]
SUBSET = [3, 4, 7, 10, 15]


def grid(prompts: int = 3, examples: int = 5) -> Grid:
    templates = tuple(Template(f"{n} {{text}}", Labels(("no", "yes"))) for n in range(prompts))
    return Grid(templates, tuple(Example(str(n), {"text": str(n)}, ("no", "yes"), 0) for n in range(examples)))


def test_a_configuration_becomes_its_schedule() -> None:
    toy = grid()
    made = make_schedule(PaftSchedule(steps_per_prompt=2), toy, batch_size=4, epochs=3, seed=9)
    assert made == PaftPrompts(5, 3, 4, 2, 3, 9)
    for wanted in (2, toy.templates[2].id):
        fixed = make_schedule(FixedSchedule(prompt=wanted), toy, batch_size=4, epochs=2, seed=9)
        assert fixed == FixedPrompt(5, 2, 2, 9)
        assert {cell.prompt for epoch in range(2) for cell in fixed.cells(epoch)} == {2}
    with pytest.raises(ConfigError, match="prompt 3 is not among the train prompts 0 to 2"):
        make_schedule(FixedSchedule(prompt=3), toy, batch_size=4, epochs=1, seed=0)
    with pytest.raises(ConfigError, match="prompt -1 is not among"):
        make_schedule(FixedSchedule(prompt=-1), toy, batch_size=4, epochs=1, seed=0)
    with pytest.raises(ConfigError, match="'zz' is not the id of a train prompt"):
        make_schedule(FixedSchedule(prompt="zz"), toy, batch_size=4, epochs=1, seed=0)


def test_an_id_of_digits_alone_may_come_as_a_number() -> None:
    """YAML reads 12345678 as a number; one id in forty looks like one."""
    number, digits = next(
        (n, template.id)
        for n in range(10_000)
        if (template := Template(f"{n} {{text}}", Labels(("no", "yes")))).id.isdigit() and template.id[0] != "0"
    )
    toy = Grid((*grid().templates, Template(f"{number} {{text}}", Labels(("no", "yes")))), grid().examples)
    assert make_schedule(FixedSchedule(prompt=int(digits)), toy, batch_size=4, epochs=1, seed=0) == FixedPrompt(
        5, 3, 1, 0
    )


@pytest.mark.parametrize("place", [(-1, 0), (2, 0), (0, -1), (0, 5)])
def test_a_place_outside_the_run_is_refused(place: tuple[int, int]) -> None:
    for schedule in (PaftPrompts(5, 3, 4, 2, 2, 0), FixedPrompt(5, 0, 2, 0)):
        with pytest.raises(IndexError, match="outside 2 epochs of 5"):
            schedule.cell(*place)


@given(st.integers(1, 200), st.integers(1, 250) | st.none(), st.integers(0, 99))
def test_a_subset_keeps_the_order_and_grows_by_adding(count: int, size: int | None, seed: int) -> None:
    found = subset(count, size, seed)
    assert found == sorted(set(found))
    assert len(found) == (count if size is None else min(size, count))
    assert set(found) <= set(subset(count, None if size is None else size + 1, seed))


def test_updates_per_epoch_counts_the_short_last_one() -> None:
    assert [updates_per_epoch(n, 8) for n in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


def test_a_permutation_cannot_be_changed_by_its_reader() -> None:
    with pytest.raises(ValueError, match="read-only"):
        permutation(5, 1)[0] = 3


def test_cells_are_cells() -> None:
    assert isinstance(next(PaftPrompts(5, 3, 4, 2, 2, 0).cells(0)), Cell)
