"""lm-evaluation-harness 0.4.13: a task for every prompt, in its own templates; and what its `--log_samples` wrote.

Every cell is rendered by both template languages before anything is written: what is exported asks what paft asks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from paft.config import RunConfig, dump_yaml
from paft.errors import ConfigError, DataError, PaftError, few
from paft.grid import Cell, Grid
from paft.integrations.harness import Recorded, Tokens, groups_of, new_export, with_limit
from paft.lm.render import raw_text
from paft.materials import prepare
from paft.prompts.template import OPTION_SLOT, SLOT, Template
from paft.store import write_text
from paft.tasks import load_task
from paft.tasks.answers import LETTERS, Labels

ROWS = "rows.parquet"
_LOADER = '''"""Rows of the tasks in this folder, wherever it lies."""

from pathlib import Path

import datasets


def rows(**_):
    file = Path(__file__).with_name("rows.parquet")
    return datasets.load_dataset("parquet", data_files={"test": str(file)})
'''
_ENVIRONMENT = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)  # as lm-eval's
OURS = ("example_id", "choices", "gold")
"""Columns of a row beside the fields of the task."""


def export_lm_eval(config: RunConfig, out: Path, say: Any = lambda _: None) -> list[str]:
    """Write a folder for `lm_eval run --include_path`; returns the tags under which its tasks run, one a scorer.

    Without `evaluate.max_new_tokens` a free answer is limited as `with_limit` says. Raises ConfigError for prompts that its templates cannot tell.
    """
    if config.style == "auto":
        raise ConfigError(
            "style auto: lm-eval is told by a flag, not by the model; set style=raw, or style=chat for --apply_chat_template"
        )
    materials = prepare(config, say, judges=False)
    config = with_limit(config, materials)
    grid, chat = materials.grid, config.style == "chat"
    if taken := set(OURS).intersection(*(example.fields for example in grid.examples[:1])):
        raise ConfigError(
            f"fields {sorted(taken)} of task {materials.task.name!r} are columns of the exported rows; rename them"
        )
    rows = [
        {"example_id": example.id, **example.fields, "choices": list(example.choices), "gold": example.answer}
        for example in grid.examples
    ]
    tasks, tags = [], groups_of(config, materials.task)
    columns: dict[Any, str] = {}
    for scorer, tag in tags.items():
        for k, template in enumerate(grid.templates):
            asked = _texts(grid, k, rows, chat)
            if (
                scorer == "likelihood"
                and config.evaluate.normalization == "byte"
                and not (chat or asked["target_delimiter"])
            ):
                raise ConfigError(
                    f"prompt {template.id} ends in white space, which lm-eval scores together with each choice: evaluate.normalization=byte "
                    "would divide it by the choice's length; use sum, or leave the prompt out"
                )
            if template.answer not in columns:
                column = columns[template.answer] = f"answers_{len(columns)}"
                for row, example in zip(rows, grid.examples, strict=True):
                    row[column] = list(template.answer.surfaces(example))
            answers = columns[template.answer]
            tasks.append(
                {
                    "task": f"{tag}_{template.id}",
                    "tag": tag,
                    "custom_dataset": "!function rows.rows",
                    "test_split": "test",
                    **asked,
                    **(_scored(answers) if scorer == "likelihood" else _free(answers, config)),
                    "metadata": {"version": 1.0, "prompt": template.id},
                }
            )
    with new_export(config, materials, out) as folder:
        _write(folder, rows, tasks)
    return list(tags.values())


def _scored(answers: str) -> dict[str, Any]:
    return {
        "output_type": "multiple_choice",
        "doc_to_choice": answers,
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _free(answers: str, config: RunConfig) -> dict[str, Any]:
    return {
        "output_type": "generate_until",
        "doc_to_target": f"{{{{ {answers}[gold] }}}}",
        "generation_kwargs": _generation(config),
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "ignore_case": True,
                "ignore_punctuation": True,
            }
        ],
    }


def _generation(config: RunConfig) -> dict[str, Any]:
    return {"until": [], "do_sample": False, "max_gen_toks": config.evaluate.max_new_tokens}


def _write(folder: Path, rows: Sequence[dict[str, Any]], tasks: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    # a text that looks like a date stays one, which JSON does not promise to its readers
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), folder / ROWS)
    write_text(folder / "rows.py", _LOADER)
    for task in tasks:
        text = dump_yaml(task).replace("'!function rows.rows'", "!function rows.rows")
        write_text(folder / f"{task['task']}.yaml", text)


def _texts(grid: Grid, k: int, rows: Sequence[dict[str, Any]], chat: bool) -> dict[str, str]:
    """What lm-eval shows under a prompt, tried on every example against what paft shows."""
    template = grid.templates[k]
    system, text = (to_jinja(part, template) for part in (template.system or "", template.text))
    wanted = []
    for i in range(len(rows)):
        turns = grid.chat(Cell(0, k, i))
        *before, user = (turn.text for turn in turns)
        wanted.append(("".join(before), user) if chat else ("", raw_text(turns)))
    if not chat:
        system, text = "", f"{system}\n\n{text}" if system else text
    for attempt in (text, f"{{% set asked %}}{text}{{% endset %}}{{{{ asked.rstrip(' ') }}}}"):
        try:
            shown = [tuple(_ENVIRONMENT.from_string(part).render(**row) for part in (system, attempt)) for row in rows]
        except (jinja2.TemplateError, TypeError, IndexError) as error:
            raise ConfigError(
                f"prompt {template.id} cannot be told in lm-eval's templates ({error}); leave it out"
            ) from None
        if shown == wanted:
            break
    else:
        i = next(n for n, (a, b) in enumerate(zip(shown, wanted, strict=True)) if a != b)
        raise ConfigError(
            f"prompt {template.id} cannot be told in lm-eval's templates: they show example {grid.examples[i].id!r} in another way; "
            "leave it out"
        )
    ends = {not user or user[-1].isspace() for _, user in wanted}
    if len(ends) == 2 and not chat:
        raise ConfigError(
            f"prompt {template.id}: with some examples it ends in white space and with others not, which lm-eval cannot tell apart; "
            "leave it out, or use style=chat"
        )
    found = {"description": system} if system else {}
    if attempt.isdigit() or any(user.isdigit() for _, user in shown):  # read as the index of a choice
        raise ConfigError(f"prompt {template.id} shows a bare number, which lm-eval reads as an index; leave it out")
    return {**found, "doc_to_text": attempt, "target_delimiter": "" if chat or True in ends else " "}


def to_jinja(text: str, template: Template) -> str:
    """A part of a template in lm-eval's language: Jinja over the columns of a row."""
    found, end = [], 0
    for match in SLOT.finditer(text):
        found += [_literal(text[end : match.start()]), _slot(match, template)]
        end = match.end()
    return "".join([*found, _literal(text[end:])])


