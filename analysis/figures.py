"""The figures of a study: every seed shown, the mean bold, floors dashed."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from analysis.curves import AXES, curves, wanted_curves
from analysis.exit_figure import QUALITIES, of_study, pareto
from analysis.runs import StudyResult
from analysis.samples import shown_arms, shown_runs
from analysis.style import COLUMN, FORMATS, GREY, RC, Palette, arm_labels, legend, panel, save
from analysis.verdict import Verdict
from analysis.wording import capital, metric_words


@dataclass(frozen=True)
class Drawn:
    """A figure on disk. group: figures that show the same with another x-axis share it; option: which axis."""

    path: Path
    caption: str
    kind: str
    group: str = ""
    option: str = ""


def draw_all(
    result: StudyResult, verdicts: Mapping[str, Verdict], folder: Path, formats: Iterable[str] = FORMATS
) -> list[Drawn]:
    """Every figure that the study's records allow, in the order of the report."""
    formats = tuple(formats)
    drawn = []

    def keep(figure: Figure | None, name: str, caption: str, kind: str, group: str = "", option: str = "") -> None:
        if figure is not None:
            drawn.append(Drawn(save(figure, folder, name, formats), caption, kind, group, option))

    with mpl.rc_context(RC):
        keep(contrasts(verdicts), "contrasts", _contrast_caption(verdicts), "contrasts")
        for metric in wanted_curves(result):
            what = capital(metric_words(metric))
            caption = f"{what} while training: thin lines are seeds, the bold line their mean; × marks a divergence."
            for x in AXES:
                name = f"curves_{_file(metric)}_{x}"
                keep(curves(result, metric, x), name, caption, "curves", f"curves_{_file(metric)}", x)
        prefix, pattern = patterns(result)
        what = metric_words(prefix.rstrip("_")).split(",")[0]
        caption = f"Final test {what} by difficulty: every seed, and the mean as a line."
        keep(difficulty(result, prefix) if prefix else None, "difficulty", caption, "difficulty")
        what = metric_words(pattern.replace("_loop{t}", ""))
        caption = f"Final test {what}, read out after each loop: every seed, and the mean as a line."
        keep(loops(result, pattern) if pattern else None, "loops", caption, "loops")
        exits = of_study(result)
        for quality in QUALITIES if exits is not None else ():
            if quality in exits:
                caption = f"Final test {metric_words(quality)} of exit rules at equal mean loops; mean over seeds."
                keep(pareto(exits, quality), f"exits_{quality}", caption, "exits")
        caption = "Final value by learning rate: every seed, the mean as a line, the chosen rate ringed."
        keep(rates(result), "rates", caption, "rates")
    return drawn


def difficulty(result: StudyResult, prefix: str) -> Figure | None:
    """`final/<prefix><level>` by level."""
    levels = levels_of(result.runs, re.compile(rf"final/{re.escape(prefix)}(\w+)"))
    label = capital(prefix.rstrip("_").split("/")[-1].replace("_", " "))
    ylabel = capital(metric_words(prefix.rsplit("/", 1)[0]))
    return _levels(result, levels, lambda level: f"final/{prefix}{level}", label, ylabel, prefix)


def loops(result: StudyResult, pattern: str) -> Figure | None:
    """`final/<pattern>` with {t} the loop, one-based."""
    before, after = (re.escape(part) for part in pattern.split("{t}"))
    levels = levels_of(result.runs, re.compile(rf"final/{before}(\d+){after}"))
    if len(levels) < 2:
        return None
    ylabel = capital(metric_words(pattern.replace("_loop{t}", "")))
    bare = pattern.replace("_loop{t}", "")
    return _levels(result, levels, lambda level: f"final/{pattern.format(t=level)}", "Loop", ylabel, bare)


def contrasts(verdicts: Mapping[str, Verdict]) -> Figure | None:
    """Forest plot: seeds as points, the mean with the interval that decides, the bound."""
    shown = [verdict for verdict in verdicts.values() if verdict.n and not verdict.refused]
    if not shown:
        return None
    figure = Figure(figsize=(COLUMN, 0.75 + 0.5 * len(shown)))
    axes = figure.subplots()
    for row, verdict in enumerate(shown):
        _forest_row(axes, len(shown) - 1 - row, verdict)
    axes.axvline(0, color="black", linewidth=0.8)
    names = [f"{v.arm.replace('_', ' ')}\n− {v.reference.replace('_', ' ')}" for v in shown]
    axes.set_yticks(range(len(shown) - 1, -1, -1), names)
    metrics = {v.metric for v in shown}
    what = f"Difference in {metric_words(metrics.pop())}" if len(metrics) == 1 else "Difference (unit of each metric)"
    axes.set(ylim=(-0.6, len(shown) - 0.4), xlabel=what)
    axes.grid(axis="y", visible=False)
    return figure


def rates(result: StudyResult) -> Figure | None:
    """The sweep's metric by learning rate; diverged runs as crosses at the upper edge."""
    sweep = result.study.get("sweep") or {}
    if not any(not sweep_values(result, arm).empty for arm in sweep):
        return None
    figure, axes = panel()
    palette, labels = Palette(result.study["arms"]), arm_labels(result.study)
    for arm, content in sweep.items():
        found = sweep_values(result, arm)
        colour, marker = palette.colour(arm), palette.marker(arm)
        axes.plot(found["lr"], found["value"], marker, color=colour, markersize=3, alpha=0.6)
        means = found.groupby("lr")["value"].mean()
        axes.plot(means.index, means, color=colour, linestyle=palette.line(arm), label=labels[arm])
        lost = found[found["state"] == "diverged"]
        axes.plot(lost["lr"], [0.97] * len(lost), "x", color=colour, markersize=5, transform=axes.get_xaxis_transform())
        best = content.get("best")
        if best in means.index:
            axes.plot(best, means[best], "o", color=colour, markersize=10, fillstyle="none", markeredgewidth=1.2)
    axes.set_xscale("log")
    grid = sorted({lr for content in sweep.values() for lr in content["grid"]})
    axes.set_xticks(grid, [f"{lr:g}" for lr in grid], rotation=45 if len(grid) > 6 else 0)
    axes.xaxis.set_minor_formatter(NullFormatter())
    metric = next(iter(sweep.values()))["metric"]
    axes.set(xlabel="Learning rate", ylabel=f"Final {metric_words(metric)}")
    legend(axes)
    return figure


