"""Files by path, glob pattern or fsspec URL: listed in a fixed order, digested, opened as UTF-8 lines."""

import hashlib
import io
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import fsspec
from fsspec.compression import compr
from fsspec.utils import infer_compression

_HERE = ("file", "local", "memory")  # protocols that need no network
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError)
_UNPACKED = ("gzip", "bz2", "xz", "lzma", "zstd")


@dataclass(frozen=True)
class Files:
    """pattern: a local path or an fsspec URL, with or without `*`."""

    pattern: str

    @property
    def remote(self) -> bool:
        return "://" in self.pattern and self.pattern.partition("://")[0] not in _HERE

    def size(self) -> int:
        return sum(int(facts["size"]) for facts in self._listing()[1].values())

    def digest(self) -> str:
        """SHA-256 over the files' own SHA-256, in order; names do not count, so a moved corpus stays the same."""
        system, names = self._listing()
        whole = hashlib.sha256()
        for name in names:
            with system.open(name, "rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.hexdigest()

    def open_all(self) -> Iterator[tuple[str, Iterator[str]]]:
        """(name, its lines with "\\n" at their ends), file by file."""
        system, names = self._listing()
        for name in names:
            yield name, self._lines(system, name)

    def _lines(self, system: fsspec.AbstractFileSystem, name: str) -> Iterator[str]:
        """Raises: ValueError of one line when it is not UTF-8 text or its compression is broken."""
        try:
            with system.open(name, "rb") as raw, io.TextIOWrapper(_unpacked(raw, name), encoding="utf-8") as lines:
                yield from lines
        except (UnicodeDecodeError, *_BROKEN) as error:
            raise ValueError(f"path = {name}: cannot be read as UTF-8 text ({error})") from error

    def _listing(self) -> tuple[fsspec.AbstractFileSystem, dict[str, dict]]:
        """The file system and what it says of each file, ordered by the parts of their paths.

        Raises: FileNotFoundError when none matches or the storage cannot be reached; ValueError when all are empty.
        """
        try:
            system, place = fsspec.core.url_to_fs(self.pattern)
            found = system.glob(place, detail=True)
        except Exception as error:  # a storage's client raises what it likes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileNotFoundError(f"path = {self.pattern}: cannot be listed ({reason})") from error
        files = {name: facts for name, facts in found.items() if facts["type"] == "file"}
        if not files:
            raise FileNotFoundError(f"path = {self.pattern}: no such file; must be a text file or a glob pattern")
        if not any(facts["size"] for facts in files.values()):
            raise ValueError(f"path = {self.pattern}: holds no text")
        return system, dict(sorted(files.items(), key=lambda item: item[0].split("/")))


def _unpacked(raw: BinaryIO, name: str) -> BinaryIO:
    kind = infer_compression(name)
    return compr[kind](raw, mode="rb") if kind in _UNPACKED else raw
