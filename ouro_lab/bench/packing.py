"""From text to packed rows, as a run makes them, against the tokenizer alone."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np
import tokenizers

from ouro_lab.bench.table import Row
from ouro_lab.bench.timing import Effort, interleave, ratio
from ouro_lab.data import BPETokenizer, Sotu
from ouro_lab.data.documents import split_documents
from ouro_lab.data.encoding import Recipe
from ouro_lab.data.packing import PackedRows
from ouro_lab.data.shard_set import ShardSet
from ouro_lab.data.tasks.protocol import TRAIN
from ouro_lab.data.tokenise import tokenise

TEXT_BYTES = 4 << 20
VOCABULARY, LENGTH, BATCH = 4096, 128, 16
FLOOR = 0.85


@dataclass(frozen=True)
class Texts:
    """A corpus in memory."""

    texts: list[str]
    label = "bench"
    remote = open_ended = False

    def identity(self) -> str:
        return hashlib.sha256("".join(self.texts).encode()).hexdigest()

    def size(self) -> int | None:
        return None

    def documents(self) -> Iterator[str]:
        return iter(self.texts)


def tokenise_and_pack(effort: Effort, texts: list[str] | None = None) -> Row:
    """Ours: hash, encode, write and verify shards, read every row in batches. Rival: `encode_batch_fast`, the quickest
    call of `tokenizers`, whose ids stay in its own objects. Both begin with a tokenizer just read from its file: one
    that has seen the text keeps its words, and would do the same work in less time than any run can.
    """
    texts = texts or some_text()
    tokenizer = BPETokenizer(VOCABULARY)
    tokenizer.train(texts)
    state = tokenizer.state()

    def rival() -> None:
        tokenizers.Tokenizer.from_str(state).encode_batch_fast(texts, add_special_tokens=False)

    samples = interleave({"ours": packer(texts, tokenizer), "rival": rival}, effort)
    size = sum(len(text.encode()) for text in texts)
    rates = {side: size / median(times) for side, times in samples.items()}
    what = f"{size / 1e6:.1f} MB of sotu to packed rows, {VOCABULARY} BPE, against `tokenizers` alone: speed"
    share = ratio(samples, "rival", "ours")
    return Row("tokenise", what, share, FLOOR, False, rates["ours"], rates["rival"], "B/s", samples)


def packer(texts: list[str], tokenizer: BPETokenizer) -> Callable[[], None]:
    recipe = Recipe(Texts(texts), tokenizer, holdout=len(texts))  # two documents, the fewest that can be
    state = tokenizer.state()

    def pack() -> None:
        tokenizer.restore(state)
        with tempfile.TemporaryDirectory() as folder:
            before = os.environ.get("OURO_CACHE")
            os.environ["OURO_CACHE"] = folder  # or the second time it would be there already
            try:
                _read_all(tokenise(recipe), tokenizer.eos)
            finally:
                os.environ.pop("OURO_CACHE") if before is None else os.environ.update(OURO_CACHE=before)

    return pack


def some_text() -> list[str]:
    """Addresses from the first on, until they hold `TEXT_BYTES`."""
    texts = [text for split, text in split_documents(Sotu(), 10) if split == TRAIN]
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: int(np.searchsorted(sizes, TEXT_BYTES)) + 1]


def _read_all(shards: ShardSet, eos: int) -> None:
    rows = PackedRows(shards.stream(TRAIN), LENGTH, eos, mask_documents=True)
    for start in range(0, rows.all, BATCH):
        rows.read(np.arange(start, min(rows.all, start + BATCH)))
