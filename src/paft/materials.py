"""What a run works on, read and checked whole before a model is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from paft.config import GRPOConfig, RunConfig, SFTConfig
from paft.errors import AssetError, ConfigError, DataError, TemplateError
from paft.evaluation.evaluate import reference_row, require_choices
from paft.grid import Grid
from paft.prompts import PromptSet, PromptSplit, Template
from paft.prompts.template import of_each_kind
from paft.tasks import Example, Split, Task, load_task
from paft.tasks.embeddings import judge_by
from paft.tasks.expressions import require_math_verify
from paft.tasks.sandbox import allow_code
from paft.tasks.types import content_id
from paft.training.rewards import find_reward, require_trl
from paft.training.schedule import make_groups, make_schedule, make_twins, subset
from paft.training.weights import worst_case

TEST_SUBSET, DEV_SUBSET, GATE_ORDER, OTHER_SUBSET = 101, 102, 103, 104
"""Streams of the keyed subsets, apart from the seed that training uses."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Materials:
    """What a run works on: task, prompts, and the examples of each purpose."""

    task: Task
    prompts: PromptSet
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    rejected: tuple[str, ...]
    origins: tuple[str, ...]
    grid: Grid
    """What is scored."""
    others: Mapping[PromptSplit, Grid]
    """Prompts of other splits on the same examples."""

    @property
    def shows_images(self) -> bool:
        """Whether any example has an image: its model must read them."""
        return any(example.images for part in (self.test, self.train, self.dev) for example in part)


def prepare(config: RunConfig, say: Any = lambda _: None, *, judges: bool = True) -> Materials:
    """Load and check everything that can be wrong before a model is touched. judges: answers are to be judged, here and now."""
    task = load_task(config.task, config.source, say)
    prompts = prompts_for(config, task)
    check_scorers(config, task, judges, say)
    splits: dict[str, Split] = {}

    def examples(split: str) -> tuple[Example, ...]:
        if split not in splits:
            splits[split] = task.split(split)
        return splits[split].examples

    test = take(examples(config.evaluate.split), config.evaluate.examples, TEST_SUBSET)
    _check_images(config, test)
    if judges and any(example.score == "similarity" for example in test):
        _name_judge(config, say, "texts scored by similarity")
    grid = _scored(config, prompts, test, examples(config.evaluate.split))
    others = _beside(config, prompts, grid)
    _check_askable([*grid.templates, *(each for other in others.values() for each in other.templates)], test)
    train: tuple[Example, ...] = ()
    dev: tuple[Example, ...] = ()
    if any(arm.train is not None for arm in config.arms.values()):
        if not (prompts.train and prompts.dev):
            raise ConfigError(
                f"prompt set {prompts.task!r}: {len(prompts.train)} train and {len(prompts.dev)} dev prompts; to train takes both "
                "(paft prompts build or import makes such a set)"
            )
        train = take(examples(config.data.train_split), config.data.train_examples, config.seed)
        if config.data.dev_split:
            dev = examples(config.data.dev_split)
        else:
            train, dev = _held_out(train, config.data.held_out)
        if not train:
            raise DataError(f"task {task.name!r}: no example left to train on after holding out {len(dev)}")
        dev = _unscored(dev, test, "held-out", task, say)
        train = _unscored(train, (*test, *dev), "train", task, say)
        for arm in config.arms:
            if (settings := config.training_of(arm)) is not None:
                grid_of_arm = train_grid(prompts, train, settings, config.seed)
                searches = getattr(settings.schedule, "search", None) is not None  # asks train prompts of dev examples
                _check_askable(grid_of_arm.templates, (*train, *dev) if searches else train)
                _check_askable(prompts.dev, dev)
                _check_training(settings, grid_of_arm, config.seed)
    rejected = tuple(f"{r.row}: {r.reason}" for split in splits.values() for r in split.rejected)
    for line in rejected[:5]:
        say(f"row not readable, left out: {line}")
    if len(rejected) > 5:
        say(f"... and {len(rejected) - 5} more rows not readable")
    origins = tuple(dict.fromkeys(split.origin for split in splits.values()))
    return Materials(task, prompts, train, dev, test, rejected, origins, grid, others)


def _check_askable(templates: Sequence[Template], examples: Sequence[Example]) -> None:
    kinds = of_each_kind(examples)
    for template in templates:
        for fault in template.unable(kinds):
            raise TemplateError(fault.reason)


def train_grid(prompts: PromptSet, examples: Sequence[Example], settings: SFTConfig | GRPOConfig, seed: int) -> Grid:
    """What an arm is trained on: its train prompts, all or a subset that the seed fixes, and the train examples."""
    return Grid(take(prompts.train, settings.prompts, seed), examples)


def take(items: Sequence[Item], size: int | None, seed: int) -> tuple[Item, ...]:
    """A random subset that the seed fixes, in the order of the items; all of them for None."""
    return tuple(items[i] for i in subset(len(items), size, seed))


def prompts_for(config: RunConfig, task: Task) -> PromptSet:
    """The prompt set that a run names, or its task's own. Raises ConfigError where there is none, PromptSetError where it does not fit."""
    name = config.prompts or task.prompts
    if name is None:
        raise ConfigError(
            f"task {task.name!r} has no shipped prompt set; give one: prompts: FILE.yaml (docs/prompts.md)"
        )
    prompts = PromptSet.load(name)
    prompts.check(task)
    return prompts


