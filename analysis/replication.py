"""A study that ran here beside its committed evidence: the same verdicts, and means where new seeds would fall?"""

from pathlib import Path

from analysis import statistics, wording
from analysis.blocks import Table
from analysis.runs import RESULTS, StudyResult, from_evidence
from analysis.samples import arm_sample
from analysis.verdict import judge
from ouro_lab import records


def committed(result: StudyResult, results: Path = RESULTS) -> StudyResult | None:
    """Evidence of the same study, by its hash, from other runs than these; None if there is none."""
    folder = results / result.name
    study = records.read_json(folder / "study.json") or {}
    if study.get("hash") != result.study["hash"] or not study.get("contrasts") or not (folder / "runs.csv").is_file():
        return None
    found = from_evidence(folder)
    own = set(zip(result.runs["id"], result.runs["seconds"], strict=True))
    other = set(zip(found.runs["id"], found.runs["seconds"], strict=True))
    return None if own & other else found


def compare(here: StudyResult, there: StudyResult) -> Table:
    """Of each arm and metric that a contrast looks at the means, and of each contrast effect and word.

    The interval is where the mean of as many runs, of other seeds, falls in 95 of 100 replications. The same seeds on
    another machine should lie well inside: beside it stands by how much a seed differs at most.
    """
    rows = []
    verdicts = judge(there)
    for arm, metric in dict.fromkeys((arm, v.metric) for v in verdicts.values() for arm in (v.arm, v.reference)):
        mine, theirs = arm_sample(here, arm, metric), arm_sample(there, arm, metric)
        if mine.values and len(theirs.values) > 1:
            expected = statistics.prediction_interval(list(theirs.values.values()), new=len(mine.values))
            apart = [abs(mine.values[seed] - theirs.values[seed]) for seed in mine.values if seed in theirs.values]
            means = map(wording.value, (mine.mean, theirs.mean))
            furthest = wording.value(max(apart)) if apart else "–"
            rows.append(
                (f"{arm} at {metric}", *means, wording.span(expected, 3), _inside(mine.mean, expected), furthest)
            )
    for name, mine in judge(here).items():
        theirs = verdicts.get(name)
        if theirs is not None and mine.effect is not None and theirs.repeat is not None:
            words = mine.word if mine.word == theirs.word else f"{mine.word}, was {theirs.word}"
            effects = (wording.effect(v.effect, v.interval) for v in (mine, theirs))
            row = (wording.span(theirs.repeat, 3), f"{_inside(mine.effect, theirs.repeat)}; {words}", "")
            rows.append((name, *effects, *row))
    header = ("replication", "here", "committed", "95 % of replications", "", "a seed apart by")
    return Table(header, rows, left=(0, 1, 2, 3, 4))


def _inside(value: float, expected: tuple[float, float]) -> str:
    return "inside" if expected[0] <= value <= expected[1] else "outside"
