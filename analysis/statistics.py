"""The statistics of verdicts: exact, for few seeds, free of any knowledge of runs.

Seeds share data order and initial draws across arms, so differences are taken per seed and tested by a t test on them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
from scipy import stats

Values = Sequence[float] | np.ndarray

_NODES, _WEIGHTS = (lambda x, w: ((x + 1) / 2, w / 2))(*np.polynomial.legendre.leggauss(2000))


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom (not whole for Welch). sd: of what was averaged."""

    mean: float
    error: float
    df: float
    n: int
    sd: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        half = float(stats.t.ppf((1 + level) / 2, self.df)) * self.error if self.error else 0.0
        return self.mean - half, self.mean + half

    def p_above(self, null: float) -> float:
        """One-sided p of 'the mean is above `null`'. Without variance it is 0 or 1, and 0.5 exactly at `null`."""
        if self.error == 0:
            return 0.5 if self.mean == null else float(self.mean < null)
        return float(stats.t.sf((self.mean - null) / self.error, self.df))

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided."""
        above = self.p_above(null)
        return min(1.0, 2 * min(above, 1 - above))


def mean_of(values: Values) -> Estimate:
    """The mean of independent values, for a one-sample t interval.

    Raises:
        ValueError: fewer than two values.
    """
    x = _at_least(2, values)
    sd = _sd(x)
    return Estimate(float(x.mean()), sd / math.sqrt(len(x)), len(x) - 1, len(x), sd)


def paired(arm: Values, reference: Values) -> Estimate:
    """The mean of differences arm − reference, taken seed by seed."""
    if len(arm) != len(reference):
        raise ValueError(f"paired: {len(arm)} values against {len(reference)}")
    return mean_of(np.asarray(arm, float) - np.asarray(reference, float))


def welch(arm: Values, reference: Values) -> Estimate:
    """The difference of two unpaired means with unequal variances (Welch–Satterthwaite degrees of freedom)."""
    x, y = _at_least(2, arm), _at_least(2, reference)
    vx, vy = _sd(x) ** 2 / len(x), _sd(y) ** 2 / len(y)
    total = vx + vy
    df = total**2 / (vx**2 / (len(x) - 1) + vy**2 / (len(y) - 1)) if total else len(x) + len(y) - 2.0
    return Estimate(float(x.mean() - y.mean()), math.sqrt(total), df, len(x) + len(y), math.sqrt((vx + vy) / 2))


def tost(estimate: Estimate, bound: float) -> float:
    """p of 'the mean lies within ±bound': the larger of two one-sided t tests (Schuirmann 1987)."""
    return max(estimate.p_above(-bound), 1 - estimate.p_above(bound))


def beyond(estimate: Estimate, bound: float) -> float:
    """Two-sided p of 'the mean lies outside ±bound': small when the t interval is wholly beyond one of them."""
    return min(1.0, 2 * min(estimate.p_above(bound), 1 - estimate.p_above(-bound)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def holm_levels(p_values: Sequence[float], alpha: float = 0.05) -> list[float]:
    """For each test the level at which Holm's procedure decides it: its interval at 1 − level agrees with `holm`."""
    order = np.argsort(p_values, kind="stable")
    levels, stopped = [alpha] * len(p_values), None
    for rank, index in enumerate(order):
        level = alpha / (len(p_values) - rank) if stopped is None else stopped
        levels[index] = level
        if stopped is None and p_values[index] > level:
            stopped = level
    return levels


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a success probability."""
    return _proportion(successes, n, level, "wilson")


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a success probability; never covers less than `level`."""
    return _proportion(successes, n, level, "exact")


def power(effect: float, n: int, alpha: float = 0.05) -> float:
    """Of a two-sided one-sample (paired) t test. effect: true mean in SD of the differences."""
    t, shift = float(stats.t.ppf(1 - alpha / 2, n - 1)), effect * math.sqrt(n)
    return _over_sd(n, lambda s: stats.norm.cdf(shift - t * s) + stats.norm.cdf(-shift - t * s))


