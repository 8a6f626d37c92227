"""Overrides that shrink p-hop to a second, and an evaluation as a user would write one."""

from collections.abc import Mapping
from typing import Any

from ouro_lab.study import Study

TINY = [
    "study.lr=null",
    "backbone.width=16",
    "backbone.heads=2",
    "data.task.length=12",
    "data.task.hops=2",
    "study.contrasts.depth_by_reuse.metric=accuracy/hops_2",
    "study.contrasts.cost_of_tying.metric=accuracy/hops_2",
    "data.batch_size=8",
    "data.val_size=8",
    "data.test_size=16",
    "budget.steps=12",
    "trainer.val_every=4",
    "trainer.log_every=2",
    "optim.lr=1e-2",
]

# Every block that names p_hop's arms, gone: a test puts its own in its place.
BARE = ["~study.contrasts", "~study.positive_control", "~study.arms"]


class Agreement:
    """An evaluation of docs/design.md's contract: how often an earlier loop already predicts what the last one does."""

    def __init__(self, loop: int = 1, names: tuple[str, ...] = ()) -> None:
        self.loop, self.names = loop, tuple(names)

    def metric_names(self, data: Any, loops: int) -> tuple[str, ...]:
        return self.names or (f"agreement/loop_{self.loop}",)

    def __call__(self, backbone: Any, data: Any, split: str) -> dict[str, float]:
        same = total = 0
        for batch in data.evaluation_batches(split):
            tokens = batch["tokens"].to(backbone.head_weight.device)
            best = [(state.hidden @ backbone.head_weight.T).argmax(-1) for state in backbone.loop_states(tokens)]
            same, total = same + int((best[self.loop - 1] == best[-1]).sum()), total + tokens.numel()
        return {f"agreement/loop_{self.loop}": same / total}


def starts_elsewhere(study: Study) -> bool:
    """Whether runs begin with those of another study, which need not be done here."""
    return any(isinstance(config.init_from, Mapping) for config in study.arm_configs.values())
