"""Error on runs that a fit has not seen, and whether a law's loop term is worth having."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analysis.scaling.fits import Fit, Method, fit
from analysis.scaling.laws import Law
from analysis.scaling.points import SAME, Points
from analysis.scaling.uncertainty import predictions, resampled, trunk_weights

SEEN = 5e-5  # of log loss: less is printed as 0, and is rounding where the loop term is absent

Split = Callable[[Points], np.ndarray]


def largest(variable: str) -> Split:
    """Held out: the points at the largest `parameters`, `loops`, `trained_loops` or `tokens`."""

    def split(points: Points) -> np.ndarray:
        return points.variable(variable) > points.variable(variable).max() * (1 - SAME)

    return split


def beyond(variable: str, limit: float) -> Split:
    """Held out: the points over a budget, in tokens (`tokens`) or training FLOPs (`flops`)."""
    return lambda points: points.variable(variable) > limit


@dataclass(frozen=True)
class HeldOut:
    """Errors of log loss, so near-relative ones, of a fit to the other points. bias: mean of log loss − log fit."""

    fit: Fit
    n: int
    rms: float
    bias: float
    refused: str = ""


def held_out(law: Law, points: Points, split: Split, method: Method = "projection") -> HeldOut:
    """Fit without the held-out points, and the error on them; refused where either part is too small."""
    out = split(points)
    fitted = fit(law, points.take(~out), method)
    refused = fitted.refused or ("" if out.any() else "no point is held out")
    if refused:
        return HeldOut(fitted, int(out.sum()), np.nan, np.nan, refused)
    test = points.take(out)
    errors = np.log(test.loss) - np.log(fitted.predict(test))
    return HeldOut(fitted, len(test), float(np.sqrt(np.mean(errors**2))), float(errors.mean()))


@dataclass(frozen=True)
class Margin:
    """How much smaller the held-out error (RMS of log loss) is with the loop term: nested − full.

    interval: by bootstrap over trunks, in the part fitted and in the part held out. refused: why there is none.
    """

    nested: float
    full: float
    interval: tuple[float, float]
    refused: str = ""

    @property
    def value(self) -> float:
        return self.nested - self.full

    @property
    def beats(self) -> bool:
        return not self.refused and self.interval[0] > SEEN

    def __str__(self) -> str:
        numbers = (f"{100 * number:+.2f}".replace("-", "−") for number in (self.value, *self.interval))
        value, low, high = ("0" if number[1:] == "0.00" else number for number in numbers)
        return self.refused or f"{value} % of the loss [{low}, {high}]"


@dataclass(frozen=True)
class LoopTerm:
    """A loop term counts only if it beats the law without it on the largest size and on the largest depth."""

    law: Law
    size: Margin
    depth: Margin

    @property
    def supported(self) -> bool:
        return self.size.beats and self.depth.beats

    @property
    def decided(self) -> bool:
        """Both comparisons could be made."""
        return not (self.size.refused or self.depth.refused)

    @property
    def word(self) -> str:
        """`not supported`: the law without the term does as well. It is nested, so nothing here contradicts it."""
        return "supported" if self.supported else "not supported" if self.decided else "inconclusive"

    def __str__(self) -> str:
        return f"{self.law.name}: loop term {self.word}; held-out size: {self.size}; held-out depth: {self.depth}"


def loop_term_supported(
    law: Law, points: Points, draws: int = 300, seed: int = 0, level: float = 0.95, depth: str = "loops"
) -> LoopTerm:
    """Compare a law with its nested law on held-out size and held-out depth, by projection.

    Raises:
        ValueError: the law has no loop term.
    """
    if law.nested is None:
        raise ValueError(f"loop_term_supported: {law.name} has no loop term")
    splits = [largest(name) for name in ("parameters", depth)]
    size, deep = (margin(law, law.nested, points, split, draws, seed, level) for split in splits)
    if np.array_equal(*(split(points) for split in splits)):
        deep = replace(deep, refused="undecided (the largest are the deepest: one comparison, not two)")
    return LoopTerm(law, size, deep)


def margin(
    law: Law, nested: Law, points: Points, split: Split, draws: int = 300, seed: int = 0, level: float = 0.95
) -> Margin:
    """The gain of `law` over `nested` on held-out points; both see the same resamples."""
    out = split(points)
    seen, test = points.take(~out), points.take(out)
    empty = "" if out.any() else "no point is held out"
    empty = "no point is left to fit to" if out.all() else empty
    if refused := empty or fit(law, seen).refused or fit(nested, seen).refused:
        return Margin(np.nan, np.nan, (np.nan, np.nan), f"undecided ({refused})")
    # Fitted trunks and held-out trunks are drawn apart: a branch of a fitted trunk may be among the held-out points.
    weights, counts = trunk_weights(seen, draws, seed), trunk_weights(test, draws, seed + 1)
    first = [_errors(one, seen, test, np.ones((1, len(seen))), np.ones((1, len(test)))) for one in (nested, law)]
    again = [_errors(one, seen, test, weights, counts) for one in (nested, law)]
    low, high = np.quantile(again[0] - again[1], [(1 - level) / 2, (1 + level) / 2])
    return Margin(float(first[0][0]), float(first[1][0]), (float(low), float(high)))


def _errors(law: Law, seen: Points, test: Points, weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """RMS of log loss on the held-out points [draws], each point counted as often as its trunk was drawn."""
    found = resampled(fit(law, seen), weights)
    wrong = np.log(test.loss) - np.log(predictions(law, test, found))
    return np.sqrt((counts * wrong**2).sum(axis=1) / counts.sum(axis=1))
