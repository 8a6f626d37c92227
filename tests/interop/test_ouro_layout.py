"""Ouro's layout, in and out: the same bytes back, the dtype kept, and everything else refused in one line."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_twin import build, expected, tokens, weights
from safetensors.torch import load_file, save_file

from ouro_lab.interop import open_trunk, read_ouro, write_ouro
from ouro_lab.interop.ouro import shapes
from ouro_lab.model import LoopedTransformer, ModelConfig, ouro

SHARDS = 3000


def twin(
    kv_heads: int = 2, tied: bool = False, loops: int = 3, dtype: torch.dtype = torch.float32
) -> LoopedTransformer:
    model = build(kv_heads, tied, loops).to(dtype)
    model.load_state_dict(weights(kv_heads, tied))
    return model


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("max_shard_bytes", [None, SHARDS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_import_and_export_give_every_file_back_byte_by_byte(
    tied: bool, max_shard_bytes: int | None, dtype: str, tmp_path: Path
) -> None:
    write_ouro(tmp_path / "a", twin(tied=tied), dtype=dtype, max_shard_bytes=max_shard_bytes)
    model, config = read_ouro(tmp_path / "a")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    write_ouro(tmp_path / "b", model, kept=config, max_shard_bytes=max_shard_bytes)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert (len(list((tmp_path / "a").glob("*.safetensors"))) == 1) == (max_shard_bytes is None)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("loops", [1, 2, 3, 4])
def test_what_comes_back_computes_the_released_equations(kv_heads: int, tied: bool, loops: int, tmp_path: Path) -> None:
    write_ouro(tmp_path / "a", twin(kv_heads, tied, loops, torch.float64))
    model, _ = read_ouro(tmp_path / "a")
    states, logits, _ = expected(kv_heads, tied, loops, False)
    torch.testing.assert_close(model(tokens()), logits, rtol=1e-9, atol=1e-9)
    for got, want in zip(model.loop_states(tokens()), states, strict=True):
        torch.testing.assert_close(got.hidden, want.hidden, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.gate_logit, want.gate_logit, rtol=1e-9, atol=1e-9)


def test_the_names_shapes_and_fields_of_the_released_1_4b(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = ouro(24)
    found = shapes(model.config)
    layer = "model.layers.23."
    assert len(found) == 269
    assert sum(torch.Size(shape).numel() for shape in found.values()) == 1_434_652_673
    assert found[layer + "self_attn.k_proj.weight"] == (2048, 2048)
    assert found[layer + "mlp.down_proj.weight"] == (2048, 5632)
    assert found[layer + "post_attention_layernorm_2.weight"] == (2048,)
    assert found["model.early_exit_gate.bias"] == (1,)
    write_ouro(tmp_path / "a", twin())
    written = json.loads((tmp_path / "a/config.json").read_text())
    released = {
        "model_type": "ouro", "architectures": ["OuroForCausalLM"], "hidden_act": "silu", "attention_dropout": 0.0,
        "early_exit_threshold": 1.0, "rope_scaling": None, "use_sliding_window": False, "sliding_window": None,
        "max_position_embeddings": 65536, "use_cache": True, "initializer_range": 0.02, "total_ut_steps": 3,
        "layer_types": ["full_attention"] * 2, "rope_theta": 100.0, "torch_dtype": "float32", "head_dim": 4,
    }  # fmt: skip
    assert released.items() <= written.items()
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 100.0}
    assert written["auto_map"]["AutoModelForCausalLM"] == "modeling_ouro.OuroForCausalLM"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sliding_window", 4096), ("use_sliding_window", True), ("rope_scaling", {"rope_type": "yarn", "factor": 4}),
        ("hidden_act", "gelu"), ("attention_dropout", 0.1), ("attention_bias", True), ("model_type", "llama"),
        ("early_exit_threshold", 0.9), ("early_exit_step", 1), ("logit_softcap", 30.0), ("hidden_size", 12.5),
        ("layer_types", ["full_attention", "sliding_attention"]), ("layer_types", ["full_attention"]),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 100.0}), ("rope_theta", 10.0),
        ("rope_parameters", {"rope_theta": 100.0, "mrope_section": [1]}), ("tie_word_embeddings", "no"),
    ],
)  # fmt: skip
def test_a_value_that_would_change_the_computation_is_refused_by_name(field: str, value: Any, tmp_path: Path) -> None:
    write_ouro(tmp_path / "a", twin())
    path = tmp_path / "a/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    name = {"hidden_size": "width"}.get(field, field)
    with pytest.raises(ValueError, match=name) as error:
        read_ouro(tmp_path / "a")
    assert "\n" not in str(error.value)


def _change(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return on


NORM, HEAD = "model.norm.weight", "lm_head.weight"


class Bomb:
    def __reduce__(self) -> tuple:
        return (pytest.fail, ("a pickled file was executed",))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def _pickle_in_disguise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))


def _bad_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + data[8:])


def _vocabulary(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 14}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_change(lambda t: t.pop(NORM)), f"lacks the tensor {NORM}"),
        (_change(lambda t: t.update(extra=t[NORM].clone())), "unknown tensor extra"),
        (_change(lambda t: t.update({NORM: torch.ones(11)})), rf"{NORM} has shape \[11\]: config.json says \[12\]"),
        (_change(lambda t: t.update({NORM: t[NORM].half()})), f"{NORM} is float16"),
        (_change(lambda t: t.update({NORM: t[NORM].int()})), f"{NORM} is int32"),
        (_vocabulary, r"lm_head.weight has shape \[13, 12\]|embed_tokens.weight has shape \[13, 12\]"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-7]), "not a whole"),
        (_bad_header, "model.safetensors: not a whole safetensors file"),
        (_pickle_in_disguise, "model.safetensors: not a whole safetensors file"),
        (_pickled, "pytorch_model.bin: pickled weights may run code"),
        (lambda f: (f / "model.safetensors").unlink(), "has neither"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "config.json: lacks vocab_size"),
    ],
)
def test_weights_that_are_not_the_models_are_refused_in_one_line(break_it, message: str, tmp_path: Path) -> None:
    write_ouro(tmp_path / "a", twin())
    break_it(tmp_path / "a")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        open_trunk(tmp_path / "a")
    assert "\n" not in str(error.value)


def _edit_index(edit: Callable[[dict], Any]) -> Callable[[Path], None]:
    def on(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        edit(index)
        path.write_text(json.dumps(index))

    return on


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: next(f.glob("model-00002*")).unlink(), r"model-00002-of-\d+.safetensors: no such file"),
        (lambda f: shutil.copy(next(f.glob("model-00001*")), f / "model.safetensors"), "holds both"),
        (_edit_index(lambda i: i["weight_map"].pop(NORM)), f"unknown tensor {NORM}"),
        (_edit_index(lambda i: i["weight_map"].update({NORM: min(i["weight_map"].values())})), NORM),
        (_edit_index(lambda i: i["weight_map"].update({NORM: "../x.safetensors"})), "must be a .safetensors file"),
        (_edit_index(lambda i: i["metadata"].update(total_size=1)), "total_size = 1"),
        (_edit_index(lambda i: i.update(weight_map={})), "weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_shards_is_refused(break_it, message: str, tmp_path: Path) -> None:
    write_ouro(tmp_path / "a", twin(), max_shard_bytes=SHARDS)
    break_it(tmp_path / "a")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_ouro(tmp_path / "a")


@pytest.mark.parametrize(
    ("option", "value"),
    [("norms", 2), ("norm", "layer"), ("mlp", "gelu"), ("bias", True), ("norm_between_loops", False)],
)
def test_a_block_that_is_not_ouros_is_not_exported(option: str, value: Any, tmp_path: Path) -> None:
    shape = {"vocab_size": 13, "layers": 2, "width": 8, "heads": 2}
    model = LoopedTransformer(ModelConfig(**shape, **{option: value}))
    with pytest.raises(ValueError, match=rf"backbone.{option} = {value!r}: Ouro's layout has no such block"):
        write_ouro(tmp_path / "a", model)
    deep = LoopedTransformer(ModelConfig(13, 2, width=8, heads=2, read_out_every=1))
    with pytest.raises(ValueError, match="backbone.read_out_every = 1"):
        write_ouro(tmp_path / "a", deep)
    assert not list(tmp_path.iterdir())


def test_an_export_is_whole_or_absent_and_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ouro(tmp_path / "a", twin())
    before = content(tmp_path / "a")
    with pytest.raises(FileExistsError, match="exists; must be a new one"):
        write_ouro(tmp_path / "a", twin(loops=2))
    assert content(tmp_path / "a") == before

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space left"):
        write_ouro(tmp_path / "b", twin())
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"eos_token_id": 13}, "eos_token_id = 13: must be an id below vocab_size = 13"),
        ({"eos_token_id": 0}, r"eos_token_id = 0: the tokenizer says <\|im_end\|>, which is 2"),
        ({"pad_token_id": 1, "eos_token_id": 2}, "pad_token_id = 1: the tokenizer says <pad>, which is None"),
        ({"eos_token_id": [0, 2]}, None),
    ],
)
def test_token_ids_are_those_of_the_tokenizer(ids: dict, message: str | None, tmp_path: Path) -> None:
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    said = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<pad>"}
    files = {"tokenizer.json": json.dumps({"model": {"vocab": vocabulary}}), "tokenizer_config.json": json.dumps(said)}
    if message is None:
        write_ouro(tmp_path / "a", twin(), kept=ids, files=files)
        assert json.loads((tmp_path / "a/generation_config.json").read_text())["eos_token_id"] == [0, 2]
    else:
        with pytest.raises(ValueError, match=message):
            write_ouro(tmp_path / "a", twin(), kept=ids, files=files)


def test_a_model_without_a_gate_comes_back_without_one(tmp_path: Path) -> None:
    model = LoopedTransformer(ModelConfig(13, 2, loops=2, width=8, heads=2))
    model.initialise(0)
    write_ouro(tmp_path / "a", model)
    again, config = read_ouro(tmp_path / "a")
    assert config["exit_gate"] is False and again.early_exit_gate is None
    assert torch.equal(again(tokens()), model(tokens()))
