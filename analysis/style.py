"""How figures look: one colour and marker per arm, text for a paper's column, the same bytes every time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

# Okabe and Ito (2008), distinguishable with any common colour blindness; yellow left out: too pale on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
LINES = ("-", (0, (4, 1.2)), (0, (1, 0.8)), (0, (6, 1, 1, 1)), (0, (2, 1)), (0, (8, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#6b6b6b"
COLUMN = 3.5  # inches: one column of a two-column paper
FORMATS = ("svg", "pdf", "png")

RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "ouro-lab",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}


class Palette:
    """Colour, dash and marker by an arm's place in its study, so that they agree between figures."""

    def __init__(self, arms: Iterable[str]) -> None:
        self._place = {arm: index for index, arm in enumerate(arms)}

    def colour(self, arm: str) -> str:
        return COLOURS[self._place[arm] % len(COLOURS)]

    def line(self, arm: str) -> Any:
        """Dashes let a curve that lies on another be seen, and tell arms apart in print without colour."""
        rounds, place = divmod(self._place[arm], len(LINES))  # an eighth arm has the first one's colour, not its dash
        return LINES[(place + rounds) % len(LINES)]

    def marker(self, arm: str) -> str:
        rounds, place = divmod(self._place[arm], len(COLOURS))
        return MARKERS[(place + rounds) % len(MARKERS)]


def arm_labels(study: Mapping[str, Any]) -> dict[str, str]:
    """`looped (2⊗3)`."""
    shapes = {name: arm.get("shape") for name, arm in study["arms"].items()}
    return {name: f"{name.replace('_', ' ')} ({shape})" if shape else name for name, shape in shapes.items()}


def save(figure: Figure, folder: Path, name: str, formats: Iterable[str]) -> Path:
    """Writes `name.<format>` without dates; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in formats]
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once for all formats
    empty = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {"Software": None}}
    for path in paths:
        figure.savefig(path, metadata=empty[path.suffix[1:]])
    return paths[0]


def panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(COLUMN, 2.6))
    return figure, figure.subplots()


def legend(axes: Axes) -> None:
    """Above the axes, where it can hide no data; in one column where two would not fit."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = 2 if max(map(len, labels)) <= 27 else 1
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1.0, handlelength=2)
