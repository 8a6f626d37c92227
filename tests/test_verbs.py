"""The verbs as a person meets them: one line for bad input, what list and status say, what evidence refuses."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests_support import TINY

from ouro_lab import __main__ as entry
from ouro_lab import launch, records, tracking_store, verbs
from ouro_lab import run as run_module
from ouro_lab.study import Run, Study

QUIET = [*TINY, "study.seeds=[0]", "tracking=none"]

# A backbone of a user's own: one recurrent layer, applied `loops` times, that knows nothing of this project.
OWN = """
import torch
from torch import nn


class State:
    def __init__(self, hidden):
        self.hidden, self.gate_logit = hidden, None


class Gru(nn.Module):
    def __init__(self, vocab_size: int, width: int = 8, loops: int = 2) -> None:
        super().__init__()
        self.loops = loops
        self.embedding = nn.Embedding(vocab_size, width)
        self.layer = nn.GRU(width, width, batch_first=True)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    @property
    def head_weight(self):
        return self.head.weight

    def loop_states(self, tokens, documents=None):
        hidden = self.embedding(tokens)
        for _ in range(self.loops):
            hidden = self.mix(self.layer(hidden)[0])
            yield State(hidden)
"""


def in_process(self: launch._Pool, run: Run, devices: int) -> None:
    """Executes the run here, where starting a process would cost seconds of imports."""
    run_module.execute(run)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch._Pool, "_start", in_process)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)


def files_of_runs() -> list[str]:
    """What a refused command may not leave: anything but locks and empty folders."""
    root = records.runs_root()
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock"]


BAD = {
    "unknown study": (["run", "p_hopp"], "did you mean p_hop?"),
    "no name": (["run"], "NAME: missing"),
    "unknown verb": (["runn", "p_hop"], "did you mean run?"),
    "misspelt key": (["run", "p_hop", *QUIET, "optim.weight_decai=0.1"], "optim.weight_decai: unknown key; did"),
    "misspelt section": (["run", "p_hop", *QUIET, "optimm.lr=1"], "optimm"),
    "malformed override": (["run", "p_hop", *QUIET, "study.seeds=[0"], "override study.seeds=[0: cannot be read"),
    "no value": (["run", "p_hop", *QUIET, "budget.steps"], "budget.steps"),
    "no loops": (["run", "p_hop", *QUIET, "backbone.loops=0"], "backbone.loops = 0: must be an integer ≥ 1"),
    "no batch": (["run", "p_hop", *QUIET, "data.batch_size=0"], "batch_size = 0"),
    "no steps": (["run", "p_hop", *QUIET, "budget.steps=0"], "steps"),
    "no slots": (["run", "p_hop", *QUIET, "launcher.slots=0"], "launcher.slots = 0"),
    "seeds twice": (["run", "p_hop", *TINY, "study.seeds=[1,1]"], "study.seeds = [1, 1]: must be different"),
    "unfair slices": (["run", "p_hop", *QUIET, "trainer.accumulate=3"], "batch_size = 8: must be a multiple"),
    "no rate": (["run", "p_hop", *QUIET, "optim.schedule.warmup=2"], "optim.schedule.warmup = 2"),
    "no control": (["run", "p_hop", *QUIET, "study.positive_control.arm=loped"], "study.positive_control.arm = loped"),
    "no seeds": (["run", "p_hop", *TINY, "study.seeds=3"], "study.seeds"),
    "val_every": (["run", "p_hop", *QUIET, "trainer.val_every=0"], "trainer.val_every = 0"),
    "an arm's key": (["run", "p_hop", *QUIET, "backbone=iso_flop"], "backbone is set by arm looped"),
    "mismatch": (["run", "p_hop", *QUIET, "study.contrasts.cost_of_tying.equal=[parameters]"], "cost_of_tying"),
    "no rates": (["run", "p_hop", "study.lr.from=nowhere"], "study.lr.from = nowhere: no finished sweep"),
    "match takes no budget": (["match", "p_hop", "--budget=3"], "match: takes no --budget; only run does"),
    "status of nothing": (["status", "p_hopp"], "did you mean p_hop?"),
    "evidence of nothing": (["evidence", "p_hopp"], "p_hop"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(case, capsys):
    arguments, message = BAD[case]
    refused(arguments, message, capsys)


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert entry.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error:")
    assert message in lines[0]
    assert files_of_runs() == []


def text(path: Path | str, *more: str) -> list[str]:
    arguments = ["run", "aa_text", "data=text_file", f"data.corpus.path={path}", "tracking=none", "backbone.width=16"]
    return [*arguments, "data.tokenizer.vocab_size=300", "trainer.precision=32-true", *more]


def test_a_missing_or_empty_corpus_is_one_line(tmp_path, capsys):
    refused(text(tmp_path / "none.txt"), "none.txt: no such file", capsys)
    (tmp_path / "empty.txt").write_text("")
    refused(text(tmp_path / "empty.txt"), "holds no text", capsys)
    (tmp_path / "bytes.txt").write_bytes(bytes(range(128, 256)))
    refused(text(tmp_path / "bytes.txt"), "cannot be read as UTF-8", capsys)


def test_a_batch_that_packing_cannot_fill_is_one_line(tmp_path, capsys):
    (tmp_path / "small.txt").write_text("\n\n".join(f"Paragraph number {i} of a small file." for i in range(60)))
    refused(text(tmp_path / "small.txt", "data.batch_size=4096", "budget={steps: 2, tokens: null}"), "batch", capsys)


def test_a_corrupt_checkpoint_is_one_line_that_names_the_file(capsys):
    one = Study("p_hop", QUIET).expand()[0]
    folder = one.directory / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step=00000004.ckpt").write_bytes(b"PK\x03\x04 torn")
    assert run_module.main([*one.command]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: checkpoint ")
    assert "step=00000004.ckpt: cannot be read" in lines[0]
    assert (folder / "step=00000004.ckpt").read_bytes() == b"PK\x03\x04 torn"


@pytest.fixture
def clean_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tree of the checkout is whatever it is while one works."""
    fake_tree(monkeypatch, "")


