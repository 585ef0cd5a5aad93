"""Prompts x examples in the languages of other harnesses, and the answers that they record: the table is the one that paft fills itself."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2
import pyarrow.parquet
import pytest
import yaml
from typer.testing import CliRunner

from paft import finished, materials, pipeline
from paft.cli import app
from paft.config import EvalConfig, dump_yaml, load_run_config
from paft.errors import ConfigError, DataError, PaftError
from paft.evaluation import evaluate
from paft.evaluation.recorded import load_recorded
from paft.grid import Cell, Grid
from paft.integrations.harness import record, with_limit
from paft.integrations.lm_eval import export_lm_eval
from paft.integrations.opencompass import export_opencompass
from paft.lm.hf import HFModel
from paft.lm.types import Message, Question
from paft.prompts.template import Template
from paft.tasks.answers import answer_format_from
from paft.tasks.types import Example
from paft.watch import LineWatcher
from tests import tiny

LIMIT = 6
ASKED = ["evaluate.max_new_tokens=6", "evaluate.split=test", "evaluate.thresholds=[0.5]", "data.dev_split=validation"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict]]:
    """A folder with task, prompts and model, and what paft finds itself, by style."""
    folder = tmp_path_factory.mktemp("harness")
    config = tiny.write_config(folder)
    alone = {
        style: pipeline.run(
            load_run_config(config, ["arms={base: {}}", f"style={style}", *ASKED[:1]]),
            folder / style,
            LineWatcher(quiet=True),
        )
        for style in ("raw", "chat")
    }
    return folder, alone


def paft(*arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(app, [*map(str, arguments)])
    if code and isinstance(found.exception, PaftError):
        return str(found.exception)
    assert found.exit_code == code, found.output + str(found.exception)
    return found.output


def export(kind: str, folder: Path, out: Path, *overrides: str) -> str:
    model = ["--model", folder / "model"] if kind == "opencompass" else []
    given = ["--task", folder / "data" / "task.yaml", "--prompts", folder / "prompts.yaml", *model]
    return paft("export", kind, *given, "-o", out, *ASKED, *overrides)


def answer(model: HFModel, system: str, user: str, choices: tuple[str, ...], limit: int) -> Any:
    turns = (Message("system", system),) if system else ()
    (found,) = model.answer([Question((*turns, Message("user", user)), choices, limit)])
    return found


# lm-eval: a sample as version 0.4.13 writes it, keys that are not read left out


class _Yaml(yaml.SafeLoader):
    pass


_Yaml.add_constructor("!function", lambda loader, node: ("function", loader.construct_scalar(node)))


def as_lm_eval(asked: Path, out: Path, model: HFModel) -> None:
    """Every task of the folder, as lm-eval reads it."""
    language = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    rows = pyarrow.parquet.read_table(asked / "rows.parquet").to_pylist()
    place = out / "tiny"
    place.mkdir(parents=True)
    for file in sorted(asked.glob("paft_*.yaml")):
        task = yaml.load(file.read_text(encoding="utf-8"), Loader=_Yaml)
        assert task["custom_dataset"] == ("function", "rows.rows")
        lines = []
        for number, row in enumerate(rows):
            system, user = (
                language.from_string(task.get(key, "")).render(**row) for key in ("description", "doc_to_text")
            )
            sample = {"doc_id": number, "doc": row, "filter": "none"}
            if task["output_type"] == "multiple_choice":
                found = answer(model, system, user, tuple(row[task["doc_to_choice"]]), 0)
                assert task["doc_to_target"] == "gold"
                sample["resps"] = [[[str(logp), "False"]] for logp in found.logp_C]
            else:
                assert task["generation_kwargs"] == {"until": [], "do_sample": False, "max_gen_toks": LIMIT}
                sample["resps"] = [[answer(model, system, user, (), LIMIT).completion.text]]
                sample["arguments"] = {"gen_args_0": {"arg_0": user, "arg_1": task["generation_kwargs"]}}
                lines.append(json.dumps({**sample, "filter": "another"}))
            lines.append(json.dumps(sample))
        (place / f"samples_{task['task']}_2026-01-02T03-04-05.6.jsonl").write_text(
            "\n".join(lines) + "\n", encoding="utf-8"
        )
        (place / f"samples_{task['task']}_2025-01-02T03-04-05.6.jsonl").write_text("an older run\n", encoding="utf-8")
    told = {"model_name": "tiny", "config": {"model_args": {"pretrained": str(asked.parent / "world" / "model")}}}
    (place / "results_2026-01-02T03-04-05.6.json").write_text(json.dumps(told), encoding="utf-8")


def as_opencompass(asked: Path, out: Path, model: HFModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dataset of the configuration, as OpenCompass reads it: its modules are names, its templates filled slot by slot."""
    names: dict[str, list[str]] = {
        "opencompass.datasets": ["CustomDataset"],
        "opencompass.models": ["HuggingFaceBaseModel", "HuggingFacewithChatTemplate"],
        "opencompass.openicl.icl_evaluator": ["AccEvaluator"],
        "opencompass.openicl.icl_inferencer": ["GenInferencer", "PPLInferencer"],
        "opencompass.openicl.icl_prompt_template": ["PromptTemplate"],
        "opencompass.openicl.icl_retriever": ["ZeroRetriever"],
        "opencompass.utils.text_postprocessors": ["first_option_postprocess"],
    }
    for name in ("opencompass", "opencompass.openicl", "opencompass.utils", *names):
        module = types.ModuleType(name)
        for each in names.get(name, []):
            setattr(module, each, each)
        monkeypatch.setitem(sys.modules, name, module)
    config: dict[str, Any] = {}
    exec((asked / "config.py").read_text(encoding="utf-8"), config)  # as OpenCompass does
    (told,) = config["models"]
    place = out / "20260102_030405" / "predictions" / told["abbr"]
    place.mkdir(parents=True)

    def fill(text: str, row: dict, columns: list[str]) -> str:
        for name in columns:
            text = text.replace(f"{{{name}}}", str(row[name]))
        return text

    for data in config["datasets"]:
        rows = [json.loads(line) for line in Path(data["path"]).read_text(encoding="utf-8").splitlines()]
        columns, template = data["reader_cfg"]["input_columns"], data["infer_cfg"]["prompt_template"]["template"]
        predictions: dict[str, Any] = {}
        for number, row in enumerate(rows):
            if data["infer_cfg"]["inferencer"]["type"] == "PPLInferencer":
                assert data["infer_cfg"]["inferencer"]["batch_size"] == 1  # what it pads, it scores wrongly
                found: dict[str, Any] = {}
                for label, text in template.items():
                    whole = fill(text, row, columns)
                    ids = model.renderer.ids([whole])[0]
                    found[f"label: {label}"] = {"prompt": whole, "PPL": -_total(model, ids) / len(ids)}
                predictions[str(number)] = found
            else:
                turns = template if isinstance(template, dict) else {"round": [{"role": "HUMAN", "prompt": template}]}
                system = "".join(fill(turn["prompt"], row, columns) for turn in turns.get("begin", []))
                user = fill(turns["round"][0]["prompt"], row, columns)
                limit = data["infer_cfg"]["inferencer"]["max_out_len"]
                said = answer(model, system, user, (), limit).completion.text
                begin = [{"role": "SYSTEM", "prompt": system}] if system else []
                turns = [*begin, {"role": "HUMAN", "prompt": user}] if isinstance(template, dict) else user
                predictions[str(number)] = {"origin_prompt": turns, "prediction": said}
        (place / f"{data['abbr']}.json").write_text(json.dumps(predictions), encoding="utf-8")


