"""A study that names laws has them fitted to its own runs, in the report."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import ledger
from analysis.blocks import Table
from analysis.evidence import Evidence
from analysis.runs import CURVE, StudyResult
from analysis.scaling import of_study, verdict
from analysis.scaling.catalogue import OURO_TOTAL, RECURRENCE
from analysis.scaling.fits import fit
from analysis.scaling.points import Points
from analysis.scaling.verdict import judge
from ouro_lab.claims import known
from tests.analysis.test_scaling_laws import BASE, LOOP, draw, ladder


def study(points: Points, laws: list[str], states: dict[int, str] | None = None) -> StudyResult:
    """A run per point, its loops' losses falling to the last one's."""
    rows = []
    for i in range(len(points)):
        trained = int(points.loops[i])
        by_loop = {f"final/loss_loop{t}": points.loss[i] + 0.1 * (trained - t) for t in range(1, trained + 1)}
        rows.append(
            {
                "id": f"run-{i}",
                "arm": "a",
                "seed": i,
                "state": (states or {}).get(i, "done"),
                "phase": "main",
                "seconds": 60.0,
                "hardware": "1 thread of CPU",
                "precision": "32-true",
                "cost/parameters": points.parameters[i],
                "cost/body_parameters": points.recurring[i],
                "cost/tokens": points.tokens[i],
                "final/loss": points.loss[i],
                **by_loop,
            }
        )
    return StudyResult(
        {"name": "made", "figures": {"scaling": laws}}, pd.DataFrame(rows), pd.DataFrame(columns=CURVE), []
    )


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """test_scaling_laws.py has the coverage of intervals; here it is which are asked for, and where they go."""
    monkeypatch.setattr(of_study, "DRAWS", 60)
    monkeypatch.setattr(verdict, "DRAWS", 60)


@pytest.fixture(scope="module")
def drawn() -> Points:
    return draw(ladder(loops=(1, 2, 4, 8)), RECURRENCE, run=0.002, point=0.002)


def test_points_are_the_finished_runs(drawn: Points) -> None:
    found = of_study.points(study(drawn, [], {3: "diverged", 5: "failed"}))
    kept = np.delete(np.arange(len(drawn)), [3, 5])
    for name in ("once", "recurring", "tokens", "loops", "trained_loops", "loss"):
        np.testing.assert_array_equal(getattr(found, name), getattr(drawn, name)[kept])
    assert found.trunks == len(kept)


def test_every_loop_is_a_point_of_its_run(drawn: Points) -> None:
    found = of_study.points(study(drawn, []), every_loop=True)
    assert len(found) == drawn.loops.sum()
    eight = found.trained_loops == 8
    assert set(found.loops[eight]) == set(range(1, 9))
    last = found.loops == found.trained_loops
    np.testing.assert_array_equal(found.loss[last], drawn.loss)
    assert (found.loss[eight & (found.loops == 1)] > drawn.loss[drawn.loops == 8].min() + 0.69).all()


def test_section_has_a_row_per_fit_and_says_what_is_supported(drawn: Points, tmp_path: Path) -> None:
    result = study(drawn, ["chinchilla", "recurrence", "parcae"])
    table = next(block for block in of_study.section(result, tmp_path, ("svg",)) if isinstance(block, Table))
    by_law = {row[0].split(":")[0]: row for row in table.rows}
    assert len(table.rows) == 2 + len(drawn.values("parameters"))  # parcae is stated per size
    assert by_law["recurrence"][-1].startswith("loop term supported")
    assert by_law["chinchilla"][-1] == "–"
    expected = fit(RECURRENCE, drawn)
    assert f"phi = {expected.values['phi']:.4g} [" in by_law["recurrence"][3]
    assert float(by_law["recurrence"][4]) < float(by_law["chinchilla"][4])
    assert len(list(tmp_path.glob("scaling_*.svg"))) == len(table.rows)


def test_law_without_an_effect_is_not_supported(tmp_path: Path) -> None:
    flat = draw(ladder(loops=(1, 2, 4, 8)), RECURRENCE, run=0.002, point=0.002, **{**BASE, "phi": 0.0})
    table = next(b for b in of_study.section(study(flat, ["recurrence"]), tmp_path, ("svg",)) if isinstance(b, Table))
    assert table.rows[0][-1].startswith("loop term not supported")


def test_only_fits_with_more_runs_than_parameters_are_drawn(drawn: Points, tmp_path: Path) -> None:
    one = drawn.take((drawn.parameters == drawn.parameters.min()) & (drawn.tokens == drawn.tokens.max()))
    found = of_study.section(study(one, ["shifted_power"]), tmp_path, ("svg",))
    table = next(block for block in found if isinstance(block, Table))
    assert {row[2] for row in table.rows} == {"2"}  # seeds of one depth, for a law of four parameters
    assert not list(tmp_path.glob("*.svg"))


@pytest.mark.parametrize(
    ("changed", "word", "size"),
    [
        (LOOP, "supported", r"\+\d"),
        (LOOP | {"C": 0.0}, "not supported", r"0 %|[+−]0\.0"),
        (None, "inconclusive", "undecided"),
    ],
)
def test_a_claim_of_a_law_is_judged_by_the_fit(changed: dict | None, word: str, size: str, tmp_path: Path) -> None:
    law = OURO_TOTAL
    shapes = ladder(loops=(1, 2, 4, 8)) if changed is not None else ladder((32, 48, 64), loops=(1, 2, 4, 8))
    result = study(draw(shapes, law, run=0.002, point=0.002, **BASE, **(changed or LOOP)), [law.name])
    result.study.update(stated())
    evidence = Evidence(tmp_path, result, {}, None, None)
    (row,) = ledger.of_study(known()["C29"], evidence)
    assert (row.word, row.verdict, row.rates, row.n) == (word, f"{word}; outdated", "swept", str(len(result.runs)))
    assert row.scope.startswith("at most 2.0M parameters (1/26 of the paper's 53M), ")
    assert re.match(rf"R² 0\.99\d; less error by the term: {size}", row.effect), row.effect
    assert ledger.of_study(known()["S07"], evidence)[0].word == "no contrast"


def stated() -> dict:
    """What a study says of itself, with one arm whose first two seeds are the positive control."""
    arm = {"lr_status": "swept", "lr_matched": True, "cost": {"training_flops": 1, "parameters": 2e6, "tokens": 1e6}}
    return {
        "hash": "0",
        "registered": {"hash": "0"},
        "claim": ["C29", "S07"],
        "contrasts": {},
        "seeds": [0, 1],
        "arms": {"a": arm},
        "positive_control": {"arm": "a", "metric": "loss", "below": 99.0},
    }


@pytest.mark.parametrize(
    ("changed", "states", "said"),
    [
        ({"registered": {"hash": "1"}}, {}, "supported (exploratory)"),
        ({"arms": {"a": stated()["arms"]["a"] | {"lr_matched": False}}}, {}, "supported (unmatched)"),
        ({"registered": None}, {}, "unregistered: no hash was stored before the first run (exploratory)"),
        ({"positive_control": None}, {}, "no positive control"),
        ({}, {7: "diverged"}, "incomplete: 95 of 96 runs done"),
    ],
)
def test_the_rules_of_verdicts_hold_for_laws(changed: dict, states: dict[int, str], said: str) -> None:
    points = draw(ladder(loops=(1, 2, 4, 8)), RECURRENCE, run=0.002, point=0.002)
    result = study(points, ["recurrence"], states)
    result.study.update(stated() | changed)
    (found,) = judge(result, RECURRENCE)
    assert str(found) == said


def test_a_law_that_the_design_cannot_tell_is_inconclusive() -> None:
    diagonal = [ladder((width,), (loops,)) for width, loops in ((32, 1), (48, 2), (64, 3), (96, 4), (128, 6))]
    one = Points(*(np.concatenate(parts) for parts in zip(*(vars(part).values() for part in diagonal), strict=True)))
    made = draw(one, OURO_TOTAL, run=0.002, point=0.002, **BASE, **LOOP)
    result = study(made, ["ouro_total"])
    result.study.update(stated())
    (found,) = judge(result, OURO_TOTAL)
    assert found.word == "inconclusive"
    assert found.term.depth.refused == "undecided (the largest are the deepest: one comparison, not two)"


def test_too_few_points_are_a_line_instead_of_numbers(drawn: Points, tmp_path: Path) -> None:
    few = drawn.take((drawn.tokens < 2e6) & (drawn.loops < 4))
    table = next(b for b in of_study.section(study(few, ["ouro_total"]), tmp_path, ("svg",)) if isinstance(b, Table))
    assert "not identifiable: needs" in table.rows[0][3]


def test_unknown_law_is_named(drawn: Points, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"study\.figures\.scaling = ouro_totl: no such law; valid: mean, data"):
        of_study.section(study(drawn, ["ouro_totl"]), tmp_path)
    assert of_study.section(study(drawn, []), tmp_path) == []
