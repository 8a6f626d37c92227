"""A text's floor: bits per byte of a byte 5-gram on exactly the bytes that a test scores; kept beside the shards."""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.ngram import EOS, NGram, symbols
from ouro_lab.data.packing import PackedRows
from ouro_lab.data.random import Ints
from ouro_lab.data.shard_set import ShardSet
from ouro_lab.data.tasks.protocol import TEST, TRAIN
from ouro_lab.data.text_cache import made_once

NGRAM_ORDER = 5
NGRAM_BYTES = 32 << 20  # of training text at most, or the floor takes minutes and gigabytes
WHAT = f"byte {NGRAM_ORDER}-gram, interpolated Kneser-Ney, same text"


@dataclass(frozen=True)
class Floor:
    bits: float
    bytes: int


def text_floor(shards: ShardSet, rows: PackedRows, chosen: Ints, limit: int = NGRAM_BYTES) -> Floor:
    """Of the test rows `chosen`. limit: bytes of training text that the n-gram reads."""
    settings = json.dumps([NGRAM_ORDER, limit, rows.length, len(chosen)])
    name = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
    folder = shards.folder.with_name(f"{shards.folder.name}-floor-{name}")

    def write(target: Path) -> None:
        (target / "floor.json").write_text(json.dumps(vars(_measured(shards, rows, chosen, limit))))

    made_once(folder, write)
    return Floor(**json.loads((folder / "floor.json").read_text()))


def _measured(shards: ShardSet, rows: PackedRows, chosen: Ints, limit: int) -> Floor:
    model = NGram(symbols(list(_first(shards.texts(TRAIN), limit))), NGRAM_ORDER)
    stream = symbols(list(shards.texts(TEST)))
    starts, ends = _symbol_spans(shards, rows, chosen)
    nats = _span_sum(model.nats(stream), starts, ends)
    return Floor(nats / math.log(2), round(_span_sum((stream != EOS).astype(np.int64), starts, ends)))


def _symbol_spans(shards: ShardSet, rows: PackedRows, chosen: Ints) -> tuple[Ints, Ints]:
    """Where each test row's targets begin and end in the stream of bytes and document ends."""
    stream, tokenizer = rows.stream[:], shards.recipe.tokenizer
    width = np.maximum(tokenizer.token_bytes()[stream], stream == tokenizer.eos)
    begin = np.concatenate([[0], np.cumsum(width)])  # [tokens + 1]
    first = chosen * rows.length + 1
    return begin[first], begin[np.minimum(first + rows.length, len(stream))]


def _first(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Documents until they hold `limit` bytes."""
    held = 0
    for text in texts:
        yield text
        held += len(text.encode("utf-8"))
        if held > limit:
            return


def _span_sum(values: NDArray, starts: Ints, ends: Ints) -> float:
    total = np.concatenate([[0], np.cumsum(values)])
    return float((total[ends] - total[starts]).sum())
