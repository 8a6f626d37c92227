"""What speculation says is what full depth says."""

import pytest

from ouro_lab.inference.generate import generate
from ouro_lab.inference.speculative import Speculator

PROMPTS = [[1, 2, 3, 4], [5], [7, 8, 9, 10, 11, 12, 3], [2, 2]]


@pytest.mark.parametrize("draft_tokens", [1, 3, 6])
@pytest.mark.parametrize("draft_loops", [1, 2])
def test_text_is_that_of_full_depth_also_in_batches(make_model, draft_loops: int, draft_tokens: int) -> None:
    for seed in range(2):
        model = make_model(seed=seed)
        plain = generate(model, PROMPTS, 10)
        stop = [plain[0].tokens[4]]
        speculator = Speculator(model, 4, 17, draft_loops, draft_tokens)
        assert [found.tokens for found in speculator.generate(PROMPTS, 10)] == [found.tokens for found in plain]
        stopped = [found.tokens for found in generate(model, PROMPTS, 10, stop=stop)]
        assert [found.tokens for found in speculator.generate(PROMPTS, 10, stop)] == stopped


def test_right_drafts_are_taken_whole(make_model, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    for layer in model.layers:  # layers that add nothing: every loop says the same
        layer.input_layernorm_2.weight.data.zero_()
        layer.post_attention_layernorm_2.weight.data.zero_()
    model.norm.weight.data.fill_(1.0)
    speculator = Speculator(model, 1, 20, 1, 3)
    rows: list[int] = []
    loop = speculator.engine.stack.loop
    monkeypatch.setattr(speculator.engine.stack, "loop", lambda x, *rest: rows.append(len(x)) or loop(x, *rest))
    found = speculator.generate([[1, 2]], 9)[0]
    assert (found.drafted, found.accepted) == (6, 6)
    assert rows == [2, 2, 2] + 2 * [1, 1, 1, 1, 4, 4]  # prefill; four tokens a round, loops 2 and 3 for all at once


def test_wrong_drafts_are_counted(make_model) -> None:
    found = Speculator(make_model(), 4, 17, 1, 3).generate(PROMPTS, 10)
    assert all(0 <= each.accepted < each.drafted for each in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draft_loops": 3}, "draft_loops = 3: must be from 1 to 2, fewer than all loops"),
        ({"draft_loops": 0}, "draft_loops = 0"),
        ({"draft_tokens": 0}, "draft_tokens = 0: must be an integer ≥ 1"),
        ({"slots": 0}, "slots = 0"),
    ],
)
def test_bad_values_are_named(make_model, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Speculator(make_model(), **({"slots": 1, "max_length": 8} | changes))


def test_bad_prompts_are_named(make_model) -> None:
    speculator = Speculator(make_model(), 1, 8)
    with pytest.raises(ValueError, match=r"prompts\[0\] has 6 tokens: must be at most 5 \(max_length 8"):
        speculator.generate([[1] * 6], 3)
    with pytest.raises(ValueError, match="prompts: 2 are given: must be at most 1, the slots"):
        speculator.generate([[1], [2]], 3)
