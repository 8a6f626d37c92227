"""Do later loops change the answer, or only say again what the state held before (paper §7.2)?"""

from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from ouro_lab.evaluation.depth import agreement
from ouro_lab.evaluation.passes import Backbone, Data, evaluating
from ouro_lab.evaluation.probes import chosen_tokens, layer_states, most_frequent, most_likely, probe_scores
from ouro_lab.evaluation.trajectory import trajectory

Parts = defaultdict[int, list[Tensor]]  # by loop, the batches'


@dataclass(frozen=True)
class AnswerProbes:
    """An evaluation: how well a probe reads each loop's own answer off a state of that loop, or of the one before.

    layer: layers of the answer's loop that the state has passed, the same for every loop: 0 is the end of the loop
    before, L the state that gives the answer. The paper finds the answer at 1 … L and not at 0.

    For loops t = 2 … T, `answer/auc_loop{t}`, `answer/accuracy_loop{t}` and `answer/chance_loop{t}` (the most frequent
    answer's accuracy) on held-out sequences; `answer/auc` is the mean over these loops. Answers are the most likely
    tokens. classes, tokens and penalty are those of `Probes`.

    Raises:
        ValueError: bad values; a layer that is not there; a backbone of one loop.
    """

    layer: int = 0
    classes: int = 16
    tokens: int = 8192
    penalty: float = 1e-3

    def __post_init__(self) -> None:
        for name, low in (("layer", 0), ("classes", 2), ("tokens", 2), ("penalty", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)!r}: must be a number ≥ {low}")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        by_loop = (f"answer/{name}_loop{t}" for t in range(2, loops + 1) for name in ("auc", "accuracy", "chance"))
        return (*by_loop, "answer/auc")

    def positions(self, data: Data, loops: int) -> int:
        """Tokens that are passed beside the test set's own pass, in passes of all trained loops."""
        return data.evaluation_tokens("test")

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        layers = len(getattr(backbone, "layers", (None,)))
        if backbone.loops < 2:
            raise ValueError(f"backbone.loops = {backbone.loops}: must be at least 2 to ask what a loop adds")
        if self.layer > layers:
            raise ValueError(f"evaluation.layer = {self.layer}: must be from 0 to {layers}")
        features, answers, sequence = self._collected(backbone, data, split, layers)
        values: dict[str, float] = {}
        for loop in range(2, backbone.loops + 1):
            labels, kept = most_frequent(answers[loop], self.classes)
            number = sequence.unique(return_inverse=True)[1][kept]
            found = probe_scores(features[loop][kept].double(), labels, number % 2 == 0, self.penalty)
            values |= {f"answer/{name}_loop{loop}": found[name] for name in ("auc", "accuracy", "chance")}
        areas = [values[f"answer/auc_loop{loop}"] for loop in range(2, backbone.loops + 1)]
        return values | {"answer/auc": sum(areas) / len(areas)}

    def _collected(
        self, backbone: Backbone, data: Data, split: str, layers: int
    ) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
        """By the answer's loop the state [n, d] and the answer [n]; and each token's sequence [n]."""
        features, answers = Parts(list), Parts(list)
        sequence: list[Tensor] = []
        head, before = backbone.head_weight, 0
        with evaluating(backbone):
            for batch, chosen in chosen_tokens(data, split, head.device, self.tokens):
                for (loop, layer), hidden in layer_states(backbone, batch):
                    owner = loop + 1 if layer == layers and self.layer == 0 else loop
                    if layer == (self.layer or layers) and 2 <= owner <= backbone.loops:
                        features[owner].append(hidden[chosen].cpu())
                    if layer == layers and loop > 1:
                        answers[loop].append(most_likely(hidden[chosen], head).cpu())
                sequence.append((chosen.nonzero()[:, 0] + before).cpu())
                before += len(chosen)
        return _joined(features), _joined(answers), torch.cat(sequence)


def _joined(parts: Parts) -> dict[int, Tensor]:
    return {loop: torch.cat(tensors) for loop, tensors in parts.items()}


@dataclass(frozen=True)
class AnswerAgreement:
    """An evaluation: how often two loops give the same answer, up to `last` loops, trained or not.

    `agreement/consecutive`: the mean share of tokens with equal answers at loops i and i + 1 for first ≤ i < last, and
    `agreement/chance`, what independent answers with the same frequencies would agree. The whole matrix is there too:
    `agreement/loops_{i}_{j}` and `agreement/chance_{i}_{j}` for 1 ≤ i < j ≤ last.

    Raises:
        ValueError: unless 1 ≤ first < last, or `last` is below the backbone's loops.
    """

    first: int = 1
    last: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.first < self.last:
            raise ValueError(
                f"evaluation.first = {self.first}: must be from 1 to {self.last - 1}, below evaluation.last"
            )

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        pairs = [(i, j) for j in range(2, self.last + 1) for i in range(1, j)]
        matrix = (f"agreement/{name}_{i}_{j}" for i, j in pairs for name in ("loops", "chance"))
        return (*matrix, "agreement/consecutive", "agreement/chance")

    def positions(self, data: Data, loops: int) -> int:
        """Tokens that are passed beside the test set's own pass, in passes of all trained loops."""
        return data.evaluation_tokens("test") * self.last // loops

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        if self.last < backbone.loops:
            raise ValueError(f"evaluation.last = {self.last}: must be at least the backbone's {backbone.loops} loops")
        tables = agreement(trajectory(backbone, data, split, self.last, rules=()).argmax)
        values: dict[str, float] = {}
        for name, table in zip(("loops", "chance"), tables, strict=True):
            pairs = [(i, j) for j in range(2, self.last + 1) for i in range(1, j)]
            values |= {f"agreement/{name}_{i}_{j}": float(table[i - 1, j - 1]) for i, j in pairs}
            steps = table.diagonal(1)[self.first - 1 : self.last - 1]
            values[f"agreement/{'consecutive' if name == 'loops' else name}"] = float(steps.mean())
        return values
