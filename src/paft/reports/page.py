"""The report: a view of the results, rendered by one Jinja2 template into one file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from paft.config import dump_yaml
from paft.errors import DataError
from paft.evaluation.comparisons import Pairwise
from paft.reports import plots, tables, wording
from paft.reports.cells import Cells, between_view, cells_view, missing, unlike_note
from paft.reports.checks import check, complete
from paft.reports.exhibit import Shared, exhibit_between
from paft.reports.verdict import pairs_table
from paft.reports.wording import clean
from paft.store import write_text

HERE = Path(__file__).parent
LONGEST = 4000
"""Characters of a prompt that are shown; prompts.yaml in the run directory holds it whole."""
EXTREMES = 5
"""Prompts shown as an arm's worst, and as its best."""

TUNED_COLOURS = ("blue", "orange", "green", "purple", "ochre")


@dataclass(frozen=True)
class Arm:
    """One model of the comparison, with its colour."""

    name: str
    title: str
    colour: str
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Prompt:
    """A prompt as shown: texts in pieces (text, is a slot), and the accuracy under each arm by each scorer."""

    position: int
    id: str
    system: Sequence[tuple[str, bool]]
    text: Sequence[tuple[str, bool]]
    cut: str
    answers: Sequence[str]
    accuracies: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class StripRow:
    """An arm's line in the main figure. hints: what a dot says when pointed at, the figure and the prompt's own words."""

    arm: Arm
    strip: plots.Strip
    hints: Sequence[tuple[str, str]]
    mean: str
    bounds: str
    lowest: str


@dataclass(frozen=True)
class ScorerView:
    """Everything shown for one scorer."""

    name: str
    title: str
    meaning: str
    strips: Sequence[StripRow]
    rows: Sequence[tables.Row]
    differences: Sequence[tables.Row]
    compared: Sequence[tables.Compared]
    noise: str


@dataclass(frozen=True)
class Extremes:
    """An arm's worst and best prompts."""

    arm: Arm
    worst: Sequence[Prompt]
    best: Sequence[Prompt]


@dataclass(frozen=True)
class Training:
    """A trained arm: its curves and what the training did."""

    arm: Arm
    curve: plots.Curve | None
    """Loss by update, of a supervised training."""
    rewards: plots.Curve | None
    """Mean reward by update, of a training by rewards."""
    checks: Sequence[plots.Check]
    line: str
    report: Mapping[str, str]


@dataclass(frozen=True)
class Axes:
    """What the charts of all trainings share."""

    loss: plots.Axis
    reward: plots.Axis


@dataclass(frozen=True)
class Run:
    """A section of the page."""

    anchor: str
    model: str
    name: str
    headline: str
    verdicts: Sequence[str]
    cautions: Sequence[str]
    arms: Sequence[Arm]
    titles: Mapping[str, str]
    main: str
    scorers: Sequence[ScorerView]
    level: str
    part: bool
    """Whether of any arm a part of the cells was bought: accuracies of prompts are then what the cells let expect."""
    part_of: str
    """Of which arms, where not of all."""
    lead: Sequence[tables.Figure]
    """Mean and worst prompt of the last arm."""
    extremes: Sequence[Extremes]
    prompts: Sequence[Prompt]
    training: Sequence[Training]
    axes: Axes
    longest: int
    single: Prompt | None
    cells: Cells | None
    no_cells: str
    cost: Sequence[tuple[str, Sequence[str]]]
    facts: Sequence[tuple[str, Sequence[tuple[str, str]]]]
    methods: Sequence[tuple[str, str]]
    config: str
    commands: Sequence[str]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Joint:
    """The last arms of all runs cell by cell, as a run shows its arms."""

    arms: Sequence[Arm]
    main: str
    cells: Cells | None
    no_cells: str
    unlike: str


def write_report(
    results: Sequence[dict[str, Any]],
    *,
    html: Path,
    markdown: Path | None,
    exhibits: Sequence[Mapping[str, Any] | None] | None = None,
    across: Mapping[str, Sequence[Pairwise]] | None = None,
    last: Sequence[Shared] = (),
) -> None:
    """Write the page of these runs, one section each, and the Markdown table beside it.

    exhibits: of each run what `exhibit_of` chose of its cells, None where there is nothing. across: by scorer, pairs of models of
    different runs. last: of every run the last arm on what all share, nothing when they share too little. Raises DataError, before
    anything is written, when a result contradicts itself.
    """
    page = render(results, exhibits or [None] * len(results), across or {}, last)
    table = tables.markdown_table(results) if markdown is not None else ""
    for scorer, pairs in (across or {}).items():
        table += f"\nBetween runs, {wording.SCORERS.get(scorer, scorer)}:\n\n{pairs_table(pairs)}\n"
    write_text(html, page)
    if markdown is not None:
        write_text(markdown, table)


