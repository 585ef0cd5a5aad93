"""Answers that are free texts: which part of a completion is read, what it is worth, and every room that such a task passes through."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from paft import pipeline
from paft.cli import app
from paft.config import dump_yaml, load_run_config
from paft.errors import AssetError, ConfigError, DataError
from paft.evaluation.evaluate import cell_table
from paft.evaluation.matrix import INVALID
from paft.finished import compare_runs
from paft.grid import Grid
from paft.integrations.harness import with_limit
from paft.lm.types import Answered, Completion
from paft.materials import prepare
from paft.prompts.auditing import faults_of
from paft.prompts.strategies import rules_of
from paft.prompts.template import Template
from paft.store import RunDir
from paft.tasks import load_task
from paft.tasks.answers import OTHER, ChoiceText, Labels, Number, Parsed, Wrapped, answer_format_from, answer_format_to
from paft.tasks.embeddings import judge_by
from paft.tasks.texts import normalized, token_f1
from paft.tasks.types import Example, TextScore
from paft.training.rewards import correct, well_formed
from paft.watch import LineWatcher
from tests import tiny

TEXT = ChoiceText()
TAG, JSON, QUOTE, CUE = "<answer>{answer}</answer>", '{"answer": "{answer}"}', '"{answer}"', "Answer: {answer}"


@pytest.fixture(autouse=True)
def judge():
    """Texts are alike when they are the same, and hardly at all when they are not."""
    judge_by(tiny.embed_by_text, "by text")
    yield
    judge_by(None)


def item(*accepted: str, score: TextScore = "exact") -> Example:
    first, *more = accepted or ("Old Town", "the old city")
    return Example("e", {"q": "where?"}, (first,), 0, is_open=True, accepted=tuple(more), score=score)


def worth(answer: Any, completion: str, example: Example) -> Any:
    parsed = answer.parse(completion, example)
    return parsed.status if parsed.choice is None else round(parsed.worth(example), 4)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The  Old\nTown!", "old town"), ("U.S.A.", "usa"), ("a cat, an owl & the dog", "cat owl dog"), ("theatre", "theatre"),
        ("co-operate", "cooperate"), ("A", "a"), ("\"The\".", "the"), ("A the", "a the"), ("$", "$"), (" ... ", "..."), ("", ""), ("Cafe\u0301", "caf\u00e9"),
        ("«Paris»", "«paris»"), ("\ud800 the", "\ud800"), ("{0.__class__}", "0class"),
    ],
)  # fmt: skip
def test_what_is_left_of_a_text(text, plain):
    assert normalized(text) == plain


@given(st.text())
@example("C:\u0327")
@example("\u0130")
@example("the\u0327")
def test_a_text_is_itself_whatever_it_is(text):
    assert normalized(normalized(text)) == normalized(text) or normalized(text) == " ".join(text.lower().split())
    if text.strip():
        assert token_f1(text, text) == 1


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("Old Town", 1), ("the old town.", 1), ("**Old Town**", 1), ("the old city", 1), ("\n\n Old  Town \n\nIt lies uphill.", 1),
        ("The answer is Old Town.", 1), ("The correct answer is: **Old Town**\n", 1), ("Answer: Old Town", 1), ("So my final answer is Old Town!", 1),
        ("**Answer:** the Old City", 1), ("Of course! Here it is:\n\nOld Town", 1), ("The answer is\nOld Town", 1), ("```\nOld Town\n```", 1),
        ("```text\nOld Town", 1), ("<think>New Town?\nNo.</think>\n\nOld Town", 1), ("New Town?\nNo.</think>\n\nOld Town", 1),
        ("New Town", 0), ("It is the Old Town, I think.", 0), ("New Town\nOld Town", 0), ("Old Town or New Town", 0), ("The answer is not Old Town", 0),
        ("Town", 0), ("oldtown", 0), ("...", 0), ("Sure:", 0), ("{0.__class__} {A}", 0), ("\ud800", 0),
        ("", "invalid"), (" \n\t\n", "invalid"), ("```\n```", "invalid"), ("<think>Old Town", "invalid"), ("<think>\n</think>", "invalid"),
    ],
)  # fmt: skip
def test_the_first_line_that_says_anything_answers(completion, found):
    assert worth(TEXT, completion, item()) == found


def test_a_text_that_begins_like_a_lead_is_still_itself():
    assert worth(TEXT, "The answer is blowing in the wind", item("The answer is blowing in the wind")) == 1
    assert worth(TEXT, "Solution: acid", item("solution acid")) == worth(TEXT, "Solution: acid", item("acid")) == 1


@pytest.mark.parametrize(
    ("completion", "found"),
    [
        ("Old Town", 1), ("in the old town", 0.8), ("old city", 1), ("city", 0.6667), ("New Town", 0.5), ("nowhere", 0), ("", "invalid"),
        ("The answer is in the old town", 0.8), ("old old old town", 0.6667), ("town old", 1),
    ],
)  # fmt: skip
def test_words_that_are_shared_count_by_f1(completion, found):
    assert worth(TEXT, completion, item(score="f1")) == found
    parsed = TEXT.parse("in the old town", item(score="f1"))
    assert (parsed.status, parsed.choice, parsed.score) == ("valid", OTHER, pytest.approx(0.8))


def test_where_an_accepted_text_has_lines_all_of_a_completion_answers():
    poem = item("Roses are red.\nViolets are blue.", score="f1")
    assert worth(TEXT, "Roses are red.\n\nViolets are blue.\n", poem) == 1
    assert worth(TEXT, "Roses are red.", poem) == pytest.approx(2 * 3 / 9, abs=1e-4)
    assert not TEXT.settled("Roses are red.\n", poem)


def test_similarity_is_the_cosine_of_the_whole_completion_and_none_below_zero():
    known = {
        "go up": (1.0, 0.0),
        "climb": (0.8, 0.6),
        "fall\ndown": (-1.0, 0.0),
        "The answer is: climb": (0.6, 0.8),
        "?": (0.0, 1.0),
    }
    judge_by(lambda texts: np.array([known[text] for text in texts]), "by angle")
    thought = item("go up", score="similarity")
    assert [
        worth(TEXT, text, thought) for text in ("go up", " climb\n", "fall\ndown", "The answer is: climb", "\ud800")
    ] == [1, 0.8, 0, 0.6, 0]
    assert worth(TEXT, "climb", item("?", "go up", score="similarity")) == 0.8
    assert TEXT.parse("go up", thought) == Parsed("valid", 0, 1.0)
    assert worth(TEXT, " \n", thought) == "invalid"
    assert not TEXT.settled("go up\n", thought)
    judge_by(None)
    with pytest.raises(
        ConfigError, match=r"texts scored by similarity, which a sentence embedding model judges.*evaluate\.embeddings"
    ):
        TEXT.parse("go up", thought)


@pytest.mark.parametrize(
    ("wrap", "completion", "found"),
    [
        (TAG, "<answer>Old Town</answer>", 1), (TAG, "So.\n<answer>\n the Old City.\n</answer>\nDone.", 1), (TAG, "< ANSWER >old town</ answer >", 1),
        (TAG, "<answer>New</answer>", 0), (TAG, "Old Town", "invalid"), (TAG, "<answer></answer>", "invalid"), (TAG, "<answer>Old Town", "invalid"),
        (TAG, "<answer>Old Town</answer> or <answer>New</answer>", "ambiguous"), (TAG, "<answer>Old Town</answer> yes, <answer>old town!</answer>", 1),
        (TAG, "<think><answer>New</answer></think><answer>Old Town</answer>", 1), (TAG, "<answer>The answer is Old Town</answer>", 0),
        (JSON, '{"answer": "Old Town"}', 1), (JSON, 'Sure: ```json\n{"why": "{x}", "answer": "the old city"}\n```', 1), (JSON, '{"answer": ""}', "invalid"),
        (JSON, '{"answer": null}', "invalid"), (JSON, '{"answer": "a"}{"answer": "b"}', "ambiguous"), (JSON, '{"result": "Old Town"}', "invalid"),
        (JSON, '{"answer": ["Old Town"]}', 1), (JSON, '{"why": {"answer": "Old Town"}', "invalid"), (JSON, '{"a" b} {"answer": "Old Town"}', 1), (JSON, '{"answer": ' * 5000, "invalid"),
        (QUOTE, 'He says "Old Town" here.', 1), (QUOTE, '"Old Town" and "New Town"', "ambiguous"), (QUOTE, '"Old Town', "invalid"),
        (CUE, "Answer: Old Town\nIt is uphill.", 1), (CUE, "Well.\nanswer:\nold town.", 1), (CUE, "Answer: Old Town\nAnswer: New Town", "ambiguous"),
        (CUE, "Old Town", "invalid"), (CUE, "Answer:", "invalid"),
    ],
)  # fmt: skip
def test_inside_a_wrap_its_content_answers(wrap, completion, found):
    answer = Wrapped(wrap, TEXT)
    assert worth(answer, completion, item()) == found
    assert not answer.settled(completion, item())
    assert answer_format_from(answer_format_to(answer)) == answer


def test_a_number_under_a_key_is_the_text_that_it_is():
    for text in ("19.50", "1e3", "1000000000000000000000.0", "007", "7"):
        bare = text if text != "007" else '"007"'
        assert worth(Wrapped(JSON, TEXT), f'{{"answer": {bare}}}', item(text)) == 1


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_text_of_several_lines_is_read_whole_whatever_parts_them(sign):
    for answer in (TEXT, Wrapped(TAG, TEXT), Wrapped(CUE, TEXT)):
        (surface,) = answer.surfaces(item(f"Old{sign}Town"))
        assert worth(answer, surface, item(f"Old{sign}Town")) == 1
        assert not answer.settled(f"Old{sign}", item(f"Old{sign}Town"))


def test_a_wrap_without_an_end_holds_lines_where_answers_have_lines():
    assert worth(Wrapped(CUE, TEXT), "Answer: one\ntwo\nAnswer: three", item("one\ntwo\nanswer three")) == 1


WRITTEN = st.text(st.characters(exclude_categories=["Cs"])) | st.text('ab "\\<>/{}:\nanswer', min_size=1)


@given(
    WRITTEN,
    st.sampled_from([TEXT, *(Wrapped(wrap, TEXT) for wrap in (TAG, JSON, QUOTE, CUE, "[{answer}]", "**{answer}**"))]),
    st.sampled_from(["exact", "f1", "similarity"]),
)
def test_the_right_text_as_a_prompt_wants_it_written_is_right(text, answer, score):
    """But for texts that the rules pass over: one that is a mark of a block, thinks aloud, or leads to what follows."""
    judge_by(tiny.embed_by_text, "by text")
    text = text.strip()
    example = item(text or "x", score=score)
    (surface,) = answer.surfaces(example)
    lines = [line.strip() for line in example.choices[0].splitlines()]
    if any(line.startswith(("```", "~~~", "<think>")) or line.endswith(":") or "</think>" in line for line in lines):
        return
    assert answer.parse(surface, example).worth(example) == 1


SAID = st.text("ab :\n\r*`Tthe answer is<nk>/", max_size=30)


@given(SAID, SAID, st.sampled_from(["exact", "f1"]))
def test_what_follows_a_settled_text_changes_nothing(begun, more, score):
    example = item("ab", "the a", score=score)
    if TEXT.settled(begun, example) and "</think>" not in begun + more:
        assert TEXT.parse(begun + more, example) == TEXT.parse(begun, example)


def test_a_line_that_is_over_is_settled():
    assert TEXT.settled("Old Town\n", item())
    assert not any(
        TEXT.settled(text, item()) for text in ("Old Town", "Here:\n", "<think>a\n", "```\n", "\n", "The answer is\n")
    )


HOSTILE = ("x" * 10**6, '"' * 10**6, "<answer>" * 10**5, "<answer>a</answer>" * 60_000, "Answer: a\n" * 10**5, "Answer:" * 10**5, "Answer:\n" * 10**5, "Answer:\n" * 1000 + "```\n" * 40_000,
           '{"answer":' * 10**5, "{" * 10**6, "_" * 10**6, "the " * 250_000, "answer is " * 10**5, "\n" * 10**6, "\ud800" * 10**5, " " * 10**6)  # fmt: skip


@pytest.mark.parametrize("at", range(len(HOSTILE)))
def test_hostile_texts_are_not_right_and_come_to_an_end(at):
    for answer in (TEXT, *(Wrapped(wrap, TEXT) for wrap in (TAG, JSON, QUOTE, CUE))):
        for score in ("exact", "f1", "similarity"):
            parsed = answer.parse(HOSTILE[at], item(score=score))
            assert parsed.choice in (None, OTHER)
            assert parsed.worth(item(score=score)) < 0.2


def test_a_text_is_a_reward():
    template = Template("{q}", TEXT)
    assert correct(item(score="f1"), template, "in the old town") == pytest.approx(0.8)
    assert (correct(item(), template, "in the old town"), well_formed(item(), template, "no idea")) == (0, 1)
    assert (correct(item(score="f1"), template, ""), well_formed(item(), template, "")) == (0, 0)


def test_an_example_keeps_its_texts_when_it_travels():
    example = item("a", "b", score="f1")
    again = pickle.loads(pickle.dumps(example))
    assert (again, again.accepted, again.score) == (example, ("b",), "f1")


# tasks


SPEC = {"name": "places", "kind": "text", "fields": ["q"], "answer": "a"}


def described(folder: Path, rows: list[dict[str, Any]], **more: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "task.json").write_text(json.dumps({**SPEC, "files": {"train": "rows.jsonl"}, **more}), encoding="utf-8")
    return load_task(folder / "task.json")


def test_a_task_whose_answers_are_texts(tmp_path):
    rows = [
        {"q": "where?", "a": [" Old Town", "the old city", "Old Town"], "on": "p1"},
        {"q": "how many?", "a": 7, "on": "p1"},
    ]
    found = described(tmp_path, rows, score="f1", group_by="on")
    first, second = found.split("train").examples
    assert (first.choices, first.accepted, first.score, first.is_open) == (("Old Town",), ("the old city",), "f1", True)
    assert (second.choices, second.accepted, first.group, second.group) == (("7",), (), "p1", "p1")
    assert (found.open_kind, found.score, found.num_choices) == ("text", "f1", 1)
    assert described(tmp_path / "b", rows).split("train").examples[0].score == "exact"


def test_a_column_of_lists_in_parquet_is_read_alike(tmp_path):
    rows = [{"q": "where?", "a": ["Old Town", "the old city"]}, {"q": "when?", "a": ["now"]}]
    wanted = described(tmp_path, rows).split("train").examples
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert described(tmp_path, rows, files={"train": "rows.parquet"}).split("train").examples == wanted


def test_texts_may_be_about_images(tmp_path):
    tiny.picture(tmp_path / "a.png", 1)
    (example,) = (
        described(tmp_path, [{"q": "what?", "a": "a square", "see": "a.png"}], image="see").split("train").examples
    )
    assert (len(example.images), example.choices) == (1, ("a square",))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("", "holds ''; expected a text, or a list of texts"), ([], r"holds '\[\]'; expected a text"), (["a", " "], "expected a text, or a list"),
        ({"text": "a"}, "holds dict"), ([["a"]], "holds list"), ("\ud800", "half a surrogate pair"), (None, "is empty"),
    ],
)  # fmt: skip
def test_rows_without_a_text_are_bad_rows(tmp_path, answer, said):
    with pytest.raises(DataError, match=said):
        described(tmp_path, [{"q": "where?", "a": answer}]).split("train")


def test_settings_that_do_not_go_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="kind text has no choices"):
        described(tmp_path, [], choices=["a", "b"])
    with pytest.raises(DataError, match="score f1 is for kind: text, and the kind is number"):
        described(tmp_path, [], kind="number", score="f1")
    with pytest.raises(ConfigError, match="score"):
        described(tmp_path, [], score="bleu")


def test_prompts_for_texts(tmp_path):
    texts = described(tmp_path, [{"q": "where?", "a": "there"}])
    for answer in (TEXT, Wrapped(TAG, TEXT)):
        assert list(Template("{q}", answer).faults(texts)) == []
    for answer in (Number(), Labels()):
        (fault,) = Template("{q}", answer).faults(texts)
        assert fault.reason.endswith("has open answers (text); expected answer: text, or a wrap of it")
    numbers = described(tmp_path / "n", [{"q": "1+1", "a": 2}], kind="number")
    assert [fault.name for fault in Template("{q}", TEXT).faults(numbers)] == ["contract"]
    rules = "\n".join(rules_of(texts))
    assert '"text" (the bare answer)' in rules
    assert "letter" not in rules
    explains = Template("{q} Explain your answer.", TEXT)
    assert [fault.name for fault in faults_of(explains, texts)] == ["reasoning"]
    thoughts = described(tmp_path / "t", [{"q": "why?", "a": "so"}], score="similarity")
    assert list(faults_of(explains, thoughts)) == []
    assert [fault.name for fault in faults_of(Template("{q} Answer in JSON.", TEXT), texts)] == ["contract"]


def test_a_text_may_be_twice_as_long_as_the_longest_that_is_accepted():
    model = tiny.hf_model()
    long = "the old city on the hill beyond the river"
    templates = [Template("{q}", TEXT), Template("{q}!", Wrapped(TAG, TEXT))]
    grid = Grid(templates, [item("Old Town", long), item("x")])
    plain, wrapped = (model.count_tokens(text) for text in (long, f"<answer>{long}</answer>"))
    assert grid.answer_limits(model.count_tokens) == [2 * plain + 4, 2 * wrapped + 4]


def scored(score: TextScore, said: list[list[str]]) -> dict[str, Any]:
    from paft.evaluation.budget import Spent
    from paft.evaluation.evaluate import Evaluation, score_matrix

    templates = [Template(f"Wording {k}: {{q}}", TEXT) for k in range(len(said))]
    examples = [Example(f"e{i}", {"q": "where?"}, ("Old Town",), 0, True, score=score) for i in range(len(said[0]))]
    grid = Grid(templates, examples)
    rows = tuple(tuple(Answered((), (), (), 9, False, Completion(text, 2, "eos")) for text in row) for row in said)
    matrix = score_matrix(grid, rows, "generation")
    bought_KN = np.ones(grid.shape, dtype=bool)
    spent = Spent("full", bought_KN, bought_KN.size, 0.95)
    done = Evaluation(grid, "print", {"generation": matrix}, rows, 0.95, (0.5,), spent, bought_KN.size)
    return {"matrix": matrix, "table": cell_table("a", done)}


def test_tables_by_different_scores_are_not_compared(tmp_path):
    said = [["Old Town", "in the old town", ""], ["New Town", "Old Town", "old town"]]

    def written(name: str, score: TextScore) -> str:
        folder = RunDir(tmp_path / name)
        folder.root.mkdir()
        pyarrow.parquet.write_table(pyarrow.table(scored(score, said)["table"]), folder.scores)
        return str(folder.root)

    exact, f1 = scored("exact", said)["matrix"], scored("f1", said)["matrix"]
    assert (exact.values_KN.tolist(), exact.judge) == ([[1, 0, 0], [0, 1, 1]], "")
    assert (f1.values_KN, f1.judge) == (pytest.approx(np.array([[1, 0.8, 0], [0.5, 1, 1]])), "words (F1)")
    assert f1.answers_KN.tolist() == [[0, OTHER, INVALID], [OTHER, 0, 0]]
    assert scored("similarity", said)["matrix"].judge == "by text"
    runs = {score: written(score, score) for score in ("exact", "f1", "similarity")}
    compare_runs([runs["f1"], written("again", "f1")])
    for one, other in (("exact", "f1"), ("f1", "similarity"), ("similarity", "exact")):
        with pytest.raises(DataError, match=r"score both with one evaluate\.embeddings, and texts by one `score`"):
            compare_runs([runs[one], runs[other]])
    judge_by(lambda texts: np.ones((len(texts), 1)), "another")
    with pytest.raises(DataError, match="embedding model or rule another, the others by by text"):
        compare_runs([runs["similarity"], written("other", "similarity")])


# a whole run


def world(folder: Path, kind: str, rows: list[dict[str, Any]], prompts: dict[str, Any], **spec: Any) -> Path:
    """A task of the kind with prompts and a model, and settings that train on it in two ways."""
    for name, part in (("train", rows[:24]), ("test", rows[24:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    files = {"train": "train.jsonl", "test": "test.jsonl"}
    task = {**SPEC, "kind": kind, "files": files, "prompts": "prompts.yaml", **spec}
    (folder / "task.yaml").write_text(dump_yaml(task), encoding="utf-8")
    (folder / "prompts.yaml").write_text(dump_yaml({"task": "places", "version": 1, **prompts}), encoding="utf-8")
    lora = {"r": 2, "target_modules": "all-linear"}
    grpo = {"method": "grpo", "epochs": 1, "batch_size": 4, "num_generations": 3, "max_new_tokens": 4, "lora": lora}
    values = {
        "task": str(folder / "task.yaml"),
        "model": str(tiny.saved_model(folder / "model")),
        "train": {"epochs": 1, "batch_size": 4, "lora": lora},
        "arms": {"base": {}, "sft": {"train": {}}, "grpo": {"train": grpo}},
        "evaluate": {"split": "test", "scorers": ["generation"]},
    }
    (folder / "run.yaml").write_text(dump_yaml(values), encoding="utf-8")
    return folder / "run.yaml"


FORMS: list[Any] = ["text", {"wrap": TAG, "of": "text"}]
TEXTS = {
    "train": ["{q}: where?", "say in tags where {q} is"],
    "dev": ["the place of {q}, please", "tags around the spot: {q}"],
    "test": ["{q} can be found at", "put what holds {q} between answer tags"],
}
PROMPTS = {
    split: [{"text": t, "answer": form} for t, form in zip(some, FORMS, strict=True)] for split, some in TEXTS.items()
}
ROWS = [{"q": f"thing {n}", "a": [f"shelf {n % 5}", f"board {n % 5}"]} for n in range(36)]


def test_a_run_on_texts_trains_scores_reports_and_exports(tmp_path):
    config = world(tmp_path, "text", ROWS, PROMPTS, score="f1")
    results = pipeline.run(load_run_config(config), tmp_path / "out", LineWatcher(quiet=True))
    assert results["task"]["judge"] == "words (F1)"
    assert len(results["arms"]["grpo"]["train"]["reward"]) == 5
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "shelf 1 / board 1" in page
    assert "unreadable: no choice, or several" not in page

    given = ["--task", tmp_path / "task.yaml"]
    for kind, more in (("cells", []), ("lm-eval", ["style=raw"]), ("opencompass", ["--model", "x", "style=raw"])):
        told = CliRunner().invoke(
            app,
            [
                *map(
                    str,
                    [
                        "export",
                        kind,
                        *given,
                        "-o",
                        tmp_path / kind,
                        "evaluate.scorers=[generation]",
                        "evaluate.split=test",
                        *more,
                    ],
                )
            ],
        )
        assert told.exit_code == 0, told.exception
    lines = [json.loads(line) for line in (tmp_path / "cells" / "cells.jsonl").read_text().splitlines()]
    assert (lines[0]["target"], lines[0]["accepted"], lines[0]["choices"]) == ("shelf 4", ["shelf 4", "board 4"], [])
    assert lines[-1]["accepted"][1] == f"<answer>board {35 % 5}</answer>"
    (tmp_path / "said.jsonl").write_text("".join(json.dumps({**line, "completion": line["accepted"][1], "tokens": 3, "ended": True}) + "\n" for line in lines))  # fmt: skip
    back = CliRunner().invoke(app, ["import", "jsonl", str(tmp_path / "said.jsonl"), "--asked", str(tmp_path / "cells"), "--out", str(tmp_path / "back")])  # fmt: skip
    assert back.exit_code == 0, back.exception
    assert json.loads((tmp_path / "back" / "results.json").read_text())["arms"]["said"]["scores"]["generation"][
        "accuracy_K"
    ] == [1, 1]
    dataset = CliRunner().invoke(
        app, ["export", "dataset", str(config), "--arm", "sft", "--out", str(tmp_path / "rows.parquet")]
    )
    assert dataset.exit_code == 0, dataset.exception
    rows = pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert not any("board" in json.dumps(row) for row in rows)  # training writes the first of the accepted texts


def test_a_harness_is_told_a_limit_that_fits_texts(tmp_path):
    rows = [{"q": f"thing {n}", "a": ["shelf", "board " * 40]} for n in range(36)]
    config = load_run_config(world(tmp_path, "text", rows, PROMPTS))
    longest = len("<answer>" + ("board " * 40).strip() + "</answer>")
    assert with_limit(config, prepare(config)).evaluate.max_new_tokens == 2 * -(-longest // 2)


def test_what_is_scored_is_not_trained_on_whichever_text_is_given_first(tmp_path):
    rows = [*ROWS, {"q": ROWS[3]["q"], "a": ROWS[3]["a"][::-1]}]
    config = load_run_config(world(tmp_path, "text", rows, PROMPTS))
    assert not {e.fields["q"] for e in prepare(config).train} & {row["q"] for row in rows[24:]}


def test_a_run_by_similarity_names_its_judge_first(tmp_path):
    config = load_run_config(
        world(tmp_path, "text", ROWS, PROMPTS, score="similarity"), ["evaluate.embeddings=./none/such"]
    )
    with pytest.raises(
        AssetError, match=r"evaluate\.embeddings: .*no such file.*texts scored by similarity are judged by"
    ):
        prepare(config)
    assert prepare(config, judges=False).test[0].score == "similarity"
