"""What a study's runs say of a scaling law, by the rules that hold for a contrast's word."""

from dataclasses import dataclass

from analysis import verdict
from analysis.precision import precisions
from analysis.runs import StudyResult
from analysis.samples import positive_control
from analysis.scaling.fits import Fit
from analysis.scaling.held_out import LoopTerm
from analysis.scaling.laws import Law
from analysis.scaling.loops_together import LoopsTogether, loops_together
from analysis.scaling.of_study import DRAWS, fitted, loop_term


@dataclass(frozen=True)
class LawVerdict:
    """word: `LoopTerm.word`, or why none may be given. arm: the one of the most training FLOPs, for the scope.

    together: of a claim about the law's loops together. It is a number that no rule judges, so the word is `estimated`.
    """

    fit: Fit
    arm: str
    word: str
    qualifiers: list[str]
    term: LoopTerm | None = None
    together: LoopsTogether | None = None

    def __str__(self) -> str:
        return f"{self.word} ({', '.join(self.qualifiers)})" if self.qualifiers else self.word


def judge(result: StudyResult, law: Law, together: bool = False) -> list[LawVerdict]:
    """One for each of the law's fits; none where no run has finished. together: of its loops' sum, not of its form."""
    if result.finished.empty:
        return []
    arms = result.study["arms"]
    largest = max(arms, key=lambda arm: arms[arm]["cost"]["training_flops"])
    differ = ["precisions differ"] if precisions(result, list(arms), "loss").several else []
    qualifiers = [*verdict.qualifiers(result.study, list(arms), "loss"), *differ]
    verdicts = []
    for one in fitted(law, result):
        if together:
            found = {"together": loops_together(one, result, DRAWS)}
            word = "inconclusive" if found["together"].refused else "estimated"
        else:
            found = {"term": loop_term(one)}
            word = "inconclusive" if one.refused else found["term"].word
        verdicts.append(LawVerdict(one, largest, _allowed(result, word), qualifiers, **found))
    return verdicts


def _allowed(result: StudyResult, word: str) -> str:
    """The word, or why it may not be given."""
    states = result.runs[result.runs["phase"] == "main"]["state"]
    if unregistered := verdict.unregistered(result.study):
        return unregistered
    if not (states == "done").all():  # also one that diverged: it has no loss to fit, and leaving it out favours a law
        return f"incomplete: {(states == 'done').sum()} of {len(states)} runs done"
    if word in ("inconclusive", "estimated") or positive_control(result)[0]:
        return word
    return "no positive control"
