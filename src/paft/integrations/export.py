"""The cells of a whole training, in the order of its schedule, as rows of a file: any trainer that reads them in order does PAFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

from paft.assets import resolve_model
from paft.config import AdaptiveSchedule, FixedSchedule, GRPOConfig, ObjectiveConfig, RunConfig, SFTConfig
from paft.errors import ConfigError, few
from paft.grid import Grid
from paft.integrations.rows import token_row
from paft.lm.hf import best_device, pick_dtype
from paft.lm.render import Renderer
from paft.store import write_rows
from paft.training.data import CellDataset, ScheduleSampler
from paft.training.schedule import make_schedule, updates_per_epoch

Form = Literal["tokens", "text", "messages"]
"""What a row holds beside step, epoch, prompt_id and example_id: input_ids and labels; prompt and completion; messages."""


@dataclass(frozen=True)
class Exported:
    """What is written. dropped: examples left out at the end of every epoch's order, so that each update is whole."""

    rows: int
    updates: int
    per_epoch: int
    """Rows of an epoch."""
    dropped: int


def export_dataset(
    grid: Grid,
    renderer: Renderer,
    config: SFTConfig | GRPOConfig,
    path: Path,
    *,
    seed: int,
    form: Form = "tokens",
    short: bool = False,
) -> Exported:
    """Write the rows of all epochs to .parquet or .jsonl, whole or not at all; few rows in memory at any time.

    A reader in batches of `batch_size` meets each update's rows together. Where the examples do not fill the last update of an
    epoch it would take the rest from the next epoch and be out of step from there on: these examples (others in every epoch)
    are left out, unless `short` keeps them. Of method grpo a row is the prompt of a group (`prompt`, as text or as turns) with the right
    `answer` as the prompt wants it written, for a reader that repeats each row `num_generations` times.
    Raises ConfigError for what cannot be told by rows (adaptive draws, objectives; raw text by messages) and for another kind of file.
    """
    if isinstance(config, GRPOConfig) and form == "tokens":
        raise ConfigError("--as tokens: of method grpo rows are prompts, not answers; give --as text or --as messages")
    if form == "messages" and renderer.style == "raw":
        raise ConfigError("--as messages: the model is asked in raw text (style), which has no turns; give --as text")
    plan = check_rows(grid, config, short)
    if path.suffix not in (".parquet", ".jsonl"):
        raise ConfigError(f"{path}: expected a name that ends in .parquet or .jsonl")
    write_rows(rows_in_order(grid, renderer, config, seed, form, plan.per_epoch), path)
    return plan


def check_rows(grid: Grid, config: SFTConfig | GRPOConfig, short: bool = False) -> Exported:
    """How many rows a training has. Raises ConfigError for a training that rows cannot tell."""
    if any(example.images for example in grid.examples):
        raise ConfigError("the task shows images, which rows of text would leave out; train with paft")
    if isinstance(config.schedule, FixedSchedule) and config.schedule.search is not None:
        raise ConfigError(
            "schedule.search: the prompt is found by scoring, which an export does not do; name the one that a run found "
            "(search.json of its arm) as schedule.prompt"
        )
    if isinstance(config.schedule, AdaptiveSchedule):
        raise ConfigError(
            "schedule.kind adaptive: draws that follow the losses cannot be written down before; train with paft"
        )
    if isinstance(config, GRPOConfig):
        if config.group == "example":
            raise ConfigError(
                "train.group example: a row is one prompt, and other trainers repeat it; use group: prompt"
            )
        if short:
            raise ConfigError("--keep-short with method grpo: an update is made of whole groups; leave it out")
    elif config.objective != ObjectiveConfig():
        raise ConfigError("train.objective: rows of a file carry no objective; train with paft or leave it out")
    num_examples = grid.shape[1]
    dropped = 0 if short else num_examples % config.batch_size
    if dropped == num_examples:
        raise ConfigError(
            f"{num_examples} examples do not fill one update of {config.batch_size}; give more, or a smaller train.batch_size"
        )
    kept = num_examples - dropped
    return Exported(config.epochs * kept, config.epochs * updates_per_epoch(kept, config.batch_size), kept, dropped)


