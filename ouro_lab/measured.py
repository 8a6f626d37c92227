"""What is measured once per machine and then remembered, so that all of its runs, and a resumed one, decide alike."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_root() -> Path:
    """`$OURO_CACHE`, or ~/.cache/ouro_lab."""
    return Path(os.environ.get("OURO_CACHE") or "~/.cache/ouro_lab").expanduser()


def once_per_machine(file: str, key: str, measure: Callable[[], Any], valid: Callable[[Any], bool]) -> Any:
    """The value of `key` in `file` of the cache; measured and kept there if it is missing or not `valid`."""
    known = read(file)
    if not valid(known.get(key)):
        value = measure()
        since = {k: v for k, v in read(file).items() if k != key or valid(v)}
        known = {key: value} | since  # who wrote first is right
        write(file, known)
    return known[key]


def read(file: str) -> dict[str, Any]:
    """The entries of a file of the cache; none of one that is missing or broken."""
    try:
        return dict(json.loads((cache_root() / file).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def write(file: str, known: dict[str, Any]) -> None:
    """Replaces a file of the cache, whole."""
    path = cache_root() / file
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(known, indent=1, sort_keys=True))
    beside.replace(path)
