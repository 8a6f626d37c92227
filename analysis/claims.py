"""The claims ledger, `make claims`: docs/claims.md and docs/claims.html, from committed evidence alone.

It lies in docs/ because it is read, and experiments/results/ holds only what `make evidence` wrote.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from analysis import ledger
from analysis.blocks import Block, Cell, Heading, Link, Table, Text, markdown, page, plain_table
from analysis.evidence import read_all
from analysis.ledger import Row
from analysis.runs import RESULTS
from ouro_lab import records
from ouro_lab.claims import known
from ouro_lab.config import ROOT, ConfigError, study_names
from ouro_lab.study import Study

TITLE = "Claims about looped language models, and what was found here"
HEADER = ("claim", "what it says (where)", "published", "regime", "arms and rule", "n", "learning rates")
HEADER += ("effect [interval]", "verdict", "scope", "cost", "evidence")
WORDS = tuple(index for index, name in enumerate(HEADER) if name != "n")
PARTS = {"C": "The Ouro paper's comparisons, C01–C39", "S": "Looped models at large, S01–S18"}
STYLE = "main { max-width: none }\ntd.w { min-width: 6rem }\ntd.w:first-child, td.w:nth-child(11) { min-width: 3rem }\n"
STYLE += "td.w:nth-child(2) { min-width: 15rem }\n"
NOTES = (
    "Made by make claims from experiments/results/; statements and published figures are in ouro_lab/claims.yaml, and "
    "nothing else is written by hand. Before a verdict is shown it is judged again from its runs.",
    "One row per claim, study and contrast or fit that speaks for it. Effect: arm − reference on the final step, with "
    "its 95 % interval unless another is stated. Supported: the contrast's rule holds as it was fixed before the first "
    "run; docs/reading_results.md has the other words. Outdated: the study's file has changed since. By tests: the "
    "test suite checks the statement, no study does. That a scaling law holds is judged by its fit to the study's "
    "runs: its loop term has to lower the error on the largest size and on the largest depth, both held out. Ready: a "
    "study that would test it and has no evidence yet. Scope: against the smallest published model. Cost: all runs of "
    "the study, without a rate sweep that another study made.",
)


def write(rows: Sequence[Row], folder: Path) -> Path:
    """claims.md (returned) and claims.html, which links to each study's report.html instead of report.md."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "claims.html").write_text(page(blocks(rows, folder, "report.html"), TITLE, STYLE))
    (folder / "claims.md").write_text(markdown(blocks(rows, folder, "report.md"), folder))
    return folder / "claims.md"


def blocks(rows: Sequence[Row], folder: Path, report: str) -> list[Block]:
    """The page in reading order. report: the file name that evidence links to."""
    found: list[Block] = [Heading(TITLE, 1), Text(summary(rows), "lead"), *[Text(note, "note") for note in NOTES]]
    for letter, title in PARTS.items():
        found += [Heading(title), _table([row for row in rows if row.claim.id.startswith(letter)], folder, report)]
    return found


def summary(rows: Sequence[Row]) -> str:
    """How many claims have evidence, and the rows by verdict, the most frequent first."""
    tested = list(dict.fromkeys(row.claim.id for row in rows if row.study))
    counts = Counter(row.word for row in rows)
    outdated = sum(row.verdict.endswith("; outdated") for row in rows)
    words = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    stale = f"; outdated: {outdated}" if outdated else ""
    claims = len({row.claim.id for row in rows})
    return f"{len(tested)} of {claims} claims have evidence ({', '.join(tested) or 'none'}). Rows: {words}{stale}."


def ready(evidence: set[str]) -> dict[str, list[str]]:
    """Claim → the studies of experiments/ that name it and have no evidence."""
    found: dict[str, list[str]] = {}
    for name in study_names():
        if name not in evidence:
            for claim in Study(name).definition.claim:
                found.setdefault(claim, []).append(name)
    return found


def main(arguments: Sequence[str], results: Path = RESULTS) -> int:
    """Exit status: 0, or 2 for evidence that does not give its verdict, or a study's file that is not valid."""
    if arguments:
        print("usage: python -m analysis.claims", file=sys.stderr)
        return 2
    try:
        evidence = read_all(results)
        rows = ledger.rows(known().values(), evidence, ready({one.folder.name for one in evidence}))
    except (ConfigError, ValueError, OSError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # SMOKE=1 leaves nothing in the tree.
    found = write(rows, records.runs_root() / "claims" if records.smoke() else ROOT / "docs")
    print(plain_table(Table(("claim", "study", "n", "verdict"), [_short(row) for row in rows if row.study], (0, 1, 3))))
    print(f"{summary(rows)}\nledger: {found}, {found.with_suffix('.html').name}")
    return 0


def _table(rows: Sequence[Row], folder: Path, report: str) -> Table:
    cells, last = [], ""
    for row in rows:
        claim = row.claim
        said = (f"{claim.statement} ({claim.source})", claim.published) if claim.id != last else ("as above", "″")
        facts = (row.regime, row.arms, row.n, row.rates, row.effect, row.verdict, row.scope, row.cost)
        cells.append((claim.id, *said, *facts, _links(row, folder, report)))
        last = claim.id
    return Table(HEADER, cells, left=WORDS)


def _links(row: Row, folder: Path, report: str) -> Cell:
    """Relative to the page, so that they hold wherever the repository lies."""
    if not row.sources:
        return row.note
    files = {text: path.with_name(report) if path.name == "report.md" else path for text, path in row.sources.items()}
    return tuple(Link(text, Path(os.path.relpath(path, folder)).as_posix()) for text, path in files.items())


def _short(row: Row) -> tuple[str, str, str, str]:
    return row.claim.id, row.study or "", row.n, row.verdict


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
