"""What results.json and scores.parquet of a run hold."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np

from paft.config import RunConfig
from paft.evaluation.comparisons import Pairwise, gap, holm, mean_p, scorer_mismatch
from paft.evaluation.evaluate import Evaluation, Scorer, cell_table
from paft.evaluation.few import compare_few
from paft.evaluation.stats import Comparison, compare
from paft.grid import Grid
from paft.materials import Materials, train_grid
from paft.prompts import Template
from paft.prompts.measures import mmd_test
from paft.prompts.similarity import similarity_matrix
from paft.store import ArmDir, RunDir, disk_errors, read_jsonl
from paft.tasks import Example


def whole(
    config: RunConfig, m: Materials, evaluations: Mapping[str, Evaluation], arms: Mapping[str, Any]
) -> dict[str, Any]:
    """results.json: how the run was made, what was asked, every arm, and every two arms on the same cells."""
    return {
        "paft": metadata.version("paft"),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.model_dump(),
        "environment": environment(),
        "task": {
            "name": m.task.name,
            "open": m.task.num_choices == 1,
            "images": m.shows_images,
            "origins": list(m.origins),
            "rows_not_readable": len(m.rejected),
            "train_examples": len(m.train),
            "dev_examples": len(m.dev),
            "test_examples": len(m.test),
            "split": config.evaluate.split,
            "judge": next((m.judge for done in evaluations.values() for m in done.scores.values() if m.judge), None),
        },
        "prompts": {
            "set": m.prompts.task,
            "fingerprint": m.prompts.fingerprint,
            "train": len(m.prompts.train),
            "dev": len(m.prompts.dev),
            "similarity_to_train": m.prompts.similarity("train", "test"),
            "test": [_shown(template, m.test[0]) for template in m.grid.templates],
            "others": {split: _other_prompts(grid, m) for split, grid in m.others.items()},
            "single": _single_prompt(config, m),
        },
        "arms": dict(arms),
        "comparisons": comparisons(evaluations),
    }


def arm_result(
    config: RunConfig, name: str, out: ArmDir, done: Evaluation, others: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """One arm: how it was trained, its estimates by scorer, and what asking it cost."""
    arm, settings, train = config.arms[name], config.training_of(name), None
    if settings is not None:
        report = json.loads(out.train.read_text(encoding="utf-8"))["report"]
        steps = read_jsonl(out.steps)
        train = {
            **report,
            "settings": settings.model_dump(),
            "loss": [{"step": row["step"], "loss": row["loss"], "prompts": row["prompts"]} for row in steps],
            "reward": [row["reward"] for row in steps if "reward" in row],
            "dev": read_jsonl(out.dev),
            "search": json.loads(out.search.read_text(encoding="utf-8")) if out.search.exists() else None,
        }
    return {
        "title": arm.title or name,
        "fingerprint": done.fingerprint,
        "train": train,
        "scores": {scorer: done.summary(scorer) for scorer in done.scores},
        "mismatch": None
        if len(done.scores) < 2
        else scorer_mismatch(
            done.scores["likelihood"], done.scores["generation"], done.level, done.spent.sampled_KN
        ).to_dict(),
        "others": {split: _other_result(other, done) for split, other in others.items()},
        "answer_limit": done.answer_limit,
        "seconds_K": done.seconds_K,
        "cells_asked": done.asked,
        "tokens_read": done.tokens_read,
        "tokens_alone": done.tokens_alone,
        "seams": sum(answered.seam for row in done.answers_KN for answered in row if answered is not None),
        "budget": done.spent.to_dict(),
    }


def _other_result(other: Evaluation, done: Evaluation) -> dict[str, Any]:
    """An arm under the prompts of another split, and how far that lies from the scored ones on the same examples."""
    return {
        scorer: {
            "accuracy_K": matrix.accuracy_K.tolist(),
            "estimates": {name: each.to_dict() for name, each in other.estimates(scorer).items()},
            "gap": gap(matrix.values_KN, done.scores[scorer].values_KN, done.level, matrix.groups_N).to_dict(),
        }
        for scorer, matrix in other.scores.items()
    }


def _other_prompts(grid: Grid, m: Materials) -> dict[str, Any]:
    """How many prompts of another split were asked, and how far their wordings lie from the scored ones (the discrepancy in the
    paper's bound): squared MMD with its permutation p-value, by 5-grams."""
    pooled = [*grid.templates, *m.grid.templates]
    found, p = mmd_test(similarity_matrix(pooled, pooled), grid.shape[0])
    return {"prompts": grid.shape[0], "mmd2": round(found, 5), "p": round(p, 3)}


def comparisons(evaluations: Mapping[str, Evaluation]) -> list[dict[str, Any]]:
    """Every later arm against every earlier one, by each scorer, on the same cells; p values also kept for all pairs of the scorer
    together (`holm`)."""
    pairs = [(later, earlier) for n, later in enumerate(evaluations) for earlier in list(evaluations)[:n]]
    found = []
    for scorer in dict.fromkeys(scorer for each in evaluations.values() for scorer in each.scores):
        differences = [_difference(evaluations[a], evaluations[b], scorer) for a, b in pairs]
        adjusted = holm([p for _, p in differences])
        for (a, b), (difference, p), p_holm in zip(pairs, differences, adjusted, strict=True):
            found.append({"scorer": scorer, **Pairwise(a, b, difference, p, p_holm).to_dict()})
    return found


def _difference(a: Evaluation, b: Evaluation, scorer: Scorer) -> tuple[Comparison, float]:
    """The comparison and the p value of its mean, on all cells or on those that both budgets chose without looking at answers."""
    a_KN, b_KN = a.scores[scorer].values_KN, b.scores[scorer].values_KN
    if a.spent.whole and b.spent.whole:
        groups_N = a.scores[scorer].groups_N
        return compare(a_KN, b_KN, a.level, groups_N), mean_p(a_KN - b_KN, groups_N)
    both_KN = a.spent.sampled_KN & b.spent.sampled_KN
    a_KN, b_KN = (np.where(both_KN, values_KN, np.nan) for values_KN in (a_KN, b_KN))
    return compare_few(a_KN, b_KN, max(a.spent.level, b.spent.level)), mean_p(a_KN - b_KN)


def _single_prompt(config: RunConfig, m: Materials) -> dict[str, Any] | None:
    """The prompt of the first arm that trains on one, so that the report can show it."""
    for name in config.arms:
        settings = config.training_of(name)
        if settings is not None and settings.schedule.kind == "fixed":
            wanted = settings.schedule.prompt
            if settings.schedule.search is not None:
                continue
            for position, template in enumerate(train_grid(m.prompts, (), settings, config.seed).templates):
                if wanted in (position, template.id):
                    return _shown(template, m.test[0])
    return None


def _shown(template: Template, example: Example) -> dict[str, Any]:
    surfaces = template.answer.surfaces(example)
    return {"id": template.id, "system": template.system, "text": template.text, "answers": list(surfaces)}


def write_cells(folder: RunDir, evaluations: Mapping[str, Evaluation]) -> None:
    """scores.parquet: a row for every cell of every arm."""
    import pyarrow
    import pyarrow.parquet

    tables = [pyarrow.table(cell_table(name, done)) for name, done in evaluations.items()]
    scratch = folder.scores.with_suffix(".tmp")
    with disk_errors(folder.scores):
        pyarrow.parquet.write_table(pyarrow.concat_tables(tables, promote_options="default"), scratch)
        os.replace(scratch, folder.scores)


def environment() -> dict[str, Any]:
    """Versions and machine, as far as they can change a figure."""
    names = ("torch", "transformers", "peft", "accelerate", "numpy", "scipy")
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
    }
    found |= {name: metadata.version(name) for name in names}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["threads"] = torch.get_num_threads()
        found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return found
