from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from paft.errors import DataError, TemplateError
from paft.tasks import AnswerFormat, ChoiceText, Example, Labels, Parsed, answer_format_from
from paft.tasks.answers import OTHER, Expression, Number, Wrapped, answer_format_to, number_in

AMBIGUOUS, INVALID = Parsed("ambiguous", None), Parsed("invalid", None)


def item(*choices: str) -> Example:
    return Example("e", {}, choices or ("he runs", "she sits", "it rains", "we go"), 0)


FOUR = item()


def read(answer: AnswerFormat, completion: str, example: Example) -> int | str:
    parsed = answer.parse(completion, example)
    return parsed.choice if parsed.choice is not None else parsed.status


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("A", 0), ("b", 1), (" C", 2), ("D\n", 3), ("(b)", 1), ("[C]", 2), ("{D}", 3), ("<B>", 1), ("B.", 1), ("B)", 1), ("B:", 1),
        ("**C**", 2), ("'A'", 0), ("`D`", 3), ("\u201cB\u201d", 1), ("- B", 1), ("# D", 3), ("C\u3002", 2), ("$A$", 0),
        ("B. she sits", 1), ("B) she sits", 1), ("B.She sits", 1), ("B - she sits", 1), ("B: she sits", 1), ("A, he runs", 0),
        ("Answer: C", 2), ("answer: c.", 2), ("Answer:\nC", 2), ("the answer is (D)", 3), ("The correct answer is **B**.", 1),
        ("The answer is: A", 0), ("The answer is B because she sits", 1), ("The best option is D.", 3), ("Option B", 1), ("choice C.", 2),
        ("I think it's B", 1), ("It is B.", 1), ("Best ending: C", 2), ("B is the correct answer", 1), ("A is right", 0),
        ("D\nbecause A. he", 3), ("B\n\nA man sits", 1), ("I choose C.", 2),
        ("A. 1.5 oz of it", 0), ("B. 2. he", 1), ("A. J. Smith runs", "invalid"), ("A.5 oz", "invalid"),
        # articles, pronouns and abbreviations are no letters
        ("A man is walking", "invalid"), ("a", 0), ("a man", "invalid"), ("The answer is a movie", "invalid"),
        ("the best option a person has", "invalid"), ("I would soak it. This is a", "invalid"), ("I think it is A", 0), ("The answer is a", 0),
        ('the item is a "make air" thing', "invalid"), ('the letter "a" it is', 0), ("A.M. radio", "invalid"), ("AB", "invalid"), ("Apple", "invalid"), ("D'Arcy", "invalid"),
        ("he runs", "invalid"), ("E", "invalid"), ("", "invalid"), (" \n", "invalid"), ("I do not know", "invalid"), ("\x00", "invalid"),
        ("A is not correct", "invalid"), ("The answer is not B.", "invalid"), ("A A A", "invalid"),
        # what is given as the answer goes before what stands at a line's beginning, or behind a colon
        ('A: "Work"\nB: "Sword"\n\nThe answer is: A', 0), ("A. he runs\nB. she sits\nAnswer: B", 1), ("The answer: B. A is right as well.", 1),
        ("The answer would be C.", 2), ("Answer - B", 1), ("The answer is option B", 1), ("Best option: B\nA. he runs", 1), ("option: B\nA. he runs", "ambiguous"),
        ("A) he runs\nB) she sits\n\nTherefore, the correct option is B.", 1), ("**Answer:** B", 1), ("**Final Answer:** **B**", 1), ("Answer:B", 1),
        ("The answer is B (she sits).", 1), ("The answer is most likely B.", 1), ("The answer is B</s>", 1), ("The answer is $B$.", 1), ("<answer>B</answer>", 1),
        # the next question is not this one
        ("B. she sits\n\nQuestion: and?\nA. x\nB. y\nAnswer: C", 1), ("The answer is B\n\nQ: and?\nAnswer: C", 1), ("Sure.\nQuestion: which?\nAnswer: B", 1),
        # what a prompt calls its options
        ("Caller B", 1), ("Remedy A: he runs", 0), ("**Ending C.**", 2), ("So: D\nCaller B", "ambiguous"), ("Remedy A: he runs\nRemedy B: she sits", "ambiguous"),
        ("Using a", "invalid"), ("Not B.", "invalid"), ("Neither A nor B", "invalid"), ("Vitamin C.", "invalid"), ("Both A and B", "ambiguous"), ("Grade A eggs", "invalid"),
        ("The caller who grasped the plot was Caller A.", 0), ("Best of all is Ending C", 2), ("It was B.", 1), ("It was a", "invalid"), ("The answer was not B.", "invalid"),
        ("He was D. H. Lawrence", "invalid"), ("What it lacks is Vitamin C.", "invalid"), ("I don't think the answer was A.", "invalid"), ("It was A man", "invalid"),
        # refused, compared or cut off
        ("Option A is grammatically incorrect.", "invalid"), ("A is definitely not the answer.", "invalid"), ("We can eliminate option A.", "invalid"),
        ("Option B fits better than option A.", "invalid"), ("The answer cannot be A.", "invalid"), ("I don't think the answer is A.", "invalid"),
        ("The author is C. S. Lewis.", "invalid"), ("A **man** is running", "invalid"), ("La respuesta a", "invalid"), ("It costs $2", "invalid"),
        ("The correct answer is $\\boxed{A}$.", 0), ("\\boxed{B}", 1), ("So \\[ \\boxed{\\text{C}} \\]", 2), ("$\\boxed{\\textbf{B}}$", 1), ("\\boxed{A} or \\boxed{B}", "ambiguous"),
        # a sentence that is a letter
        ("Sure! A", 0), ("I think so. **B**.", 1), ("Sure! A man sits.", "invalid"), ("Sure! A.\nOr rather. B.", "ambiguous"),
        # in other languages
        ("答案是A", 0), ("答案：B", 1), ("正确答案是 B。", 1), ("选B", 1), ("La respuesta correcta es B.", 1), ("La respuesta es la B.", 1), ("Es la opción C.", 2),
        ("la respuesta a la pregunta", "invalid"), ("Правильный ответ — A", 0), ("Ответ: B.", 1), ("Jawabannya adalah B.", 1), ("Jawaban yang benar adalah C", 2),
        ("Die Antwort lautet D.", 3), ("La réponse est A.", 0), ("Jibu sahihi ni C", 2), ("సమాధానం: B", 1), ("Erantzuna B da.", 1), ("सही उत्तर B है।", 1),
        ("الإجابة الصحيحة هي B", 1), ("အဖြေမှာ B", 1), ("答えはC", 2), ("정답은 D", 3), ("정답은 B입니다.", 1), ("答えはBです。", 1), ("B是正确的。", 1),
        ("A resposta correta é a **B**.", 1), ("A da esquerda.", "invalid"), ("La bonne réponse est donc B.", 1), ("Ответ: А", 0), ("В этом случае", "invalid"),
        ("正确选项是B。", 1), ("الخيار الصحيح هو B.", 1), ("La opción correcta es la B", 1),
        # more than one is given
        ("A or B", "ambiguous"), ("(A) and (C)", "ambiguous"), ("A/B", "ambiguous"), ("A, B", "ambiguous"), ("A, B, C", "ambiguous"),
        ("A. he runs\nB. she sits", "ambiguous"), ("The answer is A or B.", "ambiguous"), ("Answer: A. Answer: B.", "ambiguous"),
    ],
)  # fmt: skip
def test_letters(completion: str, expected: int | str) -> None:
    assert read(Labels(), completion, FOUR) == expected


