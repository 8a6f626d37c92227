"""The checkpoint that CKPT= names, as a study's parts: its shape, its tokenizer, and what is said before it runs."""

import os
from collections.abc import Mapping
from dataclasses import replace

from ouro_lab import estimate
from ouro_lab.assembly import Parts
from ouro_lab.claims import known
from ouro_lab.compute.hardware import peak_flops
from ouro_lab.config import ConfigError
from ouro_lab.data.tokenizer import TextTokenizer
from ouro_lab.interop import Trunk
from ouro_lab.model import LoopedTransformer, ouro
from ouro_lab.starts import CKPT, given, opened
from ouro_lab.study import Study

GPU, GPU_SHARE = "H100", 0.4  # of its peak: what large batches of forward passes usually reach


def backbone(
    vocab_size: int, loops: int | None = None, layers: int | None = None, gate: bool = False
) -> LoopedTransformer:
    """The checkpoint's shape; without one a released shape, of 24 layers if `layers` is not given, to tell the cost of.

    loops: other than trained. layers: those that the checkpoint must have: of a study that is about one size.

    Raises:
        ConfigError: another number of layers.
        ValueError: `vocab_size`, the tokenizer's, is not the model's.
    """
    trunk = _trunk()
    config = ouro(layers or 24).config if trunk is None else trunk.model.config
    if layers is not None and config.layers != layers:
        raise ConfigError(f"{CKPT} = {os.environ[CKPT]}: has {config.layers} layers; must have {layers} in this study")
    if vocab_size != config.vocab_size:
        raise ValueError(f"vocab_size = {vocab_size}: must be the checkpoint's {config.vocab_size}")
    return LoopedTransformer(replace(config, loops=loops or config.loops, gate=config.gate or gate))


def tokenizer() -> TextTokenizer | None:
    """The checkpoint's own; None without a checkpoint.

    Raises:
        ConfigError: it has none.
    """
    trunk = _trunk()
    if trunk is not None and trunk.tokenizer is None:
        raise ConfigError(f"{CKPT} = {os.environ[CKPT]}: has no tokenizer.json; must have one, as questions are text")
    return None if trunk is None else trunk.tokenizer


def lines(study: Study, parts: Mapping[str, Parts]) -> list[str]:
    """What a study of a given checkpoint costs, here and on one GPU, and what was published; nothing of other studies.

    FLOPs: the test set's pass in every run and, where an evaluation says how many `positions` it computes besides,
    those too; decoding is bound by memory, so that hours are then too few.
    """
    if study.config.init_from != CKPT:
        return []
    runs = len(study.definition.seeds)
    flops = runs * sum(part.cost["flops_per_token"] * _positions(part) for part in parts.values())
    here = flops / estimate.rate(study) / estimate.slots(study) / 3600
    there = flops / (GPU_SHARE * (peak_flops(GPU) or 0.0)) / 3600
    shapes = ", ".join(dict.fromkeys(part.cost["shape"] for part in parts.values()))
    found = [f"cost of {shapes}: {flops:.2g} FLOPs in {runs * len(parts)} runs"]
    found.append(f"  about {_hours(here)} on this machine, {_hours(there)} on one {GPU} at {GPU_SHARE:.0%} of its peak")
    for claim in (known()[name] for name in study.definition.claim):
        found.append(f"{claim.id}: {claim.statement}\n  published: {claim.published} ({claim.source})")
    return found


def _trunk() -> Trunk | None:
    return opened(given()) if os.environ.get(CKPT) else None


def _positions(part: Parts) -> float:
    more = getattr(part.evaluation, "positions", None)
    return part.cost["tokens"] + (more(part.data, part.backbone.loops) if more is not None else 0)


def _hours(hours: float) -> str:
    return f"{hours:,.0f} hours" if hours >= 10 else f"{hours:.2g} hours"
