"""A prompt set from language models: ask, keep every reply, audit, ask for what is missing, divide.

The set is a pure function of the settings and the replies, in the order of the requests and not of their arrival; every
reply is on disk before it is used. So a build that is killed goes on, pays for nothing twice and ends with the same set.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from paft.config import BuildConfig, WriterConfig, dump_yaml
from paft.errors import ConfigError, PaftError, PromptSetError, StoreError, few
from paft.lm.endpoint import Endpoint, Reply
from paft.lm.types import Chat
from paft.prompts import PromptSet, Template, shipped_sets
from paft.prompts.auditing import Selection, audit
from paft.prompts.divide import divide, separation
from paft.prompts.exchange import read_prompts
from paft.prompts.strategies import META, Request, ask_again, make_request, read_reply
from paft.prompts.template import Fault
from paft.store import BuildDir, append_jsonl, read_jsonl, write_text
from paft.tasks import TASKS, Task, load_task

Tick = Callable[[int, int, str], None]
Say = Callable[[str], None]

ASKED_AGAIN = 1
"""How often a reply without a single template is answered by naming its fault."""


class Writer(Protocol):
    """Who writes prompts: any object with this method."""

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The reply to a chat."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did. asked: prompts asked for; given: templates that could be read; counts per fault in `selection`."""

    wanted: dict[str, int]
    splits: dict[str, tuple[Template, ...]]
    selection: Selection
    unusable: dict[str, int]
    asked: int
    given: int
    tokens: dict[str, int]
    money: dict[str, float]
    stopped: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every split has what was wanted."""
        return all(len(self.splits[name]) == size for name, size in self.wanted.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the audit file."""
        full = all(self.splits.values())
        return {
            "wanted": self.wanted,
            "got": {name: len(templates) for name, templates in self.splits.items()},
            "asked": self.asked,
            "given": self.given,
            "unusable_entries": self.unusable,
            "audit": self.selection.to_dict(),
            "tokens": self.tokens,
            "money": self.money,
            "stopped": self.stopped,
            **({"separation": separation(self.splits)} if full else {}),
        }


@dataclass(frozen=True)
class Plan:
    """The first round: its requests, and what it may cost at most (tokens; money where prices are given) per writer."""

    requests: tuple[Request, ...]
    tokens: dict[str, int]
    money: dict[str, float]


def plan_build(config: BuildConfig) -> Plan:
    """What a build would ask first. Nothing is sent."""
    requests = _Build(config, BuildDir(Path()), {}).round_requests(0, [])
    tokens: dict[str, int] = defaultdict(int)
    money: dict[str, float] = defaultdict(float)
    for request in requests:
        settings = next(writer for writer in config.writers if writer.name == request.writer)
        tries = 1 + ASKED_AGAIN
        tokens[request.writer] += tries * (_most_tokens(request) + settings.max_tokens)
        money[request.writer] += tries * _cost(settings, _most_tokens(request), settings.max_tokens)
    return Plan(tuple(requests), dict(tokens), dict(money))


def build_prompts(
    config: BuildConfig,
    out: Path,
    *,
    writers: dict[str, Writer] | None = None,
    say: Say = lambda _: None,
    tick: Tick = lambda done, total, note: None,
) -> BuildReport:
    """Build a prompt set into a directory: `prompts.yaml`, `audit.json`, `replies.jsonl`, `build.yaml`.

    writers: objects to ask instead of those of the settings, by name. Raises EndpointError when a server refuses or stays
    silent (replies are kept, the next call goes on), PromptSetError when the directory holds another build.
    """
    place = BuildDir(out)
    with place.locked():
        settings = dump_yaml(config.model_dump(mode="json", exclude_defaults=True))
        if place.settings.exists() and _identity(place.settings.read_text(encoding="utf-8")) != _identity(settings):
            raise PromptSetError(
                f"{out}: holds a build with other settings ({place.settings.name}); choose another --out"
            )
        opened = {each.name: _open(each, config.source, say) for each in config.writers} if writers is None else writers
        builder = _Build(config, place, opened, say, tick)
        write_text(place.settings, settings)
        report = asyncio.run(builder.run())
        write_text(place.audit, json.dumps(report.to_dict(), ensure_ascii=False, indent=1) + "\n")
        if all(report.splits.values()):
            names = ", ".join(f"{writer.name} ({writer.model})" for writer in config.writers)
            info = {"origin": f"built by {names}"}
            prompts = PromptSet(
                builder.set_task, report.splits["train"], report.splits["dev"], report.splits["test"], info
            )
            write_text(place.prompts, prompts.to_yaml())
    return report


