"""BUDGET=: what is dropped first, what never, and that a cut once made stays."""

import json
from functools import cache
from pathlib import Path

import pytest
from tests_support import TINY

from analysis import runs
from ouro_lab import __main__ as entry
from ouro_lab import cut, estimate, launch, records, verbs
from ouro_lab.config import ConfigError
from ouro_lab.estimate import Price
from ouro_lab.study import Study

ARMS = ("looped", "iso_parameter", "iso_flop", "more_tokens", "wider", "stage_one")
MINUTE = Price(dict.fromkeys(ARMS, 60.0), dict.fromkeys(ARMS, "invented"), slots=1)  # a run a minute, one at a time


@cache  # a composition of each arm is half a second
def full(*overrides: str) -> Study:
    return Study("p_hop_full", ["study.lr=null", *overrides])


def kept(minutes: float) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    found = cut.cut(full(), MINUTE, minutes)
    assert found.minutes <= minutes
    assert found == cut.cut(full(), MINUTE, minutes)
    assert found.seeds == (0, 1, 2, 3, 4)[: len(found.seeds)]
    return len(found.seeds), found.arms, found.contrasts


def test_what_fits_is_not_cut():
    assert kept(30) == (5, ARMS, tuple(full().definition.contrasts))
    assert cut.cut(full(), MINUTE, 30).overrides(full().definition) == []


def test_seeds_go_first_from_the_end():
    assert [kept(minutes)[0] for minutes in (29.9, 24, 18, 12)] == [4, 4, 3, 2]
    assert kept(12)[1:] == (ARMS, tuple(full().definition.contrasts))


def test_what_another_comes_after_stays_as_long_as_that_one():
    gated = full("+study.contrasts.depth_by_reuse.after=[cost_of_tying]").definition
    stages = [contrasts for _, contrasts in cut._stages(gated)]
    assert stages[-1] == ("depth_by_reuse", "cost_of_tying")
    assert all("cost_of_tying" in contrasts for contrasts in stages)
    assert [contrasts for _, contrasts in cut._stages(full().definition)][-1] == ("depth_by_reuse",)
    other = full("+study.contrasts.against_more_tokens.after=[against_width]").definition
    names = tuple(other.contrasts)
    assert names.index("against_width") > names.index(
        "against_more_tokens"
    )  # so it is passed over once, and goes afterwards
    assert [contrasts for _, contrasts in cut._stages(other)][-1] == ("depth_by_reuse",)


def test_then_contrasts_from_the_end_with_the_arms_that_served_them_alone():
    contrasts = tuple(full().definition.contrasts)
    assert kept(11) == (2, ARMS[:5], contrasts[:4])
    assert kept(8) == (2, ARMS[:4], contrasts[:3])
    # Without more_tokens, three arms are left, and a minute more is no seed more.
    assert kept(7) == (2, ARMS[:3], contrasts[:2])


def test_the_primary_contrast_and_the_positive_control_stay():
    """iso_flop serves no contrast at the end, but without it there is no verdict."""
    assert list(cut._stages(full().definition))[-1] == (("looped", "iso_parameter", "iso_flop"), ("depth_by_reuse",))
    with pytest.raises(
        ConfigError, match="BUDGET = 5.9: p_hop_full needs 6 minutes here for depth_by_reuse with 2 seeds"
    ):
        cut.cut(full(), MINUTE, 5.9)


def test_what_a_dropped_arm_saves_goes_back_to_seeds():
    price = Price(MINUTE.seconds | {"stage_one": 600.0}, MINUTE.basis, slots=1)
    found = cut.cut(full(), price, 25)  # two seeds of all are 30 minutes, five without stage_one 25
    assert (len(found.seeds), found.arms) == (5, ARMS[:5])


def test_finished_runs_cost_nothing():
    study = Study("p_hop_full", ["study.lr=null"])
    for run in study.expand():
        if run.arm != "stage_one":
            records.begin(run.directory, run.identity(), run.config)
            records.finish(run.directory, "done")
    assert cut.cut(study, MINUTE, 5).overrides(study.definition) == []


def test_a_sweep_counts_but_cannot_be_cut():
    study = Study("p_hop_lr")
    with pytest.raises(ConfigError, match="needs 18 minutes here for all of it, which has nothing to cut"):
        cut.cut(study, MINUTE, 17)
    assert cut.cut(study, MINUTE, 18).overrides(study.definition) == []


