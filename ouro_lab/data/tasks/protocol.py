"""What a synthetic task must be for `TaskData`."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

IGNORE = -100  # the target where there is nothing to predict
TRAIN, VAL, TEST = "train", "val", "test"
UNDEFINED = "undefined"  # the group of sequences without an answer: reported, never part of `accuracy`
SEEN = "seen_"  # begins the name of a group of training items: reported, part of neither `accuracy` nor `loss`

Arrays = dict[str, NDArray]
Floors = dict[str, dict[str, float | str]]


class Task(Protocol):
    """A generator whose sample i is a pure function of (seed, i).

    Arrays have the keys and shapes of docs/design.md's batch; a key that is absent has that document's default.
    """

    vocab_size: int
    sequence_length: int  # S, tokens per sample
    groups: tuple[str, ...]  # difficulty levels; `group` indexes them

    def sample(self, seed: int, indices: NDArray[np.int64], split: str = TRAIN) -> Arrays:
        """The samples `indices` [N] of one split's stream; splits share no sequence."""
        ...

    def evaluation(self, split: str, size: int) -> Arrays:
        """The fixed set of a split, `size` sequences per difficulty; depends on no run's seed."""
        ...

    def floors(self) -> Floors:
        """Per metric the score of the best shortcut, and which shortcut that is."""
        ...


def check_range(field: str, value: int, low: int, high: int | None = None) -> None:
    """Raises: ValueError naming field, value and the valid range."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        valid = f"an integer ≥ {low}" if high is None else f"an integer from {low} to {high}"
        raise ValueError(f"{field} = {value!r}: must be {valid}")


def check_counts(field: str, value: int | Sequence[int], low: int, high: int) -> tuple[int, ...]:
    """The different ones of a number or a list of numbers, ascending. Raises: ValueError as `check_range`."""
    numbers = [value] if isinstance(value, int) else list(value) if isinstance(value, list | tuple) else []
    if not numbers:
        raise ValueError(f"{field} = {value!r}: must be an integer from {low} to {high}, or a list of such integers")
    for number in numbers:
        check_range(field, number, low, high)
    return tuple(sorted(set(numbers)))


def check_choice(field: str, value: str, valid: Sequence[str]) -> None:
    """Raises: ValueError naming field, value and the valid ones."""
    if value not in valid:
        raise ValueError(f"{field} = {value!r}: must be one of {', '.join(valid)}")


def check_share(field: str, value: float, most: float = 1.0, what: str = "1") -> None:
    """Raises: ValueError unless 0 < value < 1, or ≤ `most`, called `what`, where that is less."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < 1 or value > most + 1e-9:
        limit = "below 1" if most == 1 else f"at most {what} = {most:g}"
        raise ValueError(f"{field} = {value!r}: must be a number above 0 and {limit}")
