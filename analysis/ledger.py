"""The ledger's rows: every claim beside what committed evidence says of it. Nothing here is worded per claim."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis import tables, wording
from analysis.calibration import percent_range
from analysis.evidence import Evidence
from analysis.runs import StudyResult
from analysis.scaling.catalogue import LAWS
from analysis.scaling.of_study import constants, laws
from analysis.scaling.verdict import LawVerdict, judge
from analysis.verdict import Verdict
from ouro_lab.claims import Claim
from ouro_lab.config import ROOT

NOT_RUN = {"weights": "needs weights", "gpus": "needs GPUs", None: "not run"}
BY_TESTS = "by tests"
NONE = "–"


@dataclass(frozen=True)
class Row:
    """A claim as one contrast of one study saw it, or why nothing did.

    word: the verdict's word alone, what rows are counted by; verdict: with its qualifiers. sources: label → file.
    """

    claim: Claim
    word: str
    verdict: str
    sources: Mapping[str, Path]
    study: str | None = None
    regime: str = NONE
    arms: str = NONE
    n: str = NONE
    rates: str = NONE
    effect: str = NONE
    scope: str = NONE
    cost: str = NONE
    note: str = ""


def rows(
    claims: Iterable[Claim], evidence: Sequence[Evidence], ready: Mapping[str, Sequence[str]] | None = None
) -> list[Row]:
    """At least one for each claim, in the claims' order; one for each study that tests it and contrast that speaks.

    ready: claim → studies that name it and have no evidence yet.
    """
    found: list[Row] = []
    for claim in claims:
        mine = [row for one in evidence for row in of_study(claim, one)]
        mine += [_by_tests(claim)] if claim.tests else []
        found += mine or [_not_run(claim, (ready or {}).get(claim.id, ()))]
    return found


def of_study(claim: Claim, evidence: Evidence) -> list[Row]:
    """What one study says of a claim: nothing, if it does not name it."""
    speakers = evidence.speakers.get(claim.id)
    if speakers is None:
        return []
    if claim.law:
        law, study = LAWS[claim.law], evidence.result
        found = judge(study, law, claim.together) if law in laws(study) else []
        return [_of_law(claim, evidence, one) for one in found] or [_without_contrast(claim, evidence)]
    if speakers:
        return [of_contrast(claim, evidence, evidence.verdicts[name]) for name in speakers]
    return [_without_contrast(claim, evidence)]


def cost(runs: Any) -> str:
    """Of a table of runs, in core-hours or GPU-hours: seconds × the threads, or GPUs, that each run's record names."""
    core, gpu = 0.0, 0.0
    for seconds, hardware in zip(runs["seconds"].fillna(0.0), runs["hardware"], strict=True):
        named = re.match(r"(?P<gpus>.*?)(?:, )?(?P<threads>\d+) threads? of ", hardware)
        gpus, threads = (named["gpus"], int(named["threads"])) if named else ("", 1)
        core += 0.0 if gpus else seconds * threads / 3600
        gpu += seconds * len(gpus.split(", ")) / 3600 if gpus else 0.0
    parts = [
        f"{hours:.{1 if hours < 10 else 0}f} {unit}" for hours, unit in ((core, "core-h"), (gpu, "GPU-h")) if hours
    ]
    return " + ".join(parts) or NONE


def of_contrast(claim: Claim, evidence: Evidence, verdict: Verdict) -> Row:
    study = evidence.result.study
    pair = " v ".join(_shape(evidence.result, arm) for arm in (verdict.arm, verdict.reference))
    return Row(
        claim,
        word=verdict.word,
        verdict=_dated(wording.conclusion(verdict), evidence),
        sources=_sources(evidence),
        study=study["name"],
        regime=wording.regime(study["contrasts"][verdict.name]) or NONE,
        arms=f"{pair}: {tables.demand(verdict)}",
        n=str(verdict.n),
        rates=wording.rates(study, verdict),
        effect=NONE if verdict.refused else _effect(verdict),
        scope=wording.scope(_scaled(study, claim), verdict.arm),
        cost=cost(evidence.result.runs),
    )


