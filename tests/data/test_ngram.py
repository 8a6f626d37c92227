"""The n-gram floor: normalised exactly, equal to a literal implementation, and better than fewer symbols."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from ouro_lab.data.ngram import EOS, SYMBOLS, NGram, symbols

TRAIN = ["the cat sat on the mat. the dog sat on the log.", "a cat and a dog", "the end of the cat: é"] * 2
TEST = ["the dog sat on a mat", "zq"]


def literal(train: list[str], context: tuple[int, ...], word: int, order: int) -> float:
    """The recursion of the module's docstring, over dictionaries."""
    grams: list[Counter] = [Counter()]
    for text in train:
        padded = [EOS] * (order - 1) + list(text.encode()) + [EOS]
        grams[0].update(tuple(padded[i : i + order]) for i in range(len(padded) - order + 1))
    for _ in range(order - 1):
        grams.append(Counter(gram[1:] for gram in grams[-1]))
    p = 1 / SYMBOLS
    for n in range(1, order + 1):
        counts = grams[order - n]
        followers = defaultdict(list)
        for gram, count in counts.items():
            followers[gram[:-1]].append(count)
        once, twice = (sum(c == k for c in counts.values()) for k in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.5
        c = context[len(context) - n + 1 :]
        if seen := followers.get(c):
            p = (max(counts[(*c, word)] - discount, 0) + discount * len(seen) * p) / sum(seen)
    return p


def test_equals_a_literal_implementation() -> None:
    model = NGram(symbols(TRAIN), order=3)
    nats = iter(model.nats(symbols(TEST))[1:])
    for text in TEST:
        padded = [EOS, EOS, *text.encode(), EOS]
        for i in range(2, len(padded)):
            expected = -math.log(literal(TRAIN, tuple(padded[i - 2 : i]), padded[i], 3))
            assert next(nats) == pytest.approx(expected, rel=1e-12)


def test_every_context_sums_to_one() -> None:
    """Seen, unseen and document-opening contexts."""
    model = NGram(symbols(TRAIN))
    contexts = [b"the ", b" cat", b"zzzz", b"qthe", b"\x00\xffab"]
    for context in contexts:
        prefix = np.array([EOS, *context], np.uint16)
        streams = [np.append(prefix, word).astype(np.uint16) for word in range(SYMBOLS)]
        assert sum(math.exp(-model.nats(stream)[-1]) for stream in streams) == pytest.approx(1, abs=1e-12)
    openings = [np.array([EOS, word], np.uint16) for word in range(SYMBOLS)]
    assert sum(math.exp(-model.nats(stream)[-1]) for stream in openings) == pytest.approx(1, abs=1e-12)


def test_context_does_not_cross_documents() -> None:
    model = NGram(symbols(TRAIN))
    alone, after = model.nats(symbols(["the"])), model.nats(symbols(["a cat", "the"]))
    assert alone[1:] == pytest.approx(after[-4:], rel=1e-12)


def test_the_highest_order_sees_four_bytes_back() -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(["axyzb", "cxyzd"], 40)) for _ in range(60)]  # b or d: only a or c four back tells
    bits = [NGram(symbols(texts[:50]), order).nats(symbols(texts[50:])).sum() / math.log(2) for order in (4, 5)]
    assert bits[0] == pytest.approx(800, rel=0.1)  # 400 words: one bit for the first letter, one for the last
    assert 400 < bits[1] < 500  # the last is known but for the mass that smoothing takes
