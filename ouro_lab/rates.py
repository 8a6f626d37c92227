"""Learning rates per arm: swept on other seeds and validation data, or taken from a study that did."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouro_lab import records
from ouro_lab.config import ROOT, ConfigError

FindRun = Callable[[float, int], Path]


@dataclass(frozen=True)
class Rate:
    """An arm's learning rate. matched: chosen by a sweep at full length with the optimum inside the grid."""

    lr: float
    matched: bool
    status: str


@dataclass(frozen=True)
class RateBlock:
    """`study.lr`: either `from: <study>` or a grid with its own seeds.

    extend: how many rates may be added at an edge that wins. metric: a final value on validation data, `final/val/…`.
    """

    source: str | None = None
    grid: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    extend: int = 2
    metric: str = "val/loss"
    higher_is_better: bool = False

    def __post_init__(self) -> None:
        if bool(self.source) == bool(self.grid):
            raise ConfigError("study.lr: give either `from` or `grid`")
        if self.grid and (not self.seeds or len(self.grid) < 2 or min(self.grid) <= 0):
            raise ConfigError(f"study.lr.grid = {list(self.grid)}: needs at least two rates > 0, and study.lr.seeds")

    def sweep(self, find: FindRun) -> "Sweep":
        """The grid, extended as far as finished runs ask for it. find: (lr, seed) → run directory."""
        grid = sorted(self.grid)
        for _ in range(self.extend + 1):
            values = {lr: [self._value(find(lr, seed)) for seed in self.seeds] for lr in grid}
            sweep = Sweep(tuple(grid), values, self)
            if not sweep.complete or sweep.inside or len(grid) == len(self.grid) + self.extend:
                break
            beyond = grid[0] ** 2 / grid[1] if sweep.best == grid[0] else grid[-1] ** 2 / grid[-2]
            grid = sorted([*grid, float(f"{beyond:.6g}")])  # a number that a command line and a name can hold
        return sweep

    def borrow(self, arm: str, wanted: str) -> Rate:
        """The rate that the study `source` chose for this arm; unmatched if that arm was another config.

        Raises:
            ConfigError: the source has no finished sweep, here or committed.
        """
        sweep = finished_sweep(self.source or "")
        if arm not in sweep:
            raise ConfigError(f"study.lr.from = {self.source}: has no arm {arm}; it has {', '.join(sorted(sweep))}")
        chosen = sweep[arm]
        if chosen["rate_hash"] != wanted:
            return Rate(chosen["best"], False, f"rate from {self.source}, whose arm {arm} has another config")
        inside = "optimum inside" if chosen["inside"] else "optimum at the grid's edge"
        return Rate(chosen["best"], chosen["inside"], f"rates swept in {self.source}, {inside}")

    def _value(self, directory: Path) -> float | None:
        """A finished run's value, worst possible if it diverged; None while unfinished."""
        state = records.read_state(directory)
        if state is None or state["state"] not in ("done", "diverged"):
            return None
        if state["state"] == "diverged":
            return -math.inf if self.higher_is_better else math.inf
        return (records.read_final(directory) or {})["metrics"][f"final/{self.metric}"]


@dataclass(frozen=True)
class Sweep:
    """Values per learning rate, in the order of the block's seeds; None where a run is unfinished."""

    grid: tuple[float, ...]
    values: dict[float, list[float | None]]
    block: RateBlock

    @property
    def complete(self) -> bool:
        return all(value is not None for values in self.values.values() for value in values)

    @property
    def means(self) -> dict[float, float]:
        known = {lr: [value for value in values if value is not None] for lr, values in self.values.items()}
        return {lr: sum(found) / len(found) for lr, found in known.items() if len(found) == len(self.values[lr])}

    @property
    def best(self) -> float:
        sign = -1 if self.block.higher_is_better else 1
        return min(self.means, key=lambda lr: sign * self.means[lr])

    @property
    def inside(self) -> bool:
        return self.complete and self.best not in (self.grid[0], self.grid[-1])

    def rate(self) -> Rate | None:
        if not self.complete:
            return None
        where = "optimum inside" if self.inside else "optimum at the grid's edge"
        return Rate(self.best, self.inside, f"rates swept here, {where}")

    def as_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "grid": list(self.grid),
            "metric": self.block.metric,
            "seeds": list(self.block.seeds),
        }
        content |= {"values": {f"{lr:g}": values for lr, values in self.values.items()}}
        content |= {"mean": {f"{lr:g}": mean for lr, mean in self.means.items()}}
        if self.complete:
            content |= {"best": self.best, "inside": self.inside}
        return content


def finished_sweep(study: str) -> dict[str, Any]:
    """The sweep of a study from committed evidence, else from its runs here."""
    for folder in (ROOT / "experiments" / "results" / study, records.runs_root() / study):
        path = folder / "study.json"
        if path.is_file():
            sweep = json.loads(path.read_text()).get("sweep") or {}
            finished = {arm: content for arm, content in sweep.items() if "best" in content}
            if finished:
                return finished
    raise ConfigError(f"study.lr.from = {study}: no finished sweep here or committed; run make experiment NAME={study}")
