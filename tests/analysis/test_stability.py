"""Sensitivity to the learning rate by hand, what leaves a seed without, and a verdict on it."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from analysis import verdict, wording
from analysis.runs import StudyResult
from analysis.samples import arm_sample, paired_sample
from analysis.stability import LR_SENSITIVITY, lr_sensitivity, same_grid
from ouro_lab.check import check
from ouro_lab.config import ConfigError
from ouro_lab.study import Study

INITIAL = 4.0  # the first logged training loss of the lowest rate


def result(finals: dict[tuple[str, int], dict[float, float | str]], seeds: list[int]) -> StudyResult:
    """(arm, seed) → by rate its final validation loss, or its state where it has none."""
    rows, points = [], []
    for (arm, seed), by_rate in finals.items():
        for lr, final in by_rate.items():
            name, lowest = f"{arm}-{lr}-{seed}", lr == min(by_rate)
            state = final if isinstance(final, str) else "done"
            rows.append({"id": name, "arm": arm, "seed": seed, "lr": lr, "phase": "lr", "state": state})
            points += [(name, 10, "train/loss", INITIAL if lowest else 9.0), (name, 20, "train/loss", 0.5)]
            points += [(name, 10, "val/loss", 7.0)] + (
                [] if isinstance(final, str) else [(name, 20, "val/loss", final)]
            )
    grids = {arm: {"grid": list(by_rate)} for (arm, _), by_rate in finals.items()}
    study: dict[str, Any] = {"seeds": seeds, "sweep": grids}
    return StudyResult(study, pd.DataFrame(rows), pd.DataFrame(points, columns=["id", "step", "metric", "value"]), [])


def test_it_is_the_mean_excess_over_the_lowest_loss_capped_at_the_initial_one() -> None:
    found = result(
        {
            ("a", 0): {0.1: 1.0, 0.2: 2.0, 0.4: 3.0},  # (0 + 1 + 2) / 3
            ("a", 1): {0.1: 3.0, 0.2: 2.0, 0.4: 50.0},  # (1 + 0 + min(50, 4) − 2) / 3
            ("a", 2): {0.1: 1.0, 0.2: 1.0, 0.4: "diverged"},  # (0 + 0 + 4 − 1) / 3
            ("a", 3): {0.1: 1.0, 0.2: "running", 0.4: 1.0},
            ("a", 9): {0.1: 1.0, 0.2: 1.0, 0.4: 1.0},  # no seed of the verdict
        },
        [0, 1, 2, 3, 4],
    )
    values, missing = lr_sensitivity(found, "a")
    assert values == pytest.approx({0: 1.0, 1: 1.0, 2: 1.0})
    assert missing == dict.fromkeys((3, 4), "its grid of rates is unfinished")
    sample = arm_sample(found, "a", LR_SENSITIVITY)
    assert (sample.values, sample.missing) == (values, missing)
    assert sample.diverged == ()  # a rate that diverges is a value, and no lost seed


def test_equal_losses_are_not_sensitive_and_a_run_that_logged_nothing_is_no_datum() -> None:
    found = result({("a", 0): {0.1: 2.0, 0.2: 2.0}}, [0])
    assert lr_sensitivity(found, "a") == ({0: 0.0}, {})
    silent = StudyResult(found.study, found.runs, found.curves[found.curves["metric"] != "train/loss"], [])
    assert lr_sensitivity(silent, "a") == ({}, {0: "no training loss was logged at 0.1"})


def test_a_contrast_pairs_the_seeds() -> None:
    finals = {("a", seed): {0.1: 1.0, 0.2: 1.0} for seed in (0, 1)} | {
        ("b", seed): {0.1: 1.0, 0.2: 2.0} for seed in (0, 1)
    }
    sample = paired_sample(result(finals, [0, 1]), {"metric": LR_SENSITIVITY, "arm": "a", "reference": "b"})
    assert sample.pairs(sample.seeds) == ([0.0, 0.0], [0.5, 0.5])


def test_a_grid_that_both_arms_share_needs_no_choice_of_a_rate() -> None:
    study = {"sweep": {"a": {"grid": [0.1, 0.2]}, "b": {"grid": [0.1, 0.2]}, "c": {"grid": [0.1, 0.4]}}}
    assert same_grid(study, LR_SENSITIVITY, ("a", "b"))
    assert not same_grid(study, LR_SENSITIVITY, ("a", "c"))
    assert not same_grid(study, "accuracy", ("a", "b"))
    edge = {"lr_matched": False, "lr_status": "optimum at the grid's edge"}
    whole = study | {"arms": {"a": edge, "b": edge, "c": edge}, "registered": {"hash": "1"}, "hash": "1"}
    contrast = {"arm": "a", "reference": "b", "metric": LR_SENSITIVITY}
    assert verdict.qualifiers(whole, ("a", "b"), LR_SENSITIVITY) == []
    assert verdict.qualifiers(whole, ("a", "c"), LR_SENSITIVITY) == ["unmatched"]
    assert wording.rates(whole, SimpleNamespace(**contrast)) == "all rates of one grid"


def test_the_studys_contrasts_need_a_grid_on_the_verdicts_seeds() -> None:
    assert check(Study("stability"))
    for override in ("study.lr=null", "study.lr.seeds=[0,1]"):
        with pytest.raises(ConfigError, match=r"metric = lr_sensitivity: needs study.lr.grid, and study.seeds among"):
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
