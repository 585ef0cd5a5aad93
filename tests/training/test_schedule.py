from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paft.config import (
    AdaptiveSchedule,
    BalancedSchedule,
    CurriculumSchedule,
    FixedSchedule,
    MixtureSchedule,
    PaftSchedule,
    StaticSchedule,
)
from paft.errors import ConfigError
from paft.grid import Cell, Grid
from paft.prompts import Template
from paft.tasks import Example, Labels
from paft.training.schedule import (
    SMALL,
    AdaptivePrompts,
    BalancedExamples,
    BalancedPrompts,
    Blocks,
    CurriculumPrompts,
    FixedPrompt,
    MixturePrompts,
    PaftPrompts,
    StaticPrompts,
    draw,
    make_schedule,
    mix,
    permutation,
    permuted,
    subset,
    updates_per_epoch,
)

run = {
    "num_examples": st.integers(1, 60),
    "num_prompts": st.integers(2, 12),
    "block_size": st.integers(1, 40),
    "epochs": st.integers(1, 3),
    "seed": st.integers(0, 2**70),
}


@st.composite
def any_schedule(draws: st.DrawFn) -> Blocks:
    """A schedule of any kind; the adaptive one with weights for all of its rounds."""
    kind = draws(st.sampled_from(Blocks.__subclasses__()))
    given = {name: draws(strategy) for name, strategy in run.items()}
    k, rest = given["num_prompts"], {}
    if kind is BalancedExamples:
        given["block_size"] = 1
    if kind in (FixedPrompt, MixturePrompts):
        rest["prompt"] = draws(st.integers(0, k - 1))
    if kind is MixturePrompts:
        rest["share"] = draws(st.floats(0.01, 0.99))
    if kind is CurriculumPrompts:
        rest |= {
            "order": tuple(draws(st.permutations(range(k)))),
            "start": draws(st.floats(0, 1)),
            "until": draws(st.floats(0.01, 1)),
        }
    if kind is AdaptivePrompts:
        rest |= {
            "cluster_K": tuple(n % 2 for n in range(k)),
            "round_blocks": draws(st.integers(1, 5)),
            "weights_RC": [(1.0, 2.5)] * 200,
        }
    return kind(**given, **rest)


def paft(n: int, k: int, block: int, epochs: int, seed: int) -> PaftPrompts:
    return PaftPrompts(num_examples=n, num_prompts=k, block_size=block, epochs=epochs, seed=seed)


def prompts_of(schedule: Blocks, epoch: int) -> list[int]:
    return [cell.prompt for cell in schedule.cells(epoch)]


def order_of(schedule: Blocks, epoch: int) -> list[int]:
    return [cell.example for cell in schedule.cells(epoch)]


@given(any_schedule())
def test_a_cell_is_a_pure_function_of_epoch_and_position(schedule: Blocks) -> None:
    listed = {(e, p): cell for e in range(schedule.epochs) for p, cell in enumerate(schedule.cells(e))}
    places = list(listed)
    random.Random(0).shuffle(places)
    permutation.cache_clear()
    assert all(schedule.cell(*place) == listed[place] for place in places)
    assert all(0 <= cell.prompt < schedule.num_prompts and cell.epoch == e for (e, _), cell in listed.items())


@given(any_schedule())
def test_every_epoch_is_a_permutation_and_blocks_share_a_prompt(schedule: Blocks) -> None:
    for epoch in range(schedule.epochs):
        assert sorted(order_of(schedule, epoch)) == list(range(schedule.num_examples))
        prompts = prompts_of(schedule, epoch)
        for number, start in enumerate(range(0, schedule.num_examples, schedule.block_size)):
            assert set(prompts[start : start + schedule.block_size]) == {schedule.prompt_of(epoch, number)}


@given(any_schedule(), st.integers(0, 2))
def test_the_order_of_the_examples_is_that_of_the_seed_alone(schedule: Blocks, epoch: int) -> None:
    epoch = min(epoch, schedule.epochs - 1)
    assert order_of(schedule, epoch) == permutation(schedule.num_examples, schedule.seed, 1, epoch).tolist()


