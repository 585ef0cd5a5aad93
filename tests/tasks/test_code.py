"""Answers that are code: what is run, that it can do nothing but compute, and that verdicts are those of HumanEval's own grader."""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import multiprocessing
import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from paft.config import load_run_config
from paft.errors import ConfigError, ResourceError, TemplateError
from paft.materials import prepare
from paft.prompts.template import Template
from paft.tasks import sandbox
from paft.tasks.answers import OTHER, Code, Parsed, Wrapped, answer_format_from, answer_format_to
from paft.tasks.types import Example

HEAD = 'from typing import List\n\n\ndef total(values: List[int]) -> int:\n    """Sum of all."""\n'
RIGHT = "def total(values: List[int]) -> int:\n    return sum(values)\n"
FENCED = 'def total(values):\n    """Sum.\n\n    ```\n    total([1]) == 1\n    ```\n    """\n    return sum(values)\n'
EXAMPLE = Example(
    "t",
    {
        "prompt": HEAD,
        "test": "def check(f):\n    assert f([1, 2]) == 3\n    assert f([]) == 0\n",
        "entry_point": "total",
    },
    (HEAD + "    return sum(values)\n",),
    0,
    is_open=True,
)
PASSED, FAILED, INVALID = Parsed("valid", 0), Parsed("valid", OTHER), Parsed("invalid", None)


@pytest.fixture
def allowed():
    try:
        sandbox.allow_code()
    except ResourceError as error:  # a system without Landlock
        pytest.skip(str(error))
    yield
    sandbox.allow_code(False)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        (RIGHT, PASSED),
        (f"Sure, here it is:\n```python\n{RIGHT}```\nIt adds them up.", PASSED),
        (f"```\n{RIGHT}", PASSED),
        ("1. The code:\n   ```python\n" + textwrap.indent(RIGHT, "   ") + "   ```", PASSED),  # inside a list
        (textwrap.indent(RIGHT, "    "), PASSED),
        ("    return sum(values)", PASSED),  # the body, as the original grader is given it
        ("\n    out = 0\n    for v in values:\n        out += v\n    return out\n", PASSED),
        ("def total(values):\n    return 3\n", FAILED),
        (f"```python\ndef total(values):\n    return 1\n```\n```python\n{RIGHT}```", FAILED),  # the first block counts
        (f"```python\n{FENCED}```\nIt adds them up: `total([1])`, or\n```\ntotal([2])\n```", PASSED),
        (f"```python\n{FENCED}", PASSED),
        (f"```python\n{RIGHT.rstrip()}```\nor\n```python\ndef total(values):\n    return 1\n```", PASSED),
        ("```python\ndef total(values):\n    out = 0\n    # ```\n    return sum(values)\n```\n", PASSED),
        (f"```python\ndef total(values):\n    return sum(values\n```\n```python\n{RIGHT}```", FAILED),
        ("def total(values):\n    return sum(values\n", FAILED),
        ("def other(values):\n    return sum(values)\n", INVALID),
        ("I cannot do that.", INVALID),
        ("", INVALID),
        ("\n\n", INVALID),
    ],
)
def test_what_counts_as_an_answer(allowed, text, verdict):
    assert Code().parse(text, EXAMPLE) == verdict


@pytest.mark.parametrize("answer", [Code(), Wrapped("<code>{answer}</code>", Code()), Wrapped("BEGIN\n{answer}\nEND", Code()), Wrapped('{"code": "{answer}"}', Code())])  # fmt: skip
def test_the_right_answer_as_a_prompt_wants_it_written_passes(allowed, answer):
    (surface,) = answer.surfaces(EXAMPLE)
    assert answer.parse(f"{surface}", EXAMPLE) == PASSED
    assert answer.parse(f"Of course.\n{surface}\nDone." if isinstance(answer, Wrapped) else surface, EXAMPLE) == PASSED
    assert answer_format_from(answer_format_to(answer)) == answer


def test_a_wrap_of_code_needs_an_end_and_its_text():
    with pytest.raises(TemplateError, match="text after"):
        Wrapped("Code: {answer}", Code())
    assert Wrapped("<code>{answer}</code>", Code()).parse(RIGHT, EXAMPLE) == INVALID