def _total(model: HFModel, ids: list[int]) -> float:
    import torch

    with torch.no_grad():
        logits = model.model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids[1:])[:, None]).sum())


def scores(run: Path) -> dict[str, Any]:
    return {arm: {name: (m.prompt_ids, m.example_ids, m.values_KN.tolist(), m.answers_KN.tolist()) for name, m in by.items()}
            for arm, by in finished.load_tables(run).items()}  # fmt: skip


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_answers_by_lm_eval_fill_the_table_that_paft_fills(world, tmp_path, style):
    folder, _ = world
    (tmp_path / "world").symlink_to(folder)
    said = export("lm-eval", folder, tmp_path / "asked", f"style={style}")
    assert ("--apply_chat_template" in said) == (style == "chat")
    as_lm_eval(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=style == "chat"))
    paft("import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run")
    assert scores(tmp_path / "run")["tiny"] == scores(folder / style)["base"]
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "Asked in 3 wordings" in text
    assert "model tiny (recorded answers), seed 0" in text
    assert "| tiny | 24 of 24 | 24 | 0 | – | – |" in text  # nothing was computed here, so nothing was avoided
    paft("compare", tmp_path / "run", folder / style)


@pytest.mark.parametrize(("style", "scorers"), [("raw", "[likelihood, generation]"), ("chat", "[generation]")])
def test_answers_by_opencompass_fill_the_table_that_paft_fills(world, tmp_path, monkeypatch, capsys, style, scorers):
    folder, _ = world
    said = export(
        "opencompass", folder, tmp_path / "asked", f"style={style}", f"evaluate.scorers={scorers}", "dtype=float32"
    )
    # the model was saved by transformers 5, and OpenCompass has version 4
    assert 'to config.json "rope_theta": 10000.0; to tokenizer_config.json' in said
    as_opencompass(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=style == "chat"), monkeypatch)
    paft("import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run")
    (found,) = scores(tmp_path / "run").values()
    expected = scores(folder / style)["base"]
    for scorer in ("likelihood", "generation") if style == "raw" else ("generation",):
        assert found[scorer] == expected[scorer]


