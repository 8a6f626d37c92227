"""Quality against mean loops: a curve per exit rule, between the oracle's and exits that are alike for all tokens."""

import re
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.style import FORMATS, GREY, RC, Palette, legend, panel, save
from analysis.wording import capital, metric_words

ORACLE, STATIC = "oracle", "static"


def draw_pareto(
    table: pd.DataFrame, folder: Path, quality: str = "loss", formats: Iterable[str] = FORMATS, name: str = "exits"
) -> Path:
    """Writes `<name>.<format>` from rows of `policy`, `loops` and `quality`, as `pareto_table` makes them."""
    with mpl.rc_context(RC):
        return save(pareto(table, quality), folder, name, formats)


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