@pytest.mark.parametrize(
    ("labels", "completion", "expected"),
    [
        (("i", "ii"), "i", 0), (("i", "ii"), "II.", 1), (("i", "ii"), "I'm not sure", "invalid"), (("i", "ii"), "I think so", "invalid"),
        (("i", "ii"), "i.e. the second", "invalid"), (("i", "ii"), "The answer is ii.", 1), (("i", "ii"), "iii", "invalid"),
        (("I", "II"), "I, II", "ambiguous"), (("I", "II"), "(II)", 1),
        (("1", "2"), "1.5 litres", "invalid"), (("1", "2"), "2 men", "invalid"), (("1", "2"), "2. men", 1), (("1", "2"), "-1", "invalid"),
        (("1", "2"), "10", "invalid"), (("1", "2"), "#1", 0), (("#1", "#2"), "1", 0), (("#1", "#2"), "The answer is #2.", 1),
        (("1", "10"), "10", 1), (("1", "10"), "1", 0), (("1", "10"), "It is 10.", 1), (("+1", "-1"), "-1", 1), (("+1", "-1"), "+1.", 0),
        (("P1", "P2"), "P2 is better", 1), (("P1", "P2"), "p1", 0),
        (("thumbs down", "thumbs up"), "Thumbs-up!", 1), (("thumbs down", "thumbs up"), "I give it a thumbs  down", 0),
        (("thumbs down", "thumbs up"), "up", "invalid"), (("thumbs down", "thumbs up"), "thumbs down or thumbs up", "ambiguous"),
        (("thumbs down", "thumbs up"), "thumbs upward", "invalid"),
        (("1st", "2nd"), "The 2nd one", 1), (("1st", "2nd"), "21st", "invalid"),
        (("unfavorable", "favorable"), "Favorable.", 1), (("unfavorable", "favorable"), "unfavorable", 0),
        (("dislike", "like"), "I dislike it", 0), (("dislike", "like"), "I like it", 1),
        (("negative", "positive"), "The sentence is positive.", 1), (("negative", "positive"), "not positive", "invalid"),
        (("negative", "positive"), "It isn't positive, it is negative", 0), (("negative", "positive"), "positively", "invalid"),
        (("negative", "positive"), "positive\nnegative", 1), (("negative", "positive"), "positive negative", "ambiguous"),
        *((("negative", "positive"), said, "invalid") for said in (
            "This is not a positive review.", "It is not very positive.", "It isn't really positive", "It isn\u2019t a very positive one", "never positive",
            "anything but positive", "far from positive", "It cannot be positive", "not at all positive", "It is not \"positive\".",
        )),
        (("negative", "positive"), "not only positive", 1), (("negative", "positive"), "It is not merely positive", 1), (("negative", "positive"), "not a positive but a negative one", 0),
        (("negative", "positive"), "I do not know. It is very positive", 1), (("x-ray", "the x-ray"), "not the x-ray", "invalid"), (("good", "very good"), "not very good", "invalid"),
        (("good", "not good"), "not good", 1), (("good", "not good"), "good", 0),
        (("no", "yes"), "Yes, it does", 1), (("no", "yes"), "I do not know", "invalid"), (("no", "yes"), "No.", 0),
        (("是", "否"), "否", 1), (("是", "否"), "答案: 是", 0), (("да", "нет"), "НЕТ", 1), (("straße", "weg"), "STRASSE", 0),
        (("café", "thé"), "cafe\u0301", 0),
    ],
)  # fmt: skip
def test_own_labels(labels: tuple[str, ...], completion: str, expected: int | str) -> None:
    assert read(Labels(labels), completion, item("x", "y")) == expected