def render(
    results: Sequence[Mapping[str, Any]],
    exhibits: Sequence[Mapping[str, Any] | None],
    across: Mapping[str, Sequence[Pairwise]],
    last: Sequence[Shared],
) -> str:
    """The page as text."""
    if not results:
        raise DataError("no results to report; give at least one finished run directory")
    runs = []
    for position, (result, exhibit) in enumerate(zip(results, exhibits, strict=True)):
        with complete(result):
            check(result)
            runs.append(_run(result, exhibit, position))
    style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "cells.js"))
    script = "".join(scripts)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # the template's own style and script are trusted text; the policy lets the browser run exactly this script and load nothing
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        runs=runs,
        style=Markup(style),
        script=Markup(script),
        script_hash=digest,
        why_both=wording.WHY_BOTH,
        where_from=tables.WHERE_FROM,
        p_means=tables.P_MEANS,
        cost_columns=tables.COST_COLUMNS,
        between=[tables.between(pairs, scorer) for scorer, pairs in across.items()],
        joint=_joint(runs, exhibits, last) if last else None,
    )


def _run(result: Mapping[str, Any], exhibit: Mapping[str, Any] | None, position: int) -> Run:
    arms = _arms(result)
    scorers = wording.scorers(result)
    main = scorers[0]
    prompts = [_prompt(result, k, arms, scorers) for k in range(len(result["prompts"]["test"]))]
    training, axes, longest = _training(arms)
    last_accuracy_K = arms[-1].result["scores"][main]["accuracy_K"]
    single = result["prompts"]["single"]
    no_cells = missing(exhibit, result)
    part, part_of = wording.bought_in_part(result, main)
    last = arms[-1].result["scores"][main]["estimates"]
    return Run(
        anchor=f"run-{position + 1}",
        model=wording.model_of(result["config"]),
        name=clean(result["config"]["name"]),
        headline=wording.headline(result, main),
        verdicts=wording.verdicts(result, main),
        cautions=wording.cautions(result),
        arms=arms,
        titles={arm.name: arm.title for arm in arms},
        main=main,
        scorers=[_scorer_view(result, arms, scorer) for scorer in scorers],
        level=wording.levels(result, main),
        part=part,
        part_of=part_of,
        lead=[tables.figure_of(wording.pick(last, key)) for key in ("mean", "worst")],
        extremes=[_extremes(arm, prompts, main) for arm in reversed(arms)],
        prompts=[prompts[k] for k in sorted(range(len(prompts)), key=lambda k: (last_accuracy_K[k], k))],
        training=training,
        axes=axes,
        longest=longest,
        single=None if single is None else _shown(single, -1, {}),
        cells=None if exhibit is None or no_cells else cells_view(exhibit, result),
        no_cells=no_cells,
        cost=tables.cost_rows(result),
        facts=_facts(result),
        methods=tables.methods(result),
        config=clean(dump_yaml(result["config"])),
        commands=_commands(result),
        result=result,
    )


def _joint(runs: Sequence[Run], exhibits: Sequence[Mapping[str, Any] | None], last: Sequence[Shared]) -> Joint:
    held = [each for each, run in zip(exhibits, runs, strict=True) if each is not None and not run.no_cells]
    if len(held) < len(runs):
        lacking = ", ".join(run.name for run in runs if run.no_cells)
        return Joint([], "", None, f"Left out: the section of {lacking} says why there are no cells to show of it.", "")
    exhibit = exhibit_between(last, held, [run.result for run in runs])
    unlike = unlike_note(exhibit)
    if "tables" not in exhibit:
        reason = "Left out: of what the runs share, fewer than two prompts or two examples can be shown."
        return Joint([], "", None, reason, unlike)
    titles = [f"{run.name}: {run.arms[-1].title}" for run in runs]
    arms = [
        Arm(
            str(n),
            title if titles.count(title) == 1 else f"{title} (run {n + 1})",
            TUNED_COLOURS[(len(runs) - 1 - n) % len(TUNED_COLOURS)],
            run.arms[-1].result,
        )
        for n, (title, run) in enumerate(zip(titles, runs, strict=True))
    ]
    texts = {prompt["id"]: prompt for run in runs for prompt in run.result["prompts"]["test"]}
    result = {
        "arms": {arm.name: {"title": arm.title, "scores": side.tables} for arm, side in zip(arms, last, strict=True)},
        "prompts": {"test": [texts[each] for each in exhibit["of"]["prompts"]]},
    }
    return Joint(arms, wording.main_scorer(result), between_view(exhibit, result), "", unlike)


