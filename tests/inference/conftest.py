"""Small random models in float64, rules of a line, and generation that notes its logits."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ouro_lab.inference.exits import LoopView
from ouro_lab.model import LoopedTransformer, ModelConfig

SHAPE = {"vocab_size": 23, "layers": 2, "loops": 3, "width": 16, "heads": 4, "kv_heads": 2, "gate": True}
MakeModel = Callable[..., LoopedTransformer]


@dataclass(frozen=True)
class Scattered:
    """Exits by row and loop, in no order that a batch could follow."""

    needs_gate: bool = False
    needs_logits: bool = False

    def exits(self, view: LoopView) -> Tensor:
        assert view.row is not None
        mixed = (view.row % 7919) * 2_654_435_761 + view.loop * 40_503
        return (mixed >> 7) % 3 == 0


@pytest.fixture
def make_model() -> MakeModel:
    def make(dtype: torch.dtype = torch.float64, seed: int = 0, **changes: object) -> LoopedTransformer:
        model = LoopedTransformer(ModelConfig(**(SHAPE | {"init_std": 0.4} | changes)))
        model.initialise(seed)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():  # gains and biases whose loss would show
            if parameter.dim() < 2 or "gate.weight" in name:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        return model.to(dtype)

    return make


@pytest.fixture
def scattered() -> Scattered:
    return Scattered()
