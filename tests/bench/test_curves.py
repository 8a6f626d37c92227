"""Curves and memory on shapes of milliseconds."""

import csv
from pathlib import Path

import pytest

from ouro_lab.bench import curves, memory
from ouro_lab.bench.step import Spec, ours
from ouro_lab.bench.timing import Effort
from ouro_lab.training import execution

TINY = Spec(1, 2, 16, 2, vocab_size=64, batch=2, length=8, stage_one=True, dtype="float32")


@pytest.fixture(autouse=True)
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "compiler_works", lambda: False)


def test_every_point_has_its_prediction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measurable", lambda: False)
    axes = {"loops": (1, 2), "vocab_size": (64, 128)}
    table = curves.draw_curves(tmp_path / "bench", Effort(rounds=1, warm=0), axes, TINY)
    rows = list(csv.DictReader(table.open()))
    assert [(row["axis"], row["value"]) for row in rows] == [(a, str(v)) for a, values in axes.items() for v in values]
    assert all(float(row["seconds"]) > 0 and float(row["predicted_seconds"]) > 0 for row in rows)
    assert float(rows[1]["predicted_bytes"]) > float(rows[0]["predicted_bytes"])
    assert rows[1]["seconds"] == rows[2]["seconds"]  # the base, on both axes, is measured once
    assert (tmp_path / "bench" / "cost_curves.svg").exists()


def test_predicted_flops_are_those_of_the_attention_that_was_chosen() -> None:
    step = ours(TINY, compiled=False)
    cost = TINY.cost
    for attention, per_token in (("plain", cost.flops_full.total), ("sdpa", cost.flops_per_token)):
        step.model.settled = {"any": attention}
        assert curves.flops(step) == TINY.tokens * per_token


@pytest.mark.skipif(not memory.measurable(), reason="needs Linux's /proc/self/clear_refs")
def test_the_peak_of_a_step_holds_at_least_its_gradients() -> None:
    spec = Spec(1, 1, 64, 2, vocab_size=20_000, batch=2, length=64, stage_one=False, dtype="float32")
    peak = memory.peak_bytes("eager", spec)
    weights = 4 * spec.cost.parameters.total
    assert weights < peak < 10 * weights


def test_a_child_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "executable", "false")
    with pytest.raises(RuntimeError, match="eager step Spec.* exit status 1"):
        memory.peak_bytes("eager", TINY)
