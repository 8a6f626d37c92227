"""The figure of a fit: loss against parameters and against tokens by loops, and what the fit leaves over."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from analysis.figures import Drawn
from analysis.scaling.fits import Fit
from analysis.scaling.points import SAME, Points, distinct
from analysis.style import COLUMN, FORMATS, GREY, RC, Palette, save
from analysis.wording import compact

_LABELS = {"parameters": "Parameters", "tokens": "Training tokens"}
_OTHER = {"parameters": "tokens", "tokens": "parameters"}


@dataclass(frozen=True)
class FigureData:
    """All that the figure shows.

    points: parameters, tokens, loops, loss, fitted (nats per token), residual (log loss − log fit), and whether a point
    is in the panel against `parameters` and against `tokens` (see `held`). curves: panel, loops, x, loss. refused: why
    there is no curve.
    """

    points: pd.DataFrame
    curves: pd.DataFrame
    formula: str
    refused: str = ""


def figure_data(fitted: Fit, steps: int = 60) -> FigureData:
    """Pure: from a fit to tables. A law that was not fitted gives the points alone."""
    points = fitted.points
    table = pd.DataFrame({name: points.variable(name) for name in ("parameters", "tokens", "loops", "loss")})
    for panel, other in _OTHER.items():
        table[f"in_{panel}"] = _near(table[other].to_numpy(), held(points, panel))
    fits = bool(fitted.values)
    table["fitted"] = fitted.predict(points) if fits else np.nan
    table["residual"] = np.log(table["loss"]) - np.log(table["fitted"])
    curves = [_curve(fitted, panel, loops, steps) for panel in _OTHER for loops in points.values("loops") if fits]
    columns = ["panel", "loops", "x", "loss"]
    return FigureData(
        table, pd.concat(curves) if curves else pd.DataFrame(columns=columns), fitted.law.formula, fitted.refused
    )


def held(points: Points, panel: str) -> float:
    """The other variable's value at which a panel shows its own: the one with the most values of it, else the largest.

    A ladder may vary tokens at one size alone, which need not be the largest.
    """
    other = _OTHER[panel]

    def shown(value: float) -> int:
        return len(points.take(_near(points.variable(other), value)).values(panel))

    return float(max(points.values(other), key=lambda value: (shown(value), value)))


def _near(x: np.ndarray, value: float) -> np.ndarray:
    return abs(np.log(x / value)) <= SAME


def _curve(fitted: Fit, panel: str, loops: float, steps: int) -> pd.DataFrame:
    """The fitted loss over a panel's x at one loop count, along tokens or along sizes, where the share outside the loop
    is read off the sizes that were trained."""
    points = fitted.points
    x = np.geomspace(points.variable(panel).min(), points.variable(panel).max(), steps)
    sizes = x if panel == "parameters" else np.full(steps, held(points, panel))
    tokens = x if panel == "tokens" else np.full(steps, held(points, panel))
    order = np.argsort(points.parameters)
    once = sizes * np.interp(np.log(sizes), np.log(points.parameters[order]), (points.once / points.parameters)[order])
    at = np.full(steps, loops)
    trained = at if np.array_equal(points.loops, points.trained_loops) else np.full(steps, points.trained_loops.max())
    line = Points(np.zeros(steps, int), once, sizes - once, tokens, at, trained, np.ones(steps))
    return pd.DataFrame({"panel": panel, "loops": loops, "x": x, "loss": fitted.predict(line)})


def draw(fitted: Fit, folder: Path, name: str = "scaling", formats: Iterable[str] = FORMATS) -> Drawn:
    """The figure on disk, with its caption."""
    with mpl.rc_context(RC):
        path = save(scaling(figure_data(fitted)), folder, name, tuple(formats))
    return Drawn(path, caption(fitted), "scaling")


def caption(fitted: Fit) -> str:
    tokens, parameters = (compact(held(fitted.points, panel)) for panel in _OTHER)
    parts = [f"Loss against parameters at {tokens} tokens, against tokens at {parameters} parameters, and residuals"]
    if fitted.values:
        parts[0] += f"; lines: L = {fitted.law.formula}, residuals {100 * fitted.rms:.2g} % of the loss (RMS)"
    flags = dict.fromkeys(fitted.flags.values())
    return ". ".join([*parts, *flags]) + "."


def scaling(data: FigureData) -> Figure:
    """Three panels; a colour, dash and marker for each loop count."""
    figure = Figure(figsize=(2 * COLUMN, 2.6))
    left, middle, right = figure.subplots(1, 3)
    counts = sorted(data.points["loops"].unique())
    palette = Palette([_name(count) for count in counts])
    for axes, panel in ((left, "parameters"), (middle, "tokens")):
        for count in counts:
            _panel(axes, data, panel, count, palette)
        axes.set_xscale("log")
        axes.set(xlabel=_LABELS[panel], ylabel="Loss (nats per token)")
        _x_ticks(axes, data.points.loc[data.points[f"in_{panel}"], panel].to_numpy())
    _residuals(right, data, counts, palette)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=max(1, len(labels)), columnspacing=1.2)
    return figure


def _panel(axes: Axes, data: FigureData, panel: str, count: float, palette: Palette) -> None:
    name = _name(count)
    shown = data.points[data.points[f"in_{panel}"] & (data.points["loops"] == count)]
    marks = {"markersize": 3.4, "markeredgewidth": 0, "alpha": 0.8}
    axes.plot(shown[panel], shown["loss"], palette.marker(name), color=palette.colour(name), label=name, **marks)
    line = data.curves[(data.curves["panel"] == panel) & (data.curves["loops"] == count)]
    axes.plot(line["x"], line["loss"], color=palette.colour(name), linestyle=palette.line(name), linewidth=1.2)


def _residuals(axes: Axes, data: FigureData, counts: list[float], palette: Palette) -> None:
    axes.axhline(0, color=GREY, linewidth=0.8)
    for count in counts:
        name, shown = _name(count), data.points[data.points["loops"] == count]
        marks = {"markersize": 3.4, "markeredgewidth": 0, "alpha": 0.8}
        axes.plot(shown["fitted"], 100 * shown["residual"], palette.marker(name), color=palette.colour(name), **marks)
    axes.set(xlabel="Fitted loss (nats per token)", ylabel="Residual (% of the loss)")


def _x_ticks(axes: Axes, x: np.ndarray) -> None:
    """At the values that were trained, where these are few; powers of ten would leave a narrow ladder without any."""
    values = distinct(x)
    if 2 <= len(values) <= 6:
        axes.set_xticks(values)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _name(count: float) -> str:
    return f"{count:g} loop" if count == 1 else f"{count:g} loops"
