"""What two arms have in common: every quantity side by side, and an error where one that is held equal differs."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Quantities = Mapping[str, Any]  # `cost` of study.json

LIMIT = 0.02
QUANTITIES = (
    "parameters",
    "body_parameters",
    "tokens",
    "steps",
    "training_flops",
    "flops_per_token",
    "effective_depth",
    "kv_bytes_per_token",
    "decode_flops",
    "activation_bytes",
)
SHORT = {"flops": "training_flops", "kv_bytes": "kv_bytes_per_token"}


class MismatchError(ValueError):
    """A quantity that a contrast holds equal differs over its limit, is unknown, or was not given. One line."""


@dataclass(frozen=True)
class Match:
    """One quantity of both arms; `mismatch` is arm / reference − 1."""

    quantity: str
    arm: float
    reference: float
    mismatch: float
    held: bool


def compare(arm: Quantities, reference: Quantities, equal: Sequence[str], limit: float = LIMIT) -> list[Match]:
    """Every quantity that both arms know, the held ones marked; nothing is refused for its size (see `check`).

    Where one of them was measured, FLOPs of both are of the full square.

    Raises:
        MismatchError: `equal` names an unknown quantity, or one that an arm has no value for; a bad limit.
    """
    if not 0 <= limit < 1:
        raise MismatchError(f"limit = {limit!r}: must be in [0, 1)")
    held = _canonical(equal)
    arm, reference = _same_convention(arm, reference)
    rows = []
    for quantity in QUANTITIES:
        a, b = arm.get(quantity), reference.get(quantity)
        if a is not None and b is not None:
            rows.append(Match(quantity, a, b, _relative(a, b), quantity in held))
        elif quantity in held:
            unknown = "arm" if a is None else "reference"
            raise MismatchError(f"{quantity}: cannot be held equal, not known for the {unknown}")
    return rows


def check(
    contrast: str, arm: Quantities, reference: Quantities, equal: Sequence[str], limit: float = LIMIT
) -> list[Match]:
    """`compare`'s rows, all held quantities within the limit.

    Raises:
        MismatchError: names contrast, quantity, both values, mismatch and limit.
    """
    try:
        rows = compare(arm, reference, equal, limit)
    except MismatchError as error:
        raise MismatchError(f"contrast {contrast}: {error}") from error
    for row in rows:
        if row.held and abs(row.mismatch) > limit:
            raise MismatchError(
                f"contrast {contrast}: {row.quantity} is held equal, but arm has {number(row.arm)} and reference "
                f"{number(row.reference)}: {percent(row.mismatch)}, limit {100 * limit:g} %"
            )
    return rows


def format_table(rows: Iterable[Match]) -> str:
    """Plain text for the terminal, a line per quantity."""
    head = ("quantity", "arm", "reference", "mismatch", "")
    body = [
        (r.quantity, number(r.arm), number(r.reference), percent(r.mismatch), "held equal" if r.held else "")
        for r in rows
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    return "\n".join(_line(cells, widths) for cells in (head, *body))


def number(value: float) -> str:
    """Integers to twelve digits in full, so that a small difference shows; four digits of the rest."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e12 else f"{value:.4g}"


def percent(mismatch: float) -> str:
    return "0 %" if mismatch == 0 else f"{100 * mismatch:+.2g} %" if abs(mismatch) < 1 else f"× {1 + mismatch:.3g}"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers, mark = cells
    right = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=False)]
    return "  ".join([name.ljust(widths[0]), *right, mark]).rstrip()


def _canonical(equal: Sequence[str]) -> set[str]:
    valid = (*QUANTITIES, *SHORT)
    for name in equal:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
            raise MismatchError(f"equal: {name}: unknown quantity; did you mean {close}? valid: {', '.join(valid)}")
    return {SHORT.get(name, name) for name in equal}


def _same_convention(arm: Quantities, reference: Quantities) -> tuple[Quantities, Quantities]:
    """Measured FLOPs know only the full square; the causal count of the other arm would not be comparable."""
    if all(cost.get("method", "analytic") == "analytic" for cost in (arm, reference)):
        return arm, reference
    return _full_square(arm), _full_square(reference)


def _full_square(cost: Quantities) -> Quantities:
    each = cost["flops_per_token_full_square"]
    totals = {"training_flops": each * cost["tokens"]} if "tokens" in cost else {}
    return {**cost, "flops_per_token": each, **totals}


def _relative(arm: float, reference: float) -> float:
    if arm == reference:
        return 0.0
    return arm / reference - 1 if reference else math.inf
