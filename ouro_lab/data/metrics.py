"""What an evaluation reports per loop and per difficulty group, from sums that add over batches and ranks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from ouro_lab.data.tasks.protocol import IGNORE, SEEN, UNDEFINED


class EvaluationMetrics(Metric):
    """Means over a whole split, in the names of docs/design.md (loops one-based in names).

    `accuracy` covers the scored positions of every group but `undefined`; a group that the split lacks is not named.
    Groups `seen_…`, of training items that stand beside held-out ones, are in neither `accuracy` nor `loss`.
    Where a batch has `answer`, answers count in the place of positions: each once, right if all its positions are. As
    every position is read after the right ones before it, that is what greedy decoding gets right as a whole.
    Several axes of groups: a sequence counts in a group of each; one `undefined` or `seen_…` is so on every axis.
    Bits per byte: nats of all targets / ln 2 / UTF-8 bytes of all targets. The end of a document is a target of no
    bytes whose nats count: every tokenizer pays it once a document, so their values compare. With groups (the sources
    of a mixture) it is also told of each, so that what a domain gains from loop 1 to T can be read off.
    """

    full_state_update = False

    def __init__(self, loops: int, groups: tuple[str, ...] = (), count_bytes: bool = False) -> None:
        super().__init__()
        self.loops, self.groups, self.count_bytes = loops, tuple(groups), count_bytes
        bins = max(1, len(groups))
        self.seen = torch.tensor([group.startswith(SEEN) for group in self.groups] or [False])  # [G]
        defined = torch.tensor([group != UNDEFINED for group in self.groups] or [True])
        self.answers = defined & ~self.seen  # [G], in `accuracy`
        shapes = {"nats": (loops,), "targets": (), "bytes": (), "hits": (loops, bins), "scored": (bins,)}
        if self.count_bytes:
            shapes |= {"group_nats": (loops, bins), "group_bytes": (bins,)}
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Mapping[str, Tensor], token_loss: Tensor, correct: Tensor) -> None:
        """token_loss in nats and correct, both [T, B, S]; what they hold at ignored targets does not matter."""
        valid = batch["targets"] != IGNORE  # [B, S]
        scored = batch["scored"] & valid if "scored" in batch else valid
        if "answer" in batch:
            scored, correct = _whole(batch["answer"], scored, correct)
        group = batch["group"] if self.groups else torch.zeros_like(batch["targets"][:, 0])  # [B] or [B, A]
        axes = group.reshape(len(group), -1).T  # [A, B]
        for axis in axes:
            self.hits.index_add_(1, axis, (correct & scored).sum(2).double())
            self.scored.index_add_(0, axis, scored.sum(1).double())
        valid = valid & ~self.seen.to(group.device)[axes[0], None]
        nats = token_loss.double().masked_fill(~valid, 0)
        self.nats += nats.sum((1, 2))
        self.targets += valid.sum()
        if self.count_bytes:
            size = batch["bytes"].masked_fill(~valid, 0)
            self.bytes += size.sum()
            self.group_nats.index_add_(1, axes[0], nats.sum(2))
            self.group_bytes.index_add_(0, axes[0], size.sum(1).double())

    def compute(self) -> dict[str, Tensor]:
        """Flat, `loss` and `accuracy` being the last loop's."""
        loss = self.nats / self.targets
        values = {"loss": loss[-1], **self._by_loop("loss", loss), **self._accuracies()}
        if self.count_bytes:
            values |= self._per_byte("", self.nats, self.bytes)
            for index in self.group_bytes.nonzero().flatten().tolist() if self.groups else []:
                values |= self._per_byte(f"/{self.groups[index]}", self.group_nats[:, index], self.group_bytes[index])
        return values

    def _per_byte(self, suffix: str, nats: Tensor, size: Tensor) -> dict[str, Tensor]:
        per_byte = nats / math.log(2) / size  # [T]
        by_loop = {f"{name}{suffix}": value for name, value in self._by_loop("bits_per_byte", per_byte).items()}
        return {f"bits_per_byte{suffix}": per_byte[-1], **by_loop}

    def _accuracies(self) -> dict[str, Tensor]:
        answers = self.answers.to(self.hits.device)
        values = {"accuracy": self.hits[-1, answers].sum() / self.scored[answers].sum()}
        for index in self.scored.nonzero().flatten().tolist() if self.groups else []:
            group, accuracy = self.groups[index], self.hits[:, index] / self.scored[index]  # [T]
            values[f"accuracy/{group}"] = accuracy[-1]
            if self.loops > 1:
                values |= {f"{name}/{group}": value for name, value in self._by_loop("accuracy", accuracy).items()}
        return values

    def _by_loop(self, name: str, values: Tensor) -> dict[str, Tensor]:
        return {f"{name}_loop{t}": value for t, value in enumerate(values, start=1)}


def _whole(answer: Tensor, scored: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the answers 0 … S − 1 a row has [B, S], and whether all of an answer is right [T, B, S]."""
    wrong = (scored & ~correct).int()
    missed = torch.zeros_like(wrong).scatter_add_(2, answer.expand_as(wrong), wrong)
    present = torch.zeros_like(answer).scatter_add_(1, answer, scored.long()) > 0
    return present, (missed == 0) & present
