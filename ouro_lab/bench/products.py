"""The matrix products and softmaxes of one training step, alone: what is left of a step if all else were free."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.bench.step import Spec
from ouro_lab.compute.cost import TRAINING
from ouro_lab.compute.widths import Widths


@dataclass(frozen=True)
class Product:
    """[batch ×] m×k by k×n, `count` times in a forward pass, each with the two products of its gradients."""

    name: str
    count: int
    m: int
    k: int
    n: int
    batch: int = 1

    @property
    def flops(self) -> int:
        return TRAINING * 2 * self.count * self.batch * self.m * self.k * self.n


def products(spec: Spec) -> list[Product]:
    """Of a whole step, attention as the full square: its FLOPs are `training_cost`'s `flops_full`."""
    widths, passes, rows = Widths.of(spec.model), spec.layers * spec.loops, spec.tokens
    size, square = widths.query // spec.heads, spec.length
    attention = {"batch": spec.batch * spec.heads, "m": square}
    found = [
        Product("q, o", 2 * passes, rows, widths.model, widths.query),
        Product("k, v", 2 * passes, rows, widths.model, widths.key),
        Product("gate, up", 2 * passes, rows, widths.model, widths.ffn),
        Product("down", passes, rows, widths.ffn, widths.model),
        Product("scores", passes, k=size, n=square, **attention),
        Product("mix", passes, k=square, n=size, **attention),
        Product("head", spec.supervised, rows, widths.model, spec.vocab_size),
    ]
    return found + [Product("exit gate", spec.loops, rows, widths.model, 1)] * spec.stage_one


def alone(spec: Spec) -> Callable[[], None]:
    """Runs them all, forward and backward, in the step's dtype, and the softmaxes of attention and loss.

    One set of operands per shape, used again `count` times: it stays in the caches as a real step's would not, so this
    is a bound that a step can only come near.
    """
    dtype = getattr(torch, spec.dtype)
    passes = spec.layers * spec.loops
    calls = [_product(product, dtype) for product in products(spec)]
    calls.append(_softmax((spec.batch * spec.heads, spec.length, spec.length), passes, dtype))
    calls.append(_softmax((spec.tokens, spec.vocab_size), spec.supervised, dtype))

    @torch.no_grad()
    def run() -> None:
        for call in calls:
            call()

    return run


def _product(product: Product, dtype: torch.dtype) -> Callable[[], None]:
    """y = x·wᵀ, dx = dy·w, dw = dyᵀ·x, in the layouts of a linear layer."""
    outer = (product.batch,) if product.batch > 1 else ()
    x, w, dy = (
        torch.randn(*outer, *shape).to(dtype)
        for shape in ((product.m, product.k), (product.n, product.k), (product.m, product.n))
    )

    def call() -> None:
        for _ in range(product.count):
            torch.matmul(x, w.mT)
            torch.matmul(dy, w)
            torch.matmul(dy.mT, x)

    return call


def _softmax(shape: tuple[int, ...], count: int, dtype: torch.dtype) -> Callable[[], None]:
    scores: Tensor = torch.randn(shape).to(dtype)

    def call() -> None:
        for _ in range(count):
            weights = torch.softmax(scores, -1)
            torch.ops.aten._softmax_backward_data(scores, weights, -1, dtype)

    return call
