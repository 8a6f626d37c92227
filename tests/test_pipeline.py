"""Stages that start from each other: a chain equals what it is made of, whatever interrupts it, and its table."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ouro_lab import __main__ as entry
from ouro_lab import pipeline, records, run, stages, verbs
from ouro_lab.assembly import assemble
from ouro_lab.check import check, check_starts
from ouro_lab.config import ConfigError, build
from ouro_lab.study import Run, Study
from ouro_lab.training import callbacks, checkpoint

TEXT = ["data=sotu", "data.corpus={_target_: ouro_lab.data.TextFiles, unit: paragraph, path: %s}"]
ROWS = ["data.length=16", "data.batch_size=4"]
SMALL = ["backbone.layers=1", "backbone.loops=2", *ROWS]
PRETRAIN = ["backbone.layers=2", "backbone.loops=2", *ROWS, "data.ramp=[[64,2]]", "budget.steps=6"]
GO_ON = ["backbone.layers=4", "backbone.loops=2", *ROWS, "data.skip_tokens=320", "budget.steps=4"]
DIALOGUES = ["data=dialogue_file", "data.dialogues.path=%s", "data.length=96", "data.batch_size=2"]
SFT = ["backbone.layers=4", "backbone.loops=2", *DIALOGUES, "budget.steps=4"]
FIRST = [*TEXT, *PRETRAIN]
SECOND = [*TEXT, *GO_ON, "init_from={arm: first, layers: [0, 1, 0, 1], optimiser: carried}"]
TINY = [
    "backbone.width=16",
    "backbone.heads=2",
    "backbone.attention=plain",
    "data.val_tokens=256",
    "data.test_tokens=256",
    "trainer.val_every=2",
    "trainer.log_every=1",
    "trainer.precision=32-true",
    "optim.lr=1e-2",
    "tracking=none",
    "study.smoke=[]",
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small text and small dialogues."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "text.txt").write_text("\n\n".join(f"Line {i} says {i * i} and then {i % 7}." for i in range(300)))
    asked = [{"messages": _asked(i), "split": ("train", "train", "val", "test")[i % 4]} for i in range(40)]
    (folder / "dialogues.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return folder / "text.txt", folder / "dialogues.jsonl"


def _asked(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": str(i * i)}]


def study_of(files: tuple[Path, Path], **arms: list[str]) -> Study:
    """ouro_rehearsal's file with other arms, each a list of overrides, and everything tiny."""
    filled = {name: [item.replace("%s", str(files["dialogues" in item])) for item in arm] for name, arm in arms.items()}
    quoted = (f"{name}: [{', '.join(map(json.dumps, arm))}]" for name, arm in filled.items())
    return Study("ouro_rehearsal", ["~study.arms", f"+study.arms={{{', '.join(quoted)}}}", *TINY])


def three_stages(files: tuple[Path, Path]) -> Study:
    """As a new process finds it: composed once here, its runs looked up anew."""
    study = composed(files)
    study._made.clear()
    return study


@cache  # half a second an arm
def composed(files: tuple[Path, Path]) -> Study:
    return study_of(files, first=FIRST, second=SECOND, third=[*SFT, "init_from={arm: second}"])


def finish(study: Study) -> list[Run]:
    """As the launcher does, in this process: what may run, until nothing may."""
    while todo := study.todo():
        assert [run.execute(one) for one in todo] == [0] * len(todo)
    return study.expand()


def end(one: Run) -> dict[str, torch.Tensor]:
    return checkpoint.backbone_weights(checkpoint.newest(one.directory / "checkpoints"))


