"""One loop is the plain transformer, bit for bit: a model without any notion of looping, from the same layers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.model import LoopedTransformer, ModelConfig, iso_parameter
from ouro_lab.model.attention import attention_bias, rope_tables
from ouro_lab.model.layers import Layer, RMSNorm


class PlainTransformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, documents: Tensor | None) -> Tensor:
        length, device = tokens.shape[1], tokens.device
        rope = rope_tables(length, self.config.head_dim, self.config.rope_base, device)
        bias = attention_bias(length, documents, device)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, rope, bias, documents is None, self.config.attention)
        return self.lm_head(self.norm(x))


@pytest.mark.parametrize("attention", ["plain", "sdpa"])
@pytest.mark.parametrize("packed", [False, True])
def test_one_loop_is_the_plain_transformer_bit_for_bit(attention: str, packed: bool, scramble: Callable) -> None:
    config = ModelConfig(vocab_size=19, layers=3, loops=1, width=32, heads=4, attention=attention)
    model = scramble(LoopedTransformer(config))
    plain = PlainTransformer(config)
    plain.load_state_dict(model.state_dict(), strict=True)
    tokens = torch.randint(19, (3, 17))
    documents = torch.arange(17).expand(3, 17) // 6 if packed else None

    logits, wanted = model(tokens, documents), plain(tokens, documents)
    assert torch.equal(logits, wanted)
    (state,) = model.loop_states(tokens, documents)
    assert state.gate_logit is None
    targets = torch.randint(19, (3 * 17,))
    F.cross_entropy(logits.flatten(0, 1), targets).backward()
    F.cross_entropy(wanted.flatten(0, 1), targets).backward()
    wanted_gradients = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, wanted_gradients[name]), name


def test_iso_parameter_is_the_first_loop_of_the_looped_model(scramble: Callable) -> None:
    shape = {"layers": 2, "vocab_size": 19, "width": 16, "heads": 2, "attention": "plain"}
    looping = scramble(LoopedTransformer(ModelConfig(loops=3, **shape)))
    control = iso_parameter(loops=3, **shape)
    control.load_state_dict(looping.state_dict(), strict=True)
    tokens = torch.randint(19, (2, 7))
    assert torch.equal(next(control.loop_states(tokens)).hidden, next(looping.loop_states(tokens)).hidden)
