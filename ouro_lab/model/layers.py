"""The transformer layer as the released Ouro computes it: four norms, rotary attention, SwiGLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from ouro_lab.model.attention import Rope, attend, rotate
from ouro_lab.model.config import ModelConfig


class _RMSNorm(torch.autograd.Function):
    """x̂ = x/rms(x) in float32, cast to x's dtype, then times w: four passes over memory instead of autograd's nine.

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


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # the compiler fuses the formula with what stands around it
            x32 = x.to(torch.promote_types(torch.float32, x.dtype))
            return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * self.weight.to(x.dtype)
        return _RMSNorm.apply(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(config.heads * self.dim, config.width, bias=False)

    def forward(self, x: Tensor, rope: Rope, bias: Tensor | None, causal: bool, backend: str) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.dim)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        mixed = attend(rotate(q, rope), rotate(k, rope), v, bias, causal, backend)  # [B, S, H, D]
        return self.o_proj(mixed.flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """x ← x + N₂(Attn(N₁ x));  x ← x + N₄(MLP(N₃ x)).

    The names are the released checkpoint's: `post_attention_layernorm` is N₃, the norm *before* the MLP.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config)
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.input_layernorm_2 = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.post_attention_layernorm_2 = RMSNorm(config.width, config.norm_eps)

    def forward(self, x: Tensor, rope: Rope, bias: Tensor | None, causal: bool, backend: str) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), rope, bias, causal, backend)
        x = x + self.input_layernorm_2(mixed)
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))
