"""The size of the global batch as a function of the step: constant, or smaller at first."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """Step k reads the global samples `first(k)` … `first(k) + size(k) − 1`: none left out, none read twice.

    batch_size: sequences of a step once the ramp is over. phases: (steps, sequences) before that, in order. skip:
    samples before those of step 0, which an earlier stage has read.
    """

    batch_size: int
    phases: tuple[tuple[int, int], ...] = ()
    skip: int = 0

    @classmethod
    def of_tokens(cls, batch_size: int, length: int, ramp: Sequence[Sequence[float]], skip_tokens: float) -> "Ramp":
        """ramp: pairs of tokens and sequences a step; so many tokens, to the nearest step, are read at that size.

        Raises:
            ValueError: names the pair that is none, or a number of tokens that is no number ≥ 0.
        """
        phases = []
        for pair in ramp:
            if len(pair) != 2 or not _counts(pair[0]) or type(pair[1]) is not int or pair[1] < 1:
                raise ValueError(f"ramp = {list(ramp)}: must be a list of [tokens, sequences], as [[1e6, 32]]")
            phases.append((max(1, round(pair[0] / (pair[1] * length))), pair[1]))
        if skip_tokens and not _counts(skip_tokens):
            raise ValueError(f"skip_tokens = {skip_tokens!r}: must be a number ≥ 0")
        return cls(batch_size, tuple(phases), round(skip_tokens / length))

    @property
    def sizes(self) -> tuple[int, ...]:
        return (*(size for _, size in self.phases), self.batch_size)

    @property
    def steps(self) -> int:
        """Steps before the batch has its full size."""
        return sum(steps for steps, _ in self.phases)

    def size(self, step: int) -> int:
        for steps, size in self.phases:
            if step < steps:
                return size
            step -= steps
        return self.batch_size

    def first(self, step: int) -> int:
        return self.skip + self.samples(step)

    def samples(self, steps: int) -> int:
        """Sequences that the first `steps` steps read."""
        total = 0
        for length, size in self.phases:
            taken = min(steps, length)
            total, steps = total + taken * size, steps - taken
        return total + steps * self.batch_size


def _counts(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
