import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ouro_lab.objectives import IGNORE, cross_entropy, token_cross_entropy, weighted_cross_entropy

ROWS, VOCABULARY, WIDTH = 13, 17, 5


def given(dtype: torch.dtype = torch.float64, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(VOCABULARY, (rows,))
    targets[::4] = IGNORE
    hidden, weight = torch.randn(rows, WIDTH, dtype=dtype), torch.randn(VOCABULARY, WIDTH, dtype=dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def total(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None = None, probe: Tensor | None = None
) -> Tensor:
    """Σ probe·CE of one loop; without a probe every token weighs one."""
    probe = (
        torch.ones(targets.shape, dtype=torch.promote_types(torch.float32, hidden.dtype)) if probe is None else probe
    )
    return weighted_cross_entropy([hidden], weight, targets, probe.unsqueeze(0), chunk)[0]


def reference(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=IGNORE, reduction="none")


@pytest.mark.parametrize("chunk", [1, 2, 5, ROWS - 1, ROWS, 100, None])
def test_every_chunk_size_is_f_cross_entropy(chunk: int | None) -> None:
    hidden, weight, targets = given()
    probe = torch.randn(ROWS, dtype=torch.float64)
    got, want = token_cross_entropy(hidden, weight, targets, chunk), reference(hidden, weight, targets)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    sums = total(hidden, weight, targets, chunk, probe), (want * probe).sum()
    torch.testing.assert_close(*sums, rtol=0, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in sums), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("chunk", [3, 6])
def test_gradcheck_of_states_head_and_weights_over_loops(chunk: int) -> None:
    first, head, targets = given(rows=6)
    second, weights = torch.randn_like(first).requires_grad_(), torch.rand(2, 6, dtype=torch.float64).requires_grad_()

    def loss(a: Tensor, b: Tensor, w: Tensor, p: Tensor) -> Tensor:
        return weighted_cross_entropy([a, b], w, targets, p, chunk)[0]

    assert torch.autograd.gradcheck(lambda *inputs: _Anew.apply(loss, *inputs), (first, second, head, weights))


class _Anew(torch.autograd.Function):
    """f(*inputs), computed again for every backward pass: gradcheck takes several, the loss allows one."""

    @staticmethod
    def forward(ctx, f, *inputs):
        ctx.f, ctx.inputs = f, inputs
        return f(*inputs)

    @staticmethod
    def backward(ctx, grad):
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in ctx.inputs]
            return None, *torch.autograd.grad(ctx.f(*inputs), inputs, grad)


def test_a_second_backward_pass_is_refused_as_its_gradients_were_given_away() -> None:
    hidden, head, targets = given()
    sum_ = total(hidden, head, targets, 5, torch.ones(ROWS, dtype=torch.float64))
    sum_.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum_.backward()


def test_the_gradient_to_a_weight_is_its_token_s_loss() -> None:
    hidden, head, targets = given()
    weights = torch.rand(1, ROWS, dtype=torch.float64).requires_grad_()
    sum_, losses = weighted_cross_entropy([hidden], head, targets, weights, 5)
    sum_.backward()
    assert not losses.requires_grad
    assert torch.equal(weights.grad, losses)
    torch.testing.assert_close(losses[0], reference(hidden, head, targets).detach(), rtol=0, atol=1e-12)


def test_without_gradient_nothing_is_kept_for_one() -> None:
    hidden, head, targets = given()
    with torch.no_grad():
        sum_, _ = weighted_cross_entropy([hidden], head, targets, torch.ones(1, ROWS, dtype=torch.float64))
    assert sum_.grad_fn is None
    sizes = [largest(rows=16, vocabulary=50, chunk=16, head_width=8, backward=on) for on in (True, False)]
    assert sizes == [16 * 50, 16 * 50]


def test_a_nearly_certain_token_keeps_its_slope_in_bf16() -> None:
    # p = 1 − 3e-4 rounds to 1 in bf16: p − 1 must be taken before the rounding.
    hidden, head = torch.tensor([[8.0]], requires_grad=True), torch.tensor([[1.0], [0.0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total(hidden, head, torch.tensor([0])).backward()
    torch.testing.assert_close(hidden.grad, torch.tensor([[-1 / (1 + math.exp(8))]]), rtol=1e-2, atol=0)


def test_shapes_and_ignored_targets() -> None:
    hidden, weight, targets = given(rows=12)
    losses = token_cross_entropy(hidden.view(3, 4, WIDTH), weight, targets.view(3, 4), 5)
    assert losses.shape == (3, 4)
    ignored = targets == IGNORE
    assert (losses.flatten()[ignored] == 0).all()
    assert (losses.flatten()[~ignored] > 0).all()
    total(hidden, weight, targets, 5).backward()
    assert (hidden.grad[ignored] == 0).all()
    assert (hidden.grad[~ignored] != 0).any(-1).all()
    only = torch.autograd.grad(reference(hidden[~ignored], weight, targets[~ignored]).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, only, rtol=0, atol=1e-12)


def test_all_ignored_is_zero_with_zero_gradient() -> None:
    hidden, weight, targets = given()
    total(hidden, weight, torch.full_like(targets, IGNORE)).backward()
    assert (hidden.grad == 0).all()
    assert (weight.grad == 0).all()


class Largest(TorchDispatchMode):
    """The most elements of any tensor that an operation makes while it is on."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, tuple | list) else [out]
        self.elements = max([self.elements, *(each.numel() for each in made if isinstance(each, Tensor))])
        return out


def largest(rows: int, vocabulary: int, chunk: int | None, head_width: int = 4, backward: bool = True) -> int:
    hidden = torch.randn(rows, head_width, requires_grad=True)
    weight = torch.randn(vocabulary, head_width, requires_grad=True)
    targets = torch.randint(vocabulary, (rows,))
    with Largest() as mode:
        if backward:
            total(hidden, weight, targets, chunk).backward()
        else:
            token_cross_entropy(hidden, weight, targets, chunk)
    return mode.elements


def test_full_logits_never_exist_forward_or_backward() -> None:
    assert largest(rows=64, vocabulary=50, chunk=16) == 16 * 50
    assert largest(rows=64, vocabulary=50, chunk=64) == 64 * 50  # so the measure does see logits


def test_the_default_chunk_bounds_what_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 600 * 50)
    assert largest(rows=1300, vocabulary=50, chunk=None) == 600 * 50
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", 1)
    assert largest(rows=1300, vocabulary=50, chunk=None) == 512 * 50  # never thinner than 512 rows


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_autocast_stays_near_float32_and_returns_it(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, targets = given(torch.float32, rows=64)
    want = token_cross_entropy(hidden, weight, targets)
    wanted = torch.autograd.grad(total(hidden, weight, targets), (hidden, weight))
    with torch.autocast("cpu", dtype=dtype):
        got = token_cross_entropy(hidden, weight, targets, 10)
        sum_ = total(hidden, weight, targets, 10)
    gradients = torch.autograd.grad(sum_, (hidden, weight))
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    for a, b in zip((got, *gradients), (want, *wanted), strict=True):
        assert a.dtype == torch.float32
        assert (a - b).norm() / b.norm() < tolerance


@pytest.mark.parametrize("low", [False, True], ids=["float32", "autocast"])
def test_blocks_of_classes_and_of_rows_change_no_number(low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = given(torch.float32, rows=64)
    found = []
    for block, elements in ((10_000, 1 << 21), (3, 2 * weight.shape[0])):  # in one piece; three classes, two rows
        monkeypatch.setattr(cross_entropy, "BLOCK", block)
        monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", elements)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            sum_ = total(hidden, weight, targets, 64)
        found.append((sum_.detach(), *torch.autograd.grad(sum_, (hidden, weight))))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-3 if low else 1e-5, atol=1e-6)


def test_float64_is_not_touched_by_autocast() -> None:
    hidden, weight, targets = given()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = token_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(got, reference(hidden, weight, targets), rtol=0, atol=1e-12)


def test_low_precision_sums_the_head_s_gradient_in_float32() -> None:
    # A bf16 sum over 4,096 equal contributions would stop growing at 256 of them.
    rows = 4096
    hidden, weight = torch.ones(rows, 1).bfloat16(), torch.zeros(2, 1).bfloat16().requires_grad_()
    total(hidden, weight, torch.zeros(rows, dtype=torch.long), 1).backward()
    torch.testing.assert_close(weight.grad.float(), torch.tensor([[-rows / 2], [rows / 2]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_are_stable(dtype: torch.dtype) -> None:
    hidden = torch.tensor([[1e4], [-1e4], [1e4]], dtype=dtype, requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], dtype=dtype, requires_grad=True)
    targets = torch.tensor([0, 0, 2])
    losses = token_cross_entropy(hidden, weight, targets, 2)
    scale = float(hidden.detach()[0, 0])
    torch.testing.assert_close(losses, torch.tensor([0.0, 2 * scale, scale]), rtol=1e-2, atol=1e-6)
    total(hidden, weight, targets, 2).backward()
    assert torch.isfinite(hidden.grad).all()
    assert torch.isfinite(weight.grad).all()
    assert hidden.grad.flatten().tolist() == [0.0, -2.0, 1.0]


@pytest.mark.parametrize("bad", [VOCABULARY, -1])
def test_a_target_outside_the_vocabulary_is_refused(bad: int) -> None:
    hidden, weight, targets = given()
    targets[3] = bad
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        token_cross_entropy(hidden, weight, targets)


def test_a_frozen_head_or_state_gets_no_gradient() -> None:
    hidden, weight, targets = given()
    total(hidden, weight.detach(), targets).backward()
    assert hidden.grad is not None
    total(hidden.detach(), weight, targets).backward()
    assert weight.grad is not None


def test_meta_device_and_no_rows() -> None:
    hidden = torch.empty(6, 4, device="meta", requires_grad=True)
    weight = torch.empty(9, 4, device="meta", requires_grad=True)
    targets = torch.empty(6, dtype=torch.long, device="meta")
    losses = token_cross_entropy(hidden, weight, targets, 4)
    assert (losses.shape, losses.device.type) == ((6,), "meta")
    total(hidden, weight, targets, 4, torch.ones(6, device="meta")).backward()
    assert weight.grad.shape == weight.shape
    assert token_cross_entropy(torch.empty(0, 4), torch.empty(9, 4), torch.empty(0, dtype=torch.long)).shape == (0,)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, targets = given()
    (gradient,) = torch.autograd.grad(total(hidden, weight, targets).square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        gradient.sum().backward()


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")
@pytest.mark.parametrize(("mixed", "tolerance"), [(False, 1e-5), (True, 1e-2)])
def test_compiled_losses_are_the_plain_ones(mixed: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    hidden, weight, targets = given(torch.float32, rows=40)

    def all_of_it(chunk: int) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            sum_ = total(hidden, weight, targets, chunk)
            losses = token_cross_entropy(hidden, weight, targets, chunk)
        return [losses, sum_.detach(), *torch.autograd.grad(sum_, (hidden, weight))]

    plain = all_of_it(16)
    monkeypatch.setattr(cross_entropy, "_kernel", None)  # to be put back
    cross_entropy.compile_losses()
    for a, b in zip(all_of_it(16), plain, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()
