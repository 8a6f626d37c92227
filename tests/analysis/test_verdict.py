import json
from dataclasses import replace
from typing import Any

import pytest
from fake_study import Fake, contrasts
from scipy import stats

from analysis import wording
from analysis.precision import counted, precisions
from analysis.samples import check_threshold, positive_control, targets
from analysis.stability import LR_SENSITIVITY
from analysis.verdict import Verdict, judge

METRIC = "accuracy/hops_8"


def set_values(**arms: list[float]) -> dict[tuple[str, int], dict[str, float]]:
    return {(arm, seed): {METRIC: x} for arm, values in arms.items() for seed, x in enumerate(values)}


def primary(make, **fields: Any) -> Verdict:
    return next(iter(judge(make(Fake(**fields))).values()))


def tying(make, **fields: Any) -> Verdict:
    return judge(make(Fake(**fields)))["cost_of_tying"]


def test_sentence_has_the_stated_shape(make) -> None:
    result = make(Fake(final=set_values(looped=[0.98, 0.96, 0.97], iso_parameter=[0.42, 0.43, 0.41])))
    verdict = judge(result)["depth_by_reuse"]
    assert wording.sentence(result.study, verdict) == (
        "looped − iso_parameter at accuracy/hops_8: +0.55 [0.51, 0.59] (n = 3, paired t; rates swept in p_hop_lr, "
        "optimum inside; parameters and tokens equal, looped costs 2.9 × the FLOPs; floor 0.27): "
        "supported at 96k parameters, 4.6M tokens."
    )


def test_effect_and_interval_are_the_paired_t(make) -> None:
    arm, reference = [0.98, 0.96, 0.97], [0.42, 0.43, 0.40]
    verdict = primary(make, final=set_values(looped=arm, iso_parameter=reference))
    expected = stats.ttest_rel(arm, reference).confidence_interval(0.95)
    assert verdict.interval == pytest.approx(tuple(expected))
    assert verdict.effect == pytest.approx(0.5533, abs=1e-4)


@pytest.mark.parametrize(
    ("looped", "word"),
    [
        ([0.50, 0.51, 0.52], "supported"),  # +0.08 to 0.09: over the bound of 0.05
        ([0.43, 0.44, 0.44], "contradicted"),  # better, but surely by less than the bound
        ([0.30, 0.31, 0.32], "contradicted"),
        ([0.60, 0.45, 0.50], "inconclusive"),
    ],
)
def test_superiority_words(make, looped: list[float], word: str) -> None:
    assert primary(make, final=set_values(looped=looped, iso_parameter=[0.42, 0.43, 0.43])).word == word


def test_lower_is_better_turns_the_claim_but_not_the_numbers(make) -> None:
    chosen = contrasts()
    chosen["depth_by_reuse"] |= {"metric": "loss", "higher_is_better": False}
    verdict = primary(make, contrasts=chosen)
    assert verdict.word == "supported"
    assert verdict.effect < -0.05


@pytest.mark.parametrize(
    ("flop", "word"),
    [([0.98, 0.96, 0.97], "equivalent"), ([0.801, 0.79, 0.799], "contradicted"), ([1.0, 0.9, 0.97], "inconclusive")],
)
def test_equivalence_words(make, flop: list[float], word: str) -> None:
    def easy(study: dict[str, Any]) -> None:
        study["positive_control"]["at_least"] = 0.5

    final = set_values(looped=[0.975, 0.965, 0.97], iso_flop=flop)
    assert tying(make, final=final, change=easy).word == word


def test_an_equality_that_the_seeds_had_no_power_to_show_is_inconclusive(make) -> None:
    """Both one-sided tests pass, yet three seeds of this spread would pass them in under 80 % of studies."""
    result = make(Fake(final=set_values(looped=[0.97, 0.97, 0.97], iso_flop=[0.95, 0.97, 0.99])))
    verdict = judge(result)["cost_of_tying"]
    assert verdict.p < 0.03
    assert (verdict.word, verdict.seeds_for_power) == ("inconclusive", 4)
    assert "80 % power at ±0.05 needs n = 4" in wording.sentence(result.study, verdict)


def test_an_inconclusive_equivalence_says_how_many_seeds_it_needs(make) -> None:
    result = make(Fake(final=set_values(looped=[0.99, 0.955, 0.97], iso_flop=[0.952, 0.99, 0.97])))
    verdict = judge(result)["cost_of_tying"]
    assert (verdict.word, verdict.seeds_for_power) == ("inconclusive", 7)
    assert "80 % power at ±0.05 needs n = 7" in wording.sentence(result.study, verdict)


def test_an_equality_with_power_may_be_too_near_its_bound(make) -> None:
    result = make(Fake(final=set_values(looped=[0.925, 0.921, 0.917], iso_flop=[0.97, 0.97, 0.97])))
    verdict = judge(result)["cost_of_tying"]
    assert (verdict.word, verdict.seeds_for_power) == ("inconclusive", 2)
    assert "; too near ±0.05 to tell" in wording.sentence(result.study, verdict)


