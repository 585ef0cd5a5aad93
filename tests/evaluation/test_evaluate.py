"""Asking the cells of a grid: what is bought once stays bought, and what a table tells of itself."""

from __future__ import annotations

import json
import sqlite3
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paft import results
from paft.config import EvalConfig, RunConfig, dump_yaml
from paft.errors import ConfigError
from paft.evaluation import evaluate, metrics
from paft.evaluation.evaluate import EXCHANGED, Asker, cell_table
from paft.evaluation.matrix import ALONE
from paft.evaluation.stats import compare, mean_estimate
from paft.grid import Grid
from paft.lm.fake import FakeLM
from paft.lm.ranks import Ranks
from paft.materials import prepare
from paft.prompts import PromptSet, Template
from paft.store import CellStore
from paft.tasks import Example, load_task
from paft.tasks.answers import ChoiceText, Code, Expression, Labels, Number, Wrapped
from tests import tiny

FREE = EvalConfig(scorers=["generation"])


def items(count: int, longest: int = 0) -> list[Example]:
    """Examples with two choices of two words; in every hundredth one has `longest` words more."""
    return [
        Example(f"e{i}", {"text": f"item {i}"}, (f"no {i}", f"yes {i}" + " so" * (longest * (i % 100 == 99))), i % 2)
        for i in range(count)
    ]


def templates(*answers: Any) -> list[Template]:
    return [Template(f"Wording {k}: {{text}}", answer=answer) for k, answer in enumerate(answers)]


