"""One teacher-forced pass with all loops 1 … R, after which any exit rule is a look-up.

A rule's statistic is measured by the rule's own code, on the `LoopView` that generation would show it. Its thresholds
then cost nothing: `Trajectory.exit_loops` applies `passes` to the table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.evaluation.passes import (
    Backbone,
    Batch,
    Data,
    batches,
    evaluating,
    loop_states,
    scored_positions,
    token_facts,
)
from ouro_lab.inference.exits import (
    ArgmaxStable,
    Entropy,
    HiddenDifference,
    LoopKL,
    LoopView,
    Margin,
    QExit,
    RandomExit,
    StaticDepth,
    ThresholdRule,
    survive,
)
from ouro_lab.objectives import chunk_rows

PER = ("token", "sequence")

RULES: tuple[ThresholdRule, ...] = (  # one of each family
    QExit(0.5),
    StaticDepth(1),
    HiddenDifference(1.0),
    HiddenDifference(1.0, relative=True),
    LoopKL(0.1),
    ArgmaxStable(),
    Margin(0.5),
    Entropy(1.0),
    RandomExit(mean=1.0),
)


def check_per(field: str, per: str) -> None:
    """Raises: ValueError naming field, value and the valid ones."""
    if per not in PER:
        raise ValueError(f"{field} = {per!r}: must be one of {', '.join(PER)}")


@dataclass(frozen=True)
class Trajectory:
    """The N scored tokens of a split over R loops, on the CPU; scored is what the data's `accuracy` covers."""

    trained: int  # T, the backbone's own number of loops; R may be more
    loss: Tensor  # [R, N] nats
    argmax: Tensor  # [R, N] int64
    target: Tensor  # [N] int64
    gate_logit: Tensor | None  # [R, N]
    statistics: Mapping[str, Tensor]  # by a rule's family, [R, N]
    sequence: Tensor  # [N] int64, ascending
    row: Tensor  # [N] int64: position + S · sequence
    answer: Tensor  # [N] int64 in 0 … A − 1: the answer that a token is part of; without such each token is one
    bytes: Tensor | None  # [N] int64
    group: Tensor | None  # [N, axes] int64, index into `groups`
    groups: tuple[str, ...]

    @property
    def right(self) -> Tensor:
        """[R, N] bool."""
        return self.argmax == self.target

    @property
    def loops(self) -> int:
        """R."""
        return len(self.loss)

    def statistic(self, rule: ThresholdRule) -> Tensor:
        """[R, N]. Raises: ValueError where the rule's family was not measured."""
        if rule.family not in self.statistics:
            measured = ", ".join(self.statistics) or "none"
            raise ValueError(f"rule = {rule.family}: not in this trajectory; it has {measured}")
        return self.statistics[rule.family]

    def exit_loops(self, rule: ThresholdRule, per: str = "token") -> Tensor:
        """The loop after which each token is read out, [N] int64 in 1 … T.

        per: `token`, or `sequence`: all tokens of a sequence exit where its last scored one does.
        Raises: ValueError for another `per`, or a rule whose family was not measured.
        """
        check_per("per", per)
        loop = torch.arange(1, self.trained + 1).unsqueeze(1)
        fires = rule.passes(self.statistic(rule)[: self.trained], loop)  # [T, N]
        fires[-1] = True
        exits = fires.int().argmax(0) + 1
        return exits if per == "token" else exits[self.last_of_sequence()]

    def last_of_sequence(self) -> Tensor:
        """[N] int64: the place among the N of the last scored token of a token's sequence."""
        _, number, counts = self.sequence.unique_consecutive(return_inverse=True, return_counts=True)
        return (counts.cumsum(0) - 1)[number]


def trajectory(
    backbone: Backbone, data: Data, split: str, loops: int | None = None, rules: Sequence[ThresholdRule] | None = None
) -> Trajectory:
    """Runs `backbone` over `split` ("val" or "test") of `data`.

    loops: R, at least the backbone's own T, which None means. rules: whose families to measure; None: one of each, less
    those that need a gate where there is none. Memory: R states of a batch, two chunks of logits, R·N numbers a family.

    Raises:
        ValueError: fewer loops than trained; a rule that needs a gate where there is none; a split without a token.
    """
    if loops is not None and loops < backbone.loops:
        raise ValueError(f"loops = {loops}: must be at least the backbone's {backbone.loops}")
    groups, sequences, parts = tuple(data.groups), 0, []
    head = backbone.head_weight
    with evaluating(backbone):
        for batch in batches(data, split, head.device):
            scored = scored_positions(batch, groups)
            facts = token_facts(batch, scored, sequences, groups)
            read = _read(backbone, batch, scored, facts, loops, rules)
            parts.append(_Part(*({name: x.cpu() for name, x in table.items()} for table in (facts, *read))))
            sequences += len(scored)
    return _joined(parts, backbone.loops, groups, split)


