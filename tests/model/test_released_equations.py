"""The forward pass and all gradients against a second derivation, written from the equations with plain loops."""

import itertools

import pytest
import torch
from released_twin import DOCUMENTS, build, expected, probe, tokens, weights
from torch import Tensor

from ouro_lab.model.attention import rope_tables

SHAPES = list(itertools.product((4, 2), (False, True), (1, 2, 3), (False, True)))  # kv heads, tied, loops, documents


@pytest.mark.parametrize(("kv_heads", "tied", "loops", "packed"), SHAPES)
@pytest.mark.parametrize("backend", ["plain", "sdpa"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_states_gates_logits_and_all_gradients(
    kv_heads: int, tied: bool, loops: int, packed: bool, backend: str, dtype: torch.dtype, tolerance: float
) -> None:
    want_states, want_logits, want_gradients = expected(kv_heads, tied, loops, packed)
    model = build(kv_heads, tied, loops, backend).to(dtype)
    model.load_state_dict(weights(kv_heads, tied), strict=True)
    documents = DOCUMENTS if packed else None

    states = list(model.loop_states(tokens(), documents))
    logits = model(tokens(), documents)
    probe(states, logits).backward()

    def close(got: Tensor, want: Tensor) -> None:
        scale = want.abs().max().clamp_min(1.0)
        torch.testing.assert_close(got.double() / scale, want / scale, rtol=0, atol=tolerance)

    assert len(states) == loops
    for got, want in zip(states, want_states, strict=True):
        close(got.hidden, want.hidden)
        close(got.gate_logit, want.gate_logit)
    close(logits, want_logits)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == want_gradients.keys()
    for name, want in want_gradients.items():
        close(gradients[name], want)


@pytest.mark.parametrize(("dim", "base"), [(16, 1e4), (128, 1e6)])
def test_rotary_tables_are_the_released_float32_ones_to_the_last_bit(dim: int, base: float) -> None:
    # 1 ulp in a frequency is 0.004 rad at position 65,536, so the rounding of the released expression matters.
    inverse = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float) / dim))
    angle = torch.outer(torch.arange(64).float(), inverse)
    embedded = torch.cat([angle, angle], -1)
    cos, signed_sin = rope_tables(64, dim, base, torch.device("cpu"))
    sign = torch.cat([-torch.ones(dim // 2), torch.ones(dim // 2)])
    assert torch.equal(cos[:, 0], embedded.cos())
    assert torch.equal(signed_sin[:, 0], embedded.sin() * sign)
    truth = torch.arange(64).double()[:, None] * base ** -(torch.arange(0, dim, 2).double() / dim)
    torch.testing.assert_close(cos[:, 0, : dim // 2].double(), truth.cos(), rtol=0, atol=1e-5)
