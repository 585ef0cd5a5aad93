"""Building a prompt set against servers that fail, are killed beside, refuse, or write nonsense."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from paft.build import BuildReport, build_prompts, import_prompts, plan_build
from paft.config import BudgetConfig, BuildConfig, WriterConfig, dump_yaml, validate
from paft.errors import ConfigError, EndpointError, PaftError, PromptSetError, StoreError
from paft.lm.endpoint import Reply
from paft.lm.types import Message
from paft.prompts import PromptSet
from paft.prompts.review import read_decisions
from paft.prompts.strategies import Request, read_reply
from paft.store import CellStore, read_jsonl
from paft.tasks import load_task
from paft.writers import Replies
from tests import tiny
from tests.chat_server import NOUNS, ChatServer, identity, prompts_for

KEY = "sk-very-secret-4711"
SIZES = {"train": 24, "dev": 6, "test": 6}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAFT_TEST_KEY", KEY)


def settings(folder: Path, url: str, **other: object) -> dict:
    writer = {"model": "m", "base_url": url, "key_env": "PAFT_TEST_KEY", "timeout": 0.6}
    task = tiny.write_task(folder / "data")
    prompts = tiny.write_prompts(folder / "data")
    return {
        "task": str(task),
        "about": "Is the colour in the text red or blue?",
        "examples": str(prompts),
        "writers": [{"name": "one", **writer}, {"name": "two", **writer, "model": "n"}],
        "first_round": 10,
        "embeddings": None,
        **SIZES,
        **other,
    }


def build(folder: Path, url: str, out: str = "out", **other: object) -> BuildReport:
    return build_prompts(BuildConfig.model_validate(settings(folder, url, **other)), folder / out)


def ids(report: BuildReport) -> dict[str, list[str]]:
    return {name: [template.id for template in templates] for name, templates in report.splits.items()}


def everything_in(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file())


def test_a_build_ends_with_the_counts_that_were_wanted_and_says_what_was_dropped(tmp_path: Path) -> None:
    with ChatServer() as server:
        report = build(tmp_path, server.url)
    assert report.complete
    assert {name: len(templates) for name, templates in report.splits.items()} == SIZES
    found = PromptSet.load(tmp_path / "out" / "prompts.yaml")  # which checks that no split leaks into another
    assert found.task == "colours"
    origin = found.train[0].origin
    assert (origin["model"], origin["meta"], origin["seed"]) == ("served-model-1", "1", 0)
    assert {t.origin["strategy"] for t in found.train} == {"zero-shot", "few-shot"}
    assert {t.origin["writer"] for t in found.train} == {"one", "two"}
    notes = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert notes["audit"]["counts"]["slot_missing"] > 0
    assert notes["unusable_entries"]["malformed"] > 0
    assert notes["given"] == len(report.selection.kept) + len(report.selection.dropped)
    assert sum(notes["separation"]["wording"]["nearest"]["bins"]) == SIZES["test"]
    assert notes["separation"]["wording"]["nearest"]["max"] < 0.5
    assert 1 <= notes["separation"]["wording"]["vendi"]["train"] <= SIZES["train"]
    # more than the first round was needed, and no more than that
    assert max(row["number"] for row in read_jsonl(tmp_path / "out" / "replies.jsonl")) >= 2


def test_failing_servers_change_nothing_and_nothing_is_paid_twice(tmp_path: Path) -> None:
    sizes = {"train": 80, "dev": 10, "test": 10, "first_round": 30}
    with ChatServer() as server:
        smooth = build(tmp_path / "a", server.url, **sizes)
    with ChatServer(faults=0.3) as rough:
        report = build(tmp_path / "b", rough.url, **sizes)
    assert report.complete
    assert ids(report) == ids(smooth)
    assert set(rough.failed) == {"429", "500", "cut", "json", "silence"}
    assert set(rough.paid.values()) == {1}
    assert rough.keys == {f"Bearer {KEY}"}
    assert KEY not in everything_in(tmp_path)


CHILD = "import sys; from paft.cli import main; main()"


def run_cli(*words: str, **extra: object) -> subprocess.Popen:
    env = {**os.environ, "PAFT_TEST_KEY": KEY, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **extra,
    )


def test_ten_kills_change_nothing_and_replies_on_disk_are_not_asked_for_again(tmp_path: Path) -> None:
    with ChatServer() as server:
        smooth = build(tmp_path / "a", server.url)
    draw = random.Random(3)
    with ChatServer(faults=0.2, delay=0.15) as server:
        values = settings(tmp_path / "b", server.url)
        for writer in values["writers"]:
            writer["concurrency"] = 2
        config = tmp_path / "build.yaml"
        config.write_text(dump_yaml(values), encoding="utf-8")
        out = tmp_path / "b" / "out"
        kills, lost = 0, 0
        while kills < 10:
            child = run_cli("prompts", "build", str(config), "--out", str(out))
            before = len(server.asked)
            until = time.monotonic() + 60
            while len(server.asked) == before and child.poll() is None and time.monotonic() < until:
                time.sleep(0.01)  # starting takes longer than working: kill while it works
            time.sleep(draw.uniform(0.0, 0.35))
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
            child.communicate()
            kills += 1
            time.sleep(0.3)  # what was under way is answered, to nobody
            lost = sum(server.paid.values()) - len(read_jsonl(out / "replies.jsonl"))
            assert (
                lost <= 8 * kills
            )  # at most what was under way: two writers, two requests each, before and after the answer
        child = run_cli("prompts", "build", str(config), "--out", str(out))
        stdout, stderr = child.communicate(timeout=120)
        assert child.returncode == 0, stderr
        rows = read_jsonl(out / "replies.jsonl")
    assert len({row["key"] for row in rows}) == len(rows)  # each reply once
    assert sum(server.paid.values()) - len(rows) == lost  # the last run paid for nothing that was on disk
    found = PromptSet.load(out / "prompts.yaml")
    assert {name: [t.id for t in found.split(name)] for name in SIZES} == ids(smooth)
    assert "are not asked for again" in stderr
    assert KEY not in stdout + stderr + everything_in(tmp_path)


def test_a_refusal_is_one_line_without_the_key(tmp_path: Path) -> None:
    with ChatServer(status=401) as server, pytest.raises(EndpointError, match="HTTP 401") as caught:
        build(tmp_path, server.url)
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)
    assert "PAFT_TEST_KEY" in str(caught.value)
    writers = [{"name": "x", "model": "m", "base_url": "http://127.0.0.1:9/v1", "key_env": "PAFT_NO_SUCH"}]
    with pytest.raises(ConfigError, match="PAFT_NO_SUCH is empty; export the key"):
        build(tmp_path, "", "other", writers=writers)
    assert not (tmp_path / "other" / "build.yaml").exists()


def test_a_server_that_is_not_there_is_given_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paft.lm.endpoint.TRIES", 2)
    with pytest.raises(EndpointError, match=r"no reply after 2 tries \(last: Connect.*run the same command again"):
        build(tmp_path, "http://127.0.0.1:9/v1")


def test_retry_after_is_waited_for(tmp_path: Path) -> None:
    writer = {"name": "w", "model": "m", "concurrency": 1}
    with ChatServer(faults=0.5, retry_after="0.7", kinds=("429",)) as server:
        build(tmp_path, server.url, writers=[{**writer, "base_url": server.url}], train=4, dev=1, test=1)
    asked: dict[str, list[float]] = {}
    for body, when in zip(server.asked, server.times, strict=True):
        asked.setdefault(identity(body), []).append(when)
    waits = [b - a for times in asked.values() for a, b in itertools.pairwise(times)]
    assert len(waits) == server.failed["429"] > 0
    assert min(waits) >= 0.69
    # and nobody else knocks meanwhile
    assert sum(b - a < 0.69 for a, b in zip(server.times, server.times[1:], strict=False)) <= len(asked)


def test_budgets_stop_a_writer_before_it_overspends(tmp_path: Path) -> None:
    with ChatServer() as server:
        values = settings(tmp_path, server.url, train=300)
        values["writers"][0] |= {"max_tokens": 200, "budget": {"tokens": 4500}}
        values["writers"][1] |= {"max_tokens": 200, "price": {"input": 1.0, "output": 10.0}, "budget": {"money": 0.008}}
        report = build_prompts(BuildConfig.model_validate(values), tmp_path / "out")
    assert set(report.stopped) == {"one", "two"}
    assert "4500 tokens" in report.stopped["one"]
    assert 0 < report.tokens["one"] <= 4500
    assert 0 < report.money["two"] <= 0.008
    assert not report.complete
    # the same directory with a larger budget goes on
    for writer in values["writers"]:
        writer.pop("budget")
    with ChatServer() as server:
        for writer in values["writers"]:
            writer["base_url"] = server.url
        with pytest.raises(PromptSetError, match="holds a build with other settings"):
            build_prompts(BuildConfig.model_validate({**values, "seed": 5}), tmp_path / "out")


def test_a_reply_without_prompts_is_answered_with_its_fault(tmp_path: Path) -> None:
    def sulky(body: dict) -> str:
        told = "could not be used" in body["messages"][-1]["content"]
        return "Sure:\n```json\n" + json.dumps(prompts_for(body)) + "\n```" if told else "I cannot do that."

    with ChatServer(reply=sulky) as server:
        report = build(tmp_path, server.url)
    assert report.complete
    assert report.unusable["unreadable"] == sum(
        "could not be used" in b["messages"][-1]["content"] for b in server.asked
    )
    with ChatServer(reply="No, never.") as server:
        report = build(tmp_path, server.url, "never", rounds=2)
    assert not report.complete
    assert report.given == 0
    assert not (tmp_path / "never" / "prompts.yaml").exists()
    assert json.loads((tmp_path / "never" / "audit.json").read_text())["unusable_entries"]["unreadable"] > 0


def test_dry_run_sends_nothing(tmp_path: Path) -> None:
    config = BuildConfig.model_validate(settings(tmp_path, "http://127.0.0.1:9/v1"))
    plan = plan_build(config)
    assert len(plan.requests) == 2 * 2 * 2
    assert plan.tokens["one"] > 4 * 4096
    text = plan.requests[0].chat[1].text
    assert "{text}" in text
    assert "red, blue" in text
    few = next(request for request in plan.requests if request.strategy == "few-shot")
    assert "Prompts that are good" in few.chat[1].text
    assert len({request.key for request in plan.requests}) == len(plan.requests)
    path = tmp_path / "build.yaml"
    path.write_text(dump_yaml(settings(tmp_path, "http://127.0.0.1:9/v1")), encoding="utf-8")
    child = run_cli("prompts", "build", str(path), "--out", str(tmp_path / "out"), "--dry-run")
    stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0, stderr
    assert "one: 4 requests in the first round, at most" in stdout
    assert not (tmp_path / "out").exists()


def test_without_prompts_to_show_all_requests_are_zero_shot(tmp_path: Path) -> None:
    """A task of one's own has no shipped set. Who asks for few-shot requests by name is told what they need."""
    told: list[str] = []
    given = {**settings(tmp_path, "http://127.0.0.1:9/v1"), "examples": None}
    plan = plan_build(BuildConfig.model_validate(given), say=told.append)
    assert {request.strategy for request in plan.requests} == {"zero-shot"}
    assert "every request is zero-shot" in told[0]
    for more in ({"strategies": ["zero-shot", "few-shot"]}, {"split_by": "strategy"}):
        with pytest.raises(ConfigError, match="name a set in `examples`, or use strategies"):
            plan_build(BuildConfig.model_validate({**given, **more}))


