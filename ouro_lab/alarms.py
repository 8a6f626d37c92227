"""Alarms of a run, in alarms.json of its directory: what was noticed, what was done, and which batches are skipped."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ouro_lab.records import read_json, write_json

FILE = "alarms.json"


class RollbackError(Exception):
    """The run must go back to its newest checkpoint; the batch to skip is recorded already."""


@dataclass(frozen=True)
class Alarm:
    """step: the optimiser step after which it was raised, counted from 1. batch: the global batch which that step read,
    from 0. samples: first and last of its global samples, None where the data do not say. limit: what `value` exceeds,
    None for a value that is not finite. action: warn, stop or rollback. saved: the batch's file in the directory.
    """

    step: int
    batch: int
    samples: list[int] | None
    what: str
    value: float
    limit: float | None
    action: str
    saved: str | None

    @property
    def line(self) -> str:
        over = f", over {self.limit:.4g}" if self.limit is not None and math.isfinite(self.value) else ""
        where = f"; batch in {self.saved}" if self.saved else ""
        return f"step {self.step}: {self.what} = {self.value:.4g}{over} ({self.action}){where}"


def read(directory: Path) -> list[Alarm]:
    """In the order in which they were raised.

    Raises:
        ValueError: the file is not what `add` writes.
    """
    content = read_json(directory / FILE) or []
    try:
        return [Alarm(**entry) for entry in content]
    except TypeError as error:
        raise ValueError(f"{directory / FILE}: not a list of alarms ({error})") from None


def add(directory: Path, alarm: Alarm) -> None:
    """Keeps one alarm per (step, batch, what): a resumed run raises those again that follow its checkpoint."""
    key = (alarm.step, alarm.batch, alarm.what)
    kept = [known for known in read(directory) if (known.step, known.batch, known.what) != key]
    content: list[Any] = [asdict(known) for known in [*kept, alarm]]
    write_json(directory / FILE, content)


def skipped(directory: Path) -> tuple[int, ...]:
    """Global batches that roll-backs took out of the run's data, in order."""
    return tuple(sorted({alarm.batch for alarm in read(directory) if alarm.action == "rollback"}))


def summary(alarms: list[Alarm]) -> str | None:
    """For a tag: their number and their lines, None where there is none."""
    return f"{len(alarms)}: " + "; ".join(alarm.line for alarm in alarms) if alarms else None
