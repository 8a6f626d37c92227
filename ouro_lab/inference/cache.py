"""Keys and values of all slots, allocated once, and the policies that say which of a token's loops later ones read.

Token i at loop t attends to its own key and value of loop t, and to those of every earlier token j that the policy of
i's phase (prefill or decode) selects among the loops 1 … U_j that j executed:

    full             loop t; an error where U_j < t
    last_available   loop min(t, U_j)
    last             loop U_j, the deepest
    first            loop 1
    mean             the mean over loops 1 … U_j of keys and of values

`full` and `last_available` keep every loop; the others one plane, 1/T of the memory (paper §5.4.2). `oracle.py` is this
definition in code.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ouro_lab.inference.stack import Attend
from ouro_lab.model.config import ModelConfig

POLICIES = ("full", "last_available", "last", "first", "mean")
SHARED = ("last", "first", "mean")  # one plane for all loops
HOLES = "must be last_available, last, first or mean where tokens may exit early"

Place = tuple[int, int, int]  # slot, loop (one-based), position
Keep = Callable[[int, Tensor], None]  # (layer, keys and values)


class Group(NamedTuple):
    rows: slice
    plane: int
    slots: slice
    position: int


def check_policy(name: str, policy: str) -> None:
    """Raises ValueError unless `policy` is known; `name` is what the message calls it."""
    if policy not in POLICIES:
        raise ValueError(f"{name} = {policy!r}: must be one of {', '.join(POLICIES)}")


class KVCache:
    """Keys after rotary embedding, and values, of `slots` sequences of up to `length` tokens and `loops` loops.

    While a token is under way its place holds the current loop's key and value, so that its own attention and that to
    earlier tokens is one read; `finish` puts there what the policy keeps. Of earlier tokens nothing moves.
    """

    def __init__(
        self,
        config: ModelConfig,
        policy: str,
        slots: int,
        length: int,
        loops: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_policy("policy", policy)
        self.policy, self.loops, self.length = policy, loops, length
        self.planes = 1 if policy in SHARED else loops
        self.key_heads = config.kv_heads
        size, kind = config.head_dim, {"dtype": dtype, "device": device}
        # A head's positions lie together, as its products read them, and so do the heads of neighbouring slots.
        self.data = torch.zeros(config.layers, self.planes, 2, slots, config.kv_heads, length, size, **kind)
        # What `finish` will put in place.
        pending = slots if policy in ("first", "mean") else 0
        self.pending = torch.zeros(config.layers, pending, 2 * config.kv_heads, size, **kind)

    @property
    def bytes(self) -> int:
        return self.data.nbytes + self.pending.nbytes

    def plane(self, loop: int) -> int:
        """The plane that a token in loop `loop` (one-based) writes and reads."""
        return loop - 1 if self.planes > 1 else 0

    def attend(self, slots: list[int], loops: list[int], positions: list[int], *others: "KVCache") -> Attend:
        """Attention of N tokens, each at its own loop and place, in one pass; places may share a slot.

        others: caches that keep the same tokens, for later.
        """

        tokens = list(zip(slots, loops, positions, strict=True))

        def attend(q: Tensor, kv: Tensor) -> Callable[[int], Tensor]:
            writes = [cache._writing(tokens, kv) for cache in (self, *others)]
            read = self._reading(tokens, q)

            def layer(number: int) -> Tensor:
                for write in writes:
                    write(number)
                return read(number)

            return layer

        return attend

    def _writing(self, tokens: list[Place], kv: Tensor) -> Callable[[int], None]:
        """Puts keys and values [N, 2K, D] of one loop of N tokens where they belong; every row has its own loop."""
        pairs = kv.unflatten(1, (2, -1)).transpose(0, 1)  # [2, N, K, D]
        moves = []
        for rows, plane, slots, position in self._together(tokens):
            places = self.data[:, plane, :, slots, :, position].unbind()  # L × [2, n, K, D]
            moves.append((places, pairs[:, rows]))
        keep = self._keeping(tokens)

        def write(layer: int) -> None:
            for places, new in moves:
                places[layer].copy_(new)
            if keep is not None:
                keep(layer, kv)

        return write

    def _reading(self, tokens: list[Place], q: Tensor) -> Callable[[int], Tensor]:
        """Attention of N tokens' queries [N, H, D] over all that is in their slots up to their own place; [N, H·D].

        Queries carry the scale. Over just as much as there is: rows may be at any loop and length, and none pays for
        another's.
        """
        wide = torch.promote_types(torch.float32, self.data.dtype)
        mixed = q.new_empty(q.shape[0], self.key_heads, q.shape[1] // self.key_heads, q.shape[2])
        flat, groups = mixed.flatten(1), []
        for rows, plane, slots, position in self._together(tokens):
            keys, values = self.data[:, plane, :, slots, :, : position + 1].flatten(2, 3).unbind(1)  # [L, n·K, S, D]
            out = mixed[rows].flatten(0, 1)  # [n·K, H/K, D]
            one = q[rows].view(out.shape) if rows.stop - rows.start == 1 else None
            groups.append((rows, one, keys.transpose(2, 3).unbind(), values.unbind(), out))

        def read(layer: int) -> Tensor:
            for rows, one, keys, values, out in groups:
                scores = torch.bmm(q[rows].reshape(out.shape) if one is None else one, keys[layer])  # [n·K, H/K, S]
                torch.bmm(scores.softmax(-1, dtype=wide).to(q.dtype), values[layer], out=out)
            return flat

        return read

    def _together(self, tokens: list[Place]) -> list[Group]:
        """Tokens at one plane and position, in slots side by side, share operations."""
        groups: list[Group] = []
        for row, (slot, loop, position) in enumerate(tokens):
            last, plane = groups[-1] if groups else None, self.plane(loop)
            if last and (last.plane, last.slots.stop, last.position) == (plane, slot, position):
                groups[-1] = Group(slice(last.rows.start, row + 1), plane, slice(last.slots.start, slot + 1), position)
            else:
                groups.append(Group(slice(row, row + 1), plane, slice(slot, slot + 1), position))
        return groups

    def prompt(self, slot: int, loop: int, layer: int, kv: Tensor) -> None:
        """Keeps what the policy wants of a prompt's keys and values [S, 2K, D] in a loop; all loops are executed."""
        if self.policy == "first" and loop > 1 or self.policy == "last" and loop < self.loops:
            return
        kept = self.data[layer, self.plane(loop), :, slot, :, : kv.shape[0]]
        kv = kv.unflatten(1, (2, -1)).permute(1, 2, 0, 3)  # [2, K, S, D]
        if self.policy == "mean" and loop > 1:
            kept.lerp_(kv, 1 / loop)
        else:
            kept.copy_(kv)

    def finish(self, slots: list[int], executed: list[int], positions: list[int]) -> None:
        """Says that the tokens at `positions` took `executed` loops, and go no further.

        Raises:
            ValueError: the policy is full and a token left before the last loop.
        """
        for slot, depth, position in zip(slots, executed, positions, strict=True):
            if self.pending.numel():
                self.data[:, 0, :, slot, :, position] = self.pending[:, slot].unflatten(1, (2, -1))
            elif self.planes > depth:
                if self.policy == "full":
                    raise ValueError(f"policy = full: a token left after loop {depth} of {self.loops}; {HOLES}")
                of_token = self.data[:, :, :, slot, :, position]  # [L, P, 2, K, D]
                of_token[:, depth:] = of_token[:, depth - 1 : depth]

    def _keeping(self, tokens: list[Place]) -> Keep | None:
        """Of `first` and `mean`: what is wanted of the loops so far, beside the place that the current loop fills."""
        if not self.pending.numel():
            return None
        slots, loops, _ = zip(*tokens, strict=True)
        index = torch.tensor(slots, device=self.data.device)
        loop = torch.tensor(loops, dtype=self.data.dtype, device=self.data.device).view(-1, 1, 1)
        fresh = loop == 1  # not by a weight of 0 for what the slot's last owner left: that may be infinite
        share = 1 / loop if self.policy == "mean" else torch.zeros_like(loop)

        def keep(layer: int, kv: Tensor) -> None:
            pending = self.pending[layer]
            blended = pending.index_select(0, index).lerp(kv, share)
            pending.index_copy_(0, index, torch.where(fresh, kv, blended))

        return keep
