"""The order rule: training step k reads the global samples k·B … (k+1)·B − 1; the rest only chooses slices of them.

With a `Ramp` B is a function of k, and the samples begin where those of step k − 1 end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler, get_worker_info

from ouro_lab.data.ramp import Ramp
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import Arrays

Batch = dict[str, torch.Tensor]
AHEAD = 8


@dataclass(frozen=True)
class Slice:
    """How a global batch is cut: into `accumulate` micro-batches, each into `world` ranks' parts.

    batch_size: sequences a step, or their ramp.
    """

    batch_size: int | Ramp
    world: int = 1
    rank: int = 0
    accumulate: int = 1

    def __post_init__(self) -> None:
        parts = self.world * self.accumulate
        for size in self.ramp.sizes:
            if size < 1 or size % parts:
                raise ValueError(
                    f"batch_size = {size}: must be a multiple of devices × accumulation"
                    f" = {self.world} × {self.accumulate} = {parts}"
                )

    @property
    def ramp(self) -> Ramp:
        return self.batch_size if isinstance(self.batch_size, Ramp) else Ramp(self.batch_size)

    def indices(self, micro_step: int) -> Ints:
        """Global sample indices of this rank's part of a global micro-step (counted from 0 since step 0)."""
        step, micro = divmod(micro_step, self.accumulate)
        size = self.ramp.size(step) // (self.world * self.accumulate)
        start = self.ramp.first(step) + (micro * self.world + self.rank) * size
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
            indices = [self.part.indices(step) for step in steps]
            arrays = self.read(np.concatenate(indices))
            ends = np.cumsum([len(part) for part in indices])
            rows = {step: slice(end - len(part), end) for step, end, part in zip(steps, ends, indices, strict=True)}
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
