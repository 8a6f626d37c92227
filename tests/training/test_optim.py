"""Schedules against closed forms, decay groups."""

import math

import pytest
import torch

from ouro_lab.model import looped
from ouro_lab.training.optim import WSD, AdamW, Constant, Cosine, carry


def test_cosine_warms_up_linearly_and_ends_at_final():
    schedule = Cosine(warmup=0.1, final=0.1)
    assert [schedule(step, 100) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule(10, 100) == 1.0
    assert schedule(55, 100) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule(100, 100) == pytest.approx(0.1)
    assert schedule(99, 100) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 89 / 90)))


def test_wsd_is_flat_then_falls_as_one_minus_root():
    schedule = WSD(warmup=0.1, decay=0.2, final=0.0)
    assert {schedule(step, 100) for step in range(10, 80)} == {1.0}
    assert schedule(85, 100) == pytest.approx(1 - math.sqrt(0.25))
    assert schedule(100, 100) == pytest.approx(0.0)


def test_constant_warms_up_linearly_and_stays():
    schedule = Constant(warmup=0.1)
    assert [schedule(step, 100) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert {schedule(step, 100) for step in range(10, 101)} == {1.0}
    assert {Constant()(step, 100) for step in range(101)} == {1.0}


def test_a_schedule_without_warm_up_goes_on_from_where_the_one_before_ended():
    """The paper's stages 2 to 4: 3e-4 to 3e-5 by a cosine, constant, 3e-5 to 1e-5 by a cosine."""
    anneal, constant, middle = Cosine(warmup=0.0, final=0.1), Constant(), Cosine(warmup=0.0, final=1 / 3)
    rates = [3e-4 * anneal(0, 50), 3e-4 * anneal(50, 50), 3e-5 * constant(0, 9), 3e-5 * middle(0, 50)]
    assert rates == pytest.approx([3e-4, 3e-5, 3e-5, 3e-5])
    assert 3e-5 * middle(50, 50) == pytest.approx(1e-5)
    assert 3e-4 * anneal(25, 50) == pytest.approx(3e-5 + 2.7e-4 * 0.5 * (1 + math.cos(math.pi * 24 / 49)))


def test_moments_are_carried_by_name_and_a_new_parameter_begins_as_ever():
    torch.manual_seed(0)
    old, new = (looped(1, 2, vocab_size=11, width=16, heads=2, gate=gate) for gate in (False, True))
    first, _ = AdamW(lr=1e-3).build(old, 10)
    old(torch.arange(10).view(2, 5)).square().mean().backward()
    first.step()
    moments = {name: first.state[parameter] for name, parameter in old.named_parameters()}
    second, _ = AdamW(lr=1e-3).build(new, 10)
    carry(moments, second)
    for name, parameter in new.named_parameters():
        if name.startswith("early_exit_gate"):
            assert not second.state[parameter]
        else:
            assert torch.equal(second.state[parameter]["exp_avg"], moments[name]["exp_avg"])
            assert second.state[parameter]["exp_avg"] is not moments[name]["exp_avg"]


def test_matrices_decay_and_vectors_do_not():
    model = looped(2, 2, vocab_size=11, width=16, heads=2, gate=True)
    optimiser, _ = AdamW(lr=1e-3, weight_decay=0.3).build(model, 10)
    decayed, kept = optimiser.param_groups
    assert decayed["weight_decay"] == 0.3
    assert kept["weight_decay"] == 0.0
    assert all(parameter.dim() >= 2 for parameter in decayed["params"])
    assert sum(p.numel() for group in (decayed, kept) for p in group["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    assert {id(model.early_exit_gate.bias), id(model.norm.weight)} <= {id(p) for p in kept["params"]}


def test_one_step_is_adamw_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    module = torch.nn.Module()
    module.weight = parameter
    optimiser, _ = AdamW(lr=0.1, weight_decay=0.5, schedule=Cosine(warmup=0.0)).build(module, 10)
    parameter.grad = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    before = parameter.detach().clone()
    optimiser.step()
    # First step: the bias-corrected moments are g and g², so the update is the gradient's sign.
    expected = before * (1 - 0.1 * 0.5) - 0.1 * parameter.grad / (parameter.grad.abs() + 1e-8)
    assert torch.allclose(parameter, expected, atol=1e-12)


@pytest.mark.parametrize(("kind", "field", "value"), [(Cosine, "warmup", 1.5), (WSD, "decay", -0.1)])
def test_bad_fractions_are_named(kind, field, value):
    with pytest.raises(ValueError, match=rf"optim\.schedule\.{field} = {value}: must be in \[0, 1\]"):
        kind(**{field: value})


def test_bad_rate_is_named():
    with pytest.raises(ValueError, match=r"optim\.lr = 0: must be a number > 0"):
        AdamW(lr=0)
