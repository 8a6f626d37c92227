"""A run's process: forked from one that has imported all that runs need, or a new Python.

To import torch and Lightning takes longer than many a small run trains. Runs on a GPU or of several ranks get a new
Python: a fork shares what the drivers opened, and Lightning starts the other ranks by the command of the first.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from ouro_lab.config import ROOT

IMPORTS = ("ouro_lab.run", "ouro_lab.session", "ouro_lab.assembly", "ouro_lab.training.module", "ouro_lab.data")
PRELOAD = "ouro_lab.preload"


class Process(Protocol):
    """What `subprocess.Popen` and `Forked` have in common; wait raises `subprocess.TimeoutExpired`."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(command: list[str], environment: dict[str, str], log: Path, fork: bool) -> Process:
    """`python -m ouro_lab.run` with the words of `command`, in a session of its own, all it says appended to `log`."""
    if fork and sys.platform == "linux":
        return Forked(command, environment, log)
    words = [sys.executable, "-m", "ouro_lab.run", *command]
    with log.open("a") as said:
        return subprocess.Popen(words, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True)


def warm_up() -> None:
    """Has the imports begin, beside whatever the caller does until its first run."""
    if sys.platform == "linux":
        _fork(int)


class Forked:
    """A fork of the server that Python keeps for this; the server ends with the process that asked for it."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path) -> None:
        self.process = _fork(_run, command, environment, log)

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        code = self.process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0.0)
        return code

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()


def _fork(target: Callable[..., object], *arguments: object) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _run(command: list[str], environment: dict[str, str], log: Path) -> None:
    """The forked process, made as like a new one as can be seen from inside, and named as one by ps and top."""
    Path("/proc/self/comm").write_text("ouro_lab.run")
    os.setsid()
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (1, 2):
        os.dup2(handle, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    run = import_module("ouro_lab.run")
    sys.argv = [run.__file__, *command]
    sys.exit(run.main(command))
