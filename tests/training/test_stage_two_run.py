"""A Stage II run through its real entry: the gate moves, the trunk does not, and nothing of the trunk is kept."""

from pathlib import Path

import pytest
import torch
from tests_support import TINY
from torch import nn

from ouro_lab import records, run
from ouro_lab.assembly import assemble
from ouro_lab.check import check
from ouro_lab.compute.cost import forward_flops
from ouro_lab.compute.measure import kept_bytes, kept_for_backward
from ouro_lab.config import ConfigError
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop, StageTwo
from ouro_lab.study import Run, Study
from ouro_lab.training import callbacks
from ouro_lab.training.checkpoint import load
from ouro_lab.training.module import LoopedModule
from ouro_lab.training.optim import AdamW

GATE = ("early_exit_gate.weight", "early_exit_gate.bias")


def tiny(*overrides: str) -> Run:
    return Study("p_hop", [*TINY, "trainer.precision=32-true", *overrides]).run("looped", 1e-2, 0)


@pytest.fixture
def trunk(tmp_path: Path) -> str:
    """A checkpoint of a model without a gate, as a plain run leaves it."""
    model = LoopedTransformer(assemble(Study("p_hop", TINY).arm_configs["looped"], "meta").backbone.config)
    model.initialise(7)
    path = tmp_path / "trunk.ckpt"
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in model.state_dict().items()}}, path)
    return str(path)


def weights(run_: Run, step: int = 12) -> dict[str, torch.Tensor]:
    return load(run_.directory / "checkpoints" / f"step={step:08d}.ckpt")["state_dict"]


def test_the_gate_learns_and_every_other_weight_stays_to_the_last_bit(trunk):
    one = tiny("objective=stage_two", f"init_from={trunk}")
    assert run.execute(one) == 0
    before, after = load(Path(trunk))["state_dict"], weights(one)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert after.keys() - before.keys() == {f"backbone.{name}" for name in GATE}
    assert after["backbone.early_exit_gate.bias"].abs() > 1e-3
    final = records.read_final(one.directory)
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    assert len({row["val/loss"] for row in rows if "val/loss" in row}) == 1  # the trunk's, which stands still
    by_gate = [row["val/gate_loss"] for row in rows if "val/gate_loss" in row]
    assert by_gate[-1] < by_gate[0]
    assert 1 <= final["metrics"]["final/exit_loop_mean"] <= 3
    assert {"train/gate_loss_loop2", "train/label_loop3"} <= set().union(*rows)
    parts = assemble(Study("p_hop", [*TINY, "objective=stage_two", f"init_from={trunk}"]).arm_configs["looped"], "meta")
    flops = forward_flops(parts.backbone.config, parts.data.length).total + 2 * 2 * parts.backbone.config.width
    assert final["flops"] == pytest.approx(final["tokens"] * flops)
    assert final["flops"] < 0.4 * final["tokens"] * _trained_whole()


def _trained_whole() -> float:
    parts = assemble(Study("p_hop", [*TINY, "objective=stage_one"]).arm_configs["looped"], "meta")
    return parts.cost["flops_per_token"]


def test_a_resumed_stage_two_run_equals_an_unbroken_one(trunk, monkeypatch, tmp_path):
    one = tiny("objective=stage_two", f"init_from={trunk}")
    assert run.execute(one) == 0
    expected = weights(one)
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "again"))
    real = callbacks.Recorder.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.Recorder, "on_train_batch_end", _interrupted_at(6, real))
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.execute(one)
    assert run.execute(one) == 0
    found = weights(one)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def _interrupted_at(step: int, real):
    def stop(self, trainer, module, *rest):
        if trainer.global_step == step:
            raise KeyboardInterrupt
        return real(self, trainer, module, *rest)

    return stop


@pytest.mark.parametrize("change", [{}, {"recompute": True}], ids=str)
def test_nothing_of_the_trunk_is_kept_and_the_optimiser_has_two_tensors(change):
    model = LoopedTransformer(ModelConfig(30, 2, 3, width=16, gate=True, attention="plain", **change))
    module = LoopedModule(model, StageTwo(), AdamW(1e-2), nn.Module(), steps=4)
    tokens = torch.randint(30, (4, 24))
    with kept_for_backward() as kept:
        loss, _ = module.objective(model.loop_states(tokens), model.head_weight, tokens)
    state = 4 * 16 * tokens.numel()  # bytes of one loop's
    assert kept_bytes(kept, model) < 5 * state  # three states, which the gate reads; a layer alone would keep more
    loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(GATE)
    groups = module.configure_optimizers()["optimizer"].param_groups
    assert sorted(tuple(p.shape) for group in groups for p in group["params"]) == [(1,), (1, 16)]


def test_a_backbone_without_a_gate_is_refused():
    model = LoopedTransformer(ModelConfig(30, 2, 3, width=16))
    with pytest.raises(ValueError, match="trains the exit gate alone, but the backbone has no early_exit_gate"):
        LoopedModule(model, StageTwo(), AdamW(1e-2), nn.Module(), steps=4)
    LoopedModule(model, LastLoop(), AdamW(1e-2), nn.Module(), steps=4)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"init_from: missing; the objective trains the exit gate alone"),
        (["init_from=x", "backbone.loops=1"], r"objective.first = 2: nothing to train"),
        (
            ["init_from=x", "study.lr={from: null, grid: [1e-3,2e-3], seeds: [9]}"],
            r"study.lr.metric = val/loss: .*gate",
        ),
        (["init_from=x", "do=retire"], r"do = retire: must be fit or evaluate"),
    ],
)
def test_the_check_refuses_a_stage_two_that_cannot_be(overrides, message):
    study = ["~study.positive_control", "~study.contrasts", "~study.arms", "+study.arms={looped: ['backbone=looped']}"]
    kept = [item for item in TINY if not item.startswith("study.contrasts")]
    if any(item.startswith("study.lr") for item in overrides):
        kept = [item for item in kept if not item.startswith(("study.lr", "optim.lr"))]
    with pytest.raises(ConfigError, match=message) as caught:
        check(Study("p_hop", [*kept, *study, "objective=stage_two", *overrides]))
    assert "\n" not in str(caught.value)