@pytest.mark.parametrize("line", ['{"key": "zz"}', "[1]", "5", '{"key": "k", "writer": "gone", "text": ""}'])
def test_a_damaged_file_of_replies_is_refused_and_left_as_it_is(tmp_path: Path, line: str) -> None:
    with ChatServer() as server:
        build(tmp_path, server.url, rounds=1)
        replies = tmp_path / "out" / "replies.jsonl"
        damaged = replies.read_text() + line + "\n"
        replies.write_text(damaged)
        paid = sum(server.paid.values())
        with pytest.raises(StoreError, match="no reply of this build"):
            build(tmp_path, server.url, rounds=1)
        assert sum(server.paid.values()) == paid
    assert replies.read_text() == damaged


def test_axes_of_ones_own(tmp_path: Path) -> None:
    def turned(**axes: list[str]) -> set[str]:
        config = BuildConfig.model_validate(settings(tmp_path, "http://127.0.0.1:9/v1", first_round=100, axes=axes))
        return {f"{axis}: {value}" for request in plan_build(config).requests for axis, value in request.axes.items()}

    assert any(each.startswith("register:") for each in turned())
    assert "register: royal" in turned(register=["royal"])
    assert not any(each.startswith("register:") for each in turned(register=[]))
    assert "planet: Mars" in turned(planet=["Mars"])


