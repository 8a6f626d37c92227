"""The runs of a study as tables, from their directories or from committed evidence: the two are interchangeable."""

import difflib
import gzip
import io
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ouro_lab import records

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
STATES = ("done", "diverged", "failed", "running", "interrupted", "to do")
TEXT = ("id", "arm", "phase", "hash", "state", "reason", "commit", "dirty", "hardware", "precision")
WHOLE = ("seed",)
IDENTITY = ("id", "arm", "lr", "seed", "phase", "hash")
FIRST = (*IDENTITY, "state", "reason", "attempts", "seconds", "steps", "tokens", "flops")
WATCHED = ("optim/grad_norm/", "optim/update_norm/", "perf/seconds_left")  # for watching a run; no report reads them
CURVE = ("id", "arm", "seed", "step", "metric", "value")


class UnknownStudyError(LookupError):
    """One line: no such study, or none of its runs."""


@dataclass(frozen=True)
class StudyResult:
    """A study and the runs it yields today.

    runs: a row per run: identity, state (of `STATES`), seconds, steps taken, tokens, flops, `cost/…`, `final/…`.
    curves: long, (id, arm, seed, step, metric, value). stale: directories that are not in today's list.
    """

    study: dict[str, Any]
    runs: pd.DataFrame
    curves: pd.DataFrame
    stale: list[str]

    @property
    def name(self) -> str:
        return self.study["name"]

    @property
    def finished(self) -> pd.DataFrame:
        """The rows of the runs that a verdict may be of: done, and not of a sweep."""
        return self.runs[(self.runs["state"] == "done") & (self.runs["phase"] == "main")]

    @property
    def counts(self) -> dict[str, int]:
        """Runs per state, and stale directories; states that occur."""
        found = Counter(self.runs["state"])
        counts = {state: found[state] for state in STATES if found[state]}
        return counts | ({"stale": len(self.stale)} if self.stale else {})


def load(study: str, root: Path | str | None = None, evidence: Path | str | None = None) -> StudyResult:
    """From `$OURO_RUNS/<study>` if it has runs, else from `experiments/results/<study>`.

    Raises:
        UnknownStudyError: neither holds the study; names the nearest that are there.
    """
    folder = (Path(root) if root else records.runs_root()) / study
    committed = (Path(evidence) if evidence else RESULTS) / study
    if (folder / "study.json").is_file() and any(folder.glob("*/run.json")):
        return _from_runs(folder)
    if (committed / "study.json").is_file() and (committed / "runs.csv").is_file():
        return from_evidence(committed)
    if (folder / "study.json").is_file():
        return _from_runs(folder)
    raise UnknownStudyError(_unknown(study, folder.parent, committed.parent))


def versions(study: str, root: Path | str | None = None, evidence: Path | str | None = None) -> dict[str, StudyResult]:
    """All that is kept of a study: `tracked runs`, then `committed evidence`; empty where there is neither."""
    folder = (Path(root) if root else records.runs_root()) / study
    committed = (Path(evidence) if evidence else RESULTS) / study
    found = {}
    if (folder / "study.json").is_file():
        found["tracked runs"] = _from_runs(folder)
    if (committed / "study.json").is_file() and (committed / "runs.csv").is_file():
        found["committed evidence"] = from_evidence(committed)
    return found


def export(result: StudyResult, folder: Path | str) -> None:
    """study.json, runs.csv and curves.csv.gz: the same bytes for the same result, floats to the last bit."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / "study.json", result.study)
    stale = pd.DataFrame({"id": result.stale, "state": "stale"})
    runs = result.runs.sort_values("id", kind="stable").astype({"seed": "Int64"})  # a stale row has no seed
    runs = pd.concat([runs, stale]) if result.stale else runs
    (folder / "runs.csv").write_text(runs.to_csv(index=False, lineterminator="\n"))
    text = result.curves[["id", "step", "metric", "value"]].to_csv(index=False, lineterminator="\n")
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=9, mtime=0) as file:
        file.write(text.encode())
    (folder / "curves.csv.gz").write_bytes(buffer.getvalue())


def to_parquet(result: StudyResult, folder: Path | str) -> tuple[Path, Path]:
    """runs.parquet and curves.parquet."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "runs.parquet", folder / "curves.parquet"
    for path, frame in zip(paths, (result.runs, result.curves), strict=True):
        frame.to_parquet(path, index=False)
    return paths


def _from_runs(folder: Path) -> StudyResult:
    study = records.read_json(folder / "study.json")
    rows, points = [], []
    for run in study["runs"]:
        metrics = records.read_metrics(folder / run["id"] / "metrics.jsonl")
        rows.append(_row(run, folder / run["id"], study, metrics[-1]["step"] if metrics else None))
        points += [(run["id"], *point) for point in _points(metrics)]
    known = {run["id"] for run in study["runs"]}
    stale = sorted({path.parent.name for path in folder.glob("*/run.json")} - known)
    runs = _runs_frame(rows)
    return StudyResult(study, runs, _curves_frame(points, runs), stale)


