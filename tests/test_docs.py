"""What the documents show works: the Python of the README, every example configuration, every link."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paft.cli import app
from paft.config import PolicyConfig, load_mapping, load_run_config, validate
from paft.prompts import PromptSet
from paft.tasks import load_task

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.real
def test_the_python_of_the_readme_runs(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert "Estimate(name='mean'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "examples").glob("*.yaml"), *(ROOT / "src" / "paft" / "configs").glob("*.yaml")]),
    ids=lambda p: p.name,
)
def test_every_example_configuration_is_valid_for_its_task_and_prompts(path):
    config = load_run_config(path)
    task = load_task(config.task)
    PromptSet.load(config.prompts or task.prompts or "").check(task)


def test_the_policy_and_the_workflow_of_the_examples_are_valid():
    folder = ROOT / "examples" / "ci"
    validate(PolicyConfig, load_mapping(folder / "policy.yaml"), "policy.yaml")
    steps = load_mapping(folder / "paft-gate.yml")["jobs"]["gate"]["steps"]
    commands = [line.split() for step in steps for line in step.get("run", "").splitlines() if line.startswith("paft ")]
    assert [words[1] for words in commands] == ["eval", "gate"]
    for words in commands:
        described = CliRunner().invoke(app, [words[1], "--help"], env={"COLUMNS": "200"}).output
        for option in (word for word in words if word.startswith("--")):
            assert option in re.sub(r"\x1b\[[0-9;]*m", "", described), option


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_configuration_page_names_every_setting():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    known = load_run_config(ROOT / "src" / "paft" / "configs" / "demo.yaml").model_dump()
    for section in ("data", "train", "evaluate"):
        for key in known[section]:
            assert key in text, f"{section}.{key}"
