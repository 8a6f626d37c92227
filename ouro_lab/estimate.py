"""What runs will cost here: seconds of one by arm, of many in the slots that this machine has."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch

from ouro_lab import records
from ouro_lab.assembly import Parts, plannable
from ouro_lab.bench.calibrate import StepSpeed, settled, step_speed
from ouro_lab.compute.footprint import again, passed_bytes
from ouro_lab.compute.hardware import cpu_precision, training_rate
from ouro_lab.config import build, plain
from ouro_lab.model import ModelConfig
from ouro_lab.study import Run, Study
from ouro_lab.training.execution import Execution, kept_precision, listed, settle

COMPILED_GAIN = 1.25  # of a small model's step, over blocks that are not compiled


@dataclass(frozen=True)
class Price:
    """seconds: of one run, by arm. basis: where they come from, by arm. threads: cores that a run takes."""

    seconds: Mapping[str, float]
    basis: Mapping[str, str]
    slots: int
    threads: int = 1

    def core_hours(self, arms: Iterable[str]) -> float:
        """Of one run of each of `arms`, which may name an arm many times."""
        return sum(self.seconds[arm] for arm in arms) * self.threads / 3600

    def hours(self, arms: Iterable[str]) -> float:
        """Until all have ended, the longest started first, as the launcher does; process starts are not counted."""
        ends = [0.0] * self.slots
        for seconds in sorted((self.seconds[arm] for arm in arms), reverse=True):
            heapq.heapreplace(ends, ends[0] + seconds)
        return max(ends) / 3600

    @property
    def words(self) -> str:
        """`looped, iso_flop: seconds of the tracked runs; wider: analytic estimate`."""
        by_basis: dict[str, list[str]] = {}
        for arm, basis in self.basis.items():
            by_basis.setdefault(basis, []).append(arm)
        if len(by_basis) == 1:
            return next(iter(by_basis))
        return "; ".join(f"{', '.join(arms)}: {basis}" for basis, arms in by_basis.items())


def price(study: Study, parts: Mapping[str, Parts], measured: Mapping[str, tuple[float, str]]) -> Price:
    """By arm: its FLOPs at the FLOP/s that its runs reached (`measured`, with words), else at `rate`."""
    words = "analytic estimate, as in make list"
    speed = {arm: measured[arm] if arm in measured else (rate(study, parts[arm]), words) for arm in parts}
    seconds = {arm: parts[arm].cost["training_flops"] / speed[arm][0] for arm in parts}
    threads = getattr(build(study.config.launcher, "launcher"), "threads", 1)
    return Price(seconds, {arm: words for arm, (_, words) in speed.items()}, slots(study), threads)


def slots(study: Study) -> int:
    """How many runs execute here at once."""
    return build(study.config.launcher, "launcher").room(study.config.trainer.get("accelerator", "cpu"), 1)


def rate(study: Study, part: Parts | None = None) -> float:
    """FLOP/s of one core here in the precision that the study would train in: of an arm's training step if it has one.

    Narrow models do not reach what products alone do: their steps move activations, which is measured apart, once.
    """
    if part is None or not part.cost["steps"] or not plannable(part):
        return training_rate(_settled(study, 0.0).precision)
    execution = _settled(study, part.cost["training_flops"])
    speed = _step_speed("bfloat16" if "bf16" in execution.precision else "float32")
    if speed is None:
        return training_rate(execution.precision)
    seconds = step_seconds(part, speed, execution.precision == "bf16-mixed")
    return part.cost["training_flops"] / part.cost["steps"] / seconds * (COMPILED_GAIN if execution.compiled else 1.0)


def step_seconds(part: Parts, speed: StepSpeed, mixed: bool) -> float:
    """Of one core and one training step, blocks not compiled."""
    data = part.data
    config = settled(cast(ModelConfig, part.backbone.config), data.length, torch.bfloat16 if mixed else torch.float32)
    flops = (part.cost["flops_per_token"] + again(config, data.length)) * data.batch_size * data.length
    supervised = part.objective.supervised_loops(config.loops)
    return speed.seconds(flops, passed_bytes(config, data.length, data.batch_size, supervised, mixed))


def measure() -> None:
    """Measures, once per machine, what estimates are made of."""
    _step_speed("bfloat16" if "bf16" in cpu_precision() else "float32")


@cache
def _step_speed(dtype: str) -> StepSpeed | None:
    """None where other processes disturb the measurement, which is not tried again."""
    try:
        return step_speed(dtype)
    except RuntimeError:
        return None


def _settled(study: Study, flops: float) -> Execution:
    trainer = plain(study.config.trainer)
    return settle(trainer, flops, {}, kept_precision(trainer, listed(records.runs_root() / study.name)))


def core_minutes(study: Study, parts: Mapping[str, Parts]) -> float:
    """Of the whole study, by FLOPs; a sweep without its extensions."""
    seeds, block = len(study.definition.seeds), study.definition.lr
    swept = len(block.grid) * len(block.seeds) if block is not None else 0
    counts = {arm: seeds + (swept if study.sweeps(arm) else 0) for arm in parts}
    return sum(part.cost["training_flops"] * counts[arm] / rate(study, part) for arm, part in parts.items()) / 60


def seconds_left(study: Study, runs: Iterable[Run], parts: Mapping[str, Parts]) -> float:
    """Core-seconds, from the runs' own measured step time where they have one."""
    total = 0.0
    for run in runs:
        cost = parts[run.arm].cost
        if not cost["steps"]:
            total += cost["training_flops"] / rate(study)
            continue
        rows = [row for row in records.read_metrics(run.directory / "metrics.jsonl") if "perf/step_seconds" in row]
        guess = None if rows else cost["training_flops"] / cost["steps"] / rate(study, parts[run.arm])
        step = rows[-1]["perf/step_seconds"] if rows else guess
        total += step * (cost["steps"] - records.last_step(run.directory / "metrics.jsonl"))
    return total
