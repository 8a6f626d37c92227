"""How a run is executed here: its precision, and whether its blocks are compiled. Chosen by measurement, then kept."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MethodType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from ouro_lab import records
from ouro_lab.compute.hardware import cpu_precision, cpu_rates, training_rate
from ouro_lab.measured import cache_root, once_per_machine
from ouro_lab.model import LoopedTransformer
from ouro_lab.objectives import compile_losses
from ouro_lab.ranks import own_rank

WORTH_SECONDS = 60.0  # of training from which a compiled block pays for its start: 3 s, or 10–20 s the first time
WHOLE_LOOP = 2  # layers up to which a loop is compiled as one graph


@dataclass(frozen=True)
class Execution:
    """precision: a name of Lightning's. compiled: one compiled block for all layers and loops."""

    precision: str
    compiled: bool

    @property
    def line(self) -> str:
        """What a log says at the start."""
        rates = cpu_rates()
        gain = f"bf16 products {rates['bfloat16'] / rates['float32']:.1f} × float32's speed here"
        return f"precision {self.precision} ({gain}), blocks {'compiled' if self.compiled else 'not compiled'}"


def settle(trainer: Mapping[str, Any], flops: float, earlier: Mapping[str, Any], kept: str | None = None) -> Execution:
    """Resolves `auto` of `trainer.precision` and `trainer.compile`; `earlier` is what this run settled before.

    flops: of the whole run. kept: the precision of the study's other runs, which must not differ in it. A GPU computes
    in bf16; there, blocks are compiled only where that is asked for.

    Raises:
        ValueError: compile is neither true, false nor auto, or is asked for where no compiler works.
    """
    if earlier:
        return Execution(**earlier)
    on_cpu = trainer.get("accelerator", "cpu") == "cpu"
    precision, asked = trainer.get("precision", "32-true"), trainer.get("compile", False)
    if precision == "auto":
        precision = kept or (cpu_precision() if on_cpu else "bf16-mixed")
    if asked not in (True, False, "auto"):
        raise ValueError(f"trainer.compile = {asked!r}: must be true, false or auto")
    if asked is True and on_cpu and not compiler_works():
        raise ValueError("trainer.compile = True: no C++ compiler works here; must be false, or install g++")
    if asked == "auto":
        asked = on_cpu and flops / training_rate(precision) > WORTH_SECONDS and compiler_works()
    return Execution(precision, bool(asked))


def kept_precision(trainer: Mapping[str, Any], runs: Iterable[Path]) -> str | None:
    """What `auto` came to in other `runs` (folders) of the study on such a device, maybe on another machine.

    Those that have ended decide before those in the middle. None where `trainer` does not ask for `auto`.
    """
    if trainer.get("precision") != "auto":
        return None
    noted = [(records.read_note(run).get("execution"), records.read_state(run) or {}, run) for run in runs]
    for execution, _, run in sorted(noted, key=lambda one: one[1].get("state") not in records.END_STATES):
        if execution and _same_device(trainer, OmegaConf.load(run / "config.yaml")["trainer"]):
            return execution["precision"]
    return None


def listed(study: Path) -> Iterator[Path]:
    """Folders of the runs that the study's last call listed; others in its folder are stale."""
    for run in (records.read_json(study / "study.json") or {}).get("runs", []):
        yield study / run["id"]


def lines(trainer: Mapping[str, Any], runs: Iterable[Path]) -> list[str]:
    """What to say of a study that keeps a precision which `auto` would not take here."""
    kept = kept_precision(trainer, runs)
    here = settle({**trainer, "compile": False}, 0.0, {}).precision if kept else None
    if kept == here:
        return []
    return [f"precision {kept}, as in the study's runs so far; this machine would take {here}: see docs/clusters.md"]


def _same_device(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    both = [(trainer.get("accelerator", "cpu"), trainer.get("precision")) for trainer in (one, other)]
    return both[0] == both[1]


def note(execution: Execution) -> dict[str, Any]:
    return asdict(execution)


@cache
def compiler_works() -> bool:
    """Whether torch.compile makes code for this CPU: tried once per machine, in a process of its own."""
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++")):
        return False
    return once_per_machine("compiler.json", f"{torch.__version__} {sys.executable}", _try_compiler, _is_bool)


def share_compiled_code() -> None:
    """Compiled blocks are kept in the cache folder: a study compiles once, not once a run.

    A rank other than 0 has a folder of its own in it: ranks that compile one kernel at once open each other's
    unfinished libraries. It inherits rank 0's environment, so the folder may be named there already.
    """
    default = default_cache_dir()  # which torch writes into the environment as it is imported: nobody's choice
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", default)
    folder = cache_root() / "compiled" if chosen == default else Path(chosen)
    own = f"rank_{own_rank()}"
    if own_rank() and folder.name != own:
        folder /= own
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    # A pool of compiling processes would import torch once more each and hold cores that other runs train on.
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        inductor.compile_threads = 1


class CompileStep(Callback):
    """Compiles the backbone's blocks for the shape of a training micro-batch, and the losses."""

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        # A block that is sharded gathers its weights around its forward, which has no place inside a graph.
        whole_loops = not hasattr(trainer.strategy, "shard")
        compile_step(module.backbone, trainer.datamodule.micro_batch_size, whole_loops)


def compile_step(backbone: nn.Module, batch: int | None = None, whole_loops: bool = True) -> None:
    """Whatever is not a matrix product in a step of `batch` sequences."""
    compile_blocks(backbone, batch, whole_loops)
    compile_losses()


def compile_blocks(backbone: nn.Module, batch: int | None = None, whole_loops: bool = True) -> None:
    """One compiled forward for all `backbone.layers`, as they share code and shapes; every loop reuses it.

    whole_loops: of few layers the whole `backbone.loop` is one graph instead: a call into compiled code costs a small
    model 1 % of its step, and two layers take little longer to compile than one.

    batch: sequences, None for any number. Where there are others, as in the last batch of an evaluation, the plain
    forward runs: each shape would be compiled anew. It is a rule and not a memory of what ran before, so a resumed run
    computes the same. A backbone without `layers` stays as it is.
    """
    if whole_loops and isinstance(backbone, LoopedTransformer) and len(backbone.layers) <= WHOLE_LOOP:
        plain = type(backbone).loop
        backbone.loop = MethodType(_for_batches_of(batch, _compiled(plain), plain), backbone)
        return
    blocks = [*getattr(backbone, "layers", []), *filter(None, [getattr(backbone, "norm", None)])]
    for block in blocks:
        plain = type(block).forward
        block.forward = MethodType(_for_batches_of(batch, _compiled(plain), plain), block)


def graphs() -> int:
    """Graphs that torch.compile has made in this process; more than one per block shape means that something varies."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@cache
def _compiled(forward: Callable) -> Callable:
    # The checks that it makes on its own buffers in every call are 1–3 % of a small model's step.
    unchecked = {"size_asserts": False, "alignment_asserts": False, "scalar_asserts": False}
    return torch.compile(forward, dynamic=False, options=unchecked)


def _for_batches_of(batch: int | None, compiled: Callable, plain: Callable) -> Callable:
    def forward(self: nn.Module, x: Tensor, *others: Any) -> Any:
        return (compiled if batch in (None, x.shape[0]) else plain)(self, x, *others)

    return forward


def _try_compiler() -> bool:
    code = "import torch; f = torch.compile(lambda x: x.sin() + 1); assert f(torch.ones(3)).shape == (3,)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=300, check=False)
    return done.returncode == 0


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)