def import_prompts(
    sources: Sequence[Path],
    task: Task,
    out: Path,
    *,
    answer: object = "letters",
    rename: Mapping[str, str] | None = None,
    shares: Mapping[str, float],
    similarity: float = 0.45,
) -> dict[str, Any]:
    """A prompt set of prompts that exist, in a directory: `prompts.yaml`, `audit.json`. Returns what the latter holds.

    Raises PromptSetError when too few are sound to fill three splits; nothing is written then but the audit.
    """
    found = read_prompts(sources, answer=answer, rename=rename, slots=task.fields)
    selection = audit(found.templates, task, similarity)
    sizes = {name: max(1, round(share * len(selection.kept))) for name, share in shares.items()}
    splits = divide(selection.kept, sizes)
    full = all(splits.values())
    notes = {
        "given": len(found.templates),
        "unreadable": [(where, fault.reason) for where, fault in found.faulty],
        "got": {name: len(templates) for name, templates in splits.items()},
        "audit": selection.to_dict(),
        **({"separation": separation(splits)} if full else {}),
    }
    place = BuildDir(out)
    with place.locked():
        write_text(place.audit, json.dumps(notes, ensure_ascii=False, indent=1) + "\n")
        if not full:
            raise PromptSetError(
                f"{few(map(str, sources))}: {len(selection.kept)} sound prompts of {len(found.templates)} read, in too few groups for "
                f"three splits; dropped: {selection.counts or 'none'}; see {place.audit}"
            )
        name = next((row.prompts for known, row in TASKS.items() if known == task.name and row.prompts), task.name)
        info = {"origin": f"imported from {few([path.name for path in sources])}"}
        write_text(place.prompts, PromptSet(name, splits["train"], splits["dev"], splits["test"], info).to_yaml())
    return notes