@pytest.mark.parametrize(
    ("wrap", "text", "verdict"),
    [
        ("<code>{answer}</code>", f"<code>{RIGHT}</code> Test: <code>total([1, 2])</code>", PASSED),
        ("<code>{answer}</code>", f"<code>{RIGHT}    # no </code> in it\n</code>", PASSED),
        ("<code>{answer}</code>", f"<code>\n```python\n{FENCED}```\n</code> and <code>x</code>", PASSED),
        (
            "<code>{answer}</code>",
            "<code>def total(values):\n    return 3\n</code> Test: <code>total([1, 2])</code>",
            FAILED,
        ),
        ("<code>{answer}</code>", "<code>I cannot</code> do <code>that</code>", INVALID),
        ("<code>{answer}</code>", f"<code>{RIGHT}", INVALID),
        (
            "BEGIN\n{answer}\nEND",
            "BEGIN\ndef total(values):\n    out = []\n    out.append(sum(values))\n    return out[0]\nEND\n",
            PASSED,
        ),
    ],
)
def test_a_wrap_of_code_reaches_as_far_as_it_is_python(allowed, wrap, text, verdict):
    assert Wrapped(wrap, Code()).parse(text, EXAMPLE) == verdict


def test_fences_and_wraps_without_end_are_read_in_no_time():
    for text in ("```\n" * 30_000, "```python\ndef total(v):\n    (" + "```" * 30_000, "<code>" + "</code> x" * 20_000):
        begun = time.monotonic()
        assert Code().program(text, EXAMPLE) is None or text[3:9] == "python"
        assert Wrapped("<code>{answer}</code>", Code()).parse(text, EXAMPLE) == INVALID
        assert time.monotonic() - begun < 5


EVIL = {
    "loops for ever": "while True:\n    pass",
    "sleeps": "import time\ntime.sleep(1000)",
    "forks": "import os\nos.fork()",
    "forks for ever": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
    "starts threads": "import threading\nthreading.Thread(target=print).start()",
    "allocates without end": "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
    "writes a file": "open('{place}/new', 'w').write('x')",
    "writes over a file": "open('{place}/kept', 'w').write('x')",
    "removes a file": "import os\nos.remove('{place}/kept')",
    "renames a file": "import os\nos.rename('{place}/kept', '{place}/gone')",
    "changes a mode": "import os\nos.chmod('{place}/kept', 0)",
    "changes a time": "import os\nos.utime('{place}/kept', (0, 0))",
    "makes a folder": "import os\nos.mkdir('{place}/new')",
    "makes a link": "import os\nos.symlink('/', '{place}/new')",
    "reads a secret": "open('{place}/kept').read()",
    "lists a folder": "import os\nos.listdir('{place}')",
    "opens a socket": "import socket\nsocket.socket()",
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', {port}))",
    "calls the system by number": "import ctypes\nassert ctypes.CDLL(None).syscall(41, 2, 1, 0) >= 0",
    "runs a program": "import subprocess\nsubprocess.run(['/usr/bin/touch', '{place}/new'])",
    "asks the shell": "import os\nassert os.system('touch {place}/new') == 0",
    "kills its parent": "import os\nos.kill(os.getppid(), 9)",
    "kills everybody": "import os\nos.kill(-1, 9)",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "truncates a file": "import os\nos.truncate('{place}/kept', 0)",
    "has a signal sent": "import fcntl\nfcntl.fcntl(0, fcntl.F_SETOWN, {bystander})",
    "has a signal sent by what it has": "import fcntl\nfcntl.fcntl(3, 8, {bystander})\nfcntl.fcntl(3, 10, 9)\nfcntl.fcntl(3, 4, 0o20000)",
    "pins another process": "import os\nos.sched_setaffinity({bystander}, {0})",
    "slows another process": "import os\nos.setpriority(os.PRIO_PROCESS, {bystander}, 19)",
    "limits another process": "import resource\nresource.prlimit({bystander}, resource.RLIMIT_CPU, (1, 1))",
    "lifts its own death": "import ctypes\nassert ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0",
    "looks for the word": "import os, sys\nframe = sys._getframe()\nwhile frame:\n    for found in [*frame.f_locals.values(), *frame.f_globals.values()]:\n        told = found if isinstance(found, dict) else {}\n        for each in [found, *told.values()]:\n            each = each.encode() if isinstance(each, str) else each\n            if isinstance(each, bytes) and len(each) == 32:\n                for n in range(3, 12):\n                    try:\n                        os.write(n, each)\n                    except OSError:\n                        pass\n    frame = frame.f_back\nos._exit(0)",
    "leaves early": "import os\nos._exit(0)",
    "leaves politely": "import sys\nsys.exit(0)",
    "floods its pipes": "import os\nwhile True:\n    for n in range(12):\n        try:\n            os.write(n, b'x' * 65536)\n        except OSError:\n            pass",
    "recurses": "def f():\n    f()\nf()",
    "nests": "exec('(' * 100000)",
}


