"""Watches loss and gradient norm of every step, keeps the batch of a bad one, and stops or rolls back where asked."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save
from torch import Tensor

from ouro_lab import alarms
from ouro_lab.alarms import Alarm, RollbackError
from ouro_lab.metrics_log import replace_file
from ouro_lab.training.module import Batch, DivergedError, LoopedModule
from ouro_lab.training.spikes import Finding, SpikeRule

POLICIES = ("warn", "stop", "rollback")
SAVED = 20  # batches that a run keeps
ROLLBACKS = 10  # of a run; one that needs more diverges
FOLDER = "spikes"

# Optimiser step from 0 → the global batch that it reads, and the first and last of its samples if they are known.
Origin = Callable[[int], tuple[int, list[int] | None]]


def check_policy(policy: Any) -> None:
    """Raises: ValueError naming what is valid."""
    if policy not in POLICIES:
        raise ValueError(f"trainer.on_spike = {policy!r}: must be one of {', '.join(POLICIES)}")


@dataclass
class Reading:
    """A step's loss and gradient norm [2], perhaps still on their way from the device, and what it was made of."""

    step: int
    batches: list[Batch] = field(default_factory=list)
    random: dict[str, Tensor] = field(default_factory=dict)
    loss: Tensor | float = 0.0
    values: Tensor | None = None
    ready: Any = None


class Watch(Callback):
    """Judges each step by `SpikeRule`; goes after the recorder, whose row then holds the bad step.

    policy: what follows a spike: `warn`; `stop`, the run ends as diverged; `rollback`, it goes back to its newest
    checkpoint and leaves the batch out. A value that is not finite stops the run unless it rolls back.

    On a GPU a step is judged when the next one ends, so that no step waits for the host, and all are judged before a
    checkpoint is written: every checkpoint is older than the first step that was found bad.
    """

    def __init__(self, directory: Path, policy: str, origin: Origin) -> None:
        check_policy(policy)
        self.directory, self.policy, self.origin = directory, policy, origin
        self.rule = SpikeRule()
        self.current = Reading(0)
        self.pending: list[Reading] = []

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rule.load(state_dict)

    def on_train_batch_start(self, trainer: L.Trainer, module: LoopedModule, batch: Batch, batch_idx: int) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.current = Reading(trainer.global_step + 1, random=random_state())
        self.current.batches.append(batch)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LoopedModule, outputs: Mapping[str, Tensor], batch: Batch, batch_idx: int
    ) -> None:
        self.current.loss = self.current.loss + outputs["loss"].detach()  # Lightning divided it by the micro-batches
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._take(trainer, module, self.current)
            self._judge(trainer, keep=1 if self.current.ready is not None else 0)

    def on_validation_end(self, trainer: L.Trainer, module: LoopedModule) -> None:
        self._judge(trainer)

    def on_train_end(self, trainer: L.Trainer, module: LoopedModule) -> None:
        self._judge(trainer)

    def _take(self, trainer: L.Trainer, module: LoopedModule, reading: Reading) -> None:
        values = torch.stack([torch.as_tensor(reading.loss).float(), module.grad_norm.float()])
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values, reduce_op="mean")
        reading.values = values.to("cpu", non_blocking=True)
        if values.is_cuda:
            reading.ready = torch.cuda.Event()
            reading.ready.record()
        self.pending.append(reading)

    def _judge(self, trainer: L.Trainer, keep: int = 0) -> None:
        while len(self.pending) > keep:
            reading = self.pending.pop(0)
            if reading.ready is not None:
                reading.ready.synchronize()
            found = self.rule(*reading.values.tolist())
            if found:
                self._alarm(trainer, reading, found)

    def _alarm(self, trainer: L.Trainer, reading: Reading, found: list[Finding]) -> None:
        known = alarms.read(self.directory)
        action = self._action(found, sum(alarm.action == "rollback" for alarm in known))
        batch, samples = self.origin(reading.step - 1)
        name = f"{FOLDER}/step={reading.step:08d}-batch={batch}"
        kept = {alarm.saved for alarm in known} - {None}
        saved = name if name in kept or len(kept) < SAVED else None
        if saved:
            part = f"-rank{trainer.global_rank}" if trainer.world_size > 1 else ""
            save_batch(self.directory / f"{name}{part}.safetensors", reading)
        raised = [
            Alarm(reading.step, batch, samples, each.what, each.value, each.limit, action, saved) for each in found
        ]
        if trainer.is_global_zero:
            for alarm in raised:
                alarms.add(self.directory, alarm)
                print(f"alarm: {alarm.line}", flush=True)
        if action == "stop":
            raise DivergedError(f"{found[0].what} = {found[0].value:.6g} at step {reading.step} of {trainer.max_steps}")
        if action == "rollback":
            raise RollbackError(
                f"{found[0].what} = {found[0].value:.6g} at step {reading.step}; batch {batch} is skipped"
            )

    def _action(self, found: list[Finding], rollbacks: int) -> str:
        if self.policy == "rollback":
            return "rollback" if rollbacks < ROLLBACKS else "stop"
        return "stop" if any(each.limit is None for each in found) else self.policy


def random_state() -> dict[str, Tensor]:
    """Of torch's generators, CPU and current GPU: what a backbone of one's own may draw from."""
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {})


def save_batch(path: Path, reading: Reading) -> None:
    """The step's micro-batches as `{micro-batch}/{key}`, and `random/{device}` as it was before the step."""
    tensors = {f"{micro}/{key}": value for micro, batch in enumerate(reading.batches) for key, value in batch.items()}
    tensors |= {f"random/{device}": state for device, state in reading.random.items()}
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, save(whole, metadata={"step": str(reading.step)}))