NASTY = {
    "task": "colours",
    "train": [{"text": "{text} red, blue?", "answer": {"labels": ["red", "blue"]}}],
    "dev": [{"text": "What hue, in one word: {text}", "answer": {"labels": ["red", "blue"]}}],
    "test": [
        {
            "text": "{{% raw %}} {{text}} {text} {{{{ 7 * 7 }}}}  \n{% if x %}",
            "answer": {"wrap": '{"hue": "{answer}"}', "of": "text"},
        },
        {"text": "spaces at the end of {text}   ", "answer": "letters"},
        {"text": "a break at the end, {text}\n", "answer": {"labels": ["rot", "blau"]}},
        {"text": "{choices}\n\n# {text}", "options": "{{ {label} }} {text} {", "joiner": "\r\n", "answer": "letters"},
    ],
}


def nasty(folder: Path) -> list[str]:
    """A task whose texts look like templates and dates."""
    folder.mkdir()
    texts = [
        "{{ gold }} {% raw %}",
        "2020-01-01 00:00:00",
        "{asked} {text} {choices}",
        "\u2028 \U0001f600 <b>&amp;",
        "7",
        "ends in a space ",
    ]
    rows = [{"id": f"n{n}", "text": text, "label": "red"} for n, text in enumerate(texts)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = {
        "name": "n",
        "fields": ["text"],
        "choices": ["red", "blue"],
        "answer": "label",
        "id": "id",
        "files": {"test": "rows.jsonl"},
    }
    (folder / "task.yaml").write_text(dump_yaml(told), encoding="utf-8")
    (folder / "prompts.yaml").write_text(dump_yaml(NASTY), encoding="utf-8")
    return [
        f"task={folder / 'task.yaml'}",
        f"prompts={folder / 'prompts.yaml'}",
        "evaluate.split=test",
        "arms={m: {recorded: x.jsonl}}",
    ]


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_texts_that_look_like_templates_reach_lm_eval_as_they_are(tmp_path, style):
    overrides = [*nasty(tmp_path / "data"), f"style={style}", "model=x"]
    config = load_run_config(None, overrides)
    grid = materials.prepare(config).grid
    export_lm_eval(config, tmp_path / "asked")
    language = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    rows = pyarrow.parquet.read_table(tmp_path / "asked" / "rows.parquet").to_pylist()
    for k, template in enumerate(grid.templates):
        task = yaml.load((tmp_path / "asked" / f"paft_n_{template.id}.yaml").read_text(encoding="utf-8"), Loader=_Yaml)
        for i, row in enumerate(rows):
            shown = language.from_string(task["doc_to_text"]).render(**row)
            (wanted,) = (turn.text for turn in grid.chat(Cell(0, k, i)))
            assert shown == (wanted if style == "chat" else wanted.rstrip(" "))
            assert row[task["doc_to_choice"]] == list(grid.question(Cell(0, k, i)).choices)
        assert task["target_delimiter"] == ("" if style == "chat" or template.text.endswith("\n") else " ")


def test_white_space_that_lm_eval_scores_is_not_divided_by_the_bytes_of_a_choice(world, tmp_path):
    settings = [*nasty(tmp_path / "data"), "style=raw", "evaluate.normalization=byte"]
    with pytest.raises(ConfigError, match="ends in white space, which lm-eval scores together with each choice"):
        export_lm_eval(load_run_config(None, settings), tmp_path / "asked")
    export_lm_eval(load_run_config(None, [*settings, "evaluate.scorers=[generation]"]), tmp_path / "asked")
    folder, _ = world
    (tmp_path / "world").symlink_to(folder)
    chat = ["style=chat", "evaluate.normalization=byte", "evaluate.scorers=[likelihood]"]
    export("lm-eval", folder, tmp_path / "chat", *chat)
    as_lm_eval(tmp_path / "chat", tmp_path / "out", tiny.hf_model(chat=True))
    for file in (tmp_path / "out" / "tiny").glob("samples_*_2026-*"):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        shown = {"gen_args_0": {"arg_0": "<|assistant|>\n", "arg_1": "red"}}
        file.write_text("\n".join(json.dumps({**line, "arguments": shown}) for line in lines), encoding="utf-8")
    given = ["import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "chat", "--out", tmp_path / "run"]
    assert "line 1: its prompt ends in white space" in paft(*given, code=1)
    paft(*given, "evaluate.normalization=sum")


def test_texts_that_opencompass_would_fill_are_refused(tmp_path):
    config = load_run_config(None, [*nasty(tmp_path / "data"), "style=raw", "model=x"])
    with pytest.raises(ConfigError, match=r"example 'n2' holds \{asked\}"):
        export_opencompass(config, tmp_path / "asked")
    assert not (tmp_path / "asked").exists()


def test_opencompass_reads_the_letters_of_the_example_with_most_options(tmp_path):
    rows = [{"q": "warm or cold?", "o": ["warm", "cold"], "a": 0}, {"q": "which?", "o": ["ice", "tea", "milk"], "a": 2}]
    write(tmp_path / "rows.jsonl", *rows)
    told = {"name": "n", "fields": ["q"], "choices_from": "o", "answer": "a", "files": {"test": "rows.jsonl"}}
    (tmp_path / "task.yaml").write_text(dump_yaml(told), encoding="utf-8")
    prompts = {
        "task": "n",
        "train": [{"text": "Q {q}\n{choices}\nletter?", "answer": "letters"}],
        "dev": [{"text": "Consider well: {q}\nfrom {choices} choose", "answer": "letters"}],
        "test": [
            {"text": "Solve this riddle.\n{q}\n{choices}\nAnswer:", "answer": "letters"},
            {"text": "{choices}\n\nWhich of these fits {q} best?", "answer": "letters"},
        ],
    }
    (tmp_path / "prompts.yaml").write_text(dump_yaml(prompts), encoding="utf-8")
    given = [f"task={tmp_path / 'task.yaml'}", f"prompts={tmp_path / 'prompts.yaml'}", "evaluate.split=test"]
    settings = [*given, "style=raw", "model=x", "evaluate.scorers=[generation]", "arms={m: {recorded: x.jsonl}}"]
    export_opencompass(load_run_config(None, settings), tmp_path / "asked")
    (line,) = (each for each in (tmp_path / "asked" / "config.py").read_text().split("\n") if "options = " in each)
    assert line.count("'ABC'") == 2


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("lm-eval", [], "style auto"),
        ("opencompass", [], "style auto"),
        ("opencompass", ["style=chat"], "raw text only"),
    ],
)
def test_exports_that_cannot_be_are_refused(world, tmp_path, kind, overrides, said):
    folder, _ = world
    model = ["--model", folder / "model"] if kind == "opencompass" else []
    given = ["--task", folder / "data" / "task.yaml", "--prompts", folder / "prompts.yaml", *model]
    assert said in paft("export", kind, *given, "-o", tmp_path / "asked", *ASKED, *overrides, code=1)
    assert not (tmp_path / "asked").exists()


