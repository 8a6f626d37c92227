import math

import numpy as np
import pytest
from scipy import stats

from analysis import statistics as st

A, B = [0.95, 0.97, 0.99, 0.96], [0.41, 0.45, 0.43, 0.40]


def test_paired_interval_is_scipys() -> None:
    theirs = stats.ttest_rel(A, B)
    ours = st.paired(A, B)
    assert ours.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert ours.p_value() == pytest.approx(theirs.pvalue)


def test_welch_is_scipys() -> None:
    theirs = stats.ttest_ind(A, B[:3], equal_var=False)
    ours = st.welch(A, B[:3])
    assert ours.interval() == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert (ours.p_value(), ours.df) == (pytest.approx(theirs.pvalue), pytest.approx(theirs.df))


def test_tost_is_the_larger_of_two_one_sided_tests() -> None:
    differences = [0.01, -0.02, 0.005, 0.012, -0.004]
    above = stats.ttest_1samp(differences, -0.05, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, 0.05, alternative="less").pvalue
    assert st.tost(st.mean_of(differences), 0.05) == pytest.approx(max(above, below))


def test_beyond_agrees_with_the_interval() -> None:
    estimate = st.mean_of([0.08, 0.11, 0.09])
    low = estimate.interval(1 - st.beyond(estimate, 0.05))[0]
    assert low == pytest.approx(0.05)


def test_no_variance_gives_a_point_and_certain_p() -> None:
    estimate = st.paired([0.5 + 0.1, 0.3 + 0.1], [0.5, 0.3])
    assert estimate.error == 0
    assert estimate.interval() == (estimate.mean, estimate.mean)
    assert (estimate.p_value(0.0), estimate.p_value(estimate.mean)) == (0.0, 1.0)


def test_rejects_one_value_and_non_finite() -> None:
    for values in ([1.0], [1.0, math.nan]):
        with pytest.raises(ValueError, match="at least 2 finite"):
            st.mean_of(values)


@pytest.mark.parametrize(("n", "effect"), [(3, 3.3), (5, 1.7), (8, 1.15)])
def test_detectable_effects_of_rule_nine(n: int, effect: float) -> None:
    assert st.detectable_effect(n) == pytest.approx(effect, rel=0.02)


def test_power_is_the_noncentral_t() -> None:
    for n, effect in ((3, 2.0), (8, 1.0)):
        t = stats.t.ppf(0.975, n - 1)
        exact = stats.nct.sf(t, n - 1, effect * n**0.5) + stats.nct.cdf(-t, n - 1, effect * n**0.5)
        assert st.power(effect, n) == pytest.approx(exact, abs=1e-5)


def test_equivalence_power_by_simulation() -> None:
    draws = np.random.default_rng(0).standard_normal((20_000, 6))
    error = draws.std(axis=1, ddof=1) / 6**0.5
    inside = np.abs(draws.mean(axis=1)) + stats.t.ppf(0.95, 5) * error < 1.5
    assert st.equivalence_power(1.5, 6) == pytest.approx(inside.mean(), abs=0.012)


def test_equivalence_n_is_the_first_with_the_power() -> None:
    n = st.equivalence_n(0.02, 0.03)
    assert st.equivalence_power(1.5, n) >= 0.8 > st.equivalence_power(1.5, n - 1)
    assert st.equivalence_n(0.0, 0.01) == 2
    assert st.equivalence_n(1.0, 0.0) is None


def test_holm_by_hand_and_its_levels() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert st.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    levels = st.holm_levels(p)
    assert levels == pytest.approx([0.05 / 3, 0.025, 0.025, 0.0125])
    assert [a <= level for a, level in zip(p, levels, strict=True)] == [a <= 0.05 for a in st.holm(p)]


def test_proportions_by_closed_form() -> None:
    z, p, n = stats.norm.ppf(0.975), 0.8, 5
    centre, half = (p + z**2 / 10) / (1 + z**2 / 5), z * math.sqrt(p * 0.2 / n + z**2 / 100) / (1 + z**2 / 5)
    assert st.wilson(4, 5) == pytest.approx((centre - half, centre + half))
    assert st.clopper_pearson(5, 5) == pytest.approx((0.025 ** (1 / 5), 1.0))


def test_prediction_interval_covers_a_new_mean() -> None:
    draws = np.random.default_rng(1).standard_normal((4000, 8))
    hits = [low <= row[5:].mean() <= high for row in draws for low, high in [st.prediction_interval(row[:5], new=3)]]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.012)


def test_bootstrap_needs_five_seeds_and_widens_with_blocks() -> None:
    with pytest.raises(ValueError, match="below 5"):
        st.bootstrap([1.0, 2.0, 3.0, 4.0])
    seeds = [0.1, 0.2, 0.3, 0.4, 0.5]
    low, high = st.bootstrap(seeds)
    assert high - low == pytest.approx(2 * 1.96 * np.std(seeds) / 5**0.5, rel=0.05)
    blocks = [[seed - 1, seed + 1] for seed in seeds]
    wide = st.bootstrap(blocks)
    assert wide[1] - wide[0] > 3 * (high - low)
    assert st.bootstrap(seeds) == (low, high)


def test_split_calibration_is_near_its_level_on_average() -> None:
    random = np.random.default_rng(2)
    found = [st.split_calibration(random.standard_normal(10)) for _ in range(4)]
    assert {one.splits for one in found} == {252}
    assert 0.0 < np.mean([one.unpaired for one in found]) < 0.1
    assert 0.0 < np.mean([one.paired for one in found]) < 0.1
    assert found[0].expected == 0.05


def test_split_calibration_needs_ten_seeds() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        st.split_calibration([0.1] * 9)
