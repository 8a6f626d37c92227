"""Every fast way against the oracle, in float64; and the oracle against the model and against itself."""

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from ouro_lab.inference.cache import POLICIES, KVCache
from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import QExit, RandomExit, StaticDepth
from ouro_lab.inference.oracle import Oracle, Step, continued, selected
from ouro_lab.model import LoopedTransformer

PROMPTS = [[1, 2, 3], [5], [7, 8, 9, 10]]
NEW = [6, 11, 0, 3]  # teacher-forced
EXACT = {"rtol": 0, "atol": 1e-9}
VARIANTS = [
    {},
    {"norms": 2, "norm_between_loops": False, "tie_embeddings": True},
    {"norm": "layer", "mlp": "gelu", "bias": True, "gate": False},
    {"mlp": "gelu", "ffn_width": 1},
    {"kv_heads": 4, "head_dim": 8, "attention_float32": True},
]


def engine_logits(engine: Engine, prompts: list[list[int]], rule: object) -> tuple[list[list[Tensor]], list[list[int]]]:
    """Logits and loops at the prompt's end and at every token of `NEW`, per prompt."""
    slots = list(range(len(prompts)))
    engine.admit({slot: Request(prompts[slot], slot) for slot in slots}, rule)
    logits = [[row] for row in engine.logits(slots)]
    loops = [[engine.slots.loop[slot]] for slot in slots]
    read = dict.fromkeys(slots, 0)
    engine.go_on({slot: NEW[0] for slot in slots})
    while read:
        for slot in engine.advance(list(read), rule):
            logits[slot].append(engine.logits([slot])[0])
            loops[slot].append(engine.slots.loop[slot])
            read[slot] += 1
            if read[slot] == len(NEW):
                del read[slot]
            else:
                engine.go_on({slot: NEW[read[slot]]})
    return logits, loops


def oracle_steps(oracle: Oracle, prompt: list[int], rule: object, prefill_exits: bool, seed: int) -> list[Step]:
    for token in prompt:
        step = oracle.step(token, False, rule if prefill_exits else None, seed)
    return [step, *(oracle.step(token, True, rule, seed) for token in NEW)]


@pytest.mark.parametrize("decode", POLICIES)
@pytest.mark.parametrize("prefill", POLICIES)
def test_batches_at_mixed_depths_are_the_oracle(make_model, scattered, prefill: str, decode: str) -> None:
    model = make_model()
    for rule, prefill_exits in product((None, scattered), (False, True)):
        if (rule is None and prefill_exits) or (rule and (decode == "full" or (prefill_exits and prefill == "full"))):
            continue
        engine = Engine(model, 3, 16, prefill, decode, prefill_exits=prefill_exits)
        logits, loops = engine_logits(engine, PROMPTS, rule)
        for slot, prompt in enumerate(PROMPTS):
            steps = oracle_steps(Oracle(model, prefill, decode), prompt, rule, prefill_exits, slot)
            assert loops[slot] == [step.loops for step in steps]
            for found, step in zip(logits[slot], steps, strict=True):
                torch.testing.assert_close(found, step.logits, **EXACT)


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("rule", [None, QExit(0.6), QExit(0.6, strict_reference=True), RandomExit(mean=1.7)])
def test_every_block_and_rule_is_the_oracle(make_model, changes: dict, rule) -> None:
    model = make_model(**changes)
    if rule is not None and rule.needs_gate and model.early_exit_gate is None:
        return
    logits, loops = engine_logits(Engine(model, 3, 16), PROMPTS, rule)
    steps = oracle_steps(Oracle(model), PROMPTS[2], rule, False, 2)
    assert loops[2] == [step.loops for step in steps]
    torch.testing.assert_close(torch.stack(logits[2]), torch.stack([step.logits for step in steps]), **EXACT)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_oracle_at_full_depth_is_the_model(make_model, changes: dict) -> None:
    model: LoopedTransformer = make_model(**changes)
    for loops in (1, 3, 5):
        steps = oracle_steps(Oracle(model, loops=loops), PROMPTS[0], None, False, 0)
        whole = model(torch.tensor([PROMPTS[0] + NEW]), loops=loops)[0, len(PROMPTS[0]) - 1 :]
        torch.testing.assert_close(torch.stack([step.logits for step in steps]), whole, **EXACT)


