"""The steps of generation: take prompts into slots, advance every slot by a loop, and see whose token is over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.inference.cache import HOLES, KVCache, check_policy
from ouro_lab.inference.exits import ExitRule
from ouro_lab.inference.prefill import PARALLEL, Prefill
from ouro_lab.inference.slots import Slots
from ouro_lab.inference.stack import Stack
from ouro_lab.model.transformer import LoopedTransformer


@dataclass(frozen=True)
class Request:
    """What to go on from. seed: of this sequence's draws, whatever else is in the batch."""

    prompt: Sequence[int]
    seed: int = 0


class Engine:
    """A model made ready to generate: weights laid out for it, and a cache of `slots` sequences of `max_length` tokens.

    prefill, decode: which of an earlier token's loops a token of the prompt, and a new one, reads (`cache.py`). The
    prompt goes through all loops unless `prefill_exits`. loops: other than trained, if given. full_depth: every token
    takes all loops and is read out where the rule lets it go, as in one parallel pass over the text: no loop is saved.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: LoopedTransformer,
        slots: int,
        max_length: int,
        prefill: str = "full",
        decode: str = "last_available",
        loops: int | None = None,
        prefill_exits: bool = False,
        full_depth: bool = False,
    ) -> None:
        check_policy("prefill", prefill)
        check_policy("decode", decode)
        loops = model.loops if loops is None else loops
        for name, value in (("slots", slots), ("max_length", max_length), ("loops", loops)):
            if value < 1:
                raise ValueError(f"{name} = {value!r}: must be an integer ≥ 1")
        if full_depth and (prefill_exits or prefill != "full" or decode not in ("full", "last_available")):
            raise ValueError(f"full_depth = true: prefill = {prefill}, decode = {decode}: must be full, without exits")
        self.model, self.prefill, self.decode, self.prefill_exits = model, prefill, decode, prefill_exits
        self.stack = Stack(model)
        self.slots = Slots(self.stack, slots, loops, full_depth)
        self.parallel = prefill in PARALLEL and not prefill_exits
        kept = {policy: self._cache(policy, max_length) for policy in {decode, decode if self.parallel else prefill}}
        self.cache, self.prompt_cache = kept[decode], kept.get(prefill, kept[decode])

    @property
    def count(self) -> int:
        return len(self.slots.loop)

    @property
    def device(self) -> torch.device:
        return self.stack.device

    @property
    def vocab_size(self) -> int:
        return self.stack.config.vocab_size

    @property
    def max_length(self) -> int:
        return self.cache.length

    @property
    def cache_bytes(self) -> int:
        """Of keys and values, allocated for all slots and positions."""
        return sum(cache.bytes for cache in self._prompt_caches)

    def check_rule(self, rule: ExitRule | None) -> None:
        """Raises ValueError where the rule cannot be had with the model's gate or the policies."""
        if rule is None:
            return
        if rule.needs_gate and self.model.early_exit_gate is None:
            raise ValueError(f"rule = {rule}: needs an exit gate, which this model lacks; must be a rule without one")
        if self.slots.full_depth:
            return
        phases = {"decode": self.decode} | ({"prefill": self.prefill} if self.prefill_exits else {})
        for name, policy in phases.items():
            if policy == "full":
                raise ValueError(f"{name} = full: {HOLES}, as under rule = {rule}")

    @torch.inference_mode()
    def admit(self, requests: Mapping[int, Request], rule: ExitRule | None) -> None:
        """Takes prompts into slots, up to the states that make their first tokens."""
        prompts = {slot: request.prompt for slot, request in requests.items()}
        for slot, request in requests.items():
            self.slots.seed[slot] = request.seed
        if self.slots.full_depth and rule is not None:
            self._last_by_loop(prompts, rule)
        elif self.parallel:
            last = Prefill(self.stack, self.cache, self.prefill)(list(prompts), list(prompts.values()))
            self.slots.arrive({slot: len(prompt) - 1 for slot, prompt in prompts.items()}, last)
        else:
            self._walk(prompts, rule if self.prefill_exits else None)

    def _last_by_loop(self, prompts: Mapping[int, Sequence[int]], rule: ExitRule) -> None:
        """Prompts at once but for their last tokens, whose every loop the rule must see."""
        before = {slot: prompt[:-1] for slot, prompt in prompts.items() if len(prompt) > 1}
        if before:
            Prefill(self.stack, self.cache, self.prefill)(list(before), list(before.values()))
        lasts = {slot: prompt[-1] for slot, prompt in prompts.items()}
        self.slots.begin(lasts, {slot: len(prompt) - 1 for slot, prompt in prompts.items()})
        for _ in range(self.slots.loops):
            self._pass(list(prompts), rule, [self.cache])

    def _walk(self, prompts: Mapping[int, Sequence[int]], rule: ExitRule | None) -> None:
        """Prompts token by token, each slot at its own pace; ends with the states of their last tokens."""
        self.slots.begin({slot: prompt[0] for slot, prompt in prompts.items()}, dict.fromkeys(prompts, 0))
        under_way = list(prompts)
        while under_way:
            over = self._pass(under_way, rule, self._prompt_caches)
            following = {slot: self.slots.position[slot] + 1 for slot in over}
            following = {slot: place for slot, place in following.items() if place < len(prompts[slot])}
            self.slots.begin({slot: prompts[slot][place] for slot, place in following.items()}, following)
            under_way = [slot for slot in under_way if slot not in over or slot in following]

    @torch.inference_mode()
    def go_on(self, tokens: Mapping[int, int]) -> None:
        """Begins the token after the one that is over, by slot."""
        self.slots.begin(tokens, {slot: self.slots.position[slot] + 1 for slot in tokens})

    @torch.inference_mode()
    def advance(self, slots: list[int], rule: ExitRule | None) -> list[int]:
        """One loop for all of `slots`, in one pass; those whose token is over."""
        return self._pass(slots, rule, [self.cache])

    def _pass(self, slots: list[int], rule: ExitRule | None, caches: list[KVCache]) -> list[int]:
        self.slots.advance(slots, *caches)
        over = self.slots.leaving(slots, rule)
        loops, positions = ([of[slot] for slot in over] for of in (self.slots.loop, self.slots.position))
        for cache in caches:
            cache.finish(over, loops, positions)
        return over

    @torch.inference_mode()
    def logits(self, slots: list[int]) -> Tensor:
        """[N, V] of the states that `slots` have reached."""
        return self.slots.logits(slots)

    @property
    def _prompt_caches(self) -> list[KVCache]:
        """The one that a prompt's tokens read comes first."""
        return [self.cache] if self.prompt_cache is self.cache else [self.prompt_cache, self.cache]

    def _cache(self, policy: str, length: int) -> KVCache:
        kind = (self.stack.cache_dtype, self.stack.device)
        return KVCache(self.stack.config, policy, self.count, length, self.slots.loops, *kind)
