"""AdamW with decay groups, and learning-rate schedules as pure functions of the step."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


class Schedule(Protocol):
    def __call__(self, step: int, steps: int) -> float:
        """Multiplier of the peak learning rate at optimiser step `step` (from 0) of `steps`."""
        ...


@dataclass(frozen=True)
class Constant:
    """Linear warm-up over `warmup` of all steps, then the peak to the end."""

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _fraction("warmup", self.warmup)

    def __call__(self, step: int, steps: int) -> float:
        return min(1.0, (step + 1) / max(1, round(self.warmup * steps)))


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up over `warmup` of all steps, then half a cosine down to `final` × the peak."""

    warmup: float = 0.04
    final: float = 0.1

    def __post_init__(self) -> None:
        _fraction("warmup", self.warmup)
        _fraction("final", self.final)

    def __call__(self, step: int, steps: int) -> float:
        rising = max(1, round(self.warmup * steps))
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / max(1, steps - rising))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WSD:
    """Warm-up, stable, decay: linear up, constant, then 1 − √ down to `final` over the last `decay` of all steps."""

    warmup: float = 0.04
    decay: float = 0.2
    final: float = 0.0

    def __post_init__(self) -> None:
        for name in ("warmup", "decay", "final"):
            _fraction(name, getattr(self, name))

    def __call__(self, step: int, steps: int) -> float:
        rising, falling = max(1, round(self.warmup * steps)), max(1, round(self.decay * steps))
        if step < rising:
            return (step + 1) / rising
        if step < steps - falling:
            return 1.0
        progress = min(1.0, (step - (steps - falling)) / falling)
        return self.final + (1 - self.final) * (1 - math.sqrt(progress))


@dataclass(frozen=True)
class AdamW:
    """AdamW; matrices decay, vectors (norms, biases) do not (paper §4: β 0.9/0.95, decay 0.1, clip 1.0)."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    schedule: Schedule = field(default_factory=Cosine)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optim.lr = {self.lr!r}: must be a number > 0")

    def build(self, module: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """The optimiser over `module`'s trainable parameters and its scheduler for `steps` optimiser steps."""
        groups = decay_groups(module.named_parameters(), self.weight_decay)
        optimiser = torch.optim.AdamW(groups, lr=self.lr, betas=tuple(self.betas), eps=self.eps, fused=True)
        scheduler = LambdaLR(optimiser, lambda step: self.schedule(step, steps))
        return optimiser, scheduler


def decay_groups(named: Iterable[tuple[str, nn.Parameter]], weight_decay: float) -> list[dict[str, object]]:
    """Two parameter groups: two-dimensional and wider with decay, the rest without; empty groups are left out.

    Parameters are given with their names, which the optimiser's state then tells too: `carry` finds them by these.
    """
    trainable = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in trainable if parameter.dim() >= 2]
    vectors = [(name, parameter) for name, parameter in trainable if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def carry(moments: Mapping[str, Mapping[str, Tensor]], optimiser: torch.optim.Optimizer) -> None:
    """Puts an earlier training's moments and step counts, by parameter name, into a new optimiser.

    A parameter that has none, as a gate that is new, begins as it would otherwise.
    """
    for group in optimiser.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            if name in moments:
                optimiser.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in moments[name].items()
                }


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"optim.schedule.{name} = {value!r}: must be in [0, 1]")
