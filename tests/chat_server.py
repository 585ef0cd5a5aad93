"""A chat server that answers each request with prompts made from a hash of it, and that can fail in five ways."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NOUNS = [
    "apple",
    "bridge",
    "candle",
    "desert",
    "engine",
    "forest",
    "garden",
    "harbour",
    "island",
    "jacket",
    "kitchen",
    "ladder",
    "market",
    "needle",
    "orchard",
    "pocket",
    "quarry",
    "river",
    "saddle",
    "tunnel",
    "umbrella",
    "village",
    "window",
    "yard",
    "zebra",
    "anchor",
    "basket",
    "carpet",
    "drawer",
    "elbow",
    "feather",
    "glove",
    "hammer",
    "insect",
    "jungle",
    "kettle",
    "lantern",
    "mirror",
    "napkin",
    "oven",
    "pencil",
    "quilt",
    "ribbon",
    "statue",
    "ticket",
    "uniform",
    "violin",
    "whistle",
    "yogurt",
    "almond",
    "barrel",
    "cellar",
    "dolphin",
    "easel",
    "falcon",
    "grocer",
    "helmet",
    "igloo",
    "jigsaw",
    "kennel",
    "lizard",
    "magnet",
    "nostril",
    "otter",
    "parrot",
    "raisin",
    "sandal",
    "teapot",
    "urchin",
    "vessel",
    "walnut",
    "acorn",
    "bucket",
    "cushion",
    "dinghy",
    "ember",
    "flute",
    "goblet",
    "hinge",
    "inkwell",
    "jersey",
]


def prompts_for(body: dict[str, Any], count: int = 5) -> list[dict[str, Any]]:
    """Templates for the colours task: sound ones, and now and then one with a fault."""
    draw = random.Random(hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest())
    entries = []
    for _ in range(count):
        words = " ".join(draw.choice(NOUNS) for _ in range(draw.randint(5, 14)))
        kind = draw.random()
        if kind < 0.1:
            entries.append({"text": f"{words}: red or blue?", "answer": {"labels": ["red", "blue"]}})  # no slot
        elif kind < 0.2:
            entries.append({"text": f"{words} {{text}}", "answer": "lettres"})  # no such form
        else:
            entries.append({"text": f"{words}\n{{text}}\nred or blue?", "answer": {"labels": ["red", "blue"]}})
    return entries


class ChatServer:
    """`with ChatServer(faults=0.3) as server:` listens on server.url. asked: bodies in order; paid: whole good replies."""

    def __init__(
        self,
        faults: float = 0.0,
        *,
        reply: Any = None,
        status: int = 0,
        retry_after: str = "0",
        delay: float = 0.0,
        kinds: tuple[str, ...] = ("429", "500", "cut", "json", "silence"),
    ):
        self.faults, self.reply, self.status, self.retry_after, self.delay = faults, reply, status, retry_after, delay
        self.send_padding = 0
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str] = set()
        self.paid: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.draw = random.Random(7)
        self.kinds = itertools.cycle(kinds)
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer.handle(self)

            def do_GET(self) -> None:
                outer.handle(self)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers.get("content-length", 0))) or "{}")
        with self.lock:
            self.asked.append(body)
            self.times.append(time.monotonic())
            self.keys.add(request.headers.get("authorization", ""))
            fault = next(self.kinds) if self.draw.random() < self.faults else ""
            if fault:
                self.failed[fault] += 1
        time.sleep(self.delay)
        if self.status:
            return self.send(
                request, self.status, f"{'x' * self.send_padding} says {request.headers.get('authorization')}".encode()
            )
        if fault in ("429", "500"):
            return self.send(request, int(fault), b"later", {"Retry-After": self.retry_after} if fault == "429" else {})
        if fault == "silence":
            time.sleep(1.2)
            request.close_connection = True
            return None
        if fault == "json":
            return self.send(request, 200, b"<html>gateway</html>")
        status, answer = self.respond(request, body)
        whole = json.dumps(answer).encode()
        if fault == "cut":
            request.send_response(200)
            request.send_header("Content-Length", str(len(whole)))
            request.end_headers()
            request.wfile.write(whole[: len(whole) // 2])
            request.close_connection = True
            return None
        with self.lock:
            self.paid[identity(body)] += 1
        return self.send(request, status, whole)

    def respond(self, request: BaseHTTPRequestHandler, body: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of a sound answer."""
        if callable(self.reply):
            text = self.reply(body)
        else:
            text = self.reply if self.reply is not None else json.dumps(prompts_for(body))
        usage = {"prompt_tokens": 100, "completion_tokens": 50}
        message = {"role": "assistant", "content": text}
        return 200, {"model": "served-model-1", "choices": [{"message": message}], "usage": usage}

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client was killed
            request.wfile.write(body)


def identity(body: dict[str, Any]) -> str:
    """What makes two requests the same."""
    parts = [body["messages"], body["seed"]] if "seed" in body else body
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
