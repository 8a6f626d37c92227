"""From a run's config to its parts, on any device: the same for a real run and for the check on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ouro_lab.compute.budget import Budget
from ouro_lab.compute.cost import Cost, frozen_cost, training_cost
from ouro_lab.compute.measure import measured_cost
from ouro_lab.compute.solver import Looped
from ouro_lab.config import ConfigError, build, plain
from ouro_lab.data.ramp import Ramp
from ouro_lab.model import ModelConfig

DEEDS = ("fit", "evaluate")
OF_GATES = ("exit_loop_mean", "gate_loss")  # metrics of objectives with a gate


@dataclass(frozen=True)
class Parts:
    """trains: all, gate (the exit gate alone) or nothing, in which case there are no steps."""

    data: Any
    objective: Any
    backbone: nn.Module
    cost: dict[str, Any]
    steps: int
    trains: str = "all"
    evaluation: Any = None


def assemble(cfg: DictConfig, device: str = "cpu", data: Any = None) -> Parts:
    """Builds data, objective, backbone and evaluation, charges their cost and turns the budget into steps.

    data: what `cfg.data` builds, where it is at hand.
    """
    data = build(cfg.data, "data") if data is None else data
    objective = build(cfg.objective, "objective")
    trains = trained_part(cfg, objective)
    gate = {"gate": True} if objective.needs_gate else {}
    if device != "meta":
        data.prepare_data()
    torch.manual_seed(cfg.seed)  # for a backbone of one's own that has no `initialise`
    with torch.device(device):
        backbone = build(cfg.backbone, "backbone", vocab_size=data.vocab_size, **gate)
    cost = cost_of(backbone, objective, data, trains)
    if trains == "nothing":
        steps, tokens = 0, data.evaluation_tokens("test")
    else:
        ramp = ramp_of(data)
        before = ramp.steps, ramp.samples(ramp.steps) * data.length
        steps = Budget(**plain(cfg.budget)).steps_for(data.batch_size * data.length, cost.flops_per_token, before)
        tokens = ramp.samples(steps) * data.length
    found = facts(cost, steps, tokens, backbone)
    return Parts(data, objective, backbone, found, steps, trains, _evaluation(cfg, data, backbone))


def ramp_of(data: Any) -> Ramp:
    """Of the batch's size, which a datamodule of one's own may leave out."""
    return getattr(data, "ramp", None) or Ramp(data.batch_size)


def trained_part(cfg: DictConfig, objective: Any) -> str:
    """`trains` of the run's parts.

    Raises:
        ConfigError: `do` is neither fit nor evaluate, or a gate is to learn on a trunk that nobody trained.
    """
    if cfg.do not in DEEDS:
        raise ConfigError(f"do = {cfg.do}: must be {' or '.join(DEEDS)}")
    if objective.trains == "gate" and cfg.init_from is None:
        raise ConfigError("init_from: missing; the objective trains the exit gate alone, on a trained model")
    return "nothing" if cfg.do == "evaluate" else objective.trains


def plannable(parts: Parts) -> bool:
    return parts.trains == "all" and isinstance(getattr(parts.backbone, "config", None), ModelConfig)


def cost_of(backbone: nn.Module, objective: Any, data: Any, trains: str = "all") -> Cost:
    """Analytic for our own backbones; measured with PyTorch's counter for another module."""
    supervised = objective.supervised_loops(backbone.loops)
    gates = len(objective.terms(backbone.loops)) if trains == "gate" else 0
    config = getattr(backbone, "config", None)
    if not isinstance(config, ModelConfig):
        return measured_cost(backbone, data.vocab_size, data.length, objective, backward=trains == "all")
    if trains == "all":
        return training_cost(config, data.length, supervised, batch=data.batch_size)
    return frozen_cost(config, data.length, data.batch_size, gates)


def looped_of(cfg: DictConfig, parts: Parts, unique_tokens: int | None = None) -> Looped | None:
    """An arm as the match solver takes it; None unless it trains one of our own backbones with more than one loop."""
    config = getattr(parts.backbone, "config", None)
    if not isinstance(config, ModelConfig) or config.loops < 2 or parts.trains != "all":
        return None
    stated = {key: value for key, value in plain(cfg.backbone).items() if not key.startswith("_")}
    shape = {**stated, "vocab_size": config.vocab_size, "gate": config.gate}
    if "layers" not in stated or ModelConfig(**shape) != config:  # a preset, which states more than the file does
        shape = config.as_dict()
    supervised = parts.objective.supervised_loops(config.loops)
    tokens_per_step = parts.data.batch_size * parts.data.length
    return Looped(shape, parts.data.length, tokens_per_step, parts.steps, supervised, unique_tokens)


def facts(cost: Cost, steps: int, tokens: int, backbone: nn.Module) -> dict[str, Any]:
    """`cost` of study.json and record.json. tokens: trained on, or evaluated where nothing is trained."""
    config = getattr(backbone, "config", None)
    shape = config.shape if isinstance(config, ModelConfig) else type(backbone).__name__
    totals = {"steps": steps, "tokens": tokens, "training_flops": tokens * cost.flops_per_token}
    return {"shape": shape, **cost.as_dict(), **totals}


def _evaluation(cfg: DictConfig, data: Any, backbone: Any) -> Any:
    """What `evaluation` asks of the final model; None where the config has none.

    Raises:
        ConfigError: it names a metric that the data name already.
    """
    if "evaluation" not in cfg or cfg.evaluation is None:
        return None
    evaluation = build(cfg.evaluation, "evaluation")
    for name in evaluation.metric_names(data, backbone.loops):
        if name in (*data.metric_names, *OF_GATES):
            raise ConfigError(f"evaluation: {name}: is a metric of every run already; it needs another name")
    return evaluation
