"""Expansion, hashes, states, learning rates and refusals of a study."""

import json
from pathlib import Path

import pytest

from ouro_lab import records
from ouro_lab.config import ConfigError
from ouro_lab.rates import RateBlock
from ouro_lab.study import Study

ROWS = 3  # arms of p_hop


def finish(run, value: float, state: str = "done") -> None:
    """Leaves what a finished run leaves."""
    records.begin(run.directory, run.identity(), run.config)
    cost = {"steps": 10, "tokens": 100, "training_flops": 1.0}
    records.write_final(run.directory, {"final/val/loss": value}, 1.0, 10, cost)
    records.finish(run.directory, state)


def test_expand_is_arms_times_seeds_with_the_borrowed_rate(lab):
    study = Study("p_hop", ["study.lr=null"])
    runs = study.expand()
    assert len(runs) == ROWS * 3
    assert len({run.id for run in runs}) == len(runs)
    assert {run.seed for run in runs} == {0, 1, 2}


def test_hash_covers_the_config_but_not_where_it_runs():
    def first(*overrides: str) -> str:
        return Study("p_hop", ["study.lr=null", *overrides]).expand()[0].hash

    assert first() == first("trainer.devices=2", "trainer.strategy=ddp", "launcher.slots=1", "tracking.uri=sqlite:///x")
    assert first() != first("budget.steps=7")
    assert first() != first("trainer.precision=bf16-mixed")


def test_run_command_names_the_same_run():
    from ouro_lab.run import find

    run = Study("p_hop", ["study.lr=null", "budget.steps=7"]).expand()[4]
    assert find(run.command).id == run.id


def test_todo_shrinks_and_failed_runs_are_retried_twice():
    study = Study("p_hop", ["study.lr=null"])
    run = study.expand()[0]
    finish(run, 1.0)
    assert run.id not in {other.id for other in study.todo()}
    other = study.expand()[1]
    for attempt in (1, 2, 3):
        assert other.state == "to do", attempt
        records.begin(other.directory, other.identity(), other.config)
        records.finish(other.directory, "failed", "died")
    assert other.state == "failed"
    assert other.finished


def test_stale_directories_are_those_not_yielded_today():
    old = Study("p_hop", ["study.lr=null", "budget.steps=7"]).expand()[0]
    finish(old, 1.0)
    study = Study("p_hop", ["study.lr=null"])
    assert study.stale() == [old.id]


def rates(tmp_path: Path, values: dict[float, list[float | None]], **block) -> tuple[RateBlock, dict]:
    block = RateBlock(grid=tuple(block.pop("grid")), seeds=(0, 1), **block)
    known = {}

    def directory(lr: float, seed: int) -> Path:
        path = tmp_path / f"{lr:g}-{seed}"
        value = values.get(round(lr, 6), [None, None])[seed]
        if value is not None and path not in known:
            known[path] = value
            records.write_json(path / "final.json", {"metrics": {"final/val/loss": value}, "steps": 1})
            records.write_json(path / "state.json", {"state": "diverged" if value == float("inf") else "done"})
        return path

    return block, directory


def test_sweep_takes_the_mean_over_seeds_and_says_inside(tmp_path):
    block, find = rates(tmp_path, {0.001: [2.0, 2.2], 0.002: [1.0, 1.2], 0.004: [0.9, 1.6]}, grid=[1e-3, 2e-3, 4e-3])
    sweep = block.sweep(find)
    assert sweep.complete
    assert sweep.inside
    assert sweep.rate().lr == 0.002
    assert sweep.means[0.004] == pytest.approx(1.25)


def test_sweep_extends_at_the_winning_edge_until_inside_or_spent(tmp_path):
    values = {0.001: [2.0, 2.0], 0.002: [1.0, 1.0], 0.004: [0.5, 0.5]}
    block, find = rates(tmp_path, values, grid=[1e-3, 2e-3])
    sweep = block.sweep(find)
    assert sweep.grid == pytest.approx((0.001, 0.002, 0.004, 0.008))  # 0.004 won at the edge, 0.008 is asked for
    assert not sweep.complete
    assert sweep.rate() is None
    values[0.008] = [float("inf"), float("inf")]  # diverged: worst possible
    sweep = block.sweep(find)
    assert sweep.inside
    assert sweep.rate().lr == pytest.approx(0.004)


def test_sweep_that_never_turns_is_unmatched(tmp_path):
    values = {0.001: [4.0, 4.0], 0.002: [3.0, 3.0], 0.004: [2.0, 2.0], 0.008: [1.0, 1.0]}
    block, find = rates(tmp_path, values, grid=[1e-3, 2e-3], extend=2)
    rate = block.sweep(find).rate()
    assert rate.lr == pytest.approx(0.008)
    assert not rate.matched


