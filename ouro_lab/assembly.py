"""From a run's config to its parts, on any device: the same for a real run and for the check on the meta device."""

from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from ouro_lab.compute.budget import Budget
from ouro_lab.compute.cost import Cost, training_cost
from ouro_lab.compute.measure import measured_cost
from ouro_lab.compute.solver import Looped
from ouro_lab.config import build, plain
from ouro_lab.model import ModelConfig


@dataclass(frozen=True)
class Parts:
    data: Any
    objective: Any
    backbone: nn.Module
    cost: dict[str, Any]
    steps: int


def assemble(cfg: DictConfig, device: str = "cpu") -> Parts:
    """Builds data, objective and backbone, charges their cost and turns the budget into steps."""
    data = build(cfg.data, "data")
    objective = build(cfg.objective, "objective")
    gate = {"gate": True} if objective.needs_gate else {}
    if device != "meta":
        data.prepare_data()
    torch.manual_seed(cfg.seed)  # for a backbone of one's own that has no `initialise`
    with torch.device(device):
        backbone = build(cfg.backbone, "backbone", vocab_size=data.vocab_size, **gate)
    cost = cost_of(backbone, objective, data)
    tokens_per_step = data.batch_size * data.length
    steps = Budget(**plain(cfg.budget)).steps_for(tokens_per_step, cost.flops_per_token)
    return Parts(data, objective, backbone, facts(cost, steps, tokens_per_step, backbone), steps)


def cost_of(backbone: nn.Module, objective: Any, data: Any) -> Cost:
    """Analytic for our own backbones; measured with PyTorch's counter for another module."""
    supervised = objective.supervised_loops(backbone.loops)
    config = getattr(backbone, "config", None)
    if isinstance(config, ModelConfig):
        return training_cost(config, data.length, supervised, batch=data.batch_size)
    return measured_cost(backbone, data.vocab_size, data.length, objective)


def looped_of(cfg: DictConfig, parts: Parts, unique_tokens: int | None = None) -> Looped | None:
    """An arm as the match solver takes it; None unless it is one of our own backbones with more than one loop."""
    config = getattr(parts.backbone, "config", None)
    if not isinstance(config, ModelConfig) or config.loops < 2:
        return None
    stated = {key: value for key, value in plain(cfg.backbone).items() if not key.startswith("_")}
    shape = {**stated, "vocab_size": config.vocab_size, "gate": config.gate}
    if "layers" not in stated or ModelConfig(**shape) != config:  # a preset, which states more than the file does
        shape = config.as_dict()
    supervised = parts.objective.supervised_loops(config.loops)
    tokens_per_step = parts.data.batch_size * parts.data.length
    return Looped(shape, parts.data.length, tokens_per_step, parts.steps, supervised, unique_tokens)


def facts(cost: Cost, steps: int, tokens_per_step: int, backbone: nn.Module) -> dict[str, Any]:
    """`cost` of study.json and record.json."""
    config = getattr(backbone, "config", None)
    shape = config.shape if isinstance(config, ModelConfig) else type(backbone).__name__
    tokens = steps * tokens_per_step
    totals = {"steps": steps, "tokens": tokens, "training_flops": tokens * cost.flops_per_token}
    return {"shape": shape, **cost.as_dict(), **totals}
