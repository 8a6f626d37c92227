"""A run of two seconds, real processes that may be killed, and when two outcomes are the same."""

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ouro_lab import records, run
from ouro_lab.study import Run, Study
from ouro_lab.training import checkpoint

STEPS, VAL_EVERY = 40, 5
OVERRIDES = [
    "study.lr=null", "backbone.width=16", "backbone.heads=2", "data.task.length=12", "data.task.hops=2",
    "study.contrasts.depth_by_reuse.metric=accuracy/hops_2", "study.contrasts.cost_of_tying.metric=accuracy/hops_2",
    "data.batch_size=8", "data.val_size=8", "data.test_size=16", f"budget.steps={STEPS}",
    f"trainer.val_every={VAL_EVERY}", "trainer.log_every=2", "optim.lr=1e-2", "tracking=none",
]  # fmt: skip
WAIT = 120.0  # seconds for what takes two on an idle core

Outcome = tuple[dict[str, float], list[dict[str, Any]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """One line of the table: a fault, what is promised, what was measured, whether it was kept (None: not tried)."""

    fault: str
    promise: str
    measured: str
    ok: bool | None


def tiny(*overrides: str) -> Run:
    return Study("p_hop", [*OVERRIDES, *overrides]).run("looped", 1e-2, 0)


@contextlib.contextmanager
def place(folder: Path) -> Generator[Path, None, None]:
    """Runs lie in `folder` for a while."""
    before = os.environ.get("OURO_RUNS")
    os.environ["OURO_RUNS"] = str(folder)
    try:
        yield folder
    finally:
        os.environ.pop("OURO_RUNS")
        if before is not None:
            os.environ["OURO_RUNS"] = before


def child(work: Callable[[], int], log: Path) -> int:
    """A forked process that does `work` and exits with its status; starting an interpreter would cost seconds."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def put(owner: Any, name: str, value: Any) -> None:
    """Plants `value` in a module or class of a child, with which it goes."""
    setattr(owner, name, value)


def ended(pid: int) -> int:
    """Waits for a child; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int, after: float = 0.0) -> bool:
    """kill −9 after so many seconds; whether the child had not ended before."""
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return ended(pid) == -signal.SIGKILL


def execute(one: Run, prepare: Callable[[], None] = lambda: None) -> Callable[[], int]:
    """The work of a child that trains `one`, after `prepare`, which may plant a fault in that process alone."""

    def work() -> int:
        prepare()
        try:
            return run.execute(one)
        except OSError as error:  # as `run.main` says it
            print(f"error: {run.first_line(error)}", flush=True)
            return 1

    return work


def outcome(one: Run) -> Outcome:
    """Final metrics, rows and weights: what no fault may change."""
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    weights = checkpoint.load(one.directory / "checkpoints" / f"step={STEPS:08d}.ckpt")["state_dict"]
    return (records.read_final(one.directory) or {})["metrics"], kept, weights


def same(left: Outcome, right: Outcome) -> bool:
    """To the last bit."""
    equal = left[2].keys() == right[2].keys() and all(torch.equal(left[2][name], right[2][name]) for name in left[2])
    return equal and left[:2] == right[:2]


def finished_as(one: Run, expected: Outcome, log: Path) -> bool:
    """Whether the same command, given once more, ends as a run that nothing happened to."""
    return ended(child(execute(one), log)) == 0 and same(outcome(one), expected)


def whole(one: Run) -> bool:
    """Whether every checkpoint that has a name loads."""
    for path in (one.directory / "checkpoints").glob("step=*.ckpt"):
        try:
            checkpoint.load(path)
        except checkpoint.CheckpointError:
            return False
    return True


def wait_for(condition: Callable[[], bool]) -> None:
    """Raises: TimeoutError after `WAIT` seconds."""
    deadline = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("waited in vain")
        time.sleep(0.02)


def step_of(one: Run) -> int:
    return records.last_step(one.directory / "metrics.jsonl")
