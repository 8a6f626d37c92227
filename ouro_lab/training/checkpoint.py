"""Checkpoints that are either whole or absent, and that load without executing code."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor

BACKBONE = "backbone."


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, syncs, renames. Lightning's own goes through the temporary folder."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        with beside.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)

    def load_checkpoint(self, path: str | Path, map_location: Any | None = None, **_: Any) -> dict[str, Any]:
        return load(Path(path))


def load(path: Path) -> dict[str, Any]:
    """The checkpoint at `path`, tensors on the CPU.

    Raises:
        CheckpointError: missing, truncated, not a checkpoint, or one that needs code to unpickle.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path}: no such file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        message = f"checkpoint {path}: cannot be read ({reason}); delete it to continue without it"
        raise CheckpointError(message) from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"checkpoint {path}: has no 'state_dict'")
    return content


def backbone_weights(path: Path) -> dict[str, Tensor]:
    """The backbone's parameters by its own names."""
    state = load(path)["state_dict"]
    return {name.removeprefix(BACKBONE): value for name, value in state.items() if name.startswith(BACKBONE)}


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that loads; a corrupt one is named, set aside and the one before it is taken.

    Raises:
        CheckpointError: there are checkpoints and none of them loads.
    """
    found = sorted(folder.glob("step=*.ckpt"), key=step_of, reverse=True)
    errors = []
    for path in found:
        try:
            load(path)
        except CheckpointError as error:
            errors.append(error)
            print(f"warning: {error}", flush=True)
            continue
        for error_path in found[: len(errors)]:  # set aside, so that nothing takes it for the newest again
            error_path.rename(error_path.with_suffix(".corrupt"))
        return path
    if errors:
        raise errors[0]
    return None


def step_of(path: Path) -> int:
    return int(path.stem.split("=")[1])
