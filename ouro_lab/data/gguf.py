"""Metadata of a GGUF file (llama.cpp's format, versions 2 and 3): enough to read a tokenizer without weights."""

import struct
from pathlib import Path
from typing import Any, BinaryIO

Value = int | float | bool | str | list[Any]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


def read_metadata(path: Path) -> dict[str, Value]:
    """Raises: ValueError when the file is not GGUF."""
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ValueError(f"path = {path}: must be a GGUF file")
        _, _, count = struct.unpack("<IQQ", file.read(20))  # version, tensors, metadata entries
        return {_string(file): _value(file, _scalar(file, "<I")) for _ in range(count)}


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == _STRING:
        return _string(file)
    if kind == _ARRAY:
        inner, count = struct.unpack("<IQ", file.read(12))
        if inner in _SCALARS:
            form = f"<{count}{_SCALARS[inner][1]}"
            return list(struct.unpack(form, file.read(struct.calcsize(form))))
        return [_value(file, inner) for _ in range(count)]
    return _scalar(file, _SCALARS[kind])


def _scalar(file: BinaryIO, form: str) -> int | float | bool:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, "<Q")).decode("utf-8")
