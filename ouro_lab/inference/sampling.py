"""From logits to tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 is greedy. top_k: only the k likeliest. top_p: only the fewest that hold this probability.

    top_p is taken of what top_k leaves, after the temperature.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature = {self.temperature!r}: must be a number ≥ 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k!r}: must be an integer ≥ 1, or null")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p!r}: must be in (0, 1]")

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    def __call__(self, logits: Tensor, uniform: Tensor | None = None) -> Tensor:
        """Tokens [N] from logits [N, V]. uniform: [N] in [0, 1), float64, needed where the temperature is not 0.

        The token is the inverse of the distribution function, so a row's depends on its own number alone.
        """
        if uniform is None or not self.draws:
            return logits.argmax(-1)
        p, tokens = self.probabilities(logits).sort(dim=-1, descending=True, stable=True)
        reached = p.cumsum(-1)
        place = torch.searchsorted(reached, (uniform * reached[:, -1]).unsqueeze(-1), right=True)
        place = torch.minimum(place, (p > 0).sum(-1, keepdim=True) - 1)  # u·Σp may round up to Σp
        return tokens.gather(-1, place).squeeze(-1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """[N, V] in float64, 0 where top_k or top_p cut; rows add up to 1."""
        logits = logits.double() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, -1).values[:, -1:]
            logits = logits.masked_fill(logits < least, float("-inf"))
        p = logits.softmax(-1)
        if self.top_p < 1:
            ordered, order = p.sort(dim=-1, descending=True, stable=True)
            before = ordered.cumsum(-1) - ordered
            p = p.masked_fill(torch.zeros_like(p).scatter(-1, order, (before >= self.top_p).double()).bool(), 0.0)
        return p / p.sum(-1, keepdim=True)
