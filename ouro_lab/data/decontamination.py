"""Training documents that repeat evaluation text: found by shared n-grams of words, dropped, and reported.

The rule of GPT-3's appendix C (Brown et al. 2020) with its n = 13, but a document goes as a whole. Words are runs of
letters and digits in lower case, so spacing and punctuation hide nothing and every tokenizer loses the same documents.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ouro_lab.data.corpus import Corpus
from ouro_lab.data.random import Bits, Ints, content_hash
from ouro_lab.data.tasks.protocol import check_range

_WORD = re.compile(r"\w+")
_EXAMPLES = 20


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
            grams = [content_hash(self._windows(text, learn=True)) for text in texts]
            self.hashes[name] = np.unique(np.concatenate([np.empty(0, np.uint64), *grams]))
            short = sum(not len(found) for found in grams)
            self.facts[name] = {"texts": len(texts), "shorter_than_n": short, "ngrams": len(self.hashes[name])}

    def matches(self, text: str) -> dict[str, Ints]:
        """Set → the places, in words, of the n-grams that it shares with the text; sets without any are left out."""
        windows = self._windows(text)
        known = windows.min(axis=1, initial=1).nonzero()[0]  # most have a word that no set has
        hashes = content_hash(windows[known])
        found = {name: known[np.isin(hashes, grams)] for name, grams in self.hashes.items()}
        return {name: places for name, places in found.items() if len(places)}

    def clean(self, texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """The texts that share nothing, and what was found in the others."""
        kept, removed = [], []
        for text in texts:
            found = self.matches(text)
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

    def _windows(self, text: str, learn: bool = False) -> Ints:
        """Word numbers of every n-gram [N, n]; a text with fewer words has none."""
        words = words_of(text)
        if learn:
            for word in words:
                self.numbers.setdefault(word, len(self.numbers) + 1)
        numbers = np.fromiter((self.numbers.get(word, 0) for word in words), np.int64, len(words))
        if len(numbers) < self.n:
            return np.empty((0, self.n), np.int64)
        return sliding_window_view(numbers, self.n)


def words_of(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def line(label: str, report: dict[str, Any]) -> str:
    """`sotu: 12 of 199 training documents share 13 words with evaluation text and were left out (mmlu 10, arc 3)`."""
    sets = ", ".join(f"{name} {facts['documents']}" for name, facts in report["sets"].items())
    shared = f"share {report['n']} words in a row with evaluation text and were left out"
    return f"{label}: {report['removed']:,} of {report['documents']:,} training documents {shared} ({sets})"
