"""Answers that are plans: how they are read, what they are worth, and that scores by different embedding models do not mix."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.config import load_run_config
from paft.errors import AssetError, ConfigError, DataError, TemplateError
from paft.evaluation.budget import Spent
from paft.evaluation.evaluate import Evaluation, cell_table, score_matrix
from paft.evaluation.matrix import INVALID
from paft.finished import compare_runs, load_tables
from paft.grid import Grid
from paft.lm.types import Answered, Completion
from paft.materials import prepare
from paft.prompts.template import Template
from paft.store import RunDir
from paft.tasks import load_task
from paft.tasks.answers import OTHER, Parsed, Plan, Wrapped, answer_format_from, answer_format_to
from paft.tasks.embeddings import judge_by, judged_by
from paft.tasks.plans import Call, likeness, read_list, read_steps, write_steps
from paft.tasks.table import TASKS
from paft.tasks.types import Example
from paft.training.rewards import correct, well_formed
from tests import tiny

FIND, SORT, MAIL = Call("Shop.find", "{'thing': 'a lamp'}"), Call("List.sort", "{}"), Call("Mail.send", "{'to': 'Ann'}")
GOLD = (FIND, SORT, MAIL)
OTHERS = Call("Weather.now", "{'town': 'Oslo'}")


def as_list(*calls: Call) -> str:
    steps = [{"id": n, "name": call.name, "args": call.arguments} for n, call in enumerate(calls)]
    return json.dumps(steps)


def example(*calls: Call) -> Example:
    fields = {"request": "r", "tools": "t", "names": "Shop.find\nList.sort\nMail.send\nShop.find_all"}
    return Example("e", fields, (as_list(*(calls or GOLD)),), 0, is_open=True)


@pytest.fixture(autouse=True)
def judge():
    """Texts are alike when they are the same, and not at all when they are not."""
    judge_by(tiny.embed_by_text, "by text")
    yield
    judge_by(None)


@pytest.mark.parametrize(
    ("plan", "worth"),
    [
        (GOLD, 1.0),
        ((FIND, SORT), 4 / 5),  # 2 of 2 and 2 of 3: 2 * 2 / (2 + 3)
        ((FIND, SORT, MAIL, OTHERS), 6 / 7),
        ((FIND, OTHERS, MAIL), 4 / 6),
        ((SORT, FIND, MAIL), 4 / 6),  # one of the two that changed places stands in order
        ((MAIL, SORT, FIND), 2 / 6),
        ((FIND, SORT, Call("Mail.send", "{'to': 'Bob'}")), 4 / 6),  # the name alone weighs 0.75, too little
        ((FIND, SORT, Call("Mail.post", MAIL.arguments)), 4 / 6),
        ((*GOLD, Call("FinishAction", "{}")), 1.0),
        ((Call("FinishAction", "{}"), *GOLD), 6 / 7),  # it ends a plan only where it is the last
        ((Call("FinishAction", "{}"),), 0.0),
        ((OTHERS,), 2 / 4),  # one call counts, whatever it is: so has it the original grader
        ((OTHERS, OTHERS), 2 / 5),
        ((FIND, FIND, SORT, MAIL), 6 / 7),  # one to one: the second is one too many
    ],
)
def test_what_a_plan_is_worth(plan, worth):
    assert likeness(tuple(plan), GOLD) == pytest.approx(worth)


def test_calls_that_are_the_same_are_matched_in_order():
    gold = (FIND, SORT, FIND, SORT, FIND, MAIL)
    assert likeness(gold, gold) == 1
    assert likeness(gold[1:], gold) == pytest.approx(10 / 11)
    assert likeness((*gold, FIND), gold) == likeness((MAIL, *gold), gold) == pytest.approx(12 / 13)


@pytest.mark.parametrize(("cosine", "worth"), [(0.3, 1.0), (0.21, 1.0), (0.2, 2 / 4), (0.1, 2 / 4), (-0.9, 2 / 4)])
def test_a_call_is_matched_above_four_fifths(cosine, worth):
    """0.75 for the same name and a quarter of the cosine of the arguments: 0.2 is not above 0.8. One of two counts anyway."""
    angle = np.arccos(cosine)
    known = {"x": (1, 0, 0), "y": (np.cos(angle), np.sin(angle), 0), "A": (0, 0, 1), "B": (1, 0, 0)}
    judge_by(lambda texts: np.array([known[text] for text in texts]), "by angle")
    assert likeness((Call("B", "x"), Call("A", "x")), (Call("B", "x"), Call("A", "y"))) == worth


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 10**6))
def test_the_matching_is_the_best_of_all(rows, columns, seed):
    """Against every matching there is, and every part of it that rises."""
    generator = np.random.default_rng(seed)
    angles = dict(zip("abcdefghABCDEFGH", generator.uniform(0, 0.9, 16), strict=True))
    judge_by(lambda texts: np.array([(np.cos(angles[t]), np.sin(angles[t])) for t in texts]), "by angle")
    plan = tuple(Call("abcd"[i], "efgh"[i]) for i in range(rows))
    gold = tuple(Call("ABCD"[i], "EFGH"[i]) for i in range(columns))
    weight = [
        [
            0.75 * np.cos(angles[p.name] - angles[g.name]) + 0.25 * np.cos(angles[p.arguments] - angles[g.arguments])
            for g in gold
        ]
        for p in plan
    ]
    best, count = -1.0, 0
    for places in itertools.product([None, *range(columns)], repeat=rows):
        used = [place for place in places if place is not None]
        pairs = [(i, place) for i, place in enumerate(places) if place is not None]
        if len(set(used)) < len(used) or any(weight[i][place] <= 0.8 for i, place in pairs):
            continue
        total = sum(weight[i][place] for i, place in pairs)
        if total > best:
            best = total
            count = max(
                size
                for size in range(len(used) + 1)
                for part in itertools.combinations(used, size)
                if list(part) == sorted(part)
            )
    assert likeness(plan, gold) == pytest.approx(2 * max(1, count) / (rows + columns))


LIST = as_list(*GOLD)


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (LIST, GOLD),
        (f"Of course.\n```json\n{LIST}\n```\nThat is all.", GOLD),
        (f"Here: {LIST} Done.", GOLD),
        ('[{"id": 0, "name": "List.sort", "args": {}}]', (SORT,)),
        ("[{'id': 0, 'name': 'Shop.find', 'args': {'thing': 'a lamp'}}]", (FIND,)),
        ("[{'id': 0, 'name': 'Mail.send', 'args': {'to': 'Ann', 'now': true}}]", (Call("Mail.send", "{'to': 'Ann', 'now': True}"),)),
        ('[{"id": 2, "name": "b", "args": 1}, {"id": "1", "name": "a", "args": null}]', (Call("a", "None"), Call("b", "1"))),
        ('[{"id": 0, "name": "a", "args": "\\ud800"}]', (Call("a", "?"),)),
        ('[{"id": 0, "name": "a", "args": "\\d"}]', (Call("a", "\\d"),)),
        (f"Steps [draft]: {LIST}", None),
        (LIST[:-4], None),
        ("[]", None),
        ("", None),
        ("I cannot do that.", None),
        ('{"id": 0, "name": "a", "args": {}}', None),
        ('[{"name": "a", "args": {}}]', None),
        ('[{"id": "first", "name": "a", "args": {}}]', None),
        ('[{"id": 1e999, "name": "a", "args": {}}]', None),
        ('["Shop.find"]', None),
        ("[" * 100_000, None),
        ("[" * 5_000 + "]" * 5_000, None),
    ],
)  # fmt: skip
def test_how_a_list_is_read(text, calls):
    assert read_list(text) == calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (write_steps(GOLD), GOLD),
        ("First I look around.\n- Shop.find {'thing': 'a lamp'}\n\nThen List.sort.\nMail.send({'to': 'Ann'})", GOLD),
        ('1. Use Mail.send with {"to": "Ann"}', (MAIL,)),
        ("Use Shop.find_all with {}", (Call("Shop.find_all", "{}"),)),  # the longest of the names that begin there
        ("Use List.sort, not Mail.send", (SORT,)),
        ("Use List.sort with {what it found}", (Call("List.sort", "{what it found}"),)),
        ("Use a shop.", None),
        ("", None),
    ],
)
def test_how_steps_are_read(text, calls):
    assert read_steps(text, example().fields["names"].split("\n")) == calls


@pytest.mark.parametrize("inner", [Plan(), Plan("steps")], ids=["plan", "steps"])
@pytest.mark.parametrize("wrap", [None, "<plan>{answer}</plan>", "BEGIN\n{answer}\nEND", '{"plan": "{answer}"}'])
def test_the_right_answer_as_a_prompt_wants_it_written_is_fully_right(inner, wrap):
    answer = Wrapped(wrap, inner) if wrap else inner
    (surface,) = answer.surfaces(example())
    assert answer.parse(surface, example()) == Parsed("valid", 0, 1.0)
    assert answer.parse(f"Of course.\n{surface}\nDone.", example()) == Parsed("valid", 0, 1.0)
    assert not answer.settled(surface, example())
    assert answer_format_from(answer_format_to(answer)) == answer
    assert answer.parse("Mail it.", example()) == Parsed("invalid", None)


def test_a_plan_inside_json_may_be_a_list():
    answer = Wrapped('{"plan": "{answer}"}', Plan())
    assert answer.parse(f'{{"plan": {LIST}}}', example()) == Parsed("valid", 0, 1.0)


def test_a_wrap_without_an_end_is_refused():
    with pytest.raises(TemplateError, match="code and plans have many lines"):
        Wrapped("Plan: {answer}", Plan())


def test_an_example_without_a_plan_is_refused():
    for wrong in (Example("e", {"text": "a"}, ("x", "y"), 0), Example("e", {"names": "a"}, ("42",), 0, is_open=True)):
        with pytest.raises(TemplateError, match="need an open answer that is a JSON list of calls"):
            Plan().surfaces(wrong)


def test_partly_right_is_another_answer_with_a_score():
    parsed = Plan().parse(as_list(FIND, SORT), example())
    assert parsed == Parsed("valid", OTHER, pytest.approx(0.8))
    template = Template("{request} {tools}", Plan())
    assert correct(example(), template, as_list(FIND, SORT)) == pytest.approx(0.8)
    assert (correct(example(), template, "no"), well_formed(example(), template, "no")) == (0, 0)
    assert well_formed(example(), template, as_list(OTHERS, SORT)) == 1


def test_no_plan_is_judged_by_nobody():
    judge_by(None)
    assert judged_by() == ""
    with pytest.raises(ConfigError, match=r"evaluate\.embeddings"):
        Plan().parse(LIST, example())


def test_another_judge_judges_anew():
    other = (FIND, Call("List.order", "{}"))
    assert likeness(other, GOLD) == pytest.approx(2 / 5)
    judge_by(lambda texts: np.ones((len(texts), 1)), "all alike")
    assert (likeness(other, GOLD), judged_by()) == (pytest.approx(4 / 5), "all alike")


def test_a_run_says_which_model_judges_before_anything_is_asked():
    given = ["evaluate.split=test", "evaluate.scorers=[generation]", "evaluate.embeddings=./none/such"]
    config = load_run_config(None, given, {"task": "teval-plan", "model": "x", "arms": {"b": {}}})
    with pytest.raises(AssetError, match=r"evaluate\.embeddings: model '\./none/such': no such file"):
        prepare(config)


def test_a_template_shows_request_and_tools_only():
    task = load_task("teval-plan")
    Template("{request}\n{tools}", Plan()).check(task)
    Template("{request}\n{tools}", Plan("steps")).check(task)
    with pytest.raises(TemplateError, match=r"slot \{names\} is not a field"):
        Template("{request}\n{tools}\n{names}", Plan()).check(task)
    with pytest.raises(TemplateError, match="expected answer: plan or steps, or a wrap of it"):
        Template("{request}\n{tools}", answer_format_from("number")).check(task)


def scored(said: list[list[str]]) -> Evaluation:
    templates = [Template(f"Wording {k}: {{request}} {{tools}}", Plan()) for k in range(len(said))]
    grid = Grid(templates, [Example(f"e{i}", dict(example().fields), (LIST,), 0, True) for i in range(len(said[0]))])
    rows = tuple(tuple(Answered((), (), (), 9, False, Completion(text, 2, "eos")) for text in row) for row in said)
    scores = {"generation": score_matrix(grid, rows, "generation")}
    bought_KN = np.ones(grid.shape, dtype=bool)
    spent = Spent("full", bought_KN, bought_KN.size, 0.95)
    return Evaluation(grid, "print", scores, rows, 0.95, (0.5,), spent, bought_KN.size)


SAID = [[LIST, as_list(FIND, SORT), "no"], [as_list(OTHERS), LIST, LIST], [LIST, LIST, LIST]]


def test_a_table_of_parts():
    done = scored(SAID)
    matrix = done.scores["generation"]
    assert matrix.values_KN == pytest.approx(np.array([[1, 0.8, 0], [0.5, 1, 1], [1, 1, 1]]))
    assert matrix.answers_KN.tolist() == [[0, OTHER, INVALID], [OTHER, 0, 0], [0, 0, 0]]
    assert matrix.judge == "by text"
    for estimate in done.estimates("generation").values():
        assert not np.isnan(estimate.value)
    assert done.estimates("generation")["mean"].value == pytest.approx(7.3 / 9)


def test_a_plan_may_have_as_many_tokens_as_in_the_original():
    templates = [Template("{request} {tools}", answer) for answer in (Plan(), Plan("steps"))]
    assert Grid(templates, [example()]).answer_limits(tiny.hf_model().count_tokens) == [1024] * 2


def test_scores_by_different_embedding_models_are_not_compared(tmp_path):
    def written(name: str) -> str:
        folder = RunDir(tmp_path / name)
        folder.root.mkdir()
        pyarrow.parquet.write_table(pyarrow.table(cell_table("a", scored(SAID))), folder.scores)
        return str(folder.root)

    first, again = written("first"), written("again")
    judge_by(lambda texts: np.ones((len(texts), 1)), "all alike")
    other = written("other")
    table = load_tables(Path(first))["a"]["generation"]
    assert (table.judge, table.values_KN[0, 1]) == ("by text", pytest.approx(0.8))
    compare_runs([first, again])
    with pytest.raises(DataError, match="embedding model or rule all alike, the others by by text; score both"):
        compare_runs([first, other])


ROWS = Path(__file__).parents[3] / "shared" / "data" / "teval.plan_json_v1.json.gz"


@pytest.mark.skipif(not ROWS.exists(), reason="T-Eval's rows are not here")
def test_all_public_plans_can_be_read_and_are_fully_right():
    with gzip.open(ROWS, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    parts = [TASKS["teval-plan"].hub.convert(each) for each in rows.values()]
    assert len(parts) == 553
    for (fields, choices, answer), row in zip(parts, rows.values(), strict=True):
        one = Example("e", fields, choices, answer, is_open=True)
        assert sorted(fields["names"].split("\n")) == sorted(row["meta"]["API_list"])
        gold = read_list(json.dumps(row["ground_truth"]))
        assert gold is not None
        assert read_list(choices[0]) == gold[:-1]
        for form in (Plan(), Plan("steps")):
            assert form.parse(form.surfaces(one)[0], one) == Parsed("valid", 0, 1.0), fields["request"]
