"""The LightningModule: a backbone, an objective and an optimiser. It knows no study and no task."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchmetrics import MeanMetric

from ouro_lab.objectives import IGNORE, token_cross_entropy, with_exit_probability
from ouro_lab.training.optim import AdamW, carry

Batch = Mapping[str, Tensor]
Metrics = dict[str, float]
AVERAGES = "averages"  # a checkpoint's key


class Objective(Protocol):
    needs_gate: bool
    trains: str  # all, or gate: the exit gate alone

    def supervised_loops(self, loops: int) -> int: ...

    def __call__(
        self, states: Iterator, head_weight: Tensor, targets: Tensor, denominator: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...


class GateObjective(Objective, Protocol):
    def token_loss(self, losses: Tensor, gate_logits: Tensor) -> Tensor: ...


class DivergedError(Exception):
    """Training met a non-finite loss or gradient: a datum, not a failure."""


class Averages:
    """Sums of scalars kept on the device between two logging points, so that no step waits for the host."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().float()
        self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counts[name] = self.counts.get(name, 0) + 1

    def drain(self, over_ranks: Callable[[Tensor], Tensor]) -> Metrics:
        """Means since the last drain, over ranks too; the one place that reads the device."""
        names = list(self.sums)
        if not names:
            return {}
        values = over_ranks(torch.stack([self.sums[name] / self.counts[name] for name in names]))
        self.sums.clear()
        self.counts.clear()
        return dict(zip(names, values.tolist(), strict=True))

    def state(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, int]]:
        """Sums (means over ranks) and counts since the last drain, for a checkpoint that falls between two of them."""
        return {name: (over_ranks(total).cpu(), self.counts[name]) for name, total in self.sums.items()}

    def restore(self, state: Mapping[str, tuple[Tensor, int]], device: torch.device) -> None:
        self.sums = {name: total.to(device) for name, (total, _) in state.items()}
        self.counts = {name: count for name, (_, count) in state.items()}


class LoopedModule(L.LightningModule):
    """Trains any backbone of docs/design.md's contract with any objective.

    metrics: makes the torchmetrics metric of one evaluation; updated with (batch, token losses [T, B, S], correct
    [T, B, S]). steps: optimiser steps of the whole run, which the schedule needs. optim: None where nothing is trained.
    moments: of an earlier training's optimiser, by the backbone's parameter names, to go on with.

    Of an objective that trains the gate alone every other parameter is frozen: autograd then keeps nothing of the
    trunk, and the optimiser has the gate's two tensors.
    """

    def __init__(
        self,
        backbone: nn.Module,
        objective: Objective,
        optim: AdamW | None,
        metrics: nn.Module,
        steps: int,
        moments: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.gate_alone = objective.trains == "gate"
        if self.gate_alone:
            freeze_trunk(backbone)
        self.backbone = backbone
        self.objective = objective
        self.optim = optim
        self.steps = steps
        self.moments = {f"backbone.{name}": state for name, state in (moments or {}).items()}
        self.averages = Averages()
        self.evaluation = metrics
        self.exit_loop, self.gate_loss = MeanMetric(), MeanMetric()
        self.evaluated: Metrics = {}  # the last validation's or test's values
        self.grad_norm = torch.zeros(())  # of the last step, before clipping

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        states = self.backbone.loop_states(batch["tokens"], batch.get("documents"))
        loss, metrics = self.objective(states, self.backbone.head_weight, batch["targets"], self._denominator(batch))
        self.averages.add("train/loss", loss)
        for name, value in metrics.items():
            self.averages.add(f"train/{name}", value)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        losses, correct, gates = [], [], []
        depth: Tensor | float = 0.0
        states = self.backbone.loop_states(batch["tokens"], batch.get("documents"))
        gated = self.objective.needs_gate
        for loop, (state, log_p) in enumerate(_with_depth(states, gated), start=1):
            loss, hit = self._read_out(state.hidden, batch["targets"])
            losses.append(loss)
            correct.append(hit)
            gates.append(state.gate_logit)
            depth = depth + loop * log_p.exp() if gated else depth
        self.evaluation.update(batch, torch.stack(losses), torch.stack(correct))
        valid = batch["targets"] != IGNORE
        if gated:
            self.exit_loop.update(depth[valid])
        if self.gate_alone:
            objective = cast(GateObjective, self.objective)
            self.gate_loss.update(objective.token_loss(torch.stack(losses), torch.stack(gates))[valid])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        self.evaluated = {name: float(value) for name, value in self.evaluation.compute().items()}
        self.evaluation.reset()
        if self.objective.needs_gate:
            self.evaluated["exit_loop_mean"] = float(self.exit_loop.compute())
            self.exit_loop.reset()
        if self.gate_alone:  # the losses of the loops stand still: this is what a rate can be chosen by
            self.evaluated["gate_loss"] = float(self.gate_loss.compute())
            self.gate_loss.reset()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def configure_optimizers(self) -> dict[str, Any]:
        if self.optim is None:
            raise ValueError("optim: missing; a run that trains needs one")
        optimiser, scheduler = self.optim.build(self, self.steps)
        carry(self.moments, optimiser)  # a checkpoint of this run replaces them afterwards
        self.moments = {}
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clip, with the norm and the clipped fraction kept."""
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_(self.parameters(), limit)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.grad_norm = norm.detach()
        self.averages.add("optim/grad_norm", norm)
        self.averages.add("optim/clipped_fraction", norm > limit)

    def configure_model(self) -> None:
        """Cuts the module into shards where the strategy has a way to; Lightning asks before it makes optimisers."""
        shard = getattr(self.trainer.strategy, "shard", None)
        if shard is not None:
            shard(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[AVERAGES] = self.averages.state(self._over_ranks)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.averages.restore(checkpoint.get(AVERAGES, {}), self.device)

    def drain(self) -> Metrics:
        """Averages since the last call, the same on every rank."""
        return self.averages.drain(self._over_ranks)

    def _over_ranks(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="mean")

    def _read_out(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Token losses [B, S] and whether the most likely token is the target [B, S]."""
        weight = self.backbone.head_weight
        loss = token_cross_entropy(hidden, weight, targets)
        rows = max(128, (1 << 22) // weight.shape[0])
        chunks = hidden.reshape(-1, hidden.shape[-1]).split(rows)
        best = torch.cat([nn.functional.linear(chunk, weight).argmax(-1) for chunk in chunks])
        return loss, best.view(targets.shape) == targets

    def _denominator(self, batch: Batch) -> Tensor | None:
        """The mean count of targets over ranks, so that averaged gradients are those of the global batch."""
        if self.trainer.world_size == 1:
            return None
        count = (batch["targets"] != IGNORE).sum().float()
        return self.trainer.strategy.reduce(count, reduce_op="mean").clamp_min(1)


def freeze_trunk(backbone: nn.Module) -> None:
    """Leaves only the exit gate's parameters to train.

    Raises:
        ValueError: the backbone has no `early_exit_gate`.
    """
    gate = getattr(backbone, "early_exit_gate", None)
    if gate is None:
        raise ValueError("objective: trains the exit gate alone, but the backbone has no early_exit_gate")
    backbone.requires_grad_(False)
    gate.requires_grad_(True)


def _with_depth(states: Iterator, gated: bool) -> Iterator:
    return with_exit_probability(states) if gated else ((state, None) for state in states)
