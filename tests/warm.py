"""Commands in children of one warmed parent: processes of their own, without the cost of importing torch again.

Run as a program this file is the parent. It imports torch and transformers, runs the first command of its stdin itself,
and forks a child for each further one. A child is limited, measured and watched, so that a hang, a flood of memory or a
stray file is a failed test, and no more than that. A process of pytest is no such parent: it has threads.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

CPU_SECONDS = 5
WALL_SECONDS = 60
"""For a child that waits without computing; long, since other processes may have the cores."""
MEMORY = 500 * 10**6
"""Bytes that a child may allocate beyond what it inherits."""

WRITES = {
    *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"),
    *("os.utime", "shutil.copyfile", "shutil.move", "shutil.rmtree", "tempfile.mkdtemp", "tempfile.mkstemp"),
}
LEAVES = {
    *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.system", "pty.spawn", "subprocess.Popen"),
    *("socket.bind", "socket.connect", "socket.getaddrinfo"),
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Warm:
    """The parent, as seen from the tests.

    Args:
        words: the command that the parent runs itself, so that its children find all modules imported.
    """

    def __init__(self, *words: str) -> None:
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONDONTWRITEBYTECODE": "1"}
        self._parent = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask(words=words)

    def ask(self, **request: Any) -> dict[str, Any]:
        """Let a child run `words`; return its exit code, what it printed, its costs and what it touched."""
        assert self._parent.stdin
        assert self._parent.stdout
        print(json.dumps(request), file=self._parent.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._parent.stdout.readline() or '{"err": "the warmed parent died"}')
        return answer

    def close(self) -> None:
        """End the parent."""
        self._parent.communicate()


def serve(requests: IO[str], answers: IO[str]) -> None:
    """Answer each line of requests with a line."""
    import torch

    from bertflow.cli import main

    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork.
    with tempfile.TemporaryFile() as nobody:
        os.dup2(nobody.fileno(), 1)
        code = main(json.loads(requests.readline())["words"])
    print(json.dumps({"code": code}), file=answers, flush=True)
    for line in requests:
        print(json.dumps(_run(json.loads(line))), file=answers, flush=True)


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Fork a child for the request, and end it where it does not end itself."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as touched:
        silent = os.openpty() if request.get("tty") else os.pipe()
        started = time.monotonic()
        child = os.fork()
        if not child:
            _child(request, [silent[request.get("tty", False)], *(file.fileno() for file in (out, err, touched))])
        handle = os.pidfd_open(child)
        if not select.select([handle], [], [], WALL_SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        for number in (handle, *silent):
            os.close(number)
        for file in (out, err, touched):
            file.seek(0)
        return {
            "code": os.waitstatus_to_exitcode(status),
            "out": out.read().decode(errors="surrogateescape"),
            "err": err.read().decode(errors="surrogateescape"),
            "cpu": usage.ru_utime + usage.ru_stime,
            "wall": time.monotonic() - started,
            "memory": usage.ru_maxrss * 1024,
            "touched": touched.read().decode(errors="surrogateescape").splitlines(),
        }


def _child(request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    """Run the command as if in a new process, and never return into the parent's loop."""
    code = 99
    try:
        for number, stream in enumerate(streams[:3]):
            os.dup2(stream, number)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115  # the parent's has read ahead
        os.chdir(request["cwd"])
        os.environ.update(request.get("env", {}))
        sys.path[1:1] = request.get("env", {}).get("PYTHONPATH", "").split(os.pathsep)
        if request.get("user"):
            os.setgroups([])
            os.setgid(request["user"])
            os.setuid(request["user"])
        _limit()
        _report_touched(streams[3])
        if "file_size" in request:  # What a full disk looks like to the process; Python ignores the signal.
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
        if "kill_at" in request:
            _die_at(request["kill_at"])
        if "alarm" in request:  # Its default action ends the process at once, wherever it is.
            signal.setitimer(signal.ITIMER_REAL, request["alarm"])
        from bertflow.cli import main

        code = main(request["words"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _limit() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    inherited = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (inherited + MEMORY, inherited + MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _report_touched(stream: int) -> None:
    """Write a line for each file that is written or changed, and for each process or connection."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        named = arguments and isinstance(arguments[0], str | bytes) and os.fsdecode(arguments[0]) != os.devnull
        if (writes and named) or event in WRITES | LEAVES:
            os.write(stream, f"{event} {arguments!r}\n".encode(errors="surrogateescape"))

    sys.addaudithook(hook)


def _die_at(number: int) -> None:
    """Kill this process the moment before it changes a file for the n-th time."""
    seen = itertools.count()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
        if (writes or event in WRITES) and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


class Watch:
    """Which files of a folder are opened by anybody, native code included: the kernel's own word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        libc = ctypes.CDLL(None, use_errno=True)
        self._events = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        every_event = 0xFFF
        assert libc.inotify_add_watch(self._events, os.fsencode(folder), every_event) > 0, os.strerror(
            ctypes.get_errno()
        )

    def seen(self) -> set[str]:
        """Return the names of what was opened, read or changed since the last call; the folder itself is ''."""
        try:
            content = os.read(self._events, 1 << 20)
        except BlockingIOError:
            return set()
        names, start = set(), 0
        while start < len(content):
            (length,) = struct.unpack_from("I", content, start + 12)
            names.add(os.fsdecode(content[start + 16 : start + 16 + length].rstrip(b"\0")))
            start += 16 + length
        return names

    def close(self) -> None:
        """Stop watching."""
        os.close(self._events)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, channel)