@pytest.mark.parametrize(
    ("choices", "completion", "expected"),
    [
        (("the dog", "the dog barks"), "The dog barks.", 1), (("the dog", "the dog barks"), "I say the dog", 0),
        (("the dog", "the dog, barking"), "The dog barking", 1), (("He runs.", "He sits."), "he   runs", 0),
        (("Sarah", "Maria"), "Sarah\nMaria was worse", 0), (("Sarah", "Maria"), "Sarah beat Maria", "ambiguous"),
        (("Sarah", "Maria"), "Sarahs", "invalid"), (("Sarah", "Maria"), "It was Maria's.", 1),
        (("negative", "positive"), "not negative but positive", 1), (("negative", "positive"), "neg", "invalid"),
        (("5", "-5", "15", "1.5"), "5", 0), (("5", "-5", "15", "1.5"), "-5", 1), (("5", "-5", "15", "1.5"), "x = 1.5", 3),
        (("5", "-5", "15", "1.5"), "It is 15.", 2), (("$10", "10%"), "10%", 1), (("x > 5", "x < 5"), "x < 5", 1),
        (("C", "C++", "C#"), "C++.", 1), (("C", "C++", "C#"), "c", 0), (("US", "us"), "us", 1), (("US", "us"), "US", 0),
        ((",", ";"), ",", 0), ((",", ";"), ";", 1), ((",", ";"), ", or ;", "ambiguous"), (("...", "!"), "...", 0),
        (("b", "a", "a"), "b", 0), (("b", "a", "a"), "a", "ambiguous"),
        (("naïve Δ", "東京"), "東京です", "invalid"), (("naïve Δ", "東京"), "東京。", 1), (("naïve Δ", "東京"), "NAÏVE δ", 0),
        (("a", ""), "", "invalid"), (("a", ""), "a", 0), (("a b", "c"), "", "invalid"), (("a b", "c"), "?!", "invalid"),
        (("(a|b)*", "[x"), "[x", 1), (("(a|b)*", "[x"), "(a|b)*", 0),
    ],
)  # fmt: skip
def test_choice_text(choices: tuple[str, ...], completion: str, expected: int | str) -> None:
    assert read(ChoiceText(), completion, item(*choices)) == expected


@pytest.mark.parametrize(
    ("answer", "completion", "expected"),
    [
        (Labels(("negative", "positive")), "The sentiment is positive.\n\nSentence: a bad film\nThe sentiment is negative.", 1),
        (Labels(("negative", "positive")), "Sure.\nSentence: a bad film\nIt is negative.", 0),
        (Labels(("negative", "positive")), "It is positive or negative.\nSentence: a bad film\nIt is negative.", "ambiguous"),
        (ChoiceText(), "So: she sits.\n\nQuestion: and?\nhe runs", 1),
        (Wrapped("Answer: {answer}"), "Answer: B\n\nQuestion: y\nAnswer: A", 1), (Wrapped("Answer: {answer}"), "Well.\nQuestion: y\nAnswer: A", 0),
        (Wrapped("Answer: {answer}"), "Answer: A\nAnswer: B\n\nQuestion: y\nAnswer: A", "ambiguous"),
        (Wrapped("<a>{answer}</a>", ChoiceText()), "<a>she sits</a>\nQ: y\n<a>he runs</a>", 1), (Wrapped('{"a": "{answer}"}'), '{"a": "B"}\nProblem: y\n{"a": "A"}', 1),
        (Wrapped("#### {answer}", Number()), "#### 12\n\nQuestion: y\n1+1=2\n#### 2", 0), (Wrapped("#### {answer}", Number()), "Question: y\n1+1=2\n#### 2", OTHER),
        (Wrapped("\\boxed{{answer}}", Expression()), "\\boxed{12}\n\nProblem: y\n\\boxed{2}", 0),
        (Wrapped("Answer: {answer}", ChoiceText()), "Answer: 12\nQuestion: y\nAnswer: 13", 0),
    ],
)  # fmt: skip
def test_the_next_question_is_not_this_one(answer: AnswerFormat, completion: str, expected: int | str) -> None:
    inner = answer.of if isinstance(answer, Wrapped) else answer
    is_open = isinstance(inner, Number | Expression) or "12" in completion
    two = isinstance(inner, Labels) and bool(inner.labels)
    example = Example("e", {}, ("12",), 0, is_open=True) if is_open else item("x", "y") if two else FOUR
    assert read(answer, completion, example) == expected


