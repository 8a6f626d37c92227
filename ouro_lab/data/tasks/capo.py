"""Capo: knowledge capacity from synthetic biographies (Part 3.3; Part 4.1; Ouro §6.1). bioD here, bioS in `bio_s`.

One exposure: every person's knowledge is told once, so 1,000 exposures (Ouro) are 1,000 · people / batch_size steps and
100 (Part 4.1, where differences between architectures still show) a tenth. Order and wording are new every time.

A row is `<eos>` and one biography: what attention within a biography sees in any window of packed ones (Ouro masks
biographies from one another, Part 3.3 does not). So a published batch of 192 windows is so many biographies instead.
The loss is of all tokens. Evaluation is on the people trained on: their names and facts, not sequences, are the data.
"""

import math
from abc import ABC, abstractmethod
from functools import lru_cache

import numpy as np

from ouro_lab.data.random import Bits, Ints, bits, integers, permutation
from ouro_lab.data.tasks.protocol import TRAIN, Arrays, Floors, check_range
from ouro_lab.evaluation.capacity import NAME, Term, bio_d_terms

LISTED = 1 << 20  # a space up to this size is shuffled whole, a larger one drawn from until enough are distinct


class Capo(ABC):
    """People and their exposures. A subclass has their facts and words.

    population: which people; not the run's seed, so that every run of a study learns the same facts.
    """

    groups: tuple[str, ...] = ()
    vocab_size: int
    sequence_length: int
    parts: tuple[str, ...]
    terms: tuple[Term, ...]
    values: Ints  # [people, columns] the tokens that are scored, each once in a biography
    string = 1  # columns that are drawn together
    draws: int  # random words per biography

    def __init__(self, people: int, lists: list[int], population: int) -> None:
        """lists: sizes of the name lists; a name is one token of each, and no two people share one."""
        for size in lists:
            check_range("names", size, 1)
        check_range("people", people, 1, math.prod(lists))
        check_range("population", population, 0)
        self.people, self.lists, self.population = people, tuple(lists), population
        self.names = distinct_rows(population, "capo/names", people, self.lists)  # [people, lists]

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Global sample i tells of person π_e(i mod people) in exposure e = i ÷ people; π_e is given by (seed, e)."""
        exposures, places = np.divmod(indices, self.people)
        person = np.empty_like(places)
        for exposure in np.unique(exposures):
            here = exposures == exposure
            person[here] = telling_order(seed, int(exposure), self.people)[places[here]]
        return self.write(person, bits(seed, f"capo/{split}", indices, self.draws), split)

    def evaluation(self, split: str, size: int) -> Arrays:
        """The first `size` people, or all: they are in no order, so a part stands for the whole."""
        person = np.arange(min(size, self.people))
        return self.write(person, bits(self.population, f"capo/{split}", person, self.draws), split)

    def floors(self) -> Floors:
        """Accuracy on value tokens of the most common one behind its string's earlier ones, among these very people."""
        hits, told = 0, np.zeros(self.people, np.int64)  # told: a number for the string so far
        for place, column in enumerate(self.values.T):
            earlier = told if place % self.string else 0
            pairs, told, counts = np.unique(earlier * self.vocab_size + column, return_inverse=True, return_counts=True)
            most = np.zeros(self.people, np.int64)
            np.maximum.at(most, pairs // self.vocab_size, counts)
            hits += int(most.sum())
        what = "most common value of each attribute, whoever it is, and of a string given its earlier tokens"
        return {"accuracy": {"value": hits / self.values.size, "what": what}}

    @abstractmethod
    def write(self, person: Ints, words: Bits, split: str) -> Arrays:
        """The biographies of `person` [B], by random words [B, draws]."""

    def _arrays(self, tokens: Ints, part: Ints) -> Arrays:
        """Shifted to input and targets, from whole rows [B, S + 1] and the part that each token is of."""
        return {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "scored": part[:, 1:] > 0,  # 0 is the name
            "part": part[:, 1:],
        }


class BioD(Capo):
    """bioD(N, K, C, D, L, T): a value is `chunks` of a set of `diversity` strings, one set per attribute.

    `<eos>` name (attribute value)… `<eos>`, attributes in random order; an attribute's token is its whole template.
    names: sizes of the name lists. diversity: strings per attribute, distinct, of `length` tokens over `alphabet`
    tokens, which attributes share. Names that nobody bears and letters in no string keep their rows, and P counts them:
    they tell what is not a name or value, which the terms credit. The files in conf/data have next to none.
    """

    parts = (NAME, "first_chunk", "later_chunks")

    def __init__(
        self,
        people: int = 1300,
        names: tuple[int, ...] | list[int] = (96, 96),
        attributes: int = 8,
        chunks: int = 1,
        diversity: int = 64,
        length: int = 1,
        alphabet: int = 64,
        population: int = 0,
    ) -> None:
        super().__init__(people, list(names), population)
        for field, value in (("attributes", attributes), ("chunks", chunks), ("length", length)):
            check_range(field, value, 1, 1000)
        check_range("alphabet", alphabet, 2, 1_000_000)
        check_range("diversity", diversity, 2, min(1_000_000, alphabet**length))
        self.attributes, self.draws, self.string = attributes, attributes, length
        self.terms = bio_d_terms(people, math.prod(names), attributes, chunks, diversity, length, alphabet)
        starts = np.cumsum([1, *names, attributes])  # of each name list, the attributes and the alphabet
        self.names = self.names + starts[: len(names)]
        self.first_attribute = int(starts[-2])
        self.vocab_size = int(starts[-1]) + alphabet
        self.sequence_length = 1 + len(names) + attributes * (1 + chunks * length)
        sets = [
            distinct_rows(population, f"capo/strings/{k}", diversity, (alphabet,) * length) for k in range(attributes)
        ]
        self.sets = np.stack(sets) + starts[-1]  # [K, D, L]
        words = bits(population, "capo/values", np.arange(people), attributes * chunks)
        self.choices = integers(words, diversity).reshape(people, attributes, chunks)
        told = self.sets[np.arange(attributes)[:, None], self.choices]  # [people, K, C, L]
        self.values = told.reshape(people, attributes * chunks * length)
        self.labels = np.repeat([-1, 1, 2], [1, length, (chunks - 1) * length])  # of an attribute's tokens

    def write(self, person: Ints, words: Bits, split: str) -> Arrays:
        order = np.argsort(words, axis=1, kind="stable")  # [B, K]
        values = self.values[person].reshape(len(person), self.attributes, -1)
        values = np.take_along_axis(values, order[:, :, None], 1)
        facts = np.concatenate([self.first_attribute + order[:, :, None], values], 2).reshape(len(person), -1)
        eos = np.zeros((len(person), 1), np.int64)
        tokens = np.concatenate([eos, self.names[person], facts, eos], axis=1)
        part = np.concatenate([[-1], np.zeros(len(self.lists)), np.tile(self.labels, self.attributes), [-1]])
        return self._arrays(tokens, np.broadcast_to(part.astype(np.int64), tokens.shape))


@lru_cache(maxsize=4)
def telling_order(seed: int, exposure: int, people: int) -> Ints:
    """Who is told of when; kept, as a batch reads a part of it."""
    return permutation(seed, f"capo/exposure/{exposure}", people)


def distinct_rows(seed: int, stream: str, count: int, sizes: tuple[int, ...]) -> Ints:
    """`count` different rows of digits [count, len(sizes)], digit k uniform below sizes[k]; so many must exist."""
    space = math.prod(sizes)
    if space <= LISTED:
        return np.stack(np.unravel_index(permutation(seed, stream, space)[:count], sizes), axis=1)
    drawn = count
    while True:
        words = bits(seed, stream, np.arange(drawn), len(sizes))
        rows = np.stack([integers(words[:, k], size) for k, size in enumerate(sizes)], axis=1)
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
        if len(first) >= count:
            return rows[first[:count]]
        drawn += 2 * (count - len(first)) + 16
