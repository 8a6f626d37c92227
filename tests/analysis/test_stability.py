"""Stable rates by hand: each way of being unstable, the rule of the first unstable rate, and a verdict on them."""

from typing import Any

import pandas as pd
import pytest

from analysis.runs import StudyResult
from analysis.samples import arm_sample, paired_sample
from analysis.stability import STABLE_RATE, stable, stable_rates
from ouro_lab.check import check
from ouro_lab.config import ConfigError
from ouro_lab.study import Study

FALLING, SPIKED, RISEN = [2.0, 1.5, 1.2, 1.0], [2.0, 1.5, 1.71, 1.0], [2.0, 1.9, 2.05, 2.0]


@pytest.mark.parametrize(
    ("losses", "state", "expected"),
    [
        (FALLING, "done", True),
        (FALLING, "diverged", False),
        ([2.0, 1.5, 1.69, 1.0], "done", True),  # 0.19 above the lowest before it; the limit is a tenth of the first
        (SPIKED, "done", False),
        (RISEN, "done", False),  # ends where it began
        ([2.0, float("nan"), 1.0], "done", False),
        ([-0.1, -0.2, -0.3], "done", True),  # an expected loss less its entropy may lie below 0
    ],
)
def test_a_run_is_stable_unless_it_diverged_spiked_or_ended_above_its_start(losses, state, expected) -> None:
    assert stable(losses, state) is expected


def result(curves: dict[tuple[str, int, float], tuple[list[float], str]], seeds: list[int]) -> StudyResult:
    """(arm, seed, rate) → its losses and state."""
    grid = sorted({lr for _, _, lr in curves})
    rows, points = [], []
    for number, ((arm, seed, lr), (losses, state)) in enumerate(curves.items()):
        rows.append({"id": str(number), "arm": arm, "seed": seed, "lr": lr, "phase": "lr", "state": state})
        points += [(str(number), step, "train/loss", loss) for step, loss in enumerate(losses)]
        points.append((str(number), 0, "val/loss", 99.0))
    study: dict[str, Any] = {"seeds": seeds, "sweep": {arm: {"grid": grid} for arm, _, _ in curves}}
    return StudyResult(study, pd.DataFrame(rows), pd.DataFrame(points, columns=["id", "step", "metric", "value"]), [])


def test_the_rate_is_the_highest_below_the_first_unstable_one() -> None:
    found = result(
        {
            ("a", 0, 0.25): (FALLING, "done"), ("a", 0, 0.5): (FALLING, "done"), ("a", 0, 1.0): (SPIKED, "done"),
            ("a", 1, 0.25): (SPIKED, "done"), ("a", 1, 0.5): (FALLING, "done"), ("a", 1, 1.0): (FALLING, "done"),
            ("a", 2, 0.25): (FALLING, "done"), ("a", 2, 0.5): (FALLING, "done"), ("a", 2, 1.0): (FALLING, "done"),
            ("a", 3, 0.25): (FALLING, "done"), ("a", 3, 0.5): (FALLING, "running"), ("a", 3, 1.0): ([], "diverged"),
            ("a", 5, 0.25): (FALLING, "done"), ("a", 5, 0.5): (SPIKED, "done"), ("a", 5, 1.0): (SPIKED, "done"),
        },
        [0, 1, 2, 3, 4],
    )  # fmt: skip
    unfinished = "its grid of rates is unfinished"
    missing = {2: "still stable at 1, where study.lr.grid ends", 3: unfinished, 4: unfinished}
    assert stable_rates(found, "a") == ({0: -1.0, 1: -3.0}, missing)
    sample = arm_sample(found, "a", STABLE_RATE)
    assert (sample.values, sample.missing) == ({0: -1.0, 1: -3.0}, missing)
    assert sample.diverged == ()  # a rate that diverges is a value, and no lost seed


def test_a_contrast_pairs_the_seeds_in_octaves() -> None:
    first_unstable = {"a": 2.0, "b": 1.0}
    curves = {
        (arm, seed, lr): (FALLING, "done") if lr < limit else ([], "diverged")
        for arm, limit in first_unstable.items()
        for seed in (0, 1)
        for lr in (0.5, 1.0, 2.0)
    }
    sample = paired_sample(result(curves, [0, 1]), {"metric": STABLE_RATE, "arm": "a", "reference": "b"})
    assert sample.pairs(sample.seeds) == ([0.0, 0.0], [-1.0, -1.0])


def test_a_run_that_logged_nothing_is_no_datum() -> None:
    with pytest.raises(ValueError, match="nothing was logged"):
        stable([], "done")


def test_the_studys_contrasts_need_a_grid_on_the_verdicts_seeds() -> None:
    assert check(Study("stability"))
    for override in ("study.lr=null", "study.lr.seeds=[0,1]"):
        with pytest.raises(ConfigError, match=r"metric = log2_stable_rate: needs study.lr.grid, and study.seeds among"):
            check(Study("stability", [override]))


def test_every_arm_but_the_last_flips_one_thing_of_three() -> None:
    """C04, C05, C06: the paper changed all at once."""
    keys = ("backbone.loops", "data.batch_size", "objective.beta")
    values = {
        arm: [config.backbone.loops, config.data.batch_size, config.objective.beta]
        for arm, config in Study("stability").arm_configs.items()
    }
    flips = {
        arm: [k for k, x, y in zip(keys, own, values["later"], strict=True) if x != y] for arm, own in values.items()
    }
    assert flips == {
        "later": [], "eight_loops": [keys[0]], "half_batch": [keys[1]], "double_beta": [keys[2]], "earlier": [*keys],
    }  # fmt: skip
    contrasts = Study("stability").definition.contrasts
    assert {name: contrast.claim for name, contrast in contrasts.items()} == {
        "fewer_loops": ("C04",), "larger_batch": ("C05",), "smaller_beta": ("C06",), "all_three": (),
    }  # fmt: skip
