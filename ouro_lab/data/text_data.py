"""`TextData`: real text as packed rows, with bits per byte and the n-gram floor beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.datamodules import OrderedData
from ouro_lab.data.decontamination import Decontamination
from ouro_lab.data.encoding import Recipe
from ouro_lab.data.mixture import Mixture, Schedule, apportion
from ouro_lab.data.packing import PackedRows, ShuffledRows
from ouro_lab.data.ramp import Ramp
from ouro_lab.data.random import Ints
from ouro_lab.data.shard_set import ShardSet
from ouro_lab.data.tasks.protocol import IGNORE, TEST, TRAIN, VAL, Arrays, Floors, check_range
from ouro_lab.data.text_cache import learn
from ouro_lab.data.text_floor import NGRAM_BYTES, WHAT, text_floor
from ouro_lab.data.tokenise import tokenise
from ouro_lab.data.tokenizer import TextTokenizer


@dataclass(frozen=True)
class Source:
    """One tokenised corpus. chosen: of validation and test, the rows that are scored."""

    shards: ShardSet
    rows: dict[str, PackedRows]
    train: ShuffledRows
    chosen: dict[str, Ints]


class TextData(OrderedData):
    """Rows of `length` tokens, documents after one another; every target of a fixed set is scored once.

    corpus: one, or a `Mixture`, whose rows come each from one source, in that source's own order and epochs, and whose
    sources are the `groups` of validation and test. holdout: of so many documents one is test and one validation.
    val_tokens, test_tokens: rows at even distances with about so many targets, of each source; None takes the whole
    split. train_tokens: unique tokens of training, of a mixture each source's share of them, rows at even distances
    that every epoch repeats; None takes all. An open-ended corpus is read only so far. mask_documents: attention
    stays within a document. decontaminate: what training documents must not repeat. workers: processes per loader,
    and for tokenising. ramp: smaller batches at first, as [[tokens, sequences], …]. skip_tokens: what an earlier stage
    has read of these rows.
    """

    count_bytes = True

    def __init__(
        self,
        corpus: Corpus | Mixture,
        tokenizer: TextTokenizer,
        length: int = 256,
        batch_size: int = 32,
        val_tokens: int | None = 65_536,
        test_tokens: int | None = None,
        train_tokens: int | None = None,
        eval_batch_size: int | None = None,
        holdout: int = 10,
        mask_documents: bool = True,
        decontaminate: Decontamination | None = None,
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
        self.tokenizer, self.length, self.vocab_size = tokenizer, length, tokenizer.vocab_size
        self.holdout, self.mask_documents, self.decontaminate = holdout, mask_documents, decontaminate
        mixed = isinstance(corpus, Mixture)
        self.groups = tuple(corpus.sources) if mixed else ()
        self.corpora: list[Corpus] = list(corpus.sources.values()) if mixed else [corpus]
        self.shares = corpus.shares if mixed else [Fraction(1)]
        self.schedule = Schedule(self.shares)
        self.sources: list[Source] = []

    def prepare_data(self) -> None:
        """Makes or finds the tokenizer and the shards, under locks.

        Raises: ValueError when the train split has fewer rows than a batch.
        """
        if self.sources:
            return
        filtered, overlap = "", None
        if self.decontaminate is not None:
            filtered, overlap = self.decontaminate.identity(), self.decontaminate.overlap()
        learn(self.tokenizer, self.corpora, self.shares, self.holdout, filtered, overlap)
        limits = self._limits()
        recipes = [
            Recipe(corpus, self.tokenizer, self.holdout, limit if corpus.open_ended else None, filtered)
            for corpus, limit in zip(self.corpora, limits, strict=True)
        ]
        shards = [tokenise(recipe, overlap, self.workers) for recipe in recipes]
        sources = [self._source(*made) for made in zip(self._names(), shards, limits, strict=True)]
        self._check_rows(sources)
        self.token_bytes = self.tokenizer.token_bytes()
        self.sources = sources

    def setup(self, stage: str) -> None:
        self.prepare_data()  # Lightning asks only one process of a machine to prepare

    def read_train(self, indices: Ints) -> Arrays:
        return self._gather(*self.schedule(indices), lambda source, own: source.train.read(own))

    def read_evaluation(self, split: str, indices: Ints) -> Arrays:
        starts = np.cumsum([0, *(len(source.chosen[split]) for source in self.sources)])
        which = np.searchsorted(starts, indices, side="right") - 1
        own = indices - starts[which]
        arrays = self._gather(which, own, lambda source, own: source.rows[split].read(source.chosen[split][own]))
        targets = arrays["targets"]
        sizes = self.token_bytes[np.maximum(targets, 0)]
        groups = {"group": which} if self.groups else {}
        return arrays | {"bytes": np.where(targets == IGNORE, 0, sizes)} | groups

    def evaluation_size(self, split: str) -> int:
        self.prepare_data()
        return sum(len(source.chosen[split]) for source in self.sources)

    def evaluation_tokens(self, split: str) -> int:
        """Of a set whose size is stated, without reading the corpus, which may hold fewer."""
        stated = self.sizes[split]
        if not self.sources and stated is not None:
            return stated // self.length * self.length
        return super().evaluation_tokens(split)

    def floors(self) -> Floors:
        """Bits per byte of a byte 5-gram on exactly the bytes of the test rows; of a mixture one n-gram per source."""
        self.prepare_data()
        limit = NGRAM_BYTES // len(self.sources)
        floors = [text_floor(s.shards, s.rows[TEST], s.chosen[TEST], limit) for s in self.sources]
        total = sum(floor.bits for floor in floors) / sum(floor.bytes for floor in floors)
        values = {"bits_per_byte": total}
        values |= {f"bits_per_byte/{name}": f.bits / f.bytes for name, f in zip(self.groups, floors, strict=False)}
        return {name: {"value": value, "what": WHAT} for name, value in values.items()}

    def _gather(self, which: Ints, own: Ints, read: Callable[[Source, Ints], Arrays]) -> Arrays:
        """The samples `own` of the sources `which`, both [N], in that order."""
        arrays: Arrays = {}
        for index in np.unique(which):
            here = which == index
            for key, values in read(self.sources[index], own[here]).items():
                arrays.setdefault(key, np.empty((len(which), *values.shape[1:]), values.dtype))[here] = values
        return arrays

    def _source(self, name: str, shards: ShardSet, limit: int | None) -> Source:
        eos, mask = self.tokenizer.eos, self.mask_documents
        splits = (TRAIN, VAL, TEST)
        rows = {split: PackedRows(shards.stream(split), self.length, eos, mask) for split in splits}
        chosen = {split: rows[split].spread(tokens) for split, tokens in self.sizes.items()}
        count = None if limit is None else limit // self.length
        train = ShuffledRows(rows[TRAIN], self.seed, count, f"{name}/rows" if self.groups else "rows")
        return Source(shards, rows, train, chosen)

    def _limits(self) -> list[int | None]:
        """Unique training tokens of each source."""
        if self.train_tokens is None:
            return [None] * len(self.shares)
        return list(apportion(self.train_tokens, self.shares))

    def _names(self) -> list[str]:
        return list(self.groups) or [self.corpora[0].label]

    def _check_rows(self, sources: list[Source]) -> None:
        full = [source.rows[TRAIN].full for source in sources]
        for name, rows, share, limit in zip(self._names(), full, self.shares, self._limits(), strict=True):
            if not rows:
                raise ValueError(f"length = {self.length}: more tokens than corpus {name} has in training")
            if limit is not None and not self.length <= limit <= rows * self.length:
                least, most = ceil(self.length / share), int(rows * self.length / share)
                which = f"at most {most}, what {name} has" if limit >= self.length else f"at least {least}, for {name}"
                raise ValueError(f"train_tokens = {self.train_tokens}: must be {which}")
        if sum(full) < self.batch_size:
            raise ValueError(
                f"batch_size = {self.batch_size}: a batch that packing cannot fill; {' and '.join(self._names())}"
                f" together have {sum(full)} training rows of length = {self.length}, must be at least a batch"
            )
