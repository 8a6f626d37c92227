"""Which split may hold a sequence: a function of its content alone, so that no two splits ever share one."""

import numpy as np
from numpy.typing import NDArray

from ouro_lab.data.random import Ints, content_hash
from ouro_lab.data.tasks.protocol import TEST, VAL

HASH_CLASSES = 8  # 1/8 of all sequences is val, 1/8 test, the rest train


def belongs(rows: Ints, split: str) -> NDArray[np.bool_]:
    """[N]: whether each row [N, S] of small non-negative integers is one of `split`'s."""
    kind = content_hash(rows) % np.uint64(HASH_CLASSES)
    if split in (VAL, TEST):
        return kind == (VAL, TEST).index(split)
    return kind > 1


def as_sets(items: Ints, inside: NDArray[np.bool_]) -> Ints:
    """Rows [N, M] for `belongs` that are the same for the same items [N, M, W] in any order, those `inside` [N, M]."""
    words = content_hash(items.reshape(-1, items.shape[2])).reshape(inside.shape)
    return np.sort(np.where(inside, 1 + (words >> np.uint64(33)).astype(np.int64), 0), axis=1)
