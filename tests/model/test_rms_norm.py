import pytest
import torch
from torch import Tensor

from ouro_lab.model.kernels import RMSNormFunction
from ouro_lab.model.layers import RMSNorm

EPS = 1e-5


def autograd_norm(x: Tensor, weight: Tensor, eps: float = EPS) -> Tensor:
    """The released expression, left to autograd."""
    wide = x.to(torch.promote_types(torch.float32, x.dtype))
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight.to(x.dtype) * normed.to(x.dtype)


def norm_of(weight: Tensor) -> RMSNorm:
    norm = RMSNorm(len(weight), EPS).to(weight.dtype)
    with torch.no_grad():
        norm.weight.copy_(weight)
    return norm


@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 8), (1, 1, 8)])
def test_gradcheck(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: RMSNormFunction.apply(x, w, EPS), (x, weight))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_values_and_gradients_are_autograd_s(dtype: torch.dtype, tolerance: float) -> None:
    x = (3 * torch.randn(4, 5, 64, dtype=torch.float64)).to(dtype).requires_grad_()
    weight = torch.randn(64, dtype=torch.float64).to(dtype).requires_grad_()
    probe = torch.randn(4, 5, 64, dtype=torch.float64).to(dtype)
    want = autograd_norm(x, weight)
    got = RMSNormFunction.apply(x, weight, EPS)
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    for a, b in zip(
        torch.autograd.grad(got, (x, weight), probe), torch.autograd.grad(want, (x, weight), probe), strict=True
    ):
        assert a.dtype == dtype
        torch.testing.assert_close(a / b.abs().max(), b / b.abs().max(), rtol=0, atol=tolerance)


def test_low_precision_normalises_in_float32_then_casts_then_multiplies() -> None:
    x = (7 * torch.randn(64, 256)).bfloat16()
    weight = 1 + 0.3 * torch.randn(256)
    got = norm_of(weight)(x)
    wide = x.float()
    normed = wide * torch.rsqrt(wide.double().pow(2).mean(-1, keepdim=True) + EPS).float()
    in_order = normed.bfloat16() * weight.bfloat16()
    assert got.dtype == torch.bfloat16
    assert (got != in_order).float().mean() < 1e-3  # but for a tie of rounding
    multiplied_first = (normed * weight).bfloat16()
    assert (got != multiplied_first).float().mean() > 0.05
    normed_low = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight.bfloat16()
    assert (got != normed_low).float().mean() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_autocast_changes_nothing(dtype: torch.dtype, scale: float) -> None:
    # Under autocast a dot product would run in low precision; in float16 the sum of squares would be infinite.
    norm = norm_of(torch.randn(64))
    x = (scale * torch.randn(8, 64)).requires_grad_()
    want = norm(x)
    (want_gradient,) = torch.autograd.grad(want.sum(), x)
    with torch.autocast("cpu", dtype=dtype):
        got = norm(x)
        (gradient,) = torch.autograd.grad(got.sum(), x)
    assert torch.equal(got, want)
    assert torch.equal(gradient, want_gradient)


def test_a_low_precision_branch_stays_low_and_its_squares_do_not_overflow() -> None:
    x = torch.full((2, 64), 3e4, dtype=torch.float16)
    got = norm_of(torch.ones(64))(x)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, torch.ones_like(got))


def test_zero_rows_are_finite() -> None:
    x = torch.zeros(3, 8, requires_grad=True)
    norm_of(torch.ones(8))(x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm_of(torch.ones(8))(x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable"):
        gradient.sum().backward()
