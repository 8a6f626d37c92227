"""Peak memory of a training step, each in a process of its own.

    python -m ouro_lab.bench.memory '{"side": "ours", "spec": {…}}'     # prints one line of JSON

How: two steps come first, so that weights, AdamW's moments, compiled code and the libraries' buffers exist. Gradients
are let go, the allocator's free pages are given back, and the resident set is the base. Then the kernel's high-water
mark is set to it (Linux: 5 to /proc/self/clear_refs), two more steps run, and the mark less the base is the step's
peak: activations, logits and gradients. The allocator is told to map every tensor over 64 KiB by itself, so that memory
let go is memory given back, and the mark follows the live bytes on both sides.
"""

import ctypes
import gc
import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from ouro_lab.bench.step import Spec, Step, eager, ours

SIDES = {"ours": ours, "uncompiled": partial(ours, compiled=False), "eager": eager}
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def measurable() -> bool:
    return CLEAR.exists() and os.access(CLEAR, os.W_OK)


def peak_bytes(side: str, spec: Spec) -> int:
    """Of one step of `SIDES[side]`, above model and optimiser; seen from a process that takes no other.

    Raises:
        RuntimeError: that process failed; names its last line.
    """
    task = json.dumps({"side": side, "spec": asdict(spec)})
    command = [sys.executable, "-m", "ouro_lab.bench.memory", task]
    env = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise RuntimeError(f"{side} step {spec}: {reason}")
    return json.loads(done.stdout.splitlines()[-1])["peak_bytes"]


def main(task: str) -> int:
    """Prints `peak_bytes` and `base_bytes`."""
    asked = json.loads(task)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    print(json.dumps(_measure(SIDES[asked["side"]](Spec(**asked["spec"])))))
    return 0


def _measure(step: Step) -> dict[str, int]:
    for _ in range(2):
        step()
    step.optimiser.zero_grad()
    base = _reset()
    for _ in range(2):
        step()
    return {"peak_bytes": _status("VmHWM") - base, "base_bytes": base}


def _reset() -> int:
    """Gives free memory back, sets the high-water mark to what is left and returns it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    row = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(row.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
