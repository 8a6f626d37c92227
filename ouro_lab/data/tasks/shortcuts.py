"""The score of the best shortcut: a majority answer given a proper subset of a prompt's fields."""

from itertools import combinations

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


def majority_score(values: Ints, answers: Ints, fit: Ints, measured: Ints) -> float:
    """Accuracy on the rows `measured` of the most common answer per value on the rows `fit`.

    A value that `fit` lacks gets its most common answer of all. values, answers: small integers [N].
    """
    if not len(measured):
        return 0.0
    size = int(answers.max()) + 1
    pairs, counts = np.unique(values[fit] * size + answers[fit], return_counts=True)
    guess = np.full(int(values.max()) + 1, np.bincount(answers[fit]).argmax())
    order = np.lexsort((-pairs, counts))  # the most common one of a value is written last
    guess[pairs[order] // size] = pairs[order] % size
    return float((guess[values[measured]] == answers[measured]).mean())


def exact_shortcut(fields: dict[str, Ints], answers: Ints, measured: Ints) -> tuple[float, str]:
    """Accuracy on the rows `measured` of the best majority table over all rows, and the fields that it reads.

    For questions that can all be listed: every proper subset of the fields is tried, none included. Ties go to the
    smallest answer. The best subset is chosen on the rows that are measured: if that errs, the floor is too high.

    fields: [N] each; together with the answers, rows of them are numbered in 64 bits. answers [N].
    """
    subsets = [names for size in range(len(fields)) for names in combinations(fields, size)]
    scores = [_table_accuracy([fields[name] for name in names], answers, measured) for names in subsets]
    best = int(np.argmax(scores))
    return scores[best], " and ".join(subsets[best]) or "nothing"


def _table_accuracy(columns: list[Ints], answers: Ints, measured: Ints) -> float:
    cell = np.zeros(len(answers), np.int64)
    for column in columns:
        cell = cell * (int(column.max()) + 1) + column
    size = int(answers.max()) + 1
    pairs, counts = np.unique(cell * size + answers, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs // size))  # by cell, the most common answer first
    cells, first = np.unique(pairs[order] // size, return_index=True)
    guesses = (pairs[order] % size)[first]
    return float((guesses[np.searchsorted(cells, cell[measured])] == answers[measured]).mean())
