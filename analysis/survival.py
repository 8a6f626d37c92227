"""Time to a threshold where some runs never reach it: Kaplan–Meier, restricted mean, log-rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Times:
    """When each run reached the threshold, or up to when it had not (`reached` False: censored there)."""

    times: np.ndarray
    reached: np.ndarray

    @classmethod
    def of(cls, times: Sequence[float], reached: Sequence[bool]) -> "Times":
        return cls(np.asarray(times, float), np.asarray(reached, bool))


def first_reached(
    steps: Sequence[float], values: Sequence[float], threshold: float, rising: bool = True
) -> float | None:
    """The first step whose value is at the threshold or past it; None if there is none."""
    past = np.asarray(values, float) >= threshold if rising else np.asarray(values, float) <= threshold
    return float(np.asarray(steps, float)[past].min()) if past.any() else None


@dataclass(frozen=True)
class Curve:
    """Kaplan–Meier: the share of runs still short of the threshold just after each time at which one reached it."""

    times: np.ndarray
    survival: np.ndarray
    at_risk: np.ndarray
    events: np.ndarray


def kaplan_meier(data: Times) -> Curve:
    times = np.unique(data.times[data.reached])
    at_risk = np.array([(data.times >= t).sum() for t in times], float)
    events = np.array([((data.times == t) & data.reached).sum() for t in times], float)
    return Curve(times, np.cumprod(1 - events / at_risk) if len(times) else np.array([]), at_risk, events)


def restricted_mean(data: Times, horizon: float, level: float = 0.95) -> tuple[float, float, float]:
    """The mean time to the threshold, cut at `horizon`: (mean, low, high), normal interval by Greenwood's variance."""
    curve = kaplan_meier(data)
    inside = curve.times < horizon
    edges = np.concatenate([[0.0], curve.times[inside], [horizon]])
    heights = np.concatenate([[1.0], curve.survival[inside]])
    areas = heights * np.diff(edges)
    mean = float(areas.sum())
    later = np.cumsum(areas[::-1])[::-1][1:]  # area right of each event
    risk, events = curve.at_risk[inside], curve.events[inside]
    usable = risk > events
    variance = float((later[usable] ** 2 * events[usable] / (risk[usable] * (risk[usable] - events[usable]))).sum())
    half = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return mean, max(0.0, mean - half), min(float(horizon), mean + half)


def log_rank(a: Times, b: Times) -> float:
    """Two-sided p that both groups reach the threshold at the same rate; 1 if neither ever does."""
    observed = expected = variance = 0.0
    for t in np.unique(np.concatenate([a.times[a.reached], b.times[b.reached]])):
        risk_a, risk = float((a.times >= t).sum()), float((a.times >= t).sum() + (b.times >= t).sum())
        hits_a = float(((a.times == t) & a.reached).sum())
        hits = hits_a + float(((b.times == t) & b.reached).sum())
        observed, expected = observed + hits_a, expected + hits * risk_a / risk
        if risk > 1:
            variance += hits * (risk_a / risk) * (1 - risk_a / risk) * (risk - hits) / (risk - 1)
    return 1.0 if variance == 0 else float(stats.chi2.sf((observed - expected) ** 2 / variance, 1))
