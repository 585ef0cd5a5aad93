"""The child process that compares expressions (started by expressions.py as a script, never imported).

Reads lines {"gold", "said"} of LaTeX from standard input and answers each with a line: same, other, or none where `said` is no expression.
A comparison that takes too long, or too much memory, ends the process.
"""

import contextlib
import json
import logging
import signal
import sys

SECONDS, MEMORY = 5, 2 << 30
"""Of processor time that a comparison may take, so that a busy machine judges alike, and bytes of the process."""


def judged(gold: str, said: str) -> str:
    """Whether the second has the value of the first."""
    from math_verify import LatexExtractionConfig, parse, verify

    def read(text: str) -> list[object]:
        found: list[object] = parse(
            f"${text}$",
            [LatexExtractionConfig()],
            fallback_mode="no_fallback",
            parsing_timeout=None,
            raise_on_error=False,
        )
        return found

    wanted, given = read(gold), read(said)
    if not given:
        return "none"
    return "same" if wanted and verify(wanted, given, float_rounding=6, timeout_seconds=None) else "other"


def _allow(seconds: int) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answers until standard input ends."""
    logging.disable(logging.CRITICAL)
    speak = sys.stdout
    sys.stdout = sys.stderr
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    judged("1", "1")  # what takes time once
    print("ready", file=speak, flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        _allow(SECONDS)  # the default action of the signal ends a process that no longer listens
        try:
            answer = judged(told["gold"], told["said"])
        except Exception:  # whatever a parser makes of a text that nobody has read
            answer = "none"
        _allow(0)
        print(answer, file=speak, flush=True)


if __name__ == "__main__":
    main()
