"""Geometry of the figures: where dots, bars and lines go. Pure functions; drawing and escaping are the template's.

Horizontal places are percent of the plot's width, so one drawing fits phone and desktop with type of the same size;
vertical places of strips are pixels, those of charts percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RADIUS = 4.0
NOMINAL_WIDTH = 440.0
"""Width in pixels at which dots just do not overlap; between a phone and a desktop column."""
MOST_SPREAD = 46.0
"""Largest distance of a dot from the middle of its strip; a fuller swarm is pressed together."""
BAND = 22.0
"""Height below the dots for the mean and its interval."""


@dataclass(frozen=True)
class Dot:
    """A prompt in a strip. x in percent, y in pixels."""

    prompt: int
    x: float
    y: float


@dataclass(frozen=True)
class Strip:
    """One arm's prompts along the accuracy axis, with the mean and its interval in a band below.

    lowest: the dot of the lowest accuracy; its label hangs at label_y, to the left of the dot when `label_left`.
    low, high: bounds of the mean in percent, None where there is no interval.
    """

    dots: tuple[Dot, ...]
    lowest: Dot
    label_y: float
    label_left: bool
    mean: float
    low: float | None
    high: float | None
    band_y: float
    height: float


def strip(accuracy_K: Sequence[float], mean: Mapping[str, Any]) -> Strip:
    """The strip of one arm: dots as a swarm, the same accuracy always at the same place."""
    offsets_K = swarm([value * NOMINAL_WIDTH for value in accuracy_K], 2 * RADIUS + 0.5)
    widest = max(abs(offset) for offset in offsets_K)
    press = min(1.0, MOST_SPREAD / widest) if widest else 1.0
    reach = max(14.0, widest * press) + RADIUS
    top = 16.0
    middle = top + reach
    dots = tuple(
        Dot(k, 100 * x, middle + press * y) for k, (x, y) in enumerate(zip(accuracy_K, offsets_K, strict=True))
    )
    lowest = min(dots, key=lambda dot: (dot.x, abs(dot.y - middle)))
    label_left = lowest.x > 24
    label_y = lowest.y + 4 if label_left else min(dot.y for dot in dots if dot.x < lowest.x + 24) - RADIUS - 6
    bounds = [None if mean[side] is None else 100 * mean[side] for side in ("low", "high")]
    band_y = middle + reach + BAND / 2
    return Strip(
        dots, lowest, label_y, label_left, 100 * mean["value"], bounds[0], bounds[1], band_y, middle + reach + BAND
    )


def swarm(places: Sequence[float], apart: float) -> list[float]:
    """Offsets from a line so that no two points are nearer than `apart`; deterministic, small offsets first.

    >>> swarm([10.0, 10.0, 10.0, 50.0], 8.0)
    [0.0, -8.0, 8.0, 0.0]
    """
    offsets = [0.0] * len(places)
    placed: list[tuple[float, float]] = []
    for index in sorted(range(len(places)), key=lambda i: (places[i], i)):
        x = places[index]
        # points come in rising order, so only the last ones can be in the way
        near = [(a, b) for a, b in placed[-200:] if x - a < apart]
        candidates = {0.0}
        for a, b in near:
            reach = math.sqrt(max(0.0, apart**2 - (x - a) ** 2))
            candidates |= {b + reach, b - reach}
        free = (
            y
            for y in sorted(candidates, key=lambda y: (round(abs(y), 6), y))
            if all((x - a) ** 2 + (y - b) ** 2 >= apart**2 - 1e-6 for a, b in near)
        )
        offsets[index] = next(free, 0.0)
        placed.append((x, offsets[index]))
    return offsets


@dataclass(frozen=True)
class Curve:
    """Loss by update. Points are "x,y" pairs in a box of 1000 x 1000 that is stretched to the plot, y downwards."""

    raw: str
    smooth: str
    window: int
    updates: int


@dataclass(frozen=True)
class Axis:
    """Ticks of a vertical axis from `bottom`, 0 or less, to `top`: (percent from the top, label)."""

    top: float
    bottom: float
    ticks: tuple[tuple[float, str], ...]


def axis(highest: float, lowest: float = 0.0) -> Axis:
    """An axis that holds 0 and ends at the first round steps beyond the highest and the lowest value, with at most five steps.

    >>> [label for _, label in axis(4.6).ticks]
    ['0', '1', '2', '3', '4', '5']
    """
    highest, lowest = max(highest, 0.0), min(lowest, 0.0)
    if highest == lowest:
        highest = 1.0
    unit = 10.0 ** math.floor(math.log10((highest - lowest) / 5))

    def steps(step: float) -> tuple[int, int]:
        return math.ceil(highest / step - 1e-9), math.ceil(-lowest / step - 1e-9)

    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if sum(steps(unit * factor)) <= 5)
    up, down = steps(step)
    ticks = ((100 * (up - i) / (up + down), f"{step * i:g}".replace("-", "\u2212")) for i in range(-down, up + 1))
    return Axis(step * up, -step * down, tuple(ticks))


def loss_curve(losses: Sequence[float | None], top: float, bottom: float = 0.0, most: int = 500) -> Curve | None:
    """The loss of every update and its moving mean; long runs are averaged in at most `most` equal pieces.

    None or a value that is not finite leaves its update out. None without any value.
    """
    known = [(i, loss) for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    if not known:
        return None
    size = math.ceil(len(known) / most)
    points = [known[i : i + size] for i in range(0, len(known), size)]
    binned = [(sum(i for i, _ in part) / len(part), sum(loss for _, loss in part) / len(part)) for part in points]
    window = max(1, min(len(known), round(len(known) / 15)) // 2 * 2 + 1)
    half = window // 2
    total = [0.0]
    for _, loss in known:
        total.append(total[-1] + loss)
    means = []
    for place in range(0, len(known), size):
        low, high = max(0, place - half), min(len(known), place + half + 1)
        means.append((float(known[place][0]), (total[high] - total[low]) / (high - low)))
    last = max(1, len(losses) - 1)
    raw, smooth = (_pairs(points, last, top, bottom) for points in (binned, means))
    return Curve(raw, smooth, window, len(losses))


def _pairs(points: Sequence[tuple[float, float]], last: int, top: float, bottom: float) -> str:
    places = ((x / last, min(1.0, max(0.0, (top - y) / (top - bottom)))) for x, y in points)
    return " ".join(f"{1000 * x:.1f},{1000 * y:.1f}" for x, y in places)


@dataclass(frozen=True)
class Check:
    """A check on dev prompts: place and accuracies in percent, bars clipped to what is possible."""

    x: float
    mean: float
    low: float
    high: float
    text: str


def checks(dev: Sequence[Mapping[str, Any]], updates: int) -> tuple[Check, ...]:
    """Mean of the dev prompts' accuracies with one standard deviation either way, at each check.

    updates: where the axis ends, the same for all arms of a chart.
    """
    return tuple(
        Check(
            100 * row["step"] / max(1, updates),
            100 * row["mean"],
            100 * max(0.0, row["mean"] - row["sd"]),
            100 * min(1.0, row["mean"] + row["sd"]),
            f"update {row['step']}: {100 * row['mean']:.1f} %, sd {100 * row['sd']:.1f} points",
        )
        for row in dev
    )


def joined(found: Sequence[Check]) -> str:
    """The line through the means, as points of a box of 1000 x 1000."""
    return " ".join(f"{10 * one.x:.1f},{1000 - 10 * one.mean:.1f}" for one in found)
