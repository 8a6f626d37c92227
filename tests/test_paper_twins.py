"""Studies at published sizes, built without weights: the parameters and tokens that the paper states or implies."""

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from analysis.scaling.catalogue import LAWS
from analysis.scaling.checks import obstacle
from analysis.scaling.points import COLUMNS, Points
from ouro_lab.assembly import Parts
from ouro_lab.check import check
from ouro_lab.compute.machines import parse
from ouro_lab.config import EXPERIMENTS, ROOT, study_names
from ouro_lab.plan import plan_of
from ouro_lab.study import Study

# Per arm: parameters in millions, tokens in billions. Ouro §6, App. B and D; block of width 1024: 12.6M parameters.
# Tokens of multi-hop QA are ours: single sentences where the paper may mean windows of 1,024.
PUBLISHED = {
    "mano_paper": {
        "two_by_six": (25.2, 10.5),
        "three": (37.8, 10.5),
        "six_by_two": (75.6, 10.5),
        "twelve": (151, 10.5),
    },
    "multihop_paper": {"loops_1": (75.6, None), "loops_4": (75.6, None), "untied": (302, None)},
    "capo_paper": {"loops_1": (1.0, None), "loops_4": (1.0, None)},
    "ladder_paper": {f"s{size}_t{loops}": (size, 20) for size in (53, 134, 374, 778, 1364) for loops in (1, 2, 4, 8)},
    "text_depth_paper": {"standard": (53, 20), "loops_8": (53, 20), "untied_4": (137, 20)},
}
TWINS = [name for name in study_names() if name.endswith("_paper")]


@cache  # composing twenty arms takes ten seconds
def checked(name: str) -> tuple[Study, dict[str, Parts]]:
    study = Study(name)
    return study, check(study)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_published_size(name: str) -> None:
    _, parts = checked(name)
    assert all(parameter.is_meta for part in parts.values() for parameter in part.backbone.parameters())
    for arm, (parameters, tokens) in PUBLISHED[name].items():
        cost = parts[arm].cost
        print(f"{name} {arm}: {cost['parameters']:,} parameters, {cost['tokens']:.3g} tokens", end=", ")
        print(f"{cost['training_flops']:.3g} FLOPs")
        assert cost["parameters"] / 1e6 == pytest.approx(parameters, rel=0.03)
        assert tokens is None or cost["tokens"] / 1e9 == pytest.approx(tokens, rel=0.01)


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_says_how_many_gpu_days_it_takes(name: str) -> None:
    study, parts = checked(name)
    on, mfu = parse("1xH100", 0), 0.4
    for arm in PUBLISHED[name]:
        found = plan_of(study, arm, parts[arm], on, mfu)
        exact = parts[arm].cost["training_flops"] / (mfu * on.device.peak) / 86400
        print(f"{name} {arm}: {found.days:.3g} GPU-days")
        assert found.days == pytest.approx(exact, rel=0.05)  # lost work comes on top


def test_mano_is_scored_at_the_length_that_is_asked_for() -> None:
    study = Study("mano_paper", ["data.task.operators=24", "budget.steps=200000"])
    assert {contrast.metric for contrast in study.definition.contrasts.values()} == {"accuracy/ops_24"}
    assert check(study)["twelve"].cost["tokens"] == pytest.approx(26.2e9, rel=0.01)


def test_the_ladder_can_tell_the_laws_that_it_names() -> None:
    study, parts = checked("ladder_paper")
    rows = []
    for name, part in parts.items():
        cost, loops = part.cost, part.backbone.loops
        once, recurring = cost["parameters"] - cost["body_parameters"], cost["body_parameters"]
        rows += [(name, once, recurring, cost["tokens"], loop, 3.0, loops) for loop in range(1, loops + 1)]
    points = Points.of(pd.DataFrame(rows, columns=[*COLUMNS, "trained_loops"]))
    last = points.take(points.loops == points.trained_loops)
    laws = {name: LAWS[name] for name in study.definition.figures["scaling"]}
    assert {name: obstacle(law, last) for name, law in laws.items() if not law.constant} == {
        "chinchilla": "",
        "ouro_total": "",
        "recurrence": "",
    }
    for loops in (4, 8):
        assert obstacle(laws["ouro_stepwise"], points.take(points.trained_loops == loops)) == ""


RECIPES = [EXPERIMENTS / f"{name}.yaml" for name in TWINS] + [
    path for path in sorted((ROOT / "conf" / "data").glob("*_paper.yaml")) if not path.name.startswith("ouro_")
]  # those of the pipeline say it of a whole block: tests/test_pipeline_sizes.py


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_number_of_a_twin_says_where_it_is_from(path: Path) -> None:
    """Of the lines before the study's block: published, inferred, or ours."""
    recipe = path.read_text().split("\nstudy:")[0]
    stated, comment = [], ""
    for line in recipe.splitlines():
        if line.startswith("#"):  # said of the next line alone
            comment += line
            continue
        if any(character.isdigit() for character in line.split("#")[0]):
            stated.append((line + comment).lower())
        comment = ""
    assert stated
    assert all(any(word in line for word in ("published", "inferred", "ours")) for line in stated), stated
