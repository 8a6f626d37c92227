import pytest
import torch

from ouro_lab.model import LoopedTransformer, iso_flop, iso_parameter, looped, ouro


def released_shapes(layers: int) -> dict[str, tuple[int, ...]]:
    """The released checkpoint's keys, less the `model.` prefix."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (49152, 2048)}
    for i in range(layers):
        for kind in "qkvo":
            shapes[f"layers.{i}.self_attn.{kind}_proj.weight"] = (2048, 2048)
        shapes[f"layers.{i}.mlp.gate_proj.weight"] = shapes[f"layers.{i}.mlp.up_proj.weight"] = (5632, 2048)
        shapes[f"layers.{i}.mlp.down_proj.weight"] = (2048, 5632)
        for norm in ("input", "post_attention"):
            shapes[f"layers.{i}.{norm}_layernorm.weight"] = shapes[f"layers.{i}.{norm}_layernorm_2.weight"] = (2048,)
    return shapes | {
        "norm.weight": (2048,),
        "early_exit_gate.weight": (1, 2048),
        "early_exit_gate.bias": (1,),
        "lm_head.weight": (49152, 2048),
    }


@pytest.mark.parametrize(("layers", "parameters", "tensors"), [(24, 1_434_652_673, 269), (48, 2_667_974_657, 533)])
def test_released_sizes(layers: int, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = ouro(layers)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == released_shapes(layers)
    assert len(shapes) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    config = model.config
    assert (config.loops, config.head_dim, config.kv_heads) == (4, 128, 16)
    assert (config.rope_base, config.norm_eps, config.init_std) == (1e6, 1e-6, 0.02)


def test_released_preset_takes_overrides() -> None:
    with torch.device("meta"):
        model = ouro(2, vocab_size=50, loops=3, width=64, heads=4, ffn_width=100, gate=False)
    assert (model.config.shape, model.config.width, model.early_exit_gate) == ("2⊗3", 64, None)


def body(model: LoopedTransformer) -> int:
    return sum(parameter.numel() for parameter in model.layers.parameters())


def test_controls_follow_from_the_looped_shape() -> None:
    shape = {"layers": 2, "loops": 3, "vocab_size": 17, "width": 16, "heads": 2, "gate": True}
    looping, same_size, same_depth = looped(**shape), iso_parameter(**shape), iso_flop(**shape)
    assert [m.config.shape for m in (looping, same_size, same_depth)] == ["2⊗3", "2⊗1", "6⊗1"]
    assert [m.config.effective_depth for m in (looping, same_size, same_depth)] == [6, 2, 6]
    assert [m.loops for m in (looping, same_size, same_depth)] == [3, 1, 1]
    gate = {"early_exit_gate.weight", "early_exit_gate.bias"}  # one loop has nothing to decide
    assert looping.state_dict().keys() - same_size.state_dict().keys() == gate
    assert body(same_size) == body(looping)
    assert body(same_depth) == 3 * body(looping)
    assert {type(m) for m in (looping, same_size, same_depth)} == {LoopedTransformer}
