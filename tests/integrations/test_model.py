"""Trained arms handed on: an adapter or merged weights that answer as the run did, with a card that tells what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft import pipeline
from paft.config import load_run_config
from paft.errors import ConfigError, DataError
from paft.integrations.model import export_model, for_older_readers, model_card, older_words
from paft.lm.hf import load_model
from paft.lm.types import Message, Question
from paft.watch import LineWatcher
from tests import tiny

QUESTION = Question((Message("user", "cat 7 red mat: red or blue?"),), ("red", "blue"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    pipeline.run(load_run_config(tiny.write_config(folder)), folder / "out", LineWatcher(quiet=True))
    return folder / "out"


def test_adapter_and_merged_weights_answer_as_the_arm_did(run: Path, tmp_path: Path) -> None:
    base = json.loads((run / "results.json").read_text())["config"]["model"]
    (tuned,) = load_model(base, adapter=run / "paft" / "adapter").answer([QUESTION])
    (plain,) = load_model(base).answer([QUESTION])
    adapter = export_model(run, "paft", tmp_path / "adapter")
    merged = export_model(run, "paft", tmp_path / "merged", merge=True)
    (a,) = load_model(base, adapter=adapter).answer([QUESTION])
    (m,) = load_model(str(merged)).answer([QUESTION])
    assert a.logp_C == pytest.approx(tuned.logp_C, abs=1e-6)
    assert m.logp_C == pytest.approx(tuned.logp_C, abs=1e-4)
    assert m.logp_C != pytest.approx(plain.logp_C, abs=1e-3)
    told, words = (json.loads((merged / name).read_text()) for name in ("config.json", "tokenizer_config.json"))
    assert told["rope_theta"] == told["rope_parameters"]["rope_theta"]
    assert (words["tokenizer_class"], words["model_input_names"]) == (
        "PreTrainedTokenizerFast",
        ["input_ids", "attention_mask"],
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    assert torch.isfinite(model(**tokenizer("red or blue", return_tensors="pt")).logits).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "merged"]


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_theta": 1e5, "rope_type": "default"}, {"rope_theta": 1e5}),
        ({"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0},
         {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
        ({"full": {"rope_theta": 1e5}}, None),
    ],
)  # fmt: skip
def test_what_transformers_4_reads_by_other_words(tmp_path: Path, rope: dict[str, object], words: object) -> None:
    assert older_words(tmp_path) == {}
    (tmp_path / "config.json").write_text(json.dumps({"rope_parameters": rope}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "TokenizersBackend"}))
    found = older_words(tmp_path)
    assert found.pop("tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found.get("config.json") == words
    for_older_readers(tmp_path)
    assert older_words(tmp_path) == {}


def test_the_card_carries_the_robustness_table(run: Path, tmp_path: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    card = ModelCard.load(export_model(run, "paft", tmp_path / "out") / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", results["config"]["model"])
    scores = results["arms"]["paft"]["scores"]
    values = {each.metric_name: each.metric_value for each in card.data.eval_results}
    for scorer, name in (("generation", "free answers"), ("likelihood", "restricted choice")):
        assert values[f"{name}, mean over prompts"] == round(scores[scorer]["estimates"]["mean"]["value"], 4)
    for arm in results["arms"].values():
        assert f"| {arm['title']} |" in card.text
    assert '"steps_per_prompt"' in card.text


def test_hostile_names_stay_names(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())
    results["config"]["name"] = "x\n---\nlicense: evil\n# `big"
    text = model_card(results, "paft", merged=True)
    head = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert "license" not in head
    assert "\n# `big" not in text


@pytest.mark.parametrize(
    ("arm", "merge", "message"), [("base", False, "trained there: single, paft"), ("pft", False, "trained there")]
)
def test_what_was_not_trained_is_refused(run: Path, tmp_path: Path, arm: str, merge: bool, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(run, arm, tmp_path / "out", merge=merge)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ConfigError, match="new or empty directory"):
        export_model(run, "paft", tmp_path / "full")
    with pytest.raises(DataError):
        export_model(tmp_path, "paft", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as an upload of small files asks for."""

    heard: list[tuple[str, bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Hub.heard.append((self.path, body))
        if self.path.endswith("/api/repos/create"):
            told: object = {"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            told = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        else:
            told = {"commitUrl": f"http://{self.headers['Host']}/me/model/commit/abc", "commitOid": "abc"}
        self._say(told)

    def do_GET(self) -> None:
        self._say({"id": "me/model", "modelId": "me/model", "sha": "0" * 40, "siblings": [], "name": "me"})

    def _say(self, told: object) -> None:
        text = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def command(run: Path, out: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    import os

    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_x", "HF_HUB_DISABLE_XET": "1"}
    environment.pop("HF_HUB_OFFLINE", None)
    asked = [
        sys.executable,
        "-m",
        "paft",
        "export",
        "model",
        f"{run}:paft",
        "--out",
        str(out),
        "--push",
        "me/model",
    ]
    return subprocess.run(asked, capture_output=True, text=True, env=environment, check=False)


def test_a_push_uploads_weights_and_card(run: Path, tmp_path: Path) -> None:
    Hub.heard.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        done = command(run, tmp_path / "out", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert done.returncode == 0, done.stderr
    create = next(json.loads(body) for path, body in Hub.heard if path.endswith("/repos/create"))
    assert create.get("visibility") == "private" or create["private"] is True
    commit = next(body for path, body in Hub.heard if "/commit/" in path).decode()
    for name in ("README.md", "adapter_model.safetensors", "adapter_config.json"):
        assert f'"{name}"' in commit


def test_a_hub_that_cannot_be_reached_is_one_line_and_loses_nothing(run: Path, tmp_path: Path) -> None:
    done = command(run, tmp_path / "out", "http://127.0.0.1:9")
    assert done.returncode == 2, done.stderr
    assert "not uploaded" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "README.md").exists()
