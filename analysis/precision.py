"""In which precision the compared runs were trained: a study may have moved from one machine to another."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.runs import StudyResult
from analysis.stability import LR_SENSITIVITY
from ouro_lab.records import END_STATES


@dataclass(frozen=True)
class Precisions:
    """by_arm: those that occur, empty where no run says. within_seed: runs of one seed differ in it."""

    by_arm: dict[str, list[str]]
    within_seed: bool

    @property
    def several(self) -> bool:
        return len({name for names in self.by_arm.values() for name in names}) > 1

    @property
    def words(self) -> str:
        named = (f"{arm} {' and '.join(names) or 'unknown'}" for arm, names in self.by_arm.items())
        return f"not one precision: {', '.join(named)}"


def precisions(result: StudyResult, arms: Sequence[str], metric: str) -> Precisions:
    """Of the runs that have ended and that `metric` is read off: a sweep's for `LR_SENSITIVITY`, else the verdict's."""
    runs = result.runs
    phase = "lr" if metric == LR_SENSITIVITY else "main"
    ended = runs[(runs["phase"] == phase) & runs["state"].isin(END_STATES) & (runs["precision"] != "")]
    by_arm = {arm: sorted(set(ended.loc[ended["arm"] == arm, "precision"])) for arm in arms}
    each = ended[ended["arm"].isin(arms)].groupby("seed")["precision"].nunique()
    return Precisions(by_arm, bool((each > 1).any()))


def counted(runs: pd.DataFrame) -> str:
    """`32-true`, or `32-true (1 run); bf16-mixed (2 runs)`; nothing where no run says."""
    counts = runs.loc[runs["precision"] != "", "precision"].value_counts().sort_index()
    if len(counts) < 2:
        return "".join(counts.index)
    return "; ".join(f"{name} ({n} run{'s' if n > 1 else ''})" for name, n in counts.items())