LINES = ("one\ntwo", "one", "one\ntwo\nthree", "two")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        *((choice, c) for c, choice in enumerate(LINES)), ("\nOne \n\n Two.\n", 0), ("one\ntwo\n\nQuestion: and?\nthree", 0),
        ("one\nand more", 1), ("one two", 0), ("two\none", 3),
    ],
)  # fmt: skip
def test_a_choice_whose_first_line_is_another_is_read_whole(completion: str, expected: int) -> None:
    assert read(ChoiceText(), completion, item(*LINES)) == expected
    assert not ChoiceText().settled("one\n", item(*LINES))


def test_a_text_that_holds_a_line_like_a_question_is_read_whole() -> None:
    poem = Example("e", {}, ("one\nText: two",), 0, is_open=True)
    for wrap in (TAG, "Answer: {answer}", QUOTE):
        assert read(Wrapped(wrap, ChoiceText()), wrap.replace("{answer}", "one\nText: two"), poem) == 0
    assert read(ChoiceText(), "I say one\nText: two", item("one", "one\nText: two")) == 1
    lines = Example("e", {}, ("one\ntwo",), 0, is_open=True, score="f1")
    assert Wrapped("Answer: {answer}", ChoiceText()).parse("Answer: one\nText: two", lines).score == pytest.approx(
        4 / 5
    )


TAG, JSON, BOX, QUOTE = "<answer>{answer}</answer>", '{"answer": "{answer}"}', r"\boxed{{answer}}", '"{answer}"'


def test_what_is_thought_aloud_is_no_answer() -> None:
    """Whatever the format; a thought that a limit cut leaves none."""
    number = Example("e", {}, ("36",), 0, is_open=True)
    for answer, example, right, wrong in (
        (Labels(), FOUR, "B", "C"), (ChoiceText(), FOUR, "she sits", "we go"), (Labels(("yes", "no", "so", "na")), FOUR, "no", "yes"), (Number(), number, "36", "12"),
        (Expression(), number, "36", "12"), (Wrapped(TAG, Labels()), FOUR, "<answer>B</answer>", "<answer>C</answer>"), (Wrapped("#### {answer}", Number()), number, "#### 36", "#### 12"),
    ):  # fmt: skip
        said = answer.parse(right, example)
        assert said.status == "valid"
        assert answer.parse(f"<think>\nIs it {wrong}?\n{wrong}\n</think>\n\n{right}", example) == said
        assert answer.parse(f"<think>\n{right}\nIs it {wrong}", example) == INVALID
        assert (
            answer.parse(f"{wrong}\nIs it {wrong}?\n</think>\n\n{right}", example) == said
        )  # the chat template opened it
        assert answer.parse(f"{right}</think>", example) == INVALID


def test_a_letter_after_a_fixed_phrase_is_read_in_its_line() -> None:
    cue = Wrapped("Answer: {answer}")
    for said, found in (
        ("Answer: B. she sits", 1), ("Well.\nANSWER:\n\n(C) they go\nA. he runs", 2), ("Answer: A man", "invalid"), ("Answer: A or B", "ambiguous"), ("Answer: B (she sits)", 1),
        ("Answer: A. So\nAnswer: B. So", "ambiguous"), ("Answer: A. So\nanswer: (a)", 0), ("B", "invalid"), ("Answer:", "invalid"), ("Answer:\n" * 10**5, "invalid"),
    ):  # fmt: skip
        assert read(cue, said, FOUR) == found, said[:40]


