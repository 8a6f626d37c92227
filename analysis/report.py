"""The report of a study: verdict first, then all that it rests on. `python -m analysis.report NAME` rebuilds it."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis import calibration, figures, reach, replication, tables, wording
from analysis.blocks import Block, Heading, Picture, Text, markdown, page, plain_table
from analysis.figures import Drawn
from analysis.precision import counted
from analysis.runs import RESULTS, StudyResult, UnknownStudyError, load
from analysis.samples import positive_control
from analysis.scaling import of_study
from analysis.style import FORMATS
from analysis.verdict import Verdict, judge
from ouro_lab import records

X_LABELS = {"steps": "steps", "tokens": "tokens", "flops": "compute", "seconds": "time"}


def write(result: StudyResult, folder: Path | str, formats: Iterable[str] = FORMATS) -> Path:
    """report.md, report.html (returned), verdict.json and figures/: the same bytes for the same records.

    formats: of the figures; svg (or else png) goes into the page.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for old in (folder / "figures").glob("*.*"):
        if old.suffix[1:] in FORMATS:
            old.unlink()
    verdicts = judge(result)
    drawn = figures.draw_all(result, verdicts, folder / "figures", formats)
    more = [*reach.section(result, folder / "figures", formats), *of_study.section(result, folder / "figures", formats)]
    content = blocks(result, verdicts, drawn, more)
    (folder / "report.md").write_text(markdown(content, folder))
    (folder / "report.html").write_text(page(content, f"{result.name}: {result.study['question']}"))
    text = json.dumps(facts(result, verdicts), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "verdict.json").write_text(text + "\n")
    return folder / "report.html"


