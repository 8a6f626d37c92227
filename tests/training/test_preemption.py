"""A scheduler's signal and a rank that dies: a checkpoint or a clear record, and the same curve after resuming."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from tests_support import TINY

from ouro_lab import records, run
from ouro_lab.chaos.ranks import plant_death
from ouro_lab.config import ROOT
from ouro_lab.study import Run, Study
from ouro_lab.training import callbacks, checkpoint


def tiny(*overrides: str) -> Run:
    return Study("p_hop", [*TINY, "trainer.precision=32-true", "objective=stage_one", *overrides]).run(
        "looped", 1e-2, 0
    )


def outcome(one: Run) -> tuple[dict, list[dict], dict]:
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    weights = checkpoint.load(one.directory / "checkpoints" / "step=00000012.ckpt")["state_dict"]
    return records.read_final(one.directory)["metrics"], kept, weights


def send_in(micro_batch: int, number: signal.Signals, patch: pytest.MonkeyPatch) -> None:
    real = callbacks.Recorder.on_train_batch_end

    def send(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx + 1 == micro_batch:
            os.kill(os.getpid(), number)
        return real(self, trainer, module, outputs, batch, batch_idx)

    patch.setattr(callbacks.Recorder, "on_train_batch_end", send)


@pytest.fixture(scope="module", params=[1, 2], ids=["whole", "accumulated"])
def unbroken(request, tmp_path_factory):
    """An unbroken run by micro-batches per step, and what it came to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OURO_RUNS", str(tmp_path_factory.mktemp("unbroken")))
        one = tiny(f"trainer.accumulate={request.param}")
        assert run.execute(one) == 0
        return request.param, outcome(one)


@pytest.mark.parametrize(
    ("told", "kept", "number"), [(1, 1, signal.SIGTERM), (4, 5, signal.SIGUSR2), (11, 11, signal.SIGTERM)]
)
def test_a_signal_ends_with_a_checkpoint_and_the_same_curve_follows(told, kept, number, unbroken, monkeypatch):
    accumulate, expected = unbroken
    one, before = tiny(f"trainer.accumulate={accumulate}"), signal.getsignal(number)
    with monkeypatch.context() as patch:
        send_in((told - 1) * accumulate + 1, number, patch)  # in the first micro-batch of that step
        with pytest.raises(SIGTERMException) as caught:
            run.execute(one)
    assert caught.value.code == 128 + number
    assert records.read_state(one.directory)["state"] == "interrupted"
    assert one.state == "to do"
    found = checkpoint.newest(one.directory / "checkpoints")
    assert checkpoint.step_of(found) == kept  # or, after a validation, the step after it
    assert len(list(found.parent.iterdir())) <= 2
    assert signal.getsignal(number) == before
    assert run.execute(one) == 0
    final, rows, weights = outcome(one)
    assert final == expected[0]
    assert rows == expected[1]
    assert all(torch.equal(weights[name], expected[2][name]) for name in expected[2])


def test_a_signal_in_the_last_step_changes_nothing(unbroken, monkeypatch):
    accumulate, expected = unbroken
    one = tiny(f"trainer.accumulate={accumulate}")
    send_in(12 * accumulate, signal.SIGTERM, monkeypatch)
    assert run.execute(one) == 0
    assert outcome(one)[:2] == expected[:2]


@pytest.mark.parametrize("unbroken", [2], indirect=True)
def test_a_rank_that_dies_ends_all_of_them_with_its_name_and_the_run_goes_on(unbroken, tmp_path):
    accumulate, expected = unbroken
    one = tiny(f"trainer.accumulate={accumulate}", "trainer.devices=2", "trainer.strategy=ddp")
    command = [sys.executable, "-m", "ouro_lab.run", *one.command]
    environment = os.environ | plant_death(tmp_path, 6) | {"OMP_NUM_THREADS": "1"}  # the checkpoint of step 4 is there
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    # Lightning looks for dead ranks every five seconds and kills the rest: it or rank 0, the faster one, says so.
    said = records.read_state(one.directory)["reason"] + done.stderr
    assert "rank 1 ended with signal 9" in said or "[rank: 1] Child process" in said
    assert checkpoint.step_of(checkpoint.newest(one.directory / "checkpoints")) == 4
    assert one.state == "to do"
    again = tiny(f"trainer.accumulate={accumulate}")
    assert run.execute(again) == 0
    assert outcome(again)[0] == pytest.approx(expected[0], rel=2e-4, abs=2e-4)
