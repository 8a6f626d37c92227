"""Times side by side: A B, B A, A B, … in one process, so that what else the machine does strikes both alike."""

import gc
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

Samples = dict[str, list[float]]

LEAST_SECONDS = 0.25  # a sample is as many calls as it takes: a shorter one measures the scheduler


@dataclass(frozen=True)
class Effort:
    """rounds: of A and B, an odd number. warm: calls of each before; the first may compile."""

    rounds: int = 7
    warm: int = 2

    @classmethod
    def quick(cls) -> "Effort":
        return cls(rounds=3, warm=1)


def interleave(sides: Mapping[str, Callable[[], object]], effort: Effort) -> Samples:
    """Seconds per call of every side, one value per round."""
    calls = {name: _calls(side, effort.warm) for name, side in sides.items()}
    samples: Samples = {name: [] for name in sides}
    gc.collect()
    names = list(sides)
    for turn in range(effort.rounds):
        for name in names if turn % 2 == 0 else names[::-1]:
            samples[name].append(seconds(sides[name], calls[name]))
    return samples


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def ratio(samples: Samples, above: str, below: str) -> float:
    """The median over rounds of `above`'s seconds by `below`'s: neighbours in time shared the same machine."""
    return median(a / b for a, b in zip(samples[above], samples[below], strict=True))


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes; empty where there are none."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []


def _calls(side: Callable[[], object], warm: int) -> int:
    for _ in range(warm):
        side()
    return max(1, math.ceil(LEAST_SECONDS / max(seconds(side), 1e-6)))