@pytest.mark.parametrize(
    ("wrap", "choices", "completion", "expected"),
    [
        (TAG, ("yes", "no"), "I think so.\n<ANSWER> Yes </answer> Bye", 0), (TAG, ("yes", "no"), "yes", "invalid"),
        (TAG, ("yes", "no"), "<answer>yes</answer> or <answer>no</answer>", "ambiguous"),
        (TAG, ("yes", "no"), "<answer>yes, I believe</answer>", "invalid"), (TAG, ("a", "b"), "<answer>a", "invalid"),
        (JSON, ("yes", "no"), '{"why": "no {idea}", "answer": "yes"}', 0), (JSON, ("yes", "no"), '{"answer": yes}', "invalid"),
        (JSON, ('say "hi"', "no"), r'{"answer": "say \"hi\""}', 0), (JSON, ("1", "2"), '{"answer": 2}', 1),
        (JSON, ("yes", "no"), '{"result": "yes"}', "invalid"), (JSON, ("{x}", "no"), 'Sure: {"answer": "{x}"}.', 0),
        (BOX, ("1", "2"), r"So $\boxed{2}$.", 1), (BOX, ("1", "2"), r"\boxed { 2 }", 1), (BOX, ("1", "2"), "2", "invalid"),
        (QUOTE, ('say "hi" now', "no"), 'It is "say "hi" now".', 0), (":{answer}:", ("a", "b"), "Answer: :b:", 1),
        ("It is {answer}.", ("Heat it", "Heat it. Then stir"), "It is Heat it. Then stir.", 1),
        ("It is {answer}.", ("Heat it", "Heat it. Then stir"), "It is Heat it.", 0), (JSON, ("a", "b"), '{"answer":' * 3000, "invalid"),
        ("Final: {answer}", ("a", "b"), "Hm.\nFinal: b.\nfinal thoughts: a", 1), ("Final: {answer}", ("a", "b"), "b", "invalid"),
    ],
)  # fmt: skip
def test_wrapped(wrap: str, choices: tuple[str, ...], completion: str, expected: int | str) -> None:
    assert read(Wrapped(wrap, ChoiceText()), completion, item(*choices)) == expected


@given(
    st.sampled_from([TAG, JSON, BOX, QUOTE, ":{answer}:", "**{answer}**", "So: {answer}"]),
    st.lists(st.text(min_size=1, max_size=12).filter(lambda t: visible(t)), min_size=2, max_size=4),
)
def test_every_wrapped_label_is_read_back(wrap: str, labels: list[str]) -> None:
    try:
        answer = Wrapped(wrap, Labels(tuple(labels)))
    except TemplateError:
        assume(False)
        return
    example = item(*(f"choice {n}" for n in range(len(labels))))
    for choice, surface in enumerate(answer.surfaces(example)):
        said = answer.parse(surface, example)
        assert said.choice in (choice, None)
        if all(label.isalnum() for label in labels):
            assert said == Parsed("valid", choice) == answer.parse(f"Well:\n{surface}\nDone.", example)


def visible(text: str) -> bool:
    return bool(text.strip()) and len(text.splitlines()) == 1


lines = st.text(min_size=1, max_size=12).filter(visible)


@given(st.lists(lines, min_size=2, max_size=5))
def test_every_label_is_read_back_by_its_own_format(labels: list[str]) -> None:
    try:
        answer = Labels(tuple(labels))
    except TemplateError:
        assume(False)
        return
    example = item(*(f"choice {n}" for n in range(len(labels))))
    for choice, surface in enumerate(answer.surfaces(example)):
        assert answer.parse(surface, example) == Parsed("valid", choice)
        assert answer.parse(f"\n  {surface}\nand more", example) == Parsed("valid", choice)


@given(
    st.lists(
        lines | st.lists(lines, min_size=2, max_size=3).map("\n".join),
        min_size=2, max_size=5, unique_by=lambda text: " ".join(text.split()),
    )
)  # fmt: skip
def test_every_choice_is_read_back(choices: list[str]) -> None:
    import unicodedata

    assume(len({" ".join(unicodedata.normalize("NFC", choice).split()) for choice in choices}) == len(choices))
    example = item(*choices)
    for number, choice in enumerate(choices):
        assert ChoiceText().parse(choice, example) == Parsed("valid", number)


words = st.sampled_from(
    ["A", "B", "a", "the", "answer", "is", "or", ".", ",", ":", "(", ")", "\n", "C", "because", "not", "Sarah", "Maria"]
)


@given(st.lists(words, max_size=12), st.permutations(range(3)))
def test_no_choice_is_privileged(said: list[str], order: list[int]) -> None:
    """Renaming the labels in set and completion alike renames the verdict and does nothing else."""
    names = ["Q", "R", "S"]
    text = " ".join(said).replace("A", "Q").replace("B", "R").replace("C", "S")
    renamed = "".join(names[order[names.index(c)]] if c in names else c for c in text)
    before = Labels(("Q", "R", "S")).parse(text, item("x", "y", "z"))
    after = Labels(("Q", "R", "S")).parse(renamed, item("x", "y", "z"))
    assert after.status == before.status
    assert after.choice == (None if before.choice is None else order[before.choice])


