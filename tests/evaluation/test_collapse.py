"""Collapse detectors against closed forms, scipy and the objective's own terms."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import spearmanr

from ouro_lab.data import TaskData, TextData
from ouro_lab.evaluation.collapse import Collapse, depth_metrics, distribution_metrics, exit_probabilities, spearman
from ouro_lab.evaluation.oracle import oracle_frontier
from ouro_lab.evaluation.trajectory import trajectory
from ouro_lab.model import LoopedTransformer
from ouro_lab.objectives import StageOne

Made = Callable[..., LoopedTransformer]


def test_a_collapsed_a_uniform_and_a_split_distribution() -> None:
    last = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64).expand(3, 10)
    values = distribution_metrics(last)
    assert values == {
        "entropy": 0.0,
        "entropy_share": 0.0,
        "entropy_of_mean": 0.0,
        "first_mass": 0.0,
        "last_mass": 1.0,
        "mean_loops": 3.0,
    }
    values = distribution_metrics(torch.full((4, 10), 0.25, dtype=torch.float64))
    assert values["entropy"] == pytest.approx(math.log(4))
    assert (values["entropy_share"], values["mean_loops"]) == pytest.approx((1, 2.5))
    split = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # each token sure, half of them of each loop
    values = distribution_metrics(split)
    assert (values["entropy"], values["entropy_of_mean"]) == pytest.approx((0, math.log(2)))


def test_the_papers_printed_distribution() -> None:
    """Appendix D.3: mean depth 3.45 and 0.916 nats."""
    p = torch.tensor([0.0004, 0.0855, 0.3793, 0.5348], dtype=torch.float64).unsqueeze(1)
    values = distribution_metrics(p)
    assert values["mean_loops"] == pytest.approx(3.45, abs=0.005)
    assert values["entropy"] == pytest.approx(0.916, abs=0.001)


def test_spearman_is_scipys_and_0_where_nothing_varies() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 5, 200).astype(float)  # with ties
    b = a + rng.normal(0, 2, 200)
    assert spearman(a, b) == pytest.approx(float(spearmanr(a, b).statistic))
    assert spearman(a, -a) == pytest.approx(-1)
    assert spearman(np.ones(9), np.arange(9.0)) == 0.0


def test_the_entropys_share_is_the_objectives(text: TextData, backbone: Made) -> None:
    """Of text every target is scored: the means are Stage I's over the split in one batch."""
    text.prepare_data()
    text.eval_batch_size = 1000
    model, beta = backbone(text.vocab_size), 0.3
    (batch,) = text.test_dataloader()
    states = model.loop_states(batch["tokens"], batch.get("documents"))
    loss, terms = StageOne(beta)(states, model.head_weight, batch["targets"])
    values = Collapse(beta)(model, text, "test")
    assert values["collapse/entropy"] == pytest.approx(-float(terms["exit_pull"]), rel=1e-5)
    assert values["collapse/mean_loops"] == pytest.approx(float(terms["exit_loop_mean"]), rel=1e-5)
    share = -beta * float(terms["exit_pull"]) / float(loss.detach())
    assert values["collapse/entropy_loss_share"] == pytest.approx(share, rel=1e-5)
    found = trajectory(model, text, "test", rules=())
    least = np.interp(float(terms["exit_loop_mean"].detach()), *oracle_frontier(found.loss.numpy()))
    gap = float(terms["expected_loss"]) - least
    assert values["collapse/gap_to_oracle"] == pytest.approx(gap, rel=1e-4)
    assert gap > 0


def test_depth_goes_with_difficulty_where_the_gate_reads_it(p_hop: TaskData, backbone: Made) -> None:
    """By hand from the trajectory; two gates that follow the hop count and its opposite."""
    found = trajectory(backbone(p_hop.vocab_size), p_hop, "test", rules=())
    depth = (exit_probabilities(found) * torch.tensor([[1.0], [2.0], [3.0]])).sum(0)
    values = depth_metrics(found)
    assert values["difficulty"] == pytest.approx(float(spearmanr(depth, found.loss[2]).statistic))
    assert values["difficulty_group"] == pytest.approx(float(spearmanr(depth, found.group[:, 0]).statistic))
    level = found.group[:, 0].double()
    for sign in (1, -1):
        object.__setattr__(found, "gate_logit", (-sign * level).expand(3, -1))
        assert depth_metrics(found)["difficulty_group"] == pytest.approx(sign)


@pytest.mark.parametrize("kind", ["p_hop", "text"])
@pytest.mark.parametrize("loops", [1, 3])
def test_reported_names_are_the_promised_ones(
    kind: str, loops: int, request: pytest.FixtureRequest, backbone: Made
) -> None:
    data = request.getfixturevalue(kind)
    data.prepare_data()
    values = Collapse()(backbone(data.vocab_size, loops=loops, gate=loops > 1), data, "test")
    assert tuple(values) == Collapse().metric_names(data, loops)
    assert all(np.isfinite(value) for value in values.values())


def test_a_gate_that_is_missing_is_named(p_hop: TaskData, backbone: Made) -> None:
    with pytest.raises(ValueError, match=r"^evaluation: needs an exit gate, which the backbone lacks$"):
        Collapse()(backbone(p_hop.vocab_size, gate=False), p_hop, "test")


def test_the_choice_makes_the_object() -> None:
    assert instantiate(OmegaConf.load(Path("conf/evaluation/collapse.yaml"))) == Collapse()
