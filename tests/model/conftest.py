from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums must not depend on the machine's cores, and no test may read or write the user's cache."""
    monkeypatch.setenv("OURO_CACHE", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def scramble() -> Callable[[nn.Module, int], nn.Module]:
    """Every parameter random, norms and gate bias too: their defaults 1 and 0 would hide a swap or an omission."""

    def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                centre, scale = (1.0, 0.3) if "norm" in name else (0.0, 0.3)
                parameter.copy_(centre + scale * noise)
        return model

    return randomise
