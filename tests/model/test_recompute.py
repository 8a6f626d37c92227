"""Loops computed again in the backward pass: the same numbers to the last bit, and the memory of one loop."""

import gc
from collections.abc import Callable
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ouro_lab.compute.memory import activation_bytes
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop, StageOne
from ouro_lab.training.execution import compile_blocks, compiler_works

SHAPE = {"vocab_size": 31, "layers": 2, "loops": 3, "width": 32, "heads": 4, "kv_heads": 2, "gate": True}


def build(recompute: bool, **changes: object) -> LoopedTransformer:
    model = LoopedTransformer(ModelConfig(**{"attention": "plain"} | SHAPE | changes, recompute=recompute))
    model.initialise(0)
    return model


def loss_of(model: LoopedTransformer, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
    objective = StageOne() if model.config.gate else LastLoop()
    return objective(model.loop_states(tokens, documents), model.head_weight, tokens)[0]


def trained(model: LoopedTransformer, tokens: Tensor, documents: Tensor | None, low: bool) -> dict[str, Tensor]:
    """Loss and gradients by name; the backward pass runs outside autocast, as training's does."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
        loss = loss_of(model, tokens, documents)
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def passes(model: LoopedTransformer) -> list[int]:
    """Grows by one with every pass of the first layer."""
    seen: list[int] = []
    model.layers[0].register_forward_pre_hook(lambda *_: seen.append(1))
    return seen


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
def test_loss_and_gradients_are_equal_to_the_last_bit(attention: str, packed: bool, low: bool) -> None:
    tokens = torch.randint(31, (3, 12))
    documents = torch.arange(12).expand(3, 12) // 5 if packed else None
    kept, again = (build(recompute, attention=attention) for recompute in (False, True))
    count = passes(again)
    want, got = trained(kept, tokens, documents, low), trained(again, tokens, documents, low)
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert len(count) == 3 + 2  # the last loop is not computed again


@pytest.mark.slow
@pytest.mark.skipif(not compiler_works(), reason="no C++ compiler works here")
def test_it_works_with_compiled_blocks() -> None:
    tokens = torch.randint(31, (3, 12))
    kept, again = build(False), build(True)
    compile_blocks(kept)
    compile_blocks(again)
    want, got = trained(kept, tokens, None, True), trained(again, tokens, None, True)
    assert all(torch.equal(want[name], got[name]) for name in want)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_nothing_is_computed_twice_without_gradients(guard: Callable) -> None:
    model = build(True)
    count = passes(model)
    with guard():
        got = model(torch.randint(31, (2, 5)))
    assert len(count) == 3
    assert not got.requires_grad


def test_fewer_loops_at_call_time(scramble: Callable) -> None:
    kept, again = scramble(build(False)), scramble(build(True))
    tokens = torch.randint(31, (2, 5))
    for loops in (1, 2, 5):
        want, got = (list(model.loop_states(tokens, loops=loops)) for model in (kept, again))
        assert all(torch.equal(a.hidden, b.hidden) for a, b in zip(want, got, strict=True))


def memory(model: LoopedTransformer, tokens: Tensor) -> tuple[int, int]:
    """Bytes that a training step holds after its forward pass, and at its peak: from the allocator, not from autograd.

    The gradients are in the peak: a shared weight's sum is not done before the first loop's part has come.
    """
    loss_of(model, tokens).backward()
    model.zero_grad(set_to_none=True)
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        loss = loss_of(model, tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        loss.backward()
    held = _running(forward)[-1]
    return held, max(*_running(forward), *(held + b for b in _running(backward)))


def _running(profiled: profile) -> list[int]:
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return list(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("gate", [False, True])
def test_eight_loops_hold_little_more_than_one(gate: bool) -> None:
    shape = {"layers": 4, "width": 64, "kv_heads": 4, "gate": gate}
    tokens = torch.randint(31, (4, 24))
    one, eight, whole = (
        memory(build(again, loops=loops, **shape), tokens) for again, loops in ((True, 1), (True, 8), (False, 8))
    )
    model = build(True, loops=8, **shape)
    assert eight[0] <= 1.25 * one[0]
    assert eight[1] <= 1.25 * one[1] + 4 * sum(p.numel() for p in model.layers.parameters())
    assert whole[0] > 6 * one[0]  # what it is without
    predicted = activation_bytes(model.config, 24, 4, supervised_loops=8 if gate else 1)
    assert eight[0] == pytest.approx(predicted, rel=0.03)
