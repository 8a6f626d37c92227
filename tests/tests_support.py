"""Overrides that shrink p-hop to a second."""

TINY = [
    "study.lr=null",
    "backbone.width=16",
    "backbone.heads=2",
    "data.task.length=12",
    "data.task.hops=2",
    "study.contrasts.depth_by_reuse.metric=accuracy/hops_2",
    "study.contrasts.cost_of_tying.metric=accuracy/hops_2",
    "data.batch_size=8",
    "data.val_size=8",
    "data.test_size=16",
    "budget.steps=12",
    "trainer.val_every=4",
    "trainer.log_every=2",
    "optim.lr=1e-2",
]