@given(st.text(max_size=200))
def test_any_completion_gets_a_verdict(text: str) -> None:
    for answer, example in ((Labels(), FOUR), (ChoiceText(), FOUR), (Labels(("no", "yes")), item("x", "y"))):
        parsed = answer.parse(text, example)
        assert (parsed.choice is not None) == (parsed.status == "valid")


@pytest.mark.parametrize(
    ("said", "choice"),
    [
        ("A is unrelated to the context.\nB is the most plausible ending.", 1),
        ("A is implausible. B seems best.", None),
        ("There is no doubt the answer is B.", 1),
        ("B: Not enough information", 1),
        ("The answer is B - no change.", 1),
        ("**Answer:** B: Too hot", 1),
        ("B is no doubt right.", 1),
        ("The wrong answer is A. The right one is B.", 1),
        ("The incorrect answer is A.", None),
        ("The worst answer is A; the best is B.", 1),
        ("If the answer is A, then she would sit. So the answer is B.", 1),
        ("I do not believe that the answer is A.", None),
        ("I don't think the answer is A.", None),
        ("A is in line with the context.", 0),
        ("The correct answer is option B. Option A is about sitting.", 1),
        ("Option A is tempting, but the answer is option B.", 1),
        ("**A** is wrong.", None),
        ("(A) is wrong.", None),
        ('"A" is wrong.', None),
        ("Option **A** is incorrect.", None),
        ("I think **option A** is wrong.", None),
        ("**A** is not right. **B** is right.", 1),
        ("(A) is implausible, (B) is plausible", None),
        ("(A) is incorrect because she stands. (C) is correct.", 2),
        ("(A) doesn\u2019t fit.", None),
        ("A is very unlikely.", None),
        ("A is the wrong one.", None),
        ("A is wrong. B is the most plausible.", 1),
        ("(A) is right.", 0),
        ("**A** is correct because B is not.", 0),
        ("A) is not shown again", 0),
        ("The answer is (A) is not shown again.", 0),
        ("Don't pick A.", None),
        ("Do not choose A.", None),
        ("I do not choose A.", None),
        ("I can't choose A.", None),
        ("I would never choose A.", None),
        ("I wouldn't say A.", None),
        ("Avoid option A.", None),
        ("Eliminate A.", None),
        ("答案不是 A。", None),
        ("不选A。", None),
        ("排除选项A。", None),
        ("It isn’t option A.", None),
        ("I can't pick the answer A.", None),
        ("Never choose option A.", None),
        ("We can rule out the option A.", None),
        ("Rejecting option A is wise.", None),
        ("I would not choose A. I choose B.", 1),
        ("Eliminate A. The answer is B.", 1),
        ("Do not choose A; choose B.", 1),
        ("A is not the answer. Option B is.", 1),
        ("选A", 0),
        ("应该选项 B。", 1),
        ("A. Avoid the option", 0),
        ("__B__", 1),
        ("_B_", 1),
        ("The answer is __B__.", 1),
    ],
)
def test_what_is_refused_is_not_given_and_marks_are_no_words(said: str, choice: int | None) -> None:
    assert Labels().parse(said, FOUR).choice == choice


def test_marks_of_underscores_are_no_part_of_a_choice_unless_a_choice_has_some() -> None:
    assert Labels(("yes", "no")).parse("__Yes__", item("x", "y")).choice == 0
    assert ChoiceText().parse("It is __good__", item("good", "bad")).choice == 0
    assert ChoiceText().parse("__init__", item("init", "__init__")).choice == 1


@pytest.mark.parametrize(
    ("gold", "said"),
    [
        ("10", "3 * 4 = 12 cookies; he eats two.\nThe final answer is \\boxed{10}"),
        ("18", "The final answer is $\\boxed{18}$ dollars for 5 days."),
        ("0.5", "So it is \\boxed{\\frac{1}{2}}."),
        ("18", "The answer is approximately 18. It took 3 days."),
        ("18", "The answer is £18. It took 3 days."),
        ("-5", "\u20135"),
        ("18", "_18_"),
        ("18", "9 * 2 = 16 and more. The answer is __18__."),
        ("18", "The answer is 18.\n\nQuestion: Tom has 3 apples.\nAnswer: 5"),
        ("18", "#### 18\n\nQuestion: Tom has 3 apples and total = 7"),
        ("7", "I take 2 steps.\nProblem: 3 and 4.\nAnswer: 7"),
        ("15", "Let x = 5.\nGoal: find 3x.\n3x = 15. The answer is 15."),
        ("9", "The sum is 4 + 5.\nText: so it goes.\nThe answer is 9"),
        ("15", "\\boxed{15\\text{ cm}^2}"),
        ("15", "\\boxed{3 * 5 = 15}"),
        ("1000", "Answer: 1e3"),
    ],
)
def test_a_number_is_read_where_people_give_it(gold: str, said: str) -> None:
    assert Number().parse(said, Example("e", {}, (gold,), 0, is_open=True)).choice == 0


