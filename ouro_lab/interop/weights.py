"""Weights as safetensors files, one or several with an index: read strictly, written so that equal weights give equal
bytes. Nothing in a file is ever executed: pickled weights are refused unread."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of `folder` by name, as stored (memory-mapped).

    Raises:
        FileNotFoundError: no weights, or a shard that the index names is not there.
        ValueError: pickled weights, a broken file or index, or an index that disagrees with the shards, by name.
    """
    if not (folder / INDEX).is_file():
        return _read_file(folder / SINGLE) if (folder / SINGLE).is_file() else _nothing(folder)
    if (folder / SINGLE).is_file():
        raise ValueError(f"{folder}: holds both {SINGLE} and {INDEX}; must be one of them")
    index = read_object(folder / INDEX)
    where = index.get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{folder / INDEX}: weight_map = {where!r}: must name the file of every tensor")
    tensors: dict[str, Tensor] = {}
    for name in sorted(map(str, set(where.values()))):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: weight_map names {name!r}; must be a .safetensors file beside it")
        shard = _read_file(folder / name)
        same_names({key for key, file in where.items() if file == name}, set(shard), f"{folder / name}")
        tensors |= shard
    total, size = index.get("metadata", {}).get("total_size"), sum(map(_size, tensors.values()))
    if total not in (None, size):
        raise ValueError(f"{folder / INDEX}: total_size = {total}: the shards hold {size} bytes")
    return tensors


def write_weights(folder: Path, tensors: Mapping[str, Tensor], max_shard_bytes: int | None = None) -> None:
    """Writes one file, or shards of at most `max_shard_bytes` (a larger tensor has one of its own) in the given order.

    Raises:
        ValueError: `max_shard_bytes` < 1.
    """
    shards = _shards(tensors, max_shard_bytes)
    names = [SINGLE] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in count(shards)]
    for name, keys in zip(names, shards, strict=True):
        save_file({key: tensors[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        content = {"metadata": {"total_size": sum(map(_size, tensors.values()))}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of all tensors, in the order of their names; hexadecimal."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()


def same_names(want: set[str], got: set[str], where: str) -> None:
    """Raises: ValueError naming the first tensor that is missing or should not be there."""
    for problem, names in (("lacks the tensor", want - got), ("has an unknown tensor", got - want)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(f"{where}: {problem} {min(names)}{more}")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and nesting without end
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a JSON object, holds a {type(content).__name__}")
    return content


def count(items: list[Any]) -> range:
    return range(1, len(items) + 1)


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, but the index names it")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({str(error).splitlines()[0]})") from None


def _nothing(folder: Path) -> dict[str, Tensor]:
    pickled = sorted(path.name for path in folder.glob("*") if path.suffix in PICKLED)
    if pickled:
        raise ValueError(f"{folder / pickled[0]}: pickled weights may run code and are not read; must be safetensors")
    raise FileNotFoundError(f"{folder}: has neither {SINGLE} nor {INDEX}")


def _shards(tensors: Mapping[str, Tensor], limit: int | None) -> list[list[str]]:
    if limit is None:
        return [list(tensors)]
    if limit < 1:
        raise ValueError(f"max_shard_bytes = {limit}: must be an integer ≥ 1")
    shards: list[list[str]] = [[]]
    room = limit
    for name, tensor in tensors.items():
        size = _size(tensor)
        if shards[-1] and size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
