"""A byte n-gram with interpolated Kneser–Ney smoothing: what a reader of four bytes back can know of a text.

    p_n(w | c) = (max(N_n(cw) − D_n, 0) + D_n · N₁₊(c·) · p_{n−1}(w | c')) / Σ_w N_n(cw)

where c' is c without its first symbol. N_n counts occurrences at the highest order and distinct left neighbours below
it; D_n = n₁ / (n₁ + 2 n₂) from the numbers of n-grams counted once and twice; p_0 is uniform; an unseen context leaves
p_n = p_{n−1} (Kneser & Ney 1995; interpolated as in Chen & Goodman 1999). Each order sums to one exactly. Contexts stop
at the eos that opens a document.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EOS = 256
SYMBOLS = 257
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """Sorted codes of the n-grams and contexts seen; a code reads the symbols as digits of base 257."""

    grams: NDArray[np.uint64]
    counts: Floats
    contexts: NDArray[np.uint64]
    totals: Floats  # per context: Σ counts
    types: Floats  # per context: distinct followers
    discount: float

    @staticmethod
    def of(grams: NDArray[np.uint64], counts: NDArray[np.int64]) -> "_Order":
        contexts, starts, types = np.unique(grams // SYMBOLS, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, starts)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once and twice else 0.5
        return _Order(grams, counts.astype(float), contexts, totals.astype(float), types.astype(float), discount)

    def interpolate(self, codes: NDArray[np.uint64], lower: Floats) -> Floats:
        seen, at = _find(self.contexts, codes // SYMBOLS)
        known, gram = _find(self.grams, codes)
        above = np.where(known, np.maximum(self.counts[gram] - self.discount, 0), 0)
        mixed = (above + self.discount * self.types[at] * lower) / self.totals[at]
        return np.where(seen, mixed, lower)


class NGram:
    """Fitted on a symbol stream eos, document, eos, …, eos (`symbols`)."""

    def __init__(self, stream: NDArray[np.uint16], order: int = 5) -> None:
        self.order = order
        grams, counts = np.unique(_codes(stream, order)[1:], return_counts=True)  # the first eos follows nothing
        self.orders = []  # highest first
        for n in range(order, 0, -1):
            self.orders.append(_Order.of(grams, counts))
            if n > 1:
                grams, counts = np.unique(grams % SYMBOLS ** (n - 1), return_counts=True)

    def nats(self, stream: NDArray[np.uint16]) -> Floats:
        """−ln p of each symbol [N]; 0 for the first, which is nobody's target."""
        values = -np.log(self._probabilities(_codes(stream, self.order)))
        values[0] = 0.0
        return values

    def _probabilities(self, codes: NDArray[np.uint64]) -> Floats:
        unique, inverse = np.unique(codes, return_inverse=True)  # sorted queries also make the searches fast
        p = np.full(len(unique), 1 / SYMBOLS)
        for n, order in enumerate(reversed(self.orders), start=1):
            p = order.interpolate(unique % SYMBOLS**n, p)
        return p[inverse]


def symbols(texts: Sequence[str]) -> NDArray[np.uint16]:
    """eos, document, eos, document, …, eos."""
    eos = np.array([EOS], np.uint16)
    pieces = [eos]
    for text in texts:
        pieces += [np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.uint16), eos]
    return np.concatenate(pieces)


def _codes(stream: NDArray[np.uint16], order: int) -> NDArray[np.uint64]:
    """Per position the code of its last `order` symbols; those before the document's opening eos count as eos."""
    codes = stream.astype(np.uint64)
    before = stream
    for lag in range(1, order):
        shifted = np.full_like(stream, EOS)
        shifted[lag:] = stream[:-lag]
        before = np.where(before == EOS, EOS, shifted).astype(np.uint16) if lag > 1 else shifted
        codes += before * np.uint64(SYMBOLS**lag)
    return codes


def _find(table: NDArray[np.uint64], codes: NDArray[np.uint64]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each code is in the sorted table, and where (0 where it is not)."""
    at = np.searchsorted(table, codes)
    at[at == len(table)] = 0
    found = table[at] == codes
    return found, np.where(found, at, 0)
