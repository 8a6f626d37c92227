"""The cost of a backbone that is not ours, measured with PyTorch's counter instead of derived from a config."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ouro_lab.compute.cost import TRAINING, Cost, Flops, Parameters
from ouro_lab.compute.memory import optimiser_bytes

METHOD = "measured: PyTorch's counter, attention as the full square"
# The counter's names of what is attention; every other product is the body's.
ATTENTION_OPS = ("bmm", "baddbmm", "scaled_dot_product", "flex_attention")


class Objective(Protocol):
    needs_gate: bool

    def supervised_loops(self, loops: int) -> int: ...


def measured_cost(backbone: Any, vocab_size: int, length: int, objective: Objective, backward: bool = True) -> Cost:
    """Cost of training a user's own backbone, an nn.Module by the contract in docs/design.md, one sequence at a time.

    In the counter's conventions: matrix products only, attention as the full square (plain-math kernels are forced, as
    the counter gives fused ones on a CPU 0), batched products taken for attention. A gate's FLOPs are in the body.
    The head is charged by formula, 2·d·V per supervised loop, so that a cross-entropy that recomputes its logits is not
    charged twice. Parameters that are neither an `nn.Embedding`'s nor the head's are the body.

    backward: false where the trunk learns nothing: the forward pass and a head per loop; the slopes of a gate that is
    trained alone are not told apart from it, and left out.

    Counted on the meta device, without memory; on the CPU with zero weights where the backbone does not run there.
    """
    supervised = objective.supervised_loops(backbone.loops) if backward else backbone.loops
    try:
        flops, kept = _count(_on_meta(backbone), length, objective, backward)
    except RuntimeError:  # reads a value, or uses an operator without a meta kernel
        flops, kept = _count(_on_cpu(backbone), length, objective, backward)
    stored = _parameters(backbone)
    width = backbone.head_weight.shape[1]
    head = (TRAINING if backward else 1) * 2 * width * vocab_size * supervised
    kept_by_loss = 4 * length * supervised * (width + 1)  # see activation_bytes
    return Cost(
        parameters=stored,
        flops=None,
        flops_full=Flops(flops["body"] / length, flops["attention"] / length, head, 0),
        activation_bytes=kept + kept_by_loss if backward else 0,
        optimiser_bytes=optimiser_bytes(stored.total if backward else 0),
        method=METHOD,
    )


@contextmanager
def kept_for_backward() -> Generator[list[Tensor]]:
    """The tensors that autograd keeps of what runs inside; alive in the list, so that no storage is used twice."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return kept[-1]

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept


def kept_bytes(kept: list[Tensor], module: nn.Module) -> int:
    """Bytes of the distinct storages among them, the module's own parameters and buffers left out."""
    own = {_storage(tensor) for tensor in (*module.parameters(), *module.buffers())}
    sizes = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(size for storage, size in sizes.items() if storage not in own)


def _count(backbone: Any, length: int, objective: Objective, backward: bool) -> tuple[dict[str, int], int]:
    """FLOPs of one sequence in the body and in attention, and the bytes kept for the backward pass."""
    device = backbone.head_weight.device
    tokens = torch.zeros(1, length, dtype=torch.long, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        with kept_for_backward() as kept:
            loss = _probe(backbone, tokens, objective)
        if backward:
            loss.backward()
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for op, count in counts.items() if op.split(".")[-1].strip("_").startswith(ATTENTION_OPS))
    return {"attention": attention, "body": sum(counts.values()) - attention}, kept_bytes(kept, backbone)


def _probe(backbone: Any, tokens: Tensor, objective: Objective) -> Tensor:
    """A scalar whose gradient reaches what the objective's would: the last supervised states, and gates if used."""
    states = list(backbone.loop_states(tokens))
    total = sum(state.hidden.sum() for state in states[-objective.supervised_loops(backbone.loops) :])
    if objective.needs_gate:
        total = total + sum(state.gate_logit.sum() for state in states)
    return total


def _on_meta(backbone: nn.Module) -> nn.Module:
    """A copy without memory: deepcopy finds every tensor copied already."""
    shadows: dict[int, Tensor] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in backbone.parameters()
    }
    shadows |= {id(b): torch.empty_like(b, device="meta") for b in backbone.buffers()}
    return copy.deepcopy(backbone, shadows)


def _on_cpu(backbone: nn.Module) -> nn.Module:
    """A copy with zero weights if they are on the meta device."""
    on_cpu = copy.deepcopy(backbone)
    if any(parameter.is_meta for parameter in on_cpu.parameters()):
        on_cpu = on_cpu.to_empty(device="cpu")
        for tensor in (*on_cpu.parameters(), *on_cpu.buffers()):
            tensor.data.zero_()  # not what was in memory: it may be NaN
    return on_cpu.cpu()


def _storage(tensor: Tensor) -> int:
    """Identity of a storage; its address is 0 on the meta device."""
    return tensor.untyped_storage()._cdata


def _parameters(backbone: Any) -> Parameters:
    tables = {id(m.weight): m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Embedding)}
    head = backbone.head_weight
    head_size = 0 if id(head) in tables or not isinstance(head, nn.Parameter) else head.numel()
    total = sum(parameter.numel() for parameter in backbone.parameters())
    embedding = sum(tables.values())
    return Parameters(embedding, total - embedding - head_size, norms=0, head=head_size, gate=0)
