"""The values that verdicts rest on: final step, every seed, divergences counted, nothing chosen."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from analysis.runs import StudyResult
from analysis.stability import LR_SENSITIVITY, lr_sensitivity
from ouro_lab.metrics_log import LIMITS, terms


@dataclass(frozen=True)
class ArmSample:
    """An arm's final values of one metric by seed. values: of runs that ended, as measured; diverged runs have none.

    missing: seed → why it has no value and is no divergence either.
    """

    arm: str
    metric: str
    values: dict[int, float]
    diverged: tuple[int, ...]
    missing: dict[int, str]

    @property
    def complete(self) -> bool:
        return not self.missing

    @property
    def expected(self) -> int:
        return len(self.values) + len(self.diverged) + len(self.missing)

    @property
    def mean(self) -> float:
        return sum(self.values.values()) / len(self.values) if self.values else math.nan


def arm_sample(result: StudyResult, arm: str, metric: str) -> ArmSample:
    """Over the seeds that the study states; runs of a learning-rate sweep enter no metric but `LR_SENSITIVITY`."""
    if metric == LR_SENSITIVITY:
        values, missing = lr_sensitivity(result, arm)
        return ArmSample(arm, metric, values, (), missing)
    runs = main_runs(result, arm).set_index("seed")
    finals = {term: runs.get(f"final/{term}", pd.Series(math.nan, runs.index)) for term in terms(metric)}
    values, diverged, missing = {}, [], {}
    for seed in result.study["seeds"]:
        state = runs.loc[seed, "state"] if seed in runs.index else "to do"
        unknown = [term for term, final in finals.items() if seed not in final or not math.isfinite(final[seed])]
        if state == "diverged":
            diverged.append(seed)
        elif state == "done" and not unknown:
            values[seed] = _combined([float(final[seed]) for final in finals.values()])
        else:
            missing[seed] = f"no final/{unknown[0]}" if state == "done" else str(state)
    return ArmSample(arm, metric, values, tuple(diverged), missing)


def _combined(values: list[float]) -> float:
    """Of the values of a metric's terms: the first less the second."""
    return values[0] - sum(values[1:])


def main_runs(result: StudyResult, arm: str | None = None) -> pd.DataFrame:
    runs = result.runs[result.runs["phase"] == "main"]
    return runs if arm is None else runs[runs["arm"] == arm]


def shown_runs(result: StudyResult) -> pd.DataFrame:
    """Runs of the verdict; in a study that only sweeps, those at each arm's chosen rate."""
    main = main_runs(result)
    if len(main) or not result.study.get("sweep"):
        return main
    best = {arm: content.get("best") for arm, content in result.study["sweep"].items()}
    return result.runs[result.runs["lr"] == result.runs["arm"].map(best).astype(float)]


def shown_arms(result: StudyResult, runs: pd.DataFrame) -> list[str]:
    """Arms with a run, in the study's order."""
    return [arm for arm in result.study["arms"] if arm in set(runs["arm"])]


@dataclass(frozen=True)
class PairedSample:
    """Arm and reference on the same seeds.

    A diverged run counts as the metric's floor (what the best shortcut gets without learning the task): dropping it
    would condition the comparison on survival. `survivors` holds the seeds on which neither diverged, so that a verdict
    can demand that both ways of counting agree.
    """

    arm: ArmSample
    reference: ArmSample
    floor: float | None

    @property
    def expected(self) -> int:
        return self.arm.expected

    @property
    def seeds(self) -> list[int]:
        """Present and ended in both arms, and with a value (measured, or the floor of a divergence)."""
        return [seed for seed in sorted([*self.arm.values, *self.arm.diverged]) if self._usable(seed)]

    @property
    def survivors(self) -> list[int]:
        return [seed for seed in self.arm.values if seed in self.reference.values]

    @property
    def diverged(self) -> dict[str, list[int]]:
        return {sample.arm: list(sample.diverged) for sample in (self.arm, self.reference) if sample.diverged}

    @property
    def missing(self) -> dict[str, dict[int, str]]:
        return {sample.arm: sample.missing for sample in (self.arm, self.reference) if sample.missing}

    def pairs(self, seeds: list[int]) -> tuple[list[float], list[float]]:
        return [self._value(self.arm, seed) for seed in seeds], [self._value(self.reference, seed) for seed in seeds]

    def _usable(self, seed: int) -> bool:
        return all(
            seed in sample.values or (seed in sample.diverged and self.floor is not None)
            for sample in (self.arm, self.reference)
        )

    def _value(self, sample: ArmSample, seed: int) -> float:
        return sample.values[seed] if seed in sample.values else float(self.floor or 0.0)


def paired_sample(result: StudyResult, contrast: Mapping[str, Any]) -> PairedSample:
    metric = contrast["metric"]
    # A difference has none: at its terms' floors it may well lie above that of a run that learned only the second.
    floor = (result.study.get("floors") or {}).get(metric)
    samples = (arm_sample(result, contrast[role], metric) for role in ("arm", "reference"))
    return PairedSample(*samples, floor["value"] if floor else None)


@dataclass(frozen=True)
class Check:
    """A threshold that every seed and the mean must meet. met: None while seeds are missing."""

    arm: str
    metric: str
    demand: str
    values: dict[int, float]
    met: bool | None
    failing: tuple[int, ...] = field(default=())
    missing: dict[int, str] = field(default_factory=dict)


def check_threshold(result: StudyResult, arm: str, wanted: Mapping[str, Any]) -> Check:
    """`wanted`: metric and one of at_least, at_most, below. A diverged run never meets it."""
    sample = arm_sample(result, arm, wanted["metric"])
    kind = next(kind for kind in LIMITS if wanted.get(kind) is not None)
    limit = float(wanted[kind])
    holds = {"at_least": lambda x: x >= limit, "at_most": lambda x: x <= limit, "below": lambda x: x < limit}[kind]
    failing = [seed for seed, value in sample.values.items() if not holds(value)] + list(sample.diverged)
    met: bool | None = None if sample.missing or not sample.expected else not failing and holds(sample.mean)
    met = False if failing else met
    words = {"at_least": "≥", "at_most": "≤", "below": "<"}[kind]
    failed = tuple(sorted(failing))
    return Check(arm, wanted["metric"], f"{words} {limit:g}", sample.values, met, failed, sample.missing)


def targets(result: StudyResult) -> dict[str, Check]:
    """Per arm that states a target."""
    wanted = {name: arm.get("target") for name, arm in result.study["arms"].items()}
    return {name: check_threshold(result, name, target) for name, target in wanted.items() if target}


def positive_control(result: StudyResult) -> tuple[bool, str]:
    """Whether the study showed that its apparatus can succeed, and how that was seen."""
    wanted = result.study.get("positive_control")
    if not wanted:
        return False, "the study names no positive control"
    if wanted["arm"] not in result.study["arms"]:
        return False, f"the positive control {wanted['arm']} is not an arm"
    check = check_threshold(result, wanted["arm"], wanted)
    what = f"{check.arm} at {check.metric} {check.demand}"
    if check.met is None:
        reasons = ", ".join(f"seed {seed} {why}" for seed, why in check.missing.items()) or "no seeds"
        return False, f"positive control {what}: incomplete ({reasons})"
    if not check.met:
        return False, f"positive control {what}: failed by seed {', '.join(map(str, check.failing))}"
    return True, f"positive control {what}: met by all {len(check.values)} seeds"
