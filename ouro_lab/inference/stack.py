"""The layers of a looped transformer for rows of any kind: one token each, of any sequence, at any position and loop.

Weights are laid out once for products of few rows: query, key and value in one matrix, SwiGLU's gate and up in another,
all as [in, out], which reads memory in the order in which it lies. They are copies: a stack does not see later training.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.model.attention import Rope, rope_tables
from ouro_lab.model.layers import GELU, Attention, Layer, RMSNorm
from ouro_lab.model.transformer import LoopedTransformer

# (layer, q [R, H, D], keys and values [R, 2K, D]) -> [R, H·D]; queries and keys are rotated
Attend = Callable[[int, Tensor, Tensor], Tensor]
Map = Callable[[Tensor], Tensor]


class Stack:
    """One loop of `model` over R rows, and its embedding, head and gate.

    Raises:
        ValueError: the backbone is an untied stack with read-outs, which has no loop to repeat.
    """

    @torch.inference_mode()
    def __init__(self, model: LoopedTransformer) -> None:
        if model.config.read_out_every:
            valid = "null: an untied stack has no loop to repeat"
            raise ValueError(
                f"backbone.read_out_every = {model.config.read_out_every}: for generation it must be {valid}"
            )
        self.config = model.config
        self.embedding = model.embed_tokens.weight.detach()  # [V, d]
        self.layers = [FusedLayer(layer, model.config.head_dim) for layer in model.layers]
        self.norm = norm_of(model.norm)
        self.head = model.head_weight.detach().t().contiguous()  # [d, V]
        self.gate = model.early_exit_gate

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return torch.promote_types(torch.float32, self.dtype) if self.config.attention_float32 else self.dtype

    def embed(self, tokens: Tensor) -> Tensor:
        """[R] int64 to [R, d]."""
        return F.embedding(tokens, self.embedding)

    def rope(self, positions: Tensor, length: int) -> Rope:
        """Tables [R, 1, 2, D/2] of positions [R] int64, all below `length`: cosines, and sines with their signs."""
        tables = rope_tables(length, self.config.head_dim, self.config.rope_base, self.device)  # [S, 1, D]
        cos, sin = (table.index_select(0, positions).unflatten(-1, (2, -1)).to(self.cache_dtype) for table in tables)
        return cos, sin

    def loop(self, x: Tensor, rope: Rope, attend: Attend) -> tuple[Tensor, Tensor]:
        """The stack once: the stream that the next loop reads and the normed state, [R, d] each."""
        for number, layer in enumerate(self.layers):
            x = layer(number, x, rope, attend, self.cache_dtype)
        hidden = self.norm(x)
        return (hidden if self.config.norm_between_loops else x), hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, d] to [R, V]."""
        return hidden @ self.head


class FusedLayer:
    """`Layer` with fewer products; norms keep their gains, so that rounding stays the layer's."""

    def __init__(self, layer: Layer, head_dim: int) -> None:
        attention: Attention = layer.self_attn
        self.dim = head_dim
        self.heads = attention.q_proj.out_features // head_dim
        self.key_heads = attention.k_proj.out_features // head_dim
        self.qkv = fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = fused(attention.o_proj)
        self.mlp = mlp_of(layer.mlp)
        norms = (layer.input_layernorm, layer.input_layernorm_2)
        self.before_attention, self.after_attention = (norm_of(norm) for norm in norms)
        norms = (layer.post_attention_layernorm, layer.post_attention_layernorm_2)
        self.before_mlp, self.after_mlp = (norm_of(norm) for norm in norms)

    def __call__(self, number: int, x: Tensor, rope: Rope, attend: Attend, dtype: torch.dtype) -> Tensor:
        """[R, d] to [R, d]. Few and in place: an operation here costs what it takes to start."""
        qkv = self.qkv(self.before_attention(x)).to(dtype).unflatten(-1, (-1, self.dim))  # [R, H + 2K, D]
        rotate_(qkv[:, : self.heads + self.key_heads], rope)
        mixed = attend(number, qkv[:, : self.heads], qkv[:, self.heads :]).to(x.dtype)  # [R, H·D]
        x = self.after_attention(self.out(mixed)).add_(x)
        return self.after_mlp(self.mlp(self.before_mlp(x))).add_(x)


def rotate_(x: Tensor, rope: Rope) -> None:
    """Rotary embedding of x [R, heads, D], in place."""
    cos, sin = rope
    halves = x.unflatten(-1, (2, -1))  # [R, heads, 2, D/2]
    swapped = halves.flip(-2)
    halves.mul_(cos).addcmul_(swapped, sin)


def fused(*linears: nn.Linear) -> Map:
    """One product for maps of the same input."""
    weight = torch.cat([linear.weight.detach() for linear in linears]).t().contiguous()  # [in, out]
    if linears[0].bias is None:
        return partial(torch.mm, mat2=weight)
    bias = torch.cat([linear.bias.detach() for linear in linears])
    return lambda x: torch.addmm(bias, x, weight)


def mlp_of(mlp: nn.Module) -> Map:
    down = fused(mlp.down_proj)
    if isinstance(mlp, GELU):
        up = fused(mlp.up_proj)
        return lambda x: down(F.gelu(up(x), approximate="tanh"))
    both = fused(mlp.gate_proj, mlp.up_proj)

    def swiglu(x: Tensor) -> Tensor:
        gate, up = both(x).chunk(2, -1)
        return down(F.silu(gate, inplace=True).mul_(up))

    return swiglu


def norm_of(norm: nn.Module) -> Map:
    """The norm; in float32 and wider RMS norm in four operations, g·x/√(‖x‖²/d + ε) = √d·g·x/√(‖x‖² + (√(d·ε))²)."""
    if not isinstance(norm, RMSNorm) or norm.weight.dtype not in (torch.float32, torch.float64):
        return norm  # in narrow types the model's own steps decide the rounding
    root = norm.weight.numel() ** 0.5
    gain, floor = norm.weight.detach() * root, norm.weight.new_tensor(norm.eps**0.5 * root)

    def rms(x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.div(torch.hypot(length, floor)).mul_(gain)

    return rms
