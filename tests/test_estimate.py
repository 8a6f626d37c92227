"""What a run is expected to take: products and moved activations, of an arm's own step."""

from collections.abc import Iterator

import pytest
import torch

from ouro_lab import estimate
from ouro_lab.bench.calibrate import StepSpeed, settled
from ouro_lab.check import check
from ouro_lab.compute import hardware
from ouro_lab.compute.memory import activation_bytes
from ouro_lab.study import Study
from ouro_lab.training import execution

FAST = {"float32": 1.6e11, "bfloat16": 1.2e12}  # of a core with tiles


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[Study]:
    estimate._step_speed.cache_clear()
    for module in (hardware, execution):
        monkeypatch.setattr(module, "cpu_rates", lambda: FAST)
    monkeypatch.setattr(execution, "compiler_works", lambda: True)
    yield Study("p_hop")
    estimate._step_speed.cache_clear()


def test_a_narrow_step_takes_what_its_activations_take(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(estimate, "step_speed", lambda dtype: asked.append(dtype) or StepSpeed(5e11, 1e9))
    parts = check(study)
    cost, data = parts["looped"].cost, parts["looped"].data
    config = settled(parts["looped"].backbone.config, data.length, torch.bfloat16)
    kept = activation_bytes(config, data.length, data.batch_size, 4, supervised_loops=1, mixed=True)
    step = cost["training_flops"] / cost["steps"] / 5e11 + kept / 1e9
    plain = cost["training_flops"] / cost["steps"] / step
    found = {compile_: estimate.rate(Study("p_hop", [f"trainer.compile={compile_}"]), parts["looped"])
             for compile_ in ("false", "true")}  # fmt: skip
    assert found == {"false": pytest.approx(plain), "true": pytest.approx(estimate.COMPILED_GAIN * plain)}
    assert set(asked) == {"bfloat16"}
    assert plain < 0.1 * FAST["bfloat16"]
    arms = sum(3 * part.cost["training_flops"] / estimate.rate(study, part) for part in parts.values())  # three seeds
    assert estimate.core_minutes(study, parts) == pytest.approx(arms / 60)


def test_where_steps_cannot_be_measured_products_say_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def disturbed(dtype: str) -> StepSpeed:
        tried.append(dtype)
        raise RuntimeError("other processes disturb it")

    monkeypatch.setattr(estimate, "step_speed", disturbed)
    for part in check(study).values():
        assert estimate.rate(study, part) == estimate.rate(study) == hardware.training_rate("bf16-mixed")
    assert tried == ["bfloat16"]  # ten seconds each


def test_tiles_make_products_faster_and_not_the_rest_of_a_step(study: Study) -> None:
    narrow = hardware.training_rate("32-true")
    assert hardware.training_rate("bf16-mixed") == hardware.BF16_STEP_GAIN * narrow


def test_an_estimate_goes_by_the_precision_that_the_study_s_runs_have(study: Study, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(estimate, "step_speed", lambda dtype: asked.append(dtype) or StepSpeed(5e11, 1e9))
    part = check(study)["looped"]
    estimate.rate(study, part)
    monkeypatch.setattr(estimate, "kept_precision", lambda trainer, runs: "32-true")
    estimate.rate(study, part)
    assert asked == ["bfloat16", "float32"]
