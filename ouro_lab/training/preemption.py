"""What a scheduler's signal does to a run: a checkpoint after the step that is under way, on all ranks, then an end."""

import signal
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

# SIGTERM: the run is to end (preempted, cancelled). SIGUSR2: its time is up, and submitit will queue it again. A later
# one of these, told to any rank, wins on all.
SIGNALS = (None, signal.SIGTERM, signal.SIGUSR2)


class Preemption(Callback):
    """Ends training at the end of an optimiser step, with a checkpoint, once any rank got SIGTERM or SIGUSR2.

    Lightning's own handler broadcasts from inside the signal, in the midst of whatever collective the step is in, and
    Lightning raises between micro-batches too, where a checkpoint would lose gradients; so this takes its place. Ranks
    agree by one reduction of a number per step. A step that a validation follows, or nothing, is not ended so: what
    follows it writes a checkpoint anyway. Lightning puts the handlers back that it found.
    """

    def __init__(self) -> None:
        self.told = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.told = 0
        for number in SIGNALS[1:]:
            signal.signal(number, self._note)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        each, step = trainer.accumulate_grad_batches, trainer.global_step
        if (batch_idx + 1) % each or step * each % trainer.val_check_batch == 0 or step >= trainer.max_steps:
            return
        told = self.told
        if trainer.world_size > 1:
            vote = torch.tensor(told, device=trainer.strategy.root_device)
            told = int(trainer.strategy.reduce(vote, reduce_op="max"))
        if not told:
            return
        checkpoints = trainer.checkpoint_callback
        if isinstance(checkpoints, ModelCheckpoint):
            checkpoints.on_validation_end(trainer, module)  # writes one, and deletes the oldest
        raise SIGTERMException(128 + SIGNALS[told])  # as a shell has it, of a process that a signal ended

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.told = max(self.told, SIGNALS.index(signal.Signals(number)))