def test_more_examples_do_not_move_the_limit_of_an_answer(tmp_path: Path) -> None:
    """The longest answer is among the examples that the first run leaves out."""
    rows = [
        {"text": f"item {i}", "options": [f"no {i}", f"yes {i}" + " indeed" * (12 * (i < 8))], "label": i % 2}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    task = {"name": "long", "fields": ["text"], "choices_from": "options", "answer": "label"}
    files = {"files": dict.fromkeys(("train", "validation", "test"), "rows.jsonl")}
    (tmp_path / "task.yaml").write_text(dump_yaml({**task, **files}), encoding="utf-8")
    texts = {"train": ["A {text}", "B {text}"], "dev": ["C {text}"], "test": ["D {text}", "E {text}"]}
    sets = {split: [{"text": text, "answer": "text"} for text in each] for split, each in texts.items()}
    (tmp_path / "prompts.yaml").write_text(dump_yaml({"task": "long", **sets}), encoding="utf-8")
    given = {"task": str(tmp_path / "task.yaml"), "prompts": str(tmp_path / "prompts.yaml"), "model": "some/model"}

    def asked(examples: int, store: CellStore) -> tuple[int, bool]:
        scored = {"scorers": ["generation"], "examples": examples, "also": ["train"]}
        m = prepare(RunConfig(**given, arms={"base": {}}, evaluate=scored))
        grids = m.grid, m.others["train"]
        done = [evaluate(FakeLM(), grid, FREE, store).asked for grid in grids]
        return sum(done), any("indeed" in example.choices[1] for example in m.grid.examples)

    with CellStore(tmp_path / "cells.sqlite") as store:
        assert asked(5, store) == (20, False)
        assert asked(60, store) == (4 * 55, True)


def test_a_settled_answer_is_kept_for_what_settled_it_alone() -> None:
    """One prompt may be read in two ways, and one example take other texts: the answer stops elsewhere."""
    coloured = Example("e", {"text": "red"}, ("red", "blue"), 0)
    paris = Example("e", {"text": "red"}, ("Paris",), 0, True)
    asked = [(Labels(), coloured), (ChoiceText(), coloured), (ChoiceText(), paris)]
    asked += [(ChoiceText(), replace(paris, score="f1")), (ChoiceText(), replace(paris, accepted=("the Seine",)))]
    keys = set()
    for answer, example in asked:
        grid = Grid([Template("Say {text}", answer)], [example])
        asker = Asker(FakeLM(), grid, FREE.model_copy(update={"stop": "settled", "max_new_tokens": 9}))
        keys |= set(asker._parts(0, 0))
    assert len(keys) == len(asked)


def test_the_limit_is_that_of_the_longest_answer_to_any_example_of_the_population() -> None:
    few, many = items(20), items(200, longest=7)
    three = Example("three", {"text": "x"}, ("a b", "c d", "e " * 40), 0)
    wrapped = Wrapped("say {answer} now", ChoiceText())
    asked = templates(ChoiceText(), Labels(), wrapped, Labels(("red one", "blue")), ChoiceText(), Code())
    assert Grid(asked, few).answer_limits(FakeLM().count_tokens) == [2 + 4, 1 + 4, 4 + 4, 2 + 4, 2 + 4, 512]
    assert Grid(asked, few, many).answer_limits(FakeLM().count_tokens) == [9 + 4, 1 + 4, 11 + 4, 2 + 4, 9 + 4, 512]
    # a format that serves no such example has none of its answers
    assert Grid(asked, few, [*many, three]).answer_limits(FakeLM().count_tokens)[:4] == [40 + 4, 1 + 4, 42 + 4, 2 + 4]


def test_a_short_number_or_expression_may_stand_in_a_sentence() -> None:
    """Cut after its right answer's tokens and 4, "The answer is 12." is read as 1."""
    short, long = ([Example("e", {"text": "x"}, (answer,), 0, is_open=True)] for answer in ("12", "1 + " * 20 + "1"))
    for answer in (Number(), Expression(), Wrapped("so {answer} .", Number())):
        assert Grid(templates(answer), short).answer_limits(FakeLM().count_tokens) == [16]
    assert Grid(templates(Expression()), long).answer_limits(FakeLM().count_tokens) == [41 + 4]


def test_open_answers_are_not_scored_by_choice() -> None:
    grid = Grid(templates(Number()), [Example(f"{n}", {"text": "sum?"}, ("7",), 0, is_open=True) for n in range(4)])
    with pytest.raises(ConfigError, match=r"example '0' has open answers.*scorers=\[generation\]"):
        evaluate(FakeLM(), grid, EvalConfig())


def test_a_limit_given_is_kept_and_limits_of_one_format_are_counted_once() -> None:
    counted: list[str] = []

    class Counting(FakeLM):
        def count_tokens(self, text: str) -> int:
            counted.append(text)
            return super().count_tokens(text)

    grid = Grid(templates(*[ChoiceText()] * 50), items(2), items(10_000, longest=3))
    assert Asker(Counting(), grid, FREE.model_copy(update={"max_new_tokens": 3})).longest == 3
    assert not counted
    assert Asker(Counting(), grid, FREE).longest == 9
    assert len(counted) == 20  # not 20 for each of 50 prompts


@dataclass(frozen=True)
class Together(Ranks):
    """Ranks that are threads of this process. gathered: how many answers each exchange brought from every rank."""

    held: list[Any] = field(default_factory=list)
    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    gathered: list[list[int]] = field(default_factory=list)

    def share(self, value: Any) -> Any:
        return self.gather(value)[0]

    def gather(self, value: Any) -> list[Any]:
        self.held[self.rank] = value
        self.barrier.wait(60)
        found = list(self.held)
        self.barrier.wait(60)
        if self.rank == 0 and isinstance(value, tuple):
            self.gathered.append([len(answers) for answers, _ in found])
        return found


def test_answers_of_other_processes_are_kept_after_few_of_them(tmp_path: Path) -> None:
    """The first process alone writes; what the others answer between two exchanges is what a kill takes from them."""
    grid = Grid(templates(Labels(), Labels()), items(2000))
    config = EvalConfig(scorers=["likelihood"])
    common: list[Any] = [[None, None], threading.Barrier(2), []]
    found: list[Any] = [None, None]

    def work(rank: int) -> None:
        with CellStore(tmp_path / f"{rank}.sqlite") as store:
            mine = store if rank == 0 else None
            found[rank] = evaluate(FakeLM(), grid, config, mine, ranks=Together(rank, 2, *common))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    alone = evaluate(FakeLM(), grid, config).scores["likelihood"]
    for done in found:
        assert (done.scores["likelihood"].values_KN == alone.values_KN).all()
    exchanges = common[2]
    assert np.sum(exchanges, axis=0).tolist() == [2000, 2000]
    assert max(map(max, exchanges)) <= EXCHANGED
    assert len(exchanges) == 4  # of 512 + 512 cells: no smaller than that either


def world(prefer: Any = None, reference: int | None = 1, examples: int = 12) -> Any:
    """A whole table of 5 prompts by both scorers."""
    grid = Grid(templates(*[Labels()] * 5), items(examples))
    return evaluate(FakeLM(prefer), grid, EvalConfig(reference=reference))


def test_a_whole_table_tells_where_its_differences_come_from() -> None:
    done = world()
    gold_N = np.array([example.answer for example in done.grid.examples])
    for scorer, matrix in done.scores.items():
        summary = json.loads(json.dumps(done.summary(scorer)))
        told, estimates = summary["differences"], summary["estimates"]
        components = told["components"]
        assert components["raw_sd"] == pytest.approx(summary["raw_sd"])
        assert components["prompt_sd"] == estimates["prompt_sd"]
        squared = components["s2_prompt"]["value"] + components["noise_floor"] ** 2
        assert squared == pytest.approx(summary["raw_sd"] ** 2)
        assert sum(components["shares"].values()) == pytest.approx(1)
        assert components["equality"]["freedom"] == 4
        assert told["worst"]["raw"] == pytest.approx(min(summary["accuracy_K"]))
        assert told["worst"]["raw"] <= told["worst"]["split_half"]
        assert told["entropy"] == metrics.sensitivity_entropy(matrix.answers_KN, 2).value
        split = metrics.flips(matrix.answers_KN, gold_N, 1)
        assert told["flips"]["right_to_wrong"] == pytest.approx(split.right_to_wrong.mean())
        assert told["flips"]["wrong_to_right"] == pytest.approx(split.wrong_to_right.mean())
        assert sum(told["flips"].values()) == pytest.approx(estimates["flips"]["value"])


def test_what_a_table_cannot_tell_is_none() -> None:
    told = world(reference=None, examples=3).summary("likelihood")["differences"]
    assert (told["worst"], told["flips"]) == (None, None)  # halves need 4 examples
    grid = Grid(templates(*[Labels()] * 5), items(40))
    part = evaluate(FakeLM(), grid, EvalConfig.model_validate({"budget": {"kind": "balanced", "cells": 100}}))
    assert part.summary("likelihood")["differences"] is None


def test_a_budget_for_the_mean_is_judged_as_the_mean_is_printed() -> None:
    """Five questions to a passage, answered alike: a width that single questions would have is not reached."""
    examples = [replace(example, group=f"passage {n // 5}") for n, example in enumerate(items(150))]
    grid = Grid(templates(*[Labels()] * 5), examples)

    def prefer(question: Any) -> int:
        wording, n = (int(word.strip(":")) for word in question.chat[-1].text.split() if word.strip(":").isdigit())
        return (n + (n // 5 % 3 == 0) + ((7 * wording + n) % 11 == 0)) % 2

    def bought(**budget: Any) -> Any:
        settings = {"scorers": ["likelihood"], "budget": budget}
        return evaluate(FakeLM(prefer), grid, EvalConfig.model_validate(settings))

    single = mean_estimate(bought(kind="full").scores["likelihood"].values_KN)
    done = bought(kind="adaptive", half_width={"mean": 1.01 * (single.high - single.low) / 2})
    assert (done.spent.whole, done.spent.missed) == (True, ("mean",))
    assert "in 30 clusters" in done.estimates("likelihood")["mean"].method
    part = bought(kind="balanced", cells=300).estimates("likelihood")
    assert part["mean"].method.endswith(ALONE)
    assert part["invalid"].method.endswith(ALONE)


def test_pairs_of_a_run_are_adjusted_together() -> None:
    """Of 3 arms and 2 scorers, the 3 pairs of one scorer are a family."""
    done = {
        "base": world(),
        "right": world(lambda question: int(question.chat[-1].text.split()[-1]) % 2),
        "first": world(lambda question: 0),
    }
    found = results.comparisons(done)
    for scorer in ("likelihood", "generation"):
        family = [each for each in found if each["scorer"] == scorer]
        assert [(each["a"], each["b"]) for each in family] == [("right", "base"), ("first", "base"), ("first", "right")]
        tables = [
            (done[each["a"]].scores[scorer].values_KN, done[each["b"]].scores[scorer].values_KN) for each in family
        ]
        assert [each["mean"] for each in family] == [compare(*pair).mean.to_dict() for pair in tables]
        least = min(family, key=lambda each: each["p"])
        assert 0 < least["p"] < 0.05
        assert least["p_holm"] == pytest.approx(min(1, 3 * least["p"]))
        assert all(each["p"] <= each["p_holm"] <= 1 for each in family)
    assert results.comparisons({}) == []
    assert results.comparisons({"base": done["base"]}) == []


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("kind", ["llama", "mamba"])  # one shares beginnings, the other computes every text by itself
def test_what_a_kill_leaves_of_a_small_table_is_all_that_passes_have_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Free answers of a small table are decoded together, at the end; scores do not wait for them."""
    monkeypatch.setattr(CellStore, "SHARE", 1e9)
    task = load_task(str(tiny.write_task(tmp_path / "data", rows=12)))
    grid = Grid(PromptSet.load(str(tiny.write_prompts(tmp_path))).test, task.split("train").examples[:6])
    config, file = EvalConfig(batch_tokens=64), tmp_path / "cells.sqlite"
    whole = evaluate(tiny.hf_model(kind), grid, config)
    cells = grid.shape[0] * grid.shape[1]

    def parts() -> tuple[int, int]:
        with sqlite3.connect(file) as db:
            free = db.execute("SELECT count(*) FROM cells WHERE max_new_tokens > 0").fetchone()[0]
            return db.execute("SELECT count(*) FROM cells").fetchone()[0] - free, free

    def tick(finished: int, total: int, what: str) -> None:
        if finished == 1:
            raise Killed

    with CellStore(file) as store:
        with pytest.raises(Killed):
            evaluate(tiny.hf_model(kind), grid, config, store, tick)
        assert parts() == (cells, 1)
    with CellStore(file) as store:
        again = evaluate(tiny.hf_model(kind), grid, config, store)
    assert again.asked == cells - 1
    assert again.tokens_read < whole.tokens_read
    for row, other in zip(again.answers_KN, whole.answers_KN, strict=True):
        for one, two in zip(row, other, strict=True):
            assert one is not None
            assert two is not None
            assert replace(one, logp_C=two.logp_C) == two
            assert one.logp_C == pytest.approx(two.logp_C, abs=1e-4)


def test_every_cell_is_kept_with_all_that_its_scores_rest_on() -> None:
    grid = Grid(templates(ChoiceText(), Labels()), items(3))
    done = evaluate(FakeLM(fingerprint="weights"), grid, EvalConfig())
    cells = cell_table("base", done)
    assert len({len(column) for column in cells.values()}) == 1
    assert set(cells["fingerprint"]) == {"weights"}
    assert cells["logp_tokens"] == [[2, 2]] * 3 + [[1, 1]] * 3
    assert cells["logp_bytes"] == [[4, 5]] * 3 + [[1, 1]] * 3
    answers = [answered for row in done.answers_KN for answered in row]
    assert cells["seam"] == [answered.seam for answered in answers]
    assert cells["seconds"] == [answered.seconds for answered in answers]
    free = cell_table("base", evaluate(FakeLM(), grid, FREE))
    assert free["logp_tokens"] == free["logp_bytes"] == [[]] * 6
