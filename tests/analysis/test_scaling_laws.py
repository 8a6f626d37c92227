"""The fitters recover laws that they are shown; what a design cannot tell is said, not printed as a number."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.scaling.catalogue import CHINCHILLA, LAWS, OURO_TOTAL, RECURRENCE
from analysis.scaling.fits import Fit, fit
from analysis.scaling.laws import Law
from analysis.scaling.points import COLUMNS, Points
from analysis.scaling.uncertainty import bootstrap, profile, resampled, trunk_weights

BASE = {"E": 1.2, "A": 60.0, "alpha": 0.35, "B": 300.0, "beta": 0.4}
LOOP = {"C": 0.2, "gamma": 1.0}
OFFSETS = {"t1": 1e4, "t2": 5e5}
TRUE: dict[str, dict[str, float]] = {
    "mean": {"E": 3.0},
    "data": {"E": 2.0, "B": 300.0, "beta": 0.4},
    "chinchilla": BASE,
    "chinchilla_offsets": {**BASE, **OFFSETS},
    "recurrence": {**BASE, "phi": 0.5},
    "ouro_total": {**BASE, **LOOP},
    "ouro_total_offsets": {**BASE, **OFFSETS, **LOOP, "t3": 0.5},
    "ouro_stepwise": {**BASE, **LOOP},
    "ouro_stepwise_offsets": {**BASE, **OFFSETS, **LOOP, "t3": 0.5},
    "parcae": {**BASE, "A": 0.4, "alpha": 0.77},
    "parcae_unrolled": {**BASE, "A": 4000.0, "alpha": 0.77},
    "parcae_test_time": {"E": 2.5, "Z": 1.5, "z": 0.7},
    "shifted_power": {"E": 2.5, "Z": 1.5, "z": 0.7, "s": 0.4},
    "parcae_unified": {**BASE, "A": 0.4, "alpha": 0.77, "Z": 1.0, "z": 3.0},
}

# Besiroglu et al. (2404.10102): values and standard errors of the refit to 240 of Hoffmann's points.
REFIT = {"A": 482.0, "B": 2085.4, "E": 1.817, "alpha": 0.348, "beta": 0.366}
REFIT_ERRORS = {"A": 124.5, "B": 1293.0, "E": 0.026, "alpha": 0.015, "beta": 0.021}


def ladder(
    widths: tuple[int, ...] = (48, 64, 96, 128),
    loops: tuple[int, ...] = (1, 2, 4),
    seeds: int = 2,
    tokens: tuple[float, ...] = (1e6, 2e6, 5e6),
    stepwise: int = 0,
) -> Points:
    """A trunk per width, loop count and seed with a branch per token count. stepwise: loops read within one depth."""
    rows = [
        (f"{width}-{stepwise or loop}-{seed}", 500 * width, 24 * width**2, token, loop, 1.0, stepwise or loop)
        for width in widths
        for loop in loops
        for seed in range(seeds)
        for token in tokens
    ]
    return Points.of(pd.DataFrame(rows, columns=[*COLUMNS, "trained_loops"]))


DESIGNS = {
    "ouro_total_offsets": ladder((32, 48, 64, 96, 128), (1, 2, 3, 4, 6), 1, (1e6, 2e6, 5e6, 1e7, 2e7)),
    "ouro_stepwise": ladder(loops=(1, 2, 3, 4), stepwise=4),
    "ouro_stepwise_offsets": ladder((32, 48, 64, 96, 128), (1, 2, 3, 4, 6), 1, (1e6, 2e6, 5e6, 1e7, 2e7), stepwise=6),
    "parcae": ladder((64,), (1, 2, 4, 8)),
    "parcae_unrolled": ladder((64,), (1, 2, 4, 8)),
    "parcae_test_time": ladder((64,), (1, 2, 3, 4, 6, 8), tokens=(1e6,), stepwise=8),
    "shifted_power": ladder((64,), (1, 2, 3, 4, 6, 8), tokens=(1e6,), stepwise=8),
}
DESIGNS["chinchilla_offsets"] = DESIGNS["ouro_total_offsets"]


def draw(points: Points, law: Law, seed: int = 0, run: float = 0.0, point: float = 0.0, **true: float) -> Points:
    """Losses of a law with noise in log loss, shared by a trunk's points (`run`) and of each point's own (`point`)."""
    random = np.random.default_rng(seed)
    noise = run * random.standard_normal(points.trunk.max() + 1)[points.trunk]
    noise = noise + point * random.standard_normal(len(points))
    return replace(points, loss=law.predict(points, true or TRUE[law.name]) * np.exp(noise))


def hoffmann() -> Points:
    """240 points as in the published data: eight budgets between 6e18 and 3e21 FLOPs, 1 to 300 tokens per parameter."""
    budgets, ratios = np.meshgrid(np.geomspace(6e18, 3e21, 8), np.geomspace(1, 300, 30))
    sizes = np.sqrt(budgets / 6 / ratios).ravel()
    table = {"trunk": range(240), "parameters_once": 0.0, "parameters_recurring": sizes, "loops": 1, "loss": 1.0}
    return Points.of(pd.DataFrame({**table, "tokens": sizes * ratios.ravel()}))


def unified() -> Points:
    """Read at several loop counts in models of several depths."""
    parts = [ladder((64,), (1, 2, 4, 8), stepwise=depth) for depth in (1, 2, 4, 8)]
    names = ("trunk", "once", "recurring", "tokens", "loops", "trained_loops", "loss")
    return Points(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if "offsets" in n else n for n in LAWS])
def test_projection_recovers_every_law_without_noise(name: str) -> None:
    points = unified() if name == "parcae_unified" else DESIGNS.get(name, ladder())
    found = fit(LAWS[name], draw(points, LAWS[name]))
    assert not found.flags
    assert found.rms < 1e-7
    assert found.values == pytest.approx(TRUE[name], rel=2e-3 if "offsets" in name else 1e-4)


@pytest.mark.parametrize(
    "law",
    [CHINCHILLA, RECURRENCE, pytest.param(OURO_TOTAL, marks=pytest.mark.slow)],
    ids=lambda law: law.name,
)
def test_the_two_fitters_agree(law: Law) -> None:
    exact = fit(law, draw(ladder(), law), "huber")
    assert exact.values == pytest.approx(TRUE[law.name], rel=1e-3)
    # Noise far below δ: the Huber loss is half the sum of squares.
    little = draw(ladder(), law, 1, point=1e-4)
    ours, theirs = fit(law, little), fit(law, little, "huber")
    assert theirs.values == pytest.approx(ours.values, rel=5e-3)
    assert theirs.objective == pytest.approx(ours.objective / 2, rel=1e-3)
    much = draw(ladder(), law, 2, run=0.002, point=0.002)
    ours, theirs = bootstrap(fit(law, much), 200), fit(law, much, "huber")
    assert all(ours.intervals[name][0] < theirs.values[name] < ours.intervals[name][1] for name in law.names)


def test_chinchilla_refit_from_synthetic_draws() -> None:
    """Over draws with 0.5 % noise, values stay within the published standard errors of the published values."""
    draws = [draw(hoffmann(), CHINCHILLA, seed, point=0.005, **REFIT) for seed in range(20)]
    found = pd.DataFrame([fit(CHINCHILLA, points).values for points in draws])
    for name, error in REFIT_ERRORS.items():
        assert abs(found[name].mean() - REFIT[name]) < error / 2, name
        assert np.sqrt(np.mean((found[name] - REFIT[name]) ** 2)) < error, name
    share = found["beta"] / (found["alpha"] + found["beta"])
    assert share.mean() == pytest.approx(0.513, abs=0.020)
    huber = pd.DataFrame([fit(CHINCHILLA, points, "huber").values for points in draws[:3]]).mean()
    assert all(abs(huber[name] - REFIT[name]) < error for name, error in REFIT_ERRORS.items()), huber


def test_published_errors_are_those_of_one_percent_noise() -> None:
    """The spread of A, E and α over draws; published B and β are looser, by a design that we do not know."""
    draws = [draw(hoffmann(), CHINCHILLA, seed, point=0.01, **REFIT) for seed in range(20)]
    spread = pd.DataFrame([fit(CHINCHILLA, points).values for points in draws]).std()
    assert all(0.6 < spread[name] / REFIT_ERRORS[name] < 1.5 for name in ("A", "E", "alpha")), spread


def coverage(law: Law, points: Points, repetitions: int, draws: int) -> dict[str, int]:
    """How often the interval covers the truth, with noise in runs and in points."""
    hits = dict.fromkeys(law.names, 0)
    for seed in range(repetitions):
        found = bootstrap(fit(law, draw(points, law, seed, run=0.003, point=0.002)), draws, seed)
        for name, (low, high) in found.intervals.items():
            hits[name] += low <= TRUE[law.name][name] <= high
    return hits


def test_bootstrap_covers() -> None:
    hits = coverage(RECURRENCE, ladder(), 40, 200)
    assert min(hits.values()) >= stats.binom.ppf(0.005, 40, 0.95), hits
    assert sum(hits.values()) < 40 * len(hits), hits


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("law", [CHINCHILLA, RECURRENCE, OURO_TOTAL], ids=lambda law: law.name)
def test_bootstrap_covers_at_the_nominal_rate(law: Law) -> None:
    hits = coverage(law, ladder(seeds=4), 200, 300)
    low, high = stats.binom.ppf([0.001, 0.999], 200, 0.95)
    assert all(low <= hit <= high for hit in hits.values()), hits


def test_points_of_a_trunk_are_drawn_together() -> None:
    points = ladder()
    weights = trunk_weights(points, 50)
    for trunk in range(points.trunks):
        mine = weights[:, points.trunk == trunk]
        assert (mine == mine[:, :1]).all()
    assert (weights.sum(axis=1) == len(points)).all()


def test_resampling_is_fitting_the_repeated_points() -> None:
    points = draw(ladder(), RECURRENCE, 3, point=0.003)
    weights = trunk_weights(points, 3)
    for method, close in (("projection", 1e-5), ("huber", 2e-2)):
        first = fit(RECURRENCE, points, method)
        found = resampled(first, weights)
        again = fit(RECURRENCE, points.take(np.repeat(np.arange(len(points)), weights[0].astype(int))), method)
        assert found.theta[0] == pytest.approx(again.solution().theta[0], rel=close)


def test_jacobian_errors_are_the_spread_of_fits_to_independent_points() -> None:
    found = [fit(RECURRENCE, draw(ladder(), RECURRENCE, seed, point=0.002)) for seed in range(80)]
    for name in RECURRENCE.names:
        spread = np.std([one.values[name] for one in found])
        assert np.median([one.errors[name] for one in found]) == pytest.approx(spread, rel=0.3), name


def test_information_criteria_prefer_the_law_that_made_the_data() -> None:
    points = draw(ladder(), OURO_TOTAL, point=0.002)
    loop, none = fit(OURO_TOTAL, points), fit(CHINCHILLA, points)
    assert loop.aic < none.aic - 10
    assert loop.bic < none.bic - 10
    data = draw(ladder(), CHINCHILLA, point=0.002)
    assert fit(OURO_TOTAL, data).bic > fit(CHINCHILLA, data).bic


def test_profile_encloses_the_value_or_says_it_is_open() -> None:
    found = fit(RECURRENCE, draw(ladder(), RECURRENCE, point=0.002))
    for name, values in (("phi", np.linspace(0.2, 0.8, 25)), ("E", np.linspace(0.5, 1.6, 25))):
        low, high = profile(found, name, values).interval
        assert low is not None and high is not None
        assert low < found.values[name] < high
    near = found.values["phi"] + np.linspace(-1e-3, 1e-3, 5)
    assert profile(found, "phi", near).interval == (None, None)
    with pytest.raises(ValueError, match="has no gamma; it has E, alpha, phi, beta"):
        profile(found, "gamma", [1.0])


def _refused(found: Fit) -> str:
    lines = set(found.table().values())
    assert lines == {found.refused}
    assert "\n" not in found.refused
    return found.refused


def test_one_loop_count_is_a_line_and_no_numbers() -> None:
    points = draw(ladder(loops=(4,)), CHINCHILLA)
    assert _refused(fit(OURO_TOTAL, points)) == (
        "ouro_total: C, gamma not identifiable: needs 3 loop counts, got 1 (4)"
    )
    assert "needs 2 loop counts, got 1 (4)" in _refused(bootstrap(fit(RECURRENCE, points)))
    with pytest.raises(ValueError, match="not identifiable"):
        fit(OURO_TOTAL, points).predict(points)


def test_too_few_points_and_laws_per_size_are_lines() -> None:
    points = draw(ladder(seeds=1), CHINCHILLA)
    assert _refused(fit(CHINCHILLA, points.take(np.arange(5)))) == "chinchilla: too few points: 5 for 5 parameters"
    assert "stated for one value of parameters, got 4" in _refused(fit(LAWS["parcae"], points))
    assert "stated for one value of trained_loops, got 3" in _refused(fit(LAWS["ouro_stepwise"], points))


def test_confounded_design_is_named() -> None:
    """Where tokens are always the same multiple of parameters, A, α and B, β differ only by a hair."""
    points = ladder(loops=(1,), seeds=1)
    points = replace(points, tokens=20 * points.parameters)
    true = {**BASE, "beta": 0.35}
    found = fit(CHINCHILLA, draw(points, CHINCHILLA, point=0.002, **true))
    assert found.flags


def test_a_bound_is_said_not_printed() -> None:
    points = ladder()
    found = fit(RECURRENCE, draw(points, RECURRENCE, **{**BASE, "phi": 2.4}))
    assert found.table()["phi"] == "phi at its upper bound 2: the value is the bound's, not the data's"
    assert "phi" not in found.errors
    flat = fit(OURO_TOTAL, draw(points, OURO_TOTAL, **BASE, C=-0.1, gamma=1.0))
    assert flat.table()["C"] == "C at its lower bound 0: the term is absent"
    assert flat.table()["gamma"] == "gamma not identifiable: C is 0"


def test_few_trunks_give_no_interval() -> None:
    points = draw(ladder((48, 64, 96), (1,), 1, (1e6, 2e6, 5e6, 1e7)), CHINCHILLA, point=0.002)
    found = bootstrap(fit(CHINCHILLA, points))
    assert not found.intervals
    assert found.table()["E"] == "chinchilla: no interval: 3 trunks for 5 parameters"


def test_points_need_their_columns_and_finite_losses() -> None:
    frame = pd.DataFrame([("a", 0, 100, 1e6, 1, np.nan)], columns=list(COLUMNS))
    with pytest.raises(ValueError, match="1 values of loss are not finite and positive"):
        Points.of(frame)
    with pytest.raises(ValueError, match="no column tokens, loss"):
        Points.of(frame.drop(columns=["tokens", "loss"]))
