"""A run's directory that grows as a real one does, and what a store holds of it."""

import shutil
import sqlite3
from pathlib import Path
from typing import Any

from ouro_lab import records, tracking
from ouro_lab.tracking import Store

ROOT = Path(tracking.__file__).parents[1]
ID = "looped-0.002-0-abcd1234"
CONFIG = {
    "backbone": {"_target_": "ouro_lab.model.looped", "layers": 2, "loops": 3, "width": 64, "heads": 4},
    "data": {"_target_": "ouro_lab.data.PHop", "length": 48, "batch_size": 64},
    "objective": {"_target_": "ouro_lab.objectives.LastLoop"},
    "optim": {"_target_": "ouro_lab.training.optim.AdamW", "lr": 2e-3},
    "trainer": {"precision": "32-true"},
    "seed": 0,
}
STUDY = {
    "question": "Does looping give depth?",
    "claim": ["S03"],
    "hash": "11112222",
    "arms": {"looped": {"overrides": ["backbone=looped", "+backbone.loops=3"], "shape": "2⊗3"}},
}


class FakeRun:
    """A run's directory that grows as a real one does: rows, then the checkpoint that covers them."""

    def __init__(self, root: Path, steps: int = 40, every: int = 10) -> None:
        self.root, self.steps, self.every = root, steps, every
        self.directory = root / "p_hop" / ID
        self.log = records.MetricsLog(self.directory / "metrics.jsonl")
        self.begin()

    def begin(self) -> None:
        identity = {"id": ID, "study": "p_hop", "arm": "looped", "lr": 2e-3, "seed": 0, "hash": "abcd1234"}
        records.write_json(self.directory.parent / "study.json", STUDY)
        records.begin(self.directory, identity | {"phase": "main", "overrides": []}, CONFIG)
        cost = {"parameters": 96000, "steps": self.steps, "tokens": 1000, "training_flops": 1e9}
        records.note(self.directory, {"cost": cost})

    def train(self, first: int, last: int) -> None:
        for step in range(first, last + 1):
            self.log.append(step, {"train/loss": 1 / step, "total/tokens": step * 25, "total/flops": step * 2.5e7})
            if step % self.every == 0:
                self.log.append(step, {"val/loss": 2 / step})
                self.checkpoint(step)

    def checkpoint(self, step: int) -> None:
        folder = self.directory / "checkpoints"
        folder.mkdir(exist_ok=True)
        (folder / f"step={step:08d}.ckpt").touch()

    def end(self, state: str = "done") -> None:
        cost = records.read_note(self.directory)["cost"]
        records.write_final(self.directory, {"final/loss": 0.05}, 12.0, self.steps, cost)
        records.finish(self.directory, state)

    def copy(self, root: Path) -> "FakeRun":
        shutil.copytree(self.root / "p_hop", root / "p_hop")
        other = FakeRun.__new__(FakeRun)
        other.root, other.steps, other.every = root, self.steps, self.every
        other.directory = root / "p_hop" / ID
        return other


def query(store: Store, sql: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(store.database) as connection:
        return connection.execute(sql).fetchall()


def metrics(store: Store) -> list[tuple[Any, ...]]:
    return sorted(query(store, "select key, value, step, timestamp, is_nan from metrics"))


def tags(store: Store) -> dict[str, str]:
    return dict(query(store, "select key, value from tags"))


def parameters(store: Store) -> dict[str, str]:
    return dict(query(store, "select key, value from params"))