def test_a_place_that_holds_something_is_not_written_to(world, tmp_path):
    (tmp_path / "mine").write_text("kept")
    folder, _ = world
    given = ["--task", folder / "data" / "task.yaml", "--prompts", folder / "prompts.yaml"]
    assert "exists" in paft("export", "lm-eval", *given, "-o", tmp_path, *ASKED, "style=raw", code=1)
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_imports_that_cannot_be_are_refused(world, tmp_path):
    folder, _ = world
    export("lm-eval", folder, tmp_path / "asked", "style=raw")
    (tmp_path / "out").mkdir()
    given = ["--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    assert "no answers found" in paft("import", "lm-eval", tmp_path / "out", *given, code=1)
    assert "holds no paft.yaml" in paft("import", "lm-eval", tmp_path / "out", "--asked", tmp_path, code=1)
    assert "rows: no rows of an export" in paft("import", "opencompass", tmp_path / "out", *given, code=1)
    other = tmp_path / "out" / "samples_paft_colours_00000000_2026-01-02T03-04-05.6.jsonl"
    other.write_bytes(b"another task's\n")
    assert "no answers found to the tasks in" in paft("import", "lm-eval", tmp_path / "out", *given, code=1)
    task = next((tmp_path / "asked").glob("paft_*.yaml")).stem
    samples = tmp_path / "out" / f"samples_{task}_2026-01-02T03-04-05.6.jsonl"
    for content in (b'{"doc": 1}\n', b"[1]\n", b"null\n", b"[" * 100_000):
        samples.write_bytes(content)
        assert "line 1: not a sample of lm-eval" in paft("import", "lm-eval", tmp_path / "out", *given, code=1)
    samples.write_bytes(b"\xff\xfe")
    assert "cannot be read" in paft("import", "lm-eval", tmp_path / "out", *given, code=1)
    assert not (tmp_path / "run").exists()


def test_models_of_like_names_are_kept_apart(world, tmp_path):
    folder, alone = world
    export("lm-eval", folder, tmp_path / "a #1: b", "style=raw")  # a name that YAML would cut
    for place in ("one", "two"):
        as_lm_eval(tmp_path / "a #1: b", tmp_path / "out" / place, tiny.hf_model(chat=False))
    given = ["--asked", tmp_path / "a #1: b", "--tokenizer", folder / "model", "--out", tmp_path / "run"]
    paft("import", "lm-eval", tmp_path / "out", *given)
    told = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert [arm["title"] for arm in told["arms"].values()] == ["tiny (one/tiny)", "tiny (two/tiny)"]
    for arm in told["arms"].values():
        mine, theirs = (each["scores"]["likelihood"]["accuracy_K"] for each in (arm, alone["raw"]["arms"]["base"]))
        assert mine == theirs


def test_two_models_in_one_folder_of_lm_eval_are_two(world, tmp_path):
    """--output_path FILE.json: samples of every model lie in one folder, the results beside them under the file's name."""
    folder, _ = world
    (tmp_path / "world").symlink_to(folder)
    export("lm-eval", folder, tmp_path / "asked", "style=raw", "evaluate.scorers=[likelihood]")
    as_lm_eval(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=False))
    place = tmp_path / "out" / "tiny"
    for old in place.glob("*_2025-*"):
        old.unlink()
    (results,) = place.glob("results_*.json")
    told = json.loads(results.read_text())
    for file in list(place.glob("samples_*")):
        (place / file.name.replace("2026", "2027")).write_bytes(file.read_bytes())
    results.rename(place / "a_2026-01-02T03-04-05.6.json")
    (place / "b_2027-01-02T03-04-05.6.json").write_text(json.dumps({**told, "model_name": "other"}))
    paft("import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run")
    arms = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["arms"]
    assert sorted(arm["title"] for arm in arms.values()) == ["other", "tiny"]


