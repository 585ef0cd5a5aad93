"""The child process that runs code nobody has read (started by sandbox.py as a script, never imported).

Reads {"program", "word", "parent", "seconds", "memory"} as JSON from standard input, gives up everything but computing, runs the program, and
writes the word to what was standard output when the program ended without an error. Ending in another way does not write it.

Given up for good, before the program starts: writing, making, removing and executing files, reading any but Python's own (Landlock); every
system call that computing does not need, and so other processes, threads, sockets, signals, devices, limits (seccomp); more than so much
memory and processor time; outliving the process that started this one.
"""

import ctypes
import json
import os
import resource
import struct
import sys
from collections.abc import Iterator

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
DIES_WITH_PARENT, SET_SECCOMP, NO_NEW_PRIVILEGES, FILTER = 1, 22, 38, 2
READ_FILE, READ_DIR = 1 << 2, 1 << 3
ARCHITECTURE = 0xC000003E  # x86-64
NEEDED = (
    # read, write, close, stat, seek, names, folders: of what Landlock leaves
    *(0, 1, 3, 4, 5, 6, 8, 17, 19, 20, 21, 79, 89, 217, 262, 267, 269, 332, 439),
    # memory
    *(9, 10, 11, 12, 25, 28),
    # waiting, the clock, chance
    *(7, 23, 24, 35, 96, 201, 202, 228, 229, 230, 270, 271, 318),
    # who and where one is
    *(39, 63, 98, 99, 100, 102, 104, 107, 108, 110, 186, 204, 309, 334),
    # its own descriptors, its own handlers of signals, its own end
    *(13, 14, 15, 32, 33, 60, 131, 231, 292),
)  # fmt: skip
"""Numbers of the system calls that are let through; all others fail with "not permitted"."""
OPEN, WRITING = {2: 24, 257: 32}, os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
"""open and openat, with the place of their flags, which may have none of these: before version 3 Landlock knows nothing of emptying."""
FCNTL, COPY_OR_LOOK = 72, (0, 1, 2, 3, 1030)
"""Of fcntl, the commands that only copy or look at a descriptor: others have signals sent."""

libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments: object) -> int:
    """A system call that must succeed."""
    found: int = libc.syscall(*arguments)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"system call {arguments[0]} failed")
    return found


def landlock() -> None:
    """No file but Python's own can be read, none written, made, removed or executed; no port opened."""
    version = call(LANDLOCK_CREATE, None, 0, 1)
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    sizes = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}
    asked = struct.pack("QQQ", (1 << rights) - 1, 3, 3)[: sizes.get(version, 24)]
    rules = call(LANDLOCK_CREATE, asked, len(asked), 0)
    for place in {sys.base_prefix, sys.prefix, "/usr/lib", "/usr/lib64", "/lib", "/lib64"}:
        try:
            folder = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        call(LANDLOCK_ADD, rules, 1, struct.pack("=Qi", READ_FILE | READ_DIR, folder), 0)
        os.close(folder)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError("no_new_privs")
    call(LANDLOCK_RESTRICT, rules, 0)
    os.close(rules)


def seccomp() -> None:
    """System calls that computing does not need fail; another architecture's end the process."""
    load, equal, above, any_of, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    lines = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE), (give, 0, 0, kill)]
    lines += [(load, 0, 0, 0), (above, 0, 1, 0x40000000), (give, 0, 0, kill)]
    for number in NEEDED:
        lines += [(equal, 0, 1, number), (give, 0, 0, allow)]
    for number, flags in OPEN.items():
        lines += [(equal, 0, 4, number), (load, 0, 0, flags)]
        lines += [(any_of, 0, 1, WRITING), (give, 0, 0, refuse), (give, 0, 0, allow)]
    lines += [(equal, 1, 0, FCNTL), (give, 0, 0, refuse), (load, 0, 0, 24)]  # its second argument
    for command in COPY_OR_LOOK:
        lines += [(equal, 0, 1, command), (give, 0, 0, allow)]
    lines.append((give, 0, 0, refuse))
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(text)))
    if libc.prctl(SET_SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def confined() -> Iterator[str]:
    """Gives everything up, then the program, then speaks. A generator, so that the word waits in no frame that called the program."""
    told = json.loads(sys.stdin.buffer.read())
    libc.prctl(DIES_WITH_PARENT, 9, 0, 0, 0)
    if os.getppid() != told["parent"]:  # it died before that
        return
    speak, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    os.chdir("/")
    os.environ.clear()
    seconds, memory = told["seconds"], told["memory"]
    for limit, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(limit, (value, value))
    sys.setrecursionlimit(2000)
    landlock()
    seccomp()
    yield told["program"]
    os.write(speak, told["word"].encode())


if __name__ == "__main__":
    try:
        for program in confined():
            exec(compile(program, "answer", "exec"), {"__name__": "answer"})  # what all of the above is for
    except BaseException:  # whatever the program raised, and however
        os._exit(1)
    os._exit(0)
