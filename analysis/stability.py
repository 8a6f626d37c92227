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


def stable_rates(result: StudyResult, arm: str) -> dict[int, float]:
    """By seed the base-two logarithm of the rate; one octave below the grid where even its lowest is unstable.

    Seeds with an unfinished run are left out. A rate at the top of the grid is a lower bound.
    """
    grid = sorted(((result.study.get("sweep") or {}).get(arm) or {"grid": []})["grid"])
    found: dict[int, float] = {}
    for seed, runs in result.runs[result.runs["arm"] == arm].groupby("seed"):
        ended = runs[runs["state"].isin(["done", "diverged"])].set_index("lr")
        if not grid or not set(grid) <= set(ended.index):
            continue
        fine = [stable(_losses(result, ended.loc[lr, "id"]), ended.loc[lr, "state"]) for lr in grid]
        count = fine.index(False) if False in fine else len(grid)
        found[int(seed)] = math.log2(grid[count - 1]) if count else math.log2(grid[0]) - 1
    return found


def _losses(result: StudyResult, run_id: str) -> list[float]:
    curves = result.curves
    return curves[(curves["id"] == run_id) & (curves["metric"] == "train/loss")].sort_values("step")["value"].tolist()
