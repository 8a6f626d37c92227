"""Runs that train nothing, and what is asked of a final model: alone, after training, in a study from end to end."""

import pytest
from tests_support import BARE, TINY

from analysis import power, runs, wording
from ouro_lab import __main__ as entry
from ouro_lab import estimate, launch, records, verbs
from ouro_lab import run as run_module
from ouro_lab.check import check
from ouro_lab.compute.cost import forward_flops
from ouro_lab.config import ConfigError
from ouro_lab.study import Study

ASK = "evaluation._target_=tests_support.Agreement"
SOURCE = "init_from={study: p_hop_quick, arm: looped}"
AT_THREE = ["data.task.length=24", "data.task.hops=3", "tracking=none", "trainer.precision=32-true"]  # of p_hop_quick


def study(arms: str, *more: str) -> Study:
    kept = [item for item in TINY if "contrasts" not in item and not ("~optim" in more and "optim" in item)]
    return Study("p_hop", [*kept, *BARE, f"+study.arms={{{arms}}}", "study.seeds=[0]", "tracking=none", *more])


def test_an_evaluation_needs_no_budget_and_is_charged_the_forward_pass_of_the_test_set():
    one = study("one: ['backbone=looped','do=evaluate']", ASK, "~optim", "budget.steps=null")
    run = one.expand()[0]
    assert run_module.execute(run) == 0
    final = records.read_final(run.directory)
    parts = check(one)["one"]
    assert final["steps"] == 0
    assert final["tokens"] == parts.data.evaluation_size("test") * parts.data.length
    forward = forward_flops(parts.backbone.config, parts.data.length).total
    assert final["flops"] == pytest.approx(final["tokens"] * forward)
    assert final["metrics"]["final/loss"] > 0
    assert 0 <= final["metrics"]["final/agreement/loop_1"] <= 1
    assert not (run.directory / "checkpoints").exists()


def test_there_is_no_rate_to_sweep_and_nothing_is_unmatched():
    grid = "study.lr={from: null, grid: [1e-3, 2e-3], seeds: [9]}"
    kept = [item for item in TINY if not item.startswith(("study.", "optim.lr"))]
    arms = "+study.arms={fit: ['backbone=looped'], judge: ['backbone=looped','do=evaluate']}"
    both = Study("p_hop", [*kept, *BARE, arms, "study.seeds=[0]", grid])
    runs_ = both.expand()
    assert {(run.arm, run.phase) for run in runs_} == {("fit", "lr"), ("judge", "main")}
    assert both.rate("judge").status == "nothing is trained"
    assert both.rate("judge").matched
    parts = check(both)
    minutes = estimate.core_minutes(both, parts)
    fit, judge = ((part, part.cost["training_flops"] / estimate.rate(both, part)) for part in parts.values())
    assert minutes == pytest.approx(((2 + 1) * fit[1] + judge[1]) / 60)


@pytest.mark.parametrize(
    ("asked", "metric", "message"),
    [
        ("", "agreement/loop_1", r"metric = agreement/loop_1: no such metric"),
        (ASK, "agreement/loop_2", r"no such metric; did you mean agreement/loop_1\?"),
        (f"{ASK}|evaluation.names=[loss]", "accuracy", r"evaluation: loss: is a metric of every run already"),
        (f"{ASK}|evaluation.lop=2", "accuracy", r"evaluation.lop: unknown key; did you mean loop\?"),
        (ASK, "agreement/loop_1", None),
    ],
)
def test_the_check_knows_what_an_evaluation_reports(asked, metric, message):
    contrast = f"+study.contrasts={{c: {{arm: a, reference: b, metric: {metric}, primary: true}}}}"
    arms = "a: ['backbone=looped'], b: ['backbone=looped','backbone.init_std=0.2']"
    more = [item for item in asked.split("|") if item]
    if message is None:
        assert check(study(arms, contrast, *more))
        return
    with pytest.raises(ConfigError, match=message):
        check(study(arms, contrast, *more))


