"""`make plan`: what a study's arms would take on a machine that need not be here; formulas and stated figures alone.

On GPUs the speed is peak × a stated MFU, on this CPU two speeds that are measured once (`bench.calibrate`).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from ouro_lab.assembly import Parts, plannable
from ouro_lab.check import check
from ouro_lab.compute.communication import Volume, replicated, sharded
from ouro_lab.compute.cost import stored_parameters
from ouro_lab.compute.failures import daly, lost_share, young
from ouro_lab.compute.footprint import Footprint, Spread, again, checkpoint_bytes, footprint, passed_bytes
from ouro_lab.compute.machines import WRITE, Machine, parse
from ouro_lab.config import ConfigError, plain
from ouro_lab.model import ModelConfig
from ouro_lab.objectives.cross_entropy import chunk_rows
from ouro_lab.study import Study, study_here
from ouro_lab.training.callbacks import clock
from ouro_lab.training.execution import settle

MFU = 0.4  # stated, of large products; a narrow model reaches less
RESERVE = 0.1  # of a GPU's memory, for its context, the collectives' buffers and what no allocation fits
DAY = 86_400.0
STARTS = 1e-3  # seconds of a GPU's step below which the starts of kernels, which nothing here counts, take longer


@dataclass(frozen=True)
class Plan:
    """One arm's run on a machine. Seconds are of an optimiser step: `compute`, and `sending` if nothing hid it."""

    machine: Machine
    spread: Spread
    sequences: int  # per device and micro-batch
    tokens: int  # per optimiser step
    memory: Footprint
    volume: Volume
    compute: float
    sending: float
    steps: int
    checkpoint: float  # bytes

    @property
    def room(self) -> float:
        device = self.machine.device
        return device.memory * (1 - RESERVE if device.peak else 1)

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.room

    @property
    def seconds(self) -> float:
        """Of a step: what is longer, as sending overlaps with computing."""
        return max(self.compute, self.sending)

    @property
    def write(self) -> float:
        """Seconds that a checkpoint takes: every node writes its part, or one all of it where nothing is sharded."""
        return self.checkpoint / (WRITE * (self.machine.nodes if self.spread.mode == "fsdp" else 1))

    @property
    def interval(self) -> float:
        return daly(self.write, self.machine.mtbf)

    @property
    def days(self) -> float:
        return self.steps * self.seconds * (1 + lost_share(self.interval, self.write, self.machine.mtbf)) / DAY


def plan(name: str, overrides: Sequence[str] = (), machine: str | None = None, mfu: str | None = None) -> int:
    """Prints the plan of every arm that trains one of our own backbones.

    Raises:
        ConfigError: an unknown machine, a bad MFU, or a batch that so many devices cannot share.
    """
    on, share = parse(machine or "", memory_here()), _mfu(mfu)
    study = study_here(name, overrides)
    parts = check(study)
    plans = {arm: plan_of(study, arm, parts[arm], on, share) for arm in parts if plannable(parts[arm])}
    for arm in parts:
        if arm not in plans:
            print(f"{arm}: no plan; it trains no whole backbone of ours")
    if plans:
        print(_head(study, on, share, next(iter(plans.values()))))
        print(_table(plans))
        if on.device.peak and min(found.compute for found in plans.values()) < STARTS:
            print(
                "\nA step under 1 ms is bound by the starts of its kernels, which are not counted: it will be slower."
            )
        runs = sum(1 for run in study.expand() if run.arm in plans)
        days = sum(plans[run.arm].days for run in study.expand() if run.arm in plans)
        print(f"\n{runs} runs of the study, one after another: {days:,.2f} days")
    return 0


def plan_of(study: Study, arm: str, parts: Parts, machine: Machine, mfu: float) -> Plan:
    trainer = plain(study.arm_configs[arm].trainer)
    precision = _precision(trainer, machine)
    data, own = parts.data, cast(ModelConfig, parts.backbone.config)
    config = attended(own, data.length, precision, machine)
    spread, micro_batches = spread_of(trainer, machine.count), int(trainer.get("accumulate", 1))
    each = machine.count * micro_batches
    if data.batch_size % each:
        raise ConfigError(
            f"data.batch_size = {data.batch_size}: must be a multiple of {each}, {machine} × trainer.accumulate"
        )
    sequences, supervised = data.batch_size // each, parts.objective.supervised_loops(config.loops)
    mixed = precision == "bf16-mixed"
    memory = footprint(config, data.length, sequences, supervised, spread, mixed, chunk_rows(config.vocab_size))
    tokens = data.batch_size * data.length
    flops = (parts.cost["flops_per_token"] + again(config, data.length)) * tokens / machine.count
    passed = micro_batches * passed_bytes(config, data.length, sequences, supervised, mixed)
    compute = seconds_of(machine, mfu, mixed, flops, passed)
    volume = volume_of(config, spread, micro_batches)
    sending = volume.total / machine.link
    stored = float(checkpoint_bytes(config))
    return Plan(machine, spread, sequences, tokens, memory, volume, compute, sending, parts.steps, stored)


