"""From a study's result to a verdict per contrast, by the rule that the study fixed before its first run.

Words: supported, contradicted, equivalent, inconclusive, no positive control; `estimated` where the study set no rule.
Instead of a word stands `unregistered` or `incomplete: 2 of 3 seeds` where a word would break the rules.
Qualifiers: `unmatched` (a learning rate not chosen per arm, or at its grid's edge), `exploratory` (the study is not the
one registered before its results were seen).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis import statistics
from analysis.precision import precisions
from analysis.runs import StudyResult
from analysis.samples import PairedSample, check_threshold, paired_sample, positive_control
from analysis.stability import same_grid

ALPHA = 0.05
POWER = 0.8
STATED = ("arm", "reference", "metric", "rule", "bound", "primary", "higher_is_better")
WORDS = ("supported", "contradicted", "equivalent", "inconclusive", "no positive control", "estimated")


@dataclass(frozen=True)
class Verdict:
    """One contrast. Values, effect and intervals are in the metric's own unit and sign: arm − reference.

    level: of `interval_adjusted`, at which Holm decides this contrast; it is 0.95 for the primary one, which no other
    test touches. bare_word: what the interval alone says, without the control. detectable: the smallest true difference
    that n seeds of this spread find with 80 % power. repeat: where the mean of as many new seeds would fall, 95 %.
    """

    name: str
    arm: str
    reference: str
    metric: str
    rule: str
    bound: float
    primary: bool
    higher_is_better: bool
    seeds: list[int]
    expected: int
    arm_values: list[float]
    reference_values: list[float]
    diverged: dict[str, list[int]]
    missing: dict[str, dict[int, str]]
    floor: float | None
    effect: float | None
    sd: float | None
    interval: tuple[float, float] | None
    level: float
    interval_adjusted: tuple[float, float] | None
    p: float | None
    p_holm: float | None
    detectable: float | None
    repeat: tuple[float, float] | None
    seeds_for_power: int | None
    bare_word: str
    word: str
    qualifiers: list[str]
    notes: list[str]

    @property
    def n(self) -> int:
        return len(self.seeds)

    @property
    def refused(self) -> bool:
        return self.word not in WORDS and not self.word.startswith("inconclusive")


def judge(result: StudyResult) -> dict[str, Verdict]:
    """Every contrast, the primary one first. The others share one Holm family, complete or not."""
    contrasts = result.study.get("contrasts") or {}
    samples = {name: paired_sample(result, contrast) for name, contrast in contrasts.items()}
    p = {name: _p(samples[name], contrast) for name, contrast in contrasts.items()}
    tested = _family(contrasts, p)
    level, adjusted = levels(contrasts, p), dict(zip(tested, statistics.holm(list(tested.values())), strict=True))
    bare = {name: _bare_word(samples[name], contrast, level[name]) for name, contrast in contrasts.items()}
    gates = _Gates(result, samples, {name: word for name, (word, _) in bare.items()})
    order = sorted(contrasts, key=lambda name: not contrasts[name]["primary"])
    return {
        name: _verdict(result, name, samples[name], level[name], p[name], adjusted.get(name), bare[name], gates)
        for name in order
    }


def levels(contrasts: Mapping[str, Mapping[str, Any]], p: Mapping[str, float | None]) -> dict[str, float]:
    """α at which each contrast is decided, given every p: Holm's for the tests beside the primary one, else `ALPHA`.

    An equivalence that passes its tests without the seeds for them counts as passed here: fewer words, never more.
    """
    tested = _family(contrasts, p)
    found = dict(zip(tested, statistics.holm_levels(list(tested.values()), ALPHA), strict=True))
    return {name: found.get(name, ALPHA) for name in contrasts}


def decide(estimate: statistics.Estimate, contrast: Mapping[str, Any], alpha: float) -> str:
    """The word of a rule for an estimate in the direction of improvement (positive: the arm is better)."""
    rule, bound = contrast["rule"], contrast["bound"]
    if rule == "estimate":
        return "estimated"
    if decision_p(estimate, contrast) > alpha:
        return "inconclusive"
    if rule == "superiority":
        return "supported" if estimate.mean > bound else "contradicted"
    if abs(estimate.mean) > bound:
        return "contradicted"
    needed = statistics.equivalence_n(estimate.sd, bound, POWER, alpha)  # fewer may pass by luck in their spread
    return "equivalent" if needed is not None and estimate.n >= needed else "inconclusive"


def _family(contrasts: Mapping[str, Mapping[str, Any]], p: Mapping[str, float | None]) -> dict[str, float]:
    """p of Holm's family. A contrast that cannot be tested yet keeps its place: finishing it must not change a rule."""
    names = [name for name, spec in contrasts.items() if not spec["primary"] and spec["rule"] != "estimate"]
    return {name: 1.0 if (found := p[name]) is None else found for name in names}


