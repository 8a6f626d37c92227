import numpy as np
import pytest
from scipy import stats

from analysis import survival
from analysis.parabola import fit_rates

A = survival.Times.of([500, 700, 700, 900, 1500], [True, True, True, True, False])
B = survival.Times.of([900, 1100, 1500, 1500, 1500], [True, True, False, False, False])


def censored(data: survival.Times) -> stats.CensoredData:
    return stats.CensoredData(data.times[data.reached], right=data.times[~data.reached])


def test_kaplan_meier_is_scipys() -> None:
    theirs = stats.ecdf(censored(A)).sf
    ours = survival.kaplan_meier(A)
    assert ours.survival == pytest.approx(theirs.evaluate(ours.times))


def test_log_rank_is_scipys() -> None:
    assert survival.log_rank(A, B) == pytest.approx(stats.logrank(censored(A), censored(B)).pvalue)


def test_log_rank_without_events_sees_nothing() -> None:
    never = survival.Times.of([10, 10], [False, False])
    assert survival.log_rank(never, never) == 1.0


def test_restricted_mean_without_censoring_is_the_mean() -> None:
    data = survival.Times.of([2.0, 4.0, 9.0], [True] * 3)
    mean, low, high = survival.restricted_mean(data, 9.0)
    assert mean == pytest.approx(5.0)
    # Greenwood's variance of a complete sample is that of the mean with n in place of n − 1.
    assert high - mean == pytest.approx(1.959964 * np.std([2, 4, 9]) / 3**0.5, rel=1e-4)
    assert low < mean


def test_restricted_mean_counts_the_censored_to_the_horizon() -> None:
    assert survival.restricted_mean(B, 1500.0)[0] == pytest.approx((900 + 1100 + 3 * 1500) / 5)


def test_first_reached() -> None:
    assert survival.first_reached([100, 200, 300], [0.2, 0.96, 0.9], 0.95) == 200
    assert survival.first_reached([100, 200], [0.2, 0.3], 0.95) is None
    assert survival.first_reached([100, 200], [0.5, 0.3], 0.4, rising=False) == 200


def test_parabola_recovers_optimum_and_regret() -> None:
    rates = [0.001, 0.002, 0.004, 0.008]
    values = [0.1 + 0.05 * np.log(lr / 0.003) ** 2 for lr in rates]
    fit = fit_rates([*rates, 0.016], [*values, float("inf")])
    assert fit.optimum == pytest.approx(0.003)
    assert fit.inside
    assert fit.regret(0.004) == pytest.approx(0.05 * np.log(4 / 3) ** 2)


def test_parabola_without_a_minimum_has_no_optimum() -> None:
    fit = fit_rates([1, 2, 4], [0.0, 1.0, 0.0])
    assert fit.optimum is None
    assert fit.regret(2.0) is None
    assert fit_rates([1, 2, 4], [0.0, 1.0, 0.0], higher_is_better=True).optimum == pytest.approx(2.0)


def test_parabola_needs_three_rates() -> None:
    with pytest.raises(ValueError, match="2 rates"):
        fit_rates([1, 2, 2], [0.0, 1.0, 1.0])
