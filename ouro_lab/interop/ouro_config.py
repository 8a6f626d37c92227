"""Ouro's config.json: what of it is our shape, what must have one value, and what changes no number.

Fields and values as released; `exit_gate` is ours, and absent where it is true. A field that is in none of the three
lists is refused, since whether it changes the computation is unknown.
"""

from collections.abc import Mapping
from typing import Any

from ouro_lab.model import ModelConfig

SHAPE = {  # Ouro's name: ours
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "intermediate_size": "ffn_width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head_dim",
    "rms_norm_eps": "norm_eps",
    "initializer_range": "init_std",
    "tie_word_embeddings": "tie_embeddings",
    "total_ut_steps": "loops",
    "exit_gate": "gate",
}
ABSENT = {"num_key_value_heads": None, "head_dim": None, "initializer_range": 0.02, "exit_gate": True}
FIXED: dict[str, Any] = {
    "model_type": "ouro",
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "use_sliding_window": False,
    "sliding_window": None,
    # An exit rule is chosen where a model is used. One of the checkpoint's would silently change which loop is read.
    "early_exit_threshold": 1.0,
    "early_exit_step": None,
}
ROPE = ("rope_theta", "rope_parameters", "layer_types")  # read by functions of their own
KEPT = ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "use_cache", "max_window_layers")
FREE = (
    *KEPT, "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "chunk_size", "objective",
    "entropy_weight", "_name_or_path",
)  # fmt: skip
AUTO_MAP = {
    "AutoConfig": "configuration_ouro.OuroConfig",
    "AutoModel": "modeling_ouro.OuroModel",
    "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
}
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OURO_BLOCK: dict[str, Any] = {"norms": 4, "norm": "rms", "mlp": "swiglu", "bias": False, "norm_between_loops": True}
OURO_BLOCK |= {"read_out_every": None, "prelude": 0, "coda": 0}
OWN_OPTIONS = ("init_by_depth", "attention_float32", "attention", "recompute")  # in ouro_lab.json: no config of Ouro's


def read_config(content: Mapping[str, Any], where: str, options: Mapping[str, Any] | None = None) -> ModelConfig:
    """Our shape of a config.json. options: those of `OWN_OPTIONS` that the checkpoint was trained with.

    Raises:
        ValueError: one line naming the field, its value and what would be valid.
    """
    known = {*SHAPE, *FIXED, *ROPE, *FREE}
    for name in content:
        if name not in known:
            raise ValueError(f"{where}: {name} = {content[name]!r}: unknown, so it may change the computation")
    for name, value in FIXED.items():
        if content.get(name, value) != value:
            raise ValueError(f"{where}: {name} = {content[name]!r}: must be {value!r}")
    missing = [name for name in SHAPE if name not in content and name not in ABSENT]
    if missing:
        raise ValueError(f"{where}: lacks {missing[0]}")
    for name in ("tie_word_embeddings", "exit_gate"):
        if not isinstance(content.get(name, True), bool):
            raise ValueError(f"{where}: {name} = {content[name]!r}: must be true or false")
    shape = {ours: content.get(name, ABSENT.get(name)) for name, ours in SHAPE.items()}
    _check_layer_types(content, where)
    try:
        return ModelConfig(**shape, rope_base=_rope_base(content, where), **(options or {}))
    except (ValueError, TypeError) as error:  # the second where a value is of a kind that nothing compares with
        raise ValueError(f"{where}: {error}") from None


def write_config(config: ModelConfig, dtype: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a shape. kept: values of `KEPT`, as imported or as the tokenizer and the data have them.

    Raises:
        ValueError: the block is not Ouro's; names the option.
    """
    for name, value in OURO_BLOCK.items():
        found = getattr(config, name)
        if found != value:
            raise ValueError(f"backbone.{name} = {found!r}: Ouro's layout has no such block; must be {value!r}")
    shape = {name: getattr(config, ours) for name, ours in SHAPE.items() if name != "exit_gate"}
    rope = {"rope_theta": config.rope_base, "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base}}
    layers = {"layer_types": ["full_attention"] * config.layers, "max_window_layers": config.layers}
    fixed = {name: FIXED[name] for name in FIXED if name not in ("attention_bias", "mlp_bias", "early_exit_step")}
    common = {"architectures": ["OuroForCausalLM"], "auto_map": AUTO_MAP, "torch_dtype": dtype, "use_cache": True}
    gate = {} if config.gate else {"exit_gate": False}
    whole = common | fixed | shape | rope | layers | {"max_position_embeddings": 65_536} | gate
    return dict(sorted((whole | {name: value for name, value in kept.items() if name in KEPT}).items()))


def _rope_base(content: Mapping[str, Any], where: str) -> float:
    """transformers 4 writes `rope_theta`, 5 `rope_parameters`; where both are there they must agree."""
    parameters = content.get("rope_parameters") or {}
    if not isinstance(parameters, dict):
        raise ValueError(f"{where}: rope_parameters = {parameters!r}: must be an object")
    for name, value in parameters.items():
        valid = {"rope_type": "default", "partial_rotary_factor": 1.0, "rope_theta": value}
        if name not in valid or value != valid[name]:
            must = f"must be {valid[name]!r}" if name in valid else "unknown, so it may change the computation"
            raise ValueError(f"{where}: rope_parameters.{name} = {value!r}: {must}")
    given = (content.get("rope_theta"), parameters.get("rope_theta"))
    for base in given:
        if base is not None and (not isinstance(base, int | float) or not 0 < base < 1e30):
            raise ValueError(f"{where}: rope_theta = {str(base)[:40]}: must be a number > 0")
    found = {float(base) for base in given if base is not None}
    if len(found) != 1:
        what = "rope_theta and rope_parameters.rope_theta disagree" if found else "lacks rope_theta"
        raise ValueError(f"{where}: {what}")
    return found.pop()


def _check_layer_types(content: Mapping[str, Any], where: str) -> None:
    types = content.get("layer_types")
    layers = content["num_hidden_layers"]
    if types is not None and (not isinstance(types, list) or any(kind != "full_attention" for kind in types)):
        raise ValueError(f"{where}: layer_types = {str(types)[:80]}: must be full_attention alone")
    if types is not None and len(types) != layers:
        raise ValueError(f"{where}: layer_types has {len(types)} entries: must be num_hidden_layers = {layers}")
