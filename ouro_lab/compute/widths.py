"""The widths that every formula needs, with the config's optional fields filled in."""

from dataclasses import dataclass

from ouro_lab.model.config import ModelConfig


@dataclass(frozen=True)
class Widths:
    model: int  # d
    query: int  # d_q = heads · head_dim
    key: int  # d_kv
    ffn: int
    ffn_matrices: int = 3  # two of GELU's

    @classmethod
    def of(cls, config: ModelConfig) -> "Widths":
        head_dim = config.head_dim or config.width // config.heads
        return cls(
            model=config.width,
            query=config.heads * head_dim,
            key=(config.kv_heads or config.heads) * head_dim,
            ffn=config.ffn_width or round(2.75 * config.width),
            ffn_matrices=3 if config.mlp == "swiglu" else 2,
        )

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's seven matrices: q and o, k and v, the three of SwiGLU (or two of GELU)."""
        return self.model * (2 * self.query + 2 * self.key + self.ffn_matrices * self.ffn)

    @property
    def layer_biases(self) -> int:
        """Parameters of the biases of those matrices, where they have any."""
        return self.query + 2 * self.key + (self.ffn_matrices - 1) * self.ffn + 2 * self.model
