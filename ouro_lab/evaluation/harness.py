"""lm-eval as a library: which of its tasks a benchmark is, and its data without the network unless it is asked for."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CHOICE = Path(__file__).resolve().parents[2] / "conf" / "benchmarks" / "ouro_paper.yaml"


@dataclass(frozen=True)
class Benchmark:
    """task and metric: lm-eval's names, the metric with its filter. shots: examples in the prompt.

    positions: tokens that are computed at one number of loops, prompts and what is generated, estimated.
    """

    name: str
    task: str
    shots: int
    metric: str
    positions: int = 0


def read_choice(path: Path, only: str | None = None) -> list[Benchmark]:
    """The benchmarks of a file of conf/benchmarks/. only: names, separated by commas.

    Raises:
        ValueError: a name that is not in the file.
    """
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    known = {name: Benchmark(name, **fields) for name, fields in content["benchmarks"].items()}
    for name in only.split(",") if only else ():
        if name not in known:
            raise ValueError(f"only = {name}: must be one of {', '.join(known)}")
    return [known[name] for name in (only.split(",") if only else known)]


def evaluate(benchmark: Benchmark, model: Any, tasks: str | None = None) -> dict[str, Any]:
    """All that lm-eval finds for one benchmark. tasks: a folder of task files, in the place of lm-eval's own.

    Raises:
        ValueError: no lm-eval, or the benchmark's data can neither be loaded nor are they cached.
    """
    library = lm_eval()
    options: dict[str, Any] = {"num_fewshot": benchmark.shots, "bootstrap_iters": 0}
    if tasks is not None:
        manager = import_module("lm_eval.tasks").TaskManager
        options["task_manager"] = manager(include_path=tasks, include_defaults=False)
    try:
        return library.simple_evaluate(model, tasks=[benchmark.task], **options)
    except OSError as error:  # what `datasets` raises where neither the hub nor its cache has them
        raise ValueError(f"benchmark {benchmark.name}: its data are not there ({str(error).splitlines()[0]})") from None


def lm_eval() -> Any:
    """Raises: ValueError where it is not installed."""
    try:
        return import_module("lm_eval")
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install -e '.[eval]'") from None


@contextmanager
def network(allowed: bool) -> Generator[None]:
    """Keeps `datasets` and the hub's client to their caches, unless allowed."""
    modules: list[Any] = [import_module(name) for name in ("datasets.config", "huggingface_hub.constants")]
    before = [module.HF_HUB_OFFLINE for module in modules]
    try:
        for module, offline in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = offline or not allowed
        yield
    finally:
        for module, offline in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = offline
