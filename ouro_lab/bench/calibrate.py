"""Two speeds of this core in a training step, from which the seconds of any other shape follow.

A step is matrix products, at so many FLOP/s, and passes over what they take and give, at so many bytes/s of what
autograd keeps. Steps from narrow to wide give both, by least squares of the relative errors. Processor time is
measured, not the clock's: others may use the machine.
"""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from ouro_lab.bench.step import Spec, ours
from ouro_lab.compute.memory import activation_bytes
from ouro_lab.measured import once_per_machine
from ouro_lab.model import ModelConfig
from ouro_lab.model.attention import fastest_backend

WARM, ROUNDS = 1, 4
# Layers, loops, width, heads, vocabulary, sequences, length.
SHAPES = (
    (2, 2, 64, 4, 64, 64, 48),
    (2, 2, 128, 4, 256, 16, 128),
    (2, 2, 256, 8, 256, 8, 128),
    (1, 2, 512, 8, 256, 4, 128),
)


class StepSpeed(NamedTuple):
    flops: float  # per second
    kept: float  # bytes of activations per second

    def seconds(self, flops: float, kept: float) -> float:
        return flops / self.flops + kept / self.kept


def step_speed(dtype: str) -> StepSpeed:
    """Of one core, products in `dtype` (float32 or bfloat16), blocks not compiled; measured once per machine: 10 s."""
    key = f"{dtype} {torch.__version__} {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    speed = once_per_machine("cpu_step.json", key, lambda: list(measured(dtype)), lambda v: isinstance(v, list))
    return StepSpeed(*speed)


def measured(dtype: str) -> StepSpeed:
    """Raises RuntimeError where the steps do not tell the two speeds apart."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fitted([work_of(Spec(*shape, stage_one=False, dtype=dtype)) for shape in SHAPES])
    finally:
        torch.set_num_threads(threads)


def fitted(steps: Sequence[tuple[float, float, float]]) -> StepSpeed:
    """From (FLOPs, kept bytes, seconds) of steps."""
    rows = torch.tensor([[flops / seconds, kept / seconds] for flops, kept, seconds in steps], dtype=torch.float64)
    scale = rows.mean(0)
    slopes = (
        torch.linalg.lstsq(rows / scale, torch.ones(len(steps), 1, dtype=torch.float64)).solution.squeeze(1) / scale
    )
    if not bool((slopes > 0).all()):
        raise RuntimeError("the speed of this core cannot be measured now: other processes disturb it")
    return StepSpeed(*(1 / slopes).tolist())


def work_of(spec: Spec) -> tuple[float, float, float]:
    """FLOPs, kept bytes and seconds of a step."""
    model = settled(spec.model, spec.length, getattr(torch, spec.dtype))
    kept = activation_bytes(model, spec.length, spec.batch, 4, spec.supervised, mixed=spec.mixed)
    return spec.cost.flops_per_token * spec.tokens, kept, step_seconds(spec)


def settled(config: ModelConfig, length: int, dtype: torch.dtype) -> ModelConfig:
    """With the attention that `auto` takes on this machine."""
    if config.attention != "auto":
        return config
    backend = fastest_backend("cpu", dtype, length, config.head_dim or config.width // config.heads, documents=False)
    return replace(config, attention=backend)


def step_seconds(spec: Spec) -> float:
    """Processor seconds of the fastest of some steps."""
    step = ours(spec, compiled=False)
    for _ in range(WARM):
        step()
    return min(_timed(step) for _ in range(ROUNDS))


def _timed(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start
