"""A user's own backbone, measured: ours behind another name must come out as the formulas say."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from ouro_lab.compute.cost import frozen_cost, training_cost
from ouro_lab.compute.measure import METHOD, measured_cost
from ouro_lab.model import LoopedTransformer, LoopState, ModelConfig
from ouro_lab.objectives import LastLoop, MeanOverLoops, StageOne

CONFIG = ModelConfig(vocab_size=96, layers=2, loops=3, width=64, heads=4, attention="plain")


class Own(nn.Module):
    """Recurs over positions with fused attention; reads a value, so that it cannot run on the meta device."""

    loops = 2

    def __init__(self, reads_a_value: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8, bias=False)
        self.reads_a_value = reads_a_value

    @property
    def head_weight(self) -> Tensor:
        return self.table.weight

    def loop_states(self, tokens: Tensor, documents: Tensor | None = None) -> Iterator[LoopState]:
        x = self.table(tokens)
        for _ in range(self.loops):
            if self.reads_a_value and float(x.detach().abs().max()) > 1e9:
                raise ValueError("too large")
            heads = x.unsqueeze(1)
            x = self.mix(nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True).squeeze(1))
            yield LoopState(x, None)


@pytest.mark.parametrize("objective", [LastLoop(), MeanOverLoops(), StageOne()])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_our_own_backbone_measures_as_derived(objective, device):
    config = ModelConfig(**CONFIG.as_dict() | {"gate": objective.needs_gate})
    with torch.device(device):
        model = LoopedTransformer(config)
    derived = training_cost(config, 16, objective.supervised_loops(config.loops))
    measured = measured_cost(model, config.vocab_size, 16, objective)
    assert measured.method == METHOD
    assert measured.flops_per_token == derived.flops_full.total
    assert measured.flops_full.attention == derived.flops_full.attention
    assert measured.parameters.total == derived.parameters.total
    assert measured.activation_bytes == pytest.approx(derived.activation_bytes, rel=0.01)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_or_evaluated_backbone_is_measured_forward_only():
    with torch.device("meta"):
        model = LoopedTransformer(CONFIG)
    measured = measured_cost(model, CONFIG.vocab_size, 16, LastLoop(), backward=False)
    assert measured.flops_per_token == frozen_cost(CONFIG, 16).flops_full.total
    assert measured.activation_bytes == measured.optimiser_bytes == 0


@pytest.mark.parametrize("reads_a_value", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_module_of_ones_own(reads_a_value, device):
    with torch.device(device):
        model = Own(reads_a_value)
    cost = measured_cost(model, 20, 10, LastLoop())
    assert cost.parameters.as_dict() == {"embedding": 160, "body": 64, "norms": 0, "head": 0, "gate": 0}
    assert cost.flops_full.body == 3 * 2 * 2 * 64
    assert cost.flops_full.attention == 3 * 2 * 4 * 8 * 10  # the full square, although causal and fused
    assert cost.flops_full.head == 3 * 2 * 8 * 20
    assert cost.as_dict()["kv_bytes_per_token"] is None
