"""The rows of the bench: a ratio, what it should be, and what it was made of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

HEADER = ("case", "ratio", "target", "met", "ours", "rival", "what")


@dataclass(frozen=True)
class Row:
    """A ratio of ours and a rival's.

    target: None of a ratio that is only shown. at_most: it is a ceiling, else a floor. unit: of `ours` and `theirs`,
    which are medians; `s`, `B` (bytes), `FLOP/s` or `B/s`. samples: seconds per call, by side.
    """

    case: str
    what: str
    ratio: float
    target: float | None
    at_most: bool
    ours: float
    theirs: float
    unit: str
    samples: Mapping[str, list[float]] = field(default_factory=dict)

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "samples": dict(self.samples), "met": self.met}

    def cells(self) -> tuple[str, ...]:
        bound = "" if self.target is None else f"{'≤' if self.at_most else '≥'} {self.target:.2f}"
        met = {True: "yes", False: "MISSED", None: ""}[self.met]
        shown = UNITS[self.unit]
        return (self.case, f"{self.ratio:.2f}", bound, met, shown(self.ours), shown(self.theirs))


@dataclass(frozen=True)
class Skipped:
    """A case that could not be measured here, and why, in one line."""

    case: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {"case": self.case, "skipped": self.why}

    def cells(self) -> tuple[str, ...]:
        return (self.case, "skipped", "", "", "", "")


Line = Row | Skipped


def formatted(lines: Iterable[Line]) -> str:
    """A table with aligned columns; what was compared comes last, as it may be long."""
    rows = [HEADER] + [(*line.cells(), line.what if isinstance(line, Row) else line.why) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER) - 1)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)


def missed(lines: Iterable[Line]) -> list[str]:
    return [line.case for line in lines if isinstance(line, Row) and line.met is False]


UNITS: dict[str, Callable[[float], str]] = {
    "s": lambda value: f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.1f} ms",
    "B": lambda value: f"{value / 2**20:.0f} MiB",
    "FLOP/s": lambda value: f"{value / 1e9:.0f} GFLOP/s",
    "B/s": lambda value: f"{value / 1e6:.2f} MB/s",
}
