"""Model-written code is run in a process that can do nothing but compute, and only when that was asked for.

Linux on x86-64 with Landlock (5.13 or newer) and seccomp; anywhere else nothing is run.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import subprocess
import sys
import time
from functools import lru_cache
from pathlib import Path

from paft.errors import ConfigError, ResourceError

SECONDS, MEMORY = 3, 1 << 30
"""Of processor time and bytes that an answer may take; by the clock it may take four times as long, on a machine that is busy."""

_CHILD = Path(__file__).with_name("confined.py")
_allowed = False


def allow_code(allowed: bool = True) -> None:
    """Let answers that are code be run, from now on, in this process. Raises ResourceError where they cannot be confined."""
    global _allowed
    if allowed and not can_confine():
        raise ResourceError(
            "this system cannot confine the code that a model writes (Linux on x86-64 with Landlock and seccomp can); score such tasks there"
        )
    _allowed = allowed


def passes(program: str) -> bool:
    """Whether a program runs to its end without an error. The same text is run once.

    Raises ConfigError unless it was allowed.
    """
    if not _allowed:
        raise ConfigError(
            "answers to this task are code, and judging one means running it: set evaluate.run_code=true (it runs confined: no files, "
            "network, processes; docs/tasks.md)"
        )
    return _passes(program)


@lru_cache(maxsize=65536)
def _passes(program: str) -> bool:
    return _run(program)


@lru_cache(maxsize=1)
def can_confine() -> bool:
    """Whether this system lets a process give up all that such code may not have: it is tried."""
    return sys.platform == "linux" and os.uname().machine == "x86_64" and _run("")


def _run(program: str) -> bool:
    word = secrets.token_hex(16)
    told = json.dumps(
        {"program": program, "word": word, "parent": os.getpid(), "seconds": SECONDS, "memory": MEMORY}
    ).encode("utf-8", "surrogatepass")
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ},  # no secret of ours
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(told)
            return _heard(child.stdout.fileno(), len(word), time.monotonic() + 4 * SECONDS) == word.encode()
        finally:
            child.kill()


def _heard(pipe: int, size: int, until: float) -> bytes:
    """At most one byte more than the word: a program that writes for ever is not listened to."""
    heard, ready = b"", select.poll()
    ready.register(pipe, select.POLLIN)
    while len(heard) <= size and (left := until - time.monotonic()) > 0:
        if not ready.poll(1000 * left):
            break
        part = os.read(pipe, size + 1)
        if not part:
            break
        heard += part
    return heard
