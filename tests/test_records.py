"""Run directories: what survives kills, resumes and numbers that are none."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ouro_lab import records
from ouro_lab.records import MetricsLog, read_metrics

IDENTITY = {"id": "a-0.001-0-abcd1234", "study": "s", "arm": "a", "lr": 1e-3, "seed": 0, "hash": "abcd1234"}


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(tmp_path / "metrics.jsonl")


def fill(log: MetricsLog, steps: range) -> None:
    for step in steps:
        log.append(step, {"train/loss": 1.0 / step})


def test_rows_of_a_step_are_read_as_one(log: MetricsLog) -> None:
    log.append(5, {"train/loss": 2.0})
    time.sleep(0.01)
    log.append(5, {"val/loss": 3.0})
    rows = read_metrics(log.path)
    assert [{k: v for k, v in row.items() if k != "time"} for row in rows] == [
        {"step": 5, "train/loss": 2.0, "val/loss": 3.0}
    ]
    first = json.loads(log.path.read_text().splitlines()[0])
    assert rows[0]["time"] == first["time"]


def test_a_metric_is_written_once_per_step_also_by_another_process(log: MetricsLog) -> None:
    log.append(5, {"val/loss": 3.0})
    log.append(5, {"val/loss": 9.0})
    MetricsLog(log.path).append(5, {"val/loss": 9.0})
    assert len(log.path.read_text().splitlines()) == 1
    assert read_metrics(log.path)[0]["val/loss"] == 3.0


def test_cut_drops_what_lies_beyond_and_writing_goes_on(log: MetricsLog) -> None:
    fill(log, range(1, 8))
    log.cut(4)
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4]
    fill(log, range(5, 7))
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4, 5, 6]
    log.cut(0)
    assert read_metrics(log.path) == []


def test_an_earlier_step_without_cut_is_refused(log: MetricsLog) -> None:
    fill(log, range(1, 4))
    with pytest.raises(ValueError, match="step 2 after those of step 3"):
        MetricsLog(log.path).append(2, {"train/loss": 0.0})


@pytest.mark.parametrize("resume", ["append", "cut"])
def test_a_torn_last_line_costs_only_itself(log: MetricsLog, resume: str) -> None:
    fill(log, range(1, 4))
    with log.path.open("a") as file:
        file.write('{"step": 4, "time": 1.0, "train/lo')
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3]
    assert records.last_step(log.path) == 3
    again = MetricsLog(log.path)
    if resume == "cut":
        again.cut(10)
    again.append(4, {"train/loss": 0.5})
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2, 3, 4]


def test_non_finite_numbers_come_back_and_the_file_stays_json(log: MetricsLog) -> None:
    log.append(1, {"train/loss": math.nan, "val/loss": math.inf, "optim/grad_norm": -math.inf})
    json.loads(log.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    row = read_metrics(log.path)[0]
    assert math.isnan(row["train/loss"])
    assert (row["val/loss"], row["optim/grad_norm"]) == (math.inf, -math.inf)


def test_last_step_of_nothing_is_zero(tmp_path: Path) -> None:
    assert records.last_step(tmp_path / "absent.jsonl") == 0
    assert read_metrics(tmp_path / "absent.jsonl") == []


def test_json_round_trip_and_a_bad_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    assert records.read_json(path) is None
    records.write_json(path, {"mean": {0.001: math.inf}, "arm": "2⊗3", "values": [math.nan, 1]})
    content = records.read_json(path)
    assert content["mean"]["0.001"] == math.inf
    assert content["arm"] == "2⊗3"
    assert math.isnan(content["values"][0])
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]
    path.write_text("{")
    with pytest.raises(ValueError, match=r"b\.json: not JSON"):
        records.read_json(path)


def test_begin_and_finish_keep_what_earlier_attempts_wrote(tmp_path: Path) -> None:
    run = tmp_path / "run"
    records.begin(run, IDENTITY | {"overrides": []}, {"optim": {"lr": 1e-3}, "seed": 0})
    records.note(run, {"cost": {"steps": 10, "tokens": 1000, "training_flops": 5e6}})
    assert records.is_running(run)
    state = records.read_state(run)
    assert (state["state"], state["attempts"]) == ("running", 1)
    records.finish(run, "failed", "OSError: no space")
    records.begin(run, IDENTITY | {"overrides": []}, {"optim": {"lr": 1e-3}, "seed": 0})
    assert records.read_state(run)["attempts"] == 2
    assert records.read_note(run)["cost"]["steps"] == 10
    assert len(records.read_note(run)["commands"]) == 2
    assert records.read_json(run / "run.json")["hash"] == "abcd1234"
    records.write_final(run, {"final/loss": math.nan}, 3.0, 5, records.read_note(run)["cost"])
    records.finish(run, "diverged", "train/loss = nan")
    final = records.read_final(run)
    assert (final["tokens"], final["flops"], final["steps"]) == (500, 2.5e6, 5)
    assert not records.is_running(run)
    assert records.read_state(run)["step"] == 5
    records.write_final(run, {}, 3.0, 5, records.read_note(run)["cost"], tokens=300)  # its batch grew
    assert (records.read_final(run)["tokens"], records.read_final(run)["flops"]) == (300, 1.5e6)


def test_a_kill_uses_up_no_attempt_and_its_seconds_count(tmp_path: Path) -> None:
    run = tmp_path / "run"
    records.begin(run, IDENTITY, {})
    log = MetricsLog(run / "metrics.jsonl")
    log.append(1, {"train/loss": 1.0})
    state = records.read_state(run)
    records.write_json(run / "state.json", state | {"pid": 2**22 + 1, "began": state["began"] - 100})  # killed
    assert not records.is_running(run)
    records.begin(run, IDENTITY, {})
    assert records.read_state(run)["attempts"] == 1
    assert records.read_seconds(run) == pytest.approx(100, abs=2)


def test_a_process_that_died_before_it_began_is_a_failure(tmp_path: Path) -> None:
    records.finish(tmp_path, "failed", "exit status 1")
    assert records.read_state(tmp_path)["attempts"] == 1


def test_alive_is_not_fooled_by_a_reused_pid() -> None:
    own = records.process_start(os.getpid())
    assert records.is_alive(os.getpid(), own)
    assert not records.is_alive(os.getpid(), "another boot/1")
    child = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 10
    while records.is_alive(child.pid) and time.monotonic() < deadline:  # ends unreaped: a corpse is not alive
        time.sleep(0.02)
    assert not records.is_alive(child.pid)
    child.wait()


def test_the_run_lock_ends_with_its_process(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ouro_lab import records\n"
        "with records.run_lock(Path(sys.argv[1])) as free: print(free, flush=True); time.sleep(60)"
    )
    root = Path(records.__file__).parents[1]
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root)
    assert holder.stdout.readline() == "True\n"
    with records.run_lock(tmp_path, patience=0.0) as free:
        assert not free
    holder.kill()
    holder.wait()
    with records.run_lock(tmp_path) as free:
        assert free


def test_checkpoint_step_ignores_unfinished_files(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    for name in ("step=00000250.ckpt", "step=00000500.ckpt", ".step=00000750.ckpt.99", "step=00000900.corrupt"):
        (folder / name).touch()
    assert records.checkpoint_step(tmp_path) == 500


def test_runs_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURO_RUNS", str(tmp_path))
    assert records.runs_root() == tmp_path
    monkeypatch.delenv("OURO_RUNS")
    assert records.runs_root().name == "runs"


def test_provenance_works_outside_git_and_imports_nothing_heavy(tmp_path: Path) -> None:
    from ouro_lab.provenance import git

    assert git(tmp_path) == {"commit": None, "dirty": None}
    code = (
        "import sys; from ouro_lab import records; p = records.provenance(); "
        "assert p['versions']['torch'] and p['hardware']['cores'] >= 1, p; "
        "assert not {'torch', 'mlflow', 'lightning'} & sys.modules.keys()"
    )
    root = Path(records.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def test_a_repository_is_dirty_by_sources_not_by_results(tmp_path: Path) -> None:
    from ouro_lab.provenance import git

    def run(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    run("init", "-q")
    (tmp_path / "a.py").touch()
    run("add", "a.py")
    run("commit", "-qm", "first")
    assert git(tmp_path)["dirty"] is False
    (tmp_path / "experiments" / "results").mkdir(parents=True)
    (tmp_path / "experiments" / "results" / "report.md").touch()
    assert git(tmp_path)["dirty"] is False
    (tmp_path / "b.py").touch()
    assert git(tmp_path)["dirty"] is True
    assert len(git(tmp_path)["commit"]) == 40
