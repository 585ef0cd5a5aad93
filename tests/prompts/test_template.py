from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paft.errors import TemplateError
from paft.prompts.template import Template, template_from, template_to
from paft.tasks import ChoiceText, Example, Labels, Split

HOSTILE = [
    "{choices}",
    "{A}",
    "{{A}}",
    "{0.__class__.__mro__}",
    "{!r:>10}",
    "%s %(x)d %",
    r"\1 \g<0> \n \\",
    "<script>alert(1)</script> & \"quoted\" 'twice'",
    "שלום \u202eabc\u202c",
    "a\x00b",
    "\ud800",
    "x" * 100_000,
    "U.S.A. Question: A. D. Answer:",
    "",
    "\n\n  \t",
    "${var} $(rm) `x`",
]


@dataclass(frozen=True)
class Toy:
    """A task of one required and one optional field."""

    name: str = "toy"
    fields: tuple[str, ...] = ("sentence",)
    optional_fields: tuple[str, ...] = ("topic",)
    choices: tuple[str, ...] | None = None
    num_choices: int = 2
    prompts: str | None = None

    def split(self, name: str) -> Split:
        return Split((), (), name)


def example(sentence: str = "s", choices: tuple[str, ...] = ("left", "right"), **fields: str) -> Example:
    return Example("e", {"sentence": sentence, **fields}, choices, 0)


def user_text(template: Template, item: Example) -> str:
    return template.render(item)[-1].text


@given(st.text(), st.text(), st.text())
def test_a_field_arrives_as_it_is(sentence: str, first: str, second: str) -> None:
    template = Template("<<{sentence}|{A}|{B}>>", Labels())
    item = Example("e", {"sentence": sentence}, (first, second + "x" + first), 0)
    assert user_text(template, item) == f"<<{sentence}|{first}|{second}x{first}>>"


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_fields_and_choices_arrive_as_they_are(value: str) -> None:
    template = Template("Q {sentence}\n{choices}\nend", Labels(), system="S {topic}", options="{label}) {text}")
    item = Example("e", {"sentence": value, "topic": value}, (value, value + "2"), 0)
    system, user = template.render(item)
    assert system.text == f"S {value}"
    assert user.text == f"Q {value}\nA) {value}\nB) {value}2\nend"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{sentence}} {sentence}", "{sentence} s"),
        ('{"answer": "{sentence}", "n": {}, "m": { x }}', '{"answer": "s", "n": {}, "m": { x }}'),
        ("{{{sentence}}}", "{{sentence}}"),
        ("{sentence }{ sentence}{1}{sentence", "{sentence }{ sentence}{1}{sentence"),
    ],
)
def test_other_braces_are_ordinary_characters(text: str, expected: str) -> None:
    assert user_text(Template(text, ChoiceText()), example()) == expected


def test_options_are_laid_out_by_options_and_joiner() -> None:
    template = Template("{sentence} {choices}", Labels(("1", "2")), options="[{label}={text}]", joiner=" / ")
    assert user_text(template, example()) == "s [1=left] / [2=right]"
    as_text = Template("{sentence} {choices}", ChoiceText(), options="{label}:{text}")
    assert user_text(as_text, example()) == "s A:left\nB:right"


def test_more_options_than_letters_are_refused() -> None:
    many = example(choices=tuple(str(n) for n in range(27)))
    for answer in (Labels(), ChoiceText()):
        with pytest.raises(TemplateError, match="27 choices; letters serve at most 26"):
            Template("{sentence} {choices}", answer).render(many)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(TemplateError, match=r"example 'e' has no field 'topic'"):
        Template("{sentence} {topic}", ChoiceText()).render(example())


def test_options_shown_one_by_one_must_be_all_options_of_the_example() -> None:
    template = Template("{sentence} {A} {B}", Labels())
    with pytest.raises(TemplateError, match=r"shows 2 options one by one, example 'e' has 3; use \{choices\}"):
        template.render(example(choices=("a", "b", "c")))
    with pytest.raises(TemplateError, match="shows 2 options"):
        Template("{sentence} {A} {B}", ChoiceText()).render(example(choices=("a", "b", "c")))


