"""Uncertainty of a fit: bootstrap over trunks, and profiles of one parameter."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from analysis.scaling.fits import Fit
from analysis.scaling.huber import huber
from analysis.scaling.laws import Law
from analysis.scaling.points import Points
from analysis.scaling.projection import Solutions, project


@dataclass(frozen=True)
class Profile:
    """The projection objective minimised over all other parameters, at fixed values of one.

    interval: where an F test keeps it (points taken as independent); an end is None where the
    profile never rises that far in the range looked at: the data do not bound the parameter there.
    """

    name: str
    values: np.ndarray
    objective: np.ndarray
    interval: tuple[float | None, float | None]


def bootstrap(fitted: Fit, draws: int = 500, seed: int = 0, level: float = 0.95) -> Fit:
    """The fit with intervals from resampled trunks: all points of a trunk together, never points of one curve.

    Percentiles widened to Student's t with trunks − parameters degrees of freedom, as resampled residuals are too small
    by that many (Hesterberg 2015, the expanded percentile interval). A parameter at a bound in over 5 % of the draws
    has a line for an interval. A refused fit is handed back as it is.
    """
    if fitted.refused:
        return fitted
    law, df = fitted.law, fitted.points.trunks - len(fitted.law.names)
    if df < 1:
        line = f"{law.name}: no interval: {fitted.points.trunks} trunks for {len(law.names)} parameters"
        return replace(fitted, unstable=dict.fromkeys(law.names, line))
    found = resampled(fitted, trunk_weights(fitted.points, draws, seed))
    numbers = np.concatenate([found.coefficients, found.theta], axis=1)
    low, high = np.quantile(numbers, tails(level, fitted.points.trunks, df), axis=0)
    intervals = {name: (float(a), float(b)) for name, a, b in zip(law.names, low, high, strict=True)}
    return replace(fitted, intervals=intervals, unstable=_unstable(law, fitted.points, found))


def trunk_weights(points: Points, draws: int, seed: int = 0) -> np.ndarray:
    """How often each point counts in each draw [draws, n]: trunks drawn with replacement."""
    trunks, place = np.unique(points.trunk, return_inverse=True)
    counts = np.random.default_rng(seed).multinomial(len(trunks), np.full(len(trunks), 1 / len(trunks)), size=draws)
    return counts[:, place].astype(float)


def resampled(fitted: Fit, weights: np.ndarray) -> Solutions:
    """The fit repeated with each row of weights [draws, n], from where it ended."""
    law, points, start = fitted.law, fitted.points, fitted.solution()
    if fitted.method == "projection":
        return project(law, points, np.repeat(start.theta, len(weights), axis=0), weights)
    found = [huber(law, points, row, start) for row in weights]
    return Solutions(*(np.concatenate([getattr(one, name) for one in found]) for name in vars(start)))


def predictions(law: Law, points: Points, found: Solutions) -> np.ndarray:
    """The loss by each of the solutions [draws, n]."""
    return np.einsum("bk,bkn->bn", found.coefficients, np.exp(law.basis(points, found.theta)[0]))


def profile(fitted: Fit, name: str, values: Sequence[float] | np.ndarray, level: float = 0.95) -> Profile:
    """The profile of an exponent, an offset, φ or E, over rising values of it.

    Raises:
        ValueError: another coefficient, or a parameter that the law does not have.
    """
    at = np.asarray(values, float)
    law, points = fitted.law, fitted.points
    if name == "E":
        rest = law.without("E")
        found = _from_all_starts(
            rest, points, np.repeat(law.box(points)[:, None], len(at), axis=1), 1 - at[:, None] / points.loss
        )
    else:
        names = [parameter.name for parameter in law.exponents]
        if name not in names:
            raise ValueError(f"profile: {law.name} has no {name}; it has E, {', '.join(names)}")
        box = np.repeat(law.box(points)[:, None], len(at), axis=1)
        box[:, :, names.index(name)] = at
        found = _from_all_starts(law, points, box, np.ones((len(at), len(points))))
    return Profile(name, at, found, _inside(at, found, len(points) - len(law.names), level))


def _from_all_starts(law: Law, points: Points, box: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The least objective [m] per row of the box [2, m, q] and of the target [m, n], over all starting values."""
    starts = law.starts(points)
    rows = np.repeat(np.arange(box.shape[1]), len(starts))
    theta = np.tile(starts, (box.shape[1], 1))
    found = project(law, points, theta, box=box[:, rows], target=target[rows])
    return found.objective.reshape(box.shape[1], -1).min(axis=1)


def _inside(at: np.ndarray, objective: np.ndarray, df: int, level: float) -> tuple[float | None, float | None]:
    """Where the profile crosses the limit of F(1, df), by straight lines between its values."""
    if df < 1:
        return None, None
    least = int(np.argmin(objective))
    limit = objective[least] * (1 + float(stats.f.ppf(level, 1, df)) / df)
    low = _crossing(at[least::-1], objective[least::-1], limit)
    return low, _crossing(at[least:], objective[least:], limit)


def _crossing(at: np.ndarray, objective: np.ndarray, limit: float) -> float | None:
    over = np.flatnonzero(objective > limit)
    if not len(over):
        return None
    after = int(over[0])
    return float(np.interp(limit, objective[after - 1 : after + 1], at[after - 1 : after + 1]))


def tails(level: float, trunks: int, df: int) -> tuple[float, float]:
    """The two quantiles of resamples that an interval lies between: wider than those of `level`, see `bootstrap`."""
    wide = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, df) * math.sqrt(trunks / df)))
    return wide, 1 - wide


def _unstable(law: Law, points: Points, found: Solutions, most: float = 0.05) -> dict[str, str]:
    low, high = law.box(points)
    near = 1e-6 * (high - low)
    hits = np.concatenate([found.coefficients <= 0, (found.theta <= low + near) | (found.theta >= high - near)], axis=1)
    shares = zip(law.names, hits.mean(axis=0), strict=True)
    return {
        name: f"{name} at a bound in {share:.0%} of resamples: not bounded by the data"
        for name, share in shares
        if share > most
    }
