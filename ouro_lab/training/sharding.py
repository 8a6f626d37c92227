"""FSDP2 through Lightning: weights, gradients and AdamW's moments in shards, one per rank.

A block of a looped model is used T times in a step, so with `reshard_after_forward` it is gathered T times forward and
T times backward (`compute.communication` counts that). Its gradient is summed over ranks once, after its first loop's
backward pass: until then autograd adds the loops', whole, in the dtype that the block was gathered in.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from ouro_lab.training.sharded_checkpoint import load_into


@dataclass(frozen=True)
class FSDP:
    """`trainer.strategy` of sharded training.

    reshard_after_forward: let go of a block's gathered weights after each of its uses; false gathers them once per
    forward pass and holds them all until the backward pass has used them. gather_bf16: under bf16-mixed, gather blocks
    in bf16. That halves the volume and spares the copy of each weight that autocast keeps per loop, but the loops'
    gradients are then added in bf16, which no other strategy does. sharded_checkpoints: each rank writes its own part;
    false gathers everything on rank 0, which writes one file.
    """

    reshard_after_forward: bool = True
    gather_bf16: bool = False
    sharded_checkpoints: bool = True

    def __post_init__(self) -> None:
        for name in ("reshard_after_forward", "gather_bf16", "sharded_checkpoints"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ValueError(f"trainer.strategy.{name} = {value!r}: must be true or false")

    def build(self, world: int) -> "FSDPStrategy":
        """world: ranks in all, each of which holds one shard."""
        return FSDPStrategy(self, world)


class FSDPStrategy(ModelParallelStrategy):
    """Lightning's strategy with this project's way to wrap a module and to write shards."""

    def __init__(self, options: FSDP, world: int) -> None:
        super().__init__(
            data_parallel_size=world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=options.sharded_checkpoints,
        )
        self.options = options

    def shard(self, module: nn.Module) -> None:
        if not is_sharded(module):  # as it is for validation or test after training
            narrow = self.options.gather_bf16 and self.precision_plugin.precision == "bf16-mixed"
            shard(module, self.device_mesh["data_parallel"], self.options.reshard_after_forward, narrow)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Shards are written beside the target, which is renamed into place once all ranks are done."""
        if not self.options.sharded_checkpoints:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        target = Path(self.broadcast(filepath))
        beside = target.with_name(f".{target.name}.partial")
        if self.global_rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
        self.barrier()
        super().save_checkpoint(checkpoint, beside, storage_options)
        self.barrier()
        if self.global_rank == 0:
            _sync(beside)
            _remove(target)
            beside.rename(target)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if path.is_dir():
            return load_into(self.lightning_module, self.optimizers, path)
        return super().load_checkpoint(path, weights_only)


def shard(module: nn.Module, mesh: DeviceMesh, reshard: bool, narrow: bool) -> None:
    """Every layer of `module.backbone` is a unit; what is outside of them one more, gathered once per step.

    Embedding, head, final norm and gate are read by the losses too, outside of any block's forward.
    """
    dtype = torch.bfloat16 if narrow else None
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in getattr(module.backbone, "layers", []):
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    fully_shard(module, mesh=mesh)
    for step in ("training_step", "validation_step"):  # a test step calls the latter
        register_fsdp_forward_method(module, step)


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, sharded or not, by name, gathered on the CPU of rank 0; empty on other ranks."""
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def _sync(folder: Path) -> None:
    """The shards themselves are synced as they are written."""
    for path in (folder / "meta.pt", folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
