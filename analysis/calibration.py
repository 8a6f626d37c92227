"""A/A calibration: how often the verdicts' own tests tell two halves of one arm apart."""

from dataclasses import asdict
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from analysis.runs import StudyResult
from analysis.samples import arm_sample
from analysis.statistics import split_calibration


def calibrate(result: StudyResult) -> dict[str, Any] | None:
    """Shares of all splits called different, for a study that states `calibration: {arm, metric, size}`.

    None where the study states none, or has fewer than 2 × size finished runs.
    """
    stated = result.study.get("calibration")
    if not stated:
        return None
    values = list(arm_sample(result, stated["arm"], stated["metric"]).values.values())
    if len(values) < 2 * stated["size"]:
        return None
    found = asdict(split_calibration(values, stated["size"]))
    return {**stated, "values": values, **found, "usual": list(usual_shares(stated["size"], found["expected"]))}


@cache
def usual_shares(size: int, alpha: float, draws: int = 2000) -> tuple[float, float]:
    """Between what the paired share lies in 95 of 100 samples of 2 × size equal normal values, simulated.

    The splits of one sample share its values, so that its share is far noisier than that of as many samples.
    """
    values = np.random.default_rng(0).normal(size=(draws, 2 * size))
    halves = [list(half) for half in combinations(range(2 * size), size)]
    others = [[index for index in range(2 * size) if index not in half] for half in halves]
    differences = values[:, halves] - values[:, others]  # [draws, splits, size]
    t = differences.mean(-1) / (differences.std(-1, ddof=1) / np.sqrt(size))
    shares = (np.abs(t) > stats.t.ppf(1 - alpha / 2, size - 1)).mean(1)
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(low), float(high)


def sentence(found: dict[str, Any]) -> str:
    """`10 seeds of looped at accuracy/hops_8: of 252 splits 5 against 5, 3.2 % are called different …`."""
    size = found["size"]
    usual = percent_range(found["usual"])
    unpaired, paired, expected = (100 * found[name] for name in ("unpaired", "paired", "expected"))
    return (
        f"{2 * size} seeds of {found['arm']} at {found['metric']}: of {found['splits']} splits {size} against {size}, "
        f"{unpaired:.1f} % are called different by the unpaired t test and {paired:.1f} % by the paired one; "
        f"a right test calls {expected:.0f} % on average, and {usual} in 95 of 100 such samples."
    )


def percent_range(shares: list[float]) -> str:
    """`0 to 12 %`."""
    return f"{100 * shares[0]:.0f} to {100 * shares[1]:.0f} %"
