"""Stores in real SQLite files, and a run to push into them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ouro_lab.tracking import Store
from tests.tracking.fake_run import FakeRun


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
