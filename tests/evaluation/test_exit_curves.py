"""The oracle by enumeration, curves and areas by hand, and the evaluation's numbers put together anew."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from ouro_lab.config import compose_config
from ouro_lab.data import TaskData, TextData
from ouro_lab.evaluation.exits import (
    Curve,
    ExitCurve,
    curve_of,
    oracle_curve,
    outcome,
    pareto_table,
    random_curve,
    rule_curve,
    threshold_grid,
)
from ouro_lab.evaluation.oracle import oracle_frontier, oracle_loops
from ouro_lab.evaluation.trajectory import Trajectory, trajectory
from ouro_lab.inference.exits import (
    ArgmaxStable,
    Entropy,
    HiddenDifference,
    LoopKL,
    Margin,
    QExit,
    RandomExit,
    StaticDepth,
    ThresholdRule,
)
from ouro_lab.model import LoopedTransformer

Made = Callable[..., LoopedTransformer]


def made_up(losses: np.ndarray, statistic: np.ndarray | None = None, per_sequence: int = 1) -> Trajectory:
    """Losses [R, N]; a token is right where its loss is below 1; `statistic` is Entropy's; three bytes a token."""
    loss = torch.tensor(losses, dtype=torch.float64)
    loops, count = loss.shape
    number = torch.arange(count)
    statistics = {} if statistic is None else {Entropy(1.0).family: torch.tensor(statistic)}
    statistics[RandomExit(mean=1.0).family] = torch.zeros(loops, count)
    return Trajectory(
        trained=loops,
        loss=loss,
        argmax=(loss >= 1).long(),
        target=torch.zeros(count, dtype=torch.long),
        gate_logit=None,
        statistics=statistics,
        sequence=number // per_sequence,
        row=number,
        answer=number,
        bytes=torch.full((count,), 3),
        group=None,
        groups=(),
    )


def test_the_frontier_is_the_best_of_all_assignments() -> None:
    """3⁵ assignments of five tokens of two weights: none is below the frontier, each of its corners is one of them."""
    rng = np.random.default_rng(0)
    for weight in (np.ones(5), np.array([1.0, 3.0, 2.0, 1.0, 4.0])):
        losses = rng.normal(2, 1, (3, 5))
        depths, least = oracle_frontier(losses, weight)
        reached = set()
        for exits in itertools.product(range(3), repeat=5):
            depth = (np.array(exits) + 1) @ weight / weight.sum()
            loss = losses[list(exits), range(5)] @ weight / weight.sum()
            assert loss >= np.interp(depth, depths, least) - 1e-12
            reached.add((round(depth, 9), round(loss, 9)))
        assert {(round(d, 9), round(x, 9)) for d, x in zip(depths, least, strict=True)} <= reached
        assert least[-1] == pytest.approx(losses.min(0) @ weight / weight.sum())


def test_a_price_per_loop_traces_the_frontier() -> None:
    losses = np.random.default_rng(1).normal(2, 1, (4, 300))
    depths, least = oracle_frontier(losses)
    for price in (0.0, 0.05, 0.3, 1.0, 9.0):
        exits = oracle_loops(losses, price)
        loss = losses[exits - 1, np.arange(300)].mean()
        assert np.interp(exits.mean(), depths, least) == pytest.approx(loss)
    assert oracle_loops(losses, 9.0).max() == 1
    assert oracle_loops(np.array([[2.0], [1.0], [1.0]])).tolist() == [2]  # the earliest of equal ones


def test_area_and_interpolation_by_hand() -> None:
    curve = Curve(np.array([1.0, 2.0, 4.0]), {"loss": np.array([3.0, 2.0, 1.0])})
    assert curve.at("loss", 1.5) == 2.5
    assert curve.at("loss", 3.0) == 1.5
    assert curve.area("loss", 1, 4) == pytest.approx((2.5 + 2 * 1.5) / 3)
    assert curve.area("loss", 1.5, 3) == pytest.approx((0.5 * 2.25 + 1 * 1.75) / 1.5)


def test_outcome_counts_whole_answers_and_bytes() -> None:
    found = made_up(np.array([[2.0, 0.5, 0.5, 2.0], [0.5, 0.5, 2.0, 0.5]]))
    object.__setattr__(found, "answer", torch.tensor([0, 0, 1, 1]))
    values = outcome(found, torch.tensor([2, 1, 1, 1]))
    assert values["loops"] == 1.25
    assert values["loss"] == pytest.approx(3.5 / 4)
    assert values["accuracy"] == 0.5
    assert values["bits_per_byte"] == pytest.approx(3.5 / np.log(2) / 12)