def test_a_runaway_completion_is_read_in_no_time() -> None:
    for text in (
        "a, " * 20_000,
        "(" * 50_000,
        " " * 50_000,
        "is " * 50_000,
        "A or " * 20_000,
        ": " * 50_000,
        "answer " * 50_000,
        "(\n" * 50_000,
        "x\nquestion " * 10_000,
        "q" * 10**5,
        "answer" + " " * 10**5,
        "! " + "\t" * 10**5 + "x",
        "\\boxed{" * 30_000,
        "\\boxed" + "\n" * 10**5,
        "答案" * 50_000,
        "5" + "*" * 50_000 + "x",
        "5" + " * " * 20_000 + "x",
        "#" * 50_000 + "x",
        "_" * 50_000,
        "so 5" + "\n" * 50_000 + "x",
        "x" + "\n" * 50_000,
        "(a) is " * 20_000,
        "* a * is" * 20_000,
        "not the " * 20_000,
        "she sits " * 20_000,
    ):
        Labels().parse(text, FOUR)
        ChoiceText().parse(text, FOUR)
        Number().parse(text, Example("e", {}, ("5",), 0, is_open=True))
    for mark in ("**", '"'):
        Wrapped(f"{mark}{{answer}}{mark}", ChoiceText()).parse(mark * 5_000, item("a" * 100, "b" * 100))


def test_cues_and_wrappings_never_change_the_choice() -> None:
    wraps = ("{}", "({})", "{}.", "**{}**", "'{}'", "{}\n")
    cues = ("", "Answer: ", "The answer is ", "the correct answer is: ", "Option ", "I choose ")
    for labels in (
        ("A", "B", "C", "D"),
        ("1", "2", "3", "4"),
        ("i", "ii", "iii", "iv"),
        ("one", "two", "three", "four"),
    ):
        for cue, wrap, choice in itertools.product(cues, wraps, range(4)):
            assert Labels(labels).parse(cue + wrap.format(labels[choice]), FOUR).choice == choice, (cue, wrap, labels)


def test_letters_serve_as_many_choices_as_there_are_letters() -> None:
    assert Labels().surfaces(item("x", "y", "z")) == ("A", "B", "C")
    many = item(*(str(n) for n in range(27)))
    with pytest.raises(TemplateError, match="27 choices; letters serve at most 26"):
        Labels().surfaces(many)
    with pytest.raises(TemplateError, match="name 2 choices, example 'e' has 3"):
        Labels(("x", "y")).surfaces(item("1", "2", "3"))


def test_formats_survive_their_written_form() -> None:
    for answer in (Labels(), ChoiceText(), Labels(("no", "yes"))):
        assert answer_format_from(answer_format_to(answer)) == answer


SAID = st.text(alphabet="ABD ab.\n\r\u2028*1()he runsnot", max_size=14)


@given(
    SAID, SAID, st.sampled_from([Labels(), Labels(("yes", "no", "he", "runs")), ChoiceText(), Wrapped("<{answer}>")])
)
def test_what_follows_a_settled_answer_changes_nothing(begun: str, more: str, answer: AnswerFormat) -> None:
    example = item("he runs", "he", "runs not", "A")
    if answer.settled(begun, example):
        assert answer.parse(begun + more, example) == answer.parse(begun, example)


@pytest.mark.parametrize(
    ("answer", "begun", "settled"),
    [
        (Labels(), "A\n", True), (Labels(), "\n (B).\n", True), (Labels(), "A", False), (Labels(), "A man\n", False), (Labels(), "\n\n", False),
        (ChoiceText(), "she sits.\n", True), (ChoiceText(), "she sits", False), (Wrapped("<{answer}>"), "<A>\n", False),
    ],
)  # fmt: skip
def test_an_answer_is_settled_when_its_first_line_is_over(answer: AnswerFormat, begun: str, settled: bool) -> None:
    assert answer.settled(begun, FOUR) is settled


SUM = Example("e", {}, ("1234",), 0, is_open=True)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("1234", 0), ("1,234.", 0), ("$1,234.00", 0), ("**1234**", 0), ("\uff11\uff12\uff13\uff14", 0), ("\\boxed{1234}", 0),
        ("1233", OTHER), ("-1234", OTHER), ("12345", OTHER), ("12,34", OTHER), ("1/0", OTHER), ("9" * 5000, OTHER),
        ("1234\nor rather 5", 0), ("The answer is 1,234 apples.", 0), ("3 + 4 = 7, so #### 1234", 0), ("5 and then 1234", 0),
        ("The answer is 1234. Of these 7 are red.", 0), ("the total is 6; the answer: 1234", 0), ("x = 1234 = 12", OTHER),
        ("5-1234", 0), ("answer: 5\nanswer: 1234", 0), ("x1234", "invalid"), ("none", "invalid"), ("", "invalid"),
    ],
)  # fmt: skip
def test_a_number_is_read_where_the_answer_ends_up(completion, expected):
    assert read(Number(), completion, SUM) == expected


