"""d′ against its formula, and prompts that are told apart, or not, by a state that is known."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ouro_lab.data import ByteTokenizer, Questions
from ouro_lab.evaluation.separation import Separation, d_prime


def test_d_prime_by_hand() -> None:
    a, b = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 1.0, 2.0])
    assert d_prime(a, b) == pytest.approx(2 / np.sqrt((4 + 1) / 2))
    assert d_prime(b, a) == -d_prime(a, b)


class Shifted(nn.Module):
    """States are noise; at loop t those of prompts that begin with a capital lie t · `by` further along one axis."""

    loops = 2

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by, self.head_weight = by, nn.Parameter(torch.zeros(257, 8))

    def loop_states(self, tokens: Tensor, documents: Tensor | None = None):
        for loop in (1, 2):
            noise = torch.randn(*tokens.shape, 8, generator=torch.Generator().manual_seed(int(tokens.sum()) + loop))
            noise[..., 3] += loop * self.by * (tokens[:, :1] < ord("a"))
            yield SimpleNamespace(hidden=noise, gate_logit=None)


@pytest.fixture
def data(tmp_path: Path) -> Questions:
    words = [f"{'Wx'[i % 2]}{i:03d} how" for i in range(600)]
    rows = [{"prompt": word, "group": "harmful" if word[0] == "W" else "benign"} for word in words]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Questions(str(tmp_path / "p.jsonl"), ByteTokenizer(), ("harmful", "benign"), folds=3, batch_size=50)


def test_the_distance_is_found_at_every_loop_and_is_0_where_there_is_none(data: Questions) -> None:
    near = Separation()(Shifted(1.0), data, "test")
    assert sorted(near) == sorted(Separation().metric_names(data, 2))
    assert near["separation/d_prime_loop1"] == pytest.approx(1.0, abs=0.35)  # its error at 100 and 100 is 0.15
    assert near["separation/d_prime"] == near["separation/d_prime_loop2"] == pytest.approx(2.0, abs=0.4)
    assert near["separation/auc"] == pytest.approx(0.92, abs=0.05)  # Φ(2/√2)
    none = Separation()(Shifted(0.0), data, "test")
    assert none["separation/d_prime"] == pytest.approx(0.0, abs=0.4)


def test_two_groups_with_prompts_in_both_parts_are_needed(data: Questions, tmp_path: Path) -> None:
    data.groups = ("harmful",)
    with pytest.raises(ValueError, match=r"^data.groups = \['harmful'\]: must be two"):
        Separation()(Shifted(1.0), data, "test")
    rows = [{"prompt": f"W{i}", "group": "benign" if i == 0 else "harmful"} for i in range(6)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = Questions(str(tmp_path / "few.jsonl"), ByteTokenizer(), ("harmful", "benign"), folds=3)
    with pytest.raises(ValueError, match="fewer than two prompts of benign in val"):
        Separation()(Shifted(1.0), few, "test")
