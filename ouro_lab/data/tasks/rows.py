"""Rows of tokens put together from parts of different lengths, without a loop over samples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE, Arrays

LOSSES = ("answer", "all")


def join(values: Ints, inside: NDArray[np.bool_], width: int, fill: int) -> Ints:
    """The entries of each row [N, W] that are `inside`, in order and without gaps: [N, width], filled up behind."""
    joined = np.full((len(values), width), fill, np.int64)
    rows, columns = np.nonzero(inside)
    places = np.cumsum(inside, axis=1) - 1
    joined[rows, places[rows, columns]] = values[rows, columns]
    return joined


def predict(tokens: Ints, wanted: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Inputs and targets [N, S], from whole rows [N, S + 1] and which of their tokens are to be predicted."""
    return tokens[:, :-1], np.where(wanted[:, 1:], tokens[:, 1:], IGNORE)


def packed(
    problems: Callable[[Ints], tuple[Arrays, Ints]], indices: Ints, width: int, shortest: int, usual: int, apart: bool
) -> Arrays:
    """Windows [B, width] of problems after one another, the first at a window's start, the last one cut.

    Problem j of window i is problem i·P + j of the stream, P being the most that any window could need. problems: makes
    those of given numbers, arrays [N, L] and their lengths [N], at least `shortest` and about `usual`. apart: the array
    `documents` keeps attention within a problem.
    """
    most = width // shortest + 1
    count = min(most, 2 + width // usual)  # a little over the mean; more where that was too few
    while True:
        arrays, lengths = problems((indices[:, None] * most + np.arange(count)).ravel())
        lengths = lengths.reshape(len(indices), count)
        if count == most or (lengths.sum(axis=1) >= width).all():
            break
        count = min(most, 2 * count)
    longest = next(iter(arrays.values())).shape[1]
    inside = np.arange(longest) < lengths[:, :, None]  # [B, n, L]
    if apart:
        arrays = arrays | {"documents": np.broadcast_to(np.arange(count)[:, None], inside.shape)}
    return {key: _first(values.reshape(inside.shape), inside, width) for key, values in arrays.items()}


def _first(values: Ints, inside: NDArray[np.bool_], width: int) -> Ints:
    """The first `width` entries of each window [B, n, L] that are `inside` a problem, in order."""
    flat = (len(values), -1)
    order = np.argsort(~inside.reshape(flat), axis=1, kind="stable")[:, :width]
    return np.take_along_axis(values.reshape(flat), order, 1)
