"""From a looped shape, its objective's heads and a budget: the arms that hold something equal, or why there is none.

The regimes are those of the literature on controlled comparisons of looped models, plus two controls that reviewers ask
for. Heads, gate and attention are charged by `compute.cost`, so an objective with a loss per loop changes the answer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ouro_lab.compute.cost import training_cost
from ouro_lab.compute.match import LIMIT, Match, MismatchError, check, compare, percent
from ouro_lab.model.config import ModelConfig

ROUNDED = 0.5  # of the limit: so much may a round number of steps cost


class NoMatchError(ValueError):
    """No arm of this regime lies within the limit, or none can be derived at all. One line that names the regime."""


@dataclass(frozen=True)
class Looped:
    """The arm that is to be matched, and all that its cost depends on.

    shape: `ModelConfig`'s fields as a file states them, so that what it leaves open follows the width. length,
    tokens_per_step: the data's. supervised: loops with a head of their own. unique_tokens: of the training set; None
    where data are made without end. timed: how many times as long a step of the first shape takes as one of the second,
    measured; None where nothing is to be measured.
    """

    shape: Mapping[str, Any]
    length: int
    tokens_per_step: int
    steps: int
    supervised: int = 1
    unique_tokens: int | None = None
    timed: Callable[[ModelConfig, ModelConfig], float] | None = None

    @property
    def config(self) -> ModelConfig:
        return ModelConfig(**self.shape)

    def arm(self, **changes: Any) -> ModelConfig:
        """Another shape with one loop, so without prelude and coda; without read-outs its gate decides nothing."""
        gate = bool(changes.get("read_out_every")) and self.config.gate
        once: dict[str, Any] = {"loops": 1, "prelude": 0, "coda": 0, "recompute": False, "gate": gate}
        return ModelConfig(**{**self.shape, **once, **changes})

    def quantities(self, config: ModelConfig | None = None, steps: int | None = None) -> dict[str, Any]:
        """What `compute.match` compares, of the looped arm itself or of another."""
        config, steps = config or self.config, steps or self.steps
        cost = training_cost(config, self.length, min(self.supervised, config.states))
        tokens = steps * self.tokens_per_step
        return {**cost.as_dict(), "steps": steps, "tokens": tokens, "training_flops": tokens * cost.flops_per_token}


@dataclass(frozen=True)
class Arm:
    """A solved arm. overrides: as a study's file has them. held: what is equal; rows: every quantity, looped / arm."""

    regime: str
    overrides: tuple[str, ...]
    held: tuple[str, ...]
    rows: tuple[Match, ...]
    note: str = ""

    @property
    def worst(self) -> float:
        return max(abs(row.mismatch) for row in self.rows if row.held)

    def __str__(self) -> str:
        """A line of a study's `arms`, with the residual of what is held."""
        residual = ", ".join(f"{row.quantity} {percent(row.mismatch)}" for row in self.rows if row.held)
        return f"{self.regime}: [{', '.join(self.overrides)}]  # {residual}{'; ' if self.note else ''}{self.note}"


def solve(looped: Looped, regime: str, limit: float = LIMIT) -> Arm:
    """The arm of one regime, every held quantity within the limit.

    Raises:
        NoMatchError: names the regime and what is missing, or the nearest arm and its mismatch.
    """
    if regime not in REGIMES:
        raise NoMatchError(f"regime {regime}: unknown; valid: {', '.join(REGIMES)}")
    if looped.config.loops < 2:
        raise NoMatchError(f"{regime}: {looped.config.shape} is not looped, so there is nothing to match")
    found = REGIMES[regime](looped, limit)
    try:
        check(regime, looped.quantities(), _quantities_of(found), found.held, limit)
    except MismatchError as error:
        nearest = f"the nearest is [{', '.join(found.overrides)}]"
        raise NoMatchError(f"{regime}: no integer shape within {100 * limit:g} %, {nearest}; {error}") from error
    return found


def solve_all(looped: Looped, limit: float = LIMIT) -> Iterator[Arm | NoMatchError]:
    """Every regime's arm, or its refusal, in the order of `REGIMES`."""
    for regime in REGIMES:
        try:
            yield solve(looped, regime, limit)
        except NoMatchError as error:
            yield error


