"""The loops' gradients of a shared weight are summed in float32 under any autocast, also a plain one with its cache."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, ModelConfig, transformer
from ouro_lab.model.attention import attention_bias, rope_tables

LOOPS, LENGTH = 8, 12
TOKENS = torch.arange(4 * LENGTH).view(4, LENGTH) * 7 % 29


@pytest.fixture
def model() -> LoopedTransformer:
    config = ModelConfig(29, 1, LOOPS, width=32, heads=4, gate=True, attention="plain", init_std=0.1)
    model = LoopedTransformer(config)
    model.initialise(0)
    return model


def shared(model: LoopedTransformer) -> dict[str, Tensor]:
    """Matrices that every loop applies."""
    return {n: p for n, p in model.named_parameters() if n.startswith(("layers", "early_exit_gate")) and p.dim() == 2}


def backward(states: list[tuple[Tensor, Tensor]]) -> None:
    probes = torch.randn(LOOPS, 4, LENGTH, 33, generator=torch.Generator().manual_seed(1))
    total = sum((p[..., :32] * h).sum() + (p[..., 32] * g).sum() for p, (h, g) in zip(probes, states, strict=True))
    total.backward()


def exact_sums(model: LoopedTransformer) -> dict[str, Tensor]:
    """The same loops' gradients, each through a copy of the weights, summed in float64."""
    copies = [copy.deepcopy(model) for _ in range(LOOPS)]
    rope = rope_tables(LENGTH, model.config.head_dim, model.config.rope_base, TOKENS.device)
    bias = attention_bias(LENGTH, None, TOKENS.device)
    states = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = model.embed_tokens(TOKENS)
        for each in copies:
            x = each.norm(each.layers[0](x, rope, bias, True, "plain"))
            with torch.autocast("cpu", enabled=False):
                states.append((x, each.early_exit_gate(x).squeeze(-1)))
    backward(states)
    return {name: sum(shared(each)[name].grad.double() for each in copies) for name in shared(model)}


def largest_error(model: LoopedTransformer) -> float:
    model.zero_grad()
    exact = exact_sums(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # as anyone writes it: cache_enabled is True
        states = list(model.loop_states(TOKENS))
    backward(states)
    return max(float((p.grad - exact[n]).norm() / exact[n].norm()) for n, p in shared(model).items())


@pytest.mark.parametrize("recompute", [False, True])
def test_the_sum_is_exact_to_float32_and_was_not_with_autocast_s_cache(
    recompute: bool, model: LoopedTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    object.__setattr__(model.config, "recompute", recompute)
    assert largest_error(model) < 1e-6
    monkeypatch.setattr(transformer, "_casts_of_its_own", lambda _: nullcontext())
    assert largest_error(model) > 1e-3


def test_the_caller_s_autocast_is_as_it_was(model: LoopedTransformer) -> None:
    with torch.autocast("cpu", dtype=torch.float16):
        states = model.loop_states(TOKENS)
        next(states)  # a generator that stands between two loops
        assert torch.is_autocast_cache_enabled()
        assert torch.get_autocast_dtype("cpu") == torch.float16
        low = next(states)
    wide = list(model.loop_states(TOKENS))[1]
    assert not torch.equal(low.hidden, wide.hidden)  # it did act in the second loop
    assert low.gate_logit.dtype == wide.gate_logit.dtype == torch.float32  # a gate is never narrow
