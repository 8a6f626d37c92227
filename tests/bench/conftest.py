import pytest

from ouro_lab.bench import machine, timing


@pytest.fixture(autouse=True)
def in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products and copies, and one call a sample."""
    monkeypatch.setattr(machine, "GEMM_SHAPES", ((64, 64, 64), (32, 64, 128)))
    monkeypatch.setattr(machine, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
