"""Buffers of rows on their way through a stack, and the norms that read and write them.

At one token a row, an operation costs what it takes to start and what it allocates: all layers of a loop write the same
buffers, whose views are made once.
"""

from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from ouro_lab.model.config import ModelConfig
from ouro_lab.model.layers import RMSNorm

WIDE = (torch.float32, torch.float64)


class Rows:
    """R rows: the stream x and a branch's output y, [R, d], and what layers make on the way.

    Of wide types there stands √(d·ε) beside x and y, in a column of its own: the length of such a row is √(‖x‖² + d·ε).
    """

    def __init__(
        self, config: ModelConfig, count: int, dtype: torch.dtype, attention_dtype: torch.dtype, device: torch.device
    ) -> None:
        width, size, rotated = config.width, config.head_dim, config.heads + config.kv_heads
        empty = partial(torch.empty, dtype=dtype, device=device)
        self.x_and_floor, self.y_and_floor = empty(2, count, width + (dtype in WIDE))
        self.x, self.y = self.x_and_floor[:, :width], self.y_and_floor[:, :width]
        self.x_and_floor[:, width:] = self.y_and_floor[:, width:] = (width * config.norm_eps) ** 0.5
        self.length, self.normed = empty(count, 1), empty(count, width)
        self.qkv = empty(count, (rotated + config.kv_heads) * size)
        same = attention_dtype == dtype
        self.attended = self.qkv if same else torch.empty_like(self.qkv, dtype=attention_dtype)
        heads = self.attended.view(count, -1, size)
        self.q, self.kv = heads.split((config.heads, 2 * config.kv_heads), 1)  # [R, H, D], [R, 2K, D]
        self.pairs = heads[:, :rotated].unflatten(-1, (-1, 2))  # [R, H + K, D/2, 2], what rotary embedding turns
        self.turned = torch.view_as_complex(self.pairs) if self.pairs.dtype in WIDE else None
        self.inner = empty(count, (2 if config.mlp == "swiglu" else 1) * config.ffn_width)
        if config.mlp == "swiglu":
            self.gate, self.up = self.inner.chunk(2, -1)

    def rotate(self, rope: Tensor) -> None:
        """Rotary embedding of queries and keys, in place; rope: `turns` of the rows."""
        if self.turned is not None:
            self.turned.mul_(rope)
        else:
            wide = self.pairs.float()
            torch.view_as_complex(wide).mul_(rope)
            self.pairs.copy_(wide)


class Norm(Protocol):
    gain: Tensor | None  # [d], left to the product that follows `before`

    def before(self, rows: Rows) -> Tensor:
        """The normed stream but for the gain, [R, d], until the next call."""
        ...

    def add(self, rows: Rows) -> None:
        """x ← x + norm(y); y is used up."""
        ...

    def __call__(self, rows: Rows) -> Tensor:
        """The normed stream, [R, d], to keep."""
        ...


class QuickNorm:
    """RMS norm as g·√d · x/√(‖x‖² + d·ε): two operations before a product, three on a branch's output."""

    def __init__(self, norm: RMSNorm) -> None:
        self.gain = norm.weight.detach() * norm.weight.numel() ** 0.5

    def before(self, rows: Rows) -> Tensor:
        torch.linalg.vector_norm(rows.x_and_floor, dim=-1, keepdim=True, out=rows.length)
        return torch.div(rows.x, rows.length, out=rows.normed)

    def add(self, rows: Rows) -> None:
        torch.linalg.vector_norm(rows.y_and_floor, dim=-1, keepdim=True, out=rows.length)
        rows.x.addcmul_(rows.y.div_(rows.length), self.gain)

    def __call__(self, rows: Rows) -> Tensor:
        return self.before(rows) * self.gain


class PlainNorm:
    """Any norm, or none, as the model computes it."""

    gain = None

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm

    def before(self, rows: Rows) -> Tensor:
        return self.norm(rows.x)

    def add(self, rows: Rows) -> None:
        rows.x.add_(self.norm(rows.y))

    def __call__(self, rows: Rows) -> Tensor:
        return self.norm(rows.x)


def norm_of(norm: nn.Module) -> Norm:
    """In narrow types the model's own order of operations decides the rounding, and is kept."""
    wide = isinstance(norm, RMSNorm) and norm.weight.dtype in WIDE
    return QuickNorm(norm) if wide else PlainNorm(norm)
