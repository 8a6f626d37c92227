"""Two-hop composition in and out of distribution (Wang et al. 2024, "Grokked Transformers"; tasks.md §4.2).

Facts of a random graph are split: questions of training chain two facts of the one part, those out of distribution two
of the other, whose facts are trained on but never chained. A model answers them only if it composes in general.
"""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, bits, integers, permutation
from ouro_lab.data.tasks.chains import Chains, ChainTask, deal
from ouro_lab.data.tasks.protocol import SEEN, TEST, TRAIN, VAL, check_range, check_share
from ouro_lab.data.tasks.wording import make_wording

_GROUPS = ("id", "ood")


class Composition(ChainTask):
    """Each entity is the head of `out_degree` facts with different relations and random tails, itself included.

    ood: of the facts, those never chained in training. ratio: training questions per in-distribution fact (φ).
    held_out: of the in-distribution questions, half validation and half test; of those out of distribution all are held
    out, half and half; chains of one fact of each kind are in no part. facts_share: of every training batch; by default
    facts and questions are equally frequent. world: which graph and split; run seeds share it.

    Groups: `id` and `ood` held out; `seen_facts` and `seen_questions`, only reported.
    """

    def __init__(
        self,
        entities: int = 200,
        relations: int = 40,
        out_degree: int = 10,
        ood: float = 0.15,
        ratio: float = 7.2,
        held_out: float = 0.1,
        facts_share: float | None = None,
        wording: str = "symbols",
        loss: str = "answer",
        world: int = 0,
    ) -> None:
        check_range("entities", entities, 2)
        check_range("relations", relations, 1)
        check_range("out_degree", out_degree, 1, relations)
        check_range("world", world, 0)
        check_share("ood", ood)
        check_share("held_out", held_out)
        self.entities, self.relations, self.out_degree, self.world = entities, relations, out_degree, world
        self.ood, self.held_out = ood, held_out
        self.facts = _facts(world, entities, relations, out_degree)
        self.is_ood = permutation(world, "composition/ood", len(self.facts)) < ood * len(self.facts)  # [facts]
        self.chains_of_two, first, second = self._compose()
        kinds = (~self.is_ood[first] & ~self.is_ood[second], self.is_ood[first] & self.is_ood[second])
        self._kinds = dict(zip(_GROUPS, kinds, strict=True))
        pools = self._pools(self._training_questions(ratio))
        share = len(self.facts) / sum(map(len, pools[TRAIN].values())) if facts_share is None else facts_share
        super().__init__("composition", pools, make_wording(wording, entities, relations, 2), share, loss)

    def _compose(self) -> tuple[Chains, Ints, Ints]:
        """All chains of two facts, and the number of the first and second fact of each."""
        first = np.repeat(np.arange(len(self.facts)), self.out_degree)
        second = self.facts.answers[first] * self.out_degree + np.tile(np.arange(self.out_degree), len(self.facts))
        relations = np.stack([self.facts.relations[first, 0], self.facts.relations[second, 0]], axis=1)
        return Chains(self.facts.heads[first], relations, self.facts.answers[second]), first, second

    def _training_questions(self, ratio: float) -> int:
        """Raises: ValueError when there are not so many in-distribution questions besides the held-out ones."""
        facts, questions = int((~self.is_ood).sum()), int(self._kinds["id"].sum())
        most = questions - 2 * self._held(questions)
        if not ratio > 0 or not 1 <= int(ratio * facts) <= most:
            limit = f"{most} questions for {facts} facts allow at most {most / max(facts, 1):.3f}"
            raise ValueError(f"ratio = {ratio!r}: must be above 0; {limit}")
        return int(ratio * facts)

    def _pools(self, train: int) -> dict[str, dict[str, Chains]]:
        """Validation and test come first in the order, so that they are the same for every ratio."""
        inside, outside = (self.chains_of_two.take(np.flatnonzero(self._kinds[group])) for group in _GROUPS)
        half, outer = self._held(len(inside)), len(outside) // 2
        for field, size, kind in (("held_out", half, "in-distribution"), ("ood", outer, "out-of-distribution")):
            if not size:
                value = getattr(self, field)
                raise ValueError(f"{field} = {value!r}: no {kind} question for validation and test; must be larger")
        id_test, id_val, id_train = deal(inside, self.world, "composition/id", [half, half, train])
        ood_test, ood_val = deal(outside, self.world, "composition/ood_questions", [outer, outer])
        return {
            TRAIN: {f"{SEEN}facts": self.facts, f"{SEEN}questions": id_train},
            VAL: {"id": id_val, "ood": ood_val},
            TEST: {"id": id_test, "ood": ood_test},
        }

    def _held(self, questions: int) -> int:
        return int(self.held_out / 2 * questions + 1e-6)

    def _questions(self) -> dict[str, tuple[Chains, Ints]]:
        """Majorities for `id` over its own kind, as training can tell it; for `ood` over all chains of two facts.

        Nothing in training tells which chains are out of distribution: among those few, two fields would name one.
        """
        inside = self.chains_of_two.take(np.flatnonzero(self._kinds["id"]))
        return {
            "id": (inside, np.arange(len(inside))),
            "ood": (self.chains_of_two, np.flatnonzero(self._kinds["ood"])),
        }


def _facts(world: int, entities: int, relations: int, out_degree: int) -> Chains:
    """Fact number h · out_degree + j is the j-th of head h."""
    words = bits(world, "composition/graph", np.arange(entities), relations + out_degree)
    chosen: NDArray = np.argsort(words[:, :relations], axis=1, kind="stable")[:, :out_degree]  # different ones per head
    tails = integers(words[:, relations:], entities)
    return Chains(np.repeat(np.arange(entities), out_degree), chosen.reshape(-1, 1), tails.ravel())
