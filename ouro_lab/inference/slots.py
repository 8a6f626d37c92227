"""Slots, each with one token under way at a loop of its own: a pass takes any of them one loop further."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ouro_lab.inference.cache import KVCache
from ouro_lab.inference.exits import ExitRule, LoopView, survive
from ouro_lab.inference.stack import Stack

ROW_STRIDE = 1 << 20  # no sequence is as long
KNOWN = 1024  # index tensors kept


def row_number(seed: int, position: int) -> int:
    """Of a token, for rules that draw: the same whatever else is in the batch."""
    return seed * ROW_STRIDE + position


class Slots:
    """States of `count` slots in buffers that no pass allocates anew.

    A token is begun, takes passes, and is over when `leaving` names its slot; nothing waits for other slots.
    """

    @torch.inference_mode()
    def __init__(self, stack: Stack, count: int, loops: int, full_depth: bool = False) -> None:
        self.stack, self.loops, self.full_depth = stack, loops, full_depth
        self.position = [0] * count
        self.loop = [0] * count  # how many the token has finished
        self.seed = [0] * count  # the sequence's, which makes row numbers
        self.read = [False] * count  # whether, at full depth, the rule has let the token go
        width = stack.config.width
        buffers = torch.zeros(4, count, width, dtype=stack.dtype, device=stack.device)
        self.stream, self.hidden, self.previous, self.read_out = buffers
        wide = torch.promote_types(torch.float32, stack.dtype)
        self.log_survival = torch.zeros(count, dtype=wide, device=stack.device)
        self.gate_logits = torch.zeros(loops, count, dtype=stack.dtype, device=stack.device)
        self._all = list(range(count))
        self._known: dict[tuple[int, ...], Tensor] = {}
        self._predicted: dict[int, Tensor] = {}  # logits [V] that a rule has asked of a slot's present state

    def begin(self, tokens: Mapping[int, int], positions: Mapping[int, int]) -> None:
        """Puts tokens into their slots, before the first loop."""
        self._predicted.clear()
        index = self._index(list(tokens))
        self.stream.index_copy_(0, index, self.stack.embed(self._index(list(tokens.values()))))
        self.hidden.index_fill_(0, index, 0.0)
        self.log_survival.index_fill_(0, index, 0.0)
        for slot in tokens:
            self.position[slot], self.loop[slot], self.read[slot] = positions[slot], 0, False

    def arrive(self, positions: Mapping[int, int], hidden: Tensor) -> None:
        """Says that the tokens at `positions`, by slot, have been through all loops, to the states [N, d]."""
        self._predicted.clear()
        self.hidden.index_copy_(0, self._index(list(positions)), hidden)
        for slot, position in positions.items():
            self.position[slot], self.loop[slot], self.read[slot] = position, self.loops, False

    def advance(self, slots: list[int], read: KVCache, *others: KVCache) -> None:
        """One loop more for each of `slots`, which may be at different loops, in one pass.

        read: whose policy decides what is attended to. others: caches that keep the same tokens, for later.
        """
        self._predicted.clear()
        loops = [self.loop[slot] + 1 for slot in slots]
        positions = [self.position[slot] for slot in slots]
        index, rope = self._index(slots), self.stack.rope(self._index(positions), read.length)
        attend = read.attend(slots, loops, positions, *others)
        x, hidden = self.stack.loop(self.stream.index_select(0, index), rope, attend)
        self.stream.index_copy_(0, index, x)
        self.previous.index_copy_(0, index, self.hidden.index_select(0, index))
        self.hidden.index_copy_(0, index, hidden)
        for slot, loop in zip(slots, loops, strict=True):
            self.loop[slot] = loop

    def leaving(self, slots: list[int], rule: ExitRule | None) -> list[int]:
        """Those of `slots` whose token ends here: by the rule, which is not asked at the last loop, or there.

        At full depth all end at the last loop, and the rule decides which state is read out.
        """
        asked = [slot for slot in slots if self.loop[slot] < self.loops]
        if rule is None or not asked:
            return [slot for slot in slots if self.loop[slot] == self.loops]
        gone = {slot for slot, out in zip(asked, rule.exits(self._view(asked, rule)).tolist(), strict=True) if out}
        if self.full_depth:
            self._keep([slot for slot in gone if not self.read[slot]])
            gone = set()
        return [slot for slot in slots if slot in gone or self.loop[slot] == self.loops]

    def logits(self, slots: list[int]) -> Tensor:
        """[N, V] of the states that `slots` have reached, or that were kept to be read out.

        The head is not asked again for what a rule has just seen.
        """
        if slots and not self.full_depth and all(slot in self._predicted for slot in slots):
            return torch.stack([self._predicted[slot] for slot in slots])
        index = self._index(slots)
        hidden = self.hidden.index_select(0, index)
        if self.full_depth:
            kept = torch.tensor([self.read[slot] for slot in slots], device=hidden.device).unsqueeze(-1)
            hidden = torch.where(kept, self.read_out.index_select(0, index), hidden)
        return self.stack.logits(hidden)

    def _keep(self, slots: list[int]) -> None:
        index = self._index(slots)
        self.read_out.index_copy_(0, index, self.hidden.index_select(0, index))
        for slot in slots:
            self.read[slot] = True

    def _view(self, slots: list[int], rule: ExitRule) -> LoopView:
        """What the rule says that it looks at: at one token a row every operation saved is time saved."""
        index, loop = self._index(slots), self._index([self.loop[slot] for slot in slots])
        hidden, previous = self._rows(self.hidden, slots, index), self._rows(self.previous, slots, index)
        survival, gates = self._rows(self.log_survival, slots, index), None
        if rule.needs_gate and self.stack.gate is not None:
            survival, gates = self._gate(self.stack.gate, hidden, survival, index, loop, rule)
        drawn = getattr(rule, "needs_row", True)
        return LoopView(
            loop=loop,
            hidden=hidden,
            previous=previous,
            log_survival=survival,
            logits=lambda: self._predict(slots, hidden),
            previous_logits=lambda: self.stack.logits(previous),
            row=self._index([row_number(self.seed[slot], self.position[slot]) for slot in slots]) if drawn else None,
            gate_logits=gates,
        )

    def _predict(self, slots: list[int], hidden: Tensor) -> Tensor:
        logits = self.stack.logits(hidden)
        self._predicted.update(zip(slots, logits.unbind(), strict=True))
        return logits

    def _gate(
        self, gate: nn.Module, hidden: Tensor, survival: Tensor, index: Tensor, loop: Tensor, rule: ExitRule
    ) -> tuple[Tensor, Tensor | None]:
        """log Π (1 − λ_j) [N] and, if asked for, the gate logits [T, N], of which a row's own loops are filled."""
        logit = gate(hidden).squeeze(-1)
        survival = survive(survival, logit)
        self.log_survival.index_copy_(0, index, survival)
        if not getattr(rule, "needs_gate_logits", True):
            return survival, None
        self.gate_logits[loop - 1, index] = logit
        return survival, self.gate_logits.index_select(1, index)

    def _rows(self, buffer: Tensor, slots: list[int], index: Tensor) -> Tensor:
        """Of `slots`, to read before the next pass."""
        return buffer if slots == self._all else buffer.index_select(0, index)

    def _index(self, numbers: list[int]) -> Tensor:
        """Small and often the same: the last ones are kept."""
        key = tuple(numbers)
        if key not in self._known:
            if len(self._known) >= KNOWN:
                self._known.clear()
            self._known[key] = torch.tensor(numbers, dtype=torch.int64, device=self.stack.device)
        return self._known[key]
