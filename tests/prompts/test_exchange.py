"""Prompts of other tools and of code, read and written."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from paft.errors import PromptSetError
from paft.prompts import PromptSet, Template
from paft.prompts.exchange import prompts_table, read_prompts
from paft.tasks import ChoiceText, Labels


def read(tmp_path: Path, name: str, text: str, **how: object) -> list[Template]:
    file = tmp_path / name
    file.write_text(text, encoding="utf-8")
    found = read_prompts([file], **how)  # type: ignore[arg-type]
    assert not found.faulty
    return list(found.templates)


def test_text_files_hold_a_prompt_a_line_or_blocks(tmp_path: Path) -> None:
    lines = read(tmp_path, "a.txt", "First: {goal} {choices}\n\nSecond: {goal} {choices}\n")
    assert [t.text for t in lines] == ["First: {goal} {choices}", "Second: {goal} {choices}"]
    blocks = read(tmp_path, "b.txt", "One\n\n{goal}\n---\nTwo\n{goal}\n----\n")
    assert [t.text for t in blocks] == ["One\n\n{goal}", "Two\n{goal}"]
    assert blocks[1].origin["source"].endswith("b.txt, prompt 2")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("Q: {{ question }}", "Q: {goal}"), ("Q: {{question}} {A}", "Q: {goal} {A}"), ("Q: ${question}", "Q: {goal}"),
        ("Q: %(question)s, 5 %", "Q: {goal}, 5 %"), ("Q: {question}", "Q: {goal}"), ('{"a": {question}}', '{"a": {goal}}'),
    ],
)  # fmt: skip
def test_placeholders_of_any_spelling_become_slots(tmp_path: Path, given: str, text: str) -> None:
    (template,) = read(tmp_path, "a.j2", given, rename={"question": "goal"}, answer="text")
    assert template.text == text
    assert template.answer == ChoiceText()


def test_tables(tmp_path: Path) -> None:
    rows = (
        'prompt,answer,system\n"Do {goal}, ""now""",text,Be brief.\n{goal} {choices},"{""labels"": [""1"", ""2""]}",\n'
    )
    first, second = read(tmp_path, "a.csv", rows)
    assert (first.text, first.system, first.answer) == ('Do {goal}, "now"', "Be brief.", ChoiceText())
    assert (second.system, second.answer) == (None, Labels(("1", "2")))
    lines = read(tmp_path, "a.jsonl", '{"text": "{goal}?", "answer": "text"}\n"{goal} {choices}"\n')
    assert [t.text for t in lines] == ["{goal}?", "{goal} {choices}"]


def test_a_sheet(tmp_path: Path) -> None:
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["text", "answer"], ["{goal} {choices}", "letters"], [None, None]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    (template,) = read_prompts([tmp_path / "a.xlsx"]).templates
    assert template.text == "{goal} {choices}"


def test_yaml_of_other_tools(tmp_path: Path) -> None:
    nemo = "system: ''\nuser: |-\n  Solve this: {problem}\n\n  {choices}\n"
    (template,) = read(tmp_path, "generic.yaml", nemo, rename={"problem": "goal"})
    assert template.text == "Solve this: {goal}\n\n{choices}"
    source = (
        "dataset: piqa\ntemplates:\n  5c53ce9b: !Template\n    answer_choices: a ||| b\n    id: 5c53ce9b\n    jinja: 'Goal: {{goal}}\n\n"
        "      {{A}} or {{B}}? ||| {{answer_choices[label]}}'\n    name: choose\n    metadata: !TemplateMetadata {original_task: true}\n"
    )
    (template,) = read(tmp_path, "templates.yaml", source, answer="text")
    assert template.text == "Goal: {goal}\n{A} or {B}?"
    own = read(tmp_path, "own.yaml", PromptSet.load("piqa").to_yaml())
    assert {t.id for t in PromptSet.load("piqa").train} <= {t.id for t in own}


def test_strings_of_an_application(tmp_path: Path) -> None:
    code = '''
"""Docs with a {goal} count too: a reader of the list will see."""
def ask(question, a, b):
    log(f"asked {question_id}")
    return f"""Pick the better way.
{question}
1 {a} 2 {b}"""
OTHER = "no field here {x}"
SYSTEM = "Goal: {goal}. {choices}"
'''
    (tmp_path / "app").mkdir()
    found = read_prompts(
        [_write(tmp_path / "app" / "main.py", code)], rename={"question": "goal", "a": "A", "b": "B"}, slots=["goal"]
    )
    assert [t.text for t in found.templates] == [
        "Docs with a {goal} count too: a reader of the list will see.",
        "Goal: {goal}. {choices}",
        "Pick the better way.\n{goal}\n1 {A} 2 {B}",
    ]
    assert read_prompts([tmp_path / "app"], slots=["goal"]).templates[0].origin["source"].endswith("main.py, line 2")


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_what_cannot_be_a_template_is_named(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "a.jsonl",
        '{"text": "{% if x %}{{goal}}{% endif %}"}\n{"answer": "text"}\n{"text": "{goal}", "answer": "lettres"}\n',
    )
    found = read_prompts([file])
    assert [where.rpartition(", ")[2] for where, _ in found.faulty] == ["row 1", "row 2", "row 3"]
    assert "Jinja code at '{% if x %}" in found.faulty[0][1].reason
    assert "text is None" in found.faulty[1][1].reason
    for name, text, message in (
        ("a.json", "{", "not readable as .json"),
        ("a.py", "def (", "not readable as .py"),
        ("a.yaml", "a: [", "not readable as .yaml"),
    ):
        with pytest.raises(PromptSetError, match=message):
            read_prompts([_write(tmp_path / name, text)])
    with pytest.raises(PromptSetError, match=r"none\.csv: there is no such file"):
        read_prompts([tmp_path / "none.csv"])
    with pytest.raises(PromptSetError, match="nothing to read; expected files ending in"):
        read_prompts([_write(tmp_path / "a.bin", "x")])


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv"])
def test_a_set_survives_its_table(tmp_path: Path, kind: str) -> None:
    prompts = PromptSet.load("hellaswag")
    (tmp_path / f"a{kind}").write_text(prompts_table(prompts, kind), encoding="utf-8", newline="")
    again = read_prompts([tmp_path / f"a{kind}"]).templates
    assert [t.id for t in again] == [t.id for s in ("train", "dev", "test", "adversarial") for t in prompts.split(s)]  # type: ignore[arg-type]
    if kind == ".csv":
        with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["split"] for row in rows} == {"train", "dev", "test", "adversarial"}
        assert all(row["answer"] in ("letters", "text") or json.loads(row["answer"]) for row in rows)


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(PromptSetError, match=r"cannot write \.doc; expected \.jsonl, \.csv, \.tsv"):
        prompts_table(PromptSet.load("sst2"), ".doc")
