"""Overrides that shrink p-hop to a second, and an evaluation as a user would write one."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ouro_lab.data.tokenizer import ByteTokenizer
from ouro_lab.interop import Trunk, export_trunk
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.starts import CKPT
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
    """Whether runs begin with those of another study, or with a checkpoint, which need not be here."""
    starts = [config.init_from for config in study.arm_configs.values()]
    return any(isinstance(start, Mapping) or start == CKPT for start in starts)


def tiny_checkpoint(folder: Path, layers: int = 2) -> Path:
    """A random 4-loop model over bytes, with a gate, in Ouro's layout."""
    shape = {"loops": 4, "width": 8, "heads": 2, "gate": True, "init_std": 0.3, "attention": "plain"}
    model = LoopedTransformer(ModelConfig(257, layers, **shape))
    model.initialise(0)
    export_trunk(Trunk(model, ByteTokenizer(), None, ""), folder)
    return folder


def write_questions(path: Path, groups: Sequence[str], each: int = 4) -> Path:
    """So many sums of each group, one after another, each with a right and a wrong option."""
    rows = []
    for group in groups:
        for i in range(each):
            options = [f" {i + 1 + i % 2}", f" {i + 2 - i % 2}"]
            rows.append({"prompt": f"{group[-3:]} {i} + 1 =", "options": options, "answer": i % 2, "group": group})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