def test_a_borrowed_rate_counts_only_for_the_same_arm_config(monkeypatch):
    study = Study("p_hop", ["study.lr.from=nowhere"])
    sweep = {"best": 0.004, "inside": True, "rate_hash": study.rate_hash("looped")}
    records.write_json(records.runs_root() / "nowhere" / "study.json", {"sweep": {"looped": sweep}})
    assert study.rate("looped").matched
    shorter = Study("p_hop", ["study.lr.from=nowhere", "budget.steps=9"])
    assert not shorter.rate("looped").matched
    assert shorter.rate("looped").lr == 0.004
    with pytest.raises(ConfigError, match="has no arm iso_flop"):
        study.rate("iso_flop")


def test_registration_marks_a_study_changed_after_its_results_were_seen():
    from ouro_lab.check import register, registered

    first = Study("p_hop", ["study.lr=null"])
    register(first)
    assert registered(first)["hash"] == first.hash
    other = Study("p_hop", ["study.lr=null", "budget.steps=7"])  # another experiment, nothing of it seen
    register(other)
    assert registered(other)["hash"] == other.hash
    finish(first.expand()[0], 1.0)
    more = Study("p_hop", ["study.lr=null", "study.seeds=[0,1,2,3]"])  # seeds added after a result
    register(more)
    assert registered(more)["hash"] == first.hash != more.hash


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("p_hopp", [], r"study p_hopp: no such file.*did you mean p_hop\?"),
        ("p_hop", ["optim.lrr=1"], r"optim\.lrr: unknown key; did you mean lr\?"),
        ("p_hop", ["backbonee=looped"], r"backbonee: .*valid: backbone"),
        ("p_hop", ["backbone=looped"], r"override backbone=looped: backbone is set by arm looped"),
        ("p_hop", ["study.seedz=[1]"], r"study\.seedz: unknown key; did you mean seeds\?"),
        ("p_hop", ["study.contrasts.depth_by_reuse.arm=loped"], r"arm = loped: not an arm; did you mean looped\?"),
        (
            "p_hop",
            ["study.contrasts.depth_by_reuse.rule=best"],
            r"rule = best: valid: superiority, equivalence, estimate",
        ),
        ("p_hop", ["study.contrasts.depth_by_reuse.primary=false"], r"exactly one must be primary"),
        ("p_hop", ["optim.lr=1e-3"], r"the rate is set by study\.lr"),
        ("p_hop", ["data=p_hup"], r"data = p_hup: no such choice; did you mean p_hop\?"),
        ("p_hop", ["study.lr={grid: [1e-3]}"], r"study\.lr"),
    ],
)
def test_bad_input_is_one_line_that_names_it(name, overrides, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Study(name, overrides)
    assert "\n" not in str(caught.value)


def test_budget_takes_exactly_one(lab):
    with pytest.raises(ConfigError, match="budget: give exactly one of steps, tokens, flops"):
        _ = Study("p_hop", ["budget.tokens=5"]).arm_configs


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.loops=0", r"backbone\.loops = 0: must be an integer ≥ 1"),
        ("backbone.heads=5", r"backbone\.heads = 5: must be a divisor of width"),
        ("+backbone.lops=3", r"backbone\.lops: unknown key; did you mean loops\?"),
        ("study.contrasts.depth_by_reuse.equal=[training_flops]", r"depth_by_reuse.*training_flops"),
        ("study.contrasts.depth_by_reuse.equal=[flop]", r"flop"),
        (
            "study.lr={grid: [1e-3, 2e-3], seeds: [100, 2]}",
            r"study\.lr\.seeds: swept on seed 2, which is in study\.seeds",
        ),
    ],
)
def test_the_check_refuses_before_anything_trains(override, message):
    from ouro_lab.check import check

    with pytest.raises(ConfigError, match=message) as caught:
        check(Study("p_hop", ["study.lr=null", override]))
    assert "\n" not in str(caught.value)


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    return tmp_path


def test_a_borrowed_rate_was_swept_on_other_seeds():
    from ouro_lab.check import check

    study = Study("p_hop", ["study.lr.from=elsewhere"])
    found = {"best": 0.004, "inside": True, "rate_hash": "", "seeds": [7]}
    assert set(check(study)) == set(study.definition.arms)  # not swept yet: costs and matches are known without rates
    path = records.runs_root() / "elsewhere" / "study.json"
    records.write_json(path, {"sweep": dict.fromkeys(study.definition.arms, found)})
    assert set(check(study)) == set(study.definition.arms)
    records.write_json(path, {"sweep": dict.fromkeys(study.definition.arms, found | {"seeds": [7, 1]})})
    with pytest.raises(ConfigError, match="study.lr.from = elsewhere: swept on seed 1, which is in study.seeds"):
        check(study)


def test_identity_round_trips_through_json():
    run = Study("p_hop", ["study.lr=null"]).expand()[0]
    assert json.loads(json.dumps(run.config)) == run.config
