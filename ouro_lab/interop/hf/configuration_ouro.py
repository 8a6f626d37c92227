"""Configuration of Ouro, a transformer whose stack of layers is applied `total_ut_steps` times (arXiv 2510.25741)."""

from typing import Any

from transformers import PretrainedConfig


class OuroConfig(PretrainedConfig):
    """Fields as in the released config.json, and three of our own.

    exit_gate: false where the model has none. objective: what `labels` give, one of `last_loop` (the default),
    `mean_over_loops`, `stage_one` and `mixture_of_logits`. entropy_weight: β of `stage_one`.

    Raises:
        ValueError: a field whose value this implementation does not compute.
    """

    model_type = "ouro"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (transformers' own form)

    def __init__(
        self,
        vocab_size: int = 49_152,
        hidden_size: int = 2048,
        intermediate_size: int = 5632,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 16,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        total_ut_steps: int = 4,
        rms_norm_eps: float = 1e-6,
        initializer_range: float = 0.02,
        rope_theta: float | None = None,
        rope_parameters: dict[str, Any] | None = None,
        max_position_embeddings: int = 65_536,
        tie_word_embeddings: bool = False,
        exit_gate: bool = True,
        objective: str = "last_loop",
        entropy_weight: float = 0.05,
        use_cache: bool = True,
        layer_types: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads or num_attention_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.total_ut_steps = total_ut_steps
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.rope_theta = rope_theta or (rope_parameters or {}).get("rope_theta", 1e6)
        self.rope_parameters = {"rope_type": "default", "rope_theta": self.rope_theta}
        self.max_position_embeddings = max_position_embeddings
        self.exit_gate = exit_gate
        self.objective = objective
        self.entropy_weight = entropy_weight
        self.use_cache = use_cache
        self.layer_types = layer_types or ["full_attention"] * num_hidden_layers
        _refuse_what_is_not_computed(kwargs, rope_parameters or {}, self.layer_types)
        self.hidden_act, self.attention_dropout = "silu", 0.0
        self.use_sliding_window, self.sliding_window = False, None
        self.early_exit_threshold = 1.0
        rest = {name: value for name, value in kwargs.items() if name not in FIXED}
        super().__init__(tie_word_embeddings=tie_word_embeddings, **rest)


FIXED = {
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    "early_exit_threshold": 1.0,
    "early_exit_step": None,
}


def _refuse_what_is_not_computed(given: dict[str, Any], rope: dict[str, Any], layer_types: list[str]) -> None:
    for name, value in FIXED.items():
        if given.get(name, value) != value:
            raise ValueError(f"{name} = {given[name]!r}: must be {value!r}")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters.rope_type = {rope['rope_type']!r}: must be 'default'")
    if set(layer_types) != {"full_attention"}:
        raise ValueError(f"layer_types = {sorted(set(layer_types))}: must be full_attention alone")
