"""Every token through all loops and read out where its rule lets it go: the text of parallel passes without a cache."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ouro_lab.inference.engine import Engine
from ouro_lab.inference.exits import Entropy, ExitRule, HiddenDifference, LoopKL, LoopView, QExit, RandomExit, survive
from ouro_lab.inference.generate import generate
from ouro_lab.inference.slots import row_number
from ouro_lab.model import LoopedTransformer, ModelConfig

PROMPTS = [[3], [1, 2, 3, 4, 5], [7, 7]]
NEW, LOOPS = 8, 4
RULES = [QExit(0.5), QExit(0.6, strict_reference=True), Entropy(2.0), LoopKL(0.5), HiddenDifference(2.0)]
RULES += [RandomExit(2.5)]


@pytest.fixture(scope="module")
def model() -> LoopedTransformer:
    made = LoopedTransformer(ModelConfig(13, 2, LOOPS, 16, 4, kv_heads=2, gate=True, init_std=0.5, attention="plain"))
    made.initialise(3)
    return made.double().eval()


def views(model: LoopedTransformer, ids: list[int], seed: int) -> Iterator[LoopView]:
    """Of the last token, after each loop, from one pass over the whole text."""
    states = list(model.loop_states(torch.tensor([ids])))
    previous, survival = torch.zeros_like(states[0].hidden[:, -1]), torch.zeros(1, dtype=torch.float64)
    gates: list[Tensor] = []
    for loop, state in enumerate(states, start=1):
        hidden, before = state.hidden[:, -1], previous
        gates.append(state.gate_logit[:, -1])
        survival = survive(survival, gates[-1])
        yield LoopView(
            loop=torch.tensor([loop]),
            hidden=hidden,
            previous=before,
            log_survival=survival,
            logits=lambda hidden=hidden: hidden @ model.head_weight.T,
            previous_logits=lambda before=before: before @ model.head_weight.T,
            row=torch.tensor([row_number(seed, len(ids) - 1)]),
            gate_logits=torch.stack(gates),
        )
        previous = hidden


@torch.no_grad()
def uncached(model: LoopedTransformer, prompt: list[int], rule: ExitRule | None, seed: int) -> tuple[list[int], set]:
    """Greedy tokens, and the loops after which they were read."""
    ids, depths = list(prompt), set()
    for _ in range(NEW):
        for view in views(model, ids, seed):
            last = int(view.loop) == LOOPS
            if last or (rule is not None and bool(rule.exits(view))):
                break
        depths.add(int(view.loop))
        ids.append(int(view.logits().argmax()))
    return ids[len(prompt) :], depths


@pytest.mark.parametrize("rule", [None, *RULES], ids=str)
def test_the_text_is_that_of_whole_passes(model: LoopedTransformer, rule: ExitRule | None) -> None:
    want = [uncached(model, prompt, rule, seed) for seed, prompt in enumerate(PROMPTS)]
    found = generate(model, PROMPTS, NEW, rule, slots=2, decode="full", full_depth=True)
    assert [made.tokens for made in found] == [tokens for tokens, _ in want]
    assert all(made.loops == [LOOPS] * NEW for made in found)
    depths = set().union(*(seen for _, seen in want))
    assert len(depths) > 1 if rule is not None else depths == {LOOPS}


def test_a_slot_forgets_what_its_last_owner_read_early(model: LoopedTransformer) -> None:
    found = generate(model, [*PROMPTS, *PROMPTS], NEW, RULES[0], slots=1, seeds=[0] * 6, decode="full", full_depth=True)
    assert [made.tokens for made in found[:3]] == [made.tokens for made in found[3:]]


@pytest.mark.parametrize("options", [{"prefill": "first"}, {"decode": "mean"}, {"prefill_exits": True}], ids=str)
def test_other_policies_are_refused(model: LoopedTransformer, options: dict) -> None:
    with pytest.raises(
        ValueError, match=r"^full_depth = true: prefill = \w+, decode = \w+: must be full, without exits$"
    ):
        Engine(model, 1, 8, full_depth=True, **options)