@given(
    st.builds(
        paft, st.integers(1, 60), st.integers(1, 12), st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**70)
    )
)
def test_algorithm_1_draws_anew_for_each_block_of_each_epoch(schedule: PaftPrompts) -> None:
    for epoch in range(schedule.epochs):
        for number in range(schedule.blocks_per_epoch):
            assert schedule.prompt_of(epoch, number) == draw(schedule.num_prompts, schedule.seed, 2, epoch, number)


@pytest.mark.parametrize(
    ("n", "b", "k", "epochs"), [(18_000, 8, 4, 3), (17, 4, 2, 2), (16, 4, 1, 3), (5, 8, 4, 2), (33, 8, 3, 1)]
)
def test_draws_per_run_follow_the_formula(n: int, b: int, k: int, epochs: int) -> None:
    # with a prompt number that tells blocks apart: 2**40 prompts never repeat here
    schedule = paft(n, 2**40, b * k, epochs, 0)
    drawn = {schedule.prompt_of(epoch, p // (b * k)) for epoch in range(epochs) for p in range(0, n, b)}
    assert len(drawn) == epochs * math.ceil(math.ceil(n / b) / k)
    if n == 18_000:
        assert len(drawn) == 1_689


def test_the_order_and_the_draw_are_independent_streams() -> None:
    base = paft(64, 10, 8, 2, 7)
    for other in (paft(64, 99, 8, 2, 7), paft(64, 10, 40, 2, 7), paft(64, 10, 8, 9, 7)):
        assert order_of(other, 1) == order_of(base, 1)
    longer = paft(96, 10, 8, 2, 7)
    assert prompts_of(longer, 1)[:64] == prompts_of(base, 1)


def test_epochs_and_seeds_differ() -> None:
    base = paft(64, 10, 4, 3, 7)
    orders = [tuple(order_of(base, epoch)) for epoch in range(3)] + [tuple(order_of(paft(64, 10, 4, 3, 8), 0))]
    draws = [tuple(prompts_of(base, epoch)) for epoch in range(3)] + [tuple(prompts_of(paft(64, 10, 4, 3, 8), 0))]
    assert len(set(orders)) == len(set(draws)) == 4


def test_one_example_meets_as_many_prompts_as_the_schedule_lists() -> None:
    met: dict[int, set[int]] = {n: set() for n in range(40)}
    for epoch in range(10):
        for cell in paft(40, 100, 4, 10, 3).cells(epoch):
            met[cell.example].add(cell.prompt)
    counts = [len(found) for found in met.values()]
    # 10 draws with replacement from 100: 100 * (1 - 0.99**10) = 9.56 distinct on average
    assert min(counts) >= 7
    assert np.mean(counts) == pytest.approx(9.56, abs=0.25)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(2, 9), st.integers(1, 4), st.integers(0, 99))
def test_balanced_blocks_are_balanced_at_any_time(n: int, k: int, block: int, epochs: int, seed: int) -> None:
    schedule = BalancedPrompts(num_examples=n, num_prompts=k, block_size=block, epochs=epochs, seed=seed)
    had = [0] * k
    for epoch in range(epochs):
        for number in range(schedule.blocks_per_epoch):
            had[schedule.prompt_of(epoch, number)] += 1
            assert max(had) - min(had) <= 1


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 14), st.integers(0, 99))
def test_a_balanced_example_meets_a_new_prompt_until_it_has_met_all(n: int, k: int, epochs: int, seed: int) -> None:
    schedule = BalancedExamples(num_examples=n, num_prompts=k, block_size=1, epochs=epochs, seed=seed)
    met: dict[int, list[int]] = {}
    for epoch in range(epochs):
        had = Counter(prompts_of(schedule, epoch))
        assert max(had.values()) - min(had[prompt] for prompt in range(k)) <= 1
        for cell in schedule.cells(epoch):
            met.setdefault(cell.example, []).append(cell.prompt)
    for prompts in met.values():
        for first in range(0, epochs, k):
            assert len(set(prompts[first : first + k])) == len(prompts[first : first + k])


@given(st.integers(1, 400), st.floats(0.01, 0.99), st.integers(0, 99))
def test_a_mixture_keeps_its_share_at_any_time(blocks: int, share: float, seed: int) -> None:
    schedule = MixturePrompts(
        num_examples=blocks, num_prompts=5, block_size=1, epochs=1, seed=seed, prompt=3, share=share
    )
    canonical = np.cumsum([schedule.prompt_of(0, block) == 3 for block in range(blocks)])
    assert np.abs(canonical - share * np.arange(1, blocks + 1)).max() < 1 + 1e-6


