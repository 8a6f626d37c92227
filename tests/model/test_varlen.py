"""Packed documents through a varlen kernel: its arguments, and equality with masked attention through a CPU twin."""

import re
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, ModelConfig, attention, varlen
from ouro_lab.model.attention import attend, attention_mask, candidates
from ouro_lab.model.varlen import obstacle, spans
from ouro_lab.training.execution import compile_blocks, compiler_works, graphs

DOCUMENTS = torch.tensor([[3, 3, 3, 1, 1, 4, 4, 4], [4, 4, 4, 4, 4, 4, 4, 4]])
CUDA = ("cuda", torch.bfloat16, 8)


def twin(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int) -> Tensor:
    """What the kernels compute, one sequence after another."""
    out = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        assert 0 < end - start <= longest
        keys, values = (x[start:end].repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = torch.einsum("ihd,jhd->hij", q[start:end], keys) * q.shape[-1] ** -0.5
        hidden = torch.ones(end - start, end - start, dtype=torch.bool).triu(1)
        out.append(torch.einsum("hij,jhd->ihd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values))
    return torch.cat(out)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "kernel", lambda: twin)
    monkeypatch.setattr("ouro_lab.model.transformer.obstacle", lambda *_: None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, Callable], None]:
    """Puts a stub module in a kernel's place; the probe forgets what it found before and after."""

    def install(module: str, name: str, function: Callable | None) -> None:
        stub = None if function is None else ModuleType(module)
        if stub is not None:
            setattr(stub, name, function)
        monkeypatch.setitem(sys.modules, module, stub)  # None: the import fails
        varlen.kernel.cache_clear()

    yield install
    varlen.kernel.cache_clear()


def build(attention: str, **changes: object) -> LoopedTransformer:
    shape = {"layers": 2, "loops": 3, "width": 32, "heads": 4, "kv_heads": 2, "gate": True, "init_std": 0.3}
    model = LoopedTransformer(ModelConfig(31, attention=attention, **shape | changes))
    model.initialise(0)
    return model


def test_spans_are_the_stretches_of_every_row() -> None:
    where = spans(DOCUMENTS)
    assert where.ends.tolist() == [0, 3, 5, 8, 16]  # equal ids of two rows are two documents
    assert where.ends.dtype == torch.int32
    assert where.longest == 8
    assert spans(torch.zeros(2, 1, dtype=torch.long)).ends.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_attention_is_the_masked_one_in_value_and_gradient(kv_heads: int, on_cpu: None) -> None:
    q = torch.randn(2, 8, 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 8, kv_heads, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    probe, found = torch.randn_like(q), []
    for backend in ("flash_varlen", "plain"):
        out = attend(q, k, v, attention_mask(backend, 8, DOCUMENTS, q.device), False, backend)
        found.append((out, *torch.autograd.grad(out, (q, k, v), probe)))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_model_is_the_same_and_finds_its_documents_once(
    recompute: bool, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Tensor] = []
    monkeypatch.setattr(attention, "spans", lambda documents: made.append(documents) or spans(documents))
    tokens = torch.randint(31, DOCUMENTS.shape)
    results = []
    for model in (build("flash_varlen", recompute=recompute).double(), build("plain").double()):
        logits = model(tokens, DOCUMENTS)
        logits.square().mean().backward()
        results.append([logits, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(made) == 1  # for six layer passes
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_without_documents_it_is_sdpa() -> None:
    tokens = torch.randint(31, (2, 8))
    assert torch.equal(build("flash_varlen")(tokens), build("sdpa")(tokens))


@pytest.mark.slow
@pytest.mark.skipif(not compiler_works(), reason="no C++ compiler works here")
def test_another_number_of_documents_is_no_new_graph(on_cpu: None) -> None:
    model = build("flash_varlen")
    compile_blocks(model)
    seen = []
    for size in (2, 3, 5):
        documents = (torch.arange(8) // size).expand(2, 8)
        list(model.loop_states(torch.randint(31, (2, 8)), documents))[-1].hidden.sum().backward()
        seen.append(graphs())
    assert seen[0] > 0
    assert len(set(seen)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: "cpu"}, "needs a CUDA device, got cpu; plain and sdpa run anywhere"),
        ({1: torch.float32}, "needs bf16 or fp16 (trainer.precision), got float32"),
        ({2: 12}, "needs backbone.head_dim to be a multiple of 8 up to 256, got 12"),
        ({2: 264}, "needs backbone.head_dim to be a multiple of 8 up to 256, got 264"),
    ],
)
def test_what_stands_in_its_way_is_named(change: dict, message: str) -> None:
    asked = [change.get(place, value) for place, value in enumerate(CUDA)]
    assert obstacle(*asked) == message
    assert "flash_varlen" not in candidates(*asked, documents=True, length=128)


def test_an_absent_kernel_is_one_line(installed: Callable) -> None:
    installed("flash_attn", "flash_attn_varlen_func", None)
    installed("torch.nn.attention.varlen", "varlen_attn", None)
    assert varlen.kernel() is None
    assert obstacle(*CUDA) == (
        "needs flash-attn (pip install --no-build-isolation -e '.[gpu]') or a torch with varlen_attn"
    )


def test_chosen_where_it_cannot_run_is_an_error_that_names_the_key() -> None:
    message = "backbone.attention = flash_varlen: needs a CUDA device, got cpu; plain and sdpa run anywhere"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build("flash_varlen")(torch.zeros_like(DOCUMENTS), DOCUMENTS)


def test_flash_attn_comes_first_and_gets_the_documents(installed: Callable) -> None:
    def stub(q, k, v, cu_q, cu_k, max_q, max_k, dropout_p=0.0, softmax_scale=None, causal=False):  # noqa: ANN202
        assert causal and softmax_scale is None and dropout_p == 0
        assert cu_q is cu_k and (max_q, max_k) == (8, 8)
        return twin(q, k, v, cu_q, max_q)

    installed("flash_attn", "flash_attn_varlen_func", stub)
    check_kernel()
    assert obstacle(*CUDA) is None
    assert candidates(*CUDA, documents=True, length=128) == ["plain", "sdpa", "flash_varlen"]
    assert candidates(*CUDA, documents=False, length=128) == ["plain", "sdpa"]


def test_torch_s_own_stands_in(installed: Callable) -> None:
    def stub(q, k, v, cu_q, cu_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):  # noqa: ANN202
        assert window_size == (-1, 0) and enable_gqa
        assert cu_q is cu_k and (max_q, max_k) == (8, 8)
        return twin(q, k, v, cu_q, max_q)

    installed("flash_attn", "flash_attn_varlen_func", None)
    installed("torch.nn.attention.varlen", "varlen_attn", stub)
    check_kernel()


def test_torch_s_first_releases_are_left_alone(installed: Callable) -> None:
    installed("flash_attn", "flash_attn_varlen_func", None)
    installed("torch.nn.attention.varlen", "varlen_attn", lambda q, k, v, cu_q, cu_k, max_q, max_k, is_causal: None)
    assert varlen.kernel() is None


def check_kernel() -> None:
    """Whatever kernel is found computes the twin's values."""
    q, k = torch.randn(16, 4, 8), torch.randn(16, 2, 8)
    where = spans(DOCUMENTS)
    assert torch.equal(varlen.kernel()(q, k, k, where.ends, where.longest), twin(q, k, k, where.ends, where.longest))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_real_kernel_equals_masked_attention(kv_heads: int) -> None:
    reason = obstacle("cuda", torch.bfloat16, 32)
    if reason:
        pytest.skip(reason)
    documents = (torch.arange(256, device="cuda") // 60).expand(2, 256)
    q = torch.randn(2, 256, 4, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    k, v = (torch.randn(2, 256, kv_heads, 32, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    found = []
    for backend in ("flash_varlen", "plain"):
        out = attend(q, k, v, attention_mask(backend, 256, documents, q.device), False, backend)
        found.append((out, *torch.autograd.grad(out.float().square().sum(), (q, k, v))))
    for got, want in zip(*found, strict=True):
        assert float((got - want).float().norm() / want.float().norm()) < 2e-2
