"""A training of LLaMA-Factory as a task and a run: what varies, what is said around it, the answers, the hyper-parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from paft.cli import app
from paft.config import load_run_config
from paft.errors import ConfigError, DataError
from paft.integrations.llamafactory_import import import_llamafactory
from paft.prompts import PromptSet, audit
from paft.prompts.exchange import read_prompts
from paft.tasks import load_task
from paft.tasks.answers import answer_format_to
from tests import tiny

SETTINGS = {
    "stage": "sft",
    "do_train": True,
    "model_name_or_path": "Qwen/Qwen3-0.6B",
    "finetuning_type": "lora",
    "lora_rank": 16,
    "lora_target": "q_proj,v_proj",
    "dataset": "tickets",
    "template": "qwen3",
    "cutoff_len": 512,
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "bf16": True,
    "neftune_noise_alpha": 5,
}


def write(folder: Path, rows: list[dict], entry: dict[str, Any] | None = None, **settings: Any) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "tickets.json").write_text(json.dumps(rows), encoding="utf-8")
    info = {"tickets": {"file_name": "tickets.json", **(entry or {})}}
    (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    file = folder / "sft.yaml"
    file.write_text(yaml.safe_dump({**SETTINGS, "dataset_dir": str(data), **settings}), encoding="utf-8")
    return file


COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


def with_input(n: int = 40) -> list[dict]:
    return [
        {"instruction": "Sort the ticket {now}.", "input": f"ticket {i} about {'money' if i % 2 else 'a fault'}", "output": "billing" if i % 2 else "technical"}
        for i in range(n)
    ]  # fmt: skip


def test_rows_and_settings_become_a_task_and_a_run(tmp_path):
    done = import_llamafactory(write(tmp_path, with_input()), tmp_path / "out")
    assert (done.rows, done.kind, done.left_out) == (40, "choice", ("neftune_noise_alpha", "template"))
    assert done.prompts == ("Sort the ticket {{now}}.\n{text}",)
    task = load_task(tmp_path / "out" / "task.yaml")
    splits = {name: task.split(name).examples for name in ("train", "validation", "test")}
    assert {name: len(its) for name, its in splits.items()} == {"train": 32, "validation": 4, "test": 4}
    assert task.choices == ("billing", "technical")
    seen = {e.fields["text"]: e.choices[e.answer] for its in splits.values() for e in its}
    assert seen == {row["input"]: row["output"] for row in with_input()}
    config = load_run_config(tmp_path / "out" / "run.yaml")
    train = config.training_of("paft")
    assert (train.epochs, train.batch_size, train.micro_batch_size, train.max_length) == (2, 8, 2, 512)
    assert train.lora == {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
    assert (config.model, config.dtype, train.learning_rate) == ("Qwen/Qwen3-0.6B", "bfloat16", 2e-4)
    # what is not said is what LLaMA-Factory takes
    assert (train.lr_scheduler, train.warmup_ratio, train.save_every) == ("linear", 0.0, 500)
    assert yaml.safe_load((tmp_path / "out" / "build.yaml").read_text())["task"] == str(tmp_path / "out" / "task.yaml")


def test_the_rows_to_test_on_are_random_ones_and_the_same_again(tmp_path):
    for name in ("one", "two"):
        import_llamafactory(write(tmp_path / name, with_input(200)), tmp_path / name / "out")
    cuts = [
        {split: [example.id for example in task.split(split).examples] for split in ("train", "validation", "test")}
        for task in (load_task(tmp_path / name / "out" / "task.yaml") for name in ("one", "two"))
    ]
    assert cuts[0] == cuts[1]
    for split in ("validation", "test"):
        places = [int(name.rsplit("r", 1)[1]) for name in cuts[0][split]]
        assert len(places) == 20
        assert 60 < sum(places) / 20 < 140
        assert max(places) > 150


def test_the_prompt_around_a_text_is_what_all_rows_share(tmp_path):
    rows = [
        {
            "instruction": f"Add up.\nQuestion: {i} apples and {i} more?\nAnswer with a number:",
            "input": "",
            "output": str(2 * i),
        }
        for i in range(30)
    ]
    done = import_llamafactory(write(tmp_path, rows), tmp_path / "out")
    assert done.kind == "number"
    assert done.prompts == ("Add up.\nQuestion: {text} more?\nAnswer with a number:",)
    task = load_task(tmp_path / "out" / "task.yaml")
    example = task.split("train").examples[0]
    number = int(example.choices[0]) // 2
    assert example.fields["text"] == f"{number} apples and {number}"


def test_only_what_a_template_reads_is_escaped(tmp_path):
    rows = [{**row, "instruction": "Sort {größe} of {now}."} for row in with_input()]
    done = import_llamafactory(write(tmp_path, rows), tmp_path / "out")
    assert done.prompts == ("Sort {größe} of {{now}}.\n{text}",)
    (found,) = read_prompts([tmp_path / "out" / "prompts.jsonl"]).templates
    example = load_task(tmp_path / "out" / "task.yaml").split("train").examples[0]
    assert found.render(example)[-1].text.startswith("Sort {größe} of {now}.\n")


def test_a_question_belongs_to_its_passage(tmp_path):
    rows = [
        {
            "instruction": f"Which number is {word} in the list?",
            "input": f"List {i}: {i}, {i + 1}",
            "output": str(i + n),
        }
        for i in range(15)
        for n, word in enumerate(("first", "second"))
    ]
    done = import_llamafactory(write(tmp_path, rows), tmp_path / "out")
    assert done.prompts == ("Which number is {text}",)
    examples = load_task(tmp_path / "out" / "task.yaml").split("train").examples
    assert all("in the list?\nList" in each.fields["text"] for each in examples)
    other = [{**row, "instruction": f"{row['instruction']} ({n})"} for n, row in enumerate(with_input())]
    done = import_llamafactory(write(tmp_path / "other", other), tmp_path / "two")
    assert done.prompts == ("Sort the ticket {{now}}. ({text}",)


def test_several_instructions_over_the_same_inputs_are_prompts(tmp_path):
    rows = [{**row, "instruction": f"{word} the ticket."} for word in ("Sort", "File") for row in with_input(20)]
    done = import_llamafactory(write(tmp_path, rows), tmp_path / "out")
    assert done.prompts == ("Sort the ticket.\n{text}", "File the ticket.\n{text}")
    task = load_task(tmp_path / "out" / "task.yaml")
    found = read_prompts([tmp_path / "out" / "prompts.jsonl"], slots=task.fields)
    assert (tuple(each.text for each in found.templates), found.faulty) == (done.prompts, ())
    assert audit(found.templates, task).counts == {"near_duplicate": 1}


@pytest.mark.parametrize(
    ("other", "refused"),
    [(("red", "blue"), True), (("billing", "red"), False), (("red",), False)],
)
def test_instructions_with_choices_of_their_own_are_no_wordings_of_one_task(tmp_path, other, refused):
    rows = with_input() + [
        {"instruction": "Which colour?", "input": f"thing {i}", "output": other[i % len(other)]} for i in range(20)
    ]
    file = write(tmp_path, rows)
    if refused:
        said = "'Sort the ticket {now}.' is answered by billing, technical, 'Which colour.' by blue, red; expected wordings"
        with pytest.raises(DataError, match=said):
            import_llamafactory(file, tmp_path / "out")
    else:
        assert len(import_llamafactory(file, tmp_path / "out").prompts) == 2


@pytest.mark.parametrize(("wordings", "more"), [(2, False), (12, True)])
def test_prompts_that_are_taken_for_one_task_are_shown(tmp_path, wordings, more):
    """Free answers do not tell whether several instructions are wordings of one task."""
    rows = [
        {"instruction": f"Wording no. {i % wordings}.", "input": f"text {i}", "output": f"summary {i}"}
        for i in range(120)
    ]
    given = ["import", "llamafactory", str(write(tmp_path, rows)), "-o", str(tmp_path / "out")]
    said = " ".join(CliRunner().invoke(app, given).output.split())
    assert (
        f"{wordings} prompt(s) found, all in prompts.jsonl, taken as wordings of one task: Wording no. 0. {{text}}"
        in said
    )
    assert "Wording no. 1." in said
    assert ("Wording no. 10." in said, "and 2 more; where they ask" in said) == (False, more)
    assert "where they ask for different things, save the rows of each task as a dataset of its own" in said


def test_every_prompt_is_written_as_it_was_found(tmp_path):
    """`{{now}}` stays a name in braces."""
    done = import_llamafactory(write(tmp_path, with_input()), tmp_path / "out")
    (found,) = read_prompts([tmp_path / "out" / "prompts.jsonl"]).templates
    assert (found.text,) == done.prompts
    assert answer_format_to(found.answer) == "text"


def test_settings_mean_what_they_mean_there(tmp_path):
    """Names with blanks or as a list; bf16 of full weights is mixed precision; 4 bits are doubly quantised nf4; the first rows count."""

    def run_of(name: str, rows: list[dict] | None = None, **settings: Any):
        done = import_llamafactory(write(tmp_path / name, rows or with_input(), **settings), tmp_path / name / "out")
        return load_run_config(tmp_path / name / "out" / "run.yaml"), done

    for n, target in enumerate(("q_proj, v_proj", ["q_proj", "v_proj"])):
        config, _ = run_of(f"target{n}", lora_target=target, dataset=["tickets"], packing=False)
        assert config.training_of("paft").lora["target_modules"] == ["q_proj", "v_proj"]
    config, done = run_of("full", finetuning_type="full", packing=True)
    assert (config.dtype, config.training_of("paft").arguments) == ("float32", {"bf16": True})
    assert done.left_out == ("neftune_noise_alpha", "packing", "template")
    config, _ = run_of("half", finetuning_type="full", bf16=False, fp16=True)
    assert (config.dtype, config.training_of("paft").arguments) == ("float32", {"fp16": True})
    assert run_of("lora", bf16=False, fp16=True)[0].dtype == "float16"
    config, _ = run_of("pure", finetuning_type="full", bf16=False, pure_bf16=True)
    assert (config.dtype, config.training_of("paft").arguments) == ("bfloat16", {})
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    assert run_of("four", quantization_bit=4)[0].quantization == four
    config, _ = run_of("plain", quantization_bit=4, quantization_type="fp4", double_quantization=False)
    assert config.quantization == {**four, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False}
    _, done = run_of("some", [*with_input(), {"instruction": "x", "input": "y", "output": "other"}], max_samples=40)
    assert (done.rows, done.kind) == (40, "choice")
    rows = [{"text": row["input"], "output": row["output"]} for row in with_input()]
    info = {"file_name": "tickets.json", "columns": {"query": "text", "response": "output"}}
    done = import_llamafactory(write(tmp_path / "query", rows, info), tmp_path / "query" / "out")
    assert done.prompts == ("{text}",)


def test_settings_other_than_the_usual_ones_are_kept_or_named(tmp_path):
    usual = {"enable_thinking": True, "optim": "adamw_torch", "flash_attn": "auto", "warmup_steps": 0, "packing": False}
    done = import_llamafactory(write(tmp_path / "usual", with_input(), **usual), tmp_path / "one")
    assert done.left_out == ("neftune_noise_alpha", "template")
    assert load_run_config(tmp_path / "one" / "run.yaml").chat_template_kwargs == {}
    other = {
        "enable_thinking": False,
        "optim": "adafactor",
        "remove_unused_columns": False,
        "default_system": "Be brief.",
    }
    done = import_llamafactory(write(tmp_path / "other", with_input(), **other), tmp_path / "two")
    assert done.left_out == ("default_system", "neftune_noise_alpha", "optim", "remove_unused_columns", "template")
    assert load_run_config(tmp_path / "two" / "run.yaml").chat_template_kwargs == {"enable_thinking": False}


def test_what_is_never_done_needs_no_counterpart(tmp_path):
    """YAML reads `no` as false."""
    for n, no in enumerate((False, "no")):
        off = dict.fromkeys(("eval_strategy", "logging_strategy", "save_strategy"), no)
        done = import_llamafactory(write(tmp_path / f"in{n}", with_input(), **off), tmp_path / f"out{n}")
        assert done.left_out == ("neftune_noise_alpha", "template")
    other = {"eval_strategy": "steps", "save_strategy": "epoch"}
    done = import_llamafactory(write(tmp_path / "other", with_input(), **other), tmp_path / "two")
    assert done.left_out == ("eval_strategy", "neftune_noise_alpha", "save_strategy", "template")


def test_lines_of_json_are_read_whatever_the_file_is_called(tmp_path):
    settings = write(tmp_path, [])
    lines = "\n".join(map(json.dumps, with_input()))
    (tmp_path / "data" / "tickets.json").write_text(lines, encoding="utf-8")
    assert import_llamafactory(settings, tmp_path / "out").rows == 40


def test_answers_of_every_kind_are_free_texts(tmp_path):
    rows = [
        {"instruction": "Describe.", "input": f"thing {i}", "output": f"It is thing {i}.\nIt is {i} cm."}
        for i in range(30)
    ]
    done = import_llamafactory(write(tmp_path, rows), tmp_path / "out")
    task = load_task(tmp_path / "out" / "task.yaml")
    (example, *_) = task.split("train").examples
    number = example.fields["text"].split()[-1]
    assert (done.kind, example.score, example.choices) == (
        "text",
        "f1",
        (f"It is thing {number}.\nIt is {number} cm.",),
    )
    assert load_run_config(tmp_path / "out" / "run.yaml").evaluate.scorers == ["generation"]


@pytest.mark.parametrize(("answer", "kind"), [("It is thing {}.", "text"), ("{}", "number")])
def test_answers_that_do_not_recur_are_no_choices(tmp_path, answer, kind):
    rows = [{"instruction": "Describe.", "input": f"thing {i}", "output": answer.format(i)} for i in range(24)]
    assert import_llamafactory(write(tmp_path, rows), tmp_path / "out").kind == kind


def test_a_run_follows_once_there_are_prompts(tmp_path):
    file = write(tmp_path, with_input(), model_name_or_path=str(tiny.saved_model(tmp_path / "model")), bf16=False)
    import_llamafactory(file, tmp_path / "out")
    words = {"labels": ["billing", "technical"]}
    sets = {
        "task": "tickets",
        "train": [
            {"text": "{text}\nbilling or technical?", "answer": words},
            {"text": "Queue for: {text}", "answer": "text"},
        ],
        "dev": [{"text": "Which of the desks takes <mail>{text}</mail>", "answer": words}],
        "test": [
            {"text": "My colleague asks where this goes: {text}", "answer": words},
            {"text": "{text} =>", "answer": "text"},
        ],
    }
    (tmp_path / "out" / "prompts").mkdir()
    (tmp_path / "out" / "prompts" / "prompts.yaml").write_text(yaml.safe_dump(sets), encoding="utf-8")
    assert len(PromptSet.load(str(tmp_path / "out" / "prompts" / "prompts.yaml")).train) == 2
    from paft import pipeline
    from paft.watch import LineWatcher

    config = load_run_config(tmp_path / "out" / "run.yaml", ["train.epochs=1", "arms={paft: {train: {}}}"])
    results = pipeline.run(config, tmp_path / "run", LineWatcher(quiet=True))
    assert results["arms"]["paft"]["train"]["updates"] == 4


@pytest.mark.parametrize(
    ("rows", "entry", "settings", "said"),
    [
        (with_input(), {}, {"stage": "dpo"}, "stage 'dpo'"),
        (with_input(), {}, {"dataset": "a,b"}, "expected one name"),
        (with_input(), {}, {"dataset": "tickts"}, "no dataset 'tickts', did you mean 'tickets'"),
        (with_input(), {"formatting": "sharegpt"}, {}, "only alpaca rows"),
        (with_input(), {"columns": {"prompt": "instruction", "response": "answer"}}, {}, "column 'answer' is missing"),
        (with_input(10), {}, {}, "20 or more"),
        ([{"instruction": "Say", "input": str(i), "output": "yes"} for i in range(40)], {}, {}, "every row has the answer 'yes'"),
        (with_input(), {}, {"finetuning_type": "freeze"}, "expected lora or full"),
        ([], {}, {}, "holds no rows"),
        ([{**row, "output": None} for row in with_input()], {}, {}, "row 1: output is empty"),
        ([{**row, "system": "Be brief."} for row in with_input()], {"columns": {**COLUMNS, "system": "system"}}, {}, "row 1: has system"),
        ([{**row, "images": ["a.png"]} for row in with_input()], {"columns": {**COLUMNS, "images": "images"}}, {}, "row 1: has images"),
        (with_input(), {"columns": {"response": "output"}}, {}, "expected prompt, or query, and response"),
        (with_input(), {"columns": {**COLUMNS, "query": ["input"]}}, {}, r"columns.query \['input'\]; expected the name of a column"),
        (with_input(), {"columns": {**COLUMNS, "system": {"a": 1}}}, {}, "columns.system .*; expected the name of a column"),
        (with_input(), {"split": "train[:20]"}, {}, "split 'train.:20.' takes a part of its rows"),
        (with_input(), {"num_samples": 20}, {}, "num_samples 20 takes a part of its rows"),
        (with_input(), {"ranking": True}, {}, "ranking; only alpaca rows"),
        (with_input(), {"hf_hub_url": "a/b"}, {}, "is not a file here"),
        (with_input(), {"file_name": 5}, {}, "is not a file here"),
        (with_input(), {"columns": ["response"]}, {}, "expected prompt, or query, and response"),
        ([{**row, "output": "half \ud83d"} for row in with_input()], {}, {}, "row 1: column 'output' holds half a surrogate pair"),
        ([{**row, "input": ["a"]} for row in with_input()], {}, {}, "row 1: column 'input' holds list"),
        (with_input(), {}, {"num_train_epochs": 1.5}, "num_train_epochs 1.5: expected a whole number from 1"),
        (with_input(), {}, {"max_samples": 0}, "max_samples 0: expected a whole number from 1"),
        (with_input(), {}, {"quantization_bit": 4, "quantization_method": "hqq"}, "expected 4 or 8, by bnb"),
        (with_input(), {}, {"num_train_epochs": "abc"}, "num_train_epochs 'abc': expected a number"),
        (with_input(), {}, {"per_device_train_batch_size": "auto"}, "per_device_train_batch_size 'auto'"),
        (with_input(), {}, {"seed": "x"}, "seed 'x'"),
        (with_input(), {}, {"quantization_bit": 3}, "quantization_bit 3 by bnb: expected 4 or 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_task_is_refused(tmp_path, rows, entry, settings, said):
    with pytest.raises((ConfigError, DataError), match=said):
        import_llamafactory(write(tmp_path, rows, entry, **settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_to_do_next(tmp_path):
    found = CliRunner().invoke(
        app, ["import", "llamafactory", str(write(tmp_path, with_input())), "-o", str(tmp_path / "out")]
    )
    assert found.exit_code == 0, found.output
    assert "Sort the ticket" in found.output
    assert "paft prompts build" in found.output
    assert "1 prompt(s) found, all in prompts.jsonl" in found.output
    assert f"paft prompts import {tmp_path / 'out' / 'prompts.jsonl'} MORE" in found.output.replace("\n", "")
