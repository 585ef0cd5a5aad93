"""OpenCompass 0.5.4: one configuration file for all prompts, and what it predicted.

Rows hold the whole texts, rendered here: its templates fill slots inside values, and what is asked must be what paft asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from paft.config import RunConfig
from paft.errors import ConfigError, DataError, PaftError, few
from paft.grid import Cell, Grid
from paft.integrations.harness import Recorded, Tokens, groups_of, new_export, with_limit, write_lines
from paft.integrations.model import older_words
from paft.lm.hf import best_device
from paft.lm.render import raw_text
from paft.materials import prepare
from paft.store import write_text
from paft.tasks import load_task
from paft.tasks.answers import LETTERS, Labels

CONFIG, ROWS = "config.py", "rows"


def export_opencompass(config: RunConfig, out: Path, say: Any = lambda _: None) -> list[str]:
    """Write a folder whose config.py `opencompass` runs; returns the names of its summary groups, one a scorer.

    Restricted choice is its PPL style, which it has for raw text. Without `evaluate.max_new_tokens` a free answer is limited as `with_limit`
    says. Raises ConfigError for what it cannot ask.
    """
    if config.model is None:
        raise ConfigError("model is missing: the configuration of OpenCompass names one; give --model")
    if config.style == "auto":
        raise ConfigError("style auto: OpenCompass has a model class for each; set style=raw or style=chat")
    if config.style == "chat" and "likelihood" in config.evaluate.scorers:
        raise ConfigError(
            "style chat: OpenCompass scores choices under raw text only; set style=raw, or evaluate.scorers=[generation]"
        )
    materials = prepare(config, say, judges=False)
    config = with_limit(config, materials)
    grid = materials.grid
    groups = groups_of(config, materials.task)
    if "likelihood" in groups and len({len(example.choices) for example in grid.examples}) > 1:
        raise ConfigError(
            "examples differ in their number of choices, which OpenCompass' PPL style cannot have; set evaluate.scorers=[generation]"
        )
    with new_export(config, materials, out) as folder:
        for k, template in enumerate(grid.templates):
            write_lines(folder / ROWS / f"{template.id}.jsonl", _rows(grid, k, chat=config.style == "chat"))
        write_text(folder / CONFIG, _config(config, grid, groups, out.resolve()))
    if lacking := older_words(Path(str(config.model))):
        wanted = "; ".join(f"to {name} {json.dumps(words)[1:-1]}" for name, words in lacking.items())
        say(
            f"{config.model} was saved by transformers 5, and OpenCompass 0.5.4 reads it with version 4, as another model: add {wanted} "
            "(`paft export model` writes them)"
        )
    return list(groups.values())


def _rows(grid: Grid, k: int, chat: bool) -> Iterator[dict[str, Any]]:
    template = grid.templates[k]
    for i, example in enumerate(grid.examples):
        turns = grid.chat(Cell(0, k, i))
        *before, user = (turn.text for turn in turns)
        asked = user if chat else raw_text(turns)
        space = "" if not asked or asked[-1].isspace() else " "
        answers = template.answer.surfaces(example)
        row: dict[str, Any] = {
            "example_id": example.id,
            "system": "".join(before),
            "asked": asked,
            "right": answers[example.answer],
        }
        row |= {f"whole_{c}": asked + space + answer for c, answer in enumerate(answers)}
        row["gold"] = example.answer
        if clash := next((name for name in row for value in row.values() if f"{{{name}}}" in str(value)), None):
            raise ConfigError(
                f"prompt {template.id} with example {example.id!r} holds {{{clash}}}, which OpenCompass would fill; leave it out"
            )
        yield row


_HEAD = '''"""Made by paft: {task}, {prompts} prompts x {examples} examples."""

from opencompass.datasets import CustomDataset
from opencompass.models import {model_class}
from opencompass.openicl.icl_evaluator import AccEvaluator
from opencompass.openicl.icl_inferencer import GenInferencer, PPLInferencer
from opencompass.openicl.icl_prompt_template import PromptTemplate
from opencompass.openicl.icl_retriever import ZeroRetriever
from opencompass.utils.text_postprocessors import first_option_postprocess

folder = {folder}  # where this file lies: OpenCompass runs a copy of it
prompts = {ids}
options = {options}
judged = {{
    each: dict(pred_postprocessor=dict(type=first_option_postprocess, options=letters)) if letters else dict()
    for each, letters in options.items()
}}

models = [
    dict(
        type={model_class},
        abbr={abbr},
        path={path},
        model_kwargs=dict(torch_dtype={dtype}),
        generation_kwargs=dict(do_sample=False),
{meta}        max_out_len={limit},
        batch_size=8,
        run_cfg=dict(num_gpus={gpus}),  # as where this was exported
    )
]

datasets = []
'''
_META = """        # as the model's own template has it; OpenCompass would make a system text the user's
        meta_template=dict(
            round=[dict(role="HUMAN", api_role="HUMAN"), dict(role="BOT", api_role="BOT", generate=True)],
            reserved_roles=[dict(role="SYSTEM", api_role="SYSTEM")],
        ),
