"""Dividing candidates: sizes, groups that do not straddle, variety, and measures of separation with known truth."""

from __future__ import annotations

import numpy as np
import pytest

from paft.prompts import PromptSet, Template
from paft.prompts.divide import CLUSTER, divide, mmd2, separation, vendi
from paft.prompts.similarity import similarity_matrix
from paft.tasks import Labels

SIZES = {"train": 60, "dev": 12, "test": 20}
POOL = [
    Template(t.text, t.answer, t.system, t.options, t.joiner, origin={"writer": f"w{n % 7}", "strategy": "ab"[n % 2]})
    for n, t in enumerate(PromptSet.load("piqa").train[:200])
]


@pytest.mark.parametrize("by", ["cluster", "random", "writer", "strategy", "format"])
@pytest.mark.parametrize("select", ["diverse", "uniform"])
def test_sizes_hold_and_no_template_is_in_two_splits(by: str, select: str) -> None:
    splits = divide(POOL, SIZES, by=by, select=select, seed=1)  # type: ignore[arg-type]
    assert {name: len(found) for name, found in splits.items()} == SIZES
    ids = [template.id for found in splits.values() for template in found]
    assert len(set(ids)) == len(ids)
    again = divide(list(reversed(POOL)), SIZES, by=by, select=select, seed=1)  # type: ignore[arg-type]
    if by == "random":  # other units may break ties by the order given
        assert {name: {t.id for t in found} for name, found in again.items()} == {
            name: {t.id for t in found} for name, found in splits.items()
        }
    assert divide(POOL, SIZES, by=by, select=select, seed=2) != splits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("by", "key"),
    [
        ("writer", lambda t: t.origin["writer"]),
        ("strategy", lambda t: (t.origin["writer"], t.origin["strategy"])),
        ("format", lambda t: repr(t.answer)),
    ],
)
def test_groups_do_not_straddle(by, key) -> None:
    splits = divide(POOL, SIZES, by=by)
    kinds = [{key(template) for template in found} for found in splits.values()]
    assert all(kinds)
    assert sum(map(len, kinds)) == len(set().union(*kinds))


def test_clusters_do_not_straddle() -> None:
    base = [t for t in POOL if len(t.text) > 150][:40]
    pairs = [t for each in base for t in (each, Template(each.text + " Thank you very much in advance.", each.answer))]
    splits = divide(pairs, {"train": 40, "dev": 10, "test": 20})
    for first, second in (("train", "test"), ("train", "dev"), ("dev", "test")):
        assert similarity_matrix(splits[first], splits[second]).max() < CLUSTER


def test_the_diverse_choice_is_more_varied_than_a_random_one() -> None:
    alike = [Template(f"Tell me about the thing number {n} please, {{goal}} {{choices}}", Labels()) for n in range(60)]
    sizes = {"train": 40, "dev": 1, "test": 1}
    varied = {
        select: vendi(similarity_matrix(found, found))
        for select in ("diverse", "uniform")
        for found in [divide([*alike, *POOL[:60]], sizes, by="random", select=select)["train"]]  # type: ignore[arg-type]
    }
    assert varied["diverse"] > 1.3 * varied["uniform"]


def test_too_few_candidates_fill_what_they_can() -> None:
    splits = divide(POOL[:9], SIZES)
    assert sum(map(len, splits.values())) == 9
    assert all(splits.values())
    assert all(not found for found in divide([], SIZES).values())


def test_vendi_counts_what_is_different() -> None:
    assert vendi(np.eye(7)) == pytest.approx(7)
    assert vendi(np.ones((7, 7))) == pytest.approx(1)
    assert vendi(np.kron(np.eye(3), np.ones((4, 4)))) == pytest.approx(3)


def test_mmd_is_unbiased_under_equality_and_positive_under_difference() -> None:
    draw = np.random.default_rng(0)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-((a[:, None] - b[None]) ** 2) / 2)

    def estimate(shift: float) -> float:
        x, y = draw.normal(size=40), draw.normal(shift, size=30)
        return mmd2(kernel(x, x), kernel(y, y), kernel(x, y))

    same = np.array([estimate(0.0) for _ in range(400)])
    assert abs(same.mean()) < 3 * same.std() / 20
    # two unit normals one apart under this kernel: 2 (1 - exp(-1/6)) / sqrt(3)
    apart = np.array([estimate(1.0) for _ in range(400)])
    assert apart.mean() == pytest.approx(2 * (1 - np.exp(-1 / 6)) / np.sqrt(3), abs=3 * apart.std() / 20)


def test_separation_of_a_shipped_set() -> None:
    prompts = PromptSet.load("piqa")
    facts = separation({"train": prompts.train, "dev": prompts.dev, "test": prompts.test})
    assert facts["nearest"]["max"] == round(prompts.similarity("train", "test"), 3)
    assert sum(facts["nearest"]["bins"]) == len(prompts.test)
    assert 0.6 * len(prompts.train) < facts["vendi"]["train"] <= len(prompts.train)
    assert facts["mmd2"] < 0.01
