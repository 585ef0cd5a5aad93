"""A prompt made robust with a writer's help, over a real socket: what it damages, keeps, refuses, and pays for once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from paft.arms import untrained
from paft.batprompt import _Search, batprompt
from paft.cli import app
from paft.config import BatpromptConfig, BudgetConfig, EvalConfig, load_run_config
from paft.errors import ConfigError, EndpointError, PromptSetError
from paft.evaluation import evaluate
from paft.grid import Grid
from paft.materials import prepare
from paft.prompts import PromptSet
from paft.prompts.template import template_from
from paft.tasks import Example, sandbox
from tests import tiny
from tests.chat_server import ChatServer, prompts_for

NEAR = {"text": "My friend wrote: {text}\nthe shade they really meant was", "answer": {"labels": ["red", "blue"]}}
"""A test prompt with a word more."""


def answer(body: dict[str, Any]) -> str:
    """Damaged versions of an item, or templates: five by a hash, one of them a test prompt."""
    asked = body["messages"][-1]["content"]
    if asked.startswith("An item of a task"):
        text = json.loads(asked.split("\n")[1])["text"]
        return json.dumps([{"text": text.replace(" ", "  ", n)} for n in (1, 2)])
    assert "gets these items wrong" in asked
    return json.dumps([*prompts_for(body), NEAR])


def settings(folder: Path, server: ChatServer, **more: Any) -> BatpromptConfig:
    writer = {"name": "w", "model": "served", "base_url": server.url}
    run = folder / "config.yaml"
    return BatpromptConfig(
        run=str(run if run.exists() else tiny.write_config(folder)),
        writer=writer,
        **{"examples": 6, "rounds": 2, **more},
    )


def test_the_prompt_that_holds_best_on_damaged_examples_joins_the_train_prompts(tmp_path):
    with ChatServer(reply=answer) as server:
        config = settings(tmp_path, server)
        found = batprompt(config, tmp_path / "out")
        asked = len(server.asked)
        again = batprompt(config, tmp_path / "out")  # nothing is paid for twice
        assert (again, len(server.asked)) == (found, asked)
    before, after = (PromptSet.load(path) for path in (tmp_path / "prompts.yaml", tmp_path / "out" / "prompts.yaml"))
    assert found.accuracy[found.prompt.id] == max(found.accuracy.values())
    assert after.train == (before.train if found.prompt == found.start else (*before.train, found.prompt))
    assert (after.dev, after.test) == (before.dev, before.test)
    assert len(found.accuracy) > 1
    near = template_from(NEAR, "near")
    assert near.id not in {each.id for each in before.test}
    assert near.id not in found.accuracy  # left out, as it is near to a test prompt
    told = json.loads((tmp_path / "out" / "search.json").read_text("utf-8"))
    assert (told["damaged"], told["prompt"]) == (12, found.prompt.id)


def test_of_two_damaged_versions_one_that_the_model_gets_wrong_is_taken(tmp_path):
    with ChatServer(reply=answer) as server:
        config = settings(tmp_path, server, rounds=1)
        found = batprompt(config, tmp_path / "out")
    run = load_run_config(Path(config.run))
    rows = [json.loads(line) for line in (tmp_path / "out" / "replies.jsonl").read_text("utf-8").splitlines()]
    attacks = sorted((row for row in rows if row["strategy"] == "attack"), key=lambda row: row["number"])
    lm, taken = untrained(run), []
    for row, example in zip(attacks, prepare(run).dev[:6], strict=True):
        texts = [each["text"] for each in json.loads(row["text"])]
        versions = [replace(example, id=str(n), fields={"text": text}) for n, text in enumerate(texts)]
        scored = evaluate(lm, Grid((found.start,), tuple(versions)), EvalConfig(scorers=["likelihood"])).scores
        taken.append(float(scored["likelihood"].values_KN[0].min()))
    assert np.mean(taken) == pytest.approx(found.accuracy[found.start.id])


def test_a_search_that_was_cut_off_pays_for_the_rest_only(tmp_path):
    with ChatServer(reply=answer) as server:
        whole = batprompt(settings(tmp_path, server), tmp_path / "whole")
        config = settings(tmp_path, server)
        kept = (tmp_path / "whole" / "replies.jsonl").read_text("utf-8").splitlines(keepends=True)
        cut = tmp_path / "cut"
        server.status = 401
        with pytest.raises(EndpointError, match="401"):
            batprompt(config, cut)
        server.status = 0
        (cut / "replies.jsonl").write_text("".join(kept[:5]), "utf-8")
        before = len(server.asked)
        assert batprompt(config, cut) == whole
        assert len(server.asked) - before == len(kept) - 5
        assert (cut / "prompts.yaml").read_bytes() == (tmp_path / "whole" / "prompts.yaml").read_bytes()


def test_wrong_input_is_named_before_anything_is_asked(tmp_path):
    with ChatServer(reply=answer) as server:
        with pytest.raises(ConfigError, match="start 99: no such train prompt; give a position from 0 to 4"):
            batprompt(settings(tmp_path, server, start=99), tmp_path / "out")
        tiny.write_config(tmp_path, arms={"base": {}})
        with pytest.raises(ConfigError, match="no arm is trained"):
            batprompt(settings(tmp_path, server), tmp_path / "out")
        tiny.write_config(tmp_path)
        batprompt(settings(tmp_path, server, rounds=1), tmp_path / "out")
        assert (
            "quantization" not in (tmp_path / "out" / "build.yaml").read_text()
        )  # defaults: a later version may know more
        with pytest.raises(PromptSetError, match="holds a search with other settings"):
            batprompt(settings(tmp_path, server, candidates=5), tmp_path / "out")


def test_a_prompt_set_that_no_search_made_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prompts.yaml").write_text("# three weeks of work\n", "utf-8")
    with ChatServer(reply=answer) as server, pytest.raises(PromptSetError, match="is there already, and no search"):
        batprompt(settings(tmp_path, server), tmp_path / "out")
    assert not server.asked
    assert (tmp_path / "out" / "prompts.yaml").read_text("utf-8") == "# three weeks of work\n"


def test_a_budget_that_ends_leaves_the_best_so_far_and_a_larger_one_goes_on(tmp_path):
    with ChatServer(reply=answer) as server:
        whole = batprompt(settings(tmp_path, server), tmp_path / "whole")
        asked = len(server.asked)
        config = settings(tmp_path, server)
        poor = config.writer.model_copy(update={"budget": BudgetConfig(tokens=6500)})  # six attacks, and no rewriting
        said: list[str] = []
        found = batprompt(config.model_copy(update={"writer": poor}), tmp_path / "out", say=said.append)
        assert any("budget" in line for line in said)
        assert (found.damaged, found.prompt) == (6, found.start)
        assert PromptSet.load(tmp_path / "out" / "prompts.yaml").train
        before = len(server.asked)
        assert batprompt(config, tmp_path / "out") == whole
        assert 0 < len(server.asked) - before < asked
        none = config.writer.model_copy(update={"budget": BudgetConfig(tokens=10)})
        with pytest.raises(ConfigError, match="budget of 10 tokens"):
            batprompt(config.model_copy(update={"writer": none}), tmp_path / "none")


def test_answers_that_are_partly_right_are_mended_and_the_worst_are_shown(tmp_path, monkeypatch):
    """Of texts scored by F1 a worth of 0.05 is no reason to stop."""
    worths = {"oops": 0.4, "bad": 0.2, "worse": 0.05}
    sent = []

    def reply(body):
        sent.append(body["messages"][-1]["content"])
        return json.dumps([{"text": text} for text in ("oops", "half \ud83d", "bad" if len(sent) > 1 else "worse")])

    monkeypatch.setattr(
        "paft.batprompt._Search._worth",
        lambda self, prompts, examples: np.array([[worths[e.fields["text"]] for e in examples] for _ in prompts]),
    )
    with ChatServer(reply=reply) as server:
        found = batprompt(settings(tmp_path, server, examples=5, rounds=1), tmp_path / "out")
    shown = [
        json.loads(line.split(". ", 1)[1].split(" - right")[0])["text"]
        for line in sent[-1].splitlines()
        if " - right: " in line
    ]
    assert shown == ["bad", "bad", "worse"]  # the lowest last, and no half of a character
    assert found.accuracy[found.start.id] == pytest.approx((4 * 0.2 + 0.05) / 5)


def test_what_the_model_cannot_be_asked_is_left_out(tmp_path):
    """One of its control tokens in a damaged item or a prompt, or an item longer than it reads; a search that took it would end there,
    again and again."""

    def reply(body):
        asked = body["messages"][-1]["content"]
        if asked.startswith("An item of a task"):
            text = json.loads(asked.split("\n")[1])["text"]
            return json.dumps(
                [{"text": f"{text} <|end|>"}, {"text": text + " so" * 5000}, {"text": text.replace(" ", "  ", 1)}]
            )
        control = {"text": "Say <|end|> and the colour of {text}:", "answer": {"labels": ["red", "blue"]}}
        return json.dumps([control, *prompts_for(body)])

    with ChatServer(reply=reply) as server:
        found = batprompt(settings(tmp_path, server, rounds=1), tmp_path / "out")
    assert found.damaged == 6
    assert len(found.accuracy) > 1


def test_a_search_on_other_held_out_examples_is_another_one(tmp_path):
    """Rows of the held-out split that are scored too are left out of it."""
    with ChatServer(reply=answer) as server:
        config = settings(tmp_path, server, rounds=1)
        held, scored = (tmp_path / "data" / f"{split}.jsonl" for split in ("validation", "test"))
        held.write_text(scored.read_text("utf-8") + held.read_text("utf-8"), "utf-8")
        three, all_of_them = (
            load_run_config(Path(config.run), [f"evaluate.examples={count}"]) for count in (3, "null")
        )
        batprompt(config, tmp_path / "out", run=three)
        asked = len(server.asked)
        with pytest.raises(PromptSetError, match="holds a search with other settings"):
            batprompt(config, tmp_path / "out", run=all_of_them)
        batprompt(config, tmp_path / "out", run=three)
        assert len(server.asked) == asked


def test_a_damaged_head_of_code_is_taken_while_the_known_answer_still_runs(monkeypatch):
    monkeypatch.setattr(sandbox, "_allowed", True)
    if not sandbox.can_confine():
        pytest.skip("no confinement here")
    head, body = 'def one():\n    """Returns one."""\n', "    return 1\n"
    fields = {"prompt": head, "test": "def check(f):\n    assert f() == 1\n", "entry_point": "one"}
    example = Example("x", fields, (head + body,), 0, is_open=True)
    search = SimpleNamespace(task=SimpleNamespace(open_kind="code"))
    for prompt, kept in ((head.replace("Returns", "retruns"), True), (head.replace('"""', '""', 1), False)):
        assert _Search._stays_right(search, replace(example, fields=fields | {"prompt": prompt})) is kept


