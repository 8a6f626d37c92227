"""make plan: its table, what it refuses, and what it says of this CPU against a step in a process of its own."""

import pytest
import torch
from tests_support import TINY

from ouro_lab import __main__ as entry
from ouro_lab import plan
from ouro_lab.bench import calibrate, memory
from ouro_lab.bench.calibrate import StepSpeed, fitted, settled
from ouro_lab.bench.step import Spec
from ouro_lab.check import check
from ouro_lab.compute.footprint import Spread, footprint
from ouro_lab.compute.machines import parse
from ouro_lab.objectives.cross_entropy import chunk_rows
from ouro_lab.study import Study

BIG = ["data.batch_size=64", "trainer=fsdp", "data.task.length=512"]


def planned(machine: str, *overrides: str, mfu: float = 0.4) -> plan.Plan:
    study = Study("p_hop", [*TINY, *overrides])
    return plan.plan_of(study, "looped", check(study)["looped"], parse(machine, 2**34), mfu)


def test_speed_on_gpus_is_peak_times_the_stated_mfu():
    found = planned("8xH100", *BIG)
    cost = check(Study("p_hop", [*TINY, *BIG]))["looped"].cost
    assert found.spread == Spread("fsdp", 8)
    assert found.sequences == 8
    assert found.compute == pytest.approx(cost["flops_per_token"] * found.tokens / 8 / (989.4e12 * 0.4))
    assert found.seconds == max(found.compute, found.volume.total / (0.8 * 450e9))
    assert planned("8xH100", *BIG, mfu=0.2).compute == pytest.approx(2 * found.compute)
    assert found.days == pytest.approx(found.steps * found.seconds / 86_400, rel=0.01)
    assert found.fits


def test_what_is_computed_again_takes_time():
    kept, again = planned("8xH100", *BIG), planned("8xH100", *BIG, "backbone.recompute=true")
    assert 1.1 < again.compute / kept.compute < 1.25  # two of three loops, forward, of a step that is three forwards
    assert again.memory.activations < 0.5 * kept.memory.activations


def test_options_of_the_strategy_change_the_volume():
    kept = planned("8xH100", *BIG)
    assert (
        planned("8xH100", *BIG, "trainer.strategy.reshard_after_forward=false").volume.gathered < kept.volume.gathered
    )
    assert planned("8xH100", *BIG, "trainer.strategy.gather_bf16=true").volume.gathered < kept.volume.gathered
    assert planned("8xH100", *BIG, "trainer.accumulate=2").volume.total == pytest.approx(2 * kept.volume.total)
    assert planned("8xH100", "data.batch_size=64", "trainer=ddp").volume.gathered == 0


def test_the_verb_prints_a_column_per_arm(capsys):
    assert (
        entry.main(["plan", "p_hop", "--machine=64xH200", "--mfu=0.3", *TINY, "data.batch_size=64", "trainer=gpu"]) == 0
    )
    out = capsys.readouterr().out
    assert "p_hop on 64×H200, 8 nodes: ddp, stated MFU 0.3" in out
    assert all(arm in out for arm in ("looped", "iso_parameter", "iso_flop"))
    for row in (
        "memory: peak",
        "fits",
        "sent per step",
        "tokens/s",
        "days",
        "checkpoint",
        "best interval",
        "lost to both",
    ):
        assert row in out
    assert "bound by the starts of its kernels" in out
    assert "9 runs of the study" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--machine=8xP100"], "MACHINE = 8xP100: must be a number of a device"),
        ([], "MACHINE = : must be a number of a device"),
        (["--machine=8xH100", "--mfu=40"], "MFU = 40: must be a number in (0, 1]"),
        (["--machine=16xH100"], "data.batch_size = 8: must be a multiple of 16, 16×H100 × trainer.accumulate"),
        (["--machine=8xH100", "trainer.precision=32-true"], "trainer.precision = 32-true: must be bf16-mixed"),
        (["--budget=3"], "plan: takes no --budget; only run does"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert entry.main(["plan", "p_hop", *arguments, *TINY]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_seconds_here_are_products_and_passes(monkeypatch):
    monkeypatch.setattr(calibrate, "step_speed", lambda dtype: StepSpeed(1e9, 1e8))
    found = planned("cpu", "trainer.precision=32-true", "backbone.attention=plain")
    cost = check(Study("p_hop", TINY))["looped"].cost
    flops = cost["flops_per_token"] * found.tokens
    assert found.compute == pytest.approx(flops / 1e9 + found.memory.activations / 1e8)
    assert found.spread.mode == "single"


def test_two_speeds_come_back_from_the_steps_that_they_make():
    true = StepSpeed(7e10, 5e8)
    work = [(1e9, 1e8), (3e9, 4e7), (9e9, 2e8)]
    found = fitted([(flops, kept, true.seconds(flops, kept)) for flops, kept in work])
    assert found == pytest.approx(true)
    with pytest.raises(RuntimeError, match="cannot be measured now"):
        fitted([(1e9, 1e8, 1.0), (2e9, 1e8, 0.5)])


@pytest.mark.skipif(not memory.measurable(), reason="needs /proc/self/clear_refs")
@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(Spec(2, 3, 64, 4, 8, batch=64, length=48, stage_one=True, dtype="float32"), id="narrow"),
        pytest.param(
            Spec(2, 2, 256, 4, 4096, batch=4, length=128, stage_one=True, dtype="float32"),
            id="vocabulary",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Spec(2, 4, 256, 4, 256, batch=8, length=128, stage_one=False, dtype="float32", recompute=True),
            id="recomputed",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_peak_memory_of_a_step_is_as_planned(spec):
    config = settled(spec.model, spec.length, torch.float32)
    rows = chunk_rows(spec.vocab_size)
    found = footprint(config, spec.length, spec.batch, spec.supervised, Spread(), logit_rows=rows)
    working = found.peak - found.weights - found.moments
    assert working == pytest.approx(memory.peak_bytes("uncompiled", spec), rel=0.15)
