"""A token stream cut into rows of S tokens: row r is tokens r·S … r·S + S − 1 and predicts the token after each."""

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, permutation
from ouro_lab.data.tasks.protocol import IGNORE, Arrays


class Stream(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, span: slice) -> NDArray: ...


class PackedRows:
    """Rows of one stream: an array, or what is read by slices as one (`shards.ShardedStream`).

    mask_documents: give each position its document's number within the row, counted at the eos that opens it.
    """

    def __init__(self, stream: Stream, length: int, eos: int, mask_documents: bool) -> None:
        self.stream, self.length, self.eos, self.mask_documents = stream, length, eos, mask_documents
        self.targets = max(0, len(stream) - 1)
        self.full = self.targets // length  # rows without padding
        self.all = -(-self.targets // length)

    def read(self, rows: Ints) -> Arrays:
        """tokens, targets and documents [B, S]; past the stream's end tokens are eos and targets ignored."""
        tokens = np.full((len(rows), self.length + 1), self.eos, np.int64)  # [B, S + 1]
        held = np.empty((len(rows), 1), np.int64)
        for place, row in enumerate(rows.tolist()):
            part = self.stream[row * self.length : (row + 1) * self.length + 1]
            tokens[place, : len(part)] = part
            held[place] = len(part)
        inside = np.arange(self.length + 1) < held
        arrays = {"tokens": tokens[:, :-1], "targets": np.where(inside, tokens, IGNORE)[:, 1:]}
        if self.mask_documents:
            arrays["documents"] = np.cumsum(arrays["tokens"] == self.eos, axis=1)
        return arrays

    def spread(self, tokens: int | None) -> Ints:
        """Rows holding about `tokens` targets, at even distances over the stream; all rows for None."""
        return spread(self.all, tokens, self.length)


def spread(rows: int, tokens: int | None, length: int) -> Ints:
    """Of so many rows of `length` those that hold about `tokens`, at even distances; all of them for None."""
    count = rows if tokens is None else min(rows, max(1, tokens // length))
    return np.arange(count) * rows // count


class ShuffledRows:
    """Global sample i is row π_e(i mod rows) of epoch e = i ÷ rows; π_e is a permutation given by (seed, e).

    count: so many of the rows, at even distances over the stream, whatever the seed; None for all. name: of the random
    numbers that order them.
    """

    def __init__(self, rows: PackedRows, seed: int, count: int | None = None, name: str = "rows") -> None:
        self.rows = rows
        self.count = rows.full if count is None else count
        self.order = lru_cache(maxsize=2)(lambda epoch: permutation(seed, f"{name}/{epoch}", self.count))

    def read(self, indices: Ints) -> Arrays:
        epochs, places = np.divmod(indices, self.count)
        chosen = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self.order(int(epoch))[places[here]]
        return self.rows.read(chosen * self.rows.full // self.count)
