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
from ouro_lab.launch import Local, _Pool
from ouro_lab.study import Run, Study

ONE_SEED = [*TINY, "study.seeds=[0]", "tracking=none"]
ENDLESS = [*ONE_SEED, "budget.steps=100000", "trainer.val_every=100000"]

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
        command = records.read_json(one.directory / "run.json")["command"]
        found.append((final["metrics"], command, lines[0], [line.split("  ")[0] for line in lines[1:]]))
    assert found[0] == found[1]
    assert found[0][3][-1] == "step 12/12"


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


def test_a_run_outlives_the_server_and_is_still_the_launchers(tmp_path):
    one = Study("p_hop", ENDLESS).expand()[0]
    pool = _Pool(Local(slots=1))
    pool.fill([one], 0)
    wait_for(lambda: records.last_step(one.directory / "metrics.jsonl") > 0)
    server = processes._servers[-1].process
    os.killpg(server.pid, signal.SIGTERM)  # which it does not heed
    log = tmp_path / "log.txt"
    assert started(["study=p_hop", "arm=lopped"], log, True).wait(timeout=120) == 2
    assert processes._servers[-1].process is server
    server.kill()
    server.wait()
    assert not pool.reap()
    assert list(pool.active) == [one.id]
    pool.stop()
    assert one.state == "to do"
    assert records.checkpoint_step(one.directory) > 0, "stopped as any run"
    assert started(["study=p_hop", "arm=lopped"], log, True).wait(timeout=120) == 2
    assert processes._servers[-1].process is not server


def test_a_forked_run_has_loader_workers():
    one = Study("p_hop", [*ONE_SEED, "data.workers=1"]).expand()[0]
    one.directory.mkdir(parents=True)
    assert started(one.command, log := one.directory / "log.txt", True).wait(timeout=120) == 0, log.read_text()


def test_a_fork_ends_as_it_is_told(tmp_path):
    log = tmp_path / "log.txt"
    for number in (signal.SIGTERM, signal.SIGKILL):
        one = Study("p_hop", ENDLESS).expand()[0]
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


def test_the_server_has_no_thread_that_a_fork_would_lack(tmp_path):
    assert started(["study=p_hop", "arm=lopped"], tmp_path / "log.txt", True).wait(timeout=120) == 2
    assert len(list(Path(f"/proc/{processes._servers[-1].process.pid}/task").iterdir())) == 1


def test_changed_code_is_imported_anew(tmp_path, monkeypatch):
    """A run records the commit that it finds when it begins; the server must not have imported another's code."""
    assert started(["study=p_hop", "arm=lopped"], tmp_path / "log.txt", True).wait(timeout=120) == 2
    before = processes._servers[-1]
    assert processes._server() is before
    source = tmp_path / "ouro_lab" / "processes.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(processes, "__file__", str(source))
    after = processes._server()
    assert after is not before
    assert processes._server() is after
    assert before.process.wait(timeout=60) == 0, "ends with its last fork"
    (source.parent / "new.py").write_text("")
    assert not after.current
    after.process.kill()


def test_a_server_that_cannot_start_costs_a_run_its_end_and_nothing_else(tmp_path, monkeypatch):
    log = tmp_path / "log.txt"
    monkeypatch.setattr(processes, "_servers", [])
    monkeypatch.setattr(sys, "executable", "/bin/false")
    process = started(["study=p_hop", "arm=looped"], log, True)
    assert process.wait(timeout=60) == processes.LOST
    process.kill()  # nothing to do


def wait_for(condition, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
