"""The choices of multi-hop questions, composition and reachability under the p-hop recipe: checked, then two steps."""

import pytest

from ouro_lab import records, run
from ouro_lab.check import check
from ouro_lab.study import Study

RECIPE = [
    "study.lr=null",
    "~study.contrasts",
    "~study.positive_control",
    "~study.arms",
    "+study.arms={looped: ['backbone=looped']}",
]
SHRINK = [
    "backbone.width=16",
    "backbone.heads=2",
    "budget.steps=2",
    "data.batch_size=8",
    "data.val_size=4",
    "data.test_size=4",
    "trainer.val_every=2",
    "trainer.log_every=1",
    "trainer.precision=32-true",
]
PAPER = ["data.task.entities=10", "data.task.relations=6", "data.task.held_out=0.1"]
REACHABLE = ["data.task.vertices=8", "data.task.edges=12", "data.task.max_distance=3"]
CHOICES = {
    "multihop": ([], {"accuracy/hops_3", "accuracy/seen_hops_1", "accuracy/seen_hops_3"}),
    "multihop_text": ([], {"accuracy/hops_3", "accuracy/seen_hops_1"}),
    "multihop_paper": (PAPER, {"accuracy/hops_3"}),
    "composition": ([], {"accuracy/id", "accuracy/ood", "accuracy/seen_facts", "accuracy/seen_questions"}),
    "reachability": (REACHABLE, {"accuracy/distance_3", "accuracy/yes_1", "accuracy/no_2"}),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_takes_two_steps_under_the_p_hop_recipe(choice: str) -> None:
    shrink, wanted = CHOICES[choice]
    study = Study("p_hop", [*RECIPE, f"data={choice}", *SHRINK, *shrink])
    assert check(study)["looped"].steps == 2
    one = study.run("looped", 1e-3, 0)
    assert run.execute(one) == 0
    final = records.read_final(one.directory)["metrics"]
    assert {f"final/{metric}" for metric in wanted} <= final.keys()
    assert all(0 <= final[f"final/{metric}"] <= 1 for metric in wanted)


def test_the_published_size_is_built_without_weights() -> None:
    """6⊗4 of width 1024 on 800,000 questions; nothing of it is allocated."""
    shape = ["backbone.width=1024", "backbone.heads=16", "backbone.layers=6", "backbone.loops=4"]
    parts = check(Study("p_hop", [*RECIPE, "data=multihop_paper", *shape]))["looped"]
    assert parts.cost["body_parameters"] > 7e7
    assert all(parameter.is_meta for parameter in parts.backbone.parameters())
    assert 0.1 < float(parts.data.floors()["accuracy/hops_3"]["value"]) < 0.2


def test_loss_and_accuracy_are_of_held_out_questions_alone() -> None:
    study = Study("p_hop", [*RECIPE, "data=multihop", *SHRINK])
    one = study.run("looped", 1e-3, 0)
    run.execute(one)
    final = records.read_final(one.directory)["metrics"]
    assert final["final/accuracy"] == final["final/accuracy/hops_3"]
