"""The released forward pass and all its gradients derived a second time, from the equations with plain loops."""

import math
from functools import cache

import torch
from torch import Tensor

from ouro_lab.model import LoopedTransformer, LoopState, ModelConfig

BATCH, LENGTH, VOCABULARY, LAYERS, WIDTH, HEADS, DIM, EPS, BASE = 2, 6, 13, 2, 12, 4, 4, 1e-5, 100.0
DOCUMENTS = torch.tensor([[7, 7, 7, 2, 2, 2], [1, 1, 2, 2, 2, 3]])


def build(kv_heads: int, tied: bool, loops: int, attention: str = "plain") -> LoopedTransformer:
    config = ModelConfig(
        VOCABULARY, LAYERS, loops, WIDTH, HEADS, kv_heads, DIM, ffn_width=20, tie_embeddings=tied, gate=True,
        rope_base=BASE, norm_eps=EPS, attention=attention,
    )  # fmt: skip
    return LoopedTransformer(config)


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, LENGTH), generator=torch.Generator().manual_seed(5))


@cache
def weights(kv_heads: int, tied: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    shapes = {name: value.shape for name, value in build(kv_heads, tied, 1).state_dict().items()}
    return {
        name: float("norm" in name) + 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in shapes.items()
    }


def rms(x: Tensor, w: Tensor) -> Tensor:
    return w * x / ((x**2).mean(-1, keepdim=True) + EPS).sqrt()


def rotated(head: Tensor) -> Tensor:
    """[S, D], half-split: dimension i turns with i + D/2. The angles in float32, as released."""
    inverse = 1.0 / (BASE ** (torch.arange(0, DIM, 2, dtype=torch.float32) / DIM))
    angle = torch.arange(LENGTH, dtype=torch.float32)[:, None] * inverse[None, :]
    cos, sin = angle.cos().double(), angle.sin().double()
    half = DIM // 2
    out = [head[:, i] * cos[:, i] - head[:, i + half] * sin[:, i] for i in range(half)]
    out += [head[:, i + half] * cos[:, i] + head[:, i] * sin[:, i] for i in range(half)]
    return torch.stack(out, 1)


def attention(x: Tensor, w: dict[str, Tensor], prefix: str, kv_heads: int, document: Tensor | None) -> Tensor:
    """x [S, d] of one sequence."""
    q, k, v = (torch.einsum("sd,od->so", x, w[f"{prefix}.{kind}_proj.weight"]) for kind in "qkv")
    mixed = []
    for head in range(HEADS):
        key_head = head // (HEADS // kv_heads)
        own, other = slice(head * DIM, (head + 1) * DIM), slice(key_head * DIM, (key_head + 1) * DIM)
        queries, keys, rows = rotated(q[:, own]), rotated(k[:, other]), []
        for i in range(LENGTH):
            seen = [j for j in range(i + 1) if document is None or document[i] == document[j]]
            scores = torch.stack([queries[i] @ keys[j] / math.sqrt(DIM) for j in seen])
            share = scores.exp() / scores.exp().sum()
            rows.append(torch.einsum("j,jd->d", share, v[seen][:, other]))
        mixed.append(torch.stack(rows))
    return torch.einsum("se,oe->so", torch.cat(mixed, 1), w[f"{prefix}.o_proj.weight"])


def released(w: dict[str, Tensor], kv_heads: int, loops: int, documents: Tensor | None) -> list[LoopState]:
    per_sequence = []
    for b, ids in enumerate(tokens()):
        h = torch.stack([w["embed_tokens.weight"][i] for i in ids])
        states = []
        for _ in range(loops):
            for layer in range(LAYERS):
                p = f"layers.{layer}"
                document = None if documents is None else documents[b]
                a = attention(rms(h, w[f"{p}.input_layernorm.weight"]), w, f"{p}.self_attn", kv_heads, document)
                h = h + rms(a, w[f"{p}.input_layernorm_2.weight"])
                u = rms(h, w[f"{p}.post_attention_layernorm.weight"])
                gate, up = (torch.einsum("sd,fd->sf", u, w[f"{p}.mlp.{kind}_proj.weight"]) for kind in ("gate", "up"))
                m = torch.einsum("sf,df->sd", gate * torch.sigmoid(gate) * up, w[f"{p}.mlp.down_proj.weight"])
                h = h + rms(m, w[f"{p}.post_attention_layernorm_2.weight"])
            h = rms(h, w["norm.weight"])
            states.append((h, (h * w["early_exit_gate.weight"][0]).sum(-1) + w["early_exit_gate.bias"]))
        per_sequence.append(states)
    by_loop = zip(*per_sequence, strict=True)
    return [LoopState(torch.stack([h for h, _ in s]), torch.stack([g for _, g in s])) for s in by_loop]


def probe(states: list[LoopState], logits: Tensor) -> Tensor:
    """A scalar that every state, gate logit and last logit enters with its own random weight."""
    generator = torch.Generator().manual_seed(3)
    parts = [*(state.hidden for state in states), *(state.gate_logit for state in states), logits]
    weights = [torch.randn(part.shape, generator=generator, dtype=torch.float64).to(part.dtype) for part in parts]
    return torch.stack([(part * weight).sum() for part, weight in zip(parts, weights, strict=True)]).sum()


@cache
def expected(kv_heads: int, tied: bool, loops: int, packed: bool) -> tuple[list[LoopState], Tensor, dict[str, Tensor]]:
    leaves = {name: value.clone().requires_grad_() for name, value in weights(kv_heads, tied).items()}
    states = released(leaves, kv_heads, loops, DOCUMENTS if packed else None)
    head = leaves["embed_tokens.weight" if tied else "lm_head.weight"]
    logits = torch.einsum("bsd,vd->bsv", states[-1].hidden, head)
    probe(states, logits).backward()
    return states, logits.detach(), {name: leaf.grad for name, leaf in leaves.items()}
