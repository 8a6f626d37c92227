"""Studies of a checkpoint that CKPT= names, from the command to the report, on a random one and files of our own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests_support import tiny_checkpoint, write_questions

from analysis import evidence, runs
from ouro_lab import __main__ as entry
from ouro_lab import checkpoint, launch, listing, records
from ouro_lab import run as run_module
from ouro_lab.check import check
from ouro_lab.compute.cost import forward_flops
from ouro_lab.compute.hardware import peak_flops
from ouro_lab.config import ConfigError, study_names
from ouro_lab.model import ouro
from ouro_lab.study import Study

RELEASED = [name for name in study_names() if name.startswith("released_")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", 2)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run in this process."""
    monkeypatch.setattr(launch._Pool, "_start", lambda self, run, devices: run_module.execute(run))
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)


def test_the_claims_that_need_weights_have_a_study_each() -> None:
    named = {claim for name in RELEASED for claim in Study(name).definition.claim}
    assert named == {*(f"C{n:02d}" for n in range(8, 15)), "C25", *(f"C{n}" for n in range(33, 37))}
    assert all(Study(name).config.init_from == "CKPT" for name in RELEASED)


@pytest.mark.parametrize("name", ["released_depth", "released_safety"])
def test_without_a_checkpoint_it_is_one_line(name: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPT", raising=False)
    assert entry.main(["run", name, "data.path=anything"]) == 2
    said = capsys.readouterr()
    how = f"make experiment NAME={name} CKPT=<folder in Ouro's Hugging Face layout>"
    assert said.err == f"error: CKPT is missing: needs weights; {how}\n"


def test_the_list_says_what_is_needed_and_what_it_would_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPT", raising=False)
    (said,) = listing.rows(["released_separation"])
    assert "claim C34" in said and "core-minutes here · CKPT is missing: needs weights" in said


def test_cost_is_of_the_checkpoints_own_shape_with_what_was_published(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    path = write_questions(tmp_path / "q.jsonl", ["harmful", "benign"], 10)
    study = Study("released_separation", [f"data.path={path}", "backbone.layers=2"])
    monkeypatch.setenv("CKPT", str(folder))
    parts = check(study)
    flops = 0.0
    for loops in (1, 4, 8):
        config = parts[f"loops_{loops}"].backbone.config
        assert (config.shape, config.width, config.gate) == (f"2⊗{loops}", 8, True)
        tokens = parts[f"loops_{loops}"].data.evaluation_tokens("test") * (1 + 5)  # the test fold, and all folds again
        flops += 5 * tokens * forward_flops(config, 256).total
    found = checkpoint.lines(study, parts)
    assert found[0] == f"cost of 2⊗1, 2⊗4, 2⊗8: {flops:.2g} FLOPs in 15 runs"
    assert f"{flops / (0.4 * peak_flops('H100')) / 3600:.2g} hours on one H100" in found[1]
    assert found[2].startswith("C34: Benign and harmful prompts lie further apart")
    assert "published: by eye (figure only) (Ouro, §7.1)" in found[2]
    assert checkpoint.lines(Study("p_hop"), parts) == []


def test_without_a_checkpoint_the_shape_is_the_released_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CKPT", raising=False)
    with torch.device("meta"):
        assert checkpoint.backbone(49_152, layers=48).config == ouro(48).config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.tokenizer=null", r"vocab_size = 49152: must be the checkpoint's 257"),
        ("backbone.layers=3", r"CKPT = .*: has 2 layers; must have 3 in this study"),
    ],
)
def test_another_checkpoint_than_is_meant_is_refused(override: str, message: str, folder: Path, monkeypatch) -> None:
    monkeypatch.setenv("CKPT", str(folder))
    with pytest.raises(ConfigError, match=message):
        check(Study("released_separation", ["backbone.layers=2", override]))


def test_a_study_runs_to_its_report_and_its_hash_needs_no_weights(
    folder: Path, tmp_path: Path, here, capsys, monkeypatch
) -> None:
    path = write_questions(tmp_path / "q.jsonl", ["harmful", "benign"], 10)
    mine = [
        f"data.path={path}",
        "backbone.layers=2",
        "tracking=none",
        "trainer.precision=32-true",
        "study.seeds=[0,1,2]",
        "data.folds=3",
    ]
    monkeypatch.setenv("CKPT", str(folder))
    missing = ["data.path=nowhere.jsonl", *mine[1:]]
    assert entry.main(["run", "released_separation", *missing]) == 2
    said = capsys.readouterr()
    assert said.err.startswith(
        "error: data.path = nowhere.jsonl: no such file; must be JSONL: 100 harmful and 100 benign"
    )
    assert said.err.count("\n") == 1
    assert "published: by eye" in said.out  # the cost and the paper's figure come first

    assert entry.main(["run", "released_separation", *mine]) == 0
    result = runs.load("released_separation")
    assert set(result.runs["state"]) == {"done"}
    by_fold = result.runs[result.runs["arm"] == "loops_4"]["final/separation/d_prime"]
    assert by_fold.nunique() == 3  # each seed is another part of the prompts
    note = records.read_note(records.runs_root() / "released_separation" / result.runs["id"][0])
    whole = Study("released_separation", mine)
    hashes = {run.hash for run in whole.expand()}
    identity = note["init_from"]
    (folder.parent / "moved").mkdir()
    moved = folder.rename(folder.parent / "moved" / "tiny")
    monkeypatch.setenv("CKPT", str(moved))
    assert {run.hash for run in Study("released_separation", mine).expand()} == hashes  # by what they are, not where
    assert len(identity) == 64
    monkeypatch.delenv("CKPT")
    assert Study("released_separation", mine).hash == whole.hash == result.study["hash"]
    assert evidence.state("released_separation").claim == ("C34",)


def test_another_checkpoint_makes_other_runs_of_the_same_study(tmp_path: Path, monkeypatch) -> None:
    path = write_questions(tmp_path / "q.jsonl", ["harmful", "benign"])
    found = []
    for layers in (1, 2):
        monkeypatch.setenv("CKPT", str(tiny_checkpoint(tmp_path / str(layers), layers)))
        study = Study("released_separation", [f"data.path={path}", "backbone.layers=null"])
        found.append((study.hash, study.run("loops_1", 0.0, 0).hash))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_a_checkpoint_without_a_tokenizer_is_one_line(tmp_path: Path, monkeypatch) -> None:
    from ouro_lab.interop import Trunk, export_trunk, open_trunk

    folder = tiny_checkpoint(tmp_path / "tiny")
    export_trunk(Trunk(open_trunk(folder).model, None, None, ""), tmp_path / "mute")
    monkeypatch.setenv("CKPT", str(tmp_path / "mute"))
    with pytest.raises(ConfigError, match=r"CKPT = .*mute: has no tokenizer.json"):
        checkpoint.tokenizer()


def test_positions_of_an_evaluation_are_charged_where_it_says_them() -> None:
    part = SimpleNamespace(cost={"tokens": 10}, data=None, backbone=SimpleNamespace(loops=2), evaluation=None)
    assert checkpoint._positions(part) == 10
    part.evaluation = SimpleNamespace(positions=lambda data, loops: 7 * loops)
    assert checkpoint._positions(part) == 24
