"""Causal attention behind one function, with the implementation chosen by its measured cost.

Shapes: B sequences, S positions, H query heads, K key heads (H a multiple of K), D head size.
"""

import time
from collections.abc import Callable
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.measured import once_per_machine
from ouro_lab.model.varlen import Spans, attend_varlen, obstacle, spans

Rope = tuple[Tensor, Tensor]
PLAIN_TO = 4096  # positions; the S² scores of four heads, which autograd keeps twice and more, are 256 MiB there
LANES = 16  # float32 numbers in a vector register
Mask = Tensor | Spans | None


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a validation may be the first to ask, and training cannot use what inference mode made
def rope_tables(length: int, head_dim: int, base: float, device: torch.device) -> Rope:
    """Cosines and signed sines [S, 1, D] for half-split rotary embedding, in float32; made once, not to be written to.

    With x = (a, b) in halves, rotation is (a·cos − b·sin, b·cos + a·sin) = x·cos + roll(x, D/2)·(−sin, +sin).
    """
    exponent = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    frequency = 1.0 / base**exponent  # not base**−exponent: rounds as the released code does, which long positions need
    angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)  # [S, D/2]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], -1).unsqueeze(1), torch.cat([-sin, sin], -1).unsqueeze(1)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotary embedding of x [B, S, heads, D]."""
    cos, signed_sin = (table.to(x.dtype) for table in rope)
    return x * cos + _swap_halves(x) * signed_sin


def _swap_halves(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    if torch.compiler.is_compiling() and x.device.type == "cpu" and half < LANES:
        # Compiled for a CPU, a roll by less than a vector register goes element by element. The product with a
        # permutation is as exact.
        return x @ torch.eye(2 * half, dtype=x.dtype).roll(half, -1)
    return torch.roll(x, half, -1)


def attention_bias(length: int, documents: Tensor | None, device: torch.device) -> Tensor:
    """What is added to the scores: 0 where i may see j, −inf elsewhere; [S, S], or [B, S, S] with documents."""
    if documents is None:
        return _causal_bias(length, device)
    same = documents.unsqueeze(-1) == documents.unsqueeze(-2)
    return _causal_bias(length, device).expand(same.shape).masked_fill(~same, float("-inf"))


@lru_cache(maxsize=4)
@torch.inference_mode(False)
def _causal_bias(length: int, device: torch.device) -> Tensor:
    """[S, S]; made once, not to be written to."""
    return torch.full((length, length), float("-inf"), device=device).triu_(1)


def attention_mask(backend: str, length: int, documents: Tensor | None, device: torch.device) -> Mask:
    """What `attend` takes with this backend; made once per forward pass."""
    if backend == "flash_varlen" and documents is not None:
        return spans(documents)
    if backend == "sdpa" and documents is None:
        return None  # fused causal attention reads no mask: at 65,536 positions it alone would be 16 GiB
    return attention_bias(length, documents, device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, causal: bool, backend: str) -> Tensor:
    """Attention of q [B, S, H, D] over k, v [B, S, K, D]; returns [B, S, H, D].

    mask: `attention_mask`'s. causal: it holds no documents; sdpa then ignores it.
    """
    return BACKENDS[backend](q, k, v, mask, causal)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, causal: bool) -> Tensor:
    batch, length, heads, dim = q.shape
    if k.shape[2] != heads:
        k, v = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (k, v))
    compiled = torch.compiler.is_compiling()  # then scale and bias cost no pass of their own; baddbmm copies its bias
    q = q * dim**-0.5 if compiled else q
    q, k, v = (x.transpose(1, 2).reshape(batch * heads, length, dim) for x in (q, k, v))
    bias = bias.expand(batch * heads, length, length) if bias.dim() == 2 else bias.repeat_interleave(heads, dim=0)
    if compiled:
        scores = torch.bmm(q, k.transpose(1, 2)) + bias.to(q.dtype)  # [B·H, S, S]
    else:
        scores = torch.baddbmm(bias.to(q.dtype), q, k.transpose(1, 2), alpha=dim**-0.5)
    weights = scores.softmax(-1, dtype=torch.promote_types(torch.float32, q.dtype)).to(v.dtype)
    return torch.bmm(weights, v).view(batch, heads, length, dim).transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool) -> Tensor:
    grouped = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None if causal else bias.unsqueeze(-3).to(q.dtype)  # [B, 1, S, S]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _flash_varlen(q: Tensor, k: Tensor, v: Tensor, where: Spans, causal: bool) -> Tensor:
    return attend_varlen(q, k, v, where)


BACKENDS: dict[str, Callable[..., Tensor]] = {"plain": _plain, "sdpa": _sdpa, "flash_varlen": _flash_varlen}


def candidates(device: str, dtype: torch.dtype, head_dim: int, documents: bool, length: int) -> list[str]:
    """Backends worth trying here. Without documents sdpa is the fused kernel; plain keeps S² scores per head."""
    varlen = documents and obstacle(device, dtype, head_dim) is None
    runs = {"plain": length <= PLAIN_TO, "sdpa": True, "flash_varlen": varlen}
    return [name for name in BACKENDS if runs[name]]


@cache
def fastest_backend(device: str, dtype: torch.dtype, length: int, head_dim: int, documents: bool) -> str:
    """The backend whose forward + backward is cheapest here for this shape, measured once per machine.

    The answer is kept on disk (`OURO_CACHE`), so that all runs of a machine, and a resumed run, use the same one.
    """
    machine = f"{torch.__version__} {device} {torch.get_float32_matmul_precision()} threads={torch.get_num_threads()}"
    key = f"{machine} {dtype} S{length} D{head_dim} docs={documents}"

    def cheapest() -> str:
        names = candidates(device, dtype, head_dim, documents, length)
        if len(names) == 1:
            return names[0]
        costs = {name: _cost(name, torch.device(device), dtype, length, head_dim, documents) for name in names}
        return min(costs, key=lambda name: costs[name])

    return once_per_machine("attention.json", key, cheapest, lambda name: name in BACKENDS)


def _cost(name: str, device: torch.device, dtype: torch.dtype, length: int, head_dim: int, documents: bool) -> float:
    """Median seconds of forward + backward over enough sequences of four heads to fill about 2,000 tokens.

    Works inside `no_grad` and `inference_mode` (a validation may come first) and leaves the global generator alone.
    """
    batch = max(1, 2048 // length)
    shape = (batch, length, 4, head_dim)
    generator = torch.Generator(device).manual_seed(0)
    times = []
    with torch.inference_mode(False), torch.enable_grad():
        ids = torch.zeros(batch, length, dtype=torch.long, device=device) if documents else None
        mask = attention_mask(name, length, ids, device)
        q, k, v = (torch.randn(shape, generator=generator, device=device).to(dtype).requires_grad_() for _ in range(3))
        for _ in range(7):
            _synchronise(device)
            start = time.perf_counter()
            attend(q, k, v, mask, not documents, name).sum().backward()
            _synchronise(device)
            times.append(time.perf_counter() - start)
    return sorted(times[2:])[2]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
