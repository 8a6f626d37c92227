"""The loss that training minimises, put together from the laws of its loops and the mean exit distribution (C31)."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.runs import StudyResult
from analysis.scaling.fits import Fit, fit
from analysis.scaling.uncertainty import predictions, resampled, tails, trunk_weights

LAST = 0.1  # the share of the steps, at the end of training, that everything here is a mean over


@dataclass(frozen=True)
class LoopsTogether:
    """What Σ_t q_t·L_t(N, D) explains of the losses that runs of one trained depth end at, L_t a step-wise law.

    q: mean exit probability of each loop [T], over runs. r2: of the loss minimised, entropy term and all, as the paper
    has it, though the sum leaves that term out; interval: by bootstrap over runs, each draw with its own fit and q.
    without_entropy: R² of the expected loss alone. nested: as r2, by the law without its term in loops. alike: whether
    the term in loops came out as nothing, so that it matters to no loop how often it is left at. refused: why there is
    none of this.
    """

    q: np.ndarray
    r2: float
    interval: tuple[float, float]
    without_entropy: float
    nested: float
    alike: bool
    refused: str = ""

    @property
    def exits(self) -> str:
        return " ".join(f"{share:.2f}" for share in self.q)

    def __str__(self) -> str:
        if self.refused:
            return self.refused
        low, high = self.interval
        alike = " (all loops' laws are one: its coefficient is 0)" if self.alike else ""
        return (
            f"R² {self.r2:.3f} [{low:.3f}, {high:.3f}] of the loss minimised, {self.without_entropy:.3f} of it without "
            f"the entropy term; {self.nested:.3f} by the laws without a term in loops{alike}"
        ).replace("-", "−")


def loops_together(test: Fit, result: StudyResult, draws: int, level: float = 0.95) -> LoopsTogether:
    """For the runs of a fit to every loop's test loss at one trained depth.

    The law is fitted again, to the training loss of each loop over the steps that the loss minimised is taken from:
    training and test losses differ by more than the entropy term.
    """
    depth, law = int(test.points.trained_loops[0]), test.law
    names = ["train/loss", "train/expected_loss"]
    names += [f"train/{what}_loop{t}" for what in ("exit_p", "loss") for t in range(1, depth + 1)]
    ends = _at_the_end(result, result.finished["id"].to_numpy()[test.points.trunk[::depth]], names)
    missing = [name for name in names if ends[name].isna().any()]
    if test.refused or missing:
        return _refuse(test.refused or f"{ends[missing[0]].isna().sum()} of {len(ends)} runs lack {missing[0]}")
    loss, expected, exits = (
        part.to_numpy() for part in (ends.iloc[:, 0], ends.iloc[:, 1], ends.iloc[:, 2 : 2 + depth])
    )
    points = replace(test.points, loss=ends.iloc[:, 2 + depth :].to_numpy().ravel())
    own, df = fit(law, points), points.trunks - len(law.names)
    if own.refused or df < 1 or law.nested is None:
        return _refuse(own.refused or f"{law.name}: {points.trunks} runs for {len(law.names)} parameters")
    weights = trunk_weights(points, draws)
    again = explained(predictions(law, points, resampled(own, weights)), exits, loss, weights[:, ::depth])
    low, high = np.nanquantile(again, tails(level, points.trunks, df))  # NaN: one run, drawn every time
    each, whole, nested = np.ones((1, len(ends))), own.predict(points), fit(law.nested, points).predict(points)
    return LoopsTogether(
        q=exits.mean(axis=0),
        r2=float(explained(whole[None], exits, loss, each)[0]),
        interval=(float(low), float(high)),
        without_entropy=float(explained(whole[None], exits, expected, each)[0]),
        nested=float(explained(nested[None], exits, loss, each)[0]),
        alike=bool(np.ptp(whole.reshape(exits.shape), axis=1).max() < 1e-9),
    )


def explained(predicted: np.ndarray, exits: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """R² [draws] of losses [runs] by Σ_t q_t·L_t, q the mean of exits [runs, T].

    predicted: [draws, runs · T], a run's loops together. weights: [draws, runs], how often each run was drawn.
    """
    weights = weights / weights.sum(axis=1, keepdims=True)
    q = weights @ exits
    sums = np.einsum("brt,bt->br", predicted.reshape(len(weights), *exits.shape), q)
    mean = (weights @ loss)[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (weights * (loss - sums) ** 2).sum(axis=1) / (weights * (loss - mean) ** 2).sum(axis=1)


def _at_the_end(result: StudyResult, ids: np.ndarray, names: list[str]) -> pd.DataFrame:
    """Means of training metrics over the last tenth of each run's steps, a row per id; NaN where a run has none.

    A row of a curve is a mean over the steps since the row before: it counts by those of them that are in the tenth.
    """
    rows = result.curves[result.curves["id"].isin(ids) & result.curves["metric"].isin(names)]
    rows = rows.sort_values(["id", "metric", "step"])
    groups = rows.groupby(["id", "metric"])["step"]
    began = np.maximum(groups.shift(fill_value=0), (1 - LAST) * groups.transform("max"))
    rows = rows.assign(weight=(rows["step"] - began).clip(lower=0))
    rows["part"] = rows["weight"] * rows["value"]
    sums = rows.groupby(["id", "metric"])[["part", "weight"]].sum()
    return (sums["part"] / sums["weight"]).unstack().reindex(index=ids, columns=names)


def _refuse(why: str) -> LoopsTogether:
    nothing = float("nan")
    return LoopsTogether(np.empty(0), nothing, (nothing, nothing), nothing, nothing, alike=False, refused=why)
