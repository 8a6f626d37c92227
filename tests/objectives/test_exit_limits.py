"""What the exit distribution becomes at its limits, and what a loss does to it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, LoopState, ModelConfig
from ouro_lab.objectives import (
    IGNORE,
    KLToPrior,
    LastLoop,
    MeanOverLoops,
    MixtureOfLogits,
    StageOne,
    exit_distribution,
    log_prior,
    token_cross_entropy,
    with_exit_probability,
)

GATED = [StageOne(0.2), KLToPrior(0.2), KLToPrior(0.2, 0.4), KLToPrior(0.2, 0.4, "tail"), MixtureOfLogits()]
EXPECTED = [StageOne(0.0), MixtureOfLogits()]


def gates_of(log_p: Tensor) -> Tensor:
    """Gate logits [T, …] whose exit distribution is exp(log_p) [T, …]; the last, which is never used, is 0.

    logit λ_t = log p_t − log Σ_{j>t} p_j.
    """
    used = [log_p[t] - log_p[t + 1 :].logsumexp(0) for t in range(len(log_p) - 1)]
    return torch.stack([*used, torch.zeros_like(log_p[0])])


def test_hazards_of_the_papers_example() -> None:
    p = torch.tensor([0.0004, 0.0855, 0.3793, 0.5348], dtype=torch.float64)
    log_p = exit_distribution(gates_of(p.log()))
    torch.testing.assert_close(log_p.exp(), p, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_p.exp().cumsum(0), torch.tensor([0.0004, 0.0859, 0.4652, 1.0]).double())
    assert float((log_p.exp() * torch.arange(1, 5)).sum()) == pytest.approx(3.4485, abs=1e-9)
    assert float(-(log_p.exp() * log_p).sum()) == pytest.approx(0.916, abs=5e-4)


@pytest.mark.parametrize("loops", [1, 2, 4, 7])
def test_distribution_is_the_product_of_hazards(loops: int) -> None:
    gates = torch.randn(loops, 3, 2, dtype=torch.float64)
    hazard = gates.sigmoid()
    got = exit_distribution(gates).exp()
    assert got.shape == gates.shape
    for t in range(loops):
        want = (1 - hazard[:t]).prod(0) * (hazard[t] if t < loops - 1 else 1.0)
        torch.testing.assert_close(got[t], want, rtol=0, atol=1e-14)
    torch.testing.assert_close(got.sum(0), torch.ones(3, 2).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [20.0, 100.0])
def test_extreme_gates_sum_to_one_without_nan_forward_or_backward(dtype: torch.dtype, size: float) -> None:
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4).T  # [4, 81]
    gates = (size * signs).to(dtype).requires_grad_()
    log_p = exit_distribution(gates)
    assert log_p.dtype == torch.float32  # hazards near 0 and 1 need more than the activations' dtype
    assert torch.isfinite(log_p).all()
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(81), rtol=0, atol=1e-6)
    (log_p.exp() * (1.7 + 0.1 * log_p)).sum().backward()
    assert torch.isfinite(gates.grad).all()
    assert (gates.grad[-1] == 0).all()


@pytest.mark.parametrize("objective", GATED)
@pytest.mark.parametrize("size", [-100.0, 100.0])
def test_losses_are_finite_at_extreme_gates(objective: StageOne, size: float, case: Callable) -> None:
    given = case()
    hidden = [h.detach().float().requires_grad_() for h in given.hidden]
    gates = [torch.full_like(g, size, dtype=torch.float32).requires_grad_() for g in given.gates]
    states = [LoopState(h, g) for h, g in zip(hidden, gates, strict=True)]
    loss, _ = objective(states, given.head.detach().float(), given.targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(leaf.grad).all() for leaf in [*hidden, *gates[:-1]])


@pytest.mark.parametrize("objective", EXPECTED)
def test_gates_that_never_open_give_the_last_loop(objective: StageOne, case: Callable) -> None:
    given = case()
    states = [LoopState(state.hidden, torch.full_like(state.gate_logit, -60.0)) for state in given.states()]
    got, metrics = objective(states, given.head, given.targets)
    want, _ = LastLoop()(states, given.head, given.targets)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert float(metrics["exit_loop_mean"]) == pytest.approx(4.0)
    for a, b in zip(*(torch.autograd.grad(x, [given.hidden[-1], given.head]) for x in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", EXPECTED)
def test_an_open_first_gate_gives_the_first_loop(objective: StageOne, case: Callable) -> None:
    given = case()
    states = list(given.states())
    states[0] = LoopState(states[0].hidden, torch.full_like(states[0].gate_logit, 60.0))
    got, metrics = objective(states, given.head, given.targets)
    want, _ = LastLoop()(states[:1], given.head, given.targets)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert float(metrics["exit_loop_mean"]) == pytest.approx(1.0)


@pytest.mark.parametrize("objective", GATED)
def test_the_last_gate_is_never_used(objective: StageOne, case: Callable) -> None:
    given = case()
    loss, _ = objective(given.states(), given.head, given.targets)
    *used, last = torch.autograd.grad(loss, given.gates, allow_unused=True)
    assert last is None or (last == 0).all()
    valid = given.targets != IGNORE
    assert all((gradient[valid] != 0).all() for gradient in used)
    given.gates[-1].data.fill_(float("nan"))
    assert objective(given.states(), given.head, given.targets)[0] == loss


@pytest.mark.parametrize("geometric", [None, 0.3])
@pytest.mark.parametrize("beta", [0.05, 1.0, 50.0])
def test_the_optimum_is_the_prior_tilted_by_the_losses(beta: float, geometric: float | None, case: Callable) -> None:
    """argmin over p of Σ p·CE + β·KL(p ‖ π) is p ∝ π·exp(−CE/β): there every gate's gradient is zero."""
    given = case()
    losses = torch.stack([token_cross_entropy(h, given.head, given.targets) for h in given.hidden]).detach()
    prior = torch.tensor(log_prior(4, geometric), dtype=torch.float64).view(4, 1, 1)
    log_p = (prior - losses / beta).log_softmax(0)
    gates = gates_of(log_p).requires_grad_()
    states = [LoopState(h, g) for h, g in zip(given.hidden, gates, strict=True)]
    for objective in [KLToPrior(beta, geometric)] + ([StageOne(beta)] if geometric is None else []):
        loss, _ = objective(states, given.head, given.targets)
        (gradient,) = torch.autograd.grad(loss, gates, retain_graph=True)
        assert gradient.abs().max() < 1e-12 * max(1.0, beta)
        (off,) = torch.autograd.grad(objective(given.states(), given.head, given.targets)[0], given.gates[0])
        assert off.abs().max() > 1e-4
    if beta == 50.0:
        torch.testing.assert_close(log_p.exp(), prior.exp().expand_as(log_p), rtol=0.3, atol=0)


