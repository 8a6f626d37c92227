"""A list of JSON entries that grows on disk; what a killed writer left half-written is not part of it."""

import json
import os
from pathlib import Path
from typing import Any

Entry = dict[str, Any]


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path

    def entries(self) -> list[Entry]:
        """All whole entries, up to the first that is not."""
        found: list[Entry] = []
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if not isinstance(entry, dict) or entry.get("index") != len(found):
                break
            found.append(entry)
        return found

    def append(self, entry: Entry) -> None:
        """The entry is on the disk when this returns."""
        with self.path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def restart(self, entries: list[Entry]) -> None:
        """Exactly these entries from now on."""
        beside = self.path.with_suffix(".new")
        beside.write_bytes(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        beside.replace(self.path)
