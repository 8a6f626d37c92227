"""Depth metrics by hand, and probes against least squares, counted pairs and labels that are or are not there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ouro_lab.data import TaskData, TextData
from ouro_lab.evaluation.depth import DepthSweep, agreement, changes, gains, monotone_share
from ouro_lab.evaluation.exits import outcome
from ouro_lab.evaluation.probes import Probes, area_under_roc, fit_ridge, layer_states, most_frequent
from ouro_lab.evaluation.trajectory import trajectory
from ouro_lab.model import LoopedTransformer

Made = Callable[..., LoopedTransformer]


def test_agreement_and_its_chance_by_hand() -> None:
    argmax = torch.tensor([[0, 0, 1, 7], [0, 1, 1, 7], [1, 0, 0, 0]])
    observed, chance = agreement(argmax)
    assert observed.tolist() == [[1, 0.75, 0.25], [0.75, 1, 0], [0.25, 0, 1]]
    assert chance[0, 1] == pytest.approx(0.5 * 0.25 + 0.25 * 0.5 + 0.25 * 0.25)
    assert chance[2, 2] == pytest.approx(0.75**2 + 0.25**2)


def test_the_papers_361_of_1000_is_what_a_constant_or_an_inverted_answer_gives() -> None:
    """§7.2, yes or no: a constant first answer agrees exactly as chance has it, an inverted one below."""
    later = (torch.arange(1000) < 361).long()
    observed, chance = agreement(torch.stack([torch.ones(1000, dtype=torch.long), later]))
    assert observed[0, 1] == chance[0, 1] == pytest.approx(0.361)
    even = (torch.arange(1000) < 500).long()
    flipped = torch.where(torch.arange(1000) % 500 < 361 / 2, even, 1 - even)
    observed, chance = agreement(torch.stack([even, flipped]))
    assert observed[0, 1] == pytest.approx(0.361, abs=0.002)
    assert chance[0, 1] == pytest.approx(0.5, abs=0.002)


def test_changes_and_monotone_tokens_by_hand() -> None:
    right = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 1]]).bool()
    to_wrong, to_right = changes(right)
    assert (to_wrong.tolist(), to_right.tolist()) == ([0.25, 0.25], [0.25, 0.5])
    loss = torch.tensor([[3.0, 1.0, 1.0], [2.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    assert monotone_share(loss) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["p_hop", "text", "addition"])
@pytest.mark.parametrize("loops", [1, 2])
def test_the_sweep_reports_what_it_promises(
    kind: str, loops: int, request: pytest.FixtureRequest, backbone: Made
) -> None:
    data = request.getfixturevalue(kind)
    data.prepare_data()
    model = backbone(data.vocab_size, loops=loops)
    values = DepthSweep()(model, data, "test")
    assert sorted(values) == sorted(DepthSweep().metric_names(data, loops))
    found = trajectory(model, data, "test", loops=2 * loops, rules=())
    for loop in range(1, 2 * loops + 1):
        own = outcome(found, torch.full_like(found.target, loop))
        assert values[f"depth/loss_loop{loop}"] == own["loss"]
        assert values[f"depth/accuracy_loop{loop}"] == own["accuracy"]
        same = (found.argmax[loop - 1] == found.argmax[loops - 1]).double().mean()
        assert values[f"depth/agreement_loop{loop}"] == pytest.approx(float(same))
    assert values[f"depth/agreement_loop{loops}"] == 1
    best = 1 + np.argmin([values[f"depth/loss_loop{t}"] for t in range(1, 2 * loops + 1)])
    assert values["depth/best_loop"] == best


def test_gains_are_by_group_from_the_first_loop_to_the_trained_one(addition: TaskData, backbone: Made) -> None:
    found = trajectory(backbone(addition.vocab_size), addition, "test", loops=6, rules=())
    by_group = gains(found)
    assert set(by_group) == {"operands_2", "operands_3", "operands_4", "digits_2"}
    whole = by_group["digits_2"]["loss"]
    assert whole == pytest.approx(float((found.loss[0] - found.loss[2]).double().mean()))
    inside = (found.group == addition.groups.index("operands_3")).any(1)
    accuracy = (found.right[2, inside].double() - found.right[0, inside].double()).mean()
    assert by_group["operands_3"]["accuracy"] == pytest.approx(float(accuracy))


def test_ridge_is_least_squares_with_its_penalty() -> None:
    """As rows added to the system: features that have the penalty's root, targets 0."""
    rng = np.random.default_rng(0)
    x, labels = rng.normal(2, 3, (60, 4)), rng.integers(0, 3, 60)
    unit = (x - x.mean(0)) / x.std(0)
    y = np.eye(3)[labels]
    extended = np.concatenate([unit, np.sqrt(0.2 * 60) * np.eye(4)])
    weight = np.linalg.lstsq(extended, np.concatenate([y - y.mean(0), np.zeros((4, 3))]), rcond=None)[0]
    new = rng.normal(2, 3, (7, 4))
    expected = (new - x.mean(0)) / x.std(0) @ weight + y.mean(0)
    fitted = fit_ridge(torch.tensor(x), torch.tensor(labels), 3, 0.2)
    np.testing.assert_allclose(fitted(torch.tensor(new)), expected, rtol=1e-9)


