"""Depo: the k-th successor on a cycle that the prompt lists edge by edge (Part 4.1, App. A.1; tasks.md §5).

`<bos> x y x y … <q_k> s <ans> a …`: n distinct names on one cycle, its n edges in random order, then queries from
different starts. A name is a word over 2V ids, the last one of it from the second half, so that it ends itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Bits, Ints, bits, integers, uniforms
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, Arrays, Floors, check_choice, check_range
from ouro_lab.data.tasks.rows import LOSSES, join, packed, predict
from ouro_lab.data.tasks.splits import as_sets, belongs

WEIGHTED, UNIFORM, LARGEST = SIZES = ("weighted", "uniform", "largest")
_MOST_NAMES = 1 << 20
_TRIES = 200
_LAST = np.uint64(np.iinfo(np.uint64).max)


@dataclass
class Cycles:
    """Names in the order of their cycle [B, N], numbers into `Depo.names`; a cycle's length [B] of them is used."""

    names: Ints
    lengths: Ints

    @property
    def used(self) -> NDArray[np.bool_]:
        return np.arange(self.names.shape[1]) < self.lengths[:, None]

    def after(self, places: Ints, steps: int | Ints) -> Ints:
        """The names [B, M] that lie `steps` behind `places` [B, M]."""
        return np.take_along_axis(self.names, (places + steps) % self.lengths[:, None], 1)


