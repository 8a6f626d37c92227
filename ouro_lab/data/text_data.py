"""`TextData`: real text as packed rows, with bits per byte and the n-gram floor beside it."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.corpus import Corpus, Documents, split_documents
from ouro_lab.data.datamodules import OrderedData
from ouro_lab.data.ngram import EOS, NGram, symbols
from ouro_lab.data.packing import PackedRows, ShuffledRows
from ouro_lab.data.ramp import Ramp
from ouro_lab.data.random import Ints
from ouro_lab.data.tasks.protocol import IGNORE, TEST, TRAIN, VAL, Arrays, Floors, check_range
from ouro_lab.data.text_cache import made_once, open_stream, token_streams
from ouro_lab.data.tokenizer import TextTokenizer

NGRAM_ORDER = 5
NGRAM_BYTES = 32 << 20  # of training text at most, or the floor takes minutes and gigabytes


class TextData(OrderedData):
    """Rows of `length` tokens, documents after one another; every target of a fixed set is scored once.

    holdout: of so many documents one is test and one validation. val_tokens, test_tokens: rows at even distances with
    about so many targets; None takes the whole split. train_tokens: unique tokens of training, rows at even distances
    that every epoch repeats; None takes all. mask_documents: attention stays within a document. ramp: smaller batches
    at first, as [[tokens, sequences], …]. skip_tokens: what an earlier stage has read of these rows.
    """

    count_bytes = True

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: TextTokenizer,
        length: int = 256,
        batch_size: int = 32,
        val_tokens: int | None = 65_536,
        test_tokens: int | None = None,
        train_tokens: int | None = None,
        eval_batch_size: int | None = None,
        holdout: int = 10,
        mask_documents: bool = True,
        seed: int = 0,
        workers: int = 0,
        ramp: Sequence[Sequence[float]] = (),
        skip_tokens: float = 0,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed, workers)
        check_range("length", length, 2)
        self.ramp = Ramp.of_tokens(batch_size, length, ramp, skip_tokens)
        check_range("holdout", holdout, 3)
        self.sizes = {VAL: val_tokens, TEST: test_tokens}
        for split, tokens in self.sizes.items():
            if tokens is not None:
                check_range(f"{split}_tokens", tokens, length)
        if train_tokens is not None:
            check_range("train_tokens", train_tokens, length * batch_size)
        self.train_tokens = train_tokens
        self.corpus, self.tokenizer, self.length = corpus, tokenizer, length
        self.holdout, self.mask_documents = holdout, mask_documents
        self.vocab_size = tokenizer.vocab_size
        self.folder: Path | None = None

    def prepare_data(self) -> None:
        """Makes or finds the token cache, under a lock.

        Raises: ValueError when the train split has fewer rows than a batch.
        """
        if self.folder is None:
            documents = split_documents(self.corpus, self.holdout)
            self.folder = token_streams(self.corpus.label, documents, self.tokenizer)
            self._open()

    def setup(self, stage: str) -> None:
        self.prepare_data()  # Lightning asks only one process of a machine to prepare

    def read_train(self, indices: Ints) -> Arrays:
        return self.train_rows.read(indices)

    def read_evaluation(self, split: str, indices: Ints) -> Arrays:
        arrays = self.rows[split].read(self.chosen[split][indices])
        targets = arrays["targets"]
        sizes = self.token_bytes[np.maximum(targets, 0)]
        return arrays | {"bytes": np.where(targets == IGNORE, 0, sizes)}

    def evaluation_size(self, split: str) -> int:
        self.prepare_data()
        return len(self.chosen[split])

    def evaluation_tokens(self, split: str) -> int:
        """Of a set whose size is stated, without reading the corpus, which may hold fewer."""
        stated = self.sizes[split]
        if self.folder is None and stated is not None:
            return stated // self.length * self.length
        return super().evaluation_tokens(split)

    def floors(self) -> Floors:
        """Bits per byte of a byte 5-gram on exactly the bytes of the test rows; stored beside the tokens."""
        self.prepare_data()
        settings = json.dumps([NGRAM_ORDER, NGRAM_BYTES, self.length, self.sizes[TEST]])
        name = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
        folder = self.folder.with_name(f"{self.folder.name}-floor-{name}")
        made_once(folder, lambda target: self._write_floor(target / "floor.json"))
        value = json.loads((folder / "floor.json").read_text())
        what = f"byte {NGRAM_ORDER}-gram, interpolated Kneser-Ney, same text"
        return {"bits_per_byte": {"value": value, "what": what}}

    def _open(self) -> None:
        streams = {split: open_stream(self.folder, split) for split in (TRAIN, VAL, TEST)}
        eos, mask = self.tokenizer.eos, self.mask_documents
        self.rows = {split: PackedRows(stream, self.length, eos, mask) for split, stream in streams.items()}
        if self.rows[TRAIN].full < self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size}: a batch that packing cannot fill; corpus {self.corpus.label} has"
                f" {self.rows[TRAIN].full} training rows of length = {self.length}, must be at least a batch"
            )
        self.train_rows = ShuffledRows(self.rows[TRAIN], self.seed, self._unique_rows())
        self.chosen = {split: self.rows[split].spread(tokens) for split, tokens in self.sizes.items()}
        self.token_bytes = self.tokenizer.token_bytes()

    def _unique_rows(self) -> int | None:
        if self.train_tokens is None:
            return None
        held = self.rows[TRAIN].full * self.length
        if self.train_tokens > held:
            raise ValueError(
                f"train_tokens = {self.train_tokens}: must be at most {held}, what {self.corpus.label} has"
            )
        return self.train_tokens // self.length

    def _write_floor(self, path: Path) -> None:
        documents = split_documents(self.corpus, self.holdout)
        model = NGram(symbols(_first(documents, NGRAM_BYTES)), NGRAM_ORDER)
        stream = symbols(documents[TEST])
        starts, ends = self._symbol_spans()
        nats = _span_sum(model.nats(stream), starts, ends)
        size = _span_sum((stream != EOS).astype(np.int64), starts, ends)
        path.write_text(json.dumps(float(nats / math.log(2) / size)))

    def _symbol_spans(self) -> tuple[Ints, Ints]:
        """Where each test row's targets begin and end in the stream of bytes and document ends."""
        stream = self.rows[TEST].stream
        width = np.maximum(self.token_bytes[stream], stream == self.tokenizer.eos)
        begin = np.concatenate([[0], np.cumsum(width)])  # [tokens + 1]
        first = self.chosen[TEST] * self.length + 1
        return begin[first], begin[np.minimum(first + self.length, len(stream))]


def _first(documents: Documents, limit: int) -> list[str]:
    """Training documents until they hold `limit` bytes."""
    sizes = np.cumsum([len(text.encode("utf-8")) for text in documents[TRAIN]])
    return documents[TRAIN][: int(np.searchsorted(sizes, limit)) + 1]


def _span_sum(values: NDArray, starts: Ints, ends: Ints) -> float:
    total = np.concatenate([[0], np.cumsum(values)])
    return float((total[ends] - total[starts]).sum())
