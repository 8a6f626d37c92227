"""Quality against mean loops: a curve per exit rule, between the oracle's and exits that are alike for all tokens.

Of a trained model in a notebook (`draw_pareto`), and in the report of a study whose arms are exit rules (`of_study`).
"""

import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.runs import StudyResult
from analysis.samples import shown_arms, shown_runs
from analysis.style import FORMATS, GREY, RC, Palette, legend, panel, save
from analysis.wording import capital, metric_words

ORACLE, STATIC = "oracle", "static"
QUALITIES = ("loss", "accuracy", "bits_per_byte")
AT = re.compile(r"final/exit/(loss)_at_(\d+)")  # `evaluation.exits.ExitCurve`'s, by interpolation at whole depths


def draw_pareto(
    table: pd.DataFrame, folder: Path, quality: str = "loss", formats: Iterable[str] = FORMATS, name: str = "exits"
) -> Path:
    """Writes `<name>.<format>` from rows of `policy`, `loops` and `quality`, as `pareto_table` makes them."""
    with mpl.rc_context(RC):
        return save(pareto(table, quality), folder, name, formats)


def of_study(result: StudyResult) -> pd.DataFrame | None:
    """Rows of `policy` (an arm, or `static`), `loops` and qualities: means over finished runs. None of other studies.

    Of static depths the loss alone is known: it is an arm's own and what that arm says that it gains over them.
    """
    runs = shown_runs(result)
    runs = runs[runs["state"] == "done"]
    matches = [match for name in runs if (match := AT.fullmatch(name)) and runs[name].notna().any()]
    depths = sorted({int(match[2]) for match in matches})
    if len(depths) < 2:
        return None
    arms = {arm.replace("_", " "): runs[runs["arm"] == arm] for arm in shown_arms(result, runs)}
    rows = [{"policy": arm, "loops": depth, **_means(mine, depth)} for arm, mine in arms.items() for depth in depths]
    static = [{"policy": STATIC, "loops": depth, "loss": _static(runs, depth)} for depth in depths]
    return pd.DataFrame([*rows, *static])


def _means(runs: pd.DataFrame, depth: int) -> dict[str, float]:
    columns = {quality: f"final/exit/{quality}_at_{depth}" for quality in QUALITIES}
    return {quality: runs[column].mean() for quality, column in columns.items() if column in runs}


def _static(runs: pd.DataFrame, depth: int) -> float:
    return (runs[f"final/exit/loss_at_{depth}"] + runs[f"final/exit/gain_over_random_at_{depth}"]).mean()


def pareto(table: pd.DataFrame, quality: str) -> Figure:
    """Raises: ValueError where the table has no such quality."""
    if quality not in table:
        valid = ", ".join(name for name in table.columns if name not in ("policy", "loops"))
        raise ValueError(f"quality = {quality}: not in the table; valid: {valid}")
    known = table[table[quality].notna()]
    policies = list(dict.fromkeys(known["policy"]))
    palette = Palette(policy for policy in policies if policy not in (ORACLE, STATIC))
    figure, axes = panel()
    for policy in policies:
        _curve(axes, known[known["policy"] == policy].sort_values("loops"), policy, quality, palette)
    axes.set(xlabel="Mean loops", ylabel=capital(metric_words(quality)))
    legend(axes)
    return figure


def _curve(axes: Axes, rows: pd.DataFrame, policy: str, quality: str, palette: Palette) -> None:
    """What rules are measured against is grey: the oracle's dashes, and whole depths joined by what a coin gives."""
    if policy == ORACLE:
        style = {"color": GREY, "linestyle": "--", "linewidth": 1.0}
    elif policy == STATIC:
        style = {"color": GREY, "marker": "o", "markersize": 3.5, "linewidth": 1.0}
    else:
        style = {"color": palette.colour(policy), "linestyle": palette.line(policy), "linewidth": 1.3}
    axes.plot(rows["loops"], rows[quality], label=_label(policy), **style)


def _label(policy: str) -> str:
    """`HiddenDifference(relative=True)` as `hidden difference, relative`; options that are off are not named."""
    name, _, options = policy.rstrip(")").partition("(")
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = " ".join(word if word.isupper() else word.lower() for word in words.split())
    stated = [option.split("=")[0].replace("_", " ") for option in options.split(", ") if option.endswith("=True")]
    return ", ".join([words, *stated])