def _arms(result: Mapping[str, Any]) -> list[Arm]:
    """The arms in their order. Untrained ones are grey; of the trained ones the last is blue, the one before it orange."""
    tuned = [name for name, arm in result["arms"].items() if arm["train"] is not None]
    colours = {name: TUNED_COLOURS[place % len(TUNED_COLOURS)] for place, name in enumerate(reversed(tuned))}
    return [
        Arm(clean(name), clean(arm["title"]), colours.get(name, "grey"), arm) for name, arm in result["arms"].items()
    ]


def _prompt(result: Mapping[str, Any], k: int, arms: Sequence[Arm], scorers: Sequence[str]) -> Prompt:
    accuracies = {
        scorer: [wording.number(arm.result["scores"][scorer]["accuracy_K"][k]) for arm in arms] for scorer in scorers
    }
    return _shown(result["prompts"]["test"][k], k, accuracies)


def _shown(prompt: Mapping[str, Any], position: int, accuracies: Mapping[str, Sequence[str]]) -> Prompt:
    text, system = clean(prompt["text"]), clean(prompt["system"] or "")
    cuts = [
        f"the first {wording.thousands(LONGEST)} of {wording.thousands(len(each))} characters of {what}"
        for what, each in (("the system text", system), ("the prompt", text))
        if len(each) > LONGEST
    ]
    return Prompt(
        position,
        clean(prompt["id"]),
        wording.slots(system[:LONGEST]),
        wording.slots(text[:LONGEST]),
        "; ".join([*cuts, "prompts.yaml holds all"]) if cuts else "",
        [wording.first_words(answer, 60) for answer in prompt["answers"]],
        accuracies,
    )


def _scorer_view(result: Mapping[str, Any], arms: Sequence[Arm], scorer: str) -> ScorerView:
    return ScorerView(
        scorer,
        wording.SCORERS.get(scorer, scorer),
        wording.what_scorer_means(result, scorer),
        [_strip_row(result, arm, scorer) for arm in arms],
        tables.estimate_rows([arm.result for arm in arms], scorer, result["prompts"].get("others", {})),
        tables.difference_rows([arm.result for arm in arms], scorer),
        tables.comparison_rows(result, scorer),
        wording.noise_note(result, scorer),
    )


def _strip_row(result: Mapping[str, Any], arm: Arm, scorer: str) -> StripRow:
    scores = arm.result["scores"][scorer]
    hints = []
    for prompt, accuracy, invalid in zip(
        result["prompts"]["test"], scores["accuracy_K"], scores["invalid_K"], strict=True
    ):
        unread = f", {wording.percent(invalid)} unreadable" if invalid else ""
        # the prompt's own words stand last: whatever direction they run in, the figures before them stay in place
        words = f"{clean(prompt['id'])} \u00b7 {wording.first_words(prompt['text'])}"
        hints.append((f"{arm.title}: {wording.percent(accuracy)}{unread}", words))
    mean = scores["estimates"]["mean"]
    return StripRow(
        arm,
        plots.strip(scores["accuracy_K"], mean),
        hints,
        wording.number(mean["value"]),
        wording.interval(mean),
        wording.number(min(scores["accuracy_K"])),
    )


