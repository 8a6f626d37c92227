"""What a shape costs: one analytic formula per component, from the config and plain integers.

Counted: matrix products, a multiply-add as 2 FLOPs, backward as 2 × forward. A loop saves no backward compute: each
pass needs its own input and weight gradients. Ignored, as PyTorch's counter does: norms, softmax, rotary embedding,
SiLU, GELU, biases, residual additions, the embedding's look-up, the loss, the optimiser (10–20 FLOPs per stored
parameter and step).
Not model FLOPs either, so not matched: what is computed twice to save memory (`recompute`'s loops).
"""

from dataclasses import asdict, dataclass
from typing import Any

from ouro_lab.compute.memory import activation_bytes, gate_activation_bytes, kv_bytes_per_token, optimiser_bytes
from ouro_lab.compute.widths import Widths
from ouro_lab.model.config import ModelConfig

CONVENTIONS = ("causal", "full")
TRAINING = 3  # × forward: forward, the input's gradient, the weight's gradient


@dataclass(frozen=True)
class Parameters:
    """Stored parameters by part. `body`: the layers' matrices and biases; `norms`: the layers' and the final one."""

    embedding: int
    body: int
    norms: int
    head: int
    gate: int

    @property
    def total(self) -> int:
        return self.embedding + self.body + self.norms + self.head + self.gate

    @property
    def recurring(self) -> int:
        """What a loop applies again: matrices and norms."""
        return self.body + self.norms

    @property
    def non_embedding(self) -> int:
        """Without either vocabulary matrix."""
        return self.total - self.embedding - self.head

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Flops:
    """FLOPs per token by component."""

    body: float
    attention: float
    head: float
    gate: float

    @property
    def total(self) -> float:
        return self.body + self.attention + self.head + self.gate

    def times(self, factor: float) -> "Flops":
        return Flops(**{part: factor * value for part, value in self.as_dict().items()})

    def plus(self, other: "Flops") -> "Flops":
        return Flops(**{part: value + getattr(other, part) for part, value in self.as_dict().items()})

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """All that a shape costs. None where it is not known: of a backbone that was measured.

    flops: per trained token, attention counted causally; None if only the full square is known. flops_full: the same
    with attention as the full square (what PaLM's 12·d·S and PyTorch's counter mean). decode_flops: one token, at
    context S. activation_bytes: kept for the backward pass of `batch` sequences.
    """

    parameters: Parameters
    flops: Flops | None
    flops_full: Flops
    activation_bytes: float
    optimiser_bytes: float
    kv_bytes_per_token: float | None = None
    decode_flops: float | None = None
    effective_depth: int | None = None
    method: str = "analytic"

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token, causal where that is known."""
        return (self.flops or self.flops_full).total

    def as_dict(self) -> dict[str, Any]:
        """`cost` of study.json, less what only a budget knows (steps, tokens, training FLOPs)."""
        return {
            "parameters": self.parameters.total,
            "body_parameters": self.parameters.recurring,
            "non_embedding_parameters": self.parameters.non_embedding,
            "parameters_by_part": self.parameters.as_dict(),
            "effective_depth": self.effective_depth,
            "flops_per_token": self.flops_per_token,
            "flops_by_part": (self.flops or self.flops_full).as_dict(),
            "flops_per_token_full_square": self.flops_full.total,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "activation_bytes": self.activation_bytes,
            "optimiser_bytes": self.optimiser_bytes,
            "decode_flops": self.decode_flops,
            "method": self.method,
        }


def training_cost(
    config: ModelConfig,
    length: int,
    supervised_loops: int | None = None,
    batch: int = 1,
    document_length: float | None = None,
) -> Cost:
    """Cost of training `config` on sequences of `length` tokens.

    supervised_loops: loops, or read-outs, with a loss of their own; None for all. batch: sequences held at once (the
    micro-batch); it changes activation bytes alone. document_length: see `forward_flops`.
    """
    causal, full = (
        forward_flops(config, length, supervised_loops, convention, document_length).times(TRAINING)
        for convention in CONVENTIONS
    )
    stored = stored_parameters(config)
    return Cost(
        parameters=stored,
        flops=causal,
        flops_full=full,
        activation_bytes=activation_bytes(config, length, batch, supervised_loops=supervised_loops or config.states),
        optimiser_bytes=optimiser_bytes(stored.total),
        kv_bytes_per_token=kv_bytes_per_token(config),
        decode_flops=decode_flops(config, length).total,
        effective_depth=config.effective_depth,
    )


def frozen_cost(config: ModelConfig, length: int, batch: int = 1, gates: int = 0) -> Cost:
    """Cost where the trunk learns nothing: a forward pass with a head per loop, as every loop's loss is read.

    gates: so many exit gates train, each with its weight's gradient alone, for its input has none (Stage II); 0 where
    the model is evaluated. `length` and `batch` as in `training_cost`.
    """
    slopes = Flops(body=0, attention=0, head=0, gate=2 * config.width * gates)
    causal, full = (forward_flops(config, length, None, convention).plus(slopes) for convention in CONVENTIONS)
    stored = stored_parameters(config)
    return Cost(
        parameters=stored,
        flops=causal,
        flops_full=full,
        activation_bytes=gate_activation_bytes(config, length, batch, gates) if gates else 0,
        optimiser_bytes=optimiser_bytes(stored.gate if gates else 0),
        kv_bytes_per_token=kv_bytes_per_token(config),
        decode_flops=decode_flops(config, length).total,
        effective_depth=config.effective_depth,
    )


def stored_parameters(config: ModelConfig) -> Parameters:
    """Ouro-1.4B: 51,388,416 per layer with its norms, 1,434,652,673 in all."""
    vocabulary, widths = config.vocab_size * config.width, Widths.of(config)
    vectors = 1 if config.norm == "rms" else 2  # a norm's gain, LayerNorm's shift
    return Parameters(
        embedding=vocabulary,
        body=config.layers * (widths.layer_matrices + (widths.layer_biases if config.bias else 0)),
        norms=vectors * (config.norms * config.layers + 1) * config.width,
        head=0 if config.tie_embeddings else vocabulary,
        gate=config.width + 1 if config.gate else 0,
    )


def forward_flops(
    config: ModelConfig,
    length: int,
    supervised_loops: int | None = None,
    convention: str = "causal",
    document_length: float | None = None,
) -> Flops:
    """Forward FLOPs per token, averaged over the positions of a sequence.

    Attention (scores and mix), per layer pass: `causal` 2·d_q·(S + 1), exact, as a position sees (S + 1)/2 keys in the
    mean; `full` 4·d_q·S. A coda runs once per supervised loop, with a gate, which reads behind it, once per loop.
    document_length: with attention inside packed documents, their mean squared length over their
    mean length, Σℓ²/Σℓ, stands for S. A head per supervised loop, tied or not: the product is there. A gate per loop,
    also in the last one, whose hazard Stage I computes and never uses.

    Raises:
        ValueError: supervised loops outside 1 … T, or an unknown convention.
    """
    supervised = config.states if supervised_loops is None else supervised_loops
    if not 1 <= supervised <= config.states:
        raise ValueError(f"supervised_loops = {supervised}: must be in 1 … {config.states} (backbone.loops)")
    if convention not in CONVENTIONS:
        raise ValueError(f"convention = {convention!r}: must be one of {', '.join(CONVENTIONS)}")
    seen = length if document_length is None else document_length
    keys = seen if convention == "full" else (seen + 1) / 2
    return _flops(config, keys, heads=supervised)


def decode_flops(config: ModelConfig, context: int) -> Flops:
    """FLOPs of one new token that attends to `context` positions, itself among them: all loops, one head."""
    return _flops(config, context, heads=1)


def _flops(config: ModelConfig, keys: float, heads: int) -> Flops:
    """One token, forward, that attends to `keys` positions in every layer pass."""
    widths = Widths.of(config)
    passes = config.prelude + config.core * config.loops + config.coda * config.codas(heads)
    return Flops(
        body=2 * widths.layer_matrices * passes,
        attention=4 * widths.query * keys * passes,
        head=2 * config.width * config.vocab_size * heads,
        gate=2 * config.width * config.states if config.gate else 0,
    )
