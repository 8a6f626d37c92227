"""Text that Debian packages carry, 81 MB in seven domains, to rehearse training on real data with.

`make data` (`package_fetch`) keeps one JSONL file of each with its digest; here they are read.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouro_lab.data.corpus import TextFiles
from ouro_lab.data.tasks.protocol import check_choice
from ouro_lab.measured import cache_root

SOURCES = ("gcide", "wordnet", "foldoc", "jargon", "devil", "linux_doc", "python_doc")


@dataclass(frozen=True)
class PackageText:
    """The text of one Debian package, once `make data` has fetched it. source: one of `SOURCES`."""

    source: str
    remote = open_ended = False

    def __post_init__(self) -> None:
        check_choice("source", self.source, SOURCES)

    @property
    def label(self) -> str:
        return self.source

    @property
    def folder(self) -> Path:
        return cache_root() / "package_text" / self.source

    def facts(self) -> dict[str, Any]:
        """package, version, documents, bytes and sha256 of the text, checked against the file.

        Raises: FileNotFoundError when it was not fetched; ValueError when it is not what was.
        """
        try:
            facts = json.loads((self.folder / "facts.json").read_text())
            with (self.folder / "text.jsonl").open("rb") as file:
                sound = hashlib.file_digest(file, "sha256").hexdigest() == facts["sha256"]
        except FileNotFoundError as error:
            raise FileNotFoundError(f"source = {self.source}: not fetched yet; must be there: make data") from error
        except (ValueError, LookupError, TypeError):
            sound = False
        if not sound:
            raise ValueError(f"source = {self.source}: damaged in {self.folder}; make data fetches it again")
        return facts

    def identity(self) -> str:
        return self.facts()["sha256"]

    def size(self) -> int | None:
        return self.facts()["bytes"]

    def documents(self) -> Iterator[str]:
        self.facts()
        return TextFiles(str(self.folder / "text.jsonl")).documents()