"""
_DATASETS = """
for each in prompts:
    datasets.append(
        dict(
            abbr="{group}_" + each,
            type=CustomDataset,
            path=folder + "/rows/" + each + ".jsonl",
            local_mode=True,
            reader_cfg=dict(input_columns={columns}, output_column="{output}"),
            infer_cfg=dict(
                prompt_template=dict(type=PromptTemplate, template={template}),
                retriever=dict(type=ZeroRetriever),
                inferencer=dict({inferencer}),
            ),
            eval_cfg=dict(evaluator=dict(type=AccEvaluator){judged}),
        )
    )
"""
_TAIL = """
summarizer = dict(
    summary_groups=[
        group
        for name in {groups}
        for group in (
            dict(name=name, subsets=[name + "_" + each for each in prompts]),
            dict(name=name + "_sd", subsets=[name + "_" + each for each in prompts], std=True),
        )
    ]
)
"""


def _config(config: RunConfig, grid: Grid, groups: Mapping[Any, str], out: Path) -> str:
    chat, limit = config.style == "chat", config.evaluate.max_new_tokens
    system = chat and any(template.system for template in grid.templates)
    most = max(len(example.choices) for example in grid.examples)
    letters = {
        template.id: "".join(LETTERS[:most]) if template.answer == Labels() else None for template in grid.templates
    }
    parts = [
        _HEAD.format(
            task=config.task.replace('"', "'"),
            folder=repr(str(out)),
            prompts=grid.shape[0],
            examples=grid.shape[1],
            model_class="HuggingFacewithChatTemplate" if chat else "HuggingFaceBaseModel",
            ids=[template.id for template in grid.templates],
            options=letters,
            abbr=repr(_abbr(config)),
            path=repr(config.model),
            dtype=repr("auto" if config.dtype == "auto" else f"torch.{config.dtype}"),
            meta=_META if system else "",
            limit=limit,
            gpus=int(best_device().type == "cuda"),
        )
    ]
    for scorer, group in groups.items():
        if scorer == "likelihood":
            columns = [f"whole_{c}" for c in range(len(grid.examples[0].choices))]
            asked = {
                "columns": columns,
                "output": "gold",
                "template": {c: f"{{{column}}}" for c, column in enumerate(columns)},
                # of texts that it pads, 0.5.4 counts the first token as well, so one option of an example may cost more than another
                "inferencer": "type=PPLInferencer, batch_size=1",
                "judged": "",
            }
        else:
            turns = 'round=[dict(role="HUMAN", prompt="{asked}")]'
            begin = 'begin=[dict(role="SYSTEM", fallback_role="HUMAN", prompt="{system}")], ' if system else ""
            asked = {
                "columns": ["asked", "system"],
                "output": "right",
                "template": f"dict({begin}{turns})" if chat else '"{asked}"',
                "inferencer": f"type=GenInferencer, max_out_len={limit}",
                "judged": ', pred_role="BOT", **judged[each]',
            }
        parts.append(_DATASETS.format(group=group, **asked))
    return "".join([*parts, _TAIL.format(groups=list(groups.values()))])


def import_opencompass(config: RunConfig, asked: Path, output: Path, tokenizer: str | None = None) -> Recorded:
    """Predictions in a work directory of OpenCompass, by model, of its newest run that has any of this export.

    PPL is a mean over a whole text; times the tokens of the text it is the negative log-likelihood of prompt and choice together,
    and of choices after one prompt these differ as those of the choices alone do: what wins is what has the greatest likelihood.
    tokenizer: of the model, by default the exported one's.
    """
    if config.evaluate.normalization != "sum":
        raise ConfigError("evaluate.normalization: OpenCompass leaves no log-likelihood of a choice by itself; use sum")
    groups = groups_of(config, load_task(config.task, config.source)).values()
    asked_by = _asked(asked / ROWS)
    datasets = {f"{group}_{prompt}": prompt for prompt in asked_by for group in groups}
    models: dict[str, dict[str, list[Path]]] = {}
    for run in [*sorted(output.glob("*"), reverse=True), output]:
        for model in sorted(run.glob("predictions/*")):
            if there := {name: files for name in datasets if (files := _files(model, name))}:
                models[model.name] = there
        if models:
            break
    else:
        raise DataError(
            f"{output}: no predictions of {few(groups)} in it; give its work directory (-w, default outputs/default)"
        )
    tokens = Tokens(config, tokenizer or config.model)
    found: Recorded = {}
    for title, there in models.items():
        own = title == _abbr(config) or (tokenizer is not None and len(models) == 1)
        for name, files in there.items():
            prompt = datasets[name]
            found.setdefault(title, []).extend(_answers(files, prompt, asked_by[prompt], tokens, own))
    return found


def _asked(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The exported rows by the ids of their prompts."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
            # each has these, so that none is missed later as a fault of a prediction
            found[file.stem] = [row | {key: row[key] for key in ("example_id", "system", "asked")} for row in rows]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                f"{file}: not rows of an export ({type(error).__name__} {error}); give the folder that `paft export opencompass` made, or "
                "export anew"
            ) from None
    if not found:
        raise DataError(
            f"{folder}: no rows of an export in it; give the folder that `paft export opencompass` made (--asked)"
        )
    return found


def _abbr(config: RunConfig) -> str:
    """Name of the exported model in the config file, and so of the directory of its predictions."""
    return str(config.model).rstrip("/").rpartition("/")[2]


def _files(folder: Path, dataset: str) -> list[Path]:
    """Where its predictions lie: in one file, or in the parts _0, _1 ... that several workers wrote."""
    if (whole := folder / f"{dataset}.json").is_file():
        return [whole]
    parts = {file.stem.removeprefix(f"{dataset}_"): file for file in folder.glob(f"{dataset}_*.json")}
    return [parts[number] for number in sorted(filter(str.isdecimal, parts), key=int)]


def _answers(
    files: Sequence[Path], prompt: str, asked: Sequence[Mapping[str, Any]], tokens: Tokens, own: bool
) -> Iterator[dict[str, Any]]:
    """asked: the exported rows. own: whether the tokens are those of the model that answered."""
    rows: list[Any] = []
    try:
        for file in files:
            part = json.loads(file.read_text(encoding="utf-8"))
            rows += [part[str(n)] for n in range(len(part))]
        if len(rows) != len(asked):
            raise DataError(
                f"{files[0]}: {len(rows)} predictions, {len(asked)} examples were exported; let OpenCompass finish (-r latest)"
            )
        for number, (told, row) in enumerate(zip(asked, rows, strict=True)):
            labels = [row[f"label: {c}"] for c in range(sum(key.startswith("label: ") for key in row))]
            if not _same(told, row, labels, raw=tokens.config.style == "raw"):
                raise DataError(
                    f"{files[0]}: prediction {number} answers another text than was exported; give the folder that this run of OpenCompass "
                    "read (--asked), or the run that read this one in place of its work directory"
                )
            if (
                not own
            ):  # PPL is a mean over its own tokens, and whether the limit cut a free answer is told by their number
                raise DataError(
                    f"{files[0]}: of another model than the exported one, whose tokens must be counted; import its predictions alone, with its "
                    "tokenizer (--tokenizer)"
                )
            cell = {"prompt": prompt, "example": told["example_id"]}
            if labels:
                yield cell | {"logp": [-float(each["PPL"]) * tokens.length(each["prompt"]) for each in labels]}
            else:
                yield cell | tokens.completion(row["prediction"])
    except PaftError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{files[0]}: not predictions of OpenCompass ({type(error).__name__} {error})") from None


def _same(told: Mapping[str, Any], row: Mapping[str, Any], labels: Sequence[Mapping[str, Any]], raw: bool) -> bool:
    """Whether a prediction is to what a row told."""
    if labels:
        return [each["prompt"] for each in labels] == [told[key] for key in told if key.startswith("whole_")]
    shown = row["origin_prompt"]
    if raw:
        return bool(shown == told["asked"])
    if not isinstance(shown, str):  # turns
        shown = "\n".join(turn["prompt"] for turn in shown)
    # a model of another class may have one turn of the system text and the user's, or marks around them
    return told["system"] in shown and told["asked"] in shown
