"""Ouro for transformers 4.57 and 5: the stack of layers applied T times with the same weights (arXiv 2510.25741).

    h ← Embed(tokens);  T times: h ← norm(stack(h)), of which the head makes logits and the gate g the hazard σ(g)

Shapes: B sequences, S positions, K positions seen, d width, D head size, T loops, V vocabulary.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_ouro import OuroConfig

IGNORE = -100
OBJECTIVES = ("last_loop", "mean_over_loops", "stage_one", "mixture_of_logits")
Rope = tuple[Tensor, Tensor]


@dataclass
class OuroModelOutput(ModelOutput):
    """last_hidden_state [B, S, d]; hidden_states: one per loop, if asked for; the others as `OuroCausalLMOutput`'s."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    gate_logits: Tensor | None = None
    exit_distribution: Tensor | None = None


@dataclass
class OuroCausalLMOutput(ModelOutput):
    """logits [B, S, V] of the last loop; gate_logits and exit_distribution [B, S, T], None without a gate.

    hidden_states: with `output_hidden_states` the normed state [B, S, d] of every loop, which the head reads.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None
    gate_logits: Tensor | None = None
    exit_distribution: Tensor | None = None


class OuroRMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(torch.float32, x.dtype))
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class OuroAttention(nn.Module):
    def __init__(self, config: OuroConfig) -> None:
        super().__init__()
        d, self.dim = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(d, config.num_attention_heads * self.dim, bias=False)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * self.dim, bias=False)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * self.dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.dim, d, bias=False)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: Any, slot: int) -> Tensor:
        linears = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (linear(x).unflatten(-1, (-1, self.dim)).transpose(1, 2) for linear in linears)  # [B, heads, S, D]
        q, k = rotated(q, rope), rotated(k, rope)
        if cache is not None:
            k, v = cache.update(k, v, slot)  # [B, heads, K, D]
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None and x.shape[1] > 1, enable_gqa=q.shape[1] != k.shape[1]
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class OuroMLP(nn.Module):
    def __init__(self, config: OuroConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class OuroDecoderLayer(nn.Module):
    """`post_attention_layernorm` is the norm before the MLP; the two ending in `_2` are those of the branches' ends."""

    def __init__(self, config: OuroConfig) -> None:
        super().__init__()
        self.self_attn = OuroAttention(config)
        self.mlp = OuroMLP(config)
        self.input_layernorm = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.input_layernorm_2 = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm_2 = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Rope, mask: Tensor | None, cache: Any, slot: int) -> Tensor:
        x = x + self.input_layernorm_2(self.self_attn(self.input_layernorm(x), rope, mask, cache, slot))
        return x + self.post_attention_layernorm_2(self.mlp(self.post_attention_layernorm(x)))


