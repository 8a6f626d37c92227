"""How long a run is: steps, tokens or FLOPs, one of them."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The length of a run by exactly one of its measures; `flops` are training FLOPs by the causal count.

    Raises:
        ValueError: none or several given, or not a positive number.
    """

    steps: int | None = None
    tokens: float | None = None
    flops: float | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("steps", "tokens", "flops") if getattr(self, name) is not None]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise ValueError(f"budget: give exactly one of steps, tokens, flops (got {got})")
        value = getattr(self, given[0])
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value <= 0 or (given[0] == "steps" and value != int(value)):
            kind = "an integer ≥ 1" if given[0] == "steps" else "a number > 0"
            raise ValueError(f"budget.{given[0]} = {value!r}: must be {kind}")

    def steps_for(self, tokens_per_step: int, flops_per_token: float, ramp: tuple[int, int] = (0, 0)) -> int:
        """Optimiser steps, to the nearest: what is spent misses the budget by at most half a step, over or under.

        ramp: steps of smaller batches that come first, and the tokens of them all.

        Raises:
            ValueError: the budget is under half a step, or the ramp takes all of it.
        """
        if self.steps is not None:
            return self._beyond(ramp[0], int(self.steps))
        name, budget, each = "tokens", self.tokens, float(tokens_per_step)
        if budget is None:
            name, budget, each = "flops", self.flops or 0.0, tokens_per_step * flops_per_token
        steps = ramp[0] + math.floor(budget / each - ramp[1] / tokens_per_step + 0.5)
        if steps < 1 and not ramp[0]:
            raise ValueError(f"budget.{name} = {budget:g}: less than half a step, which is {each:g} {name}")
        return self._beyond(ramp[0], steps)

    def _beyond(self, ramp: int, steps: int) -> int:
        if ramp and steps <= ramp:
            raise ValueError(f"data.ramp: takes {ramp} steps, and all of the budget; must end before it does")
        return steps
