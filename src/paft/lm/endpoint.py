"""Chat models behind an OpenAI-compatible server: hosted providers, vLLM, llama.cpp, Ollama, `transformers serve`.

One POST is all that is needed, so this is httpx2 and not a provider's client or a router of all of them: what matters here,
waiting as the server asks, never paying twice, never showing a key, those leave to their users anyway.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from paft.errors import ConfigError, EndpointError
from paft.lm.types import Chat

TRIES = 8
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for a longer pause is asked again after this."""


@dataclass(frozen=True)
class Reply:
    """What a server answered. Token counts are the server's own, or estimates (four characters a token) when it gives none."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str


@dataclass
class Endpoint:
    """One model of one server. `ask` waits, retries and adapts its concurrency; it raises EndpointError when that is no use.

    base_url: up to and including /v1. key_env: name of the environment variable that holds the key; None sends no key.
    timeout: seconds until a silent server counts as failed. concurrency: most requests at once.
    """

    model: str
    base_url: str
    key_env: str | None = None
    temperature: float = 1.0
    max_tokens: int = 4096
    timeout: float = 120.0
    concurrency: int = 8
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)

    def __post_init__(self) -> None:
        self._key = ""
        if self.key_env:
            self._key = os.environ.get(self.key_env, "").strip()
            if not self._key:
                raise ConfigError(
                    f"writer {self.model!r}: environment variable {self.key_env} is empty; export the key"
                )
        self._pace = _Pace(self.concurrency)
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=httpx2.Timeout(self.timeout, connect=min(20.0, self.timeout))
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The model's reply to a chat. 429, 5xx, time-outs, cut and unreadable bodies are tried again, other errors are not."""
        body = {
            "model": self.model,
            "messages": [{"role": message.role, "content": message.text} for message in chat],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        last = ""
        for attempt in range(TRIES):
            async with self._pace:
                try:
                    response = await self._client.post(f"{self.base_url.rstrip('/')}/chat/completions", json=body)
                    if response.status_code == 200:
                        reply = _read(response.json(), chat, self.model)
                        self._pace.went_well()
                        return reply
                    last, wait = f"HTTP {response.status_code}", _asked_wait(response)
                    if response.status_code not in (408, 409, 425, 429) and response.status_code < 500:
                        raise EndpointError(self._hidden(self._refusal(response)))
                except (httpx2.HTTPError, ValueError, KeyError, TypeError, IndexError) as error:
                    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
                        raise EndpointError(
                            f"writer {self.model!r}: base_url {self.base_url!r} is not a web address"
                        ) from None
                    # a body that ends early or says nothing readable is as good as none
                    last, wait = type(error).__name__, None
            if wait is not None:
                self._pace.rest(min(wait, LONGEST_WAIT))
            else:
                self._pace.went_badly()
                await asyncio.sleep(min(LONGEST_WAIT, 0.5 * 2**attempt) * random.uniform(0.5, 1.0))
        raise EndpointError(
            f"writer {self.model!r} at {self._hidden(self.base_url)}: no reply after {TRIES} tries (last: {last}); replies so far "
            "are kept, run the same command again to go on"
        )

    def _refusal(self, response: httpx2.Response) -> str:
        what = " ".join(response.text.split())[:160]
        hint = {401: f"is the key in {self.key_env or 'key_env (not set)'} right?", 403: "may this key use the model?"}
        hint |= {404: "is base_url (it ends in /v1) and the model's name right?"}
        said = hint.get(response.status_code, "see the server's documentation")
        return f"writer {self.model!r} at {self.base_url}: HTTP {response.status_code} ({what}); {said}"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Pace:
    """How many requests may be under way: one more after a row of successes, half after a failure."""

    def __init__(self, most: int):
        self.most, self.allowed, self.active, self.row = most, float(min(4, most)), 0, 0
        self.last_cut = self.rest_until = 0.0
        self.free = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self.free:
            await self.free.wait_for(lambda: self.active < max(1, int(self.allowed)))
            self.active += 1
        while (left := self.rest_until - time.monotonic()) > 0:
            await asyncio.sleep(left)

    async def __aexit__(self, *_: object) -> None:
        async with self.free:
            self.active -= 1
            self.free.notify_all()

    def went_well(self) -> None:
        self.row += 1
        if self.row >= self.allowed:
            self.allowed, self.row = min(float(self.most), self.allowed + 1), 0

    def rest(self, seconds: float) -> None:
        """Nobody asks for so long: the server said so."""
        self.rest_until = max(self.rest_until, time.monotonic() + seconds)
        self.went_badly()

    def went_badly(self) -> None:
        self.row = 0
        if time.monotonic() - self.last_cut > 1.0:  # requests that fail together are one event
            self.allowed, self.last_cut = max(1.0, self.allowed / 2), time.monotonic()


def _read(body: Any, chat: Chat, model: str) -> Reply:
    choice = body["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise ValueError("no text")
    usage = body.get("usage") or {}
    asked = sum(len(message.text) for message in chat) // 4
    return Reply(
        text,
        int(usage.get("prompt_tokens") or asked),
        int(usage.get("completion_tokens") or len(text) // 4),
        str(body.get("model") or model),
    )


def _asked_wait(response: httpx2.Response) -> float | None:
    """Seconds that the server asks to wait (`Retry-After`: a number, or a date), or None."""
    value = response.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(value))
    except ValueError:
        date = email.utils.parsedate_to_datetime(value) if value[:1].isalpha() else None
        return max(0.0, date.timestamp() - time.time()) if date else None
