"""The scaling laws of a study that names them (`figures.scaling`): its runs as points, fits, and what they support."""

from collections.abc import Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.blocks import Block, Heading, Picture, Table, Text
from analysis.runs import StudyResult
from analysis.scaling import figure
from analysis.scaling.catalogue import LAWS
from analysis.scaling.fits import Fit, fit
from analysis.scaling.held_out import LoopTerm, loop_term_supported
from analysis.scaling.laws import Law
from analysis.scaling.loops_together import loops_together
from analysis.scaling.points import SAME, Points
from analysis.scaling.uncertainty import bootstrap
from analysis.style import FORMATS

DRAWS = 300
NOTE = (
    "Fitted by variable projection to the test loss of finished runs, all weighing the same; intervals by bootstrap "
    "over runs. Loop term: what it takes off the error (RMS of log loss) on the largest size and the largest depth, "
    "held out; it counts only where both intervals lie above 0. AIC compares laws of the same points."
)
TOGETHER = (
    "Each loop's law, fitted to its training loss, weighted by its exit probability (a mean over runs), against the "
    "loss that training minimises: all over the last tenth of the steps."
)


def laws(result: StudyResult) -> list[Law]:
    """Those that the study names.

    Raises:
        ValueError: a law that is not in the catalogue.
    """
    names = (result.study.get("figures") or {}).get("scaling") or []
    for name in names:
        if name not in LAWS:
            raise ValueError(f"study.figures.scaling = {name}: no such law; valid: {', '.join(LAWS)}")
    return [LAWS[name] for name in names]


def points(result: StudyResult, every_loop: bool = False) -> Points:
    """A point per finished run, its last loop's loss; or one per run and loop. A run is a trunk.

    Raises:
        ValueError: no run has finished, or one lacks its loss.
    """
    rows = [row for _, run in result.finished.iterrows() for row in _rows(run, every_loop)]
    if not rows:
        raise ValueError(f"study {result.name}: no finished run to fit a law to")
    return Points.of(pd.DataFrame(rows))


def section(result: StudyResult, folder: Path, formats: Iterable[str] = FORMATS) -> list[Block]:
    """Fits, their table and a figure each; empty for a study that names no law."""
    wanted = laws(result)
    if not wanted or result.finished.empty:
        return []
    fits = [found for law in wanted for found in fitted(law, result)]
    shown = [(i, one) for i, one in enumerate(fits, 1) if one.values and one.points.trunks > len(one.law.names)]
    drawn = [figure.draw(one, folder, f"scaling_{i}_{one.law.name}", formats) for i, one in shown]
    pictures = [Picture((one,)) for one in drawn]
    return [Heading("Scaling laws"), _table(fits), Text(NOTE, "note"), *_together(fits, result), *pictures]


def fitted(law: Law, result: StudyResult) -> list[Fit]:
    """A fit for every combination of the law's constants that has the most distinct points, else its refusal.

    Raises:
        ValueError: no run has finished, or one lacks its loss.
    """
    groups = list(_groups(law, points(result, "trained_loops" in law.constant)))
    found = [bootstrap(fit(law, group), DRAWS) for group in groups]
    usable = [one for one in found if not one.refused]
    return usable or [found[int(np.argmax([len(group) for group in groups]))]]


def _groups(law: Law, data: Points) -> Iterable[Points]:
    if not law.constant:
        yield data
        return
    for values in product(*(data.values(name) for name in law.constant)):
        near = [abs(np.log(data.variable(n) / value)) <= SAME for n, value in zip(law.constant, values, strict=True)]
        mask = np.logical_and.reduce(near)
        if mask.any():
            yield data.take(mask)


def _rows(run: pd.Series, every_loop: bool) -> list[dict[str, object]]:
    shape = str(run["id"]), run["cost/parameters"], run["cost/body_parameters"], run["cost/tokens"]
    trained = len([name for name in run.index if name.startswith("final/loss_loop") and np.isfinite(run[name])])
    if not trained:
        raise ValueError(f"run {run['id']}: no final/loss_loop1; a scaling law needs every loop's loss")
    losses = (
        {t: run[f"final/loss_loop{t}"] for t in range(1, trained + 1)} if every_loop else {trained: run["final/loss"]}
    )
    return [
        {
            "trunk": shape[0],
            "parameters_once": shape[1] - shape[2],
            "parameters_recurring": shape[2],
            "tokens": shape[3],
            "loops": loop,
            "trained_loops": trained,
            "loss": loss,
        }
        for loop, loss in losses.items()
    ]


def constants(one: Fit) -> str:
    """Which points a fit is of: what its law holds constant, and where."""
    held = [f"{name.replace('_', ' ')} {one.points.variable(name)[0]:,.0f}" for name in one.law.constant]
    return ", ".join(held) or "all"


def loop_term(one: Fit) -> LoopTerm:
    """Whether the fitted law's loop term is worth having, by as many resamples as the fit's intervals."""
    return loop_term_supported(one.law, one.points, DRAWS)


def _table(fits: list[Fit]) -> Table:
    header = ("law", "points of", "runs", "values", "AIC", "RMS of log loss", "R²", "loop term")
    return Table(header, [_row(one) for one in fits], left=(0, 1, 3, 7))


def _together(fits: list[Fit], result: StudyResult) -> list[Block]:
    """What the step-wise laws explain together of the loss minimised, a row per trained depth."""
    stepwise = [one for one in fits if one.law.constant == ("trained_loops",)]
    sums = [(one, loops_together(one, result, DRAWS)) for one in stepwise]
    header = ("the loops together", "points of", "mean exits", "explained")
    rows = [(one.law.name, constants(one), together.exits, str(together)) for one, together in sums]
    return [Table(header, rows, left=(0, 1, 2, 3)), Text(TOGETHER, "note")] if rows else []


def _row(one: Fit) -> tuple[str, ...]:
    values = one.refused or "; ".join(f"{name} = {text}" for name, text in one.table().items())
    quality = (f"{one.aic:.1f}", f"{one.rms:.4f}", f"{one.r2:.3f}") if one.values else ("–", "–", "–")
    term = "–" if one.law.nested is None else str(loop_term(one)).split(": ", 1)[1]
    return f"{one.law.name}: {one.law.formula}", constants(one), str(one.points.trunks), values, *quality, term
