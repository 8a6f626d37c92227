"""Bytes: what autograd keeps, the cache of keys and values, the optimiser's moments."""

from ouro_lab.compute.widths import Widths
from ouro_lab.model.config import ModelConfig


def activation_bytes(
    config: ModelConfig,
    length: int,
    batch: int = 1,
    element_bytes: int = 4,
    supervised_loops: int = 1,
    mixed: bool = False,
) -> float:
    """What autograd keeps between forward and backward for `batch` sequences of `length`; an estimate.

    Per token and layer pass, in elements: 6·d (inputs of the four norms and of the two groups of projections; 4·d with
    two norms), a norm's scale (LayerNorm: and its mean), 4·f of SwiGLU (gate, its SiLU, up, their product; 2·f of GELU,
    its input and output), and attention: fused, q, k, v, the output and a
    log-sum-exp per head; plain, k and v repeated for all heads, and S weights per head. `auto` is charged as plain.
    Per loop d (the final norm's input), per supervised loop d (the gradient of its state, made with its loss) and the
    loss; with a gate d (its input in the last loop, which no other loop keeps); the ids. Per read-out before the last
    one a norm's scale (the next layer keeps its input too) and the gate's d. With `recompute`: the last loop's passes
    only, and d for the input of every loop before it. Without the norm between loops, the final norm's input is also
    the next loop's, but its output, the gate's input, is not; and no norm of a loop is computed again.

    Beside the estimate: weights, gradients (the head's is kept from the loss on), attention's mask, and the chunked
    cross-entropy's logits, which are made and let go again.

    mixed: under autocast the stream, softmax and all that is between layers is in float32, what products take and give
    in bf16: every map's own copy of its input, too. The casts of the weights are `cast_bytes`, a table of the rotary
    embedding per layer pass, which no batch makes longer, is left out.
    """
    loops = 1 if config.recompute else config.loops  # kept whole
    codas = config.codas(supervised_loops)
    passes = config.prelude + loops * config.core + codas * config.coda  # of a layer
    layers = passes * (_mixed_layer_bytes(config, length) if mixed else 0)
    per_token = 0.0 if mixed else float(passes * _layer_elements(config, length))
    per_token += (config.loops - loops) * config.width + supervised_loops * (config.width + 1)
    per_token += _coda_norms(config, codas) if config.coda else _loop_norms(config, loops)
    ids = 2 * 8  # tokens and targets, int64
    return batch * length * (per_token * element_bytes + layers + ids)


def cast_bytes(config: ModelConfig) -> int:
    """A loop's bf16 copies of the layers' matrices, which autocast makes and the backward pass keeps."""
    return 2 * config.layers * Widths.of(config).layer_matrices


def _loop_norms(config: ModelConfig, loops: int) -> int:
    """Elements that the final norm and the gate keep where `loops` loops are kept whole."""
    kept = loops * (config.width + _norm_scalars(config)) + config.width * config.gate
    kept += (config.states - config.loops) * (_norm_scalars(config) + config.width * config.gate)
    if not config.norm_between_loops:
        kept += (config.loops - 1) * config.width * config.gate - (loops - 1) * config.width
        kept += (config.loops - loops) * _norm_scalars(config)
    return kept


def _coda_norms(config: ModelConfig, codas: int) -> int:
    """The same behind a coda, whose input is the next loop's or the norm's between them too."""
    norm = config.width + _norm_scalars(config)
    between = (config.loops - 1) * norm if config.norm_between_loops else 0
    return between + codas * (norm + config.width * config.gate) - (codas - 1) * config.width


def gate_activation_bytes(config: ModelConfig, length: int, batch: int, gates: int, element_bytes: int = 4) -> float:
    """What autograd keeps where the exit gate alone trains, a head's logits and the trunk's activations no part of it.

    Per token, in elements: d of every state, which the gate reads; of each of `gates` terms six (label and complement,
    the logit and its negative, what either logarithm of a sigmoid keeps).
    """
    return batch * length * (config.states * config.width + 6 * gates) * element_bytes


def kv_bytes_per_token(config: ModelConfig, slots: int | None = None, element_bytes: int = 2) -> int:
    """Keys and values that one token of context holds while decoding; Ouro-1.4B in bf16: 768 KiB.

    slots: caches per looped layer, None for one per loop (exact); 1 is sharing one over loops (paper §5.4.2).
    """
    kept = config.prelude + config.core * (config.loops if slots is None else slots) + config.coda
    return 2 * kept * Widths.of(config).key * element_bytes


def optimiser_bytes(parameters: int, moments: int = 2, element_bytes: int = 4) -> int:
    """AdamW's two moments in float32, whatever dtype the products run in."""
    return parameters * moments * element_bytes


def _layer_elements(config: ModelConfig, length: int) -> int:
    widths = Widths.of(config)
    if config.attention in ("sdpa", "flash_varlen"):
        attention = 2 * widths.query + 2 * widths.key + config.heads
    else:
        attention = 4 * widths.query + config.heads * length
    inputs = (config.norms + 2) * widths.model + config.norms * _norm_scalars(config)
    return inputs + (4 if config.mlp == "swiglu" else 2) * widths.ffn + attention


def _mixed_layer_bytes(config: ModelConfig, length: int) -> int:
    """Per token and layer pass: two norms read the stream, q, k and v (gate and up) cast its norm each."""
    widths, norms = Widths.of(config), config.norms
    maps = 3 + (2 if config.mlp == "swiglu" else 1)
    stream = 4 * (2 * widths.model + norms * _norm_scalars(config)) + 2 * (maps + norms - 2) * widths.model
    fused = config.attention in ("sdpa", "flash_varlen")
    heads = 2 * widths.query + 2 * widths.key if fused else 4 * widths.query  # q, k, v, what they are mixed to
    if config.attention_float32:
        attention = 4 * (heads - widths.query) + 2 * widths.query + 4 * config.heads * (1 if fused else length)
        attention += 4 * widths.query if fused else 0
    else:
        attention = 2 * heads + (4 * config.heads if fused else 6 * config.heads * length)
    return stream + attention + 2 * (4 if config.mlp == "swiglu" else 2) * widths.ffn


def _norm_scalars(config: ModelConfig) -> int:
    return 1 if config.norm == "rms" else 2
