"""A Llama in GGUF: the decoded tensors, the permutation of q and k, and SmolLM2's loss as transformers computes it."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from interop.test_transformers import interpreters, run

from ouro_lab.data.gguf import read_tensors
from ouro_lab.data.tokenizer import _smollm2_file
from ouro_lab.interop.llama import read_llama

WIDTH, HEADS, KV, FFN, VOCABULARY = 32, 4, 2, 64, 5
F32, Q4_1, Q8_0 = 0, 3, 8


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(tensors: dict[str, tuple[tuple[int, ...], int, bytes]], **changed: object) -> bytes:
    """A GGUF file of version 3, written from its specification."""
    facts = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FFN, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500.0,
        "tokenizer.ggml.tokens": [str(i) for i in range(VOCABULARY)],
    } | changed  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts))
    for name, value in facts.items():
        head += text(name)
        if isinstance(value, list):
            head += struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        elif isinstance(value, str):
            head += struct.pack("<I", 8) + text(value)
        else:
            head += struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    return head + bytes(-len(head) % 32) + data


def layout() -> dict[str, tuple[int, ...]]:
    square, keys = (WIDTH, WIDTH), (WIDTH // HEADS * KV, WIDTH)
    shapes = {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": square, "attn_k": keys, "attn_v": keys}
    shapes |= {"attn_output": square, "ffn_gate": (FFN, WIDTH), "ffn_up": (FFN, WIDTH), "ffn_down": (WIDTH, FFN)}
    names = {f"blk.0.{name}.weight": shape for name, shape in shapes.items()}
    return names | {"token_embd.weight": (VOCABULARY, WIDTH), "output_norm.weight": (WIDTH,)}


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in layout().items()}


def stored(arrays: dict[str, np.ndarray]) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    return {name: (value.shape, F32, value.tobytes()) for name, value in arrays.items()}


def test_quantised_blocks_are_what_the_format_says(tmp_path: Path) -> None:
    """Q4_1: half d, half m, 16 bytes of which the low half bytes come first. Q8_0: half d, 32 signed bytes."""
    q4 = bytes((low | (15 - low) << 4) for low in range(16))
    q8 = bytes((value + 256) % 256 for value in range(-16, 16))
    file = {
        "a": ((2, 32), Q4_1, struct.pack("<ee", 0.5, -3.0) + q4 + struct.pack("<ee", 2.0, 1.0) + q4),
        "b": ((1, 32), Q8_0, struct.pack("<e", 0.25) + q8),
    }
    (tmp_path / "x.gguf").write_bytes(gguf(file))
    found = read_tensors(tmp_path / "x.gguf")
    numbers = np.array([*range(16), *range(15, -1, -1)], np.float32)
    np.testing.assert_array_equal(found["a"], [0.5 * numbers - 3, 2 * numbers + 1])
    np.testing.assert_array_equal(found["b"], [0.25 * np.arange(-16, 16, dtype=np.float32)])


def interleaved(x: np.ndarray, base: float) -> np.ndarray:
    """llama.cpp's rotary embedding: of a head [S, D] the neighbours 2i and 2i + 1 turn together."""
    length, dim = x.shape
    angle = np.arange(length)[:, None] * base ** (-np.arange(0, dim, 2) / dim)[None]
    even, odd = x[:, 0::2], x[:, 1::2]
    out = np.empty_like(x)
    out[:, 0::2] = even * np.cos(angle) - odd * np.sin(angle)
    out[:, 1::2] = even * np.sin(angle) + odd * np.cos(angle)
    return out


def llama(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits [S, V] in float64 from the file's own tensors, with llama.cpp's order of rows in q and k."""
    w = {name.replace("blk.0.", "").removesuffix(".weight"): value.astype(np.float64) for name, value in w.items()}

    def rms(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return gain * x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)

    x, dim = w["token_embd"][ids], WIDTH // HEADS
    u = rms(x, w["attn_norm"])
    q, k, v = (u @ w[f"attn_{part}"].T for part in "qkv")
    mixed = []
    for head in range(HEADS):
        own, key = slice(head * dim, (head + 1) * dim), slice(head // 2 * dim, (head // 2 + 1) * dim)
        scores = interleaved(q[:, own], 500.0) @ interleaved(k[:, key], 500.0).T / np.sqrt(dim)
        scores = np.exp(np.where(np.tri(len(ids), dtype=bool), scores, -np.inf))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v[:, key])
    x = x + np.concatenate(mixed, 1) @ w["attn_output"].T
    u = rms(x, w["ffn_norm"])
    gate = u @ w["ffn_gate"].T
    x = x + (gate / (1 + np.exp(-gate)) * (u @ w["ffn_up"].T)) @ w["ffn_down"].T
    return rms(x, w["output_norm"]) @ w["token_embd"].T


def test_logits_are_llama_cpps_with_its_order_of_rows(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(stored(arrays)))
    model = read_llama(tmp_path / "x.gguf")
    ids = [3, 1, 4, 1, 0, 2, 3]
    got = model(torch.tensor([ids])).detach().numpy()[0]
    np.testing.assert_allclose(got, llama(arrays, ids), rtol=0, atol=2e-4)
    assert model.config.tie_embeddings and model.config.loops == 1 and model.config.norms == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture = 'qwen2': must be llama"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type = 'yarn'"),
        ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count: must be the head size 8"),
        ({"llama.feed_forward_length": 32}, r"ffn_\w+.weight has shape"),
        ({"llama.block_count": 2}, "lacks the tensor layers.1"),
    ],
)
def test_what_is_no_such_llama_is_refused(arrays, changed: dict, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(gguf(stored(arrays), **changed))
    with pytest.raises(ValueError, match=message):
        read_llama(tmp_path / "x.gguf")


def test_broken_files_are_refused(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    whole = gguf(stored(arrays))
    bias = {"blk.0.attn_q.bias": ((WIDTH,), F32, bytes(4 * WIDTH))}
    for data, message in (
        (whole[:-5], "ends before it does"),
        (gguf(stored(arrays) | bias), "lacks|unknown tensor"),
        (gguf(stored(arrays) | {"output_norm.weight": ((WIDTH,), 12, b"")}), "output_norm.weight has type 12"),
        (b"PK" + whole, "must be a GGUF file"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_llama(path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_has_transformers_loss_on_a_real_text(tmp_path: Path) -> None:
    try:
        path = _smollm2_file(None)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if not interpreters():
        pytest.skip("no transformers: pip install -e '.[eval]', or name interpreters in OURO_TRANSFORMERS")
    sentences = (Path(__file__).resolve().parents[2] / "NOTICE").read_text()[:600]
    found = run(interpreters()[0], "gguf_probe.py", str(path), sentences, home=tmp_path)
    ids = torch.tensor([found["ids"]])
    with torch.no_grad():
        logits = read_llama(path)(ids)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
    assert len(found["ids"]) > 64 and 1.0 < found["loss"] < 6.0
    assert float(loss) == pytest.approx(found["loss"], abs=1e-5)
    assert logits[0, -1].topk(5).indices.tolist() == found["top"]
