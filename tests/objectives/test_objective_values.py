"""Every objective against its closed form, written token by token from full logits in float64: values and gradients."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, LoopState, ModelConfig
from ouro_lab.objectives import IGNORE, KLToPrior, LastLoop, MeanOverLoops, MixtureOfLogits, StageOne

BETA, GEOMETRIC = 0.3, 0.4


def token_terms(case, b: int, i: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Logits, cross-entropies and exit probabilities of one token, per loop."""
    logits = [torch.einsum("vd,d->v", case.head, h[b, i]) for h in case.hidden]
    losses = [torch.log(z.exp().sum()) - z[case.targets[b, i]] for z in logits]
    hazards = [1 / (1 + torch.exp(-g[b, i])) for g in case.gates]
    p, left = [], torch.ones((), dtype=torch.float64)
    for hazard in hazards[:-1]:
        p.append(left * hazard)
        left = left * (1 - hazard)
    return logits, losses, [*p, left]


def entropy(p: list[Tensor]) -> Tensor:
    return -sum(each * each.log() for each in p)


def geometric(loops: int, tail: bool) -> list[float]:
    mass = [GEOMETRIC * (1 - GEOMETRIC) ** t for t in range(loops)]
    if tail:
        mass[-1] = 1 - sum(mass[:-1])
    return [m / sum(mass) for m in mass]


def divergence(p: list[Tensor], prior: list[float]) -> Tensor:
    return sum(each * (each.log() - math.log(pi)) for each, pi in zip(p, prior, strict=True))


def weighted(p: list[Tensor], values: list[Tensor]) -> Tensor:
    return sum(a * b for a, b in zip(p, values, strict=True))


def mixed(logits: list[Tensor], p: list[Tensor], target: Tensor) -> Tensor:
    z = weighted(p, logits)
    return torch.log(z.exp().sum()) - z[target]


CLOSED_FORMS: dict[str, tuple[Callable, Callable]] = {
    "last_loop": (LastLoop(), lambda z, ce, p, y: ce[-1]),
    "mean_over_loops": (MeanOverLoops(), lambda z, ce, p, y: sum(ce) / len(ce)),
    "stage_one": (StageOne(BETA), lambda z, ce, p, y: weighted(p, ce) - BETA * entropy(p)),
    "stage_one_without_entropy": (StageOne(0.0), lambda z, ce, p, y: weighted(p, ce)),
    "kl_uniform": (
        KLToPrior(BETA),
        lambda z, ce, p, y: weighted(p, ce) + BETA * divergence(p, [1 / len(p)] * len(p)),
    ),
    "kl_geometric_renormalised": (
        KLToPrior(BETA, GEOMETRIC),
        lambda z, ce, p, y: weighted(p, ce) + BETA * divergence(p, geometric(len(p), tail=False)),
    ),
    "kl_geometric_tail": (
        KLToPrior(BETA, GEOMETRIC, "tail"),
        lambda z, ce, p, y: weighted(p, ce) + BETA * divergence(p, geometric(len(p), tail=True)),
    ),
    "mixture_of_logits": (MixtureOfLogits(), lambda z, ce, p, y: mixed(z, p, y)),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
@pytest.mark.parametrize("loops", [1, 2, 4])
@pytest.mark.parametrize("denominator", [None, torch.tensor(5.5, dtype=torch.float64), torch.tensor(16)])
def test_closed_form_in_value_and_every_gradient(
    name: str, loops: int, denominator: Tensor | None, case: Callable
) -> None:
    given = case(loops)
    objective, closed_form = CLOSED_FORMS[name]
    loss, _ = objective(given.states(), given.head, given.targets, denominator)
    got = torch.autograd.grad(loss, given.leaves, allow_unused=True)

    terms = [
        closed_form(*token_terms(given, b, i), given.targets[b, i])
        for b, i in (given.targets != IGNORE).nonzero().tolist()
    ]
    want_loss = sum(terms) / (len(terms) if denominator is None else denominator.item())
    want = torch.autograd.grad(want_loss, given.leaves, allow_unused=True)

    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, want_loss, rtol=0, atol=1e-12)
    for leaf, a, b in zip(given.leaves, got, want, strict=True):
        zero = torch.zeros_like(leaf)
        torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_ignored_positions_get_no_gradient(name: str, case: Callable) -> None:
    given = case()
    loss, _ = CLOSED_FORMS[name][0](given.states(), given.head, given.targets)
    ignored = given.targets == IGNORE
    for leaf, gradient in zip(
        given.leaves[:-1], torch.autograd.grad(loss, given.leaves[:-1], allow_unused=True), strict=True
    ):
        if gradient is not None:
            assert gradient.shape == leaf.shape
            assert (gradient[ignored] == 0).all()


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_nothing_to_predict_is_zero_not_nan(name: str, case: Callable) -> None:
    given = case()
    loss, metrics = CLOSED_FORMS[name][0](given.states(), given.head, torch.full_like(given.targets, IGNORE))
    assert loss == 0
    assert all(value == 0 for value in metrics.values())
    gradients = torch.autograd.grad(loss, given.leaves, allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_ranks_with_a_common_denominator_average_to_the_global_batch(name: str, case: Callable) -> None:
    given = case(batch=4)
    objective = CLOSED_FORMS[name][0]
    whole, _ = objective(given.states(), given.head, given.targets)
    mean_count = (given.targets != IGNORE).sum() / 2
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):  # unequal counts of targets
        states = (LoopState(state.hidden[rows], state.gate_logit[rows]) for state in given.states())
        parts.append(objective(states, given.head, given.targets[rows], mean_count)[0])
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=0, atol=1e-12)


