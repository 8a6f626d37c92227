"""Self-speculation: the first loops draft some tokens, one pass through the rest verifies them, greedy.

The draft's states and its keys and values of loops 1 … r are those that full depth would make of the same tokens: the
verifier goes on from them, so a draft that is accepted costs no loop twice. What comes out is the full-depth greedy
text, up to ties that rounding decides. Source of the idea: paper §7.3, which measures nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.generate import check_requests
from ouro_lab.model.transformer import LoopedTransformer


@dataclass
class Speculated:
    """New tokens, a stop token included; how many tokens were drafted and how many of these were right.

    passes: through the stack, one after another, of drafting and verifying; plain decoding takes T a token.
    """

    tokens: list[int] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0
    passes: int = 0


class Speculator:
    """draft_loops: after which loop a draft exits, fewer than all. draft_tokens: how many are drafted at a time.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """

    def __init__(
        self,
        model: LoopedTransformer,
        slots: int,
        max_length: int,
        draft_loops: int = 1,
        draft_tokens: int = 4,
        loops: int | None = None,
    ) -> None:
        if draft_tokens < 1:
            raise ValueError(f"draft_tokens = {draft_tokens!r}: must be an integer ≥ 1")
        self.max_length = max_length
        self.engine = Engine(model, slots, max_length + draft_tokens, decode="full", loops=loops)  # drafts may run over
        self.loops, self.draft_loops, self.draft_tokens = self.engine.slots.loops, draft_loops, draft_tokens
        if not 1 <= draft_loops < self.loops:
            raise ValueError(f"draft_loops = {draft_loops!r}: must be from 1 to {self.loops - 1}, fewer than all loops")

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[int] = ()
    ) -> list[Speculated]:
        """What follows each prompt; all are begun at once, so there may be no more than slots.

        Raises:
            ValueError: one line naming the field, its value and what would be valid.
        """
        requests = dict(enumerate(map(Request, prompts)))
        if len(prompts) > self.engine.count:
            raise ValueError(f"prompts: {len(prompts)} are given: must be at most {self.engine.count}, the slots")
        check_requests(list(requests.values()), max_new_tokens, stop, self.max_length, self.engine.vocab_size)
        if not prompts:
            return []
        self.engine.admit(requests, None)
        results = {slot: Speculated() for slot in requests}
        first = self.engine.logits(list(requests)).argmax(-1).tolist()
        made = {slot: [token] for slot, token in zip(requests, first, strict=True)}
        active: dict[int, int] = {}  # by slot, the position of the token that is made last and not yet read
        while made:
            for slot, tokens in made.items():
                place = active.pop(slot, len(requests[slot].prompt) - 1) + len(tokens)
                if self._keep(results[slot], tokens, max_new_tokens, stop):
                    active[slot] = place
            made = self._round(active, results, max_new_tokens) if active else {}
        return list(results.values())

    def _keep(self, result: Speculated, tokens: list[int], limit: int, stop: Sequence[int]) -> bool:
        """Takes tokens up to a stop token or the limit; whether the sequence goes on."""
        for token in tokens[: limit - len(result.tokens)]:
            result.tokens.append(token)
            if token in stop:
                return False
        return len(result.tokens) < limit

    @torch.inference_mode()
    def _round(self, active: dict[int, int], results: dict[int, Speculated], limit: int) -> dict[int, list[int]]:
        """Draft and verify once for all of `active`; the tokens that full depth makes, by slot, at least one each."""
        slots, places = list(active), list(active.values())
        count = min(self.draft_tokens, max(limit - len(results[slot].tokens) for slot in slots) - 1)
        tokens = torch.tensor([results[slot].tokens[-1] for slot in slots], device=self.engine.device)
        drafts, streams = [], []
        for ahead in range(count + 1):  # the last draft is read too: if all are right, its successor is one more token
            where = (slots, [place + ahead for place in places])
            stream, hidden = self._loops(self.engine.stack.embed(tokens), 1, self.draft_loops, *where)
            streams.append(stream)
            if ahead < count:
                tokens = self.engine.stack.logits(hidden).argmax(-1)
                drafts.append(tokens.tolist())
        where = (slots * (count + 1), [place + ahead for ahead in range(count + 1) for place in places])
        _, hidden = self._loops(torch.cat(streams), self.draft_loops + 1, self.loops, *where)
        true = self.engine.stack.logits(hidden).argmax(-1).view(count + 1, -1).tolist()
        made = {}
        for row, slot in enumerate(slots):
            right = _agreeing([draft[row] for draft in drafts], [each[row] for each in true])
            results[slot].drafted += count
            results[slot].accepted += right
            results[slot].passes += (count + 1) * self.draft_loops + self.loops - self.draft_loops
            made[slot] = [each[row] for each in true[: right + 1]]
        return made

    def _loops(self, x: Tensor, first: int, last: int, slots: list[int], positions: list[int]) -> tuple[Tensor, Tensor]:
        """Loops `first` … `last` of rows [R, d]: the stream and the normed state."""
        stack, cache, hidden = self.engine.stack, self.engine.cache, x
        rope = stack.rope(torch.tensor(positions, device=x.device), cache.length)
        for loop in range(first, last + 1):
            x, hidden = stack.loop(x, rope, cache.attend(slots, [loop] * len(slots), positions))
        return x, hidden


def _agreeing(drafts: list[int], true: list[int]) -> int:
    """How many drafts are right before the first that is not."""
    wrong = [place for place, draft in enumerate(drafts) if draft != true[place]]
    return wrong[0] if wrong else len(drafts)
