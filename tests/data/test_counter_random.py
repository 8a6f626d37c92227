"""Counter-based random numbers: pure, independent of the batch, uniform."""

import numpy as np
from scipy import stats

from ouro_lab.data.random import bits, content_hash, integers, permutation, uniforms


def test_a_draw_depends_on_its_counter_only() -> None:
    whole = bits(7, "train", np.arange(1000), 5)
    assert (bits(7, "train", np.array([999, 4]), 3) == whole[[999, 4], :3]).all()
    assert whole[0, 0] == bits(7, "train", np.array([0]), 1)[0, 0]
    assert len(np.unique(whole)) == whole.size


def test_seeds_and_streams_differ() -> None:
    draws = [bits(seed, stream, np.arange(50), 4) for seed in (0, 1) for stream in ("train", "val")]
    assert len(np.unique(np.concatenate(draws))) == 4 * 200


def test_values_are_known() -> None:
    """Committed runs stay reproducible only while these numbers stay."""
    known = [[43, 7, 78], [24, 0, 32], [31, 90, 47], [94, 11, 15]]
    assert integers(bits(0, "train", np.arange(4), 3), 100).tolist() == known


def test_small_ranges_are_uniform_along_samples_and_draws() -> None:
    for high in (3, 7, 10):
        values = integers(bits(1, "x", np.arange(30_000), 4), high)
        assert values.min() == 0
        assert values.max() == high - 1
        for column in values.T:
            assert stats.chisquare(np.bincount(column, minlength=high)).pvalue > 1e-4
        pairs = values[:, 0] * high + values[:, 1]
        assert stats.chisquare(np.bincount(pairs, minlength=high**2)).pvalue > 1e-4
        neighbours = values[:-1, 0] * high + values[1:, 0]
        assert stats.chisquare(np.bincount(neighbours, minlength=high**2)).pvalue > 1e-4


def test_uniforms_fill_the_unit_interval() -> None:
    values = uniforms(bits(2, "u", np.arange(20_000), 1))[:, 0]
    assert stats.kstest(values, "uniform").pvalue > 1e-4


def test_permutation_is_one_and_depends_on_its_name() -> None:
    order = permutation(0, "epoch0", 5000)
    assert (np.sort(order) == np.arange(5000)).all()
    assert (permutation(0, "epoch1", 5000) != order).mean() > 0.99


def test_content_hash_sees_order_and_zero() -> None:
    rows = np.array([[0, 1, 2], [2, 1, 0], [0, 0, 1], [0, 1, 0]])
    assert len(np.unique(content_hash(rows))) == 4
