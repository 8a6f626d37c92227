"""The looped transformer: one stack of layers, applied T times with the same weights."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property, partial
from itertools import islice
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ouro_lab.model.attention import Mask, Rope, attention_mask, fastest_backend, rope_tables
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.layers import NORMS, Layer
from ouro_lab.model.varlen import obstacle

BRANCH_ENDS = {  # by norms per layer: the parameters that scale what attention and MLP add to the stream
    2: ("self_attn.o_proj.weight", "mlp.down_proj.weight"),
    4: ("input_layernorm_2.weight", "post_attention_layernorm_2.weight"),
}


class LoopState(NamedTuple):
    """What one loop makes: the normed state that the head and the gate read, and by default the next loop too."""

    hidden: Tensor  # [B, S, d]
    gate_logit: Tensor | None  # [B, S]; the hazard is its sigmoid


class LateState:
    """A `LoopState` behind a coda, which runs when the state is read: a loss of the last loop alone pays for one."""

    def __init__(self, make: Callable[[], LoopState]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> LoopState:
        return self._make()

    @property
    def hidden(self) -> Tensor:
        return self._made.hidden

    @property
    def gate_logit(self) -> Tensor | None:
        return self._made.gate_logit


class LoopedTransformer(nn.Module):
    """Ouro's forward pass, as released: embed once; per loop the stack, then the shared final norm.

    The *normed* state enters the next loop; with `norm_between_loops=False` the stack's own, which the paper's text
    allows too. No input re-injection, no loop embedding, positions the same in every loop. `loops=1` is the plain
    transformer. Source: paper §3.1 and the released modelling code.

    Of `prelude` and `coda` layers the first ones run once, and the last ones between a loop's state and its read-out;
    the next loop never reads through the coda.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loops = config.states
        self.settled: dict[str, str] = {}  # attention backend per (dtype, length, documents), where it was measured
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = NORMS[config.norm](config.width, config.norm_eps)
        self.early_exit_gate = nn.Linear(config.width, 1) if config.gate else None
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """[V, d]."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def loop_states(
        self, tokens: Tensor, documents: Tensor | None = None, loops: int | None = None
    ) -> Iterator[LoopState]:
        """Yields loop 1, 2, … as each is computed.

        tokens: [B, S] ids. documents: [B, S]; attention stays within equal values. loops: other than trained, if given.
        With `read_out_every`, the states of an untied stack stand for loops.

        Raises (when the first state is asked for):
            ValueError: loops < 1, or more than an untied stack has read-outs.
        """
        loops = self.loops if loops is None else loops
        if loops < 1:
            raise ValueError(f"loops = {loops!r}: must be an integer ≥ 1")
        if self.config.read_out_every and loops > self.loops:
            raise ValueError(f"loops = {loops!r}: an untied stack has {self.loops} read-outs")
        length, device = tokens.shape[1], tokens.device
        x = self.embed_tokens(tokens)  # [B, S, d]
        rope = rope_tables(length, self.config.head_dim, self.config.rope_base, device)
        backend = self._backend(x, documents is not None)
        mask = attention_mask(backend, length, documents, device)
        how = (rope, mask, documents is None, backend)
        if self.config.read_out_every:
            yield from self._read_outs(loops, x, *how)
            return
        x = self._once(x, 0, self.config.prelude, *how)
        for loop in range(1, loops + 1):
            if self.config.coda and self.config.norm_between_loops and loop > 1:
                x = self._normed(x)
            # The backward pass begins with the last loop: to compute that one again would free nothing.
            again = self.config.recompute and loop < loops and self._has_backward(x)
            x = (partial(_recomputed, self) if again else self.loop)(x, *how)
            if self.config.coda:
                yield cast(LoopState, LateState(partial(self._behind_coda, x, *how)))
            else:
                yield self._state(x if self.config.norm_between_loops else self._normed(x))

    def _read_outs(
        self, count: int, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str
    ) -> Iterator[LoopState]:
        """The first `count` states of the untied stack; the stream goes on without the norm, as in a plain one."""
        every = self.config.read_out_every or len(self.layers)
        for depth in range(0, count * every, every):
            x = self._once(x, depth, depth + every, rope, mask, causal, backend)
            yield self._state(self._normed(x))

    def _once(self, x: Tensor, first: int, end: int, *how: Any) -> Tensor:
        with _casts_of_its_own(x):
            for layer in islice(self.layers, first, end):
                x = layer(x, *how)
        return x

    def _behind_coda(self, x: Tensor, *how: Any) -> LoopState:
        layers = self.config.layers
        return self._state(self._normed(self._once(x, layers - self.config.coda, layers, *how)))

    def _state(self, hidden: Tensor) -> LoopState:
        if self.early_exit_gate is None:
            return LoopState(hidden, None)
        with _no_autocast(hidden):  # which would keep a narrow copy of every loop's state for this one column
            return LoopState(hidden, self.early_exit_gate(hidden).squeeze(-1))

    def loop(self, x: Tensor, rope: Rope, mask: Mask, causal: bool, backend: str) -> Tensor:
        """The looped layers once, and the final norm if all that follows reads through it: [B, S, d] to [B, S, d]."""
        with _casts_of_its_own(x):
            for layer in islice(self.layers, self.config.prelude, self.config.layers - self.config.coda):
                x = layer(x, rope, mask, causal, backend)
            return self.norm(x) if self.config.norm_between_loops and not self.config.coda else x

    def _has_backward(self, x: Tensor) -> bool:
        """Whether a backward pass will come through the layers, which are frozen where the gate alone trains."""
        return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in self.layers.parameters()))

    def _normed(self, x: Tensor) -> Tensor:
        with _casts_of_its_own(x):
            return self.norm(x)

    def forward(self, tokens: Tensor, documents: Tensor | None = None, loops: int | None = None) -> Tensor:
        """Logits [B, S, V] of the last loop."""
        last = deque(self.loop_states(tokens, documents, loops), maxlen=1).pop()  # lets go of the earlier states
        return F.linear(last.hidden, self.head_weight)

    def initialise(self, seed: int) -> None:
        """Normal(0, init_std) weights, unit norms, zero biases, each a function of (seed, parameter name) only.

        So arms of one seed share every weight whose name and shape they share. With `init_by_depth` a branch's last
        matrix is scaled (GPT-2); where a norm follows, which would undo that, the norm's gain is.
        """
        factor = (2 * self.config.effective_depth) ** -0.5 if self.config.init_by_depth else 1.0
        for name, parameter in self.named_parameters():
            scale = factor if name.endswith(BRANCH_ENDS[self.config.norms]) else 1.0
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else scale)
            else:
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                drawn = torch.empty(parameter.shape).normal_(0.0, scale * self.config.init_std, generator=generator)
                parameter.data.copy_(drawn)

    def _backend(self, x: Tensor, documents: bool) -> str:
        chosen, device = self.config.attention, x.device.type
        if chosen in ("plain", "sdpa"):
            return chosen
        if device == "meta":
            return "plain"
        narrow = torch.is_autocast_enabled(device) and not self.config.attention_float32
        dtype = torch.get_autocast_dtype(device) if narrow else x.dtype
        if chosen == "flash_varlen":
            return self._checked_varlen(device, dtype) if documents else "sdpa"
        key = f"{dtype} S{x.shape[1]} documents={documents}"
        if key not in self.settled:
            self.settled[key] = fastest_backend(device, dtype, x.shape[1], self.config.head_dim, documents)
        return self.settled[key]

    def _checked_varlen(self, device: str, dtype: torch.dtype) -> str:
        reason = obstacle(device, dtype, self.config.head_dim)
        if reason:
            raise ValueError(f"backbone.attention = flash_varlen: {reason}")
        return "flash_varlen"


def _recomputed(model: LoopedTransformer, x: Tensor, *constants: Any) -> Tensor:
    # Nothing in a loop is random, so no generator's state need be kept.
    return checkpoint(model.loop, x, *constants, use_reentrant=False, preserve_rng_state=False)


def _no_autocast(x: Tensor) -> AbstractContextManager:
    device = x.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _casts_of_its_own(x: Tensor) -> AbstractContextManager:
    """Autocast as it is, but without its cache of cast weights.

    With the cache all loops use one bf16 copy of a shared weight, at which autograd sums their gradients in bf16.
    Without it each loop's gradient is cast first and the sum is made in float32. Price: a cast per loop, all T of which
    live until the backward pass unless loops are recomputed.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, dtype=torch.get_autocast_dtype(device), cache_enabled=False)
