"""A run's process, forked or new: it says and computes the same, and no run is lost with the server of forks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests_support import TINY

from ouro_lab import processes, records
from ouro_lab.config import ROOT
from ouro_lab.launch import Local, _Pool
from ouro_lab.study import Run, Study

ONE_SEED = [*TINY, "study.seeds=[0]", "tracking=none"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="runs are forked on Linux alone")


def started(command: list[str], log: Path, fork: bool) -> processes.Process:
    return processes.start(command, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}, log, fork)


def test_a_fork_and_a_new_python_say_and_compute_the_same(tmp_path, monkeypatch):
    found = []
    for fork in (True, False):
        monkeypatch.setenv("OURO_RUNS", str(tmp_path / str(fork)))  # not known to a server that ran before
        one = Study("p_hop", ONE_SEED).expand()[0]
        log = tmp_path / f"{fork}.txt"
        assert started(one.command, log, fork).wait(timeout=120) == 0
        final, lines = records.read_final(one.directory), log.read_text().splitlines()
        assert final
        found.append((final["metrics"], lines[0], [line.split("  ")[0] for line in lines[1:]]))
    assert found[0] == found[1]
    assert found[0][2][-1] == "step 12/12"


def test_a_fork_says_what_is_wrong_with_its_command(tmp_path):
    log = tmp_path / "log.txt"
    assert started(["study=p_hop", "arm=lopped"], log, True).wait(timeout=120) == 2
    assert log.read_text().startswith("error: arm = lopped: not an arm of p_hop; did you mean looped?")


def test_only_a_run_of_one_process_on_a_cpu_is_forked(monkeypatch):
    forked = []
    monkeypatch.setattr("ouro_lab.launch.start", lambda command, environment, log, fork: forked.append(fork))
    for more in ([], ["+trainer.devices=2"], ["trainer=gpu"]):
        _Pool(Local(slots=1))._start(run := Study("p_hop", [*ONE_SEED, *more]).expand()[0], devices_of(run))
    assert forked == [True, False, False]


def devices_of(run: Run) -> int:
    return int(run.config["trainer"].get("devices", 1))


def test_a_run_outlives_the_server_and_is_not_taken_for_dead(tmp_path):
    one = Study("p_hop", [*ONE_SEED, "budget.steps=100000", "trainer.val_every=100000"]).expand()[0]
    pool = _Pool(Local(slots=1))
    pool.fill([one], 0)
    wait_for(lambda: one.state == "running")
    pid = records.read_state(one.directory)["pid"]
    os.kill(parent_of(pid), signal.SIGKILL)
    try:
        wait_for(pool.reap)
        assert pool.active == {}
        assert one.state == "running", "adopted by the launcher's next round"
    finally:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: one.state == "to do")
    assert started(["study=p_hop", "arm=lopped"], tmp_path / "log.txt", True).wait(timeout=120) == 2  # a new server


def test_a_fork_ends_as_it_is_told(tmp_path):
    log = tmp_path / "log.txt"
    for number in (signal.SIGTERM, signal.SIGKILL):
        one = Study("p_hop", [*ONE_SEED, "budget.steps=100000", "trainer.val_every=100000"]).expand()[0]
        process = started(one.command, log, True)
        wait_for(lambda one=one: one.state == "running" and records.last_step(one.directory / "metrics.jsonl") > 0)
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
        if number == signal.SIGTERM:
            process.terminate()
            assert process.wait(timeout=60) != 0
            assert records.checkpoint_step(one.directory) > 0
        else:
            process.kill()
            assert process.wait(timeout=60) == -signal.SIGKILL
        assert one.state == "to do"


def test_the_server_has_all_imported_and_no_thread():
    code = "import os, sys, ouro_lab.preload; print(len(os.listdir('/proc/self/task')), 'lightning' in sys.modules)"
    bare = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=bare, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True"]


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
