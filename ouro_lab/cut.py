"""A study cut down to minutes of this machine: fewer seeds, then fewer contrasts, never fewer steps.

The rule: what is dropped is the least, in this order, that fits. Seeds go from the end of the list, down to two (below
that no difference has an interval) or to what a calibration splits. Then arms go that serve no contrast, then the
contrasts other than the primary one, the last first, each with the arms that served it alone; with what that saves,
seeds come back as far as they fit. The primary contrast, those it comes `after`, and the arm of the positive control
stay: without any of these there is no verdict. Runs that are finished cost nothing; one that is not counts in full.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ouro_lab import records
from ouro_lab.config import ConfigError
from ouro_lab.definition import Definition
from ouro_lab.estimate import Price
from ouro_lab.study import Study


@dataclass(frozen=True)
class Cut:
    """What is left of a study. minutes: estimated, here, for what is not finished yet."""

    seeds: tuple[int, ...]
    arms: tuple[str, ...]
    contrasts: tuple[str, ...]
    minutes: float

    def overrides(self, definition: Definition) -> list[str]:
        """The cut as what a person could type, so that hashes and registration treat it as any override."""
        short = len(self.seeds) < len(definition.seeds)
        found = [f"study.seeds={list(self.seeds)}".replace(" ", "")] if short else []
        found += [f"~study.contrasts.{name}" for name in definition.contrasts if name not in self.contrasts]
        return found + [f"~study.arms.{name}" for name in definition.arms if name not in self.arms]


def within(study: Study, price: Price, minutes: float) -> tuple[list[str], str]:
    """The overrides that cut the study, and in words how they came about.

    A cut once made for this study and budget stays (`remember`): measured seconds would move it while its runs go on.
    """
    known = (records.read_json(_path(study)) or {}).get(_key(study, minutes))
    if known is not None:
        return known, "as cut at first" if known else "the whole study, as at first"
    chosen = cut(study, price, minutes)
    overrides = chosen.overrides(study.definition)
    return (
        overrides,
        f"{'cut to' if overrides else 'the whole study takes'} about {_minutes(chosen.minutes)} minutes here",
    )


def remember(whole: Study, small: Study, minutes: float) -> None:
    """Called when the cut study is about to run."""
    known = records.read_json(_path(whole)) or {}
    overrides = list(small.overrides[len(whole.overrides) :])
    records.write_json(_path(whole), known | {_key(whole, minutes): overrides})


def difference(whole: Definition, small: Definition) -> str:
    """`seeds [0, 1] of [0, 1, 2]; without contrasts cost_of_tying; without arms wider`."""
    short = len(small.seeds) < len(whole.seeds)
    found = [f"seeds {list(small.seeds)} of {list(whole.seeds)}"] if short else []
    for what, stated, kept in (("contrasts", whole.contrasts, small.contrasts), ("arms", whole.arms, small.arms)):
        gone = [name for name in stated if name not in kept]
        found += [f"without {what} {', '.join(gone)}"] if gone else []
    return "; ".join(found)


def cut(study: Study, price: Price, minutes: float) -> Cut:
    """The least cut that fits.

    Raises:
        ConfigError: not even the smallest one fits; names the minutes that would do.
    """
    costs = _Costs(study, price)
    smallest = None
    for arms, contrasts in _stages(study.definition):
        for n in range(len(study.definition.seeds), _fewest(study.definition) - 1, -1):
            seeds = study.definition.seeds[:n]
            smallest = Cut(seeds, arms, contrasts, costs.minutes(arms, seeds))
            if smallest.minutes <= minutes:
                return smallest
    raise ConfigError(_too_small(study, minutes, smallest))


def read_minutes(text: str) -> float:
    """Raises ConfigError unless `text` is a number of minutes."""
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise ConfigError(f"BUDGET = {text}: must be minutes > 0")
    return minutes


class _Costs:
    """Minutes here of what is left of the study's runs, for any choice of arms and seeds."""

    def __init__(self, study: Study, price: Price) -> None:
        runs = study.expand()
        self.price = price
        self.sweeps = [run.arm for run in runs if run.phase == "lr" and not run.finished]
        # An arm whose rate is still being swept has no runs yet, but will have them.
        unknown = set(study.definition.arms) - {run.arm for run in runs if run.phase == "main"}
        self.main = [(run.arm, run.seed) for run in runs if run.phase == "main" and not run.finished]
        self.main += [(arm, seed) for arm in study.definition.arms if arm in unknown for seed in study.definition.seeds]

    def minutes(self, arms: tuple[str, ...], seeds: tuple[int, ...]) -> float:
        left = [arm for arm in self.sweeps if arm in arms]
        left += [arm for arm, seed in self.main if arm in arms and seed in seeds]
        return 60 * self.price.hours(left)


def _stages(definition: Definition) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """(arms, contrasts) from the whole study to its primary contrast alone."""
    kept = list(definition.contrasts)
    yield tuple(definition.arms), tuple(kept)
    if not kept:
        return  # nothing tells which arms a sweep or a calibration could do without
    yield _serving(definition, kept), tuple(kept)
    while True:
        needed = {gate for name in kept for gate in definition.contrasts[name].after}
        free = [name for name in kept if not definition.contrasts[name].primary and name not in needed]
        if not free:
            return
        kept.remove(free[-1])
        yield _serving(definition, kept), tuple(kept)


def _serving(definition: Definition, contrasts: list[str]) -> tuple[str, ...]:
    """Arms that these contrasts, the positive control or a calibration need, in the study's order."""
    blocks: list[Mapping[str, object] | None] = [definition.positive_control, definition.calibration]
    wanted = {block["arm"] for block in blocks if block}
    for name in contrasts:
        wanted |= {definition.contrasts[name].arm, definition.contrasts[name].reference}
    return tuple(arm for arm in definition.arms if arm in wanted)


def _fewest(definition: Definition) -> int:
    enough = 2 * definition.calibration["size"] if definition.calibration else 2
    return min(enough, len(definition.seeds))


def _too_small(study: Study, minutes: float, smallest: Cut | None) -> str:
    needed = math.ceil(smallest.minutes) if smallest else 0
    what = "all of it, which has nothing to cut"
    if smallest and smallest.seeds:
        what = f"{', '.join(smallest.contrasts) or 'it'} with {len(smallest.seeds)} seeds of {', '.join(smallest.arms)}"
    return f"BUDGET = {minutes:g}: {study.name} needs {needed} minutes here for {what}"


def _minutes(x: float) -> str:
    return f"{x:.1f}" if x < 10 else f"{x:.0f}"


def _path(study: Study) -> Path:
    return records.runs_root() / study.name / "cuts.json"


def _key(study: Study, minutes: float) -> str:
    return f"{study.hash} in {minutes:g} minutes"