def test_a_statistic_that_tells_what_is_to_gain_reaches_the_oracle_and_one_that_does_not_gives_chance() -> None:
    """Two loops; the oracle exits tokens in the order of loss₂ − loss₁, a random order is a straight line."""
    rng = np.random.default_rng(2)
    losses = np.stack([rng.normal(3, 1, 4000), rng.normal(2, 1, 4000)])
    gain = losses[0] - losses[1]
    for statistic, reference in ((gain, oracle_curve), (rng.normal(0, 1, 4000), random_curve)):
        found = made_up(losses, np.stack([statistic - statistic.min(), statistic]))
        rules = threshold_grid(Entropy(1.0), found, 101)
        curve, other = rule_curve(found, rules), reference(found)
        for depth in (1.2, 1.5, 1.8):
            want = min(
                other.at("loss", depth), oracle_curve(found).at("loss", depth) if reference is oracle_curve else 9
            )
            assert curve.at("loss", depth) == pytest.approx(want, abs=0.03)
    assert oracle_curve(found).area("loss", 1, 2) < random_curve(found).area("loss", 1, 2) - 0.1


def test_the_random_control_is_its_rule_in_expectation(text: TextData, backbone: Made) -> None:
    text.prepare_data()
    rules = [RandomExit(mean=1.0, seed=seed) for seed in range(60)]
    found = trajectory(backbone(text.vocab_size), text, "test", rules=rules)
    for mean in (1.4, 2.5):
        draws = [outcome(found, found.exit_loops(rule.at(mean)))["loss"] for rule in rules]
        error = np.std(draws) / np.sqrt(len(draws))
        assert abs(np.mean(draws) - random_curve(found).at("loss", mean)) < 4 * error


def test_a_sequences_oracle_exits_once(backbone: Made) -> None:
    losses = np.array([[1.0, 4.0, 0.0], [3.0, 1.0, 5.0]])  # two tokens that go together, and one alone
    found = made_up(losses)
    object.__setattr__(found, "sequence", torch.tensor([0, 0, 1]))
    curve = oracle_curve(found, per="sequence")
    assert curve.loops.tolist() == pytest.approx([1, 1 + 2 / 3])
    assert curve.qualities["loss"].tolist() == pytest.approx([5 / 3, 4 / 3])
    assert oracle_curve(found).qualities["loss"][-1] == pytest.approx(2 / 3)


def test_thresholds_are_quantiles_of_the_statistic() -> None:
    statistic = np.stack([np.full(200, np.inf), np.arange(200.0), np.full(200, 1e6)])
    found = made_up(np.ones((3, 200)), statistic)
    rules = threshold_grid(Entropy(1.0, min_loops=2), found, 5)
    assert [rule.h for rule in rules] == pytest.approx([0, 50, 100, 149, 199], abs=1)  # not the last loop's
    assert {rule.min_loops for rule in rules} == {2}
    assert threshold_grid(StaticDepth(1), with_depths(found), 33) == (StaticDepth(1), StaticDepth(2))


def with_depths(found: Trajectory) -> Trajectory:
    depths = torch.arange(1.0, 4).unsqueeze(1).expand(3, 200)
    object.__setattr__(found, "statistics", {StaticDepth(1).family: depths})
    return found


RULES = (QExit(0.5), HiddenDifference(3.0), LoopKL(0.5), ArgmaxStable(), RandomExit(mean=1.5), StaticDepth(2))


@pytest.mark.parametrize("kind", ["p_hop", "text"])
@pytest.mark.parametrize("loops", [1, 2, 4])
def test_reported_names_are_the_promised_ones(
    kind: str, loops: int, request: pytest.FixtureRequest, backbone: Made
) -> None:
    data = request.getfixturevalue(kind)
    data.prepare_data()
    model = backbone(data.vocab_size, loops=loops, gate=loops > 1)
    for rule in RULES:
        evaluation = ExitCurve(rule, points=5, per="sequence" if kind == "text" else "token")
        values = evaluation(model, data, "test")
        assert tuple(sorted(values)) == tuple(sorted(evaluation.metric_names(data, loops)))
        assert all(np.isfinite(value) for value in values.values())