GOOD = Template("{sentence}\n{choices}", Labels())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            Template("{sentense} {choices}", Labels()),
            r"slot \{sentense\} is not a field of task 'toy', did you mean 'sentence'\?",
        ),
        (Template("{sentence} {answer}", ChoiceText()), r"slot \{answer\} .*it is the answer and may not be shown"),
        (Template("{sentence} {C}", ChoiceText()), r"slot \{C\} is not a field"),
        (Template("{choices}", Labels()), r"slot \{sentence\} is missing; every prompt of task 'toy' shows sentence"),
        (Template("{sentence} {sentence} {choices}", Labels()), r"slot \{sentence\} occurs 2 times; expected once"),
        (Template("{choices}", Labels(), system="{sentence} {choices}"), r"slot \{choices\} occurs 2 times"),
        (Template("{sentence} {A}", Labels()), r"shows option \{A\} but not \{B\}"),
        (Template("{sentence} {B}", Labels()), r"shows option \{B\} but not \{A\}"),
        (Template("{sentence} {A} {B} {choices}", Labels()), "shows the options twice"),
        (Template("{sentence}", Labels()), r"asks for a label but shows no options; add \{choices\}"),
        (Template("{sentence} {choices}", Labels(("x", "y", "z"))), "has 3 labels; task 'toy' has 2 choices"),
        (Template("{sentence} {choices}", Labels(), options="- option"), "shows neither {label} nor {text}"),
        (Template(r"{sentence}\n{choices}", Labels()), r"literal '\\\\n' \(two characters\)"),
        (Template("{sentence} {choices}", Labels(), joiner=r"\n"), "two characters"),
        (Template("{sentence} {choices}", Labels(), system=r"a\tb"), "two characters"),
        (Template("{sentence} [YOUR NAME] {choices}", Labels()), r"unfilled blank '\[YOUR NAME\]'"),
        (Template("{sentence} [insert text here] {choices}", Labels()), "unfilled blank"),
        (Template("<text> {sentence} {choices}", Labels()), "'<text>' without a closing tag"),
    ],
    ids=lambda value: None if isinstance(value, Template) else str(value)[:25],
)
def test_check_names_the_fault(template: Template, message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        template.check(Toy())
    assert str(caught.value).startswith(f"template {template.id} (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "task"),
    [
        (GOOD, Toy()),
        (Template("{sentence} {topic} {A} {B}", Labels(("x", "y"))), Toy()),
        (Template("{sentence}", Labels(("no", "yes"))), Toy(choices=("bad", "good"))),
        (Template("{sentence} <text>{choices}</text> <answer>", Labels()), Toy()),
        (Template("a_b [x] array[0] {{label}} {sentence} {choices}", Labels()), Toy()),
        (Template("", ChoiceText(), system="{sentence}"), Toy(fields=("sentence",))),
    ],
    ids=range(6),
)
def test_check_accepts_what_can_be_asked(template: Template, task: Toy) -> None:
    if template.text:
        template.check(task)
    else:
        with pytest.raises(TemplateError, match="has no text"):
            template.check(task)


def test_the_id_is_a_hash_of_what_is_rendered_and_nothing_else() -> None:
    base = Template("{sentence}\n{choices}", Labels())
    assert base.id == dataclasses.replace(base, origin={"writer": "x"}).id == dataclasses.replace(base, system="").id
    others = [
        dataclasses.replace(base, text="{sentence} \n{choices}"),
        dataclasses.replace(base, answer=ChoiceText()),
        dataclasses.replace(base, answer=Labels(("a", "b"))),
        dataclasses.replace(base, system="s"),
        dataclasses.replace(base, options="{label}) {text}"),
        dataclasses.replace(base, joiner=" "),
    ]
    assert len({base.id, *(other.id for other in others)}) == 7
    assert base.id == "66af92b9"  # stored cells and prompt files are addressed by it


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(
    st.builds(
        Template,
        texts,
        st.sampled_from([Labels(), ChoiceText(), Labels(("no", "yes")), Labels(("1", "2"))]),
        system=st.none() | texts,
        options=texts,
        joiner=st.text(st.characters(exclude_categories=["Cs"])),
        origin=st.dictionaries(st.sampled_from(["writer", "strategy"]), texts),
    )
)
def test_a_template_survives_its_mapping(template: Template) -> None:
    back = template_from(template_to(template), "here")
    assert back == template
    assert back.id == template.id
    assert back.origin == template.origin


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text": "x"}, "key 'answer' is missing"),
        ({"answer": "text"}, "key 'text' is missing"),
        ({"text": "x", "answer": "text", "optoins": "y"}, "unknown key 'optoins', did you mean 'options'"),
        ({"text": 5, "answer": "text"}, "text is 5; expected text"),
        ({"text": None, "answer": "text"}, "text is None; expected text"),
        ({"text": "x", "answer": "leters"}, "answer 'leters': expected 'letters', 'text', "),
        ({"text": "x", "answer": {"labels": [False, True]}}, "quote yes/no"),
        ({"text": "x", "answer": {"labels": ["a"]}}, "two or more"),
        ({"text": "x", "answer": {"labels": ["a", "A"]}}, "differ only in case"),
        ({"text": "x", "answer": {"labels": ["a b", "a  b"]}}, "or spacing"),
        ({"text": "x", "answer": {"labels": "ab"}}, "expected 'letters'"),
        ({"text": "x", "answer": {"labels": ["a", "b"], "x": 1}}, "expected 'letters'"),
        ({"text": "x", "answer": "text", "id": "00000000"}, "stored id '00000000' is not that of its content"),
        ({"text": "\ud800", "answer": "text"}, "text holds half a surrogate pair"),
        ({"text": "x", "answer": {"labels": ["a", "\udfff"]}}, "answer holds half a surrogate pair"),
    ],
    ids=range(15),
)
def test_a_wrong_entry_is_refused_with_its_place(entry: dict[str, object], message: str) -> None:
    with pytest.raises(TemplateError, match=message) as caught:
        template_from(entry, "file.yaml, train[3]")
    assert str(caught.value).startswith("file.yaml, train[3]: ")


def test_an_id_of_digits_stays_text_in_yaml() -> None:
    from paft.config import dump_yaml

    for made in ("12345678", "12345e10", "1e234567", "0x123456", "00012345"):
        assert yaml.safe_load(dump_yaml({"id": made})) == {"id": made}


@pytest.mark.parametrize(
    "like", ["{sentence!r}", "{sentence:>9}", "{ sentence }", "{{sentence}}", "{sentence", "sentence}"]
)
def test_what_only_looks_like_a_slot_is_named(like: str) -> None:
    faults = Template(f"Review: {like}\nWord: {{choices}}", Labels()).faults(Toy())
    (missing,) = (fault.reason for fault in faults if fault.name == "slot_missing")
    assert f"{like!r} is read as text, a slot is {{sentence}}" in missing
