"""How a chain of facts is written: one token per field, or words of an invented town."""

from typing import Protocol

import numpy as np

from ouro_lab.data.random import Bits, Ints, integers
from ouro_lab.data.tasks.protocol import check_choice, check_range

WORDINGS = ("symbols", "sentences")

# People are named by one of each; every name is one token.
_BEGINNINGS = "Ba Bri Co Da Dre Fe Fo Ga Gri Hu Jo Ka Lo Me Ni O Pe Qua Ro Si Tu Va Wi Ye"
_ENDINGS = (
    "bel bin cor dan del dric fen gar gus hild kin lam lek lin mar mond nak nel nor pik rell"
    " rik ros sam sel tan tev tor vick vin wen zar"
)
_RELATIONS = (
    "accountant apprentice barber cobbler confidant cousin dentist florist gardener godparent grocer guardian joiner"
    " landlord lodger mentor milliner neighbour plumber rival successor tailor understudy witness"
)
# What stands before and after "the r_k of … the r_1 of A"; the name that answers comes next.
_STATEMENTS = (("", "is"), ("in this town", "is known to be"), ("everybody calls", "by the name"))
_QUESTIONS = (("who is", "? that is"), ("please name", ":"))


class Wording(Protocol):
    """Entity e is token e in every wording."""

    vocab_size: int
    sequence_length: int  # of the longest prompt

    def write(self, heads: Ints, relations: Ints, choice: Bits) -> tuple[Ints, Ints]:
        """Prompts [B, S], filled up on the right, and their lengths [B]; `choice` [B] picks among phrasings."""
        ...

    def read(self, tokens: Ints) -> str:
        """One row of tokens as text."""
        ...


def make_wording(kind: str, entities: int, relations: int, hops: int) -> Wording:
    check_choice("wording", kind, WORDINGS)
    return (Symbols if kind == "symbols" else Sentences)(entities, relations, hops)


class Symbols:
    """head r_1 … r_k, one token each, the relation that is applied first in front."""

    def __init__(self, entities: int, relations: int, hops: int) -> None:
        self.entities = entities
        self.vocab_size = entities + relations + 1
        self.sequence_length = hops + 1

    def write(self, heads: Ints, relations: Ints, choice: Bits) -> tuple[Ints, Ints]:
        there = relations >= 0
        symbols = np.where(there, self.entities + relations, self.vocab_size - 1)
        return np.concatenate([heads[:, None], symbols], axis=1), 1 + there.sum(axis=1)

    def read(self, tokens: Ints) -> str:
        names = [f"e{token}" if token < self.entities else f"r{token - self.entities}" for token in tokens.tolist()]
        return " ".join(name for name, token in zip(names, tokens, strict=True) if token != self.vocab_size - 1)


class Sentences:
    """English with one token per word; the relation named last is applied first, a single hop is a statement."""

    def __init__(self, entities: int, relations: int, hops: int) -> None:
        names = [first + last for last in _ENDINGS.split() for first in _BEGINNINGS.split()]
        people = _RELATIONS.split()
        check_range("entities in sentences", entities, 1, len(names))
        check_range("relations in sentences", relations, 1, len(people))
        phrases = [phrase for pair in (*_STATEMENTS, *_QUESTIONS) for phrase in pair]
        words = sorted({word for phrase in (*phrases, "the of") for word in phrase.split()})
        self.vocabulary: tuple[str, ...] = (*names[:entities], *people[:relations], *words, "")
        self.entities, self.vocab_size = entities, len(self.vocabulary)
        self._word = {word: entities + relations + k for k, word in enumerate(words)}
        self.sequence_length = max(self._length(k, *pair) for k in (1, hops) for pair in _phrasings(k))

    def write(self, heads: Ints, relations: Ints, choice: Bits) -> tuple[Ints, Ints]:
        tokens = np.full((len(heads), self.sequence_length), self.vocab_size - 1, np.int64)
        lengths, hops = np.zeros(len(heads), np.int64), (relations >= 0).sum(axis=1)
        for k in np.unique(hops).tolist():
            phrasings = _phrasings(k)
            picked = integers(choice, len(phrasings))
            for index, (before, after) in enumerate(phrasings):
                rows = np.flatnonzero((hops == k) & (picked == index))
                prompt = self._prompt(heads[rows], relations[rows, :k], before, after)
                tokens[rows, : prompt.shape[1]] = prompt
                lengths[rows] = prompt.shape[1]
        return tokens, lengths

    def read(self, tokens: Ints) -> str:
        return " ".join(self.vocabulary[token] for token in tokens.tolist()).strip()

    def _length(self, hops: int, before: str, after: str) -> int:
        return len(before.split()) + 3 * hops + 1 + len(after.split())

    def _prompt(self, heads: Ints, relations: Ints, before: str, after: str) -> Ints:
        """[B, length] of one phrasing and one hop count."""
        fixed = {phrase: [self._word[word] for word in phrase.split()] for phrase in (before, after, "the", "of")}
        columns: list[int | Ints] = [*fixed[before]]
        for relation in relations.T[::-1]:
            columns += [*fixed["the"], self.entities + relation, *fixed["of"]]
        columns += [heads, *fixed[after]]
        return np.stack([np.broadcast_to(column, heads.shape) for column in columns], axis=1)


def _phrasings(hops: int) -> tuple[tuple[str, str], ...]:
    return _STATEMENTS if hops == 1 else _QUESTIONS
