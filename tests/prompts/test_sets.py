from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from paft.config import load_mapping
from paft.errors import ConfigError, PromptSetError, ResourceError, TemplateError
from paft.prompts import SPLITS, PromptSet, Template, shipped_sets
from paft.prompts.sets import _from_mapping
from paft.prompts.similarity import NEAR_DUPLICATE, grams, similarity_matrix, text_form
from paft.tasks import ChoiceText, Example, Labels, load_task
from paft.tasks.answers import Code, Plan, ToolCall, Wrapped
from paft.tasks.embeddings import judge_by
from paft.tasks.sandbox import allow_code
from tests.tiny import embed_by_text

TASKS_OF = {
    "hellaswag": ["hellaswag"],
    "piqa": ["piqa"],
    "winogrande": ["winogrande"],
    "race": ["race", "race-middle", "race-high"],
    "gsm8k": ["gsm8k"],
    "humaneval": ["humaneval"],
    "geometry3k": ["geometry3k"],
    "xstorycloze": [
        f"xstorycloze-{code}" for code in ("en", "ru", "zh", "es", "ar", "hi", "id", "te", "sw", "eu", "my")
    ],
    "teval-review": ["teval-review", "teval-review-cut"],
    "teval-plan": ["teval-plan", "teval-plan-cut"],
    "teval-instruct": ["teval-instruct", "teval-instruct-cut"],
    "sst2": ["sst2", "sst2-demo"],
    "sst2-words": ["sst2-demo", "sst2"],
}
SETS = {name: PromptSet.load(name) for name in TASKS_OF}
ALL = [
    (name, template)
    for name, found in SETS.items()
    for split in (*SPLITS, "adversarial")
    for template in found.split(split)
]
HOSTILE = (
    "{A} {choices} {{x}} {0.__class__}",
    "%s \\1 \\n <b> \"q\" 'q' `",
    "\u202eשלום\u202c \x00",
    "U.S.A. A. B) Answer: C",
    "",
)


def item(name: str, hostile: str = "plain") -> Example:
    task = load_task(TASKS_OF[name][0])
    fields = {field: f"{hostile} {field}" for field in (*task.fields, *task.optional_fields)}
    if getattr(task, "open_kind", "") and task.num_choices == 1:
        head = f"def f(x):\n    {hostile!r}\n"
        tested = {"prompt": head, "test": "def check(f):\n    assert f(1) == 2\n", "entry_point": "f"}
        plan = (
            '[{"id": 0, "name": "Shop.find", "args": {"thing": "a lamp"}}, {"id": 1, "name": "List.sort", "args": {}}]'
        )
        shown, right = {
            "code": (tested, f"{head}    return 2 * x\n"),
            "call": (fields, '{"name": "Shop.find", "args": {"thing": "a lamp", "most": 3}}'),
            "plan": ({**fields, "names": "Shop.find\nList.sort"}, plan),
            "number": (fields, "42"),
            "expression": (fields, "42"),
        }[task.open_kind]
        return Example("e", shown, (right,), 0, is_open=True)
    choices = task.choices or tuple(
        f"{hostile} ending {word}" for word in ("one", "two", "three", "four", "five")[: task.num_choices]
    )
    return Example("e", fields, choices, 0)


