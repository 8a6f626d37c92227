"""Token shards: files named by their content, a manifest that lists them, and the stream they make together.

A stream is eos, document, eos, document, …, eos, so that every byte and every document's end is a target once. Nothing
in a manifest is a path: a shard's name follows from its split, place and digest.
"""

import hashlib
import json
import os
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 2  # raise when the same text and tokenizer would give other files
MANIFEST = "manifest.json"
_PART = ".part-"


@dataclass(frozen=True)
class Shard:
    """Documents of one piece and split as tokens. bytes: UTF-8 of their text."""

    sha256: str
    tokens: int
    documents: int
    bytes: int

    def name(self, split: str, index: int) -> str:
        return f"{split}-{index:05d}-{self.sha256[:16]}.bin"


class DamagedError(ValueError):
    """A shard or manifest that is not what was written, and cannot be made again here."""


class Manifest:
    """What a finished folder holds. facts: tokenizer's and source's digests, dtype, and one entry per piece."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.dtype = np.dtype(facts["dtype"])
        self.pieces: list[dict[str, Any]] = facts["pieces"]

    def shards(self, split: str) -> list[Shard]:
        return [Shard(**piece["splits"][split]) for piece in self.pieces]

    def totals(self, split: str) -> dict[str, int]:
        """documents, bytes and tokens of a split."""
        shards = self.shards(split)
        return {name: sum(getattr(shard, name) for shard in shards) for name in ("documents", "bytes", "tokens")}

    def write(self, folder: Path) -> None:
        content = self.facts | {"sha256": _facts_digest(self.facts)}
        write_atomically(folder / MANIFEST, json.dumps(content, indent=1).encode())

    @staticmethod
    def read(folder: Path) -> "Manifest":
        """Raises: DamagedError when the file is not what `write` wrote: order, counts and digests are covered."""
        try:
            facts = json.loads((folder / MANIFEST).read_bytes())
            sealed = facts.pop("sha256") == _facts_digest(facts)
        except (ValueError, LookupError, AttributeError, TypeError):
            sealed = False
        if not sealed:
            raise DamagedError(f"manifest {folder / MANIFEST}: damaged; delete the folder and it is made again")
        return Manifest(facts)


class ShardedStream:
    """A split's tokens, read by slices as one array. A shard is verified when this process first reads of it.

    mend: called with a damaged shard's place and what is wrong; returns once the file is right, or raises.
    """

    def __init__(self, folder: Path, manifest: Manifest, split: str, mend: Callable[[int, str], None]) -> None:
        self.folder, self.split, self.dtype, self.mend = folder, split, manifest.dtype, mend
        self.shards = manifest.shards(split)
        self.starts = [0, *np.cumsum([shard.tokens for shard in self.shards]).tolist()]  # [shards + 1]
        self.open: dict[int, NDArray] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, span: slice) -> NDArray:
        start, stop, _ = span.indices(len(self))
        parts = []
        while start < stop:
            index = bisect_right(self.starts, start) - 1
            end = min(stop, self.starts[index + 1])
            parts.append(self.shard(index)[start - self.starts[index] : end - self.starts[index]])
            start = end
        return parts[0] if len(parts) == 1 else np.concatenate([*parts, np.empty(0, self.dtype)])

    def shard(self, index: int) -> NDArray:
        """The tokens of one shard, verified."""
        if index not in self.open:
            path = self.folder / self.shards[index].name(self.split, index)
            wrong = fault(path, self.shards[index], self.dtype)
            if wrong:
                self.mend(index, f"shard {path.name} in {self.folder}: {wrong}")
            empty = not self.shards[index].tokens  # which no map can be of
            self.open[index] = np.empty(0, self.dtype) if empty else np.memmap(path, self.dtype, mode="r")
        return self.open[index]


def fault(path: Path, shard: Shard, dtype: np.dtype, whole: bool = True) -> str:
    """What is wrong with a shard's file; nothing for "". whole: read it; else only its presence and size count."""
    if not path.is_file():
        return "missing"
    size, due = path.stat().st_size, shard.tokens * dtype.itemsize
    if size != due:
        return f"{size} bytes, must be {due}"
    if whole:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != shard.sha256:
            return f"SHA-256 {found[:16]}…, must be {shard.sha256[:16]}…"
    return ""


def write_atomically(path: Path, data: bytes) -> None:
    """The file has its name only once all of it is on the disk."""
    beside = path.with_name(f"{_PART}{os.getpid()}-{path.name}")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def sweep(folder: Path, keep: set[str]) -> None:
    """Removes what a killed process left: half-written files, and shards that no manifest or journal names."""
    for path in folder.iterdir():
        if path.name.startswith(_PART) or (path.suffix == ".bin" and path.name not in keep):
            path.unlink()


def _facts_digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
