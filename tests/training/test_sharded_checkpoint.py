"""Shards of one process: what is incomplete or would execute code is refused in one line."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ouro_lab.training import checkpoint, sharded_checkpoint

TOUCHED = "touched"


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write(tmp_path / "checkpoints" / "step=00000004.ckpt", {"betas": (0.9, 0.95)})


def write(folder: Path, group: dict) -> Path:
    weight = torch.arange(6.0).view(2, 3)
    optimiser = {
        "state": {"backbone.a": {"exp_avg": weight / 2}},
        "param_groups": [{"params": ["backbone.a"], **group}],
    }
    dcp.save({"state_dict": {"backbone.a": weight}, "optimizer_0": optimiser}, checkpoint_id=folder, no_dist=True)
    torch.save({"global_step": 4}, folder / "meta.pt")
    return folder


def test_all_of_it_comes_back(shards):
    content = checkpoint.load(shards)
    assert content["global_step"] == 4
    assert torch.equal(content["state_dict"]["backbone.a"], torch.arange(6.0).view(2, 3))
    state = content["optimizer_states"][0]
    assert state["param_groups"] == [{"params": [0], "betas": (0.9, 0.95)}]
    assert torch.equal(state["state"][0]["exp_avg"], torch.arange(6.0).view(2, 3) / 2)
    assert list(checkpoint.backbone_weights(shards)) == ["a"]


@pytest.mark.parametrize("part", [".metadata", "meta.pt", "__0_0.distcp"])
@pytest.mark.parametrize("missing", [True, False])
def test_an_incomplete_one_is_set_aside_for_the_one_before(part, missing, shards, capsys):
    older = shards.with_name("step=00000002.ckpt")
    shutil.copytree(shards, older)
    path = shards / part
    path.unlink() if missing else path.write_bytes(path.read_bytes()[:-20] if part != "meta.pt" else b"")
    assert checkpoint.newest(shards.parent) == older
    assert f"{shards.name}: cannot be read" in capsys.readouterr().out
    assert not shards.exists()


def test_an_index_that_would_execute_code_is_refused(shards, tmp_path):
    (shards / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / TOUCHED)))
    for read in (checkpoint.load, checkpoint.verify):
        with pytest.raises(checkpoint.CheckpointError, match="its index names") as caught:
            read(shards)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / TOUCHED).exists()


def test_a_part_that_would_execute_code_is_refused(tmp_path):
    folder = write(tmp_path / "step=00000004.ckpt", {"lr": Evil(tmp_path / TOUCHED)})
    (tmp_path / TOUCHED).unlink(missing_ok=True)
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read"):
        checkpoint.load(folder)
    assert not (tmp_path / TOUCHED).exists()


def test_a_part_outside_of_the_folder_is_refused(shards):
    index = sharded_checkpoint._index(shards)
    for info in index.storage_data.values():
        info.relative_path = "../elsewhere"
    (shards.parent / "elsewhere").write_bytes(bytes(10_000))
    with (shards / ".metadata").open("wb") as file:
        pickle.dump(index, file)
    with pytest.raises(checkpoint.CheckpointError, match="missing or cut short"):
        checkpoint.load(shards)