@pytest.mark.parametrize("deed", EVIL)
def test_code_that_does_more_than_compute_is_stopped_counted_wrong_and_harms_nothing(
    allowed, tmp_path, monkeypatch, deed
):
    monkeypatch.setattr(sandbox, "SECONDS", 1)
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    before = kept.stat()
    met = []
    bystander = subprocess.Popen(["sleep", "60"])
    as_it_was = os.sched_getaffinity(bystander.pid), os.getpriority(os.PRIO_PROCESS, bystander.pid)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        code = EVIL[deed].replace("{place}", str(tmp_path)).replace("{port}", str(port))
        code = code.replace("{bystander}", str(bystander.pid))
        indented = "".join(f"    {line}\n" for line in code.splitlines())
        answer = f"def total(values):\n{indented}    return sum(values)\n"
        assert Code().parse(answer, EXAMPLE) == FAILED
        with contextlib.suppress(TimeoutError):
            met.append(server.accept())
    assert bystander.poll() is None
    assert as_it_was == (os.sched_getaffinity(bystander.pid), os.getpriority(os.PRIO_PROCESS, bystander.pid))
    bystander.kill()
    bystander.wait()
    assert not met
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert kept.read_text() == "as it was"
    assert (kept.stat().st_mode, kept.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    assert not _confined(os.getpid())


def test_no_file_is_opened_to_be_written_made_or_emptied_where_landlock_is_too_old_to_know(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    script = textwrap.dedent("""
        import os, runpy, sys
        confined = runpy.run_path(sys.argv[1])
        assert confined["libc"].prctl(confined["NO_NEW_PRIVILEGES"], 1, 0, 0, 0) == 0
        confined["seccomp"]()
        assert open(sys.argv[2]).read() == "as it was"
        libc, name = confined["libc"], sys.argv[2].encode()
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_CREAT):
            assert libc.syscall(2, name, flags, 0o600) == -1, flags
            assert libc.syscall(257, -100, name, flags, 0o600) == -1, flags
    """)
    child = Path(sandbox.__file__).with_name("confined.py")
    subprocess.run([sys.executable, "-c", script, child, kept], check=True)
    assert kept.read_text() == "as it was"


def test_many_open_files_and_secrets_are_no_matter_of_the_judged(allowed, monkeypatch):
    monkeypatch.setenv("PAFT_SECRET", "hunter2")
    looks = "import ctypes\nat = ctypes.CDLL(None).getauxval\nat.restype = ctypes.c_ulong\nend = at(31)\n"
    assert not sandbox.passes(looks + "assert b'hunter2' in ctypes.string_at(end - 256, 256)")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, before[1]), before[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert sandbox.passes("assert 1 + 1 == 2  # beside many files")
    finally:
        for each in opened:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_is_judged_ends_with_its_judge(allowed):
    script = "from paft.tasks import sandbox; sandbox.allow_code(); sandbox.passes('import time; time.sleep(60)')"
    judge = subprocess.Popen([sys.executable, "-c", script])
    try:
        until = time.monotonic() + 30
        while not (children := _confined(judge.pid)) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)  # the child has given everything up by then
        judge.kill()
        judge.wait()
        assert children
        until = time.monotonic() + 5
        while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{child}").exists() for child in children)
    finally:
        judge.kill()


def _confined(parent: int) -> list[int]:
    told = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in told if "confined.py" in line]
    return [int(pid) for pid, ppid, _ in rows if int(ppid) == parent]


def test_a_swallowed_refusal_changes_nothing(allowed, tmp_path):
    code = f"try:\n    open('{tmp_path}/new', 'w')\nexcept OSError:\n    pass\n"
    assert sandbox.passes(code)
    assert not list(tmp_path.iterdir())


