"""Cross-entropy of a linear head over all supervised loops, without ever holding all logits.

With T supervised loops autograd would keep T tensors of B·S·V logits. Here a chunk of rows makes its logits, its losses
and, as the weight of every token is known by then, the gradients of states and head too; then the logits are let go.
Three products of the head's size per loop, as with all logits kept, and none of them again in the backward pass.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

IGNORE = -100
CHUNK_ELEMENTS = 1 << 21  # logits that a softmax takes at once: 8 MiB in float32, about a core's share of the caches
LEAST_ROWS = 512  # of logits held at once: fewer make slow products, and more passes over the head's gradient
BLOCK = 8192  # classes: a product of so many rows of the head's gradient is added while it is in the caches


def weighted_cross_entropy(
    hiddens: Sequence[Tensor], head_weight: Tensor, targets: Tensor, weights: Tensor, chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """Σ_t Σ_i w_ti·CE_ti and, detached, CE [T, …] in nats; CE is 0 where the target is `IGNORE`.

    hiddens: T tensors [..., d]; head_weight: [V, d]; targets: [...] int64; weights: [T, ...], to which the gradient is
    CE. The losses are in float32 (float64 for float64 input). chunk: rows of logits held at once. The products run in
    autocast's dtype if it is on; the head's gradient is summed over chunks and loops in float32 or wider.
    """
    width = hiddens[0].shape[-1]
    rows = [hidden.reshape(-1, width) for hidden in hiddens]
    flat = weights.reshape(len(rows), -1)
    dtype = product_dtype(hiddens[0])
    backward = torch.is_grad_enabled()
    total, losses = _WeightedCrossEntropy.apply(
        head_weight, targets.reshape(-1), flat, chunk or chunk_rows(head_weight.shape[0]), dtype, backward, *rows
    )
    return total, losses.view(weights.shape)


@torch.no_grad()
def token_cross_entropy(hidden: Tensor, head_weight: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """−log softmax(hidden·Wᵀ)[target] in nats for every position [...], without gradient; 0 where `IGNORE`."""
    weights = torch.ones(1, *targets.shape, device=targets.device)
    return weighted_cross_entropy([hidden], head_weight, targets, weights, chunk)[1][0]


def chunk_rows(vocab_size: int) -> int:
    return max(LEAST_ROWS, CHUNK_ELEMENTS // vocab_size)


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype a matrix product of x runs in here: autocast's, where it is on."""
    kind = x.device.type
    enabled = kind != "meta" and torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if enabled else x.dtype


def _no_autocast(x: Tensor) -> AbstractContextManager:
    """The dtype is chosen here; autocast does not know the meta device."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def _losses_and_slopes(logits: Tensor, targets: Tensor, backward: bool) -> Tensor:
    """CE [R] of `targets` [R]; where `backward`, dCE/dlogits [R, V] takes the logits' place.

    Both are made in at least float32, whatever the logits' dtype: softmax over 49,152 classes needs it, and so does the
    slope at the target, p − 1, of a token that is nearly certain.
    """
    log_p = F.log_softmax(logits.to(torch.promote_types(torch.float32, logits.dtype)), -1)
    valid = targets != IGNORE
    target = targets.where(valid, 0).unsqueeze(-1)  # any other bad target is an error of `gather`
    losses = -log_p.gather(-1, target).squeeze(-1) * valid
    if not backward:
        return losses
    if torch.compiler.is_compiling():  # one pass over the logits, without the scatter
        at_target = torch.arange(logits.shape[-1], device=logits.device) == target
        logits.copy_(log_p.exp() - at_target)
        return losses
    slopes = log_p.exp_()
    slopes.scatter_add_(-1, target, slopes.new_full((1, 1), -1.0).expand_as(target))
    logits.copy_(slopes)
    return losses


_kernel: Callable[[Tensor, Tensor, bool], Tensor] = _losses_and_slopes


def compile_losses() -> None:
    """From here on this process makes losses and slopes with compiled code, one graph for all numbers of rows.

    A chunk's logits are then read and its slopes written once: on a CPU with 49,152 classes half the time or less.
    """
    global _kernel
    _kernel = torch.compile(_losses_and_slopes, dynamic=True)


class _WeightedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        chunk: int,
        dtype: torch.dtype,
        backward: bool,
        *hiddens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(torch.float32, hiddens[0].dtype)
        losses = weights.new_empty(weights.shape, dtype=wide)
        weights = (weights * (targets != IGNORE)).to(wide)
        grad_head = torch.zeros_like(head, dtype=wide) if backward else None
        grads = [torch.empty_like(rows) for rows in hiddens] if backward else []
        with _no_autocast(head):
            low = head.to(dtype)
            held = low.new_empty(min(chunk, targets.shape[0]), head.shape[0])
            for loop, rows in enumerate(hiddens):
                for start in range(0, rows.shape[0], chunk):
                    part = slice(start, start + chunk)
                    some, weight = rows[part].to(dtype), weights[loop, part].unsqueeze(-1)
                    logits = torch.mm(some, low.t(), out=held[: some.shape[0]])
                    _replace_by_slopes(logits, targets[part], losses[loop, part], backward)
                    if not backward:
                        continue
                    # A row's weight goes to the narrow factors: [R, d], not [R, V].
                    torch.mul(logits @ low, weight, out=grads[loop][part])
                    _add_product(grad_head, logits, torch.mul(some, weight, out=torch.empty_like(some)))
        ctx.save_for_backward(losses, grad_head, *grads)
        ctx.dtypes = head.dtype, weights.dtype
        ctx.mark_non_differentiable(losses)
        return (weights * losses).sum(), losses

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        losses, grad_head, *grads = ctx.saved_tensors
        to_hiddens = [g.mul_(grad) for g in grads]  # where they are, so a second backward pass is refused by autograd
        grad_head = grad_head.mul_(grad)
        return grad_head.to(ctx.dtypes[0]), None, losses * grad, None, None, None, *to_hiddens


def _replace_by_slopes(logits: Tensor, targets: Tensor, losses: Tensor, backward: bool) -> None:
    """Losses go to `losses` [R]; the softmax takes few rows at once, so that they stay in the caches."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
    for start in range(0, logits.shape[0], rows):
        part = slice(start, start + rows)
        losses[part] = _kernel(logits[part], targets[part], backward)


def _add_product(total: Tensor, slopes: Tensor, rows: Tensor) -> None:
    """total += slopesᵀ·rows, in total's dtype: bf16 sums would lose the small chunks."""
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.t(), rows)
        return
    for some, block in zip(slopes.split(BLOCK, dim=1), total.split(BLOCK), strict=True):
        block += some.t() @ rows
