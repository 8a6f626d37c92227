"""`make list` composes a study again only when something that its row depends on has changed."""

import os
from pathlib import Path

import pytest

from ouro_lab import listing, records

NAMES = ["multihop", "multihop_lr"]


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


def test_a_run_here_changes_its_own_row_and_those_that_take_rates_from_it(composed: list[str]) -> None:
    list(listing.rows(NAMES))
    records.write_json(records.runs_root() / "multihop_lr" / "some_run" / "state.json", {"state": "done"})
    list(listing.rows(NAMES))
    assert composed == NAMES * 2
    records.write_json(records.runs_root() / "mano" / "some_run" / "state.json", {"state": "done"})
    list(listing.rows(NAMES))
    assert composed == NAMES * 2


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
