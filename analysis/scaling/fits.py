"""One fit of one law: values, their uncertainty, and what the data cannot tell.

A parameter that the data cannot tell is a line of text in `Fit.flags`, never a number in `Fit.table`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from analysis.scaling.checks import CONDITION_LIMIT, at_bounds, condition, obstacle, weakest
from analysis.scaling.huber import huber
from analysis.scaling.laws import Law
from analysis.scaling.points import Points
from analysis.scaling.projection import Solutions, project

Method = Literal["projection", "huber"]


@dataclass(frozen=True)
class Fit:
    """A law fitted to points. refused: why there is no fit, or why its parameters mean nothing; empty if all is well.

    objective: the method's own (projection: sum of squared relative residuals; Huber: sum of Huber losses, δ = 1e-3).
    rms: of the log residuals. aic, bic: from these for either method, points taken as independent.
    errors: standard errors by the Jacobian (not for Huber), for independent points of equal relative noise: too small
    where points share a trunk (±1.96 of them covered 70–80 % in simulations). intervals: by bootstrap over trunks.
    condition: of the Jacobian with columns of unit length. bounds: parameters at one, with the line that says so;
    unstable: those at one in many resamples.
    """

    law: Law
    points: Points
    method: Method
    refused: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    objective: float = math.nan
    rms: float = math.nan
    aic: float = math.nan
    bic: float = math.nan
    condition: float = math.nan
    bounds: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    unstable: Mapping[str, str] = field(default_factory=dict)

    @property
    def flags(self) -> dict[str, str]:
        """Parameter → the line that stands for its number."""
        if self.refused:
            return dict.fromkeys(self.law.names, self.refused)
        return {**self.unstable, **self.bounds}

    def predict(self, points: Points) -> np.ndarray:
        """The loss [n].

        Raises:
            ValueError: the fit has no values.
        """
        if not self.values:
            raise ValueError(self.refused)
        return self.law.predict(points, self.values)

    @property
    def r2(self) -> float:
        """Of the loss in nats, at the points that it was fitted to, as the paper has it; NaN without a fit."""
        loss = self.points.loss
        left = loss - self.predict(self.points) if self.values else np.full(len(loss), np.nan)
        return float(1 - (left**2).sum() / ((loss - loss.mean()) ** 2).sum())

    def residuals(self) -> np.ndarray:
        """log loss − log fit [n]."""
        return np.log(self.points.loss) - np.log(self.predict(self.points))

    def table(self) -> dict[str, str]:
        """Each parameter as a reader may see it: value with interval or error, or the line that says why not."""
        return {name: self.flags.get(name) or self._number(name) for name in self.law.names}

    def solution(self) -> Solutions:
        """The fit as a starting point for further ones."""
        theta = [self.values[parameter.name] for parameter in self.law.exponents]
        coefficients = [self.values[name] for name in self.law.coefficients]
        return Solutions(np.array([theta]), np.array([coefficients]), np.array([self.objective]))

    def _number(self, name: str) -> str:
        value = f"{self.values[name]:.4g}"
        if name in self.intervals:
            return f"{value} [{self.intervals[name][0]:.4g}, {self.intervals[name][1]:.4g}]"
        return f"{value} ± {self.errors[name]:.2g}" if name in self.errors else value


def fit(law: Law, points: Points, method: Method = "projection") -> Fit:
    """The best fit from many starting values; refused in one line where the design cannot determine the law."""
    if found := obstacle(law, points):
        return Fit(law, points, method, refused=found)
    solved = project(law, points, law.starts(points)).best() if method == "projection" else huber(law, points)
    values = named(law, solved)
    misfit = np.log(points.loss) - np.log(law.predict(points, values))
    square, count, free = max(float(misfit @ misfit), 1e-300), len(points), len(law.names) + 1
    bounds = at_bounds(law, points, values)
    jacobian, names = _jacobian(law, points, values, bounds)
    number = condition(jacobian)
    refused = f"{law.name}: not identifiable: {weakest(jacobian, names)}" if number > CONDITION_LIMIT else ""
    return Fit(
        law=law,
        points=points,
        method=method,
        refused=refused,
        values=values,
        objective=float(solved.objective[0]),
        rms=math.sqrt(square / count),
        aic=count * math.log(square / count) + 2 * free,
        bic=count * math.log(square / count) + math.log(count) * free,
        condition=number,
        bounds=bounds,
        errors=_errors(jacobian, names, law, values, square) if method == "projection" and not refused else {},
    )


def named(law: Law, solved: Solutions) -> dict[str, float]:
    """Values by name of the first solution of a batch."""
    numbers = np.concatenate([solved.coefficients[0], solved.theta[0]])
    return {name: float(number) for name, number in zip(law.names, numbers, strict=True)}


def _jacobian(
    law: Law, points: Points, values: Mapping[str, float], bounds: Mapping[str, str]
) -> tuple[np.ndarray, list[str]]:
    """d log fit / d (log coefficient, exponent) [n, free], of the parameters that are free to move, and their names."""
    theta = np.array([[values[parameter.name] for parameter in law.exponents]])
    log, slope = law.basis(points, theta)
    terms = np.exp(log[0]) * np.array([values[name] for name in law.coefficients])[:, None]
    share = terms / terms.sum(axis=0)
    rows = np.concatenate([share, share[law.owner] * slope[0]])
    free = [index for index, name in enumerate(law.names) if name not in bounds]
    return rows[free].T, [law.names[index] for index in free]


def _errors(
    jacobian: np.ndarray, names: list[str], law: Law, values: Mapping[str, float], square: float
) -> dict[str, float]:
    """Standard errors by (JᵀJ)⁻¹ s²; a coefficient's from that of its logarithm."""
    count, free = jacobian.shape
    if count <= free:
        return {}
    scale = np.linalg.norm(jacobian, axis=0)
    inverse = np.linalg.inv((jacobian / scale).T @ (jacobian / scale))
    errors = np.sqrt(np.diag(inverse) * square / (count - free)) / scale
    units = [values[name] if name in law.coefficients else 1.0 for name in names]
    return {name: float(error * unit) for name, error, unit in zip(names, errors, units, strict=True)}
