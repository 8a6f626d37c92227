"""What a contrast may ask for beyond a metric: a difference of two, and gates without which it decides nothing."""

from typing import Any

import pytest
from fake_study import Fake, contrasts
from scipy import stats
from tests_support import TINY

from analysis import wording
from analysis.verdict import Verdict, judge
from ouro_lab.check import check
from ouro_lab.config import ConfigError
from ouro_lab.study import Study

HARD, EASY = "accuracy/hops_8", "accuracy/hops_1"


def finals(hard: dict[str, list[float]], easy: dict[str, list[float]]) -> dict[tuple[str, int], dict[str, float]]:
    pairs = {arm: zip(hard[arm], easy[arm], strict=True) for arm in hard}
    return {(arm, seed): {HARD: h, EASY: e} for arm, values in pairs.items() for seed, (h, e) in enumerate(values)}


def of(make, final: dict, name: str, **changed: Any) -> Verdict:
    chosen = contrasts()
    chosen[name] |= changed
    return judge(make(Fake(contrasts=chosen, final=final)))[name]


def test_a_difference_is_taken_in_each_run(make) -> None:
    hard = {"looped": [0.9, 0.8, 0.95], "iso_parameter": [0.4, 0.5, 0.45]}
    easy = {"looped": [1.0, 0.9, 1.0], "iso_parameter": [0.9, 0.95, 0.9]}
    found = of(make, finals(hard, easy), "depth_by_reuse", metric=f"{HARD} - {EASY}")
    less = {arm: [h - e for h, e in zip(hard[arm], easy[arm], strict=True)] for arm in hard}
    expected = stats.ttest_rel(less["looped"], less["iso_parameter"])
    assert found.arm_values == pytest.approx(less["looped"], rel=1e-12)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-9)
    assert found.word == "supported"
    assert found.floor is None
    assert wording.metric_words(found.metric) == "accuracy, hops 8 less accuracy, hops 1"


def test_a_difference_has_no_floor_that_a_diverged_run_could_be_put_at(make) -> None:
    """At both floors it would be 0.27 − 0.5 = −0.23 here, above the runs that ended."""
    chosen = contrasts()
    chosen["depth_by_reuse"]["metric"] = f"{HARD} - {EASY}"

    def floors(study: dict[str, Any]) -> None:
        study["floors"] = {HARD: {"value": 0.27, "what": "a"}, EASY: {"value": 0.5, "what": "b"}}

    final = finals({"iso_parameter": [0.4, 0.5, 0.45]}, {"iso_parameter": [0.9, 0.95, 0.9]})
    fake = Fake(contrasts=chosen, final=final, states={("looped", 1): "diverged"}, change=floors)
    found = judge(make(fake))["depth_by_reuse"]
    assert found.floor is None
    assert found.reference_values == pytest.approx([-0.5, -0.45])
    assert found.bare_word == "inconclusive"


def test_a_difference_of_what_was_not_measured_is_missing(make) -> None:
    found = of(make, {}, "depth_by_reuse", metric=f"{HARD} - accuracy/hops_9")
    assert found.missing["looped"] == dict.fromkeys((0, 1, 2), "no final/accuracy/hops_9")
    assert found.word == "incomplete: 0 of 3 seeds"


@pytest.mark.parametrize(
    ("looped", "flop", "word", "note"),
    [
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], "equivalent", None),
        ([0.5] * 3, [0.5, 0.6, 0.9], "inconclusive", "iso_flop has 0.5, 0.6, 0.9"),
        ([0.5, 0.6, 0.9], [0.5] * 3, "inconclusive", "looped has 0.5, 0.6, 0.9"),
    ],
)
def test_equal_counts_only_where_both_arms_are_inside_the_gate(
    make, looped: list[float], flop: list[float], word: str, note: str | None
) -> None:
    hard = {"looped": [0.975, 0.965, 0.97], "iso_flop": [0.98, 0.96, 0.97]}
    final = finals(hard, {"looped": looped, "iso_flop": flop})
    found = of(make, final, "cost_of_tying", where={"metric": EASY, "at_most": 0.8})
    assert (found.word, found.bare_word) == (word, "equivalent")
    assert note is None or f"decides only where accuracy/hops_1 ≤ 0.8 in both arms; {note}" in found.notes


