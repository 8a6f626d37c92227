"""Linear probes: what the state after a layer of a loop already says of an answer (paper §7.2).

Ridge regression onto the one-hot label, in closed form and float64: nothing to tune or to converge. Features are
standardised, fitted on every other sequence of the split and scored on the rest.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from ouro_lab.evaluation.passes import (
    Backbone,
    Batch,
    Data,
    batches,
    evaluating,
    loop_states,
    scored_positions,
    token_facts,
)
from ouro_lab.objectives import chunk_rows

LABELS = ("answer", "right", "target")
Features = dict[tuple[int, int], list[Tensor]]  # by (loop, layer), the batches' [n, d]


def fit_ridge(features: Tensor, labels: Tensor, classes: int, penalty: float) -> Callable[[Tensor], Tensor]:
    """Features [n, d] to scores [n, classes] of labels in 0 … classes − 1. penalty: per token, of unit features."""
    mean, spread = features.mean(0), features.std(0, correction=0).clamp_min(1e-12)
    x = (features - mean) / spread
    y = F.one_hot(labels, classes).to(x.dtype)
    offset = y.mean(0)
    gram = x.T @ x + penalty * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, x.T @ (y - offset))  # [d, classes]
    return lambda new: (new - mean) / spread @ weight + offset


def area_under_roc(scores: Tensor, labels: Tensor) -> float:
    """The mean over classes of one against the rest, each P(score of one > score of another), ties half.

    scores [n, classes], labels [n]. Classes without examples, or with nothing else, are left out; 0.5 if all are.
    """
    areas = []
    for label in range(scores.shape[1]):
        positive = (labels == label).numpy()
        yes, no = int(positive.sum()), int((~positive).sum())
        if yes and no:
            ranks = rankdata(scores[:, label].numpy())
            areas.append((ranks[positive].sum() - yes * (yes + 1) / 2) / (yes * no))
    return float(np.mean(areas)) if areas else 0.5


@dataclass(frozen=True)
class Probes:
    """An evaluation: probes on the state after each loop, which head, gate and next loop read; names `probe/…`.

    accuracy_loop{t} and auc_loop{t} on held-out sequences; chance: the accuracy of always giving the most frequent
    label of the fitted ones (chance of the area is 0.5). `table` has every layer too.

    label: `answer`, the most likely token at loop `loop` (None: the last), `right`, whether that is the target, or
    `target`. classes: the most frequent labels; tokens of others are left out. tokens: at most so many scored tokens,
    at even distances over the split. penalty: ridge.

    Raises: ValueError naming the field.
    """

    label: str = "answer"
    loop: int | None = None
    classes: int = 16
    tokens: int = 8192
    penalty: float = 1e-3

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"evaluation.label = {self.label!r}: must be one of {', '.join(LABELS)}")
        for name, low in (("classes", 2), ("tokens", 2), ("penalty", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"evaluation.{name} = {getattr(self, name)!r}: must be a number ≥ {low}")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        by_loop = (f"probe/{name}_loop{t}" for t in range(1, loops + 1) for name in ("accuracy", "auc"))
        return (*by_loop, "probe/chance")

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        table = self.table(backbone, data, split)
        values = {"probe/chance": table[0]["chance"]}
        for row in table:  # the last layer's row is the last of its loop
            values |= {f"probe/{name}_loop{row['loop']:.0f}": row[name] for name in ("accuracy", "auc")}
        return values

    def table(self, backbone: Backbone, data: Data, split: str) -> list[dict[str, float]]:
        """A row per loop and layer, in their order, with `loop`, `layer`, `accuracy`, `auc` and `chance`.

        layer 1 … L − 1 is the stream after it; layer L the normed state at the loop's end.
        """
        features, facts = self._collected(backbone, data, split)
        labels, kept = most_frequent(facts[self.label], self.classes)
        number = facts["sequence"].unique(return_inverse=True)[1][kept]  # parity must not follow that of the sampling
        fitted = number % 2 == 0
        return [
            {
                "loop": loop,
                "layer": layer,
                **probe_scores(torch.cat(parts)[kept].double(), labels, fitted, self.penalty),
            }
            for (loop, layer), parts in features.items()
        ]

    def _collected(self, backbone: Backbone, data: Data, split: str) -> tuple[Features, dict[str, Tensor]]:
        """Features by (loop, layer), and per token `answer`, `right`, `target` and `sequence` [n]."""
        read = self.loop or backbone.loops
        if not 1 <= read <= backbone.loops:
            raise ValueError(f"evaluation.loop = {self.loop}: must be from 1 to {backbone.loops}")
        head, groups = backbone.head_weight, tuple(data.groups)
        features: Features = defaultdict(list)
        facts: dict[str, list[Tensor]] = defaultdict(list)
        sequences = 0
        with evaluating(backbone):
            for batch, chosen in chosen_tokens(data, split, head.device, self.tokens):
                states = {at: hidden[chosen] for at, hidden in layer_states(backbone, batch)}
                found = token_facts(batch, chosen, sequences, groups)
                found["answer"] = most_likely(states[max(at for at in states if at[0] == read)], head)
                found["right"] = (found["answer"] == found["target"]).long()
                for at, hidden in states.items():
                    features[at].append(hidden.cpu())
                for name in (*LABELS, "sequence"):
                    facts[name].append(found[name].cpu())
                sequences += len(chosen)
        return features, {name: torch.cat(parts) for name, parts in facts.items()}


def probe_scores(features: Tensor, labels: Tensor, fitted: Tensor, penalty: float) -> dict[str, float]:
    """`accuracy`, `auc` and `chance` on the tokens not `fitted` [n] of a probe from [n, d] to labels 0, 1, … [n].

    Raises:
        ValueError: all tokens are fitted, or none.
    """
    classes = int(labels.max()) + 1
    if fitted.all() or not fitted.any():
        raise ValueError(f"evaluation.tokens: leaves {len(labels)} of one sequence; must be of at least two sequences")
    scores = fit_ridge(features[fitted], labels[fitted], classes, penalty)(features[~fitted])
    held = labels[~fitted]
    majority = labels[fitted].bincount(minlength=classes).argmax()
    return {
        "accuracy": float((scores.argmax(1) == held).double().mean()),
        "auc": area_under_roc(scores, held),
        "chance": float((held == majority).double().mean()),
    }


def chosen_tokens(data: Data, split: str, device: torch.device, tokens: int) -> Iterator[tuple[Batch, Tensor]]:
    """Each batch, and which of its scored tokens to take [B, S]: every so many, counted over the split."""
    groups = tuple(data.groups)
    count = sum(int(scored_positions(batch, groups).sum()) for batch in batches(data, split, device))
    every, before = max(1, -(-count // tokens)), 0
    for batch in batches(data, split, device):
        scored = scored_positions(batch, groups)
        number = scored.flatten().cumsum(0).view(scored.shape) - 1 + before
        yield batch, scored & (number % every == 0)
        before += int(scored.sum())


def layer_states(backbone: Backbone, batch: Batch) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Every ((loop, layer), state [B, S, d]) of a pass, one-based; a loop's last layer is its normed state.

    A backbone of one's own without `layers` has that state alone.
    """
    streams: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, stream: streams.append(stream))
        for layer in getattr(backbone, "layers", ())
    ]
    try:
        for loop, state in enumerate(loop_states(backbone, batch, None), start=1):
            for layer, hidden in enumerate([*streams[:-1], state.hidden], start=1):
                yield (loop, layer), hidden
            streams.clear()
    finally:
        for hook in hooks:
            hook.remove()


def most_frequent(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Labels as 0, 1, … (the most frequent first) of the tokens that have one of the `classes` commonest, and which."""
    values, index, counts = labels.unique(return_inverse=True, return_counts=True)
    rank = torch.empty_like(values)
    rank[counts.argsort(descending=True, stable=True)] = torch.arange(len(values))
    kept = rank[index] < classes
    return rank[index][kept], kept


def most_likely(hidden: Tensor, head: Tensor) -> Tensor:
    """Token ids [n] of states [n, d]."""
    chunks = hidden.split(chunk_rows(head.shape[0]))
    return torch.cat([F.linear(chunk, head).argmax(-1) for chunk in chunks])
