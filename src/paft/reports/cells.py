"""Prompts and examples cell by cell, as the page shows them: maps, the examples that break, the text of chosen cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paft.errors import few
from paft.reports import wording
from paft.reports.exhibit import RIGHT, TIED, UNBOUGHT, UNREADABLE, VERSION, WRONG
from paft.reports.wording import clean, thousands

KINDS = {
    RIGHT: ("right", "right"),
    TIED: ("tied", "right among tied choices"),
    WRONG: ("wrong", "wrong"),
    UNREADABLE: ("unreadable", "unreadable"),
    UNBOUGHT: ("unbought", "not bought"),
}
"""Letters of a drawn table: (class in the style sheet, what a reader is told)."""
PARTLY = "partly right"
"""The same of a letter between right and wrong where answers are free: what is written is worth a part."""

REASONS = {
    "breaks": "The example is listed: right under some prompts and wrong under others.",
    "lost": "The example is listed: right under no prompt.",
    "unreadable": "An answer cannot be read.",
    "differs": "The models do not score alike.",
    "wrong": "An answer that is wrong, or only partly right.",
    "alike": "No two answers are scored differently.",
}

ENDED = {
    "eos": "ended by the model",
    "limit": "cut off at the limit",
    "settled": "stopped once its reading was settled",
}
"""Why a free answer stopped."""

BUTTONS = 4
"""Cells that a listed example points at."""

Named = Mapping[int, tuple[str, str]]
"""Id and first words of prompts by their place in the grid."""


@dataclass(frozen=True)
class PromptRow:
    """Counts of one prompt, and against another prompt the examples lost and won."""

    id: str
    words: str
    counts: Sequence[str]
    best: str
    median: str


@dataclass(frozen=True)
class Listed:
    """An example of a list. fields: (name, text). cells: (key of the cell's text, what the button says)."""

    id: str
    fields: Sequence[tuple[str, str]]
    answer: str
    right: str
    cells: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Map:
    """A drawn table, or the difference of two arms.

    show: the arm's place, of a difference both places ("2-0"), whose letters the script takes from their tables: `cells` is empty.
    rows, columns: drawn prompts and examples in their order on the map.
    """

    scorer: str
    scorer_title: str
    show: str
    title: str
    cells: str
    rows: str
    columns: str
    order: str
    label: str
    legend: Sequence[tuple[str, str]]
    kinds: Sequence[str] = ()
    prompts: Sequence[PromptRow] = ()
    best: str = ""
    median: str = ""
    breaks: Sequence[Listed] = ()
    lost: Sequence[Listed] = ()
    summary: str = ""


@dataclass(frozen=True)
class Answer:
    """What one arm answered to a cell: free text (None: not asked) with a note, choice and verdict by scorer."""

    said: str | None
    note: str
    read: Mapping[str, str]
    logp: Sequence[str]


@dataclass(frozen=True)
class Text:
    """A cell spelled out. messages: (role, beginning, what was left out, end)."""

    key: str
    prompt: str
    example: str
    reason: str
    messages: Sequence[tuple[str, str, str, str]]
    target: str
    gold: str
    choices: Sequence[str]
    left_out: str
    answers: Sequence[Answer | None]


@dataclass(frozen=True)
class Cells:
    """All that the page shows of single cells."""

    drawn: str
    start: str
    """What is shown at first: `show` of a map."""
    scorers: Sequence[tuple[str, str]]
    maps: Sequence[Map]
    prompts: Sequence[str]
    examples: Sequence[str]
    keys: Sequence[str]
    """Of the drawn prompts and examples, the places in the grid: "3-17" names the text of prompt 3 and example 17."""
    texts: Sequence[Text]
    spelled: str


def missing(exhibit: Mapping[str, Any] | None, result: Mapping[str, Any]) -> str:
    """Why an exhibit cannot be shown beside a result; empty when it can."""
    if exhibit is None:
        return "Of this run no single cells were kept for the report; score it again to see them."
    made_of = {
        "prompts": [prompt["id"] for prompt in result["prompts"]["test"]],
        "examples": result["task"]["test_examples"],
        "arms": {name: [arm["fingerprint"], arm["budget"]["cells"]] for name, arm in result["arms"].items()},
    }
    if exhibit.get("version") != VERSION or exhibit["of"] != made_of:
        return "The cells in exhibit.json are of other scores, or by another version of paft, and left out; score the run again."
    return ""


def cells_view(exhibit: Mapping[str, Any], result: Mapping[str, Any]) -> Cells:
    """The exhibit of a run in words and in the order of the page."""
    titles = {name: clean(arm["title"]) for name, arm in result["arms"].items()}
    places = list(titles)
    order = {scorer: place for place, scorer in enumerate(wording.scorers(result))}
    prompts = {
        k: (clean(prompt["id"]), wording.first_words(prompt["text"], 60))
        for k, prompt in enumerate(result["prompts"]["test"])
    }
    examples = {each["example"]: each for each in exhibit["examples"]}
    rows, columns = exhibit["drawn"]["prompts"], exhibit["drawn"]["examples"]
    texts = [_text(text, prompts, examples, places, list(order)) for text in exhibit["texts"]]
    of_prompts, of_examples = len(prompts), exhibit["of"]["examples"]
    drawn = ""
    if len(columns) < of_examples or len(rows) < of_prompts:
        drawn = (
            f"Drawn are {thousands(len(rows))} of {thousands(of_prompts)} prompts and {thousands(len(columns))} of "
            f"{thousands(of_examples)} examples, evenly spaced from the hardest to the easiest over all arms. "
            "Counts and lists rest on all cells; scores.parquet holds every one."
        )
    holes = any(table["counts"][UNBOUGHT] for table in exhibit["tables"])
    maps = [_map(table, titles, places, prompts, examples, exhibit["texts"]) for table in exhibit["tables"]]
    maps += [_difference(each, titles, places, holes) for each in exhibit["differences"]]
    maps.sort(key=lambda each: order[each.scorer])
    return Cells(
        drawn,
        str(len(places) - 1),
        [(scorer, wording.SCORERS.get(scorer, scorer)) for scorer in order],
        maps,
        [" \u00b7 ".join(prompts[k]) for k in rows],
        [_in_a_line(examples[i]) for i in columns],
        [" ".join(map(str, rows)), " ".join(map(str, columns))],
        texts,
        f"{thousands(len(texts))} cells are spelled out: for each listed example one that is right and one that is wrong, as far as there are and room "
        "allows, then unreadable answers, cells on which arms differ and wrong ones, prompts in turn. Long texts are shortened, and say so.",
    )


def between_view(exhibit: Mapping[str, Any], result: Mapping[str, Any]) -> Cells:
    """The same for what `exhibit_between` chose; result: as of a run whose arms are the last ones of the runs."""
    view = cells_view(exhibit, result)
    shared, drawn = len(exhibit["of"]["prompts"]), exhibit["drawn"]
    return replace(
        view,
        drawn=f"Drawn are {thousands(len(drawn['prompts']))} of {thousands(shared)} shared prompts and "
        f"{thousands(len(drawn['examples']))} of {thousands(exhibit['of']['examples'])} shared examples; drawn and listed are only "
        "examples that a run's own section names. Counts rest on all shared cells.",
        start=f"{len(result['arms']) - 1}-0",
        spelled=f"{thousands(len(view.texts))} cells are spelled out, of those that a run's own section spells out: cells that are scored "
        "differently first, then those of listed examples. Long texts are shortened, and say so.",
    )


def unlike_note(exhibit: Mapping[str, Any]) -> str:
    """What has one id and is not the same in all runs; empty when nothing is known to be."""
    found = exhibit["unlike"]
    kinds = {**found, "cells": [f"{prompt} on {example}" for prompt, example in found["cells"]]}
    parts = [f"{kind} {clean(few(names))}" for kind, names in kinds.items() if names]
    if not parts:
        return ""
    return (
        f"Under one id the runs asked different things: {'; '.join(parts)}. Such prompts and examples are left out of the maps and lists, "
        "such cells are not spelled out; the figures between runs above include them."
    )


def _map(
    table: Mapping[str, Any],
    titles: Mapping[str, str],
    places: Sequence[str],
    prompts: Named,
    examples: Mapping[int, Mapping[str, Any]],
    texts: Sequence[Mapping[str, Any]],
) -> Map:
    arm, scorer = table["arm"], table["scorer"]
    kinds = [letter for letter in KINDS if table["counts"][letter] or letter in (RIGHT, WRONG)]
    told = {letter: PARTLY if (letter, scorer) == (TIED, "generation") else KINDS[letter][1] for letter in kinds}
    counted = ", ".join(f"{thousands(table['counts'][letter])} {told[letter]}" for letter in kinds)

    def against(row: Mapping[str, Any], which: str) -> str:
        if row["prompt"] == table[which]:
            return "itself"
        lost, won = row[which]
        return f"\u2212{thousands(lost)} / +{thousands(won)}"

    rows = [table["prompts"][place] for place in table["rows"]]
    free = any(row.get("written") for row in rows)  # an exhibit of an earlier day has none

    def written(row: Mapping[str, Any]) -> list[str]:
        if not free:
            return []
        tokens, ended = row["written"] or (math.nan, math.nan)
        return [wording.MISSING] * 2 if math.isnan(tokens) else [f"{tokens:.1f}", wording.number(ended)]

    def listed(which: str) -> list[Listed]:
        return [_listed(examples[i], right, asked, table, prompts, texts) for i, right, asked in table[which]["listed"]]

    breaks, lost = table["breaks"]["count"], table["lost"]["count"]
    between = table["judged"] - table["all_right"] - breaks - lost
    rest = f", {thousands(between)} {PARTLY if scorer == 'generation' else 'tied'} under some" if between else ""
    return Map(
        scorer=scorer,
        scorer_title=wording.SCORERS.get(scorer, scorer),
        show=str(places.index(arm)),
        title=titles[arm],
        cells=table["cells"],
        rows=" ".join(map(str, table["rows"])),
        columns=" ".join(map(str, table["columns"])),
        order="Prompts from the lowest accuracy down to the highest, examples from the hardest on the left to the easiest.",
        label=f"{titles[arm]}, {wording.SCORERS.get(scorer, scorer)}: {len(table['rows'])} prompts by {len(table['columns'])} examples. "
        f"Of all cells: {counted}. The counts of every prompt stand in the table below.",
        legend=[(KINDS[letter][0], told[letter]) for letter in kinds],
        kinds=list(told.values()) + ["tokens an answer", "ended by itself, %"] * free,
        prompts=[
            PromptRow(
                *prompts[row["prompt"]],
                [thousands(row["counts"][letter]) for letter in kinds] + written(row),
                against(row, "best"),
                against(row, "median"),
            )
            for row in rows
        ],
        best=prompts[table["best"]][0],
        median=prompts[table["median"]][0],
        breaks=listed("breaks"),
        lost=listed("lost"),
        summary=f"Of {thousands(table['judged'])} examples asked under at least two prompts, {thousands(table['all_right'])} are right under "
        f"all of them, {thousands(breaks)} right under some and wrong under others, {thousands(lost)} right under none{rest}.",
    )


def _difference(each: Mapping[str, Any], titles: Mapping[str, str], places: Sequence[str], holes: bool) -> Map:
    a, b, scorer = each["a"], each["b"], each["scorer"]
    only_a, only_b, both, neither = (thousands(count) for count in each["counts"])
    legend = [
        ("first", f"only {titles[a]} right: {only_a}"),
        ("second", f"only {titles[b]} right: {only_b}"),
        ("right", f"both right: {both}"),
        ("neither", f"neither: {neither}"),
    ]
    return Map(
        scorer=scorer,
        scorer_title=wording.SCORERS.get(scorer, scorer),
        show=f"{places.index(a)}-{places.index(b)}",
        title=f"{titles[a]} against {titles[b]}",
        cells="",
        rows=" ".join(map(str, each["rows"])),
        columns=" ".join(map(str, each["columns"])),
        order=f"Prompts from where {titles[a]} loses most down to where it gains most, examples likewise from left to right.",
        label=f"{titles[a]} against {titles[b]}, {wording.SCORERS.get(scorer, scorer)}. Of the cells that both bought: "
        f"{', '.join(text for _, text in legend)}.",
        legend=[*legend, ("unbought", "not bought by both")] if holes else legend,
    )


def _listed(
    example: Mapping[str, Any],
    right: int,
    asked: int,
    table: Mapping[str, Any],
    prompts: Named,
    texts: Sequence[Mapping[str, Any]],
) -> Listed:
    cells: list[tuple[int, str, str]] = []  # one of each verdict comes first
    verdicts: list[str] = []
    for text in texts:
        arm = text["arms"][table["arm"]]
        if text["example"] == example["example"] and arm is not None:
            choice, score = arm["scores"][table["scorer"]]
            verdict = _verdict(choice, score, table["scorer"])
            key, says = f"{text['prompt']}-{text['example']}", f"{prompts[text['prompt']][0]}: {verdict}"
            cells.append((verdicts.count(verdict), key, says))
            verdicts.append(verdict)
    return Listed(
        clean(example["id"]),
        [(clean(name), wording.first_words(field, 110)) for name, field in example["fields"].items()],
        wording.first_words(example["answer"], 50),
        f"{right} of {asked}",
        [(key, says) for _, key, says in sorted(cells, key=lambda cell: cell[0])[:BUTTONS]],
    )


def _verdict(choice: int, score: float, scorer: str) -> str:
    if score not in (0, 1):
        return f"{PARTLY if scorer == 'generation' else 'tied'}, scored {wording.percent(score)}"
    return "right" if score else "unreadable" if choice < 0 else "wrong"


def _in_a_line(example: Mapping[str, Any]) -> str:
    text = "; ".join(wording.first_words(field, 70) for field in example["fields"].values())
    return f"{clean(example['id'])} \u00b7 {wording.first_words(text, 110)} \u00b7 right answer: {wording.first_words(example['answer'], 40)}"


def _cut(text: str, left_out: int) -> str:
    return clean(text) + (" \u2026" if left_out else "")


def _text(
    text: Mapping[str, Any],
    prompts: Named,
    examples: Mapping[int, Mapping[str, Any]],
    arms: Sequence[str],
    scorers: Sequence[str],
) -> Text:
    k, i = text["prompt"], text["example"]
    written = {c: wording.first_words(surface) for c, surface, _ in text["choices"]}
    own = {c: "" if surface == choice else wording.first_words(choice, 40) for c, surface, choice in text["choices"]}
    more = text["choices_of"] - len(written)
    return Text(
        f"{k}-{i}",
        prompts[k][0],
        clean(examples[i]["id"]),
        REASONS[text["why"]],
        [
            (role, clean(head), f"{thousands(left_out)} characters left out" if left_out else "", clean(tail))
            for role, head, left_out, tail in text["messages"]
        ],
        " / ".join(wording.first_words(each) for each in (text["target"], *text.get("accepted", ()))),
        own[text["gold"]],
        [f"{written[c]} ({own[c]})" if own[c] else written[c] for c in written],
        f"{thousands(more)} more choices are not shown" if more else "",
        [_answer(text["arms"][arm], written, scorers, text["choices_of"] == 1) for arm in arms],
    )


def _answer(
    arm: Mapping[str, Any] | None, written: Mapping[int, str], scorers: Sequence[str], is_open: bool
) -> Answer | None:
    if arm is None:
        return None
    said, note = None, ""
    if arm["said"]:
        text, left_out, tokens, stop = arm["said"]
        said = _cut(text, left_out)
        note = f"{thousands(tokens)} token{'s' * (tokens != 1)}, {ENDED[stop]}"
    read = {}
    unread = "no answer, or several" if is_open else "no choice, or several"
    for scorer in scorers:
        choice, score = arm["scores"][scorer]
        read[scorer] = (
            f"{_verdict(choice, score, scorer)}: {written.get(choice, 'another answer') if choice >= 0 else unread}"
        )
    return Answer(
        said, note, read, [wording.MISSING if x is None else f"{x:.3f}".replace("-", "\u2212") for x in arm["logp"]]
    )
