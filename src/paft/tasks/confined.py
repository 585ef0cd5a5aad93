"""The child process that runs code nobody has read (started by sandbox.py as a script, never imported).

Reads {"program", "word", "seconds", "memory"} as JSON from standard input, gives up everything but computing, runs the program, and writes the
word to what was standard output when the program ended without an error. Whatever else happens, the word is missing.

Given up for good, before the program starts: writing, making, removing and executing files, reading any but Python's own (Landlock);
other processes, threads, sockets, signals, devices, limits (seccomp); more than so much memory and processor time.
"""

import ctypes
import json
import os
import resource
import struct
import sys

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2
READ_FILE, READ_DIR = 1 << 2, 1 << 3
ARCHITECTURE = 0xC000003E  # x86-64
REFUSED = (
    # sockets, shared memory, queues
    *(41, 42, 43, 44, 45, 46, 47, 49, 50, 53, 288, 29, 30, 31, 64, 65, 68, 69, 70, 71, 240, 319),
    # processes, threads, signals, other people's memory
    *(56, 57, 58, 59, 322, 435, 62, 200, 234, 129, 297, 101, 310, 311, 424, 434, 438, 440),
    # what Landlock leaves open: modes, owners, attributes, times, nodes; limits
    *(90, 91, 92, 93, 94, 268, 260, 452, 188, 189, 190, 197, 198, 199, 463, 466, 132, 235, 261, 280, 133, 259, 160, 302),
    # the system itself
    *(103, 155, 159, 161, 163, 164, 165, 166, 167, 168, 169, 170, 171, 172, 173, 175, 176, 179, 206, 227, 246, 248, 249, 250, 272, 298, 300),
    *(304, 305, 308, 313, 320, 321, 323, 425, 426, 427, 428, 429, 430, 431, 432, 442, 135),
)  # fmt: skip
"""Numbers of system calls that fail with "not permitted"."""

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
    """System calls that reach beyond this process fail; another architecture's end it."""
    load, equal, above, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    lines = [
        (load, 0, 0, 4),
        (equal, 1, 0, ARCHITECTURE),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (above, 0, 1, 0x40000000),
    ]
    lines.append((give, 0, 0, kill))
    for number in REFUSED:
        lines += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    lines.append((give, 0, 0, allow))
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(text)))
    if libc.prctl(SET_SECCOMP, FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def main() -> None:
    """See above."""
    told = json.loads(sys.stdin.buffer.read())
    speak, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    os.chdir("/")
    os.environ.clear()
    word = told["word"].encode()
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
    if told["program"] is None:  # asked only whether all this can be given up here
        os.write(speak, word)
        return
    exec(compile(told["program"], "answer", "exec"), {"__name__": "answer"})  # what all of the above is for
    os.write(speak, word)


if __name__ == "__main__":
    try:
        main()
    except BaseException:  # whatever the program raised, and however
        os._exit(1)
    os._exit(0)
