"""Hostile files: thousands of mutated inputs of every kind that is read, and those written by hand to do harm."""

import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ouro_lab import alarms, records
from ouro_lab.allowed import check_targets
from ouro_lab.chaos.tiny import Row, child, ended, execute, place, tiny
from ouro_lab.config import EXPERIMENTS, compose_config, load_config
from ouro_lab.data import TextFiles
from ouro_lab.data.archive import members
from ouro_lab.interop import open_trunk
from ouro_lab.interop.weights import read_weights
from ouro_lab.training import checkpoint

PROMISE = "refused in one line, nothing executed or written"
SNIPPETS = (
    b"\x00", b"\xff\xfe", b"NaN", b"-1", b"1e999", b"9" * 5000, b"[" * 3000, b"{" * 3000, b'"' * 7, b"\n\n", b"${x}",
    b"&a [*a]", b"../../x", b"!!python/object/apply:os.system ['touch touched']",
    b"cos\nsystem\n(S'touch touched'\ntR.",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 10**12, 10**400, 1e308, "", "x", "../../x", [], [[]], {}, {"_target_": "os.system"},
    [None] * 9,
)  # fmt: skip
TARGETS = (
    "os.system", "subprocess.run", "builtins.eval", "ouro_lab.run.os.system", "ouro_lab.metrics_log.replace_file",
    "torch.hub.load", "torch.load", "torch.utils.cpp_extension.load_inline", "pickle.loads", "shutil.rmtree",
    "importlib.import_module", "ouro_lab.provenance.subprocess.run", "lightning.pytorch.cli.LightningCLI", "..", "",
)  # fmt: skip