def test_a_large_beta_trains_the_gate_to_the_uniform_distribution(case: Callable) -> None:
    given = case()
    gates = (2 * torch.randn(4, *given.targets.shape, dtype=torch.float64)).requires_grad_()
    optimiser = torch.optim.Adam([gates], lr=0.2)
    for _ in range(100):
        states = [LoopState(h.detach(), g) for h, g in zip(given.hidden, gates, strict=True)]
        optimiser.zero_grad()
        StageOne(1000.0)(states, given.head.detach(), given.targets)[0].backward()
        optimiser.step()
    p = exit_distribution(gates.detach()).exp()[:, given.targets != IGNORE]
    torch.testing.assert_close(p, torch.full_like(p, 0.25), rtol=0, atol=5e-3)


@pytest.mark.parametrize("loops", [1, 2, 4, 8])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_priors_sum_to_one_and_follow_their_closed_forms(loops: int, rate: float) -> None:
    uniform, renormalised, tail = (
        [math.exp(value) for value in log_prior(loops, *arguments)]
        for arguments in ((), (rate, "renormalise"), (rate, "tail"))
    )
    assert uniform == pytest.approx([1 / loops] * loops)
    beyond = (1 - rate) ** loops
    assert renormalised == pytest.approx([rate * (1 - rate) ** t / (1 - beyond) for t in range(loops)])
    assert tail == pytest.approx([rate * (1 - rate) ** t for t in range(loops - 1)] + [(1 - rate) ** (loops - 1)])
    for prior in (uniform, renormalised, tail):
        assert sum(prior) == pytest.approx(1.0)
    # The tail is what p itself is at a constant hazard.
    constant = torch.full((loops,), rate, dtype=torch.float64).logit()
    assert tail == pytest.approx(exit_distribution(constant).exp().tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"geometric": 0.0}, r"^objective\.geometric = 0\.0: must be in \(0, 1\)$"),
        ({"geometric": 1.0}, r"^objective\.geometric = 1\.0: must be in \(0, 1\)$"),
        ({"geometric": 0.5, "truncation": "cut"}, r"^objective\.truncation = 'cut': must be one of renormalise, tail$"),
        ({"truncation": "cut"}, r"^objective\.truncation = 'cut': must be one of renormalise, tail$"),
    ],
)
def test_bad_priors_are_refused_when_the_objective_is_made(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KLToPrior(**arguments)


@pytest.mark.parametrize("objective", GATED)
def test_a_backbone_without_a_gate_is_refused_in_one_line(objective: StageOne) -> None:
    model = LoopedTransformer(ModelConfig(9, 1, 2, width=8, heads=2, attention="plain"))
    tokens = torch.randint(9, (1, 4))
    message = "^objective: needs an exit gate, but the backbone yields no gate logits$"
    with pytest.raises(ValueError, match=message):
        objective(model.loop_states(tokens), model.head_weight, tokens)


def test_no_loop_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="^objective: the backbone yields no loop$"):
        list(with_exit_probability([]))


@pytest.mark.parametrize("objective", [*GATED, MeanOverLoops()])
@pytest.mark.parametrize("gate", [False, True])
def test_with_one_loop_every_objective_is_cross_entropy(objective: StageOne, gate: bool, case: Callable) -> None:
    given = case(1)
    states = [LoopState(state.hidden, state.gate_logit if gate else None) for state in given.states()]
    got, _ = objective(states, given.head, given.targets)
    want, _ = LastLoop()(states, given.head, given.targets)
    assert torch.equal(got, want)
    for a, b in zip(*(torch.autograd.grad(x, [given.hidden[0], given.head]) for x in (got, want)), strict=True):
        assert torch.equal(a, b)
