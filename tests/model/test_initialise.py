import math

import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, iso_flop, iso_parameter, looped

SHAPE = {"layers": 2, "loops": 3, "vocab_size": 37, "width": 32, "heads": 4}


def initialised(model: LoopedTransformer, seed: int = 0) -> dict[str, Tensor]:
    model.initialise(seed)
    return dict(model.named_parameters())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Names in both, all of which must be equal."""
    common = a.keys() & b.keys()
    assert all(torch.equal(a[name], b[name]) for name in common)
    return common


def test_a_function_of_seed_and_name_whatever_ran_before() -> None:
    first = initialised(looped(**SHAPE))
    torch.manual_seed(99)
    torch.randn(7)
    before = torch.get_rng_state()
    model = looped(**SHAPE)
    after_building = torch.get_rng_state()
    again = initialised(model)
    assert same(first, again) == set(first)
    assert torch.equal(torch.get_rng_state(), after_building)  # initialise itself draws nothing from it
    assert not torch.equal(before, after_building)


def test_arms_share_every_weight_of_one_name_and_shape() -> None:
    looping = initialised(looped(**SHAPE))
    small = initialised(iso_parameter(**SHAPE))
    deep = initialised(iso_flop(**SHAPE))
    assert same(looping, small) == set(looping) == set(small)
    assert same(looping, deep) == set(looping)
    assert "layers.5.mlp.up_proj.weight" in deep
    layers = [deep[f"layers.{i}.mlp.up_proj.weight"] for i in range(6)]
    assert not any(torch.equal(a, b) for i, a in enumerate(layers) for b in layers[:i])


def test_the_gate_and_the_tied_head_change_nothing_else() -> None:
    plain = initialised(looped(**SHAPE))
    gated = initialised(looped(**SHAPE, gate=True))
    tied = initialised(looped(**SHAPE, tie_embeddings=True))
    assert same(plain, gated) == set(plain)
    assert gated.keys() - plain.keys() == {"early_exit_gate.weight", "early_exit_gate.bias"}
    assert same(plain, tied) == plain.keys() - {"lm_head.weight"}


def test_seeds_differ_in_every_matrix() -> None:
    a, b = initialised(looped(**SHAPE, gate=True), 0), initialised(looped(**SHAPE, gate=True), 1)
    for name, value in a.items():
        assert torch.equal(value, b[name]) == (value.dim() < 2), name


def test_normal_matrices_of_the_stated_deviation_unit_norms_zero_gate_bias() -> None:
    parameters = initialised(looped(2, 2, vocab_size=64, width=128, heads=4, gate=True, init_std=0.05))
    for name, parameter in parameters.items():
        value = parameter.detach()
        if "norm" in name:
            assert (value == 1).all()
        elif name.endswith("bias"):
            assert (value == 0).all()
        else:
            error = 5 / math.sqrt(2 * value.numel())  # five standard errors
            assert abs(float(value.std()) / 0.05 - 1) < error, name
            assert abs(float(value.mean())) < 5 * 0.05 / math.sqrt(value.numel()), name


def test_the_dtype_only_rounds_the_values() -> None:
    low = looped(**SHAPE).bfloat16()
    low.initialise(3)
    for name, value in initialised(looped(**SHAPE), 3).items():
        assert torch.equal(dict(low.named_parameters())[name], value.bfloat16())
