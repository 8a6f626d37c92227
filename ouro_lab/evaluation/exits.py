"""Quality against executed loops: curves of exit rules over their thresholds, beside the oracle and the random control.

A curve's points are (mean loops over tokens, loss, accuracy, bits per byte), thresholds chosen on the validation split.
Between two points it is linear, which is what a coin between the two policies gives. Its ends are exit after loop 1 and
after loop T for every rule, so that all curves span the same depths.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ouro_lab.evaluation.oracle import oracle_frontier
from ouro_lab.evaluation.passes import Backbone, Data
from ouro_lab.evaluation.trajectory import RULES, Trajectory, check_per, trajectory
from ouro_lab.inference.exits import RandomExit, StaticDepth, ThresholdRule

Floats = NDArray[np.float64]


def outcome(found: Trajectory, exits: Tensor) -> dict[str, float]:
    """`loops` (mean), `loss` (nats), `accuracy` and, where bytes are known, `bits_per_byte`, of exits [N] in 1 … R.

    An answer of several tokens counts once, as right if all of it is.
    """
    at = (exits - 1).unsqueeze(0)
    loss = found.loss.gather(0, at).double()
    right = found.right.gather(0, at).squeeze(0).double()
    whole = torch.ones(int(found.answer.max()) + 1, dtype=torch.float64)
    whole.scatter_reduce_(0, found.answer, right, "amin")
    values = {"loops": exits.double().mean(), "loss": loss.mean(), "accuracy": whole.mean()}
    if found.bytes is not None:
        values["bits_per_byte"] = loss.sum() / math.log(2) / found.bytes.sum()
    return {name: float(value) for name, value in values.items()}


def static_outcomes(found: Trajectory, loops: int) -> list[dict[str, float]]:
    """Of exit after loop 1, …, `loops`, whatever the token."""
    return [outcome(found, torch.full_like(found.target, loop)) for loop in range(1, loops + 1)]


def threshold_grid(rule: ThresholdRule, found: Trajectory, points: int) -> tuple[ThresholdRule, ...]:
    """The rule at thresholds that are quantiles of its statistic over tokens and loops before T; itself without any."""
    values = found.statistic(rule)[: max(1, found.trained - 1)].double().flatten()
    values = values[values.isfinite()].numpy()
    if not rule.sweeps or not len(values):
        return (rule,)
    levels = np.quantile(values, np.linspace(0, 1, points), method="nearest")
    return tuple(rule.at(float(level)) for level in np.unique(levels))


@dataclass(frozen=True)
class Curve:
    """Qualities [P] by name over mean `loops` [P], strictly ascending."""

    loops: Floats
    qualities: dict[str, Floats]

    def at(self, quality: str, loops: float) -> float:
        """By interpolation; the nearest end's outside."""
        return float(np.interp(loops, self.loops, self.qualities[quality]))

    def points(self) -> list[dict[str, float]]:
        columns = {"loops": self.loops, **self.qualities}
        return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(self.loops))]

    def thinned(self, count: int) -> "Curve":
        """At `count` even depths: an oracle's has a corner per token."""
        loops = np.linspace(self.loops[0], self.loops[-1], count)
        return Curve(loops, {name: np.interp(loops, self.loops, values) for name, values in self.qualities.items()})

    def area(self, quality: str, low: float, high: float) -> float:
        """The mean quality over mean depths from `low` to `high`."""
        inside = self.loops[(self.loops > low) & (self.loops < high)]
        loops = np.concatenate([[low], inside, [high]])
        values = np.interp(loops, self.loops, self.qualities[quality])
        return float(np.trapezoid(values, loops) / (high - low))


def curve_of(points: Sequence[dict[str, float]]) -> Curve:
    """Through outcomes, in the order of their mean loops; of equally deep ones the first."""
    loops, first = np.unique([point["loops"] for point in points], return_index=True)
    names = [name for name in points[0] if name != "loops"]
    return Curve(loops, {name: np.array([points[i][name] for i in first]) for name in names})


def rule_curve(found: Trajectory, rules: Sequence[ThresholdRule], per: str = "token") -> Curve:
    """Of one rule at several thresholds, from exit after loop 1 to exit after loop T."""
    ends = static_outcomes(found, found.trained)
    return curve_of([ends[0], ends[-1], *(outcome(found, found.exit_loops(rule, per)) for rule in rules)])


def random_curve(found: Trajectory) -> Curve:
    """What `RandomExit(mean)` gives in expectation at every mean depth: a coin between the whole depths beside it."""
    return curve_of(static_outcomes(found, found.trained))