@pytest.mark.parametrize("reply", ["no idea", '{"text": ""}', '[{"words": "a b"}]', '{"text": 3}'])
def test_a_writer_that_damages_nothing_is_named(tmp_path, reply):
    with ChatServer(reply=reply) as server:
        with pytest.raises(PromptSetError, match="none of 6 replies holds a damaged example"):
            batprompt(settings(tmp_path, server), tmp_path / "out")
    assert not (tmp_path / "out" / "prompts.yaml").exists()


def test_from_the_command_line_to_a_training_on_what_was_found(tmp_path):
    with ChatServer(reply=answer) as server:
        config = tmp_path / "search.yaml"
        config.write_text(json.dumps(settings(tmp_path, server).model_dump(mode="json")), "utf-8")
        found = CliRunner().invoke(app, ["prompts", "batprompt", str(config), "-o", str(tmp_path / "out"), "--json"])
    assert found.exit_code == 0, found.output
    told = json.loads((tmp_path / "out" / "search.json").read_text("utf-8"))
    asked = [
        "run", str(tmp_path / "config.yaml"), f"prompts={tmp_path / 'out' / 'prompts.yaml'}", "-o", str(tmp_path / "run"),
        f"arms={{base: {{}}, robust: {{train: {{schedule: {{kind: fixed, prompt: {told['prompt']}}}}}}}}}",
    ]  # fmt: skip
    ran = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    steps = [json.loads(line) for line in (tmp_path / "run" / "robust" / "steps.jsonl").read_text("utf-8").splitlines()]
    assert {prompt for step in steps for prompt in step["prompts"]} == {told["prompt"]}
