"""Questions that follow a chain of facts, facts always among the training data: what multi-hop tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Bits, Ints, bits, integers, permutation
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, Arrays, Floors, check_choice, check_share
from ouro_lab.data.tasks.shortcuts import exact_shortcut
from ouro_lab.data.tasks.wording import Wording

LOSSES = ("answer", "all")
NO_RELATION = -1  # fills the relations of a chain that is shorter than others


@dataclass(frozen=True)
class Chains:
    """Rows of head [n], relations [n, k] in the order in which they are applied, and the entity reached [n].

    A row of fewer hops than k ends in `NO_RELATION`. Entities and relations are counted from 0 each.
    """

    heads: Ints
    relations: Ints
    answers: Ints

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def hops(self) -> Ints:
        return (self.relations != NO_RELATION).sum(axis=1)

    def take(self, rows: Ints) -> "Chains":
        return Chains(self.heads[rows], self.relations[rows], self.answers[rows])

    def fields(self) -> dict[str, Ints]:
        """The fields of the prompts, which must have equally many hops."""
        relations = {f"relation {k}": column for k, column in enumerate(self.relations.T, start=1)}
        return {"head": self.heads, **relations}


def join(parts: Sequence[Chains]) -> Chains:
    most = max(part.relations.shape[1] for part in parts)
    wide = [
        np.pad(part.relations, ((0, 0), (0, most - part.relations.shape[1])), constant_values=NO_RELATION)
        for part in parts
    ]
    heads, answers = (np.concatenate([getattr(part, name) for part in parts]) for name in ("heads", "answers"))
    return Chains(heads, np.concatenate(wide), answers)


Pools = Mapping[str, Mapping[str, Chains]]  # split → group → the group's questions, each once


class ChainTask(ABC):
    """A task over fixed pools of chains; what the pools hold decides what is in training and what is not.

    name: of its random streams. pools: for `train` the facts first, then questions, in groups named `seen_…`; for
    `val` and `test` held-out questions. share: of facts among the training samples, exactly, in every run of them;
    the others are uniform over the groups of questions, then over a group's questions. loss: on the answer alone, or
    on all tokens. Where the literature is silent on these (tasks.md §4) they are options.
    """

    def __init__(self, name: str, pools: Pools, wording: Wording, share: float, loss: str) -> None:
        check_share("facts_share", share)
        check_choice("loss", loss, LOSSES)
        self.name, self.wording, self.loss, self.share = name, wording, loss, float(share)
        self.vocab_size, self.sequence_length = wording.vocab_size, wording.sequence_length
        held = (group for split, part in pools.items() if split != TRAIN for group in part)
        self.groups: tuple[str, ...] = (*dict.fromkeys(held), *pools[TRAIN])
        named = [(split, group) for split, part in pools.items() for group in part]
        sizes = [len(pools[split][group]) for split, group in named]
        self.chains = join([pools[split][group] for split, group in named])
        self.group = np.repeat([self.groups.index(group) for _, group in named], sizes)
        parts = np.split(np.arange(len(self.chains)), np.cumsum(sizes)[:-1])
        self.rows: dict[str, dict[str, Ints]] = {split: {} for split in pools}
        for (split, group), rows in zip(named, parts, strict=True):
            self.rows[split][group] = rows
        self._floors: Floors | None = None

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Facts at even distances in the training stream; questions drawn with replacement."""
        pools = list(self.rows[split].values())
        starts, sizes = np.array([(pool[0], len(pool)) for pool in pools]).T
        words = bits(seed, f"{self.name}/{split}", indices, 3)
        facts = 1 if split == TRAIN else 0  # the pools that come first and are no questions
        pool = facts + integers(words[:, 0], len(pools) - facts)
        if split == TRAIN:
            pool[self._is_fact(indices)] = 0
        return self._arrays(starts[pool] + integers(words[:, 1], sizes[pool]), words[:, 2])

    def evaluation(self, split: str, size: int) -> Arrays:
        """Of each group `size` different questions, or all where it has fewer; the training groups' beside them.

        Choice and phrasing go by the place within the group: held-out prompts do not depend on what is in training.
        """
        rows, choices = [], []
        for group, pool in {**self.rows[split], **self.rows[TRAIN]}.items():
            places = permutation(0, f"{self.name}/{group}", len(pool))[:size]
            rows.append(pool[places])
            choices.append(bits(0, f"{self.name}/{split}/{group}/wording", places, 1)[:, 0])
        return self._arrays(np.concatenate(rows), np.concatenate(choices))

    def floors(self) -> Floors:
        """Held-out accuracy of the majority answer given a proper subset of the prompt's fields.

        Majorities are over all questions, not only those of training: whoever knows the facts can work them out, as
        by following all hops but one. So a floor is the same for every fraction of training questions.
        """
        if self._floors is None:
            found = {}
            for group, (chains, measured) in self._questions().items():
                value, what = exact_shortcut(chains.fields(), chains.answers, measured)
                found[f"accuracy/{group}"] = {"value": value, "what": f"majority answer given {what}"}
            highest = max(found.values(), key=lambda floor: float(floor["value"]))
            self._floors = {"accuracy": highest, **found}
        return self._floors

    @abstractmethod
    def _questions(self) -> dict[str, tuple[Chains, Ints]]:
        """Per held-out group the questions that majorities are over, and which rows of them are measured."""

    def _is_fact(self, indices: Ints) -> NDArray[np.bool_]:
        return np.floor((indices + 1) * self.share) > np.floor(indices * self.share)

    def _arrays(self, rows: Ints, choice: Bits) -> Arrays:
        chains = self.chains.take(rows)
        tokens, length = self.wording.write(chains.heads, chains.relations, choice)  # [B, S], [B]
        place = np.arange(tokens.shape[1])
        last = place == length[:, None] - 1
        targets = np.where(last, chains.answers[:, None], IGNORE)
        if self.loss == "all":
            targets = np.where(place < length[:, None] - 1, np.roll(tokens, -1, axis=1), targets)
        return {"tokens": tokens, "targets": targets, "scored": last, "group": self.group[rows]}


def deal(chains: Chains, seed: int, stream: str, sizes: Sequence[int]) -> list[Chains]:
    """Disjoint random parts of the given sizes, in one order: the last part, made larger, still holds what it held."""
    order = permutation(seed, stream, len(chains))
    ends = np.cumsum(sizes)
    return [chains.take(order[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
