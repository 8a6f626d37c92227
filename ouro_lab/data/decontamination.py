"""Training documents that repeat evaluation text: found by shared n-grams of words, dropped, and reported.

The rule of GPT-3's appendix C (Brown et al. 2020) with its n = 13, but a document goes as a whole. Words are runs of
letters and digits in lower case, so spacing and punctuation hide nothing and every tokenizer loses the same documents.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.random import Bits, Ints, content_hash
from ouro_lab.data.tasks.protocol import check_range

_WORD = re.compile(r"\w+")
_EXAMPLES = 20
_BATCH = 1 << 18


class Decontamination:
    """against: name → corpus of evaluation text. n: words that must agree in a row."""

    def __init__(self, against: Mapping[str, Corpus], n: int = 13) -> None:
        check_range("n", n, 1)
        if not against:
            raise ValueError(f"against = {dict(against)}: must name at least one corpus of evaluation text")
        self.against, self.n = dict(against), n

    def identity(self) -> str:
        sets = {name: corpus.identity() for name, corpus in self.against.items()}
        return hashlib.sha256(json.dumps([self.n, sets], sort_keys=True).encode()).hexdigest()

    def overlap(self) -> "Overlap":
        """Reads the evaluation sets. Raises: what their corpora raise."""
        return Overlap({name: list(corpus.documents()) for name, corpus in self.against.items()}, self.n)


class Overlap:
    """The n-grams of evaluation texts, as sorted 64-bit hashes of word numbers; 0 is a word that no set has."""

    def __init__(self, sets: Mapping[str, Sequence[str]], n: int) -> None:
        self.n = n
        self.numbers: dict[str, int] = {}
        self.hashes: dict[str, Bits] = {}
        self.facts: dict[str, dict[str, int]] = {}
        for name, texts in sets.items():
            grams = [content_hash(self._windows(self._numbered(text, learn=True))) for text in texts]
            self.hashes[name] = np.unique(np.concatenate([np.empty(0, np.uint64), *grams]))
            short = sum(not len(found) for found in grams)
            self.facts[name] = {"texts": len(texts), "shorter_than_n": short, "ngrams": len(self.hashes[name])}

    def matches(self, texts: Sequence[str]) -> list[dict[str, Ints]]:
        """Of each text, set → the places, in words, of the n-grams that it shares; sets without any are left out."""
        numbers = [self._numbered(text) for text in texts]
        starts = np.cumsum([0, *(len(part) + 1 for part in numbers)])  # a 0 ends each: no n-gram spans two texts
        joined = np.concatenate([piece for part in numbers for piece in (part, np.zeros(1, np.int64))] or [starts])
        windows = self._windows(joined)
        unknown = np.cumsum(np.concatenate([[0], joined == 0]))
        known = np.flatnonzero(unknown[self.n :] == unknown[: -self.n])  # most have a word that no set has
        hashes = content_hash(windows[known])
        found: list[dict[str, Ints]] = [{} for _ in texts]
        for name, grams in self.hashes.items():
            places = known[_among(hashes, grams)]
            owners = np.searchsorted(starts, places, side="right") - 1
            for owner in np.unique(owners):
                found[owner][name] = places[owners == owner] - starts[owner]
        return found

    def clean(self, texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The texts that share nothing, and what was found in the others."""
        kept, removed = [], []
        for batch in _batches(texts):
            for text, found in zip(batch, self.matches(batch), strict=True):
                if found:
                    removed.append((text, found))
                else:
                    kept.append(text)
        return kept, {"documents": len(texts), "removed": len(removed), **self._found(removed)}

    def report(self, found: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """The findings of all pieces as one. A document that several sets share counts in each, once in `removed`."""
        found = list(found)
        sets = {}
        for name, facts in self.facts.items():
            counts = [piece["sets"].get(name, {}) for piece in found]
            sets[name] = facts | {key: sum(count.get(key, 0) for count in counts) for key in ("documents", "matches")}
        totals = {key: sum(piece[key] for piece in found) for key in ("documents", "removed")}
        examples = [example for piece in found for example in piece["examples"]][:_EXAMPLES]
        return {"n": self.n, "unit": "words", **totals, "sets": sets, "examples": examples}

    def _found(self, removed: Sequence[tuple[str, dict[str, Ints]]]) -> dict[str, Any]:
        sets: dict[str, dict[str, int]] = {}
        examples = []
        for text, found in removed:
            for name, places in found.items():
                counts = sets.setdefault(name, {"documents": 0, "matches": 0})
                counts["documents"] += 1
                counts["matches"] += len(places)
                words = words_of(text)[places[0] : places[0] + self.n]
                examples.append({"set": name, "document": text[:60], "ngram": " ".join(words)})
        return {"sets": sets, "examples": examples[:_EXAMPLES]}

    def _numbered(self, text: str, learn: bool = False) -> Ints:
        """Its words as numbers [words]."""
        words = words_of(text)
        if learn:
            for word in words:
                self.numbers.setdefault(word, len(self.numbers) + 1)
        return np.fromiter((self.numbers.get(word, 0) for word in words), np.int64, len(words))

    def _windows(self, numbers: Ints) -> Ints:
        """Every n-gram [N, n]; of fewer words there is none."""
        if len(numbers) < self.n:
            return np.empty((0, self.n), np.int64)
        return sliding_window_view(numbers, self.n)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    """Texts until they hold about `_BATCH` characters: a call of numpy costs more than a short text's work."""
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= _BATCH:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _among(hashes: Bits, grams: Bits) -> NDArray[np.bool_]:
    """By search in the sorted `grams`: `np.isin` would sort all of a set for every document."""
    if not len(grams):
        return np.zeros(len(hashes), bool)
    return grams[np.searchsorted(grams, hashes) % len(grams)] == hashes


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def line(label: str, report: dict[str, Any]) -> str:
    """`sotu: 12 of 199 training documents share 13 words with evaluation text and were left out (mmlu 10, arc 3)`."""
    sets = ", ".join(f"{name} {facts['documents']}" for name, facts in report["sets"].items())
    shared = f"share {report['n']} words in a row with evaluation text and were left out"
    return f"{label}: {report['removed']:,} of {report['documents']:,} training documents {shared} ({sets})"
