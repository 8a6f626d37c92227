"""The transformer layer as the released Ouro computes it: four norms, rotary attention, SwiGLU; and GPT-2's choices."""

from functools import partial

import torch
import torch.nn.functional as F
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


class LayerNorm(nn.Module):
    """In float32 like `RMSNorm`, whatever autocast does with it on this device."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(torch.float32, x.dtype)
        gain, shift = self.weight.to(wide), self.bias.to(wide)
        return F.layer_norm(x.to(wide), gain.shape, gain, shift, self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dim, self.float32 = config.head_dim, config.attention_float32
        self.q_proj = nn.Linear(config.width, config.heads * self.dim, bias=config.bias)
        self.k_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=config.bias)
        self.v_proj = nn.Linear(config.width, config.kv_heads * self.dim, bias=config.bias)
        self.o_proj = nn.Linear(config.heads * self.dim, config.width, bias=config.bias)

    def forward(self, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str) -> Tensor:
        q, k, v = (linear(x).unflatten(-1, (-1, self.dim)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        if self.float32:
            with torch.autocast(x.device.type, enabled=False):
                q, k, v = (each.to(torch.promote_types(torch.float32, each.dtype)) for each in (q, k, v))
                mixed = attend(rotate(q, rope), rotate(k, rope), v, mask, causal, backend)
        else:
            mixed = attend(rotate(q, rope), rotate(k, rope), v, mask, causal, backend)  # [B, S, H, D]
        return self.o_proj(mixed.flatten(-2))


class SwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=config.bias)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=config.bias)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(silu_times(self.gate_proj(x), self.up_proj(x)))


class GELU(nn.Module):
    """GPT-2's feed-forward network, with its tanh form of the function."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=config.bias)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


NORMS = {"rms": RMSNorm, "layer": LayerNorm}
MLPS = {"swiglu": SwiGLU, "gelu": GELU}


class Layer(nn.Module):
    """x ← x + N₂(Attn(N₁ x));  x ← x + N₄(MLP(N₃ x)); of two norms N₂ and N₄ are left out.

    The names are the released checkpoint's: `post_attention_layernorm` is N₃, the norm *before* the MLP.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLPS[config.mlp](config)
        before = partial(NORMS[config.norm], config.width, config.norm_eps)
        after = before if config.norms == 4 else nn.Identity
        self.input_layernorm = before()
        self.input_layernorm_2 = after()
        self.post_attention_layernorm = before()
        self.post_attention_layernorm_2 = after()

    def forward(self, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str) -> Tensor:
        mixed = self.self_attn(self.input_layernorm(x), rope, mask, causal, backend)
        x = x + self.input_layernorm_2(mixed)
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))
