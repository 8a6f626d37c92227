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

import torch
from torch import Tensor

from ouro_lab.inference.stack import Attend
from ouro_lab.model.config import ModelConfig

POLICIES = ("full", "last_available", "last", "first", "mean")
SHARED = ("last", "first", "mean")  # one plane for all loops
HOLES = "must be last_available, last, first or mean where tokens may exit early"

Write = Callable[[int, Tensor], None]  # (layer, keys and values)
Read = Callable[[int, Tensor], Tensor]  # (layer, queries)


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
        self.policy, self.loops, self.length, self.slots = policy, loops, length, slots
        self.planes = 1 if policy in SHARED else loops
        self.key_heads = config.kv_heads
        heads, size, kind = (
            2 * config.kv_heads,
            config.head_dim,
            {"dtype": dtype, "device": device},
        )  # keys, then values
        # A head's positions lie together, as its products read them: [L, P, B, 2K, S, D].
        self.data = torch.zeros(config.layers, self.planes, slots, heads, length, size, **kind)
        self._heads = torch.arange(0, heads * length, length, device=device)  # where they are from a row's first
        pending = slots if policy in ("first", "mean") else 0
        self.pending = torch.zeros(config.layers, pending, heads, size, **kind)  # what `finish` will put in place

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
        writers = [cache.writing(slots, loops, positions) for cache in (self, *others)]
        read = self.reading(slots, loops, positions)

        def attend(layer: int, q: Tensor, kv: Tensor) -> Tensor:
            for write in writers:
                write(layer, kv)
            return read(layer, q)

        return attend

    def writing(self, slots: list[int], loops: list[int], positions: list[int]) -> Write:
        """Puts keys and values [N, 2K, D] of one loop of N tokens where they belong; every row has its own loop."""
        where = zip(slots, loops, positions, strict=True)
        places = [self._place(self.plane(loop), slot, position) for slot, loop, position in where]
        index = torch.tensor(places, device=self.data.device).unsqueeze(1).add(self._heads).flatten()
        keep = self._keeping(slots, loops)
        flat = self.data.flatten(1, 4).unbind()  # L × [P·B·2K·S, D]

        def write(layer: int, kv: Tensor) -> None:
            flat[layer].index_copy_(0, index, kv.flatten(0, 1))
            if keep is not None:
                keep(layer, kv)

        return write

    def reading(self, slots: list[int], loops: list[int], positions: list[int]) -> Read:
        """Attention of N tokens' queries [N, H, D] over all that is in their slots up to their own place; [N, H·D].

        Queries carry the scale. Row by row over just as much as there is: rows
        may be at any loop and length, and none pays for another's.
        """
        where = zip(slots, loops, positions, strict=True)
        rows = [self._seen(self.plane(loop), slot, position + 1) for slot, loop, position in where]
        wide = torch.promote_types(torch.float32, self.data.dtype)

        def read(layer: int, q: Tensor) -> Tensor:
            grouped = q.view(len(rows), self.key_heads, -1, q.shape[-1])  # [N, K, H/K, D]
            mixed = torch.empty_like(grouped, memory_format=torch.contiguous_format)
            for row, one, out in zip(rows, grouped.unbind(), mixed.unbind(), strict=True):
                keys, values = row[layer]
                weights = torch.bmm(one, keys).softmax(-1, dtype=wide).to(q.dtype)  # [K, H/K, S]
                torch.bmm(weights, values, out=out)
            return mixed.flatten(1)

        return read

    def _seen(self, plane: int, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Per layer keys [K, D, S] and values [K, S, D]; views."""
        keys, values = self.data[:, plane, slot, :, :length].split(self.key_heads, 1)  # [L, K, S, D]
        return list(zip(keys.transpose(2, 3).unbind(), values.unbind(), strict=True))

    def _place(self, plane: int, slot: int, position: int) -> int:
        """Of the first head, among the rows of a layer."""
        return (plane * self.slots + slot) * 2 * self.key_heads * self.length + position

    def prompt(self, slot: int, loop: int, layer: int, kv: Tensor) -> None:
        """Keeps what the policy wants of a prompt's keys and values [S, 2K, D] in a loop; all loops are executed."""
        if self.policy == "first" and loop > 1 or self.policy == "last" and loop < self.loops:
            return
        kept, kv = self.data[layer, self.plane(loop), slot, :, : kv.shape[0]], kv.transpose(0, 1)
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
                self.data[:, 0, slot, :, position] = self.pending[:, slot]
            elif self.planes > depth:
                if self.policy == "full":
                    raise ValueError(f"policy = full: a token left after loop {depth} of {self.loops}; {HOLES}")
                self.data[:, depth:, slot, :, position] = self.data[:, depth - 1 : depth, slot, :, position]

    def _keeping(self, slots: list[int], loops: list[int]) -> Write | None:
        """Of `first` and `mean`: what is wanted of the loops so far, beside the place that the current loop fills."""
        if not self.pending.numel():
            return None
        index = torch.tensor(slots, device=self.data.device)
        loop = torch.tensor(loops, dtype=self.data.dtype, device=self.data.device).view(-1, 1, 1)
        fresh = loop == 1  # not by a weight of 0 for what the slot's last owner left: that may be infinite
        share = 1 / loop if self.policy == "mean" else torch.zeros_like(loop)

        def keep(layer: int, kv: Tensor) -> None:
            pending = self.pending[layer]
            blended = pending.index_select(0, index).lerp(kv, share)
            pending.index_copy_(0, index, torch.where(fresh, kv, blended))

        return keep