def test_the_model_of_this_process_writes_too_and_its_failure_is_counted(tmp_path: Path) -> None:
    tiny.saved_model(tmp_path / "model")
    writers = [{"name": "here", "model": str(tmp_path / "model"), "max_tokens": 64}]
    report = build(tmp_path, "", writers=writers, first_round=5, rounds=1, strategies=["zero-shot"])
    assert report.unusable == {"unreadable": 2}
    assert report.tokens["here"] > 0
    again = build(tmp_path, "", writers=writers, first_round=5, rounds=1, strategies=["zero-shot"])
    assert again.tokens == report.tokens


def test_a_paid_reply_without_text_is_kept_counted_and_not_asked_for_eight_times(tmp_path: Path) -> None:
    with ChatServer(reply=lambda body: None) as server:  # what a content filter or a spent limit gives: content null
        report = build(tmp_path, server.url, rounds=1)
    assert report.unusable == {"unreadable": len(server.asked)}
    assert len(server.asked) == 2 * 2 * 2 * 2  # writers, strategies, requests, asked again once
    assert set(server.paid.values()) == {1}
    assert sum(report.tokens.values()) == 150 * len(server.asked)


def test_a_looping_reply_is_unreadable_and_nothing_worse(tmp_path: Path) -> None:
    with ChatServer(reply='{"text":' * 3000) as server:
        report = build(tmp_path, server.url, rounds=1)
    assert report.unusable == {"unreadable": len(server.asked)}


