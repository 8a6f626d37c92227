"""The figure of exit rules: every policy drawn and named, the same bytes every time, a missing quality refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.exit_figure import draw_pareto, pareto


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
