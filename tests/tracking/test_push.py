"""Pushes into real SQLite stores: whatever is repeated, killed or resumed, each number is there once."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ouro_lab import records, tracking
from ouro_lab.tracking import Store, push, push_report, push_study
from tests.tracking.fake_run import ID, STUDY, FakeRun, metrics, parameters, query, tags


def test_a_finished_run_is_complete_and_a_second_push_adds_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    first = metrics(store)
    assert push(run.directory, store)
    assert metrics(store) == first
    assert len(first) == 3 * 40 + 4 + 4
    assert query(store, "select name, status from runs") == [(ID, "FINISHED")]
    assert query(store, "select name from experiments where experiment_id != 0") == [("p_hop",)]
    times = dict(query(store, "select step, timestamp from metrics where key = 'train/loss'"))
    assert times == {row["step"]: round(row["time"] * 1000) for row in records.read_metrics(run.log.path)}


def test_parameters_are_the_ablated_keys_and_few_facts(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"git": {"commit": "f" * 40, "dirty": False}})
    assert push(run.directory, store)
    found = parameters(store)
    assert found["arm"] == "looped"
    assert found["lr"] == "0.002"
    assert found["backbone"] == "looped"
    assert found["backbone.loops"] == "3"
    assert found["objective"] == "LastLoop"
    assert found["training_flops"] == "1e+09"
    assert found["commit"] == "f" * 12
    assert len(found) <= 22
    assert tags(store)["claim"] == "S03"
    assert tags(store)["study_hash"] == "11112222"


def test_the_experiment_shows_the_question_and_few_columns(run: FakeRun, store: Store) -> None:
    assert push(run.directory, store)
    changed = STUDY | {"contrasts": {"depth": {"metric": "accuracy/hops_8", "primary": True}}}
    records.write_json(run.directory.parent / "study.json", changed)
    assert push(run.directory, store)
    found = dict(query(store, "select key, value from experiment_tags where experiment_id != 0"))
    assert found["mlflow.note.content"].startswith("Does looping")
    columns = json.loads(found["mlflow.sharedViewState.ouro"])["selectedColumns"]
    assert columns[:3] == ["metrics.`final/accuracy/hops_8`", "metrics.`final/loss`", "params.`arm`"]
    assert len(columns) <= 10
    assert store.pages("http://x") == ["p_hop  http://x/#/experiments/1/runs?viewStateShareKey=ouro"]


def test_artifacts_lie_beside_the_store_and_hold_no_weights(run: FakeRun, store: Store) -> None:
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    names = sorted(path.name for path in (store.database.parent / "mlflow_artifacts").rglob("*") if path.is_file())
    assert names == ["config.yaml", "record.json", "run.json"]


def test_an_unfinished_run_gives_what_its_checkpoint_covers(run: FakeRun, store: Store) -> None:
    run.train(1, 27)
    assert push(run.directory, store)
    assert query(store, "select max(step) from metrics") == [(20,)]
    assert query(store, "select status from runs") == [("RUNNING",)]


def test_pieces_while_a_run_grows_equal_one_push(
    run: FakeRun, new_store: Callable[[str], Store], tmp_path: Path
) -> None:
    pieces, once = new_store("pieces"), new_store("once")
    for first, last in ((1, 7), (8, 15), (16, 23), (24, 32), (33, 40)):
        run.train(first, last)
        assert push(run.directory, pieces)
    run.end()
    assert push(run.directory, pieces)
    assert push(run.copy(tmp_path / "elsewhere").directory, once)
    assert metrics(pieces) == metrics(once)


def test_a_resume_behind_the_checkpoint_doubles_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 27)
    assert push(run.directory, store)
    run.log.cut(20)
    run.begin()
    run.train(21, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]


def test_a_lost_checkpoint_takes_nothing_back_and_doubles_nothing(run: FakeRun, store: Store) -> None:
    run.train(1, 30)
    assert push(run.directory, store)
    shutil.rmtree(run.directory / "checkpoints")
    run.log.cut(0)
    time.sleep(0.01)  # the rows get other times
    run.train(1, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]


def test_a_changed_parameter_becomes_a_drift_tag(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"git": {"commit": "a" * 40, "dirty": False}})
    assert push(run.directory, store)
    records.note(run.directory, {"git": {"commit": "b" * 40, "dirty": True}})
    assert push(run.directory, store)
    assert parameters(store)["commit"] == "a" * 12
    assert tags(store)["drift.commit"] == "b" * 12


def test_long_values_are_cut(run: FakeRun, store: Store) -> None:
    records.note(run.directory, {"execution": {"precision": "x" * 900}})
    assert push(run.directory, store)
    assert push(run.directory, store)
    assert parameters(store)["precision"] == "x" * 250
    assert "drift.precision" not in tags(store)


@pytest.mark.parametrize(("state", "status"), [("diverged", "FINISHED"), ("failed", "FAILED"), ("running", "RUNNING")])
def test_states(run: FakeRun, store: Store, state: str, status: str) -> None:
    run.train(1, 15)
    if state == "failed":
        records.finish(run.directory, state, "OSError: no space")
    elif state == "diverged":
        run.end(state)
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [(status,)]
    assert tags(store)["state"] == state
    last = 15 if state == "diverged" else 10
    assert query(store, "select max(step) from metrics where key = 'train/loss'") == [(last,)]


def test_a_killed_run_is_shown_as_interrupted_until_it_resumes(run: FakeRun, store: Store) -> None:
    state = records.read_state(run.directory)
    records.write_json(run.directory / "state.json", state | {"pid": 2**22 + 1})
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [("KILLED",)]
    run.begin()
    assert push(run.directory, store)
    assert query(store, "select status from runs") == [("RUNNING",)]


def test_non_finite_values_are_stored(run: FakeRun, store: Store) -> None:
    run.log.append(1, {"train/loss": math.nan, "optim/grad_norm": math.inf})
    run.end("diverged")
    assert push(run.directory, store)
    assert query(store, "select is_nan from metrics where key = 'train/loss'") == [(1,)]
    assert query(store, "select value > 1e300 from metrics where key = 'optim/grad_norm'") == [(1,)]


@pytest.mark.parametrize("where", ["_send_parameters", "_set_status", "_tag"])
def test_a_crash_between_the_metrics_and_the_cursor_doubles_nothing(
    run: FakeRun, store: Store, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run.train(1, 30)

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(tracking, where, crash)
        with pytest.raises(KeyboardInterrupt):
            push(run.directory, store)
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(30,)]
    run.train(31, 40)
    run.end()
    assert push(run.directory, store)
    assert query(store, "select count(*) from runs") == [(1,)]
    assert query(store, "select count(*) from metrics where key = 'train/loss'") == [(40,)]
    assert query(store, "select key, step, count(*) n from metrics group by key, step having n > 1") == []


def test_the_report_is_one_run_whose_description_it_is(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("supported at 96k parameters")
    (folder / "figures").mkdir()
    (folder / "figures" / "scaling_1_chinchilla.svg").write_text("<svg/>")
    assert push_report("p_hop", folder, store)
    (folder / "report.md").write_text("inconclusive")
    assert push_report("p_hop", folder, store)
    assert query(store, "select name, status from runs") == [("report", "FINISHED")]
    assert tags(store)["mlflow.note.content"] == "inconclusive"
    sent = [path for path in (store.database.parent / "mlflow_artifacts").rglob("*") if path.is_file()]
    assert sorted("/".join(path.parts[-2:]) for path in sent) == [
        "artifacts/report.md",
        "figures/scaling_1_chinchilla.svg",
    ]


def test_push_study_takes_every_run(tmp_path: Path, run: FakeRun, store: Store) -> None:
    other = run.directory.parent / "iso-0.002-0-ffff0000"
    shutil.copytree(run.directory, other)
    records.write_json(other / "run.json", records.read_json(other / "run.json") | {"id": other.name, "arm": "iso"})
    assert push_study(run.directory.parent, store)
    assert sorted(query(store, "select name from runs")) == [(other.name,), (ID,)]
