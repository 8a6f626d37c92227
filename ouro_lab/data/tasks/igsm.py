"""Symbolic i-GSM: a system of definitions modulo m in random order, one variable asked (Saunshi et al. 2025, after Part
2.1's iGSM; tasks.md §11). Their generator is not public; the laws here are ours.

`<bos> E#I := 4 ; I#N := 2 * ( J#P + H#J - E#I ) ; … I#N ?` and the answer, one token, without steps in between. A name
is an edge of a hierarchy of letters, printed as its two letters: A#B is two tokens.
"""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, bits, content_hash, integers, mix, one_of
from ouro_lab.data.tasks.protocol import TRAIN, Arrays, Floors, check_choice, check_range
from ouro_lab.data.tasks.rows import LOSSES, join, predict
from ouro_lab.data.tasks.shortcuts import best_shortcut
from ouro_lab.data.tasks.splits import belongs

VALUES, TEMPLATE = COVERS = ("values", "template")
PLUS, MINUS, TIMES, OPEN, CLOSE, IS, STOP, ASK, BOS = range(9)  # a token is modulus + letters + this
_TERMS = 3  # operands of a definition at most
_WIDTH = 2 + 1 + 3 + 3 * _TERMS - 1 + 2  # tokens of a definition at most
_TRIES = 3000
_FLOOR_SAMPLES = 3000  # per number of operations
_FLOOR_LEAST = 600  # of a group; of fewer the best majority is not known


