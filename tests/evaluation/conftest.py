from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ouro_lab.data import ByteTokenizer, TaskData, TextData, TextFiles
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks import Addition, PHop
from ouro_lab.data.tasks.protocol import Arrays, Floors
from ouro_lab.model import LoopedTransformer, looped


class Echo:
    """Random tokens; a position's target is its own token, or with `noise` a random one."""

    vocab_size, sequence_length, groups = 6, 8, ("all",)

    def __init__(self, noise: bool = False) -> None:
        self.noise = noise

    def evaluation(self, split: str, size: int) -> Arrays:
        rng = np.random.default_rng({"val": 1, "test": 2}[split])
        tokens, other = rng.integers(0, 6, (2, size, 8))
        return {"tokens": tokens, "targets": other if self.noise else tokens, "group": np.zeros(size, np.int64)}

    def sample(self, seed: int, indices: Ints, split: str = "train") -> Arrays:
        tokens = (indices[:, None] * 7 + np.arange(8) + seed) % 6
        return {"tokens": tokens, "targets": tokens, "group": np.zeros(len(indices), np.int64)}

    def floors(self) -> Floors:
        return {}


@pytest.fixture
def p_hop() -> TaskData:
    return TaskData(PHop(length=12, hops=2), val_size=8, test_size=9, eval_batch_size=7)


@pytest.fixture
def addition() -> TaskData:
    return TaskData(Addition(digits=2), val_size=6, test_size=6, eval_batch_size=4)


@pytest.fixture
def text(tmp_path: Path) -> TextData:
    rng, words = np.random.default_rng(0), ["union", "state", "of", "the", "people", "war", "and", "law"]
    (tmp_path / "texts").mkdir()
    for index in range(20):
        (tmp_path / "texts" / f"{index:02d}.txt").write_text(" ".join(rng.choice(words, 25)))
    files = TextFiles(f"{tmp_path}/texts/*.txt")
    return TextData(files, ByteTokenizer(), length=16, batch_size=4, val_tokens=96, test_tokens=160, eval_batch_size=3)


@pytest.fixture
def echo() -> Callable[..., TaskData]:
    return lambda noise=False: TaskData(Echo(noise), val_size=64, test_size=600, eval_batch_size=100)


@pytest.fixture
def backbone() -> Callable[..., LoopedTransformer]:
    """Random weights in float64, large enough for loops to disagree and gates to differ between tokens."""

    def make(vocab_size: int, loops: int = 3, gate: bool = True, layers: int = 2) -> LoopedTransformer:
        shape = {"width": 16, "heads": 2, "attention": "plain", "init_std": 0.7, "gate": gate}
        model = looped(layers, loops, vocab_size=vocab_size, **shape).double()
        model.initialise(3)
        if gate:
            torch.nn.init.constant_(model.early_exit_gate.bias, -0.3)
        return model

    return make
