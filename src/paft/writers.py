"""Language models that write: every reply is on disk before it is used, budgets are kept, nothing is paid for twice."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from paft.assets import Source
from paft.config import WriterConfig
from paft.errors import PaftError, StoreError
from paft.lm.endpoint import Endpoint, Reply
from paft.lm.types import Chat
from paft.prompts.strategies import Request
from paft.store import append_jsonl, read_jsonl

FREE = ("budget", "price", "concurrency", "timeout", "key_env")
"""Settings of a writer that change no reply: work goes on under others."""
Tick = Callable[[int, int, str], None]
Say = Callable[[str], None]


class Writer(Protocol):
    """Who writes prompts: any object with this method."""

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The reply to a chat."""


class Replies:
    """What writers were asked and said, kept in a file by the hash of all that was sent.

    settings, writers: by name. spent: prompt and completion tokens. stopped: writers whose budget is used up, with the reason. Raises
    StoreError when the file holds a line that is no reply of these writers.
    """

    def __init__(
        self,
        file: Path,
        settings: Mapping[str, WriterConfig],
        writers: Mapping[str, Writer],
        say: Say = lambda _: None,
        tick: Tick = lambda done, total, note: None,
    ):
        self.file, self.settings, self.writers, self.say, self.tick = file, settings, writers, say, tick
        self.known: dict[str, dict[str, Any]] = {}
        self.spent: dict[str, list[int]] = {name: [0, 0] for name in settings}
        self.stopped: dict[str, str] = {}
        self.failed: PaftError | None = None
        self._held: dict[str, list[int]] = {name: [0, 0] for name in settings}
        self._under_way: dict[str, asyncio.Task[str | None]] = {}
        self._queue = {name: asyncio.Lock() for name in settings}
        self._settled = {name: asyncio.Event() for name in settings}

    def load(self) -> None:
        """Read what is on disk."""
        for row in read_jsonl(self.file, anything=True):
            known = isinstance(row, dict) and row.get("writer") in self.spent
            if not known or not {"key", "text", "model", "date", "prompt_tokens", "completion_tokens"} <= row.keys():
                raise StoreError(
                    f"{self.file}: holds a line that is no reply of this build ({str(row)[:60]}); remove that line, or "
                    "choose another --out"
                )
            self.known[row["key"]] = row
            for n, what in enumerate(("prompt_tokens", "completion_tokens")):
                self.spent[row["writer"]][n] += row[what]
        if self.known:
            self.say(f"{len(self.known)} replies are there already and are not asked for again")

    async def close(self) -> None:
        """Close connections to servers."""
        for writer in self.writers.values():
            if isinstance(writer, Endpoint):
                await writer.close()

    async def all(self, requests: Sequence[Request], ask: Callable[[Request], Awaitable[Any]], note: str) -> list[Any]:
        """What comes of every request, in their order."""
        done = 0

        async def one(request: Request) -> Any:
            nonlocal done
            got = await ask(request)
            done += 1
            self.tick(done, len(requests), note)
            return got

        gathered = await asyncio.gather(*(one(request) for request in requests))
        if self.failed is not None:
            raise self.failed
        return gathered

    async def ask(self, request: Request) -> str | None:
        """The reply's text; None when it may not be asked for: a budget is used up, or a server has failed. What is under way is waited
        for, not asked again."""
        if request.key in self.known:
            return str(self.known[request.key]["text"])
        if request.key not in self._under_way:
            self._under_way[request.key] = asyncio.ensure_future(self._ask(request))
        try:
            return await self._under_way[request.key]
        finally:
            self._under_way.pop(request.key, None)

    async def _ask(self, request: Request) -> str | None:
        settings = self.settings[request.writer]
        need = [most_tokens(request), settings.max_tokens]
        if not await self._admitted(settings, need):
            return None
        held = self._held[request.writer]
        try:
            reply = await self.writers[request.writer].ask(request.chat, request.seed)
        except PaftError as error:
            self.failed = self.failed or error
            return None
        finally:
            held[0], held[1] = held[0] - need[0], held[1] - need[1]
            self._settled[request.writer].set()
        row = {
            "key": request.key,
            "writer": request.writer,
            "strategy": request.strategy,
            "number": request.number,
            "attempt": request.attempt,
            "model": reply.model,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "text": reply.text,
        }
        append_jsonl(self.file, row)
        self.known[request.key] = row
        spent = self.spent[request.writer]
        spent[0], spent[1] = spent[0] + reply.prompt_tokens, spent[1] + reply.completion_tokens
        self._settled[request.writer].set()
        return reply.text

    async def _admitted(self, settings: WriterConfig, need: Sequence[int]) -> bool:
        """Whether a request may be sent; it then holds what it may use at most.

        Requests are admitted in their order. One that does not fit beside those under way waits for them, since they use
        less than they hold: who stops when depends on the replies alone.
        """
        name = settings.name
        async with self._queue[name]:
            while not (self.failed or name in self.stopped):
                self._settled[name].clear()
                if self._affords(settings, need):
                    held = self._held[name]
                    held[0], held[1] = held[0] + need[0], held[1] + need[1]
                    return True
                if not any(self._held[name]):
                    what = (
                        f"{settings.budget.tokens} tokens" if settings.budget.tokens else f"{settings.budget.money:g}"
                    )
                    self.stopped[name] = f"its budget of {what} does not cover another request"
                    self.say(f"writer {name!r} stops: {self.stopped[name]}")
                    break
                await self._settled[name].wait()
        return False

    def _affords(self, settings: WriterConfig, need: Sequence[int]) -> bool:
        name, budget = settings.name, settings.budget
        after = [self.spent[name][n] + self._held[name][n] + need[n] for n in (0, 1)]
        fits_tokens = budget.tokens is None or sum(after) <= budget.tokens
        return fits_tokens and (budget.money is None or cost(settings, *after) <= budget.money)


class LocalWriter:
    """A transformers model of this process as a writer; one request at a time."""

    def __init__(self, settings: WriterConfig, source: Source, say: Say):
        self.settings, self.source, self.say = settings, source, say
        self.model: Any = None

    def load(self) -> Any:
        """The model, loaded once."""
        if self.model is None:
            from paft.lm.hf import load_model

            adapter = getattr(self.settings, "adapter", None)
            self.model = load_model(
                self.settings.model, source=self.source, adapter=Path(adapter) if adapter else None, say=self.say
            )
        return self.model

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The model's reply, sampled with the seed."""
        completion, asked = self.load().sample(
            chat, max_new_tokens=self.settings.max_tokens, temperature=self.settings.temperature, seed=seed
        )
        await asyncio.sleep(0)
        return Reply(completion.text, asked, completion.tokens, self.settings.model)


def open_writer(settings: WriterConfig, source: Source, say: Say) -> Writer:
    """A model behind a server, or one loaded here where the settings name none."""
    if settings.base_url is None:
        return LocalWriter(settings, source, say)
    return Endpoint(
        settings.model,
        settings.base_url,
        settings.key_env,
        settings.temperature,
        settings.max_tokens,
        settings.timeout,
        settings.concurrency,
        say,
    )


def most_tokens(request: Request) -> int:
    """An upper bound of a request's prompt tokens: no tokenizer in use makes more tokens than bytes; roles and frame on top."""
    return sum(len(message.text.encode("utf-8", "surrogatepass")) + 16 for message in request.chat)


def cost(settings: WriterConfig, prompt_tokens: int, completion_tokens: int) -> float:
    """Money by the writer's price, 0 without one."""
    price = settings.price
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6 if price else 0.0