def spread_of(trainer: Mapping[str, Any], world: int) -> Spread:
    """As the trainer's `strategy` says; several devices without one are taken for DDP."""
    strategy = trainer.get("strategy", "auto")
    if isinstance(strategy, Mapping):
        reshard, narrow = strategy.get("reshard_after_forward", True), strategy.get("gather_bf16", False)
        return Spread("fsdp", world, reshard, narrow)
    return Spread("ddp" if world > 1 else "single", world)


def volume_of(config: ModelConfig, spread: Spread, micro_batches: int) -> Volume:
    stored = stored_parameters(config)
    if spread.mode != "fsdp":
        return replicated(stored.total, spread.world)
    blocks = stored.body + stored.norms
    width = 2 if spread.narrow else 4
    return sharded(blocks, stored.total - blocks, spread.world, config.loops, micro_batches, spread.reshard, width)


def seconds_of(machine: Machine, mfu: float, mixed: bool, flops: float, passed: float) -> float:
    if machine.device.peak is not None:
        return flops / (machine.device.peak * mfu)
    from ouro_lab.bench.calibrate import step_speed

    return step_speed("bfloat16" if mixed else "float32").seconds(flops, passed)


def attended(config: ModelConfig, length: int, precision: str, machine: Machine) -> ModelConfig:
    """With the attention that `auto` comes to: fused on GPUs, here what was measured to be fastest."""
    if config.attention != "auto" or machine.device.peak is not None:
        return replace(config, attention="sdpa") if config.attention == "auto" else config
    from ouro_lab.bench.calibrate import settled

    return settled(config, length, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)


def memory_here() -> float:
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def _precision(trainer: Mapping[str, Any], machine: Machine) -> str:
    """Raises ConfigError where a GPU's speed in it is not known."""
    if machine.device.peak is None:
        return settle({**trainer, "accelerator": "cpu", "compile": False}, 0.0, {}).precision
    asked = trainer.get("precision", "auto")
    if asked not in ("auto", "bf16-mixed"):
        raise ConfigError(f"trainer.precision = {asked}: must be bf16-mixed, the one that the peaks are known for")
    return "bf16-mixed"


def _mfu(text: str | None) -> float:
    try:
        value = float(text) if text else MFU
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(f"MFU = {text}: must be a number in (0, 1]")
    return value


def _head(study: Study, machine: Machine, mfu: float, first: Plan) -> str:
    speed = f"stated MFU {mfu:g}" if machine.device.peak else "speeds measured here, blocks not compiled"
    nodes = f", {machine.nodes} nodes" if machine.nodes > 1 else ""
    failures = f"a failure every {clock(machine.mtbf)}"
    return f"{study.name} on {machine}{nodes}: {first.spread.mode}, {speed}, {failures} (stated)\n"


def _table(plans: Mapping[str, Plan]) -> str:
    """A column per arm."""
    columns = {arm: _rows(found) for arm, found in plans.items()}
    names = list(next(iter(columns.values())))
    rows = [["per device", *columns], *([name, *(column[name] for column in columns.values())] for name in names)]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0]) + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def _rows(found: Plan) -> dict[str, str]:
    memory = {f"memory: {name}": size(value) for name, value in found.memory.as_dict().items() if name != "peak"}
    hidden = "hidden" if found.sending <= found.compute else "the longer one"
    return {
        "sequences at once": f"{found.sequences:,}",
        **memory,
        "memory: peak": f"{size(found.memory.peak)} of {size(found.room)}",
        "fits": "yes" if found.fits else "NO",
        "sent per step": size(found.volume.total),
        "  of it gathered weights": size(found.volume.gathered),
        "computing, s": f"{found.compute:.3g}",
        "sending, s": f"{found.sending:.3g} ({hidden})" if found.volume.total else "–",
        "tokens/s, all devices": f"{found.tokens / found.seconds:,.0f}",
        "steps": f"{found.steps:,}",
        "days": f"{found.days:,.3g}" if found.days > 1e-3 else "under 0.001",
        "checkpoint": f"{size(found.checkpoint)}, {found.write:.2g} s",
        "best interval (Young's)": f"{clock(found.interval)} ({clock(young(found.write, found.machine.mtbf))})",
        "lost to both": f"{lost_share(found.interval, found.write, found.machine.mtbf):.2%}",
    }


def size(value: float) -> str:
    """`1.25 GiB`, `–` for nothing."""
    if not value:
        return "–"
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20)):
        if value >= factor:
            return f"{value / factor:,.3g} {unit}" if value < 1000 * factor else f"{value / factor:,.0f} {unit}"
    return f"{value / 2**10:,.3g} KiB"