def _verdict(
    result: StudyResult,
    name: str,
    sample: PairedSample,
    alpha: float,
    p: float | None,
    p_holm: float | None,
    bare_word: tuple[str, list[str]],
    gates: "_Gates",
) -> Verdict:
    contrast = result.study["contrasts"][name]
    seeds = sample.seeds
    raw = statistics.paired(*sample.pairs(seeds)) if len(seeds) >= 2 else None
    bare, notes = bare_word[0], list(bare_word[1])
    word, closed = _refusal(result, sample) or bare, gates.closed(name)
    if word in WORDS and closed:
        notes.append(closed)
        word = "inconclusive"
    elif word in WORDS and word != "estimated":
        shown, how = positive_control(result)
        notes.append(how)
        word = word if shown else "no positive control"
    both = contrast["arm"], contrast["reference"]
    found = precisions(result, both, contrast["metric"])
    notes += [found.words] if found.several else []
    differ = ["precisions differ"] if found.within_seed else []
    arm_values, reference_values = sample.pairs(seeds)
    return Verdict(
        name=name,
        **{key: contrast[key] for key in STATED},
        seeds=seeds,
        expected=sample.expected,
        arm_values=arm_values,
        reference_values=reference_values,
        diverged=sample.diverged,
        missing=sample.missing,
        floor=sample.floor,
        effect=raw.mean if raw else arm_values[0] - reference_values[0] if seeds else None,
        sd=raw.sd if raw else None,
        interval=raw.interval() if raw else None,
        level=1 - alpha,
        interval_adjusted=raw.interval(1 - alpha) if raw else None,
        p=p,
        p_holm=p_holm,
        detectable=statistics.detectable_effect(raw.n, POWER, alpha) * raw.sd if raw else None,
        repeat=_repeat(sample, seeds),
        seeds_for_power=_seeds_for_power(raw, contrast, alpha),
        bare_word=bare,
        word=word,
        qualifiers=[*qualifiers(result.study, both, contrast["metric"]), *differ],
        notes=notes,
    )


@dataclass(frozen=True)
class _Gates:
    """What a contrast's `where` and `after` ask for. words: what each contrast's values say by themselves."""

    result: StudyResult
    samples: Mapping[str, PairedSample]
    words: Mapping[str, str]

    def closed(self, name: str) -> str | None:
        """Which of the contrast's gates is not open, if one is not."""
        contrast = self.result.study["contrasts"][name]
        where = contrast.get("where")
        for arm in (contrast["arm"], contrast["reference"]) if where else ():
            check = check_threshold(self.result, arm, where)
            if not check.met:
                values = ", ".join(f"{value:.3g}" for value in check.values.values()) or "no value"
                return f"decides only where {check.metric} {check.demand} in both arms; {arm} has {values}"
        for other in contrast.get("after") or ():
            needed = "equivalent" if self.result.study["contrasts"][other]["rule"] == "equivalence" else "supported"
            word = self._word(other)
            if word != needed:
                return f"decides only where {other} is {needed}; it is {word}"
        return None

    def _word(self, name: str) -> str:
        refused = _refusal(self.result, self.samples[name])
        return refused or ("inconclusive" if self.closed(name) else self.words[name])


