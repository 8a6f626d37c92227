"""The processes of one run: which of them this is, and what became of the others."""

import os
import subprocess
import time
from collections.abc import Sequence

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")  # of torchrun, of Lightning's own processes, of SLURM's tasks
PATIENCE = 2.0  # seconds that ranks are given to end after one that could not go on without them


def own_rank() -> int:
    """This process's rank as its starter tells it, before any process group; 0 where there are no others."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), 0)


def lost_ranks(processes: Sequence[subprocess.Popen]) -> str:
    """`rank 1 ended with signal 9`, of the processes of ranks 1, 2, … that have ended badly; empty if none has."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    codes = {rank: process.poll() for rank, process in enumerate(processes, start=1)}
    how = {rank: f"signal {-code}" if code < 0 else f"status {code}" for rank, code in codes.items() if code}
    return ", ".join(f"rank {rank} ended with {words}" for rank, words in how.items())
