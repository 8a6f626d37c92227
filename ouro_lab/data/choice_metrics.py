"""What is told of questions with options: from each option's nats per loop, the share answered rightly."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from ouro_lab.data.tasks.protocol import IGNORE


class Choices(NamedTuple):
    """A set of Q questions whose options, R in all, are rows in the questions' order."""

    counts: NDArray[np.int64]  # [Q] options
    lengths: NDArray[np.float64]  # [R] what an option's nats are divided by
    answer: NDArray[np.int64]  # [Q] the right option
    group: NDArray[np.int64]  # [Q]

    @staticmethod
    def of(lengths: Sequence[Sequence[float]], answer: Sequence[int], group: Sequence[int]) -> "Choices":
        counts = np.array([len(options) for options in lengths])
        return Choices(counts, np.concatenate([np.array(x) for x in lengths]), np.array(answer), np.array(group))


class ChoiceMetrics(Metric):
    """Means over a split of questions, in the names of docs/design.md (loops one-based in names).

    `loss`: nats of the right option's text, mean over questions. `accuracy`: the share of questions whose likeliest
    option, after division by its length, is the right one; ties go to the earlier option. `gain`: accuracy at the last
    loop less that at the first. All by group too; `loss_loop{t}`, `accuracy_loop{t}` and `accuracy_loop{t}/{group}`.
    """

    full_state_update = False

    def __init__(self, loops: int, groups: tuple[str, ...], choices: Choices) -> None:
        super().__init__()
        self.loops, self.groups, self.choices = loops, tuple(groups), choices
        self.add_state("nats", torch.zeros(loops, len(choices.lengths), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Mapping[str, Tensor], token_loss: Tensor, correct: Tensor) -> None:
        """token_loss [T, B, S] in nats; batch["row"] [B] are the rows' places among all options."""
        valid = batch["targets"] != IGNORE
        self.nats[:, batch["row"]] += token_loss.double().masked_fill(~valid, 0).sum(2)

    def compute(self) -> dict[str, Tensor]:
        right, nats = self._answers()
        mean = nats.mean(1)
        values = {"loss": mean[-1], **{f"loss_loop{t}": value for t, value in enumerate(mean, 1)}}
        group = torch.from_numpy(self.choices.group).to(right.device)
        for name, chosen in [("", group >= 0), *((f"/{g}", group == i) for i, g in enumerate(self.groups))]:
            if chosen.any():
                share = right[:, chosen].double().mean(1)  # [T]
                values |= {f"accuracy{name}": share[-1], f"gain{name}": share[-1] - share[0]}
                values |= {f"accuracy_loop{t}{name}": value for t, value in enumerate(share, 1)}
        return values

    def _answers(self) -> tuple[Tensor, Tensor]:
        """[T, Q]: whether the answer is right, and the nats of the right option."""
        counts, device = self.choices.counts, self.nats.device
        first = np.concatenate([[0], counts.cumsum()[:-1]])  # [Q]
        place = first[:, None] + np.minimum(np.arange(counts.max()), counts[:, None] - 1)  # [Q, K], the last repeated
        scaled = self.nats / torch.from_numpy(self.choices.lengths).to(device)
        best = scaled[:, torch.from_numpy(place).to(device)].argmin(2)  # [T, Q]; a repeated option is never earlier
        right = best == torch.from_numpy(self.choices.answer).to(device)
        return right, self.nats[:, torch.from_numpy(first + self.choices.answer).to(device)]
