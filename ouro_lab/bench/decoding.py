"""Generation: a full-depth token against its matrix products alone, exits against what their loops cost, speculation.

Ideal time of exits: executed loops at the time of a pass over full slots, neighbours at other loops, so that they share
no attention; and tokens at the time of the head, both measured in turn with it. Weights are untrained; what is drawn is
how deep a token goes.
"""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean, median, pstdev

import torch
from torch import Tensor

from ouro_lab.bench.table import Line, Row
from ouro_lab.bench.timing import Effort, Samples, interleave, ratio
from ouro_lab.inference.cache import POLICIES, KVCache
from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import ExitRule, RandomExit
from ouro_lab.inference.generate import stream
from ouro_lab.inference.speculative import Speculator
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.model.transformer import BRANCH_ENDS

SHAPE = ModelConfig(vocab_size=4096, layers=8, loops=4, width=512, heads=8)
PROMPT, TOKENS, LENGTH = 64, 4, 256  # tokens; a call makes so many per slot
EXIT_TOKENS = 16  # per slot and call where depths are drawn
PASSES, HEADS = 16, 256  # timed at a time, so that all sides of a round take about as long
DEPTHS = (0.4, 0.3, 0.2, 0.1)  # of exits after loop 1 … 4: mean 2, standard deviation 1
AGREEING = (0.01, 0.03)  # gains of what layers add: from nearly all first guesses that last, to few


def decode(effort: Effort) -> Iterator[Line]:
    for batch in (1, 8):
        samples = interleave({"ours": Decoding(engine(batch), None), "products": products(SHAPE, batch)}, effort)
        what = f"{TOKENS} tokens at full depth, {describe(batch)}, against their products alone: time"
        medians = median(samples["ours"]), median(samples["products"])
        yield Row(f"decode_{batch}", what, ratio(samples, "ours", "products"), 1.2, True, *medians, "s", samples)


def decode_exits(effort: Effort) -> Iterator[Line]:
    for batch, target in ((1, 0.90), (8, 0.75)):
        ours = Decoding(engine(batch), RandomExit(probabilities=DEPTHS), new=EXIT_TOKENS)
        sides = {"ours": ours, "pass": repeated(ours.one_pass, PASSES), "head": repeated(ours.head, HEADS)}
        samples = interleave(sides, effort)
        loops, tokens = sum(ours.depths) / batch / ours.calls, len(ours.depths) / batch / ours.calls
        drawn = f"{fmean(ours.depths):.2f} loops (s.d. {pstdev(ours.depths):.2f})"
        what = f"tokens after {drawn}, {describe(batch)}: share of the ideal speed"
        yield share_of_ideal(f"exits_{batch}", what, samples, loops / PASSES, tokens / HEADS, target)


def share_of_ideal(case: str, what: str, samples: Samples, passes: float, heads: float, target: float) -> Row:
    """Of a call of "ours", whose ideal is so many calls of "pass" and of "head", timed in turn with it."""
    both = zip(samples["pass"], samples["head"], strict=True)
    samples["ideal"] = [passes * body + heads * head for body, head in both]
    medians = median(samples["ours"]), median(samples["ideal"])
    return Row(case, what, ratio(samples, "ideal", "ours"), target, False, *medians, "s", samples)


def decode_cache(effort: Effort) -> Iterator[Line]:
    full = KVCache(SHAPE, "full", 8, LENGTH, SHAPE.loops, device="meta").bytes
    for policy in POLICIES:
        held = KVCache(SHAPE, policy, 8, LENGTH, SHAPE.loops, device="meta").bytes
        what = f"keys and values of 8 × {LENGTH} positions under {policy}, against full: memory"
        yield Row(f"cache_{policy}", what, held / full, None, True, held, full, "B")


def speculation(effort: Effort) -> Iterator[Line]:
    """Ours drafts after one loop and verifies; the rival is full depth, token by token. Both make the same text."""
    prompt, new = random_prompts(1), 32
    for gain in AGREEING:
        model = agreeing(gain)
        plain, speculator = engine(1, model), Speculator(model, 1, LENGTH, draft_loops=1, draft_tokens=4)
        sides = {
            "ours": partial(speculator.generate, prompt, new),
            "rival": lambda plain=plain: list(stream(plain, [Request(prompt[0])], new)),
        }
        found = speculator.generate(prompt, new)[0]
        samples = interleave(sides, effort)
        share = f"{found.accepted} of {found.drafted} accepted"
        what = f"{new} tokens, drafts of 4 after loop 1 of {SHAPE.loops}, {share}, against full depth: speed"
        medians = median(samples["ours"]), median(samples["rival"])
        yield Row("speculation", what, ratio(samples, "rival", "ours"), None, False, *medians, "s", samples)


