"""Attention of packed documents by a kernel for sequences of many lengths: each document costs its own square only."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

LOW = (torch.bfloat16, torch.float16)


@dataclass(eq=False)
class Spans:
    """Where the documents lie among the B·S tokens of a batch, row after row.

    No tuple and not frozen: a compiled block would look into either, and be made anew for every number of documents.
    """

    ends: Tensor  # [N + 1] int32: 0, then where each of the N documents ends
    longest: int  # no document is longer; S, as asking the device for less would wait for it


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]


def spans(documents: Tensor) -> Spans:
    """From ids [B, S] in which each document is one stretch of equal values, as packing makes them.

    Waits for the device, to learn how many documents there are: so it is made once per forward pass, not per layer.
    """
    opens = torch.ones_like(documents, dtype=torch.bool)
    opens[:, 1:] = documents[:, 1:] != documents[:, :-1]  # a row's first token opens a document in any case
    starts = opens.flatten().nonzero().squeeze(-1)  # [N]
    return Spans(F.pad(starts, (0, 1), value=documents.numel()).int(), documents.shape[1])


@torch.compiler.disable  # a call in compiled blocks, for the same reason
def attend_varlen(q: Tensor, k: Tensor, v: Tensor, where: Spans) -> Tensor:
    """Causal attention of q [B, S, H, D] over k, v [B, S, K, D] inside each document; [B, S, H, D]."""
    flat = (x.flatten(0, 1) for x in (q, k, v))  # [B·S, heads, D]
    return kernel()(*flat, where.ends, where.longest).view(q.shape)


def obstacle(device: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run for this shape here; None where it can."""
    if device != "cuda":
        return f"needs a CUDA device, got {device}; plain and sdpa run anywhere"
    if dtype not in LOW:
        return f"needs bf16 or fp16 (trainer.precision), got {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > 256:
        return f"needs backbone.head_dim to be a multiple of 8 up to 256, got {head_dim}"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        return "needs a GPU of compute capability 8.0 or higher"
    if kernel() is None:
        return "needs flash-attn (pip install --no-build-isolation -e '.[gpu]') or a torch with varlen_attn"
    return None


@cache
def kernel() -> Kernel | None:
    """flash-attn's, else PyTorch's own, behind one signature; None where neither is installed."""
    try:
        packed = import_module("flash_attn").flash_attn_varlen_func
    except ImportError:
        return _torch_kernel()

    def flash(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
        return packed(q, k, v, ends, ends, longest, longest, causal=True)

    return flash


def _torch_kernel() -> Kernel | None:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    if "enable_gqa" not in inspect.signature(varlen_attn).parameters:  # the first releases' arguments mean other things
        return None

    def own(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
        grouped = q.shape[1] != k.shape[1]
        # A window of (−1, 0) is all that came before, and itself.
        return varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0), enable_gqa=grouped)

    return own