def fake_tree(monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    real = subprocess.run

    def run(command: list[str], *rest, **options) -> subprocess.CompletedProcess:
        if command[:2] == ["git", "status"]:
            return subprocess.CompletedProcess(command, 0, answer, "")
        return real(command, *rest, **options)

    monkeypatch.setattr(verbs.subprocess, "run", run)


def test_evidence_refuses_a_dirty_tree(monkeypatch, capsys):
    fake_tree(monkeypatch, " M ouro_lab/run.py\n")
    refused(["evidence", "aa_p_hop"], "the tree is not clean (M ouro_lab/run.py)", capsys)


def test_evidence_refuses_an_unfinished_study(clean_tree, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(verbs, "RESULTS", tmp_path / "results")
    refused(["evidence", "aa_p_hop"], "10 runs unfinished", capsys)
    assert not (tmp_path / "results").exists()


def test_status_counts_every_state(capsys):
    study = Study("p_hop", [*TINY, "tracking=none"])
    done, diverged, failed, running, retried, *_ = study.expand()
    ends = ((done, "done", 1), (diverged, "diverged", 1), (failed, "failed", 3), (retried, "failed", 1))
    for run, state, attempts in ends:
        for _ in range(attempts):
            records.begin(run.directory, run.identity(), run.config)
            records.finish(run.directory, state, "because")
    records.begin(running.directory, running.identity(), running.config)
    old = Study("p_hop", [*TINY, "budget.steps=13"]).expand()[0]
    records.begin(old.directory, old.identity(), old.config)
    assert entry.main(["status", "p_hop", *TINY, "tracking=none"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("p_hop: 1 done, 1 running, 1 diverged, 1 failed, 5 to do, 1 stale; about ")
    assert any(line.split()[:2] == ["stale", old.id] for line in lines)
    assert any(line.split()[0] == "failed" and "because" in line for line in lines)


def test_match_prints_arms_of_every_regime(capsys):
    assert entry.main(["match", "p_hop", "study.lr=null"]) == 0
    said = capsys.readouterr().out
    assert "# p_hop: looped 2⊗3, 2,000 steps, 1 supervised" in said
    assert "\nmore_tokens: [backbone=iso_parameter, budget.steps=6000]" in said
    assert "\nwider: [backbone=iso_parameter, backbone.width=112]" in said
    assert "\n# wall_clock: no formula knows seconds; python -m ouro_lab match NAME --timed=7" in said
    heads = ["study.lr=null", "objective=mean_over_loops", "study.contrasts.cost_of_tying.equal=[tokens]"]
    assert entry.main(["match", "p_hop", *heads, "--unique=1e6"]) == 0
    said = capsys.readouterr().out
    assert "\ndeep_supervised: [backbone=iso_flop, backbone.read_out_every=2]" in said
    assert "1,000,000 unique tokens: looped 6.27 epochs" in said


def test_match_measures_steps_where_it_is_asked_to(capsys):
    assert entry.main(["match", "p_hop", *QUIET, "--timed=1"]) == 0
    found = re.search(
        r"\nwall_clock: \[backbone=iso_parameter, budget.steps=(\d+)\].*takes ([\d.]+) × one of 2⊗1 here",
        capsys.readouterr().out,
    )
    assert int(found[1]) == pytest.approx(12 * float(found[2]), abs=0.51 + 0.01 * 12 * float(found[2]))
    refused(
        ["match", "p_hop", *QUIET, "trainer=gpu", "--timed=1"], "match: --timed measures a CPU; trainer.acc", capsys
    )
    refused(["match", "p_hop", "--timed=none"], "match: --timed = none: must be a number of rounds ≥ 1", capsys)


def test_a_store_that_does_not_answer_is_one_warning_and_the_study_finishes(quick, caplog, monkeypatch):
    monkeypatch.setattr(tracking_store, "_warned", set())
    overrides = [*TINY, "study.seeds=[0]", "tracking.uri=http://127.0.0.1:9"]
    assert entry.main(["run", "p_hop", *overrides]) == 0
    warnings = [record.getMessage() for record in caplog.records if record.name == tracking_store.__name__]
    assert len(warnings) == 1
    assert warnings[0].startswith("tracking store http://127.0.0.1:9: ")
    study = Study("p_hop", overrides)
    assert {run.state for run in study.expand()} == {"done"}
    assert (records.runs_root() / "p_hop" / "report" / "report.md").is_file()


def run_without_report(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(verbs, "_report", lambda *rest: None)
        assert entry.main(["run", "p_hop", *overrides]) == 0


def test_a_study_moved_without_its_checkpoints_runs_what_is_missing_and_nothing_else(quick, tmp_path, monkeypatch):
    run_without_report(monkeypatch, *QUIET)
    here, there = records.runs_root() / "p_hop", tmp_path / "there" / "p_hop"
    missing, *kept = Study("p_hop", QUIET).expand()
    assert all((here / run.id / "checkpoints").is_dir() for run in kept)
    shutil.copytree(here, there, ignore=shutil.ignore_patterns("checkpoints", "report", missing.id))
    monkeypatch.setenv("OURO_RUNS", str(there.parent))
    assert [run.state for run in Study("p_hop", QUIET).expand()] == ["to do", *("done" for _ in kept)]
    assert entry.main(["run", "p_hop", *QUIET]) == 0
    for run in kept:
        assert (there / run.id / "final.json").read_bytes() == (here / run.id / "final.json").read_bytes()
        assert not (there / run.id / "checkpoints").exists()
    again, first = (records.read_final(folder / missing.id)["metrics"] for folder in (there, here))
    assert again == first
    assert (there / "registration.json").read_bytes() == (here / "registration.json").read_bytes()
    assert (there / "report" / "report.md").is_file()


def test_a_study_moved_to_a_machine_of_another_precision_keeps_its_own(quick, capsys, monkeypatch):
    first, *rest = Study("p_hop", QUIET).expand()
    run_without_report(monkeypatch, *QUIET)
    shutil.rmtree(first.directory)
    done = records.read_note(rest[0].directory)["execution"]
    moved = "32-true" if done["precision"] == "bf16-mixed" else "bf16-mixed"
    for run in rest:
        records.note(run.directory, {"execution": done | {"precision": moved}})
    capsys.readouterr()
    assert entry.main(["run", "p_hop", *QUIET]) == 0
    assert f"precision {moved}, as in the study's runs so far" in capsys.readouterr().out
    assert records.read_note(first.directory)["execution"]["precision"] == moved
    assert f"Precision: {moved}." in (records.runs_root() / "p_hop" / "report" / "report.md").read_text()


def test_a_second_call_of_a_running_study_is_refused(capsys):
    with records.run_lock(records.runs_root() / "p_hop"):
        refused(["run", "p_hop", *QUIET], "another process is running it", capsys)


def test_a_module_of_ones_own_runs_is_measured_and_matched(tmp_path, monkeypatch, quick, capsys):
    (tmp_path / "own_backbone.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OURO_ALLOW", "own_backbone")
    overrides = ["~study.lr", "~study.arms", "~study.contrasts", "~study.positive_control"]
    arm = "backbone._target_=own_backbone.Gru,~backbone.layers,~backbone.heads,~backbone.init_std,backbone.width=8"
    arm = "['" + "','".join(arm.split(",")) + "','backbone.loops=%d']"
    overrides += [f"+study.arms={{twice: {arm % 2}, once: {arm % 1}}}", "study.seeds=[0]", "tracking=none"]
    contrast = "{arm: twice, reference: once, equal: [parameters], metric: accuracy/hops_2, primary: true}"
    overrides += [f"+study.contrasts={{again: {contrast}}}"]
    overrides += [item for item in TINY if not item.startswith(("backbone", "study"))]
    assert entry.main(["run", "p_hop", *overrides]) == 0
    printed = capsys.readouterr().out
    assert "again: twice against once" in printed
    known = records.read_json(records.runs_root() / "p_hop" / "study.json")
    cost = {name: arm["cost"] for name, arm in known["arms"].items()}
    assert cost["twice"]["parameters"] == cost["once"]["parameters"] > 0
    assert cost["twice"]["flops_per_token"] > cost["once"]["flops_per_token"] > 0
    assert known["arms"]["twice"]["shape"] == "Gru"
    assert {run.state for run in Study("p_hop", overrides).expand()} == {"done"}
