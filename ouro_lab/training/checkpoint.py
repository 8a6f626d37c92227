"""Checkpoints that are either whole or absent, and that load without executing code."""

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

from ouro_lab.training import sharded_checkpoint

BACKBONE = "backbone."


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames. Lightning's own goes through the temporary folder.

    Raises:
        OSError: one line; the target is as it was, and nothing is left beside it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(".step=*.ckpt.*"):  # by a process that was killed while it wrote
            left.unlink(missing_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target)
        except BaseException as error:
            beside.unlink(missing_ok=True)
            cause = _cannot_write(error)
            if cause is None:
                raise
            raise OSError(cause.errno, f"checkpoint {target.name} cannot be written ({cause.strerror})") from error

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, **_: Any) -> dict[str, Any]:
        return load(Path(path))


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, a file or a folder of shards, tensors on the CPU.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or one that needs code to unpickle.
    """
    content = _read(path, sharded_checkpoint.load if path.is_dir() else _one_file)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"checkpoint {path}: has no 'state_dict'")
    return content


def verify(path: Path) -> None:
    """Of shards the index and the sizes alone: each rank reads its own part later.

    Raises:
        CheckpointError: as `load`.
    """
    if path.is_dir():
        _read(path, sharded_checkpoint.check)
    else:
        load(path)


def _one_file(path: Path) -> Any:
    _refuse_compressed(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    if not path.exists():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        return read(path)
    except Exception as error:  # a damaged pickle may ask its reader for anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        message = f"checkpoint {path}: cannot be read ({reason}); delete it to continue without it"
        raise CheckpointError(message) from None


def _refuse_compressed(path: Path) -> None:
    """PyTorch stores its records as they are; it would also unpack ones of a gigabyte from a megabyte."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("holds compressed records")


def _cannot_write(error: BaseException | None) -> OSError | None:
    """PyTorch's writer hides why a file could not be written behind an error of its own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def backbone_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's parameters by its own names."""
    state = load(path)["state_dict"]
    return {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}


def backbone_moments(path: Path) -> dict[str, dict[str, Tensor]]:
    """The optimiser's state of each of the backbone's parameters, by its own names; empty if none is kept by name."""
    found = {}
    for state in load(path).get("optimizer_states", [])[:1]:
        for group in state["param_groups"]:
            for name, index in zip(group.get("param_names", []), group["params"], strict=False):
                if name.startswith(BACKBONE) and index in state["state"]:
                    found[name.removeprefix(BACKBONE)] = state["state"][index]
    return found


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that loads; a corrupt one is named, set aside and the one before it is taken.

    Raises:
        CheckpointError: there are checkpoints and none of them loads.
    """
    found = sorted(folder.glob("step=*.ckpt"), key=step_of, reverse=True)
    errors = []
    for path in found:
        try:
            verify(path)
        except CheckpointError as error:
            errors.append(error)
            print(f"warning: {error}", flush=True)
            continue
        for error_path in found[: len(errors)]:  # set aside, so that nothing takes it for the newest again
            with contextlib.suppress(FileNotFoundError):  # another rank was first
                error_path.rename(error_path.with_suffix(".corrupt"))
        return path
    if errors:
        raise errors[0]
    return None


def step_of(path: Path) -> int:
    return int(path.stem.split("=")[1])