def _bare_word(sample: PairedSample, contrast: Mapping[str, Any], alpha: float) -> tuple[str, list[str]]:
    """By the values alone. A word holds only if it holds however diverged runs are counted."""
    notes = []
    if sample.diverged:
        counted = f"counted at the floor {sample.floor:g}" if sample.floor is not None else "no floor to count them at"
        who = "; ".join(f"{arm} seed {', '.join(map(str, seeds))}" for arm, seeds in sample.diverged.items())
        notes.append(f"diverged: {who} ({counted})")
    if contrast["rule"] == "estimate":
        return "estimated", notes
    if len(sample.seeds) < 2:
        return f"inconclusive (n = {len(sample.seeds)})", notes
    estimate = improvement(sample, contrast, sample.seeds)
    word = decide(estimate, contrast, alpha)
    if estimate.error == 0:
        notes.append("all differences are equal: the interval has no width")
        word = word if estimate.n >= 3 else "inconclusive"
    if sample.diverged and word != "inconclusive":
        alone = improvement(sample, contrast, sample.survivors) if len(sample.survivors) >= 2 else None
        if alone is None or decide(alone, contrast, alpha) != word or sample.floor is None:
            notes.append(f"{word} only if the diverged runs are counted one way")
            word = "inconclusive"
    return word, notes


def _refusal(result: StudyResult, sample: PairedSample) -> str | None:
    """Why no word may be given, whatever the values say."""
    if found := unregistered(result.study):
        return found
    if sample.missing or not sample.expected:
        both = [s for s in result.study["seeds"] if s not in sample.arm.missing and s not in sample.reference.missing]
        return f"incomplete: {len(both)} of {len(result.study['seeds'])} seeds"
    return None


def unregistered(study: Mapping[str, Any]) -> str | None:
    """Why no word may be given of a study that was stated after its runs."""
    if (study.get("registered") or {}).get("hash"):
        return None
    return "unregistered: no hash was stored before the first run"


def qualifiers(study: Mapping[str, Any], arms: Sequence[str], metric: str) -> list[str]:
    """What a word about these arms is to be read with."""
    matched = all(study["arms"][arm].get("lr_matched") for arm in arms) or same_grid(study, metric, arms)
    registered = study.get("registered") or {}
    found = [] if matched else ["unmatched"]
    return found if registered.get("hash") == study["hash"] else [*found, "exploratory"]


def improvement(sample: PairedSample, contrast: Mapping[str, Any], seeds: list[int]) -> statistics.Estimate:
    """The mean difference in the direction of improvement: positive where the arm is better."""
    arm, reference = sample.pairs(seeds)
    return statistics.paired(arm, reference) if contrast["higher_is_better"] else statistics.paired(reference, arm)


def _p(sample: PairedSample, contrast: Mapping[str, Any]) -> float | None:
    if len(sample.seeds) < 2 or contrast["rule"] == "estimate" or sample.missing:
        return None
    return decision_p(improvement(sample, contrast, sample.seeds), contrast)


def decision_p(estimate: statistics.Estimate, contrast: Mapping[str, Any]) -> float:
    """p of the decision that a rule can take: at most one of its two directions is ever wrong, so α covers both."""
    bound = contrast["bound"]
    if contrast["rule"] == "superiority":
        return estimate.p_value(bound)
    return min(statistics.tost(estimate, bound), statistics.beyond(estimate, bound))


def _repeat(sample: PairedSample, seeds: list[int]) -> tuple[float, float] | None:
    if len(seeds) < 2:
        return None
    arm, reference = sample.pairs(seeds)
    return statistics.prediction_interval([a - r for a, r in zip(arm, reference, strict=True)], new=len(seeds))


def _seeds_for_power(raw: statistics.Estimate | None, contrast: Mapping[str, Any], alpha: float) -> int | None:
    if raw is None or contrast["rule"] != "equivalence":
        return None
    found = statistics.equivalence_n(raw.sd, contrast["bound"], POWER, alpha)
    return max(found, 3) if found and raw.sd == 0 else found  # two equal differences decide nothing
