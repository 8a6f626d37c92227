"""The sides of the decoding cases do what they are timed for, on a shape of milliseconds."""

import pytest
import torch

from ouro_lab.bench import decoding
from ouro_lab.bench.timing import Effort
from ouro_lab.inference.exits import RandomExit
from ouro_lab.model import ModelConfig

TINY = ModelConfig(vocab_size=64, layers=2, loops=4, width=32, heads=2)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SHAPE", TINY)
    monkeypatch.setattr("ouro_lab.bench.timing.LEAST_SECONDS", 1e-4)


def test_products_are_the_analytic_count() -> None:
    run = decoding.products(TINY, 3)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        run()
    width, ffn, length = TINY.width, TINY.ffn_width, decoding.PROMPT + decoding.TOKENS // 2
    layer = 2 * 3 * (4 * width**2 + 3 * width * ffn + 2 * length * width)
    whole = TINY.loops * TINY.layers * layer + 2 * 3 * width * TINY.vocab_size
    assert counter.get_total_flops() == decoding.TOKENS * whole


def test_a_call_makes_its_tokens_with_no_idle_slot() -> None:
    side = decoding.Decoding(decoding.engine(3), RandomExit(probabilities=decoding.DEPTHS), new=40)
    side()
    assert len(side.depths) >= 120
    assert sum(side.depths) / len(side.depths) == pytest.approx(2, abs=0.4)
    full = decoding.Decoding(decoding.engine(2), None)
    full()
    assert full.depths == [TINY.loops] * 2 * decoding.TOKENS


def test_the_depths_drawn_are_those_of_the_target() -> None:
    mean = sum(loop * p for loop, p in enumerate(decoding.DEPTHS, start=1))
    variance = sum((loop - mean) ** 2 * p for loop, p in enumerate(decoding.DEPTHS, start=1))
    assert mean == pytest.approx(2) and variance**0.5 >= 0.8


def test_the_cases_yield_their_rows() -> None:
    effort = Effort(rounds=1, warm=0)
    cases = (decoding.decode, decoding.decode_exits, decoding.decode_cache, decoding.speculation)
    rows = {row.case: row for case in cases for row in case(effort)}
    assert rows["decode_1"].target == rows["decode_8"].target == 1.2
    assert (rows["exits_1"].target, rows["exits_8"].target) == (0.90, 0.75)
    assert rows["cache_last"].ratio == 1 / TINY.loops and rows["cache_last_available"].ratio == 1
    assert all(row.ratio > 0 for row in rows.values())
