"""p-hop induction (Sanford et al. 2024): go to the last earlier occurrence of the current symbol, step right, repeat.

find₁(i) = the last j ≤ i with v[j−1] = v[i], or 0; find_p(i) = find₁(find_{p−1}(i)); hop_p(i) = v[find_p(i)], "~" at 0
(positions from one). Neighbours differ: with v[i−1] = v[i], find₁(i) = i would be a fixed point and further hops free.
"""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, bits, integers
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, UNDEFINED, Arrays, Floors, check_range
from ouro_lab.data.tasks.shortcuts import best_shortcut
from ouro_lab.data.tasks.splits import belongs

_RAREST = 0.02  # of random sequences must have a defined answer, or an evaluation set takes too long to find


class PHop:
    """Tokens: a hop token, then `length` symbols; every symbol's position predicts hop_p of its prefix.

    Vocabulary: symbols 0 … alphabet − 1, hop tokens (1 hop first), "~". Only the last position counts for accuracy.
    A sequence whose last answer is "~" has the group `undefined`. Splits are disjoint by a hash of the symbols, so a
    test sequence is in no training stream under any hop count.
    """

    def __init__(self, alphabet: int = 4, length: int = 48, hops: int = 8) -> None:
        check_range("alphabet", alphabet, 3, 1000)  # two letters without equal neighbours leave one coin a sequence
        check_range("hops", hops, 1, 64)
        check_range("length", length, hops + 2)  # each hop goes back one place at least, and v[0] is nobody's answer
        self.alphabet, self.length, self.hops = alphabet, length, hops
        self.undefined = alphabet + hops
        self.vocab_size = alphabet + hops + 1
        self.sequence_length = length + 1
        self.groups: tuple[str, ...] = (*(f"hops_{p}" for p in range(1, hops + 1)), UNDEFINED)
        self._floors: Floors | None = None

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Hop counts uniform on 1 … hops; symbols uniform among sequences without equal neighbours."""
        hops = 1 + integers(bits(seed, f"p_hop/{split}/hops", indices, 1)[:, 0], self.hops)
        return self._arrays(self._symbols(seed, indices, split), hops)

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` sequences with a defined last answer per hop count, then those met without one."""
        found = [self._with_answers(split, hops, size) for hops in range(1, self.hops + 1)]
        parts = [kept for kept, _ in found] + [rest for _, rest in found]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def floors(self) -> Floors:
        """Held-out accuracy at each hop count of the majority answer given the hop count and one more field.

        Fields: see `_fields`. The answer to fewer hops is no field: it takes the circuit that the task is about.
        """
        if self._floors is None:
            symbols = self._symbols(0, np.arange(30_000), "floors")
            best = [best_shortcut(self._fields(symbols), *answer) for answer in self._last_answers(symbols)]
            per_hop = {
                f"accuracy/{group}": {"value": value, "what": f"majority answer given hop count and {field}"}
                for group, (value, field) in zip(self.groups, best, strict=False)
            }
            mean = float(np.mean([value for value, _ in best]))
            self._floors = {"accuracy": {"value": mean, "what": "mean of the floors of all hop counts"}, **per_hop}
        return self._floors

    def targets(self, symbols: Ints, hops: Ints) -> Ints:
        """hop_p of every prefix, [B, length], for symbols [B, length] and hop counts [B]; "~" is `undefined`."""
        find = self._find(symbols)
        place = np.broadcast_to(np.arange(1, self.length + 1), symbols.shape)
        for p in range(1, int(hops.max(initial=0)) + 1):
            place = np.where((hops >= p)[:, None], np.take_along_axis(find, place, 1), place)
        answers = np.take_along_axis(symbols, np.maximum(place - 1, 0), 1)
        return np.where(place > 0, answers, self.undefined)

    def _find(self, symbols: Ints) -> Ints:
        """find₁ as a table [B, 1 + length] over places 0 … length; 0 leads to 0."""
        places = np.arange(1, symbols.shape[1], dtype=np.int64)
        find = np.zeros((len(symbols), symbols.shape[1] + 1), np.int64)
        for symbol in range(self.alphabet):
            here = symbols == symbol
            after_last = np.maximum.accumulate(np.where(here[:, :-1], places + 1, 0), axis=1)  # [B, length − 1]
            find[:, 2:] += after_last * here[:, 1:]
        return find

    def _symbols(self, seed: int, indices: Ints, split: str) -> Ints:
        """[N, length]; a sequence whose hash belongs to another split is drawn again from its own next stream."""
        symbols = np.empty((len(indices), self.length), np.int64)
        waiting = np.arange(len(indices))
        attempt = 0
        while len(waiting):
            words = bits(seed, f"p_hop/{split}/{attempt}", indices[waiting], self.length)
            steps = integers(words, self.alphabet - 1) + 1  # never 0: neighbours differ
            steps[:, 0] = integers(words[:, 0], self.alphabet)
            symbols[waiting] = np.cumsum(steps, axis=1) % self.alphabet
            waiting = waiting[~belongs(symbols[waiting], split)]
            attempt += 1
        return symbols

    def _arrays(self, symbols: Ints, hops: Ints) -> Arrays:
        targets = self.targets(symbols, hops)
        first = (self.alphabet + hops - 1)[:, None]
        scored = np.zeros((len(symbols), self.sequence_length), bool)
        scored[:, -1] = True
        return {
            "tokens": np.concatenate([first, symbols], axis=1),
            "targets": np.concatenate([np.full_like(first, IGNORE), targets], axis=1),
            "scored": scored,
            "group": np.where(targets[:, -1] == self.undefined, self.hops, hops - 1),
        }

    def _with_answers(self, split: str, hops: int, size: int) -> tuple[Arrays, Arrays]:
        """The first `size` sequences of a stream whose last answer is defined, and the others met until then."""
        drawn: list[Arrays] = []
        defined = seen = 0
        while defined < size:
            if seen > 1000 and defined < _RAREST * seen:
                raise ValueError(f"length = {self.length}: {hops} hops are hardly ever defined; must be longer")
            indices = np.arange(seen, seen + max(size, 64))
            symbols = self._symbols(hops, indices, split)
            drawn.append(self._arrays(symbols, np.full(len(indices), hops)))
            defined += int((drawn[-1]["group"] != self.hops).sum())
            seen += len(indices)
        arrays = {key: np.concatenate([part[key] for part in drawn]) for key in drawn[0]}
        kept = np.flatnonzero(arrays["group"] != self.hops)[:size]
        missed = np.flatnonzero(arrays["group"] == self.hops)
        rest = missed[missed < (kept[-1] if size else 0)]
        return {k: v[kept] for k, v in arrays.items()}, {k: v[rest] for k, v in arrays.items()}

    def _last_answers(self, symbols: Ints) -> list[tuple[Ints, NDArray[np.bool_]]]:
        """Per hop count the answer at the last position and whether it is defined."""
        find, rows = self._find(symbols), np.arange(len(symbols))
        place = np.full(len(symbols), self.length)
        answers = []
        for _ in range(self.hops):
            place = find[rows, place]
            answers.append((symbols[rows, np.maximum(place - 1, 0)], place > 0))
        return answers

    def _fields(self, symbols: Ints) -> dict[str, Ints]:
        """What a reader without induction can use, each as one integer per sequence."""
        counts = (symbols[:, :, None] == np.arange(self.alphabet)).sum(axis=1)  # [N, alphabet]
        powers = self.alphabet ** np.arange(3)
        return {
            "nothing else": np.zeros(len(symbols), np.int64),
            "the first symbol": symbols[:, 0],
            "the last symbol": symbols[:, -1],
            "the last two symbols": symbols[:, -2:] @ powers[:2],
            "the last three symbols": symbols[:, -3:] @ powers,
            "the most frequent symbol": counts.argmax(axis=1),
            "the most and the least frequent symbol": counts.argmax(axis=1) * self.alphabet + counts.argmin(axis=1),
            "the most frequent and the last symbol": counts.argmax(axis=1) * self.alphabet + symbols[:, -1],
        }
