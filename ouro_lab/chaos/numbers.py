"""Numbers that go wrong: a loss that is none, and a batch whose loss spikes, under each policy."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ouro_lab import alarms, records, replay
from ouro_lab.alarms import Alarm
from ouro_lab.chaos.tiny import Row, child, ended, execute, outcome, place, put, same, tiny
from ouro_lab.data.datamodules import TaskData
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE, Arrays
from ouro_lab.run import EXIT_DIVERGED
from ouro_lab.study import Run

PROMISE = "stopped or rolled back by the stated policy, batch saved, never silent"
BAD = 37  # the batch that is planted: step 38 reads it, three after a checkpoint


def rows(folder: Path, quick: bool) -> Iterator[Row]:
    yield _not_finite(folder)
    yield _warned(folder)
    yield _rolled_back(folder)


def _not_finite(folder: Path) -> Row:
    one, log = tiny("optim.eps=1e-30"), folder / "nan.txt"
    one.config["optim"]["lr"] = 1e30
    with place(folder / "nan"):
        code = ended(child(execute(one), log))
        found = alarms.read(one.directory)
        state = (records.read_state(one.directory) or {})["state"]
    said = f"state {state}; {_shown(found)}"
    ok = code == EXIT_DIVERGED and state == "diverged" and _kept(one, folder / "nan", found) and _logged(log, found)
    return Row("loss or gradient not finite", PROMISE, said, ok)


def _warned(folder: Path) -> Row:
    one, log = tiny("trainer.precision=32-true"), folder / "warn.txt"
    with place(folder / "warn"):
        code = ended(child(execute(one, plant), log))
        found = alarms.read(one.directory)
        ok = code == 0 and [alarm.step for alarm in found] == [BAD + 1] and _logged(log, found)
        again = replay.replay(one.directory, BAD + 1) if ok else None
    if again is None:
        return Row("loss spike, on_spike=warn", PROMISE, f"exit status {code}; {_shown(found)}", False)
    said = f"{_shown(found)}; computed again on the weights of step {again.weights_step}: {again.loss:.3f}"
    return Row("loss spike, on_spike=warn", PROMISE, said, abs(again.loss - found[0].value) < 0.5)


def _rolled_back(folder: Path) -> Row:
    one, log = tiny("trainer.on_spike=rollback"), folder / "rollback.txt"
    with place(folder / "without"):
        assert ended(child(execute(one, _leave_out), log)) == 0
        expected = outcome(one)
    with place(folder / "rollback"):
        code = ended(child(execute(one, plant), log))
        found, left = alarms.read(one.directory), alarms.skipped(one.directory)
        equal = code == 0 and same(outcome(one), expected)
    said = f"{_shown(found)}; left out {list(left)}; identical to a run that never read it: {equal}"
    return Row("loss spike, on_spike=rollback", PROMISE, said, equal and left == (BAD,) and _logged(log, found))


def plant() -> None:
    """Batch `BAD` asks for other tokens than the right ones."""
    real: Callable[[TaskData, Ints], Arrays] = TaskData.read_train

    def read_train(data: TaskData, indices: Ints) -> Arrays:
        arrays = real(data, indices)
        targets = arrays["targets"].copy()
        rows = (indices // data.batch_size == BAD)[:, None] & (targets != IGNORE)
        targets[rows] = (targets[rows] + 1) % data.vocab_size
        return arrays | {"targets": targets}

    put(TaskData, "read_train", read_train)


def _leave_out() -> None:
    put(TaskData, "skipped", (BAD,))


def _kept(one: Run, folder: Path, found: list[Alarm]) -> bool:
    with place(folder):
        return bool(found) and (one.directory / f"{found[0].saved}.safetensors").is_file()


def _logged(log: Path, found: list[Alarm]) -> bool:
    return bool(found) and all(f"alarm: {alarm.line}" in log.read_text() for alarm in found)


def _shown(found: list[Alarm]) -> str:
    return f"“{found[0].line}”" if found else "no alarm"