@pytest.mark.parametrize(
    ("base", "other", "names"),
    [
        ({}, {"enable_lora": True, "lora_local_path": "runs/a"}, ["tiny", "tiny (enable_lora=True, lora_local_path=runs/a)"]),
        ({"revision": "a"}, {"revision": "b", "device": "cpu"}, ["tiny (revision=a)", "tiny (revision=b)"]),
        ({}, {"dtype": "float16"}, ["tiny", "tiny (dtype=float16)"]),
        ({"batch_size": 8}, {"gpu_memory_utilization": 0.5, "batch_size": 1, "revision": None}, ["tiny"]),
    ],
)  # fmt: skip
def test_models_that_lm_eval_gives_one_name_are_told_apart_by_their_settings(world, tmp_path, base, other, names):
    """It names them by pretrained, peft and delta alone. What another machine wants makes no other model: an older run completes a newer one."""
    place, given = answered_lm_eval(world, tmp_path, "likelihood")
    (results,) = place.glob("results_*.json")
    told = json.loads(results.read_text())
    model = told["config"]["model_args"]
    for number, (date, more) in enumerate((("2026-01-02T03-04-05.6", base), ("2027-01-02T03-04-05.6", other))):
        arguments = model | more if number else ",".join(f"{k}={v}" for k, v in (model | more).items())
        (place / f"results_{date}.json").write_text(json.dumps(told | {"config": {"model_args": arguments}}))
    for n, file in enumerate(sorted(place.glob("samples_*_2026-*"))):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        swapped = [{**line, "resps": line["resps"][::-1]} for line in lines]
        if len(names) > 1 or n:
            text = "\n".join(map(json.dumps, swapped if len(names) > 1 else lines))
            (place / file.name.replace("2026", "2027")).write_text(text, encoding="utf-8")
        if len(names) == 1 and n:
            file.write_text("of a run that was redone\n")
    for file in place.glob("samples_*_2025-*"):
        file.unlink()
    paft(*given)
    arms = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))["arms"]
    assert sorted(arm["title"] for arm in arms.values()) == names
    mine = {arm: scores(tmp_path / "run")[arm]["likelihood"] for arm in arms}
    expected = scores(world[0] / "raw")["base"]["likelihood"]
    assert [mine[arm] == expected for arm in sorted(arms, key=lambda arm: arms[arm]["title"])] == [True, False][
        : len(names)
    ]


def answered_lm_eval(world, tmp_path, scorer):
    """Where lm-eval keeps what the tiny model answered to an export, and the command that imports it."""
    (tmp_path / "world").symlink_to(world[0])
    export("lm-eval", world[0], tmp_path / "asked", "style=raw", f"evaluate.scorers=[{scorer}]")
    as_lm_eval(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=False))
    given = ["import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    return tmp_path / "out" / "tiny", given


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"chat_template": "{{ messages }}"}, "was asked with --apply_chat_template"),
        ({"system_instruction": "Be brief."}, "was asked with --system_instruction"),
        ({"n-shot": 5}, "was asked with --num_fewshot 5"),
        ({"chat_template": None, "system_instruction": None, "n-shot": 0}, ""),
    ],
)
def test_answers_to_something_else_are_not_taken_for_those_of_the_export(world, tmp_path, told, said):
    place, given = answered_lm_eval(world, tmp_path, "likelihood")
    (file,) = place.glob("results_*.json")
    if "n-shot" in told:
        tasks = [each.stem for each in (tmp_path / "asked").glob("paft_*.yaml")]
        told = {**told, "n-shot": dict.fromkeys(tasks, told["n-shot"])}
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    assert said in paft(*given, code=1 if said else 0)
    assert (tmp_path / "run").exists() == (not said)


def test_answers_that_were_generated_in_another_way_are_not_taken_for_those_of_the_export(world, tmp_path):
    place, given = answered_lm_eval(world, tmp_path, "generation")
    file = next(place.glob("samples_*_2026-*"))
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('"do_sample": false', '"do_sample": false, "temperature": 0'), encoding="utf-8")
    paft(*given)  # another word for greedy
    file.write_text(text.replace('"do_sample": false', '"do_sample": true, "temperature": 1.0'), encoding="utf-8")
    assert "'temperature': 1.0, " in (said := paft(*given, code=1))
    assert "without --gen_kwargs" in said


