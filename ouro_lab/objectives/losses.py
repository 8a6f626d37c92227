"""Objectives: pure functions from per-loop states and targets to a loss and named metrics.

Every objective averages over valid targets (nats per token). `denominator` replaces their count where the caller knows
better: with several ranks, the mean count over ranks, so that averaged gradients equal one process's.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ouro_lab.model.transformer import LoopState
from ouro_lab.objectives.cross_entropy import IGNORE, weighted_cross_entropy
from ouro_lab.objectives.exit import log_prior, with_exit_probability

Loss = tuple[Tensor, dict[str, Tensor]]


class Mean:
    """Means over the valid targets of one batch."""

    def __init__(self, targets: Tensor, denominator: Tensor | None) -> None:
        self.valid = targets != IGNORE
        self.count = self.valid.sum().clamp_min(1) if denominator is None else denominator

    def __call__(self, values: Tensor) -> Tensor:
        return (values * self.valid).sum() / self.count

    def exits(self, p: Tensor) -> dict[str, Tensor]:
        """The exit distribution p [T, B, S] over loops, and its mean loop."""
        by_loop = {f"exit_p_loop{loop}": self(p_t) for loop, p_t in enumerate(p, start=1)}
        return by_loop | {"exit_loop_mean": self((p * _column(range(1, len(p) + 1), p)).sum(0))}

    def cross_entropy(self, hiddens: list[Tensor], head_weight: Tensor, targets: Tensor, weights: Tensor) -> Loss:
        """Mean of Σ_t w_t·CE_t, and each loop's own mean as a metric. weights: [T, B, S], or [T, 1, 1]."""
        weights = weights.expand(len(hiddens), *targets.shape)
        total, losses = weighted_cross_entropy(hiddens, head_weight, targets, weights)
        by_loop = losses.flatten(1).sum(1) / self.count
        return total / self.count, {f"loss_loop{loop}": loss for loop, loss in enumerate(by_loop.unbind(), start=1)}


@dataclass(frozen=True)
class LastLoop:
    """Cross-entropy of the last loop: what a plain transformer trains, and the default of every arm."""

    needs_gate: ClassVar[bool] = False
    trains: ClassVar[str] = "all"

    def supervised_loops(self, loops: int) -> int:
        return 1

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        last = deque(states, maxlen=1).pop()  # lets go of the earlier states
        loss, _ = Mean(targets, denominator).cross_entropy([last.hidden], head_weight, targets, _ones(last.hidden))
        return loss, {}


@dataclass(frozen=True)
class MeanOverLoops:
    """The mean of all loops' cross-entropies: deep supervision without a gate."""

    needs_gate: ClassVar[bool] = False
    trains: ClassVar[str] = "all"

    def supervised_loops(self, loops: int) -> int:
        return loops

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        hiddens = [state.hidden for state in states]
        weights = _ones(hiddens[0]).expand(len(hiddens), 1, 1) / len(hiddens)
        return Mean(targets, denominator).cross_entropy(hiddens, head_weight, targets, weights)


@dataclass(frozen=True)
class StageOne:
    """Σ_t p_t·CE_t − β·H(p), per token; the last loop takes the remaining mass (paper §3.3, equation 4).

    beta: weight of the entropy, a pure number as both terms are in nats; 0.1 in the paper's first stage, 0.05 after.
    """

    beta: float = 0.05
    needs_gate: ClassVar[bool] = True
    trains: ClassVar[str] = "all"

    def supervised_loops(self, loops: int) -> int:
        return loops

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        return expected_loss(states, head_weight, targets, self.beta, None, denominator)


@dataclass(frozen=True)
class KLToPrior:
    """Σ_t p_t·CE_t + β·KL(p ‖ π), π uniform or geometric (paper Appendix A).

    geometric: the prior's λ; None is the uniform prior, which is `StageOne` up to the constant β·log T.
    truncation: `renormalise` or `tail`, see `log_prior`.
    """

    beta: float = 0.05
    geometric: float | None = None
    truncation: str = "renormalise"
    needs_gate: ClassVar[bool] = True
    trains: ClassVar[str] = "all"

    def __post_init__(self) -> None:
        log_prior(2, self.geometric, self.truncation)  # refuses bad values before anything runs

    def supervised_loops(self, loops: int) -> int:
        return loops

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        states = list(states)  # the prior needs T
        prior = log_prior(len(states), self.geometric, self.truncation)
        return expected_loss(states, head_weight, targets, self.beta, prior, denominator)


@dataclass(frozen=True)
class MixtureOfLogits:
    """Cross-entropy of the p-weighted mean of all loops' logits, no entropy term: what the released `labels=` computes.

    Not the paper's objective. The head is linear, so the mixed state is mixed once instead of T logit tensors.
    """

    needs_gate: ClassVar[bool] = True
    trains: ClassVar[str] = "all"

    def supervised_loops(self, loops: int) -> int:
        return 1

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        mixed: Tensor | float = 0.0
        exits = []
        for state, log_p in with_exit_probability(states):
            p = log_p.exp()
            mixed = mixed + p.unsqueeze(-1).to(state.hidden.dtype) * state.hidden
            exits.append(p.detach())
        mean = Mean(targets, denominator)
        loss, _ = mean.cross_entropy([mixed], head_weight, targets, _ones(mixed))
        return loss, mean.exits(torch.stack(exits))


def expected_loss(
    states: Iterable[LoopState],
    head_weight: Tensor,
    targets: Tensor,
    beta: float,
    prior: list[float] | None,
    denominator: Tensor | None = None,
) -> Loss:
    """Σ_t p_t·(CE_t + β·(log p_t − log π_t)); without a prior, log π = 0 and the second term is −β·H(p)."""
    mean = Mean(targets, denominator)
    steps = list(with_exit_probability(states))
    log_p = torch.stack([log_p for _, log_p in steps])  # [T, B, S]
    p = log_p.exp()
    task, by_loop = mean.cross_entropy([state.hidden for state, _ in steps], head_weight, targets, p)
    pull = mean((p * (log_p if prior is None else log_p - _column(prior, p))).sum(0))
    metrics = {"expected_loss": task.detach(), "exit_pull": pull.detach()} | by_loop | mean.exits(p.detach())
    return task + beta * pull, metrics


def _ones(hidden: Tensor) -> Tensor:
    """[1, 1, 1]: one loop, every token alike."""
    return torch.ones(1, 1, 1, device=hidden.device)


def _column(values: Iterable[float], like: Tensor) -> Tensor:
    """[T, 1, 1], to be used with [T, B, S]."""
    return torch.tensor(list(values), dtype=like.dtype, device=like.device).view(-1, 1, 1)
