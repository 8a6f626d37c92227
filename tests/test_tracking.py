"""Pushes into real SQLite stores: whatever is repeated, killed or down, each number is there once."""

import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ouro_lab import records, tracking, tracking_store
from ouro_lab.tracked import POINTS, thin
from ouro_lab.tracking import Store, push, push_report, push_study

ROOT = Path(tracking.__file__).parents[1]
ID = "looped-0.002-0-abcd1234"
CONFIG = {
    "backbone": {"_target_": "ouro_lab.model.looped", "layers": 2, "loops": 3, "width": 64, "heads": 4},
    "data": {"_target_": "ouro_lab.data.PHop", "length": 48, "batch_size": 64},
    "objective": {"_target_": "ouro_lab.objectives.LastLoop"},
    "optim": {"_target_": "ouro_lab.training.optim.AdamW", "lr": 2e-3},
    "trainer": {"precision": "32-true"},
    "seed": 0,
}
STUDY = {
    "question": "Does looping give depth?",
    "claim": ["S03"],
    "hash": "11112222",
    "arms": {"looped": {"overrides": ["backbone=looped", "+backbone.loops=3"], "shape": "2⊗3"}},
}


class FakeRun:
    """A run's directory that grows as a real one does: rows, then the checkpoint that covers them."""

    def __init__(self, root: Path, steps: int = 40, every: int = 10) -> None:
        self.root, self.steps, self.every = root, steps, every
        self.directory = root / "p_hop" / ID
        self.log = records.MetricsLog(self.directory / "metrics.jsonl")
        self.begin()

    def begin(self) -> None:
        identity = {"id": ID, "study": "p_hop", "arm": "looped", "lr": 2e-3, "seed": 0, "hash": "abcd1234"}
        records.write_json(self.directory.parent / "study.json", STUDY)
        records.begin(self.directory, identity | {"phase": "main", "overrides": []}, CONFIG)
        cost = {"parameters": 96000, "steps": self.steps, "tokens": 1000, "training_flops": 1e9}
        records.note(self.directory, {"cost": cost})

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.log.append(step, {"train/loss": 1 / step, "total/tokens": step * 25, "total/flops": step * 2.5e7})
            if step % self.every == 0:
                self.log.append(step, {"val/loss": 2 / step})
                self.checkpoint(step)

    def checkpoint(self, step: int) -> None:
        folder = self.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        (folder / f"step={step:08d}.ckpt").touch()

    def end(self, state: str = "done") -> None:
        cost = records.read_note(self.directory)["cost"]
        records.write_final(self.directory, {"final/loss": 0.05}, 12.0, self.steps, cost)
        records.finish(self.directory, state)

    def copy(self, root: Path) -> "FakeRun":
        shutil.copytree(self.root / "p_hop", root / "p_hop")
        other = FakeRun.__new__(FakeRun)
        other.root, other.steps, other.every = root, self.steps, self.every
        other.directory = root / "p_hop" / ID
        return other


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store takes a second to make: one is made, the tests copy its file."""
    path = tmp_path_factory.mktemp("prepared") / "mlflow.db"
    assert Store(f"sqlite:///{path}").prepare()
    return path


@pytest.fixture
def new_store(prepared: Path, tmp_path: Path) -> Callable[[str], Store]:
    def make(name: str = "store") -> Store:
        (tmp_path / name).mkdir()
        shutil.copyfile(prepared, tmp_path / name / "mlflow.db")
        return Store(f"sqlite:///{tmp_path / name / 'mlflow.db'}")

    return make


@pytest.fixture
def store(new_store: Callable[[str], Store]) -> Store:
    return new_store("store")


@pytest.fixture
def run(tmp_path: Path) -> FakeRun:
    return FakeRun(tmp_path / "runs")


def query(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store.database) as connection:
        return connection.execute(sql).fetchall()


def metrics(store: Store) -> list[tuple[Any, ...]]:
    return sorted(query(store, "select key, value, step, timestamp, is_nan from metrics"))


def tags(store: Store) -> dict[str, str]:
    return dict(query(store, "select key, value from tags"))


def parameters(store: Store) -> dict[str, str]:
    return dict(query(store, "select key, value from params"))


def test_a_finished_run_is_complete_and_a_second_push_adds_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    first = metrics(store)
    assert push(run.directory, store)
    assert metrics(store) == first
    assert len(first) == 3 * 40 + 4 + 4
    assert query(store, "select name, status from runs") == [(ID, "FINISHED")]
    assert query(store, "select name from experiments where experiment_id != 0") == [("p_hop",)]
    times = dict(query(store, "select step, timestamp from metrics where key = 'train/loss'"))
    assert times == {row["step"]: round(row["time"] * 1000) for row in records.read_metrics(run.log.path)}


def test_parameters_are_the_ablated_keys_and_few_facts(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"git": {"commit": "f" * 40, "dirty": False}})
    assert push(run.directory, store)
    found = parameters(store)
    assert found["arm"] == "looped"
    assert found["lr"] == "0.002"
    assert found["backbone"] == "looped"
    assert found["backbone.loops"] == "3"
    assert found["objective"] == "LastLoop"
    assert found["training_flops"] == "1e+09"
    assert found["commit"] == "f" * 12
    assert len(found) <= 22
    assert tags(store)["claim"] == "S03"
    assert tags(store)["study_hash"] == "11112222"


def test_the_experiment_shows_the_question_and_few_columns(run: FakeRun, store: Store) -> None:
    assert push(run.directory, store)
    changed = STUDY | {"contrasts": {"depth": {"metric": "accuracy/hops_8", "primary": True}}}
    records.write_json(run.directory.parent / "study.json", changed)
    assert push(run.directory, store)
    found = dict(query(store, "select key, value from experiment_tags where experiment_id != 0"))
    assert found["mlflow.note.content"].startswith("Does looping")
    columns = json.loads(found["mlflow.sharedViewState.ouro"])["selectedColumns"]
    assert columns[:3] == ["metrics.`final/accuracy/hops_8`", "metrics.`final/loss`", "params.`arm`"]
    assert len(columns) <= 10
    assert store.pages("http://x") == ["p_hop  http://x/#/experiments/1/runs?viewStateShareKey=ouro"]


def test_artifacts_lie_beside_the_store_and_hold_no_weights(run: FakeRun, store: Store) -> None:
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    names = sorted(path.name for path in (store.database.parent / "mlflow_artifacts").rglob("*") if path.is_file())
    assert names == ["config.yaml", "record.json", "run.json"]


def test_an_unfinished_run_gives_what_its_checkpoint_covers(run: FakeRun, store: Store) -> None:
    run.train(1, 27)
    assert push(run.directory, store)
    assert query(store, "select max(step) from metrics") == [(20,)]
    assert query(store, "select status from runs") == [("RUNNING",)]


def test_pieces_while_a_run_grows_equal_one_push(
    run: FakeRun, new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    pieces, once = new_store("pieces"), new_store("once")
    for first, last in ((1, 7), (8, 15), (16, 23), (24, 32), (33, 40)):
        run.train(first, last)
        assert push(run.directory, pieces)
    run.end()
    assert push(run.directory, pieces)
    assert push(run.copy(tmp_path / "elsewhere").directory, once)
    assert metrics(pieces) == metrics(once)


def test_a_resume_behind_the_checkpoint_doubles_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 27)
    assert push(run.directory, store)
    run.log.cut(20)
    run.begin()
    run.train(21, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]


def test_a_lost_checkpoint_takes_nothing_back_and_doubles_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 30)
    assert push(run.directory, store)
    shutil.rmtree(run.directory / "checkpoints")
    run.log.cut(0)
    time.sleep(0.01)  # the rows get other times
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]


def test_a_changed_parameter_becomes_a_drift_tag(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"git": {"commit": "a" * 40, "dirty": False}})
    assert push(run.directory, store)
    records.note(run.directory, {"git": {"commit": "b" * 40, "dirty": True}})
    assert push(run.directory, store)
    assert parameters(store)["commit"] == "a" * 12
    assert tags(store)["drift.commit"] == "b" * 12


def test_long_values_are_cut(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"execution": {"precision": "x" * 900}})
    assert push(run.directory, store)
    assert push(run.directory, store)
    assert parameters(store)["precision"] == "x" * 250
    assert "drift.precision" not in tags(store)


@pytest.mark.parametrize(("state", "status"), [("diverged", "FINISHED"), ("failed", "FAILED"), ("running", "RUNNING")])
def test_states(run: FakeRun, store: Store, state: str, status: str) -> None:
    run.train(1, 15)
    if state == "failed":
        records.finish(run.directory, state, "OSError: no space")
    elif state == "diverged":
        run.end(state)
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [(status,)]
    assert tags(store)["state"] == state
    last = 15 if state == "diverged" else 10
    assert query(store, "select max(step) from metrics where key = 'train/loss'") == [(last,)]


def test_a_killed_run_is_shown_as_interrupted_until_it_resumes(run: FakeRun, store: Store) -> None:
    state = records.read_state(run.directory)
    records.write_json(run.directory / "state.json", state | {"pid": 2**22 + 1})
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [("KILLED",)]
    run.begin()
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [("RUNNING",)]


def test_non_finite_values_are_stored(run: FakeRun, store: Store) -> None:
    run.log.append(1, {"train/loss": math.nan, "optim/grad_norm": math.inf})
    run.end("diverged")
    assert push(run.directory, store)
    assert query(store, "select is_nan from metrics where key = 'train/loss'") == [(1,)]
    assert query(store, "select value > 1e300 from metrics where key = 'optim/grad_norm'") == [(1,)]


@pytest.mark.parametrize("where", ["_send_parameters", "_set_status", "_tag"])
def test_a_crash_between_the_metrics_and_the_cursor_doubles_nothing(
    run: FakeRun, store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run.train(1, 30)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking, where, crash)
        with pytest.raises(KeyboardInterrupt):
            push(run.directory, store)
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(30,)]
    run.train(31, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select count(*) from runs") == [(1,)]
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []


def rows_of(steps: int, every: int) -> list[dict[str, Any]]:
    return [{"step": step, "time": float(step), "train/loss": 1.0} for step in range(every, steps + 1, every)]


@pytest.mark.parametrize(("steps", "every"), [(100, 1), (1999, 1), (2000, 1), (7919, 1), (100_000, 25), (999_983, 7)])
def test_thinning_keeps_both_ends_and_at_most_the_limit(steps: int, every: int) -> None:
    rows = rows_of(steps, every)
    kept = [point.step for point in thin(rows, steps, -1, True)]
    assert len(kept) <= POINTS
    assert (min(kept), max(kept)) == (rows[0]["step"], rows[-1]["step"])
    assert len(set(kept)) == len(kept)
    assert len(kept) == len(rows) or len(kept) > POINTS / 2 - 2


@pytest.mark.parametrize("piece", [1, 97, 1500])
def test_thinning_in_pieces_is_thinning_at_once(piece: int) -> None:
    rows = rows_of(9000, 1)
    sent, after = [], -1
    for end in range(piece, len(rows), piece):
        sent += thin(rows[:end], 9000, after, False)
        after = rows[end - 1]["step"]
        if piece == 1 and end > 300:
            break
    sent += thin(rows, 9000, after, True)
    assert sorted(point.step for point in sent) == sorted(point.step for point in thin(rows, 9000, -1, True))


def test_a_long_run_is_thinned_in_the_store(tmp_path: Path, store: Store) -> None:
    run = FakeRun(tmp_path / "runs", steps=6000, every=3000)
    lines = [f'{{"step": {step}, "time": {1e9 + step}, "train/loss": {1 / step}}}\n' for step in range(1, 6001)]
    run.log.path.write_text("".join(lines))
    run.end()
    assert push(run.directory, store)
    found = query(store, "select count(*), min(step), max(step) from metrics where key = 'train/loss'")
    assert found == [(1501, 1, 6000)]  # every fourth step is the finest stride that stays under the limit


def test_a_store_that_is_down_costs_one_warning_and_no_number(
    run: FakeRun, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "blocked"
    blocked.touch()  # a file where the store's folder should be
    down = Store(f"sqlite:///{blocked / 'mlflow.db'}")
    run.train(1, 20)
    begin = time.monotonic()
    assert not down.prepare()
    assert not push(run.directory, down)
    assert not push(run.directory, down)
    assert time.monotonic() - begin < 3
    assert len(caplog.records) == 1
    run.train(21, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]


def test_a_locked_store_is_given_up_soon_and_completed_later(
    run: FakeRun, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_store, "PATIENCE", 0.2)
    run.train(1, 20)
    holder = sqlite3.connect(store.database, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    begin = time.monotonic()
    assert not push(run.directory, store)
    assert time.monotonic() - begin < 3
    holder.execute("ROLLBACK")
    assert push(run.directory, store)
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(20,)]


def test_an_unreachable_server_is_given_up_soon_and_leaves_the_environment(run: FakeRun) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = dict(os.environ)
    begin = time.monotonic()
    assert not push(run.directory, Store(f"http://127.0.0.1:{port}"))
    assert time.monotonic() - begin < 8
    assert {k: v for k, v in os.environ.items() if k in before or "HTTP" in k} == before


def test_a_file_that_is_no_database_is_refused(run: FakeRun, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_text("not a database, but long enough to look at" * 40)
    assert not push(run.directory, Store(f"sqlite:///{path}"))


def test_a_switched_off_store_needs_nothing(run: FakeRun, tmp_path: Path) -> None:
    off = Store(f"sqlite:///{tmp_path / 'absent' / 'mlflow.db'}", enabled=False)
    assert off.prepare()
    assert push(run.directory, off)
    assert not (tmp_path / "absent").exists()


def test_four_processes_prepare_one_new_store(tmp_path: Path, run: FakeRun) -> None:
    store = Store(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    command = [sys.executable, "-c", FOUR, store.address]
    done = subprocess.run(command, cwd=tmp_path, env=PATHS, capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["True"] * 4, "")
    assert not (tmp_path / "mlruns").exists()
    assert push(run.directory, store)


FOUR = """
import multiprocessing, sys
import mlflow.store.tracking.sqlalchemy_store  # once for all four: they then meet in the database
from ouro_lab.tracking import Store
def prepare(barrier):
    barrier.wait()
    print(f"{Store(sys.argv[1]).prepare()}\\n", end="", flush=True)
