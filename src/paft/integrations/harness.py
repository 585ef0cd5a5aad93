"""Prompts x examples for other people's harnesses, and their answers back: what all of them share.

An export is a folder: `paft.yaml` says what is asked (a run's settings), `prompts.yaml` how, `examples.json` has a digest of every example,
and the rest is the harness's own. With it an import knows which prompt and which example an answer belongs to.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from paft.config import RunConfig, arm_name, dump_yaml, load_mapping, load_run_config
from paft.errors import ConfigError, DataError, few
from paft.evaluation.recorded import by_cell
from paft.lm.types import whole_signs
from paft.materials import TEST_SUBSET, Materials, prepare, take
from paft.prompts import PromptSet
from paft.store import RunDir, disk_errors, new_folder, write_text
from paft.tasks import Example, Task, load_task
from paft.tasks.answers import varies, written
from paft.tasks.limits import CODE_TOKENS, PLAN_TOKENS

SETTINGS, PROMPTS, EXAMPLES = "paft.yaml", "prompts.yaml", "examples.json"

Recorded = dict[str, list[dict[str, Any]]]
"""Rows of recorded answers (`paft.evaluation.recorded`) by the name of the model that gave them."""


@contextlib.contextmanager
def new_export(config: RunConfig, materials: Materials, out: Path) -> Iterator[Path]:
    """A folder to write an export into, which becomes `out` whole or not at all, with what is asked kept in it. Raises ConfigError for a task that shows images."""
    if config.chat_template_kwargs:
        raise ConfigError(
            f"chat_template_kwargs {config.chat_template_kwargs}: another tool renders by the model's template as it is; leave it out, "
            "or score with paft eval"
        )
    if materials.shows_images:
        raise ConfigError(
            f"task {materials.task.name!r} shows images, which an export would leave out; score it with paft eval"
        )
    task = str(Path(config.task).resolve()) if Path(config.task).suffix else config.task
    kept = config.model_copy(update={"task": task, "prompts": str(out / PROMPTS)})
    with new_folder(out) as folder:
        write_text(folder / PROMPTS, materials.prompts.to_yaml())
        write_text(folder / SETTINGS, dump_yaml(kept.model_dump()))
        write_text(
            folder / EXAMPLES, json.dumps({each.id: _digest(each) for each in materials.grid.examples}, indent=0)
        )
        yield folder


def _digest(example: Example) -> str:
    return hashlib.sha256(json.dumps(example.content, sort_keys=True).encode()).hexdigest()[:16]


def with_limit(config: RunConfig, materials: Materials) -> RunConfig:
    """The settings with one limit for all free answers, which a harness has to be told.

    Where none is given: 512 tokens for code, 1024 for plans; for choices 32, or as many as any tokenizer may want for the longest answer (one for two Latin
    letters, one for a byte of others), and twice that for texts and calls. Raises ConfigError for numbers, before which a model may reason.
    """
    limit, grid = config.evaluate.max_new_tokens, materials.grid
    times = 2 if varies(grid.templates[0].answer, grid.examples[0]) else 1
    if limit is None and materials.task.num_choices == 1 and times == 1:
        limit = {"code": CODE_TOKENS, "plan": PLAN_TOKENS}.get(getattr(materials.task, "open_kind", ""))
        if limit is None:
            raise ConfigError(
                f"evaluate.max_new_tokens is not set: answers to {materials.task.name!r} may be reasoned out; say how long they may be"
            )
    elif limit is None:
        answers = {
            text for each in grid.templates for example in grid.examples for text, *_ in written(each.answer, example)
        }
        longest = max(sum(0.5 if c.isascii() else len(c.encode()) for c in text).__ceil__() for text in answers)
        limit = max(32, times * longest)
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"max_new_tokens": limit})})


def exported(folder: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings that an export kept, wherever the folder lies now. Raises DataError where its task has other rows by now."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ConfigError(f"{folder}: holds no {SETTINGS}; give the folder that `paft export` made")
    config = load_run_config(file, [*overrides, f"prompts={json.dumps(str(folder / PROMPTS), ensure_ascii=False)}"])
    if (file := folder / EXAMPLES).is_file():  # older exports have none
        try:
            kept = dict(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{file}: cannot be read ({type(error).__name__}); export anew, or take the file away"
            ) from None
        rows = load_task(config.task, config.source).split(config.evaluate.split).examples
        for example in take(rows, config.evaluate.examples, TEST_SUBSET):
            if example.id not in kept:
                raise DataError(
                    f"{folder}: example {example.id!r} of {config.task} was not exported; leave evaluate.examples, evaluate.split and the "
                    "task's rows as they were, or export anew"
                )
            if kept[example.id] != _digest(example):
                raise DataError(
                    f"{folder}: example {example.id!r} of {config.task} is not what was exported, and what was answered is; give the task "
                    "its rows back, or export it anew"
                )
    return config


def groups_of(config: RunConfig, task: Task) -> dict[str, str]:
    """What a harness calls the prompts of a task together, by scorer; with the id of a prompt it is the name of its part."""
    name = "paft_" + re.sub(r"\W+", "_", task.name)
    return {scorer: name + ("" if scorer == "likelihood" else "_free") for scorer in config.evaluate.scorers}


def record(config: RunConfig, found: Recorded, folder: Path, say: Any = lambda _: None) -> RunConfig:
    """Write the answers into a run directory; returns the settings of a run that judges them, an arm for each model.

    Scorers are those of the settings that all models have answers for, to cells of the export. Raises DataError when there are none, and for two
    answers to one of these, ConfigError for a directory that holds a run of something else, or arms or answers that would be lost.
    """
    if not found:
        raise DataError("no answers found; give the directory that the harness wrote its output to")
    m = prepare(config, judges=False)
    grid = m.grid
    cells = {(template.id, example.id) for template in grid.templates for example in grid.examples}
    ours = {title: [row for row in rows if (row["prompt"], row["example"]) in cells] for title, rows in found.items()}
    if title := next((title for title, rows in ours.items() if not rows), None):
        raise DataError(
            f"{title}: none of its {len(found[title])} answers belongs to the prompts and examples of the export; leave it out, or give "
            "the export that it answers (--asked)"
        )
    parts = {"likelihood": "logp", "generation": "completion"}
    held = [name for name, part in parts.items() if all(any(part in row for row in rows) for rows in ours.values())]
    scorers = [scorer for scorer in config.evaluate.scorers if scorer in held]
    if held and not scorers:
        raise DataError(
            f"{few(found)}: no answers for evaluate.scorers={config.evaluate.scorers}; set evaluate.scorers=[{', '.join(held)}]"
        )
    if not scorers:
        raise DataError(
            f"{few(found)}: some answered by choice only and some freely only, so nothing can be compared; import them one by one"
        )
    words = {"likelihood": "choices", "generation": "free answers"}
    for name, part in parts.items():
        lacking = [title for title, rows in ours.items() if not any(part in row for row in rows)]
        if name in config.evaluate.scorers and 0 < len(lacking) < len(ours):
            say(f"no {words[name]} of {few(lacking)}: {name} is left out for all; import the others apart to see it")
    for title, rows in found.items():
        by_cell(((title, row) for row in rows), cells)  # before anything is written
    arms: dict[str, Any] = {}
    for title in found:
        name = arm_name(title, arms)
        arms[name] = {"title": title, "recorded": str(folder / "recorded" / f"{name}.jsonl")}
    _check_place(config, m.prompts, arms, found, folder)
    evaluate = {**config.evaluate.model_dump(), "scorers": scorers}
    judging = RunConfig.model_validate({**config.model_dump(), "arms": arms, "evaluate": evaluate})
    for arm, rows in zip(arms.values(), found.values(), strict=True):
        write_lines(Path(arm["recorded"]), rows)
    return judging


def _check_place(config: RunConfig, prompts: PromptSet, arms: Mapping[str, Any], found: Recorded, folder: Path) -> None:
    """The same may be imported again, with more answers too; nothing else is written over."""
    run = RunDir(folder)
    if not run.config.is_file():
        return
    before = load_mapping(run.config)
    if before.get("task") != config.task:
        raise ConfigError(
            f"{folder}: holds a run of task {before.get('task')}, not of {config.task}; give another --out"
        )
    lost = [
        name
        for name, arm in (before.get("arms") or {}).items()
        if name not in arms or not arm.get("recorded") or arm.get("title") != arms[name]["title"]
    ]
    if lost:
        raise ConfigError(
            f"{folder}: holds a run of {few(lost)}, which this import would take away; give another --out"
        )
    if not run.results.is_file():  # an import that failed is tried again
        return
    held, now = before.get("evaluate") or {}, config.evaluate.model_dump()
    other = [f"evaluate.{key}" for key in ("split", "examples", "prompt_split", "prompts") if held.get(key) != now[key]]
    if run.prompts.is_file() and run.prompts.read_bytes() != prompts.to_yaml().encode():
        other.append("prompts")
    if other:
        raise ConfigError(f"{folder}: holds a run of another export, with other {few(other)}; give another --out")
    for (name, arm), rows in zip(arms.items(), found.values(), strict=True):
        file = Path(arm["recorded"])
        if file.is_file() and set(file.read_bytes().split(b"\n")) - set(_lines(rows).encode().split(b"\n")):
            raise ConfigError(
                f"{folder}: holds other answers of {name}, which this import would take away; give another --out"
            )


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON Lines, whole or not at all."""
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _lines(rows))


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Half a surrogate pair, which a limit on tokens may leave of a sign, becomes U+FFFD."""
    return whole_signs("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


class Tokens:
    """Lengths in the tokens of the model that answered, whose tokenizer is loaded when first asked for."""

    def __init__(self, config: RunConfig, name: str | None):
        self.config, self.name = config, name

    @cached_property
    def _tokenizer(self) -> Any:
        from paft.lm.hf import load_renderer

        if self.name is None:
            raise ConfigError(
                "lengths are counted in the model's tokens, and which model answered is not on record; name it with --tokenizer"
            )
        return load_renderer(self.name, source=self.config.source, style="raw").tokenizer

    def length(self, text: str, whole: bool = True) -> int:
        """Tokens of a text; of a whole one with the begin mark that the tokenizer adds."""
        return len(self._tokenizer(text, add_special_tokens=whole)["input_ids"])

    def completion(self, text: str) -> dict[str, Any]:
        """A free answer as a recorded row has it. The model ended it where it stayed below the limit."""
        tokens, limit = self.length(text, whole=False), self.config.evaluate.max_new_tokens
        ended = limit is None or tokens < limit
        return {"completion": text, "tokens": tokens + ended, "ended": ended}  # the end mark counts