def test_the_other_prompts_of_a_mixture_are_drawn_uniformly() -> None:
    schedule = MixturePrompts(num_examples=4000, num_prompts=5, block_size=1, epochs=1, seed=4, prompt=3, share=0.25)
    had = Counter(prompts_of(schedule, 0))
    assert stats.chisquare([had[k] for k in (0, 1, 2, 4)]).pvalue > 0.001


def test_a_curriculum_opens_in_its_order() -> None:
    schedule = CurriculumPrompts(
        num_examples=1000, num_prompts=10, block_size=1, epochs=2, seed=1, order=(9, 8, *range(8)), start=0.1, until=0.5
    )
    first = {}
    for epoch in range(2):
        for at, prompt in enumerate(prompts_of(schedule, epoch)):
            first.setdefault(prompt, epoch * 1000 + at)
    assert list(first) == [9, 8, *range(8)]
    assert all(first[prompt] > 1000 * 0.9 * rank / 9 - 112 for rank, prompt in enumerate(schedule.order))
    assert set(prompts_of(schedule, 0)[:100]) <= {9, 8}
    last = Counter(prompts_of(schedule, 1))
    assert stats.chisquare([last[k] for k in range(10)]).pvalue > 0.001


def test_an_adaptive_schedule_draws_clusters_by_weight_and_asks_for_what_it_does_not_know() -> None:
    schedule = AdaptivePrompts(
        num_examples=6000,
        num_prompts=6,
        block_size=1,
        epochs=1,
        seed=5,
        cluster_K=(0, 0, 0, 0, 1, 1),
        round_blocks=1000,
    )
    uniform = Counter(schedule.prompt_of(0, block) for block in range(2000))
    assert stats.chisquare([uniform[k] for k in range(6)]).pvalue > 0.001
    with pytest.raises(IndexError, match="round 2 of the adaptive schedule rests on losses of round 0"):
        schedule.prompt_of(0, 2000)
    schedule.weights_RC.extend([(1.0, 3.0)] * 4)
    weighted = Counter(schedule.prompt_of(0, block) for block in range(2000, 6000))
    assert (
        stats.chisquare([weighted[k] for k in range(6)], [4000 * w for w in (*[1 / 16] * 4, 3 / 8, 3 / 8)]).pvalue
        > 0.001
    )


@pytest.mark.parametrize("count", [SMALL + 1, 5000, 10_007, 65_536])
def test_a_long_permutation_is_one(count: int) -> None:
    places = [permuted(place, count, 3, 1) for place in range(count)]
    assert sorted(places) == list(range(count))
    assert places[:50] != [permuted(place, count, 4, 1) for place in range(50)]
    # neighbours part: where two consecutive places go has nothing to do with each other
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 4 / math.sqrt(count)
    assert stats.kstest(np.array(places[:2000]) / count, "uniform").pvalue > 0.001


def test_a_billion_cells_cost_nothing_to_describe() -> None:
    schedule = paft(10**9, 400, 32, 3, 0)
    tracemalloc.start()
    found = [schedule.cell(epoch, place) for epoch in range(3) for place in (0, 1, 10**9 - 1, 123_456_789)]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len({cell.example for cell in found}) == len(found)


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
    schedule = paft(20, 50, 4, 2, 0)
    assert [tuple(cell) for cell in schedule.cells(1)][:6] == CELLS
    assert subset(20, 5, 0) == SUBSET


MIX = [7960286522194355700, 5246500226706903259]
ORDER = [3, 7, 2, 5, 4, 6, 0, 1]
CELLS = [(1, 42, 11), (1, 42, 3), (1, 42, 19), (1, 42, 9), (1, 19, 7), (1, 19, 16)]
SUBSET = [3, 4, 7, 10, 15]


def grid(prompts: int = 3, examples: int = 5) -> Grid:
    templates = tuple(Template(f"{n} {{text}}", Labels(("no", "yes"))) for n in range(prompts))
    return Grid(templates, tuple(Example(str(n), {"text": str(n)}, ("no", "yes"), 0) for n in range(examples)))


def made(config: object, **changed: int) -> Blocks:
    return make_schedule(config, grid(), **{"batch_size": 4, "epochs": 3, "seed": 9, **changed})


