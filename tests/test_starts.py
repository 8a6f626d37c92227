"""What a run starts from: what fits, what its hash covers, and one line for everything else."""

import shutil
from pathlib import Path

import pytest
import torch
from tests_support import BARE, TINY

from ouro_lab import rates, records, starts
from ouro_lab.assembly import assemble
from ouro_lab.check import check, check_starts
from ouro_lab.config import ConfigError
from ouro_lab.interop.ouro import write_ouro
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.run import execute
from ouro_lab.starts import Start, find
from ouro_lab.study import Run, Study

SMALL = {"vocab_size": 11, "layers": 1, "loops": 2, "width": 8, "heads": 2, "attention": "plain"}


def model(seed: int = 0, **changes) -> LoopedTransformer:
    made = LoopedTransformer(ModelConfig(**SMALL | changes))
    made.initialise(seed)
    return made


def as_trunk(of: LoopedTransformer, folder: Path) -> Path:
    """In the released layout; what was there before goes."""
    shutil.rmtree(folder, ignore_errors=True)
    write_ouro(folder, of)
    return folder


def as_checkpoint(of: LoopedTransformer, path: Path, drop: str = "", extra: str = "") -> Path:
    weights = {f"backbone.{name}": value for name, value in of.state_dict().items() if name != drop}
    torch.save({"state_dict": weights | ({f"backbone.{extra}": torch.zeros(2)} if extra else {})}, path)
    return path


def logits(of: LoopedTransformer) -> torch.Tensor:
    return of(torch.arange(10).view(2, 5) % 11).detach()


def test_a_trunk_folder_gives_its_weights_and_a_new_gate_stays_as_initialised(tmp_path):
    source, target = model(1), model(2, gate=True)
    start = find(str(as_trunk(source, tmp_path / "trunk")), 0)
    start.load_into(target)
    assert torch.equal(logits(target), logits(source))
    assert torch.equal(target.early_exit_gate.weight, model(2, gate=True).early_exit_gate.weight)


def test_a_checkpoint_file_gives_its_weights(tmp_path):
    source, target = model(1, gate=True), model(2, gate=True)
    find(str(as_checkpoint(source, tmp_path / "some.ckpt")), 0).load_into(target)
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("source", "target", "change", "message"),
    [
        ({"gate": True}, {}, {}, "has an exit gate, the backbone none; set backbone.gate=true"),
        ({}, {}, {"drop": "norm.weight"}, "lacks norm.weight$"),
        ({}, {"layers": 2}, {}, "lacks layers.1.self_attn.q_proj.weight and 10 more"),
        ({}, {}, {"extra": "adapter"}, "has, unlike the backbone, adapter$"),
        ({"gate": True}, {"gate": True}, {"drop": "early_exit_gate.bias"}, "lacks early_exit_gate.bias$"),
        ({"ffn_width": 20}, {}, {}, r"mlp\.\w+_proj.weight is \[.*\], the backbone's is \["),
    ],
    ids=str,
)
def test_weights_that_do_not_fit_are_refused_by_key_and_change_nothing(source, target, change, message, tmp_path):
    one, path = model(2, **target), as_checkpoint(model(1, **source), tmp_path / "some.ckpt", **change)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as caught:
        find(str(path), 0).load_into(one)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in one.state_dict().items())


def test_the_digest_is_of_content_and_not_of_place(tmp_path):
    first = as_trunk(model(1), tmp_path / "a")
    shutil.copytree(first, tmp_path / "b")
    other = as_trunk(model(2), tmp_path / "c")
    found = [starts.digest(folder) for folder in (first, tmp_path / "b", other)]
    assert found[0] == found[1] != found[2]
    as_trunk(model(2), first)
    assert starts.digest(first) == found[2]


def one_arm(*overrides: str, arm: str = "'backbone=looped'") -> Study:
    tiny = [item for item in TINY if "contrasts" not in item]
    return Study("p_hop", [*tiny, *BARE, f"+study.arms={{one: [{arm}]}}", *overrides])


