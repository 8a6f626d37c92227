"""What the machine itself does: matrix products and copies, measured in the same call as what is set against them."""

import math
from collections.abc import Callable

import torch

from ouro_lab.bench.timing import seconds
from ouro_lab.compute.hardware import CPU_DTYPES

# (m, k, n): large enough to reach the peak, small enough to repeat; a square and two of a layer's.
GEMM_SHAPES = ((1024, 1024, 1024), (2048, 512, 1408), (2048, 2048, 2048))
COPY_BYTES = 256 << 20  # beyond any cache
REPEATS = 5
ENOUGH_SECONDS = 1.0  # of one measurement, and expected of a product: bf16 is emulated where there are no instructions


class Gemm:
    """a·b in one dtype, as `flops` a call; transposed: b's rows are columns, as a linear layer's weight is."""

    def __init__(self, shape: tuple[int, int, int], dtype: torch.dtype, transposed: bool) -> None:
        m, k, n = shape
        self.shape, self.flops = shape, 2 * m * k * n
        self.a = torch.ones(m, k, dtype=dtype)
        self.b = torch.ones(n, k, dtype=dtype).t() if transposed else torch.ones(k, n, dtype=dtype)
        self.out = torch.empty(m, n, dtype=dtype)  # no allocation in what is timed

    def __call__(self) -> None:
        torch.mm(self.a, self.b, out=self.out)


def fastest_gemm(dtype: torch.dtype) -> tuple[Gemm, float]:
    """The product with the highest FLOP/s here, and that rate; larger ones are left out where smaller ones crawl."""
    found: list[tuple[float, Gemm]] = []
    for shape in sorted(GEMM_SHAPES, key=math.prod):
        if found and 2 * math.prod(shape) > ENOUGH_SECONDS * max(rate for rate, _ in found):
            break
        for transposed in (False, True):
            gemm = Gemm(shape, dtype, transposed)
            found.append((gemm.flops / _best(gemm), gemm))
    peak, best = max(found, key=lambda pair: pair[0])
    return best, peak


def copy_bandwidth() -> float:
    """Bytes per second of a copy, read and written counted."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best(lambda: target.copy_(source))


def figures() -> dict[str, float]:
    """FLOP/s of the peak product by dtype, and `copy` in bytes per second."""
    peaks = {name: fastest_gemm(getattr(torch, name))[1] for name in CPU_DTYPES}
    return peaks | {"copy": copy_bandwidth()}


def line(found: dict[str, float]) -> str:
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in found.items() if name != "copy")
    return f"products {peaks}; copy {found['copy'] / 1e9:.1f} GB/s"


def _best(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some: a peak is what the machine can do, not what it did on average."""
    first = seconds(call)
    if first > ENOUGH_SECONDS:  # far beyond what a first call costs
        return first
    return min(seconds(call) for _ in range(REPEATS))
