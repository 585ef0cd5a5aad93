"""A prompt set from language models: ask, keep every reply, audit, ask for what is missing, divide.

The set is a pure function of the settings and the replies, in the order of the requests and not of their arrival; every
reply is on disk before it is used. So a build that is killed goes on, pays for nothing twice and ends with the same set.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paft.assets import Source
from paft.config import BuildConfig, EvalConfig, JudgeConfig, WriterConfig, dump_yaml
from paft.errors import AssetError, ConfigError, PromptSetError, StoreError, few
from paft.evaluation import evaluate
from paft.evaluation.stats import lags
from paft.grid import Grid
from paft.prompts import PromptSet, Template, shipped_sets
from paft.prompts.auditing import OPEN_TO_REVIEW, Decision, Selection, audit
from paft.prompts.divide import divide
from paft.prompts.exchange import as_text, read_prompts
from paft.prompts.judging import read_verdict, verdict_request
from paft.prompts.measures import separation
from paft.prompts.review import read_decisions, review_text
from paft.prompts.similarity import Embed
from paft.prompts.strategies import META, Request, ask_again, make_request, read_reply
from paft.prompts.template import Fault, of_each_kind
from paft.store import BuildDir, CellStore, write_json, write_text
from paft.tasks import TASKS, Labels, Task, load_task
from paft.writers import FREE, LocalWriter, Replies, Say, Tick, Writer, cost, most_tokens, open_writer

ASKED_AGAIN = 1
"""How often a reply without a single template is answered by naming its fault."""


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
    reviewed: dict[str, int] = field(default_factory=dict)
    embed: Embed | None = None

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
            "reviewed": self.reviewed,
            **({"separation": separation(self.splits, self.embed)} if full else {}),
        }


@dataclass(frozen=True)
class Plan:
    """The first round: its requests, and what it may cost at most (tokens; money where prices are given) per writer.

    For judges and the solver, about: as if every prompt asked for came and were as long as the items themselves.
    """

    requests: tuple[Request, ...]
    tokens: dict[str, int]
    money: dict[str, float]


def plan_build(config: BuildConfig, say: Say = lambda _: None) -> Plan:
    """What a build would ask first. Nothing is sent."""
    builder = _Build(config, BuildDir(Path()), {}, say)
    requests = builder.round_requests([])
    tokens: dict[str, int] = defaultdict(int)
    money: dict[str, float] = defaultdict(float)
    candidates = sum(request.wanted for request in requests)
    asked: list[tuple[WriterConfig, int]] = [(judge, 1) for judge in config.judges]
    asked += [(config.solver, config.solver.examples)] if config.solver and config.solver.base_url else []
    for settings, times in asked:
        request = builder.about_request(settings)
        tokens[settings.name] = candidates * times * (most_tokens(request) + settings.max_tokens)
        money[settings.name] = candidates * times * cost(settings, most_tokens(request), settings.max_tokens)
    for request in requests:
        settings = builder.settings[request.writer]
        tries = 1 + ASKED_AGAIN
        tokens[request.writer] += tries * (most_tokens(request) + settings.max_tokens)
        money[request.writer] += tries * cost(settings, most_tokens(request), settings.max_tokens)
    return Plan(tuple(requests), dict(tokens), dict(money))


def build_prompts(
    config: BuildConfig,
    out: Path,
    *,
    writers: dict[str, Writer] | None = None,
    say: Say = lambda _: None,
    tick: Tick = lambda done, total, note: None,
) -> BuildReport:
    """Build a prompt set into a directory: `prompts.yaml`, `audit.json`, `review.yaml`, `replies.jsonl`, `rounds.json`, `build.yaml`.

    writers: objects to ask instead of those of the settings, by name (judges and a solver too). Raises EndpointError when a
    server refuses or stays silent (replies are kept, the next call goes on), PromptSetError when the directory holds another
    build or its review.yaml cannot be read.
    """
    place = BuildDir(out)
    with place.locked():
        settings = dump_yaml(config.model_dump(mode="json", exclude_defaults=True))
        if place.settings.exists() and _identity(place.settings.read_text(encoding="utf-8")) != _identity(settings):
            raise PromptSetError(
                f"{out}: holds a build with other settings ({place.settings.name}); choose another --out"
            )
        _require_own(place)
        decisions = read_decisions(place.review)
        opened = (
            {each.name: open_writer(each, config.source, say) for each in config.everybody}
            if writers is None
            else writers
        )
        builder = _Build(config, place, opened, say, tick)
        builder.decisions, builder.embed = decisions, open_embedder(config.embeddings, config.source, say)
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
        _write_review(place, report.selection, decisions, say)
    return report


def _write_review(place: BuildDir, selection: Selection, applied: Mapping[str, Decision], say: Say) -> None:
    decisions = read_decisions(place.review)  # a person may have written while models did
    if decisions != applied:
        say(f"{place.review} was changed meanwhile: run the same command again to apply it")
    write_text(place.review, review_text(selection, decisions))


def _require_own(place: BuildDir) -> None:
    """Raises PromptSetError for a directory with a prompt set that no build or import made, which would be written over."""
    if place.prompts.exists() and not place.audit.exists():
        raise PromptSetError(
            f"{place.prompts}: is there already, and no build or import of paft made it; choose another --out"
        )


def import_prompts(
    sources: Sequence[Path],
    task: Task,
    out: Path,
    *,
    answer: object = "letters",
    rename: Mapping[str, str] | None = None,
    shares: Mapping[str, float],
    similarity: float = 0.45,
    embeddings: str | None = None,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """A prompt set of prompts that exist, in a directory: `prompts.yaml`, `audit.json`, `review.yaml`. Returns what the second
    holds. What is decided in the third is applied.

    Raises PromptSetError when too few are sound to fill three splits; nothing is written then but the audit.
    """
    found = read_prompts(sources, answer=answer, rename=rename, slots=task.fields)
    place, embed = BuildDir(out), open_embedder(embeddings, "auto", say)
    decisions = read_decisions(place.review)
    selection = audit(found.templates, task, similarity, embed=embed, decisions=decisions)
    # sizes are filled in proportion, and are so large that every sound prompt has a place
    sizes = {name: math.ceil(1000 * share * len(selection.kept)) for name, share in shares.items()}
    splits = divide(selection.kept, sizes, embed=embed)
    full = all(splits.values())
    notes = {
        "given": len(found.templates),
        "unreadable": [(where, fault.reason) for where, fault in found.faulty],
        "got": {name: len(templates) for name, templates in splits.items()},
        "audit": selection.to_dict(),
        "reviewed": dict(Counter(decisions.values())),
        **({"separation": separation(splits, embed)} if full else {}),
    }
    with place.locked():
        _require_own(place)
        _write_review(place, selection, decisions, say)
        write_text(place.audit, json.dumps(notes, ensure_ascii=False, indent=1) + "\n")
        if not full:
            raise PromptSetError(
                f"{few(map(str, sources))}: {len(selection.kept)} sound prompts of {len(found.templates)} read, in too few groups for "
                f"three splits; dropped: {selection.counts or 'none'}; see {place.audit}"
            )
        name = next((row.prompts for known, row in TASKS.items() if known == task.name and row.prompts), task.name)
        info = {"origin": f"imported from {few([as_text(Path(path.name)) for path in sources])}"}
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
        self.rows = of_each_kind(split.examples)
        row = TASKS.get(config.task)
        self.about = config.about or (row.title if row else "")
        if not self.about:
            raise ConfigError(f"build of {config.task!r}: say in `about`, in a sentence or two, what the task is")
        unjudged = {"code": "code, which a build does not run", "plan": "plans, which a build does not judge"}
        answers = unjudged.get(getattr(self.task, "open_kind", ""))
        if self.examples[0].score == "similarity":
            answers = "scored by similarity, which a build does not judge"
        if config.solver is not None and answers:
            raise ConfigError(f"solver: answers to {self.task.name!r} are {answers}; leave it out")
        self.strategies: Sequence[str] = config.strategies
        self.shown = self._shown()
        self.settings = {each.name: each for each in config.everybody}
        self.replies = Replies(place.replies, self.settings, writers, say, tick)
        self.decisions: Mapping[str, Decision] = {}
        self.embed: Embed | None = None
        self.verdicts: dict[str, list[Fault]] = {}
        self.solved: dict[str, tuple[Template, list[float]]] = {}
        self.sizes = {"train": config.train, "dev": config.dev, "test": config.test}

    def _shown(self) -> Sequence[Template]:
        """Prompts for few-shot requests. Without any, and unless `strategies` asks for them, all requests are zero-shot."""
        if "few-shot" not in self.strategies:
            return ()
        name = self.config.examples or self.task.prompts
        if name is None or (self.config.examples is None and name not in shipped_sets()):
            missing = f"few-shot needs prompts to show and task {self.task.name!r} ships none"
            if "strategies" in self.config.model_fields_set or self.config.split_by == "strategy":
                raise ConfigError(f"{missing}: name a set in `examples`, or use strategies: [zero-shot]")
            self.say(f"{missing}: every request is zero-shot; a set named in `examples` adds the others")
            self.strategies = ["zero-shot"]
            return ()
        templates = PromptSet.load(name).train
        for template in templates:
            template.check(self.task)
        return [template for template in templates if not any(template.unable(self.rows))]

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
            await self.replies.close()

    async def _rounds(self) -> BuildReport:
        self.replies.load()
        later = self._read_rounds()
        requests: list[Request] = []
        kept_replies: list[list[tuple[Request, str]]] = []
        report: BuildReport | None = None
        while True:
            number = len(kept_replies)
            if report is not None and number > len(later):
                later.append(self._more(report))
                write_json(self.place.rounds, later)
            asked_now = self.round_requests(requests, later[number - 1] if number else None)
            requests += asked_now
            kept_replies.append(await self._round(number, asked_now))
            report = await self._report(requests, kept_replies)
            short = {n: size - len(report.splits[n]) for n, size in self.sizes.items() if len(report.splits[n]) < size}
            missing = f", missing {short}" if short else ""
            self.say(f"round {number + 1}: {report.given} prompts read, {len(report.selection.kept)} sound{missing}")
            writing = [writer.name for writer in self.config.writers if writer.name not in self.replies.stopped]
            reading = all(
                each.name not in self.replies.stopped for each in self.config.everybody[len(self.config.writers) :]
            )
            # what was asked for stays, whatever was decided since
            if number >= len(later) and (not short or number + 1 >= self.config.rounds or not (writing and reading)):
                return report

    def _read_rounds(self) -> list[int]:
        """What `_more` gave before; it depends on decisions, which may have changed since."""
        if not self.place.rounds.exists():
            return self._paid_rounds() if self.replies.known else []
        try:
            sizes = json.loads(self.place.rounds.read_text(encoding="utf-8"))
        except ValueError:
            sizes = None
        if not isinstance(sizes, list) or not all(type(size) is int and size > 0 for size in sizes):
            raise StoreError(f"{self.place.rounds}: expected a list of numbers; remove it, or choose another --out")
        return sizes

    def _paid_rounds(self) -> list[int]:
        """The same for a build of an earlier version, which did not keep it: the largest rounds whose replies are all there."""
        sizes, requests = list[int](), self.round_requests([])
        while paid := [
            (size, more)
            for size in range(1, 4 * self.config.first_round + 1)
            if (more := self.round_requests(requests, size)) and all(each.key in self.replies.known for each in more)
        ]:
            sizes.append(paid[-1][0])
            requests += paid[-1][1]
        return sizes

    def round_requests(self, before: Sequence[Request], prompts: int | None = None) -> list[Request]:
        """Requests of a round, numbered on from those before: `prompts` of every writer by every strategy."""
        size = self.config.per_request
        made = Counter((request.writer, request.strategy) for request in before)
        wanted = prompts or self.config.first_round
        requests = []
        for writer in self.config.writers:
            if writer.name in self.replies.stopped:
                continue
            for strategy in self.strategies:
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
                            rows=self.rows,
                        )
                    )
        return requests

    def _more(self, report: BuildReport) -> int:
        """Prompts to ask every writer for by every strategy in the next round."""
        short = sum(size - len(report.splits[name]) for name, size in self.sizes.items())
        share = max(0.1, len(report.selection.kept) / max(1, report.asked))
        cells = len(self.config.writers) * len(self.strategies)
        return min(math.ceil(short / share / cells), 4 * self.config.first_round)

    async def _round(self, number: int, requests: Sequence[Request]) -> list[tuple[Request, str]]:
        gathered = await self.replies.all(requests, self._ask_until_read, f"round {number + 1}")
        return [pair for pairs in gathered for pair in pairs]

    async def _ask_until_read(self, request: Request) -> list[tuple[Request, str]]:
        pairs: list[tuple[Request, str]] = []
        while (text := await self.replies.ask(request)) is not None:
            pairs.append((request, text))
            templates, faults = read_reply(text, {})
            if templates or request.attempt >= ASKED_AGAIN:
                break
            request = ask_again(request, text, faults[0][1])
        return pairs

    async def _report(
        self, requests: Sequence[Request], rounds: Sequence[Sequence[tuple[Request, str]]]
    ) -> BuildReport:
        templates: list[Template] = []
        faulty: list[tuple[str, Fault]] = []
        for request, text in (pair for each in rounds for pair in each):
            row = self.replies.known[request.key]
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
        selection = await self._selection(templates)
        splits = divide(
            selection.kept,
            self.sizes,
            by=self.config.split_by,
            select=self.config.select,
            seed=self.config.seed,
            embed=self.embed,
        )
        money = {
            each.name: round(cost(each, *self.replies.spent[each.name]), 4)
            for each in self.config.everybody
            if each.price
        }
        return BuildReport(
            self.sizes,
            splits,
            selection,
            dict(Counter(fault.name for _, fault in faulty).most_common()),
            sum(request.wanted for request in requests),
            len(templates),
            {name: sum(spent) for name, spent in self.replies.spent.items()},
            money,
            dict(self.replies.stopped),
            dict(Counter(self.decisions.values())),
            self.embed,
        )

    async def _selection(self, templates: Sequence[Template]) -> Selection:
        """The audit, with the opinions of judges and solver on all that it keeps.

        A candidate that is found out may have been the first of a group of near-duplicates; the next one is then looked at too.
        """
        unable = {each.id: [*each.unable(self.rows)] for each in templates if not any(each.faults(self.task))}
        while True:
            opinions = {each: list(faults) for each, faults in unable.items()}
            for each, faults in self.verdicts.items():
                opinions.setdefault(each, []).extend(faults)
            for template, fault in self._lagging():
                opinions.setdefault(template.id, []).append(fault)
            selection = audit(
                templates, self.task, self.config.similarity, self.shown,
                embed=self.embed, opinions=opinions, decisions=self.decisions,
            )  # fmt: skip
            open_to_doubt = [template for template in selection.kept if self.decisions.get(template.id) != "keep"]
            unread = [template for template in open_to_doubt if template.id not in self.verdicts]
            if self.config.judges and unread:
                await self._ask_judges(unread)
                continue
            unsolved = [template for template in open_to_doubt if template.id not in self.solved]
            if self.config.solver is None or not unsolved:
                return selection
            await self._solve(unsolved)

    async def _ask_judges(self, templates: Sequence[Template]) -> None:
        names = [judge.name for judge in self.config.judges]
        requests = [self._verdict_request(template, name) for template in templates for name in names]
        texts = await self.replies.all(requests, self.replies.ask, "judges")
        for number, template in enumerate(templates):
            said = [read_verdict(text or "") for text in texts[number * len(names) : (number + 1) * len(names)]]
            found = [
                f"{name}: {': '.join(verdict) if verdict else 'no verdict'}"
                for name, verdict in zip(names, said, strict=True)
                if verdict is None or verdict[0] != "none"
            ]
            agreed = all(verdict is not None and verdict[0] != "none" for verdict in said)
            self.verdicts[template.id] = [Fault("judged" if agreed else "disputed", "; ".join(found))] if found else []

    def _verdict_request(self, template: Template, judge: str) -> Request:
        draw = random.Random(f"{self.config.seed} {template.id}")
        first = draw.choice(self.examples)
        other = [example for example in self.examples if example.answer != first.answer] or [first]
        chat = verdict_request(template, self.task, self.about, (first, draw.choice(other)))
        return Request(judge, self.settings[judge].model, "judge", 0, 1, chat, {})

    def about_request(self, settings: WriterConfig) -> Request:
        """A request to a judge or the solver about a prompt that says nothing."""
        bare = Template("\n".join(f"{{{name}}}" for name in self.task.fields) + "\n{choices}", Labels())
        if isinstance(settings, JudgeConfig):
            return self._verdict_request(bare, settings.name)
        return Request(settings.name, settings.model, "solve", 0, 1, bare.render(self.examples[0]), {})

    async def _solve(self, templates: Sequence[Template]) -> None:
        """Answer the same items under every template; by free answers behind a server and where nothing is offered to choose from, else by
        restricted choice of a model here."""
        solver = self.config.solver
        assert solver is not None
        items = random.Random(f"{self.config.seed} solver").sample(
            self.examples, min(solver.examples, len(self.examples))
        )
        here = self.writers[solver.name]
        if isinstance(here, LocalWriter):
            lm = here.load()
            scorer: Any = "generation" if items[0].is_open else "likelihood"
            with CellStore(self.place.cells) as store:
                found = evaluate(
                    lm, Grid(tuple(templates), tuple(items), self.examples), EvalConfig(scorers=[scorer]), store,
                    lambda done, total, _: self.tick(done, total, "solver"),
                )  # fmt: skip
            rows = found.scores[scorer].values_KN.tolist()
        else:
            requests = [
                Request(solver.name, solver.model, "solve", 0, 1, template.render(item), {})
                for template in templates
                for item in items
            ]
            texts = await self.replies.all(requests, self.replies.ask, "solver")
            said = [texts[k * len(items) : (k + 1) * len(items)] for k in range(len(templates))]
            for template, its in zip(templates, said, strict=True):
                if None in its:  # the budget is used up
                    self.verdicts.setdefault(template.id, []).append(
                        Fault("disputed", f"{solver.name}: not all answers")
                    )
            read = [(template, its) for template, its in zip(templates, said, strict=True) if None not in its]
            templates = [template for template, _ in read]
            rows = [
                [template.answer.parse(text, item).worth(item) for item, text in zip(items, its, strict=True)]
                for template, its in read
            ]
        self.solved |= {template.id: (template, row) for template, row in zip(templates, rows, strict=True)}

    def _lagging(self) -> Iterator[tuple[Template, Fault]]:
        """Templates under which the solver fails, and does not under their siblings: by 3 standard errors and by the margin."""
        if self.config.solver is None or len(self.solved) < 2:
            return
        templates = [template for template, _ in self.solved.values()]
        values_KN = np.array([row for _, row in self.solved.values()])
        for template, lag in zip(
            templates, lags(values_KN, [type(t.inner_answer).__name__ for t in templates]), strict=True
        ):
            if lag.gap < -max(self.config.solver.margin, 3 * lag.se):
                low, high = (100 * (lag.gap + sign * 1.96 * lag.se) for sign in (-1, 1))
                yield (
                    template,
                    Fault(
                        "behaviour",
                        f"{self.config.solver.name} answers {lag.accuracy:.0%} right, under prompts like it {lag.siblings:.0%} (difference "
                        f"{100 * lag.gap:+.0f} points, 95 % interval {low:+.0f} to {high:+.0f}, {values_KN.shape[1]} items)",
                    ),
                )


def open_embedder(name: str | None, source: Source, say: Say) -> Embed | None:
    """A sentence embedding model by name, None for none. Raises AssetError when it cannot be had."""
    if name is None:
        return None
    from paft.lm.embed import Embedder

    try:
        return Embedder(name, source=source, say=say)
    except AssetError as error:
        raise AssetError(f"embeddings: {error}; or go by words alone, without embeddings (null)") from None


def _identity(settings: str) -> str:
    # more rounds or a larger budget go on with a build; everything else makes it another one
    import yaml

    try:
        values = dict(yaml.safe_load(settings) or {})
    except (yaml.YAMLError, ValueError, TypeError):
        return ""  # edited by hand, and no settings any more
    values.pop("rounds", None)
    solver = [values["solver"]] if values.get("solver") else []
    for writer in [*values.get("writers", []), *values.get("judges", []), *solver]:
        for key in FREE:
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
    if doubts := sum(
        each <= OPEN_TO_REVIEW for each in ({fault.name for fault in f} for _, f in report.selection.dropped)
    ):
        lines.append(f"{doubts} of these for what they say: decide in review.yaml and run the same command again")
    if report.reviewed:
        lines.append("decided by hand: " + few([f"{word} {count}" for word, count in report.reviewed.items()]))
    lines += [f"{name} stopped: {why}" for name, why in report.stopped.items()]
    return "\n".join(lines)
