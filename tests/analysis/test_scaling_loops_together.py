"""The loss that training minimises from the laws of its loops (C31), against data made by those laws."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import ledger
from analysis.blocks import Table
from analysis.evidence import Evidence
from analysis.runs import CURVE, StudyResult
from analysis.scaling import of_study
from analysis.scaling.catalogue import OURO_STEPWISE
from analysis.scaling.loops_together import LoopsTogether, explained, loops_together
from ouro_lab.claims import Claim, known
from ouro_lab.config import ConfigError
from tests.analysis.test_scaling_laws import BASE, LOOP, ladder
from tests.analysis.test_scaling_of_study import stated, study

DEPTH, DRAWS, STEPS = 4, 40, 95  # rows every ten steps and one at the end: the last tenth is 4.5 of 80–90, 5 of 90–95
Q = np.array([0.4, 0.3, 0.2, 0.1])
EARLY = 7.0  # what rows before the last tenth are off by


def made(
    entropy: Callable[[int], float] = lambda run: 0.06, exits: np.ndarray = Q, law: dict[str, float] = BASE | LOOP
) -> StudyResult:
    """Runs of one loop and of four. The four's loops follow the law to 0.2 % at the end of training, and test losses
    lie 0.3 nats above, so that who takes those is far off."""
    shapes = ladder(loops=(1, DEPTH))
    result = study(shapes, [OURO_STEPWISE.name])
    random = np.random.default_rng(0)
    curves = []
    for place, run in result.runs.iterrows():
        depth = int(shapes.loops[place])
        points = shapes.take(np.repeat(place, depth))
        exact = OURO_STEPWISE.predict(replace(points, loops=np.arange(1.0, depth + 1)), law)
        losses = exact * np.exp(0.002 * random.standard_normal(depth))
        ends = {f"train/loss_loop{t}": loss for t, loss in enumerate(losses, start=1)}
        result.runs.loc[place, [name.replace("train", "final") for name in ends]] = losses + 0.3
        result.runs.loc[place, "final/loss"] = losses[-1] + 0.3
        if depth == DEPTH:
            expected = float(exits @ exact)
            ends |= {"train/loss": expected - entropy(place), "train/expected_loss": expected}
            ends |= {f"train/exit_p_loop{t}": q for t, q in enumerate(exits, start=1)}
        for step in (*range(10, STEPS, 10), STEPS):
            off = EARLY if step <= 80 else 0.0
            curves += [(run["id"], "a", run["seed"], step, name, value + off) for name, value in ends.items()]
    shuffled = pd.DataFrame(curves, columns=CURVE).sample(frac=1, random_state=0)
    return StudyResult(result.study | stated(), result.runs, shuffled, [])


def of(result: StudyResult) -> LoopsTogether:
    (four,) = (one for one in of_study.fitted(OURO_STEPWISE, result) if one.points.trained_loops[0] == DEPTH)
    return loops_together(four, result, DRAWS)


def test_loops_of_the_law_sum_up_to_the_loss_of_the_objective() -> None:
    result = made()
    found = of(result)
    np.testing.assert_allclose(found.q, Q, rtol=1e-12)
    assert found.without_entropy > 0.999
    losses = result.curves[result.curves["metric"].eq("train/loss") & result.curves["step"].eq(STEPS)]["value"]
    # The entropy term is the same 0.06 nats in every run: all that the sum does not explain.
    assert found.r2 == pytest.approx(1 - 0.06**2 / losses.var(ddof=0), abs=2e-3)
    assert found.interval[0] < found.r2 < found.interval[1] < 1
    assert found.interval[0] > found.r2 - 0.1


def test_r2_and_exits_by_hand() -> None:
    predicted = np.array([[1.0, 2.0, 3.0, 5.0, 2.0, 4.0]])  # three runs of two loops
    exits, loss = np.array([[0.5, 0.5], [0.2, 0.8], [0.8, 0.2]]), np.array([1.0, 5.0, 4.0])
    sums = 0.5 * predicted[0, ::2] + 0.5 * predicted[0, 1::2]  # mean exits are one half each
    expected = 1 - ((loss - sums) ** 2).sum() / ((loss - loss.mean()) ** 2).sum()
    assert explained(predicted, exits, loss, np.ones((1, 3)))[0] == pytest.approx(expected, rel=1e-12)
    # The first run twice, the second not at all: as if the three runs drawn were all that there are.
    drawn = [0, 0, 2]
    left = explained(predicted, exits, loss, np.array([[2.0, 0.0, 1.0]]))[0]
    again = predicted.reshape(1, 3, 2)[:, drawn].reshape(1, 6)
    assert left == pytest.approx(explained(again, exits[drawn], loss[drawn], np.ones((1, 3)))[0], rel=1e-12)
    assert left != pytest.approx(expected, rel=1e-3)


def test_a_resample_draws_as_many_runs_as_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def seen(predicted: np.ndarray, exits: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
        drawn.append(weights)
        return explained(predicted, exits, loss, weights)

    monkeypatch.setattr("analysis.scaling.loops_together.explained", seen)
    of(made())
    runs = len(ladder(loops=(DEPTH,)))
    assert drawn[0].shape == (DRAWS, runs)
    assert (drawn[0].sum(axis=1) == runs).all()  # a run counts once, not once a loop


def test_exits_weigh_each_run_once_and_each_step_once() -> None:
    result = made()
    moved = result.runs["id"].iloc[-1]  # of four loops
    curves = result.curves.copy()
    for t, q in enumerate((0.0, 0.0, 0.0, 1.0), start=1):
        late = curves["metric"].eq(f"train/exit_p_loop{t}") & curves["step"].eq(STEPS) & curves["id"].eq(moved)
        curves.loc[late, "value"] = q
    found = of(StudyResult(result.study, result.runs, curves, []))
    mine = (4.5 * Q + 5 * np.eye(DEPTH)[-1]) / 9.5  # the tenth of 95 steps begins within the row of step 90
    runs = (result.runs["final/loss_loop4"].notna()).sum()
    np.testing.assert_allclose(found.q, (Q * (runs - 1) + mine) / runs, rtol=1e-12)


def test_a_run_that_diverged_takes_its_own_curve_with_it() -> None:
    result = made()
    four = result.runs["final/loss_loop4"].notna()
    result.runs.loc[[result.runs.index[0], result.runs.index[four][0]], "state"] = "diverged"
    assert of(result).without_entropy > 0.999
    (row,) = (one for one in rows("C31", result, Path()) if "4" in one.regime)
    assert row.word == f"incomplete: {len(result.runs) - 2} of {len(result.runs)} runs done"


def test_what_the_term_in_loops_adds_is_seen_beside_the_law_without_it() -> None:
    early = of(made(lambda run: 0.0))
    assert early.r2 > 0.999 > early.nested + 0.004  # the law without it takes the early loops for better than they are
    even = of(made(lambda run: 0.0, np.full(DEPTH, 1 / DEPTH)))
    assert even.nested == pytest.approx(even.r2, abs=1e-3)  # their mean is what E takes
    assert not (early.alike or even.alike)
    flat = of(made(lambda run: 0.0, law=BASE | {"C": -0.1, "gamma": 1.0}))  # later loops are worse
    assert flat.alike and "all loops' laws are one: its coefficient is 0" in str(flat)


def test_what_differs_from_run_to_run_beside_the_law_is_not_explained() -> None:
    even, uneven = of(made()), of(made(lambda run: 0.06 + 0.5 * (run % 2)))
    assert uneven.r2 < even.r2 - 0.05
    assert uneven.without_entropy == pytest.approx(even.without_entropy, abs=1e-12)


def rows(claim: str, result: StudyResult, folder: Path) -> list[ledger.Row]:
    result.study["claim"] = [claim]
    return ledger.of_study(known()[claim], Evidence(folder, result, {}, None, None))


def test_the_claim_and_the_report_say_it_and_no_rule_judges_it(tmp_path: Path) -> None:
    result = made()
    result.study["positive_control"] = None
    (row,) = rows("C31", result, tmp_path)
    assert (row.word, row.regime) == ("estimated", "a fit, points of trained loops 4")
    assert row.effect.startswith(f"R² {of(result).r2:.3f} [")
    assert "mean exit probability" in row.arms
    (form,) = rows("C30", result, tmp_path)
    assert form.word == "no positive control" and "less error by the term" in form.effect
    tables = [block for block in of_study.section(result, tmp_path, ("svg",)) if isinstance(block, Table)]
    assert [line[1:3] for line in tables[1].rows] == [("trained loops 4", "0.40 0.30 0.20 0.10")]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    result = made()
    gone = result.curves["metric"].eq("train/exit_p_loop3") & result.curves["id"].eq(result.runs["id"].iloc[-1])
    runs = result.runs["final/loss_loop4"].notna().sum()
    for kept, said in (
        (result.curves[~gone], f"1 of {runs} runs lack train/exit_p_loop3"),
        (result.curves.iloc[:0], f"{runs} of {runs} runs lack train/loss"),
    ):
        (row,) = rows("C31", StudyResult(result.study, result.runs, kept, []), tmp_path)
        assert (row.word, row.effect) == ("inconclusive", said)
    with pytest.raises(
        ConfigError, match="claim X: together = true: needs a law of each loop, ouro_stepwise, not ouro_total"
    ):
        Claim("X", "", "", "", law="ouro_total", together=True)
