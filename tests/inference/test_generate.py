"""Batches, streams, stops, draws, and the loops that are not computed."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import Entropy, LoopView, QExit, RandomExit, StaticDepth, ThresholdRule
from ouro_lab.inference.generate import generate, stream
from ouro_lab.inference.oracle import Oracle, continued
from ouro_lab.inference.sampling import Sampling
from ouro_lab.inference.slots import ROW_STRIDE

PROMPTS = [[1, 2, 3, 4], [5], [7, 8, 9, 10, 11, 12, 3], [2, 2], [3, 1, 4]]


@dataclass(frozen=True)
class BySequence:
    """Sequence n exits after loop n + 1."""

    needs_gate: bool = False
    needs_logits: bool = False

    def exits(self, view: LoopView) -> Tensor:
        assert view.row is not None
        return view.loop > view.row // ROW_STRIDE


@pytest.mark.parametrize("policies", [("full", "last_available"), ("last", "mean"), ("mean", "first")])
def test_more_prompts_than_slots_come_out_as_each_alone(make_model, scattered, policies: tuple[str, str]) -> None:
    model, (prefill, decode) = make_model(), policies
    together = generate(model, PROMPTS, 9, scattered, slots=2, prefill=prefill, decode=decode)
    for number, (prompt, found) in enumerate(zip(PROMPTS, together, strict=True)):
        alone = continued(Oracle(model, prefill, decode), prompt, 9, scattered, seed=number)
        assert list(zip(found.tokens, found.loops, strict=True)) == alone
    assert len({loops for found in together for loops in found.loops[1:]}) == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exit_that_never_fires_is_the_full_run_to_the_last_bit(make_model, dtype: torch.dtype) -> None:
    def states(rule: QExit | None) -> Tensor:
        engine = Engine(make_model(dtype), 3, 24, decode="full" if rule is None else "last_available")
        made = [*stream(engine, [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS)], 9, rule)]
        assert {token.loops for token in made} == {3}
        return torch.cat([engine.slots.hidden.flatten(), torch.tensor([token.token for token in made], dtype=dtype)])

    assert torch.equal(states(QExit(1.0)), states(None))


def test_in_float32_a_batch_is_its_sequences_up_to_rounding(make_model) -> None:
    model = make_model(torch.float32)
    alone = Engine(model, 1, 8)
    alone.admit({0: Request(PROMPTS[0])}, None)
    batch = Engine(model, 4, 8)
    batch.admit({slot: Request(PROMPTS[slot]) for slot in (0, 1, 3)}, None)
    for engine, slots in ((alone, [0]), (batch, [0, 1, 3])):
        engine.go_on(dict.fromkeys(slots, 6))
        while not engine.advance(slots, None):
            pass
    torch.testing.assert_close(batch.logits([0]), alone.logits([0]), rtol=0, atol=1e-5)


def test_only_executed_loops_are_computed_and_nobody_waits(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(make_model(), 3, 16)
    rows: list[int] = []
    loop = engine.stack.loop
    monkeypatch.setattr(engine.stack, "loop", lambda x, *rest: rows.append(len(x)) or loop(x, *rest))
    requests = [Request([1, 2], seed) for seed in range(3)]
    made = list(stream(engine, requests, 7, BySequence()))
    prefill, decode = rows[:3], rows[3:]
    assert prefill == [6, 6, 6]  # three prompts of two, three loops
    assert sum(decode) == 6 * (1 + 2 + 3) == sum(token.loops for token in made) - 3 * 3
    assert len(decode) == 18  # the deepest sequence's own; the others were done after 6 and 12
    assert [token.loops for token in made if token.sequence == 0] == [3] + 6 * [1]


def test_the_head_is_asked_once_per_state(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rule = make_model(), Entropy(2.0)
    engine = Engine(model, 1, 16)
    rows: list[int] = []
    head = engine.stack.logits
    monkeypatch.setattr(engine.stack, "logits", lambda hidden: rows.append(len(hidden)) or head(hidden))
    made = list(stream(engine, [Request(prompt) for prompt in PROMPTS], 6, rule))
    for number, prompt in enumerate(PROMPTS):
        found = [(token.token, token.loops) for token in made if token.sequence == number]
        assert found == continued(Oracle(model), prompt, 6, rule)
    together = generate(model, PROMPTS, 6, rule, slots=3)  # rows of a batch are not slots
    assert [one.tokens for one in together] == [[t.token for t in made if t.sequence == n] for n in range(len(PROMPTS))]
    loops = [token.loops for token in made]
    assert set(loops) == {1, 2, 3}
    # One for the prompt, never asked about; of the others each loop’s state is seen, by the rule or at the end.
    assert sum(rows) == sum(loops) - 2 * len(PROMPTS)


def test_a_rule_is_shown_what_it_asks_for_and_no_more(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    exits, views = ThresholdRule.exits, []
    monkeypatch.setattr(ThresholdRule, "exits", lambda rule, view: views.append(view) or exits(rule, view))
    engine = Engine(make_model(), 1, 8)
    rules = [QExit(1.0), QExit(1.0, strict_reference=True), Entropy(0.0), RandomExit(3.0)]
    for rule in rules:
        engine.admit({0: Request([1, 2])}, None)
        engine.go_on({0: 3})
        engine.advance([0], rule)
    gate, released, entropy, drawn = views
    assert gate.log_survival < 0 and released.log_survival < 0 and gate.row is gate.gate_logits is None
    assert released.gate_logits is not None and released.gate_logits[0] != 0
    assert (entropy.log_survival, entropy.gate_logits, entropy.row) == (0, None, None)
    assert drawn.row == 2 and drawn.gate_logits is None


def test_a_stream_yields_as_it_goes_and_results_are_its_sum(make_model, scattered) -> None:
    model = make_model()
    engine = Engine(model, 2, 16)
    requests = [Request(prompt, seed) for seed, prompt in enumerate(PROMPTS[:3])]
    made = stream(engine, requests, 6, scattered)
    first = [next(made), next(made)]
    assert {token.sequence for token in first} == {0, 1}  # the third waits for a slot
    everything = [*first, *made]
    whole = generate(model, PROMPTS[:3], 6, scattered, slots=2)
    for number, found in enumerate(whole):
        assert [t.token for t in everything if t.sequence == number] == found.tokens
    assert torch.is_inference_mode_enabled() is False


def test_a_stop_token_ends_its_sequence_and_is_kept(make_model) -> None:
    model = make_model()
    free = generate(model, PROMPTS, 9)
    stop = free[0].tokens[3]
    for found, whole in zip(generate(model, PROMPTS, 9, stop=[stop], slots=2), free, strict=True):
        end = whole.tokens.index(stop) + 1 if stop in whole.tokens else 9
        assert found.tokens == whole.tokens[:end]


def test_draws_belong_to_a_sequence_not_to_its_batch(make_model, scattered) -> None:
    model, sampling = make_model(), Sampling(temperature=1.3, top_p=0.9)
    together = generate(model, PROMPTS, 8, scattered, sampling, seeds=[11, 12, 13, 14, 15], slots=3)
    for prompt, seed, found in zip(PROMPTS, range(11, 16), together, strict=True):
        assert generate(model, [prompt], 8, scattered, sampling, seeds=[seed]) == [found]
    other = generate(model, PROMPTS, 8, scattered, sampling, seeds=[21, 22, 23, 24, 25])
    assert [found.tokens for found in other] != [found.tokens for found in together]


def test_other_loops_than_trained(make_model) -> None:
    model = make_model()
    for loops in (1, 5):
        found = generate(model, PROMPTS[:1], 4, loops=loops)[0]
        tokens = list(PROMPTS[0])
        for token in found.tokens:
            assert token == int(model(torch.tensor([tokens]), loops=loops)[0, -1].argmax())
            tokens.append(token)
        assert found.loops == 4 * [loops]


def test_the_rule_is_not_asked_at_the_last_loop(make_model) -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Noting(StaticDepth):
        def exits(self, view: LoopView) -> Tensor:
            asked.extend(view.loop.tolist())
            return torch.zeros_like(view.loop, dtype=torch.bool)

    found = generate(make_model(), PROMPTS[:2], 4, Noting(1))
    assert set(asked) == {1, 2}
    assert found[0].loops == 4 * [3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[1], []]}, r"prompts\[1\] is empty: must hold at least one token"),
        ({"prompts": [[1, 23]]}, r"prompts\[0\]\[1\] = 23: must be a token id from 0 to 22"),
        ({"prompts": [[-1]]}, r"prompts\[0\]\[0\] = -1: must be a token id"),
        ({"max_length": 8}, r"prompts\[0\] has 5 tokens: must be at most 4 \(max_length 8 less max_new_tokens 4\)"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0: must be an integer ≥ 1"),
        ({"stop": [99]}, r"stop\[0\] = 99: must be a token id from 0 to 22"),
        ({"decode": "deepest"}, "decode = 'deepest': must be one of full, last_available, last, first, mean"),
        ({"prefill": "none"}, "prefill = 'none': must be one of"),
        ({"decode": "full", "rule": StaticDepth(1)}, "decode = full: must be last_available, last, first or mean"),
        (
            {"prefill_exits": True, "rule": StaticDepth(1)},
            "prefill = full: must be last_available, last, first or mean",
        ),
        ({"rule": QExit(0.5)}, r"rule = QExit\(.*\): needs an exit gate, which this model lacks"),
        ({"loops": 0}, "loops = 0: must be an integer ≥ 1"),
    ],
)
def test_bad_input_is_named_in_one_line(make_model, changes: dict, message: str) -> None:
    arguments = {"prompts": [[1, 2, 3, 4, 5]], "max_new_tokens": 4} | changes
    with pytest.raises(ValueError, match=message) as caught:
        generate(make_model(gate=False), **arguments)
    assert "\n" not in str(caught.value)


def test_an_untied_stack_is_refused(make_model) -> None:
    with pytest.raises(ValueError, match="backbone.read_out_every = 1: for generation it must be null"):
        generate(make_model(loops=1, gate=False, read_out_every=1), [[1]], 1)
