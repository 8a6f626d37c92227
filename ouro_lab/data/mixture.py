"""Corpora in exact proportions: which one a sample comes from is a pure function of the sample's index."""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.random import Ints

MAX_PERIOD = 100_000
_SUGGESTED = 1000

Weight = int | float | Fraction


class Mixture:
    """Named corpora with weights, which are parts of any whole: 3 and 1, or 0.75 and 0.25.

    Decimals are taken as written. shares: each source's exact part of the samples, in order of `sources`.

    Raises: ValueError for a weight that is missing, not above 0, or finer than a whole of `MAX_PERIOD` parts.
    """

    def __init__(self, sources: Mapping[str, Corpus], weights: Mapping[str, Weight]) -> None:
        if not sources:
            raise ValueError(f"sources = {dict(sources)}: must name at least one corpus")
        if set(weights) != set(sources):
            raise ValueError(f"weights = {dict(weights)}: must name the sources {', '.join(sources)}, each once")
        self.sources = dict(sources)
        parts = [_fraction(name, weights[name]) for name in sources]
        self.shares = [part / sum(parts) for part in parts]
        if period(self.shares) > MAX_PERIOD:
            near = {name: max(1, round(share * _SUGGESTED)) for name, share in zip(sources, self.shares, strict=True)}
            raise ValueError(f"weights = {dict(weights)}: must be parts of at most {MAX_PERIOD:,}; for example {near}")


class Schedule:
    """Sample i of the mixture is sample `own` of source `which`. After n samples, for every n, each source has had
    fewer than one more or less than n times its share.

    Within one period, the shares' common denominator P, the j-th sample (j = 1, 2, …) of a source with share w must
    have a place from ⌊(j − 1)/w⌋ + 1 to ⌈j/w⌉; taking at each place the sample with the earliest end among those that
    may begin always works (Tijdeman 1980; Baruah, Cohen, Plaxton & Varvel 1996).
    """

    def __init__(self, shares: Sequence[Fraction]) -> None:
        self.period = period(shares)
        self.counts = np.array([int(share * self.period) for share in shares])  # [sources]
        self.order = np.array(_earliest_end_first(self.counts.tolist()))  # [P]
        self.before = np.empty_like(self.order)  # [P]; how many of its source a place has before it
        for source, count in enumerate(self.counts):
            self.before[self.order == source] = np.arange(count)

    def __call__(self, indices: Ints) -> tuple[Ints, Ints]:
        """which and own, both [N]."""
        rounds, place = np.divmod(indices, self.period)
        which = self.order[place]
        return which, rounds * self.counts[which] + self.before[place]


def period(shares: Sequence[Fraction]) -> int:
    return math.lcm(*(share.denominator for share in shares))


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Whole numbers near total × share that add up to `total`."""
    ends = [math.floor(total * part) for part in accumulate(shares)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _earliest_end_first(counts: Sequence[int]) -> list[int]:
    """All in integers: with P = Σ counts, w = count / P."""
    whole = sum(counts)
    had = [0] * len(counts)
    order = []
    for place in range(1, whole + 1):
        ready = [s for s, count in enumerate(counts) if had[s] * whole < place * count and had[s] < count]
        chosen = min(ready, key=lambda s: (-(-(had[s] + 1) * whole // counts[s]), s))
        had[chosen] += 1
        order.append(chosen)
    return order


def _fraction(name: str, weight: Weight) -> Fraction:
    if isinstance(weight, bool) or not isinstance(weight, Weight) or not math.isfinite(weight) or weight <= 0:
        raise ValueError(f"weights.{name} = {weight!r}: must be a number above 0")
    return Fraction(str(weight))
