"""A server of the tiny model with the habits of vLLM, of llama.cpp or of stricter servers, and the faults of the chat server."""

from __future__ import annotations

from http.server import BaseHTTPRequestHandler
from typing import Any

import torch

from paft.lm.hf import HFModel
from tests import tiny
from tests.chat_server import ChatServer

KNOWN = {"model", "prompt", "messages", "max_tokens", "temperature", "logprobs", "echo"}


class ModelServer(ChatServer):
    """`with ModelServer(echo=False) as server:` serves `lm` at server.url.

    top: most likeliest tokens it tells of. names: how it names them: as vLLM does, as llama.cpp does, or by text alone.
    echo, prompt_logprobs: whether it has these ways; "shifted": its scores stand one place too late. ids: whether it takes token
    ids. chosen: whether it knows `logprob_token_ids`. strict: whether it refuses fields it does not know. begin: a token of its
    own that it puts before every prompt. skips_begin: leaves begin tokens out of what it echoes, as llama-cpp-python does.
    """

    def __init__(
        self,
        lm: HFModel | None = None,
        *,
        top: int = 20,
        names: str = "vllm",
        echo: bool | str = True,
        prompt_logprobs: bool = True,
        ids: bool = True,
        chosen: bool = False,
        strict: bool = False,
        begin: bool = False,
        skips_begin: bool = False,
        models: tuple[str, ...] = ("tiny",),
        listed: bool = True,
        **faults: Any,
    ):
        super().__init__(**faults)
        self.lm = lm or tiny.hf_model()
        self.top, self.names, self.echo, self.prompt_logprobs, self.ids, self.chosen = (
            top, names, echo, prompt_logprobs, ids, chosen,
        )  # fmt: skip
        self.strict, self.begin, self.skips_begin, self.models, self.listed = strict, begin, skips_begin, models, listed

    def respond(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> tuple[int, Any]:
        if request.path == "/v1/models":
            return (200, {"data": [{"id": name} for name in self.models]}) if self.listed else (404, "no such page")
        if body["model"] not in self.models:
            return 404, f"no model {body['model']}"
        if self.strict and set(body) - KNOWN:
            return 400, f"unknown fields {sorted(set(body) - KNOWN)}"
        if request.path == "/v1/chat/completions":
            turns = [{"role": turn["role"], "content": turn["content"]} for turn in body["messages"]]
            prompt = self.lm.tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
            said, stop = self.generate(prompt, body["max_tokens"])
            message = {"role": "assistant", "content": self.lm.tokenizer.decode(said, skip_special_tokens=True)}
            return 200, self.whole({"message": message, "finish_reason": stop}, len(prompt), len(said))
        if request.path != "/v1/completions":
            return 404, "no such page"
        return self.complete(body)

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, list) and not self.ids:
            return 422, "prompt: a text is wanted"
        if isinstance(prompt, str):
            prompt = self.lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if self.begin:
            prompt = [0, *prompt]
        if body.get("logprobs") and body["logprobs"] > self.top:
            return 400, f"at most {self.top} logprobs"
        if body.get("echo") and not self.echo:
            return 400, "Only no echo is supported"
        said, stop = self.generate(prompt, body["max_tokens"])
        answer: dict[str, Any] = {
            "text": self.lm.tokenizer.decode(said, skip_special_tokens=True),
            "finish_reason": stop,
        }
        logp_TV = self.log_probabilities([*prompt, *said])
        if body.get("logprobs"):
            answer["logprobs"] = self.logprobs(body, logp_TV, prompt, said)
        if body.get("prompt_logprobs") and self.prompt_logprobs:
            scores = [{str(prompt[t]): {"logprob": float(logp_TV[t - 1, prompt[t]])}} for t in range(1, len(prompt))]
            answer["prompt_logprobs"] = [None, *scores]
        if body.get("return_token_ids") and self.names == "vllm":
            answer["token_ids"] = said
        return 200, self.whole(answer, len(prompt), len(said))

    def logprobs(
        self, body: dict[str, Any], logp_TV: torch.Tensor, prompt: list[int], said: list[int]
    ) -> dict[str, Any]:
        tokens = [*prompt, *said]
        values = [None, *(float(logp_TV[t - 1, tokens[t]]) for t in range(1, len(tokens)))]
        if self.echo == "shifted":
            values = [None, *values[:-1]]
        if self.skips_begin:
            values = [value for token, value in zip(tokens, values, strict=True) if token != 0]
        best = logp_TV[len(prompt) - 1].topk(min(body["logprobs"], logp_TV.shape[1]))
        top = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        if self.chosen and "logprob_token_ids" in body:
            top = {token: float(logp_TV[len(prompt) - 1, token]) for token in body["logprob_token_ids"]}
        top[said[0]] = float(logp_TV[len(prompt) - 1, said[0]])
        if self.names == "llama":
            return {"content": [{"id": said[0], "top_logprobs": [{"id": t, "logprob": v} for t, v in top.items()]}]}
        named = {f"token_id:{t}" if self.names == "vllm" else self.lm.tokenizer.decode([t]): v for t, v in top.items()}
        return {"token_logprobs": values if body.get("echo") else values[-len(said) :], "top_logprobs": [named]}

    def log_probabilities(self, ids: list[int]) -> torch.Tensor:
        with self.lock, torch.inference_mode():
            return self.lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)

    def generate(self, prompt: list[int], limit: int) -> tuple[list[int], str]:
        said: list[int] = []
        while len(said) < limit:
            said.append(int(self.log_probabilities([*prompt, *said])[-1].argmax()))
            if said[-1] in self.lm.end_ids:
                return said, "stop"
        return said, "length"

    def whole(self, choice: dict[str, Any], asked: int, given: int) -> dict[str, Any]:
        usage = {"prompt_tokens": asked, "completion_tokens": given}
        return {"model": self.models[0], "choices": [choice], "usage": usage}
