"""Text from a looped transformer, each token as deep as an exit rule wants it, in batches that wait for nobody.

Slots at different loops share every pass through the stack; one whose token has exited starts its next token, or the
next prompt, in the pass that follows (continuous depth batching). So the loops that a rule saves are not computed.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, NamedTuple

import torch

from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import ExitRule
from ouro_lab.inference.sampling import Sampling
from ouro_lab.model.transformer import LoopedTransformer

GREEDY = Sampling()


class Token(NamedTuple):
    sequence: int  # index into the requests
    token: int
    loops: int  # executed at the position that made it


@dataclass(frozen=True)
class Generated:
    """New tokens, a stop token included, and the loops executed for each."""

    tokens: list[int] = field(default_factory=list)
    loops: list[int] = field(default_factory=list)


def generate(
    model: LoopedTransformer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    rule: ExitRule | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[int] = (),
    seeds: Sequence[int] | None = None,
    slots: int = 8,
    **options: Any,
) -> list[Generated]:
    """What follows each prompt of token ids. seeds: one per prompt, default its index. options: `Engine`'s.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """
    requests = [Request(prompt, i if seeds is None else seeds[i]) for i, prompt in enumerate(prompts)]
    longest = max((len(prompt) for prompt in prompts), default=0) + max_new_tokens
    engine = Engine(model, max(1, min(slots, len(prompts))), **{"max_length": max(1, longest)} | options)
    results = [Generated() for _ in requests]
    for made in stream(engine, requests, max_new_tokens, rule, sampling, stop):
        results[made.sequence].tokens.append(made.token)
        results[made.sequence].loops.append(made.loops)
    return results


def stream(
    engine: Engine,
    requests: Sequence[Request],
    max_new_tokens: int,
    rule: ExitRule | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[int] = (),
) -> Iterator[Token]:
    """Tokens as they are made. More requests than slots wait for one. An engine serves one stream at a time.

    Raises:
        ValueError: one line naming the field, its value and what would be valid, before anything is computed.
    """
    engine.check_rule(rule)
    check_requests(requests, max_new_tokens, stop, engine.max_length, engine.vocab_size)
    return _drain(_Batch(engine, requests, max_new_tokens, rule, sampling, frozenset(stop)))


def _drain(batch: "_Batch") -> Iterator[Token]:
    while batch.waiting or batch.busy:
        yield from batch.step()


@dataclass
class _Sequence:
    number: int
    request: Request
    left: int  # tokens it may still make
    generator: torch.Generator


@dataclass
class _Batch:
    engine: Engine
    requests: InitVar[Sequence[Request]]
    limit: InitVar[int]
    rule: ExitRule | None
    sampling: Sampling
    stop: frozenset[int]
    busy: dict[int, _Sequence] = field(default_factory=dict)  # by slot

    def __post_init__(self, requests: Sequence[Request], limit: int) -> None:
        self.waiting = deque(
            _Sequence(number, request, limit, torch.Generator().manual_seed(request.seed))
            for number, request in enumerate(requests)
        )

    def step(self) -> list[Token]:
        """One pass, or waiting prompts into free slots; the tokens that came of it."""
        over = self._admit() or self.engine.advance(sorted(self.busy), self.rule)
        made, going_on = [], {}
        for slot, token in zip(over, self._pick(over), strict=True):
            sequence = self.busy[slot]
            sequence.left -= 1
            made.append(Token(sequence.number, token, self.engine.slots.loop[slot]))
            if token in self.stop or not sequence.left:
                del self.busy[slot]
            else:
                going_on[slot] = token
        self.engine.go_on(going_on)
        return made

    def _admit(self) -> list[int]:
        free = [slot for slot in range(self.engine.count) if slot not in self.busy]
        new = {slot: self.waiting.popleft() for slot in free[: len(self.waiting)]}
        if new:
            self.busy |= new
            self.engine.admit({slot: sequence.request for slot, sequence in new.items()}, self.rule)
        return list(new)

    def _pick(self, slots: list[int]) -> list[int]:
        if not slots:
            return []
        uniform = None
        if self.sampling.draws:
            drawn = [torch.rand(1, generator=self.busy[slot].generator, dtype=torch.float64) for slot in slots]
            uniform = torch.cat(drawn).to(self.engine.device)
        return self.sampling(self.engine.logits(slots), uniform).tolist()


def check_requests(
    requests: Sequence[Request], max_new_tokens: int, stop: Sequence[int], max_length: int, vocab_size: int
) -> None:
    """Raises ValueError, one line, unless every sequence fits `max_length` and every id the vocabulary."""
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens!r}: must be an integer ≥ 1")
    for number, request in enumerate(requests):
        name, length, room = f"prompts[{number}]", len(request.prompt), max_length - max_new_tokens
        if not length:
            raise ValueError(f"{name} is empty: must hold at least one token")
        if length > room:
            made_of = f"max_length {max_length} less max_new_tokens {max_new_tokens}"
            raise ValueError(f"{name} has {length} tokens: must be at most {room} ({made_of})")
        check_ids(name, request.prompt, vocab_size)
    check_ids("stop", stop, vocab_size)


def check_ids(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Raises ValueError, one line, unless all are ids of the vocabulary."""
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise ValueError(f"{name}[{place}] = {token}: must be a token id from 0 to {vocab_size - 1}")
