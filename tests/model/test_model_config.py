import re
from typing import Any

import pytest

from ouro_lab.model import ModelConfig, iso_flop, iso_parameter, looped, ouro

READ_OUTS = "must be a divisor of layers (2), with loops = 1 and without recompute, prelude and coda"
VALID = {"vocab_size": 11, "layers": 2, "loops": 3, "width": 24, "heads": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "backbone.vocab_size = 0: must be an integer ≥ 1"),
        ({"layers": 0}, "backbone.layers = 0: must be an integer ≥ 1"),
        ({"loops": 0}, "backbone.loops = 0: must be an integer ≥ 1"),
        ({"loops": 2.0}, "backbone.loops = 2.0: must be an integer ≥ 1"),
        ({"loops": True}, "backbone.loops = True: must be an integer ≥ 1"),
        ({"width": "64"}, "backbone.width = '64': must be an integer ≥ 1"),
        ({"heads": 5}, "backbone.heads = 5: must be a divisor of width (24)"),
        ({"heads": 8}, "backbone.head_dim = 3: must be an even integer (rotary pairs)"),
        ({"head_dim": 7}, "backbone.head_dim = 7: must be an even integer (rotary pairs)"),
        ({"head_dim": 0}, "backbone.head_dim = 0: must be an integer ≥ 1"),
        ({"head_dim": 8.0}, "backbone.head_dim = 8.0: must be an integer ≥ 1"),
        ({"kv_heads": 3}, "backbone.kv_heads = 3: must be a divisor of heads (4)"),
        ({"kv_heads": 0}, "backbone.kv_heads = 0: must be an integer ≥ 1"),
        ({"kv_heads": "2"}, "backbone.kv_heads = '2': must be an integer ≥ 1"),
        ({"ffn_width": 0}, "backbone.ffn_width = 0: must be an integer ≥ 1"),
        ({"ffn_width": 66.0}, "backbone.ffn_width = 66.0: must be an integer ≥ 1"),
        ({"rope_base": 0}, "backbone.rope_base = 0: must be a number > 0"),
        ({"norm_eps": -1e-6}, "backbone.norm_eps = -1e-06: must be a number > 0"),
        ({"init_std": 0.0}, "backbone.init_std = 0.0: must be a number > 0"),
        ({"init_std": "0.02"}, "backbone.init_std = '0.02': must be a number > 0"),
        ({"attention": "flash"}, "backbone.attention = 'flash': must be one of auto, plain, sdpa, flash_varlen"),
        ({"read_out_every": 2}, f"backbone.read_out_every = 2: {READ_OUTS}"),  # of three loops
        ({"loops": 1, "read_out_every": 3}, f"backbone.read_out_every = 3: {READ_OUTS}"),
        ({"loops": 1, "read_out_every": 0}, "backbone.read_out_every = 0: must be an integer ≥ 1"),
        ({"recompute": "yes"}, "backbone.recompute = 'yes': must be true or false"),
    ],
)
def test_one_line_names_field_value_and_what_is_valid(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ModelConfig(**VALID | change)


@pytest.mark.parametrize("build", [looped, iso_parameter, iso_flop])
def test_no_loops_are_refused_in_every_arm(build: Any) -> None:
    with pytest.raises(ValueError, match=r"^backbone\.loops = 0: must be an integer ≥ 1$"):
        build(layers=2, loops=0, vocab_size=11)


@pytest.mark.parametrize("build", [looped, iso_parameter, iso_flop])
def test_a_misspelt_key_names_the_nearest_valid_one(build: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^backbone\.widht: unknown key; did you mean width\? valid: vocab_size, "
    ) as error:
        build(layers=2, loops=2, vocab_size=11, widht=3)
    assert "\n" not in str(error.value)


def test_a_misspelt_key_of_the_released_preset() -> None:
    with pytest.raises(ValueError, match=r"^backbone\.rope_theta: unknown key; did you mean rope_base\?"):
        ouro(24, rope_theta=1e4)


def test_defaults_follow_from_width_and_heads() -> None:
    config = ModelConfig(**VALID)
    assert (config.head_dim, config.kv_heads, config.ffn_width) == (6, 4, 66)
    assert (config.shape, config.effective_depth) == ("2⊗3", 6)
    assert ModelConfig(**config.as_dict()) == config
    assert ModelConfig(**VALID | {"heads": 5, "head_dim": 4}).head_dim == 4  # heads need not divide the width then


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        ModelConfig(**VALID).loops = 4