def _arm(
    looped: Looped, regime: str, overrides: list[str], config: ModelConfig, held: tuple[str, ...], **more: Any
) -> Arm:
    rows = compare(looped.quantities(), looped.quantities(config, more.pop("steps", None)), held)
    return Arm(regime, tuple(overrides), held, tuple(rows), **more)


def _quantities_of(arm: Arm) -> dict[str, float]:
    return {row.quantity: row.reference for row in arm.rows}


def _nearest(arms: Iterable[Arm]) -> Arm:
    """Least of the worst mismatches; of equals the first."""
    return min(arms, key=lambda arm: arm.worst)


def _iso_parameter(looped: Looped, limit: float) -> Arm:
    """Regime A: L⊗1, the same stored parameters, fewer FLOPs."""
    config = looped.arm()
    return _arm(looped, "iso_parameter", ["backbone=iso_parameter"], config, ("parameters", "tokens"))


def _iso_depth(looped: Looped, limit: float) -> Arm:
    """Regime B: L·T⊗1; its FLOPs are equal only where its heads and gates are (see the residual)."""
    config = looped.arm(layers=looped.config.effective_depth)
    held = ("effective_depth", "tokens")
    residual = looped.quantities()["training_flops"] / looped.quantities(config)["training_flops"] - 1
    return _arm(looped, "iso_depth", ["backbone=iso_flop"], config, held, note=f"training_flops {percent(residual)}")


def _more_tokens(looped: Looped, limit: float) -> Arm:
    """Regime C: L⊗1 and the loops' FLOPs spent on more tokens."""
    config = looped.arm()
    steps = _round_steps(looped, config, limit)
    overrides = ["backbone=iso_parameter", f"budget.steps={steps}"]
    return _arm(looped, "more_tokens", overrides, config, ("parameters", "training_flops"), steps=steps)


def _deeper(looped: Looped, limit: float) -> Arm:
    """Regime D, depth free: n⊗1 of the least mismatch; more than L·T layers where the looped arm pays more heads."""
    held = ("training_flops", "tokens")
    one, two, goal = (
        looped.quantities(config)["training_flops"] for config in (looped.arm(layers=1), looped.arm(layers=2), None)
    )
    layers = 1 + (goal - one) / (two - one)  # FLOPs are linear in layers
    return _nearest(
        _arm(looped, "deeper", ["backbone=iso_parameter", f"backbone.layers={n}"], looped.arm(layers=n), held)
        for n in _around(layers, 1)
    )


def _wider(looped: Looped, limit: float) -> Arm:
    """Regime D, width free: L⊗1 of the width with the least mismatch, in steps of two numbers a head (rotary pairs)."""
    goal, step, held = looped.quantities()["training_flops"], 2 * looped.config.heads, ("training_flops", "tokens")
    width = looped.config.width // step * step
    while looped.quantities(looped.arm(width=width))["training_flops"] < goal:
        width += step
    return _nearest(
        _arm(looped, "wider", ["backbone=iso_parameter", f"backbone.width={w}"], looped.arm(width=w), held)
        for w in (width, width - step)
        if w >= step
    )


def _iso_kv(looped: Looped, limit: float) -> Arm:
    """Equal keys and values a token of context, and equal training FLOPs: depth and key heads are free."""
    config = looped.config
    heads = [n for n in range(1, config.heads + 1) if config.heads % n == 0]
    entries = config.effective_depth * (config.kv_heads or config.heads)  # T caches a layer
    held = ("kv_bytes_per_token", "training_flops", "tokens")
    shapes = {(n, kv) for kv in heads for n in _around(entries / kv, 1)}
    return _nearest(
        _arm(looped, "iso_kv", _kv_overrides(looped, n, kv), looped.arm(layers=n, kv_heads=kv), held)
        for n, kv in sorted(shapes, key=lambda shape: (shape[1] != config.kv_heads, shape))
    )


