"""A Llama in GGUF, such as SmolLM2-135M, as our plain transformer: two norms per layer, one loop, no gate."""

from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from ouro_lab.data.gguf import read_metadata, read_tensors
from ouro_lab.interop.weights import same_names
from ouro_lab.model import LoopedTransformer, ModelConfig

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
WHOLE = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
HEADS = {"attn_q": "heads", "attn_k": "kv_heads"}


def read_llama(path: Path) -> LoopedTransformer:
    """The model of a GGUF file, weights decoded to float32.

    Raises:
        ValueError: not a Llama, scaled rotary embedding, or tensors other than its shape asks for; names them.
    """
    metadata = read_metadata(path)
    tensors = read_tensors(path)
    config = _config(metadata, tied="output.weight" not in tensors, path=path)
    with torch.device("meta"):
        model = LoopedTransformer(config)
    theirs = {_name(name, path): name for name in tensors}
    want = model.state_dict()
    same_names(set(want), set(theirs), str(path))
    for ours, name in theirs.items():
        if tensors[name].shape != want[ours].shape:
            found, must = list(tensors[name].shape), list(want[ours].shape)
            raise ValueError(f"{path}: {name} has shape {found}, must be {must}")
    state = {ours: torch.from_numpy(_unpermuted(name, tensors[name], config)) for ours, name in theirs.items()}
    model.load_state_dict(state, assign=True)
    return model.eval()


def constants(path: Path) -> dict[str, float]:
    """`rope_base` and `norm_eps` of the model in a GGUF file, by the names of our shape."""
    return _constants(read_metadata(path))


def _constants(metadata: dict[str, Any]) -> dict[str, Any]:
    base, eps = metadata.get("llama.rope.freq_base", 10_000.0), metadata["llama.attention.layer_norm_rms_epsilon"]
    return {"rope_base": base, "norm_eps": eps}


def _config(metadata: dict[str, Any], tied: bool, path: Path) -> ModelConfig:
    if metadata.get("general.architecture") != "llama":
        raise ValueError(f"{path}: general.architecture = {metadata.get('general.architecture')!r}: must be llama")
    scaled = [name for name in metadata if name.startswith("llama.rope.scaling")]
    if scaled:
        raise ValueError(f"{path}: {scaled[0]} = {metadata[scaled[0]]!r}: scaled rotary embedding is not computed here")
    heads = metadata["llama.attention.head_count"]
    dim = metadata["llama.embedding_length"] // heads
    if metadata.get("llama.rope.dimension_count", dim) != dim:
        raise ValueError(f"{path}: llama.rope.dimension_count: must be the head size {dim}")
    return ModelConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        layers=metadata["llama.block_count"],
        width=metadata["llama.embedding_length"],
        heads=heads,
        kv_heads=metadata.get("llama.attention.head_count_kv", heads),
        ffn_width=metadata["llama.feed_forward_length"],
        tie_embeddings=tied,
        norms=2,
        **_constants(metadata),
    )


def _name(name: str, path: Path) -> str:
    """Ours of a tensor: blk.3.attn_q.weight is layers.3.self_attn.q_proj.weight."""
    parts = name.split(".")
    if len(parts) == 2 and parts[0] in WHOLE:
        return f"{WHOLE[parts[0]]}.{parts[1]}"
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER:
        return f"layers.{parts[1]}.{LAYER[parts[2]]}.{parts[3]}"
    raise ValueError(f"{path}: has an unknown tensor {name}")


def _unpermuted(name: str, weight: NDArray, config: ModelConfig) -> NDArray:
    """q and k as half-split rotary embedding wants them: llama.cpp stores a head's rows i and i + D/2 side by side."""
    part = name.split(".")[-2]
    if part not in HEADS:
        return weight
    heads = getattr(config, HEADS[part])
    return weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
