"""Fill the grid: one loaded model, all prompts, all examples, each cell asked once and kept."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import or_
from typing import Any, Literal

import numpy as np

from paft.config import EvalConfig
from paft.errors import ConfigError
from paft.evaluation import metrics
from paft.evaluation.budget import Spent, expected_accuracies, few_estimates, spend
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix, groups_of, restricted_choice
from paft.evaluation.stats import Estimate, all_estimates, raw_sd, variance_components
from paft.evaluation.variance import worst_bracket
from paft.grid import Cell, Grid
from paft.lm.ranks import Ranks
from paft.lm.types import LM, Answered, Question
from paft.store import CellKey, CellStore
from paft.tasks.answers import scored_by
from paft.tasks.sandbox import allow_code

Scorer = Literal["likelihood", "generation"]
Tick = Callable[[int, int, str], None]
ALONE = Ranks()


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model over one grid: a table per scorer, the raw answers, and what it cost.

    answers_KN: nested tuples, prompt by prompt; None where the budget did not reach. asked: cells computed now; the others were in the store. tokens_read: what that
    took, padding included; tokens_alone: what it would have taken with every option and free answer in a pass of its own.
    """

    grid: Grid
    fingerprint: str
    scores: dict[Scorer, ScoreMatrix]
    answers_KN: tuple[tuple[Answered | None, ...], ...]
    level: float
    thresholds: tuple[float, ...]
    spent: Spent
    asked: int
    tokens_read: int = 0
    tokens_alone: int = 0
    reference: int | None = None
    """The prompt (row) against which flips are counted."""
    answer_limit: int = 0
    """Most tokens that a free answer might have."""

    @property
    def seconds_K(self) -> list[float]:
        """Time that an answer took under each prompt, in seconds, whenever it was computed: shares of the passes that made it."""
        taken = [[answered.seconds for answered in row if answered is not None] for row in self.answers_KN]
        return [sum(row) / max(1, len(row)) for row in taken]

    def estimates(self, scorer: Scorer) -> dict[str, Estimate]:
        """All estimates by one scorer, by name."""
        if self.spent.whole:
            return all_estimates(self.scores[scorer], self.level, list(self.thresholds), self.reference)
        return few_estimates(self.scores[scorer], scorer, self.spent, self.thresholds)

    def summary(self, scorer: Scorer) -> dict[str, Any]:
        """Plain values for the results file: per-prompt figures and estimates. Of a table not bought whole, accuracy_K is what
        `PromptMixture` expects over all examples, and there are neither raw_sd nor differences."""
        matrix, whole = self.scores[scorer], self.spent.whole
        scored_K = np.maximum(1, matrix.observed_KN.sum(1))
        accuracy_K = matrix.accuracy_K if whole else expected_accuracies(matrix, self.spent)
        return {
            "accuracy_K": accuracy_K.tolist(),
            "invalid_K": matrix.invalid_K.tolist(),
            "tokens_K": (matrix.tokens_KN.sum(1) / scored_K).tolist(),
            "ended_K": ((matrix.ended_KN & matrix.observed_KN).sum(1) / scored_K).tolist(),
            "raw_sd": raw_sd(matrix.values_KN) if whole else None,
            "estimates": {name: estimate.to_dict() for name, estimate in self.estimates(scorer).items()},
            "differences": self._differences(matrix) if whole else None,
        }

    def _differences(self, matrix: ScoreMatrix) -> dict[str, Any]:
        """Where the cells of a whole table differ: by prompt or by example, at the worst prompt, in the answers, from the reference."""
        examples, values_KN, answers_KN = self.grid.examples, matrix.values_KN, matrix.answers_KN
        answers_N = np.array([max(2, len(example.choices)) for example in examples])  # an open one is right, or another
        flips = None
        if self.reference is not None:
            gold_N = np.array([example.answer for example in examples])
            split = asdict(metrics.flips(answers_KN, gold_N, self.reference))
            flips = {kind: float(share_K.mean()) for kind, share_K in split.items()}
        return {
            "components": variance_components(values_KN, self.level).to_dict(),
            "worst": asdict(worst_bracket(values_KN)) if len(examples) >= 4 else None,
            "entropy": metrics.sensitivity_entropy(answers_KN, answers_N).value,
            "flips": flips,
        }


CHUNK = 4096
"""Cells that are rendered and looked up at a time: all prompts over some examples, so that what they share is seen."""

