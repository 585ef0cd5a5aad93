"""The models of a run, one after the other: loaded, served, read from a record, or trained here."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paft.config import FixedSchedule, GRPOConfig, RunConfig, SearchConfig, ServerConfig, SFTConfig
from paft.errors import AssetError, ConfigError, DataError
from paft.evaluation.evaluate import Asker, Scorer
from paft.evaluation.recorded import load_recorded
from paft.grid import Grid
from paft.lm.ranks import Ranks
from paft.lm.types import LM
from paft.materials import DEV_SUBSET, Materials, take, train_grid
from paft.prompts import Template
from paft.prompts.search import choose, features_of, top_accuracy, zopo
from paft.store import ArmDir, CellStore, RunDir, disk_errors, write_json
from paft.watch import Watcher

if TYPE_CHECKING:
    from paft.lm.hf import HFModel
    from paft.lm.server import ServerLM


def learners(
    config: RunConfig,
    m: Materials,
    folder: RunDir,
    watch: Watcher,
    names: Sequence[str],
    ranks: Ranks = Ranks(),  # noqa: B008
    ready: Callable[[], None] = lambda: None,
) -> Generator[tuple[str, LM]]:
    """The models of some arms, one after the other: each is only good until the next is asked for. ready: called before the first, when the
    model is loaded and no finished training is of other settings."""
    model: HFModel | None = None
    identity = ""
    with watch.stage("load model"):
        if any(config.arms[name].loaded and config.arms[name].model is None for name in names):
            model = _load(config, config.model, watch.say, m.shows_images)
            identity = model.fingerprint
            _check_targets(config, names, model)
    for name in names:  # before the first of them is trained
        if (settings := config.training_of(name)) is not None and folder.arm(name).train.exists():
            _check_arm(name, settings, config, m, identity, folder.arm(name))
    ready()
    for name in names:
        arm, settings = config.arms[name], config.training_of(name)
        if arm.server is not None:
            served = _served(config, arm.server, watch)
            try:
                yield name, served
            finally:
                served.close()
            continue
        if arm.recorded is not None:
            yield name, load_recorded(Path(arm.recorded), [m.grid, *m.others.values()])
            continue
        learner = _load(config, arm.model, watch.say, m.shows_images) if arm.model is not None else model
        assert learner is not None
        if settings is not None:
            assert model is not None  # an arm with a model of its own trains none
            learner = _train_arm(name, settings, config, m, model, identity, folder.arm(name), watch, ranks)
        if arm.adapter is not None:
            learner = learner.with_adapter(Path(arm.adapter))
        yield name, learner
        # the run's model again: an adapter comes off, fully trained weights are loaded anew
        if arm.model is None and (arm.adapter is not None or (settings is not None and settings.lora is not None)):
            model = learner.without_adapter()
        elif settings is not None:
            del learner, model
            model = _load(config, config.model, watch.say, m.shows_images)


def check_arms(config: RunConfig, folder: RunDir) -> None:
    """Raises an error for what an arm names and is not there, and for a directory that holds another training of it, before anything is
    loaded, trained or written."""
    for name, arm in config.arms.items():
        settings = config.training_of(name)
        if settings is not None and not (isinstance(settings.schedule, FixedSchedule) and settings.schedule.search):
            folder.arm(name).check_training(settings.decisive())
        if arm.adapter is not None:
            check_adapter(Path(arm.adapter))
        if arm.recorded is not None and not Path(arm.recorded).is_file():
            raise DataError(f"{arm.recorded}: no such file; expected recorded answers (.jsonl, docs/harnesses.md)")
        if arm.server is not None and arm.server.key_env and not os.environ.get(arm.server.key_env, "").strip():
            raise ConfigError(f"arms.{name}.server: environment variable {arm.server.key_env} is empty; export the key")


def check_adapter(folder: Path) -> None:
    """Raises AssetError where no adapter lies there."""
    if not (folder / "adapter_config.json").exists():
        raise AssetError(f"adapter {folder}: no adapter_config.json; expected a directory saved by PEFT")


def untrained(config: RunConfig, say: Callable[[str], None] = lambda _: None, images: bool = False) -> HFModel:
    """The model that a run starts from. Raises ConfigError where its settings name none."""
    if config.model is None:
        raise ConfigError("model is missing: the settings of the run name none that is loaded here")
    return _load(config, config.model, say, images)


def _load(config: RunConfig, name: str | None, say: Callable[[str], None], images: bool = False) -> HFModel:
    from paft.lm.hf import load_model  # torch starts here, not with `paft --help`

    assert name is not None, "the settings name a model for every arm that is not served"
    return load_model(
        name,
        source=config.source,
        dtype=config.dtype,
        style=config.style,
        chat_template_kwargs=config.chat_template_kwargs,
        quantization=config.quantization,
        attention=config.attention,
        images=images,
        say=say,
    )


def _served(config: RunConfig, server: ServerConfig, watch: Watcher) -> ServerLM:
    from paft.lm.server import open_server

    return open_server(
        server,
        source=config.source,
        style=config.style,
        chat_template_kwargs=config.chat_template_kwargs,
        say=watch.say,
    )


def _train_arm(
    name: str,
    settings: SFTConfig | GRPOConfig,
    config: RunConfig,
    m: Materials,
    model: Any,
    identity: str,
    out: ArmDir,
    watch: Watcher,
    ranks: Ranks,
) -> Any:
    from paft.lm.hf import load_model
    from paft.training.setup import rests_on

    train: Any
    if isinstance(settings, GRPOConfig):
        from paft.training.grpo import train_grpo as train
    else:
        from paft.training.sft import train_sft as train
    out.root.mkdir(parents=True, exist_ok=True)
    grid = train_grid(m.prompts, m.train, settings, config.seed)
    if isinstance(settings.schedule, FixedSchedule) and settings.schedule.search is not None:
        with watch.stage(f"search {name}") as tick:
            found = ranks.share(
                _find_prompt(settings.schedule.search, config, grid.templates, m, model, out, tick, watch)
                if ranks.rank == 0
                else None
            )
        settings = settings.model_copy(update={"schedule": FixedSchedule(prompt=found)})
    what, dev = settings.decisive(), _dev_grid(m, settings)
    start = out.beside(before) if (before := config.arms[name].start) is not None else None
    fingerprint = rests_on(settings, config.seed, identity, grid, dev, start.fingerprint if start is not None else None)
    if settings.lora is None and (kind := str(next(model.model.parameters()).dtype)) in (
        "torch.bfloat16",
        "torch.float16",
    ):
        watch.say(
            f"{name}: all weights are trained in {kind.removeprefix('torch.')}, where steps below its precision are lost; mixed precision over "
            "float32 weights is dtype=float32 train.arguments={bf16: true}"
        )
    with watch.stage(f"train {name}") as tick:
        if ranks.share(out.begin_training(what, fingerprint) if ranks.rank == 0 else None):
            with disk_errors(out.root):
                tuned = train(
                    model,
                    grid,
                    settings,
                    out,
                    seed=config.seed,
                    dev=dev,
                    start=start.adapter if start is not None else None,
                    tick=tick,
                    say=watch.say,
                    ranks=ranks,
                )
            if settings.lora is not None:
                # what several processes have trained may be sharded over them
                return (
                    tuned
                    if ranks.size == 1
                    else _load(config, config.model, watch.say, m.shows_images).with_adapter(out.adapter)
                )
        else:
            watch.say(f"{name}: trained already, taking {out.adapter if settings.lora is not None else out.model}")
            if settings.lora is not None:
                return model.with_adapter(out.adapter)
        # all weights were trained: taken from disk now and after a resume, so that both are the same model to the store
        return load_model(
            str(out.model), dtype=config.dtype, style=config.style, attention=config.attention, images=m.shows_images
        )


def _check_targets(config: RunConfig, names: Sequence[str], model: HFModel) -> None:
    from paft.lm.hf import check_targets

    for name in names:
        if (settings := config.training_of(name)) is not None and settings.lora is not None:
            check_targets(model.model, settings.lora)


def _check_arm(
    name: str, settings: SFTConfig | GRPOConfig, config: RunConfig, m: Materials, identity: str, out: ArmDir
) -> None:
    """Raises an error where the directory of an arm holds another training. What that rests on may be known later only: the prompt that
    is searched, the arm that it starts from."""
    from paft.training.setup import rests_on

    start = out.beside(before) if (before := config.arms[name].start) is not None else None
    searched = isinstance(settings.schedule, FixedSchedule) and settings.schedule.search
    if searched or (start is not None and not start.train.exists()):
        return
    grid = train_grid(m.prompts, m.train, settings, config.seed)
    held = start.fingerprint if start is not None else None
    out.check_training(
        settings.decisive(), rests_on(settings, config.seed, identity, grid, _dev_grid(m, settings), held)
    )


def _dev_grid(m: Materials, settings: SFTConfig | GRPOConfig) -> Grid:
    return Grid(m.prompts.dev[: settings.dev_prompts], take(m.dev, settings.dev_examples, DEV_SUBSET))


def _find_prompt(
    search: SearchConfig,
    config: RunConfig,
    pool: Sequence[Template],
    m: Materials,
    model: LM,
    out: ArmDir,
    tick: Any,
    watch: Watcher,
) -> str:
    """Id of the train prompt that the search ends at, on held-out examples; the untrained model answers by choice where there is one."""
    examples = take(m.dev, search.examples, DEV_SUBSET)
    budget = min(search.prompts, len(pool))
    grid = Grid(pool, examples, m.dev)
    scorer: Scorer = "generation" if m.task.num_choices == 1 else "likelihood"
    settings = config.evaluate.model_copy(update={"scorers": [scorer], "reference": None})
    with CellStore(out.searched) as store:
        asker = Asker(model, grid, settings, store, tick)
        asker.total = budget * len(examples)

        def score(prompts: Sequence[int]) -> list[float]:
            asker.ask([(k, i) for k in prompts for i in range(len(examples))])
            values_KN = asker.matrix(scorer).values_KN
            return [float(values_KN[k].mean()) for k in prompts]

        if search.kind == "zopo":
            found = zopo(features_of(pool), score, budget, config.seed)
        else:
            found = top_accuracy(len(pool), score, budget, config.seed)
    chosen = pool[choose(found)].id
    told = {"prompt": chosen, "scorer": scorer, "examples": len(examples), "cells": len(found) * len(examples)}
    write_json(out.search, {**told, "accuracy": {pool[k].id: score for k, score in found.items()}})
    watch.say(
        f"{search.kind}: prompt {chosen}, {max(found.values()):.3f} on {len(examples)} held-out examples, best of {len(found)}"
    )
    return chosen
