"""The runs that a scaling law is fitted to, as arrays."""

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

COLUMNS = ("trunk", "parameters_once", "parameters_recurring", "tokens", "loops", "loss")
SAME = 0.01  # values closer than 1 % count as one: token budgets differ by a rounded batch


@dataclass(frozen=True)
class Points:
    """One entry per evaluated checkpoint, all of shape [n].

    once, recurring: parameters outside and inside the loop. loops: loops applied when the loss was taken (a loop
    index in step-wise data); trained_loops: those of training. loss: nats per token. trunk: which training run.
    """

    trunk: np.ndarray
    once: np.ndarray
    recurring: np.ndarray
    tokens: np.ndarray
    loops: np.ndarray
    trained_loops: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Points":
        """From a table with COLUMNS, and `trained_loops` where it differs from `loops`.

        Raises:
            ValueError: a column is missing, or a value is not finite and positive (parameters_once may be 0).
        """
        if missing := [name for name in COLUMNS if name not in frame]:
            raise ValueError(f"scaling points: no column {', '.join(missing)}")
        trained = frame["trained_loops" if "trained_loops" in frame else "loops"]
        columns = [frame[name] for name in COLUMNS[1:5]] + [trained, frame["loss"]]
        numbers = [np.asarray(column, float) for column in columns]
        for name, values in zip((*COLUMNS[1:5], "trained_loops", "loss"), numbers, strict=True):
            wrong = ~np.isfinite(values) | (values < 0 if name == "parameters_once" else values <= 0)
            if wrong.any():
                raise ValueError(f"scaling points: {int(wrong.sum())} values of {name} are not finite and positive")
        return cls(pd.factorize(frame["trunk"])[0], *numbers)

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def trunks(self) -> int:
        return len(np.unique(self.trunk))

    @property
    def parameters(self) -> np.ndarray:
        """Stored parameters, each counted once."""
        return self.once + self.recurring

    @property
    def flops(self) -> np.ndarray:
        """Training FLOPs without attention: 6 (N_once + T N_rec) D, with the loops of training."""
        return 6 * (self.once + self.trained_loops * self.recurring) * self.tokens

    def variable(self, name: str) -> np.ndarray:
        """`parameters`, `tokens`, `loops`, `trained_loops` or `flops`."""
        return getattr(self, name)

    def values(self, name: str) -> np.ndarray:
        """The `distinct` values of a variable."""
        return distinct(self.variable(name))

    def take(self, mask: np.ndarray) -> "Points":
        """The points where `mask` [n] holds."""
        return Points(*(getattr(self, field.name)[mask] for field in fields(self)))


def distinct(x: np.ndarray) -> np.ndarray:
    """Different values, rising; of values within 1 % of each other the smallest."""
    found = np.unique(x)
    return found[np.diff(np.log(found), prepend=-np.inf) > SAME]