@pytest.mark.parametrize(("examples", "prompts"), [(7, 3), (12, 4), (3, 5), (9_000, 11)])
def test_a_static_mix_gives_every_example_one_prompt_for_good(examples, prompts) -> None:
    schedule = StaticPrompts(num_examples=examples, num_prompts=prompts, block_size=1, epochs=3, seed=4)
    epochs = [{cell.example: cell.prompt for cell in schedule.cells(epoch)} for epoch in range(3)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert sorted(epochs[0]) == list(range(examples))
    counts = Counter(epochs[0].values())
    assert max(counts.values()) - min(counts[prompt] for prompt in range(prompts)) <= 1
    other = StaticPrompts(num_examples=examples, num_prompts=prompts, block_size=1, epochs=1, seed=5)
    assert examples < 5 or {cell.example: cell.prompt for cell in other.cells(0)} != epochs[0]


def test_a_configuration_becomes_its_schedule() -> None:
    toy = grid()
    assert made(PaftSchedule()) == paft(5, 3, 16, 3, 9)
    assert made(PaftSchedule(steps_per_prompt=2)) == paft(5, 3, 8, 3, 9)
    assert made(PaftSchedule(batches_per_prompt=3), micro=2) == paft(5, 3, 6, 3, 9)
    assert made(PaftSchedule(examples_per_prompt=3)) == paft(5, 3, 3, 3, 9)
    assert isinstance(made(BalancedSchedule()), BalancedExamples)
    assert isinstance(made(StaticSchedule()), StaticPrompts)
    assert isinstance(blocks := made(BalancedSchedule(steps_per_prompt=1)), BalancedPrompts)
    assert blocks.block_size == 4
    mixed = made(MixtureSchedule(prompt=toy.templates[2].id, share=0.3))
    assert isinstance(mixed, MixturePrompts)
    assert (mixed.prompt, mixed.share) == (2, 0.3)
    opened = made(CurriculumSchedule(order=[toy.templates[2].id, 0]))
    assert isinstance(opened, CurriculumPrompts)
    assert opened.order == (2, 0, 1)
    alike = made(AdaptiveSchedule(by="format", every=8))
    assert isinstance(alike, AdaptivePrompts)
    assert (alike.cluster_K, alike.round_blocks) == ((0, 0, 0), 2)
    assert sorted(made(AdaptiveSchedule(by="prompt")).cluster_K) == [0, 1, 2]  # type: ignore[attr-defined]
    for wanted in (2, toy.templates[2].id):
        fixed = made(FixedSchedule(prompt=wanted))
        assert {cell.prompt for epoch in range(2) for cell in fixed.cells(epoch)} == {2}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (FixedSchedule(prompt=3), "prompt 3 is not among the train prompts 0 to 2"),
        (FixedSchedule(prompt=-1), "prompt -1 is not among"),
        (MixtureSchedule(prompt="zz"), "'zz' is not the id of a train prompt"),
        (CurriculumSchedule(order=[1, 1]), "order names a prompt twice"),
        (CurriculumSchedule(order=[7]), "prompt 7 is not among"),
    ],
)
def test_a_prompt_that_is_not_there_is_refused(config: object, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made(config)


def test_an_id_of_digits_alone_may_come_as_a_number() -> None:
    """YAML reads 12345678 as a number; one id in forty looks like one."""
    number, digits = next(
        (n, template.id)
        for n in range(10_000)
        if (template := Template(f"{n} {{text}}", Labels(("no", "yes")))).id.isdigit() and template.id[0] != "0"
    )
    toy = Grid((*grid().templates, Template(f"{number} {{text}}", Labels(("no", "yes")))), grid().examples)
    found = make_schedule(FixedSchedule(prompt=int(digits)), toy, batch_size=4, epochs=1, seed=0)
    assert found.cell(0, 0).prompt == 3


@pytest.mark.parametrize("place", [(-1, 0), (2, 0), (0, -1), (0, 5)])
def test_a_place_outside_the_run_is_refused(place: tuple[int, int]) -> None:
    with pytest.raises(IndexError, match="outside 2 epochs of 5"):
        paft(5, 3, 8, 2, 0).cell(*place)


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
    assert isinstance(next(paft(5, 3, 8, 2, 0).cells(0)), Cell)
