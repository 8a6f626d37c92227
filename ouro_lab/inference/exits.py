"""Exit rules: after which loop a row of a looped model is read out.

To try another rule is to write its statistic: see `ThresholdRule`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.inference.rule import INFINITE, ExitRule, LoopView, ThresholdRule, require

__all__ = [
    "ArgmaxStable",
    "Entropy",
    "ExitRule",
    "HiddenDifference",
    "LoopKL",
    "LoopView",
    "Margin",
    "QExit",
    "RandomExit",
    "StaticDepth",
    "ThresholdRule",
    "survive",
]


@dataclass(frozen=True)
class QExit(ThresholdRule):
    """Exit at the first loop m with CDF(m) = 1 − Π_{j ≤ m}(1 − λ_j) ≥ q; q = 1 never exits before T (paper §3.4).

    strict_reference: the released code's numbers, in which the running sum of p is rounded to the activations' dtype:
    with q = 1 it exits where that sum rounds to 1, as after one loop at a bfloat16 gate logit of 6.3.
    """

    q: float
    strict_reference: bool = False
    needs_gate: ClassVar[bool] = True
    knob: ClassVar[str | None] = "q"
    valid: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @property
    def needs_gate_logits(self) -> bool:
        return self.strict_reference

    def statistic(self, view: LoopView) -> Tensor:
        return _released_cdf(view) if self.strict_reference else -torch.expm1(view.log_survival)

    def passes(self, statistic: Tensor, loop: Tensor) -> Tensor:
        never = self.q >= 1 and not self.strict_reference  # whatever a CDF near 1 rounds to
        reached = super().passes(statistic, loop)
        return torch.zeros_like(reached) if never else reached


@dataclass(frozen=True)
class StaticDepth(ThresholdRule):
    """Every row exits after `loops` loops."""

    loops: int
    knob: ClassVar[str | None] = "loops"
    valid: ClassVar[tuple[float, float]] = (1, INFINITE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loops != int(self.loops):
            raise ValueError(f"StaticDepth: loops = {self.loops}: must be a whole number")

    def statistic(self, view: LoopView) -> Tensor:
        return view.loop.float()


@dataclass(frozen=True)
class HiddenDifference(ThresholdRule):
    """Exit where ‖h_t − h_{t−1}‖₂ ≤ ε, normed states, from loop 2 on (paper §5.4.1, whose ε is not stated).

    relative: over ‖h_t‖.
    """

    epsilon: float
    relative: bool = False
    knob: ClassVar[str | None] = "epsilon"
    at_least: ClassVar[bool] = False

    def statistic(self, view: LoopView) -> Tensor:
        here, before = _wide(view.hidden), _wide(view.previous)
        norm = (here - before).norm(dim=-1)
        return _from_loop_2(view, norm / here.norm(dim=-1) if self.relative else norm, INFINITE)


@dataclass(frozen=True)
class LoopKL(ThresholdRule):
    """Exit where KL(prediction of this loop ‖ the previous loop's) ≤ ε nats, from loop 2 on."""

    epsilon: float
    needs_logits: ClassVar[bool] = True
    knob: ClassVar[str | None] = "epsilon"
    at_least: ClassVar[bool] = False

    def statistic(self, view: LoopView) -> Tensor:
        log_p = _log_probabilities(view.logits())  # [N, V]
        kl = (log_p.exp() * (log_p - _log_probabilities(view.previous_logits()))).sum(-1)
        return _from_loop_2(view, kl.clamp_min(0), INFINITE)  # rounding alone makes it negative


@dataclass(frozen=True)
class ArgmaxStable(ThresholdRule):
    """Exit where the most likely token is the previous loop's, from loop 2 on; there is no threshold."""

    needs_logits: ClassVar[bool] = True

    def statistic(self, view: LoopView) -> Tensor:
        same = view.logits().argmax(-1) == view.previous_logits().argmax(-1)
        return _from_loop_2(view, same.float(), 0.0)


@dataclass(frozen=True)
class Margin(ThresholdRule):
    """Exit where the most likely token is more probable than the second by at least m."""

    m: float
    needs_logits: ClassVar[bool] = True
    knob: ClassVar[str | None] = "m"
    valid: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def statistic(self, view: LoopView) -> Tensor:
        first, second = _log_probabilities(view.logits()).topk(2).values.exp().unbind(-1)
        return first - second


@dataclass(frozen=True)
class Entropy(ThresholdRule):
    """Exit where the prediction's entropy is at most h nats."""

    h: float
    needs_logits: ClassVar[bool] = True
    knob: ClassVar[str | None] = "h"
    at_least: ClassVar[bool] = False

    def statistic(self, view: LoopView) -> Tensor:
        return torch.special.entr(_wide(view.logits()).softmax(-1)).sum(-1)


@dataclass(frozen=True)
class RandomExit(ThresholdRule):
    """The control at equal mean depth: the loop is drawn per row, from (seed, row) and nothing that the row holds.

    mean: a mean depth ≥ 1, made of the two whole depths next to it, which costs the least where losses are convex in
    depth. probabilities: those of exiting after loop 1, 2, …, instead. Exactly one of the two.
    """

    mean: float | None = None
    probabilities: tuple[float, ...] | None = None
    seed: int = 0
    needs_row: ClassVar[bool] = True
    knob: ClassVar[str | None] = "mean"

    def __post_init__(self) -> None:
        if (self.mean is None) == (self.probabilities is None):
            given = f"mean = {self.mean}, probabilities = {self.probabilities}"
            raise ValueError(f"RandomExit: {given}: must be exactly one of the two")
        if self.probabilities is not None:
            object.__setattr__(self, "probabilities", tuple(self.probabilities))  # a config gives a list
            if min(self.probabilities) < 0 or abs(sum(self.probabilities) - 1) > 1e-6:
                raise ValueError(f"probabilities = {self.probabilities}: must be numbers ≥ 0 whose sum is 1")
        else:
            require(self, "mean", 1, INFINITE)
        require(self, "min_loops", 1, INFINITE)

    @property
    def threshold(self) -> float:
        return 0.0 if self.mean is None else self.mean

    def statistic(self, view: LoopView) -> Tensor:
        if view.row is None:
            raise ValueError("RandomExit: the view has no `row`: must number every token")
        drawn = _uniform(self.seed, view.row)
        if self.probabilities is None:  # at mean k + f: reached at loop k with probability 1 − f, else at k + 1
            return view.loop + 1 - drawn
        cdf = torch.tensor(self.probabilities, dtype=torch.float64).cumsum(0).float().to(drawn.device)
        return cdf[(view.loop - 1).clamp_max(len(cdf) - 1)] - drawn


def survive(log_survival: Tensor, gate_logit: Tensor) -> Tensor:
    """log Π (1 − λ_j) with one loop more, [N], in float32 or wider."""
    return log_survival + F.logsigmoid(-_wide(gate_logit))


def _released_cdf(view: LoopView) -> Tensor:
    """The running sum of p as the released code rounds it: products and results in the gate logits' dtype."""
    if view.gate_logits is None:
        raise ValueError("QExit: strict_reference needs the view's `gate_logits`, got none")
    hazard, remaining, p = view.gate_logits.sigmoid(), torch.ones_like(view.gate_logits[0]), []
    for one in hazard:
        p.append(one * remaining)
        remaining = remaining * (1 - one)
    # `cumsum` adds in a wider type and rounds each result; a sum made step by step would round, and exit, elsewhere.
    return torch.stack(p).cumsum(0).gather(0, (view.loop - 1).unsqueeze(0)).squeeze(0)


def _from_loop_2(view: LoopView, statistic: Tensor, before: float) -> Tensor:
    return statistic.masked_fill(view.loop == 1, before)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(torch.float32, x.dtype))


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(_wide(logits), -1)


def _uniform(seed: int, row: Tensor) -> Tensor:
    """[N] float32 in (0, 1), a hash of (seed, row) that is the same on every device; integers wrap around."""
    x = row * 0x1E3779B97F4A7C15 + (seed + 1) * 0x3F58476D
    for factor in (0x3F58476D1CE4E5B9, 0x14D049BB133111EB):
        x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * factor
    return (((x >> 40) & 0xFFFFF) + 0.5) / (1 << 20)
