"""Has the gate collapsed? What its exit distribution p holds, and whether depth follows difficulty.

Without a prior p falls onto one loop: a loop that gets weight gets trained more (paper §3.3). A p that is spread but
the same for every token is a collapse too, which mean entropies do not show: hence the correlations and the oracle.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor

from ouro_lab.evaluation.exits import oracle_curve
from ouro_lab.evaluation.passes import Backbone, Data, counted_groups
from ouro_lab.evaluation.trajectory import Trajectory, trajectory
from ouro_lab.objectives import exit_distribution


def spearman(a: NDArray, b: NDArray) -> float:
    """Rank correlation of [N] and [N], ties at their mean rank; 0 where either is constant: nothing goes along."""
    ranks = [rankdata(x) - (len(x) + 1) / 2 for x in (a, b)]
    scale = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale else 0.0


def exit_probabilities(found: Trajectory) -> Tensor:
    """p [T, N] float64. Raises: ValueError without a gate."""
    if found.gate_logit is None:
        raise ValueError("evaluation: needs an exit gate, which the backbone lacks")
    return exit_distribution(found.gate_logit[: found.trained].double()).exp()


@dataclass(frozen=True)
class Collapse:
    """An evaluation of the exit distribution over scored tokens, names `collapse/…`.

    entropy: mean H(p) in nats, and as a share of log T. entropy_of_mean: H of p's mean over tokens. first_mass,
    last_mass: mean p_1, p_T. mean_loops: mean Σ t·p_t. difficulty: Spearman correlation of a token's Σ t·p_t with its
    last-loop loss; difficulty_group: with its group's index on the first axis, where there are several. gap_to_oracle:
    nats that Σ p_t·L_t is above the least loss at its mean depth. entropy_loss_share: β·H over |Σ p_t·L_t − β·H|, which
    the paper saw at 0.01 to 0.05.

    beta: the objective's weight of the entropy.
    """

    beta: float = 0.05

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        if loops == 1:
            return ()
        names = ["entropy", "entropy_share", "entropy_of_mean", "first_mass", "last_mass", "mean_loops"]
        names += ["difficulty", *(["difficulty_group"] if len(counted_groups(data.groups)) > 1 else [])]
        return tuple(f"collapse/{name}" for name in [*names, "gap_to_oracle", "entropy_loss_share"])

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        """Raises: ValueError where a backbone of several loops has no gate. One loop has nothing to tell."""
        if backbone.loops == 1:
            return {}
        found = trajectory(backbone, data, split, rules=())
        values = distribution_metrics(exit_probabilities(found)) | depth_metrics(found) | self._losses(found)
        return {f"collapse/{name}": value for name, value in values.items()}

    def _losses(self, found: Trajectory) -> dict[str, float]:
        p = exit_probabilities(found)
        task = float((p * found.loss[: found.trained]).sum(0).mean())
        least = oracle_curve(found).at("loss", float(expected_loops(p).mean()))
        pull = self.beta * float(entropy(p).mean())
        return {"gap_to_oracle": task - least, "entropy_loss_share": pull / abs(task - pull)}


def distribution_metrics(p: Tensor) -> dict[str, float]:
    """Of p [T, N]."""
    own, mean = float(entropy(p).mean()), p.mean(1, keepdim=True)
    return {
        "entropy": own,
        "entropy_share": own / math.log(len(p)),
        "entropy_of_mean": float(entropy(mean)),
        "first_mass": float(mean[0]),
        "last_mass": float(mean[-1]),
        "mean_loops": float(expected_loops(p).mean()),
    }


def depth_metrics(found: Trajectory) -> dict[str, float]:
    depth = expected_loops(exit_probabilities(found)).numpy()
    values = {"difficulty": spearman(depth, found.loss[found.trained - 1].numpy())}
    if found.group is not None and len(counted_groups(found.groups)) > 1:
        values["difficulty_group"] = spearman(depth, found.group[:, 0].numpy().astype(np.float64))
    return values


def entropy(p: Tensor) -> Tensor:
    """[N] nats of p [T, N]; 0·log 0 is 0."""
    return torch.special.entr(p).sum(0)


def expected_loops(p: Tensor) -> Tensor:
    """Σ_t t·p_t, [N] of p [T, N]."""
    return torch.arange(1, len(p) + 1, dtype=p.dtype) @ p
