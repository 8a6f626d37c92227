"""Bytes: what autograd keeps, the cache of keys and values, the optimiser's moments."""

from ouro_lab.compute.widths import Widths
from ouro_lab.model.config import ModelConfig


def activation_bytes(
    config: ModelConfig, length: int, batch: int = 1, element_bytes: int = 4, supervised_loops: int = 1
) -> float:
    """What autograd keeps between forward and backward for `batch` sequences of `length`; an estimate, for one dtype.

    Per token and layer pass, in elements: 6·d (inputs of the four norms and of the two groups of projections), four
    norm scales, 4·f of SwiGLU (gate, its SiLU, up, their product), and attention: fused, q, k, v, the output and a
    log-sum-exp per head; plain, k and v repeated for all heads, and S weights per head. `auto` is charged as plain.
    Per loop d (the final norm's input), per supervised loop d (the gradient of its state, made with its loss) and the
    loss; with a gate d (its input in the last loop, which no other loop keeps); the ids. Per read-out before the last
    one a norm's scale (the next layer keeps its input too) and the gate's d. With `recompute`: the last loop's passes
    only, and d for the input of every loop before it.

    Beside the estimate: weights, gradients (the head's is kept from the loss on), attention's mask, and the chunked
    cross-entropy's logits, which are made and let go again. Mixed precision keeps part in the narrow dtype, part in
    float32, and casts of the weights.
    """
    loops = 1 if config.recompute else config.loops  # kept whole
    per_token = loops * (config.layers * _layer_elements(config, length) + config.width + 1)
    per_token += (config.loops - loops) * config.width
    per_token += supervised_loops * (config.width + 1) + config.width * config.gate
    per_token += (config.states - config.loops) * (1 + config.width * config.gate)
    ids = 2 * 8  # tokens and targets, int64
    return batch * length * (per_token * element_bytes + ids)


def kv_bytes_per_token(config: ModelConfig, slots: int | None = None, element_bytes: int = 2) -> int:
    """Keys and values that one token of context holds while decoding; Ouro-1.4B in bf16: 768 KiB.

    slots: caches per layer, None for one per loop (exact); 1 is sharing one over loops (paper §5.4.2).
    """
    kept = config.loops if slots is None else slots
    return 2 * config.layers * kept * Widths.of(config).key * element_bytes


def optimiser_bytes(parameters: int, moments: int = 2, element_bytes: int = 4) -> int:
    """AdamW's two moments in float32, whatever dtype the products run in."""
    return parameters * moments * element_bytes


def _layer_elements(config: ModelConfig, length: int) -> int:
    widths = Widths.of(config)
    if config.attention in ("sdpa", "flash_varlen"):
        attention = 2 * widths.query + 2 * widths.key + config.heads
    else:
        attention = 4 * widths.query + config.heads * length
    return 6 * widths.model + 4 + 4 * widths.ffn + attention
