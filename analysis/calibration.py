"""A/A calibration: how often the verdicts' own tests tell two halves of one arm apart."""

from dataclasses import asdict
from typing import Any

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
    return {**stated, "values": values, **asdict(split_calibration(values, stated["size"]))}


def sentence(found: dict[str, Any]) -> str:
    """`10 seeds of looped at accuracy/hops_8: of 252 splits 5 against 5, 3.2 % are called different …`."""
    size = found["size"]
    unpaired, paired, expected = (100 * found[name] for name in ("unpaired", "paired", "expected"))
    return (
        f"{2 * size} seeds of {found['arm']} at {found['metric']}: of {found['splits']} splits {size} against {size}, "
        f"{unpaired:.1f} % are called different by the unpaired t test and {paired:.1f} % by the paired one; "
        f"a right test calls {expected:.0f} %."
    )
