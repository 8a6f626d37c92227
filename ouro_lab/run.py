"""The only entry of a run: compose → build → fit or evaluate → final metrics.

    python -m ouro_lab.run study=p_hop arm=looped lr=2e-3 seed=0 [overrides]

The same command again resumes from the last complete checkpoint, or says that the run is done.
"""

import contextlib
import logging
import os
import sys
import time
import warnings
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ouro_lab import alarms, records
from ouro_lab.alarms import RollbackError
from ouro_lab.config import ConfigError, build, plain
from ouro_lab.ranks import lost_ranks, own_rank
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


def _trained(run: Run) -> tuple["Session", dict[str, float], str]:
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


class Session:
    """What one run builds from its config, in order: data, objective, backbone, cost, budget, trainer."""

    def __init__(self, run: Run) -> None:
        from ouro_lab.assembly import assemble, ramp_of

        quiet()
        self.run = run
        self.config: DictConfig = OmegaConf.create(run.config)
        parts = assemble(self.config)
        self.data, self.cost, self.steps, self.evaluation = parts.data, parts.cost, parts.steps, parts.evaluation
        self.ramp = ramp_of(parts.data)
        self._note({"cost": parts.cost, **facts(parts)})
        self.execution = self._settle()
        self.log = records.MetricsLog(run.directory / "metrics.jsonl")
        self._leave_out(alarms.skipped(run.directory))
        self.module = self._module(parts)
        self.trainer = self._trainer()

    def train_and_test(self) -> dict[str, float]:
        """Fits from the last complete checkpoint, then tests; returns the final metrics."""
        from ouro_lab.training.checkpoint import backbone_weights, newest, step_of

        if self.config.do == "fit":
            last = newest(self.run.directory / "checkpoints")
            if own_rank() == 0:
                self.log.cut(step_of(last) if last else 0)
            if last:
                print(f"resumes at step {step_of(last)} of {self.steps}", flush=True)
            if not last or step_of(last) < self.steps:
                print(self.execution.line, flush=True)
                self.trainer.fit(self.module, self.data, ckpt_path=last, weights_only=True)
                self._validate_the_end()
            else:
                self.module.backbone.load_state_dict(backbone_weights(last))
        self.trainer.test(self.module, self.data, verbose=False)
        return self._final()

    def _validate_the_end(self) -> None:
        """The last step is validated and kept, also where it is no multiple of `val_every`."""
        if not (self.run.directory / "checkpoints" / f"step={self.steps:08d}.ckpt").exists():
            self.trainer.validate(self.module, self.data, verbose=False)
            self.trainer.save_checkpoint(self.run.directory / "checkpoints" / f"step={self.steps:08d}.ckpt")

    def _final(self) -> dict[str, float]:
        final = {f"final/{name}": value for name, value in self.module.evaluated.items()}
        validated = [row for row in records.read_metrics(self.run.directory / "metrics.jsonl") if "val/loss" in row]
        if validated:
            final |= {f"final/{name}": value for name, value in validated[-1].items() if name.startswith("val/")}
        return final | {f"final/{name}": value for name, value in self._evaluate().items()}

    def _evaluate(self) -> dict[str, float]:
        """What `evaluation` asks of the final model on the test split, in the run's precision; rank 0 alone.

        Raises:
            ValueError: it answers other names than it announced to the check.
        """
        if self.evaluation is None:
            return {}
        backbone = self._whole_backbone()
        if not self.trainer.is_global_zero:
            return {}
        backbone = backbone.to(self.trainer.strategy.root_device).eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            values = self.evaluation(backbone, self.data, "test")
        odd = set(values) ^ set(self.evaluation.metric_names(self.data, backbone.loops))
        if odd:
            raise ValueError(f"evaluation: metric_names and the values differ: {', '.join(sorted(odd))}")
        return {name: float(value) for name, value in values.items()}

    def _leave_out(self, batches: tuple[int, ...]) -> None:
        if self.config.trainer.get("on_spike") == "rollback" and not hasattr(self.data, "skipped"):
            raise ConfigError("trainer.on_spike = rollback: the data cannot leave a batch out; must be warn or stop")
        if batches:
            print(f"leaves out batches {', '.join(map(str, batches))}, which made it roll back", flush=True)
            self.data.skipped = batches

    def _whole_backbone(self) -> torch.nn.Module:
        """The backbone; of a sharded one a copy, whose weights rank 0 alone has."""
        from ouro_lab.assembly import assemble
        from ouro_lab.training.sharding import is_sharded, whole_weights

        if not is_sharded(self.module):
            return self.module.backbone
        weights, whole = whole_weights(self.module.backbone), assemble(self.config).backbone
        if weights:
            whole.load_state_dict(weights)
        return whole

    def _note(self, content: dict[str, Any]) -> None:
        """On rank 0 alone: a record is read, added to and written back."""
        if own_rank() == 0:
            records.note(self.run.directory, content)

    def _settle(self) -> Any:
        """Precision and compilation, once for all of the run's attempts."""
        from ouro_lab.training import execution

        earlier = records.read_note(self.run.directory).get("execution", {})
        settled = execution.settle(plain(self.config.trainer), self.cost["training_flops"], earlier)
        self._note({"execution": execution.note(settled)})
        execution.share_compiled_code()
        return settled

    def _module(self, parts: Any) -> Any:
        from ouro_lab.training.module import LoopedModule

        initialise(parts.backbone, self.config.seed)
        start = self.run.start
        if start is not None:
            start.load_into(parts.backbone)
            self._note({"init_from": start.identity})
        optim = build(self.config.optim, "optim") if self.config.do == "fit" else None
        metrics = self.data.metrics(parts.backbone.loops, parts.cost["parameters"])
        moments = start.moments() if start is not None else {}
        return LoopedModule(parts.backbone, parts.objective, optim, metrics, self.steps, moments)

    def tokens(self, steps: int) -> int:
        """That the first `steps` steps read."""
        return self.ramp.samples(steps) * self.data.length

    def _trainer(self) -> Any:
        from ouro_lab.training.callbacks import Progress, Recorder, Settled
        from ouro_lab.training.norms import BlockNorms
        from ouro_lab.training.preemption import Preemption
        from ouro_lab.training.watch import Watch

        node, directory = self.config.trainer, self.run.directory
        every = node.get("log_every", 25)
        recorder = Recorder(self.log, every, self.tokens, self.cost["flops_per_token"])
        origin = getattr(self.data, "origin", lambda step: (step, None))
        watch = Watch(directory, node.get("on_spike", "warn"), origin)
        callbacks = [BlockNorms(every), recorder, watch, Settled(directory), Progress(), Preemption()]
        settled = {"precision": self.execution.precision, "compile": self.execution.compiled}
        return build(node, "trainer", run_dir=directory, steps=self.steps, callbacks=callbacks, **settled)


def facts(parts: Any) -> dict[str, Any]:
    """What record.json says of the run's parts, values left at their defaults included."""
    backbone = getattr(parts.backbone, "config", None)
    return {
        "backbone": backbone.as_dict() if backbone is not None else {"class": type(parts.backbone).__name__},
        "data": {name: getattr(parts.data, name) for name in ("vocab_size", "length", "batch_size")},
    }


def initialise(backbone: torch.nn.Module, seed: int) -> None:
    """Weights as a function of (seed, parameter name); a backbone of one's own may keep its torch defaults."""
    own = getattr(backbone, "initialise", None)
    if callable(own):
        own(seed)


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


def first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def quiet() -> None:
    """Lightning's advertisements and the deprecations that are its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a launcher decides what uses it
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # how every resumed run finds it


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
