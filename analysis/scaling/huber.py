"""Hoffmann's fit: the Huber loss of log residuals, by L-BFGS from many starting values (2203.15556, §3.3).

The objective is the sum over points, not their mean, and tolerances are tight: the published fit stopped early because
its mean looked converged (Besiroglu et al. 2404.10102).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from analysis.scaling.laws import Law
from analysis.scaling.points import Points
from analysis.scaling.projection import Solutions

DELTA = 1e-3
# A term's size at the middle of the data, as the logarithm of its share of the mean loss.
LARGEST, SMALLEST = 2.0, -12.0
_SHARES = (-4.0, -1.5, -0.2)


@dataclass(frozen=True)
class _Problem:
    """x = (log share of each term [k], exponents as fractions of their range [q]).

    In these the search is well scaled: log A and α of A·N^−α would move along a ridge, and offsets count in millions.
    """

    law: Law
    points: Points
    weights: np.ndarray
    low: np.ndarray
    width: np.ndarray
    target: np.ndarray  # log loss less its mean

    def parts(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log residuals [b, n], their derivatives by share [b, k, n] and by exponent [b, q, n], for x [b, k + q]."""
        k = len(self.law.terms)
        log, slope = self.law.basis(self.points, self.low + self.width * x[:, k:])
        size = np.exp(log - log.mean(axis=2, keepdims=True) + x[:, :k, None])
        total = size.sum(axis=1)
        share = size / total[:, None]
        moved = (slope - slope.mean(axis=2, keepdims=True)) * share[:, self.law.owner] * self.width[:, None]
        return np.log(total) - self.target, share, moved

    def value(self, x: np.ndarray) -> np.ndarray:
        """The objective [b]."""
        return _huber(self.parts(x)[0]) @ self.weights

    def scaled(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        """Objective and gradient in units of DELTA, so that the optimiser's tolerances mean what they say."""
        residual, share, moved = self.parts(x[None])
        pull = self.weights * np.clip(residual[0], -DELTA, DELTA) / DELTA
        gradient = np.concatenate([share[0], moved[0]]) @ pull
        return float(_huber(residual[0]) @ self.weights) / DELTA, gradient

    def solution(self, x: np.ndarray) -> Solutions:
        k = len(self.law.terms)
        theta = self.low + self.width * x[None, k:]
        log = self.law.basis(self.points, theta)[0]
        scale = np.exp(x[:k] + np.log(self.points.loss).mean() - log[0].mean(axis=1))
        absent = x[:k] <= SMALLEST + 1e-6
        return Solutions(theta, np.where(absent, 0.0, scale)[None], self.value(x[None]))


def huber(
    law: Law, points: Points, weights: np.ndarray | None = None, start: Solutions | None = None, keep: int = 16
) -> Solutions:
    """The best of `keep` searches, from those points of a grid whose objective is lowest; or one search from `start`.

    weights: [n], how often each point counts.
    """
    low, high = law.box(points)
    counts = np.ones(len(points)) if weights is None else weights
    target = np.log(points.loss) - np.log(points.loss).mean()
    problem = _Problem(law, points, counts, low, high - low, target)
    starts = _grid(problem, keep) if start is None else _from(problem, start)
    bounds = [(SMALLEST, LARGEST)] * len(law.terms) + [(0.0, 1.0)] * len(low)
    options = {"maxiter": 5000, "maxfun": 20000, "maxcor": 30, "ftol": 1e-15, "gtol": 1e-9}
    found = [minimize(problem.scaled, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options) for x in starts]
    return problem.solution(min(found, key=lambda result: result.fun).x)


def _grid(problem: _Problem, keep: int, most: int = 3000) -> np.ndarray:
    """The best starting values of every combination of shares and exponents; of a random part where those are many."""
    k = len(problem.law.terms)
    exponents = (problem.law.starts(problem.points) - problem.low) / np.where(problem.width > 0, problem.width, 1.0)
    shares = np.array(np.meshgrid(*[_SHARES] * k)).reshape(k, -1).T
    pairs = np.arange(len(shares) * len(exponents))
    if len(pairs) > most:
        pairs = np.random.default_rng(0).choice(pairs, most, replace=False)
    x = np.concatenate([shares[pairs // len(exponents)], exponents[pairs % len(exponents)]], axis=1)
    return x[np.argsort(problem.value(x), kind="stable")[:keep]]


def _from(problem: _Problem, start: Solutions) -> np.ndarray:
    log = problem.law.basis(problem.points, start.theta)[0][0]
    with np.errstate(divide="ignore"):
        share = np.log(start.coefficients[0]) + log.mean(axis=1) - np.log(problem.points.loss).mean()
    fractions = (start.theta[0] - problem.low) / np.where(problem.width > 0, problem.width, 1.0)
    return np.concatenate([np.clip(share, SMALLEST, LARGEST), fractions])[None]


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