def check_scorers(config: RunConfig, task: Task, judges: bool, say: Any = lambda _: None) -> None:
    """Raise ConfigError for scorers that the task has no answers for; with `judges`, also for what judging its answers lacks."""
    if task.num_choices == 1:
        require_choices(f"task {task.name!r}", config.evaluate.scorers)
    if judges and getattr(task, "open_kind", "") == "code":
        if not config.evaluate.run_code:
            raise ConfigError(
                f"task {task.name!r}: judging an answer means running the code that the model wrote; set evaluate.run_code=true (it runs "
                "confined: no files, network, processes; docs/tasks.md)"
            )
        allow_code()
    if judges and getattr(task, "open_kind", "") == "plan":
        _name_judge(config, say, "plans")
    if judges and getattr(task, "open_kind", "") == "expression":
        require_math_verify()


def _name_judge(config: RunConfig, say: Any, answers: str) -> None:
    from paft.lm.embed import Embedder

    try:
        embed = Embedder(config.evaluate.embeddings, source=config.source, say=say, published=True)
    except AssetError as error:
        raise AssetError(
            f"evaluate.embeddings: {error}; {answers} are judged by a sentence embedding model (docs/tasks.md)"
        ) from None
    judge_by(embed, embed.identity)


def _check_images(config: RunConfig, examples: Sequence[Example]) -> None:
    """Refuses what would leave the images of the examples out."""
    if not any(example.images for example in examples):
        return
    for name, arm in config.arms.items():
        settings = config.training_of(name)
        if arm.server is not None:
            raise ConfigError(
                f"arms.{name}.server: the task shows images, which are not sent to servers; give a model that is loaded here"
            )
        if isinstance(settings, GRPOConfig):
            raise ConfigError(f"arms.{name}: train.method grpo with images is not provided for; use train.method: sft")


def _scored(config: RunConfig, prompts: PromptSet, test: Sequence[Example], split: Sequence[Example]) -> Grid:
    asked = prompts.split(config.evaluate.prompt_split)[: config.evaluate.prompts]
    if len(asked) < 2 or len(test) < 2:
        raise ConfigError(
            f"evaluate: {len(asked)} test prompts x {len(test)} examples; intervals over prompts and examples need at least 2 x 2"
        )
    grid = Grid(asked, test, split)
    reference_row(config.evaluate.reference, grid)
    if (most := config.evaluate.budget.cells) is not None and most < len(asked):
        raise ConfigError(
            f"evaluate.budget.cells {most}: fewer than the {len(asked)} prompts; each needs a cell, and some more for an interval"
        )
    return grid


def _beside(config: RunConfig, prompts: PromptSet, grid: Grid) -> dict[PromptSplit, Grid]:
    """Prompts of other splits that are scored too, at most as many as the grid has, on its examples."""
    found: dict[PromptSplit, Grid] = {}
    for split in config.evaluate.also:
        if len(beside := prompts.split(split)) < 2:
            raise ConfigError(
                f"evaluate.also: the prompt set has {len(beside)} prompts in {split!r}; intervals need at least 2"
            )
        chosen = take(beside, min(len(beside), grid.shape[0]), OTHER_SUBSET)
        found[split] = Grid(chosen, grid.examples, grid.population)
    return found


def _held_out(examples: Sequence[Example], share: float) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    held = set(subset(len(examples), max(1, round(len(examples) * share)), DEV_SUBSET))
    return (
        tuple(e for i, e in enumerate(examples) if i not in held),
        tuple(e for i, e in enumerate(examples) if i in held),
    )


def _unscored(
    found: tuple[Example, ...], scored: Sequence[Example], which: Literal["train", "held-out"], task: Task, say: Any
) -> tuple[Example, ...]:
    """The examples without those whose text is scored or held out, whatever their split says, and whichever right answer it gives.

    Raises DataError where none is left.
    """

    def asked(e: Example) -> str:
        return content_id(e.fields, () if e.is_open else e.choices, e.images)

    known = {asked(e) for e in scored}
    clean = tuple(e for e in found if asked(e) not in known)
    if not clean:
        raise DataError(
            f"task {task.name!r}: every {which} example is scored or held out too; give data.train_split, data.dev_split and evaluate.split "
            "rows of their own"
        )
    if len(clean) < len(found):
        say(f"{len(found) - len(clean)} {which} examples also occur among those scored or held out; left out")
    return clean


def _check_training(settings: SFTConfig | GRPOConfig, grid: Grid, seed: int) -> None:
    """What can be refused without a model, a prompt that a schedule names and the set lacks for instance."""
    schedule = make_schedule(settings.schedule, grid, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed)
    if isinstance(settings, GRPOConfig):
        require_trl()
    _check_arguments(settings)
    if isinstance(settings, GRPOConfig):
        for reward in settings.rewards:
            find_reward(reward)
        make_groups(schedule, settings.num_generations, across=settings.group == "example")
        return
    if settings.objective.consistency is not None:
        make_twins(schedule, grid.templates, batch_size=settings.batch_size)
    if settings.objective.worst is not None:
        worst_case(settings.objective.worst, grid.templates)


def _check_arguments(settings: SFTConfig | GRPOConfig) -> None:
    import torch

    from paft.lm.hf import lora_config

    if settings.lora is not None:
        lora_config(settings.lora)
    on_cpu = not torch.cuda.is_available()
    if isinstance(settings, GRPOConfig):
        from paft.training.grpo import check_arguments as check_grpo

        check_grpo(settings, on_cpu=on_cpu)
    else:
        from paft.training.sft import check_arguments

        check_arguments(settings, on_cpu=on_cpu)
