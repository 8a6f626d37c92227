"""A prompt's tokens at once, where the policy lets a loop be computed for all of them in parallel.

`full`, and `last_available`, which is the same at full depth: a token reads earlier ones in its own loop. `first`: it
reads their first loop, which is complete before the second begins. Under `last` and `mean` a token's first loop needs
the last one of the token before it.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.inference.cache import KVCache
from ouro_lab.inference.stack import Attend, Stack

PARALLEL = ("full", "last_available", "first")


class Prefill:
    """Prompts, packed without padding, through all loops; the cache keeps what its own policy wants of them."""

    def __init__(self, stack: Stack, cache: KVCache, policy: str) -> None:
        self.stack, self.cache, self.policy = stack, cache, policy
        self.first: list[Tensor] = []  # per layer: keys and values of loop 1

    def __call__(self, slots: list[int], prompts: list[list[int]]) -> Tensor:
        """The normed states [N, d] of the prompts' last tokens after the last loop."""
        device = self.stack.device
        lengths = [len(prompt) for prompt in prompts]
        tokens = torch.tensor([token for prompt in prompts for token in prompt], device=device)  # [R]
        positions = torch.cat([torch.arange(length, device=device) for length in lengths])
        rope = self.stack.rope(positions, self.cache.length)
        x = hidden = self.stack.embed(tokens)
        self.first = []
        for loop in range(1, self.cache.loops + 1):
            x, hidden = self.stack.loop(x, rope, self._attend(loop, slots, lengths))
        self.first = []
        return hidden[torch.tensor(lengths, device=device).cumsum(0) - 1]

    def _attend(self, loop: int, slots: list[int], lengths: list[int]) -> Attend:
        def attend(q: Tensor, kv: Tensor) -> Callable[[int], Tensor]:
            return partial(mix, q, kv)

        def mix(q: Tensor, kv: Tensor, layer: int) -> Tensor:
            if loop == 1 and self.policy == "first":
                self.first.append(kv.clone())  # the next layer writes over it
            earlier = self.first[layer] if loop > 1 and self.policy == "first" else None
            mixed, start = [], 0
            for slot, length in zip(slots, lengths, strict=True):
                own = slice(start, start + length)
                self.cache.prompt(slot, loop, layer, kv[own])
                mixed.append(_mixed(q[own], kv[own], None if earlier is None else earlier[own]))
                start += length
            return torch.cat(mixed)

        return attend


def _mixed(q: Tensor, kv: Tensor, earlier: Tensor | None) -> Tensor:
    """Attention [S, H·D] of q [S, H, D] over keys and values [S, 2K, D]; over `earlier`'s of all tokens but its own."""
    if earlier is None:
        mask, seen = None, kv
    else:
        ones = torch.ones(2 * [q.shape[0]], dtype=torch.bool, device=q.device)
        mask, seen = torch.cat([ones.tril(-1), ones.tril() & ones.triu()], 1), torch.cat([earlier, kv])  # [S, 2S]
    k, v = seen.transpose(0, 1).unsqueeze(0).chunk(2, 1)  # [1, K, S or 2S, D]
    q, grouped = q.transpose(0, 1).unsqueeze(0), q.shape[1] != k.shape[1]
    how = {"is_causal": mask is None, "scale": 1.0, "enable_gqa": grouped}  # queries carry the scale
    mixed = F.scaled_dot_product_attention(q, k, v, mask, **how)  # [1, H, S, D]
    return mixed.squeeze(0).transpose(0, 1).flatten(1)
