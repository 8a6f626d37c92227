"""Success probability and time to threshold, for tasks that seeds either solve or do not."""

from dataclasses import dataclass

from analysis import survival
from analysis.runs import StudyResult
from analysis.samples import ArmSample, arm_sample, main_runs
from analysis.statistics import clopper_pearson, wilson

FEWEST = 5  # seeds; below it a proportion or a survival curve says nothing that the list of values does not


@dataclass(frozen=True)
class Success:
    """An arm's final values at the threshold, and when its validation curve first got there.

    mean_step: restricted to the longest run. A diverged run counts as a failure, censored where it ended.
    """

    arm: str
    metric: str
    threshold: float
    successes: int
    n: int
    wilson: tuple[float, float]
    exact: tuple[float, float]
    times: survival.Times | None
    mean_step: tuple[float, float, float] | None


def success_rates(result: StudyResult) -> dict[str, Success]:
    """Per arm with enough ended seeds, at the thresholds that the study's targets or control name (`at_least`)."""
    wanted = [arm.get("target") for arm in result.study["arms"].values()] + [result.study.get("positive_control")]
    threshold = next((target for target in wanted if target and target.get("at_least") is not None), None)
    if threshold is None:
        return {}
    samples = {arm: arm_sample(result, arm, threshold["metric"]) for arm in result.study["arms"]}
    return {
        arm: _success(result, sample, float(threshold["at_least"]))
        for arm, sample in samples.items()
        if sample.complete and sample.expected >= FEWEST
    }


def _success(result: StudyResult, sample: ArmSample, threshold: float) -> Success:
    hits, n = sum(value >= threshold for value in sample.values.values()), sample.expected
    times = _times(result, sample, threshold)
    mean = survival.restricted_mean(times, float(times.times.max())) if times is not None else None
    exact = clopper_pearson(hits, n)
    return Success(sample.arm, sample.metric, threshold, hits, n, wilson(hits, n), exact, times, mean)


def _times(result: StudyResult, sample: ArmSample, threshold: float) -> survival.Times | None:
    """The first validation at or over the threshold; None where the metric was not validated."""
    curves = result.curves[result.curves["metric"] == f"val/{sample.metric}"]
    steps, reached = [], []
    for run in main_runs(result, sample.arm).itertuples():
        mine = curves[curves["id"] == run.id]
        if mine.empty:
            return None
        first = survival.first_reached(mine["step"], mine["value"], threshold)
        steps.append(float(mine["step"].max()) if first is None else first)
        reached.append(first is not None)
    return survival.Times.of(steps, reached) if steps else None