@pytest.mark.parametrize(
    "wrap", ["#### {answer}", "\\boxed{{answer}}", "<a>{answer}</a>", '{"answer": "{answer}"}', "[{answer}]"]
)
def test_a_wrapped_number_is_read_inside_its_wrap_alone(wrap):
    answer = Wrapped(wrap, Number())
    (gold,) = answer.surfaces(SUM)
    assert read(answer, gold, SUM) == 0
    assert read(answer, gold.replace("1234", "1,234.0"), SUM) == 0
    assert read(answer, gold.replace("1234", "7"), SUM) == OTHER
    assert read(answer, "1234", SUM) == "invalid"
    assert read(answer, f"{gold}\n{gold.replace('1234', '7')}", SUM) == "ambiguous"
    assert answer_format_from(answer_format_to(answer)) == answer


@given(st.fractions(max_denominator=50), st.sampled_from(["{}", "The answer is {}.", "#### {}", "so it is\n= {}"]))
def test_every_number_is_read_back_by_value(value, around):
    example = Example("e", {}, (str(value),), 0, is_open=True)
    assert number_in(str(value)) == value
    assert read(Number(), around.format(value), example) == 0
    assert read(Number(), around.format(value + 1), example) == OTHER


@pytest.mark.parametrize(
    "text", ["1,5", "0,5", "0,500", "12,34", "1,00,000", "1234,567", "1,234,5", "3$5", "1,5%", "1/2,000", "1,234,"]
)
def test_a_comma_parts_thousands_and_nothing_else(text):
    assert number_in(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1,234,567.5", "1234567.5"), ("-$1,234", "-1234"), ("$-5", "-5"), ("-\u20ac5", "-5"), ("5 \u20ac", "5"), ("+\u00a35", "5"), ("5$", "5"), ("50 %", "50")],
)  # fmt: skip
def test_a_number_with_its_signs_is_read_back_as_it_is_written(text, value):
    example = Example("e", {}, (text,), 0, is_open=True)
    assert number_in(text) == Fraction(value)
    for around in ("{}", "{}\n", "The answer is {}."):
        assert read(Number(), around.format(text), example) == 0


@given(st.text(alphabet="0123456789,.-$/%\u20ac\u00bd\u00b2\u2082{}\\! ", max_size=12))
def test_what_is_taken_as_a_right_number_is_read_as_right(text):
    if number_in(text) is not None:
        assert read(Number(), text, Example("e", {}, (text,), 0, is_open=True)) == 0


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("\\boxed{1{,}234}", "1234"), ("\\boxed{1,\\!234}", "1234"), ("\\boxed{1\\,234{,}567}", "1234567"), ("The answer is $1{,}234$.", "1234"),
        ("\u00bd", "1/2"), ("\u2212\u00bd", "-1/2"), ("1\u20442", "1/2"), ("The answer is 2\u00bd", "5/2"), ("The answer is 2 \u00bd cups", "5/2"),
        ("The answer is -1,000\u00bc", "-4001/4"), ("10\u00b2", "100"), ("The answer is 10\u00b2.", "100"), ("1.5\u00b2", "9/4"), ("10\u207b\u00b9", "1/10"),
        ("0\u207b\u00b9", "0"), ("The area is 15 cm\u00b2", "15"), ("101\u2082", "101"),
        ("\\boxed{\\frac12}", "1/2"), ("\\boxed{\\dfrac{1}2}", "1/2"), ("\\boxed{2\\frac{1}{2}}", "5/2"), ("\\boxed{-\\tfrac 1 2}", "-1/2"),
    ],
)  # fmt: skip
def test_latex_and_small_signs_keep_the_value_of_a_number(said, value):
    for gold in {value, "1", "2", "12", "21", "102", "1012"}:
        verdict = 0 if Fraction(gold) == Fraction(value) else OTHER
        assert read(Number(), said, Example("e", {}, (gold,), 0, is_open=True)) == verdict, gold
    assert (
        read(Wrapped("<a>{answer}</a>", Number()), f"<a>{value}</a>", Example("e", {}, (value,), 0, is_open=True)) == 0
    )


@given(st.text(), st.text())
def test_a_settled_number_stays_whatever_follows(start, more):
    if Number().settled(start, SUM):
        assert Number().parse(start, SUM) == Number().parse(start + more, SUM)


def test_numbers_are_for_open_answers_that_are_numbers():
    for example in (FOUR, Example("e", {}, ("seven",), 0, is_open=True)):
        with pytest.raises(TemplateError, match="needs an open answer that is a number"):
            Number().surfaces(example)
    for text in ("", "1.2.3", "--1", "e5", "1e", "1e9999", "one", "1/0", "9" * 300, "1 2"):
        assert number_in(text) is None
    with pytest.raises(DataError, match="2 right answers"):
        Example("e", {}, ("1", "2"), 0, is_open=True)