def test_a_changed_trunk_changes_the_runs_and_the_studys_hash(tmp_path):
    def hashes(seed: int, where: str) -> tuple[str, str]:
        study = one_arm(f"init_from={as_trunk(model(seed), tmp_path / where)}", "study.seeds=[0]")
        return study.expand()[0].hash, study.hash

    first = hashes(1, "a")
    assert hashes(1, "elsewhere")[0] == first[0]
    changed = hashes(2, "a")
    assert changed[0] != first[0]
    assert changed[1] != first[1]


def test_a_damaged_trunk_is_one_line_that_names_it(tmp_path):
    path = as_trunk(model(1), tmp_path / "a") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ConfigError, match=r"init_from = .*a: .*model\.safetensors") as caught:
        find(str(tmp_path / "a"), 0)
    assert "\n" not in str(caught.value)


def test_an_arm_may_name_a_trunk_by_seed(tmp_path):
    for seed in (0, 1, 2):
        as_trunk(model(seed), tmp_path / f"seed_{seed}")
    study = one_arm(arm=f"'backbone=looped','init_from={tmp_path}/seed_${{seed}}'")
    assert [run.start.path.name for run in study.expand()] == ["seed_0", "seed_1", "seed_2"]
    assert [run.config["init_from"] for run in study.expand()] == [f"{tmp_path}/seed_{seed}" for seed in (0, 1, 2)]
    shutil.rmtree(tmp_path / "seed_2")
    with pytest.raises(ConfigError, match=r"seed_2: neither a checkpoint, a trunk folder nor a run under"):
        one_arm(arm=f"'backbone=looped','init_from={tmp_path}/seed_${{seed}}'").expand()


def test_an_arm_of_another_study_is_its_run_of_the_same_seed_known_before_it_is_done():
    named = {"study": "p_hop_quick", "arm": "looped"}
    run = Study("p_hop_quick").run("looped", 8e-3, 1)
    study = one_arm("init_from={study: p_hop_quick, arm: looped}", "study.seeds=[1]")
    before, known = study.expand()[0], study.hash
    with pytest.raises(ConfigError, match=r"seed 1 is not done \(to do\); run make experiment NAME=p_hop_quick"):
        before.start.weights()
    with pytest.raises(ConfigError, match=r"^p_hop: arm one: .*seed 1 is not done \(to do\)"):
        check_starts(study, {})
    records.begin(run.directory, run.identity(), run.config)
    records.finish(run.directory, "done")
    assert find(named, 1) == Start(run.directory, f"p_hop_quick/{run.id}")
    with pytest.raises(ConfigError, match=r"has no run of seed 7; its seeds are \[0, 1, 2\]"):
        find(named, 7)
    study = one_arm("init_from={study: p_hop_quick, arm: looped}", "study.seeds=[1]")
    assert study.expand()[0].start.identity == before.start.identity == f"p_hop_quick/{run.id}"
    assert (study.expand()[0].id, study.hash) == (before.id, known)
    assert study.expand()[0].hash != one_arm("study.seeds=[1]").expand()[0].hash


def test_seeds_that_wait_for_a_sweep_are_checked_before_it():
    tiny = [item for item in TINY if not item.startswith(("optim.lr", "~study.contrasts"))]
    grid = "study.lr={grid: [1e-3, 2e-3], seeds: [0], metric: val/loss}"
    start = ["+study.arms={one: ['backbone=looped']}", "init_from={study: p_hop_quick, arm: looped}"]
    study = Study("p_hop", [*tiny, *BARE, *start, "study.seeds=[1]", grid])
    source = Study("p_hop_quick").run("looped", 8e-3, 0)
    records.begin(source.directory, source.identity(), source.config)
    records.finish(source.directory, "done")
    as_checkpoint(assemble(study.arm_configs["one"]).backbone, newest_of(source))
    with pytest.raises(ConfigError, match=r"^p_hop: arm one: .*seed 1 is not done \(to do\)"):
        check_starts(study, check(study))


def newest_of(run: Run) -> Path:
    """Where its newest checkpoint lies."""
    folder = run.directory / "checkpoints"
    folder.mkdir(parents=True)
    return folder / "step=1.ckpt"