context = multiprocessing.get_context("fork")
barrier = context.Barrier(4)
workers = [context.Process(target=prepare, args=(barrier,)) for _ in range(4)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
"""
PATHS = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def test_an_old_schema_is_upgraded(run: FakeRun, store: Store) -> None:
    current = query(store, "select version_num from alembic_version")
    command = [sys.executable, "-c", DOWNGRADE, store.address]
    older = subprocess.run(command, capture_output=True, text=True, check=False)
    if older.returncode:
        pytest.skip("this mlflow has no migration that can be taken back")
    assert query(store, "select version_num from alembic_version") != current
    assert store.prepare()
    assert query(store, "select version_num from alembic_version") == current


DOWNGRADE = """
import sys
from alembic import command
from mlflow.store.db import utils
engine = utils.create_sqlalchemy_engine(sys.argv[1])
config = utils._get_alembic_config(sys.argv[1])
with engine.begin() as connection:
    config.attributes["connection"] = connection
    command.downgrade(config, "-1")
"""


def test_the_report_is_one_run_whose_description_it_is(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("supported at 96k parameters")
    (folder / "curve.png").write_bytes(b"png")
    assert push_report("p_hop", folder, store)
    (folder / "report.md").write_text("inconclusive")
    assert push_report("p_hop", folder, store)
    assert query(store, "select name, status from runs") == [("report", "FINISHED")]
    assert tags(store)["mlflow.note.content"] == "inconclusive"
    names = sorted(path.name for path in (store.database.parent / "mlflow_artifacts").rglob("*") if path.is_file())
    assert names == ["curve.png", "report.md"]


def test_push_study_takes_every_run(tmp_path: Path, run: FakeRun, store: Store) -> None:
    other = run.directory.parent / "iso-0.002-0-ffff0000"
    shutil.copytree(run.directory, other)
    records.write_json(other / "run.json", records.read_json(other / "run.json") | {"id": other.name, "arm": "iso"})
    assert push_study(run.directory.parent, store)
    assert sorted(query(store, "select name from runs")) == [(other.name,), (ID,)]


def test_a_store_is_a_choice_of_two_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    for name in ("mlflow", "none"):
        choice = dict(OmegaConf.load(ROOT / "conf" / "tracking" / f"{name}.yaml"))
        assert choice.pop("_target_") == "ouro_lab.tracking.Store"
        assert choice.keys() <= {field.name for field in dataclasses.fields(Store)}
        assert Store(**choice).enabled == (name == "mlflow")
    monkeypatch.setenv("OURO_RUNS", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert Store().address == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.example:5000")
    assert Store().address == "http://tracking.example:5000"


def test_importing_costs_no_mlflow() -> None:
    code = "import sys; import ouro_lab.tracking; assert 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def command_line(root: Path, *words: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | {"OURO_RUNS": str(root)}
    command = [sys.executable, "-m", "ouro_lab.tracking", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_the_ui_without_a_store_is_one_line(tmp_path: Path) -> None:
    process = command_line(tmp_path, "ui")
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, len(error.splitlines())) == (2, "", 1)
    assert "no such file" in error


def test_pushing_an_unknown_study_is_one_line(tmp_path: Path) -> None:
    process = command_line(tmp_path, "push", "nothing")
    _, error = process.communicate(timeout=30)
    assert (process.returncode, len(error.splitlines())) == (2, 1)


@pytest.mark.slow
def test_the_ui_answers_and_leaves_no_process(tmp_path: Path, prepared: Path) -> None:
    shutil.copyfile(prepared, tmp_path / "mlflow.db")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = command_line(tmp_path, "ui", "--port", str(port))
    try:
        assert f"http://127.0.0.1:{port}" in process.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            assert answer.status == 200
        assert with_argument(str(port))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert process.returncode == 0
    deadline = time.monotonic() + 5
    while with_argument(str(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert with_argument(str(port)) == []


def with_argument(word: str) -> list[int]:
    """Processes that were started with this word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(word == each or each.endswith(f":{word}") for each in words):
            found.append(int(path.parent.name))
    return found
