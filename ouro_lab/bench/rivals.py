"""What a step is measured against: the same model and loss written plainly, and `transformers`' Llama.

Rival (a) is what a competent person writes without this project: `nn.Linear`, the faster of two RMS norms, rotary by
halves, fused attention, SwiGLU, and every supervised loop's logits kept by autograd. It takes our weights by name and
must compute our loss. Rival (b) says that (a) is no straw man. A looped-LM training package was sought as well:
parcae-lm 0.1.0 installs, but its wheel and its sdist hold metadata only and no module.
"""

import importlib
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.compute.widths import Widths
from ouro_lab.model import ModelConfig
from ouro_lab.objectives import IGNORE

Rope = tuple[Tensor, Tensor]


class PlainNorm(nn.Module):
    """x/rms(x) in float32 or wider, cast to x's dtype, times w. fused: `F.rms_norm` in place of the formula."""

    def __init__(self, width: int, eps: float, fused: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.fused = eps, fused

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        if self.fused:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        wide = _wide(x)
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype) * weight


class PlainAttention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(config.width, config.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        split = (linear(x).unflatten(-1, (self.heads, -1)) for linear in (self.q_proj, self.k_proj, self.v_proj))
        q, k, v = (part.transpose(1, 2) for part in split)  # [B, H, S, D]
        mixed = F.scaled_dot_product_attention(_rotate(q, rope), _rotate(k, rope), v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class PlainSwiGLU(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        wide = Widths.of(config).ffn
        self.gate_proj = nn.Linear(config.width, wide, bias=False)
        self.up_proj = nn.Linear(config.width, wide, bias=False)
        self.down_proj = nn.Linear(wide, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainLayer(nn.Module):
    """Ouro's four norms a layer, or Llama's two: then what attention and MLP make is added as it is."""

    def __init__(self, config: ModelConfig, norms: int, fused: bool) -> None:
        super().__init__()
        self.self_attn, self.mlp = PlainAttention(config), PlainSwiGLU(config)

        def norm(present: bool = True) -> nn.Module:
            return PlainNorm(config.width, config.norm_eps, fused) if present else nn.Identity()

        self.input_layernorm, self.input_layernorm_2 = norm(), norm(norms == 4)
        self.post_attention_layernorm, self.post_attention_layernorm_2 = norm(), norm(norms == 4)

    def forward(self, x: Tensor, rope: Rope) -> Tensor:
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), rope))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))


class PlainLoopedTransformer(nn.Module):
    """Rival (a). Parameter names and shapes are `LoopedTransformer`'s, so that it loads our weights.

    Only what the bench's shapes need: as many key heads as heads, head size width / heads, an untied head.
    """

    def __init__(self, config: ModelConfig, norms: int = 4, fused_norm: bool = False) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(PlainLayer(config, norms, fused_norm) for _ in range(config.layers))
        self.norm = PlainNorm(config.width, config.norm_eps, fused_norm)
        self.early_exit_gate = nn.Linear(config.width, 1) if config.gate else None
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)

    def loop_states(self, tokens: Tensor) -> Iterator[Tensor]:
        """[B, S, d] of every loop."""
        x = self.embed_tokens(tokens)
        rope = _rope(tokens.shape[1], self.config, tokens.device)
        for _ in range(self.config.loops):
            for layer in self.layers:
                x = layer(x, rope)
            x = self.norm(x)
            yield x

    def last_loop_loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Nats per valid target."""
        *_, last = self.loop_states(tokens)
        return F.cross_entropy(self.lm_head(last).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    def stage_one_loss(self, tokens: Tensor, targets: Tensor, beta: float = 0.05) -> Tensor:
        """Σ_t p_t·CE_t − β·H(p), averaged over valid targets (paper §3.3), from T full logit tensors."""
        states = list(self.loop_states(tokens))
        gate = self.early_exit_gate
        if gate is None:
            raise ValueError("backbone.gate = False: must be True for Stage I")
        p = _exit_distribution([_wide(gate(state).squeeze(-1)) for state in states])  # [T, B, S]
        losses = torch.stack([_token_losses(self.lm_head(state), targets) for state in states])
        entropy = torch.special.entr(p).sum(0)
        valid = targets != IGNORE
        return (((p * losses).sum(0) - beta * entropy) * valid).sum() / valid.sum()


def llama(config: ModelConfig) -> Any:
    """Rival (b): `transformers`' Llama of layers·loops layers of the same widths; None where it is not installed."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return None
    shape = transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_hidden_layers=config.effective_depth,
        num_attention_heads=config.heads,
        rms_norm_eps=config.norm_eps,
        attn_implementation="sdpa",
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(shape)


@cache
def fused_norm_is_faster(rows: int, width: int, mixed: bool) -> bool:
    """Forward + backward of both norms on [rows, width]; in mixed precision on float32 and bf16, half of them each."""
    dtypes = (torch.float32, torch.bfloat16) if mixed else (torch.float32,)
    seconds = {fused: sum(_norm_seconds(rows, width, dtype, fused) for dtype in dtypes) for fused in (True, False)}
    return seconds[True] < seconds[False]


def _norm_seconds(rows: int, width: int, dtype: torch.dtype, fused: bool) -> float:
    norm = PlainNorm(width, 1e-6, fused)
    x = torch.randn(rows, width).to(dtype).requires_grad_()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        norm(x).backward(x.detach())
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[3]


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    flat = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return flat.view(targets.shape)


def _exit_distribution(gates: list[Tensor]) -> Tensor:
    """[T, B, S]: hazard × survival, the last loop takes what is left (paper §3.2)."""
    survival, parts = torch.ones_like(gates[0]), []
    for gate in gates[:-1]:
        hazard = torch.sigmoid(gate)
        parts.append(survival * hazard)
        survival = survival * (1 - hazard)
    return torch.stack([*parts, survival])


def _rope(length: int, config: ModelConfig, device: torch.device) -> Rope:
    """Cosines and sines [S, D], in float32 as everywhere."""
    size = config.width // config.heads
    exponent = torch.arange(0, size, 2, device=device, dtype=torch.float32) / size
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), 1.0 / config.rope_base**exponent)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def _rotate(x: Tensor, rope: Rope) -> Tensor:
    cos, sin = (table.to(x.dtype) for table in rope)
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(torch.float32, x.dtype))
