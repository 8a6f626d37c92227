"""Rows of tokens put together from parts of different lengths, without a loop over samples."""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE

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
