"""How well an early loop drafts for the last one (paper §7.3, proposed there and not measured)."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from ouro_lab.evaluation.passes import Backbone, Data, batches, evaluating
from ouro_lab.inference.speculative import Speculator

SLOTS = 16


@dataclass(frozen=True)
class Drafting:
    """An evaluation: greedy text after the first `prompt` tokens of a row, drafted at an early loop, verified at T.

    draft_loops, draft_tokens: `Speculator`'s. tokens: new ones per row. rows: at most so many of the split.

    Values: `draft/acceptance`, accepted over drafted tokens; `draft/passes`, through the stack per new token, one after
    another, where plain decoding needs T; `draft/speed`, T over that: the gain where a pass takes as long for a few
    tokens as for one.

    Raises:
        ValueError: naming the field; or that no row of the split is as long as the prompt.
    """

    draft_loops: int = 1
    draft_tokens: int = 4
    prompt: int = 128
    tokens: int = 64
    rows: int = 64

    def __post_init__(self) -> None:
        for name in ("draft_loops", "draft_tokens", "prompt", "tokens", "rows"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"evaluation.{name} = {value!r}: must be an integer ≥ 1")

    def metric_names(self, data: Data, loops: int) -> tuple[str, ...]:
        return ("draft/acceptance", "draft/passes", "draft/speed")

    def __call__(self, backbone: Backbone, data: Data, split: str) -> dict[str, float]:
        prompts = list(islice(self._prompts(backbone, data, split), self.rows))
        if not prompts:
            raise ValueError(f"evaluation.prompt = {self.prompt}: no row of {split} has as many tokens")
        drafted = accepted = passes = made = 0
        with evaluating(backbone):
            length = self.prompt + self.tokens
            kind = (min(SLOTS, len(prompts)), length, self.draft_loops, self.draft_tokens)
            speculator = Speculator(backbone, *kind)
            for at in range(0, len(prompts), SLOTS):
                for result in speculator.generate(prompts[at : at + SLOTS], self.tokens):
                    drafted, accepted = drafted + result.drafted, accepted + result.accepted
                    passes += result.passes
                    made += len(result.tokens) - 1  # the prompt's own pass makes the first
        return {
            "draft/acceptance": accepted / max(1, drafted),
            "draft/passes": passes / max(1, made),
            "draft/speed": backbone.loops * made / max(1, passes),
        }

    def _prompts(self, backbone: Backbone, data: Data, split: str) -> Iterator[list[int]]:
        for batch in batches(data, split, backbone.head_weight.device):
            for row in batch["tokens"]:
                if len(row) >= self.prompt:
                    yield row[: self.prompt].tolist()
