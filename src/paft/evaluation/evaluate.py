"""Fill the grid: one loaded model, all prompts, all examples, each cell asked once and kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from paft.config import EvalConfig
from paft.evaluation.matrix import INVALID, UNSCORED, ScoreMatrix, restricted_choice
from paft.evaluation.stats import Estimate, all_estimates, raw_sd
from paft.grid import Cell, Grid
from paft.lm.types import LM, Answered
from paft.store import CellKey, CellStore

Scorer = Literal["likelihood", "generation"]
Tick = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """One model over one grid: a table per scorer, the raw answers, and what it cost.

    answers_KN: nested tuples, prompt by prompt. asked: cells computed now; the others were in the store.
    """

    grid: Grid
    fingerprint: str
    scores: dict[Scorer, ScoreMatrix]
    answers_KN: tuple[tuple[Answered, ...], ...]
    level: float
    thresholds: tuple[float, ...]
    asked: int

    def estimates(self, scorer: Scorer) -> dict[str, Estimate]:
        """All estimates by one scorer, by name."""
        return all_estimates(self.scores[scorer], self.level, list(self.thresholds))

    def summary(self, scorer: Scorer) -> dict[str, Any]:
        """Plain values for the results file: per-prompt figures and estimates."""
        matrix = self.scores[scorer]
        return {
            "accuracy_K": matrix.accuracy_K.tolist(),
            "invalid_K": matrix.invalid_K.tolist(),
            "tokens_K": matrix.tokens_KN.mean(1).tolist(),
            "ended_K": matrix.ended_KN.mean(1).tolist(),
            "raw_sd": raw_sd(matrix.values_KN),
            "estimates": {name: estimate.to_dict() for name, estimate in self.estimates(scorer).items()},
        }


def evaluate(
    lm: LM, grid: Grid, config: EvalConfig, store: CellStore | None = None, tick: Tick = lambda a, b, c: None
) -> Evaluation:
    """Ask every cell of the grid and score the answers. Cells in the store are not asked again."""
    num_prompts, num_examples = grid.shape
    total = num_prompts * num_examples
    fingerprint = lm.fingerprint
    generate = "generation" in config.scorers
    rows: list[tuple[Answered, ...]] = []
    asked = 0
    for k in range(num_prompts):
        questions = [grid.question(Cell(0, k, i)) for i in range(num_examples)]
        limit = (config.max_new_tokens or answer_limit(lm, grid, k)) if generate else 0
        keys = [CellKey(fingerprint, lm.key(question), limit) for question in questions]
        known: list[Answered | None] = store.get(keys) if store is not None else [None] * num_examples
        missing = [i for i, answer in enumerate(known) if answer is None]
        tick(k * num_examples + num_examples - len(missing), total, "")
        finished = k * num_examples + num_examples - len(missing)

        def keep(place: int, answer: Answered, missing: list[int] = missing, keys: list[CellKey] = keys) -> None:
            nonlocal finished, asked
            if store is not None:
                store.put(keys[missing[place]], answer)
            finished, asked = finished + 1, asked + 1
            tick(finished, total, "")

        new = lm.answer(
            [questions[i] for i in missing], max_new_tokens=limit, batch_tokens=config.batch_tokens, done=keep
        )
        for i, answer in zip(missing, new, strict=True):
            known[i] = answer
        rows.append(tuple(answer for answer in known if answer is not None))
    if store is not None:
        store.flush()
    scores: dict[Scorer, ScoreMatrix] = {}
    for scorer in config.scorers:
        scores[scorer] = score_matrix(grid, rows, scorer, config.normalization)
    return Evaluation(grid, fingerprint, scores, tuple(rows), config.level, tuple(config.thresholds), asked)


def answer_limit(lm: LM, grid: Grid, prompt: int) -> int:
    """Token limit of a free answer under a prompt: the longest answer it allows, and 4 more. The same for all models
    with one tokenizer."""
    answer = grid.templates[prompt].answer
    surfaces = {surface for example in grid.examples for surface in answer.surfaces(example)}
    longest = sorted(surfaces, key=len)[-20:]  # the longest in tokens is among the longest in characters
    return max(lm.count_tokens(surface) for surface in longest) + 4


def score_matrix(
    grid: Grid,
    rows: Sequence[Sequence[Answered]],
    scorer: Scorer,
    normalization: Literal["sum", "token", "byte"] = "sum",
) -> ScoreMatrix:
    """The table of one scorer from the answers to all cells, prompt by prompt.

    likelihood: argmax over the choices' log-probabilities (sum, per token or per byte). generation: the parser of the
    prompt's answer format reads the completion; unparsable is wrong.
    """
    shape = grid.shape
    values_KN, answers_KN = np.full(shape, np.nan), np.full(shape, UNSCORED, dtype=np.int64)
    tokens_KN, ended_KN = np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=bool)
    for k, template in enumerate(grid.templates):
        for i, example in enumerate(grid.examples):
            answered = rows[k][i]
            if scorer == "likelihood":
                scores = normalized(answered, normalization)
                answers_KN[k, i], values_KN[k, i] = restricted_choice(scores, example.answer, example.id)
            else:
                completion = answered.completion
                assert completion is not None, "generation was not asked for"
                parsed = template.answer.parse(completion.text, example)
                answers_KN[k, i] = INVALID if parsed.choice is None else parsed.choice
                values_KN[k, i] = float(parsed.choice == example.answer)
                tokens_KN[k, i], ended_KN[k, i] = completion.tokens, completion.stop == "eos"
    ids = tuple(template.id for template in grid.templates), tuple(example.id for example in grid.examples)
    return ScoreMatrix(*ids, values_KN, answers_KN, tokens_KN, ended_KN)


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
    """All cells of an evaluation as columns, one row per cell: for Parquet, pandas, R."""
    grid = evaluation.grid
    plain = (
        "arm",
        "prompt",
        "example",
        "gold",
        "logp",
        "prompt_tokens",
        "completion",
        "completion_tokens",
        "stop",
    )
    judged = [f"{scorer}_{what}" for scorer in evaluation.scores for what in ("score", "answer")]
    table: dict[str, list[Any]] = {name: [] for name in (*plain, *judged)}
    for k, template in enumerate(grid.templates):
        for i, example in enumerate(grid.examples):
            answered = evaluation.answers_KN[k][i]
            completion = answered.completion
            values = (
                arm,
                template.id,
                example.id,
                example.answer,
                [x if math.isfinite(x) else None for x in answered.logp_C],
                answered.prompt_tokens,
                completion.text if completion else None,
                completion.tokens if completion else None,
                completion.stop if completion else None,
            )
            for name, value in zip(plain, values, strict=True):
                table[name].append(value)
            for scorer, matrix in evaluation.scores.items():
                table[f"{scorer}_score"].append(float(matrix.values_KN[k, i]))
                table[f"{scorer}_answer"].append(int(matrix.answers_KN[k, i]))
    return table