@pytest.fixture(scope="module")
def done(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken chain."""
    folder = tmp_path_factory.mktemp("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OURO_RUNS", str(folder))
        patch.setenv("OURO_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        finish(three_stages(files))
    return folder


@pytest.fixture
def chain(files: tuple[Path, Path], done: Path) -> list[Run]:
    shutil.copytree(done, records.runs_root())
    return three_stages(files).expand()


def outcome(one: Run) -> tuple[dict, list[dict], dict]:
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    return records.read_final(one.directory)["metrics"], kept, end(one)


def same(mine: tuple[dict, list[dict], dict], theirs: tuple[dict, list[dict], dict]) -> bool:
    weights = all(torch.equal(mine[2][name], value) for name, value in theirs[2].items())
    return mine[:2] == theirs[:2] and mine[2].keys() == theirs[2].keys() and weights


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = callbacks.Recorder.on_train_batch_end

    def stop(self, trainer, module, *rest):
        if trainer.global_step == step:
            raise KeyboardInterrupt
        return real(self, trainer, module, *rest)

    monkeypatch.setattr(callbacks.Recorder, "on_train_batch_end", stop)


def test_a_stage_waits_for_the_one_before_it_and_its_run_is_known_before(files):
    study = three_stages(files)
    runs = study.expand()
    assert [one.arm for one in runs] == ["first", "second", "third"]
    assert [one.arm for one in study.todo()] == ["first"]
    with pytest.raises(ConfigError, match=r"of seed 0 is not done \(to do\); run make experiment NAME=ouro_rehearsal"):
        run.execute(runs[1])
    assert runs[1].start.identity.endswith("layers [0, 1, 0, 1] optimiser carried")
    assert runs[2].hash != study_of(files, second=[*TEXT, *GO_ON], third=[*SFT]).run("third", 1e-2, 0).hash


def test_status_says_which_run_a_stage_waits_for(files, capsys):
    study = three_stages(files)
    first, second, _ = study.expand()
    assert verbs.status("ouro_rehearsal", study.overrides) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[-1] for line in lines[1:3]] == [
        f"waits for ouro_rehearsal/{one.id}" for one in (first, second)
    ]
    assert "waits" not in lines[0]


def test_a_chain_interrupted_three_times_equals_an_unbroken_one_to_the_last_bit(files, chain, monkeypatch, tmp_path):
    expected = [outcome(one) for one in chain]
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "again"))
    # In the ramp and after it, between two stages (the second has begun and kept nothing), before the end.
    for stage, step in ((0, 1), (0, 3), (1, 1), (2, 3)):
        study = three_stages(files)
        while study.todo()[0].arm != ("first", "second", "third")[stage]:
            assert run.execute(study.todo()[0]) == 0
        with monkeypatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                run.execute(study.todo()[0])
    found = [outcome(one) for one in finish(three_stages(files))]
    assert all(same(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_each_stage_starts_with_the_weights_that_the_one_before_ended_with(chain):
    first, second = end(chain[0]), chain[1].start.weights()
    for place, layer in enumerate([0, 1, 0, 1]):
        name = "self_attn.q_proj.weight"
        assert torch.equal(second[f"layers.{place}.{name}"], first[f"layers.{layer}.{name}"])
    assert all(torch.equal(value, chain[2].start.weights()[name]) for name, value in end(chain[1]).items())
    # What the run itself measured at step 0: the loss of these weights on the stage's own validation set.
    parts = assemble(OmegaConf.create(chain[2].config))
    parts.backbone.load_state_dict(end(chain[1]))
    total = count = 0.0
    for batch in parts.data.evaluation_batches("val"):
        with torch.no_grad():
            logits = parts.backbone(batch["tokens"], batch["documents"])
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")
        )
        count += int((batch["targets"] != -100).sum())
    row = records.read_metrics(chain[2].directory / "metrics.jsonl")[0]
    assert row["step"] == 0
    assert row["val/loss"] == pytest.approx(total / count, rel=1e-5)


def test_layers_may_be_copied_side_by_side_too(files):
    pair = "init_from={arm: first, layers: [0, 0, 1, 1]}"
    runs = finish(study_of(files, first=[*TEXT, *PRETRAIN], second=[*TEXT, *GO_ON, pair]))
    first, second = end(runs[0]), runs[1].start.weights()
    for place, layer in enumerate([0, 0, 1, 1]):
        assert torch.equal(second[f"layers.{place}.mlp.up_proj.weight"], first[f"layers.{layer}.mlp.up_proj.weight"])


def test_a_schedule_that_goes_on_with_carried_moments_is_one_longer_stage(files):
    half = [*TEXT, *SMALL, "budget.steps=3"]
    carried = "init_from={arm: half, optimiser: carried}"
    rest = [*half, "data.skip_tokens=192"]
    arms = {"whole": [*TEXT, *SMALL, "budget.steps=6"], "half": half, "rest": [*rest, carried]}
    runs = {one.arm: one for one in finish(study_of(files, **arms, afresh=[*rest, "init_from={arm: half}"]))}
    assert all(torch.equal(end(runs["rest"])[name], value) for name, value in end(runs["whole"]).items())
    assert not all(torch.equal(end(runs["afresh"])[name], value) for name, value in end(runs["whole"]).items())


def test_fine_tuning_by_the_last_loop_alone_leaves_the_gate_as_it_is(files, chain):
    last = [*SFT, "init_from={arm: second}", "objective=last_loop", "backbone.gate=true"]
    third = finish(study_of(files, first=FIRST, second=SECOND, third=last))[2]
    before, after = end(chain[1]), end(third)
    same_names = [name for name, value in after.items() if torch.equal(value, before[name])]
    assert same_names == ["early_exit_gate.weight", "early_exit_gate.bias"]
    assert third.hash != chain[2].hash


def test_copied_layers_take_copied_moments(chain):
    first = checkpoint.backbone_moments(checkpoint.newest(chain[0].directory / "checkpoints"))
    second, name = chain[1].start.moments(), "mlp.up_proj.weight"
    assert torch.equal(second[f"layers.2.{name}"]["exp_avg_sq"], first[f"layers.0.{name}"]["exp_avg_sq"])
    assert float(second["norm.weight"]["step"]) == 6
    assert chain[2].start.moments() == {}


def test_the_table_says_what_each_stage_did(files, chain):
    study = three_stages(files)
    text = pipeline.report(study)
    for one in chain:
        rows = records.read_metrics(one.directory / "metrics.jsonl")
        first, last = rows[0]["val/loss"], records.read_final(one.directory)["metrics"]["final/val/loss"]
        line = next(line for line in text.splitlines() if f"| {one.arm} |" in line)
        assert f"| {first:.3f} | {last:.3f} | {'yes' if last <= first else 'no'} |" in line
    first = next(line for line in text.splitlines() if "| first |" in line)
    assert "| 2⊗2 |" in first
    assert "| 0.05 |" in first  # β and RoPE's base, left at their defaults
    assert "| 10,000 |" in first
    assert "| 32 → 64 |" in first  # tokens a step, in the ramp and after it
    assert "| 320 |" in first  # 2 steps of 2 rows, 4 of 4
    rows = records.read_metrics(chain[0].directory / "metrics.jsonl")
    assert [row.get("total/tokens") for row in rows] == [None, 32, 64, 128, 192, 256, 320]
    shutil.rmtree(records.runs_root())
    assert "unfinished: first, second, third" in pipeline.report(study)


def test_what_follows_a_stage_that_diverged_is_known_and_not_run(files, capsys):
    study = three_stages(files)
    first = study.expand()[0]
    records.begin(first.directory, first.identity(), first.config)
    records.finish(first.directory, "diverged", "val/loss = nan")
    assert study.todo() == []
    assert [one.arm for one in stages.blocked(study)] == ["second", "third"]
    assert verbs.status("ouro_rehearsal", study.overrides) == 0
    assert f"blocked by ouro_rehearsal/{first.id}" in capsys.readouterr().out


def test_a_start_that_leads_nowhere_is_one_line(files):
    wrong = {
        "one": (
            "{arm: other}",
            "ouro_rehearsal/other ← ouro_rehearsal/one ← ouro_rehearsal/other: an arm cannot start",
        ),
        "other": ("{arm: one}", "ouro_rehearsal/one ← ouro_rehearsal/other ← ouro_rehearsal/one: an arm cannot start"),
        "itself": ("{arm: itself}", "ouro_rehearsal/itself ← ouro_rehearsal/itself: an arm cannot start from itself"),
        "typo": ("{arm: ones}", "arm = ones: not an arm of ouro_rehearsal; did you mean one"),
        "kept": ("{arm: plain, optimiser: kept}", "init_from.optimiser = kept: must be one of carried, fresh"),
    }
    arms = {arm: [*TEXT, *SMALL, "budget.steps=2", f"init_from={start}"] for arm, (start, _) in wrong.items()}
    study = study_of(files, plain=[*TEXT, *SMALL, "budget.steps=2"], **arms)
    for arm, (_, message) in wrong.items():
        with pytest.raises(ConfigError, match=message) as caught:
            study.run(arm, 1e-2, 0)
        assert "\n" not in str(caught.value)


def test_a_stage_that_cannot_take_the_weights_is_refused_before_anything_runs(files):
    narrow = study_of(files, first=[*TEXT, *PRETRAIN], second=[*TEXT, *GO_ON, "init_from={arm: first}"])
    with pytest.raises(ConfigError, match=r"arm second: init_from = .*: lacks layers\.2\."):
        check_starts(narrow, check(narrow))


def test_moments_that_are_not_there_are_one_line(files, tmp_path):
    study = study_of(files, one=[*TEXT, *SMALL, "budget.steps=2"])
    weights = {
        f"backbone.{name}": value for name, value in assemble(study.arm_configs["one"]).backbone.state_dict().items()
    }
    torch.save({"state_dict": weights}, tmp_path / "bare.ckpt")
    start = f"init_from={{from: {tmp_path}/bare.ckpt, optimiser: carried}}"
    with pytest.raises(ConfigError, match=r"bare\.ckpt: has no optimiser state to carry; set optimiser: fresh"):
        run.execute(study_of(files, one=[*TEXT, *SMALL, "budget.steps=2", start]).run("one", 1e-2, 0))


class InOrder:
    """A launcher that runs what it is given in this process, and remembers it."""

    ran: list[str] = []

    def room(self, accelerator: str, devices: int) -> int:
        return 1

    def execute(self, todo, everything, watch) -> None:
        while waiting := todo():
            assert [run.execute(one) for one in waiting] == [0] * len(waiting)
            self.ran.extend(one.arm for one in waiting)


def test_the_verb_runs_what_is_left_in_order_and_writes_the_table(files, chain, monkeypatch, capsys):
    for one in chain[1:]:
        shutil.rmtree(one.directory)
    monkeypatch.setattr(InOrder, "ran", [])
    monkeypatch.setattr(verbs, "build", lambda node, path: InOrder() if path == "launcher" else build(node, path))
    monkeypatch.setattr(verbs, "_report", lambda study, store: None)  # of which other tests tell
    assert pipeline.run("ouro_rehearsal", three_stages(files).overrides) == 0
    assert InOrder.ran == ["second", "third"]
    written = (records.runs_root() / "ouro_rehearsal" / "report" / "pipeline.md").read_text()
    assert written in capsys.readouterr().out
    assert "Held-out loss at each stage's end no higher than at its start: " in written


def test_a_study_without_stages_is_refused_and_nothing_runs(capsys):
    assert entry.main(["pipeline", "p_hop"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: NAME = p_hop: no arm starts from another of its own; run make exp"
    )
    assert not (records.runs_root() / "p_hop").exists()
