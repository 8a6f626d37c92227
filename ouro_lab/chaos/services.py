"""The tracking store down, slow, locked or new to six processes at once; and two commands on one study."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path

from ouro_lab import records, run, tracking
from ouro_lab.chaos.tiny import OVERRIDES, Row, child, ended, execute, kill, place, tiny, wait_for
from ouro_lab.tracking_store import Store

PROMISE = "training unaffected, metrics merged later without duplicates"
PROCESSES = 6


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    import mlflow  # noqa: F401 (before children are made, each of which would spend seconds on it)

    one = tiny()
    with place(folder / "store"):
        assert ended(child(execute(one), folder / "log.txt")) == 0
        files = _digest(one.directory)
        yield _unwilling(folder, one, "down", "http://127.0.0.1:9", contextlib.nullcontext(), files)
        with _silent_server() as address:
            yield _unwilling(folder, one, "slow", address, contextlib.nullcontext(), files)
        database = folder / "locked.db"
        assert Store(f"sqlite:///{database}").prepare()
        yield _unwilling(folder, one, "locked", f"sqlite:///{database}", _held(database), files)
        yield _six_at_once(folder, one)
    yield _two_commands(folder)


def _unwilling(
    folder: Path,
    one: run.Run,
    how: str,
    address: str,
    fault: contextlib.AbstractContextManager,
    files: dict[str, bytes],
) -> Row:
    """A push that the store does not take, then two into one that does."""
    log = folder / f"{how}.txt"
    with fault:
        began = time.monotonic()
        code = ended(child(lambda: _push(one.directory, address), log))
        seconds = time.monotonic() - began
    warnings = [line for line in log.read_text().splitlines() if "tracking store" in line]
    untouched = _digest(one.directory) == files
    later = folder / f"{how}-later.db"
    codes = [ended(child(lambda: _push(one.directory, f"sqlite:///{later}"), log)) for _ in range(2)]
    doubled, points = _points(later)
    said = f"given up after {seconds:.1f} s with {len(warnings)} line; later {points} points, {doubled} twice"
    ok = code == 1 and len(warnings) == 1 and untouched and codes == [0, 0] and points > 0 and doubled == 0
    return Row(f"tracking store {how}", PROMISE, said, ok and seconds < 30)


def _push(directory: Path, address: str) -> int:
    return 0 if tracking.push(directory, Store(address)) else 1


def _six_at_once(folder: Path, one: run.Run) -> Row:
    store, copies = folder / "fresh.db", []
    for number in range(PROCESSES):
        copy = folder / "six" / f"{one.directory.name}-{number}"
        copy.mkdir(parents=True)
        for path in one.directory.glob("*.json*"):
            (copy / path.name).write_bytes(path.read_bytes())
        content = json.loads((copy / "run.json").read_text())
        records.write_json(copy / "run.json", content | {"id": copy.name, "seed": number})
        copies.append(copy)
    address = f"sqlite:///{store}"
    first = [child(lambda c=copy: _push(c, address), folder / "six.txt") for copy in copies]
    at_once = sum(ended(pid) == 0 for pid in first)
    again = [ended(child(lambda c=copy: _push(c, address), folder / "six.txt")) for copy in copies]
    doubled, points = _points(store)
    with contextlib.closing(sqlite3.connect(store)) as connection:
        count = connection.execute("select count(*) from runs").fetchone()[0]
    said = f"{at_once} of {PROCESSES} took it at once, then {count} runs, {points} points, {doubled} twice"
    ok = set(again) == {0} and count == PROCESSES and doubled == 0
    return Row(f"{PROCESSES} processes on a fresh store", PROMISE, said, ok)


def _points(database: Path) -> tuple[int, int]:
    """Metric values that are there more than once, and all of them."""
    key = "run_uuid, key, step, value, is_nan, timestamp"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        total = connection.execute("select count(*) from metrics").fetchone()[0]
        distinct = connection.execute(
            "select count(*) from (select distinct run_uuid, key, step from metrics)"
        ).fetchone()[0]
        assert total == connection.execute(f"select count(*) from (select distinct {key} from metrics)").fetchone()[0]
    return total - distinct, total


def _digest(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.json*")}


@contextlib.contextmanager
def _silent_server() -> Generator[str, None, None]:
    """Takes every connection and answers none."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    for connection in held:
        connection.close()


@contextlib.contextmanager
def _held(database: Path) -> Generator[None, None, None]:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def _two_commands(folder: Path) -> Row:
    """The first is killed without warning; nothing that it held may stand in the third's way."""
    one, log = tiny(), folder / "two.txt"
    with place(folder / "two"):
        study = child(_hold_study, folder / "holder.txt")
        first = child(execute(one), folder / "holder.txt")
        wait_for(lambda: records.is_running(one.directory) and (records.runs_root() / "p_hop" / "held").exists())
        os.kill(first, signal.SIGSTOP)  # or it would end before the second begins
        codes = [ended(child(_study, log)), ended(child(execute(one), log))]
        said = [line for line in log.read_text().splitlines() if line][-2:]
        for pid in (study, first):
            kill(pid)
        with records.run_lock(records.runs_root() / "p_hop", patience=0.0) as free:
            after = ended(child(execute(one), log))
    ok = codes == [2, 0] and "another process is running it" in said[0] and "is running already" in said[1]
    shown = f"“{said[0][:70]}”, “{said[1][-25:]}”; free after kill −9: {free and after == 0}"
    promise = "the second waits or refuses, by a lock that a crash does not leave behind"
    return Row("two commands on the same study", promise, shown, ok and free and after == 0)


def _hold_study() -> int:
    folder = records.runs_root() / "p_hop"
    with records.run_lock(folder) as free:
        (folder / "held").touch()
        time.sleep(600)
    return 0 if free else 1


def _study() -> int:
    from ouro_lab.__main__ import main

    return main(["run", "p_hop", *OVERRIDES])
