"""The exit distribution that gate logits define, and the priors it is pulled towards. Everything in log space.

λ_t = σ(g_t) is the hazard of loop t, S_t = Π_{j≤t}(1 − λ_j) the survival; p_t = λ_t·S_{t−1} for t < T and the last loop
takes the rest, p_T = S_{T−1} (paper §3.2). λ_T is never used.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.model.transformer import LoopState

TRUNCATIONS = ("renormalise", "tail")


def with_exit_probability(states: Iterable[LoopState]) -> Iterator[tuple[LoopState, Tensor]]:
    """Each loop's state with log p_t [B, S], in one pass: p_t needs only the gates of loops 1 … t.

    Raises:
        ValueError: the backbone has no gate and more than one loop.
    """
    log_survival: Tensor | float = 0.0
    held: LoopState | None = None
    for state in states:
        if held is not None:  # not the last loop, now that another has come
            if held.gate_logit is None:
                raise ValueError("objective: needs an exit gate, but the backbone yields no gate logits")
            gate = held.gate_logit.float() if held.gate_logit.dtype != torch.float64 else held.gate_logit
            yield held, log_survival + F.logsigmoid(gate)
            log_survival = log_survival + F.logsigmoid(-gate)
        held = state
    if held is None:
        raise ValueError("objective: the backbone yields no loop")
    if isinstance(log_survival, float):
        wide = torch.promote_types(torch.float32, held.hidden.dtype)
        log_survival = torch.zeros(held.hidden.shape[:-1], device=held.hidden.device, dtype=wide)
    yield held, log_survival


def exit_distribution(gate_logits: Tensor) -> Tensor:
    """log p [T, …] from gate logits [T, …]."""
    states = (LoopState(gate.unsqueeze(-1), gate) for gate in gate_logits)
    return torch.stack([log_p for _, log_p in with_exit_probability(states)])


def log_prior(loops: int, geometric: float | None = None, truncation: str = "renormalise") -> list[float]:
    """log π of the prior over loops: uniform, or geometric(λ) cut to T loops (paper Appendix A).

    truncation: what becomes of the mass beyond T, which the paper leaves open: `renormalise` spreads it in
    proportion, `tail` gives it to loop T, as p itself does.

    Raises:
        ValueError: λ outside (0, 1), or an unknown truncation.
    """
    if truncation not in TRUNCATIONS:
        raise ValueError(f"objective.truncation = {truncation!r}: must be one of {', '.join(TRUNCATIONS)}")
    if geometric is None:
        return [-math.log(loops)] * loops
    if not 0 < geometric < 1:
        raise ValueError(f"objective.geometric = {geometric!r}: must be in (0, 1)")
    mass = [geometric * (1 - geometric) ** t for t in range(loops)]
    if truncation == "tail":
        mass[-1] = (1 - geometric) ** (loops - 1)
    return [math.log(m / sum(mass)) for m in mass]
