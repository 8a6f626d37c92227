"""Counter-based random numbers: draw j of sample i is a pure function of (seed, stream, i, j), whatever the batch.

Each number is SplitMix64's output mix (Steele et al. 2014, constants of Stafford's variant 13) of a counter, so any
slice of any sample can be made anywhere without state.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Ints = NDArray[np.int64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def mix(x: Bits) -> Bits:
    """A bijection of 64-bit words in which every input bit reaches every output bit."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])


def bits(seed: int, stream: str, indices: Ints, draws: int) -> Bits:
    """[N, draws] uniform 64-bit words for the samples `indices` [N] of one named stream."""
    name = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    key = np.frombuffer(name, dtype="<u8").astype(np.uint64)  # [1]
    counter = np.asarray(indices).astype(np.uint64)
    state = mix(mix(counter * _GOLDEN + key) + key)  # mixed twice: neighbouring samples start far apart
    steps = np.arange(1, draws + 1, dtype=np.uint64) * _GOLDEN
    return mix(state[:, None] + steps)


def integers(words: Bits, high: int | Ints) -> Ints:
    """Uniform on 0 … high − 1, from the upper half of each word; the bias is below high / 2³². One high or one each."""
    return ((words >> np.uint64(32)) * np.uint64(high) >> np.uint64(32)).astype(np.int64)


def uniforms(words: Bits) -> NDArray[np.float64]:
    """Uniform on [0, 1), 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, stream: str, size: int) -> Ints:
    """A permutation of 0 … size − 1."""
    return np.argsort(bits(seed, stream, np.arange(size), 1)[:, 0], kind="stable")


def one_of(wanted: NDArray[np.bool_], words: Bits) -> Ints:
    """The number [B] of one true column of each row [B, n], each equally likely by the row's word [B]."""
    nth = integers(words, wanted.sum(axis=1))
    return (wanted.cumsum(axis=1) > nth[:, None]).argmax(axis=1)


def content_hash(rows: Ints) -> Bits:
    """One word per row of small non-negative integers [N, S]; the same on every machine."""
    factors = bits(0, "content", np.arange(rows.shape[1]), 1)[:, 0] | np.uint64(1)
    return mix(((rows + 1).astype(np.uint64) * factors).sum(axis=1, dtype=np.uint64))