@pytest.mark.parametrize(("slots", "groups"), [([0, 1, 2, 3], 1), ([0, 1, 3], 2), ([3, 1], 2)])
def test_slots_side_by_side_at_one_place_share_their_products(
    make_model, monkeypatch: pytest.MonkeyPatch, slots: list[int], groups: int
) -> None:
    model, prompts = make_model(), [[1, 2, 3], [5, 4, 8], [7, 8, 9], [10, 3, 2]]
    engine = Engine(model, 4, 16)
    engine.admit({slot: Request(prompts[slot]) for slot in slots}, None)
    engine.go_on(dict.fromkeys(slots, 6))
    heads, bmm = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda x, *rest, **out: heads.append(len(x)) or bmm(x, *rest, **out))
    while not engine.advance(slots, None):
        pass
    products = 3 * 2 * 2  # loops, layers, scores and mix
    assert (len(heads), sum(heads)) == (products * groups, products * len(slots) * model.config.kv_heads)
    for found, slot in zip(engine.logits(slots), slots, strict=True):
        oracle = Oracle(model)
        for token in prompts[slot]:
            oracle.step(token, False, None, 0)
        torch.testing.assert_close(found, oracle.step(6, True, None, 0).logits, **EXACT)


def test_policies_are_five_different_things(make_model, scattered) -> None:
    model = make_model()

    def logits(policy: str) -> Tensor:
        rule = None if policy == "full" else scattered
        return torch.stack([s.logits for s in oracle_steps(Oracle(model, decode=policy), PROMPTS[0], rule, False, 0)])

    found = {policy: logits(policy) for policy in POLICIES}
    for one, other in combinations(POLICIES, 2):
        assert (found[one] - found[other]).abs().max() > 1e-3


def test_selection_by_hand() -> None:
    loops = [(torch.tensor([float(t)]), torch.tensor([10.0 * t])) for t in (1, 2, 4)]
    values = {policy: selected(policy, loops, 2)[0].item() for policy in POLICIES}
    assert values == {"full": 2, "last_available": 2, "last": 4, "first": 1, "mean": pytest.approx(7 / 3)}
    assert selected("last_available", loops, 9)[1].item() == 40
    with pytest.raises(ValueError, match="policy = full: a token left after loop 3, and loop 4 wants it"):
        selected("full", loops, 4)


def test_a_hole_is_an_error_also_where_the_rule_was_not_checked(make_model) -> None:
    engine = Engine(make_model(), 1, 8, decode="full")
    engine.admit({0: Request([1, 2])}, None)
    engine.go_on({0: 3})
    with pytest.raises(ValueError, match="policy = full: a token left after loop 1 of 3"):
        engine.advance([0], StaticDepth(1))


def test_memory_is_allocated_once_and_shared_policies_take_their_share(make_model) -> None:
    model = make_model(torch.float32)
    held = {policy: KVCache(model.config, policy, 4, 100, 3).bytes for policy in POLICIES}
    plane = 2 * model.config.layers * 4 * 100 * model.config.kv_heads * model.config.head_dim * 4
    assert held["full"] == held["last_available"] == 3 * plane
    assert held["last"] == plane
    assert held["first"] == held["mean"] == plane * 101 / 100  # and one token per slot under way
    engine = Engine(model, 3, 16)
    where, size = engine.cache.data.data_ptr(), engine.cache_bytes
    engine_logits(engine, PROMPTS, None)
    assert (engine.cache.data.data_ptr(), engine.cache_bytes) == (where, size)


def test_a_slot_may_be_left_with_infinities(make_model) -> None:
    model = make_model()
    for policy in ("first", "mean"):
        engine = Engine(model, 3, 16, decode=policy)
        with torch.inference_mode():
            engine.cache.pending.fill_(float("inf"))
            engine.cache.data.fill_(float("nan"))
        logits, _ = engine_logits(engine, PROMPTS, StaticDepth(2))
        steps = oracle_steps(Oracle(model, decode=policy), PROMPTS[1], StaticDepth(2), False, 1)
        torch.testing.assert_close(logits[1][-1], steps[-1].logits, **EXACT)


def test_narrow_weights_stay_near_the_oracle(make_model) -> None:
    model = make_model(torch.bfloat16, init_std=0.1)
    logits, _ = engine_logits(Engine(model, 3, 16), PROMPTS, None)
    steps = oracle_steps(Oracle(model), PROMPTS[0], None, False, 0)
    exact = oracle_steps(Oracle(model.double()), PROMPTS[0], None, False, 0)
    error = max(float((step.logits - wide.logits).abs().max()) for step, wide in zip(steps, exact, strict=True))
    for found, wide in zip(logits[0], exact, strict=True):
        assert (found - wide.logits).abs().max() < 3 * error


def test_greedy_continuation_of_the_oracle_counts_loops(make_model) -> None:
    made = continued(Oracle(make_model()), PROMPTS[0], 4, StaticDepth(2))
    assert [loops for _, loops in made] == [3, 2, 2, 2]
