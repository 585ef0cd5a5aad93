"""GSM8K's own way to judge, written anew, against `answer: {wrap: "#### {answer}", of: number}`, on the solutions of its test rows."""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path

import pytest

from paft.tasks.answers import answer_format_from
from paft.tasks.table import TASKS
from paft.tasks.types import Example

ROWS = Path(__file__).parents[3] / "shared" / "data" / "gsm8k.test.jsonl.gz"
MARK = re.compile(r"#### (\-?[0-9\.\,]+)")


def original(completion: str, solution: str) -> bool:
    """The number after the mark, commas taken out, equal as text; no mark: wrong."""
    found, gold = MARK.search(completion), MARK.search(solution)
    assert gold is not None
    return found is not None and found[1].replace(",", "") == gold[1].replace(",", "")


@pytest.mark.skipif(not ROWS.exists(), reason="GSM8K's rows are not here")
def test_verdicts_are_those_of_the_original_grader():
    """Right solutions, those of other questions, numbers changed, with thousands parted, without the mark."""
    with gzip.open(ROWS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    answer, rng = answer_format_from({"wrap": "#### {answer}", "of": "number"}), random.Random(0)
    judged = {True: 0, False: 0}
    for row in rows:
        fields, choices, gold = TASKS["gsm8k"].hub.convert(row)
        example = Example("e", fields, choices, gold, is_open=True)
        solution = row["answer"]
        said = [
            solution,
            rng.choice(rows)["answer"],
            MARK.sub(f"#### {int(float(choices[0])) + 1}", solution),
            MARK.sub(f"#### {int(float(choices[0])):,}", solution),
            solution.replace("####", "so"),
            solution + "\n",
        ]
        for text in said:
            wanted = original(text, solution)
            assert (answer.parse(text, example).choice == 0) == wanted, (row["question"][:60], text[-40:])
            judged[wanted] += 1
    assert sum(judged.values()) == 6 * 1319
    assert min(judged.values()) > 2500
