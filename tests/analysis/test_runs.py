import gzip
import json
import math
from pathlib import Path

import pandas as pd
import pytest
from fake_study import Fake

from analysis import runs


def test_a_row_per_run_of_today_with_all_that_is_known(result: runs.StudyResult) -> None:
    row = result.runs[(result.runs["arm"] == "looped") & (result.runs["seed"] == 1)].iloc[0]
    assert len(result.runs) == 9
    assert (row["state"], row["phase"], row["lr"], row["steps"]) == ("done", "main", 0.002, 1500)
    assert row["cost/flops_by_part/body"] == pytest.approx(0.8 * row["cost/flops_per_token"])
    assert row["final/accuracy/hops_8"] == pytest.approx(0.977, abs=0.001)
    assert (row["commit"], row["hardware"]) == ("c0ffee0123456789", "1 thread of 2 cores, Test CPU")


def test_stale_directories_are_named_and_never_enter(result: runs.StudyResult) -> None:
    assert len(result.stale) == 1
    assert result.stale[0].startswith("looped-0.004-0")
    assert 0.004 not in set(result.runs["lr"])
    assert result.counts == {"done": 9, "stale": 1}


def test_curves_are_long_with_arm_and_seed(result: runs.StudyResult) -> None:
    assert list(result.curves.columns) == ["id", "arm", "seed", "step", "metric", "value"]
    assert "time" not in set(result.curves["metric"])
    last = result.curves[(result.curves["arm"] == "iso_flop") & (result.curves["metric"] == "val/loss")]
    assert last.groupby("seed")["step"].max().tolist() == [1500] * 3


def test_evidence_gives_the_same_frames(result: runs.StudyResult, tmp_path: Path) -> None:
    runs.export(result, tmp_path / "p_hop")
    again = runs.load("p_hop", tmp_path / "nothing", tmp_path)
    pd.testing.assert_frame_equal(again.runs, result.runs, check_exact=True)
    pd.testing.assert_frame_equal(again.curves, result.curves, check_exact=True)
    assert (again.study, again.stale, again.counts) == (result.study, result.stale, result.counts)


def test_an_unfinished_study_survives_export(make, tmp_path: Path) -> None:
    states = {("looped", 0): "diverged", ("looped", 1): "failed", ("looped", 2): "to do", ("iso_flop", 0): "running"}
    result = make(Fake(states=states))
    runs.export(result, tmp_path / "p_hop")
    again = runs.load("p_hop", tmp_path / "nothing", tmp_path)
    pd.testing.assert_frame_equal(again.runs, result.runs, check_exact=True)
    pd.testing.assert_frame_equal(again.curves, result.curves, check_exact=True)
    lost = result.curves[(result.curves["id"] == result.runs["id"][0]) & (result.curves["step"] == 405)]
    assert math.isnan(lost.set_index("metric")["value"]["train/loss"])


def test_every_state_is_counted(make) -> None:
    states = {("looped", 0): "diverged", ("looped", 1): "failed", ("looped", 2): "to do", ("iso_flop", 0): "running"}
    result = make(Fake(states=states))
    assert result.counts == {"done": 5, "diverged": 1, "failed": 1, "running": 1, "to do": 1}
    failed = result.runs[result.runs["state"] == "failed"].iloc[0]
    assert (failed["reason"], failed["steps"]) == ("OSError: disk full", 300)


def test_a_run_whose_process_is_gone_was_interrupted(tmp_path: Path) -> None:
    folder = Fake(states={("looped", 0): "running"}).write(tmp_path)
    path = next(folder.glob("looped-0.002-0-*")) / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": 2**22 + 1}))
    assert runs.load("p_hop", tmp_path).counts["interrupted"] == 1


def test_export_is_the_same_bytes_each_time(result: runs.StudyResult, tmp_path: Path) -> None:
    for name in ("one", "two"):
        runs.export(result, tmp_path / name)
    for file in ("runs.csv", "curves.csv.gz", "study.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert (tmp_path / "one" / "curves.csv.gz").read_bytes()[4:8] == b"\0\0\0\0"  # gzip's clock
    text = gzip.decompress((tmp_path / "one" / "curves.csv.gz").read_bytes()).decode()
    assert text.startswith("id,step,metric,value\n")


def test_runs_come_before_evidence(result: runs.StudyResult, study_root: Path, tmp_path: Path) -> None:
    runs.export(result, tmp_path / "p_hop")
    text = (tmp_path / "p_hop" / "runs.csv").read_text()
    (tmp_path / "p_hop" / "runs.csv").write_text(text.replace("done", "failed"))
    assert runs.load("p_hop", study_root, tmp_path).counts["done"] == 9
    assert runs.load("p_hop", tmp_path / "nothing", tmp_path).counts["failed"] == 9


def test_ouro_runs_is_the_default_root(
    study_root: Path, monkeypatch: pytest.MonkeyPatch, result: runs.StudyResult
) -> None:
    monkeypatch.setenv("OURO_RUNS", str(study_root))
    assert len(runs.load("p_hop").runs) == len(result.runs)


def test_parquet_holds_the_same(result: runs.StudyResult, tmp_path: Path) -> None:
    paths = runs.to_parquet(result, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), result.runs, check_dtype=False)
    assert len(pd.read_parquet(paths[1])) == len(result.curves)


def test_unknown_study_names_the_nearest(study_root: Path, tmp_path: Path) -> None:
    with pytest.raises(runs.UnknownStudyError, match=r"p_hpo.*nearest: p_hop"):
        runs.load("p_hpo", study_root, tmp_path)
