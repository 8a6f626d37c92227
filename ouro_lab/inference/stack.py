"""The layers of a looped transformer for rows of any kind: one token each, of any sequence, at any position and loop.

Weights are laid out once for products of few rows: query, key and value in one matrix, SwiGLU's gate and up in another,
all as [in, out], which reads memory in the order in which it lies. They are copies, which later training leaves alone.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.model.attention import Rope, rope_tables
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.layers import GELU, Attention, Layer, RMSNorm, SwiGLU
from ouro_lab.model.transformer import LoopedTransformer

# (layer, q [R, H, D], keys and values [R, 2K, D]) -> [R, H·D]; queries and keys are rotated
Attend = Callable[[int, Tensor, Tensor], Tensor]
Map = Callable[[Tensor], Tensor]


class Stack:
    """One loop of `model` over R rows, and its embedding, head and gate.

    Raises:
        ValueError: the backbone is an untied stack with read-outs, which has no loop to repeat, or loops a part of it.
    """

    @torch.inference_mode()
    def __init__(self, model: LoopedTransformer) -> None:
        reason = obstacle(model.config)
        if reason:
            raise ValueError(reason)
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


def obstacle(config: ModelConfig) -> str | None:
    """Why a model of this shape cannot generate with a cache, in one line; None where it can."""
    if config.read_out_every:
        valid = "null: an untied stack has no loop to repeat"
        return f"backbone.read_out_every = {config.read_out_every}: for generation it must be {valid}"
    for name in ("prelude", "coda"):
        if getattr(config, name):
            return f"backbone.{name} = {getattr(config, name)}: for generation it must be 0: whole stacks are repeated"
    return None


class FusedLayer:
    """`Layer` with fewer products and operations; norms keep their gains, so that rounding stays the layer's."""

    def __init__(self, layer: Layer, head_dim: int) -> None:
        attention: Attention = layer.self_attn
        self.dim = head_dim
        self.heads = attention.q_proj.out_features // head_dim
        self.key_heads = attention.k_proj.out_features // head_dim
        # Queries carry the scale of the scores, exactly where it is a power of two, as with 16, 64 or 256 a head.
        scales = (head_dim**-0.5, 1.0, 1.0)
        self.qkv = fused((attention.q_proj, attention.k_proj, attention.v_proj), scales)
        self.out = fused((attention.o_proj,))
        self.mlp = mlp_of(layer.mlp)
        self.before_attention, self.before_mlp = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.add_attention = branch_of(layer.input_layernorm_2)
        self.add_mlp = branch_of(layer.post_attention_layernorm_2)

    def __call__(self, number: int, x: Tensor, rope: Rope, attend: Attend, dtype: torch.dtype) -> Tensor:
        """[R, d] to [R, d]. Few and in place: an operation here costs what it takes to start."""
        qkv = self.qkv(self.before_attention(x)).to(dtype).view(x.shape[0], -1, self.dim)  # [R, H + 2K, D]
        rotate_(qkv[:, : self.heads + self.key_heads], rope)
        q, kv = qkv.split((self.heads, 2 * self.key_heads), 1)
        x = self.add_attention(x, self.out(attend(number, q, kv).to(x.dtype)))
        return self.add_mlp(x, self.mlp(self.before_mlp(x)))


def rotate_(x: Tensor, rope: Rope) -> None:
    """Rotary embedding of x [R, heads, D], in place."""
    cos, sin = rope
    halves = x.view(*x.shape[:2], 2, -1)  # [R, heads, 2, D/2]
    swapped = halves.flip(2)
    halves.mul_(cos).addcmul_(swapped, sin)


def fused(linears: Sequence[nn.Linear], scales: Sequence[float] = (1.0,)) -> Map:
    """One product for maps of the same input, each times its scale."""
    pairs = list(zip(linears, scales, strict=True))
    weight = torch.cat([linear.weight.detach() * scale for linear, scale in pairs]).t().contiguous()  # [in, out]
    if linears[0].bias is None:
        return partial(torch.mm, mat2=weight)
    bias = torch.cat([linear.bias.detach() * scale for linear, scale in pairs])
    return lambda x: torch.addmm(bias, x, weight)


def mlp_of(mlp: SwiGLU | GELU) -> Map:
    down = fused((mlp.down_proj,))
    if isinstance(mlp, GELU):
        up = fused((mlp.up_proj,))
        return lambda x: down(F.gelu(up(x), approximate="tanh"))
    both = fused((mlp.gate_proj, mlp.up_proj), (1.0, 1.0))

    def swiglu(x: Tensor) -> Tensor:
        gate, up = both(x).chunk(2, -1)
        return down(F.silu(gate, inplace=True).mul_(up))

    return swiglu


def norm_of(norm: nn.Module) -> Map:
    """The norm; RMS norm in float32 and wider as g·√d·x/√(‖x‖² + d·ε), which are four operations."""
    if not isinstance(norm, RMSNorm) or not quick(norm):
        return norm
    gain, floor = _constants(norm)
    return lambda x: x.div(_length(x, floor)).mul_(gain)


def branch_of(norm: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, y) to x + norm(y), which may use y up."""
    if not isinstance(norm, RMSNorm) or not quick(norm):
        return lambda x, y: norm(y).add(x)
    gain, floor = _constants(norm)
    return lambda x, y: torch.addcmul(x, y.div_(_length(y, floor)), gain)


def quick(norm: RMSNorm) -> bool:
    """Whether operations may come in another order than the model's, whose own decide the rounding in narrow types."""
    return norm.weight.dtype in (torch.float32, torch.float64)


def _length(x: Tensor, floor: Tensor) -> Tensor:
    return torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), floor)


def _constants(norm: RMSNorm) -> tuple[Tensor, Tensor]:
    """g·√d and √(d·ε)."""
    root = norm.weight.numel() ** 0.5
    return norm.weight.detach() * root, norm.weight.new_tensor(norm.eps**0.5 * root)
