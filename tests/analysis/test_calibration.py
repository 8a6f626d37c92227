"""The A/A study: ten seeds of one arm, split five against five."""

import numpy as np
import pytest
from fake_study import Fake

from analysis import calibration, report
from analysis.statistics import split_calibration

VALUES = [0.61, 0.55, 0.70, 0.48, 0.66, 0.59, 0.63, 0.52, 0.68, 0.57]


def ten_seeds(count: int = 10) -> Fake:
    def change(study: dict) -> None:
        study["calibration"] = {"arm": "looped", "metric": "accuracy/hops_8", "size": 5}

    final = {("looped", seed): {"accuracy/hops_8": VALUES[seed]} for seed in range(count)}
    return Fake("aa", seeds=tuple(range(count)), contrasts={}, final=final, change=change)


def test_the_report_states_the_shares_of_all_splits(make, tmp_path) -> None:
    result = make(ten_seeds())
    found = calibration.calibrate(result)
    assert found["values"] == VALUES
    assert found["splits"] == 252
    assert found["unpaired"] == split_calibration(VALUES, 5).unpaired
    page = report.write(result, tmp_path / "report", formats=("svg",)).read_text()
    assert "of 252 splits 5 against 5" in page
    assert '"unpaired"' in (tmp_path / "report" / "verdict.json").read_text()


def test_too_few_seeds_give_no_share(make) -> None:
    assert calibration.calibrate(make(ten_seeds(9))) is None


def test_other_studies_have_none(result) -> None:
    assert calibration.calibrate(result) is None


def test_the_usual_shares_hold_most_samples_of_equal_values_and_not_all() -> None:
    low, high = calibration.usual_shares(5, 0.05)
    assert (low, high) == pytest.approx((0.0, 0.12), abs=0.02)
    drawn = np.random.default_rng(1).normal(size=(60, 10))
    shares = [split_calibration(list(values), 5).paired for values in drawn]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.02)
    assert np.mean([low <= share <= high for share in shares]) == pytest.approx(0.95, abs=0.06)