def oracle_curve(found: Trajectory, per: str = "token") -> Curve:
    """The least loss at each mean depth; bits per byte as they follow from it."""
    losses = found.loss[: found.trained].double()
    weight = None
    if per == "sequence":
        _, number, counts = found.sequence.unique_consecutive(return_inverse=True, return_counts=True)
        sums = losses.new_zeros(len(losses), len(counts)).index_add_(1, number, losses)
        losses, weight = sums / counts, counts.double().numpy()
    depths, values = oracle_frontier(losses.numpy(), weight)
    depths, last = np.unique(depths[::-1], return_index=True)  # of equally deep points the best, which is the last
    values = values[::-1][last]
    qualities = {"loss": values}
    if found.bytes is not None:
        qualities["bits_per_byte"] = values * len(found.target) / math.log(2) / float(found.bytes.sum())
    return Curve(depths, qualities)


def pareto_table(
    backbone: Backbone,
    data: Data,
    split: str,
    rules: Sequence[ThresholdRule] | None = None,
    points: int = 33,
    per: str = "token",
) -> list[dict[str, Any]]:
    """Rows of `policy`, `loops` and the qualities: a curve per rule, then `static` (the random control) and `oracle`.

    rules: at most one of a family, and one of each by default; the two that `static` stands for are left out.
    Thresholds come from validation.
    """
    found = trajectory(backbone, data, split, rules=rules)
    chosen_on = found if split == "val" else trajectory(backbone, data, "val", rules=rules)
    compared = [rule for rule in rules or RULES if rule.family in found.statistics]
    compared = [rule for rule in compared if not isinstance(rule, StaticDepth | RandomExit)]
    curves = {r.family: rule_curve(found, threshold_grid(r, chosen_on, points), per) for r in compared}
    curves |= {"static": random_curve(found), "oracle": oracle_curve(found, per).thinned(points)}
    return [{"policy": policy, **point} for policy, curve in curves.items() for point in curve.points()]


@dataclass(frozen=True)
class ExitCurve:
    """An evaluation: one rule over its thresholds, against the oracle and the random control at equal mean depth.

    rule: its own threshold gives `exit/loss` and the like; the curve takes `points` quantiles of its statistic on the
    validation split. low, high: mean depths between which the area is taken, None for 1 and T. per: one exit per
    `token` or per `sequence`.

    Raises: ValueError naming the field, when made or for depths outside 1 … T.
    """

    rule: ThresholdRule
    points: int = 33
    low: float | None = None
    high: float | None = None
    per: str = "token"

    def __post_init__(self) -> None:
        check_per("evaluation.per", self.per)
        if not isinstance(self.points, int) or self.points < 2:
            raise ValueError(f"evaluation.points = {self.points!r}: must be an integer ≥ 2")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        qualities = _qualities(data)
        own = [f"exit/{name}" for name in ("mean_loops", *qualities)]
        if loops == 1:
            return tuple(own)
        areas = ["exit/area", "exit/area_accuracy", "exit/area_random", "exit/area_oracle"]
        gaps = ["exit/gain_over_random", "exit/gap_to_oracle"]
        at = [f"exit/{name}_at_{depth}" for depth in range(1, loops + 1) for name in (*qualities, "gain_over_random")]
        return (*own, *areas, *gaps, *at)

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        rules = (self.rule,)
        found = trajectory(backbone, data, split, rules=rules)
        own = outcome(found, found.exit_loops(self.rule, self.per))
        values = {"exit/mean_loops": own["loops"]} | {f"exit/{name}": own[name] for name in own if name != "loops"}
        if found.trained == 1:
            return values
        chosen_on = found if split == "val" else trajectory(backbone, data, "val", rules=rules)
        curve = rule_curve(found, threshold_grid(self.rule, chosen_on, self.points), self.per)
        return values | self._areas(found, curve) | _at_whole_depths(found, curve)

    def _areas(self, found: Trajectory, curve: Curve) -> dict[str, float]:
        low, high = self.low or 1.0, self.high or float(found.trained)
        if not 1 <= low < high <= found.trained:
            raise ValueError(f"evaluation.low, high = {low:g}, {high:g}: must be 1 ≤ low < high ≤ {found.trained}")
        own, chance, best = (
            c.area("loss", low, high) for c in (curve, random_curve(found), oracle_curve(found, self.per))
        )
        return {
            "exit/area": own,
            "exit/area_accuracy": curve.area("accuracy", low, high),
            "exit/area_random": chance,
            "exit/area_oracle": best,
            "exit/gain_over_random": chance - own,
            "exit/gap_to_oracle": own - best,
        }


def _at_whole_depths(found: Trajectory, curve: Curve) -> dict[str, float]:
    values, chance = {}, random_curve(found)
    for depth in range(1, found.trained + 1):
        values |= {f"exit/{name}_at_{depth}": curve.at(name, depth) for name in curve.qualities}
        values[f"exit/gain_over_random_at_{depth}"] = chance.at("loss", depth) - curve.at("loss", depth)
    return values


def _qualities(data: Data) -> tuple[str, ...]:
    return ("loss", "accuracy", *(name for name in data.metric_names if name == "bits_per_byte"))
