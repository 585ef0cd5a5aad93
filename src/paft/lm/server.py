"""Models behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp, `transformers serve`, hosted providers.

With the model's tokenizer, prompts are rendered here, by the same door as for a model in this process, and sent as token ids.
Without, turns are sent as they are, and the server's template makes a prompt of them: free answers only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import MappingProxyType
from typing import Any, Literal

from paft.assets import Say, Source
from paft.config import ServerConfig
from paft.errors import ConfigError, EndpointError, PaftError, few, nearest
from paft.lm.endpoint import Endpoint, Read, RefusedError, messages, usage
from paft.lm.render import Rendered, Renderer
from paft.lm.types import Answered, Completion, Question

RENDERED = 20_000
"""Questions whose token ids are kept between being asked for their keys and being answered."""
PLAIN = {"repetition_penalty": 1.0, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Greedy decoding and nothing else: vLLM takes defaults from the model's generation_config, llama-cpp-python penalises repetition
unasked. Left out for servers that refuse fields they do not know."""
NAMED = {"return_tokens_as_token_ids": True, "return_token_ids": True}
"""vLLM: tokens named by their ids. Two tokens may share a text."""
TOP = (5, 20, 100, 1000, 10_000)
"""How many likeliest tokens are asked for, the second first: OpenAI's limit, vLLM's default limit, what other servers allow."""
STEP = 48
"""Tokens of a prompt that one more next token costs a server which finds the text before it in its prefix cache: half a block of the
cache, and the request."""
AGREE = 0.25
"""Nats between two scores of one token beyond which one of them is of another token. Rounding stays below a tenth."""


def _number(value: Any) -> float:
    if not float(value) < 0.01:
        raise ValueError(f"{value!r} is no log-probability")
    return float(value)


def _echoed(ids: list[int], start: int, body: Any) -> list[float]:
    """Scores of ids[start:] from an echoed prompt. Counted from its end: some servers leave begin tokens out of the list."""
    values = body["choices"][0]["logprobs"]["token_logprobs"]
    made = usage(body, "completion_tokens")
    end = len(values) - (int(len(values) > len(ids)) if made is None else made)
    if end < len(ids) - start:
        raise ValueError("the prompt is not echoed")
    return [_number(value) for value in values[end - len(ids) + start : end]]


def _prompted(ids: list[int], start: int, body: Any) -> list[float]:
    values = body["choices"][0]["prompt_logprobs"]
    return [_number(values[place][str(ids[place])]["logprob"]) for place in range(start, len(ids))]


WHOLE: dict[str, tuple[dict[str, Any], Callable[[list[int], int, Any], list[float]]]] = {
    "echo": ({"echo": True, "logprobs": 1}, _echoed),
    "prompt_logprobs": ({"prompt_logprobs": 1}, _prompted),
}
"""Ways to have given tokens scored: what to ask, and how to read it."""


def _likeliest(body: Any) -> dict[int, float]:
    """Scores of the likeliest first tokens of an answer by id: as vLLM names them, as llama.cpp does; else nothing."""
    found = body["choices"][0]["logprobs"]
    if "content" in found:
        first = found["content"][0]
        return {each["id"]: _number(each["logprob"]) for each in first["top_logprobs"] if "id" in each}
    named = ((name.partition("token_id:"), value) for name, value in found["top_logprobs"][0].items())
    return {int(name[2]): _number(value) for name, value in named if name[1] and not name[0] and name[2].isdecimal()}


def _steps(found: Rendered) -> dict[tuple[int, ...], set[int]]:
    """Beginnings of the choices, each with the tokens that follow it; what choices share is there once."""
    steps: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for pair, start in zip(found.pairs_C, found.starts_C, strict=True):
        for place in range(start, len(pair)):
            steps[tuple(pair[:place])].add(pair[place])
    return steps


class _HiddenError(EndpointError):
    """A token that is not among the likeliest that the server tells of."""


