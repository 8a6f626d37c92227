"""A rank that dies: Lightning's own processes, of which the second is killed in the middle of a run."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ouro_lab import records
from ouro_lab.chaos.tiny import WAIT, Row, child, ended, execute, outcome, place, tiny, whole
from ouro_lab.config import ROOT
from ouro_lab.training import checkpoint

LONGEST = 60.0  # seconds in which all ranks must have ended
CLOSE = 2e-4  # of metrics of other world sizes, whose sums round differently
# Found by the interpreter of every rank; the second dies after STEP, and writes down when.
_DYING = """
import os, pathlib, signal
from ouro_lab.training.callbacks import Recorder

real = Recorder.on_train_batch_end

def dying(self, trainer, *rest):
    if trainer.global_rank == 1 and trainer.global_step == STEP:
        pathlib.Path(os.environ["CHAOS_DEATH"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, trainer, *rest)

Recorder.on_train_batch_end = dying
"""


def plant_death(folder: Path, step: int) -> dict[str, str]:
    """The environment in which rank 1 kills itself in `step`, once; its last act is to touch `folder`/death."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_DYING.replace("STEP", str(step)))
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "CHAOS_DEATH": str(folder / "death")}


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    alone = tiny("trainer.precision=32-true")
    with place(folder / "unbroken"):
        assert ended(child(execute(alone), folder / "log.txt")) == 0
        expected = outcome(alone)[0]
    one = tiny("trainer.precision=32-true", "trainer.devices=2", "trainer.strategy=ddp")
    with place(folder / "broken"):
        environment, death = os.environ | plant_death(folder / "plant", 12), folder / "plant" / "death"
        code, printed = _until_ended([sys.executable, "-m", "ouro_lab.run", *one.command], environment)
        after = time.time() - death.stat().st_mtime if death.exists() else float("inf")
        said = (records.read_state(one.directory) or {}).get("reason", "") + printed
        named = "rank 1 ended with signal 9" in said or "[rank: 1] Child process" in said
        latest = checkpoint.newest(one.directory / "checkpoints")
        newest = checkpoint.step_of(latest) if latest else None
        sound = code != 0 and named and whole(one) and newest == 10
        # By one process: any number of ranks goes on from what two have left.
        resumed = ended(child(execute(alone), folder / "log.txt")) == 0
        near = resumed and all(abs(outcome(alone)[0][name] - value) < CLOSE for name, value in expected.items())
    said = (
        f"ended {after:.1f} s later, {'rank 1 named' if named else 'NOT NAMED'}, newest checkpoint of step {newest}; "
    )
    said += f"resumed by one process: {'metrics within 2e-4' if near else 'FAILED'}"
    promise = "all ranks stop with the cause named within a minute; resume works"
    yield Row("a rank dies", promise, said, sound and near and after < LONGEST)


def _until_ended(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Exit status and what went to stderr; ranks that hang are stopped, too late for the promise."""
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT + LONGEST, check=False
        )
    except subprocess.TimeoutExpired as error:
        return -1, str(error)
    return done.returncode, done.stderr
