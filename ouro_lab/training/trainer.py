"""Lightning's Trainer with this project's checkpoints and files. Parallelism, precision, clipping are Lightning's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.environments import SLURMEnvironment

from ouro_lab.training.checkpoint import AtomicCheckpointIO
from ouro_lab.training.execution import CompileStep
from ouro_lab.training.sharding import FSDP
from ouro_lab.training.watch import check_policy


def build(
    *,
    accelerator: str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    strategy: str | FSDP = "auto",
    precision: str = "32-true",
    compile: bool = False,
    accumulate: int = 1,
    clip: float | None = 1.0,
    val_every: int = 250,
    val_first: bool = False,
    log_every: int = 25,
    on_spike: str = "warn",
    run_dir: Path,
    steps: int,
    callbacks: list[Callback],
) -> L.Trainer:
    """A trainer for `steps` optimiser steps that validates and checkpoints every `val_every` of them, two kept.

    steps: 0 where nothing is trained.
    accumulate: micro-batches per step; the global batch is the data's `batch_size` whatever this is.
    strategy: a name of Lightning's, or FSDP. precision, compile: `auto` of a config is settled before, in
    `execution.settle`. clip: largest gradient norm. log_every: steps per row of metrics (used by the recorder).
    val_first: validate at step 0 too. on_spike: warn, stop or rollback (used by the watch).
    """
    check_arguments({"accumulate": accumulate, "val_every": val_every, "log_every": log_every, "on_spike": on_spike})
    checkpoints = ModelCheckpoint(
        dirpath=run_dir / "checkpoints",
        filename="step={step:08d}",
        auto_insert_metric_name=False,
        monitor="step",
        mode="max",
        save_top_k=2,
        every_n_epochs=1,
        save_on_train_epoch_end=False,  # after each validation, whose row the checkpoint then covers
    )
    return L.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=strategy if isinstance(strategy, str) else strategy.build(devices * num_nodes),
        precision=precision,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=max(1, min(val_every, steps)) * accumulate,
        num_sanity_val_steps=-1 if val_first else 0,  # Lightning leaves it out where a run is resumed
        callbacks=[*callbacks, *([CompileStep()] if compile else []), checkpoints],
        plugins=[AtomicCheckpointIO(), *_cluster()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,  # the datamodule slices the global batch itself
        default_root_dir=run_dir,
    )


def _cluster() -> list[SLURMEnvironment]:
    """Lightning's own requeue is off: submitit has one, and it knows how often a job may come back."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Of `build`'s arguments those that Lightning does not check; asked before a study starts too, where none is built.

    Raises:
        ValueError: a count of steps that is no integer ≥ 1, or an unknown policy.
    """
    check_policy(arguments.get("on_spike", "warn"))
    for name in ("accumulate", "val_every", "log_every"):
        value = arguments.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"trainer.{name} = {value!r}: must be an integer ≥ 1")
