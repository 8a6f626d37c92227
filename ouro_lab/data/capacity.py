"""`CapacityData`: people to be known by heart, and bits per parameter beside loss and accuracy."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ouro_lab.data.datamodules import TaskData
from ouro_lab.data.metrics import EvaluationMetrics
from ouro_lab.data.tasks.protocol import IGNORE, Floors, Task
from ouro_lab.evaluation.capacity import NAME, Term, bits, least_bits, most_bits

TOTALS = ("bits", f"bits/{NAME}", "bits/attributes")


class CapacityTask(Task, Protocol):
    """A task whose arrays also have `part` [N, S]: which of `parts` a target belongs to, −1 for none."""

    parts: tuple[str, ...]
    terms: tuple[Term, ...]


class CapacityMetrics(EvaluationMetrics):
    """Adds bits and, given the number of distinct parameters, bits per parameter.

    `loss/{term}`: nats per thing of a term (p₁ is `loss/name`). `bits_of_max`: of what the people hold. All of the last
    loop; `bits_per_parameter` and `bits_of_max` also per loop. A name's or an attribute's bits may be negative.
    """

    def __init__(self, loops: int, parts: tuple[str, ...], terms: tuple[Term, ...], parameters: int | None) -> None:
        super().__init__(loops)
        self.parts, self.terms, self.parameter_count = parts, terms, parameters
        for name, shape in {"part_nats": (loops, len(parts)), "people": ()}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Mapping[str, Tensor], token_loss: Tensor, correct: Tensor) -> None:
        super().update(batch, token_loss, correct)
        part = batch["part"]
        known = (part >= 0) & (batch["targets"] != IGNORE)
        self.part_nats.index_add_(1, part[known], token_loss[:, known].double())
        self.people += len(part)

    def compute(self) -> dict[str, Tensor]:
        losses = {term.name: self._loss(term) for term in self.terms}  # [T] each
        stored = bits(self.terms, losses)
        total = torch.stack(list(stored.values())).sum(0)
        values = {f"loss/{name}": loss[-1] for name, loss in losses.items()}
        values |= {f"bits/{name}": amount[-1] for name, amount in stored.items()}
        values |= {"bits": total[-1], "bits/attributes": (total - stored[NAME])[-1]}
        ratios = {"bits_of_max": total / most_bits(self.terms)}
        if self.parameter_count is not None:
            ratios["bits_per_parameter"] = total / self.parameter_count
        for name, ratio in ratios.items():
            values |= {name: ratio[-1], **self._by_loop(name, ratio)}
        return super().compute() | values

    def _loss(self, term: Term) -> Tensor:
        """Nats per thing [T]: p₁ per person, bioD's p₂ and p₃ per person and attribute."""
        nats = self.part_nats[:, [self.parts.index(part) for part in term.parts]].sum(1)
        return nats / (self.people * term.per_person)


class CapacityData(TaskData):
    """A `CapacityTask`. Nothing is held out: validation and test ask for the people trained on, in other words.

    The bits are those of all people; val_size and test_size are how many of them the losses are averaged over.
    """

    task: CapacityTask

    @property
    def metric_names(self) -> tuple[str, ...]:
        named = [f"{kind}/{term.name}" for kind in ("loss", "bits") for term in self.task.terms]
        return tuple(dict.fromkeys((*super().metric_names, *TOTALS, *named, "bits_of_max", "bits_per_parameter")))

    def metrics(self, loops: int, parameters: int | None = None) -> CapacityMetrics:
        return CapacityMetrics(loops, self.task.parts, self.task.terms, parameters)

    def floors(self) -> Floors:
        """Of bits, what no person is worth. Per parameter it depends on the backbone; 0 bounds it where it is ≤ 0."""
        least, what = least_bits(self.task.terms), "the lists of names and values known, no person"
        values = {"bits": least, "bits_of_max": least / most_bits(self.task.terms)}
        if least < 1e-6:  # up to rounding
            values["bits_per_parameter"] = 0.0
        return super().floors() | {name: {"value": value, "what": what} for name, value in values.items()}
