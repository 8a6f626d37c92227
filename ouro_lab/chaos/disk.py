"""Disks that are full or take nothing: a limit on the size of a file, and a small tmpfs where one may be mounted."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ouro_lab import records, run
from ouro_lab.chaos.tiny import (
    STEPS,
    VAL_EVERY,
    Outcome,
    Row,
    child,
    ended,
    execute,
    finished_as,
    outcome,
    place,
    put,
    tiny,
    whole,
)  # fmt: skip
from ouro_lab.training import checkpoint

PROMISE = "clear line, last good checkpoint intact; resume works once there is room"


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    one = tiny()
    with place(folder / "unbroken"):
        assert ended(child(execute(one), folder / "log.txt")) == 0
        expected = outcome(one)
        size = (one.directory / "checkpoints" / f"step={STEPS:08d}.ckpt").stat().st_size
    yield _quota(folder, expected, size)
    yield _small_disk(folder, expected, size)
    yield _read_only(folder)


def _quota(folder: Path, expected: Outcome, size: int) -> Row:
    """From the second checkpoint on no file may be longer than half of one."""
    one, log = tiny(), folder / "quota.txt"

    def plant() -> None:
        real, calls = checkpoint.torch.save, []

        def save(content: Any, file: Any) -> None:
            calls.append(None)
            if len(calls) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
            real(content, file)

        put(checkpoint.torch, "save", save)

    with place(folder / "quota"):
        code = ended(child(execute(one, plant), log))
        said, ok = _after(one, code, log)
        equal = finished_as(one, expected, log)
    return Row("quota mid-write (RLIMIT_FSIZE)", PROMISE, f"{said}; identical after resume: {equal}", ok and equal)


def _small_disk(folder: Path, expected: Outcome, size: int) -> Row:
    """Room for one checkpoint and a half: the second does not fit."""
    one, log, disk = tiny(), folder / "full.txt", folder / "disk"
    if not _mounted(disk, int(size * 1.5) + 65536):
        return Row("disk full (tmpfs)", PROMISE, "not tried: no tmpfs may be mounted here", None)
    try:
        with place(disk):
            code = ended(child(execute(one), log))
            said, ok = _after(one, code, log)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            equal = finished_as(one, expected, log)
    finally:
        subprocess.run(["umount", str(disk)], check=False)
    return Row("disk full (tmpfs)", PROMISE, f"{said}; identical after resume: {equal}", ok and equal)


def _after(one: run.Run, code: int, log: Path) -> tuple[str, bool]:
    """What a run left that could not write: one line, whole checkpoints, nothing beside them."""
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    kept = records.checkpoint_step(one.directory)
    beside = list((one.directory / "checkpoints").glob(".step=*"))
    ok = code == 1 and len(lines) == 1 and kept >= VAL_EVERY and whole(one) and not beside
    return f"“{(lines or ['no line'])[-1][:110]}”, checkpoint of step {kept} whole", ok


def _read_only(folder: Path) -> Row:
    promise = "one line, nothing written"
    log, disk = folder / "read_only.txt", folder / "read only"
    mounted = os.geteuid() == 0  # root writes where no permission is
    if mounted and not _mounted(disk, 1 << 20):
        return Row("read-only output", promise, "not tried: root, and no tmpfs may be mounted here", None)
    try:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        else:
            disk.mkdir(mode=0o555)
        with place(disk / "runs"):
            codes = [ended(child(work, log)) for work in (_run_alone, _study)]
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=False)
    lines = log.read_text().splitlines()
    ok = (
        codes == [1, 1]
        and sum(line.startswith("error: ") for line in lines) == 2
        and "Traceback" not in log.read_text()
    )
    return Row("read-only output", promise, f"run and study: “{(lines or ['no line'])[-1][:90]}”", ok)


def _run_alone() -> int:
    one = tiny()
    return run.main(one.command)


def _study() -> int:
    from ouro_lab.__main__ import main

    return main(["run", "p_hop", *tiny().overrides])


def _mounted(disk: Path, size: int) -> bool:
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