class _Build:
    """One build under way."""

    def __init__(
        self,
        config: BuildConfig,
        place: BuildDir,
        writers: dict[str, Writer],
        say: Say = lambda _: None,
        tick: Tick = lambda done, total, note: None,
    ):
        self.config, self.place, self.writers, self.say, self.tick = config, place, writers, say, tick
        self.task: Task = load_task(config.task, config.source)
        split = self.task.split("train")
        self.examples = split.examples[:200]
        row = TASKS.get(config.task)
        self.about = config.about or (row.title if row else "")
        if not self.about:
            raise ConfigError(f"build of {config.task!r}: say in `about`, in a sentence or two, what the task is")
        self.shown = self._shown()
        self.replies: dict[str, dict[str, Any]] = {}
        self.spent: dict[str, list[int]] = {writer.name: [0, 0] for writer in config.writers}
        self.held: dict[str, list[int]] = {writer.name: [0, 0] for writer in config.writers}
        self.queue = {writer.name: asyncio.Lock() for writer in config.writers}
        self.settled = {writer.name: asyncio.Event() for writer in config.writers}
        self.stopped: dict[str, str] = {}
        self.failed: PaftError | None = None
        self.sizes = {"train": config.train, "dev": config.dev, "test": config.test}

    def _shown(self) -> Sequence[Template]:
        if "few-shot" not in self.config.strategies:
            return ()
        name = self.config.examples or self.task.prompts
        if name is None or (self.config.examples is None and name not in shipped_sets()):
            raise ConfigError(
                f"few-shot needs prompts to show and task {self.task.name!r} ships none: name a set in `examples`, or use "
                "strategies: [zero-shot]"
            )
        templates = PromptSet.load(name).train
        for template in templates:
            template.check(self.task)
        return templates

    @property
    def set_task(self) -> str:
        """The task that the set names."""
        row = TASKS.get(self.config.task)
        return row.prompts if row and row.prompts else self.task.name

    async def run(self) -> BuildReport:
        """All rounds."""
        try:
            return await self._rounds()
        finally:
            for writer in self.writers.values():
                if isinstance(writer, Endpoint):
                    await writer.close()

    async def _rounds(self) -> BuildReport:
        for row in read_jsonl(self.place.replies):
            known = isinstance(row, dict) and row.get("writer") in self.spent
            if not known or not {"key", "text", "model", "date", "prompt_tokens", "completion_tokens"} <= row.keys():
                raise StoreError(
                    f"{self.place.replies}: holds a line that is no reply of this build ({str(row)[:60]}); remove that line, or "
                    "choose another --out"
                )
            self.replies[row["key"]] = row
            for n, what in enumerate(("prompt_tokens", "completion_tokens")):
                self.spent[row["writer"]][n] += row[what]
        if self.replies:
            self.say(f"{len(self.replies)} replies are there already and are not asked for again")
        requests: list[Request] = []
        kept_replies: list[list[tuple[Request, str]]] = []
        while True:
            number = len(kept_replies)
            asked_now = self.round_requests(number, requests) if number == 0 else self._more(requests, kept_replies)
            requests += asked_now
            kept_replies.append(await self._round(number, asked_now))
            report = self._judge(requests, kept_replies)
            short = {n: size - len(report.splits[n]) for n, size in self.sizes.items() if len(report.splits[n]) < size}
            missing = f", missing {short}" if short else ""
            self.say(f"round {number + 1}: {report.given} prompts read, {len(report.selection.kept)} sound{missing}")
            if not short or number + 1 == self.config.rounds or len(self.stopped) == len(self.config.writers):
                return report

    def round_requests(self, number: int, before: Sequence[Request], prompts: int | None = None) -> list[Request]:
        """Requests of a round, numbered on from those before: `prompts` of every writer by every strategy."""
        size = self.config.per_request
        made = Counter((request.writer, request.strategy) for request in before)
        wanted = prompts or self.config.first_round
        requests = []
        for writer in self.config.writers:
            if writer.name in self.stopped:
                continue
            for strategy in self.config.strategies:
                for n in range(math.ceil(wanted / size)):
                    requests.append(
                        make_request(
                            self.task,
                            self.about,
                            self.examples,
                            self.shown,
                            writer=writer.name,
                            model=writer.model,
                            strategy=strategy,
                            number=made[writer.name, strategy] + n,
                            wanted=min(size, wanted - n * size),
                            seed=self.config.seed,
                            own_axes=self.config.axes,
                        )
                    )
        return requests

    def _more(self, requests: list[Request], replies: list[list[tuple[Request, str]]]) -> list[Request]:
        report = self._judge(requests, replies)
        short = sum(size - len(report.splits[name]) for name, size in self.sizes.items())
        share = max(0.1, len(report.selection.kept) / max(1, report.asked))
        cells = len(self.config.writers) * len(self.config.strategies)
        each = math.ceil(short / share / cells)
        return self.round_requests(len(replies), requests, min(each, 4 * self.config.first_round))

    async def _round(self, number: int, requests: Sequence[Request]) -> list[tuple[Request, str]]:
        done = 0

        async def one(request: Request) -> list[tuple[Request, str]]:
            nonlocal done
            got = await self._ask_until_read(request)
            done += 1
            self.tick(done, len(requests), f"round {number + 1}")
            return got

        gathered = await asyncio.gather(*(one(request) for request in requests))
        if self.failed is not None:
            raise self.failed
        return [pair for pairs in gathered for pair in pairs]

    async def _ask_until_read(self, request: Request) -> list[tuple[Request, str]]:
        pairs: list[tuple[Request, str]] = []
        while (text := await self._ask(request)) is not None:
            pairs.append((request, text))
            templates, faults = read_reply(text, {})
            if templates or request.attempt >= ASKED_AGAIN:
                break
            request = ask_again(request, text, faults[0][1])
        return pairs

    async def _ask(self, request: Request) -> str | None:
        """The reply's text; None when it may not be asked for: a budget is used up, or a server has failed."""
        if request.key in self.replies:
            return str(self.replies[request.key]["text"])
        settings = next(writer for writer in self.config.writers if writer.name == request.writer)
        need = [_most_tokens(request), settings.max_tokens]
        if not await self._admitted(settings, need):
            return None
        held = self.held[request.writer]
        try:
            reply = await self.writers[request.writer].ask(request.chat, request.seed)
        except PaftError as error:
            self.failed = self.failed or error
            return None
        finally:
            held[0], held[1] = held[0] - need[0], held[1] - need[1]
            self.settled[request.writer].set()
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
        append_jsonl(self.place.replies, row)
        self.replies[request.key] = row
        spent = self.spent[request.writer]
        spent[0], spent[1] = spent[0] + reply.prompt_tokens, spent[1] + reply.completion_tokens
        self.settled[request.writer].set()
        return reply.text

    async def _admitted(self, settings: WriterConfig, need: Sequence[int]) -> bool:
        """Whether a request may be sent; it then holds what it may use at most.

        Requests are admitted in their order. One that does not fit beside those under way waits for them, since they use
        less than they hold: who stops when depends on the replies alone.
        """
        name = settings.name
        async with self.queue[name]:
            while not (self.failed or name in self.stopped):
                self.settled[name].clear()
                if self._affords(settings, need):
                    held = self.held[name]
                    held[0], held[1] = held[0] + need[0], held[1] + need[1]
                    return True
                if not any(self.held[name]):
                    what = (
                        f"{settings.budget.tokens} tokens" if settings.budget.tokens else f"{settings.budget.money:g}"
                    )
                    self.stopped[name] = f"its budget of {what} does not cover another request"
                    self.say(f"writer {name!r} stops: {self.stopped[name]}")
                    break
                await self.settled[name].wait()
        return False

    def _affords(self, settings: WriterConfig, need: Sequence[int]) -> bool:
        name, budget = settings.name, settings.budget
        after = [self.spent[name][n] + self.held[name][n] + need[n] for n in (0, 1)]
        fits_tokens = budget.tokens is None or sum(after) <= budget.tokens
        return fits_tokens and (budget.money is None or _cost(settings, *after) <= budget.money)

    def _judge(self, requests: Sequence[Request], rounds: Sequence[Sequence[tuple[Request, str]]]) -> BuildReport:
        templates: list[Template] = []
        faulty: list[tuple[str, Fault]] = []
        for request, text in (pair for each in rounds for pair in each):
            row = self.replies[request.key]
            origin = {
                "writer": request.writer,
                "model": row["model"],
                "strategy": request.strategy,
                "meta": META,
                "request": request.key,
                "seed": self.config.seed,
                "date": row["date"],
                "axes": "; ".join(f"{axis}: {value}" for axis, value in request.axes.items()),
            }
            good, bad = read_reply(text, origin)
            templates += good
            faulty += bad
        selection = audit(templates, self.task, self.config.similarity, self.shown)
        splits = divide(
            selection.kept, self.sizes, by=self.config.split_by, select=self.config.select, seed=self.config.seed
        )
        money = {each.name: round(_cost(each, *self.spent[each.name]), 4) for each in self.config.writers if each.price}
        return BuildReport(
            self.sizes,
            splits,
            selection,
            dict(Counter(fault.name for _, fault in faulty).most_common()),
            sum(request.wanted for request in requests),
            len(templates),
            {name: sum(spent) for name, spent in self.spent.items()},
            money,
            dict(self.stopped),
        )


