"""Watching a run: the rule on made-up series, and real runs with a planted spike or NaN under every policy."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from tests_support import TINY

from ouro_lab import alarms, records, replay, run
from ouro_lab.data.datamodules import TaskData
from ouro_lab.data.sampler import StepSampler, batch_of
from ouro_lab.study import Run, Study
from ouro_lab.tracked import Tracked
from ouro_lab.training import checkpoint, spikes, watch
from ouro_lab.training.norms import block_of
from ouro_lab.training.spikes import LOSS, NORM, SpikeRule

BAD = 9  # the global batch that is planted; read by step 10, two steps after the checkpoint of step 8


def tiny(*overrides: str) -> Run:
    return Study("p_hop", [*TINY, *overrides]).run("looped", 1e-2, 0)


def outcome(one: Run) -> tuple[dict, list[dict], dict]:
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    weights = checkpoint.load(checkpoint.newest(one.directory / "checkpoints"))["state_dict"]
    return records.read_final(one.directory)["metrics"], kept, weights


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch `BAD` predicts what is not there: its loss is far over the others'. Four steps are window enough."""
    real = TaskData.read_train

    def read_train(self, indices):
        arrays = real(self, indices)
        targets = arrays["targets"].copy()
        bad = (indices // self.batch_size == BAD)[:, None] & (targets >= 0)
        targets[bad] = (targets[bad] + 1) % self.vocab_size
        return arrays | {"targets": targets}

    monkeypatch.setattr(TaskData, "read_train", read_train)
    monkeypatch.setattr(spikes, "LEAST", 4)
    monkeypatch.setattr(spikes, "SPREADS", 0.5)
    monkeypatch.setattr(spikes, "TIMES", math.inf)


def test_the_rule_finds_planted_spikes_and_no_other_in_noise_that_falls() -> None:
    noise = random.Random(0)
    rule, found = SpikeRule(), []
    for step in range(2000):
        loss = 3 * math.exp(-step / 300) + noise.gauss(0, 0.05) + (2.0 if step in (500, 501, 1500) else 0.0)
        norm = abs(noise.gauss(1, 0.3)) * (30 if step == 1000 else 1)
        found += [(step, each.what) for each in rule(loss, norm)]
    assert found == [(500, LOSS), (1000, NORM), (1500, LOSS)]


def test_limits_are_those_of_the_stated_formula() -> None:
    rule, losses = SpikeRule(), [1.0 + 0.1 * (i % 5) for i in range(100)]
    for loss in losses:
        rule(loss, 2.0)
    [loss, norm] = rule(50.0, 21.0)
    deviations = torch.tensor([abs(value - 1.2) for value in losses], dtype=torch.float64)
    assert loss.limit == pytest.approx(1.2 + 8 * 1.4826 * float(deviations.quantile(0.5)))
    assert norm.limit == 20.0


def test_a_solved_task_raises_no_alarm_at_a_mistake_and_a_value_that_is_none_does_at_once() -> None:
    rule = SpikeRule()
    assert not [found for _ in range(100) for found in rule(1e-4, 1.0)]
    assert rule(0.15, 1.0) == []
    assert [found.limit for found in SpikeRule()(math.nan, math.inf)] == [None, None]


def test_a_restored_rule_judges_as_the_one_it_was_taken_from() -> None:
    one, other, noise = SpikeRule(), SpikeRule(), random.Random(1)
    for _ in range(60):
        one(noise.random(), noise.random())
    other.load(json.loads(json.dumps(one.state())))
    for loss in (9.0, 9.0, 0.5, 9.0):
        assert one(loss, 0.5) == other(loss, 0.5)


def test_skipped_batches_move_all_that_follow() -> None:
    assert [batch_of(step, (2, 3, 6)) for step in range(6)] == [0, 1, 4, 5, 7, 8]
    steps = iter(StepSampler(lambda: 2, accumulate=2, skipped=(2,)))
    assert [next(steps) for _ in range(4)] == [2, 3, 6, 7]


def test_norms_by_block_add_up_to_the_norm_that_is_clipped_and_to_the_step_taken() -> None:
    one = tiny("trainer.log_every=1", "trainer.val_every=1", "budget.steps=3")
    run.execute(one)
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    for row in rows:
        parts = [value for name, value in row.items() if name.startswith("optim/grad_norm/")]
        assert len(parts) >= 3
        assert sum(part**2 for part in parts) ** 0.5 == pytest.approx(row["optim/grad_norm"], rel=1e-5)
    files = sorted((one.directory / "checkpoints").glob("*.ckpt"))
    before, after = (checkpoint.backbone_weights(path) for path in files)
    moved: dict[str, float] = {}
    for name in after:
        square = float((after[name] - before[name]).double().square().sum())
        moved[block_of(name)] = moved.get(block_of(name), 0.0) + square
    for block, square in moved.items():
        assert rows[-1][f"optim/update_norm/{block}"] == pytest.approx(square**0.5, rel=1e-4)


def test_a_spike_is_named_kept_and_computed_again_to_the_last_bit(planted, capsys) -> None:
    one = tiny("trainer.val_every=9", "trainer.precision=32-true")
    assert run.execute(one) == 0
    [alarm] = alarms.read(one.directory)
    assert (alarm.step, alarm.batch, alarm.samples, alarm.action) == (10, BAD, [72, 79], "warn")
    assert "alarm: step 10: train/loss = " in capsys.readouterr().out
    assert Tracked(one.directory).tags()["alarms"] == f"1: {alarm.line}"
    found = replay.replay(one.directory, 10)
    assert (found.weights_step, found.loss) == (9, alarm.value)
    assert found.token_losses.shape == (3, 8, one.config["data"]["task"]["length"] + 1)
    assert found.loop_losses[-1] == pytest.approx(found.loss, rel=1e-5)
    assert replay.main([str(one.directory), "10"]) == 0
    assert f"loss {alarm.value:.6g}   gradient norm {found.grad_norm:.6g}" in capsys.readouterr().out
    assert replay.main([str(one.directory), "7"]) == 2
    assert "no batch was kept; kept are those of steps [10]" in capsys.readouterr().err


def test_micro_batches_are_kept_as_one_batch(planted) -> None:
    one = tiny("trainer.accumulate=2", "trainer.val_every=9", "trainer.precision=32-true")
    run.execute(one)
    [alarm] = alarms.read(one.directory)
    assert replay.replay(one.directory, 10).loss == pytest.approx(alarm.value, rel=1e-6)


def test_stop_ends_the_run_as_diverged(planted) -> None:
    one = tiny("trainer.on_spike=stop")
    assert run.execute(one) == run.EXIT_DIVERGED
    assert records.read_state(one.directory)["reason"].endswith("at step 10 of 12")
    assert checkpoint.newest(one.directory / "checkpoints").name == "step=00000008.ckpt"


@pytest.mark.parametrize("killed", [False, True])
def test_rolling_back_is_leaving_the_batch_out(planted, killed, monkeypatch, tmp_path: Path) -> None:
    """Equal, to the last bit, to a run that never read it; also when it is killed while it rolls back."""
    one = tiny("trainer.on_spike=rollback")
    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(run.Session, "_leave_out", _killed_at_second_call())
            with pytest.raises(KeyboardInterrupt):
                run.execute(one)
    assert run.execute(one) == 0
    assert alarms.skipped(one.directory) == (BAD,)
    found = outcome(one)
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "without"))
    monkeypatch.setattr(TaskData, "skipped", (BAD,))
    assert run.execute(one) == 0
    assert alarms.read(one.directory) == []
    expected = outcome(one)
    assert found[:2] == expected[:2]
    assert all(torch.equal(found[2][name], expected[2][name]) for name in expected[2])


