"""Runs become trunks: the same weights, a tokenizer that needs nothing else, and where they come from."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from tests_support import TINY

from ouro_lab import records
from ouro_lab.data.tokenizer import BPETokenizer, ByteTokenizer, SmolLM2Tokenizer, TextTokenizer
from ouro_lab.data.tokenizer_file import TokenizerFile, tokenizer_files
from ouro_lab.interop import Trunk, export_trunk, open_trunk
from ouro_lab.interop.__main__ import main
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.study import Run, Study
from ouro_lab.training.checkpoint import AtomicCheckpointIO

TEXTS = ["Looped models think twice.", "naïve café — 北京 🙂\n\t12 345", "<|endoftext|> is text here", ""]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run's directory as training leaves it, with two checkpoints."""
    run = Study("p_hop", TINY).run("looped", 1e-2, 0)
    records.begin(run.directory, run.identity(), run.config)
    cost = {"steps": 12, "tokens": 1200, "training_flops": 1.0}
    records.note(run.directory, {"cost": cost, "git": {"commit": "abc123", "dirty": False}})
    vocabulary = _vocabulary(run)
    for step in (8, 12):
        model = LoopedTransformer(ModelConfig(vocabulary, 2, loops=3, width=16, heads=2, init_std=0.1))
        model.initialise(step)
        state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
        path = run.directory / "checkpoints" / f"step={step:08d}.ckpt"
        AtomicCheckpointIO().save_checkpoint({"state_dict": state}, path)
    records.write_final(run.directory, {"final/loss": 0.5, "final/accuracy": float("nan")}, 1.0, 12, cost)
    return run


def _vocabulary(run: Run) -> int:
    from omegaconf import OmegaConf

    from ouro_lab.config import build

    return build(OmegaConf.create(run.config["data"]), "data").vocab_size


def test_a_run_is_exported_with_where_it_comes_from(run: Run, tmp_path: Path) -> None:
    opened = open_trunk(run.directory)
    trunk = export_trunk(run.directory, tmp_path / "trunk")
    assert trunk.digest == opened.digest == open_trunk(tmp_path / "trunk").digest
    want = LoopedTransformer(trunk.model.config)
    want.initialise(12)
    assert all(torch.equal(trunk.model.state_dict()[name], value) for name, value in want.state_dict().items())
    own = json.loads((tmp_path / "trunk/ouro_lab.json").read_text())
    assert own["schema"] == 1 and own["study"] == "p_hop" and own["run"] == run.id and own["seed"] == 0
    assert own["commit"] == "abc123" and own["tokens"] == 1200 and own["step"] == 12
    assert own["metrics"] == {"final/loss": 0.5, "final/accuracy": "NaN"}
    assert own["objective"]["_target_"].endswith("LastLoop")
    assert trunk.data == run.config["data"] and trunk.tokenizer is None
    assert not trunk.model.training


def test_one_checkpoint_of_a_run_is_itself_and_has_no_final_metrics(run: Run) -> None:
    early = open_trunk(run.directory / "checkpoints" / "step=00000008.ckpt")
    assert early.facts["step"] == 8 and early.facts["tokens"] == 800 and early.facts["metrics"] == {}
    assert early.digest != open_trunk(run.directory).digest
    assert open_trunk(f"p_hop/{run.id}").digest == open_trunk(run.directory).digest


def test_options_of_the_block_that_ouros_config_lacks_come_back(tmp_path: Path) -> None:
    options = {"init_by_depth": True, "attention_float32": True, "attention": "plain", "recompute": True}
    model = LoopedTransformer(ModelConfig(13, 2, loops=2, width=8, heads=2, gate=True, **options))
    model.initialise(0)
    trunk = export_trunk(Trunk(model, None, None, ""), tmp_path / "a", dtype="bfloat16")
    assert trunk.model.config == model.config
    assert trunk.model.head_weight.dtype == torch.bfloat16
    again = export_trunk(tmp_path / "a", tmp_path / "b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "b").iterdir()
    }
    assert again.digest == trunk.digest


def test_other_weights_than_ouro_lab_json_tells_of_are_refused(run: Run, tmp_path: Path) -> None:
    export_trunk(run.directory, tmp_path / "a")
    data = bytearray((tmp_path / "a/model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "a/model.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match="ouro_lab.json: digest = "):
        open_trunk(tmp_path / "a")
    path = tmp_path / "a/ouro_lab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(ValueError, match="schema = 2: must be 1"):
        open_trunk(tmp_path / "a")


def trained_bpe() -> TextTokenizer:
    tokenizer = BPETokenizer(400)
    tokenizer.train(TEXTS * 3)  # so short that ids before eos stay unused
    return tokenizer


def smollm2() -> TextTokenizer:
    try:
        return SmolLM2Tokenizer()
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("make", [ByteTokenizer, trained_bpe, smollm2])
def test_a_trunks_tokenizer_is_the_one_it_was_trained_with(make, tmp_path: Path) -> None:
    own = make()
    model = LoopedTransformer(ModelConfig(own.vocab_size, 1, width=4, heads=1, tie_embeddings=True))
    model.initialise(0)
    data = {"_target_": "ouro_lab.data.TextData", "length": 64}
    trunk = export_trunk(Trunk(model, own, data, ""), tmp_path / "a")
    got = trunk.tokenizer
    assert (got.eos, got.vocab_size) == (own.eos, own.vocab_size)
    for mine, theirs in zip(own.encode(TEXTS), got.encode(TEXTS), strict=True):
        assert np.array_equal(mine, theirs) and own.eos not in theirs
    assert [got.decode(ids) for ids in got.encode(TEXTS)] == TEXTS
    np.testing.assert_array_equal(got.token_bytes(), own.token_bytes())
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["eos_token_id"] == config["bos_token_id"] == own.eos and config["max_position_embeddings"] == 64
    # What transformers reads: text that spells eos is eos there, as is usual.
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "a/tokenizer.json"))
    assert plain.encode("<|endoftext|>").ids == [own.eos]
    assert plain.encode(TEXTS[1]).ids == own.encode(TEXTS)[1].tolist()


def test_a_tokenizer_that_loses_bytes_or_has_too_many_is_refused() -> None:
    text = tokenizer_files(ByteTokenizer())["tokenizer.json"]
    for change, message in (
        ({"normalizer": {"type": "Lowercase"}}, "byte-level and without a normalizer"),
        ({"decoder": None}, "byte-level"),
        ({"model": {"type": "no"}}, "not a tokenizer"),
    ):
        with pytest.raises(ValueError, match=message):
            TokenizerFile(json.dumps(json.loads(text) | change), 256, 257)
    with pytest.raises(ValueError, match="has the id 256: must be below the model's vocab_size 256"):
        TokenizerFile(text, 0, 256)


def test_the_command_exports_and_shows(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    target = str(tmp_path / "trunk")
    assert main(["export", f"p_hop/{run.id}", target, "--dtype=bfloat16", "--max-shard-bytes=2000"]) == 0
    assert main(["show", target]) == 0
    out = capsys.readouterr().out
    digest = open_trunk(target).digest
    assert "2⊗3, width 16" in out and digest in out and "1,200 tokens" in out and "final/loss  0.5" in out
    assert f"run {run.id}" in out and "commit abc123" in out and "(bfloat16)" in out
    for words in (["show", str(tmp_path / "none")], ["export", target, target], ["sell"], ["show", target, "--x=1"]):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
