"""What a run writes while it trains: one row of metrics per logging point, one line of progress."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from ouro_lab import records
from ouro_lab.compute.hardware import peak_flops
from ouro_lab.records import MetricsLog
from ouro_lab.training.module import DivergedError, LoopedModule


class Recorder(Callback):
    """Appends rows to metrics.jsonl on rank 0 and ends the run as diverged at a non-finite validation loss.

    tokens: global ones that the first so many steps read; flops_per_token: analytic training FLOPs (compute.cost).
    """

    def __init__(self, log: MetricsLog, every: int, tokens: Callable[[int], int], flops_per_token: float) -> None:
        self.rows = log  # not `log`: Lightning gives every callback one of its own
        self.every = every
        self.tokens = tokens
        self.flops_per_token = flops_per_token
        self.mark: tuple[float, int] | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._restart_clock(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: LoopedModule) -> None:
        row = {f"val/{name}": value for name, value in module.evaluated.items()}
        self._write(trainer, row)
        _check_finite(trainer, row.get("val/loss", 0.0))
        self._restart_clock(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LoopedModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0 or not self._due(trainer):
            return
        row = module.drain()
        row["optim/lr"] = module.optimizers().param_groups[0]["lr"]
        self._write(trainer, row | self._speed(trainer) | self._totals(trainer))
        self._restart_clock(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        """Every `every` steps, and wherever a checkpoint may follow: so no checkpoint falls between two rows."""
        step = trainer.global_step
        validated = step * trainer.accumulate_grad_batches % trainer.val_check_batch == 0
        return step % self.every == 0 or validated or step == trainer.max_steps

    def _totals(self, trainer: L.Trainer) -> dict[str, float]:
        tokens = self.tokens(trainer.global_step)
        return {"total/tokens": tokens, "total/flops": tokens * self.flops_per_token}

    def _speed(self, trainer: L.Trainer) -> dict[str, float]:
        if self.mark is None or trainer.global_step == self.mark[1]:
            return {}
        seconds = time.perf_counter() - self.mark[0]
        rate = (self.tokens(trainer.global_step) - self.tokens(self.mark[1])) / seconds
        step_seconds = seconds / (trainer.global_step - self.mark[1])
        speed = {"perf/step_seconds": step_seconds, "perf/tokens_per_second": rate}
        speed["perf/seconds_left"] = step_seconds * (trainer.max_steps - trainer.global_step)
        peak = peak_flops(trainer.strategy.root_device)
        if peak:
            speed["perf/mfu"] = self.flops_per_token * rate / (peak * trainer.world_size)
        return speed

    def _write(self, trainer: L.Trainer, row: dict[str, float]) -> None:
        if trainer.is_global_zero:
            self.rows.append(trainer.global_step, row)

    def _restart_clock(self, trainer: L.Trainer) -> None:
        self.mark = (time.perf_counter(), trainer.global_step)


def _check_finite(trainer: L.Trainer, loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"val/loss = {loss} at step {trainer.global_step} of {trainer.max_steps}")


class Settled(Callback):
    """Writes down which attention was measured to be fastest, so that a resumed run takes the same, to the last bit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def setup(self, trainer: L.Trainer, module: LoopedModule, stage: str) -> None:
        if hasattr(module.backbone, "settled"):
            module.backbone.settled.update(records.read_note(self.directory).get("attention", {}))

    def on_validation_end(self, trainer: L.Trainer, module: LoopedModule) -> None:
        settled = getattr(module.backbone, "settled", {})
        if trainer.is_global_zero and settled != records.read_note(self.directory).get("attention", {}):
            records.note(self.directory, {"attention": dict(settled)})


class Progress(Callback):
    """One line: step, loss, rate, time left. Redrawn on a terminal, a line every `seconds` elsewhere."""

    def __init__(self, seconds: float = 20.0) -> None:
        self.seconds = seconds
        self.start: tuple[float, int] | None = None
        self.shown = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.start = (time.perf_counter(), trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: LoopedModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        interval = 0.5 if sys.stdout.isatty() else self.seconds
        last = trainer.global_step >= trainer.max_steps
        if not trainer.is_global_zero or (now - self.shown < interval and not last):
            return
        self.shown = now
        began, first = self.start
        rate = (trainer.global_step - first) / max(now - began, 1e-9)
        left = (trainer.max_steps - trainer.global_step) / rate if rate else float("nan")
        line = f"step {trainer.global_step}/{trainer.max_steps}  {rate:.1f} steps/s  {clock(left)} left"
        end = "\n" if last or not sys.stdout.isatty() else ""
        print(("\r" if sys.stdout.isatty() else "") + line, end=end, flush=True)


def clock(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s`, `8 s`."""
    if not math.isfinite(seconds):
        return "?"
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds >= 60 else f"{seconds} s"
