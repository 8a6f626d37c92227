"""The sides of the decoding cases do what they are timed for, on a shape of milliseconds."""

from statistics import fmean

import pytest
import torch

from ouro_lab.bench import answering, decoding, machine
from ouro_lab.bench.__main__ import main
from ouro_lab.bench.timing import Effort
from ouro_lab.inference.exits import Entropy, QExit, RandomExit
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


def test_the_ideal_is_the_loops_and_heads_of_a_call() -> None:
    samples = {"ours": [2.0, 2.0], "pass": [0.8, 0.8], "head": [0.4, 0.4]}
    row = decoding.share_of_ideal("case", "what", samples, passes=1.5, heads=0.25, target=0.9)
    assert (row.ours, row.theirs) == (2.0, pytest.approx(1.5 * 0.8 + 0.25 * 0.4))
    assert row.ratio == pytest.approx(0.65) and row.met is False


def test_the_trained_trunk_answers_at_depths_of_its_own() -> None:
    model, sequences = answering.trained(answering.TRUNK)
    one_of_each = sequences[: len(sequences) // answering.EACH]
    full = answering.Answering(model, 8, one_of_each, None)
    full()
    assert full.depths == [model.loops] * 8 * 49 and len(full.right) == 8 * 48
    assert full.accuracy > 0.99
    ours = answering.Answering(model, 3, one_of_each, Entropy(0.5))
    ours()
    assert len(ours.depths) == len(full.depths) and len(ours.right) == len(full.right)
    assert set(ours.depths) == {1, 2, 3, 4} and fmean(ours.depths) == pytest.approx(2.1, abs=0.2)
    assert 0.5 < ours.accuracy < 0.9


def test_the_threshold_comes_nearest_to_two_loops() -> None:
    model, sequences = answering.trained(answering.TRUNK)
    few = sequences[: len(sequences) // answering.EACH]
    assert answering.nearest(model, few, Entropy(0.5), [0.01, 0.6, 1.2]) == Entropy(0.6)
    assert answering.nearest(model, few, QExit(0.5), [1.0, 0.0]) == QExit(0.0)  # four loops, and one


def test_a_checkpoint_of_another_kind_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for given, message in ((str(answering.ROOT / "trunks/text/seed_0"), "must be a model of p-hop"), ("none", "none")):
        monkeypatch.setenv("CKPT", given)
        monkeypatch.setattr(machine, "figures", lambda: {"copy": 1e10})
        assert main(["answer_exits", "--quick"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: CKPT = {given}: ") and message in said and said.count("\n") == 1


def test_the_rows_of_answers_say_what_exits_cost_in_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = answering.trained(answering.TRUNK)
    monkeypatch.setattr(answering, "trained", lambda source: (model, [sequences[0][:6]] * 8))
    monkeypatch.setattr(answering, "PASSES", 1)
    monkeypatch.setattr(answering, "HEADS", 1)
    rows = {row.case: row for row in answering.answer_exits(Effort(rounds=1, warm=0))}
    assert {name: row.target for name, row in rows.items()} == {
        "gate_1": 0.90, "gate_8": 0.75, "entropy_1": 0.90, "entropy_8": 0.75,
    }  # fmt: skip
    assert all(row.ratio > 0 and "right v" in row.what for row in rows.values())
    monkeypatch.setattr(answering, "TRUNK", answering.TRUNK / "none")
    assert [type(line).__name__ for line in answering.answer_exits(Effort(rounds=1, warm=0))] == ["Skipped"]
