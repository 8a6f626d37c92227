"""n-ary addition in decimal digits (Saunshi et al. 2025; tasks.md §9).

`315+120+045+824=1304` and an end: operands uniform, with leading zeros, so that their width says nothing; the sum
without, its most significant digit first. One token per character. The paper also prints blanks, which say nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, bits, integers
from ouro_lab.data.tasks.protocol import TRAIN, Arrays, Floors, check_choice, check_counts
from ouro_lab.data.tasks.rows import LOSSES, join, predict
from ouro_lab.data.tasks.splits import as_sets, belongs

BASE = 10
PLUS, EQUALS, END = BASE, BASE + 1, BASE + 2


class Addition:
    """Tokens: digits, "+", "=", end. A row is one problem, filled with ends; an answer is right as a whole, with
    its end.

    operands, digits: so many operands of so many digits each, or lists that training draws from uniformly.
    evaluated: numbers of operands of validation and test, which training need not have; by default those of training.
    reverse: the sum's least significant digit first, so that carries run along with the answer (not
    published). loss: of training, on the answer, or on every token (operands are noise of ln 10 nats a digit);
    evaluation always takes the answer's alone. Splits are disjoint by a hash of the operands in any order.

    Groups: `operands_n` and `digits_d`, two axes of the same problems.
    """

    def __init__(
        self,
        operands: int | Sequence[int] = (2, 3, 4),
        digits: int | Sequence[int] = 2,
        evaluated: int | Sequence[int] | None = None,
        reverse: bool = False,
        loss: str = "answer",
    ) -> None:
        self.operands = check_counts("operands", operands, 2, 256)
        self.digits = check_counts("digits", digits, 1, 64)
        self.evaluated = self.operands if evaluated is None else check_counts("evaluated", evaluated, 2, 256)
        check_choice("loss", loss, LOSSES)
        self.reverse, self.loss = bool(reverse), loss
        self.counts = tuple(sorted({*self.operands, *self.evaluated}))
        self.most, self.width = self.counts[-1], self.digits[-1]
        self.sum_width = len(str(self.most * (BASE**self.width - 1)))
        self.vocab_size = END + 1
        self.sequence_length = self.most * (self.width + 1) + self.sum_width  # the end is predicted, not read
        self.groups: tuple[str, ...] = (
            *(f"operands_{n}" for n in self.counts),
            *(f"digits_{d}" for d in self.digits),
        )

    def sample(self, seed: int, indices: Ints, split: str = TRAIN) -> Arrays:
        """Number of operands uniform on `operands`, their digits on `digits`."""
        words = bits(seed, f"addition/{split}/kind", indices, 2)
        operands = np.array(self.operands)[integers(words[:, 0], len(self.operands))]
        digits = np.array(self.digits)[integers(words[:, 1], len(self.digits))]
        return self._arrays(self._digits(seed, split, indices, operands, digits, split), operands, digits, self.loss)

    def evaluation(self, split: str, size: int) -> Arrays:
        """`size` problems per number of operands, numbers of digits in turn."""
        indices = np.arange(size)
        digits = np.array(self.digits)[indices % len(self.digits)]
        parts = []
        for count in self.evaluated:
            operands = np.full(size, count)
            numbers = self._digits(count, f"{split}/fixed", indices, operands, digits, split)
            parts.append(self._arrays(numbers, operands, digits, "answer"))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def floors(self) -> Floors:
        """Exact accuracy of the best guess from all operands but one: 10^−d, as the sum is uniform on 10^d values.

        A constant answer is never better. Reading all digits but one would score 0.1, but takes the whole addition.
        """
        what = "majority answer given all operands but one"
        guess = {d: float(BASE) ** -d for d in self.digits}
        mean = float(np.mean(list(guess.values())))
        by_count = {f"accuracy/operands_{n}": {"value": mean, "what": what} for n in self.evaluated}
        by_width = {f"accuracy/digits_{d}": {"value": value, "what": what} for d, value in guess.items()}
        return {"accuracy": {"value": mean, "what": what}, **by_count, **by_width}

    def encode(self, numbers: Ints, operands: Ints, digits: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Whole rows [N, S + 1] and which tokens are the answer, from digits [N, most, width] and counts [N] each."""
        count = len(numbers)
        place = np.arange(self.width)
        signs = np.where(np.arange(self.most) == operands[:, None] - 1, EQUALS, PLUS)
        prompt = np.concatenate([numbers, signs[:, :, None]], axis=2)  # [N, most, width + 1]
        kept = place >= self.width - digits[:, None]
        kept = np.append(kept, np.ones((count, 1), bool), axis=1)[:, None]  # a sign follows every operand
        used = (np.arange(self.most) < operands[:, None])[:, :, None] & kept
        total = self._total(numbers)  # [N, sum_width], most significant first
        shown = np.maximum.accumulate(total > 0, axis=1)
        shown[:, -1] = True  # a sum of zero is one digit
        if self.reverse:
            total, shown = total[:, ::-1], shown[:, ::-1]
        end = np.full((count, 1), END)
        values = np.concatenate([prompt.reshape(count, -1), total, end], axis=1)
        inside = np.concatenate([used.reshape(count, -1), shown, end == END], axis=1)
        answer = np.broadcast_to(np.arange(values.shape[1]) >= self.most * (self.width + 1), values.shape)
        whole = self.sequence_length + 1
        return join(values, inside, whole, END), join(answer, inside, whole, 0) > 0

    def _digits(self, seed: int, stream: str, indices: Ints, operands: Ints, digits: Ints, split: str) -> Ints:
        """[N, most, width], zeros before an operand and in absent ones; drawn again where another split holds them."""
        numbers = np.zeros((len(indices), self.most, self.width), np.int64)
        present = np.arange(self.most) < operands[:, None]  # [N, most]
        drawn = present[:, :, None] & (np.arange(self.width) >= self.width - digits[:, None])[:, None]
        waiting = np.arange(len(indices))
        attempt = 0
        while len(waiting):
            words = bits(seed, f"addition/{stream}/{attempt}", indices[waiting], self.most * self.width)
            numbers[waiting] = integers(words, BASE).reshape(-1, self.most, self.width) * drawn[waiting]
            waiting = waiting[~belongs(as_sets(numbers[waiting], present[waiting]), split)]
            attempt += 1
        return numbers

    def _total(self, numbers: Ints) -> Ints:
        """Digits of the sums, by columns: no sum is too large."""
        columns = numbers.sum(axis=1)
        total = np.zeros((len(numbers), self.sum_width), np.int64)
        carry = np.zeros(len(numbers), np.int64)
        for back in range(1, self.sum_width + 1):
            column = columns[:, -back] if back <= self.width else 0
            carry, total[:, -back] = np.divmod(carry + column, BASE)
        return total

    def _arrays(self, numbers: Ints, operands: Ints, digits: Ints, loss: str) -> Arrays:
        rows, answer = self.encode(numbers, operands, digits)
        before_end = np.cumsum(answer, axis=1) < answer.sum(axis=1, keepdims=True)
        wanted = answer | before_end if loss == "all" else answer
        tokens, targets = predict(rows, wanted)
        group = [np.searchsorted(self.counts, operands), len(self.counts) + np.searchsorted(self.digits, digits)]
        return {
            "tokens": tokens,
            "targets": targets,
            "scored": answer[:, 1:],
            "answer": np.zeros_like(tokens),
            "group": np.stack(group, axis=1),
        }
