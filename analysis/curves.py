"""Learning curves: a metric against steps, tokens, FLOPs or seconds."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from analysis.runs import StudyResult
from analysis.samples import shown_arms, shown_runs
from analysis.style import GREY, Palette, arm_labels, legend, panel
from analysis.wording import capital, compact, flops, metric_words

AXES = {
    "steps": "Optimiser steps",
    "tokens": "Training tokens",
    "flops": "Training compute",
    "seconds": "Time in training steps (s)",
}


def wanted_curves(result: StudyResult) -> list[str]:
    """The metrics that the study asks for, else the validation loss; those that were recorded."""
    wanted = (result.study.get("figures") or {}).get("curve") or ["val/loss"]
    recorded = set(result.curves["metric"])
    return [metric for metric in ([wanted] if isinstance(wanted, str) else wanted) if metric in recorded]


def curves(result: StudyResult, metric: str, x: str = "steps") -> Figure | None:
    """A metric against steps, tokens, FLOPs or seconds; a diverged run's line ends in a cross."""
    shown = shown_runs(result)
    points = result.curves[(result.curves["metric"] == metric) & np.isfinite(result.curves["value"])]
    if points[points["id"].isin(shown["id"])].empty:
        return None
    figure, axes = panel()
    for arm in shown_arms(result, shown):
        _arm_curves(axes, result, points, shown[shown["arm"] == arm], x)
    _floor(axes, result, metric)
    axes.set(xlabel=AXES[x], ylabel=capital(metric_words(metric)), xlim=(0, None))
    _x_ticks(axes, x)
    legend(axes)
    return figure


def _arm_curves(axes: Axes, result: StudyResult, points: pd.DataFrame, runs: pd.DataFrame, x: str) -> None:
    arm = runs["arm"].iloc[0]
    palette = Palette(result.study["arms"])
    colour, tables = palette.colour(arm), []
    for run in runs.itertuples():
        mine = points[points["id"] == run.id]
        if mine.empty:
            continue
        xs = _positions(result, run, mine["step"].to_numpy(float), x)
        axes.plot(xs, mine["value"], color=colour, linewidth=0.6, alpha=0.55)
        if run.state == "diverged":
            axes.plot(xs[-1], mine["value"].iloc[-1], "x", color=colour, markersize=6)
        elif run.state != "failed":
            tables.append(pd.DataFrame({"x": xs, "y": mine["value"].to_numpy()}, index=mine["step"]))
    if tables:  # the mean only where every run has a point: no step in it comes from a run that ends there
        mean = sum(table.reindex(tables[0].index) for table in tables) / len(tables)
        label = f"{arm_labels(result.study)[arm]}, n = {len(tables)}"
        axes.plot(mean["x"], mean["y"], color=colour, linestyle=palette.line(arm), label=label)


def _positions(result: StudyResult, run: Any, steps: np.ndarray, x: str) -> np.ndarray:
    """Steps in the unit of the axis. Tokens and FLOPs per step are constants of an arm."""
    cost = result.study["arms"][run.arm]["cost"]
    if x == "seconds":
        return _seconds(result, run, steps)
    per_step = {"steps": 1.0, "tokens": cost["tokens"] / cost["steps"], "flops": cost["training_flops"] / cost["steps"]}
    return steps * per_step[x]


def _seconds(result: StudyResult, run: Any, steps: np.ndarray) -> np.ndarray:
    """Time spent in training steps (validation and interruptions left out), from the measured time per step."""
    mine = result.curves[(result.curves["id"] == run.id) & (result.curves["metric"] == "perf/step_seconds")]
    if mine.empty:
        return steps * (run.seconds / run.steps)
    at = np.concatenate([[0.0], mine["step"].to_numpy(float)])
    spent = np.concatenate([[0.0], np.cumsum(np.diff(at) * mine["value"].to_numpy())])
    beyond = np.maximum(steps - at[-1], 0) * mine["value"].iloc[-1]
    return np.interp(steps, at, spent) + beyond


def _x_ticks(axes: Axes, x: str) -> None:
    """Five numbers; the FLOPs' unit goes to the label."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    scale = 1.0
    if x == "flops":
        ends = [float(line.get_xdata()[-1]) for line in axes.lines if len(line.get_xdata()) > 1]
        largest = max(ends, default=1.0)
        unit = flops(largest).split(" ")[1]
        scale = 1000.0 ** (" kMGTPEZ".index(unit[0]) if unit != "FLOP" else 0)
        axes.set_xlabel(f"{AXES[x]} ({unit})")
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    form = {"tokens": compact, "flops": lambda value: f"{value / scale:g}"}.get(x, lambda value: f"{value:,g}")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))


def _floor(axes: Axes, result: StudyResult, metric: str) -> None:
    floor = (result.study.get("floors") or {}).get(re.sub(r"^(val|final|train)/", "", metric))
    if floor:
        axes.axhline(floor["value"], linestyle="--", color=GREY, linewidth=1, label=f"floor {floor['value']:.3g}")
