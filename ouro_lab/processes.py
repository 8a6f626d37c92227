"""A run's process: forked from one that has imported all that runs need, or a new Python.

To import torch and Lightning takes longer than many a small run trains. Runs on a GPU or of several ranks get a new
Python: a fork shares what the drivers opened, and Lightning starts the other ranks by the command of the first.
`forks.py` is the other end.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from ouro_lab import records
from ouro_lab.config import ROOT

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
LOST = 255  # exit status of a process whose end nobody saw


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common; wait raises `subprocess.TimeoutExpired`."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(command: list[str], environment: dict[str, str], log: Path, fork: bool) -> Process:
    """`python -m ouro_lab.run` with the words of `command`, in a session of its own, all it says appended to `log`."""
    with log.open("a") as said:
        if fork and sys.platform == "linux":
            return Forked(_server(), command=command, environment=environment, log=str(log))
        words = [sys.executable, "-m", "ouro_lab.run", *command]
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)


def warm_up() -> None:
    """Has the imports begin, beside whatever the caller does until its first run."""
    if sys.platform == "linux":
        _server()


class Server:
    """The process that forks: lines of JSON to it; `number pid`, and `number pid status` at the end, from it.

    It ends once this process and its own last fork have; forks live on whatever becomes of either.
    """

    def __init__(self) -> None:
        self.code = fingerprint()
        self.count, self.unread, self.open = 0, b"", True
        self.born: dict[int, tuple[int, str | None]] = {}  # by number: pid, and its `records.process_start`
        self.codes: dict[int, int] = {}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ouro_lab.forks"],
            cwd=ROOT,
            env=os.environ | dict.fromkeys(THREADS, "1"),  # with more, NumPy's products start theirs when imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a signal to the group of a study must not end it before the runs
        )
        assert self.process.stdin and self.process.stdout
        self.requests, self.answers = self.process.stdin.fileno(), self.process.stdout.fileno()

    @property
    def current(self) -> bool:
        """Whether it lives, and has imported the code as it is now: a run records the commit that it finds."""
        self.read()
        return self.open and self.code == fingerprint()

    def ask(self, **request: object) -> int:
        """The number by which a fork is known from now on, before there is one."""
        self.count += 1
        line = json.dumps({"number": self.count} | request).encode() + b"\n"
        with contextlib.suppress(BrokenPipeError):  # `read` notices, too
            while line:
                line = line[os.write(self.requests, line) :]
        return self.count

    def retire(self) -> None:
        """Lets it end with its last fork."""
        assert self.process.stdin
        self.process.stdin.close()

    def read(self) -> None:
        """Takes in what the server has said."""
        while self.open and select.select([self.answers], [], [], 0)[0]:
            said = os.read(self.answers, 1 << 16)
            self.open = bool(said)
            *lines, self.unread = (self.unread + said).split(b"\n")
            for line in lines:
                number, pid, *code = map(int, line.split())
                if code:
                    self.codes[number] = code[0]
                else:
                    self.born[number] = pid, records.process_start(pid)


class Forked:
    """A run's process as `Server` knows it; one that outlives the server is watched by its pid."""

    def __init__(self, server: Server, **request: object) -> None:
        self.server, self.number = server, server.ask(**request)

    def poll(self) -> int | None:
        self.server.read()
        code = self.server.codes.get(self.number)
        return LOST if code is None and not self.server.open and not self._lives() else code

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired("ouro_lab.run", timeout or 0.0)
            time.sleep(0.05)
        return code

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        while self.poll() is None and self.number not in self.server.born:  # asked for, and not forked yet
            time.sleep(0.05)
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.server.born[self.number][0], number)

    def _lives(self) -> bool:
        pid, began = self.server.born.get(self.number, (0, None))
        return began is not None and records.process_start(pid) == began


def fingerprint() -> int:
    """Of what an import would find: every source file of the package by size and time of its last change."""
    files = [(str(file), file.stat()) for file in sorted(Path(__file__).parent.rglob("*.py"))]
    return hash((os.environ.get("PYTHONPATH"), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)))


_servers: list[Server] = []  # the last one forks


def _server() -> Server:
    if not _servers or not _servers[-1].current:
        if _servers:
            _servers[-1].retire()
        _servers.append(Server())
    return _servers[-1]
