"""Quality of decoding under a KV policy and an exit rule, on real text that is forced token by token.

Teacher-forced, so that all policies and rules are judged on the same tokens; earlier ones have left in the cache what
decoding would have left there (paper §5.4.2, which decodes freely and scores answers).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from ouro_lab.evaluation.passes import Backbone, Data, batches, evaluating
from ouro_lab.inference.engine import Engine, Request
from ouro_lab.inference.exits import ExitRule
from ouro_lab.objectives import IGNORE

SLOTS = 32


@dataclass(frozen=True)
class ForcedDecoding:
    """An evaluation: the first `prompt` tokens of a row are read, the next `tokens` go through the decoder one by one.

    prefill, decode: KV policies (`ouro_lab/inference/cache.py`). rule: None takes all loops. rows: at most so many of
    the split, in its order; those that hold one document and enough targets.

    Values over the forced tokens: `decode/loss` (nats), `decode/accuracy`, `decode/bits_per_byte` where bytes are
    known, `decode/mean_loops` executed; and `decode/cache_bytes` of keys and values, per token of context.

    Raises:
        ValueError: naming the field; or that no row of the split is long enough.
    """

    prefill: str = "full"
    decode: str = "full"
    rule: ExitRule | None = None
    prompt: int = 128
    tokens: int = 128
    rows: int = 256

    def __post_init__(self) -> None:
        for name in ("prompt", "tokens", "rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"evaluation.{name} = {value!r}: must be an integer ≥ 1")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        bits = ("bits_per_byte",) if "bits_per_byte" in data.metric_names else ()
        return tuple(f"decode/{name}" for name in ("loss", "accuracy", *bits, "mean_loops", "cache_bytes"))

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        with evaluating(backbone):
            rows = list(islice(self._rows(data, split, backbone.head_weight.device), self.rows))
            if not rows:
                length = self.prompt + self.tokens
                raise ValueError(f"evaluation.prompt + tokens = {length}: no row of {split} has one document as long")
            engine = Engine(backbone, min(SLOTS, len(rows)), self.prompt + self.tokens, self.prefill, self.decode)
            engine.check_rule(self.rule)
            parts = [self._forced(engine, rows[at : at + engine.count]) for at in range(0, len(rows), engine.count)]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self._values(found, engine)

    def _rows(self, data: Data, split: str, device: torch.device) -> Iterator[dict[str, Tensor]]:
        """`tokens`, `targets` and perhaps `bytes` of rows [prompt + tokens]."""
        end = self.prompt + self.tokens
        for batch in batches(data, split, device):
            whole = (batch["targets"][:, self.prompt : end] != IGNORE).all(1) & (batch["tokens"].shape[1] >= end)
            if "documents" in batch:
                documents = batch["documents"][:, :end]
                whole &= (documents == documents[:, :1]).all(1)
            for number in whole.nonzero().flatten().tolist():
                yield {name: batch[name][number, :end] for name in ("tokens", "targets", "bytes") if name in batch}

    def _forced(self, engine: Engine, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """`loss`, `right`, `loops`, perhaps `bytes` of each forced token [rows · tokens], in the order of leaving."""
        tokens = [row["tokens"].tolist() for row in rows]
        engine.admit({slot: Request(one[: self.prompt], slot) for slot, one in enumerate(tokens)}, None)
        place = dict.fromkeys(range(len(rows)), self.prompt)
        engine.go_on({slot: tokens[slot][self.prompt] for slot in place})
        found: dict[str, list[Tensor]] = {}
        while place:
            over = engine.advance(sorted(place), self.rule)
            for name, values in self._read(engine, rows, over, place).items():
                found.setdefault(name, []).append(values)
            place = {slot: at + (slot in over) for slot, at in place.items() if at + (slot in over) < len(tokens[slot])}
            engine.go_on({slot: tokens[slot][place[slot]] for slot in over if slot in place})
        return {name: torch.cat(values) for name, values in found.items()}

    def _read(
        self, engine: Engine, rows: list[dict[str, Tensor]], over: list[int], place: dict[int, int]
    ) -> dict[str, Tensor]:
        if not over:
            return {}
        logits = engine.logits(over)
        logits = logits.to(torch.promote_types(torch.float32, logits.dtype))
        target = torch.stack([rows[slot]["targets"][place[slot]] for slot in over])
        values = {
            "loss": F.cross_entropy(logits, target, reduction="none").double(),
            "right": (logits.argmax(-1) == target).double(),
            "loops": torch.tensor([engine.slots.loop[slot] for slot in over], dtype=torch.float64),
        }
        if "bytes" in rows[0]:
            values["bytes"] = torch.stack([rows[slot]["bytes"][place[slot]] for slot in over]).double()
        return values

    def _values(self, found: dict[str, Tensor], engine: Engine) -> dict[str, float]:
        values = {
            "loss": found["loss"].mean(),
            "accuracy": found["right"].mean(),
            "mean_loops": found["loops"].mean(),
            "cache_bytes": engine.cache_bytes / engine.count / engine.max_length,
        }
        if "bytes" in found:
            values["bits_per_byte"] = found["loss"].sum() / math.log(2) / found["bytes"].sum()
        return {f"decode/{name}": float(value) for name, value in values.items()}
