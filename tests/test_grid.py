from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import ShapeError
from paft.grid import Cell, Grid
from paft.lm.fake import FakeLM
from paft.prompts import Template
from paft.tasks import ChoiceText, Example, Labels

EXAMPLES = tuple(Example(str(n), {"text": f"text {n}"}, ("no", "yes"), n % 2) for n in range(3))
GRID = Grid((Template("1 {text} {choices}", Labels()), Template("2 {text}", ChoiceText(), system="s")), EXAMPLES)


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_flat_indices_name_every_cell_of_every_epoch_once(k: int, n: int, data: st.DataObject) -> None:
    grid = Grid([GRID.templates[0]] * k, [EXAMPLES[0]] * n)
    cells = [Cell(epoch, prompt, example) for epoch in range(3) for prompt in range(k) for example in range(n)]
    assert [grid.flat(cell) for cell in cells] == list(range(3 * k * n))
    assert [grid.cell(index) for index in range(3 * k * n)] == cells
    far = data.draw(st.integers(0, 10**15))
    assert grid.flat(grid.cell(far)) == far


@pytest.mark.parametrize("cell", [Cell(0, 2, 0), Cell(0, 0, 3), Cell(-1, 0, 0), Cell(0, -1, 0), Cell(0, 0, -1)])
def test_a_cell_outside_is_refused(cell: Cell) -> None:
    with pytest.raises(ShapeError, match="lies outside a grid of 2 prompts x 3 examples"):
        GRID.flat(cell)


def test_an_index_that_names_no_cell_is_refused() -> None:
    with pytest.raises(ShapeError, match="index -1 names no cell"):
        GRID.cell(-1)
    with pytest.raises(ShapeError, match="names no cell of a grid of 2 prompts x 0 examples"):
        Grid(GRID.templates, ()).cell(0)


def test_a_cell_is_rendered_by_its_own_template() -> None:
    assert GRID.shape == (2, 3)
    assert GRID.chat(Cell(0, 0, 1))[-1].text == "1 text 1 A. no\nB. yes"
    assert [turn.role for turn in GRID.chat(Cell(5, 1, 1))] == ["system", "user"]
    assert (GRID.target(Cell(0, 0, 1)), GRID.target(Cell(0, 1, 1))) == ("B", "yes")
    question = GRID.question(Cell(0, 1, 2))
    assert (question.chat, question.choices) == (GRID.chat(Cell(0, 1, 2)), ("no", "yes"))


def test_the_fake_model_answers_by_arithmetic_and_counts_what_it_is_asked() -> None:
    questions = [GRID.question(Cell(0, k, i)) for k in range(2) for i in range(3)]
    lm, seen = FakeLM(prefer=lambda question: 1), []
    asked = [replace(question, max_new_tokens=3) for question in questions]
    answers = lm.answer(asked, done=lambda index, answer: seen.append((index, answer)))
    assert lm.calls == 6
    assert sorted(index for index, _ in seen) == list(range(6))
    assert [answers[index] for index, _ in seen] == [answer for _, answer in seen]
    assert all(answer.logp_C == (-2.0, -1.0) for answer in answers)
    assert [answer.completion.text for answer in answers if answer.completion] == ["B"] * 3 + ["yes"] * 3
    assert all(answer.completion is None for answer in FakeLM().answer(questions))
    assert FakeLM().answer(questions) == FakeLM().answer(questions)
    assert len({key for question in questions for key in lm.keys(question)}) == 12
