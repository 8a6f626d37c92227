"""Corpora in memory and on disk for the tests of text at scale."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ouro_lab.data import ByteTokenizer
from ouro_lab.data.documents import SPLITS, split_documents
from ouro_lab.data.encoding import Recipe

WORDS = ["loop", "depth", "gate", "token", "state", "layer", "exit", "prior", "width", "head", "norm", "step"]


@dataclass(frozen=True)
class Texts:
    """A corpus of the texts given."""

    texts: Sequence[str]
    label: str = "texts"
    remote: bool = False
    open_ended: bool = False

    def identity(self) -> str:
        return f"{self.label} {self.texts!r}"

    def size(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        return iter(self.texts)


def some_texts(count: int, seed: int = 0, words: int = 40) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{seed}.{i}: " + " ".join(rng.choice(WORDS, rng.integers(5, words))) + " é." for i in range(count)]


def recipe_of(corpus: object, **options: object) -> Recipe:
    settings = {"tokenizer": ByteTokenizer(), "holdout": 4, "piece_bytes": 1500} | options
    return Recipe(corpus, **settings)


def streams_by_hand(corpus: Texts, holdout: int) -> dict[str, list[int]]:
    """eos, document, eos, …, eos of the byte tokenizer, per split."""
    streams = {split: [256] for split in SPLITS}
    for split, text in split_documents(corpus, holdout):
        streams[split] += [*text.encode(), 256]
    return streams


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
