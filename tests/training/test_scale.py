"""DDP and FSDP2 on gloo processes: the one-process run, whatever the ranks, the strategy and the interruptions."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from forked_ranks import in_ranks
from tests_support import TINY
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ouro_lab import records, run
from ouro_lab.compute.communication import sharded
from ouro_lab.compute.cost import stored_parameters
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop
from ouro_lab.study import Run, Study
from ouro_lab.training import callbacks, checkpoint
from ouro_lab.training.sharding import shard

STEPS = 6
OVERRIDES = [
    *TINY,
    "objective=stage_one",
    "trainer.precision=32-true",
    "trainer.compile=false",
    "trainer.val_every=4",
    f"budget.steps={STEPS}",
    "evaluation._target_=tests_support.Agreement",
    "data.val_size=5",  # no multiple of the ranks: some have fewer sequences than others
]
FSDP = "++trainer.strategy={_target_: ouro_lab.training.sharding.FSDP, sharded_checkpoints: %s}"
SHARDED, ONE_FILE, DDP = FSDP % "true", FSDP % "false", "trainer.strategy=ddp"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The unbroken run of one process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OURO_RUNS", str(tmp_path_factory.mktemp("one")))
        one = tiny()
        assert run.execute(one) == 0
        rows, final = results(one)
    yield rows, final


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks with sharded weights, of which the second was told to end in step 3."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OURO_RUNS", str(folder))
        patch.setattr(callbacks.Recorder, "on_train_batch_end", told_in_step(3, callbacks.Recorder.on_train_batch_end))
        assert in_ranks(2, lambda: run.execute(tiny(2, SHARDED))) == [128 + signal.SIGTERM, 0]
        assert records.read_state(tiny().directory)["state"] == "interrupted"
    return folder


def tiny(world: int = 1, *overrides: str) -> Run:
    return Study("p_hop", [*OVERRIDES, f"trainer.devices={world}", *overrides]).run("looped", 1e-2, 0)


def results(one: Run) -> tuple[list[dict], dict]:
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    return kept, records.read_final(one.directory)["metrics"]


def told_in_step(step: int, real):
    def tell(self, trainer, *rest) -> None:
        if trainer.global_step == step and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, trainer, *rest)

    return tell


def check_same(one: Run, expected: tuple[list[dict], dict]) -> None:
    rows, final = results(one)
    assert [row.keys() for row in rows] == [row.keys() for row in expected[0]]
    for mine, theirs in zip([*rows, final], [*expected[0], expected[1]], strict=True):
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=2e-4, abs=2e-4), name


@pytest.mark.parametrize(("world", "strategy"), [(4, DDP), (2, ONE_FILE), (1, SHARDED)])
def test_ranks_and_strategies_agree(world, strategy, expected):
    one = tiny(world, strategy)
    assert one.hash == tiny().hash
    assert in_ranks(world, lambda: run.execute(one)) == [0] * world
    check_same(one, expected)


@pytest.mark.parametrize(("world", "strategy"), [(1, "trainer.strategy=auto"), (4, SHARDED)])
def test_a_sharded_checkpoint_of_two_resumes_at_one_and_four(world, strategy, stopped, expected, monkeypatch, tmp_path):
    shutil.copytree(stopped, tmp_path / "resumed")
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "resumed"))
    one = tiny(world, strategy)
    assert checkpoint.newest(one.directory / "checkpoints").is_dir()
    assert in_ranks(world, lambda: run.execute(one)) == [0] * world
    check_same(one, expected)


@pytest.mark.parametrize(
    ("reshard", "narrow", "recompute"), [(True, False, False), (False, False, True), (True, True, False)]
)
def test_what_ranks_send_is_what_plan_counts(reshard, narrow, recompute):
    assert in_ranks(2, lambda: check_volume(reshard, narrow, recompute)) == [0, 0]


def check_volume(reshard: bool, narrow: bool, recompute: bool) -> None:
    """In a rank: the bytes of a step's collectives against the formula's."""
    rank = int(os.environ["LOCAL_RANK"])
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    config = ModelConfig(vocab_size=32, layers=2, loops=3, width=16, heads=2, recompute=recompute, attention="plain")
    module = OneStep(LoopedTransformer(config))
    shard(module, init_device_mesh("cpu", (2,)), reshard, narrow)
    with Traffic() as traffic, torch.autocast("cpu", torch.bfloat16, enabled=narrow):
        module.training_step(torch.zeros(2, 8, dtype=torch.long)).backward()
    stored = stored_parameters(config)
    blocks = stored.body + stored.norms - config.width  # the final norm's weight is in the other unit
    expected = sharded(blocks, stored.total - blocks, 2, config.loops, reshard=reshard, gather_bytes=2 if narrow else 4)
    assert traffic.gathered / 2 == pytest.approx(expected.gathered, rel=0.01)
    assert traffic.summed / 2 == pytest.approx(expected.summed, rel=0.01)
    torch.distributed.destroy_process_group()


class OneStep(torch.nn.Module):
    def __init__(self, backbone: LoopedTransformer) -> None:
        super().__init__()
        self.backbone = backbone

    def training_step(self, tokens: torch.Tensor) -> torch.Tensor:
        return LastLoop()(self.backbone.loop_states(tokens), self.backbone.head_weight, tokens)[0]

    def validation_step(self, tokens: torch.Tensor) -> None:
        self.training_step(tokens)


class Traffic(TorchDispatchMode):
    """Bytes of whole tensors that are gathered, and of whole gradients that are summed into shards."""

    gathered = summed = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        sizes = [x.numel() * x.element_size() for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]
        if "allgather" in str(function):
            self.gathered += max(sizes)
        elif "reduce_scatter" in str(function):
            self.summed += max(sizes)
        return function(*arguments, **(options or {}))


def test_shards_read_as_one_checkpoint(stopped):
    folder = next(stopped.glob("p_hop/*/checkpoints/step=00000003.ckpt"))
    content = checkpoint.load(folder)
    assert content["global_step"] == 3
    assert set(content["state_dict"]) == {f"backbone.{name}" for name in backbone().state_dict()}
    state = content["optimizer_states"][0]
    shapes = [
        tuple(state["state"][number]["exp_avg"].shape) for group in state["param_groups"] for number in group["params"]
    ]
    parameters = list(backbone().parameters())
    assert shapes == [tuple(p.shape) for p in parameters if p.dim() > 1] + [
        tuple(p.shape) for p in parameters if p.dim() < 2
    ]


def backbone() -> torch.nn.Module:
    from omegaconf import OmegaConf

    from ouro_lab.assembly import assemble

    return assemble(OmegaConf.create(tiny().config), "meta").backbone
