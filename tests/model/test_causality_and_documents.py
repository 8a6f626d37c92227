from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, ModelConfig

LENGTH, LOOPS, VOCABULARY = 9, 3, 23
BACKENDS = pytest.mark.parametrize("attention", ["plain", "sdpa"])


def build(attention: str, scramble: Callable, kv_heads: int = 2) -> LoopedTransformer:
    config = ModelConfig(
        VOCABULARY, layers=2, loops=LOOPS, width=16, heads=4, kv_heads=kv_heads, gate=True, attention=attention
    )
    return scramble(LoopedTransformer(config).double())


def states_and_inputs(
    model: LoopedTransformer, tokens: Tensor, documents: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Hidden states per loop, and the embedded input that gradients are taken to."""
    kept: list[Tensor] = []
    hook = model.embed_tokens.register_forward_hook(lambda _, __, out: kept.append(out))
    states = [state.hidden for state in model.loop_states(tokens, documents)]
    hook.remove()
    return states, kept[0]


@BACKENDS
@pytest.mark.parametrize("changed", [0, 4, LENGTH - 1])
def test_a_token_changes_only_itself_and_what_follows_at_every_loop(
    attention: str, changed: int, scramble: Callable
) -> None:
    model = build(attention, scramble)
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % VOCABULARY
    for before, after in zip(model.loop_states(tokens), model.loop_states(other), strict=True):
        assert torch.equal(before.hidden[:, :changed], after.hidden[:, :changed])
        assert torch.equal(before.gate_logit[:, :changed], after.gate_logit[:, :changed])
        moved = (before.hidden[:, changed:] - after.hidden[:, changed:]).abs().amax(-1)
        assert (moved > 1e-6).all()


@BACKENDS
@pytest.mark.parametrize("packed", [False, True])
def test_gradients_reach_exactly_the_visible_positions_at_every_loop(
    attention: str, packed: bool, scramble: Callable
) -> None:
    model = build(attention, scramble)
    documents = torch.tensor([[5, 5, 5, 1, 1, 1, 1, 8, 8]]) if packed else None
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    if documents is not None:
        visible &= documents[0][:, None] == documents[0][None, :]
    states, inputs = states_and_inputs(model, torch.randint(VOCABULARY, (1, LENGTH)), documents)
    probe = torch.randn(16, dtype=torch.float64)
    for hidden in states:
        for i in range(LENGTH):
            (gradient,) = torch.autograd.grad((hidden[0, i] * probe).sum(), inputs, retain_graph=True)
            reached = gradient[0].abs().amax(-1)  # [S]
            assert (reached[~visible[i]] == 0).all()
            assert (reached[visible[i]] > 1e-8).all()


@BACKENDS
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_packed_documents_are_separate_documents_at_every_loop(
    attention: str, kv_heads: int, scramble: Callable
) -> None:
    model = build(attention, scramble, kv_heads)
    sizes = [4, 3, 2]
    tokens = torch.randint(VOCABULARY, (1, LENGTH))
    documents = torch.repeat_interleave(torch.tensor([3, 9, 3 + 9]), torch.tensor(sizes)).unsqueeze(0)
    probes = torch.randn(LOOPS, LENGTH, 16, dtype=torch.float64)

    packed = torch.stack([state.hidden[0] for state in model.loop_states(tokens, documents)])  # [T, S, d]
    (packed * probes).sum().backward()
    packed_gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert packed_gradients.keys() >= {
        n for n, _ in model.named_parameters() if n.startswith(("embed", "layers", "norm"))
    }

    model.zero_grad()
    parts = []
    for part in tokens.split(sizes, dim=1):
        parts.append(torch.stack([state.hidden[0] for state in model.loop_states(part)]))
    separate = torch.cat(parts, dim=1)
    (separate * probes).sum().backward()
    # Packed documents start at later positions; rotary tables are float32, so relative positions agree to 1e-7 only.
    torch.testing.assert_close(packed, separate, rtol=0, atol=1e-5)
    for name, gradient in packed_gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(
            gradient / scale, dict(model.named_parameters())[name].grad / scale, rtol=0, atol=1e-5
        )

    unmasked = torch.stack([state.hidden[0] for state in model.loop_states(tokens)])
    assert (unmasked[:, sizes[0] :] - separate[:, sizes[0] :]).abs().amax() > 0.1


@BACKENDS
def test_another_document_s_tokens_change_not_one_bit(attention: str, scramble: Callable) -> None:
    model = build(attention, scramble)
    tokens = torch.randint(VOCABULARY, (1, LENGTH))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    other = tokens.clone()
    other[:, :4] = (other[:, :4] + 1) % VOCABULARY
    for before, after in zip(model.loop_states(tokens, documents), model.loop_states(other, documents), strict=True):
        assert torch.equal(before.hidden[:, 4:], after.hidden[:, 4:])
        assert not torch.equal(before.hidden[:, :4], after.hidden[:, :4])


@BACKENDS
def test_one_document_is_no_document(attention: str, scramble: Callable) -> None:
    model = build(attention, scramble)
    tokens = torch.randint(VOCABULARY, (2, LENGTH))
    torch.testing.assert_close(model(tokens, torch.full_like(tokens, 4)), model(tokens), rtol=0, atol=1e-12)
