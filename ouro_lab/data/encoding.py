"""What decides a corpus's shards, and the making of one piece of them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.decontamination import Overlap
from ouro_lab.data.documents import SPLITS, Piece, pieces
from ouro_lab.data.shards import FORMAT, Shard, write_atomically
from ouro_lab.data.tasks.protocol import TRAIN
from ouro_lab.data.tokenizer import TextTokenizer, tokenizer_digest
from ouro_lab.measured import cache_root

PIECE_BYTES = 4 << 20  # of training text: shards that hash in milliseconds and are few enough to list
_CHUNK = 256  # documents given to the tokenizer at a time


@dataclass(frozen=True)
class Recipe:
    """All that decides a corpus's shards.

    tokens: training tokens after which reading stops, at the end of a piece; None reads all. piece_bytes: training
    text of a piece. decontaminated: `Decontamination.identity` where training documents are filtered, else "".
    """

    corpus: Corpus
    tokenizer: TextTokenizer
    holdout: int
    tokens: int | None = None
    decontaminated: str = ""
    piece_bytes: int = PIECE_BYTES

    def folder(self) -> Path:
        facts = [FORMAT, self.corpus.identity(), tokenizer_digest(self.tokenizer), self.holdout]
        facts += [self.tokens, self.decontaminated, self.piece_bytes]
        name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=8).hexdigest()
        return cache_root() / "text" / f"{self.corpus.label}-{self.tokenizer.identity}-{name}"

    def pieces(self) -> Iterator[Piece]:
        return pieces(self.corpus, self.holdout, self.piece_bytes)


class Encoder:
    """Makes a piece's shards in `folder` and says what they hold: a pure function of the piece, in any process."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer, overlap: Overlap | None) -> None:
        self.folder, self.tokenizer, self.overlap = folder, tokenizer, overlap
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")

    def __call__(self, piece: Piece) -> dict[str, Any]:
        texts = dict(piece.texts)
        entry: dict[str, Any] = {"index": piece.index, "source": piece.digest()}
        if self.overlap is not None:
            texts[TRAIN], entry["overlap"] = self.overlap.clean(texts[TRAIN])
        return entry | {"splits": {split: self._shard(split, piece.index, texts[split]) for split in SPLITS}}

    def _shard(self, split: str, index: int, texts: list[str]) -> dict[str, Any]:
        eos = np.array([self.tokenizer.eos], self.dtype)
        parts = [np.empty(0, self.dtype) if index else eos]
        for start in range(0, len(texts), _CHUNK):
            for ids in self.tokenizer.encode(texts[start : start + _CHUNK]):
                parts += [ids.astype(self.dtype), eos]
        tokens = np.concatenate(parts)
        data = tokens.tobytes()
        size = sum(len(text.encode("utf-8")) for text in texts)
        shard = Shard(hashlib.sha256(data).hexdigest(), len(tokens), len(texts), size)
        write_atomically(self.folder / shard.name(split, index), data)
        return vars(shard)