def test_a_calibration_keeps_the_seeds_that_it_splits():
    study = Study("aa_p_hop")
    with pytest.raises(ConfigError, match="needs 10 minutes here for it with 10 seeds of looped"):
        cut.cut(study, MINUTE, 9)


def test_the_cut_is_ordinary_overrides():
    found = cut.cut(full(), MINUTE, 8).overrides(full().definition)
    assert found == [
        "study.seeds=[0,1]",
        "~study.contrasts.against_width",
        "~study.contrasts.stage_one",
        "~study.arms.wider",
        "~study.arms.stage_one",
    ]
    small = full(*found)
    assert tuple(small.definition.arms) == ARMS[:4]
    assert {run.id for run in small.expand()} < {run.id for run in full().expand()}  # no run is another
    assert small.hash != full().hash
    words = cut.difference(full().definition, small.definition)
    assert words == (
        "seeds [0, 1] of [0, 1, 2, 3, 4]; without contrasts against_width, stage_one; without arms wider, stage_one"
    )


def test_a_cut_once_made_stays():
    study, price = full(), Price(MINUTE.seconds, MINUTE.basis, slots=2)
    overrides, how = cut.within(study, MINUTE, 8)
    assert how.startswith("cut to about 8.0 minutes")
    cut.remember(study, full(*overrides), 8)
    assert cut.within(study, price, 8) == (overrides, "as cut at first")
    assert cut.within(study, price, 8.5)[0] != overrides


def budget_run(*more: str) -> int:
    """`make experiment` on tiny p_hop, two seeds' worth of minutes."""
    overrides = [*TINY, "tracking=none", "study.seeds=[0,1,2]"]
    return entry.main(["run", "p_hop", *overrides, *more])


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "no evidence")
    monkeypatch.setattr(verbs, "_report", lambda study, store: None)
    monkeypatch.setattr(launch.Local, "execute", lambda self, todo, everything, watch: None)
    monkeypatch.setattr(estimate, "slots", lambda study: 1)
    flops = {arm: part.cost["training_flops"] for arm, part in _parts().items()}
    # One core does all three arms of one seed in just under a minute.
    monkeypatch.setattr(estimate, "rate", lambda study, part: sum(flops.values()) / 59)


@cache
def _parts():
    from ouro_lab.check import check

    return check(Study("p_hop", TINY))


def test_experiment_says_what_it_cut_and_what_that_leaves_open(nothing_runs, capsys):
    assert budget_run("--budget=2.5") == 0
    out = capsys.readouterr().out
    assert "BUDGET=2.5: cut to about 2.0 minutes here\n  seeds [0, 1] of [0, 1, 2]\n" in out
    content = json.loads((records.runs_root() / "p_hop" / "study.json").read_text())
    assert content["seeds"] == [0, 1]
    assert "study.seeds=[0,1]" in content["command"].split("study.seeds=[0,1,2]")[1]
    assert content["registered"]["hash"] == content["hash"]  # cut before any result: not exploratory
    assert budget_run("--budget=2.5") == 0
    assert "BUDGET=2.5: as cut at first" in capsys.readouterr().out


def test_too_small_a_budget_is_one_line_and_leaves_nothing(nothing_runs, capsys):
    assert budget_run("--budget=1.9") == 2
    error = capsys.readouterr().err.splitlines()
    what = "depth_by_reuse with 2 seeds of looped, iso_parameter, iso_flop"
    assert error == [f"error: BUDGET = 1.9: p_hop needs 2 minutes here for {what}"]
    assert not [path for path in records.runs_root().rglob("*") if path.is_file() and path.name != ".lock"]


@pytest.mark.parametrize("text", ["x", "0", "-3", "inf", "nan"])
def test_a_budget_is_minutes(text):
    with pytest.raises(ConfigError, match=f"BUDGET = {text}: must be minutes > 0"):
        cut.read_minutes(text)


def test_only_run_takes_a_budget(capsys):
    assert entry.main(["status", "p_hop", "--budget=3"]) == 2
    assert "status: takes no --budget" in capsys.readouterr().err


def test_a_pilot_is_a_study_and_no_part_of_the_hash():
    assert Study("p_hop", ["study.lr=null", "study.pilot=text"]).hash == Study("p_hop", ["study.lr=null"]).hash
    with pytest.raises(ConfigError, match="study.pilot = p_hopp: no such study; did you mean p_hop"):
        Study("p_hop", ["study.pilot=p_hopp"])
