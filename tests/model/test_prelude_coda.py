"""Layers before and behind the loops: the untied stack that they unroll to, what is run how often, what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ouro_lab.inference.generate import generate
from ouro_lab.model import LoopedTransformer, ModelConfig, iso_flop, iso_parameter, looped
from ouro_lab.model.attention import attention_bias, rope_tables
from ouro_lab.objectives import LastLoop, StageOne

SHAPE = {"vocab_size": 19, "width": 16, "heads": 2, "attention": "plain", "norms": 2}
PARTS = {"layers": 5, "prelude": 1, "coda": 2}


def build(scramble: Callable, **changes: Any) -> LoopedTransformer:
    return scramble(LoopedTransformer(ModelConfig(**SHAPE | PARTS | {"loops": 3} | changes)))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(19, (2, 7))


def unrolled(model: LoopedTransformer, loops: int) -> LoopedTransformer:
    """The same layers untied: prelude, the core `loops` times, coda."""
    places = [0, *[1, 2] * loops, 3, 4]
    deep = looped(len(places), 1, **SHAPE)
    weights = {name: value for name, value in model.state_dict().items() if name in deep.state_dict()}
    weights |= {
        f"layers.{place}.{name}": value
        for place, layer in enumerate(places)
        for name, value in model.layers[layer].state_dict().items()
    }
    deep.load_state_dict(weights)
    return deep


def test_one_loop_is_the_plain_transformer_to_the_last_bit(scramble: Callable, tokens: Tensor) -> None:
    plain, parted = (build(scramble, loops=1, prelude=prelude, coda=coda) for prelude, coda in ((0, 0), (1, 2)))
    parted.load_state_dict(plain.state_dict())
    assert list(parted.state_dict()) == list(plain.state_dict())
    assert torch.equal(parted(tokens), plain(tokens))


def test_without_the_norm_between_it_is_the_unrolled_stack_at_every_depth(scramble: Callable, tokens: Tensor) -> None:
    model = build(scramble, norm_between_loops=False)
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 2)
    for loop, state in enumerate(model.loop_states(tokens, documents), start=1):
        deep = unrolled(model, loop)
        (want,) = deep.loop_states(tokens, documents)
        torch.testing.assert_close(state.hidden, want.hidden, rtol=0, atol=1e-6)
    assert (model.config.effective_depth, deep.config.layers) == (9, 9)
    assert iso_flop(**SHAPE, **PARTS, loops=3).config == deep.config
    assert iso_parameter(**SHAPE, **PARTS, loops=3).config == looped(5, 1, **SHAPE).config
    assert model.config.shape == "1 + 2⊗3 + 2"


def test_the_norm_between_is_the_next_loops_and_not_the_codas(scramble: Callable, tokens: Tensor) -> None:
    model = build(scramble)
    how = (rope_tables(7, 8, 10_000.0, tokens.device), attention_bias(7, None, tokens.device), True, "plain")
    x = model.layers[0](model.embed_tokens(tokens), *how)
    for loop, state in enumerate(model.loop_states(tokens)):
        x = model.layers[2](model.layers[1](model.norm(x) if loop else x, *how), *how)
        behind = model.layers[4](model.layers[3](x, *how), *how)
        torch.testing.assert_close(state.hidden, model.norm(behind), rtol=0, atol=1e-6)


def test_loss_and_gradients_are_the_same_recomputed(scramble: Callable, tokens: Tensor) -> None:
    kept, again = (build(scramble, gate=True, recompute=recompute) for recompute in (False, True))
    again.load_state_dict(kept.state_dict())
    for model in (kept, again):
        StageOne()(model.loop_states(tokens), model.head_weight, tokens)[0].backward()
    assert all(torch.equal(p.grad, dict(again.named_parameters())[name].grad) for name, p in kept.named_parameters())


@pytest.mark.parametrize(("objective", "codas"), [(LastLoop(), 1), (StageOne(), 3)], ids=["last loop", "stage one"])
def test_the_coda_runs_once_for_each_state_that_is_read(scramble, tokens, objective, codas) -> None:
    model = build(scramble, gate=objective.needs_gate)
    calls: list[int] = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
    objective(model.loop_states(tokens), model.head_weight, tokens)
    assert [calls.count(layer) for layer in range(5)] == [1, 3, 3, codas, codas]
    assert objective.supervised_loops(3) == codas


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prelude": 3}, "backbone.prelude = 3: must be an integer from 0 to 2, so that of 5 layers one is looped"),
        ({"prelude": -1}, "backbone.prelude = -1"),
        ({"coda": True}, "backbone.coda = True"),
        ({"coda": "some"}, "backbone.coda = 'some': must be an integer from 0 to 3"),
        ({"loops": 1, "read_out_every": 1}, "backbone.read_out_every = 1: .* without recompute, prelude and coda"),
    ],
)
def test_what_cannot_be_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SHAPE | PARTS | {"loops": 3} | change)


def test_generation_refuses_them_by_name(scramble: Callable) -> None:
    with pytest.raises(ValueError, match=r"^backbone.prelude = 1: for generation it must be 0: whole stacks"):
        generate(build(scramble), [[1, 2]], 3)
