"""Seeds for a decision against independent computations, the order of pilots, and what a person reads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_study import Fake, contrasts, match, write_sweep
from scipy import stats

from analysis import pilots, power, runs
from analysis import statistics as st
from analysis.planning import Need, Plan, needs
from analysis.verdict import judge
from ouro_lab import records
from ouro_lab.estimate import Price

METRIC = "accuracy/hops_8"
EVIDENCE = runs.RESULTS
ARMS = ("looped", "iso_parameter", "iso_flop")
PRICE = Price(dict.fromkeys(ARMS, 3600.0), dict.fromkeys(ARMS, "analytic estimate"), slots=2)


@pytest.fixture(autouse=True)
def no_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "evidence")


def values(**arms: list[float]) -> dict[tuple[str, int], dict[str, float]]:
    return {(arm, seed): {METRIC: x} for arm, found in arms.items() for seed, x in enumerate(found)}


def planned(result: runs.StudyResult, n: int = 3, today: bool = False) -> dict[str, Need]:
    """Each contrast of a fake study, planned with its own runs."""
    stated = result.study["contrasts"]
    source = pilots.Source(result, "tracked runs", own=True, today=today)
    return {need.name: need for need in needs(stated, n, pilots.find([source], stated))}


def simulated_power(effect: float, n: int, alpha: float) -> float:
    """Share of significant two-sided paired t tests; effect in SD."""
    draws = effect + np.random.default_rng(0).standard_normal((40_000, n))
    return float((stats.ttest_1samp(draws, 0.0, axis=1).pvalue <= alpha).mean())


@pytest.mark.parametrize(("effect", "alpha"), [(1.7, 0.05), (1.0, 0.05), (1.2, 0.0125)])
def test_superiority_n_is_the_first_with_the_power_by_simulation(effect: float, alpha: float) -> None:
    n = st.superiority_n(1.0, effect, alpha=alpha)
    assert n is not None
    assert simulated_power(effect, n, alpha) > 0.8 - 0.006
    assert simulated_power(effect, n - 1, alpha) < 0.8 + 0.006


def test_superiority_n_is_the_textbooks() -> None:
    # Paired t, two-sided 0.05, power 0.8: 34 pairs for a medium effect (d = 0.5), 15 for a large one (0.8).
    assert [st.superiority_n(1.0, d) for d in (0.5, 0.8)] == [34, 15]
    assert st.superiority_n(0.02, 0.016) == 15
    assert (st.superiority_n(1.0, 0.0), st.superiority_n(1.0, 1e-4), st.superiority_n(0.0, 0.1)) == (None, None, 2)


def test_upper_bound_of_the_sd_covers_in_four_of_five() -> None:
    assert st.sd_upper(0.01, 3) == pytest.approx(0.01 * (2 / stats.chi2.isf(0.8, 2)) ** 0.5)
    draws = np.random.default_rng(1).standard_normal((20_000, 5))
    assert (st.sd_upper(1.0, 5) * draws.std(axis=1, ddof=1) >= 1).mean() == pytest.approx(0.8, abs=0.01)


def test_the_plan_is_superiority_over_the_bound_and_equivalence_within_it(make) -> None:
    looped, less, flop = [0.50, 0.53, 0.52], [0.41, 0.41, 0.43], [0.51, 0.53, 0.51]
    found = planned(make(Fake(final=values(looped=looped, iso_parameter=less, iso_flop=flop))))
    first, second = found["depth_by_reuse"], found["cost_of_tying"]
    differences = np.subtract(looped, less)
    effect, sd = differences.mean(), differences.std(ddof=1)
    assert (first.gain, first.sd) == (pytest.approx(effect), pytest.approx(sd))
    assert first.seeds_at(sd) == st.superiority_n(sd, effect - 0.05)
    assert first.detectable == pytest.approx(0.05 + st.detectable_effect(3) * sd)
    assert first.seeds_at(first.sd_upper) > first.seeds_at(first.sd) > 3
    assert second.seeds_at(0.02) == st.equivalence_n(0.02, 0.05)


def test_the_verdict_of_as_many_seeds_agrees_by_simulation() -> None:
    """The verdict's own rule, on draws with the pilot's effect and SD, decides in at least 80 % of studies."""
    n = st.superiority_n(0.03, 0.09 - 0.05)
    draws = 0.09 + 0.03 * np.random.default_rng(2).standard_normal((4000, n))
    decided = [(one := st.mean_of(row)).p_value(0.05) <= 0.05 and one.mean > 0.05 for row in draws]
    assert 0.78 < np.mean(decided) < 0.9


def three_tests() -> dict[str, dict[str, Any]]:
    """A primary contrast, three others and an estimate."""
    found = contrasts()
    pair = {"arm": "iso_flop", "reference": "iso_parameter", "match": match("iso_flop", "iso_parameter", ("tokens",))}
    common = {**found["depth_by_reuse"], **pair, "primary": False}
    found |= {"by_depth": common, "by_little": {**common, "bound": 0.55}}
    return found | {"how_much": {**common, "rule": "estimate"}}


def test_levels_are_those_at_which_the_verdict_decides(make) -> None:
    result = make(Fake(contrasts=three_tests(), seeds=(0, 1, 2, 3)))
    verdicts, found = judge(result), planned(result)
    assert {name: need.alpha for name, need in found.items()} == pytest.approx(
        {name: 1 - verdict.level for name, verdict in verdicts.items()}
    )
    assert found["depth_by_reuse"].alpha == 0.05
    assert sorted({round(need.alpha, 4) for need in found.values()})[0] == round(0.05 / 3, 4)


def test_a_contrast_without_pilot_keeps_its_place_in_the_family(make) -> None:
    result = make(Fake(contrasts=three_tests()))
    source = pilots.Source(result, "tracked runs", own=True, today=False)
    found = pilots.find([source], three_tests()) | {"by_depth": None}
    level = {need.name: need.alpha for need in needs(three_tests(), 3, found)}
    assert level["cost_of_tying"] == pytest.approx(0.05 / 3)


def test_an_effect_inside_its_bound_is_never_supported_by_more_seeds(make) -> None:
    result = make(Fake(final=values(looped=[0.44, 0.46, 0.45], iso_parameter=[0.42, 0.43, 0.43])))
    need = planned(result, n=1000)["depth_by_reuse"]
    assert (need.supportable, need.decided) == (False, False)
    text = power.sentence(need)
    assert "more seeds cannot support it: the pilot's effect, +0.023, is not beyond its bound of 0.05" in text
    assert f"n = {need.seeds_at(need.sd)} would contradict it" in text


def test_lower_is_better_turns_the_claim_but_not_the_numbers(make) -> None:
    stated = contrasts()
    stated["depth_by_reuse"] |= {"metric": "loss", "higher_is_better": False, "bound": 0.0}
    need = planned(make(Fake(contrasts=stated)))["depth_by_reuse"]
    assert need.supportable
    assert need.gain > 0 > need.pilot.estimate.mean
    assert need.detectable < 0


def test_too_few_seeds_are_one_warning_unless_the_results_are_its_own(make) -> None:
    flop, looped = [0.99, 0.96, 0.98], [0.95, 0.99, 0.97]
    result = make(Fake(final=values(looped=looped, iso_flop=flop)))
    lines = power.warnings(Plan("p_hop", list(planned(result).values()), PRICE))
    assert len(lines) == 1
    assert lines[0].startswith("warning: cost_of_tying: n = 3 does not decide it: needs ")
    assert "(pilot: tracked runs of p_hop, another version (abcd1234))" in lines[0]
    own = Plan("p_hop", list(planned(result, today=True).values()), PRICE)
    assert power.warnings(own) == []
    assert "exploratory" in power.notes(own)[-1]


def test_an_estimate_shows_its_interval(make) -> None:
    result = make(Fake(contrasts=three_tests()))
    need = planned(result, n=5)["how_much"]
    assert need.half_width(0.02) == pytest.approx(stats.t.ppf(0.975, 4) * 0.02 / 5**0.5)
    assert power.sentence(need).startswith("how_much: no claim; at n = 5 its interval is ±")
    assert need.decided is None


def test_seeds_that_straddle_are_no_matter_for_an_sd(make) -> None:
    result = make(Fake(seeds=(0, 1, 2, 3), final=values(looped=[0.98, 0.31, 0.97, 0.35])))
    lines = power.notes(Plan("p_hop", list(planned(result).values()), PRICE))
    assert any("some seeds of looped end near the floor" in line and "n ≥ 5" in line for line in lines)
    assert not any("iso_flop" in line for line in lines)


def test_equal_differences_have_no_spread_and_need_three(make) -> None:
    result = make(Fake(final=values(looped=[0.9, 0.8, 0.7], iso_parameter=[0.5, 0.4, 0.3])))
    need = planned(result)["depth_by_reuse"]
    assert need.seeds_at(need.sd) == 3
    assert any("no spread" in line for line in power.notes(Plan("p_hop", [need], PRICE)))


def test_diverged_runs_count_at_the_floor_and_unfinished_ones_not(make) -> None:
    result = make(Fake(seeds=(0, 1, 2, 3), states={("looped", 1): "diverged", ("iso_parameter", 3): "to do"}))
    need = planned(result)["depth_by_reuse"]
    assert need.pilot.seeds == [0, 1, 2]
    assert need.gain < 0.5
    assert any("diverged" in line for line in power.notes(Plan("p_hop", [need], PRICE)))


def test_pilots_in_their_order() -> None:
    """Own tracked runs, then own evidence, then the named study; the first with two paired seeds."""
    root, stated = records.runs_root(), contrasts()
    assert pilots.find(pilots.sources("p_hop", "today", "p_hop_lr"), stated)["depth_by_reuse"] is None
    write_sweep(root)
    first = pilots.find(pilots.sources("p_hop", "today", "p_hop_lr"), stated)["depth_by_reuse"]
    assert (str(first.source), first.seeds) == ("tracked runs of p_hop_lr", [100, 101])
    Fake(seeds=(0, 1, 2)).write(runs.RESULTS.parent / "made")
    runs.export(runs.load("p_hop", runs.RESULTS.parent / "made"), runs.RESULTS / "p_hop")
    states = {(arm, seed): "to do" for arm in ARMS for seed in (1, 2)}
    Fake(states=states).write(root)  # one seed is no pilot
    second = pilots.find(pilots.sources("p_hop", "abcd1234", "p_hop_lr"), stated)["depth_by_reuse"]
    assert str(second.source) == "committed evidence of p_hop"
    assert second.source.today


def test_cost_is_the_study_s_own_seconds(make) -> None:
    result = make()
    speed, words = pilots.measured([pilots.Source(result, "tracked runs", own=True, today=True)])["looped"]
    done = result.runs[result.runs["arm"] == "looped"]
    assert speed == pytest.approx(done["flops"].sum() / done["seconds"].sum())
    assert words == "seconds of the tracked runs (1 thread of 2 cores, Test CPU)"
    assert pilots.measured([pilots.Source(result, "tracked runs", own=False, today=False)]) == {}


def test_hours_are_those_of_the_slots() -> None:
    price = Price({"a": 3600.0, "b": 7200.0}, {"a": "x", "b": "y"}, slots=2, threads=2)
    assert price.core_hours(["a", "b"] * 2) == 12.0
    assert price.hours(["a", "b"] * 2) == 3.0
    assert price.hours(["a", "b", "b"]) == 3.0
    assert price.hours([]) == 0.0
    assert price.words == "a: x; b: y"


def test_the_table_holds_n_and_hours(make) -> None:
    result = make(Fake(final=values(looped=[0.50, 0.53, 0.52], iso_parameter=[0.41, 0.41, 0.43])))
    need = planned(result)["depth_by_reuse"]
    row = power.table(Plan("p_hop", [need], PRICE)).rows[0]
    n = need.seeds_at(need.sd)
    assert row[0] == "depth_by_reuse (primary)"
    assert row[9:12] == [str(n), f"{2 * n:.2g}", f"{n:.2g}"]


def test_no_pilot_is_a_clear_line(capsys) -> None:
    assert power.main(["p_hop", "study.lr=null"]) == 0
    out = capsys.readouterr().out
    assert 'no pilot for depth_by_reuse, cost_of_tying: run make experiment NAME=p_hop OVERRIDES="study.seeds=' in out
    assert power.main(["p_hop", "study.lr=null", "study.pilot=p_hop_quick"]) == 0
    out = capsys.readouterr().out
    assert "no pilot: p_hop_quick has no two finished seeds of these arms; run make experiment NAME=p_hop_quick" in out


def test_a_study_of_one_seed_decides_nothing_and_has_no_interval(capsys) -> None:
    Fake().write(records.runs_root())
    assert power.main(["p_hop", "study.lr=null", "study.seeds=[0]"]) == 0
    assert "cost_of_tying: n = 1 does not decide it" in capsys.readouterr().out
    assert power.main(["p_hop_full", "study.lr=null", "study.seeds=[0]"]) == 0
    assert "against_width: no pilot\n" in capsys.readouterr().out


def test_committed_evidence_is_planned_with(capsys, monkeypatch) -> None:
    monkeypatch.setattr(runs, "RESULTS", EVIDENCE)
    assert power.main(["p_hop", "study.lr=null"]) == 0
    out = capsys.readouterr().out
    assert "pilot: committed evidence of p_hop" in out
    assert "depth_by_reuse (primary): n = 3 decides it" in out
    assert not records.runs_root().exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "usage"), (["p_hopp"], "did you mean p_hop?"), (["p_hop", "study.pilot=p_hopp"], "study.pilot = p_hopp: no")],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys) -> None:
    assert power.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_a_study_without_contrasts_has_nothing_to_decide(capsys) -> None:
    assert power.main(["p_hop_lr"]) == 0
    assert "states no contrast" in capsys.readouterr().out


def test_a_cut_says_what_it_can_no_longer_decide(make) -> None:
    """Depth is decided by two seeds too, tying at the same spread by three and not by two."""
    final = values(looped=[0.970, 0.974, 0.966], iso_parameter=[0.42, 0.43, 0.41], iso_flop=[0.945, 0.990, 0.968])
    found = planned(make(Fake(final=final)))
    before = Plan("p_hop", list(found.values()), PRICE)
    tying = found["cost_of_tying"]
    enough = tying.seeds_at(tying.sd)
    assert enough is not None and enough >= 3
    before, after = before.at(enough), before.at(enough - 1)
    assert power.lost(before, before) == []
    assert power.lost(before, after) == [f"can no longer decide cost_of_tying (n = {enough - 1}, needs {enough})"]
    alone = Plan("p_hop", [need for need in before.needs if need.name == "depth_by_reuse"], PRICE)
    assert power.lost(before, alone) == ["can no longer decide cost_of_tying (dropped)"]
    unknown = Plan("p_hop", list(needs(contrasts(), 2, dict.fromkeys(contrasts()))), PRICE)
    assert power.lost(unknown, unknown) == [
        "not known without a pilot whether it decides depth_by_reuse, cost_of_tying"
    ]
