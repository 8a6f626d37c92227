import pytest
import torch

from ouro_lab.compute import hardware
from ouro_lab.compute.hardware import core_minutes, cpu_precision, measured_cpu_rates, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100 80GB PCIe", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA T1000", None),
    ],
)
def test_peak_by_name(name, peak):
    assert peak_flops(name) == peak


def test_a_cpu_has_no_known_peak():
    assert peak_flops(torch.device("cpu")) is None


def test_rate_of_this_core_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    rates = measured_cpu_rates(seconds=0.02, size=128)
    assert sorted(rates) == ["bfloat16", "float32"]
    assert all(1e8 < rate < 1e13 for rate in rates.values())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("bf16", "precision"), [(2.1e11, "bf16-mixed"), (1.4e11, "32-true"), (1e10, "32-true")])
def test_bf16_only_where_its_products_are_worth_it(bf16, precision, monkeypatch):
    monkeypatch.setattr(hardware, "cpu_rates", lambda: {"float32": 1e11, "bfloat16": bf16})
    assert cpu_precision() == precision


def test_core_minutes():
    assert core_minutes(6e12, 1e11) == 1.0
