"""Knowledge stored, in bits, from losses (Part 3.3, Definitions 4.1, 4.3; Ouro §6.1, whose print lost its fractions).

A term is count · (log₂ choices − loss / ln 2) bits: what is known of `count` things, each one of `choices` equally
likely ones, when a model pays `loss` nats for one. Imports nothing, so that data and notebooks may use it.

    bioD   N·log₂(N₀/e^p₁) + N·K·log₂(Dᶜ/e^p₂) + K·D·log₂(Tᴸ/(D·e^p₃))
    bioS   N·log₂(N₀/e^p₁) + N·log₂(S₀/e^p₂), S₀ the product of exactly the attributes whose loss is in p₂

A loss above ln choices makes a term negative. It stays so: a model that has not learnt the list of names owes for it.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Loss = Any  # a float, or a tensor of one loss per loop: the result is of the same kind

NAME = "name"


@dataclass(frozen=True)
class Term:
    """One term of the bit complexity.

    parts: labels of the tokens whose losses add up to the term's. per_person: how many of its things a biography tells,
    over which the loss is a mean. best: nats that a perfect model pays; for names ln N, as any of N may come. nobody:
    nats of one that knows the lists of names and values and nothing of any person; None: ln choices, which is 0 bits.
    """

    name: str
    count: int
    log2_choices: float
    parts: tuple[str, ...]
    per_person: int = 1
    best: float = 0.0
    nobody: float | None = None

    def bits(self, loss: Loss) -> Loss:
        """loss: nats per thing, summed over its tokens."""
        return self.count * (self.log2_choices - loss / math.log(2))

    @property
    def most(self) -> float:
        return self.bits(self.best)

    @property
    def least(self) -> float:
        return 0.0 if self.nobody is None else self.bits(self.nobody)


def bio_d_terms(
    people: int, names: int, attributes: int, chunks: int, diversity: int, length: int, alphabet: int
) -> tuple[Term, ...]:
    """bioD(N, K, C, D, L, T) with N₀ = `names`. The last term is the sets of D strings, paid for at the first chunk.

    Where T^L = D there is one such set: the term is at most 0, and negative while values are not known. Without any
    person it is at most K·D·log₂(T^L/D²), all other terms being 0: the anchor of no knowledge is 0 only at T^L = D².
    """
    strings = length * math.log2(alphabet) - math.log2(diversity)
    return (
        name_term(people, names),
        Term("value", people * attributes, chunks * math.log2(diversity), ("first_chunk", "later_chunks"), attributes),
        Term("diversity", attributes * diversity, strings, ("first_chunk",), attributes, nobody=math.log(diversity)),
    )


def bio_s_terms(people: int, names: int, choices: Mapping[str, int]) -> tuple[Term, ...]:
    """bioS with N₀ = `names` and a term per attribute: p₂ is the sum of their losses, S₀ the product of `choices`."""
    values = (Term(name, people, math.log2(count), (name,)) for name, count in choices.items())
    return (name_term(people, names), *values)


def name_term(people: int, names: int) -> Term:
    return Term(NAME, people, math.log2(names), (NAME,), best=math.log(people))


def bits(terms: Iterable[Term], losses: Mapping[str, Loss]) -> dict[str, Loss]:
    """Bits by term, from each term's loss."""
    return {term.name: term.bits(losses[term.name]) for term in terms}


def most_bits(terms: Iterable[Term]) -> float:
    """What the people hold: R_max · P."""
    return sum(term.most for term in terms)


def least_bits(terms: Iterable[Term]) -> float:
    """The most that a model can score that knows the lists and not one person; below 0 it may still be."""
    return sum(term.least for term in terms)