EXCHANGED = 512
"""The same of each of several processes. Its answers reach the first, which alone keeps them, at the end of a chunk, so a kill
loses about this many of every other process at most (examples stay whole); smaller chunks would make all wait for the slowest
more often."""


class Asker:
    """Puts cells of a grid to a model, each once: what the store holds is not asked again, what is answered is kept."""

    def __init__(
        self,
        lm: LM,
        grid: Grid,
        config: EvalConfig,
        store: CellStore | None = None,
        tick: Tick = lambda a, b, c: None,
        ranks: Ranks = ALONE,
    ):
        self.lm, self.grid, self.config, self.store, self.tick, self.ranks = lm, grid, config, store, tick, ranks
        self.fingerprint = lm.fingerprint
        num_prompts, num_examples = grid.shape
        self.answers_KN: list[list[Answered | None]] = [[None] * num_examples for _ in range(num_prompts)]
        self.asked = self.finished = self.tokens_alone = self._read_elsewhere = 0
        self._read_before = lm.tokens_read
        self.total = num_prompts * num_examples
        """Cells that progress is told of; the budget may lower it."""
        self._limit_K = [0] * num_prompts
        if "generation" in config.scorers:
            self._limit_K = (
                [config.max_new_tokens] * num_prompts if config.max_new_tokens else grid.answer_limits(lm.count_tokens)
            )

    def ask(self, cells: Iterable[tuple[int, int]]) -> None:
        """Have these cells (prompt, example) answered. The same cells are answered alike in any order and company."""
        wanted = [(k, i) for k, i in cells if self.answers_KN[k][i] is None]
        wanted.sort(key=lambda cell: (cell[1], cell[0]))
        size = CHUNK if self.ranks.size == 1 else min(CHUNK, EXCHANGED * self.ranks.size)
        for start in range(0, len(wanted), size):
            self._ask(wanted[start : start + size])
        if self.store is not None:
            self.store.flush()

    @property
    def tokens_read(self) -> int:
        """Tokens computed for what was asked, by all processes."""
        return self.lm.tokens_read - self._read_before + self._read_elsewhere

    @property
    def longest(self) -> int:
        """Most tokens of a free answer."""
        return max(self._limit_K)

    def matrix(self, scorer: Scorer, examples: Sequence[int] | None = None) -> ScoreMatrix:
        """The table of what has been answered so far, over some examples in their order (default: all)."""
        chosen = range(self.grid.shape[1]) if examples is None else examples
        grid = Grid(self.grid.templates, [self.grid.examples[i] for i in chosen])
        rows = [[row[i] for i in chosen] for row in self.answers_KN]
        return score_matrix(grid, rows, scorer, self.config.normalization)

    def _ask(self, cells: Sequence[tuple[int, int]]) -> None:
        parts = [self._parts(*cell) for cell in cells]
        keys = [key for part in parts for key in part]
        held = iter(self.ranks.share(self.store.get(keys) if self.store is not None else [None] * len(keys)))
        known = [{key: next(held) for key in part} for part in parts]
        missing, questions = [], []
        for place, (part, have) in enumerate(zip(parts, known, strict=True)):
            gaps = [question for key, question in part.items() if have[key] is None]
            if gaps:
                both = gaps[0] if len(gaps) == 1 else replace(gaps[0], max_new_tokens=gaps[1].max_new_tokens)
                missing.append(place)
                questions.append(both)
            else:
                self._finish(cells[place], have.values())

        def keep(place: int, answer: Answered) -> None:
            for key, question in parts[place].items():
                if known[place][key] is None and (part := _part_of(answer, question)) is not None:
                    known[place][key] = part
                    if self.store is not None:
                        self.store.put(key, part)
            lengths = [answer.prompt_tokens + tokens for tokens in answer.tokens_C]
            if answer.completion is not None:
                lengths.append(answer.prompt_tokens + answer.completion.tokens)
            self.tokens_alone += sum(lengths)
            if None not in known[place].values():
                self.asked += 1
                self._finish(cells[place], known[place].values())

        # what prompts share is in the example: its cells stay in one process
        mine = [n for n, place in enumerate(missing) if cells[place][1] % self.ranks.size == self.ranks.rank]
        found: list[tuple[int, Answered]] = []
        before = self.lm.tokens_read

        def hear(index: int, answer: Answered) -> None:
            found.append((missing[mine[index]], answer))
            keep(*found[-1])

        self.tick(self.finished, self.total, "")
        self.lm.answer([questions[n] for n in mine], batch_tokens=self.config.batch_tokens, done=hear)
        if missing:
            for rank, (theirs, read) in enumerate(self.ranks.gather((found, self.lm.tokens_read - before))):
                if rank != self.ranks.rank:
                    self._read_elsewhere += read
                    for place, answer in theirs:
                        keep(place, answer)

    def _parts(self, k: int, i: int) -> dict[CellKey, Question]:
        """The parts of a cell that are kept apart, so that another scorer later pays for its own part only."""
        question, limit = self.grid.question(Cell(0, k, i)), self._limit_K[k]
        scored, free = self.lm.keys(question)
        if self.config.stop == "settled":
            answer, example = self.grid.templates[k].answer, self.grid.examples[i]
            question = replace(question, settled=lambda text: answer.settled(text, example))
            decides = repr((answer, example.choices, example.is_open, example.accepted, example.score))
            free += "/settled " + hashlib.sha256(decides.encode("utf-8", "backslashreplace")).hexdigest()[:12]
        found = {}
        if "likelihood" in self.config.scorers:
            found[CellKey(self.fingerprint, scored, 0)] = question
        if limit:
            found[CellKey(self.fingerprint, free, limit)] = replace(question, choices=(), max_new_tokens=limit)
        return found

    def _finish(self, cell: tuple[int, int], parts: Iterable[Answered | None]) -> None:
        first, *more = (part for part in parts if part is not None)
        self.answers_KN[cell[0]][cell[1]] = reduce(or_, more, first)
        self.finished += 1
        self.tick(self.finished, self.total, "")


