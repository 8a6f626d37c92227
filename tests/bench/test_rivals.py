"""Rival (a) is our model and our loss, written otherwise; or its times would mean nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ouro_lab.bench import rivals
from ouro_lab.bench.rivals import PlainLoopedTransformer
from ouro_lab.bench.step import Spec, Step, check_same_loss, eager, ours
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import IGNORE, LastLoop, StageOne

CONFIG = ModelConfig(vocab_size=23, layers=2, loops=3, width=24, heads=3, gate=True, init_std=0.3, attention="plain")


def pair(fused: bool) -> tuple[LoopedTransformer, PlainLoopedTransformer]:
    model, rival = LoopedTransformer(CONFIG).double(), PlainLoopedTransformer(CONFIG, fused_norm=fused).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norms of one and a gate's bias of zero would hide a swap
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(float("norm" in name) + 0.3 * noise)
    rival.load_state_dict(model.state_dict())
    return model, rival


def some_tokens() -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(CONFIG.vocab_size, (2, 3, 11), generator=torch.Generator().manual_seed(1))
    targets[0, 4] = targets[2, -3:] = IGNORE
    return tokens, targets


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("objective", [LastLoop(), StageOne(beta=0.05)])
def test_rival_has_our_loss_and_gradients(fused: bool, objective: Callable) -> None:
    model, rival = pair(fused)
    tokens, targets = some_tokens()
    mine, _ = objective(model.loop_states(tokens), model.head_weight, targets)
    theirs = (rival.stage_one_loss if objective.needs_gate else rival.last_loop_loss)(tokens, targets)
    torch.testing.assert_close(theirs, mine, rtol=1e-9, atol=1e-9)
    expected, found = gradients(mine, model), gradients(theirs, rival)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        if not objective.needs_gate and "early_exit_gate" in name:
            assert gradient is None and found[name] is None
        else:
            torch.testing.assert_close(
                found[name], gradient, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: name + text
            )


def test_the_rival_keeps_every_loops_logits_and_we_do_not() -> None:
    spec = Spec(1, 4, 8, 2, vocab_size=512, batch=2, length=8, stage_one=True, dtype="float32")

    def kept(step: Step) -> int:
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: shapes.append(x.shape) or x, lambda x: x):
            step.loss(*step.batch)
        return sum(shape[-1:] == (512,) and shape[:-1].numel() == 16 for shape in shapes)

    assert kept(eager(spec)) >= 4
    assert kept(ours(spec, compiled=False)) == 0


def test_two_norms_leave_two_out() -> None:
    names = {name for name, _ in PlainLoopedTransformer(CONFIG, norms=2).named_parameters()}
    assert "layers.0.input_layernorm.weight" in names and "layers.0.input_layernorm_2.weight" not in names


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_start_from_the_same_loss(dtype: str) -> None:
    spec = Spec(2, 3, 16, 2, vocab_size=19, batch=2, length=7, stage_one=True, dtype=dtype)
    check_same_loss(ours(spec, compiled=False), eager(spec))


def test_a_rival_that_computes_something_else_is_refused() -> None:
    spec = Spec(1, 2, 16, 2, vocab_size=19, batch=2, length=7, stage_one=False, dtype="float32")
    other = eager(spec)
    nn.init.normal_(other.model.lm_head.weight)
    with pytest.raises(ValueError, match="not the same model"):
        check_same_loss(ours(spec, compiled=False), other)


def test_llama_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(rivals.importlib, "import_module", missing)
    assert rivals.llama(CONFIG) is None
