"""The local launcher on real processes: order, slots, deaths, adoption, and a study killed at any moment."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests_support import TINY

from ouro_lab import launch, processes, records
from ouro_lab.config import ROOT
from ouro_lab.launch import Local
from ouro_lab.run import execute as execute_run
from ouro_lab.study import ATTEMPTS, Run, Study
from ouro_lab.training import checkpoint

ONE_SEED = [*TINY, "study.seeds=[0]", "tracking=none"]

# A backbone whose process kills itself, as the kernel does to one that takes too much memory.
DEADLY = """
import os, signal
from ouro_lab.model import looped

def build(**arguments):
    if arguments.get("loops") != 1 and os.environ.get("DEADLY") == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return looped(**arguments)
"""


class Seen:
    """What the launcher showed: how many at once, and which run was first seen when."""

    def __init__(self) -> None:
        self.most = 0
        self.order: list[str] = []

    def __call__(self, active: list[Run]) -> None:
        self.most = max(self.most, len(active))
        self.order += [run.id for run in active if run.id not in self.order]


def execute(study: Study, slots: int) -> Seen:
    seen = Seen()
    Local(slots=slots).execute(study.todo, study.expand, seen)
    return seen


def outcome(run: Run, root: Path | None = None) -> tuple[dict, list[dict], dict]:
    """Final metrics, rows and weights: what no interruption may change."""
    folder = (root / run.study / run.id) if root else run.directory
    rows = records.read_metrics(folder / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    weights = checkpoint.load(checkpoint.newest(folder / "checkpoints"))["state_dict"]
    return records.read_final(folder)["metrics"], kept, weights


def same(left: tuple[dict, list[dict], dict], right: tuple[dict, list[dict], dict]) -> bool:
    equal = left[2].keys() == right[2].keys() and all(torch.equal(left[2][name], right[2][name]) for name in left[2])
    return equal and left[0] == right[0] and left[1] == right[1]


class FakeProcess:
    """Stands for a run's process: records its end after a moment, starts nothing."""

    started: list[str] = []
    alive = 0
    most = 0

    def __init__(self, command: list[str], *_, **__) -> None:
        run = next(run for run in FakeProcess.study.expand() if run.command == command)
        FakeProcess.started.append(run.id)
        FakeProcess.alive += 1
        FakeProcess.most = max(FakeProcess.most, FakeProcess.alive)
        records.begin(run.directory, run.identity(), run.config)
        self.run, self.polls = run, 0

    def poll(self) -> int | None:
        self.polls += 1
        if self.polls < 2:
            return None
        if self.polls == 2:
            FakeProcess.alive -= 1
            records.finish(self.run.directory, "done")
        return 0

    def terminate(self) -> None:
        self.wait()

    def wait(self, timeout: float | None = None) -> None:
        pass


def test_longest_first_and_never_more_than_the_slots(monkeypatch):
    study = Study("p_hop", [*TINY, "tracking=none"])
    FakeProcess.study, FakeProcess.started, FakeProcess.most = study, [], 0
    monkeypatch.setattr(launch, "start", FakeProcess)
    clock = SimpleNamespace(sleep=lambda seconds: None, time=time.time, monotonic=time.monotonic)
    monkeypatch.setattr(launch, "time", clock)
    seen = execute(study, slots=2)
    assert sorted(FakeProcess.started) == sorted(run.id for run in study.expand())
    assert FakeProcess.most == seen.most == 2
    assert {name.split("-")[0] for name in FakeProcess.started[:6]} == {"looped", "iso_flop"}
    assert {name.split("-")[0] for name in FakeProcess.started[6:]} == {"iso_parameter"}
    assert {run.state for run in study.expand()} == {"done"}


def test_records_that_take_long_to_read_are_read_rarely(monkeypatch):
    """Two runs of 30 s each, one after the other; to read all records takes 0.1 s."""
    now, looks, runs = [0.0], [], Study("p_hop", ONE_SEED).expand()[:2]
    clock = SimpleNamespace(sleep=lambda seconds: now.__setitem__(0, now[0] + seconds), time=time.time)
    clock.monotonic = lambda: now[0]
    ends: dict[str, float] = {}

    def todo() -> list[Run]:
        looks.append(now[0])
        now[0] += 0.1
        return [run for run in runs if run.id not in ends]

    def start(command: list[str], *_, **__) -> SimpleNamespace:
        one = next(run for run in runs if run.command == command)
        ends[one.id] = end = now[0] + 30.0
        records.begin(one.directory, one.identity(), one.config)
        return SimpleNamespace(poll=lambda: 0 if now[0] >= end else None)

    monkeypatch.setattr(launch, "time", clock)
    monkeypatch.setattr(launch, "start", start)
    monkeypatch.setattr(records, "is_held", lambda directory: True)
    assert Local(slots=1).execute(todo, lambda: [], lambda active: None)
    assert 2 * 30 / 2.5 < len(looks) < 2 * 30 / 1.9  # 20 × 0.1 s apart, not twice a second
    assert max(ends.values()) < 62.0, "the second began as soon as the first had ended"


