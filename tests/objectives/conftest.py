from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopState
from ouro_lab.objectives import IGNORE


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums must not depend on the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Case(NamedTuple):
    """What an objective is given, as leaves: one hidden state and one gate logit per loop."""

    hidden: list[Tensor]  # T × [B, S, d]
    gates: list[Tensor]  # T × [B, S]
    head: Tensor  # [V, d]
    targets: Tensor  # [B, S]

    def states(self) -> Iterator[LoopState]:
        return (LoopState(h, g) for h, g in zip(self.hidden, self.gates, strict=True))

    @property
    def leaves(self) -> list[Tensor]:
        return [*self.hidden, *self.gates, self.head]


@pytest.fixture
def case() -> Callable[..., Case]:
    def make(loops: int = 4, batch: int = 2, length: int = 5, width: int = 6, vocabulary: int = 9) -> Case:
        def leaf(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64).requires_grad_()

        targets = torch.randint(vocabulary, (batch, length))
        targets[0, 1] = targets[-1, -1] = IGNORE
        hidden = [leaf(batch, length, width) for _ in range(loops)]
        return Case(hidden, [leaf(batch, length) for _ in range(loops)], leaf(vocabulary, width), targets)

    return make
