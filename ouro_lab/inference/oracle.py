"""What the KV policies mean, written out: one token, one loop, one layer at a time, with nothing kept but the facts.

Slow on purpose. Every faster way of this package is tested against it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.inference.cache import HOLES, check_policy
from ouro_lab.inference.exits import ExitRule, LoopView
from ouro_lab.inference.slots import row_number
from ouro_lab.model.attention import rope_tables, rotate
from ouro_lab.model.transformer import LoopedTransformer

Pair = tuple[Tensor, Tensor]  # key and value [K, D] of one token in one loop and layer


@dataclass(frozen=True)
class Step:
    """What one token came to."""

    loops: int  # executed
    hidden: Tensor  # [d] normed state after them
    logits: Tensor  # [V]


class Oracle:
    """One sequence through `model`, token by token; `decode` from the first new token on, `prefill` before."""

    def __init__(
        self, model: LoopedTransformer, prefill: str = "full", decode: str = "last_available", loops: int | None = None
    ) -> None:
        check_policy("prefill", prefill)
        check_policy("decode", decode)
        self.model, self.prefill, self.decode = model, prefill, decode
        self.loops = model.loops if loops is None else loops
        self.seen: list[list[list[Pair]]] = []  # by token, executed loop and layer

    @torch.no_grad()
    def step(self, token: int, decoding: bool, rule: ExitRule | None = None, seed: int = 0) -> Step:
        """The sequence's next token, as deep as the rule wants it. seed: of the sequence, for rules that draw."""
        policy = self.decode if decoding else self.prefill
        x = self.model.embed_tokens(torch.tensor(token))  # [d]
        states, gates, executed = [torch.zeros_like(x)], [], []
        for loop in range(1, self.loops + 1):
            x, pairs = self._loop(x, loop, policy)
            executed.append(pairs)
            states.append(self.model.norm(x))
            x = states[-1] if self.model.config.norm_between_loops else x
            if self.model.early_exit_gate is not None:
                gates.append(self.model.early_exit_gate(states[-1]))  # [1]
            if loop == self.loops or (rule is not None and self._exits(rule, states, gates, seed)):
                break
        self.seen.append(executed)
        return Step(len(executed), states[-1], self._logits(states[-1]))

    def _loop(self, x: Tensor, loop: int, policy: str) -> tuple[Tensor, list[Pair]]:
        pairs = []
        for number, layer in enumerate(self.model.layers):
            normed = layer.input_layernorm(x)
            linears = (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj)
            q, k, v = (linear(normed).unflatten(-1, (-1, self.model.config.head_dim)) for linear in linears)
            q, k = self._turned(q), self._turned(k)
            earlier = [selected(policy, [each[number] for each in token], loop) for token in self.seen]
            mixed = attention(q, [*earlier, (k, v)])
            x = x + layer.input_layernorm_2(layer.self_attn.o_proj(mixed.flatten()))
            x = x + layer.post_attention_layernorm_2(layer.mlp(layer.post_attention_layernorm(x)))
            pairs.append((k, v))
        return x, pairs

    def _turned(self, x: Tensor) -> Tensor:
        """Rotary embedding of x [heads, D] at the place of the token under way."""
        config, place = self.model.config, len(self.seen)
        cos, sin = rope_tables(place + 1, config.head_dim, config.rope_base, x.device)
        return rotate(x, (cos[place], sin[place]))

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.model.head_weight)

    def _exits(self, rule: ExitRule, states: list[Tensor], gates: list[Tensor], seed: int) -> bool:
        hidden, previous = states[-1], states[-2]
        stay = [F.logsigmoid(-gate.to(torch.promote_types(torch.float32, gate.dtype))) for gate in gates]
        view = LoopView(
            loop=torch.tensor([len(states) - 1]),
            hidden=hidden.unsqueeze(0),
            previous=previous.unsqueeze(0),
            log_survival=torch.stack(stay).sum(0) if stay else torch.zeros(1),
            logits=lambda: self._logits(hidden).unsqueeze(0),
            previous_logits=lambda: self._logits(previous).unsqueeze(0),
            row=torch.tensor([row_number(seed, len(self.seen))]),
            gate_logits=torch.stack(gates) if gates else None,
        )
        return bool(rule.exits(view).item())


def selected(policy: str, loops: list[Pair], loop: int) -> Pair:
    """What a token in `loop` reads of an earlier one that executed `loops`.

    Raises:
        ValueError: the policy is full and the earlier token left before `loop`.
    """
    if policy == "full" and loop > len(loops):
        raise ValueError(f"policy = full: a token left after loop {len(loops)}, and loop {loop} wants it; {HOLES}")
    if policy == "mean":
        keys, values = zip(*loops, strict=True)
        return sum(keys) / len(loops), sum(values) / len(loops)
    chosen = {"first": 1, "last": len(loops), "last_available": min(loop, len(loops)), "full": loop}[policy]
    return loops[chosen - 1]


def attention(q: Tensor, seen: Sequence[Pair]) -> Tensor:
    """Of q [H, D] over keys and values [K, D] each; [H, D]."""
    groups = q.shape[0] // seen[0][0].shape[0]
    keys, values = (torch.stack(each).repeat_interleave(groups, 1) for each in zip(*seen, strict=True))  # [S, H, D]
    weights = (torch.einsum("hd,shd->hs", q, keys) * q.shape[-1] ** -0.5).softmax(-1)
    return torch.einsum("hs,shd->hd", weights, values)


def continued(
    oracle: Oracle,
    prompt: Sequence[int],
    new: int,
    rule: ExitRule | None = None,
    prefill_exits: bool = False,
    seed: int = 0,
) -> list[tuple[int, int]]:
    """Greedy tokens after `prompt`, each with the loops executed to make it."""
    for token in prompt:
        step = oracle.step(token, False, rule if prefill_exits else None, seed)
    made = []
    while True:
        made.append((int(step.logits.argmax()), step.loops))
        if len(made) == new:
            return made
        step = oracle.step(made[-1][0], True, rule, seed)
