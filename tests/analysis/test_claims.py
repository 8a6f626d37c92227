"""The claims ledger: every claim once, what committed evidence says and no more, and evidence that still says it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_study import Fake

from analysis import claims, ledger, report, runs
from analysis.evidence import Evidence, MismatchError, Stated, read, read_all
from ouro_lab.claims import FILE, known
from ouro_lab.config import ROOT, ConfigError
from ouro_lab.study import Study

RESULTS = ROOT / "experiments" / "results"
IDS = [f"C{i:02d}" for i in range(1, 40)] + [f"S{i:02d}" for i in range(1, 19)]
STATED = Stated("abcd1234", ("S03",), {"depth_by_reuse": (), "cost_of_tying": ()})  # as fake studies are written


def commit(fake: Fake, folder: Path) -> Path:
    """A fake study's evidence, as `make evidence` leaves it."""
    fake.write(folder / "runs")
    result = runs.load(fake.name, folder / "runs", folder / "none")
    target = folder / "results" / fake.name
    runs.export(result, target)
    report.write(result, target, formats=("svg",))
    (target / "evidence.json").write_text(json.dumps({"hash": result.study["hash"]}))
    return target


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return commit(Fake(), tmp_path_factory.mktemp("committed"))


@pytest.fixture
def changed(committed: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(committed, tmp_path / "results" / "p_hop"))


def written(results: Path, stated: dict[str, Stated], folder: Path) -> str:
    rows = ledger.rows(known().values(), read_all(results, stated))
    return claims.write(rows, folder / "docs").read_text()


def lines(page: str, claim: str) -> list[list[str]]:
    """The page's rows of one claim, as cells."""
    return [line[2:-2].split(" | ") for line in page.splitlines() if line.startswith(f"| {claim} |")]


def test_every_claim_is_in_the_file_once_and_on_the_page(tmp_path: Path) -> None:
    assert re.findall(r"^([A-Z]\d+):", FILE.read_text(), re.MULTILINE) == list(known()) == IDS
    page = written(tmp_path, {}, tmp_path)
    assert [line.split(" | ")[0][2:] for line in page.splitlines() if re.match(r"\| [CS]\d", line)] == IDS
    words = {lines(page, claim)[0][8] for claim in IDS}
    assert words == {"not run", "needs weights", "needs GPUs", "by tests"}
    assert "0 of 57 claims have evidence (none)" in page


def test_tests_that_a_claim_names_exist() -> None:
    assert [test for claim in known().values() for test in claim.tests if not (ROOT / test).is_file()] == []


def test_a_row_of_p_hop_is_its_verdict_json() -> None:
    folder = RESULTS / "p_hop"
    said = json.loads((folder / "verdict.json").read_text())
    one = read(folder, None)
    found = ledger.of_study(known()["S03"], one)[0]
    contrast = said["contrasts"][said["primary"]]
    assert (found.word, found.n) == (contrast["word"], str(contrast["n"]))
    assert contrast["word"] in found.verdict
    numbers = [float(x) for x in re.findall(r"[+−]?\d+\.\d+", found.effect.replace("−", "-"))]
    assert numbers == pytest.approx([contrast["effect"], *contrast["interval_adjusted"]], abs=0.005)
    assert found.effect.endswith(contrast["metric"])


@pytest.fixture(scope="module")
def judged() -> list[Evidence]:
    """All that is committed, judged again: refused where it is not judged the same."""
    return read_all(RESULTS, {})


def test_all_committed_evidence_is_judged_the_same_again(judged: list[Evidence]) -> None:
    found = {one.folder.name for one in judged}
    assert found == {folder.parent.name for folder in RESULTS.glob("*/verdict.json")}
    assert "p_hop" in found


def test_the_page_in_the_tree_has_the_numbers_of_its_evidence(judged: list[Evidence]) -> None:
    """No contrast's row is typed or stale, and no study is left out; only `make claims` knows if all rows are there."""
    page = (ROOT / "docs" / "claims.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if "/report.md)" in line]
    by_study: dict[str, list[list[str]]] = {}
    for row in rows:
        by_study.setdefault(re.findall(r"results/(\w+)/report\.md", row[-1])[0], []).append(row)
    for one in judged:
        name, laws = one.folder.name, {claim.id for claim in known().values() if claim.law}
        assert name in by_study or not one.result.study["claim"], name
        allowed = {ledger.of_contrast(known()["S03"], one, verdict).effect for verdict in one.verdicts.values()}
        shown = {row[7] for row in by_study.get(name, ()) if row[0] not in laws}
        if one.verdicts:
            assert shown <= allowed, name


def test_changed_evidence_changes_the_page(committed: Path, tmp_path: Path) -> None:
    page = written(committed.parent, {"p_hop": STATED}, tmp_path / "a")
    row = lines(page, "S03")[0]
    assert row[8] == "supported"
    assert row[4] == "looped 2⊗3 v iso_parameter 2⊗1: better by more than 0.05"
    weak = {("looped", seed): {"accuracy/hops_8": 0.40 + seed / 100} for seed in (0, 1, 2)}
    commit(Fake(final=weak), tmp_path)
    other = lines(written(tmp_path / "results", {"p_hop": STATED}, tmp_path / "b"), "S03")[0]
    assert other[8] != row[8]
    assert other[7] != row[7]
    assert other[:4] == row[:4]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("contrasts", "depth_by_reuse", "word"), "contradicted"),
        (("contrasts", "depth_by_reuse", "effect"), 0.9),
        (("contrasts", "depth_by_reuse", "interval"), [0.1, 0.2]),
        (("contrasts", "cost_of_tying", "qualifiers"), ["exploratory"]),
        (("positive_control", "shown"), False),
        (("hash",), "11111111"),
    ],
)
def test_a_verdict_that_its_runs_do_not_give_is_refused(changed: Path, path: tuple[str, ...], value: object) -> None:
    said = json.loads((changed / "verdict.json").read_text())
    part = said
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    (changed / "verdict.json").write_text(json.dumps(said))
    with pytest.raises(MismatchError, match=rf"^study p_hop: verdict.json says {re.escape('.'.join(path))}") as error:
        read(changed, STATED)
    assert "\n" not in str(error.value)


