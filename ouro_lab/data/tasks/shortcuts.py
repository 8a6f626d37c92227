"""The score of the best shortcut: a majority answer given a proper subset of a prompt's fields."""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints


def best_shortcut(fields: dict[str, Ints], answers: Ints, valid: NDArray[np.bool_]) -> tuple[float, str]:
    """Accuracy and name of the best field, from three thirds of the sample: fitted, chosen, measured.

    So neither the majority table nor the choice among fields flatters the value that is returned.

    fields: one integer per sequence [N] each, small. answers [N]; only `valid` sequences count.
    """
    third = np.arange(len(answers)) % 3
    fit, choose, measure = (valid & (third == k) for k in range(3))
    guesses = {name: _majority(values, answers, fit) for name, values in fields.items()}
    best = max(guesses, key=lambda name: _accuracy(guesses[name], answers, choose))
    return _accuracy(guesses[best], answers, measure), best


def _majority(values: Ints, answers: Ints, fit: NDArray[np.bool_]) -> Ints:
    """The most common answer per value on `fit`, read for all sequences [N]."""
    table = np.zeros((int(values.max()) + 1, int(answers.max()) + 1), np.int64)
    np.add.at(table, (values[fit], answers[fit]), 1)
    return table.argmax(axis=1)[values]


def _accuracy(guesses: Ints, answers: Ints, rows: NDArray[np.bool_]) -> float:
    return float((guesses[rows] == answers[rows]).mean()) if rows.any() else 0.0
