"""Depth as an experiment: what changes from loop to loop, up to twice as many as trained (paper §5.4.1, Tables 10–13).

The paper's bound E[L^(t+1)] ≤ E[L^(t)] would let one stop at any loop; `monotone` is how often that holds for a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.evaluation.exits import outcome
from ouro_lab.evaluation.passes import Backbone, Data, counted_groups
from ouro_lab.evaluation.trajectory import Trajectory, trajectory


def agreement(argmax: Tensor) -> tuple[Tensor, Tensor]:
    """Share of tokens with the same answer at loops i and j, and what independent answers would give: [R, R] each.

    argmax: [R, N]. Chance is Σ_v P_i(v)·P_j(v), from each loop's own share of answers v. For two answers it is 0.5 or
    more only if both loops prefer the same one; agreement below it means that a loop answers the other way round, as
    with the paper's 361 of 1,000 yes-or-no pairs at loops 2 and 4 (§7.2), and not that it thought anew.
    """
    observed = torch.stack([(argmax == row).double().mean(1) for row in argmax])
    answers, index = argmax.unique(return_inverse=True)
    shares = torch.stack([row.bincount(minlength=len(answers)) for row in index]).double() / argmax.shape[1]  # [R, V']
    return observed, shares @ shares.T


def changes(right: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of tokens that turn right → wrong and wrong → right from each loop to the next, [R − 1] each."""
    before, after = right[:-1], right[1:]
    return (before & ~after).double().mean(1), (~before & after).double().mean(1)


def monotone_share(loss: Tensor) -> float:
    """Share of tokens whose loss never rises from one loop to the next; loss [R, N]."""
    return float((loss[1:] <= loss[:-1]).all(0).double().mean())


def gains(found: Trajectory) -> dict[str, dict[str, float]]:
    """By group, over all axes: mean loss at loop 1 less that at T, and accuracy of tokens at T less that at 1."""
    values = {}
    if found.group is None:
        return values
    last = found.trained - 1
    for index, name in enumerate(found.groups):
        inside = (found.group == index).any(1)
        if inside.any():
            loss, right = found.loss[:, inside].double().mean(1), found.right[:, inside].double().mean(1)
            values[name] = {"loss": float(loss[0] - loss[last]), "accuracy": float(right[last] - right[0])}
    return values


@dataclass(frozen=True)
class DepthSweep:
    """An evaluation at loops 1 … R, names `depth/…`.

    loss, accuracy, bits_per_byte, agreement (with the answer at loop T) and its chance, each `_loop{t}`;
    right_to_wrong_loop{t}, wrong_to_right_loop{t} from the loop before; monotone, over loops 1 … T; best_loop, of least
    mean loss; gain/{group}, gain_accuracy/{group}, from loop 1 to T.

    times: R is so many times T. An untied stack with read-outs has no loops beyond its own: it takes times = 1.
    """

    times: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.times, int) or self.times < 1:
            raise ValueError(f"evaluation.times = {self.times!r}: must be an integer ≥ 1")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        qualities = ["loss", "accuracy", *(name for name in data.metric_names if name == "bits_per_byte")]
        every = [*qualities, "agreement", "chance"]
        names = [f"{name}_loop{t}" for t in range(1, self.times * loops + 1) for name in every]
        steps = range(2, self.times * loops + 1)
        names += [f"{name}_loop{t}" for t in steps for name in ("right_to_wrong", "wrong_to_right")]
        names += [f"{name}/{group}" for group in counted_groups(data.groups) for name in ("gain", "gain_accuracy")]
        return tuple(f"depth/{name}" for name in [*names, "monotone", "best_loop"])

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        found = trajectory(backbone, data, split, self.times * backbone.loops, rules=())
        values = self._by_loop(found)
        values["monotone"] = monotone_share(found.loss[: found.trained])
        values["best_loop"] = float(found.loss.double().mean(1).argmin() + 1)
        for group, gain in gains(found).items():
            values |= {f"gain/{group}": gain["loss"], f"gain_accuracy/{group}": gain["accuracy"]}
        return {f"depth/{name}": value for name, value in values.items()}

    def _by_loop(self, found: Trajectory) -> dict[str, float]:
        values = {}
        observed, chance = agreement(found.argmax)
        to_wrong, to_right = changes(found.right)
        for loop in range(1, found.loops + 1):
            own = outcome(found, torch.full_like(found.target, loop))
            own |= {"agreement": float(observed[found.trained - 1, loop - 1])}
            own |= {"chance": float(chance[found.trained - 1, loop - 1])}
            if loop > 1:
                own |= {"right_to_wrong": float(to_wrong[loop - 2]), "wrong_to_right": float(to_right[loop - 2])}
            values |= {f"{name}_loop{loop}": value for name, value in own.items() if name != "loops"}
        return values
