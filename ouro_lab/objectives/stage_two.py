"""Stage II: the exit gate alone learns, on a frozen model, whether one more loop pays (paper §3.4)."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.model.transformer import LoopState
from ouro_lab.objectives.cross_entropy import token_cross_entropy
from ouro_lab.objectives.exit import exit_distribution
from ouro_lab.objectives.losses import Loss, Mean

CHOICES = {"label": ("backward", "forward"), "divisor": ("loops", "terms")}


@dataclass(frozen=True)
class StageTwo:
    """Binary cross-entropy between the predicted continuation 1 − λ_t and a label, per token.

    Improvement I_t = max(0, L_{t−1} − L_t) of the detached token losses, label w_t = σ(k·(I_t − γ)), and
    (1/T)·Σ_{t=2..T} −[w_t·log(1 − λ_t) + (1 − w_t)·log λ_t]. Without an improvement w is σ(−k·γ) = 0.438, not the 0
    that the paper's text speaks of. λ_1 has no term, and λ_T has one although no exit distribution uses it.

    k, gamma: slope per nat and threshold in nats, the paper's values. clip: false lets a loss that rises pull w further
    down. label: `backward`, as printed, judges loop t by what it gained on t − 1; `forward` by what t + 1 will gain, so
    that loop T has no term. divisor: `loops` is the T that is printed; `terms`, the number of terms, is what public
    re-implementations divide by. first: the first loop in the sum, printed as 2; backward labels have none at loop 1.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """

    k: float = 50.0
    gamma: float = 0.005
    clip: bool = True
    label: str = "backward"
    divisor: str = "loops"
    first: int = 2
    needs_gate: ClassVar[bool] = True
    trains: ClassVar[str] = "gate"

    def __post_init__(self) -> None:
        for name, valid in CHOICES.items():
            if getattr(self, name) not in valid:
                raise ValueError(f"objective.{name} = {getattr(self, name)!r}: must be {' or '.join(valid)}")
        if not (math.isfinite(self.k) and self.k > 0):
            raise ValueError(f"objective.k = {self.k!r}: must be a number > 0")
        if not math.isfinite(self.gamma):
            raise ValueError(f"objective.gamma = {self.gamma!r}: must be a finite number of nats")
        least = 2 if self.label == "backward" else 1
        if not isinstance(self.first, int) or self.first < least:
            raise ValueError(f"objective.first = {self.first!r}: must be an integer ≥ {least} with {self.label} labels")

    def supervised_loops(self, loops: int) -> int:
        return loops

    def terms(self, loops: int) -> range:
        """Loops, one-based, whose gate has a loss.

        Raises:
            ValueError: none of `loops` has.
        """
        last = loops if self.label == "backward" else loops - 1
        if self.first > last:
            raise ValueError(f"objective.first = {self.first}: nothing to train, {self.label} labels end at {last}")
        return range(self.first, last + 1)

    def __call__(
        self, states: Iterable[LoopState], head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> Loss:
        losses, gates = [], []
        for state in states:
            if state.gate_logit is None:
                raise ValueError("objective: needs an exit gate, but the backbone yields no gate logits")
            losses.append(token_cross_entropy(state.hidden, head_weight, targets))
            gates.append(state.gate_logit.to(losses[-1].dtype))
        terms = self.terms(len(gates))
        mean, by_loop = Mean(targets, denominator), torch.stack(losses)  # [T, B, S]
        labels = self._labels(by_loop)  # [terms, B, S]
        each = _binary_cross_entropy(labels, torch.stack([gates[t - 1] for t in terms]))
        metrics = {f"loss_loop{t}": mean(loss) for t, loss in enumerate(by_loop, start=1)}
        for t, loss, label in zip(terms, each.detach(), labels, strict=True):
            metrics |= {f"gate_loss_loop{t}": mean(loss), f"label_loop{t}": mean(label)}
        metrics |= mean.exits(exit_distribution(torch.stack(gates).detach()).exp())
        return mean(self._total(each, len(gates))), metrics

    def token_loss(self, losses: Tensor, gate_logits: Tensor) -> Tensor:
        """The objective of every token [B, S], from cross-entropies and gate logits [T, B, S]."""
        terms = self.terms(len(losses))
        each = _binary_cross_entropy(self._labels(losses), gate_logits[terms.start - 1 : terms.stop - 1])
        return self._total(each, len(losses))

    def _labels(self, losses: Tensor) -> Tensor:
        """w [terms, B, S] from cross-entropies [T, B, S]."""
        gain = losses.detach()[:-1] - losses.detach()[1:]  # [T − 1, B, S], of loop 2 on loop 1 and so on
        gain = gain.clamp_min(0) if self.clip else gain
        start = self.first - (2 if self.label == "backward" else 1)
        return torch.sigmoid(self.k * (gain[start:] - self.gamma))

    def _total(self, each: Tensor, loops: int) -> Tensor:
        return each.sum(0) / (loops if self.divisor == "loops" else len(each))


def _binary_cross_entropy(labels: Tensor, gate_logits: Tensor) -> Tensor:
    """Of 1 − λ against w, both [terms, B, S]; log(1 − λ) = logsigmoid(−g) is finite wherever the gate saturates."""
    return -(labels * F.logsigmoid(-gate_logits) + (1 - labels) * F.logsigmoid(gate_logits))