@cache
def detectable_effect(n: int, target: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true mean, in SD of the differences, that a paired t test with n seeds finds at power `target`."""
    low, high = 0.0, 1.0
    while power(high, n, alpha) < target:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, n, alpha) < target else (low, middle)
    return high


def equivalence_power(bound: float, n: int, alpha: float = 0.05) -> float:
    """Of TOST on n paired differences whose true mean is 0. bound: in SD of the differences."""
    t, width = float(stats.t.ppf(1 - alpha, n - 1)), bound * math.sqrt(n)
    return _over_sd(n, lambda s: np.maximum(0.0, 2 * stats.norm.cdf(width - t * s) - 1))


def equivalence_n(sd: float, bound: float, target: float = 0.8, alpha: float = 0.05) -> int | None:
    """Seeds that TOST needs for power `target` at ±bound if the arms are truly equal; None if over 100,000."""
    if sd == 0:
        return 2
    return _first_n(lambda n: equivalence_power(bound / sd, n, alpha), target) if bound > 0 else None


def superiority_n(sd: float, margin: float, target: float = 0.8, alpha: float = 0.05) -> int | None:
    """Seeds that a paired t test needs for power `target` if the true mean is `margin` off its null; None: over 1e5."""
    if sd == 0 or margin == 0:
        return 2 if margin else None
    return _first_n(lambda n: power(abs(margin) / sd, n, alpha), target)


def sd_upper(sd: float, n: int, level: float = 0.8) -> float:
    """Upper confidence bound of a normal SD that n values estimate (chi-square): 2.1 × at n = 3, 1.3 × at 8."""
    return sd * math.sqrt((n - 1) / float(stats.chi2.ppf(1 - level, n - 1)))


def prediction_interval(values: Values, new: int = 1, level: float = 0.95) -> tuple[float, float]:
    """Where the mean of `new` further runs falls, if they are drawn as these were."""
    estimate = mean_of(values)
    half = float(stats.t.ppf((1 + level) / 2, estimate.df)) * estimate.sd * math.sqrt(1 / estimate.n + 1 / new)
    return estimate.mean - half, estimate.mean + half


def bootstrap(
    values: Sequence[Values] | Values, level: float = 0.95, draws: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval of the mean over seeds; given a list of blocks per seed, hierarchical (seeds, then blocks).

    Raises:
        ValueError: fewer than five seeds, where the percentile bootstrap is too narrow to be used.
    """
    groups = [np.atleast_1d(np.asarray(group, float)) for group in values]
    if len(groups) < 5:
        raise ValueError(f"bootstrap: {len(groups)} seeds; below 5 report all points and a t interval")
    random = np.random.default_rng(seed)
    # One resampled mean of blocks per (draw, seed slot); with one block per seed this is the simple bootstrap.
    picks = random.integers(len(groups), size=(draws, len(groups)))
    means = np.empty(picks.shape)
    for index, group in enumerate(groups):
        chosen = picks == index
        blocks = random.integers(len(group), size=(int(chosen.sum()), len(group)))
        means[chosen] = group[blocks].mean(axis=1)
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Calibration:
    """Shares of A/A splits called different. `expected`: what a test at this level gives on normal values."""

    splits: int
    unpaired: float
    paired: float
    expected: float


def split_calibration(values: Values, size: int = 5, alpha: float = 0.05) -> Calibration:
    """How often the verdict's tests see a difference between halves of one arm's seeds, over all splits.

    The seeds of one arm have no true partner, so the unpaired (Welch) test is the fair one. The paired test matches
    the k-th seed of each half: any fixed pairing is as good as another under exchangeability, and it runs the very
    code of a verdict. A t test at level α calls a fraction α of random splits different when values are normal; Welch
    with five a side slightly less. The splits share values, so ten seeds give one noisy reading of that share, not 252
    independent ones: far more than α means that the interval is too narrow for this metric.
    """
    x = _at_least(2 * size, values)[: 2 * size]
    unpaired = pairs = splits = 0
    for half in combinations(range(2 * size), size):
        other = [index for index in range(2 * size) if index not in half]
        splits += 1
        unpaired += welch(x[list(half)], x[other]).p_value() <= alpha
        pairs += paired(x[list(half)], x[other]).p_value() <= alpha
    return Calibration(splits, unpaired / splits, pairs / splits, alpha)


def _over_sd(n: int, function: Callable[[np.ndarray], np.ndarray]) -> float:
    """The mean of function(s/σ) over the sampling distribution of the standard deviation of n normal values."""
    return float(np.sum(_WEIGHTS * function(_sd_ratios(n))))


@cache
def _sd_ratios(n: int) -> np.ndarray:
    return np.sqrt(stats.chi2.ppf(_NODES, n - 1) / (n - 1))


def _first_n(power_at: Callable[[int], float], target: float, limit: int = 100_000) -> int | None:
    """The smallest n ≥ 2 with this power, which must grow with n; None if it is over `limit`."""
    if power_at(limit) < target:
        return None
    low, high = 1, 2
    while power_at(high) < target:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if power_at(middle) < target else (low, middle)
    return high


def _proportion(successes: int, n: int, level: float, method: str) -> tuple[float, float]:
    found = stats.binomtest(successes, n).proportion_ci(level, method)
    return float(found.low), float(found.high)


def _sd(x: np.ndarray) -> float:
    """0 where values are equal up to rounding, so that 0.3 − 0.1 and 0.2 are no spread."""
    sd = float(x.std(ddof=1))
    return 0.0 if sd <= 1e-12 * float(np.abs(x).max()) else sd


def _at_least(n: int, values: Values) -> np.ndarray:
    x = np.asarray(values, float)
    if len(x) < n or not np.isfinite(x).all():
        raise ValueError(f"needs at least {n} finite values, got {list(x)}")
    return x