def _literal(text: str) -> str:
    if "{" in text or "\r" in text:  # Jinja would read a structure, or a plain line break
        return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
    return text


def _slot(match: re.Match[str], template: Template) -> str:
    if match["literal"]:
        return _literal(f"{{{match['literal']}}}")
    name = match["slot"]
    if name == "choices":
        inner = template.inner_answer
        given = inner.labels if isinstance(inner, Labels) else None
        labels = list(given) if given else "".join(LETTERS)
        parts = {
            "label": f"{{{{ {json.dumps(labels, ensure_ascii=False)}[loop.index0] }}}}",
            "text": "{{ choice }}",
        }
        line, end = [], 0
        for option in OPTION_SLOT.finditer(template.options):
            line += [_literal(template.options[end : option.start()]), parts[option[1]]]
            end = option.end()
        line.append(_literal(template.options[end:]))
        joiner = f"{{% if not loop.last %}}{_literal(template.joiner)}{{% endif %}}"
        return f"{{% for choice in choices %}}{''.join(line)}{joiner}{{% endfor %}}"
    return f"{{{{ choices[{LETTERS.index(name)}] }}}}" if name in LETTERS else f"{{{{ {name} }}}}"


_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
_MACHINE = {
    "batch_size", "max_batch_size", "device", "device_map", "device_map_option", "parallelize", "max_memory", "max_memory_per_gpu",
    "max_cpu_memory", "offload_folder", "tp_plan", "low_cpu_mem_usage", "logits_cache", "trust_remote_code", "token", "cache_dir", "download_dir",
    "gpu_memory_utilization", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size", "distributed_executor_backend",
    "swap_space", "cpu_offload_gb", "max_num_seqs", "max_num_batched_tokens", "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill",
    "chunked_prefill_size", "disable_custom_all_reduce", "disable_log_stats", "disable_log_requests", "log_level", "max_lora_rank", "max_loras",
    "tp_size", "dp_size", "mem_fraction_static", "num_concurrent", "max_retries", "timeout", "verify_certificate", "ca_cert_path", "auth_token",
    "header",
}  # fmt: skip
"""Arguments of a model that make no other one of it; all others do, as an adapter that vLLM is given does, which its name does not tell."""
_Settings = tuple[tuple[str, str], ...]


