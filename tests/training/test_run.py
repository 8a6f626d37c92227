"""A run through its real entry: resume by equality, divergence, checkpoints, and what goes wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests_support import TINY

from ouro_lab import records, run
from ouro_lab.study import Run, Study
from ouro_lab.training import callbacks, checkpoint


def tiny(*overrides: str, arm: str = "looped") -> Run:
    study = Study("p_hop", [*TINY, *overrides])
    return study.run(arm, 1e-2, 0)


def outcome(run_: Run) -> tuple[dict, list[dict], dict]:
    """Final metrics, rows and weights: what must not depend on interruptions."""
    rows = records.read_metrics(run_.directory / "metrics.jsonl")
    kept = [{k: v for k, v in row.items() if k != "time" and not k.startswith("perf/")} for row in rows]
    weights = checkpoint.load(run_.directory / "checkpoints" / "step=00000012.ckpt")["state_dict"]
    return records.read_final(run_.directory)["metrics"], kept, weights


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, hook: str = "on_train_batch_end") -> None:
    real = getattr(callbacks.Recorder, hook)

    def stop(self, trainer, module, *rest):
        if trainer.global_step == step:
            raise KeyboardInterrupt
        return real(self, trainer, module, *rest)

    monkeypatch.setattr(callbacks.Recorder, hook, stop)


@pytest.mark.parametrize("step", [1, 3, 5, 9, 11])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_equals_an_unbroken_one_to_the_last_bit(step, accumulate, monkeypatch, tmp_path):
    unbroken = tiny(f"trainer.accumulate={accumulate}")
    assert run.execute(unbroken) == 0
    expected = outcome(unbroken)
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        interrupt_at(step, patch)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.execute(unbroken)
    assert unbroken.state == "to do"
    assert run.execute(unbroken) == 0
    final, rows, weights = outcome(unbroken)
    assert final == expected[0]
    assert rows == expected[1]
    assert all(torch.equal(weights[name], expected[2][name]) for name in expected[2])


def test_an_interruption_between_validation_and_checkpoint_loses_and_doubles_nothing(monkeypatch, tmp_path):
    unbroken = tiny()
    assert run.execute(unbroken) == 0
    expected = outcome(unbroken)
    monkeypatch.setenv("OURO_RUNS", str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        interrupt_at(8, patch, hook="on_validation_end")
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run.execute(unbroken)
    assert run.execute(unbroken) == 0
    assert outcome(unbroken)[:2] == expected[:2]


def test_a_done_run_is_not_repeated(capsys):
    one = tiny()
    assert run.execute(one) == 0
    before = (one.directory / "metrics.jsonl").read_text()
    assert run.execute(one) == 0
    assert "done before" in capsys.readouterr().out
    assert (one.directory / "metrics.jsonl").read_text() == before


def test_two_checkpoints_are_kept_and_load_without_code():
    one = tiny()
    run.execute(one)
    found = sorted(path.name for path in (one.directory / "checkpoints").iterdir())
    assert found == ["step=00000008.ckpt", "step=00000012.ckpt"]
    assert checkpoint.load(one.directory / "checkpoints" / found[0])["global_step"] == 8


def test_a_step_that_is_no_multiple_of_val_every_is_validated_and_kept_at_the_end():
    one = tiny("trainer.val_every=5")
    run.execute(one)
    assert records.read_metrics(one.directory / "metrics.jsonl")[-1]["val/loss"] > 0
    assert checkpoint.newest(one.directory / "checkpoints").name == "step=00000012.ckpt"


def test_divergence_is_a_final_state_with_a_clear_line(capsys):
    one = tiny("optim.eps=1e-30")
    one.config["optim"]["lr"] = 1e30
    assert run.execute(one) == run.EXIT_DIVERGED
    assert one.state == "diverged"
    assert "diverged: " in capsys.readouterr().out
    assert (
        "= nan" in records.read_state(one.directory)["reason"] or "= inf" in records.read_state(one.directory)["reason"]
    )
    assert records.read_final(one.directory)["steps"] <= 12


def test_a_corrupt_newest_checkpoint_is_set_aside_for_the_one_before(monkeypatch, capsys):
    one = tiny()
    run.execute(one)
    expected = outcome(one)
    _unfinish(one)
    newest = one.directory / "checkpoints" / "step=00000012.ckpt"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert run.execute(one) == 0
    assert "step=00000012.ckpt: cannot be read" in capsys.readouterr().out
    assert outcome(one)[:2] == expected[:2]


def test_no_usable_checkpoint_is_one_line_and_destroys_nothing(capsys):
    one = tiny()
    run.execute(one)
    _unfinish(one)
    for path in (one.directory / "checkpoints").iterdir():
        path.write_bytes(b"not a checkpoint")
    with pytest.raises(checkpoint.CheckpointError, match="cannot be read") as caught:
        run.execute(one)
    assert "\n" not in str(caught.value)
    assert len(list((one.directory / "checkpoints").iterdir())) == 2


def test_a_checkpoint_that_needs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path(tmp_path / "touched").touch, ())

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.load(tmp_path / "evil.ckpt")
    assert not (tmp_path / "touched").exists()


def test_init_from_another_run_takes_its_weights():
    first = tiny()
    run.execute(first)
    second = tiny("do=evaluate", f"init_from=p_hop/{first.id}")
    assert run.execute(second) == 0
    mine, theirs = records.read_final(second.directory)["metrics"], records.read_final(first.directory)["metrics"]
    assert mine["final/loss"] == theirs["final/loss"]


def test_bad_arguments_are_one_line_and_exit_2(capsys):
    assert run.main(["study=p_hop", "arm=lopped"]) == 2
    assert run.main(["study=p_hop", "arm=looped", "lr=fast", "study.lr=null"]) == 2
    assert run.main(["arm=looped"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "did you mean looped?" in lines[0]
    assert lines[1] == "error: lr = fast: must be a number"


@pytest.mark.parametrize("arm", ["looped", "iso_parameter", "iso_flop"])
def test_every_row_has_the_names_that_never_change(arm):
    one = tiny(arm=arm)
    run.execute(one)
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    names = set().union(*rows)
    assert {"train/loss", "val/loss", "val/accuracy", "total/tokens", "total/flops", "optim/clipped_fraction"} <= names
    assert {f"val/loss_loop{loop}" for loop in range(1, 4)} <= names or arm != "looped"
    assert rows[-1]["total/tokens"] == 12 * 8 * 13


def test_gated_runs_report_the_mean_exit_loop():
    one = tiny("objective=stage_one")
    run.execute(one)
    final = records.read_final(one.directory)["metrics"]
    assert 1 < final["final/exit_loop_mean"] < 3


def _unfinish(run_: Run) -> None:
    (run_.directory / "final.json").unlink()
    state = json.loads((run_.directory / "state.json").read_text()) | {"state": "failed", "attempts": 1}
    records.write_json(run_.directory / "state.json", state)
    shutil.rmtree(run_.directory / "report", ignore_errors=True)
