"""The order rule: which samples a step reads does not depend on ranks, micro-batches, workers or interruptions."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from ouro_lab.data import TaskData
from ouro_lab.data.sampler import EvaluationBatches, Slice
from ouro_lab.data.tasks import PHop


class Reader(L.LightningModule):
    """Keeps the tokens it is given, with the optimiser step they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.read: list[tuple[int, torch.Tensor]] = []
        self.validated = 0

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.read.append((self.trainer.global_step, batch["tokens"].clone()))
        return self.weight.sum()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.validated += len(batch["tokens"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def small(**options: int) -> TaskData:
    return TaskData(PHop(length=12, hops=2), batch_size=12, val_size=5, test_size=5, eval_batch_size=4, **options)


def trainer(folder: Path, steps: int, accumulate: int, **options: object) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, accumulate_grad_batches=accumulate, logger=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
        check_val_every_n_epoch=None, val_check_interval=2 * accumulate, use_distributed_sampler=False, **options,
    )  # fmt: skip


def steps_read(module: Reader) -> dict[int, torch.Tensor]:
    steps = sorted({step for step, _ in module.read})
    return {k: torch.cat([tokens for step, tokens in module.read if step == k]) for k in steps}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_step_k_reads_its_samples_and_a_resumed_run_the_next_ones(tmp_path: Path, accumulate: int) -> None:
    data, first = small(seed=5), Reader()
    saver = ModelCheckpoint(tmp_path, save_on_train_epoch_end=False, every_n_epochs=1, filename="last")
    trainer(tmp_path, 4, accumulate, callbacks=[saver], enable_checkpointing=True).fit(first, data)
    second = Reader()
    resumed = trainer(tmp_path, 9, accumulate, enable_checkpointing=False)
    resumed.fit(second, small(seed=5), ckpt_path=tmp_path / "last.ckpt", weights_only=False)
    read = steps_read(first) | steps_read(second)
    assert list(read) == list(range(9))
    assert sorted(steps_read(second)) == [4, 5, 6, 7, 8]
    for step, tokens in read.items():
        expected = data.read_train(np.arange(12 * step, 12 * step + 12))["tokens"]
        assert (tokens.numpy() == expected).all()
    assert len(second.read) == 5 * accumulate


def test_ranks_and_micro_batches_partition_the_global_batch() -> None:
    for world, accumulate in ((1, 1), (2, 1), (1, 4), (2, 3)):
        for step in (0, 7):
            read = [
                Slice(24, world, rank, accumulate).indices(step * accumulate + micro)
                for rank in range(world)
                for micro in range(accumulate)
            ]
            assert np.sort(np.concatenate(read)).tolist() == list(range(24 * step, 24 * step + 24))
            assert len({len(part) for part in read}) == 1


def test_a_batch_that_cannot_be_cut_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"batch_size = 12: must be a multiple of devices × accumulation = 1 × 5 = 5"):
        trainer(tmp_path, 1, 5, enable_checkpointing=False).fit(Reader(), small())


def test_evaluation_ranks_hold_each_sequence_once() -> None:
    for world in (1, 2, 3):
        parts = [EvaluationBatches(lambda i: {"i": i}, 11, 2, world, rank) for rank in range(world)]
        seen = [batch["i"] for part in parts for batch in part]
        assert sorted(torch.cat(seen).tolist()) == list(range(11))
        assert max(len(batch) for batch in seen) == 2


def test_evaluation_batches_hold_the_whole_set_without_a_trainer() -> None:
    module = small()
    rows = torch.cat([batch["tokens"] for batch in module.evaluation_batches("test")])
    assert len(rows) * module.length == module.evaluation_tokens("test")
    assert np.array_equal(rows.numpy(), module.read_evaluation("test", np.arange(10))["tokens"])


def test_evaluation_sets_depend_on_no_seed(tmp_path: Path) -> None:
    one, other = (list(small(seed=seed).val_dataloader()) for seed in (0, 1))
    assert len(one) == len(other)
    assert all((a["tokens"] == b["tokens"]).all() for a, b in zip(one, other, strict=True))
    module = Reader()
    trainer(tmp_path, 2, 1, enable_checkpointing=False).fit(module, small())
    assert module.validated == sum(len(batch["tokens"]) for batch in one)


def test_workers_read_the_same(tmp_path: Path) -> None:
    modules = []
    for workers in (0, 1):
        modules.append(Reader())
        trainer(tmp_path, 3, 1, enable_checkpointing=False, limit_val_batches=0).fit(
            modules[-1], small(workers=workers)
        )
    for (step, tokens), (other_step, other) in zip(modules[0].read, modules[1].read, strict=True):
        assert step == other_step
        assert (tokens == other).all()


def test_contract_of_a_datamodule() -> None:
    data = small()
    assert (data.vocab_size, data.length, data.batch_size) == (7, 13, 12)
    assert data.groups == ("hops_1", "hops_2", "undefined")
    assert set(data.floors()) == {"accuracy", "accuracy/hops_1", "accuracy/hops_2"}
    batch = next(iter(data.test_dataloader()))
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "tokens": ((4, 13), torch.int64),
        "targets": ((4, 13), torch.int64),
        "scored": ((4, 13), torch.bool),
        "group": ((4,), torch.int64),
    }


@pytest.mark.parametrize("field", ["batch_size", "val_size", "test_size", "eval_batch_size"])
def test_bad_sizes_are_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} = 0: must be an integer ≥ 1"):
        TaskData(PHop(), **{field: 0})
