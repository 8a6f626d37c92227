"""Cross-entropy of a linear head without ever holding all logits.

With T supervised loops autograd would keep T tensors of B·S·V logits. Here a chunk of rows makes its logits, its losses
and lets go; the backward pass makes them again. The price is one more head product per loop.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORE = -100
CHUNK_ELEMENTS = 1 << 22  # logits held at once; 16 MiB in float32


def token_cross_entropy(hidden: Tensor, head_weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """−log softmax(hidden·Wᵀ)[target] in nats for every position; 0 where the target is `IGNORE`.

    hidden: [..., d]; head_weight: [V, d]; targets: [...] int64. Returns [...] in float32 (float64 for float64 input).
    chunk: rows of logits held at once (default: about 4 M elements). The products run in autocast's dtype if it is on.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    if chunk is None:
        chunk = max(128, CHUNK_ELEMENTS // head_weight.shape[0])
    losses = _LinearCrossEntropy.apply(rows, head_weight, targets.reshape(-1), chunk, product_dtype(hidden))
    return losses.view(targets.shape)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matrix product of x runs in here: autocast's, where it is on."""
    kind = x.device.type
    enabled = kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if enabled else x.dtype


def _no_autocast(x: Tensor) -> AbstractContextManager:
    """The dtype is chosen here; autocast does not know the meta device."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def _logits(rows: Tensor, weight: Tensor) -> Tensor:
    """In at least float32, whatever the product's dtype: softmax over 49,152 classes needs it."""
    logits = F.linear(rows, weight)
    return logits.to(torch.promote_types(torch.float32, logits.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, rows: Tensor, weight: Tensor, targets: Tensor, chunk: int, dtype: torch.dtype
    ) -> Tensor:
        losses = []
        with _no_autocast(rows):
            low = weight.to(dtype)
            for part, target in zip(rows.split(chunk), targets.split(chunk), strict=True):
                logits = _logits(part.to(dtype), low)  # [chunk, V]
                losses.append(F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none"))
        ctx.save_for_backward(rows, weight, targets)
        ctx.chunk, ctx.dtype = chunk, dtype
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, weight, targets = ctx.saved_tensors
        low = weight.to(ctx.dtype)
        grad_rows = torch.empty_like(rows)
        # Summed over chunks in float32 or wider: bf16 would lose the small chunks.
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(torch.float32, weight.dtype))
        grad = grad * (targets != IGNORE)
        for start in range(0, rows.shape[0], ctx.chunk):
            part = slice(start, start + ctx.chunk)
            slope = _logits(rows[part].to(ctx.dtype), low).softmax(-1)  # [chunk, V], becomes dL/dlogits
            target = targets[part].clamp_min(0).unsqueeze(-1)
            slope.scatter_add_(-1, target, slope.new_full((1, 1), -1.0).expand_as(target))
            slope = slope.mul_(grad[part].unsqueeze(-1)).to(ctx.dtype)
            grad_rows[part] = (slope @ low).to(rows.dtype)
            grad_weight += slope.t() @ rows[part].to(ctx.dtype)
        return grad_rows, grad_weight.to(weight.dtype), None, None, None