def test_what_is_not_to_be_judged_by_is_not_read(world, tmp_path):
    """No tokenizer is loaded for free answers that do not count, and what is wrong with them is no fault."""
    export("lm-eval", world[0], tmp_path / "asked", "style=raw")
    as_lm_eval(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=False))
    for file in (tmp_path / "out" / "tiny").glob("samples_*_free_*"):
        file.write_text("of another system text\n")
    given = ["import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    paft(*given, "evaluate.scorers=[likelihood]")
    assert scores(tmp_path / "run")["tiny"] == {"likelihood": scores(world[0] / "raw")["base"]["likelihood"]}


def test_an_older_run_that_asked_otherwise_is_no_fault(world, tmp_path):
    place, given = answered_lm_eval(world, tmp_path, "likelihood")
    told = json.loads((place / "results_2026-01-02T03-04-05.6.json").read_text())
    (place / "results_2025-01-02T03-04-05.6.json").write_text(json.dumps({**told, "chat_template": "{{ messages }}"}))
    paft(*given)
    assert scores(tmp_path / "run")["tiny"]["likelihood"] == scores(world[0] / "raw")["base"]["likelihood"]


def test_answers_to_other_rows_are_not_taken_for_those_of_the_export(world, tmp_path):
    place, given = answered_lm_eval(world, tmp_path, "likelihood")
    file = next(place.glob("samples_*_2026-*"))
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lines[4]["doc"]["text"] += " indeed"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert f"line 5: its example '{lines[4]['doc']['example_id']}' is another one than was" in paft(*given, code=1)
    assert not (tmp_path / "run").exists()


def test_predictions_of_several_workers_are_put_together(world, tmp_path, monkeypatch):
    folder, _ = world
    export("opencompass", folder, tmp_path / "asked", "style=raw", "dtype=float32")
    as_opencompass(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=False), monkeypatch)
    (place,) = (tmp_path / "out").glob("*/predictions/*")
    for number, file in enumerate(sorted(place.glob("*.json"))):
        if number % 2:
            continue
        rows = list(json.loads(file.read_text()).values())
        for part, some in enumerate((rows[:3], rows[3:6], rows[6:])):
            told = {str(n): row for n, row in enumerate(some)}
            file.with_name(f"{file.stem}_{part}.json").write_text(json.dumps(told), encoding="utf-8")
        file.unlink()
    newer = tmp_path / "out" / "20270102_030405" / "predictions" / place.name
    newer.mkdir(parents=True)  # a run that was stopped before it wrote anything
    (newer / "tmp_paft_colours.jsonl").write_text("{}")
    given = ["import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked"]
    paft(*given, "--out", tmp_path / "run")
    (found,) = scores(tmp_path / "run").values()
    expected = scores(folder / "raw")["base"]
    assert {name: found[name] for name in expected} == expected
    next(place.glob("*_0.json")).unlink()
    assert "predictions, 8 examples were exported" in paft(*given, "--out", tmp_path / "two", code=1)


