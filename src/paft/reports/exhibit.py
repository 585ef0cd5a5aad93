"""Which cells a reader is shown: a drawn part of every table, the examples that break, and the text of some cells.

Chosen once, when a run is scored, and bounded whatever the size of the grid: the page shows all that is chosen here.
Plain values throughout, the same for the same cells; texts are as they were asked and answered, only shortened.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paft.evaluation.evaluate import Evaluation, Scorer
from paft.evaluation.matrix import INVALID, ScoreMatrix
from paft.grid import Cell, Grid
from paft.lm.types import Answered

ROWS, COLUMNS = 100, 300
"""Most prompts and examples that are drawn; fewer of either when there are many tables."""
LISTED = 6
"""Examples in each list of a table."""
TEXTS, CHARACTERS = 160, 250_000
"""Most cells that carry text, and most characters of all their prompts and answers together."""
LONGEST = {"message": 2400, "answer": 400, "choice": 80, "field": 160}
"""Characters that are kept of a text."""
CHOICES, FIELDS = 8, 6
"""Choices of a cell and fields of an example that are kept."""

VERSION = 1
"""Of the shape of an exhibit; a page is not made from one of another."""
LETTERS = RIGHT, TIED, WRONG, UNREADABLE, UNBOUGHT = "RTWU."
"""A cell of a drawn table."""

Tables = Mapping[tuple[str, Scorer], ScoreMatrix]
"""By arm and scorer."""
Reason = str
"""Why a cell carries text: "breaks", "lost", "unreadable", "differs" or "wrong"."""


def exhibit_of(evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What is shown of the arms of a run, all scored over one grid.

    of: what it was made from. drawn: prompts and examples of the drawn tables, as places in the grid. examples: id, fields
    and answer of every example that is named. tables: one per arm and scorer (`_table`). differences: the last arm against
    each other one. texts: cells with what was asked and answered (`_text`).
    """
    grid = next(iter(evaluations.values())).grid
    tables: Tables = {
        (arm, scorer): matrix for arm, done in evaluations.items() for scorer, matrix in done.scores.items()
    }
    told = set(range(grid.shape[1]))
    drawn = _drawn(tables, told)
    shown = [_table(arm, scorer, matrix, drawn, told) for (arm, scorer), matrix in tables.items()]
    texts = _texts(grid, evaluations, _cells_with_text(grid, tables, shown, drawn))
    return {
        "version": VERSION,
        "of": {
            "prompts": [template.id for template in grid.templates],
            "examples": grid.shape[1],
            "arms": {arm: [done.fingerprint, done.spent.cells] for arm, done in evaluations.items()},
        },
        "drawn": {"prompts": drawn[0], "examples": drawn[1]},
        "examples": [_example(grid, i) for i in sorted({*drawn[1], *_listed(shown)})],
        "tables": shown,
        "differences": _differences(tables, list(evaluations), drawn),
        "texts": texts,
    }


@dataclass(frozen=True)
class Shared:
    """The last arm of one of several runs: its tables over the prompts and examples that all of them share; all its answers by ids
    of prompt and example, and the right choice of every example it was asked."""

    tables: Mapping[Scorer, ScoreMatrix]
    answers: Mapping[tuple[str, str], Answered]
    gold: Mapping[str, int]