def _of_law(claim: Claim, evidence: Evidence, one: LawVerdict) -> Row:
    study = evidence.result.study
    if one.together:
        arms = "the sum of the loops' laws, each weighted by the loop's mean exit probability, v the loss minimised"
        effect = str(one.together)
    else:
        arms = f"{one.fit.law.formula}, v without the term in loops: errors on the largest size, and depth, held out"
        gain = f"less error by the term: {one.term.size} at the largest size, {one.term.depth} at the largest depth"
        effect = f"{one.fit.refused or f'R² {one.fit.r2:.3f}'}; {gain}"
    return Row(
        claim,
        word=one.word,
        verdict=_dated(str(one), evidence),
        sources=_sources(evidence),
        study=study["name"],
        regime=f"a fit, points of {constants(one.fit)}",
        arms=arms,
        n=str(one.fit.points.trunks),
        rates=", ".join(dict.fromkeys(arm["lr_status"] for arm in study["arms"].values())),
        effect=effect,
        scope=f"at most {wording.scope(_scaled(study, claim), one.arm)}",
        cost=cost(evidence.result.runs),
    )


def _without_contrast(claim: Claim, evidence: Evidence) -> Row:
    """A calibration, which measures and decides nothing, or a study that compares no arms."""
    study, found = evidence.result.study, evidence.calibration
    row = {"sources": _sources(evidence), "study": study["name"], "cost": cost(evidence.result.runs)}
    if found is None:
        return Row(claim, word="no contrast", verdict=_dated("no contrast", evidence), **row)
    arm = study["arms"][found["arm"]]
    size, paired, unpaired = found["size"], 100 * found["paired"], 100 * found["unpaired"]
    return Row(
        claim,
        word="estimated",
        verdict=_dated("estimated", evidence),
        regime="the same arm twice",
        arms=f"{_shape(evidence.result, found['arm'])}, {size} seeds v {size}",
        n=str(2 * size),
        rates=arm["lr_status"],
        effect=f"{paired:.1f} % of {found['splits']} splits differ (paired), {unpaired:.1f} % (unpaired) "
        f"at {found['metric']}; right: {100 * found['expected']:.0f} %, usually "
        f"{percent_range(found['usual'])}",
        scope=", ".join(f"{wording.compact(arm['cost'][what])} {what}" for what in ("parameters", "tokens")),
        **row,
    )


def _by_tests(claim: Claim) -> Row:
    return Row(claim, word=BY_TESTS, verdict=BY_TESTS, sources={Path(test).stem: ROOT / test for test in claim.tests})


def _not_run(claim: Claim, ready: Sequence[str]) -> Row:
    """ready: studies that would test it, which is all that there is to show."""
    word = NOT_RUN[claim.needs]
    return Row(claim, word=word, verdict=word, sources={}, note=f"ready: {', '.join(ready)}" if ready else NONE)


def _effect(verdict: Verdict) -> str:
    """`+0.52 [0.48, 0.56] at accuracy/hops_8`, with the interval's level where Holm set another than 95 %."""
    level = "" if abs(verdict.level - 0.95) < 1e-9 else f" ({100 * verdict.level:.3g} % interval)"
    lower = "" if verdict.higher_is_better else " (lower is better)"
    return f"{wording.effect(verdict.effect, verdict.interval_adjusted)}{level} at {verdict.metric}{lower}"


def _dated(verdict: str, evidence: Evidence) -> str:
    return f"{verdict}; outdated" if evidence.outdated else verdict


def _shape(result: StudyResult, arm: str) -> str:
    return f"{arm} {result.study['arms'][arm].get('shape') or ''}".strip()


def _scaled(study: Mapping[str, Any], claim: Claim) -> dict[str, Any]:
    """The study with the claim's published size for its scope, which differs from claim to claim."""
    paper = {"paper_parameters": claim.parameters, "paper_tokens": claim.tokens}
    return {**study, "scope": (study.get("scope") or {}) | {key: size for key, size in paper.items() if size}}


def _sources(evidence: Evidence) -> dict[str, Path]:
    name = evidence.result.name
    return {f"{name}: report": evidence.folder / "report.md", "runs.csv": evidence.folder / "runs.csv"}
