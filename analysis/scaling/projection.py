"""Variable projection: search the exponents, solve the coefficients (Golub and Pereyra 1973), many problems at once.

A batch is a set of starting values, of bootstrap weights, or of values at which a profile holds a parameter. Every step
is a few array operations over the whole batch, which makes a thousand bootstraps cost about as much as ten fits.
Residuals are relative, 1 − fit/loss: near the log residual of the Huber fit, yet linear in the coefficients.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from analysis.scaling.laws import Law
from analysis.scaling.points import Points

_TINY = 1e-13


@dataclass(frozen=True)
class Solutions:
    """A batch of fits: exponents [b, q], coefficients [b, k], objective [b] (weighted sum of squared residuals)."""

    theta: np.ndarray
    coefficients: np.ndarray
    objective: np.ndarray

    def best(self) -> "Solutions":
        index = slice(*(lambda i: (i, i + 1))(int(np.argmin(self.objective))))
        return Solutions(self.theta[index], self.coefficients[index], self.objective[index])


@dataclass
class _State:
    """Where each problem of the batch stands, with the derivatives of its objective by the exponents."""

    theta: np.ndarray
    coefficients: np.ndarray
    objective: np.ndarray
    gradient: np.ndarray  # [b, q]
    hessian: np.ndarray  # [b, q, q]: Gauss–Newton's, with Kaufman's Jacobian

    def put(self, where: np.ndarray, other: "_State", chosen: np.ndarray) -> None:
        for name in vars(self):
            getattr(self, name)[where] = getattr(other, name)[chosen]

    def take(self, where: np.ndarray) -> "_State":
        return _State(*(value[where] for value in vars(self).values()))


@dataclass(frozen=True)
class _Problem:
    """weights [b, n]; target [b, n]: what the terms must sum to, relative to the loss."""

    law: Law
    points: Points
    weights: np.ndarray
    target: np.ndarray

    def at(self, theta: np.ndarray, rows: np.ndarray) -> _State:
        """The coefficients solved at theta [b, q], for those rows of the batch.

        The gradient is exact with non-negative coefficients too, as they solve their own problem at every theta.
        """
        log, slope = self.law.basis(self.points, theta)
        top = log.max(axis=2, keepdims=True)  # columns of one size, whatever A·N^−α is
        columns = np.exp(log - top) / self.points.loss  # [b, k, n]
        weights, target = self.weights[rows], self.target[rows]
        scaled, gram = _nonnegative(columns, columns * weights[:, None], target)
        residual = target - (scaled[:, None] @ columns)[:, 0]
        change = columns[:, self.law.owner] * scaled[:, self.law.owner, None] * slope  # [b, q, n]: d fit / d exponent
        weighted = change * weights[:, None]
        gradient = -(weighted @ residual[..., None])[..., 0]
        shared = columns @ weighted.transpose(0, 2, 1)  # [b, k, q]
        hessian = weighted @ change.transpose(0, 2, 1) - shared.transpose(0, 2, 1) @ np.linalg.solve(gram, shared)
        objective = np.einsum("bn,bn,bn->b", weights, residual, residual)
        return _State(theta, scaled * np.exp(-top[..., 0]), objective, gradient, hessian)


def project(
    law: Law,
    points: Points,
    theta: np.ndarray,
    weights: np.ndarray | None = None,
    box: np.ndarray | None = None,
    target: np.ndarray | None = None,
    steps: int = 200,
) -> Solutions:
    """Levenberg–Marquardt on the projected problem, from each row of theta [b, q].

    weights: [n] or [b, n], how often each point counts. box: bounds [2, q] or [2, b, q]. target: [n] or [b, n], where
    the terms must sum to something else than the loss: a fraction of it.
    """
    shape = (len(theta), len(points))
    full = [np.broadcast_to(1.0 if values is None else values, shape) for values in (weights, target)]
    bounds = (np.broadcast_to(bound, theta.shape) for bound in (law.box(points) if box is None else box))
    found = _search(_Problem(law, points, *full), theta, *bounds, steps)
    return Solutions(found.theta, found.coefficients, found.objective)


def _search(problem: _Problem, theta: np.ndarray, low: np.ndarray, high: np.ndarray, steps: int) -> _State:
    """Steps that do not lower the objective are undone and damped more; what has settled leaves the batch."""
    state = problem.at(np.clip(theta, low, high), np.arange(len(theta)))
    damping, active = np.full(len(theta), 1e-3), np.arange(len(theta) if theta.shape[1] else 0)
    for _ in range(steps):
        if not len(active):
            break
        here, floor, ceiling = state.take(active), low[active], high[active]
        trial = problem.at(np.clip(here.theta + _step(here, floor, ceiling, damping[active]), floor, ceiling), active)
        gain = here.objective - trial.objective
        better = gain > 0
        state.put(active[better], trial, better)
        settled = (np.abs(gain) <= 1e-12 * here.objective) | (damping[active] > 1e6) | (here.objective < 1e-22)
        damping[active] *= np.where(better, 0.1, 5.0)
        active = active[~settled]
    return state


def _step(state: _State, low: np.ndarray, high: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """A damped Gauss–Newton step [b, q]; 0 for an exponent that is held at its bound."""
    held = ((state.theta <= low) & (state.gradient > 0)) | ((state.theta >= high) & (state.gradient < 0))
    diagonal = np.einsum("bqq->bq", state.hessian)
    idle = held | (diagonal <= 0)
    # Scaled to a unit diagonal: offsets are counted in parameters or tokens, exponents in ones.
    scale = np.sqrt(np.where(idle, 1.0, diagonal))
    scaled = state.hessian / (scale[:, :, None] * scale[:, None, :])
    scaled = np.where(idle[:, :, None] | idle[:, None, :], 0.0, scaled)
    unit = np.eye(scale.shape[1])
    scaled = scaled * (1 - unit) + unit * (1 + damping[:, None, None] + _TINY)
    right = np.where(idle, 0.0, -state.gradient) / scale
    return np.linalg.solve(scaled, right[..., None])[..., 0] / scale


def _nonnegative(columns: np.ndarray, weighted: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares with coefficients ≥ 0 for columns [b, k, n]: (coefficients [b, k], Gram matrix [b, k, k])."""
    unit = np.eye(columns.shape[1])
    gram = weighted @ columns.transpose(0, 2, 1)
    gram = gram + unit * _TINY * np.einsum("bkk->b", gram)[:, None, None]
    right = (weighted @ target[..., None])[..., 0]
    found = np.linalg.solve(gram, right[..., None])[..., 0]
    # One refinement by the residual itself: normal equations alone lose half the digits.
    rest = target - (found[:, None] @ columns)[:, 0]
    found = found + np.linalg.solve(gram, weighted @ rest[..., None])[..., 0]
    wrong = ~(found >= 0).all(axis=1)
    if wrong.any():
        found[wrong] = _active_sets(gram[wrong], right[wrong])
    return found, gram


def _active_sets(gram: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The best non-negative solution by trying every set of columns: at most 30, as no law has more than five terms."""
    batch, k = right.shape
    explained, found = np.zeros(batch), np.zeros((batch, k))
    for chosen in (list(c) for size in range(1, k) for c in combinations(range(k), size)):
        part = np.linalg.solve(gram[:, chosen][:, :, chosen], right[:, chosen, None])[..., 0]
        gain = np.einsum("bs,bs->b", part, right[:, chosen])
        take = (part >= 0).all(axis=1) & (gain > explained)
        explained = np.where(take, gain, explained)
        found[take] = 0.0
        found[np.ix_(take, chosen)] = part[take]
    return found
