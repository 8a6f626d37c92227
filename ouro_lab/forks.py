"""The process that forks runs: it has imported what they need, waits for requests, and says which fork ended how.

Never imported: `processes.Server` starts it and is the other end of its pipes.
"""

import contextlib
import gc
import json
import os
import select
import signal
import sys
from importlib import import_module
from pathlib import Path

# What a run imports sooner or later; whatever is missing here each run imports for itself.
IMPORTS = (
    "ouro_lab.run",
    "ouro_lab.assembly",
    "ouro_lab.data",
    "ouro_lab.tracked",
    "ouro_lab.training.callbacks",
    "ouro_lab.training.checkpoint",
    "ouro_lab.training.execution",
    "ouro_lab.training.module",
    "ouro_lab.training.norms",
    "ouro_lab.training.preemption",
    "ouro_lab.training.trainer",
    "ouro_lab.training.watch",
)
PATIENCE = 0.2  # seconds that an end may stay unnoticed


def serve() -> int:
    """The exit status of the server; in every fork, of its run."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends when nothing is left to wait for
    for name in IMPORTS:
        import_module(name)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a terminal or pipe of the launcher's must not wait for this process
    gc.collect()
    gc.freeze()  # what a fork does not look at, it need not copy
    forks: dict[int, int] = {}  # pid → number
    unread, listening = b"", True
    while listening or forks:
        if select.select([0] if listening else [], [], [], PATIENCE)[0]:
            said = os.read(0, 1 << 16)
            listening = bool(said)
            *lines, unread = (unread + said).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if not pid:
                    return become(request["command"], request["environment"], Path(request["log"]))
                forks[pid] = request["number"]
                say(request["number"], pid)
        for pid in list(forks):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                say(forks.pop(pid), pid, os.waitstatus_to_exitcode(status))
    return 0


def become(command: list[str], environment: dict[str, str], log: Path) -> int:
    """The run, in a process that looks from inside as a new one would."""
    os.setsid()
    handles = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream, handle in zip((0, 1, 2), (*handles, handles[1]), strict=True):
        os.dup2(handle, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("ouro_lab.run")  # for ps and top
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    run = import_module("ouro_lab.run")
    sys.argv = [str(run.__file__), *command]
    sys.orig_argv = [sys.executable, "-m", "ouro_lab.run", *command]
    return run.main(command)


def say(*numbers: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the launcher was killed; its runs go on
        os.write(1, " ".join(map(str, numbers)).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(serve())
