"""The widths that every formula needs, with the config's optional fields filled in."""

from dataclasses import dataclass

from ouro_lab.model.config import ModelConfig


@dataclass(frozen=True)
class Widths:
    model: int  # d
    query: int  # d_q = heads · head_dim
    key: int  # d_kv
    ffn: int

    @classmethod
    def of(cls, config: ModelConfig) -> "Widths":
        head_dim = config.head_dim or config.width // config.heads
        return cls(
            model=config.width,
            query=config.heads * head_dim,
            key=(config.kv_heads or config.heads) * head_dim,
            ffn=config.ffn_width or round(2.75 * config.width),
        )

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's seven matrices: q and o, k and v, the three of SwiGLU."""
        return self.model * (2 * self.query + 2 * self.key + 3 * self.ffn)
