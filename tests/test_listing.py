"""`make list` composes a study again only when something that its row depends on has changed."""

import os
from pathlib import Path

import pytest

from ouro_lab import __main__ as entry
from ouro_lab import listing, records
from ouro_lab.config import study_names
from ouro_lab.study import Study

NAMES = ["multihop", "multihop_lr"]


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "cores", lambda: 1)


@pytest.fixture
def composed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names in the order in which rows were made anew."""
    made: list[str] = []
    real = listing.row
    monkeypatch.setattr(listing, "row", lambda name: (made.append(name), real(name))[1])
    return made


def test_a_second_list_composes_nothing_and_says_the_same(composed: list[str]) -> None:
    first = list(listing.rows(NAMES))
    assert composed == NAMES
    assert list(listing.rows(NAMES)) == first
    assert composed == NAMES
    assert first[1].startswith("multihop_lr\n") and "9 to do" in first[1]


@pytest.mark.slow
def test_rows_of_other_processes_are_those_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name in study_names() if name.startswith(("m", "t", "p_hop"))]
    assert len(names) >= 16
    monkeypatch.setattr(listing, "cores", lambda: 2)
    assert list(listing.rows(names)) == [listing.row(name)[0] for name in names]


def test_a_run_here_changes_its_own_row_and_those_that_take_rates_from_it(composed: list[str]) -> None:
    list(listing.rows(NAMES))
    records.write_json(records.runs_root() / "multihop_lr" / "some_run" / "state.json", {"state": "done"})
    list(listing.rows(NAMES))
    assert composed == NAMES * 2
    records.write_json(records.runs_root() / "multihop" / "some_run" / "state.json", {"state": "done"})
    list(listing.rows(NAMES))
    assert composed == [*NAMES * 2, "multihop"]


@pytest.mark.parametrize("name", ["CKPT", "SMOKE"])
def test_what_the_environment_says_changes_every_row(composed: list[str], monkeypatch, name: str) -> None:
    list(listing.rows(NAMES))
    monkeypatch.setenv(name, "1")
    list(listing.rows(NAMES))
    assert composed == NAMES * 2


def test_a_changed_file_changes_every_row(composed: list[str], monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "trunks").mkdir()
    weights = tmp_path / "trunks" / "model.safetensors"
    weights.write_bytes(b"weights")
    monkeypatch.setattr(listing, "ROOT", tmp_path)
    list(listing.rows(NAMES))
    os.utime(weights, ns=(1, 1))
    list(listing.rows(NAMES))
    assert composed == NAMES * 2


def test_a_row_with_a_run_under_way_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process may end without changing a file."""
    states = iter([("1 running", False), ("1 to do", True)])
    monkeypatch.setattr(listing, "row", lambda name: next(states))
    assert list(listing.rows(["multihop"])) == ["1 running"]
    assert list(listing.rows(["multihop"])) == ["1 to do"] == list(listing.rows(["multihop"]))


def test_list_shows_every_study_with_question_claim_and_cost(capsys, monkeypatch):
    """Those named here: all of them take a minute (README's `make list`, which is slow)."""
    names = ["mano_paper", "p_hop", "text_lr"]
    monkeypatch.setattr(listing, "study_names", lambda: names)
    assert entry.main(["list"]) == 0
    blocks = {block.splitlines()[0]: block for block in capsys.readouterr().out.split("\n\n") if block.strip()}
    assert sorted(blocks) == names
    for name, block in blocks.items():
        assert Study(name).definition.question in block
        assert "claim " in block
        assert "core-minutes" in block, block


def test_list_tells_evidence_of_an_earlier_version(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(listing, "RESULTS", tmp_path)
    monkeypatch.setattr(listing, "study_names", lambda: ["aa_text", "p_hop", "text"])
    for name, stamp in (("p_hop", Study("p_hop").hash), ("text", "0" * 8)):
        records.write_json(tmp_path / name / "evidence.json", {"hash": stamp})
    assert entry.main(["list"]) == 0
    other, same, earlier = capsys.readouterr().out.strip().split("\n\n")
    assert "evidence" not in other
    assert same.endswith("evidence committed")
    assert earlier.endswith("evidence committed, of an earlier version of the study")


def test_a_row_is_made_anew_when_the_runs_change_that_it_starts_from():
    before = listing._key("gate_p_hop_wide", b"")
    source = records.runs_root() / "trunk_p_hop_wide" / "a_run"
    source.mkdir(parents=True)
    (source / "run.json").write_text("{}")
    assert listing._key("gate_p_hop_wide", b"") != before
