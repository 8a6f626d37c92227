"""The paper's benchmarks on a checkpoint: what would be run, or with --run the scores.

python -m ouro_lab.evaluation.benchmarks FOLDER [--loops=N] [--only=mmlu,gsm8k] [--run]
"""

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ouro_lab.interop import Trunk, open_trunk

CHOICE = Path(__file__).resolve().parents[2] / "conf" / "benchmarks" / "ouro_paper.yaml"
USAGE = "usage: python -m ouro_lab.evaluation.benchmarks FOLDER [--loops=N] [--only=name,name] [--run]"


@dataclass(frozen=True)
class Benchmark:
    """task and metric: lm-eval's names, the metric with its filter. shots: examples in the prompt."""

    name: str
    task: str
    shots: int
    metric: str


def main(arguments: list[str]) -> int:
    """Exit status: 0 fine, 2 bad input or absent data."""
    try:
        folders, options = _parsed(arguments)
        if len(folders) != 1:
            raise ValueError(f"{' '.join(arguments) or '(nothing)'}: {USAGE}")
        chosen = read_choice(CHOICE, options.get("only"))
        trunk = open_trunk(folders[0])
        loops = int(options.get("loops", trunk.model.loops))
        print(plan(chosen, folders[0], loops))
        if "run" in options:
            for benchmark in chosen:
                print(f"{benchmark.name}  {score(benchmark, trunk, loops):.4f}", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


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


def plan(chosen: list[Benchmark], folder: str, loops: int) -> str:
    lines = [f"{folder} at {loops} loops, with lm-eval:"]
    return "\n".join(lines + [f"  {b.name:15s} task {b.task}, {b.shots} shots, {b.metric}" for b in chosen])


def score(benchmark: Benchmark, trunk: Trunk, loops: int) -> float:
    """The benchmark's metric, in [0, 1].

    Raises:
        ValueError: no lm-eval, no tokenizer, or the benchmark's data can neither be loaded nor are they cached.
    """
    try:
        simple_evaluate = import_module("lm_eval").simple_evaluate

        from ouro_lab.evaluation.lm_eval import LoopedLM
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install -e '.[eval]'") from None
    if trunk.tokenizer is None:
        raise ValueError("tokenizer: the checkpoint has none, and a benchmark is text")
    model = LoopedLM(trunk.model, trunk.tokenizer, loops)
    try:
        found = simple_evaluate(model, tasks=[benchmark.task], num_fewshot=benchmark.shots, bootstrap_iters=0)
    except OSError as error:  # what `datasets` raises where neither the hub nor its cache has them
        raise ValueError(f"benchmark {benchmark.name}: its data are not there ({str(error).splitlines()[0]})") from None
    return found["results"][benchmark.task][benchmark.metric]


def _parsed(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    options = {}
    for word in (word for word in arguments if word.startswith("--")):
        name, _, value = word.removeprefix("--").partition("=")
        if name not in ("loops", "only", "run") or (name == "loops" and not (value.isdigit() and int(value))):
            raise ValueError(f"{word}: {USAGE}")
        options[name] = value
    return [word for word in arguments if not word.startswith("--")], options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