def _kv_overrides(looped: Looped, layers: int, kv_heads: int) -> list[str]:
    same = [] if kv_heads == looped.config.kv_heads else [f"backbone.kv_heads={kv_heads}"]
    if layers == looped.config.effective_depth:
        return ["backbone=iso_flop", *same]
    return ["backbone=iso_parameter", f"backbone.layers={layers}", *same]


def _data_limited(looped: Looped, limit: float) -> Arm:
    """Regime H: the same unique tokens and FLOPs; L⊗1 spends what it saves on more epochs of them."""
    unique = looped.unique_tokens
    if unique is None:
        raise NoMatchError("data_limited: the data have no end; give unique_tokens")
    tokens = looped.steps * looped.tokens_per_step
    if unique > tokens:
        raise NoMatchError(f"data_limited: unique_tokens = {unique:,}: more than the budget's {tokens:,}, none repeats")
    config = looped.arm()
    steps = _round_steps(looped, config, limit)
    epochs = [spent * looped.tokens_per_step / unique for spent in (looped.steps, steps)]
    note = f"{unique:,} unique tokens: looped {epochs[0]:.3g} epochs, this arm {epochs[1]:.3g}"
    overrides, held = ["backbone=iso_parameter", f"budget.steps={steps}"], ("parameters", "training_flops")
    return _arm(looped, "data_limited", overrides, config, held, steps=steps, note=note)


def _deep_supervised(looped: Looped, limit: float) -> Arm:
    """Control: L·T⊗1 with a head after every L layers, so that equal heads are no advantage of the loops."""
    config = looped.config
    if looped.supervised < 2:
        raise NoMatchError("deep_supervised: the objective has one head in either arm; iso_depth is the control")
    if config.prelude + config.coda:
        raise NoMatchError("deep_supervised: an untied stack has read-outs of its own layers alone, not behind a coda")
    overrides = ["backbone=iso_flop", f"backbone.read_out_every={config.layers}"]
    deep = looped.arm(layers=config.effective_depth, read_out_every=config.layers)
    return _arm(looped, "deep_supervised", overrides, deep, ("effective_depth", "training_flops", "tokens"))


def _wall_clock(looped: Looped, limit: float) -> Arm:
    """Regime F: L⊗1, and the loops' seconds spent on more tokens, by steps of both measured side by side."""
    if looped.timed is None:
        raise NoMatchError(
            "wall_clock: no formula knows seconds; python -m ouro_lab match NAME --timed=7 measures steps"
        )
    config = looped.arm()
    times = looped.timed(looped.config, config)
    steps = _few_digits(looped.steps * times, limit)
    note = f"a step of {looped.config.shape} takes {times:.3g} × one of {config.shape} here, not compiled"
    note += f"; seconds {percent(looped.steps * times / steps - 1)}"
    overrides = ["backbone=iso_parameter", f"budget.steps={steps}"]
    return _arm(looped, "wall_clock", overrides, config, ("parameters",), steps=steps, note=note)


def _round_steps(looped: Looped, config: ModelConfig, limit: float) -> int:
    """Steps of equal FLOPs, a number that a file can state."""
    goal = looped.quantities()["training_flops"]
    return _few_digits(goal / looped.quantities(config, 1)["training_flops"], limit)


def _few_digits(exact: float, limit: float) -> int:
    """The whole number with as few digits as half of the limit allows."""
    for digits in range(1, 20):
        scale = 10.0 ** (math.floor(math.log10(exact)) + 1 - digits)
        rounded = max(1, round(round(exact / scale) * scale))
        if scale <= 1 or abs(rounded / exact - 1) <= ROUNDED * limit:
            return rounded
    return max(1, round(exact))


def _around(value: float, least: int) -> list[int]:
    return sorted({max(least, math.floor(value)), max(least, math.ceil(value))})


REGIMES = {
    "iso_parameter": _iso_parameter,
    "iso_depth": _iso_depth,
    "more_tokens": _more_tokens,
    "deeper": _deeper,
    "wider": _wider,
    "iso_kv": _iso_kv,
    "data_limited": _data_limited,
    "wall_clock": _wall_clock,
    "deep_supervised": _deep_supervised,
}
