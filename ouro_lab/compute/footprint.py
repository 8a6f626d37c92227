"""Memory of one device in a training step, by component, under each way to spread a model over devices."""

from dataclasses import asdict, dataclass, replace

from ouro_lab.compute.cost import TRAINING, forward_flops, stored_parameters
from ouro_lab.compute.memory import activation_bytes, cast_bytes, optimiser_bytes
from ouro_lab.model.config import ModelConfig

FLOAT32, BF16 = 4, 2
MODES = ("single", "ddp", "fsdp")
AHEAD = 2  # blocks gathered at once: the one in use and the one fetched before it is needed


@dataclass(frozen=True)
class Spread:
    """How a step is spread. mode: one of MODES. reshard, narrow: `trainer.strategy`'s reshard_after_forward and
    gather_bf16, of fsdp alone."""

    mode: str = "single"
    world: int = 1
    reshard: bool = True
    narrow: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"strategy = {self.mode}: must be one of {', '.join(MODES)}")

    @property
    def shards(self) -> int:
        return self.world if self.mode == "fsdp" else 1


@dataclass(frozen=True)
class Footprint:
    """Bytes. `gathered`: weights put together from shards; `casts`: weights in bf16, a copy per loop that is kept;
    `peak`: the most at once, less than the sum, as gradients come while activations go."""

    weights: float
    moments: float
    gradients: float
    gathered: float
    casts: float
    activations: float
    logits: float
    peak: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def footprint(
    config: ModelConfig,
    length: int,
    batch: int,
    supervised: int,
    spread: Spread,
    mixed: bool = False,
    logit_rows: int = 512,
) -> Footprint:
    """Of `batch` sequences of `length` tokens at once, with gradients of `supervised` loops' losses.

    mixed: products in bf16 under autocast. logit_rows: of a chunk of the cross-entropy.
    """
    stored = stored_parameters(config)
    blocks, rest = stored.body + stored.norms, stored.total - stored.body - stored.norms
    kept = 1 if config.recompute else config.loops
    weights, moments = FLOAT32 * stored.total / spread.shards, optimiser_bytes(stored.total) / spread.shards
    activations = activation_bytes(config, length, batch, supervised_loops=supervised, mixed=mixed)
    casts = cast_bytes(config) * kept if mixed and not spread.narrow else 0.0
    logits = float(min(logit_rows, batch * length) * config.vocab_size * (BF16 + 2 * FLOAT32 if mixed else 2 * FLOAT32))
    gathered = _gathered(config, blocks, rest, spread)
    gradients = _gradients(config, blocks, rest, spread)
    head = FLOAT32 * config.vocab_size * config.width
    # Before the backward pass the head's gradient alone is there; once the last loop is through, those of all blocks
    # are, as every loop adds to them, and that loop's activations are gone, unless the others are computed again.
    left = 1.0 if config.recompute else (config.loops - 1) / config.loops
    at_loss = activations + casts + head + logits
    after_last_loop = left * (activations + casts) + gradients
    peak = weights + moments + gathered + max(at_loss, after_last_loop)
    return Footprint(weights, moments, gradients, gathered, casts, activations, logits, peak)


def checkpoint_bytes(config: ModelConfig) -> int:
    """Weights and both moments in float32."""
    total = stored_parameters(config).total
    return FLOAT32 * total + optimiser_bytes(total)


def _gathered(config: ModelConfig, blocks: int, rest: int, spread: Spread) -> float:
    if spread.shards == 1:
        return 0.0
    held = min(AHEAD, config.layers) / config.layers if spread.reshard else 1.0
    return (BF16 if spread.narrow else FLOAT32) * blocks * held + FLOAT32 * rest


def _gradients(config: ModelConfig, blocks: int, rest: int, spread: Spread) -> float:
    """DDP's buckets are a second copy. A sharded block's gradient is whole until its first loop is done: with one loop
    of few blocks at once, else of all."""
    if spread.mode == "single":
        return float(FLOAT32 * (blocks + rest))
    if spread.mode == "ddp":
        return float(2 * FLOAT32 * (blocks + rest))
    whole = 1.0 if config.loops > 1 else min(AHEAD, config.layers) / config.layers
    dtype = BF16 if spread.narrow else FLOAT32
    return dtype * blocks * whole + FLOAT32 * rest + FLOAT32 * (blocks + rest) / spread.shards


def again(config: ModelConfig, length: int) -> float:
    """FLOPs per token of what `recompute` computes a second time: the loops but the last, forward."""
    if not config.recompute:
        return 0.0
    forward = forward_flops(config, length, 1)
    return (forward.body + forward.attention) * (config.loops - 1) / config.loops


def passed_bytes(config: ModelConfig, length: int, batch: int, supervised: int, mixed: bool) -> float:
    """Of activations that a step makes, those that are let go and computed again counted as a third more."""
    whole = activation_bytes(replace(config, recompute=False), length, batch, supervised_loops=supervised, mixed=mixed)
    return whole * (1 + (config.loops - 1) / config.loops / TRAINING) if config.recompute else whole