def test_thresholds_come_from_validation_and_numbers_from_test(text: TextData, backbone: Made) -> None:
    """The parts put together by hand."""
    text.prepare_data()
    model, rule = backbone(text.vocab_size, loops=4), Entropy(2.0)
    values = ExitCurve(rule, points=7, low=1.5, high=3.5)(model, text, "test")
    val, test = (trajectory(model, text, split, rules=(rule,)) for split in ("val", "test"))
    levels = np.quantile(val.statistic(rule)[:3].flatten().numpy(), np.linspace(0, 1, 7), method="nearest")
    points = [outcome(test, test.exit_loops(Entropy(float(level)))) for level in levels]
    points += [outcome(test, torch.full_like(test.target, loop)) for loop in (1, 4)]
    curve = curve_of(points)
    static = [outcome(test, torch.full_like(test.target, loop))["loss"] for loop in (1, 2, 3, 4)]
    depths, least = oracle_frontier(test.loss.numpy())
    fine = np.linspace(1.5, 3.5, 200_001)
    area = np.interp(fine, curve.loops, curve.qualities["loss"]).mean()
    assert values["exit/area"] == pytest.approx(area, abs=1e-4)
    assert values["exit/area_random"] == pytest.approx(np.interp(fine, [1, 2, 3, 4], static).mean(), abs=1e-4)
    assert values["exit/area_oracle"] == pytest.approx(np.interp(fine, depths, least).mean(), abs=1e-4)
    assert values["exit/gain_over_random"] == pytest.approx(values["exit/area_random"] - values["exit/area"])
    assert values["exit/gap_to_oracle"] == pytest.approx(values["exit/area"] - values["exit/area_oracle"])
    assert values["exit/loss_at_3"] == pytest.approx(curve.at("loss", 3))
    assert values["exit/gain_over_random_at_2"] == pytest.approx(static[1] - curve.at("loss", 2))
    assert values["exit/mean_loops"] == pytest.approx(float(test.exit_loops(rule).double().mean()))
    other = ExitCurve(rule, points=7, low=1.5, high=3.5)(model, text, "val")
    assert other["exit/area"] != values["exit/area"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, r"^evaluation.points = 1: must be an integer ≥ 2$"),
        ({"per": "row"}, r"^evaluation.per = 'row': must be one of token, sequence$"),
        ({"low": 3, "high": 9}, r"^evaluation.low, high = 3, 9: must be 1 ≤ low < high ≤ 3$"),
    ],
)
def test_bad_values_are_named(options: dict, message: str, p_hop: TaskData, backbone: Made) -> None:
    with pytest.raises(ValueError, match=message):
        ExitCurve(StaticDepth(1), **options)(backbone(p_hop.vocab_size), p_hop, "test")


def test_a_gate_that_is_missing_is_named(p_hop: TaskData, backbone: Made) -> None:
    with pytest.raises(ValueError, match="needs an exit gate"):
        ExitCurve(QExit(0.5))(backbone(p_hop.vocab_size, gate=False), p_hop, "test")


def test_the_choice_makes_the_object() -> None:
    made = instantiate(compose_config("p_hop", ["evaluation=exit_curve"]).evaluation)
    assert made == ExitCurve(QExit(0.5))
    assert isinstance(made.rule, ThresholdRule)
    other = instantiate(compose_config("p_hop", ["evaluation=exit_curve", "evaluation/rule=margin"]).evaluation)
    assert other == ExitCurve(Margin(0.5))


@pytest.mark.parametrize("gate", [True, False])
def test_the_table_has_a_curve_per_policy(gate: bool, text: TextData, backbone: Made) -> None:
    text.prepare_data()
    model = backbone(text.vocab_size, gate=gate)
    rows = pareto_table(model, text, "test", points=5)
    found = trajectory(model, text, "test", rules=())
    by_policy = {policy: [row for row in rows if row["policy"] == policy] for policy in {r["policy"] for r in rows}}
    assert len(by_policy) == (9 if gate else 8) - 2 + 2
    assert (QExit(0.5).family in by_policy) == gate
    assert [row["loops"] for row in by_policy["static"]] == [1, 2, 3]
    for policy, points in by_policy.items():
        assert all({"loss", "bits_per_byte"} <= set(point) for point in points)
        depths, least = oracle_frontier(found.loss.numpy())
        for point in points:
            assert point["loss"] >= np.interp(point["loops"], depths, least) - 1e-9, policy