def from_evidence(folder: Path) -> StudyResult:
    """What `export` wrote, whatever is tracked here."""
    study = records.read_json(folder / "study.json")
    table = pd.read_csv(folder / "runs.csv", dtype=str, keep_default_na=False)
    stale = sorted(table.loc[table["state"] == "stale", "id"])
    rows = {row["id"]: row for row in table[table["state"] != "stale"].to_dict("records")}
    runs = _runs_frame([rows[run["id"]] for run in study["runs"] if run["id"] in rows])
    curves = pd.read_csv(folder / "curves.csv.gz", dtype=str, keep_default_na=False)
    curves["value"] = curves["value"].map(_number)  # Python's float: exact, as pandas' own parser need not be
    return StudyResult(study, runs, _curves_frame(curves.itertuples(index=False), runs), stale)


def _row(run: dict[str, Any], folder: Path, study: dict[str, Any], step: int | None) -> dict[str, Any]:
    state = records.read_state(folder) or {}
    final = records.read_final(folder) or {}
    note = records.read_note(folder)
    git = note.get("git") or {}
    cost = note.get("cost") or study["arms"][run["arm"]]["cost"]
    return {
        **{key: run[key] for key in IDENTITY},
        "state": _state(folder, state),
        "reason": " ".join(str(state.get("reason") or "").split()),
        "attempts": state.get("attempts"),
        "seconds": final.get("seconds", state.get("seconds")),
        "steps": final.get("steps", step),
        "tokens": final.get("tokens"),
        "flops": final.get("flops"),
        "commit": git.get("commit") or "",
        "dirty": "" if git.get("dirty") is None else str(bool(git["dirty"])).lower(),
        "hardware": _hardware(note.get("hardware") or {}),
        "precision": (note.get("execution") or {}).get("precision") or "",
        **{f"cost/{key}": value for key, value in _numbers(cost)},
        **final.get("metrics", {}),
    }


def _state(folder: Path, state: dict[str, Any]) -> str:
    """A run whose process is gone without an end state was interrupted, whatever its file says."""
    if not state:
        return "to do"
    if state["state"] == "running":
        return "running" if records.is_running(folder) else "interrupted"
    return state["state"]


def _hardware(found: dict[str, Any]) -> str:
    """`1 thread of 2 cores, AMD EPYC 7B13`."""
    gpus = ", ".join(found.get("gpus") or [])
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}" if found.get("threads") else ""
    cores = f"{threads} of {found['cores']} cores" if threads and found.get("cores") else threads
    return ", ".join(part for part in (gpus, cores, str(found.get("cpu") or "")) if part)


def _numbers(content: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, float]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", value


def _points(metrics: list[dict[str, Any]]) -> Iterable[tuple[int, str, float]]:
    for row in metrics:
        for name, value in row.items():
            if name not in ("step", "time") and not name.startswith(WATCHED) and isinstance(value, (int, float)):
                yield row["step"], name, float(value)


def _runs_frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows with one type per column and columns in one order, from Python values or from text alike."""
    names = {name for row in rows for name in row} | set(FIRST) | {"commit", "dirty", "hardware", "precision"}
    rest = sorted(names - set(FIRST), key=lambda name: (name.startswith(("cost/", "final/")), name))
    columns = {}
    for name in [*FIRST, *rest]:
        cells = [row.get(name) for row in rows]
        if name in TEXT:
            columns[name] = pd.Series(["" if cell is None else str(cell) for cell in cells], dtype="str")
        elif name in WHOLE:
            columns[name] = pd.Series([int(cell) for cell in cells], dtype="int64")
        else:
            columns[name] = pd.Series([_number(cell) for cell in cells], dtype="float64")
    return pd.DataFrame(columns)


def _curves_frame(points: Iterable[tuple[Any, ...]], runs: pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame(points, columns=["id", "step", "metric", "value"])
    frame = frame.astype({"id": "str", "step": "int64", "metric": "str", "value": "float64"})
    frame = frame.sort_values(["id", "step", "metric"], kind="stable", ignore_index=True)
    frame["arm"] = frame["id"].map(runs.set_index("id")["arm"]).astype("str")
    frame["seed"] = frame["id"].map(runs.set_index("id")["seed"]).astype("int64")
    return frame[list(CURVE)]


def _number(cell: Any) -> float:
    return math.nan if cell is None or cell == "" else float(cell)


def _unknown(study: str, root: Path, evidence: Path) -> str:
    if (ROOT / "experiments" / f"{study}.yaml").is_file():
        return f"study {study}: no runs under {root} and no evidence; make experiment NAME={study}"
    places = [*root.glob("*/study.json"), *evidence.glob("*/study.json")]
    names = sorted({path.parent.name for path in places})
    close = difflib.get_close_matches(study, names, n=3, cutoff=0.3) or names
    known = f"nearest: {', '.join(close)}" if close else "no study has runs or evidence here"
    return f"study {study}: no runs under {root} and no evidence; {known}"