@pytest.mark.slow
def test_a_process_that_dies_is_retried_twice_and_the_others_are_unaffected(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    arms = "+study.arms={good: ['backbone.loops=1'], bad: ['backbone.loops=2']}"
    overrides = [*ONE_SEED, "~study.arms", "~study.contrasts", "~study.positive_control", arms]
    overrides += ["backbone._target_=deadly.build", "launcher.slots=2"]
    paths = [str(tmp_path), str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OURO_ALLOW": "deadly"}
    code = f"""
import os, sys
from ouro_lab import launch
from ouro_lab.__main__ import main
limits = launch._thread_limits
launch._thread_limits = lambda threads: limits(threads) | {{"DEADLY": "1"}}
sys.exit(main(["run", "p_hop", *{overrides!r}]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    folder = records.runs_root() / "p_hop"
    states = {path.name.split("-")[0]: records.read_state(path) for path in folder.glob("*-*") if path.is_dir()}
    assert states["good"]["state"] == "done"
    assert (states["bad"]["state"], states["bad"]["attempts"]) == ("failed", ATTEMPTS)
    assert "signal 9" in states["bad"]["reason"]
    assert "failed: bad-" in done.stdout
    assert (folder / "report" / "report.md").is_file()


def test_a_run_under_a_killed_parent_is_adopted_not_doubled():
    study = Study("p_hop", [*ONE_SEED, "budget.steps=400", "trainer.val_every=100"])
    one = study.run("looped", 1e-2, 0)
    orphan = start_run(one)
    wait_for(lambda: one.state == "running")
    only = [run for run in study.expand() if run.id == one.id]
    started: list[str] = []
    real = launch._Pool._start
    try:
        launch._Pool._start = lambda pool, run, devices: (started.append(run.id), real(pool, run, devices))[0]
        seen = Seen()
        Local(slots=1).execute(lambda: [r for r in only if r.state == "to do"], lambda: only, seen)
    finally:
        launch._Pool._start = real
    orphan.wait()
    assert seen.order == [one.id]
    assert started == []
    assert one.state == "done"
    assert records.read_state(one.directory)["attempts"] == 1


def test_a_run_that_another_process_took_first_is_not_buried():
    """The study was killed while a run's process was still importing: the next call starts a second, which yields."""
    one = Study("p_hop", ONE_SEED).expand()[0]
    pool = launch._Pool(Local(slots=1))
    with records.run_lock(one.directory) as free:
        assert free
        second = start_run(one)
        assert second.wait(timeout=60) == 0
        pool.active[one.id] = (one, second, [], time.time())
        pool.reap()
        assert records.read_state(one.directory) is None
    assert pool.active == {}
    assert one.state == "to do"


def test_stopping_a_study_uses_up_no_attempt():
    one = Study("p_hop", [*ONE_SEED, "budget.steps=2000"]).expand()[0]
    for _ in range(2):
        process = start_run(one)
        wait_for(lambda: one.state == "running" and records.last_step(one.directory / "metrics.jsonl") > 4)
        process.terminate()
        process.wait(timeout=30)
        assert one.state == "to do"
    assert records.read_state(one.directory)["attempts"] == 1


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_as_if_unbroken(tmp_path, monkeypatch):
    study = Study("p_hop", [*ONE_SEED, "budget.steps=60", "trainer.val_every=10", "launcher.slots=2"])
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    monkeypatch.setenv("OURO_RUNS", str(unbroken))
    assert [execute_run(run) for run in study.expand()] == [0, 0, 0]
    monkeypatch.setenv("OURO_RUNS", str(broken))
    dice = random.Random(int.from_bytes(os.urandom(4), "little"))
    with killed_study(study, broken) as parent:  # one run's process dies, then the study with all that it started
        wait_for(lambda: any(run.state == "running" for run in study.expand()))
        time.sleep(delay := dice.uniform(0, 2))
        victims = [records.read_state(run.directory)["pid"] for run in study.expand() if run.state == "running"]
        for pid in victims[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(pause := dice.uniform(0, 3))
        kill_all(parent, study)
    assert not any(run.state == "running" for run in study.expand())
    finish_study(study, broken)
    names = {path.name for path in (broken / "p_hop").glob("*-*") if path.is_dir()}
    assert names == {run.id for run in study.expand()}
    for run in study.expand():
        assert same(outcome(run, unbroken), outcome(run, broken)), (run.id, delay, pause)
        steps = [row["step"] for row in records.read_metrics(run.directory / "metrics.jsonl")]
        assert steps == sorted(set(steps))
        assert json.loads((run.directory / "state.json").read_text())["state"] == "done"


def start_run(run: Run) -> processes.Process:
    run.directory.mkdir(parents=True, exist_ok=True)
    return processes.start(run.command, dict(os.environ), run.directory / "log.txt", fork=True)


def study_process(study: Study, root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ouro_lab", "run", study.name, *study.overrides]
    environment = os.environ | {"OURO_RUNS": str(root)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def finish_study(study: Study, root: Path) -> None:
    assert study_process(study, root).wait(timeout=240) == 0


class killed_study:  # noqa: N801
    """A study's process that nothing of the test outlives."""

    def __init__(self, study: Study, root: Path) -> None:
        self.study, self.process = study, study_process(study, root)

    def __enter__(self) -> subprocess.Popen:
        return self.process

    def __exit__(self, *_: object) -> None:
        kill_all(self.process, self.study)


def kill_all(parent: subprocess.Popen, study: Study) -> None:
    """kill −9 of the study's process group and of each run's own."""
    if parent.poll() is None:
        os.kill(parent.pid, signal.SIGSTOP)  # so that it starts none while we look
        for pid in [*descendants_of(parent.pid), parent.pid]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(os.getpgid(pid), signal.SIGKILL)
        parent.wait()
    wait_for(lambda: not any(run.state == "running" for run in study.expand()))


def descendants_of(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    children = [int(word) for word in found.stdout.split()]
    return [*children, *(other for child in children for other in descendants_of(child))]


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
