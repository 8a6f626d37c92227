"""The shape of a looped transformer."""

from dataclasses import dataclass, fields

ATTENTION_BACKENDS = ("auto", "plain", "sdpa", "flash_varlen")
NORMS = ("rms", "layer")
MLPS = {"swiglu": 2.75, "gelu": 4}  # feed-forward width over width, where none is given


@dataclass(frozen=True)
class ModelConfig:
    """One (layers, loops) shape; every baseline is another value of it, never another class.

    Defaults follow the released Ouro where it fixes a ratio (feed-forward width 2.75 × width, eps 1e-6, init 0.02), and
    in the block. The block's other values are GPT-2's, which the paper's controlled experiments start from.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """

    vocab_size: int
    layers: int
    loops: int = 1
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: width / heads
    ffn_width: int | None = None  # None: 2.75 × width of SwiGLU, 4 × of GELU
    tie_embeddings: bool = False
    gate: bool = False
    rope_base: float = 10_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    init_by_depth: bool = False  # what a branch adds starts 1/√(2·L·T) as large: 2·L·T branches are added in all
    norms: int = 4  # per layer: 4 before and after attention and MLP (as released), 2 before them only (as written)
    norm: str = "rms"
    mlp: str = "swiglu"
    bias: bool = False  # of the layers' linear maps
    norm_between_loops: bool = True  # the next loop reads the normed state (as released); else head and gate alone do
    attention_float32: bool = False  # rotary embedding, scores and mix in float32 also under mixed precision
    attention: str = "auto"
    prelude: int = 0  # of the layers, so many run once before the loops,
    coda: int = 0  # and so many behind the loop that is read out; the layers between them are looped
    read_out_every: int | None = None  # with one loop: a state after every so many layers, for heads at equal depths
    recompute: bool = False  # keep the state between loops only, and compute a loop again in the backward pass

    def __post_init__(self) -> None:
        _require_counts(self, "vocab_size", "layers", "loops", "width", "heads")
        if self.head_dim is None:
            _require(self.width % self.heads == 0, self, "heads", f"a divisor of width ({self.width})")
            object.__setattr__(self, "head_dim", self.width // self.heads)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        _require(self.mlp in MLPS, self, "mlp", f"one of {', '.join(MLPS)}")
        if self.ffn_width is None:
            object.__setattr__(self, "ffn_width", round(MLPS[self.mlp] * self.width))
        _require_counts(self, "head_dim", "kv_heads", "ffn_width")
        _require(self.head_dim % 2 == 0, self, "head_dim", "an even integer (rotary pairs)")
        _require(self.heads % self.kv_heads == 0, self, "kv_heads", f"a divisor of heads ({self.heads})")
        _require(self.attention in ATTENTION_BACKENDS, self, "attention", f"one of {', '.join(ATTENTION_BACKENDS)}")
        _require(self.norm in NORMS, self, "norm", f"one of {', '.join(NORMS)}")
        _require(self.norms in (2, 4), self, "norms", "2 or 4")
        for name in ("recompute", "init_by_depth", "bias", "norm_between_loops", "attention_float32"):
            _require(isinstance(getattr(self, name), bool), self, name, "true or false")
        for name, other in (("prelude", self.coda), ("coda", self.prelude)):
            value, most = getattr(self, name), self.layers - 1 - (other if isinstance(other, int) else 0)
            counts = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
            _require(counts, self, name, f"an integer from 0 to {most}, so that of {self.layers} layers one is looped")
        if self.read_out_every is not None:
            _require_counts(self, "read_out_every")
            whole = self.loops == 1 and not self.prelude + self.coda
            fits = whole and not self.recompute and self.layers % self.read_out_every == 0
            valid = f"a divisor of layers ({self.layers}), with loops = 1 and without recompute, prelude and coda"
            _require(fits, self, "read_out_every", valid)
        for name in ("rope_base", "norm_eps", "init_std"):
            value = getattr(self, name)
            _require(isinstance(value, int | float) and value > 0, self, name, "a number > 0")

    @property
    def core(self) -> int:
        """Layers that are looped."""
        return self.layers - self.prelude - self.coda

    @property
    def effective_depth(self) -> int:
        """Layer passes up to the last loop's read-out."""
        return self.prelude + self.core * self.loops + self.coda

    def codas(self, read: int) -> int:
        """How often the coda runs where `read` loops are read out: the gate reads behind it in every loop."""
        return self.states if self.gate else read

    @property
    def states(self) -> int:
        """How many a forward pass yields: one per loop, or one per read-out."""
        return self.layers // self.read_out_every if self.read_out_every else self.loops

    @property
    def shape(self) -> str:
        """`L⊗T`, the paper's notation; with a prelude and a coda `p + L⊗T + c`."""
        looped = f"{self.core}⊗{self.loops}"
        return f"{self.prelude} + {looped} + {self.coda}" if self.prelude + self.coda else looped

    def as_dict(self) -> dict[str, int | float | str | bool | None]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


def _require_counts(config: ModelConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        _require(counts, config, name, "an integer ≥ 1")


def _require(condition: bool, config: ModelConfig, name: str, valid: str) -> None:
    if not condition:
        raise ValueError(f"backbone.{name} = {getattr(config, name)!r}: must be {valid}")
