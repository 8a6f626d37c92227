"""What an exit rule is: what it may look at, and a statistic with a threshold.

`statistic` and `passes` are all there is to a rule: while a model runs, `exits` puts them together; offline a table of
statistics is measured once and `passes` takes every threshold of a grid from it. So a rule is the same in both.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Protocol, Self

from torch import Tensor

INFINITE = float("inf")


@dataclass(frozen=True)
class LoopView:
    """What a rule may look at: N rows, each of which has just finished a loop, not all of them the same one."""

    loop: Tensor  # [N] int64, one-based
    hidden: Tensor  # [N, d] normed state after that loop
    previous: Tensor  # [N, d] normed state one loop earlier, zeros at loop 1
    log_survival: Tensor  # [N] log Π_{j ≤ loop} (1 − λ_j), zeros without a gate
    logits: Callable[[], Tensor]  # [N, V] of `hidden`, made only when a rule asks
    previous_logits: Callable[[], Tensor]  # [N, V] of `previous`, meaningless at loop 1
    row: Tensor | None = None  # [N] int64, a number of its own for every token; for random rules
    gate_logits: Tensor | None = None  # [loops, N] of all loops so far, in the model's dtype; for `strict_reference`


class ExitRule(Protocol):
    """What generation asks of a rule. The caller lets every row exit at the last loop T itself."""

    @property
    def needs_gate(self) -> bool: ...

    @property
    def needs_logits(self) -> bool: ...

    def exits(self, view: LoopView) -> Tensor:
        """[N] bool."""
        ...


@dataclass(frozen=True)
class ThresholdRule(ABC):
    """A row exits where its statistic reaches the threshold, at loop `min_loops` at the earliest.

    The view holds `log_survival` with needs_gate, `gate_logits` with needs_gate_logits, and `row` with needs_row.

    knob: the field that holds the threshold, None where there is nothing to sweep. at_least: it exits at or above the
    threshold, else at or below it. Raises: ValueError naming a field with a value outside its range.
    """

    min_loops: int = field(default=1, kw_only=True)
    needs_gate: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    needs_row: ClassVar[bool] = False
    knob: ClassVar[str | None] = None
    at_least: ClassVar[bool] = True
    valid: ClassVar[tuple[float, float]] = (0.0, INFINITE)

    def __post_init__(self) -> None:
        require(self, "min_loops", 1, INFINITE)
        if self.knob is not None:
            require(self, self.knob, *self.valid)

    @property
    def needs_gate_logits(self) -> bool:
        return False

    @abstractmethod
    def statistic(self, view: LoopView) -> Tensor:
        """[N]; a value that cannot pass where the rule has nothing to go by, as at loop 1 without a previous one."""

    @property
    def sweeps(self) -> bool:
        """Whether it has a threshold to vary."""
        return self.knob is not None and getattr(self, self.knob) is not None

    @property
    def threshold(self) -> float:
        return 1.0 if self.knob is None else getattr(self, self.knob)

    @property
    def family(self) -> str:
        """The rule without its threshold: rules of one family threshold the same numbers."""
        free = (self.knob, "min_loops")
        options = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name not in free]
        return f"{type(self).__name__}({', '.join(options)})"

    def at(self, threshold: float) -> Self:
        """The same rule with another threshold; one without any is itself."""
        return replace(self, **{self.knob: threshold}) if self.knob is not None and self.sweeps else self

    def passes(self, statistic: Tensor, loop: Tensor) -> Tensor:
        """Whether rows with these statistics after these loops exit; shapes broadcast."""
        reached = statistic >= self.threshold if self.at_least else statistic <= self.threshold
        return reached if self.min_loops == 1 else reached & (loop >= self.min_loops)

    def exits(self, view: LoopView) -> Tensor:
        return self.passes(self.statistic(view), view.loop)


def require(rule: ThresholdRule, name: str, low: float, high: float) -> None:
    """Raises: ValueError naming the rule, the field, its value and the valid range."""
    value = getattr(rule, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        upper = "" if high == INFINITE else f" and ≤ {high:g}"
        raise ValueError(f"{type(rule).__name__}: {name} = {value!r}: must be a number ≥ {low:g}{upper}")
