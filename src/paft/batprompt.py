"""One prompt made robust by attack and rewriting: the paper's baseline BATprompt (after arXiv 2412.18196).

A writer damages held-out examples the way hurried people do, so that the right answer stays. Where the untrained model then fails, the
writer is shown the failures, says what in the wording lets the model down, and writes the prompt anew. The version that holds best on all
damaged examples so far is damaged next. The winner joins the train prompts of the set, for a schedule of kind `fixed`.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paft.arms import untrained
from paft.config import BatpromptConfig, CellBudgetConfig, EvalConfig, RunConfig, dump_yaml, load_run_config
from paft.errors import ConfigError, PromptSetError, RenderError, few
from paft.evaluation import evaluate
from paft.grid import Cell, Grid
from paft.lm.types import Message
from paft.materials import prepare
from paft.prompts import PromptSet, Template
from paft.prompts.auditing import faults_of
from paft.prompts.strategies import Request, json_objects, read_reply, rules_of
from paft.prompts.template import template_to
from paft.store import BuildDir, CellStore, write_json, write_text
from paft.tasks import TASKS, Example, Task
from paft.tasks.answers import Code
from paft.writers import FREE, Replies, Say, Tick, Writer, open_writer

if TYPE_CHECKING:
    from paft.lm.hf import HFModel

SHOWN = 3
"""Failures shown to the writer."""
VERSIONS = 2
"""Damaged versions asked for of each example; the one that the model does worst on is taken."""
RIGHT = 1 - 1e-6
"""Worth from which an answer has nothing to mend; partial credit has, and a cosine of 1 is rounded."""

_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Robust:
    """What the search ended at: the start itself where nothing held better. accuracy: on the damaged examples of all rounds."""

    start: Template
    prompt: Template
    accuracy: dict[str, float]
    damaged: int


def batprompt(
    config: BatpromptConfig,
    out: Path,
    *,
    run: RunConfig | None = None,
    writer: Writer | None = None,
    say: Say = lambda _: None,
    tick: Tick = lambda done, total, note: None,
) -> Robust:
    """Search, and write the prompt set with what was found among its train prompts: `prompts.yaml`, `search.json`, `replies.jsonl`.

    run, writer: in place of those in the settings. Raises EndpointError when a server fails (replies are kept, the next call goes
    on), PromptSetError when the directory holds another search.
    """
    if run is None:
        if config.run is None:
            raise ConfigError(
                "run: not given; name the settings file of a run that trains, as in run: examples/piqa-small.yaml"
            )
        run = load_run_config(Path(config.run))
    m = prepare(run, say)
    start = _start(m.prompts, config.start)
    if not m.dev:
        raise ConfigError(
            f"{config.run or run.name}: no arm is trained, so no examples are held out; name the run that trains"
        )
    examples, place = m.dev[: config.examples], BuildDir(out)
    with place.locked():
        kept = config.model_dump(mode="json", exclude={"rounds": True, "writer": set(FREE)})
        # more rounds or a larger budget go on; what has its default is left out, so that a later version's new settings do not stop a search
        # what is held out depends on what is scored
        told = json.dumps([each.content for each in examples], sort_keys=True)
        rests_on = {
            "run": run.model_dump(mode="json", exclude_defaults=True, include=_DECISIVE),
            "held_out": hashlib.sha256(told.encode()).hexdigest()[:16],
        }
        settings = dump_yaml({**kept, **rests_on})
        if place.settings.exists() and place.settings.read_text(encoding="utf-8") != settings:
            raise PromptSetError(
                f"{out}: holds a search with other settings ({place.settings.name}); choose another --out"
            )
        if place.prompts.exists() and not place.settings.exists():
            raise PromptSetError(f"{place.prompts}: is there already, and no search made it; choose another --out")
        write_text(place.settings, settings)
        names = {config.writer.name: writer or open_writer(config.writer, run.source, say)}
        replies = Replies(place.replies, {config.writer.name: config.writer}, names, say, tick)
        row = TASKS.get(run.task)
        with CellStore(place.cells) as store:
            search = _Search(config, m.task, row.title if row else m.task.name, m.prompts, replies, store, say)
            search.lm, search.judging = untrained(run, say, m.shows_images), run.evaluate
            found = asyncio.run(search.run(start, examples))
        prompts = m.prompts
        if found.prompt != start:
            prompts = replace(prompts, train=(*prompts.train, found.prompt))
        write_text(place.prompts, prompts.to_yaml())
        figures = {"start": start.id, "prompt": found.prompt.id, "damaged": found.damaged, "accuracy": found.accuracy}
        write_json(out / "search.json", figures)
    return found


_DECISIVE: dict[str, Any] = {
    **dict.fromkeys(("seed", "task", "prompts", "model", "source", "dtype", "quantization", "attention"), True),
    **dict.fromkeys(("style", "chat_template_kwargs", "data"), True),
    "evaluate": {"normalization", "max_new_tokens", "run_code", "embeddings", "stop"},
}
"""Of a run, what a search rests on: runs that differ in arms or in what is scored later share one."""


def _start(prompts: PromptSet, wanted: int | str) -> Template:
    by_id = {template.id: template for template in prompts.train}
    if str(wanted) in by_id:  # also an id of digits alone, which YAML reads as a number
        return by_id[str(wanted)]
    if isinstance(wanted, int) and 0 <= wanted < len(prompts.train):
        return prompts.train[wanted]
    raise ConfigError(
        f"start {wanted!r}: no such train prompt; give a position from 0 to {len(prompts.train) - 1} or an id, such as "
        f"{few([each.id for each in prompts.train])}"
    )


class _Search:
    lm: HFModel
    judging: EvalConfig
    examples: Sequence[Example] = ()
    """As they are before any damage, which leaves their answers alone: the limit of a free answer rests on these."""

    def __init__(
        self,
        config: BatpromptConfig,
        task: Task,
        about: str,
        prompts: PromptSet,
        replies: Replies,
        store: CellStore,
        say: Say,
    ):
        self.config, self.task, self.about, self.prompts = config, task, about, prompts
        self.replies, self.store, self.say = replies, store, say
        self.open = task.num_choices == 1

    async def run(self, start: Template, examples: Sequence[Example]) -> Robust:
        """All rounds."""
        self.examples = examples
        best, tried = start, {start.id: start}
        damaged: list[Example] = []
        try:
            self.replies.load()
            for number in range(self.config.rounds):
                damaged += await self._attack(number, best, list(tried.values()), examples)
                if self.replies.stopped:  # its budget is used up
                    break
                worth_N = self._worth([best], damaged)[0]
                right_N = worth_N >= RIGHT
                said = (
                    f"round {number + 1}: {best.id} is right on {right_N.mean():.0%} of {len(damaged)} damaged examples"
                )
                if right_N.all():
                    self.say(f"{said}; nothing to mend")
                    continue
                # the worst last, of equals the latest
                wrong = [damaged[n] for n in sorted(np.flatnonzero(~right_N), key=lambda n: -worth_N[n])]
                for template in await self._rewrite(number, best, wrong[-SHOWN:], damaged):
                    tried.setdefault(template.id, template)
                means_K = self._worth(list(tried.values()), damaged).mean(axis=1)
                best = list(tried.values())[int(means_K.argmax())]  # the earliest of equals
                self.say(f"{said}; best of {len(tried)} now {best.id}, {means_K.max():.0%}")
        finally:
            await self.replies.close()
        if not damaged:
            raise ConfigError(
                f"writer {self.config.writer.name!r}: {self.replies.stopped[self.config.writer.name]}; nothing is damaged yet"
            )
        means_K = self._worth(list(tried.values()), damaged).mean(axis=1)
        best = list(tried.values())[int(means_K.argmax())]
        return Robust(start, best, dict(zip(tried, map(float, means_K), strict=True)), len(damaged))

    def _worth(self, templates: Sequence[Template], examples: Sequence[Example]) -> np.ndarray:
        """Scores (K, N) of the untrained model, by choice where there is one."""
        scorer: Any = "generation" if self.open else "likelihood"
        grid = Grid(tuple(templates), tuple(examples), self.examples)
        settings = self.judging.model_copy(
            update={"scorers": [scorer], "reference": None, "budget": CellBudgetConfig()}
        )
        return evaluate(self.lm, grid, settings, self.store).scores[scorer].values_KN

    async def _attack(
        self, number: int, best: Template, tried: Sequence[Template], examples: Sequence[Example]
    ) -> list[Example]:
        """A damaged version of each example. One that no usable version came of is left out."""
        requests = [self._request("attack", number * 1000 + i, _damage(self.task, self.about, example)) for i, example in enumerate(examples)]  # fmt: skip
        texts = await self.replies.all(requests, self.replies.ask, f"attack {number + 1}")
        versions = [
            self._read_versions(text or "", example, number, tried)
            for text, example in zip(texts, examples, strict=True)
        ]
        each = [version for its in versions for version in its]
        worth_N = self._worth([best], each)[0] if each else np.array([])
        worth = dict(zip((version.id for version in each), worth_N.tolist(), strict=True))
        taken = [min(its, key=lambda version: worth[version.id]) for its in versions if its]
        if not taken and not self.replies.stopped:
            raise PromptSetError(
                f"writer {self.config.writer.name!r}: none of {len(requests)} replies holds a damaged example; see {self.replies.file}"
            )
        return taken

    def _read_versions(self, reply: str, example: Example, number: int, tried: Sequence[Template]) -> list[Example]:
        fields = set(self.task.fields)
        found: list[Example] = []
        for value in json_objects(reply):
            usable = isinstance(value, dict) and fields <= value.keys() and all(
                isinstance(value[name], str) and value[name].strip() and not _HALF.search(value[name]) for name in fields
            )  # fmt: skip
            if usable:
                new = {**example.fields, **{name: value[name] for name in fields}}
                version = replace(example, id=f"{example.id}~{number}.{len(found)}", fields=new)
                if new != dict(example.fields) and self._stays_right(version) and self._readable(tried, [version]):
                    found.append(version)
        return found[:VERSIONS]

    def _stays_right(self, version: Example) -> bool:
        """Whether the known answer still is one: the text of a code task is also the head of what is run."""
        if getattr(self.task, "open_kind", "") != "code":
            return True
        return Code().parse(version.choices[version.answer], version).worth(version) >= RIGHT

    def _readable(self, templates: Sequence[Template], examples: Sequence[Example]) -> bool:
        """Whether the model can be asked all of this: it may hold one of its control tokens, or be longer than it reads."""
        grid = Grid(tuple(templates), tuple(examples), self.examples)
        free_K = [0] * len(templates)
        if self.open:
            most = self.judging.max_new_tokens
            free_K = [most] * len(templates) if most else grid.answer_limits(self.lm.count_tokens)
        try:
            for k, i in itertools.product(range(len(templates)), range(len(examples))):
                self.lm.check(replace(grid.question(Cell(0, k, i)), max_new_tokens=free_K[k]))
        except RenderError:
            return False
        return True

    async def _rewrite(
        self, number: int, best: Template, failures: Sequence[Example], damaged: Sequence[Example]
    ) -> list[Template]:
        """Sound new versions of a prompt, none near to a prompt that scores or selects."""
        text = _mend(self.task, self.about, best, failures, self.config.candidates, self.examples)
        request = self._request("rewrite", number, text)
        (reply,) = await self.replies.all([request], self.replies.ask, f"rewriting {number + 1}")
        if reply is None:
            return []
        origin = {"writer": self.config.writer.name, "strategy": "batprompt", "request": request.key}
        templates, faulty = read_reply(reply, origin)
        kept = [
            each
            for each in templates
            if not any(faults_of(each, self.task))
            and not any(each.unable(self.examples))
            and self._readable([each], damaged)
            and self._apart(each)
        ]
        if len(kept) < len(templates) + len(faulty):
            self.say(
                f"  {len(templates) + len(faulty) - len(kept)} of its versions are unsound or near to held-out prompts"
            )
        return kept

    def _apart(self, template: Template) -> bool:
        held = self.prompts
        if template.id in {each.id for split in (held.train, held.dev, held.test, held.adversarial) for each in split}:
            return False
        try:
            replace(held, train=(template,))
        except PromptSetError:
            return False
        return True

    def _request(self, strategy: str, number: int, text: str) -> Request:
        system = "You help to test how robust language models are. You answer with JSON and nothing else."
        chat = (Message("system", system), Message("user", text))
        writer = self.config.writer
        return Request(writer.name, writer.model, strategy, number, self.config.candidates, chat, {})


def _damage(task: Task, about: str, example: Example) -> str:
    shown = {name: example.fields[name] for name in task.fields}
    answer = json.dumps(example.choices[example.answer], ensure_ascii=False)
    return (
        f"An item of a task ({about}):\n{json.dumps(shown, ensure_ascii=False)}\nIts right answer is {answer}.\n\n"
        f"Write it down {VERSIONS} times more as hurried people would: wrong, missing or doubled letters, neighbouring words swapped, a word "
        "left out, a clumsy turn of phrase; every version damaged in another way and more than a little. A careful reader must still come "
        "to the same right answer, so leave names, numbers and what the answer hangs on as they are.\n\n"
        f"Answer with a JSON array of {VERSIONS} objects with the keys {', '.join(json.dumps(name) for name in task.fields)}."
    )


def _mend(
    task: Task, about: str, template: Template, failures: Sequence[Example], wanted: int, rows: Sequence[Example]
) -> str:
    entry = {key: value for key, value in template_to(template).items() if key not in ("id", "origin")}
    items = "\n".join(
        f"{n}. "
        + json.dumps({name: each.fields[name] for name in task.fields}, ensure_ascii=False)
        + f" - right: {json.dumps(each.choices[each.answer], ensure_ascii=False)}"
        for n, each in enumerate(failures, 1)
    )
    rules = "\n".join(f"- {rule}" for rule in rules_of(task, rows))
    return (
        f"This prompt template puts a task ({about}) to a language model:\n{json.dumps(entry, ensure_ascii=False)}\n\n"
        f"The model gets these items wrong, whose texts are carelessly typed:\n{items}\n\n"
        "Think about what in the wording of the prompt lets the model go astray on such texts. Then write "
        f"{wanted} other versions of the template under which it would not; change what matters, not single words.\n\nRules:\n{rules}\n\n"
        f'Answer with a JSON array of {wanted} objects with the keys "why" (one sentence), "text" and "answer", and where needed "system", '
        '"options", "joiner".'
    )
