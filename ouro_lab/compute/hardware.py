"""Speeds of machines: what a GPU can do at most, and what this core does."""

import platform
import re
import time

import torch

from ouro_lab.measured import once_per_machine

CPU_DTYPES = ("float32", "bfloat16")
# bf16 also costs conversions; a CPU without bf16 instructions emulates them at a fraction of float32's speed.
BF16_GAIN = 1.5
EFFICIENCY = {"float32": 0.4, "bfloat16": 0.35}  # of the products' speed that a small model's step reaches
BF16_STEP_GAIN = 1.6  # at most: where tiles make bf16 products 9 × as fast, the rest of a step stays as it was

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


def cpu_rates() -> dict[str, float]:
    """FLOP/s of one core in matrix products by dtype (`float32`, `bfloat16`), measured once per machine."""
    key = f"{torch.__version__} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return once_per_machine("cpu.json", key, measured_cpu_rates, lambda rates: isinstance(rates, dict))


def measured_cpu_rates(seconds: float = 0.2, size: int = 512) -> dict[str, float]:
    """The best of a short benchmark of each: others may use the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ones = torch.ones(size, size)
        return {name: 2 * size**3 / _fastest(ones.to(getattr(torch, name)), seconds) for name in CPU_DTYPES}
    finally:
        torch.set_num_threads(threads)


def cpu_precision() -> str:
    """Lightning's name of the precision that a run on this CPU trains in: bf16 where its products are worth it."""
    rates = cpu_rates()
    return "bf16-mixed" if rates["bfloat16"] > BF16_GAIN * rates["float32"] else "32-true"


def training_rate(precision: str) -> float:
    """FLOP/s that a small model's training step reaches on one core of this machine."""
    reached = {dtype: cpu_rates()[dtype] * EFFICIENCY[dtype] for dtype in CPU_DTYPES}
    return min(reached["bfloat16"], BF16_STEP_GAIN * reached["float32"]) if "bf16" in precision else reached["float32"]


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
