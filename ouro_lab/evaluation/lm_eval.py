"""A looped transformer as EleutherAI's lm-eval takes it, at any number of loops or read out by an exit rule.

All loops are computed for every token, and each token is read out where its rule exits: so keys and values of every
loop are there for later tokens, as in the released code, and the scores are those of an exact early exit. Text is made
the same way, with a cache of keys and values.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from torch import Tensor

from ouro_lab.data.tokenizer import TextTokenizer
from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import ExitRule, LoopView, survive
from ouro_lab.inference.generate import stream
from ouro_lab.inference.stack import obstacle
from ouro_lab.model import LoopedTransformer
from ouro_lab.model.transformer import LoopState


class LoopedLM(TemplateLM):
    """lm-eval's requests, answered by a trunk's model and tokenizer.

    loops: other than trained, if given. rule: reads each token out where it exits; None is the last loop. max_length:
    tokens that are read at once, the last ones of a longer text. batch_size: sequences at once.

    Raises:
        ValueError: a rule that needs a gate, where the model has none; loops or max_length out of range.
    """

    def __init__(
        self,
        model: LoopedTransformer,
        tokenizer: TextTokenizer,
        loops: int | None = None,
        rule: ExitRule | None = None,
        max_length: int = 2048,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        if rule is not None and rule.needs_gate and model.early_exit_gate is None:
            raise ValueError(f"rule = {type(rule).__name__}: needs an exit gate, and the model has none")
        if loops is not None and loops < 1:
            raise ValueError(f"loops = {loops}: must be an integer ≥ 1")
        if max_length < 2:
            raise ValueError(f"max_length = {max_length}: must be an integer ≥ 2")
        self.model, self.tokens, self.loops, self.rule = model.eval(), tokenizer, loops, rule
        self.max_length, self.batch_size = max_length, batch_size

    @property
    def eot_token_id(self) -> int:
        return self.tokens.eos

    @property
    def max_gen_toks(self) -> int:
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokens.encode([string])[0].tolist()

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Per request the nats of its continuation and whether greedy decoding gives it."""
        texts = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        sizes = [min(len(request[2]), len(text) - 1) for request, text in zip(requests, texts, strict=True)]
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))  # little padding in a batch
        found: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            hidden = self.read_out([texts[index][:-1] for index in chosen])  # [B, S, d]
            for row, index in zip(hidden, chosen, strict=True):
                end, size = len(texts[index]) - 1, sizes[index]
                found[index] = self._score(row[end - size : end], texts[index][-size:])
        return [found[index] for index in range(len(texts))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token once, with as much before it as fits."""
        results = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            pairs = [(("", ""), *utils.make_disjoint_window(window)) for window in windows]
            results.append(sum(nats for nats, _ in self._loglikelihood_tokens(pairs)))
        return results

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy text up to the first stop string, eos or `max_gen_toks`.

        Raises:
            ValueError: a request that asks for sampling.
        """
        return [self._generate(*request.args) for request in requests]

    @torch.no_grad()
    def read_out(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """The state [B, S, d] of every token where its rule exits; shorter texts are padded on the right."""
        device = self.model.embed_tokens.weight.device
        rows = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
        states = self.model.loop_states(rows.to(device), loops=self.loops)
        if self.rule is None:
            return deque(states, maxlen=1).pop().hidden
        return _exited(states, self.rule, self.model.head_weight)

    def _score(self, hidden: Tensor, targets: list[int]) -> tuple[float, bool]:
        logits = F.linear(hidden, self.model.head_weight)  # [len(targets), V]
        wanted = torch.tensor(targets, device=logits.device)
        nats = logits.float().log_softmax(-1).gather(-1, wanted.unsqueeze(-1)).sum()
        return float(nats), bool((logits.argmax(-1) == wanted).all())

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") or options.get("temperature", 0.0) > 0:
            raise ValueError("generate_until: decoding is greedy; must have do_sample false and temperature 0")
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else list(until)
        ids, made = self.tok_encode(context) or [self.eot_token_id], []
        for token in self._continued(ids, options.get("max_gen_toks", self.max_gen_toks)):
            made.append(token)
            text = self.tokens.decode(made)
            if token == self.eot_token_id or any(stop in text for stop in stops):
                break
        text = self.tokens.decode(made)
        return text[: min([text.find(stop) for stop in stops if stop in text], default=len(text))]

    def _continued(self, ids: list[int], count: int) -> Iterator[int]:
        """Greedy tokens: with the cache as far as its places go, then each from the last `max_length` tokens anew."""
        ids = list(ids)
        cached = 0 if self._engine is None else max(0, min(count, self.max_length + 1 - len(ids)))
        if cached:
            for made in stream(self._engine, [Request(ids)], cached, self.rule):
                ids.append(made.token)
                yield made.token
        for _ in range(count - cached):
            hidden = self.read_out([ids[-self.max_length :]])[0, -1]
            ids.append(int(F.linear(hidden, self.model.head_weight).argmax()))
            yield ids[-1]

    @cached_property
    def _engine(self) -> Engine | None:
        """None where the shape of the model rules a cache out. A place more than is read, for the last token made."""
        if obstacle(self.model.config):
            return None
        return Engine(self.model, 1, self.max_length + 1, decode="full", loops=self.loops, full_depth=True)


def _exited(states: Iterable[LoopState], rule: ExitRule, head: Tensor) -> Tensor:
    """[B, S, d]: of the loops' states, for each token the one after which the rule lets it go."""
    kept, waiting, previous, survival = (torch.empty(0),) * 4
    gates: list[Tensor] = []
    shape = torch.Size()
    for loop, state in enumerate(states, start=1):
        shape, hidden = state.hidden.shape, state.hidden.flatten(0, 1)  # [N, d]
        if loop == 1:
            kept, previous = hidden, torch.zeros_like(hidden)
            waiting = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
            survival = torch.zeros(len(hidden), device=hidden.device)
        if state.gate_logit is not None:
            gates.append(state.gate_logit.flatten())
            survival = survive(survival, gates[-1])
        kept = torch.where(waiting.unsqueeze(-1), hidden, kept)
        waiting = waiting & ~rule.exits(_view(loop, hidden, previous, survival, gates, head))
        previous = hidden
    return kept.view(shape)


def _view(loop: int, hidden: Tensor, previous: Tensor, survival: Tensor, gates: list[Tensor], head: Tensor) -> LoopView:
    row = torch.arange(len(hidden), device=hidden.device)
    logits = (lambda: F.linear(hidden, head)), (lambda: F.linear(previous, head))
    so_far = torch.stack(gates) if gates else None
    return LoopView(torch.full_like(row, loop), hidden, previous, survival, *logits, row, so_far)
