"""Prompts of other tools and of code, read and written."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from paft.cli import app
from paft.errors import PaftError, PromptSetError, TemplateError
from paft.prompts import ALL_SPLITS, PromptSet, Template
from paft.prompts.exchange import prompts_files, read_prompts
from paft.tasks import ChoiceText, Example, Labels, load_task
from paft.tasks.answers import Wrapped


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


@pytest.mark.skipif(sys.platform != "linux", reason="its file names are UTF-8")
def test_strings_with_percent_signs_and_names_in_other_bytes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Path(os.fsdecode(folder), "app.py").write_text('P = "Sort this: %(goal)s"\nQ = "Not %(this)s"\n', encoding="utf-8")
    found = read_prompts([tmp_path], slots=["goal"])
    assert [template.text for template in found.templates] == ["Sort this: {goal}"]
    assert found.templates[0].origin["source"] == rf"{tmp_path}/caf\udce9/app.py, line 1"


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".jsonl", ".yaml"])
def test_options_with_nothing_between_them_survive(tmp_path: Path, kind: str) -> None:
    template = Template("{goal} {choices}", Labels(), options="<{label}>{text}</{label}>", joiner="")
    prompts = PromptSet("piqa", (), (), (template,))
    text = prompts.to_yaml() if kind == ".yaml" else prompts_files(prompts, kind)[f"prompts{kind}"]
    (tmp_path / f"p{kind}").write_text(text, encoding="utf-8", newline="")
    assert read_prompts([tmp_path]).templates == (template,)


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


def test_a_file_of_a_directory_that_cannot_be_read_is_a_fault_and_the_others_are_read(tmp_path: Path) -> None:
    unreadable = {"tsconfig.json": b'{"a": 1} // so', "old.py": b"print 'x'", "notes.txt": "x".encode("utf-16")}
    for name, content in unreadable.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PromptSetError, match=name):
            read_prompts([tmp_path / name])
    _write(tmp_path / "a.txt", "Do {goal}\n")
    found = read_prompts([tmp_path], slots=["goal"])
    assert [template.text for template in found.templates] == ["Do {goal}"]
    assert {Path(where).name for where, _ in found.faulty} == set(unreadable)
    assert all(fault.name == "malformed" and where in fault.reason for where, fault in found.faulty)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"text": "{goal}", "text": "{goal} now"}'), ("a.json", '[{"text": "{goal}", "text": "{goal} now"}]'),
        ("a.yaml", "- text: '{goal}'\n  text: '{goal} now'\n"), ("b.yaml", "p: !Template\n  text: '{goal}'\n  text: '{goal} now'\n"),
    ],
)  # fmt: skip
def test_a_key_that_is_given_twice_is_named(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(PromptSetError, match=r"not readable as .*key 'text' is given twice"):
        read_prompts([_write(tmp_path / name, text)])


def test_a_cell_that_is_no_json_is_a_fault_of_its_row(tmp_path: Path) -> None:
    found = read_prompts([_write(tmp_path / "a.csv", 'text,answer\n{goal} one,"{labels: [x, y]}"\n{goal} two,text\n')])
    assert [template.text for template in found.templates] == ["{goal} two"]
    ((where, fault),) = found.faulty
    assert where.endswith("a.csv, row 1")
    assert "'{labels: [x, y]}': expected" in fault.reason


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv", ".xlsx"])
def test_a_set_survives_its_table(tmp_path: Path, kind: str) -> None:
    prompts = PromptSet.load("hellaswag")
    (content,) = prompts_files(prompts, kind).values()
    (tmp_path / f"a{kind}").write_bytes(content if isinstance(content, bytes) else content.encode())
    again = read_prompts([tmp_path / f"a{kind}"]).templates
    assert [t.id for t in again] == [t.id for s in ALL_SPLITS for t in prompts.split(s)]
    if kind == ".csv":
        with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["split"] for row in rows} == {"train", "dev", "test", "adversarial"}
        assert all(row["answer"] in ("letters", "text") or json.loads(row["answer"]) for row in rows)


def prompt_set(*train: Template) -> PromptSet:
    dev, test = (Template(text, Labels()) for text in ("For {goal} take\n{choices}", "{A} / {B}? So as to: {goal}"))
    return PromptSet("piqa", train, (dev,), (test,))


HOSTILE = (
    Template("=1+1 {goal} {choices}", Labels(), system="=SUM(A1)"),
    Template("  #N/A 1e3 _x000D_ x005F_ {goal}\n\t{choices}\n ", ChoiceText(), options="={label}", joiner=" \n"),
    Template(
        "{{{goal}}} {{goal}} {goal} {{ goal }} {% if goal %}{{{{x}}}}{# {choices} #}{% raw %} {", Labels(("1", "{{2}}"))
    ),
    Template(
        "\\boxed \"{goal}\" 'é𝄞\\' -}} %} {A}{B}}\n", Wrapped('{"x": {"y": {}}, "pick": "{answer}"}', ChoiceText())
    ),
    Template("{{-{goal}-}} ||| |||| {choices} |", Wrapped("||| \\{{answer}}}", ChoiceText()), system="{} {{A}} |||"),
)


def test_a_sheet_holds_text_only(tmp_path: Path) -> None:
    import openpyxl

    prompts = prompt_set(*HOSTILE)
    (content,) = prompts_files(prompts, ".xlsx").values()
    assert isinstance(content, bytes)
    (tmp_path / "a.xlsx").write_bytes(content)
    assert read_prompts([tmp_path / "a.xlsx"]).templates == (*prompts.train, *prompts.dev, *prompts.test)
    cells = [cell for row in openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows() for cell in row]
    assert {cell.data_type for cell in cells if cell.value is not None} == {"s"}


@pytest.mark.parametrize("text", ["bell \a", "cut \r\n", "no character \uffff", "long " * 7000])
def test_what_a_sheet_cannot_hold_is_one_line(text: str) -> None:
    template = Template("{goal} {choices}", Labels(), system=text)
    with pytest.raises(PromptSetError, match=f"^template {template.id}: system h.*32767$|.xlsx cannot; write .jsonl$"):
        prompts_files(prompt_set(template), ".xlsx")


def test_a_sheet_without_openpyxl_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(PromptSetError, match=r"writing \.xlsx needs openpyxl; pip install openpyxl, or write \.csv"):
        prompts_files(prompt_set(*HOSTILE), ".xlsx")


ODD = '{{ x }} {0.__class__} {% if %} ||| "quoted" \\ back\nnext ünï 𝄞'
FIELDS = {name: f"{name} {ODD}" for name in ("goal", "context", "activity", "sentence", "article", "question")}


def example_of(task: str) -> Example:
    found = load_task(task)
    choices = found.choices or tuple(f'{n} "of"\t{ODD}' for n in range(found.num_choices))
    return Example("e", {name: FIELDS[name] for name in (*found.fields, *found.optional_fields)}, choices, 1)


class TemplateOfPromptSource(yaml.YAMLObject):
    """What promptsource.templates.Template does with an entry."""

    yaml_tag = "!Template"
    yaml_loader = yaml.FullLoader
    BARS = "3ed2dface8203c4c9dfb1a5dc58e41e0"

    def _parts(self, jinja: str, values: dict[str, object]) -> list[str]:
        kept = {
            key: value.replace("|||", self.BARS) if isinstance(value, str) else value for key, value in values.items()
        }
        text = jinja2.Environment(loader=jinja2.BaseLoader).from_string(jinja).render(**kept)  # type: ignore[arg-type]
        return [part.replace(self.BARS, "|||").strip() for part in text.split("|||")]

    def apply(self, values: dict[str, object]) -> list[str]:
        jinja = self.jinja.replace("}}", " | string | truncate(2048) }}")  # type: ignore[attr-defined]
        return self._parts(jinja, {**values, "answer_choices": self.choices(values)})

    def choices(self, values: dict[str, object]) -> list[str]:
        return self._parts(self.answer_choices, values)  # type: ignore[attr-defined]


yaml.FullLoader.add_constructor("!TemplateMetadata", lambda loader, node: loader.construct_mapping(node, deep=True))


def assert_the_same_everywhere(prompts: PromptSet, task: str, example: Example) -> None:
    values: dict[str, object] = {**example.fields, **dict(zip("ABCDE", example.choices, strict=False)), "answer": 1}
    found = load_task(task)
    jinja, nemo = prompts_files(prompts, "jinja", found), prompts_files(prompts, "nemo", found)
    ((name, source),) = prompts_files(prompts, "promptsource", found).items()
    assert name == "templates.yaml"
    entries = yaml.load(source, Loader=yaml.FullLoader)
    assert entries["dataset"] == found.name
    assert all(uuid.UUID(key).version == 5 and key == entry.id for key, entry in entries["templates"].items())
    foreign = {entry.name: entry for entry in entries["templates"].values()}
    environments = [
        jinja2.Environment(trim_blocks=on, lstrip_blocks=on, keep_trailing_newline=on) for on in (True, False)
    ]
    expected = set()
    for split in ALL_SPLITS:
        for number, template in enumerate(prompts.split(split)):
            name = f"{split}-{number:03}-{template.id}"
            chat = {turn.role: turn.text for turn in template.render(example)}
            whole, target = "\n\n".join(chat.values()), template.target(example)
            files = {f"{name}.j2": chat["user"], f"{name}.target.j2": target}
            if template.system:
                files[f"{name}.system.j2"] = chat["system"]
            for file, text in files.items():
                for environment in environments:
                    assert environment.from_string(str(jinja[file])).render(values) == text
            expected |= set(files)
            held = yaml.safe_load(nemo[f"{name}.yaml"])
            user = held["user"].format(examples="", **values)
            assert user == (chat["user"] if "system" in held else whole)
            assert held.get("system") in (None, chat.get("system"))  # never filled in a chat
            assert foreign[name].apply(values) == [whole.strip(), target.strip()]
            assert foreign[name].choices(values) == [text.strip() for text in template.answer.surfaces(example)]
    assert set(jinja) == expected
    assert len(nemo) == len(foreign) == sum(len(prompts.split(split)) for split in ALL_SPLITS)


@pytest.mark.parametrize(
    ("name", "task"), [("piqa", "piqa"), ("hellaswag", "hellaswag"), ("sst2", "sst2"), ("race", "race-high")]
)
def test_other_tools_read_what_models_read(name: str, task: str) -> None:
    assert_the_same_everywhere(PromptSet.load(name), task, example_of(task))


def test_hostile_templates_stay_text() -> None:
    carriage = Template("{\r{\n{goal}\r\n{choices}{\n", Wrapped("x{{answer}\r", Labels()))
    assert_the_same_everywhere(prompt_set(*HOSTILE, carriage), "piqa", example_of("piqa"))


@settings(max_examples=200)
@given(st.lists(st.text("{}%#-+|=\r\n\"'\\ é𝄞\u2028", max_size=6), min_size=6, max_size=6))
def test_any_signs_around_a_slot_stay_text(signs: list[str]) -> None:
    a, b, c, d, e, f = signs
    wrap = Wrapped(f"x{d}{{answer}}{e}", ChoiceText())
    template = Template(f"x{a}{{goal}}{b}{{choices}}{c}", wrap, system=f"s{f}", joiner=d, options=f"{e}{{text}}{f}")
    if not any(template.faults(load_task("piqa"))):  # {{goal}} shows no field
        assert_the_same_everywhere(prompt_set(template), "piqa", example_of("piqa"))


def test_what_a_form_cannot_hold_is_one_line() -> None:
    prompts = prompt_set(*HOSTILE)
    with pytest.raises(
        PromptSetError, match=r"cannot write \.doc; expected \.jsonl, .*, or format promptsource, nemo, jinja$"
    ):
        prompts_files(prompts, ".doc")
    with pytest.raises(PromptSetError, match="format nemo lays options out; name the task"):
        prompts_files(prompts, "nemo")
    with pytest.raises(TemplateError, match=r"slot \{goal\} is not a field of task 'hellaswag'"):
        prompts_files(prompts, "jinja", load_task("hellaswag"))
    own = SimpleNamespace(
        name="own", fields=("goal",), optional_fields=("answer",), choices=None, num_choices=2, prompts=None
    )
    assert prompts_files(prompts, "nemo", own)  # type: ignore[arg-type]
    with pytest.raises(PromptSetError, match="format jinja: it gives answer a meaning of its own"):
        prompts_files(prompts, "jinja", own)  # type: ignore[arg-type]


def export(*words: str | Path) -> str:
    result = CliRunner().invoke(app, ["prompts", "export", *map(str, words)])
    assert result.exit_code == 0 or isinstance(result.exception, PaftError), result.output
    return str(result.exception or "")


def test_export_from_the_shell(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a"
    assert not export("sst2", "-o", out, "--format", "nemo")
    assert len(list(out.glob("test-*.yaml"))) == 56
    kept = {file.name: file.read_bytes() for file in out.iterdir()}
    assert "exists and is not an empty directory" in export("sst2", "-o", out, "--format", "jinja")
    assert kept == {file.name: file.read_bytes() for file in out.iterdir()}
    assert not export("sst2", "-o", tmp_path / "a.xlsx")
    assert [file.name for file in tmp_path.glob("*a.xlsx*")] == ["a.xlsx"]
    assert len(read_prompts([tmp_path / "a.xlsx"]).templates) == 155
    assert "did you mean 'nemo'?; expected" in export("sst2", "-o", tmp_path / "b", "--format", "nemmo")
    assert "cannot write .doc; expected" in export("sst2", "-o", tmp_path / "b.doc")
    mine = tmp_path / "mine.yaml"
    mine.write_text(prompt_set(*HOSTILE).to_yaml().replace("task: piqa", "task: mine"), encoding="utf-8")
    assert "not built in; name its file with --task" in export(mine, "-o", tmp_path / "b", "--format", "jinja")
    assert not export(mine, "-o", tmp_path / "b", "--format", "promptsource", "--task", "piqa")
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["templates.yaml"]


def test_columns_that_are_empty_in_lines_of_json_say_nothing(tmp_path):
    row = {"text": "Q: {q}\n{choices}", "options": "", "joiner": "", "system": ""}
    (tmp_path / "p.jsonl").write_text(json.dumps(row) + "\n")
    ((template,), faulty) = (found := read_prompts([tmp_path / "p.jsonl"])).templates, found.faulty
    assert (template.options, template.joiner, faulty) == ("{label}. {text}", "\n", ())
