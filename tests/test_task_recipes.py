"""Every synthetic task's file takes two real steps under the recipe of p_hop, and reports the metrics it names."""

import re

import numpy as np
import pytest

from ouro_lab import records, run
from ouro_lab.check import check
from ouro_lab.config import ConfigError
from ouro_lab.study import Run, Study

NARROW = ["backbone.width=16", "backbone.heads=2", "trainer.val_every=2", "trainer.log_every=1"]
NARROW += ["trainer.precision=32-true", "trainer.compile=false", "budget.steps=2"]
NO_STUDY = [f"~study.{block}" for block in ("arms", "contrasts", "lr", "positive_control")]
FEW = ["data.batch_size=4", "data.val_size=4", "data.test_size=4"]
PEOPLE = [*FEW, "data.task.people=20", "backbone.tie_embeddings=true"]

# What makes a run short; the rest of a file is as it stands.
SHRINK = {
    "mano": FEW,
    "mano_paper": [*FEW, "data.task.operators=4", "data.task.window=48"],
    "capo_bio_d": PEOPLE,
    "capo_bio_d_paper": PEOPLE,
    "capo_bio_s": PEOPLE,
    "capo_bio_s_paper": PEOPLE,
}


def shrunk(data: str) -> Run:
    return Study("p_hop", [f"data={data}", *NARROW, *SHRINK[data], *NO_STUDY, "+study.arms={looped: []}"]).run(
        "looped", 1e-3, 0
    )


@pytest.mark.parametrize("data", SHRINK)
def test_a_task_takes_two_steps(data: str) -> None:
    one = shrunk(data)
    assert run.execute(one) == 0
    final = records.read_final(one.directory)
    assert final["steps"] == 2
    told = {re.sub(r"_loop\d+", "", name.removeprefix("final/")) for name in final["metrics"]}
    wanted = {"loss", "accuracy"} | ({"bits_per_parameter", "bits/name"} if "capo" in data else {"accuracy/ops_4"})
    assert wanted <= told
    if "capo" in data:
        parameters = records.read_note(one.directory)["cost"]["parameters"]
        bits = final["metrics"]["final/bits"]
        assert final["metrics"]["final/bits_per_parameter"] == pytest.approx(bits / parameters)


PUBLISHED = {  # width, heads and layers; Ouro's Mano has 1024, its Capo sizes 1M–40M parameters
    "mano_paper": ["backbone.width=1024", "backbone.heads=16", "backbone.layers=2", "backbone.loops=6"],
    "capo_bio_d_paper": ["backbone.width=512", "backbone.heads=8", "backbone.loops=4", "backbone.tie_embeddings=true"],
    "capo_bio_s_paper": ["backbone.width=512", "backbone.heads=8", "backbone.loops=4", "backbone.tie_embeddings=true"],
}


@pytest.mark.parametrize("data", PUBLISHED)
def test_the_published_size_is_built_without_weights(data: str) -> None:
    overrides = [f"data={data}", *PUBLISHED[data], "study.lr=null", *NO_STUDY[:2], *NO_STUDY[3:]]
    part = check(Study("p_hop", [*overrides, "+study.arms={looped: []}"]))["looped"]
    assert all(parameter.is_meta for parameter in part.backbone.parameters())
    assert part.cost["body_parameters"] > 5e6
    assert all(metric in {*part.data.metric_names} for metric in part.data.floors())


@pytest.mark.parametrize("data", [name for name in SHRINK if "capo" in name])
def test_every_row_of_a_capacity_vocabulary_is_told(data: str) -> None:
    """P counts the rows that occur (tasks.md, trap 18); there are no others."""
    part = check(
        Study("p_hop", [f"data={data}", "study.lr=null", *NO_STUDY[:2], *NO_STUDY[3:], "+study.arms={looped: []}"])
    )
    task = part["looped"].data.task
    told = task.sample(0, np.arange(3000))["tokens"]
    assert len(np.unique(np.concatenate([told.ravel(), task.names.ravel()]))) == task.vocab_size


def asked(data: str, metric: str) -> Study:
    contrasts = {"depth_by_reuse": metric, "cost_of_tying": metric}
    overrides = [f"study.contrasts.{name}.metric={value}" for name, value in contrasts.items()]
    return Study("p_hop", [f"data={data}", "study.lr=null", *overrides])


@pytest.mark.parametrize(
    ("data", "metric"),
    [("mano", "accuracy/depth_4"), ("capo_bio_d", "bits_per_parameter"), ("capo_bio_s", "bits/major")],
)
def test_a_contrast_may_ask_for_a_tasks_own_metric(data: str, metric: str) -> None:
    assert check(asked(data, metric))


def test_a_metric_that_the_data_does_not_report_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="bits_per_paramter: no such metric; did you mean bits_per_parameter"):
        check(asked("capo_bio_d", "bits_per_paramter"))
