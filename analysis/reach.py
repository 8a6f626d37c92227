"""How far each number of loops follows a chain, and whether that grows by a factor or by an amount a loop (C26)."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from analysis import statistics, wording
from analysis.blocks import Block, Heading, Picture, Table, Text
from analysis.figures import Drawn, levels_of
from analysis.runs import StudyResult
from analysis.samples import main_runs
from analysis.style import COLOURS, FORMATS, GREY, RC, legend, panel, save

NOTE = (
    "Reach: the most steps up to which every number of steps is answered with at least this accuracy, with the part of "
    "the next one by which the accuracy has not yet fallen below it. Growth is fitted per seed to log reach, once as a "
    "factor and once as an amount per loop; runs that follow all steps asked for say only that they reach that far, "
    "and are left out. The construction of the paper needs ⌈log₂ D⌉ + 1 loops for D steps."
)


@dataclass(frozen=True)
class Reach:
    """values: loops → seed → steps; ends: the most that is asked for, which a run that follows all of it is put at."""

    at_least: float
    ends: int
    values: Mapping[int, Mapping[int, float]]

    def measured(self, loops: int) -> dict[int, float]:
        """Of runs whose reach is seen: it neither is nothing nor ends where the questions end."""
        return {seed: x for seed, x in self.values[loops].items() if 0 < x < self.ends}


@dataclass(frozen=True)
class Growth:
    """Per seed the factor by which reach grows with a loop, and RMS of log reach left by either form."""

    factors: dict[int, float]
    by_factor: dict[int, float]
    by_amount: dict[int, float]

    @property
    def factor(self) -> float:
        """The geometric mean over seeds."""
        return float(np.exp(np.mean(np.log(list(self.factors.values())))))

    def __str__(self) -> str:
        logs, spread = [float(np.log2(x)) for x in self.factors.values()], ""
        if len(logs) > 1:
            spread = f" [{', '.join(f'{2**x:.2f}' for x in statistics.mean_of(logs).interval())}]"
        wins = sum(self.by_factor[seed] < self.by_amount[seed] for seed in self.factors)
        better = {
            len(logs): "A factor describes it better in every seed",
            0: "An amount describes it better in every seed",
        }
        what = better.get(wins, f"The seeds do not tell a factor from an amount ({wins} of {len(logs)} say a factor)")
        factor, amount = (float(np.mean(list(each.values()))) for each in (self.by_factor, self.by_amount))
        return (
            f"Reach grows {self.factor:.2f} ×{spread} with a loop (n = {len(logs)}). {what}: RMS of log reach "
            f"{factor:.3f} by a factor, {amount:.3f} by an amount, in the mean."
        )


def reach(result: StudyResult) -> Reach | None:
    """By `figures.reach`: {metric: accuracy/hops_, at_least: 0.9, arms: those that loop the same layers}."""
    wanted = (result.study.get("figures") or {}).get("reach")
    if not wanted:
        return None
    levels = levels_of(result.runs, re.compile(rf"final/{re.escape(wanted['metric'])}(\d+)"))
    columns = [f"final/{wanted['metric']}{level}" for level in levels]
    values: dict[int, dict[int, float]] = {}
    for arm in wanted["arms"]:
        loops = int(result.study["arms"][arm]["shape"].rpartition("⊗")[2])
        runs = main_runs(result, arm)
        for _, run in runs[runs["state"] == "done"].iterrows():
            values.setdefault(loops, {})[int(run["seed"])] = steps(
                [int(level) for level in levels], run[columns].to_numpy(float), wanted["at_least"]
            )
    return Reach(wanted["at_least"], int(levels[-1]), values) if levels and values else None


def steps(levels: list[int], accuracy: np.ndarray, at_least: float) -> float:
    """Up to where accuracy, straight between levels, stays at `at_least` or over it; 0 if not even at the first."""
    below = np.flatnonzero(~(accuracy >= at_least))
    if not len(below):
        return float(levels[-1])
    if below[0] == 0:
        return 0.0
    low, high = accuracy[below[0] - 1], accuracy[below[0]]
    return levels[below[0] - 1] + (low - at_least) / (low - high) * (levels[below[0]] - levels[below[0] - 1])


def growth(found: Reach) -> Growth | None:
    """None where fewer than three numbers of loops have a reach that is seen: two points lie on either curve."""
    seen = {loops: found.measured(loops) for loops in sorted(found.values)}
    factors, by_factor, by_amount = {}, {}, {}
    for seed in sorted({seed for values in seen.values() for seed in values}):
        points = [(loops, values[seed]) for loops, values in seen.items() if seed in values]
        if len(points) < 3:
            continue
        loops, log = np.array([t for t, _ in points], float), np.log([x for _, x in points])
        slope, start = np.polyfit(loops, log, 1)
        factors[seed] = float(np.exp(slope))
        by_factor[seed] = float(np.sqrt(np.mean((log - start - slope * loops) ** 2)))
        by_amount[seed] = float(np.sqrt(np.mean(_by_amount(loops, log) ** 2)))
    return Growth(factors, by_factor, by_amount) if factors else None


def section(result: StudyResult, folder: Path, formats: Iterable[str] = FORMATS) -> list[Block]:
    """Table, figure and growth; empty for a study that asks for none, or where no run has ended."""
    found = reach(result)
    if found is None:
        return []
    rows = []
    for loops in sorted(found.values):
        values = list(found.values[loops].values())
        seen = ", ".join(f"≥ {found.ends}" if x == found.ends else wording.value(x, 2) for x in values)
        least = "≥ " if max(values) == found.ends else ""
        rows.append((str(loops), seen, f"{least}{wording.value(float(np.mean(values)), 2)}", str(2 ** (loops - 1))))
    header = ("loops", f"reach at accuracy ≥ {found.at_least:g}, by seed", "mean", "the construction's")
    grown = growth(found)
    said = str(grown) if grown else "Fewer than three numbers of loops have a reach that is seen: no growth to fit."
    with mpl.rc_context(RC):
        path = save(_figure(found, grown), folder, "reach", formats)
    picture = Picture((Drawn(path, "Steps followed by number of loops: every seed, and the mean as a line.", "reach"),))
    return [Heading("Reach"), Text(said), picture, Table(header, rows, left=(1,)), Text(NOTE, "note")]


def _by_amount(loops: np.ndarray, log: np.ndarray) -> np.ndarray:
    """What a straight line leaves of log reach, by least squares on the logarithm.

    Its ends are what is fitted, as logarithms: a line through them stays positive between.
    """
    from scipy.optimize import least_squares

    share = (loops - loops[0]) / (loops[-1] - loops[0])

    def left(ends: np.ndarray) -> np.ndarray:
        first, last = np.exp(ends)
        return np.log(first + (last - first) * share) - log

    return left(least_squares(left, [log[0], log[-1]]).x)


def _figure(found: Reach, grown: Growth | None) -> Figure:
    figure, axes = panel()
    loops = sorted(found.values)
    for t in loops:
        for x in found.values[t].values():
            style = {"color": COLOURS[0], "markersize": 3.2, "alpha": 0.6, "markeredgewidth": 0}
            axes.plot(t, x, "o" if x < found.ends else "^", **style)
    means = [float(np.mean(list(found.values[t].values()))) for t in loops]
    axes.plot(loops, means, color=COLOURS[0], label="trained (▲: as far as was asked)")
    axes.plot(loops, [2 ** (t - 1) for t in loops], "--", color=GREY, linewidth=1, label="construction, 2 to the T − 1")
    axes.axhline(found.ends, color=GREY, linewidth=0.6, linestyle=":")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(loops)
    if grown:
        axes.set_title(f"{grown.factor:.2f} × with a loop")
    axes.set(xlabel="Loops", ylabel=f"Steps at accuracy ≥ {found.at_least:g}")
    legend(axes)
    return figure
