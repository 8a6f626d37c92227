"""The paper's benchmarks on a checkpoint: what would be run, or with --run the scores.

python -m ouro_lab.evaluation.benchmarks FOLDER [--loops=N] [--only=mmlu,gsm8k] [--run]
python -m ouro_lab.evaluation.benchmarks FOLDER --only=mmlu --write=FILE     # as questions, for studies
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ouro_lab.evaluation.benchmark_files import write_questions
from ouro_lab.evaluation.harness import CHOICE, Benchmark, evaluate, lm_eval, network, read_choice
from ouro_lab.interop import Trunk, open_trunk

USAGE = "usage: python -m ouro_lab.evaluation.benchmarks FOLDER [--loops=N] [--only=name,name] [--run | --write=FILE]"


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
        if "write" in options:
            write_questions(chosen, Path(options["write"]))
        if "run" in options:
            for benchmark in chosen:
                print(f"{benchmark.name}  {score(benchmark, trunk, loops):.4f}", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


def plan(chosen: list[Benchmark], folder: str, loops: int) -> str:
    lines = [f"{folder} at {loops} loops, with lm-eval:"]
    return "\n".join(lines + [f"  {b.name:15s} task {b.task}, {b.shots} shots, {b.metric}" for b in chosen])


def score(benchmark: Benchmark, trunk: Trunk, loops: int, tasks: str | None = None) -> float:
    """The benchmark's metric, in [0, 1]. tasks: as in `harness.evaluate`.

    Raises:
        ValueError: no lm-eval, no tokenizer, or the benchmark's data can neither be loaded nor are they cached.
    """
    lm_eval()
    from ouro_lab.evaluation.lm_eval import LoopedLM

    if trunk.tokenizer is None:
        raise ValueError("tokenizer: the checkpoint has none, and a benchmark is text")
    found = evaluate(benchmark, LoopedLM(trunk.model, trunk.tokenizer, loops), tasks)
    return found["results"][benchmark.task][benchmark.metric]


@dataclass(frozen=True)
class BenchmarkScores:
    """An evaluation: benchmarks as lm-eval runs them, at the backbone's loops: `benchmark/{name}`, in [0, 1].

    names: of `choice`, a file of conf/benchmarks. tasks: as in `harness.evaluate`. download: whether lm-eval may fetch
    data that are not cached; without it nothing reaches the network. What is evaluated is the data's tokenizer with
    the backbone: the data's own questions do not matter.

    Raises:
        ValueError: a name that is not in the file; when it is called, as `score`.
    """

    names: tuple[str, ...]
    choice: str = str(CHOICE)
    tasks: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        self._chosen()

    def metric_names(self, data: Any, loops: int) -> tuple[str, ...]:
        return tuple(f"benchmark/{name}" for name in self.names)

    def positions(self, data: Any, loops: int) -> int:
        """Tokens that are computed beside the test set's own pass, as the file estimates them."""
        return sum(benchmark.positions for benchmark in self._chosen())

    def __call__(self, backbone: Any, data: Any, split: str) -> dict[str, float]:
        trunk = Trunk(backbone, data.tokenizer, None, "")
        with network(self.download):
            return {f"benchmark/{one.name}": score(one, trunk, backbone.loops, self.tasks) for one in self._chosen()}

    def _chosen(self) -> list[Benchmark]:
        return read_choice(Path(self.choice), ",".join(self.names))


def _parsed(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    options = {}
    for word in (word for word in arguments if word.startswith("--")):
        name, _, value = word.removeprefix("--").partition("=")
        empty = {"loops": not (value.isdigit() and int(value)), "write": not value}
        if name not in ("loops", "only", "run", "write") or empty.get(name):
            raise ValueError(f"{word}: {USAGE}")
        options[name] = value
    return [word for word in arguments if not word.startswith("--")], options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
