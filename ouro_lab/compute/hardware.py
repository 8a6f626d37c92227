"""Speeds of machines: what a GPU can do at most, and what this core does."""

import re
import time

import torch

# Dense bf16 tensor-core FLOP/s with float32 accumulation: NVIDIA's data sheets, sparsity figures halved. First match
# wins. An RTX 4090 does 165.2e12 so; 330.3e12 is with fp16 accumulation, 82.6e12 without tensor cores.
PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bB200\b", 2250e12),
    (r"\bH[12]00 NVL\b", 835e12),
    (r"\bG?H200\b", 989.4e12),
    (r"\bH100 PCIe\b", 756e12),
    (r"\bH100\b", 989.4e12),
    (r"\bA100\b", 312e12),
    (r"\bRTX 4090$", 165.2e12),  # not the slower `4090 D` and `4090 Laptop GPU`
)


def peak_flops(device: torch.device | str) -> float | None:
    """Peak FLOP/s of a CUDA device, or of a name as `torch.cuda.get_device_name` gives it; None where unknown."""
    if isinstance(device, torch.device):
        return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device.strip(), re.IGNORECASE)), None)


def measured_cpu_rate(seconds: float = 0.2, size: int = 512) -> float:
    """FLOP/s of one core in float32 matrix products, the best of a short benchmark: others may use the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(size, size)
        return 2 * size**3 / _fastest(a, seconds)
    finally:
        torch.set_num_threads(threads)


def core_minutes(flops: float, flops_per_second: float) -> float:
    """Minutes that one core takes at this rate."""
    return flops / flops_per_second / 60


def _fastest(a: torch.Tensor, seconds: float) -> float:
    """Seconds of the fastest product a·a, the first (which sets up threads and buffers) left out."""
    torch.mm(a, a)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        torch.mm(a, a)
        best = min(best, time.perf_counter() - start)
    return best
