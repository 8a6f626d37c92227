"""YAML that is safe to compose: small, not deep, and no alias that multiplies its text."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

BYTES, DEPTH, ALIASES = 1 << 20, 64, 64
STANDARD, TAGS = "tag:yaml.org,2002:", ("str", "int", "float", "bool", "null", "seq", "map")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # events alone: both make them without recursion


def check_yaml(path: Path) -> None:
    """Reads the file's events and builds nothing; of a file that has not changed once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: over 1 MiB, not YAML, deeper than 64 levels, a tag that is not plain data's, more than 64 aliases,
            or an alias inside what an anchor names, by which a kilobyte becomes gigabytes.
    """
    state = path.stat()
    _check(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=512)
def _check(path: Path, stamp: int, size: int) -> None:
    if size > BYTES:
        raise ValueError(f"{path.name}: {size:,} bytes: must be at most {BYTES:,}")
    try:
        _walk(path.name, path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name}: not YAML ({' '.join(str(error).split())[:200]})") from None


def _walk(name: str, text: str) -> None:
    open_anchors: list[bool] = []  # of the collections around an event, whether each has an anchor
    aliases = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor is not None)
        elif isinstance(event, yaml.CollectionEndEvent):
            open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        tag = getattr(event, "tag", None)
        if tag is not None and tag.removeprefix(STANDARD) not in TAGS:
            raise ValueError(f"{name}: {_line(event)}: tag {tag}: must be one of {', '.join(TAGS)}")
        if len(open_anchors) > DEPTH:
            raise ValueError(f"{name}: {_line(event)}: must be at most {DEPTH} levels deep")
        if aliases > ALIASES or (isinstance(event, yaml.AliasEvent) and any(open_anchors)):
            raise ValueError(f"{name}: {_line(event)}: at most {ALIASES} aliases, none inside an anchor's value")


def _line(event: Any) -> str:
    return f"line {event.start_mark.line + 1}"
