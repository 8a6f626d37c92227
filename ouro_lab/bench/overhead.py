"""What a run costs beyond its training step: Lightning, loader, records and checkpoints against a bare loop."""

import io
import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from ouro_lab import records
from ouro_lab.bench.table import Row
from ouro_lab.bench.timing import Effort, seconds
from ouro_lab.session import Session
from ouro_lab.study import Study
from ouro_lab.training import execution

WARM, STEPS = 3, 25  # the timed steps hold one logging point, as any 25 of a run do
VAL_EVERY = 250  # steps from one checkpoint to the next, by default
BOUND = 1.03


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ends.append(time.perf_counter())


def overhead(study: str, effort: Effort) -> Row:
    """Both sides take the same steps of the study's looped arm, each in blocks of `STEPS`, in turn.

    The checkpoint's time is spread over the steps between two of them. Validation is the same work on both sides and
    left out.
    """
    blocks = [_block(study, run_first=bool(turn % 2)) for turn in range(effort.rounds)]
    every = Study(study, ["study.lr=null"]).config.trainer.get("val_every", VAL_EVERY)
    samples = {side: [block[side] for block in blocks] for side in ("run", "bare", "checkpoint")}
    saved = median(samples["checkpoint"]) / every
    ratios = [(run + saved) / bare for run, bare in zip(samples["run"], samples["bare"], strict=True)]
    what = f"a step of a {study} run, with loader, records and its share of a checkpoint, against the bare loop"
    run, bare = median(samples["run"]) + saved, median(samples["bare"])
    return Row(f"overhead_{study}", what, median(ratios), BOUND, True, run, bare, "s", samples)


@contextmanager
def own_runs() -> Generator[Path]:
    """A folder of its own for run directories."""
    before = os.environ.get("OURO_RUNS")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OURO_RUNS"] = folder
        try:
            yield Path(folder)
        finally:
            os.environ.pop("OURO_RUNS") if before is None else os.environ.update(OURO_RUNS=before)


def _block(study: str, run_first: bool) -> dict[str, float]:
    """Mean seconds of a step on both sides, and the seconds of a checkpoint.

    Neither side meets compiled code of the other: a second graph of the same block would make every look-up longer.
    """
    found: dict[str, float] = {}
    for side in ("run", "bare") if run_first else ("bare", "run"):
        torch._dynamo.reset()
        with own_runs():  # anew for every block: a run's rows are written once
            session = _session(study)
            found[side] = mean((_whole if side == "run" else _bare)(session))
            if side == "run":
                found["checkpoint"] = _save(session)
    return found


def _session(study: str) -> Session:
    """Compiled as a run of full length would be: against the faster step, the same overhead weighs more."""
    compiled = f"trainer.compile={str(execution.compiler_works()).lower()}"
    overrides = ["study.lr=null", f"budget={{steps: {WARM + STEPS}, tokens: null}}", compiled]
    run = Study(study, overrides).run("looped", 1e-3, 0)
    records.begin(run.directory, run.identity(), run.config)
    return Session(run)


def _bare(session: Session) -> list[float]:
    """The same step without Lightning, loader or records; the batches are made beforehand."""
    module, data = session.module, session.data
    data.prepare_data()
    batches = [_tensors(data, step) for step in range(WARM + STEPS)]
    optimiser, scheduler = module.optim.build(module, WARM + STEPS)
    mixed = session.execution.precision == "bf16-mixed"
    if session.execution.compiled:
        execution.compile_step(module.backbone)
    ends = []
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            states = module.backbone.loop_states(batch["tokens"], batch.get("documents"))
            loss, _ = module.objective(states, module.backbone.head_weight, batch["targets"])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        scheduler.step()
        ends.append(time.perf_counter())
    return _steps(ends)


def _tensors(data: Any, step: int) -> dict[str, torch.Tensor]:
    indices = torch.arange(step * data.batch_size, (step + 1) * data.batch_size).numpy()
    return {key: torch.from_numpy(array) for key, array in data.read_train(indices).items()}


def _whole(session: Session) -> list[float]:
    clock = Clock()
    session.trainer.callbacks.append(clock)
    session.trainer.limit_val_batches = 0
    with redirect_stdout(io.StringIO()):  # its lines of progress would stand between ours
        session.trainer.fit(session.module, session.data)
    return _steps(clock.ends)


def _save(session: Session) -> float:
    path = Path(session.run.directory) / "checkpoints" / "step=0.ckpt"
    return seconds(lambda: session.trainer.save_checkpoint(path))


def _steps(ends: list[float]) -> list[float]:
    return [after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]
