"""A parabola in log learning rate, and what a rate other than its optimum costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RateFit:
    """value(lr) = coefficients · (log² lr, log lr, 1). optimum: None where the parabola opens the wrong way."""

    coefficients: tuple[float, float, float]
    optimum: float | None
    inside: bool
    higher_is_better: bool

    def value(self, lr: float) -> float:
        return float(np.polyval(self.coefficients, math.log(lr)))

    def regret(self, lr: float) -> float | None:
        """How much worse (≥ 0) the fitted value at `lr` is than at the optimum."""
        return None if self.optimum is None else abs(self.value(lr) - self.value(self.optimum))


def fit_rates(rates: Sequence[float], values: Sequence[float], higher_is_better: bool = False) -> RateFit:
    """Least squares over all finite points (every seed, not the means alone).

    Raises:
        ValueError: fewer than three different rates with a finite value.
    """
    x, y = np.log(np.asarray(rates, float)), np.asarray(values, float)
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(np.unique(x)) < 3:
        raise ValueError(f"fit_rates: {len(np.unique(x))} rates with a value; a parabola needs three")
    # Centred before the fit: log rates near −6 make the plain normal equations ill-conditioned.
    a, b, c = np.polyfit(x - x.mean(), y, 2)
    right_way = a < 0 if higher_is_better else a > 0
    optimum = float(math.exp(x.mean() - b / (2 * a))) if right_way else None
    moved = (float(a), float(b - 2 * a * x.mean()), float(c - b * x.mean() + a * x.mean() ** 2))
    inside = optimum is not None and x.min() < math.log(optimum) < x.max()
    return RateFit(moved, optimum, bool(inside), higher_is_better)
