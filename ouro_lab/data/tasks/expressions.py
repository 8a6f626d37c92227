"""Random expressions in prefix form over Z_m, and the exact odds of their answers (Part 4.1; Ouro §6.2).

E₀ → v, uniform on Z_m; E_ℓ → op E_ℓ′ E_{ℓ−1−ℓ′}, op uniform on {+, −, ×}, ℓ′ uniform on 0 … ℓ − 1: a uniform split, not
a uniform tree. Symbols: values 0 … m − 1, then +, −, ×, then the blank that fills a row behind a shorter expression.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Bits, Ints, integers

PLUS, MINUS, TIMES = OPERATORS = range(3)  # a symbol is modulus + this
BLANK = len(OPERATORS)

Table = NDArray[np.float64]


def draw(words: Bits, operators: Ints, modulus: int) -> Ints:
    """Expressions [N, slots] with `operators` [N] each, from words [N, slots, 2]; slots ≥ 2·operators + 1.

    A stack per row holds the sizes of the trees still to be written, the next one on top.
    """
    count, slots = words.shape[:2]
    rows, top = np.arange(count), np.zeros(count, np.int64)
    stack = np.zeros((count, slots + 2), np.int64)
    stack[:, 0] = operators
    symbols = np.full((count, slots), modulus + BLANK, np.int64)
    for slot in range(slots):
        live = top >= 0
        size = np.where(live, stack[rows, top], 0)
        inner = size > 0
        operator = modulus + integers(words[:, slot, 0], len(OPERATORS))
        symbol = np.where(inner, operator, integers(words[:, slot, 0], modulus))
        symbols[live, slot] = symbol[live]
        left = integers(words[:, slot, 1], size)  # 0 … size − 1
        stack[rows, np.maximum(top, 0)] = size - 1 - left
        stack[rows, top + 1] = left
        top += np.where(inner, 1, -live.astype(np.int64))
    return symbols


def solve(symbols: Ints, modulus: int) -> tuple[Ints, Ints]:
    """Value and tree depth [N] of expressions [N, slots]; depth counts operators on the longest path, 0 for a value.

    Read from the right with a stack per row: a value is pushed, an operator takes its left operand from the top.
    """
    count, slots = symbols.shape
    rows, top = np.arange(count), np.full(count, -1)
    values, depths = np.zeros((2, count, slots + 2), np.int64)
    for slot in reversed(range(slots)):
        symbol = symbols[:, slot]
        operator = symbol - modulus
        inner, leaf = (operator >= 0) & (operator < BLANK), operator < 0
        left, right = values[rows, top], values[rows, top - 1]
        results = np.stack([left + right, left - right, left * right])[operator.clip(0, TIMES), rows] % modulus
        depth = 1 + np.maximum(depths[rows, top], depths[rows, top - 1])
        top = top + leaf - inner
        place = np.where(inner | leaf, top, slots + 1)  # a blank writes where nobody reads
        values[rows, place] = np.where(inner, results, symbol)
        depths[rows, place] = np.where(inner, depth, 0)
    return values[:, 0], depths[:, 0]


@dataclass(frozen=True)
class Odds:
    """Joint probabilities by number of operators and tree depth, each [operators + 1, operators + 1].

    depth: of that depth. zero: … and of value 0, the most likely one. surface: … and answered by the best guess from
    the root operator and its operand where that is a number. Given the numbers of operators a row sums to 1, q_ℓ, …
    """

    depth: Table
    zero: Table
    surface: Table


def odds(modulus: int, operators: int) -> Odds:
    """Exact, for a prime modulus: then all non-zero values of a tree are equally likely (tasks.md §3).

    The guess from the surface is "the tree that I have not read is 0": c ± 0 = ±c, c × anything = 0 for c = 0 and the
    most likely value, 0, for another c. With one operator both operands are numbers; then one of them is not read.
    """
    depth, zero, surface = np.zeros((3, operators + 1, operators + 1))
    depth[0, 0], zero[0, 0] = 1, 1 / modulus
    surface[0] = zero[0]
    for size in range(1, operators + 1):
        for a in range(size):
            b = size - 1 - a
            whole = _deeper(depth[a], depth[b])
            neither = _deeper(depth[a] - zero[a], depth[b] - zero[b])
            sums = _deeper(zero[a], zero[b]) + neither / (modulus - 1)  # P(x ± y = 0)
            products = whole - neither
            read = _deeper(depth[0], zero[size - 1]) if 0 in (a, b) and size > 1 else sums
            depth[size] += whole / size
            zero[size] += (2 * sums + products) / 3 / size
            surface[size] += (2 * read + products) / 3 / size
    return Odds(depth, zero, surface)


def _deeper(left: Table, right: Table) -> Table:
    """The distribution of 1 + max of two independent depths with these weights."""
    up_to = np.cumsum(left) * np.cumsum(right)
    return np.concatenate([[0.0], np.diff(up_to, prepend=0.0)[:-1]])
