"""The terms that laws are made of."""

import numpy as np

from analysis.scaling.laws import Parameter, Term
from analysis.scaling.points import Points

FLAT = 1e-3  # not 0: a term with exponent 0 is a second constant beside E
STARTS = (0.15, 0.4, 0.9)


def constant(coefficient: str = "E") -> Term:
    def log_basis(points: Points, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(values), len(points))), np.zeros((len(values), 0, len(points)))

    return Term(coefficient, log_basis)


def power(coefficient: str, exponent: str, variable: str, offset: str = "", high: float = 2.5) -> Term:
    """coefficient / (x + offset)^exponent, x a variable of the points."""

    def log_basis(points: Points, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shifted = points.variable(variable) + (values[:, 1:2] if offset else np.zeros((len(values), 1)))
        log, a = np.log(shifted), values[:, 0:1]
        slopes = [-log, -a / shifted] if offset else [-log]
        return -a * log, np.stack(slopes, axis=1)

    # In units of the smallest x: above −1, so that every x + t stays positive.
    shift = (Parameter(offset, -0.9, 10.0, (0.0, 2.0), unit=variable),) if offset else ()
    return Term(coefficient, log_basis, (Parameter(exponent, FLAT, high, STARTS), *shift), {variable: 3 + len(shift)})


def effective(coefficient: str = "A", exponent: str = "alpha", recurrence: str = "phi") -> Term:
    """coefficient / (N_once + r^φ N_rec)^exponent: φ = 0, loops are worth nothing; φ = 1, as much as untied layers."""

    def log_basis(points: Points, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        a, phi = values[:, 0:1], values[:, 1:2]
        unrolled = points.loops**phi * points.recurring
        size = points.once + unrolled
        slopes = [-np.log(size), -a * unrolled / size * np.log(points.loops)]
        return -a * np.log(size), np.stack(slopes, axis=1)

    parameters = (Parameter(exponent, FLAT, 2.5, STARTS), Parameter(recurrence, -1.0, 2.0, (0.0, 0.5, 1.0)))
    return Term(coefficient, log_basis, parameters, {"parameters": 3, "loops": 2})


def unrolled(coefficient: str = "A", exponent: str = "alpha") -> Term:
    """coefficient / (N_once + μ N_rec)^exponent, μ the loops of training."""

    def log_basis(points: Points, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log = np.log(points.once + points.trained_loops * points.recurring) * np.ones((len(values), 1))
        return -values * log, -log[:, None]

    return Term(coefficient, log_basis, (Parameter(exponent, FLAT, 2.5, STARTS),), {"trained_loops": 3})


def decay(coefficient: str, rate: str, relative: bool = False) -> Term:
    """coefficient · exp(−rate · T), or of T/μ if `relative`."""

    def log_basis(points: Points, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        depth = points.loops / points.trained_loops if relative else points.loops
        return -values * depth, np.broadcast_to(-depth, (len(values), 1, len(points)))

    return Term(coefficient, log_basis, (Parameter(rate, FLAT, 10.0, (0.1, 0.5, 2.0)),), {"loops": 3})