class _Part(NamedTuple):
    facts: dict[str, Tensor]  # [n, …]
    by_loop: dict[str, Tensor]  # [R, n]
    statistics: dict[str, Tensor]  # [R, n]


def _read(
    backbone: Backbone,
    batch: Batch,
    scored: Tensor,
    facts: Mapping[str, Tensor],
    loops: int | None,
    rules: Sequence[ThresholdRule] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`by_loop` and `statistics` of a batch."""
    made = list(loop_states(backbone, batch, loops))
    hiddens = torch.stack([state.hidden[scored] for state in made])  # [R, n, d]
    gated = made[0].gate_logit is not None
    gates = torch.stack([state.gate_logit[scored] for state in made]) if gated else None  # [R, n]
    chosen = _usable(rules, gated or len(made) == 1)
    size = chunk_rows(backbone.head_weight.shape[0])
    pieces = [
        _read_rows(
            hiddens[:, part], None if gates is None else gates[:, part], backbone.head_weight, facts, part, chosen
        )
        for part in (slice(start, start + size) for start in range(0, max(1, hiddens.shape[1]), size))
    ]
    by_loop, statistics = ({name: torch.cat([p[i][name] for p in pieces], 1) for name in pieces[0][i]} for i in (0, 1))
    return by_loop | ({} if gates is None else {"gate_logit": gates}), statistics


def _usable(rules: Sequence[ThresholdRule] | None, gate: bool) -> tuple[ThresholdRule, ...]:
    if rules is None:
        return tuple(rule for rule in RULES if gate or not rule.needs_gate)
    rules = tuple(rules)
    for rule in rules:
        if rule.needs_gate and not gate:
            raise ValueError(f"rule = {rule.family}: needs an exit gate, which the backbone lacks")
    return rules


def _read_rows(
    hiddens: Tensor,
    gates: Tensor | None,
    head: Tensor,
    facts: Mapping[str, Tensor],
    part: slice,
    rules: tuple[ThresholdRule, ...],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As `_read`, of one chunk: hiddens [R, n, d], gates [R, n]."""
    losses, best, statistics = [], [], {rule.family: [] for rule in rules}
    for view in _views(hiddens, gates, head, facts["row"][part]):
        logits = view.logits()
        wide = logits.to(torch.promote_types(torch.float32, logits.dtype))
        losses.append(F.cross_entropy(wide, facts["target"][part], reduction="none"))
        best.append(logits.argmax(-1))
        for rule in rules:
            statistics[rule.family].append(rule.statistic(view))
    by_loop = {"loss": torch.stack(losses), "argmax": torch.stack(best)}
    return by_loop, {family: torch.stack(values) for family, values in statistics.items()}


def _views(hiddens: Tensor, gates: Tensor | None, head: Tensor, row: Tensor) -> Iterator[LoopView]:
    """What rules are shown after loop 1, 2, …; the logits of two loops are held."""
    survival = torch.zeros(len(row), device=row.device)
    previous, before = torch.zeros_like(hiddens[0]), F.linear(hiddens[0], head)
    for loop, hidden in enumerate(hiddens, start=1):
        logits = before if loop == 1 else F.linear(hidden, head)
        survival = survival if gates is None else survive(survival, gates[loop - 1])
        so_far = None if gates is None else gates[:loop]
        made = (lambda x=logits: x), (lambda x=before: x)
        yield LoopView(torch.full_like(row, loop), hidden, previous, survival, *made, row, so_far)
        previous, before = hidden, logits


def _joined(parts: list[_Part], trained: int, groups: tuple[str, ...], split: str) -> Trajectory:
    if not sum(len(part.facts["row"]) for part in parts):
        raise ValueError(f"split = {split}: has no scored token")
    facts = {name: torch.cat([part.facts[name] for part in parts]) for name in parts[0].facts}
    by_loop = {name: torch.cat([part.by_loop[name] for part in parts], 1) for name in parts[0].by_loop}
    statistics = {name: torch.cat([part.statistics[name] for part in parts], 1) for name in parts[0].statistics}
    _, facts["answer"] = facts["answer"].unique(return_inverse=True)
    optional = {name: facts.get(name) for name in ("bytes", "group")} | {"gate_logit": by_loop.get("gate_logit")}
    return Trajectory(
        trained=trained,
        statistics=statistics,
        groups=groups,
        **{name: by_loop[name] for name in ("loss", "argmax")},
        **{name: facts[name] for name in ("target", "sequence", "row", "answer")},
        **optional,
    )