def _extremes(arm: Arm, prompts: Sequence[Prompt], scorer: str) -> Extremes:
    accuracy_K = arm.result["scores"][scorer]["accuracy_K"]
    order = sorted(range(len(prompts)), key=lambda k: (accuracy_K[k], k))
    count = min(EXTREMES, max(1, len(order) // 2))
    return Extremes(arm, [prompts[k] for k in order[:count]], [prompts[k] for k in reversed(order[-count:])])


def _training(arms: Sequence[Arm]) -> tuple[list[Training], Axes, int]:
    """The trained arms, and what their charts share: the axes of the loss and of the reward, and the updates of the longest training."""
    tuned = [arm for arm in arms if arm.result["train"] is not None]
    rewards = {arm.name: arm.result["train"].get("reward") or [] for arm in tuned}
    losses = {
        arm.name: [] if rewards[arm.name] else [row["loss"] for row in arm.result["train"]["loss"]] for arm in tuned
    }
    axes = Axes(
        *(plots.axis(max(found, default=1.0), min(found, default=0.0)) for found in map(_finite, (losses, rewards)))
    )
    longest = max((arm.result["train"]["updates"] for arm in tuned), default=0)
    found = []
    for arm in tuned:
        train = arm.result["train"]
        settings = train["settings"]
        report = {
            "Examples": wording.thousands(train["examples"]),
            "Epochs": wording.thousands(settings["epochs"]),
            "Updates": wording.thousands(train["updates"]),
            "Examples per update": wording.thousands(settings["batch_size"]),
            "Distinct prompts met": wording.thousands(train["distinct_prompts"]),
            "Tokens read": wording.thousands(train["tokens"]),
            "of these, answer tokens": wording.thousands(train["answer_tokens"]),
            "Time": wording.duration(train["seconds"]),
        }
        earned = rewards[arm.name]
        if any(rewards.values()):
            tenth = max(1, len(earned) // 10)
            report["Answers written"] = wording.thousands(train["completions"]) if earned else "\u2013"
            report["Reward, first tenth and last tenth of the updates"] = (
                f"{sum(earned[:tenth]) / tenth:.2f}, {sum(earned[-tenth:]) / tenth:.2f}" if earned else "\u2013"
            )
        curve = plots.loss_curve(losses[arm.name], axes.loss.top, axes.loss.bottom)
        reward = plots.loss_curve(earned, axes.reward.top, axes.reward.bottom)
        checked = plots.checks(train["dev"], longest)
        found.append(Training(arm, curve, reward, checked, plots.joined(checked), report))
    return found, axes, longest


def _finite(values: Mapping[str, Sequence[float | None]]) -> list[float]:
    return [each for some in values.values() for each in some if each is not None and math.isfinite(each)]


def _facts(result: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the figures rest on, in groups of (what, value)."""
    task, prompts, config = result["task"], result["prompts"], result["config"]
    data = [
        ("Task", task["name"]),
        ("Origin", "; ".join(task["origins"])),
        ("Scored split", task["split"]),
        ("Examples scored", wording.thousands(task["test_examples"])),
        ("Examples trained on", wording.thousands(task["train_examples"])),
        ("Examples held out for checks", wording.thousands(task["dev_examples"])),
        ("Rows not readable, left out", wording.thousands(task["rows_not_readable"])),
    ]
    sets = [
        ("Prompt set", prompts["set"]),
        ("Prompts for training", wording.thousands(prompts["train"])),
        ("Prompts for checks", wording.thousands(prompts["dev"])),
        ("Prompts scored, unseen", wording.thousands(len(prompts["test"]))),
        (
            "Most similar train and test prompt",
            f"{prompts['similarity_to_train']:.2f} (Jaccard similarity of character 5-grams, 1 is the same text)"
            if prompts["train"]
            else "no train prompts",
        ),
        *(
            (
                f"Distance of wordings, {tables.OTHERS[split]} to scored",
                f"{other['mmd2']:.4f} (squared MMD of 5-grams, {other['prompts']} prompts; permutation p {other['p']:.3g})",
            )
            for split, other in prompts.get("others", {}).items()
        ),
        ("Fingerprint", prompts["fingerprint"]),
    ]
    models = [("Model", wording.model_of(config)), ("Seed", str(config["seed"]))]
    for arm in result["arms"].values():
        about = arm["fingerprint"]
        if arm["budget"]["cells"] < arm["budget"]["of"]:
            about += f"; budget {arm['budget']['kind']}: {wording.spent_note(arm)}"
        if arm["seams"]:
            about += f"; in {wording.thousands(arm['seams'])} cells a token spans the end of the prompt and the start of the answer"
        models.append((arm["title"], about))
    machine = [(key, "none" if value is None else str(value)) for key, value in result["environment"].items()]
    made = [("paft", result["paft"]), ("Results made", result["made"]), *machine]
    groups = {"Data": data, "Prompts": sets, "Models": models, "Environment": made}
    return [(title, [(clean(key), clean(value)) for key, value in rows]) for title, rows in groups.items()]


def _commands(result: Mapping[str, Any]) -> list[str]:
    general = "paft run config.yaml --out DIR"
    return ["paft demo", general] if result["config"]["name"] == "demo" else [general]
