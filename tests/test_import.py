"""`paft prompts import` and `export`, from the shell."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from paft.cli import app
from paft.prompts import PromptSet
from tests.chat_server import NOUNS

RUN = CliRunner()


def test_prompts_of_an_application_become_a_set(tmp_path: Path) -> None:
    table = tmp_path / "old.csv"
    assert RUN.invoke(app, ["prompts", "export", "piqa", "-o", str(table)]).exit_code == 0
    some = tmp_path / "some.csv"
    some.write_text(
        "text\n" + "".join(f'"No {n} of many: {{{{ aim }}}} {{choices}}"\n' for n in range(3)), encoding="utf-8"
    )
    out = tmp_path / "mine"
    words = [
        "prompts",
        "import",
        str(table),
        str(some),
        "--task",
        "piqa",
        "--map",
        "aim=goal",
        "--out",
        str(out),
        "--json",
    ]
    result = RUN.invoke(app, words)
    assert result.exit_code == 0, result.output
    notes = json.loads(result.stdout)
    assert notes["audit"]["counts"] == {"near_duplicate": 7, "repeat": 3}  # 8 of the perturbed, 2 of the numbered
    prompts = PromptSet.load(out / "prompts.yaml")
    assert prompts.task == "piqa"
    assert len(prompts.train) > 5 * len(prompts.dev)
    assert notes["separation"]["wording"]["nearest"]["max"] < 0.3


def test_every_sound_prompt_has_a_place(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    words = [" ".join(NOUNS[n * 7 : n * 7 + 7]) for n in range(10)]
    file.write_text("\n".join(f"{each} {{goal}} {{choices}}" for each in words), encoding="utf-8")
    command = ["prompts", "import", str(file), "--task", "piqa", "--split", "1/1/1", "--json"]
    result = RUN.invoke(app, [*command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["got"] == {"train": 4, "dev": 3, "test": 3}


def test_too_few_sound_prompts_are_one_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("Only {goal} {choices}\nNo slot at all\n", encoding="utf-8")
    result = RUN.invoke(app, ["prompts", "import", str(file), "--task", "piqa", "--out", str(tmp_path / "out")])
    assert result.exit_code != 0
    assert "1 sound prompts of 2 read" in str(result.exception)
    assert not (tmp_path / "out" / "prompts.yaml").exists()
    for words, message in ((["--split", "1/2"], "three positive shares"), (["--map", "x"], "their_name=field")):
        result = RUN.invoke(
            app, ["prompts", "import", str(file), "--task", "piqa", "--out", str(tmp_path / "out"), *words]
        )
        assert message in str(result.exception)
