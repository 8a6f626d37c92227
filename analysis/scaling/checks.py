"""What a design cannot determine, said in one line before any number is printed."""

from collections.abc import Mapping

import numpy as np

from analysis.scaling.laws import Law
from analysis.scaling.points import Points

# Columns of unit length. A 240-point Chinchilla design has about 300; beyond 1e6 a relative noise of 1e-3 in the loss
# moves parameters by orders of magnitude along the weakest direction.
CONDITION_LIMIT = 1e6
_WORDS = {
    "parameters": "parameter counts",
    "tokens": "token counts",
    "loops": "loop counts",
    "trained_loops": "trained loop counts",
}


def obstacle(law: Law, points: Points) -> str:
    """Why the law cannot be fitted to these points at all; empty if it can."""
    if len(points) <= len(law.names):
        return f"{law.name}: too few points: {len(points)} for {len(law.names)} parameters"
    for name in law.constant:
        if len(values := points.values(name)) > 1:
            return f"{law.name}: stated for one value of {name}, got {_listed(values)}: fit each apart"
    for term in law.terms:
        for name, count in (term.needs or {}).items():
            if len(values := points.values(name)) < count:
                unknown = ", ".join([term.coefficient, *(parameter.name for parameter in term.parameters)])
                return f"{law.name}: {unknown} not identifiable: needs {count} {_WORDS[name]}, got {_listed(values)}"
    return ""


def at_bounds(law: Law, points: Points, values: Mapping[str, float]) -> dict[str, str]:
    """Parameters whose value is a bound's, with the line that says so; an absent term takes its exponents along."""
    found = {}
    for term in law.terms:
        absent = values[term.coefficient] == 0
        if absent:
            found[term.coefficient] = f"{term.coefficient} at its lower bound 0: the term is absent"
        for parameter in term.parameters:
            name, value, scale = parameter.name, values[parameter.name], parameter.scale(points)
            if absent:
                found[name] = f"{name} not identifiable: {term.coefficient} is 0"
            elif edge := _edge(value, parameter.low * scale, parameter.high * scale):
                found[name] = f"{name} at its {edge}: the value is the bound's, not the data's"
    return found


def condition(jacobian: np.ndarray) -> float:
    """Of the Jacobian [n, p] with columns of unit length; infinite where one is 0."""
    scale = np.linalg.norm(jacobian, axis=0)
    return (
        float(np.linalg.cond(jacobian / scale))
        if len(scale) and (scale > 0).all()
        else float("inf" if len(scale) else 1)
    )


def weakest(jacobian: np.ndarray, names: list[str]) -> str:
    """The two or more parameters that move together without changing the fit."""
    scale = np.linalg.norm(jacobian, axis=0)
    direction = np.abs(np.linalg.svd(jacobian / np.where(scale > 0, scale, 1.0))[2][-1])
    strong = [name for name, part in zip(names, direction, strict=True) if part > 0.3 * direction.max()]
    return f"{', '.join(strong)} trade off against each other"


def _edge(value: float, low: float, high: float) -> str:
    near = 1e-6 * (high - low)
    if value <= low + near:
        return f"lower bound {low:.4g}"
    return f"upper bound {high:.4g}" if value >= high - near else ""


def _listed(values: np.ndarray) -> str:
    shown = ", ".join(f"{value:g}" for value in values[:4])
    return f"{len(values)} ({shown}{', …' if len(values) > 4 else ''})"