def open_server(
    config: ServerConfig,
    *,
    source: Source = "auto",
    style: Literal["auto", "chat", "raw"] = "auto",
    chat_template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    say: Say = lambda _: None,
) -> ServerLM:
    """The model that a server serves, by name, or the only one it has. Raises EndpointError when the server does not answer,
    ConfigError when it has no such model, and for settings of a chat template that is the server's."""
    if chat_template_kwargs and config.tokenizer is None:
        raise ConfigError(
            f"chat_template_kwargs {dict(chat_template_kwargs)}: the server makes the prompt, by a template that is not here; name the "
            "model's tokenizer"
        )
    endpoint = Endpoint(
        config.model or "served",
        config.base_url,
        config.key_env,
        timeout=config.timeout,
        concurrency=config.concurrency,
        say=say,
        who="model",
    )
    renderer = None
    if config.tokenizer is not None:
        from paft.lm.hf import load_renderer

        renderer = load_renderer(
            config.tokenizer, source=source, style=style, chat_template_kwargs=chat_template_kwargs, say=say
        )
    runner = asyncio.Runner()
    try:
        card = runner.run(_model_card(endpoint, config.model))
    except BaseException:
        runner.run(endpoint.close())
        runner.close()
        raise
    endpoint.model = card["id"]
    say(f"{card['id']} at {config.base_url}: prompts rendered {'here' if renderer else 'by the server'}")
    identity = f"{card['id']} {card.get('root') or ''} {config.revision or ''}"
    longest = card.get("max_model_len")
    limit = longest if isinstance(longest, int) and longest > 0 else 1 << 30
    return ServerLM(endpoint, renderer, identity, runner, limit, say)


async def _model_card(endpoint: Endpoint, wanted: str | None) -> dict[str, Any]:
    """What the server says of the model: at least its id."""

    def read(body: Any) -> list[dict[str, Any]]:
        return [card for card in (body if isinstance(body, list) else body["data"]) if isinstance(card["id"], str)]

    try:
        cards = {card["id"]: card for card in await endpoint.send("models", None, read, tries=3)}
    except RefusedError as error:
        if wanted is None or error.status in (401, 403):
            raise
        return {"id": wanted}  # a server without a list
    if wanted is None and len(cards) == 1:
        return next(iter(cards.values()))
    if wanted is None:
        raise ConfigError(f"server {endpoint.base_url}: serves {len(cards)} models; name one of them: {few(cards)}")
    if wanted not in cards:
        raise ConfigError(
            f"server {endpoint.base_url}: no model {wanted!r}{nearest(wanted, cards)}; it serves {few(cards)}"
        )
    return cards[wanted]


