"""Scaling laws as data: each is a sum of non-negative terms, and each exponent belongs to one term.

The sum is linear in its coefficients, so a fitter needs to search only the exponents (see `projection`). A law's
`nested` is the same law without its loop term.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from analysis.scaling.points import Points

LogBasis = Callable[[Points, np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Parameter:
    """A non-linear parameter. unit: the variable in whose smallest value `low`, `high` and `starts` are given."""

    name: str
    low: float
    high: float
    starts: tuple[float, ...]
    unit: str = ""

    def scale(self, points: Points) -> float:
        return float(points.variable(self.unit).min()) if self.unit else 1.0


@dataclass(frozen=True)
class Term:
    """coefficient · exp(log_basis). needs: how many values each variable must take for the term to be told from E.

    log_basis(points, values [b, p]) gives the logarithm [b, n] and its derivatives [b, p, n].
    """

    coefficient: str
    log_basis: LogBasis
    parameters: tuple[Parameter, ...] = ()
    needs: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Law:
    """L = Σ terms, in nats per token. constant: variables that must not vary, because the law is stated per value."""

    name: str
    formula: str
    source: str
    terms: tuple[Term, ...]
    nested: "Law | None" = None
    constant: tuple[str, ...] = ()

    @property
    def coefficients(self) -> tuple[str, ...]:
        return tuple(term.coefficient for term in self.terms)

    @property
    def exponents(self) -> tuple[Parameter, ...]:
        """All non-linear parameters, offsets and φ included, in the order of the terms."""
        return tuple(parameter for term in self.terms for parameter in term.parameters)

    @property
    def names(self) -> tuple[str, ...]:
        return self.coefficients + tuple(parameter.name for parameter in self.exponents)

    @property
    def owner(self) -> np.ndarray:
        """For each exponent the index of its term."""
        return np.array([index for index, term in enumerate(self.terms) for _ in term.parameters], int)

    def box(self, points: Points) -> np.ndarray:
        """Bounds [2, q] of the exponents, low then high."""
        scales = [parameter.scale(points) for parameter in self.exponents]
        return np.array([[p.low for p in self.exponents], [p.high for p in self.exponents]]) * scales

    def starts(self, points: Points) -> np.ndarray:
        """Every combination of the exponents' starting values, [s, q]."""
        return np.array(list(product(*([s * p.scale(points) for s in p.starts] for p in self.exponents))), float)

    def basis(self, points: Points, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of the terms at coefficient one [b, k, n], and each exponent's derivative of its own [b, q, n]."""
        logs, slopes, at = [], [], 0
        for term in self.terms:
            log, slope = term.log_basis(points, theta[:, at : at + len(term.parameters)])
            logs.append(log)
            slopes.append(slope)
            at += len(term.parameters)
        return np.stack(logs, axis=1), np.concatenate(slopes, axis=1)

    def predict(self, points: Points, values: Mapping[str, float]) -> np.ndarray:
        """The loss [n] at parameter values by name."""
        theta = np.array([[values[parameter.name] for parameter in self.exponents]])
        return np.array([values[name] for name in self.coefficients]) @ np.exp(self.basis(points, theta)[0][0])

    def without(self, coefficient: str) -> "Law":
        """The law less one term."""
        return replace(self, terms=tuple(term for term in self.terms if term.coefficient != coefficient))