class Decoding:
    """A call goes on from the prompts until `new` tokens per slot are made; no slot is ever idle."""

    def __init__(self, engine: Engine, rule: ExitRule | None, new: int = TOKENS) -> None:
        self.engine, self.rule, self.new = engine, rule, new
        self.slots = list(range(engine.count))
        self.calls = 0
        self.depths: list[int] = []  # of all tokens made so far
        prompts = enumerate(random_prompts(engine.count))
        engine.admit({slot: Request(prompt, slot) for slot, prompt in prompts}, None)
        self.first = dict(zip(self.slots, self.head(), strict=True))

    def __call__(self) -> None:
        for slot in self.slots:
            self.engine.slots.position[slot] = PROMPT - 1
        self.engine.go_on(self.first)
        self.calls += 1
        wanted = len(self.depths) + self.new * len(self.slots)
        while len(self.depths) < wanted:
            if over := self.engine.advance(self.slots, self.rule):
                self.depths += [self.engine.slots.loop[slot] for slot in over]
                self.engine.go_on(dict(zip(over, self.engine.logits(over).argmax(-1).tolist(), strict=True)))

    def head(self) -> list[int]:
        return self.engine.logits(self.slots).argmax(-1).tolist()

    @torch.inference_mode()
    def one_pass(self) -> None:
        """At the places where the slots are, one at each loop in turn; nothing is decided."""
        self.engine.slots.loop = [slot % self.engine.slots.loops for slot in self.slots]
        self.engine.slots.advance(self.slots, self.engine.cache)


def products(config: ModelConfig, batch: int) -> Callable[[], None]:
    """Of as many tokens as a call makes: the layers' fused products, scores and mix over the mean length, the head.

    Every layer has its own weights, every layer and loop its own keys and values, as in the model: what does not fit
    into the caches has to come from memory here too.
    """
    width, ffn, heads, size = config.width, config.ffn_width or 0, config.heads, config.head_dim or 0
    length = PROMPT + TOKENS // 2
    shapes = ((width, 3 * width), (width, width), (width, 2 * ffn), (ffn, width))
    layers = [[torch.randn(*shape) for shape in shapes] for _ in range(config.layers)]
    head = torch.randn(width, config.vocab_size)
    keys, values = torch.randn(2, config.loops, config.layers, batch * heads, length, size)
    x, wide, q = torch.randn(batch, width), torch.randn(batch, ffn), torch.randn(batch * heads, 1, size)

    def layer(weights: list[Tensor], k: Tensor, v: Tensor) -> None:
        torch.mm(x, weights[0])
        torch.bmm(torch.bmm(q, k.transpose(1, 2)), v)
        torch.mm(x, weights[1])
        torch.mm(x, weights[2])
        torch.mm(wide, weights[3])

    @torch.inference_mode()
    def run() -> None:
        for _ in range(TOKENS):
            for loop in range(config.loops):
                for number, weights in enumerate(layers):
                    layer(weights, keys[loop, number], values[loop, number])
            torch.mm(x, head)

    return run


def repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()

    return run


def untrained() -> LoopedTransformer:
    model = LoopedTransformer(SHAPE)
    model.initialise(0)
    return model


def agreeing(gain: float) -> LoopedTransformer:
    """A model whose loops after the first change little, as those of a trained one do."""
    model = untrained()
    for name, parameter in model.named_parameters():
        if name.endswith(BRANCH_ENDS[SHAPE.norms]):
            parameter.data.fill_(gain)
    return model


def engine(batch: int, model: LoopedTransformer | None = None) -> Engine:
    return Engine(untrained() if model is None else model, batch, LENGTH)


def random_prompts(count: int) -> list[list[int]]:
    return torch.randint(SHAPE.vocab_size, (count, PROMPT), generator=torch.Generator().manual_seed(0)).tolist()


def describe(batch: int) -> str:
    return f"{SHAPE.shape}, d {SHAPE.width}, V {SHAPE.vocab_size:,}, B {batch}, float32"