def test_an_estimate_has_no_verdict_word(make) -> None:
    chosen = contrasts()
    chosen["depth_by_reuse"]["rule"] = "estimate"
    result = make(Fake(contrasts=chosen))
    verdict = judge(result)["depth_by_reuse"]
    assert (verdict.word, verdict.p) == ("estimated", None)
    assert "estimated at 96k" in wording.sentence(result.study, verdict)


def test_secondary_contrasts_are_holm_adjusted_and_the_primary_is_not(make) -> None:
    chosen = contrasts()
    extra = {**chosen["depth_by_reuse"], "primary": False, "arm": "iso_flop"}
    single = primary(make, contrasts=contrasts())
    verdicts = judge(make(Fake(name="three", contrasts={**chosen, "extra": extra})))
    assert verdicts["depth_by_reuse"].p == single.p
    assert verdicts["depth_by_reuse"].p_holm is None
    assert verdicts["extra"].p_holm == pytest.approx(2 * verdicts["extra"].p)
    assert verdicts["extra"].level == pytest.approx(0.975)
    low, high = verdicts["extra"].interval_adjusted
    assert low < verdicts["extra"].interval[0] < verdicts["extra"].interval[1] < high


def test_one_seed_is_inconclusive(make) -> None:
    result = make(Fake(seeds=(0,)))
    verdict = judge(result)["depth_by_reuse"]
    assert verdict.word == "inconclusive (n = 1)"
    assert "+0.528 (n = 1; rates" in wording.sentence(result.study, verdict)


@pytest.mark.parametrize("state", ["failed", "running", "to do"])
def test_missing_seeds_refuse_a_verdict(make, state: str) -> None:
    result = make(Fake(states={("iso_parameter", 2): state}))
    verdict = judge(result)["depth_by_reuse"]
    text = wording.sentence(result.study, verdict)
    assert verdict.refused
    assert text.endswith(f"no verdict, incomplete: 2 of 3 seeds (iso_parameter seed 2 {state}).")
    assert "0.5" not in text


def test_no_registered_hash_refuses_a_verdict(make) -> None:
    result = make(Fake(change=lambda study: study.update(registered=None)))
    verdict = judge(result)["depth_by_reuse"]
    assert verdict.refused
    assert "unregistered" in wording.sentence(result.study, verdict)


def test_another_hash_makes_it_exploratory(make) -> None:
    result = make(Fake(change=lambda study: study["registered"].update(hash="another")))
    verdict = judge(result)["depth_by_reuse"]
    assert verdict.qualifiers == ["exploratory"]
    assert "supported (exploratory) at" in wording.sentence(result.study, verdict)


@pytest.mark.parametrize("arm", ["looped", "iso_parameter"])
def test_a_rate_not_chosen_makes_it_unmatched(make, arm: str) -> None:
    def change(study: dict[str, Any]) -> None:
        study["arms"][arm] |= {"lr_matched": False, "lr_status": "learning rate set, not swept"}

    result = make(Fake(change=change))
    verdict = judge(result)["depth_by_reuse"]
    assert verdict.qualifiers == ["unmatched"]
    assert f"{arm}: learning rate set, not swept" in wording.sentence(result.study, verdict)


def test_a_failing_positive_control_takes_the_word(make) -> None:
    result = make(Fake(final={("iso_flop", 1): {METRIC: 0.5}}))
    verdict = judge(result)["depth_by_reuse"]
    assert (verdict.word, verdict.bare_word) == ("no positive control", "supported")
    assert "failed by seed 1" in wording.sentence(result.study, verdict)
    assert positive_control(result)[0] is False


def test_no_positive_control_stated_takes_the_word(make) -> None:
    assert primary(make, change=lambda study: study.update(positive_control=None)).word == "no positive control"


def test_a_diverged_run_counts_at_the_floor_and_is_named(make) -> None:
    result = make(Fake(states={("looped", 1): "diverged"}))
    verdict = judge(result)["depth_by_reuse"]
    assert (verdict.n, verdict.arm_values[1], verdict.diverged) == (3, 0.27, {"looped": [1]})
    assert verdict.word == "inconclusive"
    assert "diverged: looped seed 1 (counted at the floor 0.27)" in wording.sentence(result.study, verdict)


def test_a_reference_that_never_trained_proves_nothing(make) -> None:
    result = make(Fake(states={("iso_parameter", seed): "diverged" for seed in range(3)}))
    verdict = judge(result)["depth_by_reuse"]
    assert verdict.interval[0] > 0.05
    assert verdict.word == "inconclusive"
    assert "supported only if the diverged runs are counted one way" in verdict.notes


def test_divergence_without_a_floor_leaves_no_word(make) -> None:
    fake = Fake(seeds=(0, 1, 2, 3, 4), states={("looped", 1): "diverged"})
    fake.change = lambda study: study.update(floors={})
    verdict = judge(make(fake))["depth_by_reuse"]
    assert (verdict.n, verdict.word) == (4, "inconclusive")