def facts(result: StudyResult, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    """What verdict.json holds."""
    return wording.as_dict(result, verdicts) | {"calibration": calibration.calibrate(result)}


def print_summary(result: StudyResult, results: Path = RESULTS) -> None:
    """The arms and the verdicts, for a terminal; beside committed evidence of `results`, where there is some."""
    verdicts = judge(result)
    print(f"\n{result.name}: {result.study['question']}\n")
    for metric in _metrics(result, verdicts) or [None]:
        print(plain_table(tables.arms(result, metric)), end="\n\n")
    if result.study.get("sweep"):
        print(f"{plain_table(tables.sweep_fits(result))}\n\n{_rates_sentence(result)}")
    for verdict in verdicts.values():
        print(f"{'primary: ' if verdict.primary else ''}{wording.sentence(result.study, verdict)}")
    calibrated = calibration.calibrate(result)
    if calibrated is not None:
        print(calibration.sentence(calibrated))
    evidence = replication.committed(result, results)
    if evidence is not None:
        print(f"\n{plain_table(replication.compare(result, evidence))}\n")
    print(f"{_counts(result)}\n")


def blocks(
    result: StudyResult, verdicts: Mapping[str, Verdict], drawn: Sequence[Drawn], fits: Sequence[Block] = ()
) -> list[Block]:
    """The report in reading order. fits: of reach and of scaling laws, where the study names them."""
    study = result.study
    found: list[Block] = [Heading(study["question"], 1)]
    found += _verdict(result, verdicts)
    hypothesis = f"Hypothesis: {study['hypothesis']}" if study.get("hypothesis") else ""
    claim = f"Claim: {', '.join(study['claim'])}." if study.get("claim") else ""
    found += [Text(text) for text in (hypothesis, claim) if text]
    found += _pictures(drawn, "curves")[:1] if verdicts else _pictures(drawn, "rates")
    found += _arms(result, verdicts)
    found += _contrasts(result, verdicts, drawn)
    found += _match(result)
    found += _levels(result, drawn)
    found += _exits(drawn)
    found += fits
    found += _success(result, verdicts)
    found += _floors(result)
    found += _sweep(result, drawn)
    more = _pictures(drawn, "curves")[1 if verdicts else 0 :]
    found += [Heading("Curves"), *more] if more else []
    return found + _runs(result) + _reproduce(result)


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for a study that is not there."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m analysis.report NAME", file=sys.stderr)
        return 2
    try:
        result = load(arguments[0])
    except (UnknownStudyError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = write(result, records.runs_root() / result.name / "report")
    print_summary(result)
    print(f"report: {found}")
    return 0


def _verdict(result: StudyResult, verdicts: Mapping[str, Verdict]) -> list[Block]:
    primary = next((verdict for verdict in verdicts.values() if verdict.primary), None)
    if primary is not None:
        return [Text(wording.sentence(result.study, primary), "lead")]
    if result.study.get("sweep"):
        return [Text(_rates_sentence(result), "lead")]
    calibrated = calibration.calibrate(result)
    if calibrated is not None:
        return [Text(calibration.sentence(calibrated), "lead")]
    return [Text("This study states no contrast: it has no verdict.", "lead")]


def _rates_sentence(result: StudyResult) -> str:
    """A sweep's conclusion: one rate per arm."""
    parts = []
    for arm, content in result.study["sweep"].items():
        best = content.get("best")
        place = "" if content.get("inside") else " (at the grid's edge)"
        parts.append(f"{arm} {best:g}{place}" if best is not None else f"{arm} unfinished")
    metric = next(iter(result.study["sweep"].values()))["metric"]
    return f"Chosen learning rates by final {metric}: {', '.join(parts)}."


def _arms(result: StudyResult, verdicts: Mapping[str, Verdict]) -> list[Block]:
    metrics = _metrics(result, verdicts)
    found: list[Block] = [Heading("Arms")]
    found += [tables.arms(result, metric) for metric in metrics or [None]]
    if metrics:
        found.append(Text("Values of the final step on the test split; SD over seeds.", "note"))
    return found


def _contrasts(result: StudyResult, verdicts: Mapping[str, Verdict], drawn: Sequence[Drawn]) -> list[Block]:
    if not verdicts:
        return []
    shown, how = positive_control(result)
    others = [Text(wording.sentence(result.study, verdict)) for verdict in verdicts.values() if not verdict.primary]
    note = (
        "Differences are taken seed by seed, the mean with its t interval (95 % for the primary contrast; for the "
        "others the level at which Holm's procedure decides). Same again: where the mean of as many new seeds would "
        "fall, 95 %. Detectable: the smallest true difference found with 80 % power at this spread."
    )
    return [
        Heading("Contrasts"),
        *_pictures(drawn, "contrasts"),
        tables.contrasts(verdicts),
        Text(note, "note"),
        *others,
        Text(f"{'Shown to work' if shown else 'Not shown to work'}: {how}."),
    ]


def _match(result: StudyResult) -> list[Block]:
    found: list[Block] = [Heading("Match and cost")]
    if result.study.get("contrasts"):
        found.append(tables.matches(result))
    return [*found, tables.costs(result)]


def _levels(result: StudyResult, drawn: Sequence[Drawn]) -> list[Block]:
    """Accuracy by difficulty and by loop, where the study names them."""
    prefix, pattern = figures.patterns(result)
    found: list[Block] = []
    sections = [
        ("Accuracy by difficulty", "difficulty", f"{prefix}{{}}" if prefix else "", prefix.rstrip("_").split("/")[-1]),
        ("By loop", "loops", pattern.replace("{t}", "{}"), "loop"),
    ]
    for title, kind, template, word in sections:
        table = tables.by_level(result, template, word) if template else None
        if table:
            found += [Heading(title), *_pictures(drawn, kind), table]
    return found


def _exits(drawn: Sequence[Drawn]) -> list[Block]:
    """Quality against executed loops, where arms are exit rules."""
    pictures = _pictures(drawn, "exits")
    note = (
        "Every rule at whole mean depths, by interpolation of its curve over thresholds; grey: depths fixed beforehand."
    )
    return [Heading("Exit rules"), *pictures, Text(note, "note")] if pictures else []


def _success(result: StudyResult, verdicts: Mapping[str, Verdict]) -> list[Block]:
    primary = next((verdict for verdict in verdicts.values() if verdict.primary), None)
    found = tables.success(result, primary)
    return [Heading("Success and time to threshold"), found[0], Text(found[1], "note")] if found else []


def _floors(result: StudyResult) -> list[Block]:
    return [Heading("Floors"), tables.floors(result)] if result.study.get("floors") else []


def _sweep(result: StudyResult, drawn: Sequence[Drawn]) -> list[Block]:
    if not result.study.get("sweep"):
        return []
    picture = _pictures(drawn, "rates") if result.study.get("contrasts") else []
    note = "Fitted: a parabola in the logarithm of the rate, over all finite seeds. Regret: how far from its best."
    return [Heading("Learning rates"), *picture, tables.sweep(result), tables.sweep_fits(result), Text(note, "note")]


def _runs(result: StudyResult) -> list[Block]:
    found: list[Block] = [Heading("Runs"), Text(_counts(result)), tables.runs(result)]
    if result.stale:
        names = ", ".join(result.stale)
        found.append(Text(f"Stale (not what the study yields today, and in no number here): {names}.", "note"))
    return found


def _reproduce(result: StudyResult) -> list[Block]:
    runs, registered = result.runs, result.study.get("registered")
    commits = sorted(set(runs["commit"]) - {""})
    lines = [result.study["command"]]
    tree = " (with uncommitted changes)" if (runs["dirty"] == "true").any() else ""
    facts = [f"Commit: {', '.join(commits)}{tree}." if commits else "Commit: not recorded."]
    hardware = sorted(set(runs["hardware"]) - {""})
    facts += [f"Hardware: {'; '.join(hardware)}."] if hardware else []
    facts += [f"Precision: {said}." for said in [counted(runs)] if said]
    stamp = f"registered {registered['time']} as {registered['hash']}" if registered else "not registered"
    facts.append(f"Study hash: {result.study['hash']}, {stamp}.")
    return [Heading("How to reproduce"), Text("\n".join(lines), "code"), *[Text(fact) for fact in facts]]


def _pictures(drawn: Sequence[Drawn], kind: str) -> list[Picture]:
    """Figures of a kind; those of one group as one picture with a choice of axis."""
    groups: dict[str, list[Drawn]] = {}
    for one in drawn:
        if one.kind == kind:
            groups.setdefault(one.group or one.path.name, []).append(one)
    return [Picture(tuple(group), tuple(X_LABELS.get(one.option, "") for one in group)) for group in groups.values()]


def _metrics(result: StudyResult, verdicts: Mapping[str, Verdict]) -> list[str]:
    """What the arms are compared on: the primary contrast's metric first, then other contrasts', else targets'."""
    if not result.study["seeds"]:
        return []
    wanted = [verdict.metric for verdict in verdicts.values()]
    wanted += [arm["target"]["metric"] for arm in result.study["arms"].values() if arm.get("target")]
    wanted += [result.study["calibration"]["metric"]] if result.study.get("calibration") else []
    return list(dict.fromkeys(wanted))


def _counts(result: StudyResult) -> str:
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items())
    return f"Runs: {counts or 'none'}."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
