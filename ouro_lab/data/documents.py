"""From a corpus to the documents of its splits, in pieces that are tokenised, stored and mended as one."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.tasks.protocol import TEST, TRAIN, VAL

SPLITS = (TRAIN, VAL, TEST)


@dataclass(frozen=True)
class Piece:
    """A stretch of a corpus: the documents of each split in it."""

    index: int
    texts: dict[str, list[str]]

    def digest(self) -> str:
        whole = hashlib.sha256()
        for split in SPLITS:
            for text in self.texts[split]:
                data = text.encode("utf-8")
                whole.update(len(data).to_bytes(8, "little") + data)
            whole.update(b"\xff" * 8)  # no document is so long
        return whole.hexdigest()


def split_documents(corpus: Corpus, holdout: int) -> Iterator[tuple[str, str]]:
    """(split, text): of every `holdout` documents, in the corpus's order, the last is test, the one before validation.

    So the splits are alike where the order means something (years, topics). Empty documents are left out; an exact
    repetition is kept once, or a test document could be one of training.

    Raises: ValueError when there is no text, too few documents for three splits, or a text that is not Unicode.
    """
    special = {holdout - 2: VAL, holdout - 1: TEST}
    seen: set[bytes] = set()
    for text in corpus.documents():
        if not text.strip():
            continue
        digest = _digest(corpus.label, len(seen), text)
        if digest not in seen:
            yield special.get(len(seen) % holdout, TRAIN), text
            seen.add(digest)
    if not seen:
        raise ValueError(f"corpus = {corpus.label}: holds no text; must have at least {holdout} documents")
    if len(seen) < holdout:
        raise ValueError(
            f"corpus = {corpus.label}: {len(seen)} documents; must be at least holdout = {holdout}"
            " (for text files, a smaller unit makes more)"
        )


def pieces(corpus: Corpus, holdout: int, size: int) -> Iterator[Piece]:
    """Stretches with about `size` bytes of training text and the held-out documents between; the last may be less."""
    index, texts, held = 0, _empty(), 0
    for split, text in split_documents(corpus, holdout):
        texts[split].append(text)
        held += len(text.encode("utf-8")) if split == TRAIN else 0
        if held >= size:
            yield Piece(index, texts)
            index, texts, held = index + 1, _empty(), 0
    if any(texts.values()):
        yield Piece(index, texts)


def _empty() -> dict[str, list[str]]:
    return {split: [] for split in SPLITS}


def _digest(label: str, number: int, text: str) -> bytes:
    try:
        return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()
    except UnicodeEncodeError as error:
        raise ValueError(f"corpus = {label}: document {number + 1} is no Unicode text ({error.reason})") from error