def import_lm_eval(config: RunConfig, asked: Path, output: Path, tokenizer: str | None = None) -> Recorded:
    """Answers in the folder given as `--output_path`, by model, of the newest run of each task that was exported. A model is its name and `--model_args`.

    tokenizer: of the model, to count free answers in; by default the one named in its `results_*.json`. Raises DataError for answers to other rows.
    """
    tags = groups_of(config, load_task(config.task, config.source)).values()
    newest: dict[tuple[Path, str, _Settings, str], tuple[Path, str | None, str | None]] = {}
    for file in sorted(output.rglob("samples_*.jsonl"), key=lambda file: file.name):
        match = _SAMPLES.fullmatch(file.name)
        if match and match["task"].rpartition("_")[0] in tags and (asked / f"{match['task']}.yaml").is_file():
            title, settings, named, fault = _model(file.parent, match["date"], match["task"], config.style)
            newest[file.parent, title, settings, match["task"]] = file, named, fault
    if not newest:
        raise DataError(
            f"{output}: no answers found to the tasks in {asked} under {few(tags)}; give what lm_eval was given as --output_path, with --log_samples"
        )
    docs = _docs(asked)
    sharing: dict[str, set[tuple[Path, _Settings]]] = {}
    for folder, title, settings, _ in newest:
        sharing.setdefault(title, set()).add((folder, settings))
    found: Recorded = {}
    for (folder, title, settings, task), (file, named, fault) in newest.items():
        if fault:
            raise DataError(fault)
        # several of one name, such as with and without an adapter: by what not all of them have
        apart = [str(folder.relative_to(output))] if len({place for place, _ in sharing[title]}) > 1 else []
        apart += [
            f"{key}={value}" for key, value in settings if not all((key, value) in its for _, its in sharing[title])
        ]
        whose = f"{title} ({', '.join(apart)})" if apart else title
        tokens = Tokens(config, tokenizer or named)
        found.setdefault(whose, []).extend(_rows(file, task.rpartition("_")[2], docs, tokens))
    return found


def _docs(asked: Path) -> dict[str, dict[str, Any]]:
    """The exported rows by the ids of their examples."""
    import pyarrow.parquet

    try:
        return {row["example_id"]: row for row in pyarrow.parquet.read_table(asked / ROWS).to_pylist()}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"{asked / ROWS}: cannot be read ({type(error).__name__}); give the folder that `paft export lm-eval` made"
        ) from None


def _model(folder: Path, date: str, task: str, style: str) -> tuple[str, _Settings, str | None, str | None]:
    """Name, settings and tokenizer of the model of a run, and what is wrong with one that asked in another way than was exported."""
    own = sorted(folder.glob(f"*_{date}.json"))
    for file in own or sorted(folder.glob("results_*.json"), reverse=True):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            arguments = told["config"]["model_args"]
            if isinstance(arguments, str):
                arguments = dict(part.partition("=")[::2] for part in arguments.split(","))
            title = str(told.get("model_name") or folder.name)
            if arguments.get("peft"):
                title += f" + {Path(str(arguments['peft'])).name}"
            settings = tuple(
                sorted((str(k), str(v)) for k, v in arguments.items() if k not in _MACHINE and v not in (None, "None"))
            )
            named = arguments.get("tokenizer") or arguments.get("pretrained")
            shots = (told.get("n-shot") or {}).get(task)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        other = {
            f"--num_fewshot {shots}": shots,
            "--system_instruction": told.get("system_instruction"),
            "--apply_chat_template": style == "raw" and told.get("chat_template"),
            "no --apply_chat_template": style == "chat" and "chat_template" in told and not told["chat_template"],
        }
        if own and (way := next((way for way, so in other.items() if so), None)):
            return (
                title,
                settings,
                named,
                f"{file}: was asked with {way}, and the export is for style={style} without examples; run lm-eval as it says",
            )
        return title, settings, named, None
    return folder.name, (), None, None


def _rows(file: Path, prompt: str, docs: Mapping[str, dict[str, Any]], tokens: Tokens) -> Iterator[dict[str, Any]]:
    filters = set()
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({type(error).__name__}); have lm-eval write it again") from None
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            sample = json.loads(line)
            filters.add(sample.get("filter"))
            if len(filters) > 1 and sample["filter"] != min(filters, key=str):
                continue  # a line for every filter over the same answer
            replies = sample["resps"]
            row = {"prompt": prompt, "example": sample["doc"]["example_id"]}
            if sample["doc"] != docs.get(row["example"]):
                raise DataError(
                    f"{file} line {number}: its example {row['example']!r} is another one than was exported; give the folder that lm-eval "
                    "was given as --include_path (--asked)"
                )
            if isinstance(replies[0][0], str):
                way = sample["arguments"]["gen_args_0"]["arg_1"]
                greedy = {key: value for key, value in way.items() if (key, value) != ("temperature", 0)}
                if greedy != _generation(tokens.config):
                    raise DataError(
                        f"{file} line {number}: was generated with {way}, and the export asks for {_generation(tokens.config)}; run lm-eval "
                        "without --gen_kwargs"
                    )
                yield row | tokens.completion(replies[0][0])
            else:
                if (
                    tokens.config.evaluate.normalization == "byte"
                    and sample["arguments"]["gen_args_0"]["arg_0"][-1:].isspace()
                ):
                    raise DataError(
                        f"{file} line {number}: its prompt ends in white space, which lm-eval scored together with each choice, so that "
                        "evaluate.normalization=byte would divide it by the choice's length; use sum"
                    )
                yield row | {"logp": [float(reply[0][0]) for reply in replies]}
        except PaftError:
            raise
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} line {number}: not a sample of lm-eval ({type(error).__name__} {error})") from None
