"""The only entry of a run: compose → build → fit or evaluate → final metrics.

    python -m ouro_lab.run study=p_hop arm=looped lr=2e-3 seed=0 [overrides]

The same command again resumes from the last complete checkpoint, or says that the run is done.
"""

import contextlib
import os
import sys
import time

import torch

from ouro_lab import records
from ouro_lab.alarms import RollbackError
from ouro_lab.config import ConfigError, first_line
from ouro_lab.ranks import lost_ranks, own_rank
from ouro_lab.session import Session
from ouro_lab.study import Run, Study

EXIT_DIVERGED = 3
NAMED = ("study", "arm", "lr", "seed")


def main(arguments: list[str]) -> int:
    """Exit status: 0 done (or done before), 1 failed or rolling back, 2 bad input, 3 diverged."""
    try:
        run = find(arguments)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        return execute(run)
    except (ConfigError, ValueError, FileNotFoundError) as error:
        print(f"error: {first_line(error)}", file=sys.stderr, flush=True)
        return 2
    except OSError as error:  # a full disk, a folder that is read-only
        print(f"error: {first_line(error)}", file=sys.stderr, flush=True)
        return 1
    except RollbackError:
        return 1


def find(arguments: list[str]) -> Run:
    """The run that the arguments name; what is not study, arm, lr or seed is an override."""
    pairs = [argument.split("=", 1) for argument in arguments if "=" in argument]
    given = {pair[0]: pair[1] for pair in pairs if pair[0] in NAMED}
    for name in ("study", "arm"):
        if name not in given:
            usage = "python -m ouro_lab.run study=… arm=… [lr=…] [seed=…] [overrides]"
            raise ConfigError(f"{name}: missing; usage: {usage}")
    study = Study(given["study"], [argument for argument in arguments if argument.split("=", 1)[0] not in NAMED])
    if given["arm"] not in study.definition.arms:
        study.run(given["arm"], 1.0, 0)  # raises, naming the valid arms
    lr = _number("lr", given["lr"]) if "lr" in given else _known_rate(study, given["arm"])
    return study.run(given["arm"], lr, int(_number("seed", given.get("seed", "0"))))


def execute(run: Run) -> int:
    """Trains or evaluates one run in its directory, under its lock."""
    if own_rank() > 0:
        return _follow(run)
    with records.run_lock(run.directory) as free:
        if not free:
            print(f"{run.id}: is running already", flush=True)
            return 0
        state = records.read_state(run.directory)
        if state and state["state"] in ("done", "diverged"):
            print(f"{run.id}: {state['state']} before", flush=True)
            return 0
        if run.start is not None:
            run.start.check_ready()  # before the attempt counts
        records.begin(run.directory, run.identity() | {"overrides": list(run.overrides)}, run.config)
        try:
            code = _work(run)
        except BaseException as error:
            with contextlib.suppress(OSError):  # a full disk: what stopped the run is more worth saying
                records.finish(run.directory, "interrupted" if _stopped(error) else "failed", _reason(error))
            raise
        return code


def _follow(run: Run) -> int:
    """What a rank other than 0 does: the same work; rank 0 keeps the records and says how the run ended."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        return _work(run)
    except SIGTERMException:  # any other status would have the rest of the ranks killed
        return 0


def _work(run: Run) -> int:
    start = time.perf_counter()
    session, metrics, reason = _trained(run)
    code, state = (EXIT_DIVERGED, "diverged") if reason else (0, "done")
    if session.trainer.is_global_zero:
        seconds = records.read_seconds(run.directory) + time.perf_counter() - start
        steps = session.trainer.global_step
        tokens = session.tokens(steps) if session.steps else session.cost["tokens"]
        records.write_final(run.directory, metrics, seconds, steps, session.cost, tokens)
        records.finish(run.directory, state, reason)
    return code


def _trained(run: Run) -> tuple[Session, dict[str, float], str]:
    """The session that came to an end, its final metrics, and why it diverged if it did.

    A roll-back is a resumed run without the batch: everything is built anew, as another process would. Where there are
    several ranks another process it is, since Lightning starts them once: the state is `interrupted`.
    """
    from ouro_lab.training.module import DivergedError

    while True:
        session = Session(run)
        try:
            return session, session.train_and_test(), ""
        except DivergedError as error:
            print(f"{run.id}: diverged: {error}", flush=True)
            return session, {}, str(error)
        except RollbackError as error:
            print(f"{run.id}: rolls back: {error}", flush=True)
            if session.trainer.world_size > 1:
                raise
        except Exception as error:
            lost = lost_ranks(getattr(session.trainer.strategy.launcher, "procs", ()))
            if lost:
                raise RuntimeError(f"{lost} ({_reason(error)})") from error
            raise


def _known_rate(study: Study, arm: str) -> float:
    rate = study.rate(arm)
    if rate is None:
        raise ConfigError(f"lr: missing, and the sweep of arm {arm} is unfinished; give lr=…")
    return rate.lr


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{name} = {text}: must be a number") from None


def _stopped(error: BaseException | None) -> bool:
    """Ctrl-C, SIGTERM or a roll-back, which use up no attempt; Lightning turns the first into an exit."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    while error is not None:
        if isinstance(error, (KeyboardInterrupt, SIGTERMException, RollbackError)):
            return True
        error = error.__context__
    return False


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