class OuroPreTrainedModel(PreTrainedModel):
    config_class = OuroConfig
    base_model_prefix = "model"
    _no_split_modules = ["OuroDecoderLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, OuroRMSNorm):
            nn.init.ones_(module.weight)


class OuroModel(OuroPreTrainedModel):
    def __init__(self, config: OuroConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(OuroDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = OuroRMSNorm(config.hidden_size, config.rms_norm_eps)
        if config.exit_gate:
            self.early_exit_gate = nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        loops: int | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> OuroModelOutput:
        """attention_mask [B, K]: 0 at padding. loops: other than `total_ut_steps`, the same for all of a cache's life.

        Keys and values of layer l in loop t lie in the cache's slot t·L + l (both from zero).
        """
        loops = self.config.total_ut_steps if loops is None else loops
        if loops < 1:
            raise ValueError(f"loops = {loops}: must be an integer ≥ 1")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds  # [B, S, d]
        wanted = use_cache if use_cache is not None else self.config.use_cache and not self.training
        cache = (past_key_values if past_key_values is not None else DynamicCache()) if wanted else None
        past = 0 if cache is None else cache.get_seq_length()
        make_room(cache, loops * len(self.layers))
        if position_ids is None:
            position_ids = torch.arange(past, past + x.shape[1], device=x.device).unsqueeze(0)
        rope = rope_tables(position_ids, self.config, x.dtype)
        mask = visible(attention_mask, past, x)
        states = []
        for loop in range(loops):
            for index, layer in enumerate(self.layers):
                x = layer(x, rope, mask, cache, loop * len(self.layers) + index)
            x = self.norm(x)
            states.append(x)
        gates, exits = self.exits(states)
        return OuroModelOutput(x, cache, tuple(states) if output_hidden_states else None, gates, exits)

    def exits(self, states: list[Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """Gate logits and the exit distribution [B, S, T]."""
        if not self.config.exit_gate:
            return None, None
        gates = torch.cat([self.early_exit_gate(state) for state in states], -1)
        return gates, log_exit_distribution(gates).exp()


class OuroForCausalLM(OuroPreTrainedModel, GenerationMixin):
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: OuroConfig) -> None:
        super().__init__(config)
        if config.objective not in OBJECTIVES:
            raise ValueError(f"objective = {config.objective!r}: must be one of {', '.join(OBJECTIVES)}")
        self.model = OuroModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        loops: int | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        **rest: Any,
    ) -> OuroCausalLMOutput:
        """labels [B, S]: as the tokens, −100 where nothing is asked; `config.objective` says which loss they give."""
        out = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, loops,
            labels is not None or output_hidden_states, **rest,
        )  # fmt: skip
        loss = None if labels is None else self.loss(out.hidden_states, out.gate_logits, labels, num_items_in_batch)
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        states = out.hidden_states if output_hidden_states else None
        return OuroCausalLMOutput(loss, logits, out.past_key_values, states, out.gate_logits, out.exit_distribution)

    def loss(
        self, states: tuple[Tensor, ...], gates: Tensor | None, labels: Tensor, items: Tensor | int | None = None
    ) -> Tensor:
        """Nats per target. The paper's first stage is `stage_one`: Σ_t p_t·CE_t − β·H(p)."""
        targets = F.pad(labels, (0, 1), value=IGNORE)[:, 1:]
        valid = targets != IGNORE
        kind = self.config.objective
        if kind in ("stage_one", "mixture_of_logits") and gates is None:
            raise ValueError(f"objective = {kind}: needs an exit gate, and exit_gate is false")
        if kind == "last_loop":
            values = self.cross_entropy(states[-1], targets)
        elif kind == "mean_over_loops":
            values = torch.stack([self.cross_entropy(state, targets) for state in states]).mean(0)
        elif kind == "stage_one":
            log_p = log_exit_distribution(gates)  # [B, S, T]
            by_loop = torch.stack([self.cross_entropy(state, targets) for state in states], -1)
            values = (log_p.exp() * (by_loop + self.config.entropy_weight * log_p)).sum(-1)
        else:
            p = log_exit_distribution(gates).exp().to(states[0].dtype)
            mixed = (torch.stack(states, -1) * p.unsqueeze(-2)).sum(-1)  # the head is linear
            values = self.cross_entropy(mixed, targets)
        return (values * valid).sum() / (valid.sum().clamp_min(1) if items is None else items)

    def cross_entropy(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """[B, S], zero where there is no target."""
        logits = self.lm_head(hidden)
        wide = logits.to(torch.promote_types(torch.float32, logits.dtype))
        return F.cross_entropy(wide.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none")


def log_exit_distribution(gates: Tensor) -> Tensor:
    """log p [B, S, T]: p_t = λ_t·Π_{j<t}(1 − λ_j), and the last loop takes the rest, so λ_T is not used."""
    wide = gates.to(torch.promote_types(torch.float32, gates.dtype))
    survival = F.pad(F.logsigmoid(-wide[..., :-1]).cumsum(-1), (1, 0))  # log Π_{j<t}(1 − λ_j)
    return survival + F.pad(F.logsigmoid(wide[..., :-1]), (0, 1))


def rope_tables(positions: Tensor, config: OuroConfig, dtype: torch.dtype) -> Rope:
    """Cosines and sines [B, 1, S, D], the two halves alike, made in float32."""
    exponent = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    angle = positions.float().unsqueeze(-1) * (1.0 / config.rope_theta**exponent)
    angle = torch.cat([angle, angle], -1).unsqueeze(1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotated(x: Tensor, rope: Rope) -> Tensor:
    """Half-split rotary embedding of x [B, heads, S, D]."""
    first, second = x.chunk(2, -1)
    return x * rope[0] + torch.cat([-second, first], -1) * rope[1]


def visible(attention_mask: Tensor | None, past: int, x: Tensor) -> Tensor | None:
    """Which of the K positions each query may see, [B or 1, 1, S, K]; None if only causality and no past forbid any."""
    if attention_mask is not None and attention_mask.shape != (x.shape[0], past + x.shape[1]):
        raise ValueError(f"attention_mask {list(attention_mask.shape)}: must be {[x.shape[0], past + x.shape[1]]}")
    padded = attention_mask is not None and not bool(attention_mask.all())
    if not past and not padded:
        return None
    keys = torch.arange(past + x.shape[1], device=x.device)
    queries = keys[past:].unsqueeze(-1)
    seen = (keys <= queries)[None, None]  # [1, 1, S, K]
    if padded:
        # A query at padding sees itself, as a softmax over nothing is not a number; nobody sees it.
        seen = seen & (attention_mask.bool()[:, None, None, :] | (keys == queries))
    return seen


def make_room(cache: Any, slots: int) -> None:
    """T·L slots in a standard cache, which transformers makes for L layers where it knows the config."""
    if getattr(cache, "is_compileable", False):
        raise ValueError(f"past_key_values = {type(cache).__name__}: must be a cache that grows (DynamicCache)")
    if cache is None or not getattr(cache, "layers", None) or len(cache.layers) == slots:
        return
    if len(cache.layers) > slots or getattr(cache.layers[0], "is_initialized", False):
        raise ValueError(f"past_key_values: holds {len(cache.layers)} slots, loops × layers are {slots}")
    cache.layers.extend(copy.copy(cache.layers[0]) for _ in range(slots - len(cache.layers)))