def test_a_budget_is_used_up_the_same_way_whatever_was_interrupted(tmp_path: Path) -> None:
    def run(folder: Path, url: str) -> BuildReport:
        values = settings(folder, url, rounds=3)
        for writer in values["writers"]:
            writer |= {"max_tokens": 2000, "budget": {"tokens": 7_000}}
        return build_prompts(BuildConfig.model_validate({**values, "train": 300}), folder / "out")

    with ChatServer() as server:
        whole = run(tmp_path / "a", server.url)
    assert set(whole.stopped) == {"one", "two"}
    assert (
        min(whole.tokens.values()) > 5 * 150
    )  # what is under way holds more than it uses: others wait, nobody stops early
    rows = (tmp_path / "a" / "out" / "replies.jsonl").read_text().splitlines()
    half = tmp_path / "b" / "out"
    half.mkdir(parents=True)
    (half / "replies.jsonl").write_text("\n".join(rows[: len(rows) // 2]) + "\n")
    with ChatServer() as server:
        resumed = run(tmp_path / "b", server.url)
    assert ids(resumed) == ids(whole)
    assert len(server.asked) == len(rows) - len(rows) // 2


@pytest.mark.parametrize("header", ["0", "Mon, 01 Jan 2001 00:00:00 GMT", "nan", "Mon, 99 Foo"])
def test_a_useless_retry_after_does_not_burn_the_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.setattr("paft.lm.endpoint.TRIES", 3)
    with ChatServer(faults=1.0, kinds=("429",), retry_after=header) as server:
        began = time.monotonic()
        writers = [{"name": "w", "model": "m", "base_url": server.url, "concurrency": 1}]
        with pytest.raises(EndpointError, match="no reply after 3 tries"):
            build(tmp_path, server.url, writers=writers)
    assert time.monotonic() - began > 0.25 + 0.5


def test_a_key_is_hidden_wherever_a_server_repeats_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for padding in range(130, 165, 3):
        with ChatServer(status=400) as server:
            server.send_padding = padding
            with pytest.raises(EndpointError) as caught:
                build(tmp_path, server.url, f"out{padding}")
        assert KEY[:9] not in str(caught.value)
    monkeypatch.setenv("PAFT_TEST_KEY", "sk-abc\u2019def")
    with pytest.raises(ConfigError, match="characters that no key has") as caught:
        build(tmp_path, "http://127.0.0.1:9/v1", "quote")
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://h/v1", "localhost:8000/v1", "http://localhost:abc/v1", "http://[bad/v1", "https://me:pw@h/v1"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="base_url is not a web address") as caught:
        build(tmp_path, url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": ["zero-shot", "zero-shot"]}, "named twice"),
        ({"split_by": "writer"}, "makes 2 groups, which cannot fill three splits"),
        ({"similarity": 0.7}, "less than or equal to 0.5"),
        ({"writers": []}, "at least 1 item"),
        ({"writers": [{"name": "a", "model": "m"}, {"name": "a", "model": "n"}]}, "two have one name"),
        ({"writers": [{"name": "a", "model": "m", "budget": {"money": 1}}]}, "no price"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(BuildConfig, {**settings(tmp_path, "http://127.0.0.1:9/v1"), **change}, "build.yaml")


def test_entries_are_found_wherever_a_model_puts_them() -> None:
    one, two = {"text": "{goal} a", "answer": "text"}, {"text": "{goal} b", "answer": "text"}
    for reply in (
        json.dumps([one, two]),
        json.dumps({"notes": [{"x": 1}], "templates": [one, two]}),
        json.dumps({"1": one, "2": two}),
        f"<think>maybe {json.dumps({**one, 'text': 'draft'})}</think>```json\n{json.dumps([one, two])}\n```",
        f"{json.dumps(one)}\n{json.dumps(two)}",
        f'[{json.dumps(one)}, {json.dumps(two)}, {{"text": "cut o',
    ):
        assert [t.text for t in read_reply(reply, {})[0]] == ["{goal} a", "{goal} b"], reply


def test_what_a_model_thinks_is_left_out_and_tags_inside_a_prompt_are_text() -> None:
    tagged = {"text": "{goal} Write <think>why</think> and the letter, no </think> more.", "answer": "text"}
    draft = json.dumps({"text": "{goal} draft", "answer": "text"})
    for reply in (
        json.dumps([tagged]),
        f"<think>\nthe slot {{goal}} ... {draft}</think>{json.dumps([tagged])}",
        f"the slot {{goal}} ... {draft}\n</think>\n\n{json.dumps([tagged])}",
        f"Well. <THINK>{draft}</THINK>{json.dumps([tagged])}",
        f'[{json.dumps(tagged)}, {{"text": "an unquoted " <think>sign</think>"}}]',
    ):
        assert [template.text for template in read_reply(reply, {})[0]] == [tagged["text"]], reply
    for reply in (
        f"{json.dumps([tagged])}\n</think>\n",
        f"<think>x</think>{json.dumps([tagged])}</think>",
        f"{json.dumps([tagged])}<think>{draft}</think>",
    ):
        assert [each.text for each in read_reply(reply, {})[0]] == [tagged["text"]]
    assert read_reply(f"<think>{draft}", {})[0] == read_reply(f"{draft}</think>No.", {})[0] == []


def reader(body: dict) -> str:
    """Writes, judges and answers: `apple` is what both judges object to, `bridge` only one, at `candle` one says nothing."""
    asked = body["messages"][-1]["content"]
    if "You check prompts" in body["messages"][0]["content"]:
        objects = "apple" in asked or ("bridge" in asked and body["model"] == "j1")
        if "candle" in asked and body["model"] == "j1":
            return "I would rather not say."
        fault = {"fault": "polarity", "reason": "asks for {the} other"} if objects else {"fault": "none", "reason": ""}
        return f"<think>{{}}</think> Here it is: {json.dumps(fault)}"
    return json.dumps(prompts_for(body))


def judged(folder: Path, url: str, **other: object) -> BuildReport:
    server = {"base_url": url, "timeout": 5}
    judges = [{"name": name, "model": name, **server} for name in ("j1", "j2")]
    return build(folder, url, judges=judges, **other)


def test_judges_drop_what_they_agree_on_and_a_person_decides_the_rest(tmp_path: Path) -> None:
    import yaml

    with ChatServer(reply=reader) as server:
        report = judged(tmp_path, server.url)
        assert report.complete
        faults = {t.text: {fault.name for fault in found} for t, found in report.selection.dropped}
        found_out = {text: names for text, names in faults.items() if names & {"judged", "disputed"}}
        assert {"judged", "disputed"} <= set().union(*found_out.values())
        for text, names in found_out.items():
            assert names == ({"judged"} if "apple" in text and "candle" not in text else {"disputed"})
        assert not any(word in t.text for t in report.selection.kept for word in ("apple", "bridge", "candle"))

        file = tmp_path / "out" / "review.yaml"
        review = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert {each["text"] for each in review["prompts"]} == set(found_out)
        wanted, unwanted = review["prompts"][0], report.splits["test"][0]
        wanted["decision"] = "keep"
        review["prompts"].append({"id": unwanted.id, "decision": "drop"})
        file.write_text(yaml.safe_dump(review), encoding="utf-8")
        again = judged(tmp_path, server.url)
        assert set(server.paid.values()) == {1}
    assert again.complete
    assert wanted["id"] in {t.id for t in again.selection.kept}
    assert {t.id: {f.name for f in found} for t, found in again.selection.dropped}[unwanted.id] == {"reviewed"}
    assert again.reviewed == {"keep": 1, "drop": 1}
    kept = {each["id"]: each["decision"] for each in yaml.safe_load(file.read_text(encoding="utf-8"))["prompts"]}
    assert (kept[wanted["id"]], kept[unwanted.id]) == ("keep", "drop")
    assert None in kept.values()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts: 3", "expected a list under `prompts`"),
        (
            "prompts: [{id: '12345678', decision: maybe}]",
            "entry 1 .*expected an id .* and a decision of keep, drop or nothing",
        ),
        ("prompts: [{id: ab345678, decision: keep}, {id: ab345678, decision: drop}]", "is decided upon twice"),
        ("prompts: [", "not YAML"),
    ],
)
def test_a_review_that_cannot_be_read_is_one_line_and_left_as_it_is(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "review.yaml").write_text(text, encoding="utf-8")
    with ChatServer() as server, pytest.raises(PaftError, match=message):
        build(tmp_path, server.url)
    assert not server.asked
    assert (tmp_path / "out" / "review.yaml").read_text(encoding="utf-8") == text


def test_a_judge_without_budget_ends_the_build_with_what_was_read(tmp_path: Path) -> None:
    with ChatServer(reply=reader) as server:
        judges = [{"name": "j1", "model": "j1", "base_url": server.url, "max_tokens": 64, "budget": {"tokens": 6000}}]
        report = build(tmp_path, server.url, judges=judges)
    assert set(report.stopped) == {"j1"}
    assert report.tokens["j1"] <= 6000
    assert 0 < len(report.selection.kept) < 30
    assert report.selection.counts["disputed"] > 5  # nobody read them


def test_a_solver_finds_prompts_that_change_the_task(tmp_path: Path) -> None:
    def answering(body: dict) -> str:
        asked = body["messages"][-1]["content"]
        if body["model"] != "strong":
            return json.dumps(prompts_for(body))
        colour = "red" if " red" in asked.replace("red or blue", "") else "blue"
        return {"red": "blue", "blue": "red"}[colour] if "desert" in asked else colour

    with ChatServer(reply=answering) as server:
        solver = {"model": "strong", "base_url": server.url, "examples": 12, "timeout": 5}
        report = build(tmp_path, server.url, solver=solver)
    assert report.complete
    found = {t.text for t, faults in report.selection.dropped if "behaviour" in {fault.name for fault in faults}}
    assert found
    assert all("desert" in text for text in found)
    assert not any("desert" in t.text for t in report.selection.kept)
    reasons = [f.reason for _, faults in report.selection.dropped for f in faults if f.name == "behaviour"]
    assert "solver answers 0% right, under prompts like it 100%" in reasons[0]
    assert set(server.paid.values()) == {1}


def test_a_solver_whose_budget_ends_keeps_what_it_found_out_and_lets_nothing_in_unread(tmp_path: Path) -> None:
    def answering(body: dict) -> str:
        asked = body["messages"][-1]["content"]
        if body["model"] != "strong":
            return json.dumps(prompts_for(body))
        colour = "red" if " red" in asked.replace("red or blue", "") else "blue"
        return {"red": "blue", "blue": "red"}[colour] if any(word in asked for word in NOUNS[:6]) else colour

    with ChatServer(reply=answering) as server:
        solver = {"model": "strong", "base_url": server.url, "examples": 12, "timeout": 5, "max_tokens": 64}
        solver["budget"] = {"tokens": 150 * 12 * 30}  # of 30 templates
        report = build(tmp_path, server.url, solver=solver)
    assert set(report.stopped) == {"solver"}
    assert report.selection.counts["behaviour"] > 0
    assert report.selection.counts["disputed"] > 0
    assert 0 < len(report.selection.kept) < 30
    assert not any(word in template.text for template in report.selection.kept for word in NOUNS[:6])


def test_equal_requests_under_way_are_one(tmp_path: Path) -> None:
    request = Request("w", "m", "solve", 0, 1, (Message("user", "red or blue?"),), {})
    settings = WriterConfig(name="w", model="m", budget=BudgetConfig(tokens=5000))
    asked = []

    class Slow:
        async def ask(self, chat: object, seed: int) -> Reply:
            asked.append(seed)
            await asyncio.sleep(0.01)
            return Reply("red", 10, 1, "m")

    def said(**changed: object) -> list[str | None]:
        replies = Replies(tmp_path / "r.jsonl", {"w": settings.model_copy(update=changed)}, {"w": Slow()})
        return asyncio.run(replies.all([request] * 3, replies.ask, "solver"))

    assert said(budget=BudgetConfig(tokens=10)) == [None] * 3
    assert said() == ["red"] * 3
    assert len(asked) == len(read_jsonl(tmp_path / "r.jsonl")) == 1


def test_prompts_that_cannot_ask_every_row_are_a_fault_and_not_asked_for(tmp_path: Path) -> None:
    """Some questions have three options, or no hint: a prompt that shows {D} or {hint} cannot put them."""
    rows = [
        {"ctx": f"item {n}", "o": [f"{x}{n}" for x in "pqrs"[: 3 if n == 7 else 4]], "hint": "h" if n % 2 else None, "label": "A"}
        for n in range(40)
    ]  # fmt: skip
    spec = {
        "name": "odd", "fields": ["ctx"], "optional_fields": ["hint"], "choices_from": "o", "answer": "label",
        "files": {"train": "t.jsonl"},
    }  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "task.yaml").write_text(dump_yaml(spec), encoding="utf-8")
    one_by_one = "A. {A}\nB. {B}\nC. {C}\nD. {D}"
    written = [
        {"text": f"{' '.join(NOUNS[n * 7 : n * 7 + 9])}\n{{ctx}}\n{shown}\nAnswer:", "answer": answer}
        for n, (shown, answer) in enumerate(
            [*[("{choices}", "letters")] * 4, (one_by_one, "letters"), ("{hint} {choices}", "letters"),
             ("{choices}", {"labels": ["p", "q", "r", "s"]})]
        )
    ]  # fmt: skip

    class Says:
        def __init__(self, text: str):
            self.text, self.asked = text, []

        async def ask(self, chat: list[Message], seed: int) -> Reply:
            self.asked.append(chat[-1].text)
            return Reply(self.text, 10, 1, "m")

    everybody = {"one": Says(json.dumps(written)), "j": Says('{"fault": "none"}'), "solver": Says("A")}
    server = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    config = BuildConfig.model_validate(
        {
            "task": str(tmp_path / "task.yaml"), "about": "odd questions", "embeddings": None, "rounds": 1,
            "strategies": ["zero-shot"], "train": 2, "dev": 1, "test": 1, "writers": [{"name": "one", **server}],
            "judges": [{"name": "j", **server}], "solver": {**server, "examples": 32},
        }
    )  # fmt: skip
    report = build_prompts(config, tmp_path / "out", writers=everybody)
    assert [template.text for template in report.selection.kept] == [each["text"] for each in written[:4]]
    assert {t.text: faults[0].name for t, faults in report.selection.dropped if faults[0].name != "repeat"} == {
        each["text"]: "contract" for each in written[4:]
    }
    asked = everybody["one"].asked[0]
    assert "shown by the slot {choices}" in asked
    assert not any(word in asked for word in ("{A}", "hint", '"labels"'))


def test_decisions_written_while_a_build_runs_are_kept(tmp_path: Path) -> None:
    file, said = tmp_path / "out" / "review.yaml", []

    def meddled(body: dict) -> str:
        file.write_text("prompts: [{id: '12345678', decision: drop}]", encoding="utf-8")
        return json.dumps(prompts_for(body))

    with ChatServer(reply=meddled) as server:
        config = BuildConfig.model_validate(settings(tmp_path, server.url, rounds=1))
        build_prompts(config, tmp_path / "out", say=said.append)
    assert read_decisions(file) == {"12345678": "drop"}
    assert "run the same command again" in said[-1]


@pytest.mark.parametrize("old", [False, True])
def test_decisions_neither_ask_again_nor_throw_away_what_was_paid_for(tmp_path: Path, old: bool) -> None:
    def doubtful(body: dict) -> str:
        entries = prompts_for(body)
        for entry in entries[:2]:
            entry["text"] = f"Explain why. {entry['text']}"
        return json.dumps(entries)

    with ChatServer(reply=doubtful) as server:
        report = build(tmp_path, server.url)
        assert report.complete
        file = tmp_path / "out" / "review.yaml"
        review = yaml.safe_load(file.read_text(encoding="utf-8"))
        for entry in review["prompts"][:3]:
            entry["decision"] = "keep"
        file.write_text(yaml.safe_dump(review), encoding="utf-8")
        if old:
            (tmp_path / "out" / "rounds.json").unlink()
        asked = len(server.asked)
        again = build(tmp_path, server.url)
        assert len(server.asked) == asked
        (tmp_path / "out" / "rounds.json").write_text("[0]", encoding="utf-8")
        with pytest.raises(StoreError, match="expected a list of numbers"):
            build(tmp_path, server.url)
    assert (again.given, again.asked) == (report.given, report.asked)


EXAMPLES = {
    split: [{"text": text, "answer": "text"}]
    for split, text in {
        "train": "Which colour is in it? {text}",
        "dev": "{text}\n\nName the hue that somebody paints with here, in one word.",
        "test": "My friend wrote this: {text} So what shade did they mean?",
    }.items()
}


def test_a_solver_of_this_process_answers_freely_where_nothing_is_offered(tmp_path: Path) -> None:
    """Its one choice is the right answer, which a restricted choice would always find."""
    tiny.saved_model(tmp_path / "model")
    task = tiny.write_task(tmp_path / "data")
    told = yaml.safe_load(task.read_text(encoding="utf-8"))
    del told["choices"]
    task = tmp_path / "data" / "open.yaml"
    task.write_text(yaml.safe_dump({**told, "kind": "text"}), encoding="utf-8")
    examples = tmp_path / "examples.yaml"
    examples.write_text(yaml.safe_dump({"task": told["name"], **EXAMPLES}), encoding="utf-8")

    def openly(body: dict) -> str:
        return json.dumps([{**each, "answer": "text"} for each in prompts_for(body) if isinstance(each, dict)])

    solver = {"model": str(tmp_path / "model"), "examples": 8}
    sizes = {"train": 6, "dev": 3, "test": 3}
    with ChatServer(reply=openly) as server:
        build(tmp_path, server.url, solver=solver, **{**sizes, "task": str(task), "examples": str(examples)})
    with CellStore(tmp_path / "out" / "cells.sqlite") as cells:
        kept = cells._db.execute("select answer from cells").fetchall()
    assert kept
    assert all(json.loads(answer)["completion"] for (answer,) in kept)


def test_a_solver_of_this_process_keeps_its_cells(tmp_path: Path) -> None:
    tiny.saved_model(tmp_path / "model")
    solver = {"model": str(tmp_path / "model"), "examples": 8}
    with ChatServer() as server:
        report = build(tmp_path, server.url, solver=solver, **{"train": 6, "dev": 3, "test": 3})
        asked = len(server.asked)
        again = build(tmp_path, server.url, solver=solver, **{"train": 6, "dev": 3, "test": 3})
        assert len(server.asked) == asked
    assert ids(again) == ids(report)
    with CellStore(tmp_path / "out" / "cells.sqlite") as cells:
        assert len(cells) >= 8 * len(report.selection.kept)


def test_a_prompt_set_made_by_hand_is_not_written_over(tmp_path: Path) -> None:
    task, prompts = tiny.write_task(tmp_path / "data"), tiny.write_prompts(tmp_path)
    before = prompts.read_bytes()
    with pytest.raises(PromptSetError, match="is there already, and no build or import of paft made it"):
        import_prompts([prompts], load_task(task), tmp_path, shares={"train": 0.7, "dev": 0.1, "test": 0.2})
    assert prompts.read_bytes() == before
