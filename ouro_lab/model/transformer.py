"""The looped transformer: one stack of layers, applied T times with the same weights."""

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ouro_lab.model.attention import attention_bias, fastest_backend, rope_tables
from ouro_lab.model.config import ModelConfig
from ouro_lab.model.layers import Layer, RMSNorm


class LoopState(NamedTuple):
    """What one loop makes: the normed state that the head, the gate and the next loop all read."""

    hidden: Tensor  # [B, S, d]
    gate_logit: Tensor | None  # [B, S]; the hazard is its sigmoid


class LoopedTransformer(nn.Module):
    """Ouro's forward pass, as released: embed once; per loop the stack, then the shared final norm.

    The *normed* state enters the next loop. No input re-injection, no loop embedding, positions the same in every
    loop. `loops=1` is the plain transformer. Source: paper §3.1 and the released modelling code.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.loops = config.loops
        self.settled: dict[str, str] = {}  # attention backend per (dtype, length, documents), where it was measured
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
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

        Raises (when the first state is asked for):
            ValueError: loops < 1.
        """
        loops = self.loops if loops is None else loops
        if loops < 1:
            raise ValueError(f"loops = {loops!r}: must be an integer ≥ 1")
        length, device = tokens.shape[1], tokens.device
        x = self.embed_tokens(tokens)  # [B, S, d]
        rope = rope_tables(length, self.config.head_dim, self.config.rope_base, device)
        backend = self._backend(x, documents is not None)
        causal = documents is None
        # Fused causal attention reads no mask: at 65,536 positions it alone would be 16 GiB.
        bias = None if causal and backend == "sdpa" else attention_bias(length, documents, device)
        for _ in range(loops):
            for layer in self.layers:
                x = layer(x, rope, bias, causal, backend)
            x = self.norm(x)
            gate_logit = None if self.early_exit_gate is None else self.early_exit_gate(x).squeeze(-1)
            yield LoopState(x, gate_logit)

    def forward(self, tokens: Tensor, documents: Tensor | None = None, loops: int | None = None) -> Tensor:
        """Logits [B, S, V] of the last loop."""
        last = deque(self.loop_states(tokens, documents, loops), maxlen=1).pop()  # lets go of the earlier states
        return F.linear(last.hidden, self.head_weight)

    def initialise(self, seed: int) -> None:
        """Normal(0, init_std) weights, unit norms, zero gate bias, each a function of (seed, parameter name) only.

        So arms of one seed share every weight whose name and shape they share.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 0.0 if name.endswith("bias") else 1.0)
            else:
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                drawn = torch.empty(parameter.shape).normal_(0.0, self.config.init_std, generator=generator)
                parameter.data.copy_(drawn)

    def _backend(self, x: Tensor, documents: bool) -> str:
        if self.config.attention != "auto":
            return self.config.attention
        if x.device.type == "meta":
            return "plain"
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        key = f"{dtype} S{x.shape[1]} documents={documents}"
        if key not in self.settled:
            self.settled[key] = fastest_backend(x.device.type, dtype, x.shape[1], self.config.head_dim, documents)
        return self.settled[key]
