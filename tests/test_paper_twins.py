"""Studies at published sizes, built without weights: the parameters and tokens that the paper states or implies."""

from pathlib import Path

import pytest

from ouro_lab.check import check
from ouro_lab.config import EXPERIMENTS, study_names
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
    "text_depth_paper": {"standard": (53, 20), "loops_8": (53, 20), "untied_4": (137, 20)},
}
TWINS = [name for name in study_names() if name.endswith("_paper")]


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_the_published_size(name: str) -> None:
    parts = check(Study(name))
    assert all(parameter.is_meta for part in parts.values() for parameter in part.backbone.parameters())
    for arm, (parameters, tokens) in PUBLISHED[name].items():
        cost = parts[arm].cost
        print(f"{name} {arm}: {cost['parameters']:,} parameters, {cost['tokens']:.3g} tokens", end=", ")
        print(f"{cost['training_flops']:.3g} FLOPs")
        assert cost["parameters"] / 1e6 == pytest.approx(parameters, rel=0.03)
        assert tokens is None or cost["tokens"] / 1e9 == pytest.approx(tokens, rel=0.01)


def test_mano_is_scored_at_the_length_that_is_asked_for() -> None:
    study = Study("mano_paper", ["data.task.operators=24", "budget.steps=200000"])
    assert {contrast.metric for contrast in study.definition.contrasts.values()} == {"accuracy/ops_24"}
    assert check(study)["twelve"].cost["tokens"] == pytest.approx(26.2e9, rel=0.01)


@pytest.mark.parametrize("name", TWINS)
def test_every_number_of_a_twin_says_where_it_is_from(name: str) -> None:
    """Of the lines before the study's block: published, inferred, or ours."""
    recipe = Path(EXPERIMENTS / f"{name}.yaml").read_text().split("\nstudy:")[0]
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
