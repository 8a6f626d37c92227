"""The order rule: training step k reads the global samples k·B … (k+1)·B − 1; the rest only chooses slices of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import Arrays

Batch = dict[str, torch.Tensor]
AHEAD = 8


@dataclass(frozen=True)
class Slice:
    """How a global batch is cut: into `accumulate` micro-batches, each into `world` ranks' parts."""

    batch_size: int
    world: int = 1
    rank: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        if self.batch_size < 1 or self.batch_size % parts:
            raise ValueError(
                f"batch_size = {self.batch_size}: must be a multiple of devices × accumulation"
                f" = {self.world} × {self.accumulate} = {parts}"
            )

    def indices(self, micro_step: int) -> Ints:
        """Global sample indices of this rank's part of a global micro-step (counted from 0 since step 0)."""
        step, micro = divmod(micro_step, self.accumulate)
        size = self.batch_size // (self.world * self.accumulate)
        start = step * self.batch_size + (micro * self.world + self.rank) * size
        return np.arange(start, start + size)


class MicroBatches(Dataset[Batch]):
    """Item i is this rank's whole batch of the global micro-step i; `read` maps sample indices to arrays.

    Items are made `AHEAD` at a time: half of what a generator of small batches costs is the calls, not the numbers.
    A worker process, which is given only some of the items, makes each when it is asked for.
    """

    def __init__(self, read: Callable[[Ints], Arrays], part: Slice) -> None:
        self.read, self.part = read, part
        self.made: dict[int, Arrays] = {}

    def __getitem__(self, micro_step: int) -> Batch:
        if micro_step not in self.made:
            steps = range(micro_step, micro_step + (AHEAD if get_worker_info() is None else 1))
            arrays = self.read(np.concatenate([self.part.indices(step) for step in steps]))
            size = len(self.part.indices(micro_step))
            rows = {step: slice(place * size, (place + 1) * size) for place, step in enumerate(steps)}
            self.made = {step: {key: values[part] for key, values in arrays.items()} for step, part in rows.items()}
        return to_tensors(self.made.pop(micro_step))


def batch_of(step: int, skipped: Sequence[int]) -> int:
    """The global batch that optimiser step `step` (both from 0) reads: the next of those that are not skipped."""
    for batch in sorted(skipped):
        step += batch <= step
    return step


class StepSampler(Sampler[int]):
    """Micro-steps from where the trainer stands, without end: there are no epochs for Lightning to resume amid.

    It has no length on purpose. `position` is read when iteration begins, after a checkpoint has been restored.
    skipped: global batches, each of `accumulate` micro-steps, that are left out.
    """

    def __init__(self, position: Callable[[], int], accumulate: int = 1, skipped: Sequence[int] = ()) -> None:
        self.position, self.accumulate, self.skipped = position, accumulate, skipped

    def __iter__(self) -> Iterator[int]:
        micro_step = self.position()
        while True:
            step, micro = divmod(micro_step, self.accumulate)
            yield batch_of(step, self.skipped) * self.accumulate + micro
            micro_step += 1


class EvaluationBatches(Dataset[Batch]):
    """A fixed set in batches of `batch_size`; rank r of w holds the sequences r, r + w, …: none padded, none twice.

    All ranks have equally many batches, as ranks of a sharded model compute together: one that would have a batch less
    cuts its sequences into more and smaller ones, or, where it has too few, all ranks take larger ones.

    Raises:
        ValueError: fewer sequences than ranks.
    """

    def __init__(
        self, read: Callable[[Ints], Arrays], size: int, batch_size: int, world: int = 1, rank: int = 0
    ) -> None:
        if size < world:
            raise ValueError(f"{size} evaluation sequences: must be at least one for each of the {world} ranks")
        self.read = read
        count = min(-(-size // (world * batch_size)), size // world)
        self.parts = _parts(np.arange(rank, size, world), batch_size, count)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, batch: int) -> Batch:
        return to_tensors(self.read(self.parts[batch]))


def _parts(indices: Ints, size: int, count: int) -> list[Ints]:
    """`count` parts: full ones and a rest where that makes so many, else even ones."""
    full = [indices[start : start + size] for start in range(0, len(indices), size)]
    return full if len(full) == count else np.array_split(indices, count)


def to_tensors(arrays: Arrays) -> Batch:
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
