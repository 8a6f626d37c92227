"""The highest learning rate at which an arm trains stably, seed by seed, from the runs of a grid of rates.

A run is unstable if it diverged, if its last logged training loss is not below its first, or if it spikes: a logged
loss, itself a mean over some steps, lies above the lowest one before it by more than `SPIKE` of the first. An arm's
rate is the highest below the first unstable one: a rate that happens to survive above it does not count.
"""

import math
from collections.abc import Sequence

from analysis.runs import StudyResult
from ouro_lab.metrics_log import STABLE_RATE

__all__ = ["SPIKE", "STABLE_RATE", "stable", "stable_rates"]

SPIKE = 0.1


def stable(losses: Sequence[float], state: str) -> bool:
    """Of a finished run. losses: its logged training losses in order. Raises: ValueError where nothing was logged."""
    if state == "diverged":
        return False
    if not losses:
        raise ValueError("train/loss: nothing was logged, so that stability cannot be judged")
    lowest = first = losses[0]
    for loss in losses:
        if not math.isfinite(loss) or loss > lowest + SPIKE * abs(first):
            return False
        lowest = min(lowest, loss)
    return losses[-1] < first


def stable_rates(result: StudyResult, arm: str) -> tuple[dict[int, float], dict[int, str]]:
    """By seed the base-two logarithm of the rate; one octave below the grid where even its lowest is unstable.

    And by seed why there is none: a run that is unfinished, or none that is unstable, so that the grid ends too early.
    """
    grid = sorted(((result.study.get("sweep") or {}).get(arm) or {"grid": []})["grid"])
    found: dict[int, float] = {}
    missing = dict.fromkeys(result.study["seeds"], "its grid of rates is unfinished")
    for seed, runs in result.runs[result.runs["arm"] == arm].groupby("seed"):
        ended = runs[runs["state"].isin(["done", "diverged"])].set_index("lr")
        if seed not in missing or not grid or not set(grid) <= set(ended.index):
            continue
        fine = [stable(_losses(result, ended.loc[lr, "id"]), ended.loc[lr, "state"]) for lr in grid]
        if all(fine):
            missing[seed] = f"still stable at {grid[-1]:g}, where study.lr.grid ends"
            continue
        count = fine.index(False)
        found[int(seed)] = math.log2(grid[count - 1]) if count else math.log2(grid[0]) - 1
        del missing[seed]
    return found, missing


def _losses(result: StudyResult, run_id: str) -> list[float]:
    curves = result.curves
    return curves[(curves["id"] == run_id) & (curves["metric"] == "train/loss")].sort_values("step")["value"].tolist()
