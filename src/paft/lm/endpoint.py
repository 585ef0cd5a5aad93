"""Chat models behind an OpenAI-compatible server: hosted providers, vLLM, llama.cpp, Ollama, `transformers serve`.

A POST is all that is needed, so this is httpx2 and not a provider's client or a router of all of them: what matters here,
waiting as the server asks, never paying twice, never showing a key, those leave to their users anyway.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import os
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpx2

from paft.errors import ConfigError, EndpointError
from paft.lm.render import shown_in
from paft.lm.types import Chat

TRIES = 8
_NEWER = "max_completion_tokens"
LONGEST_WAIT = 120.0
"""Seconds; a server that asks for a longer pause is asked again after this."""

Read = TypeVar("Read")


class RefusedError(EndpointError):
    """A request that the server will not answer however often it is asked, or that it fails at every time. `status`: of HTTP."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Reply:
    """What a server answered. Token counts are the server's own; `estimated`: some are a quarter of the characters, it gave none."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    model: str
    stop: Literal["eos", "limit"] = "eos"
    estimated: bool = False


@dataclass
class Endpoint:
    """One model of one server. `ask` and `send` wait, retry and adapt their concurrency; they raise EndpointError when that is no use.

    base_url: up to and including /v1. key_env: name of the environment variable that holds the key; None sends no key.
    timeout: seconds until a silent server counts as failed. concurrency: most requests at once. who: what messages call it.
    """

    model: str
    base_url: str
    key_env: str | None = None
    temperature: float = 1.0
    max_tokens: int = 4096
    timeout: float = 120.0
    concurrency: int = 8
    say: Callable[[str], None] = field(default=lambda _: None, repr=False)
    who: str = "writer"

    def __post_init__(self) -> None:
        self._key = ""
        if self.key_env:
            self._key = os.environ.get(self.key_env, "").strip()
            if not self._key:
                raise ConfigError(
                    f"{self.who} {self.model!r}: environment variable {self.key_env} is empty; export the key"
                )
            if not (self._key.isascii() and self._key.isprintable()):
                raise ConfigError(
                    f"{self.who} {self.model!r}: the key in {self.key_env} holds characters that no key has (a typographic quote? a "
                    "line break?); export it again"
                )
        try:
            address = httpx2.URL(self.base_url)
        except httpx2.InvalidURL:
            address = httpx2.URL("")
        named = re.fullmatch(r"[\w.:-]+", address.host) is not None
        if address.scheme not in ("http", "https") or not named or address.userinfo:
            raise ConfigError(
                f"{self.who} {self.model!r}: base_url is not a web address of the form https://host/v1, without a user or password in "
                "it (keys go into key_env)"
            )
        self._pace, self._newer, self._untaken, self._estimates = _Pace(self.concurrency), False, set[str](), False
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self.timeout, connect=min(20.0, self.timeout)),
            limits=httpx2.Limits(max_connections=self.concurrency, max_keepalive_connections=self.concurrency),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The model's reply to a chat."""
        body = {
            "model": self.model,
            "messages": messages(chat),
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed,
        }
        return await self.send("chat/completions", body, lambda found: self.reply(found, chat))

    def reply(self, body: Any, chat: Chat) -> Reply:
        """`read_reply`; says once where counts of tokens are estimates."""
        found = read_reply(body, chat, self.model)
        if found.estimated and not self._estimates:
            self._estimates = True
            self.say(
                f"{self.who} {self.model!r}: the server gives no `usage`; counts of tokens are estimates, a quarter of the characters"
            )
        return found

    async def send(
        self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], Read], *, tries: int | None = None
    ) -> Read:
        """What `read` makes of the server's answer to a body (None: a GET). 429, 5xx, time-outs, cut bodies and those that `read`
        cannot read (ValueError, KeyError, TypeError and the like) are tried again; other errors are not and raise RefusedError.

        tries: how often in place of TRIES, where the server is not there, is silent, fails at this (500) or says what cannot be read: one
        that says that it is busy or loading is waited for all the same.
        """
        last, status, settled = "", 0, 0
        for attempt in range(TRIES):
            async with self._pace:
                try:
                    url = f"{self.base_url.rstrip('/')}/{path}"
                    sent = body and self._in_its_words(body)
                    response = await (self._client.get(url) if sent is None else self._client.post(url, json=sent))
                    if response.status_code == 200:
                        found = _read(response, read)
                        self._pace.went_well()
                        return found
                    status = response.status_code
                    last, wait = f"HTTP {status}", _asked_wait(response)
                    if status == 400 and sent and self._learns(response.text, sent):
                        continue
                    if status not in (408, 409, 425, 429) and status < 500:
                        raise RefusedError(self._refusal(response), status)
                    settled += status in (500, 501)
                except (httpx2.HTTPError, _UnreadableError) as error:
                    # a body that ends early or says nothing readable is as good as none
                    last, status, wait = (
                        str(error) if isinstance(error, _UnreadableError) else type(error).__name__,
                        0,
                        0.0,
                    )
                    last = self._hidden(last)
                    settled += isinstance(error, _UnreadableError | httpx2.ConnectError | httpx2.TimeoutException)
            if attempt + 1 == TRIES or settled == tries:
                break
            wait = min(max(wait, 0.5 * 2**attempt * random.uniform(0.5, 1.0)), LONGEST_WAIT)
            if "429" in last or "503" in last:
                self._pace.rest(wait)
            else:
                self._pace.went_badly()
                await asyncio.sleep(wait)
        message = (
            f"{self.who} {self.model!r} at {self._hidden(self.base_url)}: no reply after {attempt + 1} tries (last: {last}); replies so far "
            "are kept, run the same command again to go on"
        )
        raise RefusedError(message, status) if status == 500 else EndpointError(message)

    def _in_its_words(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A body without what the model was found not to take."""
        return {
            (_NEWER if key == "max_tokens" and self._newer else key): value
            for key, value in body.items()
            if key not in self._untaken
        }

    def _learns(self, refusal: str, sent: Mapping[str, Any]) -> bool:
        """Whether a refusal names something that can be asked in another way: OpenAI's later models count by another name, and some
        draw at their own temperature only."""
        if "max_tokens" in sent and _NEWER in refusal:
            self._newer = True
            return True
        if "temperature" in sent and _complains_of("temperature", refusal, sent):
            if "temperature" not in self._untaken:
                self._untaken.add("temperature")
                self.say(
                    f"{self.who} {self.model!r} takes no temperature: it draws at its own, and may answer differently each time"
                )
            return True
        return False

    def _refusal(self, response: httpx2.Response) -> str:
        what = " ".join(self._hidden(response.text).split())[:160]
        hint = {401: f"is the key in {self.key_env or 'key_env (not set)'} right?", 403: "may this key use the model?"}
        hint |= {404: "is base_url (it ends in /v1) and the model's name right?"}
        said = hint.get(response.status_code, "see the server's documentation")
        return f"{self.who} {self.model!r} at {self.base_url}: HTTP {response.status_code} ({what}); {said}"

    def _hidden(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def _complains_of(name: str, refusal: str, sent: Mapping[str, Any]) -> bool:
    """Whether a refusal is about this field: it says so (`error.param`), or names it and none of the others that were sent."""
    try:
        param = json.loads(refusal)["error"]["param"]
    except (ValueError, KeyError, TypeError):
        param = None
    if isinstance(param, str) and param in sent:  # proxies say "None" or "", which is no field
        return param == name
    others = set(sent) - {name, "model"}
    return name in refusal and not any(re.search(rf"\b{other}\b", refusal) for other in others)


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


class _UnreadableError(Exception):
    """A body of status 200 that is no reply; the message has its beginning."""


def _read(response: httpx2.Response, read: Callable[[Any], Read]) -> Read:
    try:
        return read(response.json())
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        start = " ".join(response.text[:400].split())[:80]
        raise _UnreadableError(f"HTTP 200 with {start!r}, which is no reply") from error


def messages(chat: Chat) -> list[dict[str, str]]:
    """The turns as chat/completions takes them. Raises ConfigError for an image, which is not sent."""
    if shown_in(chat):
        raise ConfigError(
            "the question shows an image, and images are not sent to servers; give a model that is loaded here"
        )
    return [{"role": message.role, "content": message.text} for message in chat]


def read_reply(body: Any, chat: Chat, model: str) -> Reply:
    """The reply in a body. One without a text (a filter, a limit reached while thinking) is a reply of no text: it was paid for.

    Raises ValueError where the server says that it failed or broke off.
    """
    if not body["choices"] and body.get("error"):
        raise ValueError("an error in place of a reply")
    nothing: dict[str, Any] = {"message": {}, "finish_reason": "content_filter"}
    choice = body["choices"][0] if body["choices"] else nothing
    if choice.get("finish_reason") in ("error", "abort"):
        raise ValueError("a reply that was broken off")
    said = choice["message"].get("content")
    if isinstance(said, list):  # content in parts
        said = "".join(part["text"] for part in said if isinstance(part, dict) and isinstance(part.get("text"), str))
    text = said if isinstance(said, str) else ""
    asked, given = (usage(body, name) for name in ("prompt_tokens", "completion_tokens"))
    return Reply(
        text,
        -(-sum(len(message.text) for message in chat) // 4) if asked is None else asked,
        -(-len(text) // 4) if given is None else given,
        str(body.get("model") or model),
        "limit" if choice.get("finish_reason") == "length" else "eos",
        estimated=None in (asked, given),
    )


def usage(body: Any, name: str) -> int | None:
    """A count of tokens that the server gives, None when it gives none."""
    counts = body.get("usage")
    count = counts.get(name) if isinstance(counts, dict) else None
    return int(count) if isinstance(count, int | float) and 0 <= count < 1e12 else None


def _asked_wait(response: httpx2.Response) -> float:
    """Seconds that the server asks to wait (`Retry-After`: a number, or a date); 0 when it does not."""
    value = response.headers.get("retry-after", "").strip()
    try:
        seconds = (
            float(value) if value[:1].isdigit() else email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return 0.0
    return seconds if 0 < seconds < 1e9 else 0.0
