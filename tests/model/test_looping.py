"""Weights shared over loops, another number of loops at call time, states made only when asked for."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.model.attention import attention_bias, rope_tables


def build(scramble: Callable, loops: int = 3, attention: str = "plain") -> LoopedTransformer:
    return scramble(LoopedTransformer(ModelConfig(29, 2, loops, width=16, heads=4, gate=True, attention=attention)))


def unrolled_states(copies: list[LoopedTransformer], tokens: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Loop t through the t-th copy's own weights."""
    config, length = copies[0].config, tokens.shape[1]
    rope = rope_tables(length, config.head_dim, config.rope_base, tokens.device)
    bias = attention_bias(length, None, tokens.device)
    x, states = copies[0].embed_tokens(tokens), []
    for model in copies:
        for layer in model.layers:
            x = layer(x, rope, bias, True, "plain")
        x = model.norm(x)
        states.append((x, model.early_exit_gate(x).squeeze(-1)))
    return states


def test_the_shared_gradient_is_the_sum_over_an_unrolled_copy(scramble: Callable) -> None:
    model = build(scramble).double()
    copies = [copy.deepcopy(model) for _ in range(model.loops)]
    tokens = torch.randint(29, (2, 7))
    probes = torch.randn(3, 2, 7, 17, dtype=torch.float64)

    def scalar(states: list[tuple[Tensor, Tensor]]) -> Tensor:
        return sum((p[..., :16] * h).sum() + (p[..., 16] * g).sum() for p, (h, g) in zip(probes, states, strict=True))

    scalar(list(model.loop_states(tokens))).backward()
    scalar(unrolled_states(copies, tokens)).backward()
    for name, parameter in model.named_parameters():
        parts = [dict(each.named_parameters())[name].grad for each in copies]
        if name == "lm_head.weight":
            assert parameter.grad is None
            continue
        if name != "embed_tokens.weight":  # used once
            assert all(part is not None and part.abs().max() > 0 for part in parts), name
        total = sum(part for part in parts if part is not None)
        scale = total.abs().max()
        torch.testing.assert_close(parameter.grad / scale, total / scale, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_fewer_or_more_loops_at_call_time_extend_the_same_sequence(attention: str, scramble: Callable) -> None:
    model = build(scramble, loops=3, attention=attention)
    tokens = torch.randint(29, (2, 7))
    longest = list(model.loop_states(tokens, loops=5))
    for loops in (None, 1, 2, 3, 4):
        states = list(model.loop_states(tokens, loops=loops))
        assert len(states) == (3 if loops is None else loops)
        for got, want in zip(states, longest, strict=False):
            assert torch.equal(got.hidden, want.hidden)
            assert torch.equal(got.gate_logit, want.gate_logit)
        logits = nn.functional.linear(states[-1].hidden, model.head_weight)
        assert torch.equal(model(tokens, loops=loops), logits)


@pytest.mark.parametrize("loops", [0, -1])
def test_no_loops_at_call_time_are_refused(loops: int, scramble: Callable) -> None:
    with pytest.raises(ValueError, match=rf"^loops = {loops}: must be an integer ≥ 1$"):
        build(scramble)(torch.zeros(1, 2, dtype=torch.long), loops=loops)


def test_a_state_is_made_only_when_it_is_asked_for(scramble: Callable) -> None:
    model = build(scramble)
    calls: list[int] = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    states = model.loop_states(torch.randint(29, (1, 4)))
    assert calls == []
    next(states)
    assert calls == [0, 1]
    next(states)
    assert calls == [0, 1, 0, 1]
    states.close()
    assert calls == [0, 1, 0, 1]


def test_head_weight_is_the_head_or_the_tied_embedding() -> None:
    untied = LoopedTransformer(ModelConfig(29, 1, width=16))
    tied = LoopedTransformer(ModelConfig(29, 1, width=16, tie_embeddings=True))
    assert untied.head_weight is untied.lm_head.weight
    assert tied.head_weight is tied.embed_tokens.weight
    assert "lm_head.weight" not in tied.state_dict()


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
def test_fused_causal_attention_makes_no_mask(
    attention: str, scramble: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def recorded(length: int, documents: Tensor | None, device: torch.device) -> Tensor:
        made.append(documents)
        return attention_bias(length, documents, device)

    monkeypatch.setattr("ouro_lab.model.attention.attention_bias", recorded)
    model = build(scramble, attention=attention)
    tokens = torch.randint(29, (1, 4))
    model(tokens)
    assert len(made) == (0 if attention == "sdpa" else 1)  # once, not once per loop
    model(tokens, torch.zeros_like(tokens))
    assert made[-1] is not None


def test_a_validation_that_comes_first_leaves_tables_that_training_can_use() -> None:
    rope_tables.cache_clear()
    model = LoopedTransformer(ModelConfig(vocab_size=11, layers=1, loops=2, width=16, heads=2))
    tokens = torch.randint(11, (2, 5))
    with torch.inference_mode():
        first = model(tokens)
    model(tokens).sum().backward()
    assert model.layers[0].self_attn.q_proj.weight.grad is not None
    torch.testing.assert_close(first.clone(), model(tokens).detach(), rtol=0, atol=0)