def rows_only(config: RunConfig, arm: str, reader: str) -> SFTConfig:
    """The settings of an arm for a trainer that reads rows and does nothing else. Raises ConfigError for those that need more."""
    train = config.training_of(arm)
    if not isinstance(train, SFTConfig):
        raise ConfigError(f"arm {arm}: {reader} reads rows of supervised fine-tuning; give an arm of method sft")
    if (start := config.arms[arm].start) is not None:
        raise ConfigError(f"arms.{arm}.start {start}: {reader} is not given another arm's adapter; leave start out")
    if train.keep == "best" or train.patience is not None:
        raise ConfigError(
            f"train.keep best and train.patience need checks on dev prompts, which {reader} has not; use keep: last"
        )
    return train


def other_weights(config: RunConfig) -> str | None:
    """What a trainer that is given the model's name does not load, where paft reads a GGUF file. Raises ConfigError for the path of such a
    file, which no trainer reads."""
    assert config.model is not None  # an arm is trained
    files = resolve_model(config.model, config.source)
    if files.gguf_file is None:
        return None
    if Path(config.model).suffix == ".gguf":
        raise ConfigError(
            f"model {config.model}: trainers read no .gguf file; save its weights as a directory and name that as model (docs/harnesses.md)"
        )
    return (
        f"{config.model}: the trainer loads the weights of the hub, paft those of {files.gguf_file} ({files.origin}); to give it the same, "
        "save them as a directory and name that as model (docs/harnesses.md)"
    )


