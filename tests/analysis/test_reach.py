"""Steps followed by number of loops: what is measured, how it grows, what cannot be told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import reach
from analysis.blocks import Table, Text
from analysis.runs import StudyResult
from ouro_lab.config import ConfigError
from ouro_lab.study import Study

LEVELS = range(1, 17)


def study(steps: dict[int, list[float]], states: dict[tuple[int, int], str] | None = None) -> StudyResult:
    """Arms of 2⊗T and an untied one. A run is right at 1 − 0.1·h/reach on h hops: 0.9 where h is its reach."""
    rows = []
    for loops, values in steps.items():
        for seed, value in enumerate(values):
            state = (states or {}).get((loops, seed), "done")
            accuracy = {f"final/accuracy/hops_{h}": max(0.0, 1 - 0.1 * h / value) for h in LEVELS}
            rows.append(
                {"id": f"{loops}-{seed}", "arm": f"loops_{loops}", "seed": seed, "state": state, "phase": "main"}
                | accuracy
            )
    untied = {f"final/accuracy/hops_{h}": 1.0 for h in LEVELS}
    rows.append({"id": "u", "arm": "untied", "seed": 0, "state": "done", "phase": "main"} | untied)
    arms = {f"loops_{loops}": {"shape": f"2⊗{loops}"} for loops in steps} | {"untied": {"shape": "8⊗1"}}
    looped = [f"loops_{loops}" for loops in steps]
    figures = {"reach": {"metric": "accuracy/hops_", "at_least": 0.9, "arms": looped}}
    return StudyResult({"name": "made", "arms": arms, "figures": figures}, pd.DataFrame(rows), pd.DataFrame(), [])


def test_steps_are_where_the_accuracy_first_falls_below() -> None:
    levels = [1, 2, 4, 8]
    assert reach.steps(levels, np.array([1.0, 1.0, 0.95, 0.85]), 0.9) == pytest.approx(6.0)
    assert reach.steps(levels, np.array([1.0, 0.5, 1.0, 1.0]), 0.9) == pytest.approx(1.2)  # later ones do not count
    assert reach.steps(levels, np.array([0.89, 1.0, 1.0, 1.0]), 0.9) == 0.0
    assert reach.steps(levels, np.array([0.9, 0.9, 0.9, 0.9]), 0.9) == 8.0
    assert reach.steps(levels, np.array([np.nan, 1.0, 1.0, 1.0]), 0.9) == 0.0  # not measured is not right


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{metric: accuracy/hops_, at_leest: 0.9, arms: [looped]}", r"study\.figures\.reach = .*: must be metric"),
        (
            "{metric: accuracy/hops_, at_least: 0.9, arms: [loped]}",
            r"reach\.arms: loped is not an arm; did you mean looped",
        ),
    ],
)
def test_a_bad_reach_is_one_line_before_anything_runs(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Study("p_hop", ["study.lr=null", f"+study.figures.reach={value}"])


def test_arms_that_are_named_are_read_and_no_others() -> None:
    found = reach.reach(study({1: [2.0, 2.5], 2: [4.0, 5.0]}))
    assert found.ends == 16
    assert {loops: list(seeds.values()) for loops, seeds in found.values.items()} == {
        1: pytest.approx([2.0, 2.5]),
        2: pytest.approx([4.0, 5.0]),
    }
    plain = study({1: [2.0]})
    plain.study["figures"] = {}
    assert reach.reach(plain) is None


def test_a_reach_that_doubles_is_described_by_a_factor() -> None:
    found = reach.growth(reach.reach(study({1: [1.5, 1.6], 2: [3.0, 3.2], 3: [6.0, 6.4], 4: [12.0, 12.8]})))
    assert list(found.factors.values()) == pytest.approx([2.0, 2.0], rel=1e-9)
    assert max(found.by_factor.values()) < 1e-9 < 0.05 < min(found.by_amount.values())
    assert "Reach grows 2.00 × [2.00, 2.00] with a loop (n = 2). A factor describes it better in every seed" in str(
        found
    )


def test_a_reach_that_adds_is_described_by_an_amount() -> None:
    found = reach.growth(reach.reach(study({1: [3.0], 2: [6.0], 3: [9.0], 4: [12.0]})))
    assert found.by_amount[0] < 1e-6 < 0.05 < found.by_factor[0]
    assert "An amount describes it better" in str(found)


def test_a_line_is_fitted_where_the_first_straight_one_falls_below_nothing() -> None:
    """1, 4, 15: the least squares of the steps themselves start under 0, where a logarithm has no slope."""
    found = reach.growth(reach.reach(study({1: [1.0], 2: [4.0], 3: [15.0]})))
    line = np.polyval(np.polyfit([1, 2, 3], [1.0, 4.0, 15.0], 1), [1, 2, 3])
    assert line[0] < 0
    assert 0.2 < found.by_amount[0] < 0.3  # a search over both ends has 0.29


def test_seeds_that_disagree_tell_nothing() -> None:
    found = reach.growth(reach.reach(study({1: [1.5, 3.0], 2: [3.0, 6.0], 3: [6.0, 9.0], 4: [12.0, 12.0]})))
    assert "The seeds do not tell a factor from an amount (1 of 2 say a factor)" in str(found)


def test_what_ends_where_the_questions_end_is_no_measurement(tmp_path: Path) -> None:
    """Four loops would follow 24 steps: taken for 16, growth would look like an amount."""
    result = study({1: [3.0], 2: [6.0], 3: [12.0], 4: [24.0]})
    found = reach.reach(result)
    assert found.values[4] == {0: 16.0}
    assert found.measured(4) == {}
    assert reach.growth(found).factors[0] == pytest.approx(2.0, rel=1e-9)
    blocks = reach.section(result, tmp_path, ("svg",))
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert [row[:2] for row in table.rows] == [("1", "3.00"), ("2", "6.00"), ("3", "12.00"), ("4", "≥ 16")]
    assert [row[3] for row in table.rows] == ["1", "2", "4", "8"]
    assert (tmp_path / "reach.svg").stat().st_size > 1000


def test_two_numbers_of_loops_tell_no_growth(tmp_path: Path) -> None:
    result = study({1: [3.0], 2: [6.0], 3: [40.0]}, {(2, 1): "failed"})
    assert reach.growth(reach.reach(result)) is None
    said = [block.text for block in reach.section(result, tmp_path, ("svg",)) if isinstance(block, Text)]
    assert said[0] == "Fewer than three numbers of loops have a reach that is seen: no growth to fit."
    for row in result.runs.index:
        result.runs.loc[row, "state"] = "failed"
    assert reach.section(result, tmp_path, ("svg",)) == []
