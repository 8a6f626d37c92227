"""Probabilities against their definitions, draws against probabilities."""

import pytest
import torch

from ouro_lab.inference.sampling import Sampling

LOGITS = torch.randn(5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def kept(sampling: Sampling) -> list[set[int]]:
    return [set(row.nonzero().flatten().tolist()) for row in sampling.probabilities(LOGITS)]


def test_greedy_is_the_largest() -> None:
    assert Sampling()(LOGITS).tolist() == LOGITS.argmax(-1).tolist()


def test_temperature_and_top_k_against_plain_softmax() -> None:
    torch.testing.assert_close(Sampling(0.7).probabilities(LOGITS), (LOGITS / 0.7).softmax(-1))
    found = Sampling(0.7, top_k=3).probabilities(LOGITS)
    for row, logits in zip(found, LOGITS, strict=True):
        largest = logits.argsort(descending=True)[:3]
        torch.testing.assert_close(row[largest], (logits[largest] / 0.7).softmax(-1))
        assert row.sum().item() == pytest.approx(1)


def test_top_p_keeps_the_fewest_that_hold_it() -> None:
    for top_p in (0.01, 0.3, 0.8, 0.999):
        for tokens, row in zip(kept(Sampling(1.0, top_p=top_p)), LOGITS.softmax(-1), strict=True):
            order = row.argsort(descending=True).tolist()
            fewest = next(n for n in range(1, 12) if row[order[:n]].sum() >= top_p)
            assert tokens == set(order[:fewest])


def test_top_p_is_of_what_top_k_leaves() -> None:
    both = Sampling(1.0, top_k=4, top_p=0.9).probabilities(LOGITS)
    cut = LOGITS.masked_fill(Sampling(1.0, top_k=4).probabilities(LOGITS) == 0, float("-inf"))
    torch.testing.assert_close(both, Sampling(1.0, top_p=0.9).probabilities(cut))


def test_draws_follow_the_probabilities() -> None:
    sampling, count = Sampling(0.9, top_k=6, top_p=0.95), 20_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # even, so that shares are exact to 1/count
    for row in LOGITS:
        tokens = sampling(row.expand(count, -1), uniform)
        share = torch.bincount(tokens, minlength=11) / count
        torch.testing.assert_close(share.double(), sampling.probabilities(row[None])[0], rtol=0, atol=2 / count)


def test_the_ends_of_the_unit_interval_draw_what_may_be_drawn() -> None:
    sampling = Sampling(1.0, top_k=2)
    p = sampling.probabilities(LOGITS)
    for u in (0.0, 1 - 2**-53):
        tokens = sampling(LOGITS, torch.full((5,), u, dtype=torch.float64))
        assert (p.gather(-1, tokens[:, None]) > 0).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature = -0.1: must be a number ≥ 0"),
        ({"temperature": float("nan")}, "temperature = nan"),
        ({"top_k": 0}, "top_k = 0: must be an integer ≥ 1"),
        ({"top_p": 0.0}, r"top_p = 0.0: must be in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p = 1.1"),
    ],
)
def test_bad_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**values)
