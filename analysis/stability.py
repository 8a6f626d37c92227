"""How much a learning rate that is too large costs an arm, seed by seed, from the runs of a grid of rates.

The sensitivity to the learning rate of Wortsman et al. 2023 (arXiv 2309.14322, §2): the mean over a grid that is even
in log rate of min(ℓ(rate), ℓ₀) − ℓ*, where ℓ is the final validation loss, ℓ₀ the loss at initialisation and ℓ* the
lowest ℓ of the grid; in nats. A run that diverged counts ℓ₀. It needs no threshold that says what a spike is.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from analysis.runs import StudyResult
from ouro_lab.metrics_log import LR_SENSITIVITY

__all__ = ["LR_SENSITIVITY", "lr_sensitivity", "same_grid"]


def lr_sensitivity(result: StudyResult, arm: str) -> tuple[dict[int, float], dict[int, str]]:
    """By seed its value, or why there is none.

    ℓ₀ is the training loss of the lowest rate as it was first logged, by when that rate has hardly learned.
    """
    grid = sorted(((result.study.get("sweep") or {}).get(arm) or {"grid": []})["grid"])
    found: dict[int, float] = {}
    missing = dict.fromkeys(result.study["seeds"], "its grid of rates is unfinished")
    for seed, runs in result.runs[result.runs["arm"] == arm].groupby("seed"):
        ended = runs[runs["state"].isin(["done", "diverged"])].set_index("lr")
        if seed not in missing or not grid or not set(grid) <= set(ended.index):
            continue
        initial = _curve(result, ended.loc[grid[0], "id"], "train/loss")
        if not initial:
            missing[seed] = f"no training loss was logged at {grid[0]:g}"
            continue
        losses = [
            min(_curve(result, ended.loc[lr, "id"], "val/loss")[-1], initial[0])
            if ended.loc[lr, "state"] == "done"
            else initial[0]
            for lr in grid
        ]
        found[int(seed)] = sum(losses) / len(losses) - min(losses)
        del missing[seed]
    return found, missing


def same_grid(study: Mapping[str, Any], metric: str, arms: Iterable[str]) -> bool:
    """Whether the metric is read off one grid of rates for all of `arms`, so that no rate of theirs was chosen."""
    grids = [(study.get("sweep") or {}).get(arm, {}).get("grid") for arm in arms]
    return metric == LR_SENSITIVITY and all(grid == grids[0] for grid in grids)


def _curve(result: StudyResult, run_id: str, metric: str) -> list[float]:
    rows = result.curves[(result.curves["id"] == run_id) & (result.curves["metric"] == metric)]
    return rows.sort_values("step")["value"].tolist()
