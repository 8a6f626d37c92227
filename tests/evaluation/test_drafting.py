"""Drafts that are right, wrong, or of every model's own kind: acceptance and passes are counted by hand."""

from collections.abc import Callable

import pytest
import torch

from ouro_lab.data import TaskData
from ouro_lab.evaluation.drafting import Drafting
from ouro_lab.evaluation.passes import batches
from ouro_lab.inference.generate import generate
from ouro_lab.model import LoopedTransformer

MakeBackbone = Callable[..., LoopedTransformer]
PROMPT, NEW, DRAFTS = 6, 7, 2


def by_hand(model: LoopedTransformer, prompts: list[list[int]], r: int) -> tuple[int, int, int]:
    """Drafted, accepted, passes of greedy text, with whole forward passes and no cache."""
    drafted = accepted = passes = 0
    for prompt in prompts:
        text, end = [*prompt, greedy(model, prompt, None)], len(prompt) + NEW
        while len(text) < end:
            count = min(DRAFTS, end - len(text) - 1)
            ahead = list(text)
            for _ in range(count):
                ahead.append(greedy(model, ahead, r))
            right = 0
            while right < count and ahead[len(text) + right] == greedy(model, ahead[: len(text) + right], None):
                right += 1
            text = [*ahead[: len(text) + right], greedy(model, ahead[: len(text) + right], None)]
            drafted, accepted = drafted + count, accepted + right
            passes += (count + 1) * r + model.loops - r
    return drafted, accepted, passes


def greedy(model: LoopedTransformer, tokens: list[int], loops: int | None) -> int:
    return int(model(torch.tensor([tokens]), loops=loops)[0, -1].argmax())


@pytest.mark.parametrize("r", [1, 2])
def test_acceptance_and_passes_are_those_counted_by_hand(backbone: MakeBackbone, p_hop: TaskData, r: int) -> None:
    model = backbone(p_hop.vocab_size)
    found = Drafting(r, DRAFTS, PROMPT, NEW, rows=3)(model, p_hop, "test")
    prompts = [
        row[:PROMPT].tolist() for batch in batches(p_hop, "test", torch.device("cpu")) for row in batch["tokens"]
    ]
    with torch.no_grad():
        drafted, accepted, _ = by_hand(model, prompts[:3], r)
    assert found["draft/acceptance"] == pytest.approx(accepted / drafted)
    assert found["draft/speed"] * found["draft/passes"] == pytest.approx(model.loops)
    assert set(found) == set(Drafting().metric_names(p_hop, model.loops))


def test_a_model_whose_loops_agree_is_always_accepted(backbone: MakeBackbone, p_hop: TaskData) -> None:
    model = backbone(p_hop.vocab_size)
    for layer in model.layers:  # a stack that adds nothing: every loop says the same
        for norm in (layer.input_layernorm_2, layer.post_attention_layernorm_2):
            torch.nn.init.zeros_(norm.weight)
    found = Drafting(1, DRAFTS, PROMPT, NEW, rows=2)(model, p_hop, "test")
    assert found["draft/acceptance"] == 1
    assert found["draft/passes"] == pytest.approx(2 * ((DRAFTS + 1) + model.loops - 1) / (NEW - 1))  # two rounds a row


def test_the_text_is_that_of_plain_decoding(backbone: MakeBackbone, p_hop: TaskData) -> None:
    from ouro_lab.inference.speculative import Speculator

    model = backbone(p_hop.vocab_size)
    prompts = [[1, 2, 3, 4], [4, 3, 2]]
    plain = [made.tokens for made in generate(model, prompts, NEW)]
    assert [made.tokens for made in Speculator(model, 2, 20, 1, 3).generate(prompts, NEW)] == plain


def test_bad_input_is_one_line(backbone: MakeBackbone, p_hop: TaskData) -> None:
    model = backbone(p_hop.vocab_size)
    with pytest.raises(ValueError, match=r"evaluation\.rows = 0: must be an integer ≥ 1"):
        Drafting(rows=0)
    with pytest.raises(ValueError, match=r"evaluation\.prompt = 128: no row of test"):
        Drafting()(model, p_hop, "test")
    with pytest.raises(ValueError, match="draft_loops = 3"):
        Drafting(3, prompt=4, tokens=4)(model, p_hop, "test")
