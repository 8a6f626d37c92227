"""Cost curves: a step's time and peak memory over loops, vocabulary, length and width, with the prediction beside each.

One axis varies at a time around `BASE`. Predicted time is the analytic FLOPs at the product peak of this call, so a
step's is higher; predicted memory is `activation_bytes` and the gradients, without the loss's one chunk of logits.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from ouro_lab.bench import memory
from ouro_lab.bench.machine import fastest_gemm
from ouro_lab.bench.step import Spec, Step, ours
from ouro_lab.bench.timing import Effort, seconds
from ouro_lab.compute.memory import activation_bytes

BASE = Spec(
    layers=2, loops=4, width=256, heads=4, vocab_size=4096, batch=4, length=256, stage_one=True, dtype="float32"
)
AXES: dict[str, tuple[int, ...]] = {
    "loops": (1, 2, 4, 8, 16),
    "vocab_size": (256, 1024, 4096, 16_384, 49_152),
    "length": (64, 256, 1024, 4096),
    "width": (64, 128, 256, 512, 1024),
}
LABELS = {"loops": "loops T", "vocab_size": "vocabulary V", "length": "length S", "width": "width d"}
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Point:
    """One measured step; memory in bytes, None where it cannot be measured."""

    axis: str
    value: int
    seconds: float
    predicted_seconds: float
    peak_bytes: int | None
    predicted_bytes: float


def draw_curves(folder: Path, effort: Effort, axes: Mapping[str, tuple[int, ...]] = AXES, base: Spec = BASE) -> Path:
    """Measures every point, writes `cost_curves.csv` and the plot into `folder`; returns the table's path."""
    _, peak = fastest_gemm(getattr(torch, base.dtype))
    points = []
    for point in measured(axes, base, peak, effort):
        points.append(point)
        print(progress(point), flush=True)
    table = write(points, folder)
    print(f"{table} and {plot(points, folder)}")
    return table


def measured(axes: Mapping[str, tuple[int, ...]], base: Spec, peak: float, effort: Effort) -> Iterator[Point]:
    """The points axis by axis; a shape on two axes (the base) is measured once."""
    known: dict[Spec, Point] = {}
    for axis, values in axes.items():
        for value in values:
            spec = replace(base, **{axis: value})
            if spec not in known:
                known[spec] = measure(axis, value, spec, peak, effort)
            yield replace(known[spec], axis=axis, value=value)


def measure(axis: str, value: int, spec: Spec, peak: float, effort: Effort) -> Point:
    step = ours(spec)
    for _ in range(effort.warm):
        step()
    took = median(seconds(step) for _ in range(effort.rounds))
    held = memory.peak_bytes("ours", spec) if memory.measurable() else None
    return Point(axis, value, took, flops(step) / peak, held, predicted_bytes(step))


def flops(step: Step) -> float:
    """Of the step, as the attention that was chosen computes them: plain works out the full square."""
    cost = step.spec.cost
    causal = _attention(step) == "sdpa" and cost.flops is not None
    return step.spec.tokens * (cost.flops if causal and cost.flops else cost.flops_full).total


def predicted_bytes(step: Step) -> float:
    """Kept activations and the gradients of all weights, in float32."""
    spec = step.spec
    config = replace(spec.model, attention=_attention(step))
    kept = activation_bytes(config, spec.length, spec.batch, FLOAT, spec.supervised)
    return kept + FLOAT * spec.cost.parameters.total


def write(points: list[Point], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cost_curves.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(asdict(points[0])))
        table.writeheader()
        table.writerows(asdict(point) for point in points)
    return path


def plot(points: list[Point], folder: Path) -> Path:
    """Time above, memory below, one column per axis; dots are measured, lines predicted."""
    from analysis import style

    axes = list(dict.fromkeys(point.axis for point in points))
    settings: Any = style.RC  # of its keys only some are used
    with style.mpl.rc_context(settings):
        figure = style.Figure(figsize=(2.1 * len(axes), 3.6))
        panels = figure.subplots(2, len(axes), squeeze=False, sharex="col")
        for column, axis in enumerate(axes):
            some = [point for point in points if point.axis == axis]
            _panel(panels[0][column], some, "seconds", 1.0)
            _panel(panels[1][column], some, "bytes", 2.0**20)
            panels[1][column].set_xlabel(LABELS[axis])
        panels[0][0].set_ylabel("seconds per step")
        panels[1][0].set_ylabel("peak memory, MiB")
        style.legend(panels[0][0])
        return style.save(figure, folder, "cost_curves", ("svg", "png"))


def progress(point: Point) -> str:
    held = "" if point.peak_bytes is None else f"{point.peak_bytes / 2**20:8.0f} MiB"
    predicted = f"{1e3 * point.predicted_seconds:.1f} ms, {point.predicted_bytes / 2**20:.0f} MiB"
    return f"{point.axis:10s} {point.value:6d}  {1e3 * point.seconds:9.1f} ms {held}   predicted {predicted}"


def _panel(panel: Any, points: list[Point], quantity: str, unit: float) -> None:
    from analysis.style import COLOURS

    values = [point.value for point in points]
    found = [getattr(point, "peak_bytes" if quantity == "bytes" else quantity) for point in points]
    predicted = [getattr(point, f"predicted_{quantity}") / unit for point in points]
    panel.plot(values, [None if y is None else y / unit for y in found], "o", color=COLOURS[0], label="measured")
    panel.plot(values, predicted, "-", color=COLOURS[1], label="predicted")
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_yscale("log")


def _attention(step: Step) -> str:
    return next(iter(getattr(step.model, "settled", {}).values()), "plain")
