"""What each contrast of a study needs: seeds for 80 % power at the level at which the verdict decides it.

Planned with a pilot's SD of seed-paired differences. The level is 0.05 for the primary contrast, Holm's for the others.
The power of a paired t test follows the noncentral t distribution (Cohen 1988, ch. 2), that of two one-sided tests
Phillips 1990.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from analysis import pilots, statistics
from analysis.pilots import Pilot
from analysis.verdict import POWER, decision_p, improvement, levels
from ouro_lab.assembly import Parts
from ouro_lab.estimate import Price, price
from ouro_lab.study import Study

UPPER = 0.8  # one-sided confidence of the SD's upper bound


@dataclass(frozen=True)
class Need:
    """What one contrast needs. n: the study's seeds. alpha: the level of its test. Effects are in the metric's unit."""

    name: str
    contrast: Mapping[str, Any]
    n: int
    alpha: float
    pilot: Pilot | None

    @cached_property
    def gain(self) -> float:
        """The pilot's mean effect, positive where the arm is better."""
        return self._sign * self._estimate.mean

    @cached_property
    def sd(self) -> float:
        return self._estimate.sd

    @cached_property
    def sd_upper(self) -> float:
        """Where the true SD may be: few seeds estimate it badly (2.1 × the estimate at three)."""
        return statistics.sd_upper(self.sd, self._estimate.n, UPPER)

    @property
    def supportable(self) -> bool:
        """Whether the claim holds at the pilot's effect; if not, more seeds can only contradict it."""
        bound = self.contrast["bound"]
        return abs(self.gain) < bound if self.contrast["rule"] == "equivalence" else self.gain > bound

    @property
    def decided(self) -> bool | None:
        """Whether the study's seeds support the claim with 80 % power; None where nothing is claimed or known."""
        if self.pilot is None or self.contrast["rule"] == "estimate":
            return None
        needed = self.seeds_at(self.sd)
        return self.supportable and needed is not None and needed <= self.n

    def seeds_at(self, sd: float) -> int | None:
        """Seeds that decide the contrast if differences have this SD; None over 100,000, or without a claim."""
        rule, bound = self.contrast["rule"], self.contrast["bound"]
        if rule == "estimate":
            return None
        if rule == "equivalence" and self.supportable:
            found = statistics.equivalence_n(sd, bound, POWER, self.alpha)
        else:
            distance = abs(self.gain) - bound if rule == "equivalence" else self.gain - bound
            found = statistics.superiority_n(sd, distance, POWER, self.alpha)
        return max(found, 3) if found and sd == 0 else found  # the verdict trusts equal differences from n = 3 on

    @property
    def detectable(self) -> float | None:
        """The smallest true effect (in the metric's sign) that the study's seeds would support; of superiority."""
        if self.contrast["rule"] != "superiority" or self.n < 2:
            return None
        beyond = statistics.detectable_effect(self.n, POWER, self.alpha) * self.sd
        return self._sign * (self.contrast["bound"] + beyond)

    def half_width(self, sd: float) -> float:
        """Of the interval at the study's seeds."""
        if self.n < 2:
            return math.inf
        return statistics.Estimate(0.0, sd / math.sqrt(self.n), self.n - 1, self.n, sd).interval(1 - self.alpha)[1]

    @property
    def _sign(self) -> int:
        return 1 if self.contrast["higher_is_better"] else -1

    @property
    def _estimate(self) -> statistics.Estimate:
        if self.pilot is None:
            raise ValueError(f"{self.name}: has no pilot")
        return self.pilot.estimate


@dataclass(frozen=True)
class Plan:
    """A study's contrasts, the primary one first, and what its runs cost here."""

    study: str
    needs: list[Need]
    price: Price
    named: str | None = None  # study.pilot

    def at(self, n: int) -> "Plan":
        """The same with another number of seeds."""
        return replace(self, needs=[replace(need, n=n) for need in self.needs])


def plan(study: Study, parts: Mapping[str, Parts]) -> Plan:
    """Reads what is kept of the study and of its pilot; nothing is written."""
    definition = study.definition
    kept = pilots.sources(study.name, study.hash, definition.pilot)
    contrasts = {name: asdict(contrast) for name, contrast in definition.contrasts.items()}
    found = needs(contrasts, len(definition.seeds), pilots.find(kept, contrasts))
    return Plan(study.name, found, price(study, parts, pilots.measured(kept)), definition.pilot)


def needs(contrasts: Mapping[str, Mapping[str, Any]], n: int, found: Mapping[str, Pilot | None]) -> list[Need]:
    """A contrast without a pilot keeps its place in Holm's family, as one without runs does in a verdict."""
    p = {name: _p(found[name], contrast) for name, contrast in contrasts.items()}
    level = levels(contrasts, p)
    order = sorted(contrasts, key=lambda name: not contrasts[name]["primary"])
    return [Need(name, contrasts[name], n, level[name], found[name]) for name in order]


def _p(pilot: Pilot | None, contrast: Mapping[str, Any]) -> float | None:
    if pilot is None or contrast["rule"] == "estimate":
        return None
    return decision_p(improvement(pilot.sample, contrast, pilot.seeds), contrast)
