"""What one run builds from its config, in order, and how it trains, tests and is asked for its final metrics."""

import logging
import warnings
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ouro_lab import alarms, records
from ouro_lab.config import ConfigError, build, plain
from ouro_lab.ranks import own_rank
from ouro_lab.study import Run


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
        trainer = plain(self.config.trainer)
        kept = None if earlier else execution.kept_precision(trainer, execution.listed(self.run.directory.parent))
        settled = execution.settle(trainer, self.cost["training_flops"], earlier, kept)
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


def quiet() -> None:
    """Lightning's advertisements and the deprecations that are its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")  # a launcher decides what uses it
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # how every resumed run finds it
