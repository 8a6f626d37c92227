"""The oracle: what exits could gain if a token's losses at all loops were known. No rule, as none can know them."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def oracle_loops(losses: Floats, price: float = 0.0) -> NDArray[np.int64]:
    """Per token the earliest loop of least loss + price · loop, one-based [N], from losses [R, N].

    price: nats per loop; 0 is the loop of least loss, and prices from 0 to ∞ trace the best losses at all mean depths.
    """
    loops = np.arange(1, len(losses) + 1)[:, None]
    return (losses + price * loops).argmin(axis=0) + 1


def oracle_frontier(losses: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """The least mean loss at every mean depth: depths [K] ascending from 1, losses [K], linear in between.

    losses: [R, N], each column a unit that exits at one loop; weight: [N] tokens that a unit stands for, 1 if None, its
    losses being their means. Exact: what each token gains per loop, along the lower convex hull of its losses, is spent
    in the order of the gains, which is what falling prices do. Deeper than the last point nothing is gained.
    """
    weight = np.ones(losses.shape[1]) if weight is None else weight.astype(np.float64)
    slopes, widths, units = _hull_segments(losses.astype(np.float64))
    order = np.argsort(slopes, kind="stable")
    spent = widths[order] * weight[units[order]] / weight.sum()
    start = losses[0].astype(np.float64) @ weight / weight.sum()
    depth = np.concatenate([[1.0], 1 + np.cumsum(spent)])
    return depth, np.concatenate([[start], start + np.cumsum(slopes[order] * spent)])


def _hull_segments(losses: Floats) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """The falling segments of every column's lower convex hull: nats per loop (< 0), loops wide, column."""
    loops, count = losses.shape
    here, columns = np.zeros(count, np.int64), np.arange(count)
    slopes: list[Floats] = []
    widths: list[Floats] = []
    units: list[NDArray[np.int64]] = []
    while len(columns):
        ahead = np.arange(loops)[:, None] - here  # [R, columns left]
        rise = losses[:, columns] - losses[here, columns]
        slope = np.where(ahead > 0, rise / np.where(ahead > 0, ahead, 1), np.inf)
        best = loops - 1 - slope[::-1].argmin(axis=0)  # the farthest of equal ones
        steepest = slope[best, np.arange(len(columns))]
        falls = steepest < 0
        slopes.append(steepest[falls])
        widths.append((best - here)[falls].astype(np.float64))
        here, columns = best[falls], columns[falls]
        units.append(columns)
    return np.concatenate(slopes), np.concatenate(widths), np.concatenate(units)