class Depo:
    """nodes: N, the longest cycle; validation and test have no other. hops: K, uniform on 1 … K in training.

    letters, shortest, longest: V, and how many ids a name has; Depo1 is 50, 1 to 2, Depo2 is 4, 5 to 7. Names are
    drawn until n differ, so few of many names are short. queries: per row in training; validation and test ask one, as
    an earlier answer to the same k tells a later one in two single steps. sizes: the law of n ≥ 3 in training,
    `weighted` ∝ 1 / (√N + n) (the released code), `uniform` (the paper's other sentence) or `largest`, N alone. k ≥ n
    walks on around the cycle, as published. loss: on `<ans>` and the names behind it (published), or on all tokens.
    window: None for a problem a row, or tokens per training row (published: 2,048) of problems after one another, the
    last one cut. mask_problems: attention stays within a problem (Ouro; Part 4.1 does not say so).

    Vocabulary: inner ids, last ids, <q_1> …, <ans>, <bos>, which also fills a row. A name is right as a whole.
    Splits are disjoint by a hash of the cycle: none of validation or test is in training, whatever is asked of it.
    """

    def __init__(
        self,
        nodes: int = 16,
        hops: int = 8,
        letters: int = 32,
        shortest: int = 1,
        longest: int = 1,
        queries: int = 10,
        sizes: str = WEIGHTED,
        loss: str = "answer",
        window: int | None = None,
        mask_problems: bool = True,
    ) -> None:
        check_range("nodes", nodes, 3, 4096)
        check_range("hops", hops, 1, 64)
        check_range("letters", letters, 1, 4096)
        check_range("shortest", shortest, 1, 16)
        check_range("longest", longest, shortest, 16)
        check_range("queries", queries, 1, 64)
        check_choice("sizes", sizes, SIZES)
        check_choice("loss", loss, LOSSES)
        count = sum(letters**length for length in range(shortest, longest + 1))
        if not nodes <= count <= _MOST_NAMES:
            valid = f"from nodes = {nodes} to {_MOST_NAMES}"
            raise ValueError(f"letters = {letters}: make {count} names; must make {valid}")
        self.nodes, self.hops, self.letters, self.loss = nodes, hops, letters, loss
        self.lengths = (shortest, longest)
        self.queries = min(queries, nodes)
        self.names = _names(letters, shortest, longest)  # [names, longest], −1 behind a name
        self.query, self.ans, self.bos = 2 * letters, 2 * letters + hops, 2 * letters + hops + 1
        self.vocab_size = self.bos + 1
        self.longest = self._length(nodes, longest)
        if window is not None:
            check_range("window", window, self.longest)
        self.window, self.mask_problems = window, bool(mask_problems)
        self.sequence_length = window or self.longest - 1  # <bos> in, the last id out
        self.groups: tuple[str, ...] = tuple(f"hops_{k}" for k in range(1, hops + 1))
        n = np.arange(3, nodes + 1)
        weight = {WEIGHTED: 1 / (n + np.sqrt(nodes)), UNIFORM: np.ones(len(n)), LARGEST: (n == nodes) + 0.0}[sizes]
        self.law = weight / weight.sum()  # of 3 … nodes
        self._first = np.cumsum([0, *(letters**length for length in range(shortest, longest))])

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Rows have neither `scored` nor `group`: each mixes hop counts."""
        if self.window is None:
            tokens, targets = self._predicted(*self._problems(seed, split, indices), self.loss)
            return {"tokens": tokens, "targets": targets}
        mean = float(self.law @ np.arange(3, self.nodes + 1)), float((self.names >= 0).sum(axis=1).mean())
        least, usual = self._length(3, self.lengths[0]), self._length(*mean)
        return packed(partial(self._packable, seed, split), indices, self.window, least, usual, self.mask_problems)

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` cycles of N names per hop count, each with one query."""
        parts = []
        for k in range(1, self.hops + 1):
            indices, stream = np.arange(size), f"{split}/fixed"
            cycles = self._cycles(k, stream, indices, np.full(size, self.nodes), split)
            starts, orders, hops = self._ask(k, stream, indices, cycles, np.full((size, 1), k))
            arrays = self._scored(*self.encode(cycles, starts, orders, hops))
            parts.append(arrays | {"group": np.full(size, k - 1)})
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def floors(self) -> Floors:
        """Exact accuracy of who reads at most the two edges that hold the start: those name three wrong answers.

        Or the right one, where k steps are none, one or one back on a cycle of N. One step is the ability itself.
        """
        what = {True: "one look at the start's edges", False: "a name that is not in the start's edges"}
        floors: Floors = {"accuracy/hops_1": {"value": 1 / (self.nodes - 1), "what": "a name that is not the start"}}
        for k in range(2, self.hops + 1):
            seen = k % self.nodes in (0, 1, self.nodes - 1)
            floors[f"accuracy/hops_{k}"] = {"value": 1.0 if seen else 1 / (self.nodes - 3), "what": what[seen]}
        mean = float(np.mean([float(floor["value"]) for floor in floors.values()]))
        return {"accuracy": {"value": mean, "what": "mean of the floors of all hop counts"}, **floors}

    def encode(self, cycles: Cycles, starts: Ints, orders: Ints, hops: Ints) -> tuple[Ints, Ints]:
        """Whole rows [B, S + 1] and of each token the query that it answers, counted from 1, or 0.

        starts: places on the cycle [B, q], −1 for no query. orders: places in the order of their edges [B, N].
        """
        count, asked = len(starts), starts >= 0
        used = np.take_along_axis(cycles.used, orders, 1)
        edges = np.stack([cycles.after(orders, 0), cycles.after(orders, 1)], axis=2)  # [B, N, 2]
        first, answers = self.names[cycles.after(starts, 0)], self.names[cycles.after(starts, hops)]
        marker = np.full((*starts.shape, 1), self.ans)
        asks = np.concatenate([(self.query + hops - 1)[..., None], first, marker, answers], axis=2)
        number = np.zeros(asks.shape, np.int64)
        number[..., -answers.shape[2] - 1 :] = np.arange(1, starts.shape[1] + 1)[:, None]
        listed = np.where(used[:, :, None, None], self.names[edges], -1).reshape(count, -1)
        asks = np.where(asked[:, :, None], asks, -1).reshape(count, -1)
        values = np.concatenate([np.full((count, 1), self.bos), listed, asks], axis=1)
        owner = np.concatenate([np.zeros((count, 1 + listed.shape[1]), np.int64), number.reshape(count, -1)], axis=1)
        return join(values, values >= 0, self.longest, self.bos), join(owner, values >= 0, self.longest, 0)

    def _length(self, nodes: float, word: float) -> int:
        """Tokens of a problem of so many nodes, whose names have `word` ids."""
        return int(1 + 2 * nodes * word + min(nodes, self.queries) * (2 + 2 * word))

    def _problems(self, seed: int, stream: str, indices: Ints) -> tuple[Ints, Ints]:
        """`encode`'s rows of training: cycles of any length, hop counts mixed."""
        words = bits(seed, f"depo/{stream}/kind", indices, 1 + self.queries)
        past = np.searchsorted(np.cumsum(self.law), uniforms(words[:, 0]), side="right")
        lengths = 3 + np.minimum(past, self.nodes - 3)
        cycles = self._cycles(seed, stream, indices, lengths, stream)
        hops = 1 + integers(words[:, 1:], self.hops)
        return self.encode(cycles, *self._ask(seed, stream, indices, cycles, hops))

    def _packable(self, seed: int, split: str, numbers: Ints) -> tuple[Arrays, Ints]:
        """Problems [N, longest] with their targets, and their lengths [N]: the last answer ends a problem."""
        rows, owner = self._problems(seed, split, numbers)
        targets = np.pad(self._predicted(rows, owner, self.loss)[1], ((0, 0), (0, 1)), constant_values=IGNORE)
        return {"tokens": rows, "targets": targets}, self.longest - (owner[:, ::-1] > 0).argmax(axis=1)

    def _predicted(self, rows: Ints, owner: Ints, loss: str) -> tuple[Ints, Ints]:
        behind = np.cumsum(owner > 0, axis=1) == (owner > 0).sum(axis=1, keepdims=True)
        return predict(rows, (owner > 0) | ~behind if loss == "all" else owner > 0)

    def _scored(self, rows: Ints, owner: Ints) -> Arrays:
        tokens, targets = self._predicted(rows, owner, "answer")
        scored = (owner[:, 1:] > 0) & (rows[:, 1:] != self.ans)
        return {"tokens": tokens, "targets": targets, "scored": scored, "answer": np.maximum(owner[:, 1:] - 1, 0)}

    def _ask(self, seed: int, stream: str, indices: Ints, cycles: Cycles, hops: Ints) -> tuple[Ints, Ints, Ints]:
        """Different starts [B, q], −1 where a cycle has no more of them, the order of edges [B, N], and `hops`."""
        words = bits(seed, f"depo/{stream}/order", indices, 2 * self.nodes)
        starts, orders = (_shuffled(part, cycles.used) for part in np.split(words, 2, axis=1))
        starts = np.where(np.arange(self.nodes) < cycles.lengths[:, None], starts, -1)
        return starts[:, : hops.shape[1]], orders, hops

    def _cycles(self, seed: int, stream: str, indices: Ints, lengths: Ints, split: str) -> Cycles:
        """A cycle that another split holds is drawn again from its own next stream, of the same length."""
        cycles = Cycles(np.zeros((len(indices), self.nodes), np.int64), lengths)
        waiting = np.arange(len(indices))
        for attempt in range(_TRIES):
            name = f"depo/{stream}/{attempt}"
            drawn = self._distinct(seed, name, indices[waiting], lengths[waiting])
            tried = Cycles(drawn, lengths[waiting])
            order = _shuffled(bits(seed, f"{name}/cycle", indices[waiting], self.nodes), tried.used)
            tried.names = np.take_along_axis(drawn, order, 1)
            cycles.names[waiting] = tried.names
            places = np.broadcast_to(np.arange(self.nodes), drawn.shape)
            edges = np.stack([tried.names, tried.after(places, 1)], axis=2)
            waiting = waiting[~belongs(as_sets(edges, tried.used), split)]
            if not len(waiting):
                return cycles
        raise ValueError(
            f"letters = {self.letters}: make {len(self.names)} names, too few for {split} to have cycles of"
            f" {int(lengths[waiting].min())}; must make more"
        )

    def _distinct(self, seed: int, stream: str, indices: Ints, lengths: Ints) -> Ints:
        """The first `lengths` different names of a stream of uniform lengths and letters, [B, N]; others behind."""
        drawn = np.empty((len(indices), 0), np.int64)
        for block in self._blocks(seed, stream, indices):
            drawn = np.concatenate([drawn, block], axis=1)
            new = _first_of_kind(drawn)
            if (new.sum(axis=1) >= lengths).all():
                break
        order = np.argsort(~new, axis=1, kind="stable")[:, : self.nodes]
        return np.take_along_axis(drawn, order, 1)

    def _blocks(self, seed: int, stream: str, indices: Ints) -> Iterator[Ints]:
        shortest, longest = self.lengths
        block = 0
        while True:
            words = bits(seed, f"{stream}/names/{block}", indices, 4 * self.nodes)
            kind, letters = np.split(words, 2, axis=1)
            length = integers(kind, longest - shortest + 1)
            yield self._first[length] + integers(letters, self.letters ** (shortest + length))
            block += 1


def _names(letters: int, shortest: int, longest: int) -> Ints:
    """[names, longest]: all words, short ones first; the last id of a word is a letter + `letters`, behind it −1."""
    parts = []
    for length in range(shortest, longest + 1):
        words = np.arange(letters**length)[:, None] // letters ** np.arange(length) % letters
        words[:, -1] += letters
        parts.append(np.pad(words, ((0, 0), (0, longest - length)), constant_values=-1))
    return np.concatenate(parts)


def _shuffled(words: Bits, used: NDArray[np.bool_]) -> Ints:
    """[B, N]: the used columns in random order, then the others."""
    return np.argsort(np.where(used, words >> np.uint64(1), _LAST), axis=1, kind="stable")


def _first_of_kind(values: Ints) -> NDArray[np.bool_]:
    """[B, M]: whether a value is the first of its kind in its row."""
    order = np.argsort(values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, 1)
    first = np.ones(values.shape, bool)
    first[:, 1:] = ranked[:, 1:] != ranked[:, :-1]
    new = np.empty_like(first)
    np.put_along_axis(new, order, first, 1)
    return new