def test_broken_rows_of_an_export_are_named(world, tmp_path):
    """Not the predictions to them."""
    export("opencompass", world[0], tmp_path / "asked", "style=raw")
    (tmp_path / "out").mkdir()
    given = ["import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    assert "out: no predictions" in paft(*given, code=1)
    file = next((tmp_path / "asked" / "rows").glob("*.jsonl"))
    text = file.read_text(encoding="utf-8")
    for broken in (text[:-40], text.replace('"asked"', '"ask"'), text + "[1]\n", text + "[" * 100_000):
        file.write_text(broken, encoding="utf-8")
        assert f"{file}: not rows of an export" in paft(*given, code=1)


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_predictions_to_other_texts_are_not_taken_for_those_of_the_export(world, tmp_path, monkeypatch, style):
    """Of a task of another name, and of one of the same name and other rows, though prompts and number of examples are the same."""
    folder, _ = world
    overrides = [f"style={style}", "dtype=float32", *(["evaluate.scorers=[generation]"] if style == "chat" else [])]
    export("opencompass", folder, tmp_path / "asked", *overrides)
    as_opencompass(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=style == "chat"), monkeypatch)
    given = ["import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    (place,) = (tmp_path / "out").glob("*/predictions/*")
    newer = tmp_path / "out" / "20270102_030405" / "predictions" / place.name
    newer.mkdir(parents=True)  # a run of another task, later, in the same work directory
    for file in place.glob("paft_colours*"):
        (newer / file.name.replace("colours", "colours_zh")).write_text("{}")
    paft(*given)
    (found,) = scores(tmp_path / "run").values()
    assert found == {name: value for name, value in scores(folder / style)["base"].items() if name in found}
    for file in place.glob("paft_colours*"):
        text = file.read_text(encoding="utf-8")
        told = json.loads(text)
        file.write_text(json.dumps(told | {"2": told["3"], "3": told["2"]}), encoding="utf-8")
        assert "prediction 2 answers another text than was exported" in paft(*given, code=1)
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("scorer", ["likelihood", "generation"])
def test_predictions_of_another_model_need_its_tokenizer(world, tmp_path, monkeypatch, scorer):
    folder, _ = world
    export("opencompass", folder, tmp_path / "asked", "style=raw", "dtype=float32", f"evaluate.scorers=[{scorer}]")
    as_opencompass(tmp_path / "asked", tmp_path / "out", tiny.hf_model(chat=False), monkeypatch)
    (place,) = (tmp_path / "out").glob("*/predictions/*")
    place.rename(place.with_name("llama"))
    given = ["import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run"]
    assert "llama" in (said := paft(*given, code=1))
    assert "of another model than the exported one, whose tokens must be counted" in said
    paft(*given, "--tokenizer", folder / "model")
    (found,) = scores(tmp_path / "run").values()
    assert found[scorer] == scores(folder / "raw")["base"][scorer]


def test_models_that_answered_in_other_ways_are_not_compared(world, tmp_path):
    config = load_run_config(world[0] / "config.yaml", ["arms={base: {}}"])
    grid = materials.prepare(config).grid
    row = {"prompt": grid.templates[0].id, "example": grid.examples[0].id}
    found = {"a": [{**row, "logp": [-1.0, -2.0]}], "b": [{**row, "completion": "x", "tokens": 1, "ended": True}]}
    with pytest.raises(DataError, match="import them one by one"):
        record(config, found, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    named = record(config, {"a-b": found["a"], "a_b": found["a"]}, tmp_path / "run")
    assert list(named.arms) == ["a_b", "a_b_2"]
    named = record(config, {"model² ü": found["a"], "²": found["a"]}, tmp_path / "signs")
    assert list(named.arms) == ["model__ü", "model"]


def test_scorers_are_those_that_are_asked_for_and_held_of_the_export(world, tmp_path):
    asked = [load_run_config(world[0] / "config.yaml", ["arms={base: {}}", f"evaluate.scorers=[{each}]"])
             for each in ("likelihood, generation", "generation", "likelihood")]  # fmt: skip
    grid = materials.prepare(asked[0]).grid
    row = {"prompt": grid.templates[0].id, "example": grid.examples[0].id}
    free = {**row, "completion": "x", "tokens": 1, "ended": True}
    both = {**free, "logp": [-1.0, -2.0]}
    assert record(asked[1], {"a": [both]}, tmp_path / "run").evaluate.scorers == ["generation"]
    said: list[str] = []
    kept = record(asked[0], {"a": [both], "b": [free], "c": [both]}, tmp_path / "less", said.append)
    assert kept.evaluate.scorers == ["generation"]
    assert said == ["no choices of b: likelihood is left out for all; import the others apart to see it"]
    record(asked[1], {"a": [both], "b": [free]}, tmp_path / "less two", said.append)
    assert len(said) == 1
    elsewhere = {**both, "prompt": "p"}
    assert record(asked[0], {"a": [free, elsewhere]}, tmp_path / "run").evaluate.scorers == ["generation"]
    with pytest.raises(DataError, match=r"no answers for .*; set evaluate.scorers=\[generation\]"):
        record(asked[2], {"a": [free]}, tmp_path / "run")
    for rows in ([], [elsewhere]):
        with pytest.raises(DataError, match=f"^b: none of its {len(rows)} answers belongs"):
            record(asked[0], {"a": [both], "b": rows}, tmp_path / "run")


def test_the_directory_that_one_is_in_is_not_replaced(world, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder, _ = world
    given = ["--task", folder / "data" / "task.yaml", "--prompts", folder / "prompts.yaml"]
    assert "name a new one" in paft("export", "lm-eval", *given, "-o", ".", *ASKED, "style=raw", code=1)


def test_the_limit_of_free_answers_fits_the_task(world):
    """Code has room; how long a model may reason before a number is for the user to say; long options are not cut."""
    folder, _ = world
    config = load_run_config(folder / "config.yaml", ["arms={base: {}}", "evaluate.max_new_tokens=null"])
    m = materials.prepare(config)
    assert with_limit(config, m).evaluate.max_new_tokens == 32
    kinds = {
        "code": SimpleNamespace(num_choices=1, open_kind="code"),
        "number": SimpleNamespace(num_choices=1, open_kind="number", name="n"),
    }
    assert with_limit(config, replace(m, task=kinds["code"])).evaluate.max_new_tokens == 512
    with pytest.raises(ConfigError, match="max_new_tokens is not set"):
        with_limit(config, replace(m, task=kinds["number"]))
    long = Example("l", {"text": "x"}, ("a" * 200, "b"), 0)
    grid = Grid((Template("{text} =>", answer_format_from("text")),), (long,))
    assert with_limit(config, replace(m, grid=grid)).evaluate.max_new_tokens == 100


# recorded answers as such


def write(file: Path, *rows: dict) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_recorded_answers_are_read_part_by_part(world, tmp_path):
    folder, _ = world
    config = load_run_config(folder / "config.yaml", ["arms={base: {}}"])
    grid = materials.prepare(config).grid
    prompt, example = grid.templates[0].id, grid.examples[0].id
    lm = load_recorded(
        write(
            tmp_path / "r.jsonl",
            {"prompt": prompt, "example": example, "logp": [-1.0, -2.0]},
            {"prompt": prompt, "example": example, "completion": "red", "tokens": 2, "ended": True},
        ),
        [grid],
    )
    (found,) = lm.answer([Question(grid.chat(Cell(0, 0, 0)), ("red", "blue"), 4)])
    assert found.logp_C == (-1.0, -2.0)
    assert (found.completion.text, found.completion.tokens, found.completion.stop) == ("red", 2, "eos")
    with pytest.raises(DataError, match="no log-likelihoods on record"):
        lm.answer([Question(grid.chat(Cell(0, 1, 0)), ("red", "blue"))])
    with pytest.raises(DataError, match="no log-likelihoods on record"):
        lm.answer([Question(grid.chat(Cell(0, 0, 0)), ("red", "blue", "green"))])
    with pytest.raises(DataError, match="no free answer on record"):
        lm.answer([Question(grid.chat(Cell(0, 0, 1)), (), 4)])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"example": "e", "logp": [-1]}, "line 1: KeyError 'prompt'"),
        ({"prompt": "p", "example": "e"}, "neither log-likelihoods nor a free answer"),
        ({"prompt": "p", "example": "e", "logp": [float("nan"), -1]}, "no number"),
        ({"prompt": "p", "example": "e", "logp": [float("inf"), -1]}, "no number"),
        ({"prompt": "p", "example": "e", "completion": "x"}, "KeyError 'tokens'"),
        (
            {"prompt": "p", "example": "e", "completion": ["x"], "tokens": 1, "ended": True},
            r'completion is \["x"\], no text',
        ),
        ({"prompt": "p", "example": "e", "completion": "x", "tokens": 1.5, "ended": True}, "tokens is 1.5, no length"),
        (
            {"prompt": "p", "example": "e", "completion": "x", "tokens": 1, "ended": "no"},
            'ended is "no", neither true nor',
        ),
        ({"prompt": "p", "example": "e", "logp": [-1, -2]}, "none of its 1 answers belongs"),
        ({"prompt": 0, "example": 0, "logp": [-1, -2, -3]}, "3 log-likelihoods for prompt .* which has 2 choices"),
    ],
)
def test_recorded_answers_that_cannot_be_read_are_named(world, tmp_path, row, said):
    folder, _ = world
    m = materials.prepare(load_run_config(folder / "config.yaml", ["arms={base: {}}"]))
    if row.get("prompt") == 0:
        row = {**row, "prompt": m.grid.templates[0].id, "example": m.grid.examples[0].id}
    with pytest.raises(DataError, match=said):
        load_recorded(write(tmp_path / "r.jsonl", row), [m.grid])


def test_a_second_answer_to_a_cell_is_refused(world, tmp_path):
    m = materials.prepare(load_run_config(world[0] / "config.yaml", ["arms={base: {}}"]))
    row = {"prompt": m.grid.templates[0].id, "example": m.grid.examples[0].id, "tokens": 1, "ended": True}
    same = write(tmp_path / "same.jsonl", {**row, "completion": "red"}, {**row, "completion": "red"})
    assert len(load_recorded(same, [m.grid]).said) == 1
    other = write(tmp_path / "other.jsonl", {**row, "completion": "red"}, {**row, "completion": "blue"})
    with pytest.raises(DataError, match=r"line 2: a second, different answer to prompt .* one seed, epoch or run"):
        load_recorded(other, [m.grid])


def test_two_answers_to_a_cell_that_is_not_asked_are_no_fault(world, tmp_path):
    config = load_run_config(world[0] / "config.yaml", ["arms={base: {}}"])
    m = materials.prepare(config)
    row = {"prompt": m.grid.templates[0].id, "example": m.grid.examples[0].id, "logp": [-1.0, -2.0]}
    rows = [row, *({**row, "example": "elsewhere", "logp": [first, -2.0]} for first in (-1.0, -3.0))]
    (arm,) = record(config, {"a": rows}, tmp_path / "run").arms.values()
    assert len(load_recorded(Path(arm.recorded), [m.grid]).scored) == 1


def test_examples_of_one_text_and_other_choices_keep_their_own_answers(tmp_path):
    """Under a prompt that shows no options nothing else tells them apart."""
    examples = [
        Example("a", {"goal": "dry it"}, ("towel", "oven"), 0),
        Example("b", {"goal": "dry it"}, ("soup", "sun"), 1),
    ]
    grid = Grid((Template("{goal}\nSo:", answer_format_from("text")),), examples)
    prompt = grid.templates[0].id
    rows = [{"prompt": prompt, "example": "a", "logp": [-1, -2]}, {"prompt": prompt, "example": "b", "logp": [-2, -1]}]
    lm = load_recorded(write(tmp_path / "r.jsonl", *rows), [grid])
    found = evaluate(lm, grid, EvalConfig(scorers=["likelihood"]))
    assert found.scores["likelihood"].values_KN.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"recorded": "x.jsonl", "model": "m"}, "take the place of a model"),
        ({"recorded": "x.jsonl", "train": {}}, "not both"),
    ],
)
def test_an_arm_of_recorded_answers_has_no_model(arm, said):
    with pytest.raises(ConfigError, match=said):
        load_run_config(None, [], {"task": "piqa", "arms": {"a": arm}})
