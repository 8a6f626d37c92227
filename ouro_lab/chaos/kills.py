"""Processes that die: kill −9 at random moments and inside writes, SIGTERM, a loader's worker."""

import io
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ouro_lab import metrics_log, records
from ouro_lab.chaos.tiny import (
    VAL_EVERY,
    Outcome,
    Row,
    child,
    ended,
    execute,
    finished_as,
    kill,
    outcome,
    place,
    put,
    step_of,
    tiny,
    wait_for,
    whole,
)  # fmt: skip
from ouro_lab.training import checkpoint

PER_RUN = 4  # kills that one run suffers before it may end


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    one = tiny()
    with place(folder / "first"):  # measures what is measured once per machine
        assert ended(child(execute(one), folder / "log.txt")) == 0
    with place(folder / "unbroken"):
        began = time.monotonic()
        assert ended(child(execute(one), folder / "log.txt")) == 0
        seconds = time.monotonic() - began
        expected = outcome(one)
    yield _random(folder, expected, seconds, 4 if quick else 20)
    yield _inside_writes(folder, expected)
    yield _cache(folder, 2 if quick else 6)
    yield _sigterm(folder, expected)
    yield _worker(folder)


def _random(folder: Path, expected: Outcome, seconds: float, kills: int) -> Row:
    """A run is killed up to `PER_RUN` times before it may end; one that ends before its kill makes room for another."""
    dice, one = random.Random(0), tiny()
    landed, runs, sound, equal = 0, 0, True, True
    while landed < kills and runs < 2 * kills:
        with place(folder / f"random{runs}"):
            for _ in range(min(PER_RUN, kills - landed)):
                hit = kill(child(execute(one), folder / "log.txt"), dice.uniform(0, seconds))
                landed += hit
                sound &= whole(one)
                if not hit:
                    break
            equal &= finished_as(one, expected, folder / "log.txt")
        runs += 1
    said = f"{landed} kills in {runs} runs of {seconds:.1f} s each; "
    said += f"{_all(sound)} checkpoints whole, {_all(equal)} runs identical"
    promise = "resume bit-identical on CPU; the newest complete checkpoint is used; none half-written is ever loaded"
    return Row(f"kill −9 at {kills} random moments", promise, said, sound and equal and landed == kills)


