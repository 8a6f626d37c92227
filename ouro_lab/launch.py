"""Where runs execute: each in a process of its own, as many at once as the machine has room for."""

import os
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from ouro_lab import records
from ouro_lab.processes import THREADS, Process, start
from ouro_lab.study import Run

Watch = Callable[[list[Run]], None]
STOPPING = 60.0  # seconds that a process has to end once told to
RARELY = 5.0  # seconds between two looks at all records, at most


@dataclass(frozen=True)
class Local:
    """Process slots of this machine: cores / threads, or GPUs / devices where the trainer uses GPUs.

    slots: how many runs at once (None: all that fit). threads: per run; two single-thread runs beat one with two.
    """

    slots: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("slots", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"launcher.{name} = {value!r}: must be an integer ≥ 1")

    def room(self, accelerator: str, devices: int) -> int:
        if self.slots is not None:
            return self.slots
        if accelerator in ("gpu", "cuda") and torch.cuda.is_available():
            return max(1, torch.cuda.device_count() // devices)
        return max(1, cores() // (self.threads * devices))

    def execute(self, todo: Callable[[], list[Run]], everything: Callable[[], list[Run]], watch: Watch) -> bool:
        """Runs what `todo` says until nothing is left, longest first; `watch` sees the active runs every 0.5 to 5 s.

        Returns whether there is anything to report: true, as all have ended.
        A run that another process of an earlier, killed call still executes is waited for, not started twice.
        """
        pool, due = _Pool(self), 0.0
        try:
            while True:
                began = time.monotonic()
                if pool.reap() or began >= due:
                    adopted = [run for run in everything() if run.state == "running" and run.id not in pool.active]
                    waiting = [run for run in todo() if run.id not in pool.active]
                    if not waiting and not adopted and not pool.active:
                        return True
                    pool.fill(sorted(waiting, key=length_of, reverse=True), len(adopted))
                    watch([run for run, *_ in pool.active.values()] + adopted)
                    # A study of a hundred runs has a hundred records to read: the runs need the processor more.
                    due = began + min(RARELY, 20 * (time.monotonic() - began))
                time.sleep(0.5)
        finally:
            pool.stop()


class _Pool:
    def __init__(self, launcher: Local) -> None:
        self.launcher = launcher
        self.active: dict[str, tuple[Run, Process, list[int], float]] = {}

    def fill(self, waiting: list[Run], adopted: int) -> None:
        for run in waiting:
            trainer = run.config["trainer"]
            devices = int(trainer.get("devices", 1))
            if len(self.active) + adopted >= self.launcher.room(trainer.get("accelerator", "cpu"), devices):
                return
            self._start(run, devices)

    def reap(self) -> bool:
        """Takes finished processes out; one that died without a word is recorded as failed. Whether any had ended."""
        before = len(self.active)
        for name, (run, process, _, born) in list(self.active.items()):
            code = process.poll()
            if code is None:
                continue
            del self.active[name]
            state = records.read_state(run.directory) or {"state": "unborn"}
            recorded = state["state"] in ("done", "diverged") or state.get("ended", 0.0) > born
            if not recorded and not records.is_held(run.directory):  # held: an earlier call's process was first
                ended = f"signal {-code}" if code < 0 else f"exit status {code}"
                bury(run, f"the process ended with {ended}; see log.txt")
        return len(self.active) < before

    def stop(self) -> None:
        for _, process, *_ in self.active.values():
            process.terminate()
        for _, process, *_ in self.active.values():
            try:
                process.wait(timeout=STOPPING)
            except subprocess.TimeoutExpired:  # a step that long, or a hang: its last checkpoint is whole
                process.kill()
                process.wait()

    def _start(self, run: Run, devices: int) -> None:
        run.directory.mkdir(parents=True, exist_ok=True)
        gpus = self._free_gpus(run, devices)
        environment = os.environ | _thread_limits(self.launcher.threads)
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        alone = devices == 1 and run.config["trainer"].get("accelerator", "cpu") == "cpu"
        process = start(run.command, environment, run.directory / "log.txt", fork=alone)
        self.active[run.id] = (run, process, gpus, time.time())

    def _free_gpus(self, run: Run, devices: int) -> list[int]:
        if run.config["trainer"].get("accelerator") not in ("gpu", "cuda") or not torch.cuda.is_available():
            return []
        taken = {gpu for *_, gpus, _ in self.active.values() for gpu in gpus}
        return [gpu for gpu in range(torch.cuda.device_count()) if gpu not in taken][:devices]


def bury(run: Run, reason: str) -> None:
    """Records a death that the process could not record; one before it began uses up an attempt too."""
    before = records.read_state(run.directory) or {}
    records.finish(run.directory, "failed", reason)
    if before.get("state") != "running":
        state = records.read_state(run.directory) or {}
        records.write_json(run.directory / "state.json", state | {"attempts": before.get("attempts", 0) + 1})


def cores() -> int:
    """Cores that this process may use; a container's share where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _thread_limits(threads: int) -> dict[str, str]:
    return dict.fromkeys(THREADS, str(threads)) | {"PYTHONUNBUFFERED": "1"}


def length_of(run: Run) -> float:
    """Expected cost, to start the longest first: known FLOPs, else steps × effective depth; least of an evaluation."""
    if run.config["do"] == "evaluate":
        return 0.0
    backbone, budget = run.config["backbone"], run.config["budget"]
    loops = 1 if "iso_parameter" in backbone.get("_target_", "") else backbone.get("loops", 1)
    size = budget["steps"] or budget["tokens"] or budget["flops"]
    return float(size) * backbone.get("layers", 1) * loops * backbone.get("width", 1)


def progress_of(runs: Iterable[Run]) -> Iterator[tuple[Run, int, int]]:
    """(run, step, steps) of active runs, from their own records."""
    for run in runs:
        cost = records.read_note(run.directory).get("cost", {})
        yield run, records.last_step(run.directory / "metrics.jsonl"), int(cost.get("steps", 0))
