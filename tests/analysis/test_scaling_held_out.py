"""Held-out error, the verdict on a loop term, and the figure."""

import re
from pathlib import Path

import numpy as np
import pytest

from analysis.scaling.catalogue import CHINCHILLA, OURO_TOTAL, RECURRENCE
from analysis.scaling.figure import draw as draw_figure
from analysis.scaling.figure import figure_data
from analysis.scaling.fits import fit
from analysis.scaling.held_out import Margin, beyond, held_out, largest, loop_term_supported
from analysis.scaling.laws import Law
from analysis.scaling.uncertainty import bootstrap
from analysis.style import Palette
from tests.analysis.test_scaling_laws import BASE, draw, ladder

DEPTHS = (1, 2, 4, 8)
WITHOUT = {"recurrence": {**BASE, "phi": 0.0}, "ouro_total": {**BASE, "C": 0.0, "gamma": 1.0}}


def test_held_out_error_is_that_of_the_other_points_fit() -> None:
    points = draw(ladder(), RECURRENCE, point=0.002)
    for split, count in ((largest("parameters"), 18), (largest("loops"), 24)):
        found, out = held_out(RECURRENCE, points, split), split(points)
        errors = np.log(points.loss[out]) - np.log(fit(RECURRENCE, points.take(~out)).predict(points.take(out)))
        assert (found.n, found.rms) == (count, pytest.approx(np.sqrt(np.mean(errors**2))))
        assert found.bias == pytest.approx(errors.mean())
        assert found.rms < 0.02


def test_held_out_part_that_leaves_too_little_is_refused() -> None:
    found = held_out(RECURRENCE, draw(ladder(), RECURRENCE), beyond("tokens", 2e6))
    assert found.refused == "recurrence: B, beta not identifiable: needs 3 token counts, got 2 (1e+06, 2e+06)"
    assert np.isnan(found.rms)


def test_held_out_budget_in_flops() -> None:
    points = draw(ladder(), CHINCHILLA)
    limit = float(np.quantile(points.flops, 0.8))
    found = held_out(CHINCHILLA, points, beyond("flops", limit))
    assert found.n == (points.flops > limit).sum()
    assert found.rms < 1e-6
    assert held_out(CHINCHILLA, points, beyond("flops", 1e30)).refused == "no point is held out"


@pytest.mark.parametrize("law", [RECURRENCE, OURO_TOTAL], ids=lambda law: law.name)
def test_loop_term_is_supported_where_there_is_one(law: Law) -> None:
    found = loop_term_supported(law, draw(ladder(loops=DEPTHS), law, run=0.002, point=0.002), draws=100)
    assert found.supported, str(found)
    assert found.depth.value > 0.005
    assert "loop term supported" in str(found)


@pytest.mark.parametrize("law", [RECURRENCE, OURO_TOTAL], ids=lambda law: law.name)
def test_loop_term_is_not_supported_where_there_is_none(law: Law) -> None:
    for seed in range(3):
        points = draw(ladder(loops=DEPTHS), law, seed, run=0.002, point=0.002, **WITHOUT[law.name])
        found = loop_term_supported(law, points, draws=100)
        assert not found.supported, str(found)
        assert found.decided
        assert "loop term not supported" in str(found)


def test_loop_term_is_undecided_where_a_split_leaves_too_little() -> None:
    found = loop_term_supported(OURO_TOTAL, draw(ladder(), OURO_TOTAL), draws=20)
    assert not found.supported
    assert not found.decided
    assert (
        "held-out depth: undecided (ouro_total: C, gamma not identifiable: needs 3 loop counts, got 2 (1, 2))"
        in str(found)
    )
    with pytest.raises(ValueError, match="chinchilla has no loop term"):
        loop_term_supported(CHINCHILLA, draw(ladder(), CHINCHILLA))


def test_rounding_is_no_gain_and_is_printed_as_none() -> None:
    assert not Margin(0.1, 0.1, (1e-12, 2e-12)).beats
    assert str(Margin(0.1, 0.1, (-1e-12, 2e-12))) == "0 % of the loss [0, 0]"
    assert Margin(0.11, 0.1, (0.002, 0.02)).beats
    assert str(Margin(0.11, 0.1, (0.002, 0.02))) == "+1.00 % of the loss [+0.20, +2.00]"


def test_nine_loops_look_like_nine() -> None:
    names = [str(loop) for loop in range(9)]
    palette = Palette(names)
    assert len({(palette.colour(name), palette.marker(name)) for name in names}) == 9


def test_figure_data_are_points_curves_and_residuals() -> None:
    points = draw(ladder(), RECURRENCE, point=0.002)
    found = fit(RECURRENCE, points)
    data = figure_data(found, steps=10)
    assert data.points["residual"].to_numpy() == pytest.approx(found.residuals())
    assert (data.points["in_parameters"].sum(), data.points["in_tokens"].sum()) == (24, 18)
    assert len(data.curves) == 2 * 3 * 10
    last = data.curves[(data.curves["panel"] == "tokens") & (data.curves["loops"] == 4)].iloc[-1]
    at = (points.parameters == points.parameters.max()) & (points.loops == 4) & (points.tokens == 5e6)
    assert last["loss"] == pytest.approx(found.predict(points.take(at))[0])


def test_a_panel_shows_the_value_at_which_most_was_varied() -> None:
    points = draw(ladder(), RECURRENCE, point=0.002)
    middle = points.values("parameters")[2]
    uneven = points.take((points.tokens == 2e6) | (points.parameters == middle))
    data = figure_data(fit(RECURRENCE, uneven))
    tokens, sizes = data.points[data.points["in_tokens"]], data.points[data.points["in_parameters"]]
    assert (set(tokens["parameters"]), tokens["tokens"].nunique()) == ({middle}, 3)
    assert (set(sizes["tokens"]), sizes["parameters"].nunique()) == ({2e6}, 4)
    line = data.curves[(data.curves["panel"] == "tokens") & (data.curves["loops"] == 1)]
    assert (line["x"].min(), line["x"].max()) == pytest.approx((1e6, 5e6))
    at = uneven.take((uneven.parameters == middle) & (uneven.loops == 1) & (uneven.tokens == 5e6))
    assert line["loss"].iloc[-1] == pytest.approx(fit(RECURRENCE, uneven).predict(at)[0])


def test_a_refused_law_gives_points_without_curves(tmp_path: Path) -> None:
    found = fit(OURO_TOTAL, draw(ladder(loops=(2,)), CHINCHILLA))
    data = figure_data(found)
    assert data.curves.empty
    assert len(data.points) == 24
    drawn = draw_figure(found, tmp_path, formats=("svg",))
    assert "not identifiable: needs 3 loop counts, got 1 (2)" in drawn.caption


def test_figure_is_the_same_every_time(tmp_path: Path) -> None:
    found = bootstrap(fit(RECURRENCE, draw(ladder(), RECURRENCE, point=0.002)), 50)
    first = draw_figure(found, tmp_path / "a", formats=("svg",))
    second = draw_figure(found, tmp_path / "b", formats=("svg",))
    assert first.path.read_bytes() == second.path.read_bytes()
    assert re.search(r"L = E \+ A/\(N_once \+ r\^φ N_rec\)\^α \+ B/D\^β, residuals 0\.\d+ % of the loss", first.caption)
