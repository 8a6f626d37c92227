"""The layers of a looped transformer for rows of any kind: one token each, of any sequence, at any position and loop.

Weights are laid out once for products of few rows: query, key and value in one matrix, SwiGLU's gate and up in another,
all as [in, out], which reads memory in the order in which it lies. These are copies, which later training leaves alone.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.inference.rows import Rows, norm_of
from ouro_lab.model.attention import rope_tables
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.layers import GELU, Attention, Layer, SwiGLU
from ouro_lab.model.transformer import LoopedTransformer

# (q [R, H, D], keys and values [R, 2K, D]) to (layer number) to what it attends to [R, H·D]. The first two are buffers,
# which every layer fills anew.
Attend = Callable[[Tensor, Tensor], Callable[[int], Tensor]]
Columns = tuple[Tensor, Tensor | None]  # weight [out, in] and bias [out]
Product = Callable[[Tensor, Tensor], Tensor]  # (x [R, in], where to put it [R, out])
KEPT_ROWS = 16


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
        self._rows: dict[int, Rows] = {}

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

    def rope(self, positions: Tensor, length: int) -> Tensor:
        """Turns of positions [R] int64, all below `length`: [R, 1, D/2] complex, cos + i·sin."""
        wide = self.cache_dtype == torch.float64
        table = turns(length, self.config.head_dim, self.config.rope_base, wide, self.device)
        return table.index_select(0, positions)

    def loop(self, x: Tensor, rope: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        """The stack once: the stream that the next loop reads and the normed state, [R, d] each."""
        rows = self._rows_for(x)
        attention = attend(rows.q, rows.kv)
        for number, layer in enumerate(self.layers):
            layer(rows, rope, partial(attention, number))
        hidden = self.norm(rows)
        return (hidden if self.config.norm_between_loops else rows.x.clone()), hidden

    def _rows_for(self, x: Tensor) -> Rows:
        """Holding x; the buffers of few rows are kept, as making them takes a layer's time."""
        rows = self._rows.get(len(x)) or Rows(self.config, len(x), self.dtype, self.cache_dtype, self.device)
        if len(x) <= KEPT_ROWS:
            self._rows[len(x)] = rows
        rows.x.copy_(x)
        return rows

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


@lru_cache(maxsize=4)
def turns(length: int, head_dim: int, base: float, wide: bool, device: torch.device) -> Tensor:
    """`rope_tables` as complex numbers [S, 1, D/2], in double precision if `wide`; made once, not to be written to."""
    cos, sin = (table[..., head_dim // 2 :] for table in rope_tables(length, head_dim, base, device))
    return torch.complex(cos, sin).to(torch.complex128 if wide else torch.complex64)


class FusedLayer:
    """`Layer` with fewer products and operations. A head's numbers lie in another order than the model's: pairs that
    rotary embedding turns together stand side by side, in queries and keys alike, so that no score changes.
    """

    def __init__(self, layer: Layer, head_dim: int) -> None:
        attention: Attention = layer.self_attn
        before_attention, before_mlp = norm_of(layer.input_layernorm), norm_of(layer.post_attention_layernorm)
        self.before_attention, self.before_mlp = before_attention.before, before_mlp.before
        # Queries carry the scale of the scores, exactly where it is a power of two, as with 16, 64 or 256 a head.
        projections = [
            paired(attention.q_proj, head_dim, head_dim**-0.5),
            paired(attention.k_proj, head_dim),
            columns(attention.v_proj),
        ]
        self.qkv = product(projections, before_attention.gain)
        self.out = product([columns(attention.o_proj)])
        self.add_attention = norm_of(layer.input_layernorm_2).add
        self.mlp = mlp_of(layer.mlp, before_mlp.gain)
        self.add_mlp = norm_of(layer.post_attention_layernorm_2).add

    def __call__(self, rows: Rows, rope: Tensor, attention: Callable[[], Tensor]) -> None:
        """The layer on the rows' stream, in place. Few operations: one costs what it takes to start."""
        self.qkv(self.before_attention(rows), rows.qkv)
        if rows.attended is not rows.qkv:
            rows.attended.copy_(rows.qkv)
        rows.rotate(rope)
        self.out(attention().to(rows.y.dtype), rows.y)
        self.add_attention(rows)
        self.mlp(self.before_mlp(rows), rows)
        self.add_mlp(rows)


def columns(linear: nn.Linear) -> Columns:
    return linear.weight.detach(), None if linear.bias is None else linear.bias.detach()


def paired(linear: nn.Linear, head_dim: int, scale: float = 1.0) -> Columns:
    """Times `scale`, and a head's halves interleaved."""

    def of(x: Tensor) -> Tensor:
        return x.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2) * scale

    weight, bias = columns(linear)
    return of(weight), None if bias is None else of(bias)


def product(parts: Sequence[Columns], gain: Tensor | None = None) -> Product:
    """One product for maps of the same input, which is first multiplied by `gain`."""
    weight = torch.cat([weight for weight, _ in parts])
    weight = (weight if gain is None else weight * gain).t().contiguous()  # [in, out]
    if parts[0][1] is None:
        return lambda x, out: torch.mm(x, weight, out=out)
    bias = torch.cat([bias for _, bias in parts])
    return lambda x, out: torch.addmm(bias, x, weight, out=out)


def mlp_of(mlp: SwiGLU | GELU, gain: Tensor | None) -> Callable[[Tensor, Rows], object]:
    """From the normed stream, but for `gain`, to y."""
    down = product([columns(mlp.down_proj)])
    if isinstance(mlp, GELU):
        up = product([columns(mlp.up_proj)], gain)
        return lambda x, rows: down(F.gelu(up(x, rows.inner), approximate="tanh"), rows.y)
    both = product([columns(mlp.gate_proj), columns(mlp.up_proj)], gain)

    def swiglu(x: Tensor, rows: Rows) -> None:
        both(x, rows.inner)
        down(F.silu(rows.gate, inplace=True).mul_(rows.up), rows.y)

    return swiglu