class LocalWriter:
    """A transformers model of this process as a writer; one request at a time."""

    def __init__(self, settings: WriterConfig, source: str, say: Say):
        self.settings, self.source, self.say = settings, source, say
        self.model: Any = None

    async def ask(self, chat: Chat, seed: int) -> Reply:
        """The model's reply, sampled with the seed."""
        if self.model is None:
            from paft.lm.hf import load_model

            self.model = load_model(self.settings.model, source=self.source, say=self.say)  # type: ignore[arg-type]
        completion, asked = self.model.sample(
            chat, max_new_tokens=self.settings.max_tokens, temperature=self.settings.temperature, seed=seed
        )
        await asyncio.sleep(0)
        return Reply(completion.text, asked, completion.tokens, self.settings.model)


def _open(settings: WriterConfig, source: str, say: Say) -> Writer:
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


def _most_tokens(request: Request) -> int:
    """An upper bound of a request's prompt tokens: no tokenizer in use makes more tokens than bytes; roles and frame on top."""
    return sum(len(message.text.encode("utf-8", "surrogatepass")) + 16 for message in request.chat)


def _cost(settings: WriterConfig, prompt_tokens: int, completion_tokens: int) -> float:
    price = settings.price
    return (prompt_tokens * price.input + completion_tokens * price.output) / 1e6 if price else 0.0


def _identity(settings: str) -> str:
    # more rounds or a larger budget go on with a build; everything else makes it another one
    import yaml

    values = yaml.safe_load(settings) or {}
    values.pop("rounds", None)
    for writer in values.get("writers", []):
        for key in ("budget", "price", "concurrency", "timeout", "key_env"):
            writer.pop(key, None)
    return json.dumps(values, sort_keys=True)


def describe(report: BuildReport) -> str:
    """What came of a build, in a few lines."""
    got = ", ".join(f"{name} {len(report.splits[name])} of {size}" for name, size in report.wanted.items())
    lines = [
        f"{report.asked} prompts asked for, {report.given} could be read, {len(report.selection.kept)} are sound: {got}"
    ]
    if report.unusable:
        lines.append("entries that are no template: " + few([f"{n} {c}" for n, c in report.unusable.items()], 9))
    if report.selection.counts:
        lines.append("dropped by the audit: " + few([f"{n} {c}" for n, c in report.selection.counts.items()], 20))
    lines += [f"{name} stopped: {why}" for name, why in report.stopped.items()]
    return "\n".join(lines)