@dataclass
class Systems:
    """Definitions in an order in which each uses earlier ones alone; all but `names` and `order` are [B, V, …].

    Variable i is factor · Σ sign · operand over its first `terms` operands; with no term it is `constant`.
    """

    constant: Ints
    factor: Ints  # 1: none is printed
    terms: Ints
    operands: Ints  # [B, V, 3]
    signs: Ints  # [B, V, 3], ±1, the first one 1
    used: Ints  # 0 behind a system's last variable
    names: Ints  # [B, V], numbers of edges
    order: Ints  # [B, V], in which they are printed

    def take(self, rows: Ints) -> "Systems":
        return Systems(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@dataclass
class Solved:
    """Per variable [B, V]: its value, how many operations and how many definitions in a row it takes, and its hash."""

    value: Ints
    operations: Ints
    depth: Ints
    word: NDArray[np.uint64]


class IGSM:
    """modulus: a prime. operations: +, −, × that the asked variable takes, uniform on 1 … so many in training.

    fewest, most: variables of a system, uniform, before systems without a variable of the wanted number of operations
    are drawn again; those that the asked one does not need are there to mislead. A definition has 0 to 3 operands,
    uniform, among earlier variables; none: a constant. Later operands are added or subtracted by coin; a coin decides
    whether the sum is multiplied, by 2 … m − 1. layers, letters: of the hierarchy, `letters` in each of the `layers`.

    covers: what the hash that splits are disjoint by is of: the asked variable's definitions, in any order, under any
    names and beside any others, with their `values`, or their `template` alone (as published for iGSM; of few
    operations few templates exist, and splits then differ in kind). loss: on the answer, or on all tokens.

    Vocabulary: values, letters, signs, <bos>, which fills a row. Groups: `ops_n`, and `depth_d` of the same problems:
    how many definitions stand on one another, less the constant.
    """

    def __init__(
        self,
        modulus: int = 5,
        operations: int = 6,
        fewest: int = 4,
        most: int = 8,
        layers: int = 4,
        letters: int = 4,
        covers: str = VALUES,
        loss: str = "answer",
    ) -> None:
        check_range("modulus", modulus, 3, 97)
        if any(modulus % divisor == 0 for divisor in range(2, modulus)):
            raise ValueError(f"modulus = {modulus}: must be a prime from 3 to 97")
        check_range("operations", operations, 1, 64)
        check_range("layers", layers, 2, 16)
        check_range("letters", letters, 1, 26)
        edges = (layers - 1) * letters**2
        check_range("most", most, 2, min(edges, 64))
        check_range("fewest", fewest, 2, most)
        check_choice("covers", covers, COVERS)
        check_choice("loss", loss, LOSSES)
        self.modulus, self.operations, self.fewest, self.most = modulus, operations, fewest, most
        self.letters, self.edges, self.covers, self.loss = letters, edges, covers, loss
        self.signs = modulus + layers * letters
        self.bos = self.signs + BOS
        self.vocab_size = self.bos + 1
        self.sequence_length = 1 + most * _WIDTH + 3
        self.groups: tuple[str, ...] = (
            *(f"ops_{n}" for n in range(1, operations + 1)),
            *(f"depth_{d}" for d in range(1, most)),
        )
        self._floors: Floors | None = None

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Number of operations uniform."""
        operations = 1 + integers(bits(seed, f"igsm/{split}/operations", indices, 1)[:, 0], self.operations)
        return self._arrays(*self._problems(seed, split, indices, operations, split), self.loss)

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` problems per number of operations."""
        systems, asked = self._fixed(split, size)
        return self._arrays(systems, asked, "answer")

    def floors(self) -> Floors:
        """Held-out accuracy per group of the majority answer given one of `_fields`; none computes more than a sum."""
        if self._floors is None:
            systems, asked = self._fixed("floors", _FLOOR_SAMPLES)
            rows, solved = np.arange(len(asked)), self.solve(systems)
            given, answers = self._fields(systems, asked), solved.value[rows, asked]
            group = self._group(solved, asked)
            self._floors = {}
            for number, name in enumerate(self.groups):
                there = (group == number).any(axis=1)
                if there.sum() >= _FLOOR_LEAST:
                    value, field = best_shortcut(given, answers, there)
                    self._floors[f"accuracy/{name}"] = {"value": value, "what": f"majority answer given {field}"}
            values = [float(self._floors[f"accuracy/{group}"]["value"]) for group in self.groups[: self.operations]]
            mean = float(np.mean(values))
            self._floors["accuracy"] = {"value": mean, "what": "mean of the floors of all numbers of operations"}
        return self._floors

    def solve(self, systems: Systems) -> Solved:
        """Variables one after another, each from earlier ones."""
        count, most = systems.terms.shape
        value, depth = np.zeros((2, count, most), np.int64)
        word = np.zeros((count, most), np.uint64)
        needs = np.zeros((count, most, most), bool)  # of a variable, which others and itself
        rows = np.arange(count)[:, None]
        inside = np.arange(_TERMS) < systems.terms[:, :, None]
        own = np.maximum(systems.terms - 1, 0) + (systems.factor > 1)
        plain = self.covers == TEMPLATE
        for i in range(most):
            terms, signs, used = systems.operands[:, i], systems.signs[:, i], inside[:, i]  # [B, 3]
            factor, constant = systems.factor[:, i], systems.constant[:, i]
            total = (np.where(used, signs * value[rows, terms], 0)).sum(axis=1) * factor
            value[:, i] = np.where(systems.terms[:, i] > 0, total, constant) % self.modulus
            depth[:, i] = np.where(used, 1 + depth[rows, terms], 0).max(axis=1)
            needs[:, i] = (needs[rows, terms] & used[:, :, None]).any(axis=1)
            needs[:, i, i] = True
            # Operands enter by a sum, so that their order does not; a number that is not covered enters as one.
            signed = np.where(used, mix(word[rows, terms] + signs.astype(np.uint64)), np.uint64(0))
            shown = np.stack([systems.terms[:, i], factor, constant], axis=1)
            shown = np.minimum(shown, [_TERMS, 2, 0]) if plain else shown
            word[:, i] = mix(signed.sum(axis=1, dtype=np.uint64) + content_hash(shown))
        return Solved(value, (needs * own[:, None]).sum(axis=2), depth, word)

    def encode(self, systems: Systems, asked: Ints) -> tuple[Ints, Ints]:
        """Whole rows [B, S + 1], answers left out, and where they go [B]: behind the question mark."""
        count, most = systems.terms.shape
        terms, inside = systems.operands, np.arange(_TERMS) < systems.terms[:, :, None]
        named = np.stack(np.divmod(systems.names, self.letters), axis=2)  # the upper letter, the lower one's place
        named[..., 1] += (named[..., 0] // self.letters + 1) * self.letters  # in the next layer
        named += self.modulus
        operand = named[np.arange(count)[:, None, None], terms]  # [B, V, 3, 2]
        sign = self.signs + np.where(systems.signs > 0, PLUS, MINUS)
        summed = np.concatenate([sign[..., None], operand], axis=3)
        summed_in = np.repeat(inside[..., None], 3, axis=3)
        summed_in[:, :, 0, 0] = False  # the first operand's plus
        times, bracket = systems.factor > 1, (systems.factor > 1) & (systems.terms > 1)
        lone = systems.terms == 0
        number = np.where(lone, systems.constant, systems.factor)

        def mark(kind: int, here: NDArray[np.bool_]) -> tuple[Ints, NDArray[np.bool_]]:
            return np.full((count, most, 1), self.signs + kind), here[..., None]

        always = np.ones((count, most), bool)
        parts = [
            (named, np.ones(named.shape, bool)),
            mark(IS, always),
            (number[..., None], (lone | times)[..., None]),
            mark(TIMES, times),
            mark(OPEN, bracket),
            (summed.reshape(count, most, -1), summed_in.reshape(count, most, -1)),
            mark(CLOSE, bracket),
            mark(STOP, always),
        ]
        values, kept = (np.concatenate([part[k] for part in parts], axis=2) for k in (0, 1))
        kept &= systems.used[:, :, None] > 0
        rows = np.arange(count)[:, None]
        values, kept = (table[rows, systems.order].reshape(count, -1) for table in (values, kept))
        ends = np.full((count, 1), self.bos), np.full((count, 1), self.signs + ASK)
        values = np.concatenate([ends[0], values, named[np.arange(count), asked], ends[1]], axis=1)
        kept = np.concatenate([np.ones((count, 1), bool), kept, np.ones((count, 3), bool)], axis=1)
        return join(values, kept, self.sequence_length + 1, self.bos), kept.sum(axis=1)

    def _fixed(self, split: str, size: int) -> tuple[Systems, Ints]:
        indices = np.arange(size * self.operations)
        return self._problems(0, f"{split}/fixed", indices, 1 + indices // size, split)

    def _problems(self, seed: int, stream: str, indices: Ints, operations: Ints, split: str) -> tuple[Systems, Ints]:
        """Systems and the asked variable [B]; without one that fits, a system is drawn again from the next stream."""
        parts, found, asked = [], [], []
        waiting = np.arange(len(indices))
        for attempt in range(_TRIES):
            systems = self._systems(seed, f"igsm/{stream}/{attempt}", indices[waiting])
            solved = self.solve(systems)
            hashed = (solved.word >> np.uint64(33)).astype(np.int64).reshape(-1, 1)
            allowed = belongs(hashed, split).reshape(solved.word.shape)
            wanted = allowed & (solved.operations == operations[waiting, None]) & (systems.used > 0)
            fits = wanted.any(axis=1)
            words = bits(seed, f"igsm/{stream}/{attempt}/asked", indices[waiting], 1)[:, 0]
            parts.append(systems.take(np.flatnonzero(fits)))
            found.append(waiting[fits])
            asked.append(one_of(wanted[fits], words[fits]))
            waiting = waiting[~fits]
            if not len(waiting):
                order = np.argsort(np.concatenate(found))
                columns = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Systems)}
                return Systems(**columns).take(order), np.concatenate(asked)[order]
        raise ValueError(
            f"operations = {self.operations}: hardly any system of up to {self.most} variables has one that takes"
            f" {int(operations[waiting].max())} and is in {split}; must be smaller"
        )

    def _systems(self, seed: int, stream: str, indices: Ints) -> Systems:
        count, most = len(indices), self.most
        words = bits(seed, stream, indices, 1 + most * (most + 8) + self.edges)
        number, words, names = np.split(words, [1, 1 + most * (most + 8)], axis=1)
        words = words.reshape(count, most, most + 8)
        used = np.arange(most) < self.fewest + integers(number, self.most - self.fewest + 1)
        terms = integers(words[:, :, 0], np.minimum(np.arange(most), _TERMS) + 1)
        earlier = np.arange(most) < np.arange(most)[:, None]  # [V, V]
        keys = np.where(earlier, words[:, :, 8:] >> np.uint64(1), np.uint64(np.iinfo(np.uint64).max))
        operands = np.argsort(keys, axis=2, kind="stable")[:, :, :_TERMS]
        operands = np.pad(operands, ((0, 0), (0, 0), (0, _TERMS - operands.shape[2])))
        signs = 1 - 2 * integers(words[:, :, 1 : 1 + _TERMS], 2)
        signs[:, :, 0] = 1
        factor = np.where(integers(words[:, :, 5], 2) > 0, 2 + integers(words[:, :, 6], self.modulus - 2), 1)
        return Systems(
            constant=np.where(terms == 0, integers(words[:, :, 4], self.modulus), 0),
            factor=np.where(terms == 0, 1, factor),
            terms=terms,
            operands=operands,
            signs=signs,
            used=used.astype(np.int64),
            names=np.argsort(names, axis=1, kind="stable")[:, :most],
            order=np.argsort(words[:, :, 7], axis=1, kind="stable"),
        )

    def _group(self, solved: Solved, asked: Ints) -> Ints:
        rows = np.arange(len(asked))
        return np.stack([solved.operations[rows, asked] - 1, self.operations + solved.depth[rows, asked] - 1], axis=1)

    def _arrays(self, systems: Systems, asked: Ints, loss: str) -> Arrays:
        rows, end = self.encode(systems, asked)
        lines, solved = np.arange(len(rows)), self.solve(systems)
        rows[lines, end] = solved.value[lines, asked]
        place = np.arange(rows.shape[1])
        answer = place == end[:, None]
        tokens, targets = predict(rows, place <= end[:, None] if loss == "all" else answer)
        return {"tokens": tokens, "targets": targets, "scored": answer[:, 1:], "group": self._group(solved, asked)}

    def _fields(self, systems: Systems, asked: Ints) -> dict[str, Ints]:
        """What a reader sees without working back from the asked variable; of its definition never all numbers."""
        rows, most = np.arange(len(asked)), self.modulus + 1
        tables = systems.terms, systems.factor, systems.operands[:, :, 0]
        terms, factor, first = (table[rows, asked] for table in tables)
        lone = systems.terms[rows, first] == 0
        read = np.where(lone, systems.constant[rows, first], self.modulus)  # the first operand where it is a number
        numbers = (systems.terms == 0) & (systems.used > 0)
        counts = ((systems.constant[:, :, None] == np.arange(self.modulus)) & numbers[:, :, None]).sum(axis=1)
        return {
            "nothing else": np.zeros(len(asked), np.int64),
            "the asked definition's factor and number of operands": factor * (_TERMS + 1) + terms,
            "the asked definition's number of operands and the first, if a number": terms * most + read,
            "the most frequent number": counts.argmax(axis=1),
            "the sum of all numbers": (systems.constant * numbers).sum(axis=1) % self.modulus,
        }
