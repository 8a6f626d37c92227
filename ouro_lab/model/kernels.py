"""The layer's elementwise functions, each in the version that is cheapest where it runs; the choice is made here alone.

Inside a compiled block it is the formula, which the compiler fuses with what stands around it; else Liger's kernels on
CUDA where `liger_kernel` is installed (the `gpu` extra); else an autograd function of our own, or autograd itself.
Rotary embedding has no such choice: Liger's wants another layout, and transposing q and k eats the gain.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable


class Kernels(NamedTuple):
    rms_norm: Callable[[Tensor, Tensor, float], Tensor]
    silu_times: Callable[[Tensor, Tensor], Tensor]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x̂ = x/rms(x) over the last dimension in float32, cast to x's dtype, then times weight [d]."""
    if torch.compiler.is_compiling():
        x32 = x.to(torch.promote_types(torch.float32, x.dtype))
        return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)
    return kernels(x.device.type).rms_norm(x, weight, eps)


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """SiLU(gate)·up."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return kernels(gate.device.type).silu_times(gate, up)


@cache
def kernels(device: str) -> Kernels:
    """Those of a kind of device, for code that runs eagerly."""
    if device == "cuda" and find_spec("liger_kernel") is not None:
        return _liger()
    return Kernels(RMSNormFunction.apply, lambda gate, up: F.silu(gate) * up)


def _liger() -> Kernels:
    fused_norm = import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    fused_product = import_module("liger_kernel.ops.swiglu").LigerSiLUMulFunction

    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # "llama": cast before the weight. Not in place: a norm's gradient is the residual stream's too.
        return fused_norm.apply(x, weight, eps, 0.0, "llama", False)

    return Kernels(norm, fused_product.apply)


class RMSNormFunction(torch.autograd.Function):
    """Four passes over memory instead of autograd's nine.

    No dot product (`vecdot`, `mv`) in it: autocast would run one in bf16, and in fp16 the sum of squares overflows.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.to(torch.promote_types(torch.float32, x.dtype))
        length = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        inverse = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse).to(x.dtype) * weight.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        normed = x * inverse  # float32 or wider, as inverse is
        grad = grad.to(normed.dtype)
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_normed = grad * weight
        shared = (grad_normed * normed).sum(-1, keepdim=True).div_(x.shape[-1])
        grad_x = grad_normed.sub_(normed.mul_(shared)).mul_(inverse)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None