def test_runs_changed_by_hand_and_hidden_contrasts_are_refused(changed: Path) -> None:
    table = (changed / "runs.csv").read_text()
    (changed / "runs.csv").write_text(table.replace(",done,", ",diverged,", 1))
    with pytest.raises(MismatchError, match="study p_hop: verdict.json says"):
        read(changed, STATED)
    (changed / "runs.csv").write_text(table)
    said = json.loads((changed / "verdict.json").read_text())
    del said["contrasts"]["cost_of_tying"]
    (changed / "verdict.json").write_text(json.dumps(said))
    with pytest.raises(MismatchError, match="study p_hop: .* different contrasts"):
        read(changed, STATED)


def test_a_mismatch_ends_the_command_with_one_line(changed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (changed / "evidence.json").write_text('{"hash": "00000000"}')
    assert claims.main([], changed.parent) == 2
    assert capsys.readouterr().err.startswith("error: study p_hop: evidence.json has hash 00000000")


@pytest.mark.parametrize("stated", [None, replace(STATED, hash="ffffffff")])
def test_evidence_of_another_version_is_marked(committed: Path, stated: Stated | None) -> None:
    (row,) = ledger.of_study(known()["S03"], read(committed, stated))
    assert row.verdict == "supported; outdated"
    assert row.word == "supported"


def test_a_contrast_speaks_for_the_claims_that_it_names(committed: Path) -> None:
    named = Stated("abcd1234", ("S03", "C21"), {"depth_by_reuse": (), "cost_of_tying": ("C21",)})
    one = read(committed, named)
    assert one.speakers == {"S03": ["depth_by_reuse"], "C21": ["cost_of_tying"]}
    assert ledger.of_study(known()["C21"], one)[0].word == "equivalent"
    assert ledger.of_study(known()["C20"], one) == []
    renamed = read(committed, replace(named, contrasts={"gone": ("C21",)}))  # then the evidence's own words count
    assert renamed.speakers == {"S03": ["depth_by_reuse"]}


def test_scope_is_against_the_claims_published_size(committed: Path) -> None:
    one = read(committed, replace(STATED, claim=("C20",)))
    assert "(1/260 of the paper's 25M)" in ledger.of_study(known()["C20"], one)[0].scope


def test_a_calibration_is_an_estimate_of_one_arm() -> None:
    (row,) = ledger.of_study(known()["S16"], read(RESULTS / "aa_p_hop", None))
    assert (row.word, row.n) == ("estimated", "10")
    assert "of 252 splits" in row.effect


def test_cost_counts_the_threads_or_the_gpus_of_each_run(committed: Path) -> None:
    table = runs.from_evidence(committed).runs.head(2).assign(seconds=[3600.0, 7200.0])
    assert ledger.cost(table) == "3.0 core-h"
    assert ledger.cost(table.assign(hardware="8 threads of 16 cores, CPU")) == "24 core-h"
    assert ledger.cost(table.assign(hardware="GPU X, GPU X, 8 threads of 16 cores, CPU")) == "6.0 GPU-h"


def test_links_lead_to_files_in_both_pages(tmp_path: Path) -> None:
    evidence = [read(RESULTS / "p_hop", None), read(RESULTS / "aa_p_hop", None)]
    page = claims.write(ledger.rows(known().values(), evidence), tmp_path / "docs")
    for text, pattern, name in (
        (page.read_text(), r"\]\(([^)]+)\)", "report.md"),
        (page.with_suffix(".html").read_text(), r'href="([^"]+)"', "report.html"),
    ):
        links = re.findall(pattern, text)
        assert [link for link in links if not (page.parent / link).is_file()] == []
        assert {name, "runs.csv"} <= {Path(link).name for link in links}


def test_the_page_in_the_tree_leads_to_files() -> None:
    text = (ROOT / "docs" / "claims.md").read_text()
    links = re.findall(r"\]\((\.\.[^)]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / "docs" / link).is_file()] == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study.claim=[S3]", r"study.claim: S3 is no claim of the ledger; did you mean S\d\d\?"),
        (
            "study.contrasts.cost_of_tying.claim=[S30]",
            r"study.contrasts.cost_of_tying.claim: S30 is no claim of the ledger; did you mean S\d\d\?",
        ),
        ("study.contrasts.cost_of_tying.claim=[C19]", "study.contrasts.cost_of_tying.claim: C19 is not in study.claim"),
    ],
)
def test_a_study_may_only_name_claims_of_the_ledger(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study("p_hop", [override])


def test_claims_are_outside_of_the_study_hash() -> None:
    plain = json.loads((RESULTS / "p_hop" / "study.json").read_text())["hash"]
    named = [
        "study.claim=[S03,C20]",
        "study.contrasts.cost_of_tying.claim=[C20]",
        "study.contrasts.depth_by_reuse.claim=[]",
    ]
    assert Study("p_hop", named).hash == Study("p_hop").hash == plain
