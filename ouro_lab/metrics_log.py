"""metrics.jsonl: rows of numbers that a killed process leaves usable."""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
LR_SENSITIVITY = "lr_sensitivity"  # a contrast's metric over a whole grid of rates: analysis/stability.py
LIMITS = ("at_least", "at_most", "below")  # what may be asked of a metric: one of them, with a number


def terms(metric: str) -> list[str]:
    """The metrics that one is made of: `a - b` is a run's `a` less its `b`, any other name is itself."""
    return metric.split(" - ", 1)


class MetricsLog:
    """Appends rows; one value per (step, metric) for the life of the run, whatever is killed and resumed."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._step = -1  # of the last row
        self._looked = False
        self._names: set[str] = set()  # written at that step

    def append(self, step: int, row: Mapping[str, float]) -> None:
        """Writes what this step's rows do not hold yet.

        Raises:
            ValueError: `step` lies before the last row's.
        """
        if not self._looked:
            self._look()
        if step < self._step:
            raise ValueError(f"metrics of step {step} after those of step {self._step}: cut({step}) first")
        if step > self._step:
            self._step, self._names = step, set()
        new = {name: _number(value) for name, value in row.items() if name not in self._names}
        if new:
            self._names |= new.keys()
            content = {"step": step, "time": round(time.time(), 3), **new}
            # A checkpoint follows a validation and must never be newer on disk than the rows that it covers.
            self._write(content, sync=any(name.startswith("val/") for name in new))

    def cut(self, step: int) -> None:
        """Drops rows beyond `step`, and a torn last line, in one atomic replacement."""
        if self.path.is_file():
            lines = self.path.read_text().splitlines(keepends=True)
            kept = [line for line in lines if (row := _parse(line)) is not None and row["step"] <= step]
            if len(kept) < len(lines):
                replace_file(self.path, "".join(kept))
        self._looked = False

    def _look(self) -> None:
        """Reads where an earlier process stopped; removes the half line that a kill leaves."""
        self._step, self._names, self._looked = -1, set(), True
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        for row in read_rows(self.path):
            if row["step"] > self._step:
                self._step, self._names = row["step"], set()
            self._names |= row.keys() - {"step", "time"}

    def _write(self, content: dict[str, Any], sync: bool) -> None:
        # Opened per row: a file that another process replaced in between is never written behind its back.
        with self.path.open("a") as file:
            file.write(json.dumps(content, allow_nan=False) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as written, non-finite numbers as floats; a torn line is passed over."""
    if not Path(path).is_file():
        return
    with Path(path).open() as file:
        for line in file:
            row = _parse(line)
            if row is not None:
                yield row


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """One dict per step, in order of steps; `time` (seconds since 1970) is that of the step's first row."""
    merged: dict[int, dict[str, Any]] = {}
    for row in read_rows(path):
        merged[row["step"]] = row | merged.get(row["step"], {})
    return [merged[step] for step in sorted(merged)]


def last_step(path: Path) -> int:
    """The step of the last whole row, 0 if there is none. Reads only the file's end."""
    if not Path(path).is_file():
        return 0
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65536))
        lines = file.read().decode(errors="replace").splitlines()
    return next((row["step"] for line in reversed(lines) if (row := _parse(line)) is not None), 0)


def replace_file(path: Path, content: str | bytes) -> None:
    """Written beside, synced, renamed: readers see the old file or the new one, also where there is no room for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def safe(value: Any) -> Any:
    """JSON has no NaN: non-finite floats become "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, Mapping):
        return {str(key): safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [safe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def restore(value: Any) -> Any:
    """The inverse of `safe`."""
    if isinstance(value, dict):
        return {key: restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore(item) for item in value]
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """A Python number of a tensor's or NumPy's scalar, made safe."""
    return safe(value.item() if hasattr(value, "item") else value)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return restore(row) if isinstance(row, dict) and "step" in row and line.endswith(("}", "}\n")) else None
