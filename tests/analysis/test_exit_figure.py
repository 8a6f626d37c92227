"""The figure of exit rules: every policy drawn and named, the same bytes every time, a missing quality refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_study import Fake

from analysis import figures, report
from analysis.blocks import markdown
from analysis.exit_figure import draw_pareto, of_study, pareto


def table() -> pd.DataFrame:
    policies = ["QExit(strict_reference=False)", "HiddenDifference(relative=True)", "LoopKL()", "static", "oracle"]
    rows = [
        {"policy": policy, "loops": loops, "loss": 3 - loops / (2 + place), "accuracy": np.nan if place == 4 else 0.5}
        for place, policy in enumerate(policies)
        for loops in (1.0, 2.5, 4.0)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_every_policy_is_drawn_in_the_order_of_its_loops() -> None:
    (axes,) = pareto(table(), "loss").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"Q exit", "hidden difference, relative", "loop KL", "static", "oracle"}
    assert list(lines["Q exit"].get_xdata()) == [1.0, 2.5, 4.0]
    assert lines["oracle"].get_linestyle() == "--"
    assert {line.get_label() for line in pareto(table(), "accuracy").axes[0].lines} == set(lines) - {"oracle"}


def test_the_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (draw_pareto(table(), tmp_path / name, formats=("svg",)) for name in ("a", "b"))
    assert first.name == "exits.svg"
    assert first.read_bytes() == second.read_bytes()


def test_a_missing_quality_is_named() -> None:
    with pytest.raises(ValueError, match=r"^quality = bits: not in the table; valid: loss, accuracy$"):
        pareto(table(), "bits")


def test_a_study_of_exit_rules_is_drawn_in_its_report(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss at depths 1 to 3, by arm and seed; what an arm gains over static depths gives those back."""
    monkeypatch.setattr(figures, "wanted_curves", lambda result: [])
    fake = Fake(change=lambda study: study.update(figures={}))
    fake.final = {
        (arm, seed): {
            f"exit/{name}_at_{depth}": value
            for depth in (1, 2, 3)
            for name, value in (("loss", 3 - depth + place + seed), ("gain_over_random", 0.5 - place - seed))
        }
        for place, arm in enumerate(("looped", "iso_parameter", "iso_flop"))
        for seed in fake.seeds
    }
    result = make(fake)
    found = of_study(result).set_index(["policy", "loops"])["loss"]
    assert found["looped", 2] == pytest.approx(3 - 2 + 0 + np.mean(fake.seeds))
    assert found["iso flop", 3] == pytest.approx(3 - 3 + 2 + np.mean(fake.seeds))
    assert [found["static", depth] for depth in (1, 2, 3)] == pytest.approx([2.5, 1.5, 0.5])
    drawn = figures.draw_all(result, {}, tmp_path / "figures", ("svg",))
    assert [one.path.name for one in drawn] == ["exits_loss.svg"]
    text = markdown(report.blocks(result, {}, drawn), tmp_path)
    assert "## Exit rules" in text and "(figures/exits_loss.svg)" in text


def test_another_study_has_no_such_figure(result) -> None:
    assert of_study(result) is None