def test_an_evaluation_after_training_joins_the_final_metrics_and_must_answer_what_it_announced():
    run = study("one: ['backbone=looped']", ASK, "budget.steps=4").expand()[0]
    assert run_module.execute(run) == 0
    assert {"final/agreement/loop_1", "final/val/loss"} <= records.read_final(run.directory)["metrics"].keys()
    other = study("one: ['backbone=looped','do=evaluate']", ASK, "evaluation.names=[agreement/all]").expand()[0]
    with pytest.raises(ValueError, match="metric_names and the values differ: agreement/all, agreement/loop_1"):
        run_module.execute(other)
    assert records.read_state(other.directory)["state"] == "failed"


def test_the_scope_of_a_verdict_counts_the_tokens_that_taught_the_model():
    sizes = {"fit": (2e6, 9), "judge": (5e3, 0)}
    costs = {arm: {"parameters": 1e5, "tokens": tokens, "steps": steps} for arm, (tokens, steps) in sizes.items()}
    known = {"arms": {arm: {"cost": cost} for arm, cost in costs.items()}, "scope": {"trunk_tokens": 8e6}}
    said = {arm: wording.scope(known, arm) for arm in sizes}
    assert said == {"fit": "100k parameters, 10M tokens", "judge": "100k parameters, 8.0M tokens"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """SMOKE=1, and every run in this process."""
    monkeypatch.setenv("SMOKE", "1")
    monkeypatch.setattr(launch._Pool, "_start", lambda self, run, devices: run_module.execute(run))
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)


def test_a_study_over_the_trunks_of_another_from_end_to_end(quick, capsys, monkeypatch, tmp_path):
    arms = "gate: ['backbone=looped','objective=stage_two'], as_it_is: ['backbone=looped','do=evaluate']"
    contrast = "c: {arm: gate, reference: as_it_is, equal: [body_parameters], metric: agreement/loop_1, primary: true}"
    mine = [*AT_THREE, ASK, SOURCE, *BARE, f"+study.arms={{{arms}}}", f"+study.contrasts={{{contrast}}}"]
    assert entry.main(["run", "p_hop", *mine]) == 2
    refused = capsys.readouterr().err.splitlines()
    assert len(refused) == 1
    assert "is not done (to do); run make experiment NAME=p_hop_quick" in refused[0]

    with monkeypatch.context() as patch:
        patch.setattr(verbs, "_report", lambda *rest: None)
        only = ["~study.contrasts", "~study.positive_control", "~study.arms.iso_flop", "~study.arms.iso_parameter"]
        assert entry.main(["run", "p_hop_quick", "tracking=none", *only]) == 0
    assert entry.main(["run", "p_hop", *mine]) == 0
    known = records.read_json(records.runs_root() / "p_hop" / "study.json")
    judged, gate = known["arms"]["as_it_is"], known["arms"]["gate"]
    assert (judged["lr"], judged["lr_status"], judged["lr_matched"]) == (None, "nothing is trained", True)
    each = [arm["cost"]["flops_per_token"] for arm in (judged, gate)]
    assert each[0] < each[1] < 1.01 * each[0]

    result = runs.load("p_hop")
    assert set(result.runs["state"]) == {"done"}
    by_arm = result.runs.set_index(["arm", "seed"])["final/agreement/loop_1"]
    assert all(by_arm["gate", seed] == by_arm["as_it_is", seed] for seed in (0, 1))  # the trunk stood still
    assert by_arm["gate", 0] != by_arm["gate", 1]  # each seed its own
    runs.export(result, tmp_path / "evidence")
    assert runs.from_evidence(tmp_path / "evidence").runs.equals(result.runs)
    report = (records.runs_root() / "p_hop" / "report" / "report.md").read_text()
    assert "as_it_is" in report

    capsys.readouterr()
    assert entry.main(["status", "p_hop", *mine]) == 0
    said = capsys.readouterr().out
    assert said.count("step evaluation") == 2
    assert "p_hop: 4 done" in said
    assert power.main(["p_hop", *mine]) == 0
