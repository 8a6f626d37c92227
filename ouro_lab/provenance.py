"""Where a number comes from: commit, versions, hardware, command. Imports none of the heavy packages."""

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from ouro_lab.secrets import redact

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "lightning", "mlflow", "hydra-core", "numpy")


def provenance() -> dict[str, Any]:
    """`git`, `versions`, `hardware` and `command` of this process."""
    return {"git": git(), **environment(), "command": command_line()}


def environment() -> dict[str, Any]:
    """Versions (None: not installed) and hardware."""
    from ouro_lab import __version__

    versions = {"python": platform.python_version(), "ouro_lab": __version__}
    return {"versions": versions | {name: _version(name) for name in PACKAGES}, "hardware": hardware()}


def git(root: Path = ROOT) -> dict[str, Any]:
    """`commit` and `dirty`, both None outside a repository (or before its first commit).

    Evidence that the project itself writes does not make a tree dirty; an untracked source file does.
    """
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "dirty": None}
    changed = _git(root, "status", "--porcelain", "--", ".", ":(exclude)experiments/results")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def hardware() -> dict[str, Any]:
    """CPU model, cores this process may use, threads, memory in GiB, and GPUs if torch is imported already."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", usable or 1))
    gpus: list[str] = []
    if torch and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"cpu": _cpu(), "cores": usable, "threads": threads, "memory_gib": _memory(), "gpus": gpus}


def command_line() -> str:
    """As it was typed, less the interpreter's own path and credentials."""
    words = list(sys.orig_argv) or [sys.executable, *sys.argv]
    return redact(shlex.join(["python", *words[1:]]))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