def test_a_run_that_always_rolls_back_diverges(planted, monkeypatch) -> None:
    monkeypatch.setattr(watch, "ROLLBACKS", 1)
    monkeypatch.setattr(spikes, "SPREADS", -100.0)
    one = tiny("trainer.on_spike=rollback")
    assert run.execute(one) == run.EXIT_DIVERGED
    assert [alarm.action for alarm in alarms.read(one.directory)] == ["rollback", "stop"]


def test_nan_stops_at_its_step_with_its_batch_whatever_is_logged_when() -> None:
    one = tiny("trainer.log_every=100", "trainer.val_every=100", "optim.eps=1e-30")
    one.config["optim"]["lr"] = 1e30
    assert run.execute(one) == run.EXIT_DIVERGED
    alarm = alarms.read(one.directory)[0]
    assert not math.isfinite(alarm.value)
    assert (one.directory / f"{alarm.saved}.safetensors").is_file()
    assert f"at step {alarm.step} of 12" in records.read_state(one.directory)["reason"]


def test_an_unknown_policy_is_one_line(capsys) -> None:
    assert run.main(["study=p_hop", "arm=looped", "lr=1e-2", *TINY, "trainer.on_spike=panic"]) == 2
    assert "trainer.on_spike = 'panic': must be one of warn, stop, rollback" in capsys.readouterr().err


def _killed_at_second_call():
    real, calls = run.Session._leave_out, []

    def leave_out(self, batches):
        calls.append(batches)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, batches)

    return leave_out
