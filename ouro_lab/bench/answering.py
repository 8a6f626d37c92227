"""Exits of a model that was trained: p-hop answers at the depth that a rule gives each, against what their loops cost.

A trunk (the committed narrow one, or CKPT's) reads sequences symbol by symbol, forced, and answers at each; a slot
whose token is over goes on with its next one, or with the next sequence, in the pass that follows. Thresholds are those
whose mean depth comes nearest to two loops. The ideal is `decoding.decode_exits`'s.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
from omegaconf import OmegaConf

from ouro_lab.bench.decoding import share_of_ideal
from ouro_lab.bench.table import Line, Skipped
from ouro_lab.bench.timing import Effort, interleave
from ouro_lab.config import ROOT, ConfigError, build
from ouro_lab.data.datamodules import TEST
from ouro_lab.data.tasks import PHop
from ouro_lab.inference.engine import Engine
from ouro_lab.inference.exits import Entropy, ExitRule, QExit, ThresholdRule
from ouro_lab.interop import open_trunk
from ouro_lab.starts import CKPT

TRUNK = ROOT / "trunks" / "p_hop" / "seed_0"
MEAN = 2.0  # loops
# By what decides, and thresholds to choose from.
RULES: dict[str, tuple[ThresholdRule, list[float]]] = {
    "gate": (QExit(q=0.5), [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(step / 10 for step in range(1, 10))]),
    "entropy": (Entropy(h=0.5), [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]),
}
EACH = 4  # sequences of every number of hops
PASSES, HEADS = 256, 256


def answer_exits(effort: Effort) -> Iterator[Line]:
    """Share of the ideal speed, and answers right against those right at full depth."""
    source = os.environ.get(CKPT) or TRUNK
    if source == TRUNK and not TRUNK.is_dir():
        yield Skipped("answers", f"{TRUNK} is missing: the committed trunk")
        return
    model, sequences = trained(source)
    few = sequences[: len(sequences) // EACH]
    what_trunk = f"{model.config.shape} p-hop trunk, d {model.config.width}"
    for name, (family, thresholds) in RULES.items():
        if family.needs_gate and model.early_exit_gate is None:
            yield Skipped(name, f"{source} has no exit gate")
            continue
        rule = nearest(model, few, family, thresholds)
        for batch, target in ((1, 0.90), (8, 0.75)):
            asked = sequences if batch > 1 else few
            ours, full = Answering(model, batch, asked, rule), Answering(model, batch, asked, None)
            sides = {"ours": ours, "pass": ours.passes, "head": ours.heads}
            samples = interleave(sides, effort)
            full()
            loops, tokens = sum(ours.depths) / batch, len(ours.depths) / batch
            depth = f"{fmean(ours.depths):.2f} loops (s.d. {pstdev(ours.depths):.2f})"
            quality = f"{ours.accuracy:.2f} right v {full.accuracy:.2f} at full depth"
            what = f"{what_trunk}, {rule}, {depth}, {quality}, B {batch}: share of the ideal speed"
            yield share_of_ideal(f"{name}_{batch}", what, samples, loops / PASSES, tokens / HEADS, target)


def trained(source: str | Path) -> tuple[Any, list[list[tuple[int, int]]]]:
    """The trunk and test sequences, one of each number of hops, then another: tokens and answers (< 0: none).

    Raises:
        ConfigError: there is no model, or none of p-hop.
    """
    try:
        trunk = open_trunk(source)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{CKPT} = {source}: {error}") from error
    task = getattr(build(OmegaConf.create(trunk.data), "data"), "task", None) if trunk.data else None
    if not isinstance(task, PHop):
        raise ConfigError(f"{CKPT} = {source}: must be a model of p-hop, as of trunk_p_hop or gate_p_hop_wide")
    found = task.evaluation(TEST, EACH)
    pairs = zip(found["tokens"].tolist(), found["targets"].tolist(), strict=True)
    sequences = [list(zip(tokens, targets, strict=True)) for tokens, targets in pairs]
    return trunk.model, [sequence for turn in range(EACH) for sequence in sequences[turn::EACH]]


def nearest(model: Any, sequences: list[Any], family: ThresholdRule, thresholds: list[float]) -> ThresholdRule:
    """The rule of the family under which a token takes nearest to `MEAN` loops on average."""

    def distance(rule: ThresholdRule) -> float:
        answering = Answering(model, len(sequences), sequences, rule)
        answering()
        return abs(fmean(answering.depths) - MEAN)

    return min((family.at(threshold) for threshold in thresholds), key=distance)


@dataclass
class Answering:
    """A call reads all sequences. depths, right: of the last call, per token and per answer."""

    model: Any
    batch: int
    sequences: list[list[tuple[int, int]]]
    rule: ExitRule | None
    depths: list[int] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.engine = Engine(self.model, self.batch, max(map(len, self.sequences)))
        self.engine.check_rule(self.rule)
        self.slots = list(range(self.batch))

    @property
    def accuracy(self) -> float:
        return fmean(self.right)

    def __call__(self) -> None:
        self.depths, self.right = [], []
        waiting = iter(self.sequences)
        reading: dict[int, list[tuple[int, int]]] = {}
        self._begin(self.slots, reading, waiting)
        while reading:
            over = self.engine.advance(sorted(reading), self.rule)
            if over:
                self._note(over, reading)
                self._begin(over, reading, waiting)

    def _note(self, over: list[int], reading: dict[int, list[tuple[int, int]]]) -> None:
        answers = self.engine.logits(over).argmax(-1).tolist()
        for slot, answer in zip(over, answers, strict=True):
            _, target = reading[slot][self.engine.slots.position[slot]]
            self.depths.append(self.engine.slots.loop[slot])
            if target >= 0:
                self.right.append(answer == target)

    def _begin(self, slots: list[int], reading: dict[int, list[tuple[int, int]]], waiting: Iterator[Any]) -> None:
        """The next token of each, or the first of a sequence that waits; a slot without either stays empty."""
        tokens = {}
        for slot in slots:
            position = self.engine.slots.position[slot] + 1 if slot in reading else 0
            if slot not in reading or position == len(reading[slot]):
                reading.pop(slot, None)
                following = next(waiting, None)
                if following is None:
                    continue
                reading[slot], position = following, 0
                self.engine.slots.position[slot] = -1
            tokens[slot] = reading[slot][position][0]
        self.engine.go_on(tokens)

    @torch.inference_mode()
    def passes(self) -> None:
        """Of full slots through a loop of their own, half-way through a sequence; nothing is decided."""
        slots = self.engine.slots
        slots.position = [len(self.sequences[0]) // 2] * self.batch
        for _ in range(PASSES):
            slots.loop = [slot % slots.loops for slot in self.slots]
            slots.advance(self.slots, self.engine.cache)

    def heads(self) -> None:
        for _ in range(HEADS):
            self.engine.logits(self.slots).argmax(-1).tolist()
