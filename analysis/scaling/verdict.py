"""What a study's runs say of a scaling law, by the rules that hold for a contrast's word."""

from dataclasses import dataclass

import pandas as pd

from analysis import verdict
from analysis.runs import StudyResult
from analysis.samples import positive_control
from analysis.scaling.fits import Fit
from analysis.scaling.held_out import LoopTerm
from analysis.scaling.laws import Law
from analysis.scaling.of_study import fitted, loop_term


@dataclass(frozen=True)
class LawVerdict:
    """word: `LoopTerm.word`, or why none may be given. arm: the one of the most training FLOPs, for the scope."""

    fit: Fit
    term: LoopTerm
    arm: str
    word: str
    qualifiers: list[str]

    def __str__(self) -> str:
        return f"{self.word} ({', '.join(self.qualifiers)})" if self.qualifiers else self.word


def judge(result: StudyResult, law: Law) -> list[LawVerdict]:
    """One for each of the law's fits; none where no run has finished."""
    if not (_main(result)["state"] == "done").any():
        return []
    arms = result.study["arms"]
    largest = max(arms, key=lambda arm: arms[arm]["cost"]["training_flops"])
    qualifiers = verdict.qualifiers(result.study, list(arms), "loss")
    found = [(one, loop_term(one)) for one in fitted(law, result)]
    return [LawVerdict(one, term, largest, _word(result, one, term), qualifiers) for one, term in found]


def _word(result: StudyResult, one: Fit, term: LoopTerm) -> str:
    states = _main(result)["state"]
    if unregistered := verdict.unregistered(result.study):
        return unregistered
    if not (states == "done").all():  # also one that diverged: it has no loss to fit, and leaving it out favours a law
        return f"incomplete: {(states == 'done').sum()} of {len(states)} runs done"
    if one.refused or term.word == "inconclusive":
        return "inconclusive"
    return term.word if positive_control(result)[0] else "no positive control"


def _main(result: StudyResult) -> pd.DataFrame:
    return result.runs[result.runs["phase"] == "main"]