def test_a_word_stands_where_both_ways_of_counting_agree(make) -> None:
    fake = Fake(seeds=tuple(range(8)), states={("iso_parameter", 3): "diverged"})
    assert judge(make(fake))["depth_by_reuse"].word == "supported"


def test_equal_differences_are_said_and_need_three_seeds(make) -> None:
    values = {"looped": [0.97, 0.96, 0.98], "iso_parameter": [0.47, 0.46, 0.48]}
    verdict = primary(make, final=set_values(**values))
    assert (verdict.word, verdict.sd) == ("supported", 0.0)
    assert "all differences are equal: the interval has no width" in verdict.notes
    assert primary(make, name="two", seeds=(0, 1), final=set_values(**values)).word == "inconclusive"


def test_sweep_runs_never_enter(make) -> None:
    def change(study: dict[str, Any]) -> None:
        for run in study["runs"]:
            run["phase"] = "lr" if run["seed"] == 2 else "main"

    verdict = primary(make, change=change)
    assert verdict.word == "incomplete: 2 of 3 seeds"


def test_targets_ask_every_seed(make) -> None:
    result = make(Fake(final={("looped", 2): {METRIC: 0.94}}, states={("iso_flop", 0): "to do"}))
    found = targets(result)
    assert [found[arm].met for arm in ("looped", "iso_parameter", "iso_flop")] == [False, True, None]
    assert found["looped"].failing == (2,)
    assert check_threshold(result, "looped", {"metric": METRIC, "at_most": 0.99}).met


def test_scope_gives_the_ratio_to_the_paper(make) -> None:
    result = make(Fake(change=lambda study: study["scope"].update(paper_parameters=1.4e9, paper_tokens=7.7e12)))
    text = wording.scope(result.study, judge(result)["depth_by_reuse"].arm)
    assert text == "96k parameters (1/15,000 of the paper's 1.4B), 4.6M tokens (1/1,700,000 of the paper's 7.7T)"


def test_verdict_json_is_plain_and_whole(make) -> None:
    result = make(Fake(states={("looped", 0): "diverged"}))
    content = wording.as_dict(result, judge(result))
    text = json.dumps(content, allow_nan=False)
    assert json.loads(text) == content
    assert content["contrasts"]["depth_by_reuse"]["n"] == 3
    assert content["targets"]["looped"]["met"] is False


@pytest.mark.parametrize(
    ("x", "text"),
    [(96_256, "96k"), (7_800_000, "7.8M"), (1.43e9, "1.4B"), (999_900, "1.0M"), (512, "512"), (None, "–")],
)
def test_compact_numbers(x: float | None, text: str) -> None:
    assert wording.compact(x) == text


def test_effects_show_the_decimals_that_they_bear() -> None:
    assert wording.effect(0.55, (0.51, 0.59)) == "+0.55 [0.51, 0.59]"
    assert wording.effect(-0.0021, (-0.0050, 0.0008)) == "−0.002 [−0.005, 0.001]"
    assert wording.effect(-0.001, (-0.05, 0.05)) == "0.00 [−0.05, 0.05]"


def test_runs_of_two_precisions_are_named(result) -> None:
    def said(**precision: Any) -> tuple[str, str]:
        changed = replace(result, runs=result.runs.assign(**precision))
        verdict = judge(changed)["depth_by_reuse"]
        return wording.sentence(changed.study, verdict), wording.conclusion(verdict)

    rows, arms = result.runs, {"looped": "bf16-mixed", "iso_parameter": "32-true"}
    for same in ("", "bf16-mixed"):
        assert not any("precision" in words for words in said(precision=same))
    sentence, conclusion = said(precision=rows["arm"].map(arms).fillna(""))
    assert "not one precision: looped bf16-mixed, iso_parameter 32-true" in sentence
    assert conclusion == "supported (precisions differ)"
    sentence, conclusion = said(precision=["bf16-mixed" if seed else "32-true" for seed in rows["seed"]])
    assert "looped 32-true and bf16-mixed, iso_parameter 32-true and bf16-mixed" in sentence
    assert conclusion == "supported"  # both runs of a seed in one
    assert counted(rows.assign(precision="")) == ""
    assert counted(rows.head(3).assign(precision=["b", "", "b"])) == "b"
    assert counted(rows.head(3).assign(precision=["b", "a", "b"])) == "a (1 run); b (2 runs)"


def test_a_sensitivity_is_read_off_the_sweep_s_precisions(result) -> None:
    rows = result.runs.assign(phase="lr", precision=result.runs["arm"].map({"looped": "bf16-mixed"}).fillna("32-true"))
    both = ("looped", "iso_parameter")
    assert precisions(replace(result, runs=rows), both, LR_SENSITIVITY).within_seed
    assert not precisions(replace(result, runs=rows), both, "accuracy/hops_8").several