def sweep_values(result: StudyResult, arm: str) -> pd.DataFrame:
    """Ended runs of an arm's sweep: lr, seed, state, value (not a number where diverged)."""
    content = result.study["sweep"][arm]
    runs = result.runs
    runs = runs[(runs["arm"] == arm) & runs["seed"].isin(content["seeds"]) & runs["state"].isin(["done", "diverged"])]
    found = runs[["lr", "seed", "state"]].assign(value=runs.get(f"final/{content['metric']}", np.nan))
    return found.sort_values(["lr", "seed"], ignore_index=True)


def _levels(
    result: StudyResult, levels: list[str], column: Callable[[str], str], xlabel: str, ylabel: str, floors: str
) -> Figure | None:
    """Per arm every seed as a point and the mean as a line, over levels that are categories."""
    runs = shown_runs(result)
    runs = runs[runs["state"] == "done"]
    if runs.empty or not levels:
        return None
    figure, axes = panel()
    arms = shown_arms(result, runs)
    for index, arm in enumerate(arms):
        rows = runs[runs["arm"] == arm].to_dict("records")
        table = np.array([[float(row.get(column(level), np.nan)) for level in levels] for row in rows])
        _level_line(axes, result, arm, np.arange(len(levels)) + 0.12 * (index - (len(arms) - 1) / 2), table)
    stated = result.study.get("floors") or {}
    known = [stated.get(column(level).removeprefix("final/")) or stated.get(floors) for level in levels]
    for index, floor in enumerate(known):
        if floor:
            label = "floor" if not any(known[:index]) else None
            axes.plot([index - 0.4, index + 0.4], [floor["value"]] * 2, "--", color=GREY, linewidth=1, label=label)
    axes.set_xticks(range(len(levels)), [level.replace("_", " ") for level in levels])
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(axis="x", visible=False)
    legend(axes)
    return figure


def _level_line(axes: Axes, result: StudyResult, arm: str, at: np.ndarray, table: np.ndarray) -> None:
    """table [seeds, levels]; an arm with a single level (one loop) has a bar for its mean."""
    palette, label = Palette(result.study["arms"]), arm_labels(result.study)[arm]
    colour, used = palette.colour(arm), np.isfinite(table).all(axis=0)
    for row in table:
        axes.plot(at, row, palette.marker(arm), color=colour, markersize=2.8, alpha=0.6, markeredgewidth=0)
    style = {"color": colour, "linestyle": palette.line(arm), "linewidth": 1.3}
    style |= {"marker": "_", "markersize": 9} if used.sum() == 1 else {}
    axes.plot(at[used], table[:, used].mean(axis=0), label=f"{label}, n = {len(table)}", **style)


def _forest_row(axes: Axes, y: float, verdict: Verdict) -> None:
    differences = [a - r for a, r in zip(verdict.arm_values, verdict.reference_values, strict=True)]
    axes.plot(differences, [y - 0.16] * len(differences), "o", color=GREY, markersize=2.8, markeredgewidth=0, alpha=0.8)
    colour = "black" if verdict.primary else "#0072B2"
    if verdict.interval_adjusted:
        axes.plot(verdict.interval_adjusted, [y, y], color=colour, linewidth=1.4, solid_capstyle="butt")
    axes.plot(verdict.effect, y, "D" if verdict.primary else "o", color=colour, markersize=4.5)
    if verdict.rule == "equivalence":
        band = {"color": "#009E73", "alpha": 0.15, "linewidth": 0}
        axes.fill_betweenx([y - 0.32, y + 0.32], -verdict.bound, verdict.bound, **band)
    elif verdict.rule == "superiority":
        bound = verdict.bound if verdict.higher_is_better else -verdict.bound
        axes.plot([bound, bound], [y - 0.32, y + 0.32], "--", color="#D55E00", linewidth=1.1)


def _contrast_caption(verdicts: Mapping[str, Verdict]) -> str:
    rules = {verdict.rule for verdict in verdicts.values()}
    parts = ["Differences between arms: seeds (grey), their mean and the interval that decides (black: primary)."]
    parts += ["Dashed: the bound that a superiority must exceed."] if "superiority" in rules else []
    parts += ["Green: the range that counts as equal."] if "equivalence" in rules else []
    return " ".join(parts)


def patterns(result: StudyResult) -> tuple[str, str]:
    """What the study calls its difficulty levels and its loops; empty where it has none."""
    wanted = result.study.get("figures") or {}
    return wanted.get("difficulty") or "", wanted.get("loops") or ""


def levels_of(runs: pd.DataFrame, pattern: re.Pattern[str]) -> list[str]:
    found = {match.group(1) for name in runs.columns if (match := pattern.fullmatch(name)) and runs[name].notna().any()}
    return sorted(found, key=lambda text: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)])


def _file(metric: str) -> str:
    return metric.replace("/", "-")
