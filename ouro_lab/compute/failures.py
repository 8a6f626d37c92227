"""How often to write a checkpoint where machines fail: Young's and Daly's optimum."""

import math


def young(write: float, mtbf: float) -> float:
    """Seconds of training between two checkpoints, √(2·C·M), first order (Young 1974).

    write: C, seconds that training stands still for one. mtbf: M, mean seconds between failures.
    """
    return math.sqrt(2 * write * mtbf)


def daly(write: float, mtbf: float) -> float:
    """The same with Daly's higher-order terms (2006, equation 37); M where writing takes longer than two failures."""
    ratio = write / (2 * mtbf)
    if ratio >= 1:
        return mtbf
    return young(write, mtbf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - write


def lost_share(interval: float, write: float, mtbf: float) -> float:
    """Share of the time that goes into writing, and into what failures undo: half an interval each, first order."""
    return write / interval + interval / (2 * mtbf)
