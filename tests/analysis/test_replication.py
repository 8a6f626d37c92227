"""A study run again beside its committed evidence."""

from pathlib import Path

import pytest
from fake_study import Fake

from analysis import replication, report, runs, statistics

METRIC = "accuracy/hops_8"
THERE = {"looped": [0.97, 0.98, 0.96], "iso_parameter": [0.42, 0.44, 0.43], "iso_flop": [0.98, 0.97, 0.96]}


def finals(**arms: list[float]) -> dict[tuple[str, int], dict[str, float]]:
    return {(arm, seed): {METRIC: x} for arm, values in arms.items() for seed, x in enumerate(values)}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Committed evidence, of runs that took another time than those made here."""
    Fake(final=finals(**THERE)).write(tmp_path / "there")
    found = runs.load("p_hop", tmp_path / "there")
    found.runs["seconds"] += 1
    runs.export(found, tmp_path / "results" / "p_hop")
    return tmp_path / "results"


def test_means_and_words_stand_beside_the_evidence(make, results: Path) -> None:
    here = make(Fake(final=finals(**THERE | {"looped": [0.90, 0.91, 0.92]})))
    there = replication.committed(here, results)
    rows = {row[0]: row[1:] for row in replication.compare(here, there).rows}
    low, high = statistics.prediction_interval(THERE["looped"], new=3)
    assert not low <= 0.91 <= high
    assert rows[f"looped at {METRIC}"] == ("0.910", "0.970", f"[{low:.3f}, {high:.3f}]", "outside", "0.070")
    assert rows[f"iso_parameter at {METRIC}"][-2:] == ("inside", "0.000")
    assert rows["depth_by_reuse"][-2] == "outside; supported"
    assert rows["cost_of_tying"][-2] == "outside; inconclusive, was equivalent"


def test_the_same_values_are_inside_everywhere(make, results: Path) -> None:
    here = make(Fake(final=finals(**THERE)))
    again = replication.compare(here, replication.committed(here, results))
    assert [row[-2].split(";")[0] for row in again.rows] == ["inside"] * 5


def test_only_other_runs_of_the_same_study_are_evidence_of_it(make, results: Path, tmp_path: Path) -> None:
    here = make(Fake(final=finals(**THERE)))
    assert replication.committed(here, results) is not None
    assert replication.committed(runs.from_evidence(results / "p_hop"), results) is None  # the very runs
    assert replication.committed(here, tmp_path / "nothing") is None
    here.study["hash"] = "another"
    assert replication.committed(here, results) is None


def test_the_command_prints_it(make, results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.print_summary(make(Fake(final=finals(**THERE))), results)
    shown = capsys.readouterr().out
    assert "95 % of replications" in shown
    assert f"looped at {METRIC}" in shown
