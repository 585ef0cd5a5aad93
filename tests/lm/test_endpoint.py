"""A server that takes other words than most, as OpenAI's later models do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from paft.errors import EndpointError
from paft.lm import endpoint as endpoint_module
from paft.lm.endpoint import Endpoint, read_reply
from paft.lm.types import Message
from tests.chat_server import ChatServer


class Newer(ChatServer):
    """Refuses max_tokens and every temperature but its own, as gpt-5-mini was found to."""

    def respond(self, request: Any, body: dict[str, Any]) -> tuple[int, Any]:
        if "max_tokens" in body:
            return 400, {
                "error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}
            }
        if body.get("temperature", 1) != 1:
            return 400, {"error": {"message": "Unsupported value: 'temperature' does not support 0.0 with this model."}}
        return super().respond(request, body)


def test_a_model_that_takes_other_words_is_asked_in_them():
    told: list[str] = []
    with Newer(reply="yes") as server:

        async def ask() -> list[str]:
            endpoint = Endpoint("m", server.url, temperature=0.0, max_tokens=7, say=told.append)
            replies = await asyncio.gather(*(endpoint.ask((Message("user", f"{n}?"),), n) for n in range(6)))
            more = [await endpoint.ask((Message("user", "more?"),), 9)]
            await endpoint.close()
            return [reply.text for reply in (*replies, *more)]

        assert asyncio.run(ask()) == ["yes"] * 7
        last = server.asked[-1]
    assert (last["max_completion_tokens"], "max_tokens" in last, "temperature" in last) == (7, False, False)
    assert len(told) == 1
    assert "takes no temperature" in told[0]


def test_another_refusal_is_not_asked_again():
    with ChatServer(status=400) as server:

        async def ask() -> None:
            endpoint = Endpoint("m", server.url)
            try:
                await endpoint.ask((Message("user", "?"),), 0)
            finally:
                await endpoint.close()

        with pytest.raises(EndpointError, match="HTTP 400"):
            asyncio.run(ask())
        assert len(server.asked) == 1


def test_a_body_that_is_no_reply_is_shown_and_one_without_choices_is_an_empty_reply(monkeypatch):
    monkeypatch.setattr(endpoint_module, "TRIES", 2)

    class Odd(ChatServer):
        def respond(self, request: Any, body: dict[str, Any]) -> tuple[int, Any]:
            return 200, self.reply

    async def ask(url: str) -> str:
        endpoint = Endpoint("m", url)
        try:
            return (await endpoint.ask((Message("user", "?"),), 0)).text
        finally:
            await endpoint.close()

    with Odd(reply={"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}) as server:
        assert asyncio.run(ask(server.url)) == ""
        assert len(server.asked) == 1  # paid for once
    with Odd(reply={"error": "out of credit"}) as server:
        with pytest.raises(EndpointError, match=r"HTTP 200 with .*out of credit.*, which is no reply"):
            asyncio.run(ask(server.url))


@pytest.mark.parametrize(
    "broken",
    [
        {"choices": [{"message": {"content": "The ans"}, "finish_reason": "error", "error": {"code": 502}}]},
        {"choices": [{"message": {"content": "The ans"}, "finish_reason": "abort"}]},
        {"choices": None, "error": {"message": "upstream timed out"}},
        {"choices": [], "error": {"message": "overloaded"}},
    ],
)
def test_a_reply_that_was_broken_off_is_none(broken):
    chat = (Message("user", "?"),)
    with pytest.raises(ValueError, match=r"error in place of|broken off"):
        read_reply(broken, chat, "m")
    assert read_reply({"choices": [{"message": {}, "finish_reason": "length"}]}, chat, "m").stop == "limit"
    assert read_reply({"choices": [{"message": {}, "finish_reason": "content_filter"}]}, chat, "m").text == ""


@pytest.mark.parametrize(
    ("refusal", "learns"),
    [
        ('{"error": {"message": "\'temperature\' does not support 0.0 with this model.", "param": null}}', True),
        ('{"error": {"message": "\'temperature\' does not support 0.0 with this model.", "param": "None"}}', True),
        ('{"error": {"message": "temperature and top_p cannot both be given", "param": "temperature"}}', True),
        ('{"error": {"message": "bad value; see temperature", "param": "top_p"}}', False),
        ('{"error": "unknown field repetition_penalty; allowed: model, max_tokens, temperature, seed"}', False),
        ("temperature and top_p cannot both be given", False),
    ],
)
def test_greedy_decoding_is_left_only_where_temperature_is_refused(refusal, learns):
    told: list[str] = []
    endpoint = Endpoint("m", "http://127.0.0.1:9/v1", say=told.append)
    body = {"model": "m", "prompt": "?", "temperature": 0.0, "max_tokens": 1, "top_p": 1.0, "repetition_penalty": 1.0}
    assert endpoint._learns(refusal, body) == learns
    assert ("temperature" in endpoint._in_its_words(body)) != learns
    assert len(told) == learns


def test_counts_of_tokens_are_the_servers_or_estimates_that_are_said():
    told: list[str] = []
    endpoint, chat = Endpoint("m", "http://127.0.0.1:9/v1", say=told.append), (Message("user", "red or blue?"),)
    body: dict[str, Any] = {"choices": [{"message": {"content": "red"}}]}
    zero = endpoint.reply(body | {"usage": {"prompt_tokens": 9, "completion_tokens": 0}}, chat)
    assert (zero.prompt_tokens, zero.completion_tokens, zero.estimated, told) == (9, 0, False, [])
    for _ in range(2):
        guess = endpoint.reply(body, chat)
        assert (guess.prompt_tokens, guess.completion_tokens, guess.estimated) == (3, 1, True)
    assert len(told) == 1
    assert "counts of tokens are estimates" in told[0]
