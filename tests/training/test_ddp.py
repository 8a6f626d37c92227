"""Two gloo processes give the one-process run for the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests_support import TINY

from ouro_lab import records, run
from ouro_lab.config import ROOT
from ouro_lab.study import Study


def test_two_processes_equal_one(tmp_path: Path, monkeypatch):
    overrides = [*TINY, "objective=stage_one", "trainer.log_every=1", "trainer.precision=32-true"]
    one = Study("p_hop", overrides).run("looped", 1e-2, 0)
    assert run.execute(one) == 0
    expected = records.read_metrics(one.directory / "metrics.jsonl")
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "two"))
    two = Study("p_hop", [*overrides, "trainer.devices=2", "trainer.strategy=ddp"])
    two_run = two.run("looped", 1e-2, 0)
    assert two_run.hash == one.hash
    command = [sys.executable, "-m", "ouro_lab.run", *two_run.command]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = records.read_metrics(two_run.directory / "metrics.jsonl")
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine["total/tokens"] == theirs["total/tokens"]
        assert mine["train/loss"] == pytest.approx(theirs["train/loss"], abs=2e-4)
        for name in theirs:
            if name.startswith("val/loss"):
                assert mine[name] == pytest.approx(theirs[name], abs=2e-4)
    final_one, final_two = (records.read_final(r.directory)["metrics"] for r in (one, two_run))
    assert final_two["final/loss"] == pytest.approx(final_one["final/loss"], abs=2e-4)
