"""How often every interval holds what it claims, on simulated tables whose truth is known.

    python benchmarks/coverage.py              # a few minutes on one core
    python benchmarks/coverage.py --full       # every setting, more tables
    python benchmarks/coverage.py --only tables stopping

Generator: logit P(right) = centre + prompt + item + interaction, items N(0, 1.5), interaction N(0, 0.5), prompts as `World`
says. Truths by quadrature, of the estimand that the estimate's method names. Printed, as Markdown: coverage in percent /
mean half-width in points (for kappa and the like, hundredths). Seeds are fixed: the same call prints the same table.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.polynomial.hermite_e import hermegauss
from scipy.special import expit
from scipy.stats import norm

from paft.config import CriterionConfig, PolicyConfig
from paft.evaluation.comparisons import gap, over_seeds
from paft.evaluation.few import compare_few, mean_of_few, worst_of_few
from paft.evaluation.gate import hunt, judge, looks
from paft.evaluation.matrix import INVALID, ScoreMatrix
from paft.evaluation.racing import race
from paft.evaluation.sampling import BalancedOrder
from paft.evaluation.sequences import betting_bounds, exhausting_bounds, proportion_bounds
from paft.evaluation.stats import (
    Estimate,
    all_estimates,
    compare,
    flip_rate,
    mean_estimate,
    prompt_sd_of_pairs,
    variance_components,
)

ITEM, INTERACTION, SEEDS, BROKEN = 1.5, 0.5, 0.25, 0.07
"""Standard deviations in logits of items, of prompt x item, of training seeds; the share of prompts that fail."""
NODES, WEIGHTS = hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
SHARES_Q = (np.arange(4000) + 0.5) / 4000
GRID = np.linspace(-40, 40, 8001)


def averaged(sd: float) -> Callable[[np.ndarray], np.ndarray]:
    """Chance of a right answer at a logit, normal deviations of this size averaged out."""
    curve = (expit(GRID[:, None] + sd * NODES) * WEIGHTS).sum(1)
    return lambda logit: np.interp(logit, GRID, curve)


over_items, over_noise = averaged(math.hypot(ITEM, INTERACTION)), averaged(INTERACTION)


@dataclass(frozen=True)
class World:
    """Where tables come from. spread: sd of prompts in logits.

    normal: effects N(0, spread). skewed: a long tail of bad prompts (a negative exponential of that sd). broken: normal, and
    seven in a hundred lie 3 logits lower. families: normal, prompts in fives that share half of their variance.
    passage: so many items share half of their difficulty.
    """

    effects: Literal["normal", "skewed", "broken", "families"]
    spread: float
    centre: float = 1.0
    passage: int = 1

    def quantile(self, share: np.ndarray) -> np.ndarray:
        """Effect of a prompt that this share of prompts lies below."""
        match self.effects:
            case "skewed":
                return self.spread * (1 + np.log(share))
            case "broken":
                below = (1 - BROKEN) * norm.cdf(GRID / self.spread) + BROKEN * norm.cdf((GRID + 3) / self.spread)
                return np.interp(share, below, GRID)
            case _:
                return self.spread * norm.ppf(share)

    @functools.cached_property
    def accuracy_Q(self) -> np.ndarray:
        """True accuracies, rising, at even shares of prompts."""
        return over_items(self.centre + self.quantile(SHARES_Q))

    @functools.cached_property
    def _over_prompts(self) -> np.ndarray:
        return over_noise(GRID[::20, None] + self.quantile(SHARES_Q[::10])).mean(1)

    def over_prompts(self, item: np.ndarray) -> np.ndarray:
        """Chance that a random prompt gets an item right."""
        return np.interp(self.centre + item, GRID[::20], self._over_prompts)

    @functools.cached_property
    def truths(self) -> dict[str, float]:
        """Of new prompts and new examples."""
        right_B = self.over_prompts(ITEM * NODES)
        agreement, mean = float(WEIGHTS @ (right_B**2 + (1 - right_B) ** 2)), float(self.accuracy_Q.mean())
        chance = mean**2 + (1 - mean) ** 2
        p10, median = over_items(self.centre + self.quantile(np.array([0.1, 0.5])))
        return {
            "mean": mean,
            "prompt_sd": float(self.accuracy_Q.std()),
            "s2_prompt": float(self.accuracy_Q.var()),
            "p10": float(p10),
            "median": float(median),
            "cvar10": float(self.accuracy_Q[: len(SHARES_Q) // 10].mean()),
            "consistency": agreement,
            "pss": 1 - agreement,
            "kappa": (agreement - chance) / (1 - chance),
            "W@5": float(WEIGHTS @ right_B**5),
        }

    def truths_of(self, theta_K: np.ndarray, item_N: np.ndarray, bar: float) -> dict[str, float]:
        """Of these prompts on new examples, or of new prompts on these."""
        true_K = over_items(self.centre + theta_K)
        right_KB = over_noise(self.centre + theta_K[:, None] + ITEM * NODES)
        right_QN = over_noise(self.centre + self.quantile(SHARES_Q[5::20])[:, None] + item_N)
        sd_Q = np.sqrt((right_QN * (1 - right_QN)).sum(1))
        needed = math.ceil(bar * len(item_N) - 1e-9) - 0.5
        random_B, first_B = self.over_prompts(ITEM * NODES), right_KB[0]
        return {
            "worst": float(true_K.min()),
            "best": float(true_K.max()),
            "mean, examples": float(true_K.mean()),
            "mean, prompts": float(self.over_prompts(item_N).mean()),
            "instance_worst": float(WEIGHTS @ right_KB.prod(0)),
            "share": float(norm.sf((needed - right_QN.sum(1)) / sd_Q).mean()),
            "flips": float(WEIGHTS @ (random_B * (1 - first_B) + (1 - random_B) * first_B)),
        }

    def prompts(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Effects of prompts drawn at random."""
        if self.effects == "families":
            family_K = random.standard_normal(-(-count // 5)).repeat(5)[:count]
            return self.spread * math.sqrt(0.5) * (family_K + random.standard_normal(count))
        return self.quantile(random.random(count))

    def items(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Easiness of items drawn at random, in logits."""
        own_N = random.standard_normal(count)
        if self.passage == 1:
            return ITEM * own_N
        shared_N = random.standard_normal(-(-count // self.passage)).repeat(self.passage)[:count]
        return ITEM * math.sqrt(0.5) * (own_N + shared_N)

    def table(self, theta_K: np.ndarray, item_N: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Right and wrong answers, 1 and 0."""
        noise_KN = INTERACTION * random.standard_normal((len(theta_K), len(item_N)))
        rate_KN = expit(self.centre + theta_K[:, None] + item_N + noise_KN)
        return (random.random(rate_KN.shape) < rate_KN).astype(float)


def matrix(values_KN: np.ndarray, wrong: int = 1) -> ScoreMatrix:
    """Answer 0 is right; `wrong` is given else."""
    k, n = values_KN.shape
    answers_KN = np.where(values_KN == 1, 0, wrong)
    names = tuple(map(str, range(k))), tuple(map(str, range(n)))
    return ScoreMatrix(*names, values_KN, answers_KN, np.ones((k, n), dtype=int), np.ones((k, n), dtype=bool))


Found = Iterable[tuple[str, Estimate, float]]
"""Column, estimate and its truth, of one table."""


def of_tables(world: World, k: int, n: int, random: np.random.Generator) -> Found:
    """All estimates of one model, the mean over each, and a rare outcome (unreadable answers)."""
    theta_K, item_N = world.prompts(k, random), world.items(n, random)
    table_KN = world.table(theta_K, item_N, random)
    bar = round(world.truths["mean"], 2)
    truths = world.truths | world.truths_of(theta_K, item_N, bar)
    estimates = all_estimates(matrix(table_KN), 0.95, [bar])
    del estimates["invalid"]
    estimates["share"] = estimates.pop(f"share>={bar:g}")
    estimates["s2_prompt"] = variance_components(table_KN).s2_prompt
    estimates["flips"] = flip_rate(matrix(table_KN))
    for over in ("examples", "prompts"):
        estimates[f"mean, {over}"] = mean_estimate(table_KN, over=over)
    for name, estimate in estimates.items():
        yield name, estimate, truths[name]
    rare = World(world.effects, world.spread, -5.0, world.passage)
    yield "invalid", mean_estimate(rare.table(theta_K, item_N, random)), rare.truths["mean"]


def of_pairs(world: World, k: int, n: int, random: np.random.Generator) -> Found:
    """Two models, prompts' effects and items' easiness correlated; half of the cells bought for `compare_few`."""
    better = World(world.effects, world.spread / 2, world.centre + 0.7)
    both_2K = random.standard_normal((2, k))
    both_2K[1] = 0.7 * both_2K[0] + math.sqrt(0.51) * both_2K[1]
    theta_2K = [w.quantile(norm.cdf(z_K)) for w, z_K in zip((better, world), both_2K, strict=True)]
    item_N = world.items(n, random)
    a_KN = better.table(theta_2K[0], item_N, random)
    b_KN = world.table(theta_2K[1], 0.8 * item_N + 0.6 * world.items(n, random), random)
    found, truth_a, truth_b = compare(a_KN, b_KN), better.truths, world.truths
    worst = [over_items(w.centre + theta_K).min() for w, theta_K in zip((better, world), theta_2K, strict=True)]
    yield "mean difference", found.mean, truth_a["mean"] - truth_b["mean"]
    yield "sd difference", found.prompt_sd, truth_a["prompt_sd"] - truth_b["prompt_sd"]
    yield "worst difference", found.worst, float(worst[0] - worst[1])
    masked_KN = bought(a_KN, 0.5, random)
    yield "few: mean difference", compare_few(masked_KN, b_KN).mean, truth_a["mean"] - truth_b["mean"]


def bought(table_KN: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """A balanced part of the cells."""
    order = BalancedOrder(*table_KN.shape, int(random.integers(2**31)))
    cells = order.cells(0, round(share * table_KN.size))
    seen_KN = np.full(table_KN.shape, np.nan)
    seen_KN[cells] = table_KN[cells]
    return seen_KN


def of_few(world: World, k: int, n: int, random: np.random.Generator) -> Found:
    """A fifth of the cells, and a race for the worst and the best."""
    table_KN = world.table(world.prompts(k, random), world.items(n, random), random)
    seen_KN = bought(table_KN, 0.2, random)
    yield "few: table_mean", mean_of_few(seen_KN), float(table_KN.mean())
    yield "few: mean", mean_of_few(seen_KN, over="both"), world.truths["mean"]
    yield "few: prompt_sd", prompt_sd_of_pairs(seen_KN), world.truths["prompt_sd"]
    yield "few: table_worst", worst_of_few(seen_KN), float(table_KN.mean(1).min())
    asked_KN = np.full(table_KN.shape, np.nan)

    def ask(cells: Iterable[tuple[int, int]]) -> np.ndarray:
        index = tuple(np.array(list(cells)).T)
        asked_KN[index] = table_KN[index]
        return asked_KN

    for found in race(k, random.permutation(n).tolist(), ask, tolerance=0.06):
        truth = table_KN.mean(1).min() if found.end == "worst" else table_KN.mean(1).max()
        yield f"race: {found.end}", found.estimate(asked_KN, 0.95), float(truth)


def of_groups(world: World, k: int, n: int, random: np.random.Generator) -> Found:
    """Passages of five items, seen and unseen prompts, three and five training seeds."""
    passages = World(world.effects, world.spread, world.centre, 5)
    theta_K, item_N = world.prompts(k, random), passages.items(n, random)
    table_KN, clusters = passages.table(theta_K, item_N, random), (np.arange(n) // 5).tolist()
    truth = world.truths["mean"]
    yield "mean, clusters", mean_estimate(table_KN, clusters_N=clusters), truth
    fixed = float(over_items(world.centre + theta_K).mean())
    yield "examples, clusters", mean_estimate(table_KN, over="examples", clusters_N=clusters), fixed
    yield "clusters not told", mean_estimate(table_KN), truth
    item_N = world.items(n, random)
    easier = World(world.effects, world.spread, world.centre + 0.5)
    seen_KN = easier.table(easier.prompts(8, random), item_N, random)
    unseen_KN = world.table(theta_K, item_N, random)
    yield "gap", gap(seen_KN, unseen_KN), easier.truths["mean"] - truth
    for seeds in (3, 5):
        shift_S = SEEDS * random.standard_normal(seeds)
        found = over_seeds([world.table(theta_K + shift, item_N, random) for shift in shift_S])
        yield f"{seeds} seeds: mean", found.mean, over_seeds_truth(world)
        yield f"{seeds} seeds: seed_sd", found.seed_sd, seed_sd_truth(world, theta_K, item_N)
    families = World("families", world.spread, world.centre)
    table_KN = families.table(families.prompts(k, random), item_N, random)
    yield "families not told", mean_estimate(table_KN), families.truths["mean"]


@functools.lru_cache
def over_seeds_truth(world: World) -> float:
    """Mean accuracy over prompts, items and training seeds."""
    logit_QB = world.centre + world.quantile(SHARES_Q)[:, None] + SEEDS * NODES
    return float(over_items(logit_QB).mean(0) @ WEIGHTS)


def seed_sd_truth(world: World, theta_K: np.ndarray, item_N: np.ndarray) -> float:
    """Of the mean over these cells: what the seed does, and chance in each cell."""
    nodes_S, weights_S = hermegauss(7)
    weights_S = weights_S / weights_S.sum()
    logit_KN = world.centre + theta_K[:, None] + item_N
    rate_SKN = [over_noise(logit_KN + SEEDS * node) for node in nodes_S]
    mean_S = np.array([rate_KN.mean() for rate_KN in rate_SKN])
    chance_S = np.array([(rate_KN * (1 - rate_KN)).mean() / rate_KN.size for rate_KN in rate_SKN])
    return math.sqrt(weights_S @ ((mean_S - weights_S @ mean_S) ** 2 + chance_S))


Wrong = dict[str, list[bool]]
"""Verdicts of a kind that were wrong, one per table."""

DEMANDS = ("mean", "worst", "lowest 3", "p10", "share", "invalid", "drop", "prompt_sd")


def bars(world: World, theta_K: np.ndarray, other_K: np.ndarray) -> dict[str, tuple[CriterionConfig, float]]:
    """Every demand with its bar exactly at the truth, where a wrong verdict is likeliest."""
    true_K = np.sort(over_items(world.centre + theta_K))
    fall = float((over_items(world.centre + other_K) - over_items(world.centre + theta_K)).mean())
    rare = float(over_items(-5.0 + theta_K).mean())
    k, tenth = len(true_K), len(true_K) - math.ceil(0.9 * len(true_K) - 1e-9)
    found: dict[str, dict[str, object]] = {
        "mean": {"measure": "mean", "at_least": float(true_K.mean())},
        "worst": {"measure": "worst", "at_least": float(true_K[0])},
        "lowest 3": {"measure": "lowest", "rank": 3, "at_least": float(true_K[2])},
        "p10": {"measure": "p10", "at_least": float(true_K[tenth])},
        "share": {"measure": "share", "of": float(true_K[k // 2]), "at_least": (k - k // 2) / k},
        "invalid": {"measure": "invalid", "at_most": rare},
        "drop": {"measure": "drop", "against": "base", "at_most": fall},
        "prompt_sd": {"measure": "prompt_sd", "at_most": world.truths["prompt_sd"]},
    }
    return {name: CriterionConfig(**fields) for name, fields in found.items()}  # type: ignore[arg-type]


def of_gates(world: World, k: int, n: int, random: np.random.Generator, peeking: bool) -> Iterator[tuple[str, str]]:
    """(demand, verdict) of gates at level .05 whose bar is the truth, where GO and NO-GO both count as wrong."""
    theta_K, item_N = world.prompts(k, random), world.items(n, random)
    other_K = theta_K + 0.3 * random.standard_normal(k)
    values_KN, base_KN = world.table(theta_K, item_N, random), world.table(other_K, item_N, random)
    rare_KN = World(world.effects, world.spread, -5.0).table(theta_K, item_N, random)
    for name, criterion in bars(world, theta_K, other_K).items():
        policy = PolicyConfig(criteria=[criterion])
        full = matrix(1 - rare_KN, INVALID) if name == "invalid" else matrix(values_KN)
        if not peeking:
            yield name, judge(full, policy, {"base": base_KN}).word
        elif name != "prompt_sd":  # not judged before the last look
            part = functools.partial(first, full)
            yield name, hunt(policy, n, lambda columns, part=part: part(columns), range(n), {"base": base_KN}).word
            each = (judge(part([size - 1]), policy, {"base": base_KN[:, :size]}).word for size in looks(policy, n))
            yield (
                f"{name}, fixed-n bounds at every look",
                next((word for word in each if word != "INCONCLUSIVE"), "INCONCLUSIVE"),
            )


def first(full: ScoreMatrix, columns: Iterable[int]) -> ScoreMatrix:
    """The table up to the last of these columns."""
    size = max(columns) + 1
    cut = (getattr(full, name)[:, :size] for name in ("values_KN", "answers_KN", "tokens_KN", "ended_KN"))
    return ScoreMatrix(full.prompt_ids, full.example_ids[:size], *cut)


def sequences(count: int) -> Iterator[tuple[str, float, float, float]]:
    """(name, share of runs that ever leave the truth, the same for a fixed-n t or normal interval, half-width at the end).

    Looks at every 5th of 2,000 outcomes (betting: 20 looks, evenly in logarithm): whoever stops at the first exclusion errs
    as often.
    """
    random, length = np.random.default_rng(1), 2000
    for mean in (0.5, 0.9, 0.97):
        total_RT = (random.random((count, length)) < mean).cumsum(1)
        left_R, fixed_R = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for n in range(10, length + 1, 5):
            low_R, high_R = proportion_bounds(total_RT[:, n - 1], n, 0.05)
            left_R |= (low_R > mean) | (high_R < mean)
            fixed_R |= left_by_normal(total_RT[:, n - 1] / n, n, mean)
        yield f"binomial mixture, mean {mean}", left_R.mean(), fixed_R.mean(), float((high_R - low_R).mean() / 2)
    for right in (500, 900, 970):
        left, fixed, population = 0, 0, 1000
        for _ in range(count // 4):
            total_N = random.permutation(np.arange(population) < right).cumsum()
            sizes = range(10, population, 20)
            bounds = [exhausting_bounds(int(total_N[n - 1]), n, population, 0.05) for n in sizes]
            left += any(not low <= right <= high for low, high in bounds)
            fixed += any(left_by_normal(total_N[n - 1] / n, n, right / population, 1 - n / population) for n in sizes)
        runs = count // 4
        yield f"without replacement, {right} of 1000", left / runs, fixed / runs, (bounds[24][1] - bounds[24][0]) / 2000
    worlds = {"mean of 20 prompts": (0.0, 20), "paired difference of 20 prompts": (-1.0, 20)}
    for name, (least, k) in worlds.items():
        left, fixed, widths, runs = 0, 0, [], count // 4
        for _ in range(runs):
            world = World("normal", 0.5)
            theta_K, item_N = world.prompts(k, random), world.items(length, random)
            score_N, truth = world.table(theta_K, item_N, random).mean(0), over_items(world.centre + theta_K).mean()
            if least < 0:
                score_N -= world.table(theta_K + 0.3, item_N, random).mean(0)
                truth -= over_items(world.centre + theta_K + 0.3).mean()
            inside = inside_fixed = True
            for n in np.unique(np.geomspace(20, length, 20).astype(int)).tolist():
                low, high = (
                    least + (1 - least) * b for b in betting_bounds((score_N[:n] - least) / (1 - least), 0.025)
                )
                inside &= low <= truth <= high
                half = 1.96 * score_N[:n].std(ddof=1) / math.sqrt(n)
                inside_fixed &= abs(score_N[:n].mean() - truth) <= half
            left, fixed = left + (not inside), fixed + (not inside_fixed)
            widths.append((high - low) / 2)
        yield f"betting, {name}", left / runs, fixed / runs, float(np.mean(widths))


def left_by_normal(share: np.ndarray, n: int, mean: float, unseen: float = 1.0) -> np.ndarray:
    """Whether the usual fixed-n interval excludes the truth."""
    return abs(share - mean) > 1.96 * np.sqrt(np.maximum(share * (1 - share), 1e-9) / n * unseen)


Setting = tuple[World, int, int]


def grid(full: bool) -> dict[str, list[Setting]]:
    """Settings of every part: world, prompts, examples."""
    sizes = [(5, 50), (5, 1000), (20, 200), (50, 50), (50, 1000), (200, 200)]
    if full:
        sizes = [(k, n) for k in (5, 20, 50, 200) for n in (50, 200, 1000, 5000)]
    few = [(5, 200), (10, 200), (20, 200), (50, 200), (50, 1000)]
    low, high = World("normal", 0.05), World("normal", 0.6)
    shapes = [World("skewed", 0.6), World("broken", 0.3), World("normal", 0.35, 3.0)]
    part = [(k, n) for k, n in sizes if n in (200, 1000) and k > 5 and k < 200]
    return {
        "tables": [(w, *size) for w in (low, high) for size in sizes] + [(w, *size) for w in shapes for size in few],
        "pairs": [(w, *size) for w in (low, high) for size in sizes if size[1] < 5000]
        + [(w, *size) for w in shapes for size in few],
        "few": [(w, *size) for w in (low, high) for size in part],
        "groups": [(w, *size) for w in (low, high) for size in sizes if 20 <= size[1] <= 1000 and 5 < size[0] < 200],
    }


def measure(part: str, setting: Setting, count: int) -> tuple[dict[str, list[float]], float]:
    """Per column [coverage, mean half-width] of `count` tables; and CPU seconds."""
    of = {"tables": of_tables, "pairs": of_pairs, "few": of_few, "groups": of_groups}[part]
    world, k, n = setting
    random = np.random.default_rng([k, n, round(100 * world.spread), round(100 * world.centre), len(world.effects)])
    found, began = defaultdict(list), time.process_time()
    for _ in range(count):
        for name, estimate, truth in of(world, k, n, random):
            inside = estimate.low - 1e-9 <= truth <= estimate.high + 1e-9
            found[name].append((inside, (estimate.high - estimate.low) / 2))
    return {name: np.nanmean(rows, axis=0).tolist() for name, rows in found.items()}, time.process_time() - began


def replicates(part: str, k: int, n: int, full: bool) -> int:
    """Tables per setting: fewer of large ones."""
    count = 400 if k * n <= 10_000 else 200 if k * n <= 50_000 else 100 if k * n <= 250_000 else 60
    return count if full else count // 4


def title(setting: Setting) -> str:
    """First column of a row."""
    world, k, n = setting
    centre = "" if world.centre == 1 else f", centre {world.centre:g}"
    return f"{k} x {n:,}, {world.effects} {world.spread:g}{centre}"


def row(first_cell: str, cells: Iterable[str]) -> str:
    return f"| {first_cell} | {' | '.join(cells)} |"


def print_part(part: str, settings: list[Setting], full: bool, scale: float) -> None:
    """One Markdown table: settings x intervals."""
    columns: list[str] = []
    for setting in settings:
        count = max(2, round(scale * replicates(part, *setting[1:], full)))
        found, seconds = measure(part, setting, count)
        if not columns:
            columns = list(dict.fromkeys([*found, *(["W@5"] if part == "tables" else [])]))
            print(f"\n### {part}\n")
            print(row("prompts x examples, effects of prompts", ["tables (error at 95), CPU s", *columns]))
            print(row("---", ["---:"] * (len(columns) + 1)))
        error = 100 * math.sqrt(0.05 * 0.95 / count)
        cells = [f"{100 * found[c][0]:.1f} / {100 * found[c][1]:.1f}" if c in found else "" for c in columns]
        print(row(title(setting), [f"{count} ({error:.1f}), {seconds:.0f}", *cells]), flush=True)


def print_gates(full: bool, scale: float) -> None:
    """Wrong verdicts in percent, of gates at level 5 %, the bar being the truth."""
    settings = [(World("normal", 0.3), 20, 200), (World("broken", 0.3), 20, 1000)]
    settings += [(World("normal", 0.05), 20, 50), (World("skewed", 0.6), 50, 200)] if full else []
    for peeking in (False, True):
        print(
            f"\n### gates, {'stopping at the first verdict' if peeking else 'one look'}\n\nGO / NO-GO in percent, 5 allowed\n"
        )
        for number, (world, k, n) in enumerate(settings):
            count = round(scale * (400 if full else 150))
            verdicts, random = defaultdict(list), np.random.default_rng(number)
            for _ in range(count):
                for name, word in of_gates(world, k, n, random, peeking):
                    verdicts[name].append(word)
            if not number:
                print(row("prompts x examples", ["tables (error at 5)", *verdicts]))
                print(row("---", ["---:"] * (len(verdicts) + 1)))
            cells = [
                f"{100 * words.count('GO') / count:.1f} / {100 * words.count('NO-GO') / count:.1f}"
                for words in verdicts.values()
            ]
            print(
                row(title((world, k, n)), [f"{count} ({100 * math.sqrt(0.05 * 0.95 / count):.1f})", *cells]), flush=True
            )


def print_sequences(full: bool, scale: float) -> None:
    """Share of runs in which the truth is ever left, in percent."""
    count = round(scale * (2000 if full else 600))
    print(
        f"\n### stopping at the first exclusion\n\n{count} runs, betting and without replacement a quarter; 5 % allowed\n"
    )
    print(row("sequence", ["left, %", "fixed-n interval left, %", "half-width at the end, points"]))
    print(row("---", ["---:"] * 3))
    for name, left, fixed, half in sequences(count):
        print(row(name, [f"{100 * left:.1f}", f"{100 * fixed:.1f}", f"{100 * half:.1f}"]), flush=True)


PARTS = ("tables", "pairs", "few", "groups", "gates", "stopping")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="every setting, and four times the tables")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of tables")
    options = parser.parse_args()
    began = time.process_time()
    settings = grid(options.full)
    for part in options.only:
        if part == "gates":
            print_gates(options.full, options.scale)
        elif part == "stopping":
            print_sequences(options.full, options.scale)
        else:
            print_part(part, settings[part], options.full, options.scale)
    print(f"\n{time.process_time() - began:.0f} CPU seconds")