def test_what_honest_code_needs_is_there(allowed):
    modules = "math, re, typing, collections, hashlib, random, datetime, decimal, fractions, string, itertools, functools, heapq, copy, json, statistics"
    assert sandbox.passes(f"import {modules}\nassert hashlib.md5(b'x').hexdigest()[:2] == '9d'")


def test_nothing_runs_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(sandbox, "_run", lambda program: pytest.fail("it was run"))
    with pytest.raises(ConfigError, match=r"evaluate\.run_code=true"):
        Code().parse(RIGHT, EXAMPLE)


def test_a_run_must_say_so(tmp_path):
    config = load_run_config(
        None,
        ["evaluate.split=test", "evaluate.scorers=[generation]"],
        {"task": "humaneval", "model": "x", "arms": {"b": {}}},
    )
    with pytest.raises(ConfigError, match=r"evaluate\.run_code=true"):
        prepare(config)


def test_a_template_shows_no_tests():
    from paft.tasks import load_task

    task = load_task("humaneval")
    Template("Write this:\n{prompt}", Code()).check(task)
    with pytest.raises(TemplateError, match=r"slot \{test\} is not a field"):
        Template("Write this:\n{prompt}\n{test}", Code()).check(task)
    with pytest.raises(TemplateError, match="answer: code"):
        Template("Write this:\n{prompt}", answer_format_from("number")).check(task)


# HumanEval's own way to judge, written anew: the head, the completion, the tests, in a process of its own, three seconds


def _original(program: str, passed) -> None:
    try:
        exec(program, {})
        passed.value = 1
    except BaseException:
        pass


def original(problem: dict, completion: str) -> bool:
    program = problem["prompt"] + completion + "\n" + problem["test"] + "\n" + f"check({problem['entry_point']})"
    context = multiprocessing.get_context("fork")
    passed = context.Value("i", 0)
    child = context.Process(target=_original, args=(program, passed))
    child.start()
    child.join(6)
    child.kill()
    child.join()
    return bool(passed.value)


class _Wrong(ast.NodeTransformer):
    """Makes the first comparison or number of a function another one."""

    def __init__(self) -> None:
        self.done = False

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        swaps = {
            ast.Lt: ast.GtE,
            ast.Gt: ast.LtE,
            ast.LtE: ast.Gt,
            ast.GtE: ast.Lt,
            ast.Eq: ast.NotEq,
            ast.NotEq: ast.Eq,
        }
        if not self.done and type(node.ops[0]) in swaps:
            node.ops[0], self.done = swaps[type(node.ops[0])](), True
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not self.done and type(node.value) is int:
            self.done = True
            return ast.Constant(node.value + 1)
        return node


HUMANEVAL = Path(__file__).parents[3] / "shared" / "data" / "humaneval.jsonl.gz"


@pytest.mark.skipif(not HUMANEVAL.exists(), reason="HumanEval's rows are not here")
def test_verdicts_are_those_of_the_original_grader(allowed):
    """On all right answers and on as many that one change makes wrong, or leaves right: as body, as whole function, fenced."""
    assert threading.active_count() < 8  # the original forks
    with gzip.open(HUMANEVAL, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    found = {True: 0, False: 0}
    for number, problem in enumerate(problems):
        fields = {name: problem[name] for name in ("prompt", "test", "entry_point")}
        example = Example(
            problem["task_id"], fields, (problem["prompt"] + problem["canonical_solution"],), 0, is_open=True
        )
        tree = _Wrong().visit(ast.parse(problem["prompt"] + problem["canonical_solution"]))
        changed = ast.unparse(ast.fix_missing_locations(tree))
        for body, whole in (
            (problem["canonical_solution"], problem["prompt"] + problem["canonical_solution"]),
            ("    pass\n\n\n" + changed, changed),
        ):
            wanted = original(problem, body)
            shown = (whole, f"```python\n{whole}\n```", body)[number % 3] if body in whole else whole
            assert Code().parse(shown, example) == (PASSED if wanted else FAILED), (problem["task_id"], shown)
            found[wanted] += 1
    assert sum(found.values()) == 328
    assert found[True] >= 164
    assert found[False] > 80
