"""Stage II against a float64 reference written token by token and loop by loop, and the paper's consequences of it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopState
from ouro_lab.objectives import IGNORE, StageTwo

OPTIONS = [
    {},
    {"clip": False},
    {"label": "forward"},
    {"label": "forward", "first": 1, "divisor": "terms"},
    {"divisor": "terms"},
    {"first": 3},
    {"k": 3.0, "gamma": 0.2},
]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(case, k=50.0, gamma=0.005, clip=True, label="backward", divisor="loops", first=2) -> Tensor:
    """The mean over valid tokens, with gradients to the gates, from full logits and plain probabilities."""
    loops, terms = len(case.hidden), []
    for b, i in (case.targets != IGNORE).nonzero().tolist():
        logits = [torch.einsum("vd,d->v", case.head, h[b, i]).detach() for h in case.hidden]
        losses = [float(z.exp().sum().log() - z[case.targets[b, i]]) for z in logits]
        gates, total, count = [1 / (1 + torch.exp(-g[b, i])) for g in case.gates], 0.0, 0
        for t in range(first, loops + 1):  # one-based
            before, after = (t - 1, t) if label == "backward" else (t, t + 1)
            if after > loops:
                continue
            gain = losses[before - 1] - losses[after - 1]
            w = sigmoid(k * ((max(0.0, gain) if clip else gain) - gamma))
            hazard, count = gates[t - 1], count + 1
            total = total - w * torch.log(1 - hazard) - (1 - w) * torch.log(hazard)
        terms.append(total / (loops if divisor == "loops" else count))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradients_are_the_references(options: dict, case: Callable) -> None:
    given = case(4)
    loss, _ = StageTwo(**options)(given.states(), given.head, given.targets)
    want = reference(given, **options)
    torch.testing.assert_close(loss, want, rtol=0, atol=1e-12)
    zeros = [torch.zeros_like(gate) for gate in given.gates]
    for found in zip(*(_gradients(value, given.gates, zeros) for value in (loss, want)), strict=True):
        torch.testing.assert_close(*found, rtol=0, atol=1e-12)
    assert all(g is None for g in torch.autograd.grad(loss, [*given.hidden, given.head], allow_unused=True))


def test_every_option_changes_the_value(case: Callable) -> None:
    given = case(4)
    values = [StageTwo(**o)(given.states(), given.head, given.targets)[0].item() for o in OPTIONS]
    assert len({round(value, 9) for value in values}) == len(OPTIONS)
    by_terms = StageTwo(divisor="terms")(given.states(), given.head, given.targets)[0].item()
    assert by_terms == pytest.approx(values[0] * 4 / 3)  # T = 4, three terms


@pytest.mark.parametrize(("gain", "label"), [(0.0, 0.438), (0.005, 0.5), (0.02, 0.679), (0.05, 0.905), (0.1, 0.991)])
def test_labels_are_those_of_the_paper(gain: float, label: float) -> None:
    losses = torch.tensor([2.0, 2.0 - gain], dtype=torch.float64).view(2, 1, 1)
    assert float(StageTwo()._labels(losses)) == pytest.approx(label, abs=5e-4)


def test_a_clipped_label_is_never_below_0_438_and_the_best_hazard_never_above_0_562() -> None:
    losses = torch.rand(5, 3, 400, dtype=torch.float64) * 9
    clipped, free = StageTwo()._labels(losses), StageTwo(clip=False)._labels(losses)
    assert float(clipped.min()) == pytest.approx(sigmoid(-0.25)) == pytest.approx(0.438, abs=5e-4)
    assert float(free.min()) < 1e-6
    assert torch.equal(clipped[free >= clipped.min()], free[free >= clipped.min()])
    hazards = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    gates = torch.logit(hazards).view(1, 1, -1).expand(2, 1, -1)
    worse = torch.tensor([1.0, 3.0], dtype=torch.float64).view(2, 1, 1).expand(2, 1, 999)  # the loop made it worse
    best = hazards[StageTwo().token_loss(worse, gates)[0].argmin()]
    assert float(best) == pytest.approx(0.562, abs=1e-3)


def test_the_first_gate_gets_no_gradient_and_the_unused_last_one_does(case: Callable) -> None:
    given = case(4)
    zeros = [torch.zeros_like(gate) for gate in given.gates]
    backward = StageTwo()(given.states(), given.head, given.targets)[0]
    norms = [float(gradient.norm()) for gradient in _gradients(backward, given.gates, zeros)]
    assert norms[0] == 0
    assert min(norms[1:]) > 0
    forward = StageTwo(label="forward", first=1)(given.states(), given.head, given.targets)[0]
    norms = [float(gradient.norm()) for gradient in _gradients(forward, given.gates, zeros)]
    assert norms[-1] == 0
    assert min(norms[:-1]) > 0


def test_a_saturated_gate_has_a_finite_loss_and_slope() -> None:
    for logit in (-300.0, 300.0):
        gates = torch.full((2, 1, 1), logit, requires_grad=True)
        loss = StageTwo(divisor="terms").token_loss(torch.zeros(2, 1, 1), gates)
        w = sigmoid(-0.25)
        assert loss.item() == pytest.approx(300 * (w if logit > 0 else 1 - w), rel=1e-5)
        loss.backward()
        assert float(gates.grad[1]) == pytest.approx(w if logit > 0 else w - 1, rel=1e-5)


def test_metrics_are_detached_means_of_the_stated_meaning(case: Callable) -> None:
    given = case(3)
    loss, metrics = StageTwo()(given.states(), given.head, given.targets)
    assert not any(value.requires_grad for value in metrics.values())
    valid = given.targets != IGNORE
    logits = [h @ given.head.T for h in given.hidden]
    ce = [torch.nn.functional.cross_entropy(z[valid], given.targets[valid]) for z in logits]
    for t in (1, 2, 3):
        torch.testing.assert_close(metrics[f"loss_loop{t}"], ce[t - 1].detach(), rtol=0, atol=1e-12)
    first, second = (gate.detach().sigmoid()[valid] for gate in given.gates[:2])
    depth = first + 2 * (1 - first) * second + 3 * (1 - first) * (1 - second)
    torch.testing.assert_close(metrics["exit_loop_mean"], depth.mean(), rtol=0, atol=1e-12)
    torch.testing.assert_close(metrics["exit_p_loop2"], ((1 - first) * second).mean(), rtol=0, atol=1e-12)
    assert metrics.keys() == {f"{name}_loop{t}" for name in ("loss", "exit_p") for t in (1, 2, 3)} | {
        f"{name}_loop{t}" for name in ("gate_loss", "label") for t in (2, 3)
    } | {"exit_loop_mean"}
    torch.testing.assert_close(metrics["gate_loss_loop2"] + metrics["gate_loss_loop3"], 3 * loss.detach())
    assert 0.438 < metrics["label_loop2"] < 1


def test_ignored_positions_and_ranks(case: Callable) -> None:
    given = case(3, batch=4)
    whole, _ = StageTwo()(given.states(), given.head, given.targets)
    mean_count = (given.targets != IGNORE).sum() / 2
    parts = []
    for rows in (slice(0, 1), slice(1, 4)):
        states = (LoopState(state.hidden[rows], state.gate_logit[rows]) for state in given.states())
        parts.append(StageTwo()(states, given.head, given.targets[rows], mean_count)[0])
    torch.testing.assert_close(sum(parts) / 2, whole, rtol=0, atol=1e-12)
    nothing, metrics = StageTwo()(given.states(), given.head, torch.full_like(given.targets, IGNORE))
    assert nothing == 0
    assert all(value == 0 for value in metrics.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "sideways"}, "objective.label = 'sideways': must be backward or forward"),
        ({"divisor": "T"}, "objective.divisor = 'T': must be loops or terms"),
        ({"first": 1}, "objective.first = 1: must be an integer ≥ 2 with backward labels"),
        ({"first": 0, "label": "forward"}, "objective.first = 0: must be an integer ≥ 1 with forward labels"),
        ({"k": 0.0}, "objective.k = 0.0: must be a number > 0"),
        ({"gamma": math.nan}, "objective.gamma = nan: must be a finite number"),
    ],
)
def test_bad_options_name_the_field(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        StageTwo(**options)


@pytest.mark.parametrize(("label", "loops"), [("backward", 1), ("forward", 2)])
def test_too_few_loops_are_refused(label: str, loops: int, case: Callable) -> None:
    given = case(loops)
    with pytest.raises(ValueError, match=r"objective.first = 2: nothing to train, .* labels end at 1"):
        StageTwo(label=label)(given.states(), given.head, given.targets)


def _gradients(loss: Tensor, leaves: list[Tensor], zeros: list[Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return [zero if gradient is None else gradient for zero, gradient in zip(zeros, found, strict=True)]
