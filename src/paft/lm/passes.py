"""Forward passes over a plan of shared beginnings: scores of continuations, and free text by greedy decoding.

One engine for every causal model of transformers. Where a model takes a mask of our own and a cache, rows are packed and
heads are computed once; where it does not, every text is a row of its own, padded on the right, which no causal model sees.
Which of the two is found out by trying both on a few tokens.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from paft.errors import ResourceError
from paft.lm.prefix import Head, Row, flat, plan, take
from paft.lm.types import Completion, Stop
from paft.tasks.images import Image

Layers = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [rows, heads, tokens, size] each."""

LOGITS = 32
"""Places whose logits are turned into log-probabilities at a time; with large vocabularies they are what takes memory."""


@dataclass(frozen=True)
class Cost:
    """What a machine is good at. overhead: what a pass costs whatever it reads, in tokens: the weights go by once.

    room: most tokens of a packed row. batch: tokens per pass. decode: texts that are continued together. held: tokens of such texts
    whose keys and values may wait for each other.
    """

    overhead: int
    room: int
    batch: int
    decode: int
    held: int


CPU = Cost(overhead=32, room=768, batch=2048, decode=64, held=32_768)
"""Measured with a 135M model: from 1,000 tokens a pass on, a core is at 95 % of its peak; past 4,000 the caches overflow."""
GPU = Cost(overhead=1024, room=2048, batch=16_384, decode=256, held=65_536)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a batch was too large for the memory of this machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


@dataclass(frozen=True, eq=False)
class Continuation:
    """The end of a text that is scored: from position `start` on, `targets`. A text may be scored with several ends."""

    owner: tuple[int, int]
    start: int
    targets: Sequence[int]


@dataclass(frozen=True)
class Until:
    """When a free text ends that the model does not end: at a number of tokens, or once what it says is settled."""

    limit: int
    settled: Callable[[str], bool] | None = None


@dataclass(eq=False)
class Work:
    """A text and what is wanted of it: scores of continuations, and free text for some owners. images: those that it has places for."""

    ids: Sequence[int]
    scored: list[Continuation] = field(default_factory=list)
    free: dict[int, Until] = field(default_factory=dict)
    images: tuple[Image, ...] = ()

    @property
    def latest(self) -> int:
        """Tokens that a head may hold: what is read off the text lies after it."""
        return min([part.start - 1 for part in self.scored] + ([len(self.ids) - 1] if self.free else []))

    @property
    def owners(self) -> set[int]:
        """The questions that this text belongs to."""
        return {part.owner[0] for part in self.scored} | set(self.free)

    @property
    def limit(self) -> int:
        """Most tokens of a free text."""
        return max(until.limit for until in self.free.values())


@dataclass(eq=False)
class _Prefilled:
    """Prompts whose keys and values are known, with the first token of the answer: texts end at the right."""

    works: list[Work]
    next_G: list[int]
    lengths_G: list[int]
    layers: Layers


def kernel_mask(sees: Tensor, model: Any) -> Any:
    """Where tokens may look, bool [B, 1, T, S], as the model's kernel of attention takes it: flex attention leaves out the blocks where
    nothing is seen; all others add a number to every score."""
    kernel = str(getattr(model.config, "_attn_implementation", None))
    if kernel.startswith("flash_attention"):  # would read a mask of this form as lengths, and past the end of its rows
        raise ValueError(f"{kernel} takes no mask of its own")
    if kernel == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        size, _, rows, columns = sees.shape
        return create_block_mask(
            lambda b, head, q, k: sees[b, 0, q, k], size, None, rows, columns, device=str(sees.device)
        )
    kind = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.zeros_like(sees, dtype=kind).masked_fill_(~sees, torch.finfo(kind).min)


@contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """The model's own settings of generation set aside: penalties among them change greedy answers, and `Engine._decode` knows none."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


class Engine:
    """Runs plans on one model. `scored` and `said` hear of results as they come, `spent` of the time they took."""

    def __init__(self, model: Any, tokenizer: Any, end_ids: set[int], say: Callable[[str], None]):
        self.model, self.tokenizer, self.end_ids, self.say = model, tokenizer, end_ids, say
        self.device = next(model.parameters()).device
        self.cost = CPU if self.device.type == "cpu" else GPU
        self.pad = next(iter(end_ids))
        self.tokens_read = 0
        self._budget = self._most = self._together = 1 << 60  # lowered where memory has run out
        self._works: Sequence[Work] = ()
        self._scored: Callable[[tuple[int, int], float], None] = lambda owner, total: None
        self._said: Callable[[int, Completion], None] = lambda owner, completion: None
        self._spent: Callable[[Iterable[int], float], None] = lambda owners, seconds: None
        self._waiting: list[_Prefilled] = []
        self._shares: bool | None = None
        config = model.config.get_text_config()
        self.width = int(config.hidden_size)
        self.vocabulary = int(config.vocab_size)
        self._kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if (self._kinds and "sliding_attention" not in self._kinds) or getattr(
            config, "use_sliding_window", True
        ) is False:
            window = None
        self._window = int(window) if window is not None else None
        # what these layers see cannot be said with a mask of ours
        odd = [name for name in ("window_size", "attention_chunk_size") if getattr(config, name, None) is not None]
        self._odd = odd + sorted(self._kinds - {"full_attention", "sliding_attention"})

    def run(
        self,
        works: Sequence[Work],
        batch_tokens: int | None,
        scored: Callable[[tuple[int, int], float], None],
        said: Callable[[int, Completion], None],
        spent: Callable[[Iterable[int], float], None],
    ) -> None:
        """All that is wanted of all texts (no two alike)."""
        self._budget = min(batch_tokens or self.cost.batch, self._most)
        self._works, self._scored, self._said, self._spent = works, scored, said, spent
        self._waiting = []
        texts = [work.ids for work in works]
        with torch.inference_mode():
            if self._may_share(len(works)):
                latest = [work.latest for work in works]
                self._visit(plan(texts, latest, self.cost.room, self.width, self.cost.overhead), [])
                self._decode_waiting(least=1)
            else:
                self._works = [Work(work.ids, work.scored, images=work.images) for work in works]
                self._read_all(flat(texts, [j for j, work in enumerate(works) if work.scored]), [], 0)
                self._generate_plain([work for work in works if work.free])

    # --- sharing

    @property
    def plain_attention(self) -> bool:
        """No layer is known to see other than everything before."""
        return not self._odd and self._window is None

    def _may_share(self, texts: int) -> bool:
        if self._shares is None and texts > 1:
            try:
                self._shares = not self._odd and self._agrees()
                reason = f"its layers have {self._odd[0]}" if self._odd else "it reads packed texts differently"
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                self._shares, reason = False, f"{type(error).__name__}: {str(error)[:80]}".splitlines()[0]
            if not self._shares:
                self.say(f"this model shares no beginnings between texts ({reason}); every text is computed by itself")
        return bool(self._shares)

    def _agrees(self) -> bool:
        """Whether packed rows, alone and after a head, give the scores of plain texts, on random tokens.

        Measured against how much the scores depend on what stands before: that is what a wrong mask would show.
        """
        drawn = np.random.default_rng(0).integers(self.vocabulary // 10, self.vocabulary, 44).tolist()
        head, a, b, c, end = drawn[:12], drawn[12:20], drawn[20:28], drawn[28:36], drawn[36:]
        works: list[Work] = []
        for text in (head + a + end, head + a + b + end, head + c + b + end, head + c + a + b + end):
            works.append(Work(text[:-1], [Continuation((len(works), 0), len(text) - len(end), end)]))
        texts, latest = [work.ids for work in works], [len(head)] * len(works)
        totals: dict[tuple[int, int], float] = {}
        found = []
        kept = self._works, self._scored, self._spent
        self._works, self._scored, self._spent = works, totals.__setitem__, lambda owners, seconds: None
        try:
            for root in (
                Head(0, np.array([], dtype=np.int64), flat(texts, range(len(texts)))),
                plan(texts, latest, room=1000, width=10**6),
                plan(texts, latest, room=60, width=10**6, overhead=0),
            ):
                self._visit(root, [])
                found.append(np.array([totals[j, 0] for j in range(len(works))]))
        finally:
            self._works, self._scored, self._spent = kept
        plain, *shared = found
        signal = np.abs(plain[:, None] - plain[None]).sum() / (len(works) * (len(works) - 1))
        return all(np.abs(each - plain).max() <= 0.05 * signal for each in shared)

    # --- passes

    def _visit(self, head: Head, above: Layers) -> None:
        layers: Layers | None = above
        if len(head.ids):
            layers = self._read_head(head, above)
        if layers is None:
            self.say("out of memory on a beginning that texts have in common; computing it for each of them")
            self._read_all(flat([work.ids for work in self._works], list(head.texts()), head.start), above, head.start)
            return
        self._read_all(head.rows, layers, head.end)
        for longer in head.heads:
            self._visit(longer, layers)

    def _read_head(self, head: Head, above: Layers) -> Layers | None:
        """Keys and values of a head; None when there is no memory for them."""
        row = Row(head.ids, head.start + np.arange(len(head.ids)), (0,), (np.arange(len(head.ids)),))
        while True:
            started = time.perf_counter()
            try:
                layers = self._forward([row], above, head.start, [len(head.ids) - 1], keep=True)[1]
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                error.__traceback__ = None
                if not self._make_room():
                    return None
                continue
            self._spent({owner for j in head.texts() for owner in self._works[j].owners}, time.perf_counter() - started)
            return layers

    def _read_all(self, rows: Sequence[Row], layers: Layers, start: int) -> None:
        """Rows after one head, longest first so that trouble with memory shows at once: a pass that fails is halved."""
        queue = sorted(rows, key=len, reverse=True)
        while queue:
            batch = queue[: take(queue, self._budget, self.cost.overhead)]
            try:
                self._read(batch, layers, start)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                error.__traceback__ = None
                texts = [j for row in batch for j in row.texts]
                if self._make_room():
                    continue
                if len(batch) > 1:
                    self._budget = self._most = len(batch) // 2 * len(batch[0])
                    self.say(f"out of memory on {len(batch)} questions at once; going on with half")
                elif len(texts) > 1:
                    self.say("out of memory on texts with a common beginning; computing it for each of them")
                    queue[:1] = flat([work.ids for work in self._works], texts, start)
                    queue.sort(key=len, reverse=True)
                else:
                    raise _too_large(len(self._works[texts[0]].ids)) from None
                self._free_memory()
                continue
            del queue[: len(batch)]
            self._decode_waiting(least=min(self._together, self.cost.decode))

    def _read(self, rows: Sequence[Row], layers: Layers, start: int) -> None:
        """One pass: scores of the continuations in it; prompts to be continued go to the waiting ones."""
        started = time.perf_counter()
        widest = max(map(len, rows))
        reads: list[tuple[int, int, tuple[int, int]]] = []  # flat place, target, owner
        ends: list[tuple[int, int, np.ndarray]] = []  # flat place, row, path
        asked: list[Work] = []
        for b, row in enumerate(rows):
            for j, path in zip(row.texts, row.paths, strict=True):
                work, places = self._works[j], b * widest + path
                for part in work.scored:
                    first = part.start - 1 - start
                    reads += [(int(places[first + t]), target, part.owner) for t, target in enumerate(part.targets)]
                if work.free:
                    ends.append((int(places[-1]), b, path))
                    asked.append(work)
        wanted = sorted({place for place, *_ in reads} | {place for place, *_ in ends})
        logits_SV, read = self._forward(rows, layers, start, wanted, keep=bool(ends))
        at = {place: s for s, place in enumerate(wanted)}
        if reads:
            log_total_S = torch.cat([part.float().logsumexp(-1) for part in logits_SV.split(LOGITS)])
            rows_R = torch.tensor([at[place] for place, *_ in reads], device=self.device)
            targets_R = torch.tensor([target for _, target, _ in reads], device=self.device)
            logp_R = (logits_SV[rows_R, targets_R].float() - log_total_S[rows_R]).double().tolist()
            totals: dict[tuple[int, int], float] = {}
            for (_, _, owner), logp in zip(reads, logp_R, strict=True):
                totals[owner] = totals.get(owner, 0.0) + logp
            self._took(rows, started)
            for owner, total in totals.items():
                self._scored(owner, total)
        if ends:
            next_G = logits_SV[[at[place] for place, *_ in ends]].argmax(-1).tolist()
            lengths = [start + len(path) for *_, path in ends]
            index_GT = np.zeros((len(ends), max(lengths)), dtype=np.int64)
            for g, (_, _, path) in enumerate(ends):
                index_GT[g, index_GT.shape[1] - lengths[g] :] = np.concatenate([np.arange(start), start + path])
            row_G1 = torch.tensor([b for _, b, _ in ends], device=self.device)[:, None]
            index = torch.from_numpy(index_GT).to(self.device)
            gathered = [(k[row_G1, :, index].transpose(1, 2), v[row_G1, :, index].transpose(1, 2)) for k, v in read]
            self._waiting.append(
                _Prefilled([Work(work.ids, free=dict(work.free)) for work in asked], next_G, lengths, gathered)
            )
            if not reads:
                self._took(rows, started)

    def _took(self, rows: Sequence[Row], started: float) -> None:
        """Divide the time of a pass among the questions in it, by the tokens of their rows."""
        per_token = (time.perf_counter() - started) / sum(map(len, rows))
        for row in rows:
            self._spent({owner for j in row.texts for owner in self._works[j].owners}, per_token * len(row))

    def _forward(
        self, rows: Sequence[Row], layers: Layers, start: int, wanted: Sequence[int], keep: bool = False
    ) -> tuple[Tensor, Layers]:
        """Logits at the wanted places of the padded rows (flat, rising), and keys and values when they are to be kept."""
        size, widest = len(rows), max(map(len, rows))
        self.tokens_read += size * widest
        ids_BT = np.full((size, widest), self.pad, dtype=np.int64)
        depth_BT = np.full((size, widest), start, dtype=np.int64)
        for b, row in enumerate(rows):
            ids_BT[b, : len(row)], depth_BT[b, : len(row)] = row.ids_T, row.depth_T
        fed: dict[str, Any] = {"input_ids": torch.from_numpy(ids_BT).to(self.device)}
        packed = start > 0 or any(len(row.paths) > 1 for row in rows)
        if packed:
            fed |= {
                "attention_mask": self._mask(rows, depth_BT, start),
                "position_ids": torch.from_numpy(depth_BT).to(self.device),
            }
        if keep or layers:
            fed["past_key_values"] = _cache(layers, size)
        with self._head_at(torch.tensor(list(wanted), device=self.device)):
            output = self.model(**fed, use_cache=keep or bool(layers))
        logits = output.logits
        if logits.shape[:2] != (1, len(wanted)):  # a model whose head does not go through its output embeddings
            logits = logits.flatten(0, 1)[list(wanted)][None]
        return logits[0], [tuple(layer[:2]) for layer in output.past_key_values] if keep else []

    def _mask(self, rows: Sequence[Row], depth_BT: np.ndarray, start: int) -> Any:
        """Additive mask(s) [rows or 1, 1, T, start + T]: the head, and what each row says."""
        size, widest = depth_BT.shape
        same = all(len(row.paths) == 1 for row in rows)
        sees = np.zeros((1 if same else size, widest, start + widest), dtype=bool)
        sees[:, :, :start] = True
        if same:
            sees[0, :, start:] = np.tri(widest, dtype=bool)
        else:
            for b, row in enumerate(rows):
                sees[b, : len(row), start : start + len(row)] = row.sees_TT()
                padding = np.arange(len(row), widest)
                sees[b, padding, start + padding] = True
        full = self._told(sees)
        if self._window is None:
            return full
        depths = depth_BT if not same else depth_BT[depth_BT.max(1).argmax()][None]
        keys = np.concatenate([np.broadcast_to(np.arange(start), (len(depths), start)), depths], axis=1)
        near = self._told(sees & (depths[:, :, None] - keys[:, None, :] < self._window))
        return {"full_attention": full, "sliding_attention": near} if "full_attention" in self._kinds else near

    def _told(self, sees: np.ndarray) -> Any:
        return kernel_mask(torch.from_numpy(sees)[:, None].to(self.device), self.model)

    @contextmanager
    def _head_at(self, places_S: Tensor) -> Iterator[None]:
        """Apply the language model head at some places only, whatever the model does after it."""
        head = self.model.get_output_embeddings()
        if head is None:
            yield
            return
        hook = head.register_forward_pre_hook(
            lambda _, args: (args[0].flatten(0, 1)[places_S][None], *args[1:]) if args[0].dim() == 3 else None
        )
        try:
            yield
        finally:
            hook.remove()

    # --- free text

    def _make_room(self) -> bool:
        """Have the waiting prompts continued, whose keys and values take memory; false when none was waiting."""
        self._free_memory()
        waited = bool(self._waiting)
        self._decode_waiting(least=1)
        return waited

    def _decode_waiting(self, least: int) -> None:
        """Continue the waiting prompts together, once there are enough. When memory runs out, those that are not answered yet start anew,
        fewer at a time."""
        lengths = [n for part in self._waiting for n in part.lengths_G]
        if not lengths or (len(lengths) < least and sum(lengths) < self.cost.held):
            return
        parts, self._waiting = self._waiting, []
        works = [work for part in parts for work in part.works]
        next_tokens = [n for part in parts for n in part.next_G]
        try:
            self._decode(parts, [work.free for work in works], next_tokens, lengths)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
            parts.clear()
            left = [work for work in works if work.free]
            self._together = max(1, len(left) // 2)
            self.say(f"out of memory on {len(left)} answers at once; going on with half")
            self._free_memory()
            self._generate_plain(left)

    def _decode(
        self, parts: list[_Prefilled], free: list[dict[int, Until]], next_tokens: list[int], lengths: list[int]
    ) -> None:
        started = time.perf_counter()
        layers = _joined(parts)
        longest, cache = layers[0][0].shape[2], _cache(layers, len(free))
        del layers
        mask_BT = torch.tensor([[0] * (longest - n) + [1] * n for n in lengths], device=self.device)
        place_B = torch.tensor(lengths, device=self.device)
        next_B = torch.tensor(next_tokens, device=self.device)
        said: list[list[int]] = [[] for _ in free]
        alive = list(range(len(free)))  # the text of each row; one that has ended may stay for a while

        while True:
            tokens = next_B.tolist()
            seconds = time.perf_counter() - started
            going = [g for g in alive if free[g]]
            for g in going:
                self._spent(free[g], seconds / len(going))
            started = time.perf_counter()
            for g, token in zip(alive, tokens, strict=True):
                ended = token in self.end_ids
                if free[g] and not ended:
                    said[g].append(token)
                for owner, until in list(free[g].items()):
                    if (stop := self._stops(said[g], ended, until)) is not None:
                        del free[g][owner]
                        self._say_text(owner, said[g], stop)
            rows = [b for b, g in enumerate(alive) if free[g]]
            if not rows:
                return
            if 2 * len(rows) <= len(alive):
                keep = torch.tensor(rows, device=self.device)
                cache.batch_select_indices(keep)
                mask_BT, place_B, next_B = mask_BT[keep], place_B[keep], next_B[keep]
                alive = [alive[b] for b in rows]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(alive), 1)], dim=1)
            self.tokens_read += len(alive)
            output = self.model(
                input_ids=next_B[:, None],
                attention_mask=mask_BT,
                position_ids=place_B[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            cache, next_B, place_B = output.past_key_values, output.logits[:, -1].argmax(-1), place_B + 1

    def _generate_plain(self, works: Sequence[Work]) -> None:
        """Free text of models that share nothing: transformers' own loop."""
        queue = sorted(works, key=lambda work: (len(work.ids), work.limit), reverse=True)
        while queue:
            batch = self._alongside(queue)[: min(self._together, self.cost.decode)]
            started = time.perf_counter()
            try:
                fed = self._fed(batch)
                with _without_own_settings(self.model):
                    whole = self.model.generate(
                        **fed,
                        max_new_tokens=batch[0].limit,
                        do_sample=False,
                        eos_token_id=sorted(self.end_ids),
                        pad_token_id=self.pad,
                    )
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise _too_large(len(batch[0].ids)) from None
                error.__traceback__ = None
                self._together = len(batch) // 2
                self.say(f"out of memory on {len(batch)} questions at once; going on with half")
                self._free_memory()
                continue
            new = whole[:, fed["input_ids"].shape[1] :]
            self.tokens_read += whole.numel()
            seconds = (time.perf_counter() - started) / len(batch)
            for work, row in zip(batch, new.tolist(), strict=True):
                self._spent(work.free, seconds)
                end = next((t for t, token in enumerate(row) if token in self.end_ids), len(row))
                for owner, until in work.free.items():
                    for size in range(end + 1):  # as if it had been written token by token
                        if (stop := self._stops(row[:size], size == end < len(row), until)) is not None:
                            self._say_text(owner, row[:size], stop)
                            break
            done = set(map(id, batch))
            queue = [work for work in queue if id(work) not in done]

    def _alongside(self, queue: Sequence[Work]) -> list[Work]:
        """Of prompts, longest first, those that may be continued together with the first one: those of its length, so without padding."""
        first = len(queue[0].ids), queue[0].limit
        return [work for work in queue if (len(work.ids), work.limit) == first]

    def _fed(self, batch: Sequence[Work]) -> dict[str, Any]:
        """Prompts as the model takes them."""
        ids_BT = torch.tensor([list(work.ids) for work in batch], device=self.device)
        return {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}

    def _stops(self, tokens: list[int], ended: bool, until: Until) -> Stop | None:
        """Why a text of these tokens goes no further, if so. ended: the model ended it after them."""
        if ended:
            return "eos"
        if until.settled is not None and until.settled(self._text(tokens)):
            return "settled"
        return "limit" if len(tokens) == until.limit else None

    def _say_text(self, owner: int, tokens: list[int], stop: Stop) -> None:
        self._said(owner, Completion(self._text(tokens), len(tokens) + (stop == "eos"), stop))

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return text

    def _free_memory(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _joined(parts: Sequence[_Prefilled]) -> Layers:
    """Keys and values of all parts as one batch, texts ending at the right; taken out of the parts layer by layer."""
    size, longest = sum(len(part.next_G) for part in parts), max(max(part.lengths_G) for part in parts)
    layers: Layers = []
    for layer in range(len(parts[0].layers)):
        pair = []
        for side in range(2):
            piece = parts[0].layers[layer][side]
            whole = piece.new_zeros(size, piece.shape[1], longest, piece.shape[3])
            row = 0
            for part in parts:
                piece = part.layers[layer][side]
                whole[row : row + len(piece), :, longest - piece.shape[2] :] = piece
                row += len(piece)
            pair.append(whole)
        layers.append((pair[0], pair[1]))
    for part in parts:
        part.layers = []
    return layers


def _cache(layers: Layers, size: int) -> DynamicCache:
    """A cache for `size` texts that go on from these keys and values, which belong to one text or to each."""
    cache = DynamicCache(layers or None)
    for layer in cache.layers:
        layer.keys, layer.values = (x.expand(size, -1, -1, -1) for x in (layer.keys, layer.values))
    return cache


def _too_large(tokens: int) -> ResourceError:
    return ResourceError(
        f"out of memory on a single question of {tokens} tokens; use a smaller model, a shorter prompt or dtype: bfloat16"
    )
