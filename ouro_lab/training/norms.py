"""Norms of gradients and of updates per block, at logging steps alone."""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from ouro_lab.training.module import LoopedModule

GRADIENT, UPDATE = "optim/grad_norm", "optim/update_norm"


def block_of(name: str) -> str:
    """The block of a backbone's parameter: `layers.3` of `layers.3.mlp.up.weight`, `head` of `head.weight`."""
    first, _, rest = name.partition(".")
    second = rest.partition(".")[0]
    return f"{first}.{second}" if second.isdigit() else first


def norms_by_block(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The 2-norm over all tensors of a block, as a scalar on their device."""
    blocks: dict[str, list[Tensor]] = {}
    for name, tensor in named:
        blocks.setdefault(block_of(name), []).append(tensor)
    return {block: torch.stack(_norms(tensors)).norm() for block, tensors in blocks.items()}


class BlockNorms(Callback):
    """Adds `optim/grad_norm/{block}` (before clipping) and `optim/update_norm/{block}` of every `every`-th step.

    The parameters are copied for that step alone; in all others nothing is computed. Goes before the recorder.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.before: list[tuple[str, nn.Parameter, Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: LoopedModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % self.every:
            return
        moving = [(name, value) for name, value in module.backbone.named_parameters() if value.grad is not None]
        self._add(module, GRADIENT, [(name, value.grad) for name, value in moving])
        self.before = [(name, value, value.detach().clone()) for name, value in moving]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LoopedModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.before:
            self._add(module, UPDATE, [(name, value.detach() - old) for name, value, old in self.before])
            self.before = []

    def _add(self, module: LoopedModule, prefix: str, named: list[tuple[str, Tensor]]) -> None:
        for block, norm in norms_by_block(named).items():
            module.averages.add(f"{prefix}/{block}", norm)


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Of each tensor, whole also where its parts lie on several ranks (a DTensor's norm is such a sum)."""
    found = torch._foreach_norm(tensors)
    return [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in found]
