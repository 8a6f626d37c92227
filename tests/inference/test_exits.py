"""Exit rules, each against its definition written out, and the released code's rounding."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ouro_lab.inference.exits import (
    ArgmaxStable,
    Entropy,
    HiddenDifference,
    LoopKL,
    LoopView,
    Margin,
    QExit,
    RandomExit,
    StaticDepth,
    ThresholdRule,
    survive,
)

N, WIDTH, VOCABULARY = 40, 5, 7


def refuse() -> Tensor:
    raise AssertionError("a rule that needs no logits asked for them")


class Stream:
    """N rows of random states, gates and head in float64, seen after loop 1, 2, …; T = 4."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(4, N, WIDTH, generator=generator, dtype=torch.float64)
        self.gates = torch.randn(4, N, generator=generator, dtype=torch.float64)
        self.head = torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=torch.float64)

    def view(self, loop: int | Tensor, logits: bool = True) -> LoopView:
        """loop: of all rows, or one per row [N]."""
        loop = torch.full((N,), loop) if isinstance(loop, int) else loop
        padded = torch.cat([torch.zeros(1, N, WIDTH, dtype=torch.float64), self.hidden])
        here, before = padded[loop, torch.arange(N)], padded[loop - 1, torch.arange(N)]
        survival = torch.nn.functional.logsigmoid(-self.gates).cumsum(0)[loop - 1, torch.arange(N)]
        made: Callable[[], Tensor] = (lambda: here @ self.head.T) if logits else refuse
        past: Callable[[], Tensor] = (lambda: before @ self.head.T) if logits else refuse
        return LoopView(loop, here, before, survival, made, past, torch.arange(N), self.gates)

    def p(self, loop: int) -> np.ndarray:
        logits = (self.hidden[loop - 1] @ self.head.T).numpy()
        e = np.exp(logits)
        return e / e.sum(1, keepdims=True)


def cdf(gates: np.ndarray, loop: int) -> np.ndarray:
    return 1 - np.prod(1 - 1 / (1 + np.exp(-gates[:loop])), axis=0)


def statistics(stream: Stream, loop: int) -> dict[ThresholdRule, np.ndarray]:
    """By rule, for loops ≥ 2."""
    p, before = stream.p(loop), stream.p(loop - 1)
    h, earlier = stream.hidden[loop - 1].numpy(), stream.hidden[loop - 2].numpy()
    ordered = np.sort(p, axis=1)
    difference = np.sqrt(((h - earlier) ** 2).sum(1))
    return {
        QExit(0.9): cdf(stream.gates.numpy(), loop),
        HiddenDifference(2.5): difference,
        HiddenDifference(1.2, relative=True): difference / np.sqrt((h**2).sum(1)),
        LoopKL(0.8): (p * np.log(p / before)).sum(1),
        ArgmaxStable(): (p.argmax(1) == before.argmax(1)).astype(float),
        Margin(0.3): ordered[:, -1] - ordered[:, -2],
        Entropy(1.2): -(p * np.log(p)).sum(1),
        StaticDepth(3): np.full(N, loop),
    }


@pytest.mark.parametrize("loop", [2, 3])
def test_statistics_are_their_definitions(loop: int) -> None:
    stream = Stream()
    for rule, expected in statistics(stream, loop).items():
        view = stream.view(loop, logits=rule.needs_logits)
        np.testing.assert_allclose(rule.statistic(view), expected, rtol=1e-9, atol=1e-12)
        fires = expected >= rule.threshold if rule.at_least else expected <= rule.threshold
        assert rule.exits(view).tolist() == fires.tolist()
        if not isinstance(rule, StaticDepth):
            assert 0 < fires.sum() < N, f"{rule}: the case decides nothing"


def test_rows_at_different_loops_are_seen_as_if_alone() -> None:
    stream, loops = Stream(), torch.arange(N) % 3 + 1
    rules = [*statistics(stream, 2), RandomExit(mean=2.2), QExit(0.6, strict_reference=True)]
    for rule in rules:
        mixed = rule.exits(stream.view(loops))
        alone = torch.stack([rule.exits(stream.view(loop)) for loop in (1, 2, 3)])
        assert torch.equal(mixed, alone[loops - 1, torch.arange(N)]), rule


def test_what_compares_with_the_previous_loop_never_exits_at_the_first() -> None:
    view = Stream().view(1)
    for rule in (HiddenDifference(1e9), HiddenDifference(1e9, relative=True), LoopKL(1e9), ArgmaxStable()):
        assert not rule.exits(view).any(), rule


def test_min_loops_is_a_floor() -> None:
    stream = Stream()
    for rule in (QExit(0.0, min_loops=3), StaticDepth(1, min_loops=3), Entropy(9.0, min_loops=3)):
        assert [bool(rule.exits(stream.view(loop)).any()) for loop in (1, 2, 3)] == [False, False, True]


def test_q_of_one_never_exits_and_q_of_zero_at_once() -> None:
    """Also where 1 − Π(1 − λ) is 1 in any precision."""
    view = Stream().view(3)
    sure = LoopView(view.loop, view.hidden, view.previous, torch.full((N,), -200.0), refuse, refuse)
    assert float(QExit(1.0).statistic(sure)[0]) == 1.0
    assert not QExit(1.0).exits(sure).any()
    assert QExit(0.999999).exits(sure).all()
    assert QExit(0.0).exits(view).all()


