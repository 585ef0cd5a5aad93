"""paft export: files for other trainers and harnesses, and trained models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from paft.cli.common import ArmOf, NewFolder, Overrides, PromptsOf, SettingsFile, TaskOf, watcher
from paft.config import RunConfig, load_run_config
from paft.errors import ConfigError, few
from paft.store import require_new_file

export_app = typer.Typer(
    help="For other tools: the schedule for trainers, prompts x examples for harnesses, trained models for everybody.",
    no_args_is_help=True,
)


@export_app.command("dataset")
def export_dataset(
    config: Annotated[Path, typer.Argument(help="Settings file (YAML or JSON)")],
    overrides: Overrides = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="New file: .parquet or .jsonl", callback=require_new_file)
    ] = Path("train.parquet"),
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
    with watcher() as watch:
        settings, training, grid, renderer = _training(config, overrides, arm, watch.say)
        if checked == "messages" and settings.chat_template_kwargs:
            raise ConfigError(
                f"--as messages: chat_template_kwargs {settings.chat_template_kwargs} is not in the turns, and the trainer's template would "
                "not know it; give --as text, which has it written in"
            )
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


@export_app.command("axolotl")
def export_axolotl(
    config: SettingsFile,
    out: NewFolder,
    overrides: Overrides = None,
    arm: ArmOf = "paft",
) -> None:
    """Write a training for axolotl 0.19: the tokens of all epochs in schedule order, and the settings.

    Example: paft export axolotl examples/piqa-small.yaml -o piqa-axolotl
    """
    from paft.integrations.axolotl import export_axolotl as write

    _write_training(write, config, overrides, arm, out, "axolotl train")


def _write_training(
    write: Callable[..., Any], config: Path, overrides: list[str] | None, arm: str, out: Path, command: str
) -> None:
    """A folder for a trainer, and the command that trains on it."""
    from paft.integrations.export import other_weights

    with watcher() as watch:
        settings, training, grid, renderer = _training(config, overrides, arm, watch.say)
        others = other_weights(settings)
        done = write(grid, renderer, settings, arm, out, say=watch.say)
    _say_rows(out, done, training, grid.shape[1])
    if others:
        typer.echo(f"  {others}")
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
    materials = prepare(settings, say, judges=False)
    assert settings.model is not None  # an arm is trained
    renderer = load_renderer(
        settings.model,
        source=settings.source,
        style=settings.style,
        chat_template_kwargs=settings.chat_template_kwargs,
        say=say,
    )
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
    out: NewFolder,
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
    with watcher() as watch:
        write(Path(folder), arm, out, merge=merge, say=watch.say)
    typer.echo(f"{out}: {'merged weights' if merge else 'as trained'}, model card in README.md")
    if to is not None:
        typer.echo(push(out, to, private=not public))


@export_app.command("lm-eval")
def export_lm_eval(
    task: TaskOf,
    out: NewFolder,
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write a task for every test prompt, for lm-evaluation-harness 0.4.13; `paft import lm-eval` reads its answers back.

    Example: paft export lm-eval --task piqa -o piqa-lm-eval style=raw evaluate.prompts=10 evaluate.examples=200
    """
    from paft.integrations.lm_eval import export_lm_eval as write

    settings = load_run_config(None, overrides or [], _harness_settings("lm-eval", task, prompts))
    with watcher() as watch:
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
    out: NewFolder,
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write one configuration for all test prompts, for OpenCompass 0.5.4; `paft import opencompass` reads its predictions back.

    Example: paft export opencompass --task piqa --model Qwen/Qwen3-0.6B -o piqa-opencompass style=raw evaluate.prompts=10
    """
    from paft.integrations.opencompass import export_opencompass as write

    settings = load_run_config(
        None, overrides or [], {**_harness_settings("opencompass", task, prompts), "model": model}
    )
    with watcher() as watch:
        groups = write(settings, out, watch.say)
    typer.echo(f"{out}: {settings.task}, summed up as {few(groups)}; run it, then import")
    typer.echo(f"  opencompass {out / 'config.py'} -w OUTPUT")
    typer.echo(f"  paft import opencompass OUTPUT --asked {out} --out runs/NAME")


@export_app.command("cells")
def export_cells(
    task: TaskOf,
    out: NewFolder,
    prompts: PromptsOf = None,
    overrides: Overrides = None,
) -> None:
    """Write every cell as a line of JSON, for Inspect, NeMo-Skills or any tool that asks models; `paft import` reads the answers back.

    Example: paft export cells --task piqa -o piqa-cells evaluate.prompts=10 evaluate.examples=200
    """
    from paft.integrations.cells import LINES
    from paft.integrations.cells import export_cells as write

    settings = load_run_config(None, overrides or [], _harness_settings("cells", task, prompts))
    with watcher() as watch:
        count = write(settings, out, watch.say)
    typer.echo(f"{out / LINES}: {count} lines; have them answered, then import")
    typer.echo(
        f"  paft import jsonl ANSWERS.jsonl --asked {out} --out runs/NAME      (inspect LOGS for logs of Inspect)"
    )


def _harness_settings(harness: str, task: str, prompts: str | None) -> dict[str, Any]:
    """Settings of a run whose answers are still to be recorded."""
    from paft.tasks import load_task

    return {
        "name": f"import-{harness}-" + re.sub(r"[^\w.-]+", "-", load_task(task).name),
        "task": task,
        "prompts": prompts,
        "arms": {"model": {"recorded": "answers.jsonl"}},
    }
