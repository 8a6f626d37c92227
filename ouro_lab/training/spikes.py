"""The rule by which a step's loss or gradient norm is a spike: pure Python on numbers, the same on every rank."""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

WINDOW, LEAST = 128, 32  # steps looked back on; fewer than LEAST decide nothing
SPREADS = 8.0  # robust standard deviations of the loss
FLOOR = 0.02  # nats: the least standard deviation, or a task that is solved would raise an alarm at every mistake
TIMES = 10.0  # the gradient norm's median
TO_SD = 1.4826  # the median absolute deviation of a normal distribution, in standard deviations, inverted

LOSS, NORM = "train/loss", "optim/grad_norm"


@dataclass(frozen=True)
class Finding:
    """limit: None for a value that is not finite."""

    what: str
    value: float
    limit: float | None


class SpikeRule:
    """Over the last `WINDOW` steps, m the median of the loss and s = max(1.4826 · MAD, 0.02 nats): a loss over m + 8 s
    is a spike, and so is a gradient norm over 10 × its median. A value that is not finite is found at once.

    A stretch of steps over the limit is one finding. Spikes stay in the window, which medians bear, so that a loss that
    settles at another level is normal again after half a window.
    """

    def __init__(self) -> None:
        self.seen = {LOSS: deque[float](maxlen=WINDOW), NORM: deque[float](maxlen=WINDOW)}
        self.over: set[str] = set()

    def __call__(self, loss: float, norm: float) -> list[Finding]:
        """What is new in this step's two values."""
        found = []
        for what, value in ((LOSS, loss), (NORM, norm)):
            if not math.isfinite(value):
                found.append(Finding(what, value, None))
                continue
            limit = self._limit(what, value)
            if value > limit and what not in self.over:
                found.append(Finding(what, value, limit))
            (self.over.add if value > limit else self.over.discard)(what)
            self.seen[what].append(value)
        return found

    def _limit(self, what: str, value: float) -> float:
        """The spread is looked at only where it decides: half of what a step costs here."""
        seen = self.seen[what]
        if len(seen) < LEAST:
            return math.inf
        middle = median(seen)
        if what == NORM:
            return TIMES * middle
        least = middle + SPREADS * FLOOR
        return least if value <= least else max(least, middle + SPREADS * TO_SD * median(abs(x - middle) for x in seen))

    def state(self) -> dict[str, Any]:
        """For a checkpoint: a resumed run must judge as an unbroken one does."""
        return {"seen": {what: list(values) for what, values in self.seen.items()}, "over": sorted(self.over)}

    def load(self, state: Mapping[str, Any]) -> None:
        self.seen = {what: deque(values, maxlen=WINDOW) for what, values in state["seen"].items()}
        self.over = set(state["over"])