@pytest.mark.parametrize(
    ("dtype", "logit", "loop"),
    [
        (torch.bfloat16, 2.0, 3),
        (torch.bfloat16, 4.0, 2),
        (torch.bfloat16, 6.3, 1),
        (torch.float32, 6.0, 3),
        (torch.float32, 17.5, 1),
    ],
)
def test_strict_reference_exits_where_the_released_code_does_at_q_one(
    dtype: torch.dtype, logit: float, loop: int
) -> None:
    """A constant gate logit at T = 4, as measured with the released modelling code."""
    gates = torch.full((4, 1), logit, dtype=dtype)

    def exits(rule: QExit, at: int) -> bool:
        survival = survive(torch.zeros(1), gates[0])
        for gate in gates[1:at]:
            survival = survive(survival, gate)
        none = torch.zeros(1, WIDTH)
        view = LoopView(torch.tensor([at]), none, none, survival, refuse, refuse, gate_logits=gates[:at])
        return bool(rule.exits(view))

    strict = [at for at in (1, 2, 3) if exits(QExit(1.0, strict_reference=True), at)]
    assert strict[0] == loop
    assert not any(exits(QExit(1.0), at) for at in (1, 2, 3))


def exit_loops(rule: RandomExit, loops: int, count: int, start: int = 0) -> np.ndarray:
    """[count], one-based."""
    rows, none = torch.arange(start, start + count), torch.zeros(count, 1)
    fires = []
    for loop in range(1, loops + 1):
        view = LoopView(torch.full((count,), loop), none, none, torch.zeros(count), refuse, refuse, rows)
        fires.append(rule.exits(view) | (loop == loops))
    return torch.stack(fires).int().argmax(0).numpy() + 1


def test_random_exit_has_its_mean_on_the_two_depths_beside_it() -> None:
    for mean in (1.0, 1.25, 2.7, 4.0):
        found = exit_loops(RandomExit(mean=mean), 4, 20_000)
        assert found.mean() == pytest.approx(mean, abs=0.015)
        assert set(found) <= {math.floor(mean), math.ceil(mean)}


def test_random_exit_has_its_probabilities() -> None:
    p = (0.1, 0.0, 0.6, 0.3)
    found = exit_loops(RandomExit(probabilities=p), 4, 20_000)
    np.testing.assert_allclose(np.bincount(found, minlength=5)[1:] / 20_000, p, atol=0.012)


def test_random_exit_depends_on_seed_and_row_only() -> None:
    first = exit_loops(RandomExit(mean=2.5), 4, 2000)
    assert (first[500:] == exit_loops(RandomExit(mean=2.5), 4, 1500, start=500)).all()
    other = exit_loops(RandomExit(mean=2.5, seed=1), 4, 2000)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.08
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.08


def test_families_share_statistics_and_thresholds_can_be_moved() -> None:
    assert HiddenDifference(0.1).family == HiddenDifference(0.2).family
    assert HiddenDifference(0.1).family != HiddenDifference(0.1, relative=True).family
    assert RandomExit(mean=2.0, seed=1).family != RandomExit(mean=2.0, seed=2).family
    assert HiddenDifference(0.1, relative=True, min_loops=2).at(0.5) == HiddenDifference(0.5, True, min_loops=2)
    assert not ArgmaxStable().sweeps
    assert not RandomExit(probabilities=(1.0,)).sweeps


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QExit(1.5), r"^QExit: q = 1.5: must be a number ≥ 0 and ≤ 1$"),
        (lambda: QExit(True), r"^QExit: q = True: "),
        (lambda: StaticDepth(0), r"^StaticDepth: loops = 0: must be a number ≥ 1$"),
        (lambda: StaticDepth(2.5), r"^StaticDepth: loops = 2.5: must be a whole number$"),
        (lambda: HiddenDifference(-0.1), r"^HiddenDifference: epsilon = -0.1: must be a number ≥ 0$"),
        (lambda: Entropy(1.0, min_loops=0), r"^Entropy: min_loops = 0: must be a number ≥ 1$"),
        (lambda: RandomExit(), r"^RandomExit: mean = None, probabilities = None: must be exactly one"),
        (lambda: RandomExit(mean=0.5), r"^RandomExit: mean = 0.5: must be a number ≥ 1$"),
        (lambda: RandomExit(probabilities=(0.5, 0.4)), r"^probabilities = \(0.5, 0.4\): .* whose sum is 1$"),
    ],
)
def test_bad_values_are_named(make: Callable[[], ThresholdRule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_what_a_view_lacks_is_named() -> None:
    view = Stream().view(2)
    bare = LoopView(view.loop, view.hidden, view.previous, view.log_survival, view.logits, view.previous_logits)
    with pytest.raises(ValueError, match=r"^RandomExit: the view has no `row`"):
        RandomExit(mean=2.0).exits(bare)
    with pytest.raises(ValueError, match=r"^QExit: strict_reference needs the view's `gate_logits`"):
        QExit(0.5, strict_reference=True).exits(bare)
