"""What every teacher-forced pass over a fixed set shares: its batches, the loop states, and which tokens are scored."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ouro_lab.data.tasks.protocol import SEEN, UNDEFINED
from ouro_lab.objectives import IGNORE

Batch = Mapping[str, Tensor]
Backbone = Any  # an nn.Module of docs/design.md's contract
Data = Any  # a datamodule of docs/design.md's contract


@contextmanager
def evaluating(backbone: Backbone) -> Generator[None]:
    """Without gradients, in evaluation mode, which is then put back."""
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        try:
            yield
        finally:
            backbone.train(training)


def batches(data: Data, split: str, device: torch.device) -> Iterator[Batch]:
    """A fixed set in its order. Raises: ValueError for another split than val or test."""
    loaders = {"val": data.val_dataloader, "test": data.test_dataloader}
    if split not in loaders:
        raise ValueError(f"split = {split!r}: must be one of {', '.join(loaders)}")
    data.prepare_data()
    for batch in loaders[split]():
        yield {key: value.to(device) for key, value in batch.items()}


def loop_states(backbone: Backbone, batch: Batch, loops: int | None) -> Iterator[Any]:
    """The loop states of a batch; a backbone of one's own need not know of other loops than its own."""
    more = () if loops is None else (loops,)
    return backbone.loop_states(batch["tokens"], batch.get("documents"), *more)


def counted_groups(groups: Sequence[str]) -> tuple[str, ...]:
    """Those of held-out items with an answer."""
    return tuple(name for name in groups if name != UNDEFINED and not name.startswith(SEEN))


def scored_positions(batch: Batch, groups: Sequence[str]) -> Tensor:
    """[B, S] bool: what counts for `accuracy`, so no group of training items and none without an answer."""
    scored = batch["targets"] != IGNORE
    if "scored" in batch:
        scored = scored & batch["scored"]
    if groups:
        counted = torch.tensor([name in counted_groups(groups) for name in groups], device=scored.device)
        scored = scored & counted[axes(batch)[:, :1]]
    return scored


def axes(batch: Batch) -> Tensor:
    """A batch's groups as [B, axes]."""
    return batch["group"].reshape(len(batch["group"]), -1)


def token_facts(batch: Batch, scored: Tensor, sequences: int, groups: Sequence[str]) -> dict[str, Tensor]:
    """By name, for the n scored tokens of a batch, `sequences` of the split having come before.

    target, sequence, row (position + S · sequence), answer (not yet counted from 0) [n]; bytes [n], group [n, axes]
    where the data has them.
    """
    length = scored.shape[1]
    sequence, position = scored.nonzero().unbind(1)
    number = sequence + sequences
    row = position + length * number
    facts = {"target": batch["targets"][scored], "sequence": number, "row": row, "answer": row}
    if "answer" in batch:
        facts["answer"] = batch["answer"][scored] + length * number
    if "bytes" in batch:
        facts["bytes"] = batch["bytes"][scored]
    if groups:
        facts["group"] = axes(batch)[sequence]
    return facts