def rows_in_pieces(
    grid: Grid,
    renderer: Renderer,
    train: SFTConfig,
    seed: int,
    plan: Exported,
    reader: str,
    say: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Rows of form text for a trainer that makes tokens of prompt and completion each by itself and adds no begin mark.

    Tokens are compared with paft's; rows where that cuts one in two are counted, and said at the end.
    """
    begin, cut = _begin_mark(renderer), 0
    texts, tokens = (rows_in_order(grid, renderer, train, seed, form, plan.per_epoch) for form in ("text", "tokens"))
    for text, row in zip(texts, tokens, strict=True):
        text["prompt"] = begin + text["prompt"]
        apart = [
            renderer.tokenizer(text[part], add_special_tokens=False)["input_ids"] for part in ("prompt", "completion")
        ]
        cut += apart[0] + apart[1] != row["input_ids"]
        yield text
    if cut:
        say(
            f"{cut} of {plan.rows} rows: a token holds the end of the prompt and the beginning of the answer; {reader} cuts it in two, "
            "paft does not"
        )


def _begin_mark(renderer: Renderer) -> str:
    """The begin token as text, where the tokenizer puts one before raw text and a template without words does not."""
    marks = set(renderer.ids(["a"])[0][:1]) - set(renderer.tokenizer("a", add_special_tokens=False)["input_ids"][:1])
    return str(renderer.tokenizer.convert_ids_to_tokens(marks.pop())) if marks else ""


def precision(config: RunConfig) -> str:
    """float32, bfloat16 or float16; "auto" as this machine has it, since other trainers know no such word."""
    return str(pick_dtype(config.dtype, best_device())).removeprefix("torch.")


def adapter_settings(train: SFTConfig, names: Mapping[str, str], reader: str) -> dict[str, Any]:
    """train.lora under a reader's names, with what peft takes for the rest, since other trainers take something else.

    The caller has made sure that there is an adapter. Raises ConfigError for what has no name there, and where peft asks the model.
    """
    assert train.lora is not None
    if unknown := set(train.lora) - set(names):
        raise ConfigError(
            f"train.lora.{min(unknown)}: has no name in {reader}'s settings; leave it out, or train with paft"
        )
    if "target_modules" not in train.lora:
        raise ConfigError(
            f"train.lora.target_modules is not given, and {reader} would take others than peft; name them, or all-linear"
        )
    lora = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, **train.lora}
    return {names[key]: value for key, value in lora.items()}


def quantised_bits(config: RunConfig, reader: str) -> int | None:
    """4 or 8, None for weights as they are, for a reader with a word for no more. Raises ConfigError for anything else."""
    if config.quantization is None:
        return None
    for bits in (4, 8):
        if config.quantization == {f"load_in_{bits}bit": True}:
            return bits
    raise ConfigError(
        f"quantization: only {{load_in_4bit: true}} and {{load_in_8bit: true}} have a name in {reader}'s settings"
    )


def trainer_arguments(config: RunConfig, train: SFTConfig, out: Path) -> dict[str, Any]:
    """The settings that transformers' trainer has a name for, in one pass over the rows of all epochs, by one process."""
    return {
        "output_dir": str(out),
        "num_train_epochs": 1,
        **split_update(train),
        "learning_rate": train.learning_rate,
        "lr_scheduler_type": train.lr_scheduler,
        "weight_decay": train.weight_decay,
        "max_grad_norm": train.max_grad_norm,
        "seed": config.seed,
        "logging_steps": 1,
        "save_steps": train.save_every,
        "report_to": train.report_to or "none",
    }


def split_update(train: SFTConfig) -> dict[str, int]:
    """An update in the words of transformers' trainer, for one process. Raises ConfigError where passes do not fill it."""
    micro = train.micro_batch_size or train.batch_size
    if train.batch_size % micro:
        raise ConfigError(
            f"train.micro_batch_size {micro} does not divide batch_size {train.batch_size}; give a divisor"
        )
    return {"per_device_train_batch_size": micro, "gradient_accumulation_steps": train.batch_size // micro}


def rows_in_order(
    grid: Grid, renderer: Renderer, config: SFTConfig | GRPOConfig, seed: int, form: Form, kept: int
) -> Iterator[dict[str, Any]]:
    """The rows of all epochs, `kept` of each, made one by one. Raises RenderError for cells longer than `config.max_length`."""
    dataset = CellDataset(grid, renderer, config.max_length)
    dataset.check_lengths()
    schedule = make_schedule(
        config.schedule,
        grid,
        batch_size=config.batch_size,
        epochs=config.epochs,
        seed=seed,
        micro=config.micro_batch_size or config.batch_size,
    )
    sampler = ScheduleSampler(grid, schedule)
    per_epoch = updates_per_epoch(kept, config.batch_size)
    for epoch in range(config.epochs):
        sampler.set_epoch(epoch)
        for position, index in enumerate(islice(sampler, kept)):
            cell = grid.cell(index)
            row: dict[str, Any] = {
                "step": epoch * per_epoch + position // config.batch_size + 1,
                "epoch": epoch,
                "prompt_id": grid.templates[cell.prompt].id,
                "example_id": grid.examples[cell.example].id,
            }
            match form:
                case "text" | "messages" if isinstance(config, GRPOConfig):
                    turns = [{"role": turn.role, "content": turn.text} for turn in grid.chat(cell)]
                    row["prompt"] = renderer.prompt_text(grid.chat(cell)) if form == "text" else turns
                    row["answer"] = grid.target(cell)
                case "tokens":
                    row |= token_row(dataset[index])
                case "text":
                    prompt = renderer.prompt_text(grid.chat(cell))
                    row["prompt"] = prompt
                    row["completion"] = (
                        renderer.answer_text(prompt, grid.target(cell))[len(prompt) :] + renderer.eos_text
                    )
                case "messages":
                    turns = [{"role": turn.role, "content": turn.text} for turn in grid.chat(cell)]
                    row["messages"] = [*turns, {"role": "assistant", "content": grid.target(cell)}]
            yield row


def check_form(form: str) -> Form:
    """Raises ConfigError for a form that there is not."""
    if form not in get_args(Form):
        raise ConfigError(f"--as {form}: expected one of {few(get_args(Form))}")
    return form  # type: ignore[return-value]
