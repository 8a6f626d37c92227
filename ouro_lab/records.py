"""The files of a run's directory (docs/design.md), each written whole or not at all, and who is alive in it."""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ouro_lab.metrics_log import MetricsLog, last_step, read_metrics, read_rows, replace_file, restore, safe
from ouro_lab.provenance import ROOT, command_line, environment, provenance
from ouro_lab.secrets import redact

__all__ = [
    "MetricsLog", "begin", "checkpoint_step", "command_line", "environment", "finish", "is_alive", "is_held",
    "is_running", "last_step",
    "note", "now", "process_start", "provenance", "read_final", "read_json", "read_metrics", "read_note",
    "read_rows", "read_seconds", "read_state", "replace_file", "run_lock", "runs_root", "smoke", "write_final",
    "write_json",
]  # fmt: skip

END_STATES = ("done", "diverged")


def runs_root() -> Path:
    """`OURO_RUNS`, or runs/ of the repository; with SMOKE=1 a folder of its own in it: nothing real is touched."""
    root = Path(os.environ.get("OURO_RUNS") or ROOT / "runs").expanduser().absolute()
    return root / "smoke" if smoke() else root


def smoke() -> bool:
    """Whether SMOKE=1 asks for studies of seconds."""
    return os.environ.get("SMOKE") == "1"


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write_json(path: Path, content: Mapping[str, Any] | list[Any]) -> None:
    """Atomic, less credentials; non-finite floats as "NaN", "Infinity", "-Infinity", which `read_json` turns back."""
    replace_file(path, redact(json.dumps(safe(content), indent=2, ensure_ascii=False, allow_nan=False)) + "\n")


def read_json(path: Path) -> Any:
    """The file's content, None if there is no such file.

    Raises:
        ValueError: not JSON; names the file.
    """
    try:
        return restore(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None


def begin(directory: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Records an attempt: run.json, config.yaml, record.json, and the state `running` of this process."""
    from omegaconf import OmegaConf

    directory.mkdir(parents=True, exist_ok=True)
    facts = provenance()
    command = facts.pop("command")
    known = read_json(directory / "run.json") or {}
    write_json(directory / "run.json", dict(identity) | {"command": known.get("command", command)})
    replace_file(directory / "config.yaml", redact(OmegaConf.to_yaml(OmegaConf.create(dict(config)), resolve=True)))
    commands = [*read_note(directory).get("commands", []), command]
    note(directory, {**facts, "commands": commands})
    _begin_state(directory)


def finish(directory: Path, state: str, reason: str = "") -> None:
    """Sets the state `done`, `diverged` or `failed`; also for a process that died before it began."""
    known = read_state(directory) or {"attempts": 1, "seconds": 0.0, "began": time.time()}
    step = last_step(directory / "metrics.jsonl")
    final = read_final(directory)
    content = {"state": state, "reason": reason, "step": final["steps"] if final else step, "ended": time.time()}
    content["steps"] = read_note(directory).get("cost", {}).get("steps", known.get("steps"))
    write_json(directory / "state.json", known | content)


def note(directory: Path, content: Mapping[str, Any]) -> None:
    """Adds keys to record.json."""
    write_json(directory / "record.json", read_note(directory) | dict(content))


def read_note(directory: Path) -> dict[str, Any]:
    return read_json(directory / "record.json") or {}


def read_state(directory: Path) -> dict[str, Any] | None:
    return read_json(directory / "state.json")


def read_seconds(directory: Path) -> float:
    """What earlier attempts ran, in seconds; of a killed one as far as its last row."""
    return float((read_state(directory) or {}).get("seconds", 0.0))


def write_final(
    directory: Path,
    metrics: Mapping[str, float],
    seconds: float,
    steps: int,
    cost: Mapping[str, Any],
    tokens: int | None = None,
) -> None:
    """final.json. cost: `tokens` and `training_flops` of all `steps` planned; charged for the steps taken.

    tokens: that those read; None: as many in every step.

    An evaluation plans no step and is charged whole.
    """
    even = round(cost["tokens"] * steps / cost["steps"]) if cost["steps"] else cost["tokens"]
    read = even if tokens is None else tokens
    totals = {"tokens": read, "flops": cost["training_flops"] * read / cost["tokens"]}
    content = {"metrics": dict(metrics), "seconds": seconds, "steps": steps, **totals, "time": time.time()}
    write_json(directory / "final.json", content)


def read_final(directory: Path) -> dict[str, Any] | None:
    return read_json(directory / "final.json")


def checkpoint_step(directory: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none. Checkpoints are renamed into place, so a name is whole."""
    names = [path.stem.removeprefix("step=") for path in (directory / "checkpoints").glob("step=*.ckpt")]
    return max((int(name) for name in names if name.isdigit()), default=0)


@contextlib.contextmanager
def run_lock(directory: Path, patience: float = 0.5) -> Generator[bool, None, None]:
    """Holds the run for this process; yields whether it was free. The kernel lets go of it when the process dies."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("a") as file:
        free = _take(file.fileno(), time.monotonic() + patience)
        yield free


def is_running(directory: Path) -> bool:
    """Whether the process that began the run lives; on another host, whether it holds the run's lock."""
    state = read_state(directory)
    if state is None or state["state"] != "running":
        return False
    if state.get("host", socket.gethostname()) == socket.gethostname():
        return is_alive(state["pid"], state.get("started"))
    with run_lock(directory, patience=0.0) as free:
        return not free


def is_held(directory: Path) -> bool:
    """Whether a process holds the run, perhaps one that has not recorded its begin yet."""
    if is_running(directory):
        return True
    with run_lock(directory, patience=0.0) as free:
        return not free


def is_alive(pid: int, started: str | None = None) -> bool:
    """Whether `pid` runs and, given `started` (from `process_start`), is still the same process."""
    found = process_start(pid)
    return found is not None and (started is None or found == started)


def process_start(pid: int) -> str | None:
    """A token that no later process of the same pid shares, None if there is no such process or only its corpse."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text().rpartition(")")[2].split()  # the name before it may hold spaces
        except OSError:
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return None if fields[0] in "ZX" else f"{boot}/{fields[19]}"  # start in clock ticks since boot
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    status, _, start = done.stdout.strip().partition(" ")
    return start.strip() if start and not status.startswith("Z") else None


def _begin_state(directory: Path) -> None:
    earlier = read_state(directory) or {}
    # Only failures use up attempts: a preempted or killed run was not at fault.
    attempts = earlier.get("attempts", 0) + (1 if earlier.get("state", "failed") == "failed" else 0)
    content = {
        "state": "running",
        "attempts": max(1, attempts),
        "reason": "",
        "step": checkpoint_step(directory),
        "steps": read_note(directory).get("cost", {}).get("steps"),
        "pid": os.getpid(),
        "started": process_start(os.getpid()),
        "host": socket.gethostname(),
        "began": time.time(),
        "seconds": _seconds_of(directory, earlier),
    }
    write_json(directory / "state.json", content)


def _seconds_of(directory: Path, earlier: Mapping[str, Any]) -> float:
    """Seconds of all attempts before this one."""
    rows = directory / "metrics.jsonl"
    ended = earlier.get("ended") or (rows.stat().st_mtime if rows.is_file() else 0.0)
    return earlier.get("seconds", 0.0) + max(0.0, ended - earlier.get("began", ended))


def _take(handle: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        except OSError:  # a file system without locks: better unguarded than never started
            return True
        else:
            return True
