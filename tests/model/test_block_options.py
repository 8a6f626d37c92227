"""What the paper leaves open in block and loop: each option against its equation, and off by default."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.model import LoopedTransformer, ModelConfig, iso_flop, looped
from ouro_lab.model.attention import attention_bias, rope_tables, rotate

SHAPE = {"vocab_size": 19, "width": 16, "heads": 2, "attention": "plain"}
GPT2 = {"norms": 2, "norm": "layer", "mlp": "gelu", "bias": True, "norm_eps": 1e-5}
OFF = {"norms": 4, "norm": "rms", "mlp": "swiglu", "bias": False, "norm_between_loops": True}
OFF |= {"attention_float32": False, "init_by_depth": False}


def model(**changes: Any) -> LoopedTransformer:
    return LoopedTransformer(ModelConfig(**SHAPE | {"layers": 2, "loops": 3} | changes))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(19, (2, 7))


def test_options_are_off_by_default_with_the_released_names(tokens: Tensor) -> None:
    """The equations of the default are tests/model/test_released_equations.py's."""
    plain, stated = model(), model(**OFF)
    for each in (plain, stated):
        each.initialise(0)
    assert list(plain.state_dict()) == list(stated.state_dict())
    assert not any("bias" in name for name in plain.state_dict())
    assert torch.equal(plain(tokens), stated(tokens))


def gpt2_layer(x: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    """x ← x + Attn(LN x);  x ← x + W₂ gelu(W₁ LN x): rotary, biases everywhere; from torch's functions alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    length, inner = x.shape[1], norm(x, "input_layernorm")
    q, k, v = (linear(inner, f"self_attn.{name}_proj").unflatten(-1, (heads, -1)) for name in "qkv")
    rope = rope_tables(length, q.shape[-1], 10_000.0, x.device)
    q, k, v = (each.transpose(1, 2) for each in (rotate(q, rope), rotate(k, rope), v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + attention_bias(length, None, x.device)
    x = x + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2), "self_attn.o_proj")
    a = linear(norm(x, "post_attention_layernorm"), "mlp.up_proj")
    gelu = 0.5 * a * (1 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    return x + linear(gelu, "mlp.down_proj")


def test_gpt2_style_is_gpt2s_block_with_rotary_embedding(scramble: Callable, tokens: Tensor) -> None:
    deep = scramble(model(layers=1, loops=2, **GPT2)).double()
    assert deep.config.ffn_width == 4 * 16
    layer = dict(deep.layers[0].named_parameters())
    x = deep.embed_tokens(tokens)
    for state in deep.loop_states(tokens):
        x = F.layer_norm(gpt2_layer(x, layer, 2), (16,), deep.norm.weight, deep.norm.bias, 1e-5)
        torch.testing.assert_close(state.hidden, x, rtol=1e-9, atol=1e-9)


def test_two_norms_add_each_branch_as_it_is(scramble: Callable, tokens: Tensor) -> None:
    pre = scramble(model(layers=1, loops=1, norms=2))
    layer, x = pre.layers[0], pre.embed_tokens(tokens)
    rope, bias = rope_tables(7, 8, 10_000.0, x.device), attention_bias(7, None, x.device)
    x = x + layer.self_attn(layer.input_layernorm(x), rope, bias, True, "plain")
    x = x + layer.mlp(layer.post_attention_layernorm(x))
    assert torch.equal(next(pre.loop_states(tokens)).hidden, pre.norm(x))
    assert not any("_2" in name for name in pre.state_dict())


@pytest.mark.parametrize("norms", [4, 2])
def test_without_the_norm_between_them_loops_are_an_untied_stack_of_copies(
    norms: int, scramble: Callable, tokens: Tensor
) -> None:
    shape = {**SHAPE, "layers": 2, "loops": 3, "norms": norms, "gate": True}
    looping = scramble(looped(**shape, norm_between_loops=False))
    deep = iso_flop(**shape, read_out_every=2)
    copies = {name: value for name, value in looping.state_dict().items() if not name.startswith("layers.")}
    for index, layer in enumerate(deep.layers):
        source = looping.layers[index % 2].state_dict()
        copies |= {f"layers.{index}.{name}": value for name, value in source.items()}
        assert source.keys() == layer.state_dict().keys()
    deep.load_state_dict(copies, strict=True)
    for ours, theirs in zip(looping.loop_states(tokens), deep.loop_states(tokens), strict=True):
        assert torch.equal(ours.hidden, theirs.hidden)
        assert torch.equal(ours.gate_logit, theirs.gate_logit)


def test_one_loop_has_nothing_between(scramble: Callable, tokens: Tensor) -> None:
    with_norm, without = (scramble(model(loops=1, norm_between_loops=between)) for between in (True, False))
    assert torch.equal(with_norm(tokens), without(tokens))


def test_recomputed_loops_without_the_norm_have_the_same_gradients(scramble: Callable, tokens: Tensor) -> None:
    kept, again = (scramble(model(norm_between_loops=False, recompute=recompute)) for recompute in (False, True))
    for each in (kept, again):
        sum(state.hidden.square().sum() for state in each.loop_states(tokens)).backward()
    for ours, theirs in zip(kept.parameters(), again.parameters(), strict=True):
        assert (ours.grad is None and theirs.grad is None) or torch.equal(ours.grad, theirs.grad)


def test_float32_attention_matters_under_autocast_alone(scramble: Callable, tokens: Tensor) -> None:
    narrow, wide = (scramble(model(layers=1, loops=1, attention_float32=wide)) for wide in (False, True))
    assert torch.equal(narrow(tokens), wide(tokens))
    seen = []
    for each in (narrow, wide):
        each.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        with torch.autocast("cpu", torch.bfloat16):
            each(tokens)
    assert seen == [torch.bfloat16, torch.float32]


@pytest.mark.parametrize("norms", [2, 4])
def test_branches_start_smaller_by_depth(norms: int) -> None:
    """GPT-2's 1/√(number of branches), 2·L·T here; where a norm would undo it, the norm's gain has it."""
    plain, scaled = (model(norms=norms, init_by_depth=by_depth) for by_depth in (False, True))
    ends = ("o_proj.weight", "down_proj.weight") if norms == 2 else ("norm_2.weight",)
    for each in (plain, scaled):
        each.initialise(5)
    for (name, before), after in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        factor = 1 / math.sqrt(2 * 2 * 3) if name.endswith(ends) else 1.0
        torch.testing.assert_close(after, before * factor)


@pytest.mark.parametrize("key", ["norms", "norm", "mlp", "bias", "norm_between_loops", "attention_float32"])
def test_another_value_is_refused_by_name(key: str) -> None:
    with pytest.raises(ValueError, match=rf"^backbone\.{key} = 3: must be "):
        model(**{key: 3})
