"""A served model against the same model in this process: scores and free answers, by every way a server may have, under faults."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from paft.config import ServerConfig
from paft.errors import ConfigError, EndpointError, RenderError
from paft.lm.render import Renderer
from paft.lm.server import ServerLM, open_server
from paft.lm.types import Answered, Message, Question
from tests import tiny
from tests.lm.test_hf import questions
from tests.model_server import ModelServer

LETTERS = [
    Question((Message("user", f"is it {word} ? A B C D"),), ("A", "B", "C", "D"), max_new_tokens=4)
    for word in tiny.WORDS
]


@contextlib.contextmanager
def opened(server: ModelServer, **settings) -> Iterator[tuple[ServerLM, list[str]]]:
    """The served model, its tokenizer the tiny one unless `chat`, and what was said."""
    said: list[str] = []
    chat = settings.pop("chat", False)
    lm = open_server(ServerConfig(base_url=server.url, **settings), say=said.append)
    if not chat:
        lm = replace(lm, renderer=Renderer(server.lm.tokenizer))
    try:
        yield lm, said
    finally:
        lm.close()


def same(served: list[Answered], local: list[Answered]) -> None:
    for here, there in zip(local, served, strict=True):
        for fast, slow, tokens in zip(there.logp_C, here.logp_C, here.tokens_C, strict=True):
            assert abs(fast - slow) <= 1e-4 * tokens
        assert replace(there, logp_C=here.logp_C) == here


def asked(count: int = 6) -> list[Question]:
    """Choices of one to four tokens, free answers of three to six."""
    return [replace(question, max_new_tokens=3 + n % 4) for n, question in enumerate(questions(count))] + LETTERS[:4]


@pytest.mark.parametrize(
    ("habits", "spoken"),
    [
        ({}, "one-token choices by the likeliest tokens, others scored by echo"),
        ({"chosen": True, "top": 5}, "others scored by echo or, after long prompts, token by token"),
        ({"echo": False}, "one-token choices by the likeliest tokens, others scored by prompt_logprobs"),
        ({"echo": "shifted"}, "nats to a token of"),
        ({"names": "text"}, "choices scored by echo"),
        ({"names": "text", "echo": False}, "choices scored by prompt_logprobs"),
        ({"names": "llama", "echo": False, "prompt_logprobs": False, "top": 1000}, "the same, token by token"),
        ({"echo": False, "prompt_logprobs": False, "top": 5, "chosen": True}, "the same, token by token"),
        ({"names": "text", "strict": True}, "takes no fields beyond OpenAI's"),
        ({"names": "text", "ids": False}, "takes no token ids"),
        ({"names": "text", "ids": False, "strict": True, "skips_begin": True}, "choices scored by echo"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_a_served_model_answers_as_the_same_model_does_here(habits, spoken, chat):
    local = tiny.hf_model(chat=chat)
    with ModelServer(local, **habits) as server, opened(server) as (lm, said):
        heard: dict[int, Answered] = {}
        answers = lm.answer(asked(), done=lambda index, answer: heard.update({index: answer}))
        same(answers, local.answer(asked()))
        assert [heard[index] for index in range(len(answers))] == answers
        assert any(spoken in line for line in said), said
        assert [lm.keys(question) for question in asked()] == [local.keys(question) for question in asked()]
        assert lm.count_tokens("the cat") == local.count_tokens("the cat")


def test_one_token_choices_take_one_request_and_the_prefix_cache_stays_of_use():
    with ModelServer(chosen=True) as server, opened(server) as (lm, _):
        lm.answer(LETTERS[:1])
        before = len(server.asked)
        lm.answer([replace(question, max_new_tokens=0) for question in LETTERS])
        sent = server.asked[before:]
        assert len(sent) == len(LETTERS)
        assert not any("echo" in body or "prompt_logprobs" in body for body in sent)


def test_longer_choices_after_a_long_prompt_are_scored_in_steps_that_a_prefix_cache_serves():
    local = tiny.hf_model()
    words = " ".join(tiny.WORDS[n % len(tiny.WORDS)] for n in range(150))
    question = Question((Message("user", words),), ("the cat", "the dog", "a cat", "a dog"))
    short = replace(question, chat=(Message("user", "the"),))
    for chosen, ways in ((True, (False, True)), (False, (True, True))):
        with ModelServer(local, chosen=chosen) as server, opened(server) as (lm, _):
            lm.answer(LETTERS[:1])
            for each, echoed in zip((question, short), ways, strict=True):
                before = len(server.asked)
                same(lm.answer([each]), local.answer([each]))
                sent = server.asked[before:]
                assert any("echo" in body for body in sent) == echoed
                assert echoed or len(sent) < sum(lm.answer([each])[0].tokens_C)


def test_requests_go_out_in_the_order_of_their_token_ids():
    with ModelServer() as server, opened(server, concurrency=1) as (lm, _):
        lm.answer([Question(question.chat, (), 2) for question in reversed(asked())])
        sent = [body["prompt"] for body in server.asked if body.get("max_tokens") == 2]
        assert sent == sorted(sent)


@pytest.mark.parametrize("top", [5, 20])
def test_a_choice_outside_the_likeliest_is_asked_again_then_scored_otherwise(top):
    local = tiny.hf_model()
    rare = [replace(question, choices=("A", "~", "}")) for question in LETTERS]
    with ModelServer(local, top=top) as server, opened(server) as (lm, _):
        same(lm.answer(rare), local.answer(rare))
        assert any(body.get("echo") for body in server.asked[6:])
    with ModelServer(local, top=1000) as server, opened(server) as (lm, _):
        same(lm.answer(rare), local.answer(rare))
        assert max(body.get("logprobs", 0) for body in server.asked) in (100, 1000)
    with ModelServer(local, top=top, echo=False, prompt_logprobs=False) as server, opened(server) as (lm, _):
        with pytest.raises(EndpointError, match=r"tells of the .* likeliest tokens.*--max-logprobs"):
            lm.answer(rare)


def test_a_server_without_scores_refuses_choices_and_still_answers_freely():
    local = tiny.hf_model()
    with ModelServer(local, names="text", echo=False, prompt_logprobs=False) as server, opened(server) as (lm, _):
        with pytest.raises(EndpointError, match=r"gives no log-probabilities.*evaluate.scorers: \[generation\]"):
            lm.answer(LETTERS)
        free = [replace(question, choices=()) for question in LETTERS]
        same(lm.answer(free), local.answer(free))


def test_faults_of_a_server_change_nothing(monkeypatch):
    monkeypatch.setattr("paft.lm.endpoint.random.uniform", lambda low, high: 0.02)
    local = tiny.hf_model()
    with ModelServer(local, faults=0.3) as server, opened(server, timeout=1.0, concurrency=6) as (lm, _):
        lm.endpoint._pace.went_badly = lambda: None
        same(lm.answer(asked()), local.answer(asked()))
        assert set(server.failed) == {"429", "500", "cut", "json", "silence"}


@pytest.mark.parametrize(("status", "count"), [(429, 4), (503, 6)])
def test_a_server_that_is_busy_or_loading_is_waited_for_at_its_first_questions(monkeypatch, status, count):
    monkeypatch.setattr("paft.lm.endpoint.random.uniform", lambda low, high: 0.0)

    class Busy(ModelServer):
        """Busy at the first `count` requests of every kind."""

        def respond(self, request, body):
            kind = (request.path, str(sorted(body.items())))
            before[kind] = before.get(kind, 0) + 1
            return (status, "later") if before[kind] <= count else super().respond(request, body)

    before: dict[tuple[str, str], int] = {}
    local = tiny.hf_model()
    with Busy(local) as server, opened(server) as (lm, said):
        same(lm.answer(LETTERS[:1]), local.answer(LETTERS[:1]))
        assert any("one-token choices by the likeliest tokens" in line for line in said)
    with ModelServer(status=500) as server, pytest.raises(EndpointError, match="after 3 tries"):
        open_server(ServerConfig(base_url=server.url))


@pytest.mark.parametrize("concurrency", [1, 16])
def test_answers_do_not_depend_on_how_many_are_under_way(concurrency):
    some = asked(4)[:7]
    with ModelServer(delay=0.002) as server, opened(server, concurrency=concurrency) as (lm, _):
        answers = lm.answer(some)
        assert answers == lm.answer(some)
        assert answers == [lm.answer([question])[0] for question in some]


def test_what_came_before_a_failure_was_heard():
    heard: list[int] = []
    with ModelServer() as server, opened(server, concurrency=2) as (lm, _):

        def done(index: int, _: Answered) -> None:
            heard.append(index)
            if len(heard) == 5:
                server.status = 401

        with pytest.raises(EndpointError, match="HTTP 401"):
            lm.answer(LETTERS, done=done)
        assert 5 <= len(set(heard)) == len(heard) < len(LETTERS)


def test_another_tokenizer_than_the_servers_is_noticed():
    with ModelServer(begin=True) as server, opened(server) as (lm, _):
        with pytest.raises(
            EndpointError, match=r"counted \d+ tokens in a prompt of \d+.*tokenizer of the served model"
        ):
            lm.answer(LETTERS)


def test_the_model_is_the_only_one_or_must_be_named():
    with ModelServer(models=("base", "tuned")) as server:
        with pytest.raises(ConfigError, match="serves 2 models; name one of them: base, tuned"):
            open_server(ServerConfig(base_url=server.url))
        with pytest.raises(ConfigError, match="no model 'tunde', did you mean 'tuned'"):
            open_server(ServerConfig(base_url=server.url, model="tunde"))
        with opened(server, model="tuned") as (tuned, _), opened(server, model="base") as (base, _):
            assert tuned.fingerprint != base.fingerprint
            tuned.answer(LETTERS[:1])
            assert server.asked[-1]["model"] == "tuned"
    with ModelServer(listed=False) as server, opened(server, model="unknown") as (lm, _):
        with pytest.raises(EndpointError, match=r"HTTP 404.*model's name right"):
            lm.answer(LETTERS)


def test_the_fingerprint_follows_the_model_and_its_revision_but_not_the_address():
    with ModelServer() as server, opened(server) as (here, _), opened(server, revision="4 bit") as (pinned, _):
        with ModelServer() as other, opened(other) as (there, _), opened(other, chat=True) as (chat, _):
            assert here.fingerprint == there.fingerprint
            assert len({here.fingerprint, pinned.fingerprint, chat.fingerprint}) == 3


def test_a_silent_server_is_one_line(monkeypatch):
    monkeypatch.setattr("paft.lm.endpoint.random.uniform", lambda low, high: 0.02)
    with pytest.raises(EndpointError, match=r"^model 'served' at http://127.0.0.1:9/v1: no reply after 3 tries"):
        open_server(ServerConfig(base_url="http://127.0.0.1:9/v1"))


def test_the_key_is_sent_and_never_shown(monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "s3cret")
    with ModelServer(status=403) as server, pytest.raises(EndpointError, match=r"HTTP 403 .*\*\*\*") as caught:
        open_server(ServerConfig(base_url=server.url, key_env="SERVER_KEY"))
    assert server.keys == {"Bearer s3cret"}
    assert "s3cret" not in str(caught.value)


def test_without_a_tokenizer_turns_are_sent_and_choices_refused():
    local = tiny.hf_model()
    free = [replace(question, choices=()) for question in asked()]
    with ModelServer(local, strict=True) as server, opened(server, chat=True) as (lm, said):
        for here, there in zip(local.answer(free), lm.answer(free), strict=True):
            assert (there.completion, there.prompt_tokens) == (here.completion, here.prompt_tokens)
        assert "prompts rendered by the server" in said[0]
        assert lm.keys(LETTERS[0]) != lm.keys(LETTERS[1])
        assert lm.count_tokens("né") == 3
        with pytest.raises(EndpointError, match="no tokenizer is given"):
            lm.answer(LETTERS)


HOSTILE = ['{"} <b>&amp;', "{0.__class__}", "\x00\x07", "é漢字🙂‍🙂", "\u202egnp", "a\r\n\tb", "token_id:7", " " * 40]


@pytest.mark.parametrize("ids", [True, False])
def test_hostile_text_is_read_as_it_is(ids):
    local = tiny.hf_model()
    nasty = [Question((Message("user", text),), (text, "B"), 3) for text in HOSTILE]
    with ModelServer(local, ids=ids, names="vllm" if ids else "text") as server, opened(server) as (lm, _):
        same(lm.answer(nasty), local.answer(nasty))
        with pytest.raises(RenderError, match="control token"):
            lm.answer([Question((Message("user", "<|end|>"),), ("A", "B"))])


def test_a_prompt_longer_than_the_server_reads_is_refused_before_it_is_sent():
    with ModelServer() as server, opened(server) as (lm, _):
        before = len(server.asked)
        with pytest.raises(RenderError, match="the model reads at most 20"):
            replace(lm, limit=20).answer(LETTERS)
        assert len(server.asked) == before