def _inside_writes(folder: Path, expected: Outcome) -> Row:
    """Each point is planted in the child; the parent then looks at what a reader would find."""
    one, failed = tiny(), []
    for name, plant in WRITES.items():
        with place(folder / f"write {name}"):
            died = ended(child(execute(one, plant), folder / "log.txt")) == -signal.SIGKILL
            if not (died and whole(one) and finished_as(one, expected, folder / "log.txt")):
                failed.append(name)
            if list((one.directory / "checkpoints").glob(".step=*")):
                failed.append(f"{name}: something is left beside the checkpoints")
    said = f"{', '.join(WRITES)}: {'all identical after resume' if not failed else 'FAILED ' + ', '.join(failed)}"
    return Row("kill −9 inside a write", "as above, and nothing half-written is left", said, not failed)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _second(real: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """The first call does as always, the second `instead`."""
    calls = []

    def replaced(*arguments: Any, **named: Any) -> Any:
        calls.append(None)
        return (instead if len(calls) == 2 else real)(*arguments, **named)

    return replaced


def _half_a_checkpoint() -> None:
    real = checkpoint.torch.save

    def half(content: Any, file: Any) -> None:
        buffer = io.BytesIO()
        real(content, buffer)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        _die()

    put(checkpoint.torch, "save", _second(real, half))


def _renamed(first: bool) -> Callable[[], None]:
    def plant() -> None:
        real, seen = Path.replace, []

        def replace(path: Path, target: Path) -> Any:
            if path.name.startswith(".step=") and seen.append(path) is None and len(seen) == 2:
                if first:
                    real(path, target)
                _die()
            return real(path, target)

        put(Path, "replace", replace)

    return plant


def _half_a_row() -> None:
    def half(log: metrics_log.MetricsLog, content: dict[str, Any], sync: bool) -> None:
        with log.path.open("a") as file:
            file.write(f'{{"step": {content["step"]}, "train/lo')
        _die()

    put(metrics_log.MetricsLog, "_write", _second(metrics_log.MetricsLog._write, half))


def _record() -> None:
    real = records.replace_file

    def half(path: Path, content: str) -> None:
        path.with_name(f".{path.name}.{os.getpid()}").write_text(content[: len(content) // 2])
        _die()

    put(records, "replace_file", _second(real, half))


WRITES: dict[str, Callable[[], None]] = {
    "half a checkpoint": _half_a_checkpoint,
    "before its rename": _renamed(False),
    "after its rename": _renamed(True),
    "half a row of metrics": _half_a_row,
    "half a record": _record,
}


def _cache(folder: Path, kills: int) -> Row:
    """The token cache of a text, made by a process that is killed; then by one that is not: the same, byte for byte."""
    text = folder / "words.txt"
    dice = random.Random(1)
    text.write_text("\n\n".join(" ".join(dice.choices(("ouro", "loop", "exit", "gate"), k=40)) for _ in range(4000)))
    began = time.monotonic()
    assert ended(child(lambda: _tokens(text, folder / "cache"), folder / "log.txt")) == 0
    seconds = time.monotonic() - began
    expected, landed, equal = _content(folder / "cache"), 0, True
    for number in range(kills):
        cache = folder / f"cache{number}"
        landed += kill(child(lambda c=cache: _tokens(text, c), folder / "log.txt"), dice.uniform(0.2, 1) * seconds)
        equal &= ended(child(lambda c=cache: _tokens(text, c), folder / "log.txt")) == 0
        equal &= _content(cache) == expected
    said = f"{landed} of {kills} kills landed in {seconds:.1f} s of tokenising; {_all(equal)} caches identical"
    return Row(f"kill −9 at {kills} moments of a cache's making", "the same cache, byte for byte", said, equal)


def _tokens(text: Path, cache: Path) -> int:
    os.environ["OURO_CACHE"] = str(cache)
    from ouro_lab.data import ByteTokenizer, TextData, TextFiles

    TextData(TextFiles(str(text), unit="paragraph"), ByteTokenizer(), length=64, batch_size=8).prepare_data()
    return 0


def _content(cache: Path) -> dict[str, bytes]:
    """Token files by name and content; the temporary ones of a killed process are none of them."""
    return {
        path.name: path.read_bytes()
        for path in sorted(cache.rglob("*"))
        if path.is_file() and path.suffix == ".bin" and "/." not in str(path.relative_to(cache.parent))
    }


def _sigterm(folder: Path, expected: Outcome) -> Row:
    one = tiny()
    with place(folder / "sigterm"):
        pid = child(execute(one), folder / "log.txt")
        wait_for(lambda: step_of(one) >= 2 * VAL_EVERY)
        began = time.monotonic()
        os.kill(pid, signal.SIGTERM)
        ended(pid)
        seconds, reached = time.monotonic() - began, step_of(one)
        kept, sound = records.checkpoint_step(one.directory), whole(one)
        state = (records.read_state(one.directory) or {})["state"]
        equal = finished_as(one, expected, folder / "log.txt")
    said = (
        f"ended in {seconds:.1f} s as {state}, checkpoint of step {kept} of {reached} reached; {_all(equal)} identical"
    )
    ok = seconds < 30 and sound and kept > 0 and state == "interrupted" and equal
    return Row("SIGTERM", "checkpoint within 30 s on a small model, same loss curve after resume", said, ok)


def _worker(folder: Path) -> Row:
    one = tiny("data.workers=1")
    with place(folder / "worker unbroken"):
        assert ended(child(execute(one), folder / "log.txt")) == 0
        expected = outcome(one)
    with place(folder / "worker"):
        pid = child(execute(one), folder / "log.txt")
        wait_for(lambda: step_of(one) >= VAL_EVERY)
        victims = _children(pid)
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        code = ended(pid)
        state = records.read_state(one.directory) or {}
        equal = finished_as(one, expected, folder / "log.txt")
    said = f"exit status {code}, state {state['state']}: “{state['reason'][:80]}”; {_all(equal)} identical after resume"
    named = any(str(victim) in state["reason"] for victim in victims) or "worker" in state["reason"]
    return Row(
        "a loader worker dies", "run stops with the cause named; resume works", said, code != 0 and named and equal
    )


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def _all(kept: bool) -> str:
    return "all" if kept else "NOT all"