@dataclass(eq=False)
class ServerLM:
    """A served model that answers questions. Requests go out in the order of their token ids, so that texts with a common
    beginning follow each other and find it in the server's prefix cache.

    renderer: None leaves rendering to the server. limit: tokens it reads at most.
    """

    endpoint: Endpoint
    renderer: Renderer | None
    identity: str
    runner: asyncio.Runner = field(repr=False)
    limit: int = 1 << 30
    say: Say = field(default=lambda _: None, repr=False)
    tokens_read: int = 0
    """Tokens that the server counted; what its prefix cache spared it is not known here."""

    def __post_init__(self) -> None:
        if self.renderer is not None:
            self._render = lru_cache(RENDERED)(self.renderer.render)
        # what the server can do is found out with the first questions; None: not known yet
        self._extra: bool | None = None
        self._as_ids: bool | None = None
        self._names_ids: bool | None = None
        self._scores_chosen = False
        self._way: str | None = None
        self._top, self._refused_top = TOP[1], TOP[-1] + 1

    def close(self) -> None:
        """Close the connections; requests under way, after an interrupt, are given up."""
        for task in asyncio.all_tasks(self.runner.get_loop()):
            task.cancel()
        self.runner.run(self.endpoint.close())
        self.runner.close()

    @property
    def fingerprint(self) -> str:
        """Hash of the name that the server gives its model, of what the user says of its revision, and of the rendering."""
        door = f"{self.renderer.style} {self.renderer.tokenizer.chat_template}" if self.renderer else "the server's"
        return hashlib.sha256(f"server {self.identity} {door}".encode()).hexdigest()[:16]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by itself; without a tokenizer its UTF-8 bytes, which no tokenizer in use exceeds."""
        if self.renderer is None:
            return len(text.encode("utf-8", "surrogatepass"))
        return len(self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"])

    def keys(self, question: Question) -> tuple[str, str]:
        """Hashes of the token ids of the prompt and of each choice after it, and of those of the prompt alone; without a
        tokenizer, of the turns."""
        if self.renderer is not None:
            return self._rendered(question).keys
        turns = messages(question.chat)
        scored, free = (
            hashlib.sha256(json.dumps(part).encode()).hexdigest()[:24] for part in ([turns, question.choices], turns)
        )
        return scored, free

    def answer(
        self,
        questions: Sequence[Question],
        *,
        batch_tokens: int | None = None,
        done: Callable[[int, Answered], None] | None = None,
    ) -> list[Answered]:
        """See `LM.answer`. batch_tokens means nothing to a server.

        Raises EndpointError when an answer cannot be had; `done` has heard of all that came before, requests under way included.
        """
        return self.runner.run(self._answer(questions, done))

    async def _answer(
        self, questions: Sequence[Question], done: Callable[[int, Answered], None] | None
    ) -> list[Answered]:
        order = list(range(len(questions)))
        if self.renderer is not None:
            rendered = [self._rendered(question) for question in questions]
            for question, found in zip(questions, rendered, strict=True):
                found.check_length(question.max_new_tokens, self.limit)
            order.sort(key=lambda index: rendered[index].prompt)
            if order and self._as_ids is None:
                await self._learn_form(questions[order[0]])
            scored = next((questions[index] for index in order if questions[index].choices), None)
            if scored is not None and self._names_ids is None:
                await self._learn_scoring(scored)
        waiting, answers, failures = iter(order), dict[int, Answered](), list[PaftError]()

        async def work() -> None:
            for index in waiting:
                if failures:
                    return
                try:
                    answers[index] = await self._one(questions[index])
                    if done:
                        done(index, answers[index])
                except PaftError as error:
                    failures.append(error)

        await asyncio.gather(*(work() for _ in range(min(len(order), self.endpoint.concurrency))))
        if failures:
            raise failures[0]
        return [answers[index] for index in range(len(questions))]

    async def _one(self, question: Question) -> Answered:
        started = time.perf_counter()
        sizes = tuple(len(choice.encode("utf-8", "surrogatepass")) for choice in question.choices)
        if self.renderer is None:
            if question.choices:
                raise EndpointError(f"{self._name}: choices are scored on token ids, and no tokenizer is given")
            completion, prompt_tokens = await self._chat(question)
            return Answered((), (), (), prompt_tokens, False, completion, time.perf_counter() - started)
        found = self._rendered(question)
        return Answered(
            await self._scores(question) if question.choices else (),
            tuple(len(pair) - start for pair, start in zip(found.pairs_C, found.starts_C, strict=True)),
            sizes,
            len(found.prompt),
            min(found.starts_C, default=len(found.prompt)) < len(found.prompt),
            await self._completion(question) if question.max_new_tokens else None,
            time.perf_counter() - started,
        )

    @property
    def _name(self) -> str:
        return f"{self.endpoint.who} {self.endpoint.model!r}"

    def _rendered(self, question: Question) -> Rendered:
        # a cell is asked for its key, then for its answer, with another limit
        return self._render(Question(question.chat, question.choices))

    async def _send(
        self, path: str, body: dict[str, Any], read: Callable[[Any], Read], tries: int | None = None
    ) -> Read:
        """`Endpoint.send` with the fields that are not OpenAI's, where the server takes them."""
        whole = {"model": self.endpoint.model, "temperature": 0.0, **body}
        if self._extra is not False:
            try:
                found = await self.endpoint.send(
                    path, {**whole, **PLAIN, **(NAMED if path == "completions" else {})}, read, tries=tries
                )
                self._extra = True
                return found
            except RefusedError as error:
                if self._extra or error.status not in (400, 422):
                    raise
        found = await self.endpoint.send(path, whole, read, tries=tries)
        if self._extra is None:
            self.say(f"{self._name} takes no fields beyond OpenAI's: it must not penalise repetition by default")
        self._extra = False
        return found

    async def _chat(self, question: Question) -> tuple[Completion, int]:
        body = {"messages": messages(question.chat), "max_tokens": question.max_new_tokens}
        reply = await self._send("chat/completions", body, lambda found: self.endpoint.reply(found, question.chat))
        self.tokens_read += reply.prompt_tokens + reply.completion_tokens
        return Completion(reply.text, reply.completion_tokens, reply.stop), reply.prompt_tokens

    async def _complete(
        self, ids: list[int], text: str, read: Callable[[Any], Read], tries: int | None = None, **more: Any
    ) -> Read:
        """What `read` makes of the completion of a prompt, given as ids or, to servers that take none, as its text."""

        def counted(body: Any) -> Read:
            asked = usage(body, "prompt_tokens")
            if asked is not None and asked != len(ids):
                other = "use a server that takes token ids, or " if self._as_ids is False else ""
                raise EndpointError(
                    f"{self._name} counted {asked} tokens in a prompt of {len(ids)}: it reads something else than was rendered "
                    f"here; {other}give the tokenizer of the served model"
                )
            found = read(body)
            self.tokens_read += len(ids) + (usage(body, "completion_tokens") or 0)
            return found

        body = {"prompt": ids if self._as_ids is not False else text, "max_tokens": 1, **more}
        return await self._send("completions", body, counted, tries)

    async def _completion(self, question: Question) -> Completion:
        assert self.renderer is not None
        tokenizer = self.renderer.tokenizer

        def read(body: Any) -> Completion:
            choice = body["choices"][0]
            reason, said, ids = choice["finish_reason"], choice["text"], choice.get("token_ids")
            if reason in ("abort", "error") or not isinstance(said, str):
                raise ValueError("no answer")
            if ids:  # one decoder for served and local models
                said = tokenizer.decode(ids, skip_special_tokens=True)
            tokens = len(ids) if ids else usage(body, "completion_tokens")
            return Completion(
                said, self.count_tokens(said) if tokens is None else tokens, "limit" if reason == "length" else "eos"
            )

        prompt, _ = self._texts(question)
        return await self._complete(self._rendered(question).prompt, prompt, read, max_tokens=question.max_new_tokens)

    def _texts(self, question: Question) -> tuple[str, list[str]]:
        assert self.renderer is not None
        prompt = self.renderer.prompt_text(question.chat)
        return prompt, [self.renderer.answer_text(prompt, choice) for choice in question.choices]

    async def _learn_form(self, question: Question) -> None:
        """Whether the server takes token ids."""
        ids, (text, _) = self._rendered(question).prompt, self._texts(question)

        def read(body: Any) -> str:
            return str(body["choices"][0]["text"])

        try:
            await self._complete(ids, text, read, 3)
            self._as_ids = True
        except RefusedError as error:
            if error.status not in (400, 422, 500):
                raise
            self._as_ids = False
            try:
                await self._complete(ids, text, read, 3)
            except BaseException:
                self._as_ids = None
                raise
            self.say(f"{self._name} takes no token ids: prompts go as text, and its counts of tokens are compared")

    async def _try(self, ids: list[int], text: str, read: Callable[[Any], Read], **more: Any) -> Read | None:
        """`_complete` for what a server need not offer: None when it refuses, or its answer lacks what is read."""

        def gently(body: Any) -> Read | None:
            try:
                return read(body)
            except (ValueError, LookupError, TypeError, AttributeError):
                return None

        try:
            return await self._complete(ids, text, gently, 2, **more)
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            return None

    async def _learn_scoring(self, question: Question) -> None:
        """Whether the server names likely tokens by id, and how it scores given ones: tried on a likely token, not the likeliest,
        so that the score of another token would be another."""
        found, (text, texts) = self._rendered(question), self._texts(question)
        tried = await self._try(
            found.prompt, text, lambda body: self._likely(body, found.prompt, text), logprobs=TOP[0]
        )
        named, ids, shown, logp = tried or (False, found.pairs_C[0], texts[0], None)
        for way, (fields, read) in WHOLE.items():
            values = await self._try(ids, shown, partial(read, ids, len(ids) - 1), **fields)
            if values and logp is not None and abs(values[0] - logp) > AGREE:
                self.say(f"{self._name}: {way} gives {values[0]:.2f} nats to a token of {logp:.2f}; not used")
            elif values:
                self._way = way
                break
        self._names_ids = named and self._as_ids is True
        if self._names_ids:
            unlikely = set(found.prompt[:20])
            scored = await self._try(
                found.prompt, text, _likeliest, logprobs=TOP[0], logprob_token_ids=sorted(unlikely)
            )
            self._scores_chosen = scored is not None and unlikely <= scored.keys()
        if self._names_ids or self._way:
            short = "one-token choices by the likeliest tokens, others " if self._names_ids else "choices "
            after = " or, after long prompts, token by token" if self._scores_chosen and self._way else ""
            self.say(f"{self._name}: {short}scored by {self._way or 'the same, token by token'}{after}")

    def _likely(self, body: Any, ids: list[int], text: str) -> tuple[bool, list[int], str, float] | None:
        """The prompt with a token that may follow: whether the server names ids, the ids, the text, the token's score."""
        assert self.renderer is not None
        named = _likeliest(body)
        if named and self._as_ids:
            token = min(named, key=lambda each: named[each])
            return True, [*ids, token], "", named[token]
        names = body["choices"][0]["logprobs"]["top_logprobs"][0]
        for name in sorted(names, key=lambda each: float(names[each])):
            (whole,) = self.renderer.ids([text + name])
            if whole[:-1] == ids:
                return False, whole, text + name, _number(names[name])
        return None

    async def _scores(self, question: Question) -> tuple[float, ...]:
        found, (_, texts) = self._rendered(question), self._texts(question)
        short = all(len(pair) - start == 1 for pair, start in zip(found.pairs_C, found.starts_C, strict=True))
        steps = _steps(found)
        cheap = len(found.prompt) + STEP * len(steps) < sum(map(len, found.pairs_C))
        if self._names_ids and (short or self._way is None or (cheap and self._scores_chosen)):
            try:
                return await self._stepwise(found, steps)
            except _HiddenError:
                if self._way is None:
                    raise
        if self._way is None:
            raise EndpointError(
                f"{self._name} gives no log-probabilities of given tokens, by echo or prompt_logprobs, nor names likeliest tokens by "
                "id; set evaluate.scorers: [generation], or see docs/servers.md for servers that do"
            )
        fields, read = WHOLE[self._way]
        scores = []
        for pair, start, text in zip(found.pairs_C, found.starts_C, texts, strict=True):
            logp_T = await self._complete(pair, text, partial(read, pair, start), **fields)
            scores.append(sum(logp_T))
        return tuple(scores)

    async def _stepwise(self, found: Rendered, steps: Mapping[tuple[int, ...], set[int]]) -> tuple[float, ...]:
        """Scores from one request a step: the server's prefix cache holds the text before it."""
        known = {context: await self._next(list(context), tokens) for context, tokens in steps.items()}
        return tuple(
            sum(known[tuple(pair[:place])][pair[place]] for place in range(start, len(pair)))
            for pair, start in zip(found.pairs_C, found.starts_C, strict=True)
        )

    async def _next(self, ids: list[int], tokens: set[int]) -> dict[int, float]:
        """Scores of some next tokens after a text."""
        # newer vLLM servers score these, whatever their rank; others are asked for more and more of the likeliest
        wanted: dict[str, Any] = {"logprob_token_ids": sorted(tokens)} if self._extra else {}
        top = self._top
        while True:
            try:
                found = await self._complete(ids, "", _likeliest, logprobs=top, **wanted)
            except RefusedError as error:
                lower = [size for size in TOP if size < top]
                if error.status not in (400, 422) or not lower:
                    raise
                self._refused_top, top = min(self._refused_top, top), lower[-1]
                continue
            self._top = top
            if tokens <= found.keys():
                return found
            more = [size for size in TOP if top < size < self._refused_top]
            if not more:
                raise _HiddenError(
                    f"{self._name} tells of the {top} likeliest tokens, and a choice is not among them; let it tell of more (vLLM: "
                    "--max-logprobs), or set evaluate.scorers: [generation]"
                )
            top = more[0]
