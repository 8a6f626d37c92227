"""The datamodules of docs/design.md's contract: what `TaskData` and `TextData` share, and `TaskData`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import lightning as L
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ouro_lab.data.metrics import EvaluationMetrics
from ouro_lab.data.ramp import Ramp
from ouro_lab.data.random import Ints
from ouro_lab.data.sampler import Batch, EvaluationBatches, MicroBatches, Slice, StepSampler, batch_of
from ouro_lab.data.tasks.protocol import TEST, TRAIN, VAL, Arrays, Floors, Task, check_range


class OrderedData(L.LightningDataModule, ABC):
    """Training data in the order rule of `sampler`, evaluation data as fixed sets. A subclass reads samples.

    batch_size: sequences per optimiser step over all ranks and micro-batches. seed: the run's; it orders the training
    data and nothing else. eval_batch_size: sequences per rank and evaluation step; None: as many as a training
    micro-batch has, whose shape may be compiled already. workers: processes per loader; 0 reads in the training one.
    skipped: global training batches that a run leaves out since it rolled back.
    ramp: of the batch's size, which a subclass may set; `batch_size` is what it ends at.
    """

    vocab_size: int
    length: int
    groups: tuple[str, ...] = ()
    count_bytes = False
    skipped: tuple[int, ...] = ()

    def __init__(self, batch_size: int, eval_batch_size: int | None, seed: int, workers: int) -> None:
        super().__init__()
        check_range("batch_size", batch_size, 1)
        if eval_batch_size is not None:
            check_range("eval_batch_size", eval_batch_size, 1)
        check_range("workers", workers, 0)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.workers = int(seed), workers
        self.ramp = Ramp(batch_size)

    @abstractmethod
    def read_train(self, indices: Ints) -> Arrays:
        """The global training samples `indices` of this run's seed."""

    @abstractmethod
    def read_evaluation(self, split: str, indices: Ints) -> Arrays: ...

    @abstractmethod
    def evaluation_size(self, split: str) -> int:
        """Sequences of a fixed set."""

    @abstractmethod
    def floors(self) -> Floors:
        """Per metric what a model without the ability scores, and what that model is."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` reports and a study may ask for, without a loop's suffix."""
        per_group = [f"bits_per_byte/{group}" for group in self.groups]
        per_byte = ("bits_per_byte", *per_group) if self.count_bytes else ()
        return ("loss", "accuracy", *(f"accuracy/{group}" for group in self.groups), *per_byte)

    def metrics(self, loops: int, parameters: int | None = None) -> EvaluationMetrics:
        """The metric of one evaluation. parameters: distinct ones of the backbone, for what is told per parameter."""
        return EvaluationMetrics(loops, self.groups, self.count_bytes)

    def train_dataloader(self) -> DataLoader[Batch]:
        accumulate = self.trainer.accumulate_grad_batches
        part = self._slice()
        sampler = StepSampler(lambda: self.trainer.global_step * accumulate, accumulate, self.skipped)
        return self._loaded(MicroBatches(self.read_train, part), sampler)

    def origin(self, step: int) -> tuple[int, list[int]]:
        """The global batch that optimiser step `step` (from 0) reads, and the first and last of its samples."""
        batch = batch_of(step, self.skipped)
        samples = Slice(self.ramp).indices(batch)
        return batch, [int(samples[0]), int(samples[-1])]

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation(VAL)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._evaluation(TEST)

    def evaluation_batches(self, split: str) -> Iterable[Batch]:
        """A fixed set, `val` or `test`, whole and on the CPU: for what evaluates beside the trainer."""
        return self._loader(split, 1, 0)

    def evaluation_tokens(self, split: str) -> int:
        """Positions of a fixed set."""
        return self.evaluation_size(split) * self.length

    @property
    def micro_batch_size(self) -> int:
        """Sequences of one rank's micro-batch, once a ramp is over."""
        part = self._slice()
        return self.batch_size // (part.world * part.accumulate)

    def _slice(self) -> Slice:
        if self.trainer is None:
            return Slice(self.ramp)
        trainer = self.trainer
        return Slice(self.ramp, trainer.world_size, trainer.global_rank, trainer.accumulate_grad_batches)

    def _evaluation(self, split: str) -> DataLoader[Batch]:
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return self._loader(split, world, rank)

    def _loader(self, split: str, world: int, rank: int) -> DataLoader[Batch]:
        read = _Split(self, split)
        size = self.eval_batch_size or self.micro_batch_size
        batches = EvaluationBatches(read, self.evaluation_size(split), size, world, rank)
        return self._loaded(batches)

    def _loaded(self, batches: Dataset[Batch], sampler: Sampler[Any] | None = None) -> DataLoader[Batch]:
        """Workers are forks: what they read with is no function that could be sent to a new Python."""
        context = "fork" if self.workers else None
        return DataLoader(
            batches, batch_size=None, sampler=sampler, num_workers=self.workers, multiprocessing_context=context
        )


class _Split:
    """`read_evaluation` of one split, as a function of the indices that a worker process can be given."""

    def __init__(self, data: OrderedData, split: str) -> None:
        self.data, self.split = data, split

    def __call__(self, indices: Ints) -> Arrays:
        return self.data.read_evaluation(self.split, indices)


class TaskData(OrderedData):
    """A synthetic task.

    val_size, test_size: sequences per difficulty group of the fixed sets.
    """

    def __init__(
        self,
        task: Task,
        batch_size: int = 64,
        val_size: int = 256,
        test_size: int = 2048,
        eval_batch_size: int | None = None,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, workers)
        check_range("val_size", val_size, 1)
        check_range("test_size", test_size, 1)
        self.task = task
        self.sizes = {VAL: val_size, TEST: test_size}
        self.vocab_size, self.length, self.groups = task.vocab_size, task.sequence_length, task.groups
        self._sets: dict[str, Arrays] = {}

    def read_train(self, indices: Ints) -> Arrays:
        return self.task.sample(self.seed, indices, TRAIN)

    def read_evaluation(self, split: str, indices: Ints) -> Arrays:
        return {key: values[indices] for key, values in self._fixed(split).items()}

    def evaluation_size(self, split: str) -> int:
        return len(self._fixed(split)["tokens"])

    def floors(self) -> Floors:
        return self.task.floors()

    def _fixed(self, split: str) -> Arrays:
        if split not in self._sets:
            found = self.task.evaluation(split, self.sizes[split])
            one_group = {"group": np.zeros(len(found["tokens"]), np.int64)} if len(self.groups) == 1 else {}
            self._sets[split] = one_group | found
        return self._sets[split]
