"""What a run costs beyond its training step: Lightning, loader, records and checkpoints against a bare loop.

    python -m ouro_lab.bench [STUDY …]

Both sides take the same steps of the same model in this process, in turn; the ratio is that of their medians.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from ouro_lab import records
from ouro_lab.run import Session
from ouro_lab.study import Run, Study

WARM, STEPS, ROUNDS = 3, 20, 5


class Clock(Callback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.ends.append(time.perf_counter())


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    print("study    bare step  run's step  checkpoint  per steps  ratio")
    for name in names or ["p_hop", "text"]:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["OURO_RUNS"] = folder
            print(_line(name, overhead(name)), flush=True)
    return 0


def overhead(name: str) -> dict[str, float]:
    """Median seconds per step of the bare loop and of the run, the checkpoint's seconds, and their ratio."""
    bare, whole, saves = [], [], []
    for _ in range(ROUNDS):
        bare += _bare(_session(name))
        session = _session(name)
        whole += _whole(session)
        saves.append(_save(session))
        every = session.run.config["trainer"].get("val_every", 250)
    step, full, save = median(bare), median(whole), median(saves)
    return {"bare": step, "run": full, "checkpoint": save, "every": every, "ratio": (full + save / every) / step}


def _session(name: str) -> Session:
    run = _run(name)
    records.begin(run.directory, run.identity(), run.config)
    return Session(run)


def _run(name: str) -> Run:
    overrides = ["study.lr=null", f"budget={{steps: {WARM + STEPS}, tokens: null}}"]
    return Study(name, overrides).run("looped", 1e-3, 0)


def _bare(session: Session) -> list[float]:
    """The same step without Lightning, loader or records; the batches are made beforehand."""
    module, data = session.module, session.data
    data.prepare_data()
    batches = [_tensors(data, step) for step in range(WARM + STEPS)]
    optimiser, scheduler = module.optim.build(module, WARM + STEPS)
    mixed = session.run.config["trainer"].get("precision", "32-true") == "bf16-mixed"
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
    session.trainer.fit(session.module, session.data)
    return _steps(clock.ends)


def _save(session: Session) -> float:
    start = time.perf_counter()
    session.trainer.save_checkpoint(Path(session.run.directory) / "checkpoints" / "step=0.ckpt")
    return time.perf_counter() - start


def _steps(ends: list[float]) -> list[float]:
    return [after - before for before, after in zip(ends[WARM - 1 :], ends[WARM:], strict=False)]


def _line(name: str, found: dict[str, float]) -> str:
    times = "  ".join(f"{1e3 * found[key]:7.1f} ms" for key in ("bare", "run", "checkpoint"))
    return f"{name:8s} {times}  {found['every']:9.0f}  {found['ratio']:.3f}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
