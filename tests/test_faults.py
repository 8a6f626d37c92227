"""The cheapest rows of docs/faults.md; `make chaos` has all of them, with processes that are really killed."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests_support import TINY

from ouro_lab import run
from ouro_lab.chaos import hostile
from ouro_lab.chaos.__main__ import main
from ouro_lab.config import ROOT
from ouro_lab.metrics_log import replace_file
from ouro_lab.study import Study
from ouro_lab.training.checkpoint import AtomicCheckpointIO, load


@pytest.fixture
def quota(monkeypatch):
    """No file may grow over 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def content(value: float) -> dict:
    return {"state_dict": {"a": torch.full((10_000,), value)}}


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_and_one_line(tmp_path: Path, quota) -> None:
    path = tmp_path / "step=00000004.ckpt"
    AtomicCheckpointIO().save_checkpoint(content(1.0), path)
    with pytest.raises(OSError, match="step=00000004.ckpt cannot be written") as caught:
        AtomicCheckpointIO().save_checkpoint(content(2.0) | {"more": torch.zeros(100_000)}, path)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert float(load(path)["state_dict"]["a"][0]) == 1.0


def test_a_record_that_does_not_fit_leaves_the_last_one(tmp_path: Path, quota) -> None:
    path = tmp_path / "state.json"
    replace_file(path, "old")
    with pytest.raises(OSError, match="File too large"):
        replace_file(path, "x" * 200_000)
    assert [each.read_text() for each in tmp_path.iterdir()] == ["old"]


def test_what_a_killed_writer_left_goes_with_the_next_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step=00000004.ckpt.4711").write_bytes(b"half")
    AtomicCheckpointIO().save_checkpoint(content(1.0), tmp_path / "step=00000008.ckpt")
    assert [each.name for each in tmp_path.iterdir()] == ["step=00000008.ckpt"]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "file"))
    assert run.main(["study=p_hop", "arm=looped", "lr=1e-2", *TINY]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: [Errno 20] Not a directory")


def test_hostile_files_are_refused_in_one_line_and_execute_nothing(tmp_path: Path, monkeypatch) -> None:
    one = Study("p_hop", TINY).run("looped", 1e-2, 0)
    assert run.execute(one) == 0
    room, tally = tmp_path / "room", hostile.Tally()
    room.mkdir()
    monkeypatch.chdir(room)
    hostile.examine(tally, room, one.directory, 0.03)
    assert tally.faults == []
    assert tally.count["refused"] > 100
    assert tally.count["inputs"] > 300
    assert all(path.name.startswith("input") for path in room.iterdir())


def test_a_fault_is_counted_as_one() -> None:
    tally = hostile.Tally()
    tally.feed("a", lambda: (_ for _ in ()).throw(KeyError("key")))
    tally.feed("b", lambda: (_ for _ in ()).throw(ValueError("two\nlines")))
    tally.feed("c", lambda: hostile._must_refuse(lambda: None))
    assert len(tally.faults) == 3


def test_an_unknown_part_is_one_line(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--quick", "kill"])
    parts = "kills, ranks, disk, services, shards, numbers, hostile"
    assert f"PART = kill: must be one of {parts}" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forked children and tmpfs are Linux's")
def test_the_parts_that_are_quick_hold() -> None:
    command = [sys.executable, "-m", "ouro_lab.chaos", "--quick", "numbers", "disk", "shards"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "8 of 8 rows hold" in done.stdout