def _part_of(answer: Answered, question: Question) -> Answered | None:
    """What belongs to one part, None when it is not known yet. Time of both, told in one, counts for the free answer."""
    if question.choices:
        seconds = 0.0 if answer.completion else answer.seconds
        return replace(answer, completion=None, seconds=seconds) if answer.logp_C else None
    if answer.completion is None:
        return None
    return Answered((), (), (), answer.prompt_tokens, False, answer.completion, answer.seconds)


def evaluate(
    lm: LM,
    grid: Grid,
    config: EvalConfig,
    store: CellStore | None = None,
    tick: Tick = lambda a, b, c: None,
    say: Callable[[str], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Ask the cells of the grid that the budget wants and score the answers. Cells in the store are not asked again.

    ranks: processes that share the work; each calls this alike and gets the whole evaluation, rank 0 alone needs the store.
    """
    if open_example := next((example for example in grid.examples if example.is_open), None):
        require_choices(f"example {open_example.id!r}", config.scorers)
    if config.run_code:
        allow_code()
    reference = reference_row(config.reference, grid)
    asker = Asker(lm, grid, config, store, tick, ranks)

    def ask(cells: Sequence[tuple[int, int]]) -> dict[str, np.ndarray]:
        asker.total = asker.finished + len(cells)
        asker.ask(cells)
        return {scorer: asker.matrix(scorer).values_KN for scorer in config.scorers}

    groups_N = asker.matrix(config.scorers[0]).groups_N
    spent = spend(config.budget, grid.shape, config.scorers, ask, config.level, say, groups_N)
    rows = tuple(tuple(row) for row in asker.answers_KN)
    scores: dict[Scorer, ScoreMatrix] = {scorer: asker.matrix(scorer) for scorer in config.scorers}
    settings = config.level, tuple(config.thresholds), spent
    cost = asker.asked, asker.tokens_read, asker.tokens_alone
    return Evaluation(grid, asker.fingerprint, scores, rows, *settings, *cost, reference, asker.longest)


def require_choices(what: str, scorers: Sequence[Scorer]) -> None:
    """Raises ConfigError where what has open answers is to be scored by choice: its one choice would be right under any prompt."""
    if "likelihood" in scorers:
        raise ConfigError(
            f"{what} has open answers, and restricted choice needs choices; set evaluate.scorers=[generation]"
        )


def reference_row(wanted: int | str | None, grid: Grid) -> int | None:
    """Row of the prompt that is named by its position or its id. Raises ConfigError when there is none."""
    if wanted is None:
        return None
    for row, template in enumerate(grid.templates):
        if wanted in (row, template.id):
            return row
    raise ConfigError(
        f"evaluate.reference {wanted!r}: expected a position below {grid.shape[0]} or the id of a scored prompt"
    )


def score_matrix(
    grid: Grid,
    rows: Sequence[Sequence[Answered | None]],
    scorer: Scorer,
    normalization: Literal["sum", "token", "byte"] = "sum",
) -> ScoreMatrix:
    """The table of one scorer from the answers to all cells, prompt by prompt.

    likelihood: argmax over the choices' log-probabilities (sum, per token or per byte). generation: the parser of the
    prompt's answer format reads the completion and says what it is worth; unparsable is wrong.
    """
    shape = grid.shape
    values_KN, answers_KN = np.full(shape, np.nan), np.full(shape, UNSCORED, dtype=np.int64)
    tokens_KN, ended_KN = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=bool)
    for k, template in enumerate(grid.templates):
        for i, example in enumerate(grid.examples):
            answered = rows[k][i]
            if answered is None:
                continue
            if scorer == "likelihood":
                scores = normalized(answered, normalization)
                answers_KN[k, i], values_KN[k, i] = restricted_choice(scores, example.answer, example.id)
            else:
                completion = answered.completion
                assert completion is not None, "generation was not asked for"
                parsed = template.answer.parse(completion.text, example)
                answers_KN[k, i] = INVALID if parsed.choice is None else parsed.choice
                values_KN[k, i] = parsed.worth(example)
                tokens_KN[k, i], ended_KN[k, i] = completion.tokens, completion.stop == "eos"
    ids = tuple(template.id for template in grid.templates), tuple(example.id for example in grid.examples)
    groups_N = groups_of(ids[1], [example.group for example in grid.examples])
    judges = {
        scored_by(template.answer, e)
        for template in grid.templates
        for e in {e.score: e for e in grid.examples}.values()
    }
    judge = max(judges) if scorer == "generation" else ""
    return ScoreMatrix(*ids, values_KN, answers_KN, tokens_KN, ended_KN, groups_N, judge)


def normalized(answered: Answered, normalization: Literal["sum", "token", "byte"]) -> list[float]:
    """Log-probability of each choice in nats: the sum, or divided by its tokens or by its UTF-8 bytes."""
    match normalization:
        case "sum":
            return list(answered.logp_C)
        case "token":
            return [logp / max(1, tokens) for logp, tokens in zip(answered.logp_C, answered.tokens_C, strict=True)]
        case "byte":
            return [logp / max(1, size) for logp, size in zip(answered.logp_C, answered.bytes_C, strict=True)]


def cell_table(arm: str, evaluation: Evaluation) -> dict[str, list[Any]]:
    """All answered cells of an evaluation as columns, one row per cell: for Parquet, pandas, R.

    fingerprint: of the model. logp, logp_tokens, logp_bytes: of each choice; seam: see `Answered`. seconds: time that the answer
    took when it was computed. sampled: false for cells that were bought for what others of their prompt showed; figures over a
    table leave them out. judge: what scored the free answer, where it may be partly right: an embedding model, shared words.
    """
    grid = evaluation.grid
    plain = (
        "arm",
        "fingerprint",
        "prompt",
        "example",
        "group",
        "gold",
        "logp",
        "logp_tokens",
        "logp_bytes",
        "seam",
        "prompt_tokens",
        "completion",
        "completion_tokens",
        "stop",
        "seconds",
        "sampled",
        "judge",
    )
    judged = [f"{scorer}_{what}" for scorer in evaluation.scores for what in ("score", "answer")]
    table: dict[str, list[Any]] = {name: [] for name in (*plain, *judged)}
    judge = evaluation.scores["generation"].judge if "generation" in evaluation.scores else ""
    for k, template in enumerate(grid.templates):
        for i, example in enumerate(grid.examples):
            answered = evaluation.answers_KN[k][i]
            if answered is None:
                continue
            completion = answered.completion
            values = (
                arm,
                evaluation.fingerprint,
                template.id,
                example.id,
                example.group,
                example.answer,
                [x if math.isfinite(x) else None for x in answered.logp_C],
                list(answered.tokens_C),
                list(answered.bytes_C),
                answered.seam,
                answered.prompt_tokens,
                completion.text if completion else None,
                completion.tokens if completion else None,
                completion.stop if completion else None,
                answered.seconds,
                bool(evaluation.spent.sampled_KN[k, i]),
                judge,
            )
            for name, value in zip(plain, values, strict=True):
                table[name].append(value)
            for scorer, matrix in evaluation.scores.items():
                table[f"{scorer}_score"].append(float(matrix.values_KN[k, i]))
                table[f"{scorer}_answer"].append(int(matrix.answers_KN[k, i]))
    return table
