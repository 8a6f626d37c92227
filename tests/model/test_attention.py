"""Backends that agree, low precision near float32, and the measured choice between backends."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ouro_lab import measured
from ouro_lab.model import LoopedTransformer, ModelConfig, attention
from ouro_lab.model.attention import attend, attention_bias, fastest_backend

CPU = ("cpu", torch.float32, 12, 8, False)


@pytest.fixture(autouse=True)
def forget() -> None:
    fastest_backend.cache_clear()


@pytest.fixture
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OURO_CACHE", str(tmp_path / "here"))
    return tmp_path / "here" / "attention.json"


def build(scramble: Callable, backend: str) -> LoopedTransformer:
    return scramble(
        LoopedTransformer(ModelConfig(31, 2, 3, width=32, heads=4, kv_heads=2, gate=True, attention=backend))
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_backends_agree_in_value_and_gradient(
    kv_heads: int, packed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    q = torch.randn(3, 11, 4, 8, dtype=dtype, requires_grad=True)
    k, v = (torch.randn(3, 11, kv_heads, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    documents = torch.arange(11).expand(3, 11) // 4 if packed else None
    bias = attention_bias(11, documents, torch.device("cpu"))
    probe = torch.randn(3, 11, 4, 8, dtype=dtype)
    found = []
    for backend in ("plain", "sdpa"):
        out = attend(q, k, v, bias, not packed, backend)
        assert out.shape == q.shape
        found.append((out, *torch.autograd.grad(out, (q, k, v), probe)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.detach().abs().max())))


def test_bias_is_causal_and_within_documents() -> None:
    bias = attention_bias(3, torch.tensor([[1, 1, 2], [4, 5, 4]]), torch.device("cpu"))
    seen = bias == 0
    assert (bias[~seen] == float("-inf")).all()
    assert seen.int().tolist() == [[[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [1, 0, 1]]]
    assert (attention_bias(3, None, torch.device("cpu")) == 0).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("backend", ["plain", "sdpa"])
@pytest.mark.parametrize("packed", [False, True])
def test_bf16_autocast_stays_near_float32(backend: str, packed: bool, scramble: Callable) -> None:
    model = build(scramble, backend)
    model.initialise(0)
    tokens = torch.randint(31, (2, 16))
    documents = torch.arange(16).expand(2, 16) // 5 if packed else None
    wide = list(model.loop_states(tokens, documents))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = list(model.loop_states(tokens, documents))
    for got, want in zip(low, wide, strict=True):
        assert got.hidden.dtype == torch.float32  # the residual stream is never rounded
        assert not torch.equal(got.hidden, want.hidden)  # autocast did act
        assert (got.hidden - want.hidden).norm() / want.hidden.norm() < 0.03
    sum(state.hidden.square().sum() for state in low).backward()
    assert all(torch.isfinite(p.grad).all() for n, p in model.named_parameters() if p.grad is not None)


@pytest.mark.parametrize("arguments", [CPU, ("cpu", torch.bfloat16, 12, 8, True)])
def test_the_fastest_backend_is_measured_once_and_kept_on_disk(
    arguments: tuple, cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = fastest_backend(*arguments)
    assert chosen in attention.BACKENDS
    assert list(json.loads(cache_file.read_text()).values()) == [chosen]

    def refuse(*_: object) -> float:
        raise AssertionError("measured again")

    monkeypatch.setattr(attention, "_cost", refuse)
    assert fastest_backend(*arguments) == chosen
    fastest_backend.cache_clear()  # as another process would find it
    assert fastest_backend(*arguments) == chosen


@pytest.mark.parametrize("cheap", ["plain", "sdpa"])
def test_the_cheaper_one_is_chosen(cheap: str, cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_cost", lambda name, *_: 1.0 if name == cheap else 2.0)
    assert fastest_backend(*CPU) == cheap


def test_scores_of_a_long_context_are_not_even_tried(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr(attention, "_cost", lambda name, *_: float(len(tried.append(name) or tried)))
    assert fastest_backend("cpu", torch.float32, 65_536, 64, False) == "sdpa"
    assert fastest_backend("cuda", torch.bfloat16, 65_536, 64, False) == "sdpa"
    assert tried == []
    assert fastest_backend("cpu", torch.float32, 4096, 64, False) == "plain"
    assert tried == ["plain", "sdpa"]


@pytest.mark.parametrize("change", ["device", "dtype", "length", "head_dim", "documents", "matmul_precision"])
def test_whatever_changes_the_cost_is_measured_apart(
    change: str, cache_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []
    monkeypatch.setattr(attention, "_cost", lambda name, *_: float(len(measured.append(name) or measured)))
    fastest_backend(*CPU)
    changed = list(CPU)
    if change == "matmul_precision":
        before = torch.get_float32_matmul_precision()
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: before + "er")
        fastest_backend.cache_clear()
    else:
        place = ["device", "dtype", "length", "head_dim", "documents"].index(change)
        changed[place] = ["cuda", torch.bfloat16, 13, 16, True][place]
    fastest_backend(*changed)
    assert measured == ["plain", "sdpa"] * 2


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "null", '"x"', "7", b"\xff\xfe\x00", None])
def test_a_corrupt_cache_file_is_replaced(content: str | bytes | None, cache_file: Path) -> None:
    cache_file.parent.mkdir()
    if content is not None:
        cache_file.write_bytes(content if isinstance(content, bytes) else content.encode())
    chosen = fastest_backend(*CPU)
    assert list(json.loads(cache_file.read_text()).values()) == [chosen]
    assert [path.name for path in cache_file.parent.iterdir()] == [cache_file.name]  # no half-written file left


def test_an_unknown_backend_in_the_cache_is_measured_anew(cache_file: Path) -> None:
    fastest_backend(*CPU)
    (key,) = json.loads(cache_file.read_text())
    cache_file.write_text(json.dumps({key: "triton", "other": "sdpa"}))
    fastest_backend.cache_clear()
    chosen = fastest_backend(*CPU)
    assert chosen in attention.BACKENDS
    assert json.loads(cache_file.read_text()) == {key: chosen, "other": "sdpa"}


def test_another_process_that_wrote_first_is_followed(cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured_while_another_writes(name: str, *_: object) -> float:
        measured.write(cache_file.name, {key: "sdpa"})
        return 1.0 if name == "plain" else 2.0

    fastest_backend(*CPU)
    (key,) = json.loads(cache_file.read_text())
    cache_file.unlink()
    fastest_backend.cache_clear()
    monkeypatch.setattr(attention, "_cost", measured_while_another_writes)
    assert fastest_backend(*CPU) == "sdpa"


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_auto_works_where_gradients_are_off_and_leaves_the_generator_alone(
    guard: Callable, cache_file: Path, scramble: Callable
) -> None:
    model = build(scramble, "auto")
    tokens = torch.randint(31, (1, 6))
    before = torch.get_rng_state()
    with guard():
        got = model(tokens)
    assert torch.equal(torch.get_rng_state(), before)
    (chosen,) = json.loads(cache_file.read_text()).values()
    assert torch.equal(got, build(scramble, chosen)(tokens))


def test_auto_asks_for_the_dtype_that_autocast_computes_in(scramble: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def answer(device: str, dtype: torch.dtype, *_: object) -> str:
        asked.append(dtype)
        return "plain"

    monkeypatch.setattr(sys.modules[LoopedTransformer.__module__], "fastest_backend", answer)
    model = build(scramble, "auto")
    tokens = torch.randint(31, (1, 6))
    model(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(tokens)
    model.bfloat16()(tokens)
    assert asked == [torch.float32, torch.bfloat16]  # the third was settled by the second


def test_meta_device_needs_no_measurement(cache_file: Path) -> None:
    with torch.device("meta"):
        model = LoopedTransformer(ModelConfig(31, 1, 2))
        assert model(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 5, 31)
    assert not cache_file.exists()