def exhibit_between(
    sides: Sequence[Shared], exhibits: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is shown of the last arms of several runs, named by their places, in the shape of `exhibit_of`.

    The exhibits tell what was asked: drawn and listed are examples that one of them names; cells that one of them spells out carry
    text, those that are scored differently first. unlike: ids of prompts, of examples and of cells that are not the same in all
    runs; they are left out. Nothing but these where fewer than two prompts or two such examples remain.
    """
    named, spelled = [], []
    for side, exhibit in zip(sides, exhibits, strict=True):
        ids, prompts = _whole_ids(side, exhibit), exhibit["of"]["prompts"]
        named.append({ids[each["example"]]: each for each in exhibit["examples"] if each["example"] in ids})
        spelled.append({(prompts[t["prompt"]], ids[t["example"]]): t for t in exhibit["texts"] if t["example"] in ids})
    worded = [{each["id"]: (each["system"], each["text"]) for each in result["prompts"]["test"]} for result in results]
    first = next(iter(sides[0].tables.values()))
    # one that a run does not list is not the same either
    prompts = [each for each in first.prompt_ids if len({words.get(each, n) for n, words in enumerate(worded)}) == 1]
    examples = [each for each in first.example_ids if _alike([known[each] for known in named if each in known])]
    rows, columns = ({each: place for place, each in enumerate(ids)} for ids in (prompts, examples))
    cells = dict.fromkeys(cell for texts in spelled for cell in texts if cell[0] in rows and cell[1] in columns)
    same = [cell for cell in cells if _same(cell, [texts[cell] for texts in spelled if cell in texts], sides)]
    told = {columns[each]: entry for known in named for each, entry in known.items() if each in columns}
    found: dict[str, Any] = {
        "of": {"prompts": prompts, "examples": len(examples)},
        "unlike": {
            "prompts": [each for each in first.prompt_ids if each not in rows],
            "examples": [each for each in first.example_ids if each not in columns],
            "cells": sorted({*cells} - {*same}),
        },
    }
    if min(len(prompts), len(told)) < 2:
        return found
    parts = [{scorer: matrix.on(prompts, examples) for scorer, matrix in side.tables.items()} for side in sides]
    tables: Tables = {(str(n), scorer): matrix for n, part in enumerate(parts) for scorer, matrix in part.items()}
    drawn = _drawn(tables, told)
    shown = [_table(arm, scorer, matrix, drawn, told) for (arm, scorer), matrix in tables.items()]
    listed, differs_KN = _listed(shown), _differs(tables)

    def text(cell: tuple[str, str]) -> dict[str, Any]:
        k, i = rows[cell[0]], columns[cell[1]]
        asked = next(texts[cell] for texts in spelled if cell in texts)
        kept = [c for c, *_ in asked["choices"]]
        answers = [side.answers.get(cell) for side in sides]
        arms = {str(n): _given(answers[n], kept, part, k, i) for n, part in enumerate(parts)}
        return {**asked, "prompt": k, "example": i, "why": "differs" if differs_KN[k, i] else "alike", "arms": arms}

    same.sort(
        key=lambda cell: (not differs_KN[rows[cell[0]], columns[cell[1]]], columns[cell[1]] not in listed, _draw(*cell))
    )
    texts = _bounded(map(text, same[:TEXTS]))
    return found | {
        "drawn": {"prompts": drawn[0], "examples": drawn[1]},
        "examples": [told[i] | {"example": i} for i in sorted({*drawn[1], *listed, *(t["example"] for t in texts)})],
        "tables": shown,
        "differences": _differences(tables, [str(place) for place, _ in enumerate(sides)], drawn),
        "texts": texts,
    }


def _whole_ids(side: Shared, exhibit: Mapping[str, Any]) -> dict[int, str]:
    """Ids of the examples of an exhibit, which holds their beginnings; without those that begin like another."""
    begun: dict[str, list[str]] = {}
    for each in side.gold:
        begun.setdefault(_start(each, "choice")[0], []).append(each)
    found = {each["example"]: begun.get(each["id"], []) for each in exhibit["examples"]}
    return {i: ids[0] for i, ids in found.items() if len(ids) == 1}


def _alike(examples: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the same answer is right in all, and no field has two texts."""
    fields = {(name, text) for each in examples for name, text in each["fields"].items()}
    return len({each["answer"] for each in examples}) < 2 and len(fields) == len({name for name, _ in fields})


def _same(cell: tuple[str, str], texts: Sequence[Mapping[str, Any]], sides: Sequence[Shared]) -> bool:
    """Whether all runs asked the same, as far as the texts of the cell and its answers show."""
    first = texts[0]
    scored = [len(side.answers[cell].logp_C) for side in sides if cell in side.answers]
    return (
        all(each[key] == first[key] for each in texts for key in ("messages", "target", "gold", "choices_of"))
        and all(side.gold.get(cell[1], first["gold"]) == first["gold"] for side in sides)
        and {*scored} <= {0, first["choices_of"]}
    )


def _mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean over an axis of the values that are known, NaN where none is."""
    known = ~np.isnan(values)
    mean: np.ndarray = np.where(known, values, 0.0).sum(axis) / np.where(known.any(axis), known.sum(axis), np.nan)
    return mean


def _spread(order: Sequence[int] | np.ndarray, count: int) -> list[int]:
    """So many members of an order, evenly spaced, both ends among them; all when there are no more."""
    if len(order) <= count:
        return [int(place) for place in order]
    return [int(order[round(at)]) for at in np.linspace(0, len(order) - 1, count)]


def _drawn(tables: Tables, told: Collection[int]) -> tuple[list[int], list[int]]:
    """Prompts and examples of the drawn tables, the examples among those that can be told."""
    ease_NT = np.stack([_mean(matrix.values_KN, 0) for matrix in tables.values()], 1)
    ease_KT = np.stack([_mean(matrix.values_KN, 1) for matrix in tables.values()], 1)
    rows = _spread(np.argsort(_mean(ease_KT, 1), kind="stable"), min(ROWS, max(20, 600 // len(tables))))
    order = [i for i in np.argsort(_mean(ease_NT, 1), kind="stable") if i in told]
    columns = _spread(order, min(COLUMNS, max(30, 400_000 // (len(rows) * len(tables)))))
    return sorted(rows), sorted(columns)


def _listed(shown: Sequence[Mapping[str, Any]]) -> set[int]:
    """The examples in the lists of tables."""
    return {i for table in shown for key in ("breaks", "lost") for i, *_ in table[key]["listed"]}


def _table(
    arm: str, scorer: str, matrix: ScoreMatrix, drawn: tuple[list[int], list[int]], told: Collection[int]
) -> dict[str, Any]:
    """One drawn table with its figures over all cells that were bought; told: the examples that may be listed.

    cells: a letter per drawn cell, prompt by prompt; counts: of each letter over all cells. rows, columns: orders of the drawn
    prompts (lowest accuracy first) and examples (hardest first). prompts: of every drawn prompt the counts of each letter, and
    against the best and the median prompt the examples that are fully right there and not here, and the other way round, and of free
    answers the mean of their tokens and the share that ended by themselves.
    Of the examples asked under two prompts at least (judged), all_right: how many are fully right under all; breaks: those right
    under some and wrong under others, the most evenly split first, as (example, right, asked); lost: those right under none.
    """
    values_KN, observed_KN = matrix.values_KN, matrix.observed_KN
    letters_KN = np.full(values_KN.shape, UNBOUGHT)
    letters_KN[observed_KN] = TIED
    letters_KN[values_KN == 0] = WRONG
    letters_KN[values_KN == 1] = RIGHT
    letters_KN[matrix.answers_KN == INVALID] = UNREADABLE
    ease_K, ease_N = _mean(values_KN, 1), _mean(values_KN, 0)
    order_K = [int(k) for k in np.argsort(ease_K, kind="stable") if observed_KN[k].any()] or [0]
    best, median = order_K[-1], order_K[(len(order_K) - 1) // 2]

    def against(k: int, other: int) -> list[int]:
        both_N = observed_KN[k] & observed_KN[other]
        here_N, there_N = (values_KN[place] == 1 for place in (k, other))
        return [int((both_N & there_N & ~here_N).sum()), int((both_N & here_N & ~there_N).sum())]

    def counts(letters: np.ndarray) -> dict[str, int]:
        return {letter: int((letters == letter).sum()) for letter in LETTERS}

    def written(k: int) -> list[float] | None:
        if scorer != "generation" or not observed_KN[k].any():
            return None
        return [float(each_KN[k, observed_KN[k]].mean()) for each_KN in (matrix.tokens_KN, matrix.ended_KN)]

    asked_N, right_N = observed_KN.sum(0), (values_KN == 1).sum(0)
    some_N = (asked_N > 1) & (right_N > 0) & (values_KN == 0).any(0)
    none_N = (asked_N > 1) & (np.where(observed_KN, values_KN, 0.0) == 0).all(0)
    breaks = sorted(np.flatnonzero(some_N), key=lambda i: (abs(ease_N[i] - 0.5), -asked_N[i], i))
    lost = sorted(np.flatnonzero(none_N), key=lambda i: (-asked_N[i], i))

    def listed(found: Sequence[Any]) -> dict[str, Any]:
        return {
            "count": len(found),
            "listed": [[int(i), int(right_N[i]), int(asked_N[i])] for i in found if i in told][:LISTED],
        }

    return {
        "arm": arm,
        "scorer": scorer,
        "cells": "".join("".join(row) for row in letters_KN[np.ix_(*drawn)]),
        "rows": _order(ease_K, drawn[0]),
        "columns": _order(ease_N, drawn[1]),
        "counts": counts(letters_KN),
        "best": best,
        "median": median,
        "prompts": [
            {
                "prompt": k,
                "counts": counts(letters_KN[k]),
                "best": against(k, best),
                "median": against(k, median),
                "written": written(k),
            }
            for k in drawn[0]
        ],
        "all_right": int(((asked_N > 1) & (right_N == asked_N)).sum()),
        "judged": int((asked_N > 1).sum()),
        "breaks": listed(breaks),
        "lost": listed(lost),
    }


def _order(values: np.ndarray, drawn: Sequence[int]) -> list[int]:
    """Positions in `drawn` from the lowest value to the highest, unknown ones last."""
    return [int(place) for place in np.argsort(values[list(drawn)], kind="stable")]


def _differences(tables: Tables, arms: Sequence[str], drawn: tuple[list[int], list[int]]) -> list[dict[str, Any]]:
    """The last arm a against every other arm b by each scorer: orders of the drawn prompts and examples from where a loses most to
    where it gains most, and over all cells that both bought how often only a, only b, both or neither are fully right."""
    found = []
    for (arm, scorer), other in tables.items():
        if arm == arms[-1]:
            continue
        a_KN, b_KN = tables[arms[-1], scorer].values_KN, other.values_KN
        both_KN = ~np.isnan(a_KN) & ~np.isnan(b_KN)
        right_a_KN, right_b_KN = a_KN == 1, b_KN == 1
        counts = [
            int((both_KN & mask_KN).sum())
            for mask_KN in (right_a_KN & ~right_b_KN, ~right_a_KN & right_b_KN, right_a_KN & right_b_KN)
        ]
        found.append(
            {
                "a": arms[-1],
                "b": arm,
                "scorer": scorer,
                "rows": _order(_mean(a_KN - b_KN, 1), drawn[0]),
                "columns": _order(_mean(a_KN - b_KN, 0), drawn[1]),
                "counts": [*counts, int(both_KN.sum()) - sum(counts)],
            }
        )
    return found


def _cells_with_text(
    grid: Grid,
    tables: Tables,
    shown: Sequence[Mapping[str, Any]],
    drawn: tuple[list[int], list[int]],
) -> dict[tuple[int, int], Reason]:
    """The cells that carry text, with the first reason: of each listed example that breaks one cell that is right and one that
    is not, of each lost one one cell, prompts in turn, as far as two thirds of all; then of the drawn cells those with an
    unreadable answer, those that an arm scores unlike the last arm, and those not fully right, an equal part each, prompts in turn.
    """
    found: dict[tuple[int, int], Reason] = {}
    turns = itertools.count()
    for place in range(LISTED):
        for table in shown:
            values_KN = tables[table["arm"], table["scorer"]].values_KN
            for reason, wanted in (("breaks", (0, 1)), ("lost", (0,))):
                for i, *_ in table[reason]["listed"][place : place + 1]:
                    for value in wanted:
                        prompts = np.flatnonzero(values_KN[:, i] == value)
                        found.setdefault((int(prompts[next(turns) % len(prompts)]), i), reason)
    found = dict(itertools.islice(found.items(), 2 * TEXTS // 3))

    kinds = {
        "unreadable": np.any([matrix.answers_KN == INVALID for matrix in tables.values()], axis=0),
        "differs": _differs(tables),
        "wrong": np.any([matrix.values_KN < 1 for matrix in tables.values()], axis=0),
    }
    for left, (reason, mask_KN) in zip((3, 2, 1), kinds.items(), strict=True):
        queues = [
            sorted(
                (i for i in drawn[1] if mask_KN[k, i] and (k, i) not in found),
                key=lambda i: _draw(grid.templates[k].id, grid.examples[i].id),
            )
            for k in drawn[0]
        ]
        in_turn = itertools.chain.from_iterable(
            ((k, i) for k, i in zip(drawn[0], turn, strict=True) if i is not None)
            for turn in itertools.zip_longest(*queues)
        )
        for cell in itertools.islice(in_turn, math.ceil((TEXTS - len(found)) / left)):
            found[cell] = reason
    return found


def _differs(tables: Tables) -> np.ndarray:
    """The cells that an arm scores unlike the last arm."""
    last = list(tables)[-1][0]
    apart = [np.abs(matrix.values_KN - tables[last, scorer].values_KN) > 0 for (_, scorer), matrix in tables.items()]
    found_KN: np.ndarray = np.any(apart, axis=0)
    return found_KN


def _draw(prompt: str, example: str) -> bytes:
    """A place in a fixed random order of cells."""
    return hashlib.sha256(f"{prompt} {example}".encode("utf-8", "surrogatepass")).digest()


def _texts(
    grid: Grid, evaluations: Mapping[str, Evaluation], cells: Mapping[tuple[int, int], Reason]
) -> list[dict[str, Any]]:
    """The texts of these cells. Where CHARACTERS do not reach, every reason loses its last cells."""
    places = {reason: itertools.count() for reason in cells.values()}
    turn = {cell: next(places[reason]) for cell, reason in cells.items()}
    return _bounded(
        {"prompt": k, "example": i, "why": reason, **_text(grid, evaluations, k, i)}
        for (k, i), reason in sorted(cells.items(), key=lambda item: turn[item[0]])
    )


def _bounded(texts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first texts, as far as CHARACTERS reach, in the order of the grid."""
    found, size = [], 0
    for text in texts:
        size += sum(len(part) for _, *parts in text["messages"] for part in parts if isinstance(part, str))
        size += sum(len(arm["said"][0]) for arm in text["arms"].values() if arm and arm["said"])
        if size > CHARACTERS:
            break
        found.append(text)
    return sorted(found, key=lambda text: (text["prompt"], text["example"]))


def _text(grid: Grid, evaluations: Mapping[str, Evaluation], k: int, i: int) -> dict[str, Any]:
    """messages: (role, beginning, characters left out, end). target: the right answer as the prompt wants it. accepted: other free texts that are right. choices: (index,
    as the prompt writes it, the choice's own text), the right one and those given always among them. arms: what each answered, None
    where the cell was not bought: logp of the kept choices in nats, said: (text, characters left out, tokens, stop) of the free answer,
    scores: (choice, score) by scorer."""
    template, example = grid.templates[k], grid.examples[i]
    surfaces = template.answer.surfaces(example)
    given = {int(matrix.answers_KN[k, i]) for done in evaluations.values() for matrix in done.scores.values()}
    needed = {example.answer, *(choice for choice in given if 0 <= choice < len(surfaces))}
    others = [c for c in range(len(surfaces)) if c not in needed]
    kept = sorted([*needed, *others[: max(0, CHOICES - len(needed))]])
    return {
        "messages": [[turn.role, *_ends(turn.text)] for turn in grid.chat(Cell(0, k, i))],
        "target": _start(grid.target(Cell(0, k, i)), "choice")[0],
        "gold": example.answer,
        "accepted": [_start(text, "choice")[0] for text in example.accepted[: CHOICES - 1]],
        "choices": [[c, _start(surfaces[c], "choice")[0], _start(example.choices[c], "choice")[0]] for c in kept],
        "choices_of": len(surfaces),
        "arms": {arm: _given(done.answers_KN[k][i], kept, done.scores, k, i) for arm, done in evaluations.items()},
    }


def _given(
    answered: Answered | None, kept: Iterable[int], scores: Mapping[Scorer, ScoreMatrix], k: int, i: int
) -> dict[str, Any] | None:
    if answered is None:
        return None
    return {
        "logp": _logp(answered, kept),
        "said": _said(answered),
        "scores": {
            scorer: [int(matrix.answers_KN[k, i]), float(matrix.values_KN[k, i])] for scorer, matrix in scores.items()
        },
    }


def _logp(answered: Answered, kept: Iterable[int]) -> list[float | None]:
    """Of the kept choices; None where it is not finite, and nothing where choices were not scored."""
    found = [answered.logp_C[c] for c in kept] if answered.logp_C else []
    return [round(logp, 4) if math.isfinite(logp) else None for logp in found]


def _said(answered: Answered) -> list[Any] | None:
    completion = answered.completion
    return None if completion is None else [*_start(completion.text, "answer"), completion.tokens, completion.stop]


def _example(grid: Grid, i: int) -> dict[str, Any]:
    example = grid.examples[i]
    fields = {name: _start(text, "field")[0] for name, text in itertools.islice(example.fields.items(), FIELDS)}
    if example.images:
        fields["image"] = ", ".join(image.digest[:12] for image in example.images)
    return {
        "example": i,
        "id": _start(example.id, "choice")[0],
        "fields": fields,
        "answer": _start(example.choices[example.answer], "choice")[0],
    }


def _start(text: str, kind: str) -> tuple[str, int]:
    """The beginning of a text, and how many characters were left out after it."""
    kept = text[: LONGEST[kind]]
    return kept, len(text) - len(kept)


def _ends(text: str) -> tuple[str, int, str]:
    """Beginning and end of a message, a third at the end, and how many characters were left out between them."""
    most = LONGEST["message"]
    if len(text) <= most:
        return text, 0, ""
    return text[: most - most // 3], len(text) - most, text[-(most // 3) :]
