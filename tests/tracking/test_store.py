"""Stores that are down, locked, new to several processes, of an old schema, or no store at all."""

import dataclasses
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ouro_lab import tracking_store
from ouro_lab.tracking import Store, push
from tests.tracking.fake_run import ROOT, FakeRun, query


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


def test_six_processes_push_into_a_store_that_is_not_there_yet(tmp_path: Path, run: FakeRun) -> None:
    """None of them prepared it; whoever comes second must not take half a schema for a store."""
    store = Store(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".mlflow.db.4711").write_text("of a process that was killed while it made one")
    done = subprocess.run(
        [sys.executable, "-c", SIX, store.address, str(run.directory)], env=PATHS, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert push(run.directory, store)
    assert query(store, "select count(*) from runs") == [(1,)]
    assert [path.name for path in (tmp_path / "new").glob(".mlflow.db*")] == []


SIX = """
import multiprocessing, sys
from pathlib import Path
import mlflow.store.tracking.sqlalchemy_store
from ouro_lab.tracking import Store, push
def send(barrier):
    barrier.wait()
    push(Path(sys.argv[2]), Store(sys.argv[1]))
context = multiprocessing.get_context("fork")
barrier = context.Barrier(6)
workers = [context.Process(target=send, args=(barrier,)) for _ in range(6)]
[worker.start() for worker in workers]
[worker.join() for worker in workers]
"""
