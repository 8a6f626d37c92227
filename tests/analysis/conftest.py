import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from fake_study import Fake, identity, study_of, write_run  # noqa: E402

from analysis import runs  # noqa: E402


@pytest.fixture
def make(tmp_path: Path):
    """Writes a fake study and loads it."""

    def build(fake: Fake | None = None) -> runs.StudyResult:
        fake = fake or Fake()
        fake.write(tmp_path / "runs")
        return runs.load(fake.name, tmp_path / "runs", tmp_path / "evidence")

    return build


@pytest.fixture(scope="session")
def study_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`$OURO_RUNS` with p_hop complete, and a directory that it no longer yields."""
    root = tmp_path_factory.mktemp("runs")
    fake = Fake()
    folder = fake.write(root)
    run = identity("p_hop", "looped", 0.004, 0, "main")
    write_run(folder / run["id"], run, study_of(fake), "done", {"accuracy/hops_8": 0.01})
    return root


@pytest.fixture(scope="session")
def result(study_root: Path) -> runs.StudyResult:
    return runs.load("p_hop", study_root)
