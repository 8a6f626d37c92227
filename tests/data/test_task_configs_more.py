"""Addition, Depo, i-GSM and a file of one's own under the p-hop recipe: checked, then two steps of training."""

from pathlib import Path

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
DEPO, IGSM = ["data.task.nodes=8", "data.task.window=96"], ["data.task.operations=4", "data.task.most=8"]
CHOICES = {
    "addition": ([], {"accuracy/operands_2", "accuracy/operands_4", "accuracy/digits_2"}),
    "addition_paper": (["data.task.evaluated=[4]", "data.task.operands=[2,4]"], {"accuracy/operands_4"}),
    "depo": ([], {"accuracy/hops_1", "accuracy/hops_8"}),
    "depo_paper": (DEPO, {"accuracy/hops_8"}),
    "igsm": ([], {"accuracy/ops_1", "accuracy/ops_6"}),
    "igsm_paper": (IGSM, {"accuracy/ops_4"}),
    "table": ([], {"accuracy/difficulty_1", "accuracy/seen_difficulty_2"}),
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "own.csv"
    path.write_text("prompt,answer,difficulty\n" + "".join(f"{i} + 1,{i + 1},{1 + i % 2}\n" for i in range(99)))
    return str(path)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_takes_two_steps_under_the_p_hop_recipe(choice: str, own: str) -> None:
    shrink, wanted = CHOICES[choice]
    path = [f"data.task.path={own}"] if choice == "table" else []
    study = Study("p_hop", [*RECIPE, f"data={choice}", *SHRINK, *shrink, *path])
    parts = check(study)["looped"]
    assert parts.steps == 2
    assert set(parts.data.floors()) <= set(parts.data.metric_names)
    one = study.run("looped", 1e-3, 0)
    assert run.execute(one) == 0
    final = records.read_final(one.directory)["metrics"]
    assert {f"final/{metric}" for metric in wanted} <= final.keys()
    assert all(0 <= final[f"final/{metric}"] <= 1 for metric in wanted)


PUBLISHED = {"addition_paper": 256, "depo_paper": 768, "igsm_paper": 128}  # width, of 8 or 12 heads


@pytest.mark.parametrize("choice", PUBLISHED)
def test_the_published_size_is_built_without_weights(choice: str) -> None:
    shape = [f"backbone.width={PUBLISHED[choice]}", "backbone.heads=8", "backbone.layers=8"]
    parts = check(Study("p_hop", [*RECIPE, f"data={choice}", *shape]))["looped"]
    assert all(parameter.is_meta for parameter in parts.backbone.parameters())
    assert parts.data.length > 100
