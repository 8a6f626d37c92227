"""Multi-hop questions over facts that a model must hold in its weights (Ouro §6 and App. B.3, after Yao et al. 2025).

Entities lie in layers; each relation leads from every entity of a layer to one of the next. The answer to
(A, r_1 … r_k) is the entity reached from A by r_1, then r_2, … A model sees all facts and a fraction of the questions.
"""

from collections.abc import Sequence

import numpy as np

from ouro_lab.data.random import Ints, bits, integers
from ouro_lab.data.tasks.chains import Chains, ChainTask, deal
from ouro_lab.data.tasks.protocol import SEEN, TEST, TRAIN, VAL, check_choice, check_range, check_share
from ouro_lab.data.tasks.wording import make_wording

LINKS = ("permutation", "random")
_MOST_QUESTIONS = 1 << 22  # of one hop count: they are listed in memory


class MultiHop(ChainTask):
    """Layered entities, facts always in the stream, held-out questions as validation and test.

    layers, entities: so many layers of so many entities each. links: each relation between two layers is a permutation,
    so that no field but the whole chain tells the answer, or maps every entity to a random one (as published).
    hops: hop counts of the questions, asked of the first layer's entities only: entities · relations^k questions.
    train_fraction: of all questions of a hop count, those in training. held_out: of all questions, half validation and
    half test; the same for every train_fraction of a world, and a larger fraction contains the smaller. facts_share: of
    every training batch. wording: one token per field, or sentences. world: which graph and split; run seeds share it.

    Groups: `hops_k` held out; `seen_hops_1`, the facts, and `seen_hops_k`, training questions, only reported.
    """

    def __init__(
        self,
        layers: int = 5,
        entities: int = 16,
        relations: int = 10,
        hops: int | Sequence[int] = 3,
        links: str = "permutation",
        train_fraction: float = 0.6,
        held_out: float = 0.2,
        facts_share: float = 0.25,
        wording: str = "symbols",
        loss: str = "answer",
        world: int = 0,
    ) -> None:
        self.hop_counts = _hop_counts(hops, layers)
        check_range("entities", entities, 2)
        check_range("relations", relations, 1)
        check_range("world", world, 0)
        check_choice("links", links, LINKS)
        check_share("held_out", held_out)
        check_share("train_fraction", train_fraction, 1 - held_out, "1 − held_out")
        self.layers, self.entities, self.relations, self.world = layers, entities, relations, world
        self.train_fraction, self.held_out = train_fraction, held_out
        self._check_size()
        self.graph = _graph(world, layers, relations, entities, links)
        words = make_wording(wording, layers * entities, relations, self.hop_counts[-1])
        super().__init__("multihop", self._pools(), words, facts_share, loss)

    def follow(self, heads: Ints, relations: Ints) -> Ints:
        """The entities [n] that lie at the end of relations [n, k] from heads [n]."""
        for relation in relations.T:
            layer, place = np.divmod(heads, self.entities)
            heads = (layer + 1) * self.entities + self.graph[layer, relation, place]
        return heads

    def questions(self, hops: int) -> Chains:
        """All questions of one hop count."""
        number = np.arange(self.entities * self.relations**hops)
        relations = number[:, None] // self.relations ** np.arange(hops)[::-1] % self.relations
        heads = number // self.relations**hops
        return Chains(heads, relations, self.follow(heads, relations))

    def facts(self) -> Chains:
        heads = np.repeat(np.arange((self.layers - 1) * self.entities), self.relations)
        relations = np.tile(np.arange(self.relations), len(heads) // self.relations)[:, None]
        return Chains(heads, relations, self.follow(heads, relations))

    def _pools(self) -> dict[str, dict[str, Chains]]:
        pools: dict[str, dict[str, Chains]] = {TRAIN: {f"{SEEN}hops_1": self.facts()}, VAL: {}, TEST: {}}
        for hops in self.hop_counts:
            questions = self.questions(hops)
            half, train = self._part(self.held_out / 2, hops), self._part(self.train_fraction, hops)
            parts = deal(questions, self.world, f"multihop/split/{hops}", [half, half, train])
            pools[TEST][f"hops_{hops}"], pools[VAL][f"hops_{hops}"], pools[TRAIN][f"{SEEN}hops_{hops}"] = parts
        return pools

    def _part(self, fraction: float, hops: int) -> int:
        """So many questions; rounded down, so that parts never overlap."""
        return int(fraction * self.entities * self.relations**hops + 1e-6)

    def _questions(self) -> dict[str, tuple[Chains, Ints]]:
        every = {f"hops_{hops}": self.questions(hops) for hops in self.hop_counts}
        return {group: (chains, np.arange(len(chains))) for group, chains in every.items()}

    def _check_size(self) -> None:
        """Every part of every hop count must have a question, and all must fit in memory."""
        count = self.entities * self.relations ** self.hop_counts[-1]
        if count > _MOST_QUESTIONS:
            raise ValueError(
                f"relations = {self.relations}: {count} questions of {self.hop_counts[-1]} hops;"
                f" entities · relations^hops must be at most {_MOST_QUESTIONS}"
            )
        fewest = self.entities * self.relations ** self.hop_counts[0]
        for field, fraction in (("held_out", self.held_out / 2), ("train_fraction", self.train_fraction)):
            if not self._part(fraction, self.hop_counts[0]):
                raise ValueError(
                    f"{field} = {getattr(self, field)}: no question of {fewest} of {self.hop_counts[0]} hops;"
                    f" must be larger"
                )


def _hop_counts(hops: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """Raises: ValueError unless they are different and at least 2: single hops are the facts, always in training."""
    check_range("layers", layers, 3)
    counts = [hops] if isinstance(hops, int) else list(hops)
    for count in counts:
        check_range("hops", count, 2, layers - 1)
    if not counts or len(set(counts)) < len(counts):
        raise ValueError(f"hops = {counts}: must be different integers from 2 to {layers - 1}")
    return tuple(sorted(counts))


def _graph(world: int, layers: int, relations: int, entities: int, links: str) -> Ints:
    """[layers − 1, relations, entities]: where each relation leads, as places in the next layer."""
    words = bits(world, f"multihop/graph/{links}", np.arange((layers - 1) * relations), entities)
    places = np.argsort(words, axis=1, kind="stable") if links == "permutation" else integers(words, entities)
    return places.reshape(layers - 1, relations, entities)
