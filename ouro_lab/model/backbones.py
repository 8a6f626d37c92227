"""Backbones from one (layers, loops) shape: looped, its two controls, and the released sizes."""

import difflib
from dataclasses import fields
from typing import Any

from ouro_lab.model.config import ModelConfig
from ouro_lab.model.transformer import LoopedTransformer


def looped(layers: int, loops: int, **shape: Any) -> LoopedTransformer:
    """`layers⊗loops`: the stack applied `loops` times. `shape` is `ModelConfig`'s other fields."""
    return _model(layers=layers, loops=loops, **shape)


def iso_parameter(layers: int, loops: int, **shape: Any) -> LoopedTransformer:
    """`layers⊗1`: as many stored parameters as `layers⊗loops`, 1/loops of its body FLOPs (regime A)."""
    _check_loops(loops)
    return _model(layers=layers, loops=1, **_without_gate(_whole(shape)))


def iso_flop(layers: int, loops: int, **shape: Any) -> LoopedTransformer:
    """`layers·loops⊗1`: the same effective depth and body FLOPs untied, loops × the body parameters (regime B).

    With `read_out_every=layers` and the looped arm's objective it has as many heads too: deep supervision. A prelude
    and a coda are part of the depth once.
    """
    _check_loops(loops)
    once = shape.get("prelude", 0) + shape.get("coda", 0)
    depth, shape = once + (layers - once) * loops, _whole(shape)
    return _model(layers=depth, loops=1, **(shape if shape.get("read_out_every") else _without_gate(shape)))


def ouro(layers: int, vocab_size: int = 49_152, gate: bool = True, loops: int = 4, **shape: Any) -> LoopedTransformer:
    """The released Ouro family: 24 layers are Ouro-1.4B, 48 are Ouro-2.6B (paper Table 1, released config)."""
    released = {"width": 2048, "heads": 16, "ffn_width": 5632, "rope_base": 1e6} | shape
    return _model(vocab_size=vocab_size, layers=layers, loops=loops, gate=gate, **released)


def _without_gate(shape: dict[str, Any]) -> dict[str, Any]:
    """One loop has nothing to decide: its gate would get no gradient, which data-parallel training refuses."""
    return shape | {"gate": False}


def _whole(shape: dict[str, Any]) -> dict[str, Any]:
    """With one loop nothing stands before or behind it."""
    return {name: value for name, value in shape.items() if name not in ("prelude", "coda")}


def _model(**shape: Any) -> LoopedTransformer:
    valid = [field.name for field in fields(ModelConfig)]
    for name in shape:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
            raise ValueError(f"backbone.{name}: unknown key; did you mean {close}? valid: {', '.join(valid)}")
    return LoopedTransformer(ModelConfig(**shape))


def _check_loops(loops: int) -> None:
    if not isinstance(loops, int) or loops < 1:
        raise ValueError(f"backbone.loops = {loops!r}: must be an integer ≥ 1")
