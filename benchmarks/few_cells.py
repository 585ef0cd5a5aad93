"""How well figures from a part of the cells hold what all cells show: the tables of docs/budgets.md, from scratch.

    python benchmarks/few_cells.py [--tables 80] [--only skewed] [runs/x/scores.parquet ...]

Each line: share of 95 % intervals that hold the truth of the whole table / mean half-width in points. Simulated tables are
logistic (examples N(centre, 1.5), interaction N(0, 0.5)) with effects of prompts of many shapes. Of a scores.parquet every
table that was bought whole (by arm and scorer) is the truth, and parts of it are drawn in different balanced orders.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import expit

from paft.config import CellBudgetConfig
from paft.evaluation.budget import spend
from paft.evaluation.few import mean_of_few
from paft.evaluation.mixture import PromptMixture
from paft.evaluation.sampling import BalancedOrder
from paft.finished import load_tables

Draw = Callable[[np.random.Generator, int], np.ndarray]


def groups(share: float, apart: float, sd: float = 0.15) -> Draw:
    """Effects of prompts of which a share lies `apart` logits from the others."""
    return lambda random, k: random.normal(0, sd, k) + apart * (np.arange(k) < round(share * k))


SHAPES: dict[str, tuple[float, Draw]] = {
    "normal, sd 0.05": (1, lambda random, k: random.normal(0, 0.05, k)),
    "normal, sd 0.15": (1, lambda random, k: random.normal(0, 0.15, k)),
    "normal, sd 0.5": (1, lambda random, k: random.normal(0, 0.5, k)),
    "10 % lie 1.5 below": (1, groups(0.1, -1.5)),
    "10 % lie 3 below": (1, groups(0.1, -3)),
    "30 % lie 1.5 below": (1, groups(0.3, -1.5)),
    "30 % lie 3 below": (1, groups(0.3, -3)),
    "20 % lie 1.2 above": (0, groups(0.2, 1.2, 0.08)),
    "20 % lie 2.5 above": (0, groups(0.2, 2.5, 0.08)),
    "t, 3 degrees of freedom": (1, lambda random, k: 0.25 * random.standard_t(3, k)),
}
"""Centre of the examples, and effects of prompts, in logits."""
SIZES = (20, 200), (50, 300), (50, 1000), (100, 200)
VISITS = 2, 4, 8
NAMES = "table_mean", "table_sd", "table_p10", "table_median", "table_share", "table_worst"


def simulated(random: np.random.Generator, centre: float, effects: Draw, size: tuple[int, int]) -> np.ndarray:
    """A table values_KN."""
    logit_KN = effects(random, size[0])[:, None] + random.normal(centre, 1.5, size[1]) + random.normal(0, 0.5, size)
    return (random.random(size) < expit(logit_KN)).astype(float)


def checked(values_KN: np.ndarray, visits: int, seed: int) -> Iterator[tuple[str, bool, float]]:
    """Of each figure from `visits` cells per example: whether its interval holds the truth, and half its width.

    The bar of table_share lies a twentieth below the mean.
    """
    accuracy_K = values_KN.mean(1)
    bar = round(float(accuracy_K.mean()), 2) - 0.05
    k, i = BalancedOrder(*values_KN.shape, seed).cells(0, visits * values_KN.shape[1])
    part_KN = np.full(values_KN.shape, np.nan)
    part_KN[k, i] = values_KN[k, i]
    found = PromptMixture(part_KN).estimates(thresholds=[bar]) | {"table_mean": mean_of_few(part_KN)}
    truth = {
        "table_mean": accuracy_K.mean(),
        "table_sd": accuracy_K.std(ddof=1),
        "table_p10": np.quantile(accuracy_K, 0.1),
        "table_median": np.median(accuracy_K),
        "table_share": (accuracy_K >= bar - 1e-12).mean(),
        "table_worst": accuracy_K.min(),
    }
    for name, value in truth.items():
        each = found[name if name != "table_share" else f"table_share>={bar:g}"]
        yield name, each.low - 1e-9 <= value <= each.high + 1e-9, (each.high - each.low) / 2


def line(label: str, visits: int, tables: Iterator[tuple[np.ndarray, int]]) -> str:
    """A row of the table; tables: values_KN and the seed of the order of its cells."""
    inside: dict[str, list[bool]] = {name: [] for name in NAMES}
    half: dict[str, list[float]] = {name: [] for name in NAMES}
    for values_KN, seed in tables:
        for name, holds, width in checked(values_KN, visits, seed):
            inside[name].append(holds)
            half[name].append(width)
    cells = (f"{np.mean(inside[name]):.2f} / {100 * np.mean(half[name]):.1f}" for name in NAMES)
    return f"| {label} | {visits} | " + " | ".join(cells) + " |"


def whole_tables(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """(arm and scorer, values_KN) of a run's scores.parquet, of those bought whole."""
    for arm, tables in load_tables(path.parent).items():
        for scorer, matrix in tables.items():
            if matrix.observed_KN.all():
                yield f"{arm}, {scorer}", matrix.values_KN


