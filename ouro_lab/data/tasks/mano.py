"""Mano: modular arithmetic in prefix form, answered in one token (Part 4.1; Ouro §6.2).

`<bos> <len_ℓ> expression <ans> y`, 2ℓ + 5 tokens: ℓ operators, uniform on 1 … `operators` in training, which is the
curriculum; the published score is accuracy at ℓ = `operators`. "Known" expressions, the operation tables, are what a
model must store; all longer ones are what it must compute, and only they are held out.
"""

from functools import partial

import numpy as np

from ouro_lab.data.random import Bits, Ints, bits, integers
from ouro_lab.data.tasks import expressions
from ouro_lab.data.tasks.protocol import IGNORE, TRAIN, Arrays, Floors, check_choice, check_range
from ouro_lab.data.tasks.rows import packed
from ouro_lab.data.tasks.splits import belongs

ANSWER, ALL = LOSSES = ("answer", "all")
ONE, PER_LENGTH = MARKERS = ("one", "per_length")


class Mano:
    """A row holds one problem, or `window` tokens of problems after one another, the last one cut.

    modulus: a prime. known_operators: expressions with at most so many are in every split; longer ones are disjoint by
    a hash of the expression. loss: of training, on the answer alone or on every token (published; operands are noise of
    at least (ℓ + 1)·ln m nats); evaluation always takes the answer's alone. synonyms: every token but the values has
    two ids, chosen by coin at every place (the released code). answer_marker: `one` <ans>, or one `per_length`, whose
    token then tells ℓ again (the released code). window: None, or tokens per training row (published: 1,024), the first
    problem at its start. mask_problems: attention stays within a problem (Ouro; Part 4.1 does not say so).

    Vocabulary: values, + − ×, len_1 …, <bos>, <ans> or <ans_1> …, then the synonyms. Behind a problem <bos>
    fills the row.
    """

    def __init__(
        self,
        modulus: int = 5,
        operators: int = 4,
        known_operators: int = 1,
        loss: str = ANSWER,
        synonyms: bool = False,
        answer_marker: str = ONE,
        window: int | None = None,
        mask_problems: bool = True,
    ) -> None:
        check_range("modulus", modulus, 2, 997)
        if any(modulus % divisor == 0 for divisor in range(2, modulus)):
            raise ValueError(f"modulus = {modulus}: must be a prime from 2 to 997")
        check_range("operators", operators, 1, 64)
        check_range("known_operators", known_operators, 1, operators)  # none: a split of m = 2 might hold no expression
        check_choice("loss", loss, LOSSES)
        check_choice("answer_marker", answer_marker, MARKERS)
        self.longest = 2 * operators + 5
        if window is not None:
            check_range("window", window, self.longest)
        self.modulus, self.operators, self.known_operators = modulus, operators, known_operators
        self.loss, self.synonyms, self.window, self.mask_problems = loss, bool(synonyms), window, bool(mask_problems)
        self.slots = 2 * operators + 1
        self.bos, self.ans = modulus + 3 + operators, modulus + 4 + operators
        self.markers = operators if answer_marker == PER_LENGTH else 1  # from `ans` on
        self.doubled = 4 + operators + self.markers  # ids that have a synonym
        self.vocab_size = modulus + self.doubled * (2 if synonyms else 1)
        self.sequence_length = window or self.longest - 1
        sizes = range(1, operators + 1)
        self.groups: tuple[str, ...] = (*(f"ops_{n}" for n in sizes), *(f"depth_{n}" for n in sizes))

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Number of operators uniform. Rows of a window have neither `scored` nor `group`: they hold many problems."""
        if self.window is None:
            return self._rows(*self._problems(seed, split, indices), loss=self.loss)
        problems = partial(self._packable, seed, split)
        return packed(problems, indices, self.window, 7, self.operators + 5, self.mask_problems)

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` problems per number of operators, one a row: what attention within a problem sees in any window."""
        parts = []
        for count in range(1, self.operators + 1):
            operators = np.full(size, count)
            problems = self._problems(count, f"{split}/fixed", np.arange(size), operators, split)
            parts.append(self._rows(*problems, loss=ANSWER))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def floors(self) -> Floors:
        """Exact accuracy without computing any tree below the root; see `expressions.odds`."""
        odds = expressions.odds(self.modulus, self.operators)
        what = "majority answer given the root operator and its operand where that is a number"
        constant, value = (table[1:, 1:] for table in (odds.zero, odds.surface))
        by_size, by_depth = value.sum(axis=1), value.sum(axis=0) / odds.depth[1:, 1:].sum(axis=0)
        named = dict(zip(self.groups, [*by_size, *by_depth], strict=True))
        always = f"; the constant answer 0: {constant[-1].sum():.4f} at {self.operators} operators"
        floors: Floors = {"accuracy": {"value": float(by_size.mean()), "what": what + always}}
        return floors | {f"accuracy/{group}": {"value": float(score), "what": what} for group, score in named.items()}

    def encode(self, symbols: Ints, operators: Ints, answers: Ints) -> Ints:
        """Whole problems [N, longest], from expressions [N, slots] with `operators` [N] and their `answers` [N]."""
        end = 2 * operators + 3
        place = np.arange(self.longest)
        tokens = np.full((len(symbols), self.longest), self.bos)
        tokens[:, 1] = self.modulus + 2 + operators
        tokens[:, 2 : 2 + self.slots] = symbols
        tokens = np.where(place < end[:, None], tokens, self.bos)
        marker = self.ans + (operators - 1) * (self.markers > 1)
        tokens = np.where(place == end[:, None], marker[:, None], tokens)
        return np.where(place == end[:, None] + 1, answers[:, None], tokens)

    def _problems(
        self, seed: int, stream: str, indices: Ints, operators: Ints | None = None, split: str | None = None
    ) -> tuple[Ints, Ints, Ints]:
        """Tokens [N, longest], numbers of operators [N] and tree depths [N]; `split` is the stream's own if None."""
        if operators is None:
            operators = 1 + integers(bits(seed, f"mano/{stream}/operators", indices, 1)[:, 0], self.operators)
        symbols = self._expressions(seed, stream, indices, operators, split or stream)
        answers, depth = expressions.solve(symbols, self.modulus)
        tokens = self.encode(symbols, operators, answers)
        if self.synonyms:
            coins = integers(bits(seed, f"mano/{stream}/synonyms", indices, self.longest), 2)
            tokens = np.where(tokens >= self.modulus, tokens + self.doubled * coins, tokens)
        return tokens, operators, depth

    def _expressions(self, seed: int, stream: str, indices: Ints, operators: Ints, split: str) -> Ints:
        """[N, slots]; an expression that another split holds is drawn again from its own next stream."""
        symbols = np.empty((len(indices), self.slots), np.int64)
        waiting = np.arange(len(indices))
        attempt = 0
        while len(waiting):
            words = self._words(seed, f"mano/{stream}/{attempt}", indices[waiting])
            symbols[waiting] = expressions.draw(words, operators[waiting], self.modulus)
            known = operators[waiting] <= self.known_operators
            waiting = waiting[~(known | belongs(symbols[waiting], split))]
            attempt += 1
        return symbols

    def _words(self, seed: int, stream: str, indices: Ints) -> Bits:
        return bits(seed, stream, indices, 2 * self.slots).reshape(len(indices), self.slots, 2)

    def _rows(self, tokens: Ints, operators: Ints, depth: Ints, loss: str) -> Arrays:
        """One problem a row; `group` has the axes number of operators and depth."""
        answer = np.arange(self.longest - 1) == 2 * operators[:, None] + 3  # where <ans> stands
        return {
            "tokens": tokens[:, :-1],
            "targets": self._targets(tokens, operators, loss)[:, :-1],
            "scored": answer,
            "group": np.stack([operators - 1, self.operators + depth - 1], axis=1),
        }

    def _targets(self, tokens: Ints, operators: Ints, loss: str) -> Ints:
        """[N, longest]: nothing is predicted behind the answer, nor before it where the loss is the answer's."""
        place, last = np.arange(self.longest), 2 * operators[:, None] + 3
        wanted = place == last if loss == ANSWER else place <= last
        return np.where(wanted, np.roll(tokens, -1, axis=1), IGNORE)

    def _packable(self, seed: int, split: str, numbers: Ints) -> tuple[Arrays, Ints]:
        """Problems [N, longest] with their targets, and their lengths [N]."""
        tokens, operators, _ = self._problems(seed, split, numbers)
        return {"tokens": tokens, "targets": self._targets(tokens, operators, self.loss)}, 2 * operators + 5