def test_area_counts_pairs() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.integers(0, 6, (50, 3)).astype(float), rng.integers(0, 3, 50)
    areas = []
    for label in range(3):
        yes, no = scores[labels == label, label], scores[labels != label, label]
        areas.append(np.mean([(a > b) + 0.5 * (a == b) for a in yes for b in no]))
    assert area_under_roc(torch.tensor(scores), torch.tensor(labels)) == pytest.approx(np.mean(areas))
    assert area_under_roc(torch.tensor(scores), torch.zeros(50, dtype=torch.long)) == 0.5


def test_labels_are_renamed_by_frequency_and_rare_ones_left_out() -> None:
    labels, kept = most_frequent(torch.tensor([5, 9, 9, 2, 9, 5]), 2)
    assert (labels.tolist(), kept.tolist()) == ([1, 0, 0, 0, 1], [True, True, True, False, True, True])


def test_states_are_those_of_every_layer_of_every_loop(backbone: Made) -> None:
    model, tokens = backbone(9, loops=2), torch.randint(9, (2, 5))
    with torch.no_grad():
        found = dict(layer_states(model, {"tokens": tokens}))
        states = list(model.loop_states(tokens))
        assert list(found) == [(1, 1), (1, 2), (2, 1), (2, 2)]
        for loop in (1, 2):
            assert torch.equal(found[loop, 2], states[loop - 1].hidden)
        bare = backbone(9, loops=1, layers=1)  # the same first layer, by the initial weights' rule
        (only,) = bare.loop_states(tokens)
        torch.testing.assert_close(bare.norm(found[1, 1]), only.hidden)
    assert not any(layer._forward_hooks for layer in model.layers)


def test_a_probe_finds_what_is_there_and_nothing_else(echo: Callable[..., TaskData], backbone: Made) -> None:
    model = backbone(6)
    there = Probes("target", tokens=3000).table(model, echo(), "test")
    assert [(row["loop"], row["layer"]) for row in there] == [(t, layer) for t in (1, 2, 3) for layer in (1, 2)]
    assert (there[0]["auc"], there[0]["accuracy"]) > (0.95, 0.9)
    for row in Probes("target", tokens=3000).table(model, echo(noise=True), "test"):
        assert row["auc"] == pytest.approx(0.5, abs=0.05)
        assert row["accuracy"] == pytest.approx(1 / 6, abs=0.05)


def test_the_answer_is_most_readable_at_the_loop_that_gives_it(echo: Callable[..., TaskData], backbone: Made) -> None:
    model, data = backbone(6), echo()
    for loop in (1, 3):
        values = Probes("answer", loop=loop, tokens=3000)(model, data, "test")
        at = {t: values[f"probe/auc_loop{t}"] for t in (1, 2, 3)}
        assert max(at, key=lambda t: at[t]) == loop
        assert values["probe/chance"] < values[f"probe/accuracy_loop{loop}"]


def test_probes_report_what_they_promise_on_text(text: TextData, backbone: Made) -> None:
    text.prepare_data()
    for label in ("answer", "right", "target"):
        values = Probes(label, tokens=80)(backbone(text.vocab_size), text, "test")
        assert sorted(values) == sorted(Probes(label).metric_names(text, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DepthSweep(times=0), r"^evaluation.times = 0: must be an integer ≥ 1$"),
        (lambda: Probes("loss"), r"^evaluation.label = 'loss': must be one of answer, right, target$"),
        (lambda: Probes(tokens=1), r"^evaluation.tokens = 1: must be a number ≥ 2$"),
    ],
)
def test_bad_values_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_loop_that_is_not_there_is_named(echo: Callable[..., TaskData], backbone: Made) -> None:
    with pytest.raises(ValueError, match=r"^evaluation.loop = 4: must be from 1 to 3$"):
        Probes(loop=4)(backbone(6), echo(), "val")


def test_the_choices_make_the_objects() -> None:
    assert instantiate(OmegaConf.load(Path("conf/evaluation/depth_sweep.yaml"))) == DepthSweep()
    assert instantiate(OmegaConf.load(Path("conf/evaluation/probes.yaml"))) == Probes("answer")


def test_every_other_token_is_not_every_other_sequence(p_hop: TaskData, backbone: Made) -> None:
    """One scored token a sequence, every second one taken: still half of those are held out."""
    values = Probes("target", tokens=9)(backbone(p_hop.vocab_size), p_hop, "test")
    assert 0 <= values["probe/chance"] <= 1
