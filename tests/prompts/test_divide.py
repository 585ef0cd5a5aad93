"""Dividing candidates: sizes, groups that do not straddle, variety, and measures of separation with known truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from paft.prompts import PromptSet, Template, audit
from paft.prompts.divide import CLUSTER, divide
from paft.prompts.measures import mmd2, mmd_test, novelsum, separation, vendi
from paft.prompts.similarity import masked, reworded_pairs, similarity_matrix
from paft.prompts.structure import cue, placement, structure
from paft.tasks import Labels, load_task

SIZES = {"train": 60, "dev": 12, "test": 20}
POOL = [
    Template(t.text, t.answer, t.system, t.options, t.joiner, origin={"writer": f"w{n % 7}", "strategy": "ab"[n % 2]})
    for n, t in enumerate(PromptSet.load("piqa").train[:200])
]


@pytest.mark.parametrize("by", ["cluster", "random", "writer", "strategy", "format", "placement", "cue"])
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
        ("placement", placement),
        ("cue", cue),
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
        assert not reworded_pairs(splits[first], splits[second])


def test_the_diverse_choice_is_more_varied_than_a_random_one() -> None:
    alike = [Template(f"Tell me about the thing number {n} please, {{goal}} {{choices}}", Labels()) for n in range(60)]
    sizes = {"train": 40, "dev": 1, "test": 1}
    varied = {
        select: vendi(similarity_matrix(found, found))
        for select in ("diverse", "uniform")
        for found in [divide([*alike, *POOL[:60]], sizes, by="random", select=select)["train"]]  # type: ignore[arg-type]
    }
    assert varied["diverse"] > 1.3 * varied["uniform"]


def test_the_diverse_choice_covers_more_structures_than_a_random_one() -> None:
    def kinds(select: str, seed: int) -> int:
        chosen = divide(POOL, {"train": 30, "dev": 1, "test": 1}, by="random", select=select, seed=seed)["train"]  # type: ignore[arg-type]
        return len({(placement(t), cue(t), structure(t)["layout"]) for t in chosen})

    assert np.mean([kinds("diverse", n) for n in range(5)]) > 1.15 * np.mean([kinds("uniform", n) for n in range(5)])


def test_meaning_decides_beside_words() -> None:
    """Two texts that share no word, and one vector."""
    pair = (
        Template("{goal} {choices} Pick the better plan.", Labels()),
        Template("{goal}? {choices}\nWhich works", Labels()),
    )
    far = [each for each in POOL[:40] if each.id not in {t.id for t in pair}]
    vectors = {masked(t): np.eye(60)[n] for n, t in enumerate([*pair, *far])}
    vectors[masked(pair[1])] = vectors[masked(pair[0])]

    def embed(texts: Sequence[str]) -> np.ndarray:
        return np.stack([vectors[text] for text in texts])

    task = load_task("piqa", "wheel")
    alone, beside = audit([*pair, *far], task), audit([*pair, *far], task, embed=embed)
    assert len(alone.kept) == len(beside.kept) + 1
    assert [fault.name for _, faults in beside.dropped for fault in faults] == ["near_duplicate"]
    for seed in range(8):
        splits = divide([*pair, *far], {"train": 20, "dev": 8, "test": 8}, seed=seed, embed=embed, select="uniform")
        homes = {name for name, found in splits.items() for t in found if t.id in {each.id for each in pair}}
        assert len(homes) <= 1
    facts = separation({"train": far[:20], "test": [*far[20:], pair[0]]}, embed)
    assert facts["meaning"]["nearest"]["max"] == 0
    assert facts["meaning"]["vendi"]["train"] == 20


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
        both = np.concatenate([x, y])
        return mmd2(kernel(both, both), len(x))

    same = np.array([estimate(0.0) for _ in range(400)])
    assert abs(same.mean()) < 3 * same.std() / 20
    # two unit normals one apart under this kernel: 2 (1 - exp(-1/6)) / sqrt(3)
    apart = np.array([estimate(1.0) for _ in range(400)])
    assert apart.mean() == pytest.approx(2 * (1 - np.exp(-1 / 6)) / np.sqrt(3), abs=3 * apart.std() / 20)


def test_the_permutation_test_holds_its_level_and_finds_a_shift() -> None:
    draw = np.random.default_rng(1)

    def p(shift: float) -> float:
        both = np.concatenate([draw.normal(size=25), draw.normal(shift, size=25)])
        return mmd_test(np.exp(-((both[:, None] - both[None]) ** 2) / 2), 25, 199)[1]

    under_equality = np.array([p(0.0) for _ in range(300)])
    assert 0.02 < (under_equality <= 0.05).mean() < 0.09
    assert np.mean([p(1.5) <= 0.05 for _ in range(50)]) > 0.9


def test_novelsum_by_hand() -> None:
    assert novelsum(1 - np.eye(3)) == pytest.approx(5 / 11)
    assert novelsum(np.zeros((4, 4))) == 0
    near = np.array([[0, 0.25, 1], [0.25, 0, 1], [1, 1, 0]])  # densities 1 / sqrt(.625), twice, and 1
    row = (0.25 / 2 + 1 / 3) / np.sqrt(0.625)
    assert novelsum(near) == pytest.approx((2 * row + 5 / 6) / 3 / (11 / 6), rel=1e-6)


def test_vendi_of_published_vectors() -> None:
    points = np.array([0.0, 0, 10, 10, 20, 20])
    assert vendi(np.exp(-np.abs(points[:, None] - points))) == pytest.approx(2.9999999959, abs=1e-8)
    assert vendi(np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]])) == pytest.approx(2.157300, abs=1e-5)


@pytest.mark.parametrize(
    ("text", "where", "end"),
    [
        ("Pick the better plan.\nGoal: {goal}\n{choices}\nAnswer:", "before", "colon"),
        ("Goal: {goal}\n{choices}\nWhich of them would work?", "after", "question"),
        ("Read this goal first: {goal}\n{choices}\nNow write the right letter.", "around", "sentence"),
        ("{goal}\nOne of these two gets you there:\n{choices}", "between", "field"),
        ("{goal}\n{choices}\n->", "none", "arrow"),
        ("{goal}\n{choices}\nThe better way is", "after", "unfinished"),
        ('{"goal": "{goal}", "plans": "{choices}", "best": "', "none", "opening"),
    ],
)
def test_structure_is_read_from_the_text(text: str, where: str, end: str) -> None:
    template = Template(text, Labels())
    assert (placement(template), cue(template)) == (where, end)
    assert placement(Template("{goal}\n{choices}", Labels(), system="Pick the better plan.")) == "system"


def test_separation_of_a_shipped_set() -> None:
    prompts = PromptSet.load("piqa")
    facts = separation({"train": prompts.train, "dev": prompts.dev, "test": prompts.test})
    wording = facts["wording"]
    assert wording["nearest"]["max"] == round(prompts.similarity("train", "test"), 3)
    assert sum(wording["nearest"]["bins"]) == len(prompts.test)
    assert 0.6 * len(prompts.train) < wording["vendi"]["train"] <= len(prompts.train)
    assert wording["mmd2"] < 0.01
    assert 0 < wording["p"] <= 1
    assert "meaning" not in facts
    assert sum(counts["test"] for counts in facts["structure"]["placement"].values()) == len(prompts.test)
    assert 0 <= facts["unseen_structure"] <= 1
