"""Checkpoints in shards, as torch.distributed.checkpoint writes them: checked, read as one, read at any world size.

That format pickles its index and all that is no tensor, and its own reader unpickles both without a check. Here an
index may name only the classes that torch writes into one, and the rest is read as any checkpoint of ours is.
"""

import io
import pickle
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

INDEX, REST = ".metadata", "meta.pt"
MODEL, OPTIMISER = "state_dict", "optimizer_"
# What an index of torch's is made of, besides dtypes.
INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata", "MetadataIndex", "StorageMeta", "ChunkStorageMetadata", "TensorStorageMetadata",
        "BytesStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}  # fmt: skip


def check(folder: Path) -> None:
    """Whether all shards are there, in full.

    Raises:
        ValueError: what is missing; also of an index that names a class which no index holds.
    """
    ends: dict[str, int] = {}
    for info in _index(folder).storage_data.values():
        ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in {**ends, REST: 1}.items():
        path = folder / name
        if path.parent != folder or not path.is_file() or path.stat().st_size < end:
            raise ValueError(f"its part {name} is missing or cut short")


def load(folder: Path) -> dict[str, Any]:
    """The checkpoint as it would lie in one file: `state_dict`, `optimizer_states` and what Lightning adds; on the CPU.

    Raises:
        ValueError: as `check`.
    """
    check(folder)
    index = _index(folder)
    flat: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        if isinstance(entry, TensorStorageMetadata)
        else None
        for name, entry in index.state_dict_metadata.items()
    }
    _fill(flat, folder, alone=True)
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        _put(nested, index.planner_data[name], value)
    optimisers = [nested[key] for key in sorted(nested) if key.startswith(OPTIMISER)]
    return _rest(folder) | {MODEL: nested[MODEL], "optimizer_states": [_numbered(state) for state in optimisers]}


def load_into(module: nn.Module, optimisers: Iterable[torch.optim.Optimizer], folder: Path) -> dict[str, Any]:
    """Each rank reads its own part into a sharded module and its optimisers; returns what Lightning added.

    Raises:
        ValueError: as `check`.
    """
    check(folder)
    weights = {MODEL: get_model_state_dict(module)}
    _fill(weights, folder)
    set_model_state_dict(module, weights[MODEL])
    for place, optimiser in enumerate(optimisers):
        # One at a time: asked for its state, an optimiser that has none yet makes it, as large as the model's.
        state = {f"{OPTIMISER}{place}": get_optimizer_state_dict(module, optimiser)}
        _fill(state, folder)
        set_optimizer_state_dict(module, optimiser, optim_state_dict=state[f"{OPTIMISER}{place}"])
    return _rest(folder)


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in INDEX_CLASSES.get(module, ()) or (module == "torch" and _is_dtype(name)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"its index names {module}.{name}")


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _index(Path(self.path))


class _Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        path = self.mappings[read_item.dest_index.fqn]
        _put(self.original_state_dict, path, torch.load(value, weights_only=True))


def _fill(state: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Reads what `state` names into it; with all ranks, unless `alone`."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(state, storage_reader=_Reader(folder), planner=_Planner(), no_dist=alone)
    except CheckpointException as error:  # which is no Exception
        causes = [cause for cause, _ in error.failures.values()]
        raise ValueError(str(causes[0])) from error


def _index(folder: Path) -> Metadata:
    try:
        with (folder / INDEX).open("rb") as file:
            return _Index(file).load()
    except FileNotFoundError:
        raise ValueError(f"its index {INDEX} is missing") from None


def _rest(folder: Path) -> dict[str, Any]:
    return torch.load(folder / REST, map_location="cpu", weights_only=True)


def _put(root: Any, path: tuple[str | int, ...], value: Any) -> None:
    """root[path₀][path₁]… = value; the containers on the way are made, lists where the next step is a number."""
    for step, following in zip(path, path[1:], strict=False):
        empty: Any = [] if isinstance(following, int) else {}
        if isinstance(step, int):
            root.extend([None] * (step + 1 - len(root)))
            root[step] = empty if root[step] is None else root[step]
        else:
            root.setdefault(step, empty)
        root = root[step]
    if isinstance(path[-1], int):
        root.extend([None] * (path[-1] + 1 - len(root)))
    root[path[-1]] = value


def _numbered(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state by parameter number, as it has itself, from one by parameter name."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def _is_dtype(name: str) -> bool:
    return isinstance(getattr(torch, name, None), torch.dtype)