def test_metrics_are_detached_scalars_of_the_stated_meaning(case: Callable) -> None:
    given = case(3)
    valid = (given.targets != IGNORE).nonzero().tolist()
    with torch.no_grad():
        per_token = [token_terms(given, b, i) for b, i in valid]
    losses = torch.tensor([[float(ce) for ce in terms[1]] for terms in per_token], dtype=torch.float64)  # [N, T]
    p = torch.tensor([[float(each) for each in terms[2]] for terms in per_token], dtype=torch.float64)
    by_loop = {f"loss_loop{t + 1}": losses[:, t].mean() for t in range(3)}
    depth = {"exit_loop_mean": (p * torch.tensor([1.0, 2.0, 3.0])).sum(-1).mean()}
    depth |= {f"exit_p_loop{t + 1}": p[:, t].mean() for t in range(3)}
    negative_entropy = (p * p.log()).sum(-1).mean()
    expected = {"expected_loss": (p * losses).sum(-1).mean()}
    wanted = {
        LastLoop(): {},
        MeanOverLoops(): by_loop,
        MixtureOfLogits(): depth,
        StageOne(BETA): by_loop | depth | expected | {"exit_pull": negative_entropy},
        KLToPrior(BETA): by_loop | depth | expected | {"exit_pull": negative_entropy + math.log(3)},
    }
    for objective, want in wanted.items():
        _, metrics = objective(given.states(), given.head, given.targets)
        assert metrics.keys() == want.keys()
        for name, value in metrics.items():
            assert not value.requires_grad
            assert value.shape == ()
            torch.testing.assert_close(value, want[name], rtol=0, atol=1e-12)


def test_stage_one_and_the_uniform_prior_differ_by_the_constant(case: Callable) -> None:
    given = case(4)
    stage_one, _ = StageOne(BETA)(given.states(), given.head, given.targets)
    uniform, _ = KLToPrior(BETA)(given.states(), given.head, given.targets)
    torch.testing.assert_close(stage_one + BETA * math.log(4), uniform, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(stage_one, given.leaves, allow_unused=True),
        torch.autograd.grad(uniform, given.leaves, allow_unused=True),
        strict=True,
    ):
        assert (a is None and b is None) or torch.allclose(a, b, rtol=0, atol=1e-13)


def test_mixture_expected_and_last_are_three_different_numbers(case: Callable) -> None:
    # The released `labels=` trains the first, the paper's Stage I the second; cross-entropy is convex in the logits.
    given = case(4)
    objectives = (MixtureOfLogits(), StageOne(0.0), LastLoop())
    mixture, expected, last = (o(given.states(), given.head, given.targets)[0].item() for o in objectives)
    assert mixture < expected - 1e-2
    assert min(abs(mixture - last), abs(expected - last)) > 1e-2


def test_supervised_loops_and_gates() -> None:
    found = {type(o).__name__: (o.needs_gate, o.supervised_loops(4)) for o, _ in CLOSED_FORMS.values()}
    assert found == {
        "LastLoop": (False, 1),
        "MeanOverLoops": (False, 4),
        "StageOne": (True, 4),
        "KLToPrior": (True, 4),
        "MixtureOfLogits": (True, 1),
    }


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_every_parameter_of_a_fitting_backbone_gets_a_gradient(name: str) -> None:
    # DistributedDataParallel ends in an error otherwise.
    objective = CLOSED_FORMS[name][0]
    model = LoopedTransformer(ModelConfig(9, 2, 3, width=16, gate=objective.needs_gate, attention="plain"))
    tokens = torch.randint(9, (2, 5))
    loss, _ = objective(model.loop_states(tokens), model.head_weight, tokens)
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_with_one_loop_the_gate_is_the_only_unused_parameter() -> None:
    # As in the released model: λ_T is never used and T = 1. A distributed run of such an arm needs to know.
    model = LoopedTransformer(ModelConfig(9, 2, 1, width=16, gate=True, attention="plain"))
    tokens = torch.randint(9, (2, 5))
    StageOne()(model.loop_states(tokens), model.head_weight, tokens)[0].backward()
    unused = {n for n, p in model.named_parameters() if p.grad is None}
    assert unused == {"early_exit_gate.weight", "early_exit_gate.bias"}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_bf16_autocast_stays_near_float32(name: str) -> None:
    objective = CLOSED_FORMS[name][0]
    model = LoopedTransformer(ModelConfig(50, 2, 3, width=32, gate=True, attention="plain"))
    model.initialise(0)
    tokens = torch.randint(50, (4, 16))
    found = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = objective(model.loop_states(tokens), model.head_weight, tokens.roll(-1, 1))
        loss.backward()
        assert loss.dtype == torch.float32
        found.append((loss.detach(), model.embed_tokens.weight.grad.clone(), model.head_weight.grad.clone()))
    for wide, low in zip(*found, strict=True):
        assert not torch.equal(wide, low)
        assert (wide - low).norm() / wide.norm() < 0.03
