"""How far apart two kinds of prompts lie in the state after the last loop (paper §7.1, which shows a PCA by eye)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.evaluation.passes import Backbone, Data, axes, batches, evaluating, loop_states, scored_positions
from ouro_lab.evaluation.probes import area_under_roc


def d_prime(a: Tensor, b: Tensor) -> float:
    """Distance of the means of [n] and [m] in standard deviations, the root of the mean of both variances."""
    spread = math.sqrt(float(a.var() + b.var()) / 2)
    return float(a.mean() - b.mean()) / spread if spread else 0.0


@dataclass(frozen=True)
class Separation:
    """An evaluation: d′ between the data's two groups of prompts, at the last token of a prompt.

    Standardised states of `val` give the line through the groups' means, and the prompts of `test` are measured along
    it, so that d′ of groups that differ by chance alone is 0 in the mean. `separation/d_prime` is at the last loop and
    `separation/d_prime_loop{t}` at each; `separation/auc` is the chance that a prompt of the first group lies further
    along than one of the second.

    Raises:
        ValueError: the data have other than two groups, or fewer than two prompts of one.
    """

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        by_loop = (f"separation/d_prime_loop{t}" for t in range(1, loops + 1))
        return (*by_loop, "separation/d_prime", "separation/auc")

    def positions(self, data: Data, loops: int) -> int:
        """Tokens that are passed beside the test set's own pass, in passes of all loops: `val` is as large again."""
        return data.evaluation_tokens("test") * max(1, data.folds)

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        if len(data.groups) != 2:
            raise ValueError(f"data.groups = {list(data.groups)}: must be two, which are told apart")
        known, held = (self._states(backbone, data, name) for name in ("val", split))
        values: dict[str, float] = {}
        for loop, ((states, kind), (new, new_kind)) in enumerate(zip(known, held, strict=True), start=1):
            along = _projected(states, kind, new)
            values[f"separation/d_prime_loop{loop}"] = d_prime(along[new_kind == 0], along[new_kind == 1])
            scores = torch.stack([along, -along], 1)
        return values | {
            "separation/d_prime": values[f"separation/d_prime_loop{backbone.loops}"],
            "separation/auc": area_under_roc(scores, new_kind),
        }

    def _states(self, backbone: Backbone, data: Data, split: str) -> list[tuple[Tensor, Tensor]]:
        """Per loop the states [n, d] float64 of a split's prompts, and their groups [n]."""
        parts: list[list[Tensor]] = [[] for _ in range(backbone.loops)]
        kinds = []
        with evaluating(backbone):
            for batch in batches(data, split, backbone.head_weight.device):
                scored = scored_positions(batch, tuple(data.groups))
                for part, state in zip(parts, loop_states(backbone, batch, None), strict=True):
                    part.append(state.hidden[scored].double().cpu())
                kinds.append(axes(batch)[scored.nonzero()[:, 0], 0].cpu())
        kind = torch.cat(kinds)
        for index, group in enumerate(data.groups):
            if int((kind == index).sum()) < 2:
                raise ValueError(
                    f"data.path: fewer than two prompts of {group} in {split}; must be more, or fewer folds"
                )
        return [(torch.cat(part), kind) for part in parts]


def _projected(states: Tensor, kind: Tensor, new: Tensor) -> Tensor:
    """[m] of new [m, d], along the line from the mean of kind 1 to that of kind 0 of states [n, d], standardised."""
    mean, spread = states.mean(0), states.std(0).clamp_min(1e-12)
    unit = (states - mean) / spread
    line = unit[kind == 0].mean(0) - unit[kind == 1].mean(0)
    return (new - mean) / spread @ line