def write(tmp_path: Path, text: str, name: str = "set.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_shipped_set_is_known_here() -> None:
    assert set(shipped_sets()) == set(TASKS_OF)


@pytest.mark.parametrize("name", TASKS_OF)
def test_a_shipped_set_fits_its_tasks_and_is_large_enough(name: str) -> None:
    found = SETS[name]
    assert load_task(TASKS_OF[name][0]).prompts == name
    for task in TASKS_OF[name]:
        found.check(load_task(task))
    large = name not in ("sst2", "gsm8k", "humaneval", "geometry3k", "xstorycloze") and not name.startswith("teval-")
    assert len(found.train) >= (400 if large else 60)
    assert len(found.dev) >= (50 if large else 20)
    assert len(found.test) >= 50
    assert len(found.adversarial) == (0 if name == "sst2" else 10)
    parents = {template.id: template for template in found.dev}
    for template in found.adversarial:
        if template.origin["perturbation"] == "rough":  # written as it is, not made from another
            continue
        parent = parents[template.origin["parent"]]
        assert (template.answer, sorted(template.slots)) == (parent.answer, sorted(parent.slots))
        assert template.origin["perturbation"] in {
            "paraphrase",
            "typo",
            "casing",
            "punctuation",
            "order",
            "dropped words",
        }
    for first, second in (("train", "dev"), ("train", "test"), ("dev", "test")):
        assert found.similarity(first, second) < NEAR_DUPLICATE


@pytest.mark.parametrize(("name", "template"), ALL, ids=[f"{name}-{template.id}" for name, template in ALL])
def test_a_shipped_template_shows_hostile_fields_and_reads_its_own_answers(name: str, template: Template) -> None:
    if isinstance(template.inner_answer, Code):
        try:
            allow_code()
        except ResourceError as error:
            pytest.skip(str(error))
    judge_by(embed_by_text, "by text")
    for hostile in HOSTILE:
        example = item(name, hostile)
        text = "\n".join(message.text for message in template.render(example))
        for field in template.slots:
            if field in example.fields:
                assert example.fields[field] in text
        if load_task(TASKS_OF[name][0]).choices is None and ("choices" in template.slots or "A" in template.slots):
            assert all(choice in text for choice in example.choices) or "{text}" not in template.options
    example = item(name)
    for choice, surface in enumerate(template.answer.surfaces(example)):
        written = Template(template.text, template.answer).target(replace(example, answer=choice))
        assert written == surface
        if isinstance(template.inner_answer, Code | Plan | ToolCall):
            assert template.answer.parse(surface, example).choice == 0
            continue
        for said in (
            surface,
            f" {surface}",
            f"{surface}.",
            f"{surface}\n",
            f"{surface}\n\nBecause",
            *(() if isinstance(template.answer, Wrapped) else (surface.capitalize(), surface.upper())),
            f'"{surface}"',
            f"**{surface}**",
            f"({surface})",
            f"The answer is {surface}",
            f"The answer is {surface}.",
            f"Answer: {surface}",
            f"The correct answer is: {surface}\n",
        ):
            parsed = template.answer.parse(said, example)
            assert parsed.choice == choice, (said, parsed)  # the right one, and so every flip is another one


@pytest.mark.parametrize("name", TASKS_OF)
def test_a_shipped_set_survives_its_yaml(name: str, tmp_path: Path) -> None:
    found = SETS[name]
    back = PromptSet.load(write(tmp_path, found.to_yaml()))
    assert back == found
    assert back.fingerprint == found.fingerprint


def three(text: str) -> PromptSet:
    return PromptSet(
        "t",
        (Template(text, ChoiceText()),),
        (Template("zzzzz yyyyy {x}", Labels()),),
        (Template("qqqqqq wwww", Labels()),),
    )


AWKWARD = [
    " leading",
    "trailing ",
    "\nleading line",
    "trailing line\n",
    "a\n\n\nb",
    "a\n  \nb",
    "  a\n b\n",
    "\n \n a",
    "a \nb",
    "tab\there\n\tx",
    "\x85 next\x85",
    "\u2028line\u2029par",
    "\ufeffbom",
    "#x",
    "- x",
    "key: x",
    "'",
    '"',
    "|",
    "null",
    "yes",
    "1e5",
    "1_000",
    "~",
    "🙂\n🙂",
    "\x00",
    "a\x00\nb",
    "\x1b[0m",
    "\r\nx\r",
    "a\rb",
    "\u200f",
    "x" * 300 + " " + "y" * 300,
    "a: |\n  b",
    "\n\n",
    "---\n...",
    "%TAG",
    "\x7f",
]


@pytest.mark.parametrize("text", AWKWARD, ids=range(len(AWKWARD)))
def test_awkward_text_survives_yaml(text: str, tmp_path: Path) -> None:
    found = three(text)
    assert PromptSet.load(write(tmp_path, found.to_yaml())) == found


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.text(" \n\t\x85\u2028ab:-#'\"", min_size=1))
def test_any_text_survives_yaml(text: str) -> None:
    import tempfile

    found = three(text)
    with tempfile.TemporaryDirectory() as folder:
        assert PromptSet.load(write(Path(folder), found.to_yaml())) == found


def entries(**splits: list[str]) -> dict[str, object]:
    return {
        "task": "t",
        **{name: [{"text": text, "answer": "text"} for text in texts] for name, texts in splits.items()},
    }


def test_an_exact_repeat_is_refused_in_one_split_and_across() -> None:
    with pytest.raises(PromptSetError, match=r"train\[1\] repeats train\[0\] \(id [0-9a-f]{8}\); keep one"):
        _from_mapping(entries(train=["aaaaaa", "aaaaaa"], dev=["bbbbbb"], test=["cccccc"]), "f")
    with pytest.raises(PromptSetError, match=r"test\[0\] repeats train\[0\]"):
        _from_mapping(entries(train=["aaaaaa"], dev=["bbbbbb"], test=["aaaaaa"]), "f")


