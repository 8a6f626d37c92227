"""A training step as the bench takes it: forward, loss, backward, clip, AdamW; ours and the rivals' alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.bench.rivals import PlainLoopedTransformer, fused_norm_is_faster, llama
from ouro_lab.compute import Cost, training_cost
from ouro_lab.model import LoopedTransformer, ModelConfig
from ouro_lab.objectives import LastLoop, StageOne
from ouro_lab.training.optim import decay_groups

Loss = Callable[[Tensor, Tensor], Tensor]

LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 1e-2}  # relative: ours against a rival that took our weights


@dataclass(frozen=True)
class Spec:
    """What one step trains; dtype is that of matrix products, weights are in float32."""

    layers: int
    loops: int
    width: int
    heads: int
    vocab_size: int
    batch: int
    length: int
    stage_one: bool
    dtype: str
    recompute: bool = False

    @property
    def model(self) -> ModelConfig:
        shape: dict[str, Any] = {name: getattr(self, name) for name in ("layers", "loops", "width", "heads")}
        again = {"recompute": True} if self.recompute else {}
        return ModelConfig(vocab_size=self.vocab_size, gate=self.stage_one, **shape, **again)

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def mixed(self) -> bool:
        return self.dtype == "bfloat16"

    @property
    def supervised(self) -> int:
        return self.loops if self.stage_one else 1

    @property
    def cost(self) -> Cost:
        return training_cost(self.model, self.length, self.supervised, self.batch)

    def batch_of_tokens(self) -> tuple[Tensor, Tensor]:
        """Random tokens and targets [B, S]: what they are changes no cost."""
        return random_batch(self.vocab_size, self.batch, self.length)


def random_batch(vocab_size: int, batch: int, length: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(vocab_size, (2, batch, length), generator=torch.Generator().manual_seed(0))
    return drawn[0], drawn[1]


class StepSpec(Protocol):
    """What a step reads of its `Spec`."""

    @property
    def mixed(self) -> bool: ...

    def batch_of_tokens(self) -> tuple[Tensor, Tensor]: ...


class Step:
    """A call is one optimiser step on the same batch; it returns the loss before it."""

    def __init__(self, model: nn.Module, loss: Loss, spec: StepSpec) -> None:
        self.model, self.loss = model, loss
        self.spec: Any = spec  # the bench's curves read more of their `Spec`
        self.batch = spec.batch_of_tokens()
        groups: Any = decay_groups(model.named_parameters(), 0.1)
        self.optimiser = torch.optim.AdamW(groups, lr=1e-4, fused=True)

    def __call__(self) -> Tensor:
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.spec.mixed):
            loss = self.loss(*self.batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        return loss.detach()


def ours(spec: Spec, compiled: bool = True) -> Step:
    """Our step, as a run takes it. compiled: its blocks are, where a compiler works."""
    from ouro_lab.training import execution  # seconds of imports that a rival's process can do without

    model = LoopedTransformer(spec.model)
    model.initialise(0)
    objective = StageOne() if spec.stage_one else LastLoop()
    if compiled and execution.compiler_works():
        torch._dynamo.reset()  # the graphs of earlier shapes would use up its limit, and the rest would run eagerly
        execution.share_compiled_code()
        execution.compile_step(model)

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return objective(model.loop_states(tokens), model.head_weight, targets)[0]

    return Step(model, loss, spec)


def eager(spec: Spec, norms: int = 4) -> Step:
    """Rival (a)'s step, from our initial weights."""
    config = spec.model
    fused = fused_norm_is_faster(spec.tokens, spec.width, spec.mixed)
    model = PlainLoopedTransformer(config, norms, fused)
    source = LoopedTransformer(config)
    source.initialise(0)
    kept = set(model.state_dict())
    model.load_state_dict({name: tensor for name, tensor in source.state_dict().items() if name in kept})
    return Step(model, model.stage_one_loss if spec.stage_one else model.last_loop_loss, spec)


def unrolled_llama(spec: Spec) -> Step | None:
    """Rival (b)'s step, trained on its last layer; None where `transformers` is not installed."""
    model = llama(spec.model)
    if model is None:
        return None

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=tokens).logits.flatten(0, 1), targets.flatten())

    return Step(model, loss, spec)


def check_same_loss(mine: Step, rival: Step) -> None:
    """Both take one step.

    Raises:
        ValueError: the first losses differ by more than rounding: what was to be compared is not the same model.
    """
    a, b = float(mine()), float(rival())
    if abs(a - b) > LOSS_TOLERANCE[mine.spec.dtype] * abs(b):
        raise ValueError(f"rival (a) has loss {b:.6f}, ours {a:.6f}: not the same model; no ratio would mean anything")
