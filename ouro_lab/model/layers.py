"""The transformer layer as the released Ouro computes it: four norms, rotary attention, SwiGLU."""

import torch
from torch import Tensor, nn

from ouro_lab.model.attention import Mask, Rope, attend, rotate
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.kernels import rms_norm, silu_times


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim = config.head_dim
        self.q_proj = nn.Linear(config.width, config.heads * self.dim, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(config.heads * self.dim, config.width, bias=False)

    def forward(self, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.dim)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        mixed = attend(rotate(q, rope), rotate(k, rope), v, mask, causal, backend)  # [B, S, H, D]
        return self.o_proj(mixed.flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))


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

    def forward(self, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), rope, mask, causal, backend)
        x = x + self.input_layernorm_2(mixed)
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))
