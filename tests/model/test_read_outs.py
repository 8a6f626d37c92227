"""An untied stack read out every so many layers: the plain stack's own computation, with states on the way."""

from collections.abc import Callable

import pytest
import torch

from ouro_lab.model import LoopedTransformer, ModelConfig, iso_flop

SHAPE = {"vocab_size": 19, "width": 16, "heads": 2, "attention": "plain"}


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(19, (2, 7))


def test_states_are_those_of_the_plain_stacks_bit_for_bit(scramble: Callable, tokens: torch.Tensor) -> None:
    deep = scramble(iso_flop(layers=2, loops=3, read_out_every=2, **SHAPE))
    assert (deep.loops, deep.config.shape) == (3, "6⊗1")
    states = list(deep.loop_states(tokens))
    assert len(states) == 3
    for state, layers in zip(states, (2, 4, 6), strict=True):
        plain = LoopedTransformer(ModelConfig(layers=layers, **SHAPE))
        weights = {name: value for name, value in deep.state_dict().items() if name in plain.state_dict()}
        plain.load_state_dict(weights, strict=True)
        assert torch.equal(next(plain.loop_states(tokens)).hidden, state.hidden)
    assert torch.equal(deep(tokens), plain(tokens))


def test_a_gate_reads_every_state(scramble: Callable, tokens: torch.Tensor) -> None:
    deep = scramble(iso_flop(layers=2, loops=3, read_out_every=2, gate=True, **SHAPE))
    for state in deep.loop_states(tokens):
        assert torch.equal(state.gate_logit, deep.early_exit_gate(state.hidden).squeeze(-1))
    assert iso_flop(layers=2, loops=3, gate=True, **SHAPE).early_exit_gate is None  # nothing to decide


def test_fewer_read_outs_are_a_beginning_and_more_are_refused(scramble: Callable, tokens: torch.Tensor) -> None:
    deep = scramble(iso_flop(layers=2, loops=3, read_out_every=2, **SHAPE))
    first, second = deep.loop_states(tokens, loops=2)
    assert torch.equal(second.hidden, list(deep.loop_states(tokens))[1].hidden)
    with pytest.raises(ValueError, match=r"^loops = 4: an untied stack has 3 read-outs$"):
        next(deep.loop_states(tokens, loops=4))