def low(study: dict[str, Any]) -> None:
    study["positive_control"]["at_least"] = 0.5


HARD_VALUES = {"looped": [0.975, 0.965, 0.97], "iso_flop": [0.98, 0.96, 0.97], "iso_parameter": [0.4, 0.41, 0.42]}


@pytest.mark.parametrize(
    ("flop", "states", "word", "is_"),
    [
        (HARD_VALUES["iso_flop"], {}, "supported", "equivalent"),
        ([1.0, 0.9, 0.97], {}, "inconclusive", "inconclusive"),
        (HARD_VALUES["iso_flop"], {("iso_flop", 2): "failed"}, "inconclusive", "incomplete: 2 of 3 seeds"),
    ],
)
def test_a_contrast_waits_for_another_to_hold(make, flop: list[float], states: dict, word: str, is_: str) -> None:
    hard = HARD_VALUES | {"iso_flop": flop}
    chosen = contrasts()
    chosen["depth_by_reuse"]["after"] = ["cost_of_tying"]
    chosen["cost_of_tying"]["bound"] = 0.2 if states else 0.05  # two seeds are enough for this one
    final = finals(hard, {arm: [1.0] * 3 for arm in hard})
    result = make(Fake(contrasts=chosen, final=final, states=states, change=low))
    found = judge(result)["depth_by_reuse"]
    assert (found.word, found.bare_word) == (word, "supported")
    if word == "inconclusive":
        note = f"decides only where cost_of_tying is equivalent; it is {is_}"
        assert note in found.notes
        assert note in wording.sentence(result.study, found)


def test_a_gate_that_is_closed_itself_opens_none(make) -> None:
    chosen = contrasts()
    chosen["depth_by_reuse"]["after"] = ["cost_of_tying"]
    chosen["cost_of_tying"]["where"] = {"metric": EASY, "at_most": 0.8}
    final = finals(HARD_VALUES, {arm: [1.0] * 3 for arm in HARD_VALUES})
    found = judge(make(Fake(contrasts=chosen, final=final, change=low)))["depth_by_reuse"]
    assert "decides only where cost_of_tying is equivalent; it is inconclusive" in found.notes


@pytest.mark.parametrize(("less", "word"), [([0.4, 0.41, 0.42], "equivalent"), ([0.97, 0.96, 0.98], "inconclusive")])
def test_what_a_superiority_gates_waits_for_support(make, less: list[float], word: str) -> None:
    hard = HARD_VALUES | {"iso_parameter": less}
    chosen = contrasts()
    chosen["cost_of_tying"]["after"] = ["depth_by_reuse"]
    final = finals(hard, {arm: [1.0] * 3 for arm in hard})
    assert judge(make(Fake(contrasts=chosen, final=final, change=low)))["cost_of_tying"].word == word


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "depth_by_reuse.where={metric: accuracy, at_most: 1, below: 2}",
            "where = .*: must be a metric and one of at_least",
        ),
        (
            "depth_by_reuse.where={metric: accuracy/hops_9, at_most: 1}",
            r"depth_by_reuse\.where\.metric = accuracy/hops_9",
        ),
        ("depth_by_reuse.after=[cost_of_tyin]", "cost_of_tyin is not a contrast; did you mean cost_of_tying"),
        ("cost_of_tying.after=[cost_of_tying]", "cost_of_tying.after: comes back to itself"),
        ("depth_by_reuse.where=3", "depth_by_reuse.where = 3: must be a metric and one of at_least"),
        ("depth_by_reuse.metric=null", "depth_by_reuse.metric = None: must be a metric, or `a - b`"),
        ("depth_by_reuse.metric='accuracy - accuracy/hops_9'", r"depth_by_reuse\.metric = accuracy/hops_9: no such"),
    ],
)
def test_a_gate_that_cannot_be_is_one_line(change: str, message: str) -> None:
    key = change.partition("=")[0].rpartition(".")[2]
    overrides = [*TINY, f"{'' if key == 'metric' else '+'}study.contrasts.{change}"]
    with pytest.raises(ConfigError, match=message):
        check(Study("p_hop", overrides))