class Tally:
    """What became of the inputs: read, refused in one line, or anything else, which is a fault."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.faults: list[str] = []

    def feed(self, kind: str, read: Callable[[], Any]) -> None:
        self.count["inputs"] += 1
        try:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                read()
        except (ValueError, FileNotFoundError) as error:
            self.count["refused"] += 1
            if "\n" in str(error).strip():
                self.faults.append(f"{kind}: several lines: {str(error)[:80]!r}")
        except Exception as error:  # what a user would see as a traceback
            self.faults.append(f"{kind}: {type(error).__name__}: {str(error)[:80]!r}")
        else:
            self.count["read"] += 1


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    tally, room = Tally(), folder / "room"
    room.mkdir(parents=True)
    one = tiny("budget.steps=5")
    with place(folder / "source"):
        assert ended(child(execute(one), folder / "log.txt")) == 0
        shutil.copytree(one.directory, folder / "run")
    before, home = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, Path.cwd()
    os.chdir(room)
    try:
        examine(tally, room, folder / "run", 0.1 if quick else 1.0)
        left = [path.name for path in room.iterdir() if not path.name.startswith("input")]
    finally:
        os.chdir(home)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    count, wrong = tally.count, list(dict.fromkeys(tally.faults))
    said = f"{count['inputs']:,} inputs: {count['refused']:,} refused in one line, {count['read']:,} still valid, "
    said += f"{len(tally.faults)} otherwise; {len(left)} files written; {grown} MiB more memory"
    ok = not wrong and not left and grown < 1024
    yield Row("hostile files", PROMISE, said + "".join(f"\n        {each}" for each in wrong[:8]), ok)


def examine(tally: Tally, room: Path, run: Path, share: float) -> None:
    """Feeds what is written by hand, then `share` of ten thousand mutations of what a run and a trunk hold.

    room: an empty folder, and the working directory: what an input executes would leave something there.
    """
    _written_by_hand(tally, room)
    _mutated(tally, room, run, share)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Bits flipped, bytes cut, doubled, left out, or something hostile put in."""
    place, size = dice.randrange(len(data) + 1), dice.randrange(1, 1 + min(len(data), 64))
    way = dice.randrange(5)
    if way == 0:
        changed = bytearray(data)
        for _ in range(dice.randrange(1, 9)):
            changed[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        return bytes(changed)
    if way == 1:
        return data[:place]
    if way == 2:
        return data[:place] + data[place : place + size] * dice.randrange(2, 20) + data[place:]
    if way == 3:
        return data[:place] + data[place + size :]
    return data[:place] + dice.choice(SNIPPETS) + data[place:]


def mutate_json(content: Any, dice: random.Random) -> Any:
    """One value somewhere replaced by a hostile one, or one key lost."""
    copy = json.loads(json.dumps(content))
    node = copy
    while True:
        key = dice.choice(list(node)) if isinstance(node, dict) else dice.randrange(len(node))
        if isinstance(node[key], (dict, list)) and node[key] and dice.random() < 0.7:
            node = node[key]
            continue
        if isinstance(node, dict) and dice.random() < 0.2:
            del node[key]
        else:
            node[key] = dice.choice(VALUES)
        return copy


def _mutated(tally: Tally, room: Path, run: Path, share: float) -> None:
    """share: of ten thousand inputs."""
    dice = random.Random(0)
    ckpt = next((run / "checkpoints").glob("*.ckpt")).read_bytes()
    study = (EXPERIMENTS / "p_hop.yaml").read_bytes()
    path = room / "input"

    def feed(kind: str, count: int, data: bytes, read: Callable[[], Any]) -> None:
        for _ in range(int(count * share)):
            path.write_bytes(mutate(data, dice))
            tally.feed(kind, read)

    feed("checkpoint", 2500, ckpt, lambda: checkpoint.load(path))
    feed("pickle", 1000, _pickle_of(ckpt), lambda: checkpoint.load(path))
    feed("config.yaml", 2500, (run / "config.yaml").read_bytes(), lambda: load_config(path))
    feed("record.json", 2000, (run / "record.json").read_bytes(), lambda: records.read_json(path))
    feed("metrics.jsonl", 500, (run / "metrics.jsonl").read_bytes(), lambda: records.read_metrics(path))
    feed("archive", 400, _tar({"usr/share/a.txt": b"text", "usr/share/b.txt": b"more"}), lambda: _members(path))
    feed("JSON lines", 400, b'{"text": "one"}\n{"text": "two"}\n' * 8, lambda: _documents(path))
    _trunks(tally, room, dice, share)
    for number in range(int(30 * share)):
        (room / f"input_{number}.yaml").write_bytes(mutate(study, dice))
        tally.feed("study", lambda n=number: compose_config(f"input_{n}", folder=room))


def _trunks(tally: Tally, room: Path, dice: random.Random, share: float) -> None:
    folder = room / "input_trunk"
    trunk = Path(__file__).resolve().parents[2] / "trunks" / "p_hop" / "seed_0"
    shutil.copytree(trunk, folder)
    weights = (folder / "model.safetensors").read_bytes()
    head = 8 + int.from_bytes(weights[:8], "little")
    for _ in range(int(1500 * share)):
        (folder / "model.safetensors").write_bytes(mutate(weights[:head], dice) + weights[head:])
        tally.feed("safetensors header", lambda: read_weights(folder))
    (folder / "model.safetensors").write_bytes(weights)
    for name in ("config.json", "ouro_lab.json"):
        content = json.loads((trunk / name).read_text())
        for _ in range(int(300 * share)):
            (folder / name).write_text(json.dumps(mutate_json(content, dice)))
            tally.feed(name, lambda: open_trunk(folder))
        (folder / name).write_text(json.dumps(content))


def _pickle_of(ckpt: bytes) -> bytes:
    """The pickle of a checkpoint alone: a mutation then hits an opcode, not a weight."""
    with zipfile.ZipFile(io.BytesIO(ckpt)) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _members(path: Path) -> list[tuple[str, bytes]]:
    with path.open("rb") as stream:
        return list(members(stream, lambda name: True))


def _documents(path: Path) -> list[str]:
    """As a corpus of JSON lines reads them."""
    named = path.with_name("input_lines.jsonl")
    named.write_bytes(path.read_bytes())
    return list(TextFiles(str(named)).documents())


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("touch touched",)


def _written_by_hand(tally: Tally, room: Path) -> None:
    path = room / "input"
    torch.save({"state_dict": {}, "evil": _Evil()}, path)
    tally.feed("pickled checkpoint", lambda: _must_refuse(lambda: checkpoint.load(path)))
    path.write_bytes(pickle.dumps(_Evil()))
    tally.feed("bare pickle", lambda: _must_refuse(lambda: checkpoint.load(path)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": {}}))
        archive.writestr("archive/data/0", bytes(1 << 28))  # 256 MiB in 256 KiB
    tally.feed("compressed checkpoint", lambda: _must_refuse(lambda: checkpoint.load(path)))
    folder = room / "input_pickled"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Evil()))
    tally.feed("pickled weights", lambda: _must_refuse(lambda: open_trunk(folder)))
    for name in ("../touched", "/tmp/../touched", "/touched", "a/../../touched"):
        path.write_bytes(_tar({"a.txt": b"text", name: b"text"}))
        tally.feed("archive member", lambda: _must_refuse(lambda: _members(path)))
    for target in TARGETS:
        tally.feed("_target_", lambda t=target: _must_refuse(lambda: check_targets({"a": [{"_target_": t}]})))
    listed = room / "input_alarms"
    listed.mkdir()
    (listed / alarms.FILE).write_text("[{}]")
    tally.feed("alarms.json", lambda: _must_refuse(lambda: alarms.read(listed)))


def _must_refuse(read: Callable[[], Any]) -> None:
    """Raises: RuntimeError, which counts as a fault, where `read` takes what it must not."""
    read()
    raise RuntimeError("was read")