ADAPTIVE = ((20, 400), 0.3, 0.014), ((50, 1000), 0.15, 0.01), ((50, 1000), 0.8, 0.01), ((5, 2000), 0.3, 0.01)


def adaptive(shape: tuple[int, int], sd: float, wanted: float, tables: int) -> str:
    """A row of the table of `adaptive`: what was bought, and how often the interval that ended the buying holds."""
    random, bought, inside = np.random.default_rng([*shape, round(100 * sd)]), [], []
    for _ in range(tables):
        values_KN, sold_KN = (
            simulated(random, 1, lambda random, k: random.normal(0, sd, k), shape),
            np.full(shape, np.nan),
        )

        def ask(cells: Sequence[tuple[int, int]], values_KN=values_KN, sold_KN=sold_KN) -> dict[str, np.ndarray]:
            for cell in cells:
                sold_KN[cell] = values_KN[cell]
            return {"likelihood": sold_KN}

        budget = CellBudgetConfig(kind="adaptive", half_width={"table_mean": wanted})
        spent = spend(budget, shape, ["likelihood"], ask, 0.95, lambda _: None)
        found = mean_of_few(sold_KN, spent.level)
        bought.append(spent.cells)
        inside.append(found.low <= values_KN.mean() <= found.high)
    share = np.mean(bought) / (shape[0] * shape[1])
    return f"| {shape[0]} x {shape[1]:,}, {sd:g} | {100 * wanted:g} | {np.mean(bought):,.0f} ({share:.0%}) | {np.mean(inside):.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="*", type=Path, help="scores.parquet of runs that bought every cell")
    parser.add_argument("--tables", type=int, default=80, help="simulated tables, or samples of a real one, a line")
    parser.add_argument(
        "--only", default="", help="lines whose shape of effects holds this text; 'none' for no simulation"
    )
    parser.add_argument("--adaptive", action="store_true", help="only the table of adaptive buying")
    parser.add_argument("--size", default="", help="lines of this size, as 50x300")
    options = parser.parse_args()
    if options.adaptive:
        for shape, sd, wanted in ADAPTIVE:
            print(adaptive(shape, sd, wanted, options.tables), flush=True)
        return
    print("| prompts x examples, effects of prompts | cells per example | " + " | ".join(NAMES) + " |")
    print("| --- | ---: |" + " ---: |" * len(NAMES))
    started = time.monotonic()
    for size in SIZES:
        for shape in SHAPES:
            if options.only not in shape or options.size not in f"{size[0]}x{size[1]}":
                continue
            for visits in VISITS:
                random = np.random.default_rng([*size, list(SHAPES).index(shape)])
                tables = ((simulated(random, *SHAPES[shape], size), seed) for seed in range(options.tables))
                print(line(f"{size[0]} x {size[1]:,}, {shape}", visits, tables), flush=True)
    for path in options.scores:
        for name, values_KN in whole_tables(path):
            for visits in VISITS:
                if visits < len(values_KN):
                    drawn = ((values_KN, seed) for seed in range(options.tables))
                    label = f"{path.parent.name}, {name}, {values_KN.shape[0]} x {values_KN.shape[1]}"
                    print(line(label, visits, drawn), flush=True)
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
