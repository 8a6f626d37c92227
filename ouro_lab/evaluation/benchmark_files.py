"""A benchmark of lm-eval's as a file of questions (`data.Questions`): its prompts, options and right answers."""

import json
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from ouro_lab.evaluation.harness import Benchmark, evaluate, lm_eval
from ouro_lab.metrics_log import replace_file


def write_questions(benchmarks: Iterable[Benchmark], path: Path, tasks: str | None = None) -> None:
    """Writes all questions of the benchmarks to `path`, whole or not at all. tasks: as in `evaluate`.

    Raises:
        ValueError: no lm-eval, no data, or a benchmark that is answered by writing and so has no options.
    """
    lines = [json.dumps(row) for one in benchmarks for row in questions(one, tasks)]
    replace_file(path, "".join(f"{line}\n" for line in lines))


def questions(benchmark: Benchmark, tasks: str | None = None) -> Iterator[dict[str, Any]]:
    """lm-eval itself says which option is right: once per option, it scores a model that always prefers that one."""
    metric = benchmark.metric.split(",")[0]
    preferred, rows, most = 0, {}, 1
    while preferred < most:
        for name, samples in evaluate(benchmark, _prefers(preferred, benchmark), tasks)["samples"].items():
            for sample in samples:
                pairs = [[str(context), str(text)] for context, text in sample["arguments"]]
                most = max(most, len(pairs))
                row = rows.setdefault((name, sample["doc_id"]), {"group": _group(benchmark, name), "options": pairs})
                if preferred < len(pairs) and sample["acc"] == 1:
                    row["answer"] = preferred
                if metric == "acc_norm":
                    row["lengths"] = [len(text.removeprefix(" ")) for _, text in pairs]
        preferred += 1
    yield from rows.values()


def _group(benchmark: Benchmark, task: str) -> str:
    """`mmlu/anatomy` of lm-eval's mmlu_anatomy."""
    part = task.removeprefix(f"{benchmark.task}_")
    return benchmark.name if task == benchmark.task else f"{benchmark.name}/{part}"


def _prefers(option: int, benchmark: Benchmark) -> Any:
    """A model of lm-eval's whose likeliest option is always this one."""
    lm_eval()
    base: Any = import_module("lm_eval.api.model").LM

    def loglikelihood(model: Any, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(0.0 if request.idx == option else -1.0, False) for request in requests]

    def refuse(model: Any, requests: list[Any]) -> list[Any]:
        raise ValueError(f"benchmark {benchmark.name}: is answered by writing; must have options, or use --run")

    methods = {"loglikelihood": loglikelihood, "loglikelihood_rolling": refuse, "generate_until": refuse}
    return type("Prefers", (base,), methods)()
