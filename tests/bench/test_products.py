"""The products that are timed alone are the step's; the machine's figures are figures."""

import pytest
import torch

from ouro_lab.bench import machine
from ouro_lab.bench.cases import LARGE_VOCABULARY, P_HOP, SMALL, WIDE
from ouro_lab.bench.products import alone, products
from ouro_lab.bench.step import Spec

TINY = Spec(1, 2, 16, 2, vocab_size=19, batch=2, length=7, stage_one=True, dtype="float32")


@pytest.mark.parametrize("spec", [TINY, P_HOP, SMALL, LARGE_VOCABULARY, WIDE])
def test_products_have_the_analytic_count_of_flops(spec: Spec) -> None:
    assert sum(product.flops for product in products(spec)) == spec.tokens * spec.cost.flops_full.total


def test_what_is_run_alone_is_what_is_listed() -> None:
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        alone(TINY)()
    assert counter.get_total_flops() == sum(product.flops for product in products(TINY))


def test_the_machines_figures_are_positive() -> None:
    found = machine.figures()
    assert set(found) == {"float32", "bfloat16", "copy"}
    assert all(value > 0 for value in found.values())
    assert "GFLOP/s" in machine.line(found)