def test_a_start_that_is_not_ready_costs_no_attempt():
    run = one_arm("init_from={study: p_hop_quick, arm: looped}", "study.seeds=[1]").expand()[0]
    with pytest.raises(ConfigError, match=r"seed 1 is not done \(to do\); run make experiment NAME=p_hop_quick"):
        execute(run)
    assert records.read_state(run.directory) is None


def test_a_rate_that_is_still_swept_names_the_command(monkeypatch):
    monkeypatch.setattr(rates, "ROOT", Path("/nowhere"))
    with pytest.raises(ConfigError, match=r"still being swept; run make experiment NAME=p_hop_lr"):
        find({"study": "p_hop_lr", "arm": "looped"}, 0)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"study": "p_hop_lr", "arm": "looped"}, r"arm: looped}: has no run of seed 0; its seeds are \[\]"),
        ({"study": "p_hop_quick", "arm": "lopped"}, "arm = lopped: not an arm of p_hop_quick; did you mean looped"),
        ({"study": "p_hop_quik", "arm": "looped"}, "study p_hop_quik: no such file.*did you mean p_hop_quick"),
        ({"arm": "looped"}, "must be a path, a run, or {study: …, arm: …}"),
        ({"study": "p_hop_quick"}, "must be a path, a run, or {study: …, arm: …}, {arm: …}, {from: …} or {package: …}"),
        ({"from": "nowhere"}, "init_from = nowhere: neither a checkpoint"),
        ("nowhere/at-all", "init_from = nowhere/at-all: neither a checkpoint"),
    ],
    ids=str,
)
def test_what_is_not_there_is_one_line(named, message):
    with pytest.raises(ConfigError, match=message) as caught:
        find(named, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layers", "message"), [([0, 2], "has layers 0 … 0"), ("twice", "must be a list of layers"), ([], "must be a list")]
)
def test_layers_that_are_not_there_are_refused(layers, message, tmp_path):
    named = {"from": str(as_trunk(model(1), tmp_path / "trunk")), "layers": layers}
    with pytest.raises(ConfigError, match=message):
        find(named, 0).load_into(model(1, layers=2))


@pytest.mark.parametrize("layers", [[0, 1, 0, 1], [0, 0, 1, 1]], ids=["stacked", "interleaved"])
def test_a_stack_is_made_deeper_by_copies_of_its_layers(layers, tmp_path):
    source, deep = model(1, layers=2, gate=True), model(2, layers=4, gate=True)
    named = {"from": str(as_trunk(source, tmp_path / "trunk")), "layers": layers}
    start = find(named, 0)
    start.load_into(deep)
    for place, layer in enumerate(layers):
        kept = source.layers[layer].state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in deep.layers[place].state_dict().items())
    assert torch.equal(deep.norm.weight, source.norm.weight)
    plain = find(named["from"], 0)
    assert len({start.identity, plain.identity, find(named | {"layers": [1, 0, 1, 0]}, 0).identity}) == 3


def test_a_stack_laid_out_once_more_without_a_norm_between_is_the_loop(tmp_path):
    """2⊗2 whose loops pass no norm is 4⊗1 of the same layers twice."""
    source, deep = model(1, layers=2, norm_between_loops=False), model(2, layers=4, loops=1)
    path = as_checkpoint(source, tmp_path / "some.ckpt")
    find({"from": str(path), "layers": [0, 1, 0, 1]}, 0).load_into(deep)
    assert torch.allclose(logits(deep), logits(source), atol=1e-6)


def test_a_changed_file_of_ones_own_changes_the_runs_hash(tmp_path):
    def found(text: str) -> str:
        (tmp_path / "mine.csv").write_text(text)
        keep = [item for item in TINY if "contrasts" not in item and not item.startswith("data.task")]
        arm = f"'backbone=looped','data=table','data.task.path={tmp_path}/mine.csv'"
        return Study("p_hop", [*keep, *BARE, f"+study.arms={{one: [{arm}]}}", "study.seeds=[0]"]).expand()[0].hash

    rows = "".join(f"{a}+{b},{a + b}\n" for a in range(9) for b in range(9))
    first = found(f"prompt,answer\n{rows}")
    assert found(f"prompt,answer\n{rows}9+9,18\n") != first
    assert found(f"prompt,answer\n{rows}") == first
