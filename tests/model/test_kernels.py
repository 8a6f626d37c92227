"""Which elementwise kernels run where: Liger's on CUDA alone, and then with the arguments that our layer needs."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.model import kernels as kernels_module
from ouro_lab.model.kernels import RMSNormFunction, kernels, rms_norm, silu_times


class StubNorm:
    @staticmethod
    def apply(x: Tensor, weight: Tensor, eps: float, offset: float, casting_mode: str, in_place: bool) -> Tensor:
        assert (offset, casting_mode) == (0.0, "llama")
        assert not in_place  # the gradient of a branch is also the residual stream's
        return RMSNormFunction.apply(x, weight, eps)


class StubSiLU:
    @staticmethod
    def apply(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module, name, function in (
        ("rms_norm", "LigerRMSNormFunction", StubNorm),
        ("swiglu", "LigerSiLUMulFunction", StubSiLU),
    ):
        stub = ModuleType(module)
        setattr(stub, name, function)
        monkeypatch.setitem(sys.modules, f"liger_kernel.ops.{module}", stub)
    for package in ("liger_kernel", "liger_kernel.ops"):
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
    monkeypatch.setattr(kernels_module, "find_spec", lambda name: object())
    kernels.cache_clear()
    yield
    kernels.cache_clear()


def inputs(dtype: torch.dtype, device: str = "cpu") -> list[Tensor]:
    return [torch.randn(4, 64, device=device).to(dtype).requires_grad_() for _ in range(2)]


def test_ligers_run_on_cuda_alone(liger: None) -> None:
    assert kernels("cuda").silu_times is StubSiLU.apply
    assert kernels("cpu").rms_norm == RMSNormFunction.apply
    x, up = inputs(torch.float32)
    weight = torch.rand(64)
    assert torch.equal(kernels("cuda").rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6))
    assert torch.equal(kernels("cuda").silu_times(x, up), silu_times(x, up))


def test_ours_run_on_cuda_where_liger_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_module, "find_spec", lambda name: None)
    kernels.cache_clear()
    assert kernels("cuda").rms_norm == RMSNormFunction.apply
    kernels.cache_clear()


def test_the_compiler_sees_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    x, up = inputs(torch.float32)
    weight = torch.rand(64)
    want = rms_norm(x, weight, 1e-6), silu_times(x, up)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(kernels_module, "kernels", lambda device: pytest.fail("a kernel inside a compiled block"))
    torch.testing.assert_close((rms_norm(x, weight, 1e-6), silu_times(x, up)), want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_real_kernels_equal_ours(dtype: torch.dtype, tolerance: float) -> None:
    pytest.importorskip("liger_kernel")
    leaves = [*inputs(dtype, "cuda"), torch.rand(64, device="cuda", requires_grad=True)]
    found = []
    for each in (kernels("cuda"), kernels("cpu")):
        x, up, weight = (leaf.detach().clone().requires_grad_() for leaf in leaves)
        made = each.rms_norm(x, weight, 1e-6), each.silu_times(x * 1, up * 1)  # Liger writes over what it was given
        values = [value.detach().clone() for value in made]
        found.append([*values, *torch.autograd.grad([value.sum() for value in made], (x, up, weight))])
    for got, want in zip(*found, strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got.float() / scale, want.float() / scale, rtol=0, atol=tolerance)