@pytest.mark.parametrize(("first", "second"), [("train", "test"), ("dev", "test"), ("train", "dev")])
def test_a_near_duplicate_across_splits_is_refused(first: str, second: str) -> None:
    texts = {"train": ["a first way of asking"], "dev": ["zweite Art zu fragen"], "test": ["troisieme maniere"]}
    texts[first] = ["Which ending follows the text {context} best of all?"]
    texts[second] = ["WHICH ending follows the text: {topic} best of all"]
    with pytest.raises(
        PromptSetError,
        match=rf"1 prompts of '{second}' are near-duplicates of '{first}' .*{first}\[0\] .* ~ {second}\[0\]",
    ):
        _from_mapping(entries(**texts), "f")


def test_near_duplicates_within_a_split_are_allowed() -> None:
    found = _from_mapping(
        entries(train=["Which ending follows best?", "Which ending follows best!"], dev=["zzzz"], test=["yyyy"]), "f"
    )
    assert len(found.train) == 2


def test_a_set_for_scoring_alone_has_test_prompts_only() -> None:
    found = _from_mapping(entries(test=["a question"]), "f")
    assert (found.train, found.dev, len(found.test)) == ((), (), 1)
    assert found.similarity("train", "test") == 0
    assert _from_mapping(yaml.safe_load(found.to_yaml()), "f").fingerprint == found.fingerprint
    with pytest.raises(PromptSetError, match="split 'test' is empty"):
        _from_mapping(entries(train=["a question"], dev=["another thing"], test=[]), "f")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**entries(train=["a"], dev=["b"], test=["c"]), "trian": []}, "unknown key 'trian', did you mean 'train'"),
        (entries(train=["a"], dev=["b"]), "key 'test' is missing"),
        ({"train": [], "dev": [], "test": []}, "key 'task' is missing"),
        ({**entries(train=["a"], dev=["b"]), "test": "c"}, "test is not a list of templates"),
        ({**entries(train=["a"], dev=["b"]), "test": ["c"]}, "test is not a list of templates"),
    ],
    ids=range(5),
)
def test_a_malformed_set_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(PromptSetError, match=message) as caught:
        _from_mapping(values, "f.yaml")
    assert str(caught.value).startswith("f.yaml: ")


def test_a_bad_template_is_named_with_split_and_place() -> None:
    values = entries(train=["a", "b"], dev=["c"], test=["d"])
    values["dev"] = [{"text": "x"}]
    with pytest.raises(TemplateError, match=r"^f, dev\[0\]: key 'answer' is missing"):
        _from_mapping(values, "f")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        PromptSet.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"not YAML .*, line [23] column"):
        PromptSet.load(write(tmp_path, "task: [\nx: y"))
    with pytest.raises(ConfigError, match=r"key 'train' is given twice, line 3"):
        PromptSet.load(write(tmp_path, "task: t\ntrain: []\ntrain: []\n"))
    with pytest.raises(PromptSetError, match="unknown, did you mean 'hellaswag'"):
        PromptSet.load("helaswag")


def test_check_refuses_a_set_of_another_task() -> None:
    with pytest.raises(TemplateError, match=r"slot \{context\} is not a field of task 'piqa'"):
        SETS["hellaswag"].check(load_task("piqa"))


def test_the_fingerprint_follows_content_and_split_only() -> None:
    a, b, c = (Template(text, ChoiceText()) for text in ("aaaaaa", "bbbbbb", "cccccc"))
    base = PromptSet("t", (a,), (b,), (c,))
    assert base.fingerprint == PromptSet("t", (a,), (b,), (c,), {"version": 2}).fingerprint
    assert base.fingerprint != PromptSet("t", (a,), (c,), (b,)).fingerprint


def test_similarity_ignores_case_punctuation_and_what_the_slots_are_called() -> None:
    assert text_form("Say: {context},\n  NOW!") == "say \u25a1 now"
    a, b = Template("Say: {context}, NOW!", Labels()), Template("say {sentence} now", Labels())
    assert similarity_matrix([a], [b])[0, 0] == 1
    assert similarity_matrix([a], [Template("Nothing in common", Labels())])[0, 0] == 0
    # abcde, bcdef against bcdef, cdefg: one of three grams is common
    assert similarity_matrix([Template("abcdef", Labels())], [Template("bcdefg", Labels())])[0, 0] == pytest.approx(
        1 / 3
    )
    assert grams("abc") == {"abc"}


def test_load_mapping_reads_what_ships() -> None:
    for file in shipped_sets().values():
        found = set(load_mapping(Path(str(file)))) - {"adversarial"}
        assert found == {"task", "version", "license", "origin", *SPLITS}


def test_a_split_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="no split 'tset', did you mean 'test'"):
        PromptSet.load("piqa").split("tset")
