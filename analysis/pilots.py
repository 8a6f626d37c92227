"""What is known before a study runs: seed-paired differences of an earlier one, and how fast its runs went."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from analysis import statistics
from analysis.runs import StudyResult, versions
from analysis.samples import PairedSample, paired_sample, shown_runs
from ouro_lab.metrics_log import terms

FEWEST = 2  # paired seeds; one difference has no spread
ENDED = ("done", "diverged")


@dataclass(frozen=True)
class Source:
    """Kept runs. own: of the study that is planned, in whatever version; today: in the version that is planned."""

    result: StudyResult
    where: str
    own: bool
    today: bool

    def __str__(self) -> str:
        """`committed evidence of p_hop, another version (1a0a6f30)`."""
        version = f", another version ({self.result.study['hash']})" if self.own and not self.today else ""
        return f"{self.where} of {self.result.name}{version}"


@dataclass(frozen=True)
class Pilot:
    """An arm and its reference on equal seeds, in the metric's own unit, diverged runs counted at the floor."""

    sample: PairedSample
    source: Source

    @property
    def seeds(self) -> list[int]:
        return self.sample.seeds

    @property
    def estimate(self) -> statistics.Estimate:
        """Of arm − reference."""
        return statistics.paired(*self.sample.pairs(self.seeds))

    @property
    def straddling(self) -> list[str]:
        """Arms of which some seeds end in the lowest third between the metric's floor and 1, others in the highest."""
        floor, metric = self.sample.floor, self.sample.arm.metric
        if floor is None or not metric.startswith("accuracy") or len(terms(metric)) > 1:
            return []  # a loss has no top, nor has a difference
        arms = (self.sample.arm.arm, self.sample.reference.arm)
        places = [[(x - floor) / (1 - floor) for x in values] for values in self.sample.pairs(self.seeds)]
        return [arm for arm, at in zip(arms, places, strict=True) if min(at) < 1 / 3 and max(at) > 2 / 3]


def sources(name: str, hash_: str, pilot: str | None = None) -> list[Source]:
    """In the order in which they are asked: the study's tracked runs, its committed evidence, the same of `pilot`.

    hash_: of the study as it is planned.
    """
    own = [Source(result, where, True, result.study["hash"] == hash_) for where, result in versions(name).items()]
    other = versions(pilot) if pilot is not None and pilot != name else {}
    return own + [Source(result, where, False, False) for where, result in other.items()]


def find(kept: Iterable[Source], contrasts: Mapping[str, Mapping[str, Any]]) -> dict[str, Pilot | None]:
    """For each contrast the first source with two seeds that ended in both of its arms."""
    kept, found = list(kept), {}
    for name, contrast in contrasts.items():
        pilots = (Pilot(_sample(source.result, contrast), source) for source in kept)
        found[name] = next((pilot for pilot in pilots if len(pilot.seeds) >= FEWEST), None)
    return found


def measured(kept: Iterable[Source]) -> dict[str, tuple[float, str]]:
    """By arm the FLOP/s that the study's own finished runs reached, and in words where and on what hardware."""
    found: dict[str, tuple[float, str]] = {}
    for source in kept:
        runs = source.result.runs
        for arm, done in runs[(runs["state"] == "done") & (runs["seconds"] > 0)].groupby("arm"):
            hardware = "; ".join(sorted(set(done["hardware"]) - {""}))
            words = f"seconds of the {source.where}{f' ({hardware})' if hardware else ''}"
            if source.own:
                found.setdefault(str(arm), (float(done["flops"].sum() / done["seconds"].sum()), words))
    return found


def _sample(result: StudyResult, contrast: Mapping[str, Any]) -> PairedSample:
    """Every seed that ended, whatever the study planned; of a study that only sweeps, at each arm's chosen rate."""
    ended = replace(result, runs=result.runs[result.runs["state"].isin(ENDED)])
    runs = shown_runs(ended).assign(phase="main")
    seeds = sorted(int(seed) for seed in set(runs["seed"]))
    return paired_sample(replace(ended, study=result.study | {"seeds": seeds}, runs=runs), contrast)
